"""Write docs/recipe-reference.md: every field of a recipe, what it takes, its default and its meaning.

    python tools/reference.py

Read from the dataclasses of the recipe, their ranges and their docstrings; a test compares the page with them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from isoform.config import kind_of, non_defaults
from isoform.ranges import ranges_of
from isoform.recipe import Recipe

PAGE = Path(__file__).parent.parent / "docs/recipe-reference.md"
INTRODUCTION = """\
# Every field of a recipe

<!-- Written by tools/reference.py from the dataclasses and their docstrings. -->

A recipe is a TOML file; a field that it leaves out has its default. The same path is a flag:

```toml
[model]
model_dim = 256
decoder = { num_layers = 8 }

[training.optimizer]
kind = "muon"
```

is `--model.model_dim 256 --model.decoder.num_layers 8 --training.optimizer.kind muon`. The most common flags have short
names, such as `--width` and `--layers`: `isoform train --help`.

- Where a field has several kinds, the key `kind` chooses; without it, the default's kind stays, and other keys change
  its fields.
- The text `none` means None: `--training.clip_norm none`, `clip_norm = "none"`.
- `blocks` is a list. A number chooses one of them, no number means all: `--model.decoder.blocks.0.mixer.num_heads 8`,
  `--model.decoder.blocks.mixer.num_heads 8`.
- `isoform recipes --show NAME` prints a whole recipe or preset as TOML, and `isoform train NAME --dry_run` checks one
  and says what it would cost.
"""
HEADER = "| field | takes | default | meaning |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Section:
    """A dataclass, the first path at which a recipe may have it, and whether `kind` chooses it there."""

    path: str
    cls: type
    is_choice: bool

    @property
    def title(self) -> str:
        """The heading, which is also what links are made of."""
        return f"{self.path}: {kind_of(self.cls)}" if self.is_choice else self.path

    @property
    def anchor(self) -> str:
        """The fragment of the heading's address."""
        return "".join(c for c in self.title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def members(hint: Any) -> list[Any]:
    """The types that an annotation allows, NoneType among them."""
    if get_origin(hint) is Annotated:
        return members(hint.__origin__)
    return [m for arg in get_args(hint) for m in members(arg)] if get_origin(hint) in (Union, UnionType) else [hint]


def classes(hint: Any) -> list[type]:
    """The dataclasses that an annotation allows, directly or as elements."""
    inner = [get_args(m)[-1 if get_origin(m) is dict else 0] for m in members(hint) if get_origin(m) in (tuple, dict)]
    own = [m for m in members(hint) if dataclasses.is_dataclass(m)]
    return own + [cls for each in inner for cls in classes(each)]


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotation of each field."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field; MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def walk(cls: type, path: str, seen: set[type]) -> Iterator[Section]:
    """Sections of what is below a dataclass, each once; at a field that has it by default, if there is one."""
    fields = dataclasses.fields(cls)
    for is_optional in (False, True):
        below = []
        for field in (field for field in fields if (default_of(field) is None) is is_optional):
            kinds, where = classes(hints_of(cls)[field.name]), f"{path}.{field.name}".lstrip(".")
            below += [Section(where, kind, len(kinds) > 1) for kind in kinds if kind not in seen]
            seen.update(kinds)
        for section in below:
            yield section
            yield from walk(section.cls, section.path, seen)


@functools.cache
def docs_of(cls: type) -> dict[str, str]:
    """The docstrings of the fields, those of base classes included."""
    docs: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # pyrefly: ignore
        except (OSError, TypeError):  # of the standard library, in C
            continue
        for field, after in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(field.target, ast.Name):
                docs[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


def meaning(section_of: dict[type, Section], cls: type, name: str) -> str:
    """The docstring of a field, or else of the same field of another kind in the same place."""
    if name in docs_of(cls):
        return docs_of(cls)[name]
    place = section_of[cls].path if cls in section_of else ""
    others = [other for other, section in section_of.items() if section.path == place and name in docs_of(other)]
    if others:
        return docs_of(others[0])[name]
    kinds = classes(hints_of(cls)[name])
    return " ".join((kinds[0].__doc__ or "").split()) if len(kinds) == 1 else ""


def takes(section_of: dict[type, Section], cls: type, name: str) -> str:
    """What a field takes, in words; kinds as links to their sections."""
    limits = ranges_of(cls).get(name)
    words = " or ".join(_words(section_of, each, limits) for each in members(hints_of(cls)[name]))
    return words.replace(" or none", ", or none")


def _words(section_of: dict[type, Section], member: Any, limits: Any) -> str:
    if get_origin(member) is Literal:
        return " · ".join(f"`{option}`" for option in get_args(member))
    if get_origin(member) in (tuple, dict):
        item = members(get_args(member)[-1 if get_origin(member) is dict else 0])[0]
        return f"list of {_words(section_of, item, limits)}"
    if dataclasses.is_dataclass(member):
        section = section_of[member]  # pyrefly: ignore
        return f"[{kind_of(section.cls)}](#{section.anchor})"
    if member in (int, float) and limits is not None:
        within = limits[0].describe(1)
        return within if within == "a finite number" else f"{'integer' if member is int else 'number'} {within}"
    return {NoneType: "none", bool: "true or false", str: "text", int: "integer", float: "number"}[member]


def inline(value: Any) -> str:
    """Plain data as a line of TOML."""
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {inline(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + value.replace("\n", "\\n") + '"' if isinstance(value, str) else f"{value:g}"


def default(cls: type, field: dataclasses.Field) -> str:
    """The default of a field, as it would be written in a file."""
    value = default_of(field)
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "none"
    plain = non_defaults(value)
    if dataclasses.is_dataclass(value):
        kind, is_choice = plain.pop("kind"), len(classes(hints_of(cls)[field.name])) > 1
        changes = f"`{inline(plain)}`" if plain else "" if is_choice else "its defaults"
        return " with ".join(filter(None, [f"`{kind}`" if is_choice else "", changes]))
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        plain = [{key: item for key, item in each.items() if key != "kind"} for each in plain]
    return f"`{inline(plain)}`"


def table(section_of: dict[type, Section], cls: type) -> str:
    """The rows of a dataclass; a sentence if it has no field."""
    rows = []
    for field in dataclasses.fields(cls):
        cells = (
            f"`{field.name}`",
            takes(section_of, cls, field.name),
            default(cls, field),
            meaning(section_of, cls, field.name),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEADER + "".join(rows) if rows else "No fields.\n"


def page() -> str:
    """The whole page."""
    sections = list(walk(Recipe, "", set()))
    section_of = {section.cls: section for section in sections}
    lines = [INTRODUCTION, "\n## The recipe\n\n", table(section_of, Recipe)]
    top = ""
    for section in sections:
        if section.path.partition(".")[0] != top:
            top = section.path.partition(".")[0]
            if section.title != top:
                lines.append(f"\n## {top}\n")
        level = "##" if section.title == top else "###"
        about = " ".join(inspect.cleandoc(section.cls.__doc__ or "").split())
        lines.append(f"\n{level} {section.title}\n\n{about}\n\n{table(section_of, section.cls)}")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

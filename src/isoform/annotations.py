"""What the annotations and docstrings of a dataclass say about its fields: choices, marks for the command line, texts.

A choice is a union of dataclasses, whose members are named by their kind. A mark stands in `Annotated` and says what a
field is on a command line; the texts are those that help prints.
"""

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

M = TypeVar("M", bound="Mark")


class Mark:
    """What a field is on a command line."""


@dataclass(frozen=True)
class Inlined(Mark):
    """The fields of this dataclass are flags without the field's name."""

    named: str = ""
    """The word for the argument before the flags that names the whole, if there is one."""


@dataclass(frozen=True)
class Alias(Mark):
    """A flag of one letter, such as -q."""

    flag: str


@dataclass(frozen=True)
class Holds(Mark):
    """What a text is: the word that help has for it."""

    word: str


@dataclass(frozen=True)
class Positional(Holds):
    """An argument without a flag, which is needed unless it is optional."""

    is_optional: bool = False


FilePath = Annotated[str, Holds("FILE")]
FolderPath = Annotated[str, Holds("FOLDER")]
ModelPath = Annotated[str, Holds("MODEL")]
RecipeName = Annotated[str, Holds("RECIPE")]


def kind_of(cls: type) -> str:
    """A variant's name in TOML: RMSNorm -> rms_norm, SwiGLU -> swiglu, ReLU2 -> relu2, ALiBi -> alibi."""
    return re.sub(r"(?<=[A-Za-z0-9])(?=[A-Z][a-z]{2})", "_", cls.__name__).lower()


def members_of(hint: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    return [*get_args(hint)] if get_origin(hint) in (Union, UnionType) else [hint]


def kinds_of(hint: Any) -> dict[str, type]:
    """The dataclasses among the members, by kind."""
    return {kind_of(member): member for member in members_of(hint) if dataclasses.is_dataclass(member)}


def class_of(hint: Any, value: Any) -> type | None:
    """The dataclass of the value, or else the only one; None if there are several."""
    kinds = [*kinds_of(hint).values()]
    return type(value) if type(value) in kinds else kinds[0] if len(kinds) == 1 else None


def elements_of(hint: Any, count: int) -> list[Any]:
    """The annotations of a tuple's `count` elements; empty if no member is a tuple."""
    items = next((get_args(member) for member in members_of(hint) if get_origin(member) is tuple), ())
    return [items[0]] * count if Ellipsis in items else list(items)


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, by name, without marks and ranges."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


@functools.cache
def _marks_of(cls: type) -> dict[str, Sequence[Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint.__metadata__ for name, hint in hints.items() if get_origin(hint) is Annotated}


def mark_of(cls: type, name: str, kind: type[M]) -> M | None:
    """The mark of this kind on a field, if it has one."""
    return next((mark for mark in _marks_of(cls).get(name, ()) if isinstance(mark, kind)), None)


def word_of(cls: type, name: str) -> str:
    """The word for a field's text: that of its mark, or PATH if its name says so; else empty."""
    holds = mark_of(cls, name, Holds)
    return holds.word if holds else "PATH" if name.endswith("path") else ""


def path_of(cls: type, name: str, where: str = "") -> str:
    """The dotted path of a field in a config at `where`."""
    return where if mark_of(cls, name, Inlined) else join(where, name)


def join(where: str, name: str) -> str:
    """A dotted path and one more step."""
    return f"{where}.{name}" if where else name


def summary_of(cls: type) -> str:
    """A class's docstring, without what dataclasses put there if it has none."""
    text = inspect.getdoc(cls) or ""
    return "" if text.startswith(f"{cls.__name__}(") else text


def text_of(cls: type, name: str) -> str:
    """The docstring of a field as one line, of the first class in the order of inheritance that has one."""
    texts = (_texts(base.__module__).get((base.__qualname__, name), "") for base in cls.__mro__)
    return next(filter(None, texts), "")


@functools.cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    """The docstrings of all fields in a module's source, by class and field; Python itself doesn't keep them."""
    try:
        tree = ast.parse(Path(sys.modules[module].__file__ or "").read_text(encoding="utf-8"))
    except (OSError, KeyError, AttributeError):  # typed in by hand, or made while running
        return {}
    texts = {}
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, after in pairwise(cls.body):
            match field, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[cls.name, name] = " ".join(text.split())
    return texts

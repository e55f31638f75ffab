"""Flags of a command line, laid over a config as lines of TOML are; and which flags a config has.

`--a.b.c VALUE` sets a field, `--a.b.kind NAME` chooses a kind, `--a.b none` leaves something out. A short name stands
for fields that many people set: for those among its paths that the config has.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, TypeVar

from isoform.annotations import (
    Alias,
    Inlined,
    Positional,
    class_of,
    elements_of,
    hints_of,
    join,
    kind_of,
    kinds_of,
    mark_of,
    members_of,
    path_of,
    text_of,
)
from isoform.config import ConfigError, Words, draft_over, nearest, validated

T = TypeVar("T")
FLAG = re.compile(r"--?(?!(inf|nan)\b)[A-Za-z]")
"""The beginning of a flag, but not of a negative number."""


@dataclass(frozen=True)
class Short:
    """A short name of a field, which forms of a config may have at different paths."""

    paths: tuple[str, ...]
    text: str


Shorts = Mapping[str, Short]


@dataclass(frozen=True)
class Flag:
    """A flag of a config, and the field behind it."""

    path: str
    hint: Any
    value: Any
    owner: type
    """The dataclass that has the field."""
    name: str
    group: str
    """The field of the whole config that this is, or belongs to."""
    kinds: tuple[str, ...] = ()
    """Of the flag that chooses a kind, the kinds."""

    @property
    def text(self) -> str:
        """The field's docstring."""
        return text_of(self.owner, self.name)


def flags_of(value: Any) -> list[Flag]:
    """All flags of a config, which may be a draft; of each choice the fields of its present kind."""
    return [*_inner_flags(value, "", "")]


def _inner_flags(value: Any, where: str, group: str) -> Iterator[Flag]:
    cls = type(value)
    for name, hint in hints_of(cls).items():
        if mark_of(cls, name, Positional) is None:
            path = path_of(cls, name, where)
            yield from _flags_at(Flag(path, hint, getattr(value, name), cls, name, group or name))


def _flags_at(flag: Flag) -> Iterator[Flag]:
    hint, value, kinds = flag.hint, flag.value, kinds_of(flag.hint)
    if flag.path and kinds and (len(kinds) > 1 or NoneType in members_of(hint)):
        present = None if value is None else kind_of(type(value))
        yield replace(flag, path=f"{flag.path}.kind", value=present, kinds=tuple(kinds))
    if kinds and type(value) is class_of(hint, value):
        yield from _inner_flags(value, flag.path, flag.group)
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for index, (item, inner) in enumerate(zip(value, elements_of(hint, len(value)), strict=True)):
            yield from _flags_at(replace(flag, path=join(flag.path, str(index)), hint=inner, value=item))
    elif not kinds:
        yield flag


def fields_of(short: Short, flags: Iterable[Flag]) -> list[Flag]:
    """The flags that a short name stands for."""
    return [flag for flag in flags if flag.path in short.paths]


def positionals_of(cls: type) -> dict[str, Positional]:
    """The fields that are arguments without a flag, in order."""
    marks = {name: mark_of(cls, name, Positional) for name in hints_of(cls)}
    return {name: mark for name, mark in marks.items() if mark is not None}


def aliases_of(cls: type) -> dict[str, str]:
    """The flags of one letter, and the flags that they stand for."""
    fields = [(cls, name) for name in hints_of(cls)]
    for name in filter(lambda name: mark_of(cls, name, Inlined), hints_of(cls)):
        fields += [(inner, each) for inner in kinds_of(hints_of(cls)[name]).values() for each in hints_of(inner)]
    marks = [(name, mark_of(owner, name, Alias)) for owner, name in fields]
    return {mark.flag: f"--{name}" for name, mark in marks if mark is not None}


def parse_flags(base: T, arguments: Sequence[str], *, prog: str, shorts: Shorts | None = None) -> T:
    """`base`, perhaps a draft, with flags and arguments laid over it. Raises ConfigError, also for what its dataclasses
    refuse."""
    return validated(draft_flags(base, arguments, prog=prog, shorts=shorts))


def draft_flags(base: T, arguments: Sequence[str], *, prog: str, shorts: Shorts | None = None) -> T:
    """What `parse_flags` returns, of which only flags and types are checked.

    Flags: --a.b.c VALUE, --a.b.kind NAME, --a.b none, --a.0.flag, --a.0.no_flag; without the number of all elements.
    Hyphens and underscores are equivalent. Raises ConfigError, which ends by naming the help of `prog`.
    """
    try:
        return _draft(base, arguments, shorts or {})
    except ConfigError as error:
        raise ConfigError(see_help(str(error), prog)) from error


def see_help(text: str, prog: str) -> str:
    """An error of usage with its last remedy."""
    return f"{text}{' ' if text.endswith('?') else '; '}see {prog} --help"


def as_typed(text: str, arguments: Sequence[str], shorts: Shorts) -> str:
    """An error that names fields, with the short names by which they were set instead."""
    cut = [*arguments, "--"].index("--")
    typed = {argument.partition("=")[0].replace("-", "_") for argument in arguments[:cut]}
    for name in (name for name in shorts if f"__{name}" in typed):
        for path in shorts[name].paths:
            if path != name and f"__{path}" not in typed:
                table, _, leaf = path.rpartition(".")
                both = f"{re.escape(path)}|{leaf}" if text.startswith(f"{table}: ") else re.escape(path)
                text = re.sub(rf"(?<![\w.-])(--)?({both})(?!\.?\w)", f"--{name}", text)
    return text


def _draft(base: T, arguments: Sequence[str], shorts: Shorts) -> T:
    cut = [*arguments, "--"].index("--")
    groups, kind = [Words()], type(base)
    for argument in arguments[:cut]:
        if FLAG.match(argument):
            groups.append(Words())
        groups[-1].append(argument)
    data, short_words, paths = _sorted(kind, groups, shorts)
    draft = draft_over(base, data)
    for name, words in short_words.items():
        draft = _with_short(draft, name, shorts[name], words, paths)
    if unread := next((words[0] for words in groups if words and FLAG.match(words[0])), None):
        raise _unknown_flag(unread, draft, shorts)
    rest = Words([word for words in groups for word in words] + [*arguments[cut + 1 :]])
    for name in positionals_of(kind):
        draft = draft_over(draft, {name: rest}) if rest else draft
    if rest:
        raise ConfigError(f'unexpected argument "{rest[0]}"')
    return draft


def _sorted(kind: type, groups: list[Words], shorts: Shorts) -> tuple[dict[str, Any], dict[str, Words], set[str]]:
    """The words after each flag, without it: as a tree of tables, and by short name; and the paths of that tree. Words
    after an unknown flag stay as they are."""
    data: dict[str, Any] = {}
    short_words: dict[str, Words] = {}
    paths, prefixes, aliases = set(), _prefixes(kind), aliases_of(kind)
    for words in groups:
        flag, equals, text = "".join(words[:1]).partition("=")
        first, *inner = aliases.get(flag, flag).removeprefix("--").split(".")
        first = first.replace("-", "_")
        prefix = prefixes.get(first, prefixes.get(first.removeprefix("no_")))
        is_short = first in shorts and shorts[first].paths != (first,) and not inner
        if not aliases.get(flag, flag).startswith("--") or (prefix is None and not is_short):
            continue
        words[:1], words.is_attached = [text] if equals else [], bool(equals)
        if is_short:
            words.earlier = short_words.pop(first, None)
            short_words[first] = words
        elif prefix is not None:
            paths.add(".".join([first, *inner]).replace("-", "_"))
            _put(data, [*prefix, first, *inner], words, flag)
    return data, short_words, paths


def _prefixes(kind: type) -> dict[str, list[str]]:
    """The first steps of all paths, and the fields that are left out before them."""
    hints = hints_of(kind)
    prefixes = {name: [] for name in hints if not mark_of(kind, name, Inlined) and not mark_of(kind, name, Positional)}
    for name in (name for name in hints if mark_of(kind, name, Inlined)):
        prefixes |= {key: [name] for cls in kinds_of(hints[name]).values() for key in hints_of(cls)}
    return prefixes


def _put(data: dict[str, Any], path: Sequence[str], words: Words, flag: str) -> None:
    """Add words to a tree of tables."""
    *steps, last = path
    table: Any = data
    for step in steps:
        table = table.setdefault(_spelling(table, step), {}) if isinstance(table, dict) else table
    last = _spelling(table, last)
    if not isinstance(table, dict) or isinstance(table.get(last), dict):
        raise ConfigError(f"{flag} contradicts another flag above or below it: give one of them")
    words.earlier = table.pop(last) if last in table else words.earlier
    table[last] = words


def _spelling(table: Iterable[str], name: str) -> str:
    """The existing key of the same name up to hyphens, if any; dictionaries keep the spelling that was typed."""
    return next((key for key in table if key.replace("-", "_") == name.replace("-", "_")), name)


def _with_short(draft: T, name: str, short: Short, words: Words, paths: set[str]) -> T:
    """The draft with the words after a short name laid over the fields for which it stands."""
    fields, prefixes = fields_of(short, flags_of(draft)), _prefixes(type(draft))
    if not fields:
        raise ConfigError(f"--{name} stands for {' or '.join(short.paths)}, of which this model has none; leave it out")
    for path in (field.path for field in fields if field.path in paths):
        raise ConfigError(f"--{name} contradicts --{path}: both set one field; give one of them")
    data: dict[str, Any] = {}
    for field in fields:
        own = words if field is fields[-1] else copy.deepcopy(words)  # reading uses words up
        steps = field.path.split(".")
        _put(data, [*prefixes[steps[0]], *steps], own, f"--{name}")
    return draft_over(draft, data)


def _unknown_flag(argument: str, draft: Any, shorts: Shorts) -> ConfigError:
    flag = argument.partition("=")[0]
    name, paths = flag.lstrip("-").replace("-", "_"), [each.path for each in flags_of(draft)]
    near = next((path for path in paths if path.endswith(f".{name}")), None)
    if near is None and (close := nearest(f"--{name}", [f"--{path}" for path in (*shorts, *paths)])):
        near = close.removeprefix("--")
    near = next((short for short, each in shorts.items() if near in each.paths), near)
    return ConfigError(f'unknown flag "{flag}"' + (f': did you mean "--{near}"?' if near else ""))

"""Help, made of the dataclasses of the options: their annotations, docstrings and values.

The page of a verb fits on a screen, with as much of each text as there is room for; `--help-all` has every flag with
its whole text, `--help GROUP` those of a part. Examples are lines of a docstring that begin with the program's name.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from enum import IntEnum
from typing import Any, Literal, get_args, get_origin

from isoform.annotations import Alias, Inlined, elements_of, hints_of, mark_of, members_of, summary_of, text_of, word_of
from isoform.config import ConfigError, unknown_name
from isoform.flags import Flag, Shorts, fields_of, flags_of, positionals_of, see_help

LINES = 40
"""The lines of a screen."""
COLUMN = 26
"""The widest first column."""
ALL = "all"
"""The group of all flags."""

FIRM = "\xa0"
"""A space at which no line ends."""

Row = tuple[str, str, str]
"""A flag or argument, its text, and notes that are not to be cut."""


class Detail(IntEnum):
    """How much a page says."""

    ALL = 0
    OWN = 1
    """Of flags that other verbs have, too, only the names."""
    LINES = 2
    """Of other flags only a line."""
    NAMES = 3
    """Of a recipe and of tables only the names."""


def asks_for_help(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The group whose help is asked for, "" the verb's page and None nothing; and the other arguments."""
    cut = [*arguments, "--"].index("--")
    for i, word in enumerate(arguments[:cut]):
        if word.replace("_", "-") == "--help-all":
            return ALL, [*arguments[:i], *arguments[i + 1 :]]
        if word in ("-h", "--help"):
            group = "".join(word for word in arguments[i + 1 : min(i + 2, cut)] if not word.startswith("-"))
            return group, [*arguments[:i], *arguments[i + 1 + bool(group) :]]
    return None, [*arguments]


def help_text(prog: str, config: object, *, shorts: Shorts, group: str = "", width: int = 80) -> str:
    """The help of a verb with the values of a config, which may be a draft. Raises ConfigError for an unknown group."""
    flags = flags_of(config)
    if not group:
        return "\n".join(_screen(prog, config, flags, shorts, width))
    chosen = [flag for flag in flags if group == ALL or _belongs(flag, group, shorts)]
    if not chosen:
        error = unknown_name("group of flags", group, [ALL, *_groups(config, flags)])
        raise ConfigError(see_help(str(error), prog))
    above = [*_opening(prog, type(config), width), ""] if group == ALL else []
    return "\n".join([*above, *_reference(chosen, type(config), width)])


def _belongs(flag: Flag, group: str, shorts: Shorts) -> bool:
    names = shorts[group].paths if group in shorts else (group.lstrip("-").replace("-", "_"),)
    return flag.group in names or any(flag.path == name or flag.path.startswith(f"{name}.") for name in names)


def _groups(config: object, flags: Iterable[Flag]) -> list[str]:
    """What `--help` takes: tables of a recipe, and dataclasses of the options whose fields stand alone."""
    tables = {flag.path.split(".")[0] for flag in flags if "." in flag.path}
    cls = type(config)
    inlined = [name for name in hints_of(cls) if mark_of(cls, name, Inlined) and not _names_all(cls, name)]
    return [*dict.fromkeys(flag.path.split(".")[0] for flag in flags if flag.path.split(".")[0] in tables), *inlined]


def _names_all(cls: type, name: str) -> str:
    """The word for the argument that names the value of a field, if there is one."""
    inlined = mark_of(cls, name, Inlined)
    return inlined.named if inlined else ""


# One screen


def _screen(prog: str, config: object, flags: Sequence[Flag], shorts: Shorts, width: int) -> list[str]:
    """The page of a verb: of several degrees of detail the first that fits, or the last."""
    lines: list[str] = []
    for detail in Detail:
        rows, names = _rows(config, flags, shorts, detail)
        named = [(f"{group}:", " ".join(each), "") for group, each in names.items()]
        lines = [*_opening(prog, type(config), width), "", *_table(rows, width, is_brief=detail >= Detail.LINES)]
        lines = lines[:-1] if lines[-1] == "" else lines
        lines += ["", *_table(named, width)] if named else []
        lines += _closing(prog, config, flags, width, is_complete=detail == Detail.ALL and not shorts)
        if len(lines) <= LINES:
            break
    return lines


def _opening(prog: str, cls: type, width: int) -> list[str]:
    """How to call a verb, what it does, and its arguments without flags."""
    words = {name: word for name in hints_of(cls) if (word := _names_all(cls, name))}
    for name, mark in positionals_of(cls).items():
        many = " …" if len(elements_of(hints_of(cls)[name], 2)) == 2 else ""
        words[name] = f"[{mark.word}]" if mark.is_optional else mark.word + many
    rows = [(word, _plain(text_of(cls, name)), "") for name, word in words.items()]
    usage = " ".join([f"usage: {prog}", *words.values(), "[--FLAG VALUE …]"])
    summary = " ".join(summary_of(cls).split("\n\n")[0].split())
    return [usage, "", *_wrapped(summary, width), *([""] if rows else []), *_table(rows, width)]


def _rows(config: Any, flags: Sequence[Flag], shorts: Shorts, detail: Detail) -> tuple[list[Row], dict[str, list[str]]]:
    """The flags of a verb's page with their texts, in the order of its fields; and by group those that are only named:
    what other verbs have, too, and in the least detail short names and tables."""
    cls = type(config)
    rows: list[Row] = []
    names: dict[str, list[str]] = {}
    for group in hints_of(cls):
        mine = [flag for flag in flags if flag.group == group]
        is_own = mark_of(cls, group, Inlined) is None or type(getattr(config, group)).__module__ != cls.__module__
        if _names_all(cls, group):
            fields = {name: each for name, short in shorts.items() if (each := fields_of(short, flags))}
            if detail == Detail.NAMES:
                names[group] = [f"--{name}" for name in fields]
                continue
            for name, each in fields.items():
                rows.append((_head(each[0], COLUMN, name), shorts[name].text, _notes(each, COLUMN)))
            rows.append(("", "", ""))
            continue
        for flag in mine:
            table = group if "." not in flag.path else flag.path.partition(".")[0]
            if (is_own or detail == Detail.ALL) and not (table != group and detail == Detail.NAMES):
                rows.append((_head(flag, COLUMN), _plain(flag.text), _notes([flag], COLUMN)))
            else:
                alias = mark_of(flag.owner, flag.name, Alias)
                names.setdefault(table, []).append(f"--{flag.path}" + (f" ({alias.flag})" if alias else ""))
    return rows, names


def _closing(prog: str, config: object, flags: Sequence[Flag], width: int, *, is_complete: bool) -> list[str]:
    """Examples, and where the rest is."""
    examples = [line.strip() for line in summary_of(type(config)).splitlines() if line.strip().startswith("isoform ")]
    lines = ["", "examples:", *(f"  {line}" for line in examples)] if examples else []
    if not is_complete:
        groups = ", ".join(_groups(config, flags))
        lines += ["", *_wrapped(f"{prog} --help-all: all {len(flags)} flags; --help GROUP: {groups}", width)]
    return lines


def _table(rows: Sequence[Row], width: int, *, is_brief: bool = False) -> list[str]:
    """Two columns; a long head has a line for itself. is_brief: of a text only what fits on one line."""
    column = min(max((len(head) for head, *_ in rows), default=0), COLUMN) + 4
    lines = []
    for head, text, notes in rows:
        whole = f"{text} {notes}".strip()
        if is_brief and len(whole) > width - column:
            whole = f"{_beginning(text, max(width - column - len(notes) - 1, 20))} {notes}".strip()
        first, *others = _wrapped(whole, width - column) or [""]
        if len(head) > column - 4:
            lines.append(f"  {head}")
            others = [first, *others]
        else:
            lines.append(f"  {head:<{column - 2}}{first}".rstrip())
        lines += [" " * column + line for line in others]
    return lines


# Every flag


def _reference(flags: Sequence[Flag], cls: type, width: int) -> Iterator[str]:
    """Flags with their whole texts, table by table; first those that are in none."""
    tables: dict[str, list[Flag]] = {"": []}
    for flag in flags:
        is_shared = mark_of(cls, flag.group, Inlined) is not None and not _names_all(cls, flag.group)
        tables.setdefault(flag.path.rpartition(".")[0] or (flag.group if is_shared else ""), []).append(flag)
    is_first = True
    for table, each in tables.items():
        if not each:
            continue
        yield from () if is_first else ("",)
        is_first = False
        owner = next((flag.owner for flag in each if not flag.kinds), None)
        if table:
            summary = " ".join(_plain(summary_of(owner).split("\n\n")[0]).split()) if owner else ""
            yield from _wrapped(f"{table}: {summary}".rstrip(": "), width)
        for flag in each:
            yield f"  {_head(flag, width - 2)}"
            text = f"{_plain(flag.text)} {_notes([flag], width - 2)}".strip()
            yield from (f"      {line}" for line in _wrapped(text, width - 6))


# One flag


def _head(flag: Flag, limit: int, name: str = "") -> str:
    """A flag with the word for its value; its choices if they fit."""
    alias = mark_of(flag.owner, flag.name, Alias)
    flag_name, word = f"{f'{alias.flag}, ' if alias else ''}--{name or flag.path}", _word(flag)
    if get_origin(_member(flag.hint)) is dict:
        flag_name += ".NAME"
    choices = f"{flag_name} {{{','.join(_choices(flag))}}}" if _choices(flag) else ""
    return choices if choices and len(choices) <= limit else f"{flag_name} {word}".rstrip()


def _beginning(text: str, room: int) -> str:
    """The first clause of a text, or what there is room for."""
    first = re.split(r"(?<!al)\. (?=[A-Z])|[;:] ", text)[0]  # "et al. 2020" doesn't end a sentence
    return textwrap.shorten(first, room, placeholder=" …")


def _notes(flags: Sequence[Flag], limit: int) -> str:
    """What the text of flags leaves out: choices that the head has no room for, and their values."""
    flag, notes = flags[0], []
    if (choices := _choices(flag)) and "{" not in _head(flag, limit):
        notes.append(f"one of {', '.join(choices)}")
    if any(map(is_dataclass, elements_of(_member(flag.hint), 1))):
        notes.append("tables of a recipe's file, whose fields are flags then")
    if flag.kinds and type(None) in members_of(flag.hint):
        notes.append(f"or --{flag.path.removesuffix('.kind')} none")
    is_nothing = [flag.value is False or flag.value in ("", (), {}) for flag in flags]
    values = dict.fromkeys(_shown(flag.value) for flag, empty in zip(flags, is_nothing, strict=True) if not empty)
    if None in (flag.value for flag in flags) and re.search(r"\b(default|none):", flag.text, re.IGNORECASE):
        values = {}  # the text says what none means
    if values:
        notes.append(f"default:{FIRM}{', '.join(values)}")
    return f"({'; '.join(notes)})" if notes else ""


def _choices(flag: Flag) -> Sequence[str]:
    member = _member(flag.hint)
    if flag.kinds:
        return flag.kinds
    return [str(option) for option in get_args(member)] if get_origin(member) is Literal else []


def _word(flag: Flag) -> str:
    """The word for a flag's value."""
    member = _member(flag.hint)
    if flag.kinds:
        return "KIND"
    if member is bool:
        return "true|false" if flag.value is not False else ""
    inner = elements_of(member, 2)
    words = [word_of(flag.owner, flag.name) or _word_of(each) for each in inner or [member]]
    return f"{words[0]} …" if inner and Ellipsis in get_args(member) else " ".join(words)


def _word_of(hint: Any) -> str:
    hint = get_args(hint)[1] if get_origin(hint) is dict else _member(hint)
    if get_origin(hint) is Literal or is_dataclass(hint):
        return "TABLE" if is_dataclass(hint) else "NAME"
    return {int: "INTEGER", float: "NUMBER"}.get(hint, "TEXT")


def _member(hint: Any) -> Any:
    """The first member of a union that isn't None."""
    return next(member for member in members_of(hint) if member is not type(None))


def _shown(value: Any) -> str:
    """A value as it would be typed; a text with spaces or unprintable characters in quotes, these as escapes."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _plain(text: str) -> str:
    return text.replace("`", "").rstrip(".")


def _wrapped(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(FIRM, " ") for line in lines]

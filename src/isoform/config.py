"""Configuration: TOML and flags <-> frozen dataclasses, by their type annotations.

A flag `--a.b.c text` is equivalent to a line of TOML, so files and flags are read by the same `_read`, which
overlays plain data on a base and names the dotted path of what it refuses. A choice is a union of dataclasses,
distinguished by the key `kind`; an absent key means the default, and the text "none" means None.
"""

import contextlib
import copy
import dataclasses
import difflib
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import tomli_w

from isoform import history
from isoform.annotations import class_of, elements_of, hints_of, join, kind_of, kinds_of, members_of, path_of
from isoform.ranges import OutOfRange
from isoform.reading import read_toml

T = TypeVar("T")

_NOTHING: Any = object()  # the absence of a value, where None is a value
_NONE = (None, "none", "None")
_BOOLS = {"true": True, "false": False}
_RENAMED: ContextVar[dict[str, str]] = ContextVar("names of earlier versions, and their names today")
EXTERNAL = "external"
"""The kind of parts from outside (outside.py), for which a text MODULE:NAME is short."""


class ConfigError(ValueError):
    """An error in a configuration: what is wrong, the value, the remedy."""


class Words(list[str]):
    """The words after a flag: its field takes those that it needs, the rest are positional arguments."""

    is_attached = False  # whether the first is attached by "="
    earlier: "Words | None" = None  # words of an earlier occurrence of the flag, which this one overrides


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` most likely misspells; None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(options), n=1)), None)


def unknown_name(what: str, name: str, options: Iterable[str], *, where: str = "") -> ConfigError:
    """The error for a name that is not among the options: with `where`, the nearest and all options."""
    options = list(options)
    location, near = f" in {where}" if where else "", nearest(name, options)
    remedy = f'did you mean "{near}"? ' if near else ""
    return ConfigError(f'unknown {what} "{name}"{location}: {remedy}(known: {", ".join(options)})')


def from_dict(kind: type[T], data: Mapping[str, object], *, where: str = "") -> T:
    """Build a dataclass from plain data. Raises ConfigError with the dotted path, which starts with `where`.

    A table is overlaid on the default of its field: `[norm] eps = 1e-5` needs no kind if norm has a default.
    """
    return validated(draft(kind, data, where=where), where)


def overlay(base: T, data: Mapping[str, object]) -> T:
    """A copy of `base` with plain data overlaid; another kind starts from that kind's defaults.

    Tables are merged, lists replace whole tuples; of a tuple of tables {"0": …} updates an element, any other key all
    of them.
    """
    return validated(draft_over(base, data))


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of values by dotted path: {"a.b": 1, "a.c": 2} -> {"a": {"b": 1, "c": 2}}. Configs become tables.

    Raises ConfigError for a path that another one contains.
    """
    data: dict[str, Any] = {}
    for path, value in changes.items():
        *steps, last = path.split(".")
        table: Any = data
        for step in steps:
            table = table.setdefault(step, {}) if isinstance(table, dict) else table
        if not isinstance(table, dict) or last in table:
            raise ConfigError(f"{path} contradicts another change: give one of them")
        table[last] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    """A value from Python as `draft` reads it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": kind_of(type(value)), **to_dict(value, in_full=True)}
    if isinstance(value, Mapping):
        return nested(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def draft(kind: type[T], data: Mapping[str, object], *, where: str = "") -> T:
    """What `from_dict` returns, of which only keys and types are checked: more may be laid over it, by `draft_over` or
    `flags.draft_flags`, before `validated` checks the whole."""
    return _read_whole(kind, data, _NOTHING, where)


def draft_over(base: T, data: Mapping[str, object], *, where: str = "") -> T:
    """What `overlay` returns, of which only keys and types are checked."""
    return _read_whole(type(base), data, base, where, merge=True)


def validated(value: T, where: str = "") -> T:
    """A draft as the config it describes. Raises ConfigError, with the dotted path, for what its dataclasses refuse."""
    if isinstance(value, tuple):
        return tuple(validated(item, join(where, str(i))) for i, item in enumerate(value))  # pyrefly: ignore
    if isinstance(value, dict):
        return {key: validated(item, join(where, key)) for key, item in value.items()}  # pyrefly: ignore
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    cls = type(value)
    paths = {name: path_of(cls, name, where) for name in hints_of(cls)}
    values = {name: validated(getattr(value, name), path) for name, path in paths.items()}
    try:
        return cls(**values)
    except OutOfRange as error:
        raise ConfigError(f"{join(where, error.field)}{error.problem}") from error
    except ValueError as error:
        raise _error(where, error) from error


def _read_whole(kind: Any, data: Any, base: Any, where: str, *, merge: bool = False) -> Any:
    """`_read`, with one warning for all names of earlier versions."""
    token = _RENAMED.set({})
    try:
        return _read(kind, data, base, where, merge=merge)
    finally:
        if names := _RENAMED.get():
            renamed = ", ".join(f"{before} is now {today}" for before, today in names.items())
            warnings.warn(f"names of earlier versions are read: {renamed}", stacklevel=3)
        _RENAMED.reset(token)


def to_dict(value: object, *, in_full: bool = False) -> dict[str, Any]:
    """Plain data that `from_dict` reads as an equal value: without None, with `kind` only in members of unions.

    in_full: write None, too, as "none", so that `overlay` turns any base into the value.
    """
    return _write(type(value), value, _NOTHING, in_full)


def non_defaults(value: Any) -> Any:
    """The fields of a dataclass that differ from their defaults, as plain data; unaffected by new fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data = {"kind": kind_of(type(value))}
        for field in dataclasses.fields(value):
            default = field.default_factory() if callable(field.default_factory) else field.default
            if (item := getattr(value, field.name)) != default:
                data[field.name] = non_defaults(item)
        return data
    return [non_defaults(item) for item in value] if isinstance(value, tuple) else value


def load_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError with the file and, if possible, the line."""
    try:
        return read_toml(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def dump_toml(value: object, *, comment: str = "") -> str:
    """The TOML text of a config, after a comment of any number of lines."""
    lines = [f"# {line}".rstrip() + "\n" for line in comment.splitlines()]
    return "".join(lines) + tomli_w.dumps(to_dict(value))


def differences(a: object, b: object) -> list[tuple[str, object, object]]:
    """The leaves in which two configs or plain dicts differ: (dotted path, in a, in b); None if absent."""
    left, right = (dict(_leaves(x if isinstance(x, Mapping) else to_dict(x))) for x in (a, b))
    paths = dict.fromkeys([*left, *right])
    return [(path, left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)]


def _leaves(data: Any, where: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(data, list | tuple) and any(isinstance(item, Mapping) for item in data):
        data = {str(index): item for index, item in enumerate(data)}
    if isinstance(data, Mapping) and (data or not where):
        for key, item in data.items():
            yield from _leaves(item, join(where, key))
    else:
        yield where, data


def _read(hint: Any, data: Any, base: Any, where: str, *, merge: bool = False) -> Any:
    """Data overlaid on base. `merge`: base is an instance, not a default, so its dictionaries keep their keys."""
    if isinstance(data, Words):
        data = _take(hint, data, where)
    kinds, members = kinds_of(hint), members_of(hint)
    if EXTERNAL in kinds and isinstance(data, str) and ":" in data:
        data = {"kind": EXTERNAL, "name": data}
    if NoneType in members and data in _NONE:
        return None
    if kinds and isinstance(data, Mapping):
        return _read_table(hint, data, base, where, merge=merge)
    values = [member for member in members if member is not NoneType and not dataclasses.is_dataclass(member)]
    for member in sorted(values, key=lambda member: member is not type(data)):  # 3 stays int in float | int
        try:
            return _read_value(member, data, base, where, merge=merge)
        except ConfigError:
            if len(values) == 1 and not kinds:
                raise
    raise _error(where, f"expected {_expected(hint)}, got {data!r}")


def _take(hint: Any, words: Words, where: str) -> Any:
    """The plain data of the words after a flag; removes the words that it uses."""
    if words.earlier is not None:
        _take(hint, words.earlier, where)
    members, inner, first = members_of(hint), elements_of(hint, len(words)), "".join(words[:1]).lower()
    is_switch = bool in members and not {int, float, str} & {*members}
    if is_switch and not words.is_attached and first not in (*_BOOLS, "none"):
        return True
    if inner and not (first == "none" and NoneType in members):
        taken, words[: len(inner)] = words[: len(inner)], []
        return [_take(item, Words([word]), where) for item, word in zip(inner, taken, strict=False)]
    if not words:
        raise _error(where, f"expected {_expected(hint)} (write =VALUE if it begins with a dash)")
    word = words.pop(0)
    for member in members:
        with contextlib.suppress(KeyError, ValueError):
            if get_origin(member) is Literal:
                return {str(option): option for option in get_args(member)}[word]
            if member in (bool, int, float):
                return _BOOLS[word.lower()] if member is bool else member(word)
    return word


def _read_table(hint: Any, data: Mapping[str, Any], base: Any, where: str, *, merge: bool) -> Any:
    cls, kinds = class_of(hint, base), kinds_of(hint)
    if "kind" in data and (cls is None or "kind" not in hints_of(cls)):
        kind = _read(str, data["kind"], _NOTHING, join(where, "kind"))
        if kind not in kinds and (today := history.current_kind(kind, kinds)) is not None:
            _RENAMED.get()[kind], kind = today, today
        if kind not in kinds:
            raise unknown_name("kind", kind, kinds, where=where)
        cls, data = kinds[kind], {key: data[key] for key in data if key != "kind"}
    if cls is None:
        raise _error(where, f"needs a kind (known: {', '.join(kinds)})")
    hints, values = hints_of(cls), {name: _present(cls, base, name) for name in hints_of(cls)}
    for key, item in data.items():
        name = key.replace("-", "_")
        if name not in hints and isinstance(item, Words) and not item.is_attached and name[:3] == "no_":
            name, item = (name[3:], False) if bool in members_of(hints.get(name[3:])) else (name, item)
        if name not in hints and (today := history.current_field(kind_of(cls), name)) is not None:
            _RENAMED.get()[name] = today
            name = today
        if name not in hints:
            raise unknown_name("key", key, hints, where=where)
        path = path_of(cls, name, where)
        values[name] = _read(hints[name], item, values[name], path, merge=merge and type(base) is cls)
    if missing := [f"{name} ({_expected(hints[name])})" for name in hints if values[name] is _NOTHING]:
        raise _error(where, f"missing {', '.join(missing)}")
    unvalidated = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(unvalidated, name, value)
    return unvalidated


def _read_value(kind: Any, data: Any, base: Any, where: str, *, merge: bool) -> Any:
    wrong, origin = _error(where, f"expected {_expected(kind)}, got {data!r}"), get_origin(kind)
    if origin is tuple and isinstance(data, Mapping) and isinstance(base, tuple):
        items, inner = dict(enumerate(base)), elements_of(kind, len(base))
        numbered = {int(key): data[key] for key in data if key.isdecimal()}
        of_all = {key: data[key] for key in data if not key.isdecimal()}
        if unexpected := [key for key in numbered if key not in items] or [*of_all] * (not items):
            problem = f'no element "{unexpected[0]}" among its {len(items)}: give the whole list to resize it'
            raise _error(where, problem)
        last = len(items) - 1
        changes = [(i, of_all if i == last else copy.deepcopy(of_all)) for i in items if of_all]  # words are used up
        for i, change in [*changes, *numbered.items()]:
            items[i] = _read(inner[i], change, items[i], join(where, str(i)), merge=merge)
        return tuple(items.values())
    if origin is tuple and isinstance(data, list | tuple):
        inner = elements_of(kind, len(data))
        if len(inner) == len(data):
            return tuple(_read(inner[i], item, _NOTHING, join(where, str(i))) for i, item in enumerate(data))
    if origin is dict and isinstance(data, Mapping):
        old, inner = base if merge and isinstance(base, Mapping) else {}, get_args(kind)[1]
        new = {k: _read(inner, data[k], old.get(k, _NOTHING), join(where, k), merge=merge) for k in data}
        return {**old, **new}
    if origin is Literal and any(type(option) is type(data) and option == data for option in get_args(kind)):
        return data
    if kind is str and isinstance(data, str):
        return data
    if type(data) is kind or (kind is float and type(data) is int and abs(data) < 10**300):
        return kind(data)
    raise wrong


def _write(hint: Any, value: Any, base: Any, in_full: bool) -> Any:
    """The data that `_read(hint, data, base)` reads as value."""
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        cls = type(value)
        data: dict[str, Any] = {"kind": kind_of(cls)} if len(kinds_of(hint)) > 1 else {}
        for name, inner in hints_of(cls).items():
            item, default = getattr(value, name), _present(cls, base, name)
            if in_full or item is not None or default is not None:
                data[name] = _write(inner, item, default, in_full)
        return data
    if isinstance(value, tuple):
        inner = elements_of(hint, len(value))
        return [_write(inner[index], item, _NOTHING, in_full) for index, item in enumerate(value)]
    if isinstance(value, dict):
        inner = next(get_args(member)[1] for member in members_of(hint) if get_origin(member) is dict)
        return {key: _write(inner, item, _NOTHING, in_full) for key, item in value.items()}
    if NoneType in members_of(hint) and value in _NONE:
        raise ConfigError(f"the text {value!r} would be read back as None: choose another")
    return value


def _present(cls: type, base: Any, name: str) -> Any:
    """A field's value before data is overlaid: that in a base of this class, or the default."""
    if type(base) is cls:
        return getattr(base, name)
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _NOTHING if field.default is dataclasses.MISSING else field.default


def _expected(hint: Any) -> str:
    """The annotation as text: `int | None`, `a table of kind rms_norm or layer_norm`."""
    if kinds := kinds_of(hint):
        return f"a table of kind {' or '.join(kinds)}"
    return re.sub(r"[\w<>]+\.(?=\w)", "", inspect.formatannotation(hint))


def _error(where: str, message: object) -> ConfigError:
    return ConfigError(f"{where}: {message}" if where else str(message))

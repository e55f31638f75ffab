"""Configuration: TOML and flags <-> frozen dataclasses, by their type annotations.

A flag `--a.b.c text` is equivalent to a line of TOML, so files and flags are read by the same `_read`, which
overlays plain data on a base and names the dotted path of what it refuses. A choice is a union of dataclasses,
distinguished by the key `kind`; an absent key means the default, and the text "none" means None.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import inspect
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from isoform import history
from isoform.ranges import OutOfRange, Range
from isoform.reading import read_toml
from isoform.terminal import visible

T = TypeVar("T")

_NOTHING: Any = object()  # the absence of a value, where None is a value
_NONE = (None, "none", "None")
_BOOLS = {"true": True, "false": False}
_RENAMED: ContextVar[dict[str, str]] = ContextVar("names of earlier versions, and their names today")
_FLAG = re.compile(r"--?(?!(inf|nan)\b)[A-Za-z]")  # but not a negative number


class ConfigError(ValueError):
    """An error in a configuration: what is wrong, the value, the remedy."""


class _Words(list[str]):
    """The words after a flag: its field takes those that it needs, the rest are positional arguments."""

    is_attached = False  # whether the first is attached by "="
    earlier: "_Words | None" = None  # words of an earlier occurrence of the flag, which this one overrides


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` most likely misspells; None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(options), n=1)), None)


def unknown_name(what: str, name: str, options: Iterable[str], *, where: str = "") -> ConfigError:
    """The error for a name that is not among the options: with `where`, the nearest and all options."""
    options = list(options)
    location, near = f" in {where}" if where else "", nearest(name, options)
    remedy = f'did you mean "{near}"? ' if near else ""
    return ConfigError(f'unknown {what} "{name}"{location}: {remedy}(known: {", ".join(options)})')


def kind_of(cls: type) -> str:
    """A variant's name in TOML: RMSNorm -> rms_norm, SwiGLU -> swiglu, ReLU2 -> relu2, ALiBi -> alibi."""
    return re.sub(r"(?<=[A-Za-z0-9])(?=[A-Z][a-z]{2})", "_", cls.__name__).lower()


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


def draft(kind: type[T], data: Mapping[str, object], *, where: str = "") -> T:
    """What `from_dict` returns, of which only keys and types are checked: more may be laid over it, by `draft_over` or
    `parse_flags`, before `validated` checks the whole."""
    return _read_whole(kind, data, _NOTHING, where)


def draft_over(base: T, data: Mapping[str, object], *, where: str = "") -> T:
    """What `overlay` returns, of which only keys and types are checked."""
    return _read_whole(type(base), data, base, where, merge=True)


def validated(value: T, where: str = "") -> T:
    """A draft as the config it describes. Raises ConfigError, with the dotted path, for what its dataclasses refuse."""
    if isinstance(value, tuple):
        return tuple(validated(item, _join(where, str(i))) for i, item in enumerate(value))  # pyrefly: ignore
    if isinstance(value, dict):
        return {key: validated(item, _join(where, key)) for key, item in value.items()}  # pyrefly: ignore
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    cls = type(value)
    paths = {name: where if _marked(cls).get(name) else _join(where, name) for name in _hints(cls)}
    values = {name: validated(getattr(value, name), path) for name, path in paths.items()}
    try:
        return cls(**values)
    except OutOfRange as error:
        raise ConfigError(f"{_join(where, error.field)}{error.problem}") from error
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
            yield from _leaves(item, _join(where, key))
    else:
        yield where, data


def parse_flags(kind: type[T], base: T, arguments: Sequence[str], *, prog: str, description: str = "") -> T:
    """`base`, perhaps a draft, with flags overlaid: --a.b.c VALUE, --a.b.kind NAME, --a.b none, --a.0.flag,
    --a.0.no_flag; without the number of all elements.

    Arguments that are not fields of `kind`, or are marked for tyro (Positional, aliases, counters), are passed to tyro.
    Hyphens and underscores are equivalent. Raises ConfigError for any error; --help prints and exits with 0.
    """
    cut = list(arguments).index("--") if "--" in arguments else len(arguments)
    groups, data, hints, marked = [_Words()], {}, _hints(kind), _marked(kind)
    prefixes: dict[str, list[str]] = {name: [] for name in hints if name not in marked}
    for name in filter(marked.get, marked):
        prefixes |= {key: [name] for cls in _kinds(hints[name]).values() for key in _hints(cls)}
    for argument in arguments[:cut]:
        if _FLAG.match(argument):
            groups.append(_Words())
        groups[-1].append(argument)
    for words in groups:
        flag, equals, text = "".join(words[:1]).partition("=")
        first, *inner = flag.removeprefix("--").split(".")
        first = first.replace("-", "_")
        prefix = prefixes.get(first, prefixes.get(first.removeprefix("no_")))
        if not flag.startswith("--") or prefix is None:
            continue
        *path, last = [*prefix, first, *inner]
        table: Any = data
        for step in path:
            table = table.setdefault(_spelling(table, step), {}) if isinstance(table, dict) else table
        last = _spelling(table, last)
        if not isinstance(table, dict) or isinstance(table.get(last), dict):
            raise ConfigError(f"{flag} contradicts another flag above or below it: give one of them")
        words[:1], words.is_attached = [text] if equals else [], bool(equals)
        words.earlier = table.pop(last, None)
        table[last] = words
    instance = validated(_read_whole(kind, data, base, "", merge=True))
    rest = [word for words in groups for word in words] + [*arguments[cut:]]
    return _run_tyro(kind, instance, rest, prog=prog, description=description)


def _spelling(table: Iterable[str], name: str) -> str:
    """The existing key of the same name up to hyphens, if any; dictionaries keep the spelling that was typed."""
    return next((key for key in table if key.replace("-", "_") == name.replace("-", "_")), name)


def _run_tyro(kind: type[T], instance: T, rest: list[str], *, prog: str, description: str) -> T:
    """Pass the remaining arguments to tyro, with one line instead of its boxes for errors."""
    import tyro  # here, since files are read and written without it

    flags, asks_help, output = dict(_flags(kind, instance)), {"-h", "--help"} & {*rest}, io.StringIO()
    if choices := "".join(f"\n  {flag} {kinds}" for flag, kinds in flags.items() if kinds):
        description = f"{description}\n\nchoices:{choices}"
    options: Any = {"default": instance, "prog": prog, "description": description, "use_underscores": True}
    options["config"] = (tyro.conf.AvoidSubcommands,)
    if asks_help:
        try:
            with contextlib.redirect_stdout(output):
                tyro.cli(kind, args=["--help"], **options)
        finally:
            print(visible(output.getvalue()), end="")  # its values may come from anyone's file
    try:  # without a terminal a box is ASCII: title, rule, reason, rule, help
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            result, unread = tyro.cli(kind, args=rest, return_unknown_args=True, **options)
    except SystemExit as stop:
        reason = " ".join(re.split(r"\n *-+ *\n", output.getvalue(), maxsplit=2)[:2][-1].split())
        raise ConfigError(f"{reason} (see {prog} --help)") from stop
    if unread:
        unexpected = next(filter(_FLAG.match, unread), unread[0])
        flag = f"--{unexpected.partition('=')[0].lstrip('-').replace('-', '_')}"
        near = next((f for f in flags if f.endswith(f".{flag[2:]}")), nearest(flag, flags.keys() - {flag}))
        if not _FLAG.match(unexpected):
            raise ConfigError(f'unexpected argument "{unexpected}" (see {prog} --help)')
        remedy = f'did you mean "{near}"? ' if near else ""
        raise ConfigError(f'unknown flag "{unexpected}": {remedy}(see {prog} --help)')
    return result


def _flags(hint: Any, value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every flag of a value, with its kinds if it is a choice."""
    kinds, cls = _kinds(hint), _class(hint, value)
    none = f", --{where} none" if NoneType in _members(hint) else ""
    if where and kinds and (len(kinds) > 1 or none):
        yield f"--{where}.kind", f"{{{','.join(kinds)}}}{none}"
    if type(value) is cls:
        for name, inner in _hints(cls).items():
            path = where if _marked(cls).get(name) else _join(where, name)
            yield from _flags(inner, getattr(value, name), path)
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for index, item in enumerate(value):
            yield from _flags(_elements(hint, len(value))[index], item, _join(where, str(index)))
    elif not kinds:
        yield f"--{where}", ""


def _read(hint: Any, data: Any, base: Any, where: str, *, merge: bool = False) -> Any:
    """Data overlaid on base. `merge`: base is an instance, not a default, so its dictionaries keep their keys."""
    if isinstance(data, _Words):
        data = _take(hint, data, where)
    kinds, members = _kinds(hint), _members(hint)
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


def _take(hint: Any, words: _Words, where: str) -> Any:
    """The plain data of the words after a flag; removes the words that it uses."""
    if words.earlier is not None:
        _take(hint, words.earlier, where)
    members, inner, first = _members(hint), _elements(hint, len(words)), "".join(words[:1]).lower()
    if bool in members and not words.is_attached and first not in (*_BOOLS, "none"):
        return True
    if inner and not (first == "none" and NoneType in members):
        taken, words[: len(inner)] = words[: len(inner)], []
        return [_take(item, _Words([word]), where) for item, word in zip(inner, taken, strict=False)]
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
    cls, kinds = _class(hint, base), _kinds(hint)
    if "kind" in data and (cls is None or "kind" not in _hints(cls)):
        kind = _read(str, data["kind"], _NOTHING, _join(where, "kind"))
        if kind not in kinds and (today := history.current_kind(kind, kinds)) is not None:
            _RENAMED.get()[kind], kind = today, today
        if kind not in kinds:
            raise unknown_name("kind", kind, kinds, where=where)
        cls, data = kinds[kind], {key: data[key] for key in data if key != "kind"}
    if cls is None:
        raise _error(where, f"needs a kind (known: {', '.join(kinds)})")
    hints, values = _hints(cls), {name: _present(cls, base, name) for name in _hints(cls)}
    for key, item in data.items():
        name = key.replace("-", "_")
        if name not in hints and isinstance(item, _Words) and not item.is_attached and name[:3] == "no_":
            name, item = (name[3:], False) if bool in _members(hints.get(name[3:])) else (name, item)
        if name not in hints and (today := history.current_field(kind_of(cls), name)) is not None:
            _RENAMED.get()[name] = today
            name = today
        if name not in hints:
            raise unknown_name("key", key, hints, where=where)
        path = where if _marked(cls).get(name) else _join(where, name)
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
        items, inner = dict(enumerate(base)), _elements(kind, len(base))
        numbered = {int(key): data[key] for key in data if key.isdecimal()}
        of_all = {key: data[key] for key in data if not key.isdecimal()}
        if unexpected := [key for key in numbered if key not in items] or [*of_all] * (not items):
            problem = f'no element "{unexpected[0]}" among its {len(items)}: give the whole list to resize it'
            raise _error(where, problem)
        last = len(items) - 1
        changes = [(i, of_all if i == last else copy.deepcopy(of_all)) for i in items if of_all]  # words are used up
        for i, change in [*changes, *numbered.items()]:
            items[i] = _read(inner[i], change, items[i], _join(where, str(i)), merge=merge)
        return tuple(items.values())
    if origin is tuple and isinstance(data, list | tuple):
        inner = _elements(kind, len(data))
        if len(inner) == len(data):
            return tuple(_read(inner[i], item, _NOTHING, _join(where, str(i))) for i, item in enumerate(data))
    if origin is dict and isinstance(data, Mapping):
        old, inner = base if merge and isinstance(base, Mapping) else {}, get_args(kind)[1]
        new = {k: _read(inner, data[k], old.get(k, _NOTHING), _join(where, k), merge=merge) for k in data}
        return {**old, **new}
    if origin is Literal and any(type(option) is type(data) and option == data for option in get_args(kind)):
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
        data: dict[str, Any] = {"kind": kind_of(cls)} if len(_kinds(hint)) > 1 else {}
        for name, inner in _hints(cls).items():
            item, default = getattr(value, name), _present(cls, base, name)
            if in_full or item is not None or default is not None:
                data[name] = _write(inner, item, default, in_full)
        return data
    if isinstance(value, tuple):
        inner = _elements(hint, len(value))
        return [_write(inner[index], item, _NOTHING, in_full) for index, item in enumerate(value)]
    if isinstance(value, dict):
        inner = next(get_args(member)[1] for member in _members(hint) if get_origin(member) is dict)
        return {key: _write(inner, item, _NOTHING, in_full) for key, item in value.items()}
    if NoneType in _members(hint) and value in _NONE:
        raise ConfigError(f"the text {value!r} would be read back as None: choose another")
    return value


def _members(hint: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    return [*get_args(hint)] if get_origin(hint) in (Union, UnionType) else [hint]


def _kinds(hint: Any) -> dict[str, type]:
    """The dataclasses among the members, by kind."""
    return {kind_of(member): member for member in _members(hint) if dataclasses.is_dataclass(member)}


def _class(hint: Any, value: Any) -> type | None:
    """The dataclass of the value, or else the only one; None if there are several."""
    kinds = [*_kinds(hint).values()]
    return type(value) if type(value) in kinds else kinds[0] if len(kinds) == 1 else None


def _elements(hint: Any, count: int) -> list[Any]:
    """The annotations of a tuple's `count` elements; empty if no member is a tuple."""
    items = next((get_args(member) for member in _members(hint) if get_origin(member) is tuple), ())
    return [items[0]] * count if Ellipsis in items else list(items)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


@functools.cache
def _marked(cls: type) -> dict[str, bool]:
    """The fields annotated for tyro, and whether arg(name="") omits the name from flags and paths."""
    hints = get_type_hints(cls, include_extras=True)
    annotated = {name: hint.__metadata__ for name, hint in hints.items() if get_origin(hint) is Annotated}
    marks = {name: [mark for mark in each if not isinstance(mark, Range)] for name, each in annotated.items()}
    return {name: any(getattr(mark, "name", None) == "" for mark in each) for name, each in marks.items() if each}


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
    if kinds := _kinds(hint):
        return f"a table of kind {' or '.join(kinds)}"
    return re.sub(r"[\w<>]+\.(?=\w)", "", inspect.formatannotation(hint))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _error(where: str, message: object) -> ConfigError:
    return ConfigError(f"{where}: {message}" if where else str(message))

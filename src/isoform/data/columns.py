"""Rows with named values to records: which column, or key, is the text, the source, the target, the label.

What is named by flags is taken. Otherwise a column of a usual name is (text, content, …; prompt and completion;
messages), or the only one that holds texts; where several could be meant nothing is guessed, and the message lists all
columns.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from isoform.data.config import Keys
from isoform.data.records import Located, Record, checked_record

EXACT = (("text",), ("source", "target"), ("tokens", "tags"), ("messages",))
"""The names of a record's own parts, in this order."""
TEXTS = ("text", "content", "sentence", "document", "body", "review")
SOURCES = ("source", "prompt", "question", "instruction", "input")
TARGETS = ("target", "completion", "answer", "response", "output")
CHATS = ("messages", "conversations", "conversation")
LABELS = ("label", "class", "category", "sentiment")
TAGS = ("tags", "ner_tags")
INDEX = ("", "index", "id", "idx", "uuid", "unnamed: 0", "__index_level_0__")
"""Names of columns that number or name the rows."""
NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,17})(\.\d{1,17})?([eE][+-]?\d{1,3})?|[+-]?0?\.\d{1,17}")
"""A text that is a number; one with a leading zero is a name."""
WHOLE = re.compile(r"[+-]?\d+")
SHOWN = 24
"""Characters of an example."""


class Row(NamedTuple):
    """Named values, and their location."""

    values: Mapping[str, Any]
    where: str


@dataclass
class Column:
    """What a column holds: the kinds of its values, an example, and the characters of its texts."""

    kinds: set[str] = field(default_factory=set)
    example: object = ""
    size: int = 0

    def add(self, value: object) -> None:
        """Count a value."""
        if isinstance(value, str) and "text" in self.kinds:
            self.size += len(value)
        elif (kind := kind_of_value(value)) != "missing":
            self.example = self.example if self.kinds else value
            self.size += len(value) if isinstance(value, str) else 0
            self.kinds.add(kind)

    @property
    def has_texts(self) -> bool:
        """Whether its values are texts, not all of them numbers."""
        return "text" in self.kinds and self.kinds <= {"text", "number"}

    @property
    def has_numbers(self) -> bool:
        """Whether all its values are numbers."""
        return self.kinds == {"number"}

    @property
    def has_chats(self) -> bool:
        """Whether its values are conversations."""
        return self.kinds == {"chat"}


@dataclass(frozen=True)
class Table:
    """Rows of one file. rows(names): anew, with at least these columns; surveyed(): what they hold; is_lines: whether
    each row has its own keys, as the lines of a .jsonl file have; twice: names that several columns have; note: what
    should be known of the names."""

    name: str
    rows: Callable[[Collection[str]], Iterator[Row]]
    surveyed: Callable[[], Mapping[str, Column]]
    is_lines: bool = False
    twice: Collection[str] = ()
    note: str = ""

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """What the columns hold, by their names."""
        return self.surveyed()


def kind_of_value(value: object) -> str:
    """text, number, words, chat, missing or other."""
    if value is None or value == "":
        return "missing"
    if isinstance(value, str):
        return "number" if NUMBER.fullmatch(value.strip()) else "text"
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return "words"
        if all(isinstance(item, Mapping) and {"role", "from"} & {*item} for item in value):
            return "chat"
    return "other"


def survey(rows: Iterable[Row]) -> dict[str, Column]:
    """The columns of rows, in order; those of an object inside a row have a dot in their names."""
    columns: dict[str, Column] = {}
    for row in rows:
        for name, value in row.values.items():
            inside = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {}
            for key, item in inside.items() or ((name, value),):
                columns.setdefault(key, Column()).add(item)
    return columns


def records_of(table: Table, keys: Keys) -> list[Record]:
    """The records of a table. Rows without a text (or source, …) are left aside with a warning.

    Raises ValueError if it isn't known which columns are meant, and for a row that is no record.
    """
    first = next(table.rows(()), None) if table.is_lines else None
    if first is None and (table.is_lines or not table.columns):
        return []
    is_exact = first is not None and not any(keys) and _exact(first.values) is not None
    parts = None if is_exact else _Choice(table, keys).parts
    wanted = {} if parts is None else parts
    nothing = () if table.is_lines else ("",)
    label = None if table.is_lines else table.columns.get(wanted.get("label", ""))
    has_numbers = label is not None and label.has_numbers
    records: list[Record] = []
    aside: list[str] = []
    for row in table.rows({*wanted.values()}):
        chosen = _exact(row.values) if parts is None else parts
        if chosen is None or (table.is_lines and not _has_all(row.values, chosen)):
            raise _no_record(row)
        values = {part: value_at(row.values, name) for part, name in chosen.items()}
        if _is_missing(values, nothing):
            aside.append(row.where)
        else:
            if values.get("label") in nothing:
                values["label"] = None
            records.append(Located(_record(values, row.where, has_numbers), row.where))
    if aside:
        which = f"{aside[0]} and {len(aside) - 1} other rows" if len(aside) > 1 else aside[0]
        warnings.warn(f"left aside for want of a {' or '.join(_needed(wanted) or ['text'])}: {which}", stacklevel=5)
    return records


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """The value of a name, or inside objects of a name with dots; None if there is none."""
    if name in values:
        return values[name]
    first, _, rest = name.partition(".")
    inside = values.get(first)
    return value_at(inside, rest) if rest and isinstance(inside, Mapping) else None


def _exact(values: Mapping[str, Any]) -> dict[str, str] | None:
    """The parts of a row whose keys are a record's own."""
    for names in EXACT:
        if all(name in values for name in names):
            optional = ("tools",) if names == ("messages",) else ("label",)
            return {name: name for name in (*names, *optional) if name in values}
    return None


def _needed(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if part not in ("label", "tools")]


def _has_all(values: Mapping[str, Any], parts: Mapping[str, str]) -> bool:
    """Whether a row has all the keys that a record needs, if only with nothing."""
    return all(parts[part] in values or parts[part].partition(".")[0] in values for part in _needed(parts))


def _is_missing(parts: Mapping[str, Any], nothing: Collection[str]) -> bool:
    """Whether a value is missing that a record needs."""
    values = [parts[part] for part in _needed(parts)]
    return any(value is None or (isinstance(value, str) and value in nothing) for value in values)


def _record(parts: Mapping[str, Any], where: str, has_numbers: bool) -> dict[str, Any]:
    """The record of values by part. A text that is a list is words, or a conversation."""
    values = {part: value for part, value in parts.items() if value is not None}
    text = values.get("text")
    if isinstance(text, list):
        del values["text"]
        is_chat = kind_of_value(text) == "chat"
        values = {"messages" if is_chat else "tokens": text, **values}
        if not is_chat and "label" in values:
            values["tags"] = values.pop("label")
    if has_numbers and isinstance(label := values.get("label"), str):
        values["label"] = int(label) if WHOLE.fullmatch(label.strip()) else float(label)
    return checked_record(values, where)


def _no_record(row: Row) -> ValueError:
    return ValueError(
        f"{row.where}: the keys {sorted(row.values)}; a line is {{'text': …}}, optionally with a 'label', "
        f"{{'source': …, 'target': …}}, {{'tokens': […], 'tags': […]}} or {{'messages': […]}}, or all lines have the "
        f"keys that --data.text_key, source_key, target_key or label_key name"
    )


class _Choice:
    """Which columns of a table are the parts of a record."""

    def __init__(self, table: Table, keys: Keys) -> None:
        self.table, self.columns, self.keys = table, table.columns, keys
        for name in filter(None, keys):
            self._check(name)
        if keys.text:
            self.parts = {"text": keys.text}
        elif keys.source or keys.target:
            self.parts = {"source": keys.source or self._one(SOURCES, "source")}
            self.parts["target"] = keys.target or self._one(TARGETS, "target")
        else:
            self.parts = self._found()
        label = keys.label or self._label()
        if label:
            self.parts["label"] = label
        if "messages" in self.parts.values() and "tools" in self.columns:
            self.parts["tools"] = "tools"
        for name in self.parts.values():
            if name in table.twice:
                raise ValueError(f"{table.name}: several columns are called {name!r}; rename all but one")

    def _check(self, name: str) -> None:
        """Raises ValueError for a name that is no column."""
        first = name.partition(".")[0]
        if not any(column in (name, first) or column.startswith(f"{name}.") for column in self.columns):
            raise ValueError(f"{self.table.name} has no {name!r}; it has {self._listing()}")

    def _named(self, names: Sequence[str]) -> list[str]:
        """The columns that have one of these names, whatever their case; the last part of a name with dots counts."""
        return [column for column in self.columns if column.strip().lower() in names]

    def _one(self, names: Sequence[str], part: str) -> str:
        named = self._named(names)
        if len(named) == 1:
            return named[0]
        raise ValueError(
            f"{self.table.name} has no {part} by name, but {self._listing()}; add --data.{part}_key with one of them"
        )

    def _label(self) -> str:
        """The column of labels, or of tags, by its name."""
        taken = [*self.parts.values()]
        text = self.columns.get(self.parts.get("text", ""))
        names = TAGS if text is not None and text.kinds == {"words"} else LABELS
        for group in (names[:1], names):
            if len(labels := [name for name in self._named(group) if name not in taken]) == 1:
                return labels[0]
        return ""

    def _found(self) -> dict[str, str]:
        """The parts by usual names, or the only column of texts."""
        for names in EXACT:
            if all(len(self._named([name])) == 1 for name in names):
                return {_part_of(name): self._named([name])[0] for name in names}
        options = [{"text": name} for name in self._named(CHATS) if self.columns[name].has_chats]
        if any(self._named(names) for names in (SOURCES, TARGETS)):
            sources, targets = (self._named(names) for names in (SOURCES, TARGETS))
            if len(sources) == len(targets) == 1:
                options.append({"source": sources[0], "target": targets[0]})
        options += [{"text": name} for name in self._named(TEXTS) if self.columns[name].has_texts]
        others = [name for name in self.columns if name.strip().lower() not in (*INDEX, *LABELS, *TAGS)]
        texts = [name for name in others if self.columns[name].has_texts or self.columns[name].has_chats]
        words = [name for name in others if self.columns[name].kinds == {"words"}]
        if not options and len(texts or words) == 1:
            options = [{"text": (texts or words)[0]}]
        if len(options) == 1:
            return options[0]
        raise self._unclear(texts)

    def _unclear(self, texts: Sequence[str]) -> ValueError:
        name = self.table.name
        if not texts:
            return ValueError(f"{name} has no column of texts, but {self._listing()}; name one with --data.text_key")
        likely = max(texts, key=lambda column: self.columns[column].size)
        return ValueError(
            f"{name}: which column has the texts isn't known among {self._listing()}; add --data.text_key "
            f"{shlex.quote(likely)}, or name a pair with --data.source_key and --data.target_key"
        )

    def _listing(self) -> str:
        """The columns, each with an example."""
        columns = [(name, column) for name, column in self.columns.items() if name]
        shown = [f"{name} ({_short(column.example)})" for name, column in columns[:20]]
        more = f", and {len(columns) - 20} more" if len(columns) > 20 else ""
        return ", ".join(shown) + more + self.table.note


def _part_of(name: str) -> str:
    """The part of a record that a name of its own is: words and messages are texts that are lists."""
    return {"tokens": "text", "messages": "text", "tags": "label"}.get(name, name)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else "…" if isinstance(value, list | dict) else str(value)
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")

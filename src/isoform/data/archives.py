"""Archives of texts, .zip and .tar: their members as names and bytes, which are never written to a disk.

An archive that anyone made is read within limits: a member's declared size counts for nothing, what it turns out to
hold is counted against the size of the archive; its name is only a name; links, devices and encrypted members are left
aside.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from isoform.reading import MB, TooLarge, check_ratio

MAX_MEMBERS = 10**6
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
"""Compression methods whose memory doesn't depend on what the file says."""
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, LookupError, OverflowError),
    *(RuntimeError, MemoryError, ValueError),
)
Member = tuple[str, IO[bytes] | None, int]
"""Its name, its contents if they are read, and their compressed size."""


@dataclass(frozen=True)
class Members:
    """What of an archive is read, sorted by name; the names of links, devices and encrypted members; of others."""

    contents: list[tuple[str, bytes]]
    locked: list[str]
    others: list[str]


def members_of(data: bytes, path: str | Path, is_wanted: Callable[[str], bool]) -> Members:
    """The wanted members of an archive. Raises ValueError for one that is damaged, or holds far more than its size."""
    try:
        return _read(data, path, is_wanted)
    except TooLarge:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path} can't be read as an archive ({error}); get the file again") from None


def is_hidden(name: str) -> bool:
    """Whether a member is hidden, as files whose name begins with a dot are, or a Mac's note about another."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") and part.strip(".") for part in parts) or "__MACOSX" in parts


def _read(data: bytes, path: str | Path, is_wanted: Callable[[str], bool]) -> Members:
    is_zip = data[:2] == b"PK"
    if is_zip and data.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise TooLarge(f"{path} has more than {MAX_MEMBERS:,} members, which is all that is read of an archive")
    contents, locked, others, size, packed = [], [], [], 0, 0
    for name, file, compressed in _zipped(data) if is_zip else _taped(data):
        if is_hidden(name):
            continue
        if file is None or not is_wanted(name):
            (locked if file is None else others).append(name)
            continue
        parts, packed = [], packed + compressed
        with file:
            while part := file.read(MB):
                parts.append(part)
                size += len(part)
                check_ratio(size, min(packed, len(data)), path)
        contents.append((name, b"".join(parts)))
    return Members(sorted(contents, key=lambda member: PurePosixPath(member[0]).parts), locked, others)


def _zipped(data: bytes) -> Iterator[Member]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            is_link = info.external_attr >> 28 == 0xA  # as Unix writes it
            if info.is_dir():
                continue
            is_plain = not is_link and not info.flag_bits & 1 and info.compress_type in METHODS
            yield info.filename, archive.open(info) if is_plain else None, info.compress_size


def _taped(data: bytes) -> Iterator[Member]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # which would grow  # pyrefly: ignore
            if not info.isdir():
                is_plain = info.isreg() and not info.issparse()
                yield info.name, archive.extractfile(info) if is_plain else None, info.size

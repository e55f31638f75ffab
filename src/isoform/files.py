"""All writing to the disk: files that are whole or absent, whatever happens, and logs that only grow.

A file is written under a temporary name in its folder, synced, renamed, and its folder synced. Nothing else in the
package creates, replaces or removes files, so that a test can make any call fail or be the last one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from isoform.reading import DOCUMENT, parse_json, read_bytes

TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.partial")
"""Names of files that are being written, and of those whose writer was killed."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""Errors of the storage itself, rather than of a path."""


class StorageError(OSError):
    """The storage failed: it is full, read-only or broken; what was there before is untouched."""

    def __str__(self) -> str:
        return str(self.strerror)


class DamagedFile(ValueError):
    """A file that doesn't hold what was written to it."""


@dataclass(frozen=True)
class Entry:
    """The name, size and hash of a file, as manifests list them."""

    path: str
    size: int
    sha256: str


class Files:
    """All calls that change the disk; tests replace it to make any one of them fail."""

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents, and wait until their names are on the disk."""
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                self.sync_folder(folder.parent)

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> Entry:
        """Write and hash a new file, and wait until its contents (not yet its name) are on the disk."""
        size, digest = 0, hashlib.sha256()
        with open(path, "xb", opener=open_own) as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            self.sync(file.fileno())  # by the handle that wrote: another one may miss a failed write
        return Entry(path.name, size, digest.hexdigest())

    def append(self, file: FileIO, data: bytes) -> None:
        """Append to an open log."""
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def sync(self, handle: int) -> None:
        """Flush an open file or folder to the disk."""
        os.fsync(handle)

    def sync_folder(self, path: Path) -> None:
        """Flush the names in a folder to the disk (Windows does so by itself)."""
        if sys.platform == "win32":
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            self.sync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder; a file replaces an existing one."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with its contents."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


DISK = Files()


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> Entry:
    """Replace `path` by a file of these bytes; returns its size and hash.

    Readers see the complete old or new file, also after a power cut; of several writers the last one wins. Nothing is
    written through a link: the name itself is replaced. Raises StorageError naming the file if the storage fails, other
    OSErrors as they are.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    with _naming(path), _among_writers(path.parent):
        try:
            entry = DISK.write(temporary, chunks)
            DISK.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                DISK.remove(temporary)
            raise
        DISK.sync_folder(path.parent)
    return replace(entry, path=path.name)


def write_bytes(path: Path, data: bytes) -> Entry:
    """Replace `path` by a file of these bytes."""
    return write_chunks(path, [data])


def write_text(path: Path, text: str) -> Entry:
    """Replace `path` by a file of this text, as UTF-8."""
    return write_chunks(path, [text.encode()])


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace files by these bytes, by their paths in a folder."""
    for name, data in files.items():
        make_folder((folder / name).parent)
        write_bytes(folder / name, data)


def write_sealed(path: Path, values: dict) -> None:
    """Replace `path` by a JSON file whose first line is the hash of the rest, for `read_sealed`."""
    write_chunks(path, [seal(values)])


def seal(values: dict) -> bytes:
    """The JSON text of values, with the key `sha256` of all that follows on its first line."""
    values = {key: value for key, value in values.items() if key != "sha256"}
    body = json.dumps(values, indent=1)[1:].encode()
    return first_line(body) + body


def first_line(body: bytes) -> bytes:
    """The first line of a sealed file: the hash of the rest, `body`."""
    return b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode()


def read_sealed(path: Path, unsealed: Callable[[str], None] | None = None) -> dict:
    """The values of a sealed file. Raises DamagedFile unless it is as it was written, ValueError if it can't
    be read.

    unsealed: takes a warning of a file that an earlier version wrote without a hash, which is read then.
    """
    text = read_bytes(path, DOCUMENT)
    if unsealed is not None and text.startswith(b"{\n"):
        unsealed(f"{path} has no hash, as an earlier version wrote it: nothing tells whether it is as it was written")
        return parse_json(text, path)
    first, newline, rest = text.partition(b"\n")
    if first != first_line(newline + rest):
        raise DamagedFile(f"{path} is damaged: it doesn't match the SHA-256 in its first line")
    return parse_json(text, path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises StorageError if the storage fails."""
    with _naming(path):
        DISK.make_folder(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    with _naming(path), suppress(FileNotFoundError):
        DISK.remove(path)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder inside an empty one, whose files are moved up when the block ends.

    It goes last: a folder that still has one, as `is_unfinished` says, holds what a writer left that was killed, and is
    emptied first.
    """
    make_folder(folder)
    with _naming(folder):
        for path in sorted(folder.iterdir(), key=_is_stage):
            DISK.remove(path)
        stage = folder / f".{uuid.uuid4().hex}.partial"
        DISK.make_folder(stage)
    try:
        yield stage
    except BaseException:
        remove(stage)
        raise
    with _naming(folder):
        for path in sorted(stage.iterdir()):
            DISK.rename(path, folder / path.name)
        DISK.sync_folder(folder)
        DISK.sync_folder(stage)
        DISK.remove(stage)
        DISK.sync_folder(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether a writer of `staged` files was killed here."""
    return any(map(_is_stage, folder.iterdir()))


def _is_stage(path: Path) -> bool:
    return is_temporary(path) and path.is_dir()


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder, unless somebody writes there now."""
    with _among_writers(folder):
        pass


class Log:
    """A file that only grows. Of a log that is continued, the size and hash of what it had are given: what follows
    that is cut off, and anything else is damage.

    Raises DamagedFile, naming the file, if it doesn't begin with what it had.
    """

    def __init__(self, path: Path, size: int = 0, sha256: str | None = None) -> None:
        self.path, self.size, self._digest = path, size, hashlib.sha256()
        data = path.read_bytes() if path.is_file() else b""
        self._digest.update(data[:size])
        if len(data) < size or (sha256 is not None and self._digest.hexdigest() != sha256):
            raise DamagedFile(
                f"{path} is damaged: its first {size} bytes aren't those that were written; restore it from a copy"
            )
        if len(data) != size or not path.is_file() or path.is_symlink():
            write_bytes(path, data[:size])
        self._file = FileIO(path, "a", opener=open_own)

    @property
    def entry(self) -> Entry:
        """Its name, size and hash so far."""
        return Entry(self.path.name, self.size, self._digest.hexdigest())

    def append(self, text: str) -> None:
        """Append a text, so that a killed process loses none of it."""
        data = text.encode()
        with _naming(self.path):
            DISK.append(self._file, data)
        self.size += len(data)
        self._digest.update(data)

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        with _naming(self.path):
            DISK.sync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def entry_of(name: str, data: bytes) -> Entry:
    """The entry of a file with these contents."""
    return Entry(name, len(data), hashlib.sha256(data).hexdigest())


def is_temporary(path: Path) -> bool:
    """Whether a file is one that is being written, or whose writer was killed."""
    return TEMPORARY.fullmatch(path.name) is not None


def hash_file(path: Path) -> Entry:
    """The size and hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(path.name, file.tell(), digest)


def open_own(path: str, flags: int) -> int:
    """The opener of files that are written to: a plain file that has no other name.

    Raises ValueError for a link of either kind, and for pipes and devices: what is written would go elsewhere.
    """
    try:
        handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _elsewhere(path, "a link") from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise _elsewhere(path, "a file of several names" if stat.S_ISREG(status.st_mode) else "no plain file")
    return handle


def refuse_links(*folders: Path) -> None:
    """Raises ValueError naming a link in folders that exist: what is written there would go elsewhere."""
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if path.is_symlink():
            raise _elsewhere(path, "a link")


def _elsewhere(path: str | Path, what: str) -> ValueError:
    return ValueError(f"{path} is {what}, and nothing is written through it; put a copy of the file in its place")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the storage, in words that name the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or isinstance(error, StorageError):
            raise
        why = f"{path} can't be written: {error.strerror}"
        raise StorageError(error.errno, f"{why}; make room or choose a folder that can be written to") from error


@contextmanager
def _among_writers(folder: Path) -> Iterator[None]:
    """Writers share a lock of the folder: one that gets it alone may remove what killed ones left behind. Where there
    are no such locks, nothing is removed."""
    if sys.platform == "win32" or not folder.is_dir():
        yield
        return
    import fcntl  # absent on Windows

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            if leftovers := [path for path in folder.iterdir() if is_temporary(path)]:
                with suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for path in leftovers:
                        if path.is_file():
                            path.unlink()
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)

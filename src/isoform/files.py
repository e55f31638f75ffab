"""Files that are whole or not there: written beside their place under another name, synced, then renamed."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write to, which takes the place of `path` when the block ends, and is removed if the block fails.

    Readers see the old file or the new one, whole, and so they do after a power cut; of several writers the last one
    wins. Raises OSError for what can't be written.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # by the handle that wrote: another one may miss a failed write
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Put a file of these bytes in the place of `path`."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Put a file of this text, as UTF-8, in the place of `path`."""
    write_bytes(path, text.encode())


def _sync_folder(path: Path) -> None:
    """Wait until a folder's names are on the disk (Windows sees to that by itself)."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

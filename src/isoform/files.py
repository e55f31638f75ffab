"""Atomic writes: to a temporary file in the same folder, which is synced, then renamed."""

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
    """A new file to write to, which replaces `path` when the block ends, and is removed if the block fails.

    Readers see the complete old or new file, also after a power cut; of several writers the last one wins. Raises
    OSError if it can't be written.
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
    """Replace `path` by a file of these bytes."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file of this text, as UTF-8."""
    write_bytes(path, text.encode())


def _sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk (Windows does so by itself)."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

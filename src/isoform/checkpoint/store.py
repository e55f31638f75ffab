"""Checkpoints that are whole or not there: written under a temporary name, hashed, synced, then renamed.

The one idea: a manifest with the hash of every file is written last, and a checkpoint is what has a manifest
that verifies. Tensors are safetensors, all else JSON; nothing is ever unpickled. Knows files, not models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 2**20


class CorruptCheckpoint(ValueError):
    """A checkpoint whose files are not those its manifest speaks of."""


class StorageError(OSError):
    """A checkpoint that couldn't be written; those before it are untouched."""


class Files:
    """The calls by which checkpoints reach the disk; a test's double makes any one of them fail."""

    def make_folder(self, path: Path) -> None:
        """Make a folder, with those above it."""
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file and wait until it is on the disk."""
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Wait until a folder's names are on the disk (Windows does so by itself)."""
        if os.name == "nt":
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder its name; a file takes the place of one that has it."""
        old.replace(new)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with all that is in it."""
        shutil.rmtree(path)


@dataclass(frozen=True)
class Entry:
    """One file of a checkpoint, as the manifest knows it."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of, and what it was made from."""

    step: int
    files: tuple[Entry, ...]
    fingerprints: Mapping[str, str]
    world_size: int = 1
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The step it was taken after."""
        return self.manifest.step


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, object],
    fingerprints: Mapping[str, str],
    files: Files | None = None,
) -> Path:
    """Commit a checkpoint of named tensor files and JSON documents; gives its folder.

    A step that is there and verifies is left as it is. Raises StorageError if anything can't be written: what
    was there before stays.
    """
    files, target = files or Files(), folder / f"step-{step:08d}"
    with contextlib.suppress(CorruptCheckpoint, FileNotFoundError):
        verify(read_checkpoint(target))
        return target
    temporary = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        files.make_folder(folder)
        for leftover in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
            files.remove_tree(leftover)
        files.make_folder(temporary)
        entries = []
        for name, content in _contents(tensors, documents):
            files.write(temporary / name, content)
            entries.append(Entry(name, len(content), hashlib.sha256(content).hexdigest()))
        manifest = Manifest(step, tuple(entries), dict(fingerprints))
        files.sync_folder(temporary)
        files.write(temporary / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        files.sync_folder(temporary)
        if target.exists():
            files.rename(target, folder / f"corrupt-{target.name}-{uuid.uuid4().hex[:8]}")
        files.rename(temporary, target)
        files.sync_folder(folder)
        hint = folder / ".latest.partial"
        files.write(hint, target.name.encode())
        files.rename(hint, folder / "latest")
    except OSError as error:
        with contextlib.suppress(OSError):
            if temporary.exists():
                shutil.rmtree(temporary)
        raise StorageError(
            error.errno,
            f"the checkpoint of step {step} can't be written to {folder}: {error.strerror}; "
            f"make room or choose another --out, then start again: what was saved before is untouched",
        ) from error
    return target


def _contents(
    tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, object]
) -> Iterator[tuple[str, bytes]]:
    for name, group in tensors.items():
        yield (
            f"{name}.safetensors",
            save({k: t.detach().cpu().contiguous().clone() for k, t in group.items()}),
        )
    for name, document in documents.items():
        yield f"{name}.json", json.dumps(document, indent=1).encode()


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint by its manifest alone. Raises CorruptCheckpoint if that makes no sense, FileNotFoundError
    if there is no such folder."""
    try:
        data = json.loads((path / MANIFEST).read_bytes())
        if data["format"] > FORMAT:
            raise CorruptCheckpoint(
                f"{path} has format {data['format']}, this isoform reads up to {FORMAT}; upgrade it"
            )
        entries = tuple(Entry(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in data["files"])
        manifest = Manifest(
            int(data["step"]),
            entries,
            dict(data["fingerprints"]),
            int(data["world_size"]),
            int(data["format"]),
        )
    except FileNotFoundError:
        if not path.is_dir():
            raise
        raise CorruptCheckpoint(f"{path} has no {MANIFEST}: it was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CorruptCheckpoint):
            raise
        raise CorruptCheckpoint(f"{path / MANIFEST} makes no sense: {type(error).__name__} {error}") from error
    for entry in manifest.files:
        if Path(entry.path).name != entry.path or "\\" in entry.path or entry.path in ("", ".", ".."):
            raise CorruptCheckpoint(f"{path / MANIFEST} names {entry.path!r}, which is not a file of its folder")
    return Checkpoint(path, manifest)


def verify(checkpoint: Checkpoint) -> None:
    """Read every file back. Raises CorruptCheckpoint naming the file, what was expected and what was found."""
    for entry in checkpoint.manifest.files:
        _read_verified(checkpoint, entry)


def _read_verified(checkpoint: Checkpoint, entry: Entry) -> bytes:
    path = checkpoint.path / entry.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptCheckpoint(f"{path} can't be read: {error.strerror}") from error
    if len(data) != entry.size:
        raise CorruptCheckpoint(f"{path} has {len(data)} bytes, its manifest says {entry.size}")
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise CorruptCheckpoint(f"{path} has SHA-256 {found[:16]}…, its manifest says {entry.sha256[:16]}…")
    return data


def _read(checkpoint: Checkpoint, name: str) -> bytes:
    for entry in checkpoint.manifest.files:
        if entry.path == name:
            return _read_verified(checkpoint, entry)
    raise CorruptCheckpoint(f"{checkpoint.path} holds no {name}")


def load_tensors(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """One file of tensors, verified as it is read."""
    try:
        return load(_read(checkpoint, f"{name}.safetensors"))
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{checkpoint.path / name}.safetensors is no tensor file: {error}") from error


def load_document(checkpoint: Checkpoint, name: str):
    """One JSON document, verified as it is read."""
    return json.loads(_read(checkpoint, f"{name}.json"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The folders of checkpoints, newest step first; nothing in them is looked at."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()), reverse=True)


def find_checkpoint(folder: Path, on_corrupt: Callable[[str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where none was ever finished.

    Those that don't verify are told to on_corrupt and, where it is given, set aside as `corrupt-…`. Raises
    CorruptCheckpoint if there are checkpoints and all are damaged.
    """
    candidates, last = list_checkpoints(folder), None
    for path in candidates:
        try:
            checkpoint = read_checkpoint(path)
            verify(checkpoint)
            return checkpoint
        except CorruptCheckpoint as error:
            last = error
            if on_corrupt is not None:
                on_corrupt(f"{error}; trying the checkpoint before it")
                path.rename(path.with_name(f"corrupt-{path.name}-{uuid.uuid4().hex[:8]}"))
    if last is not None:
        raise CorruptCheckpoint(f"no checkpoint in {folder} can be used, the oldest because {last}; start a new run")
    return None


def purge_checkpoints(folder: Path, *, keep: int, files: Files | None = None) -> None:
    """Remove all but the newest `keep` checkpoints, once the newest has been read back. Raises StorageError."""
    assert keep >= 1
    files, stale = files or Files(), list_checkpoints(folder)[keep:]
    if not stale:
        return
    verify(read_checkpoint(list_checkpoints(folder)[0]))
    try:
        for path in reversed(stale):
            trash = folder / f".trash-{uuid.uuid4().hex}"
            files.rename(path, trash)
            files.remove_tree(trash)
    except OSError as error:
        raise StorageError(error.errno, f"old checkpoints in {folder} can't be removed: {error.strerror}") from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run directory. Raises ValueError saying who is in it.

    The lock goes with the process, however it ends. Where there are no file locks (Windows) it is not taken.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl  # absent on Windows

    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by {file.read().strip() or 'another process'}; wait for it or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield

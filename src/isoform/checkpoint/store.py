"""Atomic checkpoints: written under a temporary name, hashed, synced, then renamed.

A manifest with the hash of every file, and of itself, is written last; a folder is a checkpoint if its manifest
verifies. Tensors are safetensors, all else JSON; nothing is ever unpickled. Independent of models. One process at a
time writes to a folder (`lock_folder`), any number may read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import stat
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from isoform.files import DISK, Entry, Files, StorageError, first_line, open_own, seal

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 2**26
FILE_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)
FOLDER_NAME = re.compile(r"step-(\d{8,18})", re.ASCII)
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""Errors of reading that mean damage; others (too many open files, no permission) are passed on."""


class CorruptCheckpoint(ValueError):
    """A checkpoint whose files don't match its manifest."""


class UnknownFormat(ValueError):
    """A checkpoint of a newer isoform: possibly valid, so it is neither read nor set aside."""


class FolderInUse(BlockingIOError):
    """Another process trains in the folder."""


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint, and fingerprints of what it was made from."""

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
    world_size: int = 1,
    files: Files = DISK,
) -> Path:
    """Commit `<name>.safetensors` of named tensors and `<name>.json` of documents; returns the checkpoint's folder.

    An existing checkpoint of the step is left as it is if it verifies, else set aside. Tensors are moved to the CPU one
    by one; those that share memory are each written in full. Raises StorageError if anything can't be written,
    ValueError for names, tensors or documents that the files can't hold.
    """
    assert step >= 0
    contents = _contents(tensors, documents)
    manifest = Manifest(step, (), dict(fingerprints), world_size)
    target, temporary = folder / f"step-{step:08d}", folder / f".tmp-{uuid.uuid4().hex}"
    try:
        files.make_folder(folder)
        remove_leftovers(folder, files=files)
        if not _is_saved(target, files):
            files.make_folder(temporary)
            entries = [asdict(files.write(temporary / name, chunks)) for name, chunks in contents.items()]
            files.write(temporary / MANIFEST, [seal({**asdict(manifest), "files": entries})])
            files.sync_folder(temporary)
            files.rename(temporary, target)
        files.sync_folder(folder)  # also for an existing one: a save that failed here left it unsynced
    except OSError as error:
        with suppress(OSError):
            files.remove(temporary)
        raise _storage_error(error, f"the checkpoint of step {step} can't be written to {folder}") from error
    with suppress(OSError):  # the checkpoint is saved already, and nothing here reads the hint
        files.write(temporary, [target.name.encode()])
        files.rename(temporary, folder / "latest")
        return target
    with suppress(OSError):
        files.remove(temporary)
    return target


def remove_leftovers(folder: Path, *, files: Files = DISK) -> None:
    """Remove what killed writers and removers left, while this process is the only one that writes there."""
    for leftover in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
        with suppress(OSError):
            files.remove(leftover)


def _is_saved(path: Path, files: Files) -> bool:
    """Whether a checkpoint exists and verifies; one that doesn't verify is set aside."""
    if not path.exists():
        return False
    try:
        verify(read_checkpoint(path))
    except CorruptCheckpoint:
        _set_aside(path, files)
        return False
    return True


def _contents(
    tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, object]
) -> dict[str, Iterable[bytes | memoryview]]:
    contents: dict[str, Iterable[bytes | memoryview]] = {}
    for stem, group in tensors.items():
        contents[f"{stem}.safetensors"] = tensor_chunks(stem, group)
    for stem, document in documents.items():
        try:
            contents[f"{stem}.json"] = [json.dumps(document, indent=1).encode()]
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"document {stem!r} can't be written as JSON: {error}; give it plain values") from error
    for name in contents:
        if not FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"{name!r} can't be a checkpoint's file; name it with letters, digits, '_', '-' and '.'")
    return contents


def tensor_chunks(
    stem: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """A safetensors file tensor by tensor: the library's own writer would hold several copies of all of them, and
    reports a full disk as no OSError. Raises ValueError, at once, for a tensor that the format can't hold."""
    header = _tensor_header(stem, tensors)
    return _tensor_file({**({"__metadata__": dict(metadata)} if metadata else {}), **header}, header, tensors)


def _tensor_header(stem: str, tensors: Mapping[str, Tensor]) -> dict[str, dict]:
    """The header of a safetensors file. The widest elements come first, so that all are aligned."""
    header, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        try:
            sample = save({name: torch.empty(0, dtype=tensor.dtype, layout=tensor.layout)})
            load(sample)  # since it writes more formats than it reads
            dtype = json.loads(sample[8:])[name]["dtype"]
        except Exception as error:
            what = f"{name!r} of {stem!r} ({tensor.dtype}, {tensor.layout})"
            raise ValueError(f"safetensors can't hold the tensor {what}; convert it first") from error
        begin, end = end, end + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return header


def _tensor_file(
    head: Mapping[str, object], order: Iterable[str], tensors: Mapping[str, Tensor]
) -> Iterator[bytes | memoryview]:
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        plain = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().data


def _storage_error(error: OSError, what: str) -> StorageError:
    why = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    remedy = "make room or choose a folder that can be written to; earlier checkpoints are untouched"
    return StorageError(error.errno or errno.EIO, f"{what}: {why}; {remedy}")


def _set_aside(path: Path, files: Files) -> None:
    files.rename(path, path.with_name(f"corrupt-{path.name}-{uuid.uuid4().hex[:8]}"))


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint by its manifest only. Raises CorruptCheckpoint, or UnknownFormat for that of a newer isoform."""
    manifest_path = path / MANIFEST
    with _open(manifest_path) as file:
        text = file.read(MANIFEST_LIMIT)
    first, newline, rest = text.partition(b"\n")
    if first != first_line(newline + rest):
        raise CorruptCheckpoint(f"{manifest_path} is damaged: it doesn't match the SHA-256 in its first line")
    try:
        data = json.loads(text)
        if (number := int(data["format"])) > FORMAT:
            raise UnknownFormat(f"{path} has format {number}, this isoform reads up to {FORMAT}; upgrade isoform")
        entries = tuple(Entry(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in data["files"])
        fingerprints = {str(what): str(value) for what, value in data["fingerprints"].items()}
        manifest = Manifest(int(data["step"]), entries, fingerprints, int(data["world_size"]), number)
    except UnknownFormat:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CorruptCheckpoint(f"{manifest_path} is invalid: {type(error).__name__} {error}") from error
    if path.name != f"step-{manifest.step:08d}":
        raise CorruptCheckpoint(f"{manifest_path} is of step {manifest.step}, but its folder is {path.name}")
    for entry in entries:
        if not FILE_NAME.fullmatch(entry.path) or entry.path == MANIFEST:
            raise CorruptCheckpoint(f"{manifest_path} names {entry.path!r}, which can't be a file of its folder")
    return Checkpoint(path, manifest)


def verify(checkpoint: Checkpoint) -> None:
    """Read every file back. Raises CorruptCheckpoint naming the file, the expected and the actual hash or size."""
    for entry in checkpoint.manifest.files:
        _read(checkpoint, entry.path, hold=False)


def load_tensors(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU, verified as they are read. Raises CorruptCheckpoint."""
    data = _read(checkpoint, f"{name}.safetensors")
    try:
        return load(data)
    except Exception as error:  # whatever a crafted header makes the reader raise
        raise CorruptCheckpoint(f"{checkpoint.path / name}.safetensors is no safetensors file: {error}") from error


def load_document(checkpoint: Checkpoint, name: str):
    """One JSON document, verified as it is read. Raises CorruptCheckpoint."""
    data = _read(checkpoint, f"{name}.json")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{checkpoint.path / name}.json is no JSON: {error}") from error


def _read(checkpoint: Checkpoint, name: str, *, hold: bool = True) -> bytes:
    """The verified bytes of a file; without `hold` they are only verified."""
    entries, data = {entry.path: entry for entry in checkpoint.manifest.files}, b""
    if name not in entries:
        raise CorruptCheckpoint(f"{checkpoint.path} has no {name}; it has {', '.join(entries) or 'no files'}")
    path, expected = checkpoint.path / name, entries[name].sha256
    with _open(path, entries[name].size) as file:
        if hold:
            data = file.read()
            digest = hashlib.sha256(data).hexdigest()
        else:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise CorruptCheckpoint(f"{path} has SHA-256 {digest[:16]}…, its manifest says {expected[:16]}…")
    return data


@contextmanager
def _open(path: Path, size: int | None = None) -> Iterator[BufferedReader]:
    """A regular file of the expected size: links, pipes and larger files are never read."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise CorruptCheckpoint(f"{path} is not a plain file")
        if size is not None and status.st_size != size:
            raise CorruptCheckpoint(f"{path} has {status.st_size} bytes, its manifest says {size}")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        raise CorruptCheckpoint(f"{path} can't be read: {error.strerror}") from error


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints with readable manifests, newest first; their files are not verified."""
    checkpoints = []
    for path in _step_folders(folder):
        with suppress(CorruptCheckpoint):
            checkpoints.append(read_checkpoint(path))
    return checkpoints


def _step_folders(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    steps = [(int(match[1]), path) for path in paths if (match := FOLDER_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(steps, reverse=True)]


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint by its name, whether or not it verifies; 0 if there is none."""
    newest = next(iter(_step_folders(folder)), None)
    return 0 if newest is None else int(newest.name.removeprefix("step-"))


def find_checkpoint(
    folder: Path, on_corrupt: Callable[[str], None] | None = None, *, files: Files = DISK
) -> Checkpoint | None:
    """The newest checkpoint that verifies; None if there are no checkpoints.

    Those that don't verify are reported to on_corrupt and, if an older one does, renamed to `corrupt-…`; without
    on_corrupt there are warnings and nothing is changed, so that other processes can read a run in progress. Raises
    CorruptCheckpoint, each time, if all checkpoints are damaged: a run must not restart from scratch by mistake.
    """
    damaged: list[tuple[Path, CorruptCheckpoint]] = []
    for path in _step_folders(folder):
        try:
            checkpoint = read_checkpoint(path)
            verify(checkpoint)
        except CorruptCheckpoint as error:
            if not path.exists():  # purged while it was read, so a newer one exists
                return find_checkpoint(folder, on_corrupt, files=files)
            damaged.append((path, error))
            continue
        for path, error in damaged:
            note = f"{error}; step {checkpoint.step} is used instead"
            if on_corrupt is None:
                warnings.warn(note, stacklevel=2)
                continue
            on_corrupt(f"{note}, and this one is set aside")
            with suppress(OSError):  # only spares the next start from verifying it again
                _set_aside(path, files)
        return checkpoint
    if damaged:
        raise CorruptCheckpoint(
            f"no checkpoint in {folder} can be used: {'; '.join(str(error) for _, error in damaged)}; "
            f"restore one from a copy, or move the folder away to start from scratch"
        )
    return None


def purge_checkpoints(folder: Path, *, keep: int, files: Files = DISK) -> None:
    """Remove all but the newest `keep` checkpoints, after verifying the newest.

    Raises StorageError if it doesn't verify (nothing is removed then), or if something can't be removed.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would leave no checkpoint; keep 1 or more")
    checkpoints = list_checkpoints(folder)
    stale = {checkpoint.path: folder / f".trash-{uuid.uuid4().hex}" for checkpoint in reversed(checkpoints[keep:])}
    if not stale:
        return
    try:
        verify(checkpoints[0])
        for path, trash in stale.items():
            files.rename(path, trash)
        files.sync_folder(folder)  # else the names of half removed ones might reappear after a power cut
        for trash in stale.values():
            files.remove(trash)
    except CorruptCheckpoint as error:
        raise StorageError(errno.EIO, f"{error}. Nothing was removed; check the disk") from error
    except OSError as error:
        raise _storage_error(error, f"old checkpoints in {folder} can't be removed") from error


def is_in_use(folder: Path) -> bool:
    """Whether another process trains in a run directory now."""
    try:
        with open(folder / ".lock", "r+", encoding="utf-8", opener=open_own) as file:
            _lock(file.fileno())
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    return False


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run directory while this process trains in it. Raises FolderInUse naming the process that holds the lock.

    The lock ends with the process, however that ends; forked processes share it. On a file system without locks there
    is a warning and no lock. Raises ValueError if the lock is a link.
    """
    with open(folder / ".lock", "a+", encoding="utf-8", opener=open_own) as file:
        try:
            _lock(file.fileno())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderInUse(f"{folder} is in use by {holder}; wait for it, end it or choose another folder") from None
        except OSError as error:
            warnings.warn(f"{folder} can't be locked ({error}); take care that nothing else trains in it", stacklevel=3)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(handle: int) -> None:
    """Lock an open file or raise BlockingIOError; on Windows a byte far beyond its text, which stays readable."""
    if sys.platform == "win32":
        import msvcrt  # only there

        os.lseek(handle, 2**30, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl  # absent on Windows

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

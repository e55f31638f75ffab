"""Checkpoints: any call may fail, any instant be the last, any byte be changed, and the run still continues.

Every call by which the store reaches the disk is made to fail, to be the last one before kill -9, or to be the
last one before a power cut; what is found afterwards is one of the checkpoints that were saved, whole.
"""

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.checkpoint import store
from isoform.checkpoint.store import (
    CorruptCheckpoint,
    Files,
    FolderInUse,
    StorageError,
    UnknownFormat,
    find_checkpoint,
    list_checkpoints,
    load_document,
    load_tensors,
    lock_folder,
    purge_checkpoints,
    read_checkpoint,
    save_checkpoint,
    verify,
)

PROFILE = settings(deadline=None, max_examples=40, derandomize=True)
posix = pytest.mark.skipif(sys.platform == "win32", reason="forks, signals and pipes are POSIX")


class Trial(Files):
    """A disk that records its calls, injects a fault at call `index` (and after it, if `dead`), and syncs nothing."""

    def __init__(self, index: int = 0, fault=None, *, dead: bool = False):
        self.index, self.fault, self.dead, self.calls = index, fault, dead, []

    def _do(self, name, path, act):
        self.calls.append((name, path))
        now = len(self.calls)
        return self.fault(name, path, act) if now == self.index or (self.dead and now > self.index) else act()

    def make_folder(self, path):
        return self._do("make_folder", path, lambda: Files.make_folder(self, path))

    def write(self, path, chunks):
        return self._do("write", path, lambda: Files.write(self, path, chunks))

    def sync(self, handle):
        return self._do("sync", handle, lambda: None)

    def sync_folder(self, path):
        return self._do("sync_folder", path, lambda: Files.sync_folder(self, path))

    def rename(self, old, new):
        return self._do("rename", (old, new), lambda: Files.rename(self, old, new))

    def remove(self, path):
        return self._do("remove", path, lambda: Files.remove(self, path))


def half_done(name, path, act):
    """Do half of what can be done by halves."""
    if name == "write":
        entry = act()
        os.truncate(path, entry.size // 2)
    elif name == "remove" and path.is_dir():
        (path / "manifest.json").unlink(missing_ok=True)


def before(name, path, act):
    raise OSError(errno.EIO, "Input/output error")


def half(name, path, act):
    half_done(name, path, act)
    raise OSError(errno.ENOSPC, "No space left on device")


def after(name, path, act):
    act()
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def lie(name, path, act):
    """Lose half of a file and report success."""
    result = act()
    if name == "write":
        os.truncate(path, result.size // 2)
    return result


def kill(name, path, act):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_halfway(name, path, act):
    half_done(name, path, act)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(name, path, act):
    act()
    os.kill(os.getpid(), signal.SIGKILL)


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """A model and an optimizer from which their step can be read."""
    model = {"weight": torch.arange(24.0).reshape(4, 6) + step, "bias": torch.full((6,), step, dtype=torch.bfloat16)}
    return {"model": model, "optimizer": {"count": torch.tensor(step)}}


def save(folder: Path, step: int, files: Files | None = None) -> Path:
    """Save what a step is made of, without waiting for the disk."""
    return save_checkpoint(
        folder,
        step=step,
        tensors=tensors_of(step),
        documents={"state": {"step": step}},
        fingerprints={"data": "abc"},
        files=files or Trial(),
    )


def check(checkpoint) -> int:
    """The step of a checkpoint that holds exactly what was saved at that step."""
    assert checkpoint is not None
    for name, group in tensors_of(checkpoint.step).items():
        loaded = load_tensors(checkpoint, name)
        assert loaded.keys() == group.keys() and all(torch.equal(loaded[key], group[key]) for key in group)
    assert load_document(checkpoint, "state") == {"step": checkpoint.step}
    assert checkpoint.manifest.fingerprints == {"data": "abc"}
    return checkpoint.step


def names(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


def save_and_purge(folder: Path, files: Files | None = None) -> None:
    """What a run does between two steps: save, then remove old checkpoints."""
    save(folder, 200, files)
    purge_checkpoints(folder, keep=1, files=files or Trial())


def recover(folder: Path, notes: list[str]) -> int:
    """Continue after a fault; returns the recovered step, once the run has ended as without the fault."""
    step = check(find_checkpoint(folder, notes.append, files=Trial()))
    save_and_purge(folder)
    assert check(find_checkpoint(folder, notes.append)) == 200
    assert {name for name in names(folder) if not name.startswith("corrupt-")} == {"step-00000200", "latest"}
    assert (folder / "latest").read_text() == "step-00000200"
    return step


def in_child(act) -> int:
    """Run a function in a forked process; returns its exit code, negative if it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks beside threads, and starts none
        pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forge(folder: Path, contents: dict[str, bytes], **changes) -> Path:
    """A checkpoint by someone who knows how hashes are made; `changes` replace fields of its manifest."""
    path = folder / "step-00000300"
    path.mkdir(parents=True)
    entries = []
    for name, data in contents.items():
        (path / name).write_bytes(data)
        entries.append({"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    fields = {"step": 300, "files": entries, "fingerprints": {}, "world_size": 1, "format": 1, **changes}
    seal(path, json.dumps(fields)[1:].encode())
    return path


def seal(path: Path, body: bytes) -> None:
    """Write a manifest that has the hash it begins with."""
    body = b"\n" + body
    (path / "manifest.json").write_bytes(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",' + body)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a checkpoint of step 100."""
    save(tmp_path / "checkpoints", 100)
    return tmp_path / "checkpoints"


def test_whatever_a_tensor_is_it_comes_back(tmp_path):
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tied = torch.nn.Parameter(torch.randn(5, 3))
    odd = {
        "transposed": base.t(),
        "slice": base[:, 1::2],
        "expanded": base[:1].expand(6, 4),
        "tied": tied,
        "tied again": tied,
        "part": tied[1:3],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 7),
        "no elements, no storage": torch.empty(3, 0, 2),
        "conjugate": torch.randn(2, 2, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "dotted.näme/with 'quotes'": torch.ones(1),
    }
    names = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 bool"
    names += " int64 int32 int16 int8 uint64 uint32 uint16 uint8"
    kinds = {name: torch.arange(7).to(getattr(torch, name)) for name in names.split()}
    path = save_checkpoint(
        tmp_path, step=0, tensors={"odd": odd, "kinds": kinds, "none": {}}, documents={}, fingerprints={}
    )
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.path == path and checkpoint.step == 0
    for name, group in {"odd": odd, "kinds": kinds, "none": {}}.items():
        loaded = load_tensors(checkpoint, name)
        assert loaded.keys() == group.keys()
        for key, tensor in group.items():
            assert loaded[key].dtype == tensor.dtype and loaded[key].shape == tensor.shape, key
            raw, expected = (x.detach().resolve_conj().resolve_neg().contiguous() for x in (loaded[key], tensor))
            assert torch.equal(raw.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)), key
        assert safetensors.torch.load_file(path / f"{name}.safetensors").keys() == group.keys()


def test_our_tensor_files_are_those_of_safetensors(tmp_path):
    tensors = {"b": torch.randn(3, 5), "ä": torch.randn(7), "half": torch.randn(3).half(), "byte": torch.ones(5).bool()}
    path = save_checkpoint(tmp_path, step=1, tensors={"model": tensors}, documents={}, fingerprints={})
    assert (path / "model.safetensors").read_bytes() == safetensors.torch.save(tensors)


def test_documents_and_manifest_come_back(tmp_path):
    document = {"a": [1, 2.5, None, True, "ü\ud800"], "loss": float("inf")}
    save_checkpoint(tmp_path, step=7, tensors={}, documents={"d": document}, fingerprints={"code": "1.0"}, world_size=4)
    [checkpoint] = list_checkpoints(tmp_path)
    assert load_document(checkpoint, "d") == document
    assert checkpoint.manifest.fingerprints == {"code": "1.0"} and checkpoint.manifest.world_size == 4
    assert json.loads((checkpoint.path / "manifest.json").read_text())["files"][0]["path"] == "d.json"
    with pytest.raises(CorruptCheckpoint, match=r"has no e\.json; it has d\.json"):
        load_document(checkpoint, "e")


@pytest.mark.parametrize(
    ("tensors", "documents", "message"),
    [
        ({"model": {"w": torch.zeros(2, dtype=torch.complex128)}}, {}, "'w' of 'model' .*complex128.*convert"),
        ({"model": {"w": torch.zeros(2).to_sparse()}}, {}, "'w' of 'model' .*sparse"),
        ({"model": {"__metadata__": torch.zeros(2)}}, {}, "__metadata__"),
        ({"../model": {}}, {}, "can't be a checkpoint's file"),
        ({}, {"manifest": {}}, "can't be a checkpoint's file"),
        ({}, {"state": {"x": {1, 2}}}, "document 'state'.*set"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path, tensors, documents, message):
    files = Trial()
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, step=1, tensors=tensors, documents=documents, fingerprints={}, files=files)
    assert not files.calls and not names(tmp_path)


def test_a_step_that_is_there_is_left_as_it_is(folder):
    stamp = (folder / "step-00000100/manifest.json").stat().st_mtime_ns
    assert save(folder, 100) == folder / "step-00000100"
    assert (folder / "step-00000100/manifest.json").stat().st_mtime_ns == stamp
    (folder / "step-00000100/state.json").unlink()
    save(folder, 100)
    assert check(find_checkpoint(folder)) == 100
    assert len(list(folder.glob("corrupt-step-00000100-*"))) == 1


def test_a_save_that_failed_at_its_last_sync_is_synced_by_the_next(folder):
    def save_with(files):
        with pytest.raises(StorageError):
            save(folder, 200, files)

    sound = Trial()
    save(folder, 150, sound)
    last = len(sound.calls) - [name for name, _ in reversed(sound.calls)].index("sync_folder")
    save_with(Trial(last, before))
    assert check(find_checkpoint(folder)) == 200  # for now: its name is not on the disk
    again = Trial()
    save(folder, 200, again)
    assert ("sync_folder", folder) in again.calls and "rename" not in [name for name, _ in again.calls[:-1]]


@pytest.mark.parametrize("dead", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("fault", [before, half, after, lie])
def test_any_call_may_fail(tmp_path, fault, dead):
    save(tmp_path / "old", 100)
    for call in itertools.count(1):
        folder = shutil.copytree(tmp_path / "old", tmp_path / f"{call}")
        files, notes, is_saved = Trial(call, fault, dead=dead), [], False
        try:
            save(folder, 200, files)
            is_saved = True
            purge_checkpoints(folder, keep=1, files=files)
        except StorageError as error:
            assert str(folder) in str(error) and not str(error).startswith("[Errno")
            if not is_saved and not dead and fault is not after:
                assert not list(folder.glob(".tmp-*")), "a failed save left its folder behind"
        if len(files.calls) < call:
            break
        recovered = recover(folder, notes)
        if fault is lie:
            assert recovered == 200 or notes
        else:
            assert not notes and (recovered == 200 or not is_saved)
        shutil.rmtree(folder)
    assert call > 15


@posix
@pytest.mark.parametrize("fault", [kill, kill_halfway, kill_after])
def test_any_call_may_be_the_last(tmp_path, fault):
    save(tmp_path / "old", 100)
    shutil.copytree(tmp_path / "old/step-00000100", tmp_path / "old/.trash-left")
    for call in itertools.count(1):
        folder, notes = shutil.copytree(tmp_path / "old", tmp_path / f"{call}"), []
        code = in_child(lambda call=call, folder=folder: save_and_purge(folder, Trial(call, fault)))
        assert code in (0, -signal.SIGKILL)
        recover(folder, notes)
        assert not notes
        if code == 0:
            break
        shutil.rmtree(folder)
    assert call > 15


def test_the_power_may_be_cut(tmp_path):
    """Names are on the disk once their folder was synced; before that any of them may be, in any
    combination; contents are there once their file was synced."""
    save(tmp_path / "old", 100)
    folder, trace = shutil.copytree(tmp_path / "old", tmp_path / "run"), []

    class Recorder(Trial):
        def _do(self, name, path, act):
            index = len(trace)
            trace.append((name, path, b""))
            result = act()
            if name == "write":
                trace[index] = (name, path, path.read_bytes())
            return result

    save(folder, 200, Recorder())
    saved = len(trace)
    purge_checkpoints(folder, keep=1, files=Recorder())
    assert ("sync_folder", folder, b"") in trace[saved:]
    count = 0
    for cut in range(len(trace) + 1):
        operations = trace[:cut]
        pending = [
            index
            for index, (name, path, _) in enumerate(operations)
            if name in ("make_folder", "write", "rename", "remove")
            and ("sync_folder", (path[0] if name == "rename" else path).parent, b"") not in operations[index:]
        ]
        torn = {
            index
            for index, (name, _, _) in enumerate(operations)
            if name == "write" and [n for n, *_ in operations[index + 1 : index + 2]] != ["sync"]
        }
        for lost in itertools.chain.from_iterable(itertools.combinations(pending, n) for n in range(len(pending) + 1)):
            for share in (1.0, 0.5, 0.0) if torn else (1.0,):
                state = shutil.copytree(tmp_path / "old", tmp_path / "state")
                for index, operation in enumerate(operations):
                    if index not in lost:
                        replay(operation, folder, state, share if index in torn else 1.0)
                notes: list[str] = []
                recovered = check(find_checkpoint(state, notes.append, files=Trial()))
                assert recovered == 200 or (recovered == 100 and cut < saved), (
                    f"{recovered} after {operations[-1]}, without {lost}"
                )
                assert not notes, "half a checkpoint had its name"
                shutil.rmtree(state)
                count += 1
    assert count > 60


def replay(operation, folder: Path, state: Path, share: float) -> None:
    """Do again, in another folder, what a trace says; what isn't possible (for something is lost) isn't done."""
    name, path, data = operation
    try:
        if name == "make_folder":
            (state / path.relative_to(folder)).mkdir(exist_ok=True)
        elif name == "write":
            (state / path.relative_to(folder)).write_bytes(data[: int(len(data) * share)])
        elif name == "rename":
            (state / path[0].relative_to(folder)).replace(state / path[1].relative_to(folder))
        elif name == "remove":
            Files().remove(state / path.relative_to(folder))
    except FileNotFoundError:
        pass


@posix
def test_a_full_disk_of_the_kernel_s_own(folder):
    import resource

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        big = {"model": {"weight": torch.zeros(1000)}}
        try:
            save_checkpoint(folder, step=200, tensors=big, documents={}, fingerprints={})
        except StorageError as error:
            os._exit(42 if error.errno == errno.EFBIG and not list(folder.glob(".tmp-*")) else 1)

    assert in_child(fill) == 42
    assert names(folder) == {"step-00000100", "latest"} and check(find_checkpoint(folder)) == 100


def test_a_failure_names_the_step_the_folder_and_the_remedy(folder):
    with pytest.raises(StorageError) as caught:
        save(folder, 200, Trial(3, half))
    assert caught.value.errno == errno.ENOSPC
    for part in ("step 200", str(folder), "No space left", "make room", "untouched"):
        assert part in str(caught.value)


MUTATIONS = ("flip", "truncate", "lengthen", "empty", "remove", "swap", "exchange")


def mutate(folder: Path, generator: random.Random) -> list[Path]:
    """Damage the checkpoint of step 200 in one way; returns the files of which one must be named."""
    new, old = folder / "step-00000200", folder / "step-00000100"
    path, second = generator.sample(sorted(new.iterdir()), 2)
    data, kind = path.read_bytes(), generator.choice(MUTATIONS)
    if kind == "flip":
        offset = generator.randrange(len(data))
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << generator.randrange(8)]) + data[offset + 1 :])
    elif kind == "truncate":
        path.write_bytes(data[: generator.randrange(len(data))])
    elif kind == "lengthen":
        path.write_bytes(data + generator.randbytes(generator.randint(1, 9)))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        shutil.copy(old / path.name, path)
        if path.name == "manifest.json":
            return list(new.iterdir())
    elif kind == "exchange":
        path.write_bytes(second.read_bytes())
        second.write_bytes(data)
        return [path, second]
    return [path]


def test_any_damage_is_found_and_located_and_the_one_before_is_used(folder, tmp_path):
    save(folder, 200)
    for seed in range(250):
        copy, notes = shutil.copytree(folder, tmp_path / "copy"), []
        damaged = mutate(copy, random.Random(seed))
        assert check(find_checkpoint(copy, notes.append, files=Trial())) == 100, seed
        [note] = notes
        assert any(str(path) in note for path in damaged), (seed, note)
        assert len(list(copy.glob("corrupt-step-00000200-*"))) == 1
        assert check(find_checkpoint(copy, pytest.fail)) == 100
        shutil.rmtree(copy)


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    path = save_checkpoint(
        tmp_path, step=1, tensors={"m": {"w": torch.zeros(2)}}, documents={}, fingerprints={}, files=Trial()
    )
    for file in path.iterdir():
        data = file.read_bytes()
        for bit in range(0, 8 * len(data), 7):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(CorruptCheckpoint, match=file.name):
                verify(read_checkpoint(path))
        file.write_bytes(data)
    verify(read_checkpoint(path))


def test_messages_name_the_expected_and_the_actual(folder):
    path, checkpoint = folder / "step-00000100/state.json", read_checkpoint(folder / "step-00000100")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptCheckpoint, match=rf"{path} has {len(data) - 1} bytes, its manifest says {len(data)}"):
        verify(checkpoint)
    path.write_bytes(data[:-1] + b"]")
    with pytest.raises(CorruptCheckpoint, match=rf"{path} has SHA-256 \w+…, its manifest says \w+…"):
        verify(checkpoint)
    path.unlink()
    with pytest.raises(CorruptCheckpoint, match=f"{path} can't be read: No such file"):
        verify(checkpoint)
    with pytest.raises(CorruptCheckpoint, match="No such file"):
        load_document(checkpoint, "state")


def test_a_run_with_only_damaged_checkpoints_does_not_restart(folder):
    save(folder, 200)
    for path in folder.glob("step-*/state.json"):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint, match=r"no checkpoint in .*00000200.*00000100.*from a copy"):
            find_checkpoint(folder, lambda note: None)
    assert names(folder) == {"step-00000200", "step-00000100", "latest"}


def test_without_checkpoints_none_is_found(tmp_path):
    for leftover in (".tmp-1", ".trash-2", "corrupt-step-00000001-3", "step-1", "step-x", "step-²²²²²²²²"):
        (tmp_path / leftover).mkdir()
    assert find_checkpoint(tmp_path, pytest.fail) is None and list_checkpoints(tmp_path) == []
    assert find_checkpoint(tmp_path / "absent", pytest.fail) is None and list_checkpoints(tmp_path / "absent") == []
    save(tmp_path, 1)
    assert not {".tmp-1", ".trash-2"} & names(tmp_path)


def test_readers_change_nothing(folder):
    save(folder, 200)
    (folder / "step-00000200/state.json").unlink()
    with pytest.warns(match=r"state\.json can't be read.*; step 100 is used instead"):
        assert check(find_checkpoint(folder)) == 100
    assert names(folder) == {"step-00000200", "step-00000100", "latest"}


def test_steps_are_ordered_as_numbers(folder):
    steps = [99_999_999, 100_000_000, 1_000_000_000]
    for step in steps:
        save(folder, step)
    assert [checkpoint.step for checkpoint in list_checkpoints(folder)] == [*reversed(steps), 100]


def test_a_checkpoint_purged_while_it_is_read_is_no_damage(folder, monkeypatch):
    def verify_slowly(checkpoint):
        monkeypatch.setattr(store, "verify", verify)
        save_and_purge(folder)
        verify(checkpoint)

    monkeypatch.setattr(store, "verify", verify_slowly)
    assert check(find_checkpoint(folder, pytest.fail)) == 200


def test_too_many_open_files_is_no_damage(folder, monkeypatch):
    def refuse(path, *arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            find_checkpoint(folder, pytest.fail)
    assert check(find_checkpoint(folder, pytest.fail)) == 100


HASH = hashlib.sha256(b"").hexdigest()
PATHS = [
    "../../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..\\x",
    "C:x",
    "x\0",
    "manifest.json",
    "~",
    "é",
    "x" * 300,
]


@pytest.mark.parametrize("path", PATHS)
def test_files_outside_the_folder_are_refused(folder, path):
    forge(folder, {}, files=[{"path": path, "size": 0, "sha256": HASH}])
    notes = []
    assert check(find_checkpoint(folder, notes.append)) == 100
    assert len(notes) == 1 and f"names {path!r}, which can't be a file of its folder" in notes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "x"},
        {"step": None},
        {"step": 301},
        {"step": -1},
        {"step": 1e999},
        {"step": 10**400},
        {"files": None},
        {"files": {"a": 1}},
        {"files": [1]},
        {"files": [{"path": "x"}]},
        {"files": [{"path": "x", "size": -1, "sha256": HASH}]},
        {"files": [{"path": "x", "size": 10**30, "sha256": []}]},
        {"fingerprints": []},
        {"world_size": []},
        {"format": "new"},
        {"format": None},
    ],
    ids=str,
)
def test_invalid_manifests_are_refused(folder, changes):
    forge(folder, {}, **changes)
    notes = []
    assert check(find_checkpoint(folder, notes.append)) == 100
    assert len(notes) == 1 and "step-00000300" in notes[0]


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[" * 100_000, b'"files": 1}', b'"a": 1}, 2', b"\xff}", b"1" * 5000 + b"}"]
)
def test_manifests_that_are_no_json_are_refused(folder, body):
    seal(forge(folder, {}), body)
    assert check(find_checkpoint(folder, lambda note: None)) == 100


@posix
def test_links_pipes_and_folders_are_not_read(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"{}")
    path = forge(folder, {"state.json": b"{}"})
    for make in (lambda p: p.symlink_to(tmp_path / "secret"), os.mkfifo, Path.mkdir):
        for name in ("state.json", "manifest.json"):
            content = (path / name).read_bytes()
            (path / name).unlink()
            make(path / name)
            with pytest.raises(CorruptCheckpoint, match=f"{name} is not a plain file"):
                verify(read_checkpoint(path))
            Files().remove(path / name)
            (path / name).write_bytes(content)
    verify(read_checkpoint(path))


def test_a_newer_format_is_refused_and_left_alone(folder):
    forge(folder, {}, format=2, files="of another kind")
    for look in (
        lambda: find_checkpoint(folder, pytest.fail),
        lambda: list_checkpoints(folder),
        lambda: save(folder, 300),
    ):
        with pytest.raises(UnknownFormat, match="step-00000300 has format 2, this isoform reads up to 1; upgrade"):
            look()
    assert names(folder) == {"step-00000300", "step-00000100", "latest"}


def tensor_file(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def spec(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "nothing": b"",
    "short": b"\x01\0\0",
    "no header": tensor_file(b"", b""),
    "giant header": tensor_file({}, length=2**63),
    "long header": tensor_file({"a": spec()}, length=10**6),
    "no json": tensor_file(b"{{{{"),
    "no object": tensor_file([1, 2]),
    "deep json": tensor_file(b'{"a":' * 50_000),
    "bad utf-8": tensor_file(b'{"\xff": 1}'),
    "same name twice": tensor_file(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}'),
    "unknown dtype": tensor_file({"a": spec("F99")}),
    "dtype torch lacks": tensor_file({"a": spec("F8_E8M0", (8,))}),
    "dtype of half bytes": tensor_file({"a": spec("F4", (16,))}),
    "outside": tensor_file({"a": spec(offsets=(8, 16))}),
    "beyond the end": tensor_file({"a": spec(shape=(200,), offsets=(0, 800))}),
    "backwards": tensor_file({"a": spec(offsets=(8, 0))}),
    "negative": tensor_file({"a": spec(offsets=(-8, 0))}),
    "overlap": tensor_file({"a": spec(), "b": spec()}),
    "hole": tensor_file({"a": spec(shape=(1,), offsets=(0, 4)), "b": spec(shape=(1,), offsets=(6, 10))}, bytes(10)),
    "wrong size": tensor_file({"a": spec(shape=(3,))}),
    "negative shape": tensor_file({"a": spec(shape=(-2,))}),
    "giant shape": tensor_file({"a": spec(shape=(2**62, 2**62))}),
    "giant and empty": tensor_file({"a": spec(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b""),
    "extra bytes": tensor_file({"a": spec()}, bytes(9)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensor_files_are_refused(tmp_path, data):
    path = forge(tmp_path, {"model.safetensors": data})
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors is no safetensors file"):
        load_tensors(read_checkpoint(path), "model")


@PROFILE
@given(st.lists(st.tuples(st.integers(0, 87), st.integers(0, 255)), max_size=4), st.integers(0, 88))
def test_no_tensor_file_crashes_the_reader(changes, length):
    data = bytearray(tensor_file({"a": spec()}).ljust(88))
    for offset, value in changes:
        data[offset] = value
    with tempfile.TemporaryDirectory() as folder:
        path = forge(Path(folder), {"model.safetensors": bytes(data[:length])})
        try:
            loaded = load_tensors(read_checkpoint(path), "model")
        except CorruptCheckpoint:
            return
        assert all(isinstance(tensor, torch.Tensor) for tensor in loaded.values())


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_documents_that_are_no_json_are_refused(tmp_path, data):
    with pytest.raises(CorruptCheckpoint, match=r"state\.json is no JSON"):
        load_document(read_checkpoint(forge(tmp_path, {"state.json": data})), "state")


def test_purge_keeps_the_newest(folder):
    for step in (200, 300, 400):
        save(folder, step)
    purge_checkpoints(folder, keep=2, files=Trial())
    assert names(folder) == {"step-00000400", "step-00000300", "latest"}
    with pytest.raises(ValueError, match="keep=0"):
        purge_checkpoints(folder, keep=0)


@pytest.mark.parametrize("victim", ["manifest.json", "model.safetensors"])
def test_purge_removes_nothing_behind_a_damaged_one(folder, victim):
    save(folder, 200)
    (folder / "step-00000200" / victim).write_bytes(b"?")
    if victim == "manifest.json":  # is none, so that of step 100 is the newest
        purge_checkpoints(folder, keep=1, files=Trial())
    else:
        with pytest.raises(StorageError, match=r"model\.safetensors has 1 bytes.*Nothing was removed"):
            purge_checkpoints(folder, keep=1, files=Trial())
    assert check(find_checkpoint(folder, lambda note: None)) == 100


def sound(folder: Path) -> set[int]:
    """The steps whose checkpoints verify."""
    steps = set()
    for checkpoint in list_checkpoints(folder):
        try:
            verify(checkpoint)
            steps.add(checkpoint.step)
        except CorruptCheckpoint:
            pass
    return steps


ACTIONS = st.one_of(
    st.just(("save",)),
    st.tuples(st.just("fail"), st.integers(1, 25), st.sampled_from([before, half, after, lie])),
    st.tuples(st.just("purge"), st.integers(1, 3), st.integers(1, 8)),
    st.tuples(st.just("damage"), st.integers(0, 3)),
    st.just(("find",)),
)


@PROFILE
@given(st.lists(ACTIONS, min_size=4, max_size=12))
def test_a_sound_checkpoint_remains_after_any_faults(actions):
    with tempfile.TemporaryDirectory() as name:
        folder, step = Path(name), 1
        save(folder, step)
        for action in actions:
            valid = sound(folder)
            step += 1
            match action:
                case ["save"]:
                    save(folder, step)
                    assert step in sound(folder)
                case ["fail", call, fault]:
                    with suppress(StorageError):
                        save(folder, step, Trial(call, fault))
                    assert valid <= sound(folder) <= valid | {step}
                case ["purge", keep, call]:
                    with suppress(StorageError):
                        purge_checkpoints(folder, keep=keep, files=Trial(call, half))
                    assert not valid or max(valid) in sound(folder)
                case ["damage", which]:
                    paths = sorted(folder.glob("step-*/*"))
                    path = paths[which % len(paths)]
                    path.write_bytes(path.read_bytes()[:-1])
                case _:
                    try:
                        checkpoint = find_checkpoint(folder, lambda note: None, files=Trial())
                        assert checkpoint is not None and check(checkpoint) == max(valid)
                    except CorruptCheckpoint:
                        assert not valid


def test_a_folder_is_locked_against_others(tmp_path):
    with lock_folder(tmp_path):
        with (
            pytest.raises(
                FolderInUse, match=f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}"
            ),
            lock_folder(tmp_path),
        ):
            pass
        if sys.platform != "win32":
            assert in_child(lambda: lock_folder(tmp_path).__enter__()) == 1
    with lock_folder(tmp_path):
        pass


@posix
def test_a_lock_goes_with_its_process(tmp_path):
    ready, notify = os.pipe()

    def hold():
        with lock_folder(tmp_path):
            os.write(notify, b"!")
            signal.pause()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        hold()
        os._exit(1)
    try:
        assert os.read(ready, 1) == b"!"
        with pytest.raises(FolderInUse, match=f"process {pid} on"), lock_folder(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(notify)
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"

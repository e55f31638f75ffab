"""A file is whole or not there, whatever happens while it is written; a log is what was appended to it."""

import errno
import os
import signal
import sys
import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from isoform.checkpoint.store import lock_folder, tensor_chunks
from isoform.cli import main
from isoform.files import (
    DamagedFile,
    Files,
    Log,
    StorageError,
    hash_file,
    read_sealed,
    write_bytes,
    write_chunks,
    write_sealed,
    write_text,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, folder locks and forks are POSIX")


def test_what_is_written_is_read_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "naïve\n"):
        entry = write_text(path, text)
        assert path.read_bytes() == text.encode() and list(tmp_path.iterdir()) == [path]
        assert entry == hash_file(path)
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_until_the_end_the_old_file_is_there_and_after_a_failure_it_still_is(tmp_path):
    path = tmp_path / "a"
    write_text(path, "old")

    def half():
        yield b"half"
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_chunks(path, half())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_text(tmp_path / "folder", "new")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a", "new")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "folder"}


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    path, calls = tmp_path / "a", []
    sync = os.fsync

    def noted(handle):
        calls.append((os.fstat(handle).st_ino, path.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(path, "x")
    assert calls == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_file_that_cant_be_synced_isnt_kept_and_the_error_names_it(tmp_path, monkeypatch, number):
    path = tmp_path / "a"
    write_text(path, "old")

    def full(self, handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Files, "sync", full)
    with pytest.raises(StorageError, match=f"^{path} can't be written: {os.strerror(number)}; make room or") as caught:
        write_text(path, "new")
    assert caught.value.errno == number
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@posix
def test_nothing_is_written_through_a_link(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "a"

    def log() -> None:
        with closing(Log(path)) as file:
            file.append("new")

    for act in (lambda: write_text(path, "new"), log):
        victim.write_text("mine")
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
        act()
        assert victim.read_text() == "mine" and path.read_text() == "new" and not path.is_symlink()


@posix
def test_what_a_killed_writer_left_is_removed_but_not_what_another_one_writes(tmp_path):
    ready, notify = os.pipe()

    def slowly():
        yield b"half"
        os.write(notify, b"!")
        signal.pause()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks beside threads, and starts none
        pid = os.fork()
    if pid == 0:
        write_chunks(tmp_path / "a", slowly())
    try:
        assert os.read(ready, 1) == b"!"
        write_text(tmp_path / "b", "")
        assert len(list(tmp_path.iterdir())) == 2  # the file that is being written is left alone
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(notify)
    (tmp_path / ".mine.partial").write_text("")
    write_text(tmp_path / "b", "")
    assert {path.name for path in tmp_path.iterdir()} == {"b", ".mine.partial"}


def test_a_sealed_file_is_as_it_was_written_or_refused(tmp_path):
    path, values = tmp_path / "a.json", {"loss": 2.5, "names": ["ä"]}
    write_sealed(path, values)
    assert {**values, "sha256": read_sealed(path)["sha256"]} == read_sealed(path)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedFile, match=f"^{path} is damaged"):
            read_sealed(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedFile):
        read_sealed(path)


def test_a_log_goes_on_from_where_it_was_known_to_be(tmp_path):
    with closing(Log(tmp_path / "log")) as log:
        log.append("one\n")
        entry = log.entry
        log.append("two\nthr")
    assert entry.size == 4 and (tmp_path / "log").read_text() == "one\ntwo\nthr"
    with closing(Log(tmp_path / "log", entry.size, entry.sha256)) as log:
        log.append("TWO\n")
    assert (tmp_path / "log").read_text() == "one\nTWO\n"
    for text in ("onE\nTWO\n", "one", ""):
        (tmp_path / "log").write_text(text)
        with pytest.raises(DamagedFile, match=r"log is damaged: its first 4 bytes"):
            Log(tmp_path / "log", entry.size, entry.sha256)


def test_a_tensor_file_equals_that_of_the_library():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int16)}
    ours = b"".join(map(bytes, tensor_chunks("model", tensors, {"format": "pt"})))
    assert ours == save(tensors, metadata={"format": "pt"})
    assert np.array_equal(load(ours)["b"], tensors["b"])


RUN_FILES = [".lock", "samples.txt", "metrics.jsonl", "recipe.toml", "summary.json", "report.html", "diverged.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links for administrators only")
@pytest.mark.parametrize("name", [*RUN_FILES, "model", "model/config.json", "model/codec.json", "checkpoints"])
def test_nothing_is_written_through_links_that_a_run_directory_holds(name, tmp_path, capsys):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    folder.mkdir()
    if name in ("model", "checkpoints"):
        victim.mkdir()
    else:
        victim.write_text("mine")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(victim)
    assert main(["train", "reverse-decoder", "--training.steps", "1", "--out", str(folder), "-q"]) == 65
    assert f"{folder / name} is a link" in capsys.readouterr().err
    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["hard link", "pipe", "dangling link"])
def test_what_is_appended_to_is_a_plain_file_of_one_name(kind, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / ".lock"
    if kind == "hard link":
        victim.write_text("mine")
        path.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim)
    with pytest.raises(ValueError, match="nothing is written through it"), lock_folder(tmp_path):
        pass
    assert victim.exists() == (kind == "hard link") and (kind != "hard link" or victim.read_text() == "mine")


@pytest.mark.parametrize("path", ["package:torch/../../etc", "package:torch//etc", "package:torch/a/../../.."])
def test_a_model_inside_a_package_stays_inside(path, capsys):
    assert main(["generate", path]) == 65
    assert "leads out of the package" in capsys.readouterr().err

"""A file is whole or not there, whatever happens while it is written."""

import os

import pytest

from isoform.files import atomic_file, write_bytes, write_text


def test_what_is_written_is_read_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "naïve\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode() and list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_until_the_end_the_old_file_is_there_and_after_a_failure_it_still_is(tmp_path):
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
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


def test_a_file_that_cant_be_synced_isnt_kept(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

"""Shared parts of the tests: one thread, a cache of their own, and the data folder, if there is one."""

import gc
import os
import signal
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # here and in what tests start: no number and no time depends on the cores
import torch  # which reads that once

import forks


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing a test does may come from, or stay in, the user's cache."""
    os.environ["ISOFORM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage():
    """Every training collects garbage first: it isn't looked for in what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Training flushes them to zero in the whole process; hypothesis wants them back."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def one_thread():
    """A command sets the threads of its process; a process forked after two were used would wait for ever."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def hangups():
    """What a test starts hears of hangups, even where the suite itself ignores them (nohup)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def forked(monkeypatch):
    """Local engines fork the commands that they would start; not with ISOFORM_ALL, nor on Windows."""
    if not os.environ.get("ISOFORM_ALL") and forks.CONTEXT:
        monkeypatch.setattr("isoform.scaling.engines.launch", forks.Fork)


def data_file(name: str) -> Path:
    """A file of the data folder ISOFORM_DATA: skipped where it is absent, a failure in CI."""
    root = os.environ.get("ISOFORM_DATA")
    path = Path(root or "nowhere") / name
    if path.exists():
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{name} is missing from ISOFORM_DATA")
    pytest.skip(f"needs ISOFORM_DATA with {name}")
    raise AssertionError


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, 1,115,394 bytes."""
    return data_file("tinyshakespeare/input.txt")

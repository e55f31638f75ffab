"""Shared parts of the tests: one thread, a cache of their own, and the data folder, if there is one."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing a test does may come from, or stay in, the user's cache."""
    os.environ["ISOFORM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Training flushes them to zero in the whole process; hypothesis wants them back."""
    yield
    torch.set_flush_denormal(False)


def data_file(name: str) -> Path:
    """A file of the data folder ISOFORM_DATA: skipped where it is absent, a failure in CI."""
    root = os.environ.get("ISOFORM_DATA")
    path = Path(root or ".") / name
    if root and path.exists():
        return path
    if root and os.environ.get("CI"):
        pytest.fail(f"{name} is missing from ISOFORM_DATA")
    pytest.skip(f"needs ISOFORM_DATA with {name}")
    raise AssertionError


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, 1,115,394 bytes."""
    return data_file("tinyshakespeare/input.txt")

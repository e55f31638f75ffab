"""The order of rows: pure functions of seed and epoch, so that any row can be reached directly.

All randomness is Philox (Salmon et al. 2011), keyed by (seed, epoch) and counted from (purpose, sample):
streams that never overlap, without a state to save.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

Purpose = Literal["order", "offset", "plan", "view", "mixture", "sample"]
PURPOSES: dict[Purpose, int] = {"order": 0, "offset": 1, "plan": 2, "view": 3, "mixture": 4, "sample": 5}


def generator(seed: int, epoch: int, purpose: Purpose, sample: int = 0) -> np.random.Generator:
    """The random number generator of one purpose, in one epoch, for one sample."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    counter = np.array([0, 0, sample, PURPOSES[purpose]], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of 0 .. n-1 in which an epoch visits its rows; read-only, the last two are cached."""
    order = generator(seed, epoch, "order").permutation(n)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def grouped_order(seed: int, epoch: int, n: int, group_size: int) -> np.ndarray:
    """The order in which an epoch visits 0 .. n-1 with consecutive groups shuffled as units; read-only."""
    groups = epoch_order(seed, epoch, -(-n // group_size))
    order = (groups[:, None] * group_size + np.arange(group_size)).flatten()
    order = order[order < n]
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def stream_offset(seed: int, epoch: int, length: int) -> int:
    """The token at which an epoch begins to cut a stream into rows: 0 .. length - 1."""
    return int(generator(seed, epoch, "offset").integers(length))


def locate(cursor: int, rows_per_epoch: int) -> tuple[int, int]:
    """Global row number to (epoch, row within it)."""
    return divmod(cursor, rows_per_epoch)

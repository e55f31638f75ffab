"""Results of a measure item by item, and the variance that the choice of test items gives to a score.

The items of a run are an array of one of three forms, from whose column sums its score follows:

    (n,)    accuracy: 1 for an item that is right, else 0; the score is the mean
    (n, 2)  accuracy over tokens: how many targets of an item are right, and how many there are; the score is the ratio
            of the sums
    (n, 6)  BLEU: lengths of the answer and the reference in tokens, and matching n-grams of orders 1 .. 4; the score is
            corpus BLEU, 0 .. 100
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

ORDERS = 4
"""Of BLEU's n-grams."""
BLEU_COLUMNS = 2 + ORDERS
HEADER = struct.Struct("<BIB?")
"""Bytes of a value, number of items, of columns (0: none), and whether there are clusters."""
MAX_BYTES = 1 << 23
"""Of unpacked items."""
MAX_WEIGHTS = 1 << 23
"""Resampled weights held at once."""
MAX_CACHED = 1 << 21
"""Resampled weights that are kept for the next number."""


def pack(items: np.ndarray, clusters: np.ndarray | None = None) -> str:
    """Items as compact text, perhaps with their clusters (n,), equal values of which mark items that share a source.

    Raises ValueError for arrays of other forms, or too large ones.
    """
    items = _checked(np.asarray(items))
    columns = [items] if items.ndim == 1 else [*items.T]
    if clusters is not None:
        columns.append(_groups(clusters, len(items)))
    values = np.stack(columns)  # columns compress better than rows
    size = next((n for n in (1, 2, 4) if values.max() < 1 << 8 * n), None)
    if size is None or values.size * size > MAX_BYTES:
        raise ValueError(f"items of shape {items.shape} up to {values.max()} exceed {MAX_BYTES} bytes, or 4 of a value")
    header = HEADER.pack(size, len(items), items.shape[1] if items.ndim == 2 else 0, clusters is not None)
    return base64.b64encode(zlib.compress(header + values.astype(f"<u{size}").tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The items of a text by `pack`, as int64. Raises ValueError for any other text, of which no more than MAX_BYTES
    are decompressed."""
    return _unpacked(text)[0]


def clusters_of(text: str) -> np.ndarray | None:
    """The number of each item's cluster in a text by `pack`; None without. Raises what `unpack` raises."""
    return _unpacked(text)[1]


def _unpacked(text: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        stream = zlib.decompressobj()
        header = stream.decompress(base64.b64decode(text, validate=True), HEADER.size)
        size, num_items, num_columns, has_clusters = HEADER.unpack(header)
        shape = max(1, num_columns) + has_clusters, num_items
        num_bytes = size * math.prod(shape)
        if size not in (1, 2, 4) or num_bytes > MAX_BYTES:
            raise ValueError(f"{num_items} x {num_columns} values of {size} bytes")
        data = stream.decompress(stream.unconsumed_tail, num_bytes + 1)
        if len(data) != num_bytes or not stream.eof or stream.unused_data:
            raise ValueError(f"not {num_bytes} bytes")
        values = np.frombuffer(data, f"<u{size}").astype(np.int64).reshape(shape)
        items = values[:num_columns].T if num_columns else values[0]
        return _checked(items), _groups(values[-1], num_items) if has_clusters else None
    except (ValueError, binascii.Error, zlib.error, struct.error) as error:
        raise ValueError(f"the items of a measure are damaged ({error}); measure the run again") from None


def _checked(items: np.ndarray) -> np.ndarray:
    """The items. Raises ValueError unless they are of one of the three forms."""
    is_whole = np.issubdtype(items.dtype, np.integer) or items.dtype == bool
    if not is_whole or not items.size or not items.ndim or items.shape[1:] not in ((), (2,), (BLEU_COLUMNS,)):
        forms = f"(n,), (n, 2) or (n, {BLEU_COLUMNS})"
        raise ValueError(f"items are whole numbers in the shape {forms}, not {items.dtype} in {items.shape}")
    items = items.astype(np.int64)
    right, number = np.split(_statistics(items)[:, -2 * ORDERS :], 2, axis=1)
    if (items < 0).any() or (right > number).any():
        raise ValueError("the number of what is right in an item is below 0, or above that of all")
    return items


def score(items: np.ndarray) -> float:
    """The score of all items: a share, or BLEU in points."""
    return float(_scores(_statistics(_checked(np.asarray(items))).sum(0)))


def sampling_variance(
    arms: Sequence[Sequence[np.ndarray]],
    weights: Sequence[float] = (1.0, -1.0),
    clusters: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> float:
    """The variance, over test sets of this size, of the weighted sum of the arms' mean scores, by default that of the
    difference of two.

    arms: the items of each run of each arm; all runs have the same items in the same order. clusters (n,): equal
    values mark items that share a source, such as sentences of one text; they are drawn together. It is a paired
    bootstrap (Koehn 2004, "Statistical significance tests for machine translation evaluation"): all runs of all arms
    are scored on the same resampled items, so that what makes an item hard for all of them cancels. The variance is
    multiplied by n / (n - 1), n the number of items or clusters, which makes it unbiased for means (Efron and
    Tibshirani 1993); that of plain accuracies is computed in closed form.

    Runs and items are crossed: a score varies by run, by item, and by their interaction (Owen 2007, "The pigeonhole
    bootstrap"; Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"). With S runs of an
    arm and n items the resampling counts items / n + interaction / (S n). The variance between runs, divided by S,
    counts runs / S + interaction / (S n), so that the sum of both would count the interaction twice: from plain
    accuracies it is taken out here; for BLEU, where it is small beside the items, it is left in.

    Raises ValueError for runs of different items, and for fewer than two items or clusters.
    """
    arms = [[_checked(items) for items in arm] for arm in arms]
    _check_same([items for arm in arms for items in arm])
    if clusters is None and all(items.ndim == 1 for arm in arms for items in arm):
        by_item = _weighted([np.stack(arm, axis=1) for arm in arms], weights)
        return max(0.0, float((by_item.var(ddof=1) - _interaction(arms, weights)) / len(by_item)))
    groups = np.arange(len(arms[0][0])) if clusters is None else _groups(clusters, len(arms[0][0]))
    sums = [[_by_group(_statistics(items), groups) for items in arm] for arm in arms]
    scores = [
        _weighted([np.stack([_scores(resampled @ of_run) for of_run in arm], axis=1) for arm in sums], weights)
        for resampled in _resamples(int(groups.max()) + 1, resamples, seed)
    ]
    variance = float(np.concatenate(scores).var(ddof=1)) * (groups.max() + 1) / groups.max()
    if not math.isfinite(variance):
        raise ValueError("too few of the items have targets to estimate a variance from them")
    return variance


def unpaired_variance(shares: Sequence[float], weights: Sequence[float], num_items: int) -> float:
    """The binomial variance of a weighted sum of shares of items, where the results by item are unknown: p (1 - p) / n
    of each.

    It is that of independent items for each arm and each run, so larger than that of `sampling_variance` where the same
    items are hard for all arms. Raises ValueError for anything but shares.
    """
    if num_items < 1 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{[*shares]} of {num_items} items are not shares; only shares have a binomial variance")
    return sum(weight**2 * share * (1 - share) for share, weight in zip(shares, weights, strict=True)) / num_items


def _check_same(runs: Sequence[np.ndarray]) -> None:
    """Raises ValueError unless all runs have the same items, as far as can be seen: equally many, and sentences with
    references of the same lengths."""
    numbers = sorted({len(items) for items in runs})
    if len(numbers) != 1:
        raise ValueError(f"the runs have different test items: {numbers} of them; measure all on the same data")
    if numbers[0] < 2:
        raise ValueError("one item has no variance; measure on more")
    lengths = [items[:, 1] for items in runs if items.ndim == 2 and items.shape[1] == BLEU_COLUMNS]
    if not all(np.array_equal(each, lengths[0]) for each in lengths):
        raise ValueError("the runs have different test items: the references differ; measure all on the same data")


def _weighted(arms: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted sum of the arms' means over runs, from results (n, runs) of each."""
    means = np.stack([results.mean(axis=1) for results in arms], axis=1)
    return means @ np.asarray(weights, np.float64)


def _interaction(arms: Sequence[Sequence[np.ndarray]], weights: Sequence[float]) -> float:
    """The variance that runs and items together add to an item's weighted mean, each arm's by its own runs."""
    total = 0.0
    for weight, arm in zip(weights, arms, strict=True):
        if len(arm) > 1:
            table = np.stack(arm).astype(np.float64)
            residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
            squares = (residuals**2).sum() / ((len(arm) - 1) * (table.shape[1] - 1))
            total += weight**2 * squares / len(arm)
    return total


def _groups(clusters: np.ndarray, num_items: int) -> np.ndarray:
    """The number of each item's cluster, from 0."""
    if np.shape(clusters) != (num_items,):
        raise ValueError(f"clusters of shape {np.shape(clusters)} for {num_items} items; give one for each")
    groups = np.unique(clusters, return_inverse=True)[1]
    if not groups.any():
        raise ValueError("all items are of one cluster, which has no variance; measure on more")
    return groups


def _by_group(statistics: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The sums (groups, columns) of items' statistics (n, columns)."""
    return np.stack([np.bincount(groups, weights=column) for column in statistics.T], axis=1)


def _resamples(number: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of a number of groups is in each resample, as blocks of rows."""
    if number * resamples <= MAX_CACHED:
        yield _cached_resamples(number, resamples, seed)
        return
    rng, rows = np.random.default_rng(seed), max(1, MAX_WEIGHTS // number)
    for start in range(0, resamples, rows):
        yield _drawn(number, min(rows, resamples - start), rng)


@lru_cache(maxsize=2)
def _cached_resamples(number: int, resamples: int, seed: int) -> np.ndarray:
    """Drawing them takes ten times as long as using them, and a claim has many numbers over the same items."""
    return _drawn(number, resamples, np.random.default_rng(seed))


def _drawn(number: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(number, np.full(number, 1 / number), size=rows).astype(np.float64)


def _statistics(items: np.ndarray) -> np.ndarray:
    """Columns from whose sums the score follows; of BLEU, the numbers of n-grams in the answer are added."""
    if items.ndim == 1:
        return np.stack([items, np.ones_like(items)], axis=1)
    if items.shape[1] == 2:
        return items
    return np.concatenate([items, np.maximum(0, items[:, :1] - np.arange(ORDERS))], axis=1)


def _scores(sums: np.ndarray) -> np.ndarray:
    """The scores (...) of sums (..., columns) of statistics."""
    if sums.shape[-1] > 2:
        return _bleu(sums)
    with np.errstate(invalid="ignore"):  # no target at all: NaN
        return sums[..., 0] / sums[..., 1]


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU (Papineni et al. 2002) in points, smoothed as by sacrebleu's default: an order without a match
    counts as half a match, the next one as a quarter, and so on (Chen and Cherry 2014, method 3)."""
    length, reference, matches, totals = np.split(sums.astype(np.float64), (1, 2, 2 + ORDERS), axis=-1)
    is_empty = matches == 0
    precisions = np.where(is_empty, 0.5 ** is_empty.cumsum(-1), matches) / np.maximum(totals, 1)
    brevity = np.minimum(0, 1 - reference / np.maximum(length, 1))[..., 0]
    points = 100 * np.exp(brevity + np.log(precisions).mean(-1))
    return np.where((totals > 0).all(-1) & ~is_empty.all(-1), points, 0.0)

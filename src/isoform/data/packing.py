"""Packing: several whole documents in a row, planned from their lengths alone, before any is read.

Best-fit decreasing within blocks of shuffled samples (Ding et al. 2024, "Fewer Truncations Improve
Language Modeling"): nearly no padding, and a plan that depends on lengths and seed alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isoform.data.order import generator

BLOCK = 2048  # samples planned jointly: larger blocks fill rows better, smaller ones shuffle better


@dataclass(frozen=True, eq=False)
class Samples:
    """What is packed: tokens start .. stop of a record, and how much of a row's budgets they need.

    records, starts, stops (n,); lengths (n, 2), of the inputs and of the source; dropped: the number of records
    left out because they don't fit a row or have nothing to predict, first_dropped: the first of them; num_lost: the
    tokens of those, and of the last parts of cut records that are too short to use; num_cut: those at the ends of long
    conversations.
    """

    records: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    lengths: np.ndarray
    dropped: int
    num_lost: int = 0
    first_dropped: int = -1
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.records)

    @property
    def has_source(self) -> bool:
        """Whether an encoder reads part of any sample."""
        return bool(self.lengths[:, 1].any())


def cut_records(
    lengths: np.ndarray,
    prefixes: np.ndarray,
    measure: Callable[[int, int], tuple[int, int]],
    budgets: tuple[int, int],
    *,
    can_cut: bool = True,
    overlap: int = 1,
) -> Samples:
    """Samples that fit the budgets (inputs, source), from records (n,) of these lengths and prefixes, in tokens.

    measure(length, prefix): what a record needs of the two. A record without a prefix that is too long is cut, if
    `can_cut`, into parts that overlap by `overlap` tokens, so that each of its targets counts once; one with a prefix
    is dropped.
    """
    longest = _longest(measure, budgets, int(lengths.max(initial=0)))
    stride = longest - overlap if can_cut else 0
    needs_of: dict[tuple[int, int], tuple[int, int]] = {}
    parts: list[tuple[int, int, int, int, int]] = []
    dropped: list[int] = []
    num_lost = 0
    for record, (length, prefix) in enumerate(zip(lengths.tolist(), prefixes.tolist(), strict=True)):
        if (length, prefix) not in needs_of:
            needs_of[length, prefix] = measure(length, prefix)
        needs = needs_of[length, prefix]
        if needs[0] < 1:
            dropped.append(record)
        elif needs[0] <= budgets[0] and needs[1] <= budgets[1]:
            parts.append((record, 0, length, *needs))
        elif prefix or stride < 1:
            dropped.append(record)
        else:
            for start in range(0, length - overlap, stride):
                stop = min(start + longest, length)
                needs = measure(stop - start, 0)
                if needs[0] < 1:
                    num_lost += stop - start
                else:
                    parts.append((record, start, stop, *needs))
    table = np.array(parts, np.int64).reshape(-1, 5)
    num_lost += int(lengths[dropped].sum())
    first = dropped[0] if dropped else -1
    return Samples(table[:, 0], table[:, 1], table[:, 2], table[:, 3:], len(dropped), num_lost, first)


def only_answers(samples: Samples, is_target: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Samples:
    """The samples in which the assistant says something. Of a conversation that is too long for a row only the
    beginning is one: what follows would be read without what it answers.

    is_target (N,): of all tokens; starts, lengths (n,): of the records among them.
    """
    counts = np.concatenate([[0], np.cumsum(is_target)])
    first = starts[samples.records]
    has_answer = counts[first + samples.stops] > counts[first + samples.starts + 1]
    is_talk = (counts[starts + lengths] - counts[starts] < lengths)[samples.records]
    keeps = has_answer & (~is_talk | (samples.starts == 0))
    lost = np.setdiff1d(samples.records, samples.records[keeps])
    sizes = (samples.stops - samples.starts)[~keeps]
    is_lost = np.isin(samples.records[~keeps], lost)
    firsts = [number for number in (samples.first_dropped, *lost[:1].tolist()) if number >= 0]
    return Samples(
        samples.records[keeps],
        samples.starts[keeps],
        samples.stops[keeps],
        samples.lengths[keeps],
        dropped=samples.dropped + len(lost),
        num_lost=samples.num_lost + int(sizes[is_lost].sum()),
        first_dropped=min(firsts, default=-1),
        num_cut=int(sizes[~is_lost].sum()),
    )


def _longest(measure: Callable[[int, int], tuple[int, int]], budgets: tuple[int, int], most: int) -> int:
    """The longest record without a prefix that fits, of at most `most` tokens; an Example has at most one token less
    than its Encoding, or is divided between both budgets."""
    for length in range(min(sum(budgets) + 1, most), 0, -1):
        needs = measure(length, 0)
        if needs[0] <= budgets[0] and needs[1] <= budgets[1]:
            return length
    return 0


def plan_rows(lengths: np.ndarray, budgets: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Rows of samples with one or two lengths, (n,) or (n, 2): each sample in exactly one row, no budget exceeded.

    Raises ValueError for a sample that fits no row.
    """
    needs = np.zeros((len(lengths), 2), np.int64)
    needs[:, : len(budgets)] = np.asarray(lengths).reshape(len(lengths), len(budgets))
    room = (budgets[0], budgets[1] if len(budgets) > 1 else 0)
    too_long = np.flatnonzero((needs > room).any(1))
    if len(too_long):
        sample = int(too_long[0])
        raise ValueError(f"sample {sample} needs {needs[sample].tolist()} but a row has {list(room)}; cut or drop it")
    share = (needs / np.maximum(room, 1)).max(1)
    order = generator(seed, 0, "plan").permutation(len(needs))
    rows: list[tuple[int, ...]] = []
    for begin in range(0, len(order), BLOCK):
        block = order[begin : begin + BLOCK]
        block = block[np.argsort(-share[block], kind="stable")]
        rows += _best_fit(block.tolist(), needs[block].tolist(), room)
    return rows


def _best_fit(samples: list[int], needs: list[list[int]], room: tuple[int, int]) -> list[tuple[int, ...]]:
    """Each sample in the fullest row that it fits."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int, int]] = []  # (room for inputs, room for source, row), sorted
    least = min(first for first, _ in needs), min(second for _, second in needs)
    for sample, (first, second) in zip(samples, needs, strict=True):
        index = bisect_left(open_rows, (first,))
        while index < len(open_rows) and open_rows[index][1] < second:
            index += 1
        if index < len(open_rows):
            room_first, room_second, row = open_rows.pop(index)
        else:
            room_first, room_second, row = *room, len(rows)
            rows.append([])
        rows[row].append(sample)
        remaining = room_first - first, room_second - second
        if remaining[0] >= least[0] and remaining[1] >= least[1]:
            insort(open_rows, (*remaining, row))
    return [tuple(row) for row in rows]


def plan_buckets(
    lengths: np.ndarray, budgets: tuple[int, int], seed: int, rows_per_step: int = 1
) -> list[tuple[int, ...]]:
    """Buckets of samples with similar lengths (n, 2), from the shortest to the longest: as many samples as fit the
    budgets when padded to the bucket's longest. Some buckets are halved to make their number a multiple of
    `rows_per_step`, so that no step mixes two groups."""
    order = generator(seed, 0, "plan").permutation(len(lengths))
    inputs, sources = lengths[order].T
    share = np.maximum(inputs / budgets[0], sources / budgets[1])
    order = order[np.lexsort((sources, inputs, share))]
    rows: list[tuple[int, ...]] = []
    row: list[int] = []
    longest = np.zeros(2, np.int64)
    for sample, needs in zip(order.tolist(), lengths[order], strict=True):
        padded = np.maximum(longest, needs)
        if row and ((len(row) + 1) * padded > budgets).any():
            rows.append(tuple(row))
            row, padded = [], needs
        row.append(sample)
        longest = padded
    rows.append(tuple(row))
    halved = sorted(range(len(rows)), key=lambda i: -len(rows[i]))[: -len(rows) % rows_per_step]
    for i in sorted(halved, reverse=True):
        if len(rows[i]) > 1:
            middle = len(rows[i]) // 2
            rows[i : i + 1] = [rows[i][:middle], rows[i][middle:]]
    return rows

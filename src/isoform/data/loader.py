"""Rows by number. The cursor of a run is one integer, the global row number, independent of world size and workers.

A loader has no state: rows(first, count) is a pure function, so any row can be read directly. NumPy until the Batch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from isoform.batch import Batch, Example, Tokens, collate, concatenate, plain_coordinates
from isoform.codecs.codec import Codec, TextCodec
from isoform.data.config import Data
from isoform.data.order import epoch_order, generator, grouped_order, locate, stream_offset
from isoform.data.packing import Samples, cut_records, only_answers, plan_buckets, plan_rows
from isoform.data.tokens import TokenStore
from isoform.mask import Causal, Coordinates
from isoform.objectives.views import View

VALIDATION_ROW = 4096  # tokens; attention among packed documents takes time and memory by the square of a row


class Loader(ABC):
    """Training rows by their global number: epoch e begins at row e * rows_per_epoch."""

    rows_per_epoch: int
    dropped: int = 0
    """The number of records left out because they fit no row."""
    shapes: Mapping[tuple[int, int, int], int]
    """The number of rows of an epoch by shape: (samples, tokens, source tokens)."""

    @abstractmethod
    def rows(self, first: int, count: int) -> Batch:
        """Rows first .. first + count - 1, across epoch boundaries: (count, T), or for buckets (n, T), a record per
        row."""

    @abstractmethod
    def weight(self, first: int, count: int) -> float:
        """The sum of those rows' loss weights, which normalises the loss over micro-batches."""


class StreamLoader(Loader):
    """All records concatenated and cut every T tokens; every token predicts the next, so no view is needed.

    Row r of epoch e holds ids[o + p T : o + (p + 1) T + 1], p the epoch's permutation of the rows and o its
    offset, 0 .. T - 1. The unused tokens at the two ends differ between epochs.

    document_starts: where documents begin that don't attend to each other (None: attention crosses documents).
    """

    def __init__(
        self, ids: np.ndarray, context_length: int, seed: int, document_starts: np.ndarray | None = None
    ) -> None:
        if len(ids) <= context_length:
            raise ValueError(
                f"the training text has {len(ids)} tokens, too few for one row of {context_length} and its last "
                f"target; set data.row_length={max(1, len(ids) - 1)} or less, or give a longer text"
            )
        self.ids, self.context_length, self.seed, self.document_starts = ids, context_length, seed, document_starts
        self.rows_per_epoch = max(1, (len(ids) - context_length) // context_length)
        self.shapes = {(1, context_length, 0): self.rows_per_epoch}
        self.num_offsets = min(context_length, len(ids) - self.rows_per_epoch * context_length)
        self._window = np.arange(context_length + 1)

    def rows(self, first: int, count: int) -> Batch:
        positions = self._starts(first, count)[:, None] + self._window
        batch = _next_token_batch(self.ids[positions], np.ones((count, self.context_length), np.float32))
        starts = self.document_starts
        return batch if starts is None else _separate_documents(batch, positions, starts)

    def _starts(self, first: int, count: int) -> np.ndarray:
        """The index of each row's first token among the ids."""
        starts = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, row = locate(first + filled, self.rows_per_epoch)
            order = epoch_order(self.seed, epoch, self.rows_per_epoch)[row : row + count - filled]
            offset = stream_offset(self.seed, epoch, self.num_offsets)
            starts[filled : filled + len(order)] = offset + order * self.context_length
            filled += len(order)
        return starts

    def weight(self, first: int, count: int) -> float:
        if self.document_starts is None:
            return float(count * self.context_length)
        positions = self._starts(first, count)[:, None] + self._window
        return float(_same_document(positions, self.document_starts).sum())


class RecordLoader(Loader):
    """Rows of whole records under a view; which records share a row is planned once per seed.

    A view's random numbers are a function of (seed, epoch, sample).
    """

    plan: Sequence[tuple[int, ...]]

    def __init__(self, tokens: TokenStore, view: View, context_length: int, source_length: int, seed: int) -> None:
        self.tokens, self.view, self.seed = tokens, view, seed
        _check_records(tokens, view)
        self.samples = _cut(tokens, view, context_length, source_length, "training records")
        self.dropped = self.samples.dropped

    def weight(self, first: int, count: int) -> float:
        return _weight([e for number in range(first, first + count) for e in self.examples(number)])

    @abstractmethod
    def plan_index(self, epoch: int, row: int) -> int:
        """The index in the plan of an epoch's row."""

    def examples(self, number: int) -> list[Example]:
        """The Examples of one row."""
        epoch, row = locate(number, self.rows_per_epoch)
        planned = self.plan[self.plan_index(epoch, row)]
        return [_example(self.tokens, self.samples, self.view, i, self.seed, epoch) for i in planned]


class PackedLoader(RecordLoader):
    """Several records in a row, which don't attend to each other."""

    def __init__(self, tokens: TokenStore, view: View, context_length: int, source_length: int, seed: int) -> None:
        super().__init__(tokens, view, context_length, source_length, seed)
        self.plan = plan_rows(self.samples.lengths, (context_length, source_length), seed)
        self.rows_per_epoch = len(self.plan)
        self.lengths = (context_length, source_length if self.samples.has_source else None)
        self.shapes = {(1, context_length, self.lengths[1] or 0): self.rows_per_epoch}

    def rows(self, first: int, count: int) -> Batch:
        return collate([self.examples(number) for number in range(first, first + count)], *self.lengths)

    def plan_index(self, epoch: int, row: int) -> int:
        return int(epoch_order(self.seed, epoch, self.rows_per_epoch)[row])


class BucketedLoader(RecordLoader):
    """Buckets of records with similar lengths, padded to the longest: a row of this loader is a bucket of at most
    context_length tokens, which is one row of a Batch per record.

    rows_per_step: the number of buckets in a step, which are of similar length, too.
    """

    def __init__(
        self, tokens: TokenStore, view: View, context_length: int, source_length: int, seed: int, rows_per_step: int = 1
    ) -> None:
        super().__init__(tokens, view, context_length, source_length, seed)
        self.plan = plan_buckets(self.samples.lengths, (context_length, source_length), seed, rows_per_step)
        self.rows_per_epoch, self.rows_per_step = len(self.plan), rows_per_step
        longest = [self.samples.lengths[list(row)].max(0) for row in self.plan]
        shapes: Counter[tuple[int, int, int]] = Counter()
        for first in range(0, len(self.plan), rows_per_step):
            length, source = np.max(longest[first : first + rows_per_step], axis=0).tolist()
            shapes.update((len(row), length, source) for row in self.plan[first : first + rows_per_step])
        self.shapes = shapes

    def rows(self, first: int, count: int) -> Batch:
        examples = [[e] for number in range(first, first + count) for e in self.examples(number)]
        source = max(len(e.source) if e.source is not None else 0 for (e,) in examples)
        return collate(examples, max(len(e.inputs) for (e,) in examples), source or None)

    def plan_index(self, epoch: int, row: int) -> int:
        return int(grouped_order(self.seed, epoch, self.rows_per_epoch, self.rows_per_step)[row])


class MixtureLoader(Loader):
    """Interleaved rows of several loaders: each block of rows has a fixed number from each loader, in an order drawn
    per block, so that any row can be read directly. The rows of an epoch are the sum of the loaders'."""

    BLOCK = 1024

    def __init__(self, loaders: Sequence[Loader], weights: Sequence[float], seed: int) -> None:
        self.loaders, self.seed = loaders, seed
        self.rows_per_epoch = sum(loader.rows_per_epoch for loader in loaders)
        self.dropped = sum(loader.dropped for loader in loaders)
        self.shapes = sum((Counter(loader.shapes) for loader in loaders), Counter())
        share = np.asarray(weights, np.float64) / sum(weights) * self.BLOCK
        counts = np.floor(share).astype(np.int64)
        counts[np.argsort(counts - share, kind="stable")[: self.BLOCK - counts.sum()]] += 1
        if not counts.all():
            least = int(np.argmin(counts))
            raise ValueError(
                f"data.mixture: source {least} would have less than one row in {self.BLOCK}; raise its weight or "
                f"data.temperature"
            )
        self.counts = counts

    def rows(self, first: int, count: int) -> Batch:
        return concatenate([self.loaders[loader].rows(row, 1) for loader, row in self.assignments(first, count)])

    def weight(self, first: int, count: int) -> float:
        return sum(self.loaders[loader].weight(row, 1) for loader, row in self.assignments(first, count))

    def assignments(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The loader of each row, and the row's number in that loader."""
        for number in range(first, first + count):
            block, index = divmod(number, self.BLOCK)
            loaders = np.repeat(np.arange(len(self.counts)), self.counts)
            order = generator(self.seed, block, "mixture").permutation(loaders)
            loader = int(order[index])
            yield loader, int(block * self.counts[loader] + (order[:index] == loader).sum())


def build_loader(
    config: Data,
    tokens: TokenStore,
    view: View,
    *,
    context_length: int,
    source_length: int | None = None,
    seed: int,
    rows_per_step: int = 1,
) -> Loader:
    """The loader of a split, in rows of context_length tokens (an encoder's: source_length; default: the same).

    Raises ValueError for a text shorter than a row, for records none of which fits one, and for records or objectives
    that can't be streamed; warns about records that are left out.
    """
    source_length = source_length or context_length
    match config.rows:
        case "stream":
            _check_stream(tokens, view)
            return StreamLoader(tokens.ids, context_length, seed)
        case "split":
            _check_stream(tokens, view)
            return StreamLoader(tokens.ids, context_length, seed, tokens.starts)
        case "packed":
            return PackedLoader(tokens, view, context_length, source_length, seed)
        case "bucketed":
            return BucketedLoader(tokens, view, context_length, source_length, seed, rows_per_step)
        case _:
            raise ValueError(f"data.rows={config.rows!r} is none of stream, split, packed and bucketed; set one")


class ValidationRows:
    """A whole split, each target of which counts once; what can't be scored is refused here, not when it is read.

    stream: non-overlapping windows of context_length; split: the same, without the first token of each document; packed
    and bucketed: each sample once, in packed rows, with seed 0. A batch is as long as its longest row, and packed rows
    end at VALIDATION_ROW tokens unless a sample is longer, so that the time is that of the texts, however long the
    context.
    """

    def __init__(
        self,
        config: Data,
        tokens: TokenStore,
        codec: Codec,
        view: View,
        *,
        context_length: int,
        source_length: int | None = None,
    ) -> None:
        """Raises ValueError for records that the objective can't read, and if there is no target."""
        self.tokens, self.codec, self.view, self.context_length = tokens, codec, view, context_length
        self.document_starts = tokens.starts if config.rows == "split" else None
        self.plan: Sequence[tuple[int, ...]] | None = None
        if config.keeps_records:
            _check_records(tokens, view)
            budgets = context_length, source_length or context_length
            self.samples = _cut(tokens, view, *budgets, "validation records")
            room = np.minimum(budgets, np.maximum(self.samples.lengths.max(0), VALIDATION_ROW))
            self.plan = plan_rows(self.samples.lengths, room.tolist(), seed=0)
        else:
            _check_stream(tokens, view)
        if not any(bool(batch.loss_weights.any()) for batch, _ in self.batches(1)):
            raise ValueError(
                f"the validation data has {len(tokens.ids)} tokens and none of them to predict, the first record being "
                f"{tokens.location(0)}; give a longer text"
            )

    @property
    def records(self) -> np.ndarray | None:
        """The number of each document's record, in the order of the rows; None for windows of a stream."""
        return None if self.plan is None else self.samples.records[np.concatenate(self.plan)]

    def batches(self, batch_rows: int) -> Iterator[tuple[Batch, int]]:
        """All rows in batches of up to batch_rows, each with the number of UTF-8 bytes of its targets (0 if they aren't
        text)."""
        for batch in self._windows(batch_rows) if self.plan is None else self._packed(self.plan, batch_rows):
            num_bytes = 0
            if isinstance(self.codec, TextCodec) and self.view.is_text:
                num_bytes = int(self.codec.token_bytes[batch.targets[batch.loss_weights > 0].numpy()].sum())
            yield batch, num_bytes

    def _windows(self, batch_rows: int) -> Iterator[Batch]:
        ids, length = self.tokens.ids, self.context_length
        num_windows = -(-(len(ids) - 1) // length)
        for first in range(0, num_windows, batch_rows):
            starts = np.arange(first, min(first + batch_rows, num_windows)) * length
            positions = starts[:, None] + np.arange(min(length, len(ids) - 1 - first * length) + 1)
            weights = (positions[:, 1:] < len(ids)).astype(np.float32)
            batch = _next_token_batch(ids[np.minimum(positions, len(ids) - 1)], weights)
            starts = self.document_starts
            yield batch if starts is None else _separate_documents(batch, positions, starts)

    def _packed(self, plan: Sequence[tuple[int, ...]], batch_rows: int) -> Iterator[Batch]:
        samples = self.samples
        for first in range(0, len(plan), batch_rows):
            planned = plan[first : first + batch_rows]
            length, source = np.max([samples.lengths[list(row)].sum(0) for row in planned], axis=0).tolist()
            rows = [[_example(self.tokens, samples, self.view, i, 0, 0) for i in row] for row in planned]
            yield collate(rows, length, source if samples.has_source else None)


def _next_token_batch(block: np.ndarray, weights: np.ndarray) -> Batch:
    """A Batch in which every token predicts the next, from rows of T + 1 ids."""
    inputs = torch.from_numpy(block[:, :-1].astype(np.int64))
    targets = torch.from_numpy(block[:, 1:].astype(np.int64))
    tokens = Tokens(inputs, plain_coordinates(*inputs.shape))
    return Batch(tokens, targets, torch.from_numpy(weights))


def _same_document(positions: np.ndarray, document_starts: np.ndarray) -> np.ndarray:
    """Whether the next token is in the same document (B, T), for positions (B, T + 1) in the stream."""
    document = np.searchsorted(document_starts, positions, side="right")
    return document[:, 1:] == document[:, :-1]


def _separate_documents(batch: Batch, positions: np.ndarray, document_starts: np.ndarray) -> Batch:
    """Rows of a stream, at positions (B, T + 1), whose documents don't attend to each other; no document's first token
    is a target."""
    weights = batch.loss_weights * torch.from_numpy(_same_document(positions, document_starts))
    document = np.searchsorted(document_starts, positions[:, :-1], side="right") - 1
    in_row = document - document[:, :1]
    if not in_row.any():
        return replace(batch, loss_weights=weights)
    index = positions[:, :-1] - np.maximum(document_starts[document], positions[:, :1])
    coordinates = Coordinates(torch.from_numpy(in_row), torch.from_numpy(index), is_ordered=True)
    return replace(batch, inputs=replace(batch.inputs, coordinates=coordinates), loss_weights=weights)


def _check_records(tokens: TokenStore, view: View) -> None:
    """Raises ValueError for the first record that a view can't read, with its location."""
    if view.check is None:
        return
    for record in range(len(tokens)):
        try:
            view.check(tokens.encoding(record))
        except ValueError as error:
            raise ValueError(f"{tokens.location(record)}: {error}") from None


def _cut(tokens: TokenStore, view: View, context_length: int, source_length: int, what: str) -> Samples:
    """The samples of records, which messages call `what`. Warns about records that are left out; raises ValueError if
    that is all of them."""
    budgets = context_length, source_length
    samples = cut_records(
        tokens.lengths, tokens.prefixes, view.length, budgets, can_cut=not view.is_whole, overlap=view.overlap
    )
    if tokens.is_target is not None:
        samples = only_answers(samples, tokens.is_target, tokens.starts, tokens.lengths)
    needs = f"context_length={context_length}"
    if samples.has_source and source_length != context_length:
        needs += f" with sources of {source_length}"
    reason = f"don't fit a row of {needs}, or have nothing to predict"
    first = tokens.location(max(0, samples.first_dropped))
    if not len(samples):
        raise ValueError(f"all {len(tokens)} {what} {reason}, the first being {first}; raise model.context_length")
    if samples.num_cut:
        warnings.warn(
            f"some of the {what} are conversations longer than a row of {needs}: their ends are left out, "
            f"{samples.num_cut:,} tokens. Raise model.context_length to keep them",
            stacklevel=4,
        )
    if samples.dropped:
        warnings.warn(
            f"{samples.dropped} of {len(tokens)} {what} {reason}; they are left out with their {samples.num_lost:,} "
            f"tokens ({100 * samples.num_lost / len(tokens.ids):.2g} %), the first being {first}. Raise "
            f"model.context_length to keep them",
            stacklevel=4,
        )
    return samples


def _example(tokens: TokenStore, samples: Samples, view: View, sample: int, seed: int, epoch: int) -> Example:
    encoding = tokens.encoding(int(samples.records[sample]), int(samples.starts[sample]), int(samples.stops[sample]))
    return view.example(encoding, generator(seed, epoch, "view", sample))


def _weight(examples: list[Example]) -> float:
    return float(sum(example.loss_weights.sum(dtype=np.float64) for example in examples))


def _check_stream(tokens: TokenStore, view: View) -> None:
    is_plain = view.inputs_mask == Causal() and view.is_text and not view.length(2, 1)[1]
    if not is_plain or tokens.prefixes.any() or tokens.features is not None or tokens.is_target is not None:
        has_others = tokens.prefixes.any() or tokens.is_target is not None
        which = f", which {tokens.location(int(tokens.prefixes.argmax()))} isn't" if has_others else ""
        raise ValueError(
            f"data.rows: stream and split need the objective causal and plain texts{which}; set it to packed: "
            f"--data.rows packed"
        )

"""The contract every stage speaks: Encoding -> Example -> Batch, and Tokens, which a model eats.

A codec makes Encodings, a view of the data makes Examples (both NumPy), the loader lays Examples into the
rows of a Batch (tensors). Nobody downstream needs to know what kind of data it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isoform.mask import Coordinates


@dataclass(frozen=True, eq=False)
class Encoding:
    """A record as tokens: ids (T,), of which the first `prefix` are given and the rest are to be predicted.

    features (T, F) float32: the numbers of the tokens whose id is -1; token_types (T,): which sort of token each is
    (absent: all 0); positions (T, P): where each stands, for position schemes (absent: the index on every axis);
    label: what is to be said about the record as a whole, where there is something: the number of a class, or any
    number; tags (T,): likewise about each token, NaN for nothing.
    """

    ids: np.ndarray
    prefix: int = 0
    features: np.ndarray | None = None
    token_types: np.ndarray | None = None
    positions: np.ndarray | None = None
    label: int | float | None = None
    tags: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int | None = None) -> Encoding:
        """Some of its tokens, with all that belongs to them; without prefix and label."""
        columns = (self.features, self.token_types, self.positions, self.tags)
        features, token_types, positions, tags = (None if column is None else column[start:stop] for column in columns)
        return Encoding(self.ids[start:stop], 0, features, token_types, positions, tags=tags)


@dataclass(frozen=True, eq=False)
class Example:
    """One training example, before packing.

    inputs: what the stack under the head reads, T tokens; targets (T,): what each position should say, an id or a
    number; loss_weights (T,) float32: how much it counts, 0 is ignored; source: what the encoder of an encoder-decoder
    reads beside it.
    """

    inputs: Encoding
    targets: np.ndarray
    loss_weights: np.ndarray
    source: Encoding | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a model eats: ids (B, T) and where each token stands.

    left_context (B, C): the ids to the left of the first column, for stems that look back at a text generated token by
    token; None: there are none. features (B, T, F): the numbers of the tokens whose id is -1; token_types (B, T): which
    sort of token each is (None: all 0).
    """

    ids: Tensor
    coordinates: Coordinates
    left_context: Tensor | None = None
    features: Tensor | None = None
    token_types: Tensor | None = None

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on a device."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        old = self.coordinates
        coordinates = replace(old.map(move), start=old.start, is_ordered=old.is_ordered)
        others = (None if t is None else move(t) for t in (self.left_context, self.features, self.token_types))
        return Tokens(move(self.ids), coordinates, *others)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one pass: inputs and, beside them, targets and loss_weights (B, T); source for an encoder."""

    inputs: Tokens
    targets: Tensor
    loss_weights: Tensor
    source: Tokens | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        source = self.source if self.source is None else self.source.to(device)
        targets = self.targets.to(device, non_blocking=True)
        return Batch(self.inputs.to(device), targets, self.loss_weights.to(device, non_blocking=True), source)


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """All rows of one step, cut into micro-batches, with the weight of the whole known beforehand."""

    micro_batches: list[Batch]
    weight: float


def plain_coordinates(
    num_rows: int, length: int, *, start: int = 0, device: torch.device | str | None = None
) -> Coordinates:
    """Coordinates of rows that hold one document each, indices start .. start + length - 1."""
    index = torch.arange(start, start + length, device=device).expand(num_rows, length)
    document = torch.zeros(1, 1, dtype=torch.long, device=device).expand(num_rows, length)
    return Coordinates(document, index, start=start)


def plain_tokens(ids: Tensor) -> Tokens:
    """A plain id tensor (B, T) or (T,) as Tokens: one document a row, indices 0 .. T-1."""
    ids = ids if ids.dim() == 2 else ids.unsqueeze(0)
    return Tokens(ids, plain_coordinates(*ids.shape, device=ids.device))


def collate(rows: Sequence[Sequence[Example]], length: int, source_length: int | None = None) -> Batch:
    """Rows of Examples to one Batch of `length` (and `source_length`) columns, padded with document -1.

    The k-th example of a row becomes document k on both sides. Rows that hold one example of full length and
    no prefix are plain. Raises ValueError for a row that doesn't fit.
    """
    inputs = _lay([[e.inputs for e in row] for row in rows], length)
    is_number = any(np.issubdtype(e.targets.dtype, np.floating) for row in rows for e in row)
    targets = np.zeros((len(rows), length), np.float32 if is_number else np.int64)
    weights = np.zeros((len(rows), length), np.float32)
    for r, row in enumerate(rows):
        at = 0
        for example in row:
            end = at + len(example.targets)
            targets[r, at:end], weights[r, at:end] = example.targets, example.loss_weights
            at = end
    source = None
    if source_length is not None:
        source = _lay([[e.source for e in row if e.source is not None] for row in rows], source_length)
    return Batch(inputs, torch.from_numpy(targets), torch.from_numpy(weights), source)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of rows of one length as one Batch."""
    if len(batches) == 1:
        return batches[0]
    sources = [batch.source for batch in batches if batch.source is not None]
    return Batch(
        _joined_tokens([batch.inputs for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat([batch.loss_weights for batch in batches]),
        _joined_tokens(sources) if sources else None,
    )


def _joined_tokens(tokens: Sequence[Tokens]) -> Tokens:
    shapes = [one.ids.shape for one in tokens]
    at = [one.coordinates for one in tokens]

    def both(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
        """One below the other; where some have none, they have zeros."""
        there = [t for t in tensors if t is not None]
        if not there:
            return None
        rest = there[0].shape[2:]
        none = torch.zeros((1, 1, *rest), dtype=dtype)
        full = [none if t is None else t for t in tensors]
        return torch.cat([t.expand(*shape, *rest) for t, shape in zip(full, shapes, strict=True)])

    def whole(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.expand(shape) for t, shape in zip(tensors, shapes, strict=True)])

    coordinates = Coordinates(
        whole([c.document for c in at]),
        whole([c.index for c in at]),
        both([c.prefix for c in at], torch.bool),
        both([c.position for c in at], torch.int64),
        start=0 if all(c.start == 0 for c in at) else None,
        is_ordered=all(c.is_ordered for c in at),
    )
    return Tokens(
        torch.cat([one.ids for one in tokens]),
        coordinates,
        features=both([one.features for one in tokens], torch.float32),
        token_types=both([one.token_types for one in tokens], torch.int64),
    )


def _lay(rows: Sequence[Sequence[Encoding]], length: int) -> Tokens:
    encodings = [encoding for row in rows for encoding in row]
    features = _empty([e.features for e in encodings], (len(rows), length), np.float32)
    token_types = np.zeros((len(rows), length), np.int64) if any(e.token_types is not None for e in encodings) else None
    position = _empty([e.positions for e in encodings], (len(rows), length), np.int64)
    ids = np.zeros((len(rows), length), np.int64)
    document = np.full((len(rows), length), -1, np.int64)
    index = np.zeros((len(rows), length), np.int64)
    prefix = np.zeros((len(rows), length), bool)
    for r, row in enumerate(rows):
        at = 0
        for s, encoding in enumerate(row):
            end = at + len(encoding)
            if end > length:
                raise ValueError(f"row {r} needs {end} or more tokens but has room for {length}; pack fewer")
            ids[r, at:end], document[r, at:end], index[r, at:end] = encoding.ids, s, np.arange(len(encoding))
            prefix[r, at : at + encoding.prefix] = True
            if features is not None and encoding.features is not None:
                features[r, at:end] = encoding.features
            if token_types is not None and encoding.token_types is not None:
                token_types[r, at:end] = encoding.token_types
            if position is not None:
                position[r, at:end] = index[r, at:end, None] if encoding.positions is None else encoding.positions
            at = end
    has_prefix = bool(prefix.any())
    is_plain = not has_prefix and all(len(row) == 1 and len(row[0]) == length for row in rows)
    coordinates = Coordinates(
        torch.from_numpy(document),
        torch.from_numpy(index),
        torch.from_numpy(prefix) if has_prefix else None,
        _tensor(position),
        start=0 if is_plain else None,
        is_ordered=True,
    )
    return Tokens(torch.from_numpy(ids), coordinates, features=_tensor(features), token_types=_tensor(token_types))


def _empty(columns: Sequence[np.ndarray | None], shape: tuple[int, int], dtype: type) -> np.ndarray | None:
    """Zeros of this shape and the columns' width; None where no Encoding has the column."""
    widths = {column.shape[1] for column in columns if column is not None}
    if len(widths) > 1:
        raise ValueError(f"tokens with {sorted(widths)} numbers each can't share a batch; use codecs that agree")
    return np.zeros((*shape, *widths), dtype) if widths else None


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)

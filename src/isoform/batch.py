"""The data types between the stages: Encoding -> Example -> Batch, and Tokens, the input of a model.

A codec produces Encodings, a view of the data produces Examples (both NumPy), the loader packs Examples into the
rows of a Batch (tensors). Everything downstream is independent of the modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isoform.mask import Coordinates

COLUMNS = ("features", "token_types", "positions", "tags", "is_target")
"""What an Encoding may have of each token besides its id."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """A record as tokens: ids (T,), of which the first `prefix` are given and the rest are predicted.

    features (T, F) float32: the features of the tokens whose id is -1; token_types (T,): the type of each token (None:
    all 0); positions (T, P): the coordinates of each token for position schemes (None: the index on every axis);
    label: the target for the record as a whole, if it has one: the index of a class, or any number; tags (T,): the
    target for each token, NaN for none; is_target (T,): whether each token is one that is predicted (None: all after
    the prefix).
    """

    ids: np.ndarray
    prefix: int = 0
    features: np.ndarray | None = None
    token_types: np.ndarray | None = None
    positions: np.ndarray | None = None
    label: int | float | None = None
    tags: np.ndarray | None = None
    is_target: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int | None = None) -> Encoding:
        """A slice of the tokens, with their columns; without prefix and label."""
        cut = {name: column[start:stop] for name in COLUMNS if (column := getattr(self, name)) is not None}
        return Encoding(self.ids[start:stop], **cut)


@dataclass(frozen=True, eq=False)
class Example:
    """One training example, before packing.

    inputs: the T tokens that the stack under the head reads; targets (T,): the target of each position, an id or a
    number; loss_weights (T,) float32: its weight in the loss, 0 to ignore it; source: the input of the encoder of an
    encoder-decoder.
    """

    inputs: Encoding
    targets: np.ndarray
    loss_weights: np.ndarray
    source: Encoding | None = None


@dataclass(frozen=True, eq=False)
class Tokens:
    """The input of a model: ids (B, T) and the coordinates of each token.

    left_context (B, C): the ids to the left of the first column, for stems that read earlier tokens while a text is
    generated token by token; None if there are none. features (B, T, F): the features of the tokens whose id is -1;
    token_types (B, T): the type of each token (None: all 0).
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
        optional = (None if t is None else move(t) for t in (self.left_context, self.features, self.token_types))
        return Tokens(move(self.ids), coordinates, *optional)


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one pass: inputs, their targets and loss_weights (B, T), and the source for an encoder."""

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
    """All rows of one step, split into micro-batches; `weight`: the sum of all loss weights."""

    micro_batches: list[Batch]
    weight: float


def plain_coordinates(
    num_rows: int, length: int, *, start: int = 0, device: torch.device | str | None = None
) -> Coordinates:
    """Coordinates of rows of one document each, with indices start .. start + length - 1."""
    index = torch.arange(start, start + length, device=device).expand(num_rows, length)
    document = torch.zeros(1, 1, dtype=torch.long, device=device).expand(num_rows, length)
    return Coordinates(document, index, start=start)


def plain_tokens(tensor: Tensor) -> Tokens:
    """Ids (B, T) or (T,), or rows of features (B, T, F), which are floats, as Tokens: one document per row, indices
    0 .. T-1. Raises ValueError for floats of another shape."""
    if not tensor.is_floating_point():
        ids = tensor if tensor.dim() == 2 else tensor.unsqueeze(0)
        return Tokens(ids, plain_coordinates(*ids.shape, device=ids.device))
    if tensor.dim() != 3:
        raise ValueError(
            f"floats of shape {tuple(tensor.shape)}: ids are integers (B, T), features floats (B, T, F), F numbers for "
            f"each token; convert or reshape them"
        )
    features = tensor.float() if tensor.dtype == torch.float64 else tensor
    ids = torch.full(tensor.shape[:2], -1, device=tensor.device)
    return Tokens(ids, plain_coordinates(*ids.shape, device=ids.device), features=features)


def collate(rows: Sequence[Sequence[Example]], length: int, source_length: int | None = None) -> Batch:
    """Rows of Examples as one Batch of `length` (and `source_length`) columns, padded with document -1.

    The k-th example of a row becomes document k on both sides. Rows of one example of full length without prefix are
    plain. Raises ValueError for a row that doesn't fit.
    """
    inputs = _pack([[e.inputs for e in row] for row in rows], length)
    is_number = any(np.issubdtype(e.targets.dtype, np.floating) for row in rows for e in row)
    targets = np.zeros((len(rows), length), np.float32 if is_number else np.int64)
    weights = np.zeros((len(rows), length), np.float32)
    for r, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.targets)
            targets[r, start:end], weights[r, start:end] = example.targets, example.loss_weights
            start = end
    source = None
    if source_length is not None:
        source = _pack([[e.source for e in row if e.source is not None] for row in rows], source_length)
    return Batch(inputs, torch.from_numpy(targets), torch.from_numpy(weights), source)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches with rows of the same length as one Batch."""
    if len(batches) == 1:
        return batches[0]
    sources = [batch.source for batch in batches if batch.source is not None]
    return Batch(
        _concatenate_tokens([batch.inputs for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat([batch.loss_weights for batch in batches]),
        _concatenate_tokens(sources) if sources else None,
    )


def _concatenate_tokens(tokens: Sequence[Tokens]) -> Tokens:
    shapes = [part.ids.shape for part in tokens]
    parts = [part.coordinates for part in tokens]

    def optional(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
        """The concatenation, with zeros for None; None if all are."""
        present = [t for t in tensors if t is not None]
        if not present:
            return None
        rest = present[0].shape[2:]
        zeros = torch.zeros((1, 1, *rest), dtype=dtype)
        full = [zeros if t is None else t for t in tensors]
        return torch.cat([t.expand(*shape, *rest) for t, shape in zip(full, shapes, strict=True)])

    def required(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.expand(shape) for t, shape in zip(tensors, shapes, strict=True)])

    coordinates = Coordinates(
        required([c.document for c in parts]),
        required([c.index for c in parts]),
        optional([c.prefix for c in parts], torch.bool),
        optional([c.position for c in parts], torch.int64),
        start=0 if all(c.start == 0 for c in parts) else None,
        is_ordered=all(c.is_ordered for c in parts),
    )
    return Tokens(
        torch.cat([part.ids for part in tokens]),
        coordinates,
        features=optional([part.features for part in tokens], torch.float32),
        token_types=optional([part.token_types for part in tokens], torch.int64),
    )


def _pack(rows: Sequence[Sequence[Encoding]], length: int) -> Tokens:
    encodings = [encoding for row in rows for encoding in row]
    features = _empty([e.features for e in encodings], (len(rows), length), np.float32)
    token_types = np.zeros((len(rows), length), np.int64) if any(e.token_types is not None for e in encodings) else None
    position = _empty([e.positions for e in encodings], (len(rows), length), np.int64)
    ids = np.zeros((len(rows), length), np.int64)
    document = np.full((len(rows), length), -1, np.int64)
    index = np.zeros((len(rows), length), np.int64)
    prefix = np.zeros((len(rows), length), bool)
    for r, row in enumerate(rows):
        start = 0
        for s, encoding in enumerate(row):
            end = start + len(encoding)
            if end > length:
                raise ValueError(f"row {r} needs {end} or more tokens but has {length} columns; pack fewer")
            ids[r, start:end], document[r, start:end], index[r, start:end] = encoding.ids, s, np.arange(len(encoding))
            prefix[r, start : start + encoding.prefix] = True
            if features is not None and encoding.features is not None:
                features[r, start:end] = encoding.features
            if token_types is not None and encoding.token_types is not None:
                token_types[r, start:end] = encoding.token_types
            if position is not None:
                position[r, start:end] = index[r, start:end, None] if encoding.positions is None else encoding.positions
            start = end
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
    """Zeros of this shape and the columns' width; None if no Encoding has the column."""
    widths = {column.shape[1] for column in columns if column is not None}
    if len(widths) > 1:
        raise ValueError(f"tokens with {sorted(widths)} features can't share a batch; use codecs with the same width")
    return np.zeros((*shape, *widths), dtype) if widths else None


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)

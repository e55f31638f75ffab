"""The contract every stage speaks: Encoding -> Example -> Batch, and Pieces, which a model eats.

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
    """A record as pieces: ids (T,), of which the first `prefix` are given and the rest are to be predicted."""

    ids: np.ndarray
    prefix: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Example:
    """One training example, before packing.

    inputs: what the stack under the head reads, T pieces; targets (T,): what each position should say;
    loss_weights (T,) float32: how much it counts, 0 is ignored; source: what the encoder of an
    encoder-decoder reads beside it.
    """

    inputs: Encoding
    targets: np.ndarray
    loss_weights: np.ndarray
    source: Encoding | None = None


@dataclass(frozen=True, eq=False)
class Pieces:
    """What a model eats: ids (B, T) and where each piece stands.

    before (B, C): the ids to the left of the first column, for stems that look back at a text generated piece by
    piece; None: there are none.
    """

    ids: Tensor
    coordinates: Coordinates
    before: Tensor | None = None

    def to(self, device: torch.device | str) -> Pieces:
        """The same pieces on a device."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        coordinates = replace(self.coordinates.map(move), start=self.coordinates.start)
        return Pieces(move(self.ids), coordinates, None if self.before is None else move(self.before))


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one pass: inputs and, beside them, targets and loss_weights (B, T); source for an encoder."""

    inputs: Pieces
    targets: Tensor
    loss_weights: Tensor
    source: Pieces | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        source = self.source if self.source is None else self.source.to(device)
        targets = self.targets.to(device, non_blocking=True)
        return Batch(self.inputs.to(device), targets, self.loss_weights.to(device, non_blocking=True), source)


def plain_coordinates(
    num_rows: int, length: int, *, start: int = 0, device: torch.device | str | None = None
) -> Coordinates:
    """Coordinates of rows that hold one segment each, indices start .. start + length - 1."""
    index = torch.arange(start, start + length, device=device).expand(num_rows, length)
    segment = torch.zeros(1, 1, dtype=torch.long, device=device).expand(num_rows, length)
    return Coordinates(segment, index, start=start)


def plain_pieces(ids: Tensor) -> Pieces:
    """A plain id tensor (B, T) or (T,) as Pieces: one segment a row, indices 0 .. T-1."""
    ids = ids if ids.dim() == 2 else ids.unsqueeze(0)
    return Pieces(ids, plain_coordinates(*ids.shape, device=ids.device))


def collate(rows: Sequence[Sequence[Example]], length: int, source_length: int | None = None) -> Batch:
    """Rows of Examples to one Batch of `length` (and `source_length`) columns, padded with segment -1.

    The k-th example of a row becomes segment k on both sides. Rows that hold one example of full length and
    no prefix are plain. Raises ValueError for a row that doesn't fit.
    """
    inputs = _lay([[e.inputs for e in row] for row in rows], length)
    targets = np.zeros((len(rows), length), np.int64)
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


def _lay(rows: Sequence[Sequence[Encoding]], length: int) -> Pieces:
    ids = np.zeros((len(rows), length), np.int64)
    segment = np.full((len(rows), length), -1, np.int64)
    index = np.zeros((len(rows), length), np.int64)
    prefix = np.zeros((len(rows), length), bool)
    for r, row in enumerate(rows):
        at = 0
        for s, encoding in enumerate(row):
            end = at + len(encoding)
            if end > length:
                raise ValueError(f"row {r} needs {end} or more pieces but has room for {length}; pack fewer")
            ids[r, at:end], segment[r, at:end], index[r, at:end] = encoding.ids, s, np.arange(len(encoding))
            prefix[r, at : at + encoding.prefix] = True
            at = end
    has_prefix = bool(prefix.any())
    is_plain = not has_prefix and all(len(row) == 1 and len(row[0]) == length for row in rows)
    coordinates = Coordinates(
        torch.from_numpy(segment),
        torch.from_numpy(index),
        torch.from_numpy(prefix) if has_prefix else None,
        start=0 if is_plain else None,
    )
    return Pieces(torch.from_numpy(ids), coordinates)

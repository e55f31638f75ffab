"""The key/value cache: an object passed in, never attached to a module.

It stores the coordinates of its slots beside keys and values, so that which slots a query may see is the
mask's business as everywhere; while the rows stay plain, the kernels keep their shortcuts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoform.mask import Coordinates


class LayerCache:
    """Keys and values of one layer, (B, K, S, H) each; `memory` holds those of the encoder's output."""

    def __init__(self, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype) -> None:
        self.key = torch.empty(shape, device=device, dtype=dtype)
        self.value = torch.empty(shape, device=device, dtype=dtype)
        self.memory: tuple[Tensor, Tensor] | None = None

    def append(self, key: Tensor, value: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Write the newest keys and values, ending at slot `end`; all filled slots come back, as views."""
        start = end - key.shape[2]
        self.key[:, :, start:end] = key
        self.value[:, :, start:end] = value
        return self.key[:, :, :end], self.value[:, :, :end]


class Cache:
    """The cache of a whole decoder: per-layer keys and values over slots filled from left to right."""

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        *,
        num_rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`shapes`: (K, H) of each layer; `capacity`: slots S."""
        self.layers = [LayerCache((num_rows, k, capacity, h), device=device, dtype=dtype) for k, h in shapes]
        self.capacity = capacity
        self.length = 0
        segment = torch.zeros(num_rows, capacity, dtype=torch.long, device=device)
        index = torch.arange(capacity, device=device).expand(num_rows, capacity).contiguous()
        self._slots = Coordinates(segment, index, start=0)

    def next_coordinates(self) -> Coordinates:
        """Where a piece stands that follows the newest one in each row, (B, 1); for rows of one segment."""
        segment, index = self._slots.segment, self._slots.index
        start, end = self.length, self.length + 1
        plain_start = None if self._slots.start is None else start
        return Coordinates(segment[:, start:end], index[:, start:end], start=plain_start)

    def extend(self, coordinates: Coordinates) -> Coordinates:
        """Take in the newest pieces (B, T); gives the coordinates of all filled slots (B, S).

        Raises ValueError when there is no room.
        """
        start, end = self.length, self.length + coordinates.index.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache has {self.capacity} slots but {end} pieces came; make it larger")
        if self._slots.start is None or coordinates.start != start:
            self._slots = _written(self._slots, coordinates, start, end)
        self.length = end
        s = self._slots
        return Coordinates(
            s.segment[:, :end],
            s.index[:, :end],
            None if s.prefix is None else s.prefix[:, :end],
            None if s.place is None else s.place[:, :end],
            start=s.start,
        )


def _written(slots: Coordinates, new: Coordinates, start: int, end: int) -> Coordinates:
    slots.segment[:, start:end] = new.segment
    slots.index[:, start:end] = new.index
    prefix, place = slots.prefix, slots.place
    if new.prefix is not None:
        prefix = torch.zeros_like(slots.segment, dtype=torch.bool) if prefix is None else prefix
        prefix[:, start:end] = new.prefix
    if new.place is not None:
        place = slots.index.clone() if place is None else place
        place[:, start:end] = new.place
    return Coordinates(slots.segment, slots.index, prefix, place)

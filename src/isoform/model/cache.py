"""The cache: what each layer stores of the tokens so far, an object passed in, never attached to a module.

Attention keeps keys and values, a recurrence a state of fixed size. The coordinates of slots are stored beside keys
and values, so that the mask decides which slots a query may see, as everywhere; while the rows stay plain, the
kernels keep their shortcuts. A layer that looks back at most `before` tokens stores the newest before + 1 of each row
in a ring. Layers that store the same number of tokens share one set of coordinates, so that a step of generation does
its bookkeeping once for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from isoform.mask import Coordinates


class Slots(ABC):
    """The coordinates of the slots of some layers, and how new keys and values are written into them."""

    size: int
    """Slots per row."""
    keys: Coordinates
    """Of the keys and values that `store` returns, in the same order."""

    @abstractmethod
    def extend(self, new: Coordinates) -> None:
        """Add the coordinates of the newest tokens (B, T). Raises ValueError when there is no room."""

    slots: Coordinates
    """Of all slots, filled or not (B, size)."""
    num_filled: int
    """Columns in use, from the left."""

    @abstractmethod
    def store(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Write `new` (B, K, T, H) into the buffer (B, K, size, H); returns what the newest tokens may attend to."""

    def select(self, rows: Tensor) -> None:
        """Continue with these rows (R,), which may repeat."""
        self.slots, self.keys = (_rows(c, rows) for c in (self.slots, self.keys))


class AllSlots(Slots):
    """All tokens are stored: slots filled from left to right."""

    def __init__(self, num_rows: int, size: int, device: torch.device) -> None:
        document = torch.zeros(num_rows, size, dtype=torch.long, device=device)
        index = torch.arange(size, device=device).expand(num_rows, size).contiguous()
        self.slots = Coordinates(document, index, start=0)
        self.size, self.start, self.num_filled = size, 0, 0

    def extend(self, new: Coordinates) -> None:
        start, end = self.num_filled, self.num_filled + new.index.shape[1]
        if end > self.size:
            raise ValueError(f"the cache has {self.size} slots but {end} tokens came; make it larger")
        is_plain = self.slots.start is not None and new.start == start
        if not is_plain or new.position is not None:
            self.slots = _written(self.slots, slice(start, end), new, is_plain)
        self.start, self.num_filled = start, end
        self.keys = _cut(self.slots, slice(0, end), start=self.slots.start)

    def store(self, buffer: Tensor, new: Tensor) -> Tensor:
        buffer[:, :, self.start : self.num_filled] = new
        return buffer[:, :, : self.num_filled]


class RingSlots(Slots):
    """The newest `size` tokens of each row are stored.

    Columns fill from left to right; then a token that comes alone overwrites the oldest column. Tokens that come
    together see the stored ones and each other; after that the columns are rewritten, the oldest first. The tokens of a
    row must come in the order of their index. Empty slots (document -1) don't displace tokens: when columns are
    rewritten, they count as older than any token.
    """

    def __init__(self, num_rows: int, size: int, device: torch.device) -> None:
        document = torch.zeros(num_rows, size, dtype=torch.long, device=device)
        self.slots = Coordinates(document, torch.zeros_like(document), start=0)
        self.size = size
        self.num_filled = 0  # columns in use
        self.num_seen = 0  # tokens so far, so that plain rows continue at this index
        self.oldest = 0  # the column that is overwritten next, once all are in use
        self.column: int | None = None  # where the newest token went; None: the columns were rewritten
        self.earlier: list[slice] = []  # before they were: the columns in use, the oldest first
        self.order: Tensor | None = None  # and which of those and the new ones stayed (B, num_filled); None: the last

    def extend(self, new: Coordinates) -> None:
        is_plain = self.slots.start is not None and new.start == self.num_seen
        self.num_seen += new.index.shape[1]
        if new.index.shape[1] == 1 and (is_plain or bool((new.document >= 0).all())):
            self._overwrite(new, is_plain)
        else:
            self._rewrite(new, is_plain)

    def _overwrite(self, new: Coordinates, is_plain: bool) -> None:
        if self.num_filled < self.size:
            self.column, self.num_filled = self.num_filled, self.num_filled + 1
        else:
            self.column, self.oldest = self.oldest, (self.oldest + 1) % self.size
        self.slots = _written(self.slots, slice(self.column, self.column + 1), new, is_plain)
        span = (self.num_seen - self.num_filled, self.num_seen - 1) if is_plain else None
        self.keys = _cut(self.slots, slice(0, self.num_filled), span=span)

    def _rewrite(self, new: Coordinates, is_plain: bool) -> None:
        parts = slice(self.oldest, self.num_filled), slice(0, self.oldest)
        self.earlier = [columns for columns in parts if columns.stop > columns.start]
        self.column, self.oldest = None, 0
        self.num_filled = min(self.size, self.num_filled + new.index.shape[1])
        if self.earlier:
            start = self.num_seen - new.index.shape[1] - sum(c.stop - c.start for c in self.earlier)
            self.keys = _joined(self.slots, self.earlier, new, start=start if is_plain else None)
        else:
            self.keys = new
        if is_plain:
            self.order = None
            stays = self.keys.map(lambda t: t[:, -self.num_filled :])
        else:
            order = (self.keys.document >= 0).int().sort(dim=1, stable=True).indices[:, -self.num_filled :]
            stays = self.keys.map(lambda t: _taken(t, order, 1))
            self.order = order.unsqueeze(1)
        self.slots = _written(self.slots, slice(0, self.num_filled), stays, is_plain)

    def store(self, buffer: Tensor, new: Tensor) -> Tensor:
        if self.column is not None:
            buffer[:, :, self.column : self.column + 1] = new
            return buffer[:, :, : self.num_filled]
        together = torch.cat([*(buffer[:, :, columns] for columns in self.earlier), new], 2) if self.earlier else new
        stays = together[:, :, -self.num_filled :] if self.order is None else _taken(together, self.order, 2)
        buffer[:, :, : self.num_filled] = stays
        return together


@dataclass(frozen=True)
class KeyValueShape:
    """Of a layer with attention: K heads of width H. window: how many tokens it looks back at most, None: all; is_own:
    whether it has coordinates of its own, since not all tokens pass through it."""

    num_heads: int
    head_dim: int
    window: int | None = None
    is_own: bool = False


@dataclass(frozen=True)
class StateShape:
    """Of a layer with a recurrence: the tensors that it stores of each row."""

    tensors: tuple[tuple[int, ...], ...]


LayerShape = KeyValueShape | StateShape


class LayerState(ABC):
    """What one layer stores of the tokens so far."""

    @abstractmethod
    def select(self, rows: Tensor, moved: Tensor | None, memory_rows: Tensor | None) -> None:
        """As `Cache.select`; moved: the rows that change, where their number doesn't."""


class RecurrentState(LayerState):
    """The state of a recurrence after the newest token of each row: tensors (B, …), zeros at first."""

    def __init__(self, shape: StateShape, num_rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tensors = tuple(torch.zeros(num_rows, *one, device=device, dtype=dtype) for one in shape.tensors)

    def select(self, rows: Tensor, moved: Tensor | None, memory_rows: Tensor | None) -> None:
        self.tensors = tuple(t.index_select(0, rows) for t in self.tensors)


class KeyValueState(LayerState):
    """Keys and values of one layer, (B, K, S, H) each; `memory` holds those of the encoder's output."""

    def __init__(
        self, shape: tuple[int, int, int, int], slots: Slots, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.key = torch.empty(shape, device=device, dtype=dtype)
        self.value = torch.empty(shape, device=device, dtype=dtype)
        self.slots = slots
        self.memory: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor, moved: Tensor | None, memory_rows: Tensor | None) -> None:
        if moved is None:
            self.key, self.value = self.key.index_select(0, rows), self.value.index_select(0, rows)
        else:
            for buffer in (self.key, self.value):
                filled = buffer[:, :, : self.slots.num_filled]
                filled.index_copy_(0, moved, filled.index_select(0, rows.index_select(0, moved)))
        if self.memory is not None and memory_rows is not None:
            self.memory = self.memory[0].index_select(0, memory_rows), self.memory[1].index_select(0, memory_rows)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values (B, K, T, H), after `Cache.extend`; returns those that the newest tokens may
        attend to, as views where possible. Their coordinates are `Cache.keys`."""
        return self.slots.store(self.key, key), self.slots.store(self.value, value)


class Cache:
    """The cache of a whole decoder: what each layer stores of the tokens so far, and their coordinates."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        num_rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`shapes`: of each layer; `capacity`: slots S of those that store all keys."""
        self.capacity = capacity
        self.length = 0
        self.num_memory_tokens = 0
        """Of these, tokens of an encoder that are attended to jointly."""
        self._shift: Tensor | None = None  # (B, 1): how far those shift the newest tokens
        self._shared: dict[int, Slots] = {}
        self.layers: list[LayerState] = [self._build(shape, num_rows, device, dtype) for shape in shapes]
        index = torch.arange(capacity + 1, device=device).expand(num_rows, capacity + 1)
        self._ahead = Coordinates(torch.zeros_like(index[:, :1]).expand_as(index), index)
        self._newest: Coordinates | None = None  # (B, 1), once the rows are no longer plain

    def _build(self, shape: LayerShape, num_rows: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        match shape:
            case StateShape():
                return RecurrentState(shape, num_rows, device, dtype)
            case KeyValueShape(num_heads=heads, head_dim=dim, window=window):
                size = self.capacity if window is None else min(window + 1, self.capacity)
                slots = None if shape.is_own else self._shared.get(size)
                if slots is None:
                    slots = (AllSlots if size == self.capacity else RingSlots)(num_rows, size, device)
                if not shape.is_own:
                    self._shared[size] = slots
                return KeyValueState((num_rows, heads, size, dim), slots, device, dtype)
            case _:
                assert_never(shape)

    def keys_values(self, layer: int) -> KeyValueState:
        """What a layer with attention stores."""
        state = self.layers[layer]
        assert isinstance(state, KeyValueState)
        return state

    def state(self, layer: int) -> RecurrentState:
        """What a layer with a recurrence stores."""
        state = self.layers[layer]
        assert isinstance(state, RecurrentState)
        return state

    def keys(self, layer: int) -> Coordinates:
        """The coordinates (B, S) of the keys that `append` returns; layers that share them get the same object."""
        return self.keys_values(layer).slots.keys

    @property
    def newest_document(self) -> Tensor:
        """The document of the newest token of each row (B,), -1 for none."""
        if self._newest is not None:
            return self._newest.document[:, 0]
        return torch.full_like(self._ahead.document[:, 0], 0 if self.length else -1)

    def select(self, rows: Tensor, memory_rows: Tensor | None) -> None:
        """Continue with these rows (R,), which may repeat: surviving beams, or rows that have not ended.

        memory_rows: of the encoder's output, of which rows that lie beside each other may share one (None: it stays).
        """
        same = torch.arange(len(self._ahead.index), device=rows.device)
        moved = (rows != same).nonzero().flatten() if len(rows) == len(same) else None
        for layer in self.layers:
            layer.select(rows, moved, memory_rows)
        all_slots = [layer.slots for layer in self.layers if isinstance(layer, KeyValueState)]
        for slots in {id(slots): slots for slots in all_slots}.values():
            slots.select(rows)
        self._ahead = _rows(self._ahead, rows)
        self._newest = None if self._newest is None else _rows(self._newest, rows)
        if self._shift is not None and len(self._shift) > 1:
            self._shift = self._shift.index_select(0, rows)

    def next_coordinates(self) -> Coordinates:
        """The coordinates of a token that follows the newest one in each row, (B, 1)."""
        if self._newest is None:
            start = self.length - self.num_memory_tokens
            if start <= self.capacity:
                return _cut(self._ahead, slice(start, start + 1), start=start)
            index = torch.full_like(self._ahead.index[:, :1], start)
            return Coordinates(torch.zeros_like(index), index, start=start)
        index = self._newest.index + 1
        return Coordinates(self._newest.document, index if self._shift is None else index - self._shift)

    def come_after(self, shift: Tensor, num_memory_tokens: int) -> None:
        """Place num_memory_tokens columns of an encoder's tokens first; they shift the tokens after them by `shift`
        (B, T)."""
        self.num_memory_tokens, self._shift = num_memory_tokens, shift.amax(1, keepdim=True)

    def extend(self, coordinates: Coordinates, layer: int | None = None) -> None:
        """Add the coordinates of the newest tokens (B, T), before any layer's `append`; `layer`: to one layer with
        coordinates of its own.

        Raises ValueError when there is no room.
        """
        if layer is not None:
            self.keys_values(layer).slots.extend(coordinates)
            return
        for slots in self._shared.values():
            slots.extend(coordinates)
        if self._newest is not None or coordinates.start != self.length:
            self._newest = self._followed(coordinates)
        self.length += coordinates.index.shape[1]

    def _followed(self, new: Coordinates) -> Coordinates:
        """The newest token of each row (B, 1) after these; rows of empty slots keep theirs."""
        old = self._newest
        if old is None:
            column = slice(self.length, self.length + 1)
            old = Coordinates(self._ahead.document[:, column], self._ahead.index[:, column] - 1)
        is_token = new.document >= 0
        positions = torch.arange(1, new.index.shape[1] + 1, device=is_token.device)
        last = (is_token * positions).argmax(1, keepdim=True)
        has_new = is_token.any(1, keepdim=True)
        document = torch.where(has_new, new.document.gather(1, last), old.document)
        return Coordinates(document, torch.where(has_new, new.index.gather(1, last), old.index))


def _rows(coordinates: Coordinates, rows: Tensor) -> Coordinates:
    """Some rows; of plain ones, which are all alike, only their number counts."""
    promises = {"start": coordinates.start, "is_ordered": coordinates.is_ordered, "span": coordinates.span}
    if coordinates.bounds is not None:
        rows = torch.zeros_like(rows)
    return replace(coordinates.map(lambda t: t.expand(max(len(t), 1), *t.shape[1:]).index_select(0, rows)), **promises)


def _cut(slots: Coordinates, columns: slice, **promises) -> Coordinates:
    prefix = None if slots.prefix is None else slots.prefix[:, columns]
    position = None if slots.position is None else slots.position[:, columns]
    return Coordinates(slots.document[:, columns], slots.index[:, columns], prefix, position, **promises)


def _written(slots: Coordinates, columns: slice, new: Coordinates, is_plain: bool) -> Coordinates:
    """The slots with `new` in some columns, in place; plain rows are of document 0, which the slots are made with."""
    slots.index[:, columns] = new.index
    if not is_plain:
        slots.document[:, columns] = new.document
    prefix, position = _alike(slots, new)
    if prefix is not None:
        prefix[:, columns] = prefix_of(new)
    if position is not None:
        position[:, columns] = _position(new, position)
    return replace(slots, prefix=prefix, position=position, start=slots.start if is_plain else None, is_ordered=False)


def _alike(slots: Coordinates, new: Coordinates) -> tuple[Tensor | None, Tensor | None]:
    """Prefix and positions of the slots, filled in where only the new tokens have them."""
    prefix = prefix_of(slots) if slots.prefix is not None or new.prefix is not None else None
    position = slots.position
    if position is None and new.position is not None:
        position = _position(slots, new.position).clone()
    return prefix, position


def prefix_of(coordinates: Coordinates) -> Tensor:
    """Which tokens are given, as booleans like `document`."""
    prefix = coordinates.prefix
    return torch.zeros_like(coordinates.document, dtype=torch.bool) if prefix is None else prefix


def _position(coordinates: Coordinates, like: Tensor) -> Tensor:
    """Positions with as many axes as `like`; tokens without positions have their index on every axis."""
    if coordinates.position is not None:
        return coordinates.position
    index = coordinates.index
    return index if like.dim() == 2 else index.unsqueeze(-1).expand(*index.shape, like.shape[-1])


def _joined(slots: Coordinates, earlier: Sequence[slice], new: Coordinates, start: int | None) -> Coordinates:
    """Some columns of the slots, and the new tokens after them."""

    def joined(stored: Tensor, new: Tensor) -> Tensor:
        return torch.cat([*(stored[:, columns] for columns in earlier), new.expand(len(stored), *new.shape[1:])], 1)

    prefix, position = _alike(slots, new)
    return Coordinates(
        joined(slots.document, new.document),
        joined(slots.index, new.index),
        None if prefix is None else joined(prefix, prefix_of(new)),
        None if position is None else joined(position, _position(new, position)),
        start=start,
    )


def _taken(t: Tensor, order: Tensor, dim: int) -> Tensor:
    """The entries `order` (.., slots) along a dimension of t, for each row."""
    order = order.view(*order.shape, *[1] * (t.dim() - order.dim()))
    shape = [*t.shape]
    shape[dim] = order.shape[dim]
    return t.expand(order.shape[0], *t.shape[1:]).gather(dim, order.expand(order.shape[0], *shape[1:]))

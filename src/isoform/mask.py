"""Attention masks as data: a Mask is a frozen expression, evaluated on Coordinates.

The predicate `allowed_pair` is the definition: both tokens belong to the same document and the mask allows the pair;
`dense_mask` evaluates it for all pairs. Kernels use shortcuts and are tested against it. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoform.ranges import Index, Size, check_numbers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates of each token: integer tensors of shape (B, T), or anything that broadcasts.

    document: the index of the packed document, -1 for padding; index: the index within the document; prefix: whether
    the token is given rather than predicted (None: none is); position: the input of the position scheme, (B, T) or
    (B, T, P) for positions with P axes (None: the index).

    Three guarantees let kernels take shortcuts without reading values. `start`: plain rows, that is one document,
    indices start, start + 1, ... and no prefix. `span`: one document, no prefix, and indices between the first and the
    second number, inclusive, in any order: the slots of a ring buffer. `is_ordered`: the tokens of a document are
    contiguous, with consecutive indices.
    """

    document: Tensor
    index: Tensor
    prefix: Tensor | None = None
    position: Tensor | None = None
    start: int | None = None
    is_ordered: bool = False
    span: tuple[int, int] | None = None
    axes: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not self.is_ordered:
            object.__setattr__(self, "is_ordered", True)

    @property
    def positions(self) -> Tensor:
        """The input of a position scheme with one axis: the position; the index if that is None or has several axes."""
        return self.index if self.position is None or self.position.dim() > self.index.dim() else self.position

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The least and the greatest index, as guaranteed by `start` or `span`; None without such a guarantee."""
        return self.span if self.start is None else (self.start, self.start + self.index.shape[-1] - 1)

    def map(self, f: Callable[[Tensor], Tensor]) -> Coordinates:
        """The same coordinates with f applied to every tensor, without the guarantees."""
        prefix = None if self.prefix is None else f(self.prefix)
        position = None if self.position is None else f(self.position)
        axes = None if self.axes is None else tuple(map(f, self.axes))
        return Coordinates(f(self.document), f(self.index), prefix, position, axes=axes)

    def on_axis(self, axis: int) -> Tensor:
        """The positions on one of several axes. Raises ValueError if there are none."""
        if self.axes is not None:
            return self.axes[axis]
        if self.position is None:
            raise ValueError("tokens with positions (row, column) are needed, but these have only an index")
        return self.position[..., axis]

    def split_axes(self) -> Coordinates:
        """The same with `axes` instead of positions with several axes."""
        if self.position is None or self.position.dim() == self.index.dim():
            return self
        axes = tuple(axis.contiguous() for axis in self.position.unbind(-1))
        return Coordinates(self.document, self.index, self.prefix, axes=axes)


class Mask(ABC):
    """An expression for which keys a query may attend to; combine with `&` and `|`."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @abstractmethod
    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        """Whether each pair is allowed, elementwise after broadcasting."""

    def __and__(self, other: Mask) -> Mask:
        return other if isinstance(self, Full) else self if isinstance(other, Full) else Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Full() if isinstance(self, Full) or isinstance(other, Full) else Either(self, other)


@dataclass(frozen=True)
class Full(Mask):
    """Every token attends to every token of its document, as in an encoder."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return True


@dataclass(frozen=True)
class Causal(Mask):
    """A token attends to itself and to earlier tokens, as in a decoder."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return key.index <= query.index


@dataclass(frozen=True)
class Prefix(Mask):
    """All tokens attend to the prefix; `Prefix() | Causal()` is the mask of a prefix language model."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return False if key.prefix is None else key.prefix


@dataclass(frozen=True)
class Window(Mask):
    """At most `before` tokens back and `after` tokens ahead, by index; includes the token itself."""

    before: Index
    """Tokens back; 0: only the token itself."""
    after: Index = 0
    """Tokens ahead."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        distance = query.index - key.index
        return (distance <= self.before) & (distance >= -self.after)


@dataclass(frozen=True)
class Strided(Mask):
    """The last `stride` tokens, and every stride-th one before them (Child et al. 2019, strided)."""

    stride: Size
    """Tokens from one that is seen to the next."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        distance = query.index - key.index
        return (distance.abs() < self.stride) | (distance % self.stride == 0)


@dataclass(frozen=True)
class FixedSparse(Mask):
    """The token's own chunk of `stride` tokens, and the last `summary` of every chunk (Child et al. 2019, fixed)."""

    stride: Size
    """Tokens of a chunk."""
    summary: Size = 1
    """Tokens at the end of each chunk that all later ones see."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.summary > self.stride:
            raise ValueError(f"summary={self.summary} must be at most stride={self.stride}")

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        is_same_chunk = query.index // self.stride == key.index // self.stride
        return is_same_chunk | (key.index % self.stride >= self.stride - self.summary)


@dataclass(frozen=True)
class Local2D(Mask):
    """Tokens at most `rows` rows and `columns` columns away, by 2D positions (Parmar et al. 2018)."""

    rows: Index
    """Rows above and below."""
    columns: Index
    """Columns to the left and to the right."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        rows = (query.on_axis(0) - key.on_axis(0)).abs()
        columns = (query.on_axis(1) - key.on_axis(1)).abs()
        return (rows <= self.rows) & (columns <= self.columns)


@dataclass(frozen=True)
class Both(Mask):
    """Allowed by the left and by the right expression."""

    left: Mask
    right: Mask

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return self.left.allows(query, key) & self.right.allows(query, key)


@dataclass(frozen=True)
class Either(Mask):
    """Allowed by the left or by the right expression."""

    left: Mask
    right: Mask

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return self.left.allows(query, key) | self.right.allows(query, key)


def allowed_pair(mask: Mask, query: Coordinates, key: Coordinates) -> Tensor:
    """The predicate itself, elementwise after broadcasting: the same document, and the mask allows it.

    Documents are compared here, outside the expression, so that no `|` can allow pairs across documents, and nothing
    attends to padding.
    """
    return (query.document >= 0) & (query.document == key.document) & mask.allows(query, key)


def dense_mask(mask: Mask, query: Coordinates, key: Coordinates) -> Tensor:
    """The predicate for all pairs: queries (B, T) and keys (B, S) to booleans (B, T, S)."""
    return allowed_pair(mask, query.map(lambda t: t.unsqueeze(2)), key.map(lambda t: t.unsqueeze(1)))

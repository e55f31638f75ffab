"""Who may attend to whom, as data: a Mask is a frozen expression, evaluated on Coordinates.

One predicate, `attended`, is the whole rule: both pieces belong to the same segment and the mask allows
the pair. Kernels get shortcuts of it and are tested against it. Nothing here needs torch to be imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Where each piece stands: integer tensors of shape (B, T), or anything that broadcasts.

    segment: which packed document, -1 for an empty slot; index: order within the segment; prefix: whether
    the piece is given rather than predicted (None: none is); place: what the position scheme sees (None:
    the index). A `start` promises plain rows: one segment, indices start, start + 1, ... and no prefix, so
    that kernels may take their shortcuts without looking at values.
    """

    segment: Tensor
    index: Tensor
    prefix: Tensor | None = None
    place: Tensor | None = None
    start: int | None = None

    @property
    def places(self) -> Tensor:
        """What the position scheme sees."""
        return self.index if self.place is None else self.place

    def map(self, f: Callable[[Tensor], Tensor]) -> Coordinates:
        """The same coordinates with every tensor passed through f; whether they are plain is forgotten."""
        prefix = None if self.prefix is None else f(self.prefix)
        place = None if self.place is None else f(self.place)
        return Coordinates(f(self.segment), f(self.index), prefix, place)


class Mask(ABC):
    """An expression that says which keys a query may see; combine with `&` and `|`."""

    @abstractmethod
    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        """Whether each pair is allowed, elementwise after broadcasting."""

    def __and__(self, other: Mask) -> Mask:
        return other if isinstance(self, Full) else self if isinstance(other, Full) else Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Full() if isinstance(self, Full) or isinstance(other, Full) else Either(self, other)


@dataclass(frozen=True)
class Full(Mask):
    """Every piece sees every piece of its segment: an encoder."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return True


@dataclass(frozen=True)
class Causal(Mask):
    """A piece sees itself and what came before: a decoder."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return key.index <= query.index


@dataclass(frozen=True)
class Prefix(Mask):
    """The pieces given beforehand are seen by all; `Prefix() | Causal()` makes a prefix language model."""

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return False if key.prefix is None else key.prefix


@dataclass(frozen=True)
class Window(Mask):
    """At most `before` pieces back and `after` pieces ahead, counted by index; the piece itself is seen."""

    before: int
    after: int = 0

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 0:
            raise ValueError(f"a window reaches {self.before} back and {self.after} ahead; neither may be < 0")

    def allows(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        distance = query.index - key.index
        return (distance <= self.before) & (distance >= -self.after)


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


def attended(mask: Mask, query: Coordinates, key: Coordinates) -> Tensor:
    """The predicate itself: queries (B, T) and keys (B, S) to booleans (B, T, S).

    Segments are compared here, outside the expression, so that no `|` can open a door between documents
    and nothing attends to an empty slot.
    """
    query, key = query.map(lambda t: t.unsqueeze(-1)), key.map(lambda t: t.unsqueeze(-2))
    return (query.segment >= 0) & (query.segment == key.segment) & mask.allows(query, key)

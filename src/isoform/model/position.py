"""Position schemes as hooks that the rest calls without asking which scheme it has.

`embed(x, coordinates)` adds places to the embeddings; `at(coordinates)` gives the function that turns
queries and keys. A new scheme is a class with these two methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.mask import Coordinates
from isoform.model.config import Learned, Position, Rotary, Sinusoidal

Turn = Callable[[Tensor], Tensor]


def unturned(heads: Tensor) -> Tensor:
    """Queries and keys as they are."""
    return heads


class NoPosition(nn.Module):
    """Attention over a set: only the mask tells places apart."""

    def embed(self, x: Tensor, coordinates: Coordinates) -> Tensor:
        return x

    def at(self, coordinates: Coordinates) -> Turn:
        return unturned


class AddedPosition(nn.Module):
    """A table (context_length, D), learned or sinusoidal, whose rows are added to the embeddings."""

    def __init__(self, table: Tensor, *, learned: bool) -> None:
        super().__init__()
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def embed(self, x: Tensor, coordinates: Coordinates) -> Tensor:
        if coordinates.start is not None and coordinates.place is None:
            return x + self.table[coordinates.start : coordinates.start + x.shape[1]]
        return x + self.table[coordinates.places]

    def at(self, coordinates: Coordinates) -> Turn:
        return unturned


class RotaryPosition(nn.Module):
    """Rotary embedding (Su et al. 2021, eq. 34), halves layout: feature i is paired with i + H/2."""

    cos: Tensor
    sin: Tensor

    def __init__(self, base: float, head_dim: int, context_length: int) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(context_length, dtype=torch.float64)[:, None] * frequencies
        angles_full = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles_full.cos().float(), persistent=False)
        signed = torch.cat([-angles.sin(), angles.sin()], -1)
        self.register_buffer("sin", signed.float(), persistent=False)

    def embed(self, x: Tensor, coordinates: Coordinates) -> Tensor:
        return x

    def at(self, coordinates: Coordinates) -> Turn:
        if coordinates.start is not None and coordinates.place is None:
            places: slice | Tensor = slice(coordinates.start, coordinates.start + coordinates.index.shape[-1])
        else:
            places = coordinates.places
        cos, sin = self.cos[places].unsqueeze(-2), self.sin[places].unsqueeze(-2)  # (.., T, 1, H)

        def turn(heads: Tensor) -> Tensor:
            """(B, T, heads, H), each pair of features turned by its piece's angle."""
            c, s = cos.to(heads.dtype), sin.to(heads.dtype)
            return heads * c + heads.roll(heads.shape[-1] // 2, -1) * s

        return turn


def sinusoids(context_length: int, dim: int, base: float) -> Tensor:
    """(T, D) sines in even, cosines in odd features (Vaswani et al. 2017, section 3.5)."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] * base**-exponents
    table = torch.zeros(context_length, dim, dtype=torch.float64)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : dim // 2]
    return table.float()


def build_position(
    config: Position | None, *, model_dim: int, head_dims: set[int], context_length: int
) -> NoPosition | AddedPosition | RotaryPosition:
    """The scheme a stack owns. Raises ValueError if rotary blocks disagree about the width of a head."""
    match config:
        case None:
            return NoPosition()
        case Learned():
            return AddedPosition(torch.empty(context_length, model_dim), learned=True)
        case Sinusoidal():
            return AddedPosition(sinusoids(context_length, model_dim, config.base), learned=False)
        case Rotary():
            if len(head_dims) != 1:
                raise ValueError(
                    f"blocks of one stack share the rotary table, but have head_dim {sorted(head_dims)}; "
                    f"give them one head_dim"
                )
            return RotaryPosition(config.base, head_dims.pop(), context_length)
        case _:
            assert_never(config)

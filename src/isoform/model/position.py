"""Position schemes as hooks that are called without asking which scheme it is.

`embed` adds positions to the embeddings, `rotation` rotates queries and keys, `bias` adds to the scores by distance,
`relative` gives vectors per distance to scores and values. A new scheme is a class with the hooks that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.mask import Coordinates
from isoform.model.component import Component, Role
from isoform.model.parts import (
    ALiBi,
    Buckets,
    Extension,
    Grid,
    Learned,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    Position,
    Rotary,
    Shaw,
    Sinusoidal,
    YaRNExtension,
)

Rotation = Callable[[Tensor], Tensor]
CPU = torch.device("cpu")
"""Where tables are made, also for a model whose parameters are only described."""


def unrotated(heads: Tensor) -> Tensor:
    """Queries and keys unchanged."""
    return heads


@dataclass(frozen=True, eq=False)
class Relative:
    """Vectors along each edge, for one pass. scores: what their keys add to the query-key products, q (B, N, T, H) to
    (B, N, T, S); mixed: what their values add to the output, weights (B, N, T, S) to (B, N, T, H)."""

    scores: Callable[[Tensor], Tensor]
    mixed: Callable[[Tensor], Tensor] | None


class Scheme(Component):
    """The hooks of a position scheme; by default positions have no effect except through the mask."""

    roles = (("", Role.TABLE),)
    methods = ("embed", "bias", "relative")
    needs: frozenset[str] = frozenset()
    """What a kernel must be able to do for it, beyond queries, keys and values: `bias`, `relative`, `values`."""

    def embed(self, x: Tensor, coordinates: Coordinates) -> Tensor:
        """Embeddings (B, T, D) with their positions in them."""
        return x

    def rotation(self, coordinates: Coordinates) -> Rotation:
        """How queries and keys (B, T, .., H) at these coordinates are rotated."""
        return unrotated

    def bias(self, query: Coordinates, key: Coordinates) -> Tensor | None:
        """What is added to the scores (B or 1, N, T, S), from the positions alone."""
        return None

    def relative(self, query: Coordinates, key: Coordinates) -> Relative | None:
        """Vectors along the edges."""
        return None


class AddedPosition(Scheme):
    """A table (L, D), learned or sinusoidal, whose rows are added to the embeddings."""

    def __init__(self, table: Tensor, *, learned: bool) -> None:
        super().__init__()
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def embed(self, x: Tensor, coordinates: Coordinates) -> Tensor:
        if coordinates.start is not None and coordinates.position is None:
            return x + self.table[coordinates.start : coordinates.start + x.shape[1]]
        return x + self.table[coordinates.positions]


class GridPosition(Scheme):
    """A vector per row and one per column; positions are (row, column)."""

    def __init__(self, config: Grid, model_dim: int) -> None:
        super().__init__()
        self.row_table = nn.Parameter(torch.empty(config.rows, model_dim))
        self.column_table = nn.Parameter(torch.empty(config.columns, model_dim))

    def embed(self, x: Tensor, coordinates: Coordinates) -> Tensor:
        row, column = _axes(coordinates, 2).unbind(-1)
        return x + self.row_table[row] + self.column_table[column]


class RotaryPosition(Scheme):
    """Rotary embedding (Su et al. 2021, eq. 34), halves layout: turned feature i is paired with i + R/2, R of them."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Rotary, rotated_dim: int, context_length: int) -> None:
        super().__init__()
        frequencies, factor = rotary_frequencies(config, rotated_dim // config.axes)
        angles = torch.arange(context_length, dtype=torch.float64, device=CPU)[:, None] * frequencies
        self.rotated_dim, self.axes = rotated_dim, config.axes
        repeats = 2 if self.axes == 1 else 1  # with one axis the rows are stored as they are used
        self.register_buffer("cos", (angles.cos() * factor).float().repeat(1, repeats), persistent=False)
        self.register_buffer("sin", (angles.sin() * factor).float().repeat(1, repeats), persistent=False)
        if self.axes == 1:
            self.sin[:, : rotated_dim // 2].neg_()

    def rotation(self, coordinates: Coordinates) -> Rotation:
        cos, sin = self.tables(coordinates)  # (.., T, R)

        def rotate(heads: Tensor) -> Tensor:
            """(B, T, .., H), each pair of features turned by its token's angle."""
            rotated_dim, between = self.rotated_dim, [1] * (heads.dim() - 3)
            c, s = (t.to(heads.dtype).view(*t.shape[:-1], *between, rotated_dim) for t in (cos, sin))
            rotated = heads if heads.shape[-1] == rotated_dim else heads[..., :rotated_dim]
            out = rotated * c + rotated.roll(rotated_dim // 2, -1) * s
            return out if rotated is heads else torch.cat([out, heads[..., rotated_dim:]], -1)

        return rotate

    def tables(self, coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (.., T, R) of the positions."""
        if self.axes > 1:
            positions = _axes(coordinates, self.axes)
            cos, sin = self.cos[positions].flatten(-2), self.sin[positions].flatten(-2)
            return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        if coordinates.start is not None and coordinates.position is None:
            positions = slice(coordinates.start, coordinates.start + coordinates.index.shape[-1])
            return self.cos[positions], self.sin[positions]
        return self.cos[coordinates.positions], self.sin[coordinates.positions]


class ShawPosition(Scheme):
    """A learned vector per clipped distance for keys, and one for values (Shaw et al. 2018, eq. 3-4)."""

    methods = ("scores", "mixed")

    def __init__(self, config: Shaw, head_dim: int) -> None:
        super().__init__()
        self.distance = config.distance
        self.key_table = nn.Parameter(torch.empty(2 * config.distance + 1, head_dim))
        self.value_table = nn.Parameter(torch.empty(2 * config.distance + 1, head_dim)) if config.values else None
        self.needs = frozenset({"relative", "values"} if config.values else {"relative"})

    def relative(self, query: Coordinates, key: Coordinates) -> Relative | None:
        rows = distances(query, key).clamp(-self.distance, self.distance) + self.distance
        mixed = None if self.value_table is None else partial(self.mixed, rows=rows)
        return Relative(partial(self.scores, rows=rows), mixed)

    def scores(self, q: Tensor, rows: Tensor) -> Tensor:
        """Queries (B, N, T, H) times the vectors of their edges, whose rows of the table are (B or 1, T, S)."""
        products = q @ self.key_table.to(q.dtype).T
        return products.gather(-1, rows.unsqueeze(1).expand(*products.shape[:2], *rows.shape[1:]))

    def mixed(self, weights: Tensor, rows: Tensor) -> Tensor:
        """The edges' vectors (B, N, T, H), weighted by (B, N, T, S)."""
        assert self.value_table is not None
        by_row = weights.new_zeros(*weights.shape[:3], len(self.value_table))
        by_row = by_row.scatter_add(-1, rows.unsqueeze(1).expand_as(weights), weights)
        return by_row @ self.value_table.to(weights.dtype)


class BucketPosition(Scheme):
    """A learned bias per head and bucket of distances: near ones exact, far ones by logarithm (T5, section 2.1)."""

    needs = frozenset({"bias"})

    def __init__(self, config: Buckets, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.num_buckets, num_heads))

    def bias(self, query: Coordinates, key: Coordinates) -> Tensor | None:
        return self.table[self.buckets(distances(query, key))].movedim(-1, -3)

    def buckets(self, distance: Tensor) -> Tensor:
        """The bucket of each distance, key's position minus query's."""
        count, first = self.config.num_buckets, torch.zeros_like(distance)
        if self.config.bidirectional:
            count //= 2
            first, distance = (distance > 0) * count, distance.abs()
        else:
            distance = -distance.clamp(max=0)
        exact = count // 2
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(self.config.max_distance / exact)
        far = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)


class ALiBiPosition(Scheme):
    """-slope x distance, with a slope per head (Press et al. 2022, section 3)."""

    needs = frozenset({"bias"})
    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(num_heads), device=CPU), persistent=False)

    def bias(self, query: Coordinates, key: Coordinates) -> Tensor | None:
        return -self.slopes[:, None, None] * distances(query, key).abs().unsqueeze(-3)


def distances(query: Coordinates, key: Coordinates) -> Tensor:
    """Key's position minus query's, (B, T, S)."""
    return key.positions.unsqueeze(1) - query.positions.unsqueeze(2)


def _axes(coordinates: Coordinates, count: int) -> Tensor:
    position = coordinates.position
    if position is None or position.dim() != 3 or position.shape[-1] != count:
        shape = "only an index" if position is None else f"positions of shape {tuple(position.shape)}"
        raise ValueError(f"the position scheme needs positions of {count} numbers, but the tokens have {shape}")
    return position


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head: a geometric series from 2^(-8/n); for other counts than powers of two, that of the next
    lower power and every other one of the next higher."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    finer = [2 ** (-4 * (i + 1) / power) for i in range(2 * power)]
    return slopes + finer[0::2][: num_heads - power]


def rotary_frequencies(config: Rotary, dim: int) -> tuple[Tensor, float]:
    """Radians per position of each pair (dim / 2,), float64, and what cosines and sines are multiplied by."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=CPU) / dim
    plain, extension = config.base**-exponents, config.extension
    return (plain, 1.0) if extension is None else _extended(plain, config.base, dim, extension)


def _extended(plain: Tensor, base: float, dim: int, extension: Extension) -> tuple[Tensor, float]:
    slow = plain / extension.factor
    match extension:
        case LinearExtension():
            return slow, 1.0
        case NTKExtension(factor=factor):
            if dim <= 2:
                raise ValueError("an ntk extension needs two turned pairs of features or more; set another extension")
            exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=CPU) / dim
            return (base * factor ** (dim / (dim - 2))) ** -exponents, 1.0
        case YaRNExtension():
            first, last = (
                dim * math.log(extension.original_length / (beta * 2 * math.pi)) / (2 * math.log(base))
                for beta in (extension.beta_fast, extension.beta_slow)
            )
            low, high = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
            ramp = (torch.arange(len(plain), dtype=torch.float64, device=CPU) - low) / ((high - low) or 0.001)
            share = ramp.clamp(0, 1)
            factor = extension.attention_factor
            return slow * share + plain * (1 - share), 0.1 * math.log(
                extension.factor
            ) + 1 if factor is None else factor
        case Llama3Extension(low_frequency_factor=low, high_frequency_factor=high):
            turns = plain * extension.original_length / (2 * math.pi)
            share = ((turns - low) / (high - low)).clamp(0, 1)
            return slow * (1 - share) + plain * share, 1.0
        case _:
            assert_never(extension)


def sinusoids(context_length: int, dim: int, base: float, order: str) -> Tensor:
    """(T, D) sines and cosines (Vaswani et al. 2017, section 3.5), side by side or in halves."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=CPU) / dim
    angles = torch.arange(context_length, dtype=torch.float64, device=CPU)[:, None] * base**-exponents
    sin, cos = angles.sin(), angles.cos()[:, : dim // 2]
    if order == "halves":
        return torch.cat([sin, cos], -1).float()
    table = torch.zeros(context_length, dim, dtype=torch.float64, device=CPU)
    table[:, 0::2], table[:, 1::2] = sin, cos
    return table.float()


def build_position(
    config: Position | None, *, model_dim: int, num_heads: set[int], rotated_dims: set[int], context_length: int
) -> Scheme:
    """The scheme that the blocks of a stack share, from what they have; one per block is built by the block itself.

    Raises ValueError if the blocks disagree about what they would share.
    """
    match config:
        case None | Shaw():
            return Scheme()
        case Learned():
            return AddedPosition(torch.empty(context_length, model_dim), learned=True)
        case Grid():
            return GridPosition(config, model_dim)
        case Sinusoidal():
            return AddedPosition(sinusoids(context_length, model_dim, config.base, config.order), learned=False)
        case Rotary():
            return RotaryPosition(config, _only(rotated_dims, "rotary table", "head_dim"), context_length)
        case Buckets():
            return BucketPosition(config, _only(num_heads, "table of biases", "num_heads"))
        case ALiBi():
            return ALiBiPosition(_only(num_heads, "slopes", "num_heads"))
        case _:
            assert_never(config)


def _only(values: set[int], what: str, field: str) -> int:
    if len(values) != 1:
        raise ValueError(
            f"blocks of one stack share the {what}, but have {field} {sorted(values)}; give them one {field}"
        )
    return next(iter(values))

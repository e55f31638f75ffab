"""Configuration of a ladder of runs: sizes, tokens per size, seeds, hyper-parameter transfer. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FixedRatio:
    """Each size sees the same number of tokens per parameter (Hoffmann et al. 2022 found about 20 best)."""

    sizes: int = 8
    tokens_per_parameter: float = 20.0
    """Effective parameters: training FLOPs per token / 6."""

    def __post_init__(self) -> None:
        if self.sizes < 1 or self.tokens_per_parameter <= 0:
            raise ValueError(f"sizes={self.sizes} must be at least 1, tokens_per_parameter above 0")


@dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """Groups of equal compute, each of which trades size against tokens (Hoffmann et al. 2022, section 3.2)."""

    groups: int = 4
    sizes: int = 5
    """In each group."""
    tokens_per_parameter: float = 20.0
    """At the middle size of a group."""
    spread: float = 30.0
    """Ratio of the most to the fewest tokens per parameter in a group."""

    def __post_init__(self) -> None:
        if self.groups < 1 or self.sizes < 1 or self.tokens_per_parameter <= 0 or self.spread < 1:
            raise ValueError(
                f"groups={self.groups} and sizes={self.sizes} must be at least 1, tokens_per_parameter above 0, "
                f"spread={self.spread} at least 1"
            )


Design = FixedRatio | IsoFlop


@dataclass(frozen=True, kw_only=True)
class MuP:
    """Maximal update parametrization (Yang et al. 2022): Adam's learning rate for matrices falls as 1 / width, and its
    weight decay rises so that their product is constant. The rate of embeddings, and Muon's, whose updates have a
    fixed spectral norm, stay. The batch stays."""


@dataclass(frozen=True, kw_only=True)
class Powers:
    """Powers of a run's compute relative to the recipe's own, as fitted to sweeps (DeepSeek 2024 found -0.125 and
    0.33)."""

    learning_rate: float = -0.125
    batch: float = 0.33


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The recipe's learning rates and batch at every size."""


Transfer = MuP | Powers | Unchanged


HeadsKeep = Literal["width", "number"]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Runs of one recipe from small to large, within a budget."""

    budget: float = 1e13
    """Training FLOPs of all runs together."""
    minutes: float | None = None
    """Instead of a budget: minutes on this machine, at measured speed."""
    decades: float = 2.0
    """Range of compute from the smallest run to the largest, in powers of ten."""
    design: Design = FixedRatio()
    depth_exponent: float = 1.0
    """Layers grow as this power of the width: 1 keeps the recipe's ratio of width to depth, 0 its depth."""
    heads_keep: HeadsKeep = "width"
    """At another width, keep each head's width and change their number, or keep the number, which is smoother."""
    width_step: int = 8
    """Widths are multiples of this; finer steps match the target sizes more closely."""
    transfer: Transfer = MuP()
    seeds: int = 1
    small_seeds: int = 1
    """Seeds of each run below 1/8 of the largest compute, where they are cheap; at least `seeds`."""

    def __post_init__(self) -> None:
        if self.budget <= 0 or (self.minutes is not None and self.minutes <= 0) or self.decades < 0:
            raise ValueError(f"budget={self.budget:g} and minutes must be above 0, decades={self.decades} not negative")
        if self.width_step < 1:
            raise ValueError(f"width_step={self.width_step} must be at least 1")
        if self.seeds < 1 or self.small_seeds < 1:
            raise ValueError(f"seeds={self.seeds} and small_seeds={self.small_seeds} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class OneSize:
    """No ladder: each recipe as written, once for each seed."""

    compute: float | None = None
    """Training FLOPs of each run, which set its steps; None: the recipe's steps."""
    share: float = 1.0
    """Fraction to use of the compute stated by an arm or here, or of the recipe's steps."""
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.share <= 0 or (self.compute is not None and self.compute <= 0):
            raise ValueError(
                f"seeds={self.seeds} must be at least 1, share={self.share} and compute={self.compute} above 0"
            )


SMALL = 1 / 8
"""Runs below this fraction of the largest compute are cheap: they get more seeds, and forecasts are fitted to them."""

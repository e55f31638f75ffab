"""Configuration of a ladder of runs: sizes, tokens per size, seeds, hyper-parameter transfer. Torch-free."""

from __future__ import annotations

from typing import Literal

from isoform.ranges import NonNegative, Number, Positive, Ratio, Size, config


@config
class FixedRatio:
    """Each size sees the same number of tokens per parameter (Hoffmann et al. 2022 found about 20 best)."""

    sizes: Size = 8
    tokens_per_parameter: Positive = 20.0
    """Effective parameters: training FLOPs per token / 6."""


@config
class IsoFlop:
    """Groups of equal compute, each of which trades size against tokens (Hoffmann et al. 2022, section 3.2)."""

    groups: Size = 4
    sizes: Size = 5
    """In each group."""
    tokens_per_parameter: Positive = 20.0
    """At the middle size of a group."""
    spread: Ratio = 30.0
    """Ratio of the most to the fewest tokens per parameter in a group."""


Design = FixedRatio | IsoFlop


@config
class MuP:
    """Maximal update parametrization (Yang et al. 2022): Adam's learning rate for matrices falls as 1 / width, and its
    weight decay rises so that their product is constant. The rate of embeddings, and Muon's, whose updates have a
    fixed spectral norm, stay. The batch stays."""


@config
class Powers:
    """Powers of a run's compute relative to the recipe's own, as fitted to sweeps (DeepSeek 2024 found -0.125 and
    0.33)."""

    learning_rate: Number = -0.125
    batch: Number = 0.33


@config
class Unchanged:
    """The recipe's learning rates and batch at every size."""


Transfer = MuP | Powers | Unchanged


HeadsKeep = Literal["width", "number"]


@config
class Ladder:
    """Runs of one recipe from small to large, within a budget."""

    budget: Positive = 1e13
    """Training FLOPs of all runs together."""
    minutes: Positive | None = None
    """Instead of a budget: minutes on this machine, at measured speed."""
    decades: NonNegative = 2.0
    """Range of compute from the smallest run to the largest, in powers of ten."""
    design: Design = FixedRatio()
    """Which sizes, with how many tokens each."""
    depth_exponent: Number = 1.0
    """Layers grow as this power of the width: 1 keeps the recipe's ratio of width to depth, 0 its depth."""
    heads_keep: HeadsKeep = "width"
    """At another width, keep each head's width and change their number, or keep the number, which is smoother."""
    width_step: Size = 8
    """Widths are multiples of this; finer steps match the target sizes more closely."""
    transfer: Transfer = MuP()
    """What other sizes make of the learning rates and the batch."""
    seeds: Size = 1
    """Seeds of each run."""
    small_seeds: Size = 1
    """Seeds of each run below 1/8 of the largest compute, where they are cheap; at least `seeds`."""


@config
class OneSize:
    """No ladder: each recipe as written, once for each seed."""

    compute: Positive | None = None
    """Training FLOPs of each run, which set its steps; None: the recipe's steps."""
    share: Positive = 1.0
    """Fraction to use of the compute stated by an arm or here, or of the recipe's steps."""
    seeds: Size = 1


SMALL = 1 / 8
"""Runs below this fraction of the largest compute are cheap: they get more seeds, and forecasts are fitted to them."""

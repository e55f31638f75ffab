"""Means over seeds, and contrasts between the means of arms, with intervals that count seeds and test items.

Arms whose runs share their seeds share initialisation, order of the data and dropout: their contrast is taken seed by
seed, so that what they share cancels. Arms with other seeds are compared by Welch's intervals (1947). A measure over
test items is as uncertain as they are few: half of their interval is added to that of the seeds, at right angles
(Zou and Donner 2008), since three seeds say too little of a variance to mix the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev, variance

from isoform.scaling.estimate import Estimate, student

BySeed = Mapping[int, float]
"""The values of one arm's runs."""


@dataclass(frozen=True)
class ItemError:
    """The sampling error of a number by the choice of the test items."""

    variance: float = 0.0
    num_items: int = 0


NO_ITEMS = ItemError()
"""Of a loss, whose validation text is the same and long."""


def is_paired(arms: Sequence[BySeed]) -> bool:
    """Whether the runs of all arms have the same seeds, so that they are compared seed by seed."""
    return all(arm.keys() == arms[0].keys() for arm in arms[1:])


def contrast(terms: Sequence[tuple[float, BySeed]], items: ItemError = NO_ITEMS, level: float = 0.9) -> Estimate:
    """The weighted sum of the arms' means, with its interval at confidence `level`; none with a single seed.

    Paired by seed if the arms have the same seeds, otherwise by Welch's approximation.
    """
    value = sum(weight * fmean(arm.values()) for weight, arm in terms)
    if any(len(arm) < 2 for _, arm in terms):
        return Estimate(value)
    if is_paired([arm for _, arm in terms]):
        sums = [sum(weight * arm[seed] for weight, arm in terms) for seed in terms[0][1]]
        parts = [(variance(sums) / len(sums), len(sums) - 1)]
    else:
        parts = [(weight**2 * variance(arm.values()) / len(arm), len(arm) - 1) for weight, arm in terms]
    total = sum(part for part, _ in parts)
    half = 0.0
    if total > 0:
        freedom = total**2 / sum(part**2 / df for part, df in parts)
        half = student(freedom, level) * math.sqrt(total)
    if items.variance > 0:
        half = math.hypot(half, student(max(1, items.num_items - 1), level) * math.sqrt(items.variance))
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Spread:
    """Standard deviations between seeds, of several arms: their median, least and most.

    Not pooled: one arm that is three times as noisy would speak for all.
    """

    middle: float
    least: float
    most: float


def spread(arms: Sequence[BySeed]) -> Spread | None:
    """Of all arms with several seeds; None if there are none."""
    deviations = [stdev(arm.values()) for arm in arms if len(arm) > 1]
    return Spread(median(deviations), min(deviations), max(deviations)) if deviations else None

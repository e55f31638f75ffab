"""Arms of a ladder against each other: compute multipliers, exponents and losses under one floor, with intervals.

The mean loss of every arm at every size follows floor + (scale / C)^exponent, with one floor for all arms, since a text
has one entropy. Given the floor the curves are straight lines through log(loss - floor); the floor itself is weighed
on a grid by its likelihood, and all numbers are drawn from that posterior.

- A multiplier is read size by size: the baseline's curve, shifted through its own loss there, gives the compute at
  which it would reach the arm's loss. With one baseline, a lower loss is a larger multiplier, always.
- The noise is the scatter of two arms' difference about its trend. It contains whatever differs from size to size:
  seeds, whether the arms share them or not, and what the law misses of one arm and not of the other. Each comparison
  has its own, with sizes - 2 degrees of freedom, so that a noisy arm doesn't blur the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from isoform.scaling.curves import finite_rows
from isoform.scaling.estimate import Estimate
from isoform.scaling.laws import PowerLaw
from isoform.scaling.study import Row

NUM_DRAWS = 2000
MOST_OF_LEAST = 0.95
"""The largest floor that is considered, as a fraction of the least loss, where no bounds are given."""
LEAST_SLOPE = 1e-3
"""Least exponent of a drawn curve: a flatter baseline reaches no other loss."""


@dataclass(frozen=True)
class Gain:
    """An arm against its baseline, size by size."""

    arm: str
    baseline: str
    least: Estimate
    """Compute multiplier at the smallest size."""
    most: Estimate
    """… and at the largest."""
    growth: Estimate
    """Exponent by which the multiplier grows with compute."""
    loss_change: Estimate
    """Relative change of the loss at the largest size."""
    scatter: float
    """Standard deviation of the difference of log losses about its trend over sizes: what the intervals rest on."""
    seed_noise: float | None
    """The part of it that seeds explain; None without two shared seeds a size."""

    @property
    def notes(self) -> list[str]:
        """Where the multiplier at the largest size rests on more than the runs."""
        notes = []
        if self.most.value > 1:
            notes.append(f"read {self.most.value:.2g} times beyond the baseline's largest run, on its fitted curve")
        if self.seed_noise is not None and self.scatter > 2 * self.seed_noise:
            notes.append(
                f"the arms' difference scatters about its trend by {self.scatter:.2%}, of which seeds explain "
                f"{self.seed_noise:.2%}"
            )
        return notes


@dataclass(frozen=True)
class Curve:
    """The curve of an arm, and draws of it."""

    law: PowerLaw
    replicates: tuple[PowerLaw, ...]


class Ladders:
    """The curves of all arms of a study, under one floor. Raises ValueError for fewer than three sizes in common."""

    def __init__(
        self,
        by_arm: Mapping[str, Sequence[Row]],
        cost: Callable[[Row], float] = lambda row: row.compute,
        *,
        floor: tuple[float, float] | None = None,
        level: float = 0.9,
    ) -> None:
        """floor: bounds known from other runs on the text, nats; level: confidence level of all intervals."""
        self.arms, self.level = tuple(by_arm), level
        self.cells = {arm: _cells(rows) for arm, rows in by_arm.items()}
        groups = [g for g in next(iter(self.cells.values())) if all(g in cells for cells in self.cells.values())]
        if len(groups) < 3:
            raise ValueError(f"all arms have runs at {len(groups)} computes; {3 - len(groups)} more would suffice")
        self.groups = groups
        each = [[cells[g] for g in groups] for cells in self.cells.values()]
        self.log_costs = np.array([[fmean(math.log(cost(row)) for row in cell) for cell in arm] for arm in each])
        self.log_losses = np.array(
            [[fmean(math.log(row.loss or math.nan) for row in cell) for cell in arm] for arm in each]
        )
        self.floors = self._grid(floor)
        self._fit()
        self._draw(np.random.default_rng(0))

    def _grid(self, bounds: tuple[float, float] | None, num: int = 60) -> np.ndarray:
        """[f], the floors that are considered."""
        least = math.exp(self.log_losses.min())
        low, high = bounds or (0.0, MOST_OF_LEAST * least)
        if low >= 0.99 * least:
            raise ValueError(f"the floor of {low:g} nats isn't below the least loss, {least:.4g}; correct the bounds")
        return np.linspace(low, min(high, 0.99 * least), num)

    def _fit(self) -> None:
        """Lines through log(loss - floor) of each arm [a], for each floor [f]."""
        losses = np.exp(self.log_losses)
        above = losses - self.floors[:, None, None]
        heights, shares = np.log(above), above / losses  # a change of log loss is a share of that of the height
        weights = shares**2
        total = weights.sum(2)
        self.centres = (weights * self.log_costs).sum(2) / total
        self.heights = (weights * heights).sum(2) / total
        offsets = self.log_costs - self.centres[..., None]
        spans = (weights * offsets**2).sum(2)
        self.exponents = -(weights * offsets * heights).sum(2) / spans
        residuals = shares * (heights - self.heights[..., None] + self.exponents[..., None] * offsets)
        self.slopes = shares * self.exponents[..., None]
        """[f, a, s], of log loss in log compute."""
        self.freedom = max(1, losses.size - 2 * len(self.arms) - 1)
        squares = (residuals**2).sum((1, 2)) + 1e-16
        evidence = -self.freedom / 2 * np.log(squares) - (np.log(spans) + np.log(total)).sum(1) / 2
        self.weights = np.exp(evidence - evidence.max())
        self.weights /= self.weights.sum()
        self.middle = int(np.searchsorted(np.cumsum(self.weights), 0.5))
        """The index of the floor that numbers are computed with."""
        self.spans, self.totals, self.squares = spans, total, squares

    def _draw(self, rng: np.random.Generator) -> None:
        """Draws [d] of the floor and of each arm's height and exponent."""
        self.index = rng.choice(len(self.floors), NUM_DRAWS, p=self.weights)
        spread = np.sqrt(self.squares[self.index] / rng.chisquare(self.freedom, NUM_DRAWS))[:, None]
        height, slope = rng.standard_normal((2, NUM_DRAWS, len(self.arms)))
        self.drawn_heights = self.heights[self.index] + spread * height / np.sqrt(self.totals[self.index])
        exponents = self.exponents[self.index] + spread * slope / np.sqrt(self.spans[self.index])
        self.drawn_exponents = np.maximum(exponents, LEAST_SLOPE)
        self.normal = rng.standard_normal((NUM_DRAWS, len(self.groups)))

    def _estimate(self, value: float, draws: np.ndarray) -> Estimate:
        low, high = np.quantile(draws, ((1 - self.level) / 2, (1 + self.level) / 2))
        return Estimate(value, float(low), float(high))

    @property
    def floor(self) -> Estimate:
        """The floor of the text, nats."""
        return self._estimate(float(self.floors[self.middle]), self.floors[self.index])

    @property
    def notes(self) -> list[str]:
        """What all numbers rest on beside the runs."""
        notes, most = [], max(map(len, self.cells.values()))
        if len(self.groups) < most:
            notes.append(f"arms are compared at {len(self.groups)} of {most} sizes, where all have finished runs")
        for end, weight in ((self.floors[0], self.weights[:3].sum()), (self.floors[-1], self.weights[-3:].sum())):
            if weight > 0.25:
                notes.append(f"the floor of the text is at its bound, {end:.3g} nats: these runs don't determine it")
        return notes

    def exponent(self, arm: str) -> Estimate:
        """The exponent of an arm's curve."""
        a = self.arms.index(arm)
        return self._estimate(float(self.exponents[self.middle, a]), self.drawn_exponents[:, a])

    def curve(self, arm: str, num: int = 200) -> Curve:
        """An arm's curve, with draws for its interval."""
        a, f = self.arms.index(arm), self.middle
        law = _law(self.floors[f], self.heights[f, a], self.exponents[f, a], self.centres[f, a])
        drawn = (
            _law(self.floors[i], self.drawn_heights[d, a], self.drawn_exponents[d, a], self.centres[i, a])
            for d, i in enumerate(self.index[:num])
        )
        return Curve(law, tuple(drawn))

    def loss(self, arm: str, cost: float) -> Estimate:
        """The loss of an arm's curve at a cost."""
        a, f = self.arms.index(arm), self.middle

        def at(floor: np.ndarray, height: np.ndarray, exponent: np.ndarray, centre: np.ndarray) -> np.ndarray:
            return floor + np.exp(height - exponent * (math.log(cost) - centre))

        value = at(self.floors[f], self.heights[f, a], self.exponents[f, a], self.centres[f, a])
        drawn = at(
            self.floors[self.index], self.drawn_heights[:, a], self.drawn_exponents[:, a], self.centres[self.index, a]
        )
        return self._estimate(float(value), drawn)

    def crossing(self, first: str, second: str) -> Estimate | None:
        """The cost at which two curves cross; None if that the order flips at all can't be told from the runs.

        Two curves with one floor cross once, unless their exponents are equal.
        """
        a, b = self.arms.index(first), self.arms.index(second)

        def at(heights: np.ndarray, exponents: np.ndarray, centres: np.ndarray) -> np.ndarray:
            at_zero = heights + exponents * centres
            return (at_zero[..., a] - at_zero[..., b]) / (exponents[..., a] - exponents[..., b])

        steeper = self.drawn_exponents[:, a] > self.drawn_exponents[:, b]
        if min(steeper.mean(), 1 - steeper.mean()) > (1 - self.level) / 2:
            return None
        f = self.middle
        value = at(self.heights[f], self.exponents[f], self.centres[f])
        drawn = at(self.drawn_heights, self.drawn_exponents, self.centres[self.index])
        return self._estimate(float(np.exp(np.minimum(value, 300))), np.exp(np.minimum(drawn, 300)))

    def gain(self, baseline: str, arm: str) -> Gain:
        """How many times the cost the baseline needs for the arm's loss, at both ends, and how that grows."""
        b, a = self.arms.index(baseline), self.arms.index(arm)
        weights = self.slopes[self.middle, b]
        values = self._log_multipliers(b, a, self.middle)
        x = self.log_costs[b] - self.log_costs[b].mean()
        trend, _ = np.linalg.qr(np.stack([np.ones_like(x), x], 1) * weights[:, None])

        def scatter(differences: np.ndarray) -> np.ndarray:
            """Standard deviation about the trend, of differences [..., s] of log losses."""
            residuals = differences - (differences @ trend) @ trend.T
            return np.sqrt((residuals**2).sum(-1) / (len(x) - 2))

        # Noise that scatters about its own trend as much as the runs do: exact for any size of it.
        observed = float(scatter(weights * values))
        noise = np.clip(self.normal * (observed / scatter(self.normal))[:, None], -1, 1)
        drawn = self._log_multipliers(b, a, self.index, self.drawn_exponents[:, b], noise)
        squares = weights**2
        offsets = squares * (x - (squares * x).sum() / squares.sum())
        powers = [(logs @ offsets) / float(offsets @ x) for logs in (values, drawn)]
        change = self.log_losses[a] - self.log_losses[b]
        return Gain(
            arm,
            baseline,
            self._estimate(math.exp(values[0]), np.exp(np.minimum(drawn[:, 0], 300))),
            self._estimate(math.exp(values[-1]), np.exp(np.minimum(drawn[:, -1], 300))),
            self._estimate(float(powers[0]), powers[1]),
            self._estimate(math.expm1(change[-1]), np.expm1(change[-1] + noise[:, -1])),
            observed,
            self._seed_noise(baseline, arm),
        )

    def _log_multipliers(
        self,
        b: int,
        a: int,
        floors: int | np.ndarray,
        exponents: np.ndarray | None = None,
        noise: np.ndarray | float = 0.0,
    ) -> np.ndarray:
        """[..., s], of arm a against arm b: of the cost at which b's curve, shifted through its loss, reaches a's."""
        floor = np.asarray(self.floors[floors])[..., None]
        exponent = np.maximum(self.exponents[floors, b] if exponents is None else exponents, LEAST_SLOPE)[..., None]
        ours, theirs = np.exp(self.log_losses[a] + noise), np.exp(self.log_losses[b])
        above = np.maximum(ours - floor, 1e-4 * ours)
        return np.log((theirs - floor) / above) / exponent + self.log_costs[b] - self.log_costs[a]

    def _seed_noise(self, baseline: str, arm: str) -> float | None:
        """Standard deviation of the difference of two arms' mean log losses at a size, by the seeds that they share."""
        squares, freedom, seeds = 0.0, 0, 0
        for g in self.groups:
            ours, theirs = (
                {row.seed: math.log(row.loss or math.nan) for row in self.cells[x][g]} for x in (arm, baseline)
            )
            changes = np.array([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
            if len(changes) > 1:
                squares += float(((changes - changes.mean()) ** 2).sum())
                freedom += len(changes) - 1
                seeds += len(changes)
        return math.sqrt(squares / freedom / (seeds / len(self.groups))) if freedom else None


def _cells(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The finished runs of an arm by their group, in order of compute."""
    cells: dict[int, list[Row]] = {}
    for row in finite_rows(rows):
        cells.setdefault(row.group, []).append(row)
    return cells


def _law(floor: float, height: float, exponent: float, centre: float) -> PowerLaw:
    return PowerLaw(float(np.exp(np.minimum(height / exponent + centre, 600))), float(exponent), float(floor))

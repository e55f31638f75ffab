"""What the runs of a study say: the law, forecasts held against later runs, one method against another, and the cost.

A gain is told as a compute multiplier: how many times the compute the baseline needs to reach the same loss.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev, variance

import numpy as np

from isoform.scaling.config import SMALL
from isoform.scaling.fitting import MIN_POINTS, Fit, Forecast, fit_power_law, fit_shared_floor
from isoform.scaling.laws import Law, Points, PowerLaw
from isoform.scaling.study import Row

CLOSE = 0.1
"""Costs that differ by more than this part are not the same cost."""


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 90 % interval; None where the runs are too few for one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __format__(self, how: str) -> str:
        how = how or ".4g"
        if math.isnan(self.value):
            return "–"
        if self.low is None or self.high is None or self.low == self.high:
            return format(self.value, how)
        return f"{self.value:{how}} ({self.low:{how}} to {self.high:{how}})"

    def __str__(self) -> str:
        return format(self)


@dataclass(frozen=True)
class Scored:
    """A forecast of a run from runs of less than 1/8 of its compute, and what the run then reached."""

    compute: float
    num_fitted: int
    forecast: Forecast
    actual: float
    naive: float
    """The loss of the largest run that was fitted: "it stays the same"."""

    @property
    def error(self) -> float:
        """Relative error of the forecast."""
        return abs(self.forecast.loss / self.actual - 1)

    @property
    def naive_error(self) -> float:
        return abs(self.naive / self.actual - 1)

    @property
    def is_held(self) -> bool | None:
        """Whether the interval holds what was reached; None without an interval."""
        low, high = self.forecast.low, self.forecast.high
        return None if low is None or high is None else low <= self.actual <= high

    @property
    def half_width(self) -> float | None:
        """Half the interval, as a part of the loss."""
        low, high = self.forecast.low, self.forecast.high
        return None if low is None or high is None else (high - low) / 2 / self.actual


def finite(rows: Iterable[Row]) -> list[Row]:
    """The rows with a loss, least compute first."""
    return sorted((row for row in rows if row.is_finite), key=lambda row: (row.compute, row.seed))


def left_out(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """The rows that no fit uses, and why."""
    return [(row, row.reason or "no loss") for row in rows if not row.is_finite]


def rows_by_arm(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by arm, in the order in which arms come first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.arm, []).append(row)
    return found


def to_points(rows: Sequence[Row], num_unique: int | None = None) -> Points:
    """Finished runs as what laws are fitted to; num_unique: tokens of the text, beyond which they repeat."""
    return Points(
        unique_tokens=None if num_unique is None else np.full(len(rows), float(num_unique)),
        parameters=np.array([row.parameters for row in rows]),
        tokens=np.array([float(row.tokens) for row in rows]),
        loss=np.array([row.loss for row in rows], dtype=float),
    )


def curve(
    rows: Sequence[Row], cost: Callable[[Row], float] = lambda row: row.compute, *, with_floor: bool = True
) -> Fit[PowerLaw]:
    """Loss against a cost, of an arm's runs; replicates are drawn anew for each arm. Raises ValueError for too few."""
    rows = finite(rows)
    seed = zlib.crc32(rows[0].arm.encode()) if rows else 0
    return fit_power_law(_points(rows, cost), with_floor=with_floor, seed=seed)


def score_forecasts(rows: Sequence[Row], top: int = 3) -> list[Scored]:
    """Of the largest computes, what the runs below 1/8 of each would have said. Raises ValueError for too few runs."""
    rows = finite(rows)
    scored = []
    for group in _groups(rows)[-top:]:
        there = [row for row in rows if row.group == group]
        compute = fmean(row.compute for row in there)
        below = [row for row in rows if row.compute < SMALL * compute]
        fit = curve(below)
        largest = max(row.compute for row in below)
        naive = fmean(row.loss for row in below if row.compute > 0.99 * largest and row.loss is not None)
        forecast = fit.forecast(lambda law, at=compute: float(law.loss(at)))
        scored.append(Scored(compute, len(below), forecast, fmean(r.loss for r in there if r.loss is not None), naive))
    return scored


@dataclass(frozen=True)
class Gain:
    """One arm against the baseline, size by size."""

    arm: str
    least: Estimate
    """Compute multiplier at the least compute of both arms."""
    most: Estimate
    """… and at the most."""
    growth: Estimate
    """Exponent by which the multiplier grows with compute."""
    loss_change: float
    """Relative change of the loss at the most compute."""

    @property
    def verdict(self) -> str:
        """Whether the gain is real at the largest compute, and where it goes."""
        real = _sign(self.most, 1.0)
        trend = _sign(self.growth, 0.0)
        if real is None or trend is None:
            return "too few runs to tell"
        start = _sign(self.least, 1.0)
        if start and real and start != real:
            return "reverses"
        if not real:
            return "fades" if start and trend == -start else "noise"
        what = "a gain" if real > 0 else "a loss"
        return f"{what}, {'grows' if trend == real else 'fades' if trend == -real else 'holds'}"


def _sign(estimate: Estimate, zero: float) -> int | None:
    """1 or -1 if the interval lies on one side of zero, 0 if it doesn't, None without one."""
    if estimate.low is None or estimate.high is None:
        return None
    return 1 if estimate.low > zero else -1 if estimate.high < zero else 0


def gain(
    baseline: Sequence[Row], method: Sequence[Row], cost: Callable[[Row], float] = lambda row: row.compute
) -> Gain:
    """How many times the compute (or other cost) the baseline needs for the method's loss, and where that goes.

    Size by size: what runs of one size miss in common, both methods' do, so that it cancels. The baseline's curve,
    moved to where its runs of that size lie, says at which compute it has the method's loss. Both curves have one
    floor, that of the text. Intervals are of 90 %, from what seeds differ by and from doubt about the curves. Raises
    ValueError for too few runs.
    """
    one, two = ({g: [r for r in finite(rows) if r.group == g] for g in _groups(rows)} for rows in (baseline, method))
    groups = [g for g in one if g in two]
    if len(groups) < 3:
        raise ValueError(f"{len(groups)} computes that both have runs of; {3 - len(groups)} more would suffice")
    both = [[row for g in groups for row in arm[g]] for arm in (one, two)]
    fit = fit_shared_floor([_points(rows, cost) for rows in both])
    spread, df = _spread([arm[g] for arm in (one, two) for g in groups], fit)
    at = np.array([[fmean(math.log(cost(row)) for row in arm[g]) for g in groups] for arm in (one, two)])
    seen = np.array([[fmean(math.log(row.loss or math.nan) for row in arm[g]) for g in groups] for arm in (one, two)])
    seeds = np.array([[len(arm[g]) for g in groups] for arm in (one, two)])

    def multipliers(law: PowerLaw, losses: np.ndarray) -> np.ndarray:
        """Of each size, in logs: what the law, moved to the baseline's loss, needs for the method's."""
        moved = np.log(law.loss(np.exp(at[0]))) - losses[0]
        above = np.maximum(np.exp(losses[1] + moved) - law.floor, 1e-6 * np.exp(losses[1]))
        return math.log(law.scale) - np.log(above) / law.exponent - at[1]

    def told(logs: np.ndarray) -> tuple[float, float, float]:
        return float(np.exp(logs[0])), float(np.exp(logs[-1])), float(np.polyfit(at[1], logs, 1)[0])

    values, rng = told(multipliers(fit.law.laws[0], seen)), np.random.default_rng(0)
    drawn = []
    for laws in fit.replicates:
        noise = spread * math.sqrt(df / rng.chisquare(df)) * rng.standard_normal(seen.shape) / np.sqrt(seeds)
        drawn.append(told(multipliers(laws.laws[0], seen + noise)))
    if len(fit.points) >= MIN_POINTS and drawn:
        ends = np.quantile(drawn, (0.05, 0.95), axis=0)
        least, most, growth = (Estimate(v, float(lo), float(hi)) for v, lo, hi in zip(values, *ends, strict=True))
    else:
        least, most, growth = map(Estimate, values)
    return Gain(method[0].arm, least, most, growth, math.expm1(seen[1, -1] - seen[0, -1]))


def _groups(rows: Iterable[Row]) -> list[int]:
    """The groups of runs that have a loss, least compute first."""
    return list(dict.fromkeys(row.group for row in finite(rows)))


def _points(rows: Sequence[Row], cost: Callable[[Row], float]) -> Points:
    return Points.of_compute(np.array([cost(row) for row in rows]), np.array([row.loss for row in rows], dtype=float))


def _spread(sets: Sequence[Sequence[Row]], fit: Fit) -> tuple[float, int]:
    """By how much log losses of one size and arm differ, as a standard deviation, and its degrees of freedom; where
    seeds are too few to say, by how much runs differ from their curves."""
    logs = [np.log([row.loss for row in rows if row.loss is not None]) for rows in sets]
    df = sum(len(each) - 1 for each in logs)
    if df < 3:
        return fit.noise, max(1, len(fit.points) - 5)
    return math.sqrt(sum(((each - each.mean()) ** 2).sum() for each in logs) / df), df


def interval(fit: Fit[Law], function: Callable[[Law], float]) -> Estimate:
    """A number computed from a law, with its 90 % interval where the runs are enough for one."""
    return Estimate(function(fit.law), *(fit.interval(function) or (None, None)))


def of_both(one: Fit[PowerLaw], other: Fit[PowerLaw], function: Callable[[PowerLaw, PowerLaw], float]) -> Estimate:
    """A number computed from two curves, with its 90 % interval from the replicates of both."""
    value = function(one.law, other.law)
    if not one.replicates or not other.replicates:
        return Estimate(value)
    values = [function(a, b) for a, b in zip(one.replicates, other.replicates, strict=False)]
    return Estimate(value, *(float(q) for q in np.quantile(values, (0.05, 0.95))))


def crossing(one: PowerLaw, other: PowerLaw, low: float, high: float) -> float | None:
    """The cost between two ends at which two curves have the same loss, if their order differs at the ends."""

    def ahead(at: float) -> float:
        return float(one.loss(at)) - float(other.loss(at))

    if ahead(low) * ahead(high) >= 0:
        return None
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ahead(middle) * ahead(high) < 0 else (low, middle)
    return high


def mean(numbers: Sequence[float]) -> Estimate:
    """The mean with its 90 % interval by Student's distribution; none for a single number."""
    if len(numbers) < 2:
        return Estimate(numbers[0])
    half = _student(len(numbers) - 1) * stdev(numbers) / math.sqrt(len(numbers))
    return Estimate(fmean(numbers), fmean(numbers) - half, fmean(numbers) + half)


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """How much larger the mean of `one` is, with its 90 % interval (Welch 1947); none where both are single numbers, or
    neither varies."""
    change = fmean(one) - fmean(other)
    if len(one) < 2 or len(other) < 2:
        return Estimate(change)
    parts = [variance(numbers) / len(numbers) for numbers in (one, other)]
    if not sum(parts):
        return Estimate(change, change, change)
    freedom = sum(parts) ** 2 / sum(p * p / (len(n) - 1) for p, n in zip(parts, (one, other), strict=True))
    half = _student(freedom) * math.sqrt(sum(parts))
    return Estimate(change, change - half, change + half)


def _student(freedom: float) -> float:
    """How many standard errors a 90 % interval reaches on each side."""
    from scipy.special import stdtrit  # half a second to import

    return float(stdtrit(freedom, 0.95))


def pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups; None for no groups."""
    freedom = sum(len(group) - 1 for group in groups)
    return math.sqrt(sum(variance(g) * (len(g) - 1) for g in groups) / freedom) if freedom else None


@dataclass(frozen=True)
class Cost:
    """What an arm costs at its largest compute: counted and measured side by side."""

    arm: str
    num_parameters: float
    num_active_parameters: float
    compute: float
    tokens_per_second: float
    train_seconds: float
    peak_memory_bytes: float
    loss: float
    energy_joules: float | None
    """Of the whole machine, where that could be read."""


def costs(rows: Sequence[Row]) -> list[Cost]:
    """Of each arm its largest runs: the mean of their loss over the seeds, and the median of what they took, since one
    run may have been slowed down by something else."""
    found = []
    for arm, of_arm in rows_by_arm(row for row in rows if row.is_finite).items():
        most = max(row.compute for row in of_arm)
        there = [row for row in of_arm if row.compute > most / 1.05]

        names = [name for name in Cost.__dataclass_fields__ if name not in ("arm", "loss", "energy_joules")]
        taken = {name: median(float(getattr(row, name)) for row in there) for name in names}
        energies = [row.energy_joules for row in there if row.energy_joules is not None]
        loss = fmean(row.loss for row in there if row.loss is not None)
        found.append(Cost(arm, **taken, loss=loss, energy_joules=median(energies) if energies else None))
    return found


def mismatches(found: Sequence[Cost]) -> list[str]:
    """In one sentence what differs by more than 10 % from the first arm; nothing where nothing does."""
    words = {
        "num_parameters": "parameters",
        "num_active_parameters": "active parameters",
        "compute": "training FLOPs",
        "tokens_per_second": "measured throughput",
        "peak_memory_bytes": "peak memory",
    }
    said = []
    for name, word in words.items():
        first = getattr(found[0], name)
        changes = {other.arm: getattr(other, name) / first - 1 for other in found[1:] if first}
        far = sorted((change, arm) for arm, change in changes.items() if abs(change) > CLOSE)
        if far:
            span = " to ".join(dict.fromkeys(f"{change:+.0%}" for change, _ in (far[0], far[-1])))
            who = " and ".join(arm for _, arm in far) if len(far) <= 3 else f"{len(far)} arms"
            said.append(f"{word} {span} ({who})")
    return [f"not the same cost as {found[0].arm}: {'; '.join(said)}"] if said else []

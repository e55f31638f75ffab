"""Analysis of the runs of a study: fitted law, forecasts scored by later runs, one method against another, cost.

A gain is a compute multiplier: how many times the compute the baseline needs to reach the same loss.
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

COST_TOLERANCE = 0.1
"""Costs that differ by more than this fraction are reported as unequal."""


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 90 % interval; None if there are too few runs for one."""

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
class ScoredForecast:
    """A forecast of a run from runs with less than 1/8 of its compute, and the loss that the run reached."""

    compute: float
    num_fitted: int
    forecast: Forecast
    actual: float
    naive: float
    """The loss of the largest fitted run, as a forecast of no change."""

    @property
    def error(self) -> float:
        """Relative error of the forecast."""
        return abs(self.forecast.loss / self.actual - 1)

    @property
    def naive_error(self) -> float:
        return abs(self.naive / self.actual - 1)

    @property
    def is_covered(self) -> bool | None:
        """Whether the interval covers the actual loss; None without an interval."""
        low, high = self.forecast.low, self.forecast.high
        return None if low is None or high is None else low <= self.actual <= high

    @property
    def half_width(self) -> float | None:
        """Half the interval, as a fraction of the loss."""
        low, high = self.forecast.low, self.forecast.high
        return None if low is None or high is None else (high - low) / 2 / self.actual


def finite_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows with a loss, in order of compute."""
    return sorted((row for row in rows if row.is_finite), key=lambda row: (row.compute, row.seed))


def excluded_rows(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """The rows excluded from fits, and why."""
    return [(row, row.reason or "no loss") for row in rows if not row.is_finite]


def rows_by_arm(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by arm, in the order of their first appearance."""
    by_arm: dict[str, list[Row]] = {}
    for row in rows:
        by_arm.setdefault(row.arm, []).append(row)
    return by_arm


def to_points(rows: Sequence[Row], num_unique: int | None = None) -> Points:
    """Finished runs as points to fit; num_unique: tokens of the training text, beyond which they repeat."""
    return Points(
        unique_tokens=None if num_unique is None else np.full(len(rows), float(num_unique)),
        parameters=np.array([row.parameters for row in rows]),
        tokens=np.array([float(row.tokens) for row in rows]),
        loss=np.array([row.loss for row in rows], dtype=float),
    )


def curve(
    rows: Sequence[Row], cost: Callable[[Row], float] = lambda row: row.compute, *, with_floor: bool = True
) -> Fit[PowerLaw]:
    """Power law of an arm's loss in a cost; each arm has its own bootstrap seed. Raises ValueError for too few runs."""
    rows = finite_rows(rows)
    seed = zlib.crc32(rows[0].arm.encode()) if rows else 0
    return fit_power_law(_points(rows, cost), with_floor=with_floor, seed=seed)


def score_forecasts(rows: Sequence[Row], top: int = 3) -> list[ScoredForecast]:
    """The `top` largest computes, each forecast from the runs below 1/8 of it. Raises ValueError for too few runs."""
    rows = finite_rows(rows)
    scored = []
    for group in _groups(rows)[-top:]:
        members = [row for row in rows if row.group == group]
        compute = fmean(row.compute for row in members)
        below = [row for row in rows if row.compute < SMALL * compute]
        fit = curve(below)
        largest = max(row.compute for row in below)
        naive = fmean(row.loss for row in below if row.compute > 0.99 * largest and row.loss is not None)
        forecast = fit.forecast(lambda law, compute=compute: float(law.loss(compute)))
        actual = fmean(row.loss for row in members if row.loss is not None)
        scored.append(ScoredForecast(compute, len(below), forecast, actual, naive))
    return scored


@dataclass(frozen=True)
class Gain:
    """An arm compared with its baseline, size by size."""

    arm: str
    least: Estimate
    """Compute multiplier at the smallest compute of both arms."""
    most: Estimate
    """… and at the largest."""
    growth: Estimate
    """Exponent by which the multiplier grows with compute."""
    loss_change: float
    """Relative change of the loss at the largest compute."""

    @property
    def verdict(self) -> str:
        """Whether the gain is significant at the largest compute, and its trend."""
        sign = _sign(self.most, 1.0)
        trend = _sign(self.growth, 0.0)
        if sign is None or trend is None:
            return "too few runs to tell"
        start = _sign(self.least, 1.0)
        if start and sign and start != sign:
            return "reverses"
        if not sign:
            return "fades" if start and trend == -start else "noise"
        what = "a gain" if sign > 0 else "a loss"
        return f"{what}, {'grows' if trend == sign else 'fades' if trend == -sign else 'holds'}"


def _sign(estimate: Estimate, zero: float) -> int | None:
    """1 or -1 if the interval lies above or below `zero`, 0 if it contains it, None without an interval."""
    if estimate.low is None or estimate.high is None:
        return None
    return 1 if estimate.low > zero else -1 if estimate.high < zero else 0


def gain(
    baseline: Sequence[Row], method: Sequence[Row], cost: Callable[[Row], float] = lambda row: row.compute
) -> Gain:
    """How many times the compute (or other cost) the baseline needs for the method's loss, and how that grows.

    Computed size by size, so that deviations from the law common to both methods at a size cancel: the baseline's
    curve, shifted through its runs of that size, yields the compute at which it reaches the method's loss. The curves
    share one floor, that of the text. The 90 % intervals combine the noise between seeds with the uncertainty of the
    curves. Raises ValueError for too few runs.
    """
    by_group = [
        {g: [r for r in finite_rows(rows) if r.group == g] for g in _groups(rows)} for rows in (baseline, method)
    ]
    groups = [g for g in by_group[0] if g in by_group[1]]
    if len(groups) < 3:
        raise ValueError(f"both arms have runs at {len(groups)} computes; {3 - len(groups)} more would suffice")
    both = [[row for g in groups for row in arm[g]] for arm in by_group]
    fit = fit_shared_floor([_points(rows, cost) for rows in both])
    spread, df = _spread([arm[g] for arm in by_group for g in groups], fit)
    log_costs = np.array([[fmean(math.log(cost(row)) for row in arm[g]) for g in groups] for arm in by_group])
    observed = np.array([[fmean(math.log(row.loss or math.nan) for row in arm[g]) for g in groups] for arm in by_group])
    seeds = np.array([[len(arm[g]) for g in groups] for arm in by_group])

    def multipliers(law: PowerLaw, losses: np.ndarray) -> np.ndarray:
        """Log multiplier at each size, of the cost at which the shifted law reaches the method's loss."""
        shift = np.log(law.loss(np.exp(log_costs[0]))) - losses[0]
        above = np.maximum(np.exp(losses[1] + shift) - law.floor, 1e-6 * np.exp(losses[1]))
        return math.log(law.scale) - np.log(above) / law.exponent - log_costs[1]

    def ends_and_growth(logs: np.ndarray) -> tuple[float, float, float]:
        return float(np.exp(logs[0])), float(np.exp(logs[-1])), float(np.polyfit(log_costs[1], logs, 1)[0])

    values, rng = ends_and_growth(multipliers(fit.law.laws[0], observed)), np.random.default_rng(0)
    drawn = []
    for laws in fit.replicates:
        noise = spread * math.sqrt(df / rng.chisquare(df)) * rng.standard_normal(observed.shape) / np.sqrt(seeds)
        drawn.append(ends_and_growth(multipliers(laws.laws[0], observed + noise)))
    if len(fit.points) >= MIN_POINTS and drawn:
        ends = np.quantile(drawn, (0.05, 0.95), axis=0)
        least, most, growth = (Estimate(v, float(lo), float(hi)) for v, lo, hi in zip(values, *ends, strict=True))
    else:
        least, most, growth = map(Estimate, values)
    return Gain(method[0].arm, least, most, growth, math.expm1(observed[1, -1] - observed[0, -1]))


def _groups(rows: Iterable[Row]) -> list[int]:
    """The groups of runs that have a loss, in order of compute."""
    return list(dict.fromkeys(row.group for row in finite_rows(rows)))


def _points(rows: Sequence[Row], cost: Callable[[Row], float]) -> Points:
    return Points.from_compute(np.array([cost(row) for row in rows]), np.array([row.loss for row in rows], dtype=float))


def _spread(sets: Sequence[Sequence[Row]], fit: Fit) -> tuple[float, int]:
    """Standard deviation of log losses within a size and arm, and its degrees of freedom; with too few seeds, that of
    runs about their curves."""
    logs = [np.log([row.loss for row in rows if row.loss is not None]) for rows in sets]
    df = sum(len(each) - 1 for each in logs)
    if df < 3:
        return fit.noise, max(1, len(fit.points) - 5)
    return math.sqrt(sum(((each - each.mean()) ** 2).sum() for each in logs) / df), df


def interval(fit: Fit[Law], function: Callable[[Law], float]) -> Estimate:
    """A number computed from a law, with its 90 % interval if there are enough runs for one."""
    return Estimate(function(fit.law), *(fit.interval(function) or (None, None)))


def interval_of_both(
    first: Fit[PowerLaw], second: Fit[PowerLaw], function: Callable[[PowerLaw, PowerLaw], float]
) -> Estimate:
    """A number computed from two curves, with its 90 % interval from the replicates of both."""
    value = function(first.law, second.law)
    if not first.replicates or not second.replicates:
        return Estimate(value)
    values = [function(a, b) for a, b in zip(first.replicates, second.replicates, strict=False)]
    return Estimate(value, *(float(q) for q in np.quantile(values, (0.05, 0.95))))


def crossing(first: PowerLaw, second: PowerLaw, low: float, high: float) -> float | None:
    """The cost between `low` and `high` at which two curves cross; None if their order is the same at both ends."""

    def lead(cost: float) -> float:
        return float(first.loss(cost)) - float(second.loss(cost))

    if lead(low) * lead(high) >= 0:
        return None
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if lead(middle) * lead(high) < 0 else (low, middle)
    return high


def mean(numbers: Sequence[float]) -> Estimate:
    """The mean with its 90 % interval by Student's distribution; none for a single number."""
    if len(numbers) < 2:
        return Estimate(numbers[0])
    half = _student(len(numbers) - 1) * stdev(numbers) / math.sqrt(len(numbers))
    return Estimate(fmean(numbers), fmean(numbers) - half, fmean(numbers) + half)


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of `first` less that of `second`, with its 90 % interval (Welch 1947); none if either is a single number."""
    change = fmean(first) - fmean(second)
    if len(first) < 2 or len(second) < 2:
        return Estimate(change)
    parts = [variance(numbers) / len(numbers) for numbers in (first, second)]
    if not sum(parts):
        return Estimate(change, change, change)
    freedom = sum(parts) ** 2 / sum(p * p / (len(n) - 1) for p, n in zip(parts, (first, second), strict=True))
    half = _student(freedom) * math.sqrt(sum(parts))
    return Estimate(change, change - half, change + half)


def _student(freedom: float) -> float:
    """Half-width of a 90 % interval, in standard errors."""
    from scipy.special import stdtrit  # half a second to import

    return float(stdtrit(freedom, 0.95))


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """The pooled standard deviation within groups; None without degrees of freedom."""
    freedom = sum(len(group) - 1 for group in groups)
    return math.sqrt(sum(variance(g) * (len(g) - 1) for g in groups) / freedom) if freedom else None


@dataclass(frozen=True)
class Cost:
    """What an arm costs at its largest compute, counted and measured."""

    arm: str
    num_parameters: float
    num_active_parameters: float
    compute: float
    tokens_per_second: float
    train_seconds: float
    peak_memory_bytes: float
    loss: float
    energy_joules: float | None
    """Of the whole machine; None where its counters can't be read."""


def costs(rows: Sequence[Row]) -> list[Cost]:
    """For each arm's largest runs, the mean loss over seeds and the median of the costs, since another process may have
    slowed a run down."""
    result = []
    for arm, of_arm in rows_by_arm(row for row in rows if row.is_finite).items():
        most = max(row.compute for row in of_arm)
        largest = [row for row in of_arm if row.compute > most / 1.05]
        names = [name for name in Cost.__dataclass_fields__ if name not in ("arm", "loss", "energy_joules")]
        medians = {name: median(float(getattr(row, name)) for row in largest) for name in names}
        energies = [row.energy_joules for row in largest if row.energy_joules is not None]
        loss = fmean(row.loss for row in largest if row.loss is not None)
        result.append(Cost(arm, **medians, loss=loss, energy_joules=median(energies) if energies else None))
    return result


def mismatches(arm_costs: Sequence[Cost]) -> list[str]:
    """A sentence on the costs that differ by more than 10 % from the first arm's; empty if none do."""
    words = {
        "num_parameters": "parameters",
        "num_active_parameters": "active parameters",
        "compute": "training FLOPs",
        "tokens_per_second": "measured throughput",
        "peak_memory_bytes": "peak memory",
    }
    parts = []
    for name, word in words.items():
        first = getattr(arm_costs[0], name)
        changes = {cost.arm: getattr(cost, name) / first - 1 for cost in arm_costs[1:] if first}
        far = sorted((change, arm) for arm, change in changes.items() if abs(change) > COST_TOLERANCE)
        if far:
            span = " to ".join(dict.fromkeys(f"{change:+.0%}" for change, _ in (far[0], far[-1])))
            who = " and ".join(arm for _, arm in far) if len(far) <= 3 else f"{len(far)} arms"
            parts.append(f"{word} {span} ({who})")
    return [f"not the same cost as {arm_costs[0].arm}: {'; '.join(parts)}"] if parts else []

"""Analysis of the runs of one arm: numbers with intervals, fitted law, forecasts scored by later runs, cost."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from isoform.scaling.config import SMALL
from isoform.scaling.estimate import Estimate, student
from isoform.scaling.fitting import Fit, Forecast, fit_power_law
from isoform.scaling.laws import Law, Points, PowerLaw
from isoform.scaling.study import Row

COST_TOLERANCE = 0.1
"""Costs that differ by more than this fraction are reported as unequal."""


@dataclass(frozen=True)
class ScoredForecast:
    """A forecast of a run from runs with less than 1/8 of its compute, and the loss that the run reached."""

    compute: float
    num_fitted: int
    forecast: Forecast
    actual: float
    naive: float
    """The loss of the largest fitted run, as a forecast of no change."""
    plain: float
    """The forecast of a power law without a floor, the simplest rival."""
    margin: float
    """Half the interval of the loss reached, as a fraction of it, by the scatter of the fitted runs about their law."""

    @property
    def error(self) -> float:
        """Relative error of the forecast."""
        return abs(self.forecast.loss / self.actual - 1)

    @property
    def naive_error(self) -> float:
        return abs(self.naive / self.actual - 1)

    @property
    def plain_error(self) -> float:
        return abs(self.plain / self.actual - 1)

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


def score_forecasts(rows: Sequence[Row], top: int = 3, level: float = 0.9) -> list[ScoredForecast]:
    """The `top` largest computes, each forecast from the runs below 1/8 of it. Raises ValueError for too few runs."""
    rows = finite_rows(rows)
    scored = []
    for group in list(dict.fromkeys(row.group for row in rows))[-top:]:
        members = [row for row in rows if row.group == group]
        compute = fmean(row.compute for row in members)
        below = [row for row in rows if row.compute < SMALL * compute]
        fit, plain = curve(below), curve(below, with_floor=False)
        largest = max(row.compute for row in below)
        naive = fmean(row.loss for row in below if row.compute > 0.99 * largest and row.loss is not None)
        forecast = fit.forecast(lambda law, compute=compute: float(law.loss(compute)))
        actual = fmean(row.loss for row in members if row.loss is not None)
        rival = float(plain.law.loss(compute))
        margin = student(max(1, len(below) - 3), level) * fit.noise
        scored.append(ScoredForecast(compute, len(below), forecast, actual, naive, rival, margin))
    return scored


def _points(rows: Sequence[Row], cost: Callable[[Row], float]) -> Points:
    return Points.from_compute(np.array([cost(row) for row in rows]), np.array([row.loss for row in rows], dtype=float))


def interval(fit: Fit[Law], function: Callable[[Law], float], level: float = 0.9) -> Estimate:
    """A number computed from a law, with its interval if there are enough runs for one."""
    return Estimate(function(fit.law), *(fit.interval(function, level) or (None, None)))


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

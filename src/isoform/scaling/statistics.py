"""Statistics of a claim's runs: each is a class with the names of its numbers and a method that computes them.

A rule is checked against the names before any run is made. Names and numbers use the same tuples, so that they agree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Literal

import numpy as np

from isoform.ranges import Positive, Size, config
from isoform.scaling import simulation
from isoform.scaling.curves import (
    Estimate,
    crossing,
    curve,
    difference,
    finite_rows,
    gain,
    interval,
    interval_of_both,
    mean,
    pooled_deviation,
    rows_by_arm,
    score_forecasts,
)
from isoform.scaling.findings import MAX_EXTRAPOLATION, Findings, Table, exact
from isoform.scaling.fitting import Fit
from isoform.scaling.laws import Chinchilla, PowerLaw
from isoform.scaling.pictures import dots, loss_against_cost, multipliers, residuals
from isoform.scaling.study import Row
from isoform.terminal import count


@dataclass(frozen=True)
class Arms:
    """The arms of a claim, as its statistic needs them."""

    names: tuple[str, ...]
    baselines: Mapping[str, str]
    """The baseline of each arm but the first."""
    measures: Mapping[str, tuple[str, ...]]
    """The arms of each measure besides the loss."""


class Statistic(ABC):
    """A statistic of the runs of a claim."""

    @abstractmethod
    def names(self, arms: Arms) -> list[str]:
        """The numbers computed from runs of these arms, if none of them diverges."""

    @abstractmethod
    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        """The numbers, with tables and figures. Raises ValueError for too few runs."""


def _names(subject: str, numbers: Sequence[str]) -> list[str]:
    return [f"{subject}.{number}" for number in numbers]


@config
class Forecasts(Statistic):
    """The largest computes, each forecast from the runs below 1/8 of it.

    Numbers: median_error, error_of_naive (the forecast's error / that of forecasting no change), widest (half of the
    widest interval, as a fraction of the loss), held (share of intervals that cover), exponent and floor of the law.
    """

    top: Size = 3

    NUMBERS = ("median_error", "error_of_naive", "widest", "held", "exponent", "floor")

    def names(self, arms: Arms) -> list[str]:
        return [*self.NUMBERS]

    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        scored, fit = score_forecasts(rows, self.top), curve(rows)
        middle, naive = median(s.error for s in scored), median(s.naive_error for s in scored)
        widths = [s.half_width for s in scored]
        numbers = (
            exact(middle),
            exact(middle / naive),
            exact(max(math.nan if w is None else w for w in widths)),
            exact(sum(bool(s.is_covered) for s in scored) / len(scored)),
            interval(fit, lambda law: law.exponent),
            interval(fit, lambda law: law.floor),
        )
        findings = Findings(dict(zip(self.NUMBERS, numbers, strict=True)), notes=[*fit.notes])
        head = (
            *("compute, FLOPs", "runs fitted", "forecast, nats", "reached", "error"),
            *("error without change", "covered"),
        )
        lines = tuple(
            (
                f"{s.compute:.3g}",
                f"{s.num_fitted}",
                f"{Estimate(s.forecast.loss, s.forecast.low, s.forecast.high)}",
                f"{s.actual:.4f}",
                f"{s.error:.2%}",
                f"{s.naive_error:.2%}",
                "–" if s.is_covered is None else "yes" if s.is_covered else "no",
            )
            for s in scored
        )
        findings.tables.append(Table("Forecasts from runs below 1/8 of the compute", head, lines))
        findings.pictures["the law"] = loss_against_cost({"runs": (rows, fit)}, forecasts=scored, reach=3)
        findings.pictures["residuals"] = residuals(fit, [row.compute for row in finite_rows(rows)])
        return findings


@dataclass(frozen=True)
class CostAxis:
    """The cost on the horizontal axis of a curve."""

    name: str
    value: Callable[[Row], float]
    label: str
    unit: str
    prefix: str
    """Prefix of the names of numbers."""


COMPUTE = CostAxis("compute", lambda row: row.compute, "training compute, FLOPs", "FLOP", "")
SECONDS = CostAxis("seconds", lambda row: row.train_seconds, "training seconds, measured", " s", "seconds_")


@config
class Gains(Statistic):
    """Each arm against its baseline: compute multipliers at both ends, and their growth.

    Numbers, for each arm NAME: NAME.least, NAME.most, NAME.growth; and NAME.whole, the multiplier at the largest
    compute against the first arm.
    """

    over: Literal["compute", "seconds"] = "compute"
    """Training FLOPs, or measured training seconds."""

    NUMBERS = ("least", "most", "growth", "whole")

    def names(self, arms: Arms) -> list[str]:
        return [name for arm in arms.baselines for name in _names(arm, self.NUMBERS)]

    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        cost, by_arm, findings = SECONDS if self.over == "seconds" else COMPUTE, rows_by_arm(rows), Findings()
        first, lines, intervals = next(iter(by_arm)), [], {}
        for arm, baseline in arms.baselines.items():
            names = _names(arm, self.NUMBERS)
            try:
                gained = gain(by_arm[baseline], by_arm[arm], cost.value)
                whole = gain(by_arm[first], by_arm[arm], cost.value).most
            except ValueError as error:  # an arm whose runs diverged
                findings.notes.append(f"{arm} against {baseline} is undecided: {error}")
                findings.values |= dict.fromkeys(names, Estimate(math.nan))
                continue
            findings.values |= dict(zip(names, (gained.least, gained.most, gained.growth, whole), strict=True))
            ends = (str(gained.least), str(gained.most), str(gained.growth))
            lines.append((arm, baseline, *ends, f"{gained.loss_change:+.2%}", gained.verdict))
            intervals[f"{arm} against {baseline}"] = (gained.most.value, gained.most.low, gained.most.high)
        head = (
            "arm",
            "against",
            f"{self.over} multiplier, smallest",
            "… largest",
            "growth (exponent)",
            "loss",
            "verdict",
        )
        findings.tables.append(Table("Gains", head, tuple(lines)))
        curves = {arm: (runs, _curve_or_none(runs, cost)) for arm, runs in by_arm.items()}
        findings.pictures["curves"] = loss_against_cost(curves, cost.value, label=cost.label)
        label = f"{self.over} multiplier at the largest size, 90 % interval"
        findings.pictures["multipliers"] = multipliers(intervals, label)
        return findings


def _curve_or_none(rows: Sequence[Row], cost: CostAxis) -> Fit[PowerLaw] | None:
    """The curve of an arm; None for too few runs."""
    try:
        return curve(rows, cost.value)
    except ValueError:
        return None


@config
class Exponents(Statistic):
    """The curves of all arms side by side, over compute and over seconds; where their order flips.

    Numbers, for each arm NAME: NAME.exponent, NAME.loss (at the largest compute), NAME.seconds_exponent,
    .seconds_loss; for every pair OTHER/NAME, the ratio of their losses at the largest compute, and
    NAME/OTHER.flip_compute and .flip_seconds, where their order flips.
    """

    def names(self, arms: Arms) -> list[str]:
        costs, pairs = (COMPUTE, SECONDS), [*combinations(arms.names, 2)]
        names = [name for arm in arms.names for cost in costs for name in self._arm_names(arm, cost)]
        for first, second in pairs:
            names += [self._ratio(first, second), *(self._flip(first, second, cost) for cost in costs)]
        return names

    def _arm_names(self, arm: str, cost: CostAxis) -> list[str]:
        return _names(arm, (f"{cost.prefix}exponent", f"{cost.prefix}loss"))

    def _ratio(self, first: str, second: str) -> str:
        return f"{second}/{first}"

    def _flip(self, first: str, second: str, cost: CostAxis) -> str:
        return f"{first}/{second}.flip_{cost.name}"

    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        findings, by_arm = Findings(), rows_by_arm(rows)
        for cost in (COMPUTE, SECONDS):
            self._add(findings, by_arm, cost)
        return findings

    def _add(self, findings: Findings, by_arm: Mapping[str, Sequence[Row]], cost: CostAxis) -> None:
        """Add the curves over one cost, compared in the range in which all arms have runs."""
        fits = {arm: curve(runs, cost.value) for arm, runs in by_arm.items()}
        ends = [
            (min(map(cost.value, finite_rows(runs))), max(map(cost.value, finite_rows(runs))))
            for runs in by_arm.values()
        ]
        low, high = max(least for least, _ in ends), min(most for _, most in ends)
        for arm, fit in fits.items():
            of_fit = interval(fit, lambda law: law.exponent), interval(fit, lambda law: float(law.loss(high)))
            findings.values |= dict(zip(self._arm_names(arm, cost), of_fit, strict=True))
        flips: dict[str, list[str]] = {arm: [] for arm in fits}
        for (first, first_fit), (second, second_fit) in combinations(fits.items(), 2):
            inside = crossing(first_fit.law, second_fit.law, low, high)
            beyond = crossing(first_fit.law, second_fit.law, high, high * MAX_EXTRAPOLATION) if inside is None else None
            if inside is not None:
                flips[first].append(f"{second} at {count(inside)}{cost.unit}")
            elif beyond is not None:
                flips[first].append(f"{second} at {count(beyond)}{cost.unit}, extrapolated beyond the runs")
            findings.values[self._flip(first, second, cost)] = exact(math.nan if inside is None else inside)
            if cost is COMPUTE:
                ratio = interval_of_both(second_fit, first_fit, lambda a, b: float(a.loss(high)) / float(b.loss(high)))
                findings.values[self._ratio(first, second)] = ratio
        lines = tuple(
            (arm, *(str(findings.values[name]) for name in self._arm_names(arm, cost)), ", ".join(flips[arm]) or "none")
            for arm in fits
        )
        head = ("arm", "exponent", f"loss at {count(high)}{cost.unit}", "order flips with")
        findings.tables.append(Table(f"Over {cost.name}", head, lines))
        curves = {arm: (by_arm[arm], fit) for arm, fit in fits.items()}
        findings.pictures[f"over {cost.name}"] = loss_against_cost(curves, cost.value, label=cost.label)


@config
class Compared(Statistic):
    """Arms of one size side by side: the mean over seeds of the loss and of each of the claim's measures.

    Means have Student intervals, differences Welch intervals (1947).

    Numbers, for each arm NAME and measure M, of which `loss` is one: NAME.M, and NAME.M.change from its
    baseline; M.noise, the standard deviation of runs that differ only in their seed, pooled over arms.
    """

    loss: bool = True
    """Whether to compare losses; those of different objectives can't be."""

    def names(self, arms: Arms) -> list[str]:
        measures = {"loss": arms.names, **arms.measures} if self.loss else arms.measures
        names = [self._noise(measure) for measure in measures]
        for measure, among in measures.items():
            names += [self._mean(arm, measure) for arm in among]
            pairs = [(arm, base) for arm, base in arms.baselines.items() if arm in among and base in among]
            names += [self._change(arm, measure) for arm, _ in pairs]
        return names

    def _mean(self, arm: str, measure: str) -> str:
        return f"{arm}.{measure}"

    def _change(self, arm: str, measure: str) -> str:
        return f"{arm}.{measure}.change"

    def _noise(self, measure: str) -> str:
        return f"{measure}.noise"

    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        findings, by_arm = Findings(), rows_by_arm(row for row in rows if row.is_finite)
        measures = dict.fromkeys(name for row in rows for name in row.measures)
        for measure in ("loss", *measures) if self.loss else measures:
            values = {arm: _values(runs, measure) for arm, runs in by_arm.items()}
            self._add(findings, measure, {arm: of_arm for arm, of_arm in values.items() if of_arm}, arms.baselines)
        findings.notes += dict.fromkeys(f"{name}: {how}" for row in rows for name, how in row.signatures.items())
        num_runs = Counter(row.arm for row in rows)
        for arm, num_lost in Counter(row.arm for row in rows if not row.is_finite).items():
            findings.notes.append(f"{arm}: {num_lost} of {num_runs[arm]} runs diverged and are excluded")
        return findings

    def _add(
        self, findings: Findings, measure: str, values: Mapping[str, list[float]], baselines: Mapping[str, str]
    ) -> None:
        """Add one measure, with the values of each arm's seeds."""
        means = {arm: mean(of_arm) for arm, of_arm in values.items()}
        findings.values |= {self._mean(arm, measure): estimate for arm, estimate in means.items()}
        spread = pooled_deviation([of_arm for of_arm in values.values() if len(of_arm) > 1])
        if spread is not None:
            findings.values[self._noise(measure)] = exact(spread)
        pairs = {arm: base for arm, base in baselines.items() if arm in values and base in values}
        changes = {arm: difference(values[arm], values[base]) for arm, base in pairs.items()}
        findings.values |= {self._change(arm, measure): change for arm, change in changes.items()}
        lines = tuple(
            (arm, f"{len(of_arm)}", str(means[arm]), pairs.get(arm, "–"), str(changes.get(arm, "–")))
            for arm, of_arm in values.items()
        )
        title = measure if spread is None else f"{measure}; standard deviation between seeds: {spread:.3g}"
        findings.tables.append(Table(title, ("arm", "seeds", "mean", "against", "difference"), lines))
        if len(means) > 1:
            findings.pictures[measure] = dots({arm: (e.value, e.low, e.high) for arm, e in means.items()}, measure)


def _values(rows: Sequence[Row], measure: str) -> list[float]:
    """The values of a measure, of the runs that have it."""
    values = [row.loss if measure == "loss" else row.measures.get(measure) for row in rows]
    return [value for value in values if value is not None]


PUBLISHED = {
    "besiroglu": Chinchilla(1.8172, 482.01, 0.3478, 2085.43, 0.3658),
    "hoffmann": Chinchilla(1.6934, 406.4, 0.3392, 410.7, 0.2849),
}
"""Chinchilla's law as Besiroglu et al. 2024 refitted it, and as Hoffmann et al. 2022 printed it."""


@config
class Recovery(Statistic):
    """Published laws, and fits to ladders simulated from them.

    Numbers, for each truth: NAME.alpha_median_error, .alpha_p90_error, .alpha_coverage, the same for beta,
    .forecast_coverage, .forecast_width, .optimal_exponent_coverage and .recovered_exponent (median, 5 and 95 %).
    """

    repetitions: Size = 200

    EXPONENTS = ("alpha", "beta")
    INTERVALS = (*EXPONENTS, "optimal_exponent", "forecast")
    NUMBERS = (
        *(f"{exponent}_{what}" for exponent in EXPONENTS for what in ("median_error", "p90_error")),
        *(f"{what}_coverage" for what in INTERVALS),
        *("forecast_width", "recovered_exponent"),
    )

    def names(self, arms: Arms) -> list[str]:
        return [name for truth in PUBLISHED for name in _names(truth, self.NUMBERS)]

    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        findings, lines = Findings(), []
        for name, law in PUBLISHED.items():
            result = simulation.recovery(law, repetitions=self.repetitions)
            findings.values |= dict(zip(_names(name, self.NUMBERS), self._numbers(result), strict=True))
            for what in self.INTERVALS:
                coverage = result.coverage(what)
                lines.append((name, what, f"{coverage.share:.1%}", f"{coverage.low:.1%} to {coverage.high:.1%}"))
        head = ("truth", "number", "coverage of its 90 % interval", "95 % interval of that share")
        title = f"Coverage over {self.repetitions} simulated ladders of 40 runs"
        findings.tables.append(Table(title, head, tuple(lines)))
        return findings

    def _numbers(self, result: simulation.Recovery) -> list[Estimate]:
        """In the order of NUMBERS."""
        errors = [f(what) for what in self.EXPONENTS for f in (result.median_error, result.error_quantile)]
        shares = [result.coverage(what).share for what in self.INTERVALS]
        exponents = result.estimates[:, result.names.index("optimal_exponent")]
        low, middle, high = map(float, np.quantile(exponents, (0.05, 0.5, 0.95)))
        return [*map(exact, (*errors, *shares, result.forecast_width)), Estimate(middle, low, high)]


@config
class Published(Statistic):
    """The compute-optimal size and tokens that the published constants of Chinchilla's law imply.

    Numbers, for besiroglu and hoffmann: NAME.exponent of the optimal size, NAME.tokens_per_parameter at `compute`.
    """

    compute: Positive = 5.76e23

    NUMBERS = ("exponent", "tokens_per_parameter")

    def names(self, arms: Arms) -> list[str]:
        return [name for law in PUBLISHED for name in _names(law, self.NUMBERS)]

    def measure(self, arms: Arms, rows: Sequence[Row]) -> Findings:
        findings, lines = Findings(), []
        for name, law in PUBLISHED.items():
            size, tokens = map(float, law.optimum(self.compute))
            numbers = exact(law.optimal_exponent), exact(tokens / size)
            findings.values |= dict(zip(_names(name, self.NUMBERS), numbers, strict=True))
            lines.append((name, f"{law.optimal_exponent:.3f}", f"{tokens / size:.1f}", f"{size:.3g}", f"{tokens:.3g}"))
        head = ("fit", "N ∝ C^", f"tokens per parameter at {self.compute:.3g} FLOPs", "N", "D")
        findings.tables.append(Table("What the constants imply", head, tuple(lines)))
        return findings


AnyStatistic = Forecasts | Gains | Exponents | Compared | Recovery | Published
"""The types that `kind` selects in the `statistic` of a claim."""

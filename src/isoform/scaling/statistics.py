"""Statistics of a claim's runs: each is a class with the names of its numbers and a method that computes them.

A rule is checked against the names before any run is made. Names and numbers use the same tuples, so that they agree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Literal

from isoform.ranges import Number, Size, config
from isoform.scaling.curves import curve, finite_rows, interval, rows_by_arm, score_forecasts
from isoform.scaling.estimate import Estimate, exact
from isoform.scaling.findings import MAX_EXTRAPOLATION, Findings, Table, counted
from isoform.scaling.items import clusters_of, sampling_variance, unpack, unpaired_variance
from isoform.scaling.means import NO_ITEMS, BySeed, ItemError, contrast, is_paired, spread
from isoform.scaling.multipliers import Ladders
from isoform.scaling.pictures import RUNS, Axis, Interval, dots, loss_against_cost, multipliers, residuals
from isoform.scaling.study import Row
from isoform.terminal import count


@dataclass(frozen=True)
class KnownItems:
    """What is known of a measure's test items, for runs whose answers weren't kept."""

    num_items: int = 0
    deviation: float = 0.0
    """Standard deviation of one arm's measure over the choice of the items; 0: not known."""


@dataclass(frozen=True)
class Arms:
    """The arms of a claim, as its statistic needs them."""

    names: tuple[str, ...]
    baselines: Mapping[str, str]
    """The baseline of each arm but the first."""
    measures: Mapping[str, tuple[str, ...]]
    """The arms of each measure besides the loss."""
    items: Mapping[str, KnownItems] = field(default_factory=dict)
    """By measure."""


class Statistic(ABC):
    """A statistic of the runs of a claim."""

    @abstractmethod
    def names(self, arms: Arms) -> list[str]:
        """The numbers computed from runs of these arms, if none of them diverges."""

    @abstractmethod
    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        """The numbers with intervals at a confidence level, tables and figures. Raises ValueError for too few runs."""


def numbered(subject: str, numbers: Sequence[str]) -> list[str]:
    """The names of a subject's numbers."""
    return [f"{subject}.{number}" for number in numbers]


@config
class Forecasts(Statistic):
    """The largest computes, each forecast from the runs below 1/8 of it.

    Numbers: worst_error, the largest relative error of a forecast, and least_lead, the least by which the error of a
    power law without a floor is larger, both with the noise of the loss that was reached; widest (half of the widest
    interval, as a fraction of the loss), held (share of intervals that cover), exponent and floor of the law.
    """

    top: Size = 3

    NUMBERS = ("worst_error", "least_lead", "widest", "held", "exponent", "floor")

    def names(self, arms: Arms) -> list[str]:
        return [*self.NUMBERS]

    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        scored, fit = score_forecasts(rows, self.top, level), curve(rows)
        halves = [s.margin for s in scored]
        leads = [s.plain_error - s.error for s in scored]
        widths = [s.half_width for s in scored]
        numbers = (
            Estimate(
                max(s.error for s in scored),
                max(max(0.0, s.error - half) for s, half in zip(scored, halves, strict=True)),
                max(s.error + half for s, half in zip(scored, halves, strict=True)),
            ),
            Estimate(
                min(leads),
                min(lead - 2 * half for lead, half in zip(leads, halves, strict=True)),
                min(lead + 2 * half for lead, half in zip(leads, halves, strict=True)),
            ),
            exact(max(math.nan if w is None else w for w in widths)),
            exact(sum(bool(s.is_covered) for s in scored) / len(scored)),
            interval(fit, lambda law: law.exponent, level),
            interval(fit, lambda law: law.floor, level),
        )
        findings = Findings(dict(zip(self.NUMBERS, numbers, strict=True)), notes=[*fit.notes])
        head = (
            *("compute", "runs fitted", "forecast, nats", "reached", "error"),
            *("without a floor", "without change", "covered"),
        )
        lines = tuple(
            (
                f"{count(s.compute)}FLOP",
                f"{s.num_fitted}",
                f"{Estimate(s.forecast.loss, s.forecast.low, s.forecast.high)}",
                f"{s.actual:.4f} ± {s.margin:.2%}",
                f"{s.error:.2%}",
                f"{s.plain_error:.2%}",
                f"{s.naive_error:.2%}",
                "–" if s.is_covered is None else "yes" if s.is_covered else "no",
            )
            for s in scored
        )
        findings.tables.append(Table("Forecasts from runs below 1/8 of the compute", head, lines))
        findings.pictures["the law"] = partial(
            loss_against_cost, {RUNS: (rows, fit)}, title="the law and its forecasts", forecasts=scored, reach=3
        )
        findings.pictures["residuals"] = partial(residuals, fit, [row.compute for row in finite_rows(rows)])
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

    @property
    def axis(self) -> Axis:
        """That of a figure."""
        return Axis(self.value, self.label)


COMPUTE = CostAxis("compute", lambda row: row.total_compute, "training compute, FLOP", "FLOP", "")
SECONDS = CostAxis("seconds", lambda row: row.train_seconds, "training seconds, measured", " s", "seconds_")


@config
class Gains(Statistic):
    """Each arm against its baseline: compute multipliers at both ends, and their growth.

    Numbers, for each arm NAME: NAME.least, NAME.most, NAME.growth, NAME.loss_change (relative, at the largest size);
    and NAME.whole, the multiplier at the largest size against the first arm.
    """

    over: Literal["compute", "seconds"] = "compute"
    """Training FLOPs, or measured training seconds."""
    floor: tuple[Number, ...] = ()
    """Bounds of the loss that no run on this text falls below, where longer ladders have measured it, in nats; empty:
    from the claim's own runs."""

    NUMBERS = ("least", "most", "growth", "loss_change", "whole")

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def names(self, arms: Arms) -> list[str]:
        return [name for arm in arms.baselines for name in numbered(arm, self.NUMBERS)]

    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        cost = SECONDS if self.over == "seconds" else COMPUTE
        findings, (first, *_) = Findings(), arms.names
        ladders, by_arm = fitted_ladders(rows, cost, self.floor, level, findings)
        lines, intervals = [], {}
        for arm, baseline in arms.baselines.items():
            names = numbered(arm, self.NUMBERS)
            if not {arm, baseline, first} <= set(ladders.arms):
                findings.values |= dict.fromkeys(names, Estimate(math.nan))
                continue
            gain = ladders.gain(baseline, arm)
            whole = gain if baseline == first else ladders.gain(first, arm)
            numbers = gain.least, gain.most, gain.growth, gain.loss_change, whole.most
            findings.values |= dict(zip(names, numbers, strict=True))
            texts = f"{gain.least:.3g}", f"{gain.most:.3g}", f"{gain.growth:.2g}", f"{gain.loss_change:.1%}"
            lines.append((arm, baseline, *texts, f"{gain.scatter:.2%}", f"{whole.most:.3g}"))
            ends = gain.most.value, gain.most.low, gain.most.high
            intervals[f"{arm} against {baseline}"] = Interval(*ends, len(by_arm[arm]))
            for name in names[1], names[-1]:
                of_name = gain if name == names[1] else whole
                findings.number_notes |= {name: "; ".join(of_name.notes)} if of_name.notes else {}
        head = (
            *("arm", "against", f"{self.over} multiplier, smallest", "… largest", "growth (exponent)", "loss"),
            *("scatter about the trend", f"… largest, against {first}"),
        )
        findings.tables.append(Table("Gains", head, tuple(lines)))
        curves = {arm: (by_arm[arm], ladders.curve(arm)) for arm in ladders.arms}
        findings.pictures["curves"] = partial(
            loss_against_cost, curves, cost.axis, title=f"loss over {cost.name}", baselines=arms.baselines
        )
        title = f"{self.over} multiplier at the largest size, {100 * level:.0f} % intervals, n runs of the arm"
        label = f"how many times the arm's {self.over} its baseline needs for the same loss"
        findings.pictures["multipliers"] = partial(multipliers, intervals, title, label)
        return findings


def _check_floor(floor: tuple[float, ...]) -> None:
    """Raises ValueError unless these are bounds, or none."""
    if floor and not (len(floor) == 2 and 0 <= floor[0] < floor[1]):
        raise ValueError(f"floor={[*floor]}: give its two bounds in nats, the lower first")


def fitted_ladders(
    rows: Sequence[Row], cost: CostAxis, floor: tuple[float, ...], level: float, findings: Findings
) -> tuple[Ladders, dict[str, list[Row]]]:
    """The curves of the arms that have enough runs, and the runs; the other arms are noted."""
    by_arm = {}
    for arm, runs in rows_by_arm(rows).items():
        if len({row.group for row in runs if row.is_finite}) >= 3:
            by_arm[arm] = finite_rows(runs)
        else:
            findings.notes.append(f"{arm} is undecided: it has finished runs at fewer than three sizes")
    bounds = (floor[0], floor[1]) if floor else None
    ladders = Ladders(by_arm, cost.value, floor=bounds, level=level)
    findings.notes += ladders.notes
    return ladders, by_arm


@config
class Exponents(Statistic):
    """The curves of all arms side by side under one floor, over compute and over seconds; where their order flips.

    Numbers, for each arm NAME: NAME.exponent, NAME.loss (at the largest compute), NAME.seconds_exponent,
    .seconds_loss; for every pair OTHER/NAME, the ratio of their losses at the largest compute, and
    NAME/OTHER.flip_compute and .flip_seconds, where their order flips.
    """

    floor: tuple[Number, ...] = ()
    """As in `gains`."""

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def names(self, arms: Arms) -> list[str]:
        costs, pairs = (COMPUTE, SECONDS), [*combinations(arms.names, 2)]
        names = [name for arm in arms.names for cost in costs for name in self._arm_names(arm, cost)]
        for first, second in pairs:
            names += [self._ratio(first, second), *(self._flip(first, second, cost) for cost in costs)]
        return names

    def _arm_names(self, arm: str, cost: CostAxis) -> list[str]:
        return numbered(arm, (f"{cost.prefix}exponent", f"{cost.prefix}loss"))

    def _ratio(self, first: str, second: str) -> str:
        return f"{second}/{first}"

    def _flip(self, first: str, second: str, cost: CostAxis) -> str:
        return f"{first}/{second}.flip_{cost.name}"

    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        findings = Findings()
        for cost in (COMPUTE, SECONDS):
            self._add(findings, rows, cost, level)
        return findings

    def _add(self, findings: Findings, rows: Sequence[Row], cost: CostAxis, level: float) -> None:
        """Add the curves over one cost, compared at the largest cost that all arms have runs at."""
        ladders, by_arm = fitted_ladders(rows, cost, self.floor, level, findings)
        high = min(max(map(cost.value, runs)) for runs in by_arm.values())
        for arm in ladders.arms:
            numbers = ladders.exponent(arm), ladders.loss(arm, high)
            findings.values |= dict(zip(self._arm_names(arm, cost), numbers, strict=True))
        flips: dict[str, list[str]] = {arm: [] for arm in ladders.arms}
        for first, second in combinations(ladders.arms, 2):
            crossing = ladders.crossing(first, second)
            findings.values[self._flip(first, second, cost)] = crossing or Estimate(math.nan)
            if crossing is not None and crossing.value < high * MAX_EXTRAPOLATION:
                beyond = ", extrapolated" if crossing.value > high else ""
                flips[first].append(f"{second} at {counted(crossing, cost.unit)}{beyond}")
            if cost is COMPUTE:
                change = ladders.gain(first, second).loss_change
                findings.values[self._ratio(first, second)] = _plus_one(change)
        lines = tuple(
            (arm, *(str(findings.values[name]) for name in self._arm_names(arm, cost)), ", ".join(flips[arm]) or "none")
            for arm in ladders.arms
        )
        head = ("arm", "exponent", f"loss at {count(high)}{cost.unit}", "order flips with")
        findings.tables.append(Table(f"Over {cost.name}, one floor of {ladders.floor} nats", head, lines))
        curves = {arm: (by_arm[arm], ladders.curve(arm)) for arm in ladders.arms}
        findings.pictures[f"over {cost.name}"] = partial(
            loss_against_cost, curves, cost.axis, title=f"loss over {cost.name}"
        )


def _plus_one(change: Estimate) -> Estimate:
    assert change.low is not None and change.high is not None
    return Estimate(1 + change.value, 1 + change.low, 1 + change.high)


@config
class Contrast:
    """A weighted sum of the arms' means, such as a difference of differences."""

    name: str
    weights: dict[str, Number]
    """By arm."""


@config
class Compared(Statistic):
    """Arms of one size side by side: the mean over seeds of the loss and of each of the claim's measures.

    Differences are paired by seed where arms share their seeds, otherwise by Welch (1947); measures over test items
    carry the items' sampling error too.

    Numbers, for each arm NAME and measure M, of which `loss` is one: NAME.M, and NAME.M.change from its baseline;
    CONTRAST.M for each contrast; M.noise, the median over arms of the standard deviation between seeds.
    """

    loss: bool = True
    """Whether to compare losses; those of different objectives can't be."""
    contrasts: tuple[Contrast, ...] = ()
    """Further numbers that a rule may decide on."""

    def names(self, arms: Arms) -> list[str]:
        measures = {"loss": arms.names, **arms.measures} if self.loss else arms.measures
        names = [self._noise(measure) for measure in measures]
        for measure, among in measures.items():
            names += [self._mean(arm, measure) for arm in among]
            pairs = [(arm, base) for arm, base in arms.baselines.items() if arm in among and base in among]
            names += [self._change(arm, measure) for arm, _ in pairs]
            names += [self._mean(c.name, measure) for c in self.contrasts if {*c.weights} <= {*among}]
        return names

    def _mean(self, arm: str, measure: str) -> str:
        return f"{arm}.{measure}"

    def _change(self, arm: str, measure: str) -> str:
        return f"{arm}.{measure}.change"

    def _noise(self, measure: str) -> str:
        return f"{measure}.noise"

    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        findings, by_arm = Findings(), rows_by_arm(row for row in rows if row.is_finite)
        measures = dict.fromkeys(name for row in rows for name in row.measures)
        for name in ("loss", *measures) if self.loss else measures:
            having = {
                arm: [row for row in runs if name == "loss" or name in row.measures] for arm, runs in by_arm.items()
            }
            self._add(findings, name, {arm: runs for arm, runs in having.items() if runs}, arms, level)
        findings.notes += dict.fromkeys(f"{name}: {how}" for row in rows for name, how in row.signatures.items())
        num_runs = Counter(row.arm for row in rows)
        for arm, num_lost in Counter(row.arm for row in rows if not row.is_finite).items():
            findings.notes.append(f"{arm}: {num_lost} of {num_runs[arm]} runs diverged and are excluded")
        return findings

    def _add(self, findings: Findings, name: str, runs: Mapping[str, Sequence[Row]], arms: Arms, level: float) -> None:
        """Add one measure of the arms that have it."""
        values = {arm: _by_seed(of_arm, name) for arm, of_arm in runs.items()}

        def between(weights: Mapping[str, float]) -> Estimate:
            items = item_error({arm: (weight, runs[arm]) for arm, weight in weights.items()}, name, arms.items)
            return contrast([(weight, values[arm]) for arm, weight in weights.items()], items, level)

        means = {arm: between({arm: 1.0}) for arm in values}
        findings.values |= {self._mean(arm, name): estimate for arm, estimate in means.items()}
        deviations = spread([*values.values()])
        if deviations is not None:
            findings.values[self._noise(name)] = exact(deviations.middle)
        pairs = {arm: base for arm, base in arms.baselines.items() if arm in values and base in values}
        changes = {arm: between({arm: 1.0, base: -1.0}) for arm, base in pairs.items()}
        findings.values |= {self._change(arm, name): change for arm, change in changes.items()}
        lines = [
            (arm, f"{len(of_arm)}", str(means[arm]), pairs.get(arm, "–"), str(changes.get(arm, "–")),
             _pairing([of_arm, values[pairs[arm]]]) if arm in pairs else "–")
            for arm, of_arm in values.items()
        ]  # fmt: skip
        for c in self.contrasts:
            if {*c.weights} <= {*values}:
                findings.values[self._mean(c.name, name)] = number = between(c.weights)
                pairing = _pairing([values[arm] for arm in c.weights])
                lines.append((c.name, "–", "–", "–", str(number), pairing))
        title = name
        if name in arms.items and not any(row.items.get(name) for of_arm in runs.values() for row in of_arm):
            items = arms.items[name]
            how = f"counted unpaired, from {items.num_items}" if items.num_items else "not counted"
            findings.notes.append(f"{name}: the answers to each item were not kept; the items' error is {how}")
        if deviations is not None:
            ends = f"{deviations.least:.2g} to {deviations.most:.2g}"
            title += f"; standard deviation between seeds: {deviations.middle:.2g} (median of the arms; {ends})"
        head = ("arm", "seeds", "mean", "against", "difference", "by")
        findings.tables.append(Table(title, head, tuple(lines)))
        if len(means) > 1:
            points = {arm: Interval(e.value, e.low, e.high, len(values[arm])) for arm, e in means.items()}
            title = f"{name}: means over n seeds, {100 * level:.0f} % intervals"
            label = "validation loss, nats per token" if name == "loss" else name
            findings.pictures[name] = partial(dots, points, title, label, reference=arms.names[0])


def _pairing(values: Sequence[BySeed]) -> str:
    return "seed" if is_paired(values) else "Welch"


def _by_seed(rows: Sequence[Row], measure: str) -> dict[int, float]:
    """The values of a measure by seed."""
    return {row.seed: float(row.loss or 0) if measure == "loss" else row.measures[measure] for row in rows}


def item_error(
    terms: Mapping[str, tuple[float, Sequence[Row]]], measure: str, items: Mapping[str, KnownItems]
) -> ItemError:
    """The sampling error of a weighted sum of arms' means over the choice of the test items.

    From the answers to each item where all runs kept them, paired by item. Otherwise, unpaired and thus wider: of
    shares, from their number; of other measures from the deviation that the claim states.
    """
    if measure not in items:
        return NO_ITEMS
    weights = [weight for weight, _ in terms.values()]
    texts = [[row.items.get(measure, "") for row in rows] for _, rows in terms.values()]
    if all(map(all, texts)):
        arrays = [[unpack(text) for text in arm] for arm in texts]
        clusters = clusters_of(texts[0][0])
        number = len(arrays[0][0]) if clusters is None else int(clusters.max()) + 1
        return ItemError(sampling_variance(arrays, weights, clusters), number)
    if items[measure].deviation:
        variance = sum(weight**2 for weight in weights) * items[measure].deviation ** 2
        return ItemError(variance, items[measure].num_items)
    if not items[measure].num_items:
        return NO_ITEMS
    shares = [fmean(row.measures[measure] for row in rows) for _, rows in terms.values()]
    return ItemError(unpaired_variance(shares, weights, items[measure].num_items), items[measure].num_items)

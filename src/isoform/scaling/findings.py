"""What is found in the runs of a study: numbers with intervals, tables, pictures, sentences; a function a question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from isoform.machine import KNOWN_PEAKS
from isoform.scaling.curves import (
    Estimate,
    Gain,
    arms,
    crossing,
    curve,
    difference,
    finite,
    gain,
    interval,
    mean,
    of_both,
    pooled,
    score_forecasts,
    to_points,
)
from isoform.scaling.fitting import Fit, fit_chinchilla, fit_data_constrained, fit_kaplan
from isoform.scaling.laws import Chinchilla, PowerLaw
from isoform.scaling.minima import Minima, fit_exponent, isoflop_minima
from isoform.scaling.pictures import dots, isoflop, loss_against_cost, multipliers, residuals
from isoform.scaling.simulation import recovery
from isoform.scaling.study import Row
from isoform.terminal import count

FAR = 1000
"""Times the largest run's cost beyond which nothing is told."""


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass
class Findings:
    """What a statistic made of the runs."""

    values: dict[str, Estimate] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG files by what they show."""
    notes: list[str] = field(default_factory=list)
    lead: list[str] = field(default_factory=list)
    """What a reader should see first."""


def exact(value: float) -> Estimate:
    """A number that is what it is."""
    return Estimate(value, value, value)


def forecasts(rows: Sequence[Row], top: int) -> Findings:
    """The largest computes, each forecast from the runs below 1/8 of it. Raises ValueError for too few runs."""
    scored, fit = score_forecasts(rows, top), curve(rows)
    middle, naive = median(one.error for one in scored), median(one.naive_error for one in scored)
    widths = [one.half_width for one in scored]
    findings = Findings()
    findings.values = {
        "median_error": exact(middle),
        "error_of_naive": exact(middle / naive),
        "widest": exact(max(math.nan if w is None else w for w in widths)),
        "held": exact(sum(bool(one.is_held) for one in scored) / len(scored)),
        "exponent": interval(fit, lambda law: law.exponent),
        "floor": interval(fit, lambda law: law.floor),
    }
    head = ("compute, FLOPs", "runs fitted", "forecast, nats", "reached", "error", "same as the largest fitted", "held")
    lines = tuple(
        (
            f"{one.compute:.3g}",
            f"{one.num_fitted}",
            f"{Estimate(one.forecast.loss, one.forecast.low, one.forecast.high)}",
            f"{one.actual:.4f}",
            f"{one.error:.2%}",
            f"{one.naive_error:.2%}",
            "–" if one.is_held is None else "yes" if one.is_held else "no",
        )
        for one in scored
    )
    findings.tables.append(Table("Forecasts from runs below 1/8 of the compute", head, lines))
    findings.pictures["the law"] = loss_against_cost({"runs": (rows, fit)}, forecasts=scored, reach=3)
    findings.pictures["residuals"] = residuals(fit, [row.compute for row in finite(rows)])
    findings.notes += fit.notes
    return findings


def seconds(row: Row) -> float:
    """Measured training seconds."""
    return row.train_seconds


def compute(row: Row) -> float:
    """Counted training FLOPs."""
    return row.compute


def gains(pairs: Sequence[tuple[str, str]], rows: Sequence[Row], over: str) -> Findings:
    """Each arm of `pairs` against another one, over compute or measured seconds."""
    cost, by_arm, findings = seconds if over == "seconds" else compute, arms(rows), Findings()
    found, first, untold = list[tuple[str, Gain]](), next(iter(by_arm)), Estimate(math.nan)
    for name, against in pairs:
        try:
            one = gain(by_arm[against], by_arm[name], cost)
            whole = gain(by_arm[first], by_arm[name], cost).most
        except ValueError as error:  # an arm whose runs diverged
            findings.notes.append(f"{name} against {against} can't be told: {error}")
            findings.values |= {f"{name}.{number}": untold for number in ("least", "most", "growth", "whole")}
            continue
        found.append((against, one))
        findings.values |= {f"{name}.least": one.least, f"{name}.most": one.most, f"{name}.growth": one.growth}
        findings.values[f"{name}.whole"] = whole
    lines = tuple(
        (one.arm, against, str(one.least), str(one.most), str(one.growth), f"{one.loss_change:+.2%}", one.verdict)
        for against, one in found
    )
    head = ("arm", "against", f"{over} multiplier, least", "… most", "growth (exponent)", "loss", "verdict")
    findings.tables.append(Table("Gains", head, lines))
    curves = {name: (there, _curve_if_told(there, cost)) for name, there in by_arm.items()}
    label = "training seconds, measured" if over == "seconds" else "training compute, FLOPs"
    findings.pictures["curves"] = loss_against_cost(curves, cost, label=label)
    shown = {f"{o.arm} against {against}": (o.most.value, o.most.low, o.most.high) for against, o in found}
    findings.pictures["multipliers"] = multipliers(shown, f"{over} multiplier at the largest size, 90 % interval")
    return findings


def _curve_if_told(rows: Sequence[Row], cost: Callable[[Row], float]) -> Fit[PowerLaw] | None:
    try:
        return curve(rows, cost)
    except ValueError:
        return None


def exponents(rows: Sequence[Row]) -> Findings:
    """The curves of all arms over compute and over seconds, and where their order flips.

    Raises ValueError for an arm of too few runs.
    """
    findings, by_arm = Findings(), arms(rows)
    for what, cost, label in (
        ("compute", compute, "training compute, FLOPs"),
        ("seconds", seconds, "training seconds, measured"),
    ):
        fits = {name: curve(there, cost) for name, there in by_arm.items()}
        ends = {name: (min(map(cost, finite(r))), max(map(cost, finite(r)))) for name, r in by_arm.items()}
        low, high = max(e[0] for e in ends.values()), min(e[1] for e in ends.values())
        prefix, unit = ("", "FLOP") if what == "compute" else ("seconds_", " s")
        for name, fit in fits.items():
            findings.values[f"{name}.{prefix}exponent"] = interval(fit, lambda law: law.exponent)
            findings.values[f"{name}.{prefix}loss"] = interval(fit, lambda law, at=high: float(law.loss(at)))
        lines = []
        for i, (name, fit) in enumerate(fits.items()):
            flips = []
            for other, other_fit in list(fits.items())[i + 1 :]:
                at = crossing(fit.law, other_fit.law, low, high)
                beyond = crossing(fit.law, other_fit.law, high, high * FAR) if at is None else None
                if at is not None:
                    flips.append(f"{other} at {count(at)}{unit}")
                elif beyond is not None:
                    flips.append(f"{other} at {count(beyond)}{unit} by the curves, beyond the runs")
                findings.values[f"{name}/{other}.flip_{what}"] = exact(math.nan if at is None else at)
                if what == "compute":
                    findings.values[f"{other}/{name}"] = of_both(
                        other_fit, fit, lambda a, b, at=high: float(a.loss(at)) / float(b.loss(at))
                    )
            exponent, loss = (findings.values[f"{name}.{prefix}{v}"] for v in ("exponent", "loss"))
            lines.append((name, str(exponent), str(loss), ", ".join(flips) or "none"))
        head = ("arm", "exponent", f"loss at {count(high)}{unit}", "order flips with")
        findings.tables.append(Table(f"Over {what}", head, tuple(lines)))
        curves = {name: (by_arm[name], fit) for name, fit in fits.items()}
        findings.pictures[f"over {what}"] = loss_against_cost(curves, cost, label=label)
    return findings


def compared(pairs: Sequence[tuple[str, str]], rows: Sequence[Row], *, with_loss: bool = True) -> Findings:
    """Arms of one size: means over seeds with intervals of Student's distribution, and differences with Welch's (1947).

    pairs: each arm but the first, and the one that it is held against.
    """
    findings, by_arm = Findings(), arms(row for row in rows if row.is_finite)
    names = dict.fromkeys(name for row in rows for name in row.measures)
    for measure in ("loss", *names) if with_loss else names:
        seen = {arm: [v for row in there if (v := _of(row, measure)) is not None] for arm, there in by_arm.items()}
        seen = {arm: numbers for arm, numbers in seen.items() if numbers}
        findings.values |= {f"{arm}.{measure}": mean(numbers) for arm, numbers in seen.items()}
        spread = pooled([numbers for numbers in seen.values() if len(numbers) > 1])
        if spread is not None:
            findings.values[f"{measure}.noise"] = exact(spread)
        changes = {arm: other for arm, other in pairs if arm in seen and other in seen}
        for arm, other in changes.items():
            findings.values[f"{arm}.{measure}.change"] = difference(seen[arm], seen[other])
        lines = tuple(
            (
                arm,
                f"{len(numbers)}",
                str(findings.values[f"{arm}.{measure}"]),
                changes.get(arm, "–"),
                str(findings.values[f"{arm}.{measure}.change"]) if arm in changes else "–",
            )
            for arm, numbers in seen.items()
        )
        title = measure if spread is None else f"{measure}; runs that differ in their seed alone: ± {spread:.3g}"
        findings.tables.append(Table(title, ("arm", "seeds", "mean", "against", "difference"), lines))
        shown = {arm: findings.values[f"{arm}.{measure}"] for arm in seen}
        if len(shown) > 1:
            findings.pictures[measure] = dots({arm: (e.value, e.low, e.high) for arm, e in shown.items()}, measure)
    findings.notes += dict.fromkeys(f"{name}: {how}" for row in rows for name, how in row.signatures.items())
    made = Counter(row.arm for row in rows)
    for arm, lost in Counter(row.arm for row in rows if not row.is_finite).items():
        findings.notes.append(f"{arm}: {lost} of {made[arm]} runs diverged and are left out")
    return findings


def _of(row: Row, measure: str) -> float | None:
    return row.loss if measure == "loss" else row.measures.get(measure)


PUBLISHED = {
    "besiroglu": Chinchilla(1.8172, 482.01, 0.3478, 2085.43, 0.3658),
    "hoffmann": Chinchilla(1.6934, 406.4, 0.3392, 410.7, 0.2849),
}
"""Chinchilla's law as Besiroglu et al. 2024 refitted it, and as Hoffmann et al. 2022 printed it."""


def recovered(repetitions: int) -> Findings:
    """Published laws, fitted to ladders that are drawn from them."""
    findings, lines = Findings(), []
    for name, law in PUBLISHED.items():
        result = recovery(law, repetitions=repetitions)
        for what in ("alpha", "beta"):
            middle, p90 = result.median_error(what), result.error_quantile(what)
            findings.values[f"{name}.{what}_median_error"] = exact(middle)
            findings.values[f"{name}.{what}_p90_error"] = exact(p90)
        for what in ("alpha", "beta", "optimal_exponent", "forecast"):
            held = result.coverage(what)
            findings.values[f"{name}.{what}_coverage"] = exact(held.share)
            lines.append((name, what, f"{held.share:.1%}", f"{held.low:.1%} to {held.high:.1%}"))
        findings.values[f"{name}.forecast_width"] = exact(result.forecast_width)
        exponents = np.quantile(result.estimates[:, result.names.index("optimal_exponent")], (0.05, 0.5, 0.95))
        low, middle, high = map(float, exponents)
        findings.values[f"{name}.recovered_exponent"] = Estimate(middle, low, high)
    head = ("truth", "what", "held by its 90 % interval", "95 % interval of that share")
    findings.tables.append(Table(f"Coverage over {repetitions} simulated ladders of 40 runs", head, tuple(lines)))
    return findings


def published(compute: float) -> Findings:
    """The best size, and pieces for it, that published constants give at some FLOPs."""
    findings, lines = Findings(), []
    for name, law in PUBLISHED.items():
        size, tokens = map(float, law.optimum(compute))
        findings.values[f"{name}.exponent"] = exact(law.optimal_exponent)
        findings.values[f"{name}.tokens_per_parameter"] = exact(tokens / size)
        lines.append((name, f"{law.optimal_exponent:.3f}", f"{tokens / size:.1f}", f"{size:.3g}", f"{tokens:.3g}"))
    head = ("fit", "N ∝ C^", f"pieces per parameter at {compute:.3g} FLOPs", "N", "D")
    findings.tables.append(Table("What the constants imply", head, tuple(lines)))
    return findings


HOURS = {"1 minute": 60.0, "1 hour": 3600.0, "1 day": 86400.0}
TOGETHER = 0.95
"""Correlation of log N and log D from which their parts in the loss can't be told apart."""

GPU_UTILISATION = 0.4
"""What is assumed of a GPU that isn't here: the part of its data sheet's peak that training reaches."""


def study(rows: Sequence[Row], forecast: float, num_unique: int, workers: int, prices: Mapping[str, float]) -> Findings:
    """What one ladder says: laws, forecast, compute-optimal sizes, what time and money buy.

    forecast: how many times the largest compute to look ahead; num_unique: pieces of the training text; prices: money
    per hour, by parts of a device's name or `here`. Raises ValueError for too few runs.
    """
    findings, done = Findings(), finite(rows)
    fit, plain = curve(done), curve(done, with_floor=False)
    most = max(row.compute for row in done)
    at = most * forecast
    said = fit.forecast(lambda law: float(law.loss(at)))
    findings.values["forecast"] = Estimate(said.loss, said.low, said.high)
    findings.values |= {
        "exponent": interval(fit, lambda law: law.exponent),
        "floor": interval(fit, lambda law: law.floor),
        "plain_exponent": interval(plain, lambda law: law.exponent),
    }
    law = fit.law
    findings.lead.append(
        f"Loss falls as {law.floor:.4g} + ({law.scale:.3g} / C)^{law.exponent:.4g}; at {forecast:g} times the largest "
        f"run's compute, {at:.3g} FLOPs, it is forecast to be {findings.values['forecast']}."
    )
    if len(done) < 6:
        findings.notes.append(f"{len(done)} runs were fitted; intervals are given from six on.")
    lines: list[tuple[str, ...]] = [
        ("L(C) with a floor", f"{law.floor:.4g} + ({law.scale:.4g} / C)^{law.exponent:.4g}", f"{fit.noise:.2%}"),
        ("L(C) without", f"({plain.law.scale:.4g} / C)^{plain.law.exponent:.4g}", f"{plain.noise:.2%}"),
    ]
    sizes = _sizes(findings, done, num_unique, lines)
    head = ("law", "fitted", "residual")
    findings.tables.append(Table("Laws", head, tuple(lines)))
    _budgets(findings, sizes, fit, done, workers, prices)
    if sizes is not None:
        _serving(findings, sizes.law, max(done, key=lambda row: row.compute))
    findings.pictures["loss against compute"] = loss_against_cost({"runs": (done, fit)}, reach=forecast)
    findings.pictures["residuals"] = residuals(fit, [row.compute for row in done])
    groups = [[row for row in done if row.group == group] for group in sorted({row.group for row in done})]
    if any(len({row.width for row in group}) >= 3 for group in groups):
        minima = isoflop_minima(to_points(done), np.array([row.group for row in done]))
        findings.pictures["equal compute"] = isoflop(done, minima)
        _minima(findings, minima)
    findings.notes += [*fit.notes]
    return findings


def _sizes(
    findings: Findings, rows: Sequence[Row], num_unique: int, lines: list[tuple[str, ...]]
) -> Fit[Chinchilla] | None:
    """The laws of size and data, as far as the runs tell them apart."""
    points = to_points(rows)
    chinchilla = None
    try:
        if float(np.corrcoef(np.log(points.parameters), np.log(points.tokens))[0, 1]) > TOGETHER:
            raise ValueError("size and pieces rise together in these runs, which --design.kind iso_flop avoids")
        chinchilla = fit_chinchilla(points)
    except ValueError as error:
        findings.notes.append(f"Chinchilla's law is not fitted: {error}.")
    else:
        law = chinchilla.law
        words = f"{law.floor:.4g} + {law.scale_n:.4g} / N^{law.alpha:.4g} + {law.scale_d:.4g} / D^{law.beta:.4g}"
        lines.append(("Chinchilla", words, f"{chinchilla.noise:.2%}"))
        findings.values["optimal_exponent"] = interval(chinchilla, lambda law: law.optimal_exponent)
        largest = max(rows, key=lambda row: row.compute)
        n, d = largest.parameters, float(largest.tokens)
        now = float(law.loss(n, d))
        for what, there in (("twice the pieces", (n, 2 * d)), ("twice the parameters", (2 * n, d))):
            change = interval(chinchilla, lambda law, there=there: float(law.loss(*there) / law.loss(n, d)) - 1)
            findings.values[what.replace(" ", "_")] = change
            findings.notes.append(
                f"At the largest run, {what} would change the loss of {now:.4f} by {_percent(change)}."
            )
    for name, fitter in (("Kaplan", fit_kaplan), ("repeated data", fit_data_constrained)):
        if name == "repeated data":
            if max(row.tokens for row in rows) < 1.5 * num_unique:
                continue
            points = to_points(rows, num_unique)
        try:
            other = fitter(points)
        except ValueError as error:
            findings.notes.append(f"The law of {name} is not fitted: {error}.")
            continue
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in vars(other.law).items())
        lines.append((name, numbers, f"{other.noise:.2%}"))
    return chinchilla


def _percent(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2%}"
    return f"{estimate.value:+.2%} ({estimate.low:+.2%} to {estimate.high:+.2%})"


def _budgets(
    findings: Findings,
    sizes: Fit[Chinchilla] | None,
    fit: Fit[PowerLaw],
    rows: Sequence[Row],
    workers: int,
    prices: Mapping[str, float],
) -> None:
    """What a minute, an hour and a day buy here and on named GPUs, and the best size for each.

    Without a law of size and data the ladder's own ratio is taken, and its curve.
    """
    largest = max(rows, key=lambda row: row.compute)
    ratio = math.exp(fmean(math.log(row.tokens / row.parameters) for row in rows))
    rates = {"here": largest.compute / largest.train_seconds * workers}
    rates |= {name: peaks.matmul * GPU_UTILISATION for name, peaks in KNOWN_PEAKS.items()}
    lines = []
    for device, rate in rates.items():
        for words, seconds in HOURS.items():
            budget = rate * seconds
            if sizes is None:
                best = exact(math.sqrt(budget / 6 / ratio))
                loss = interval(fit, lambda law, c=budget: float(law.loss(c)))
            else:
                best = interval(sizes, lambda law, c=budget: float(law.optimum(c)[0]))
                loss = interval(sizes, lambda law, c=budget: float(law.loss(*law.optimum(c))))
            price = next((price for part, price in prices.items() if part.lower() in device.lower()), None)
            money = "–" if price is None else f"{price * seconds / 3600:.3g}"
            times = budget / largest.compute
            said = str(loss) if times <= FAR else "too far to say"
            size = f"{budget:.3g}", f"{best:.3g}", f"{budget / 6 / best.value:.3g}"
            lines.append((device, words, money, *size, said, f"{times:.2g} ×"))
    how = f"at the ladder's {ratio:.3g} pieces per parameter" if sizes is None else "by Chinchilla's law"
    head = ("device", "for", "money", "FLOPs", "parameters", "pieces", "loss", "beyond the largest run")
    title = f"What time buys, {how}; GPUs at {GPU_UTILISATION:.0%} of their data sheets"
    findings.tables.append(Table(title, head, tuple(lines)))


def _serving(findings: Findings, law: Chinchilla, largest: Row) -> None:
    """The cheapest model of a loss when what it will serve is counted too."""
    lines, loss = [], float(law.loss(*law.optimum(largest.compute)))
    for times in (0, 10, 1000):
        served = times * largest.tokens
        n, d = law.inference_optimum(loss, float(served))
        lines.append((f"{served:.3g}", f"{float(n):.3g}", f"{float(d):.3g}", f"{float(d / n):.3g}"))
    head = ("pieces served", "parameters", "pieces trained on", "pieces per parameter")
    findings.tables.append(Table(f"Cheapest way to {loss:.4f} nats, serving included", head, tuple(lines)))


def _minima(findings: Findings, minima: Minima) -> None:
    """The best size of each group, and the power of compute that it grows by."""
    lines = tuple(
        (
            f"{m.compute:.3g}",
            str(Estimate(m.parameters, *(m.interval or (None, None)))),
            f"{m.tokens:.3g}",
            f"{m.tokens / m.parameters:.3g}",
            f"{m.loss:.4f}",
        )
        for m in minima
    )
    head = ("FLOPs", "best parameters", "pieces", "pieces per parameter", "loss")
    findings.tables.append(Table("Best sizes at equal compute", head, lines))
    findings.notes += minima.notes
    if len(minima) >= 2:
        fitted = fit_exponent(minima)
        findings.values["isoflop_exponent"] = Estimate(fitted.exponent, *(fitted.interval or (None, None)))
        findings.lead.append(f"The best size grows as compute to the power {findings.values['isoflop_exponent']}.")


def compare(findings: Findings, baseline: Sequence[Row], method: Sequence[Row]) -> None:
    """Add how one ladder does against another: the multiplier at both ends, whether it grows, where they cross."""
    base, other = curve(baseline), curve(method)
    one = gain(baseline, method)
    names = baseline[0].arm, method[0].arm
    findings.values |= {"gain.least": one.least, "gain.most": one.most, "gain.growth": one.growth}
    low = min(row.compute for row in finite(baseline))
    high = max(row.compute for row in finite(baseline))
    at = crossing(base.law, other.law, low, high)
    beyond = crossing(base.law, other.law, high, high * 1e4) if at is None else None
    where = (
        f"They cross at {at:.3g} FLOPs."
        if at is not None
        else f"By their curves they cross at {beyond:.3g} FLOPs, beyond the runs."
        if beyond is not None
        else "They don't cross."
    )
    findings.lead.append(
        f"{names[1]} is worth {one.least} times the compute of {names[0]} at the least compute and {one.most} times at "
        f"the most: {one.verdict}. {where}"
    )
    both = {names[0]: (baseline, base), names[1]: (method, other)}
    findings.pictures["side by side"] = loss_against_cost(both)

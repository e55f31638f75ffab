"""Results computed from runs: numbers with intervals, tables, figures, sentences; analysis of one ladder or two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from isoform.machine import KNOWN_PEAKS
from isoform.scaling.curves import curve, finite_rows, interval, to_points
from isoform.scaling.estimate import Estimate, exact
from isoform.scaling.fitting import Fit, fit_chinchilla, fit_data_constrained, fit_kaplan
from isoform.scaling.laws import Chinchilla, PowerLaw
from isoform.scaling.minima import Minima, fit_exponent, isoflop_minima
from isoform.scaling.multipliers import Ladders
from isoform.scaling.pictures import RUNS, isoflop, loss_against_cost, residuals
from isoform.scaling.study import Row
from isoform.terminal import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_EXTRAPOLATION = 1000
"""Multiple of the largest run's cost beyond which nothing is forecast."""


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass
class Findings:
    """What a statistic computed from the runs."""

    values: dict[str, Estimate] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    """By title, functions that draw figures: numbers alone, as simulations need them, draw nothing."""
    notes: list[str] = field(default_factory=list)
    number_notes: dict[str, str] = field(default_factory=dict)
    """By number, what it rests on beside the runs, such as an extrapolation."""
    lead: list[str] = field(default_factory=list)
    """The main results, at the top of the page."""


BUDGET_SECONDS = {"1 minute": 60.0, "1 hour": 3600.0, "1 day": 86400.0}
MAX_CORRELATION = 0.95
"""Correlation of log N and log D above which their effects on the loss can't be distinguished."""

GPU_UTILISATION = 0.4
"""Assumed fraction of its data sheet's peak that training reaches on a GPU that wasn't measured."""


def analyse_ladder(
    rows: Sequence[Row], forecast: float, num_unique: int, workers: int, prices: Mapping[str, float]
) -> Findings:
    """Analysis of one ladder: laws, forecast, compute-optimal sizes, what time and money buy.

    forecast: multiple of the largest compute to forecast; num_unique: tokens of the training text; prices: money per
    hour, by parts of a device's name or `here`. Raises ValueError for too few runs.
    """
    findings, finished = Findings(), finite_rows(rows)
    fit, plain = curve(finished), curve(finished, with_floor=False)
    compute = max(row.compute for row in finished) * forecast
    predicted = fit.forecast(lambda law: float(law.loss(compute)))
    findings.values["forecast"] = Estimate(predicted.loss, predicted.low, predicted.high)
    findings.values |= {
        "exponent": interval(fit, lambda law: law.exponent),
        "floor": interval(fit, lambda law: law.floor),
        "plain_exponent": interval(plain, lambda law: law.exponent),
    }
    law = fit.law
    far = f"{forecast:g} times the largest run's compute, {count(compute)}FLOP"
    words = f"Loss falls as {law.floor:.4g} + ({count(law.scale)}FLOP / C)^{law.exponent:.4g}"
    if fit.doubt:
        findings.lead.append(
            f"Undetermined: {fit.doubt}. A law through these runs is no more than a line through them."
        )
    else:
        findings.lead.append(f"{words}; at {far}, it is forecast to be {findings.values['forecast']}.")
    lines: list[tuple[str, ...]] = [
        _law_line("L(C) with a floor", f"{law.floor:.4g} + ({count(law.scale)}FLOP / C)^{law.exponent:.4g}", fit),
        _law_line("L(C) without", f"({count(plain.law.scale)}FLOP / C)^{plain.law.exponent:.4g}", plain),
    ]
    sizes = _fit_size_laws(findings, finished, num_unique, lines)
    findings.tables.append(Table("Laws", ("law", "fitted", "residual"), tuple(lines)))
    if not fit.doubt:
        trusted = sizes if sizes is not None and not sizes.doubt else None
        _add_budgets(findings, trusted, fit, finished, workers, prices)
    if sizes is not None and not sizes.doubt:
        _add_serving(findings, sizes.law, max(finished, key=lambda row: row.compute))
    findings.pictures["loss against compute"] = partial(
        loss_against_cost, {RUNS: (finished, fit)}, title="loss against compute", reach=1.0 if fit.doubt else forecast
    )
    findings.pictures["residuals"] = partial(residuals, fit, [row.compute for row in finished])
    groups = [[row for row in finished if row.group == group] for group in sorted({row.group for row in finished})]
    if any(len({row.width for row in group}) >= 3 for group in groups):
        minima = isoflop_minima(to_points(finished), np.array([row.group for row in finished]))
        findings.pictures["equal compute"] = partial(isoflop, finished, minima)
        _add_minima(findings, minima)
    findings.notes += [*fit.notes]
    return findings


def _fit_size_laws(
    findings: Findings, rows: Sequence[Row], num_unique: int, lines: list[tuple[str, ...]]
) -> Fit[Chinchilla] | None:
    """Fit the laws of size and data, as far as the runs distinguish the two."""
    points = to_points(rows)
    chinchilla = None
    try:
        if np.ptp(points.parameters) == 0 or np.ptp(points.tokens) == 0:
            raise ValueError("all runs have one size, or the same tokens")
        if float(np.corrcoef(np.log(points.parameters), np.log(points.tokens))[0, 1]) > MAX_CORRELATION:
            raise ValueError("size and tokens rise together in these runs; --design.kind iso_flop avoids that")
        chinchilla = fit_chinchilla(points)
    except ValueError as error:
        findings.notes.append(f"Chinchilla's law is not fitted: {error}.")
    else:
        law = chinchilla.law
        words = f"{law.floor:.4g} + {law.scale_n:.4g} / N^{law.alpha:.4g} + {law.scale_d:.4g} / D^{law.beta:.4g}"
        lines.append(_law_line("Chinchilla", words, chinchilla))
        findings.values["optimal_exponent"] = interval(chinchilla, lambda law: law.optimal_exponent)
        largest = max(rows, key=lambda row: row.compute)
        n, d = largest.parameters, float(largest.tokens)
        loss = float(law.loss(n, d))
        for what, doubled in (("twice the tokens", (n, 2 * d)), ("twice the parameters", (2 * n, d))):
            change = interval(chinchilla, lambda law, doubled=doubled: float(law.loss(*doubled) / law.loss(n, d)) - 1)
            findings.values[what.replace(" ", "_")] = change
            if not chinchilla.doubt:
                findings.notes.append(
                    f"At the largest run, {what} would change the loss of {loss:.4f} by {_percent(change)}."
                )
    for name, fitter in (("Kaplan", fit_kaplan), ("repeated data", fit_data_constrained)):
        if name == "repeated data":
            if max(row.tokens for row in rows) < 1.5 * num_unique:
                continue
            points = to_points(rows, num_unique)
        try:
            fit = fitter(points)
        except ValueError as error:
            findings.notes.append(f"The law of {name} is not fitted: {error}.")
            continue
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in vars(fit.law).items())
        lines.append(_law_line(name, numbers, fit))
    return chinchilla


def counted(estimate: Estimate, unit: str = "") -> str:
    """A large number with its interval and its unit: 2.9 MB (2.1 MB to 4 MB)."""
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return f"{count(estimate.value)}{unit}"
    return f"{count(estimate.value)}{unit} ({count(estimate.low)}{unit} to {count(estimate.high)}{unit})"


def _multiple(times: float) -> str:
    """A factor as text: 0.3×, 12×, 500×."""
    return f"{times:.2g}×" if times < 10 else f"{float(f'{times:.2g}'):,.0f}×"


def _law_line(name: str, law: str, fit: Fit) -> tuple[str, ...]:
    """A law in the table of laws, after why these runs don't determine it."""
    return name, f"undetermined ({fit.doubt}): {law}" if fit.doubt else law, f"{fit.noise:.2%}"


def _percent(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2%}"
    return f"{estimate.value:+.2%} ({estimate.low:+.2%} to {estimate.high:+.2%})"


def _add_budgets(
    findings: Findings,
    sizes: Fit[Chinchilla] | None,
    fit: Fit[PowerLaw],
    rows: Sequence[Row],
    workers: int,
    prices: Mapping[str, float],
) -> None:
    """Add the table of what a minute, an hour and a day buy here and on known GPUs, with the best size for each; not of
    those that are too far beyond the runs.

    Without a law of size and data it uses the ladder's ratio of tokens to parameters, and its curve.
    """
    largest = max(rows, key=lambda row: row.compute)
    ratio = math.exp(fmean(math.log(row.tokens / row.parameters) for row in rows))
    rates = {"here": largest.compute / largest.train_seconds * workers}
    rates |= {name: peaks.matmul * GPU_UTILISATION for name, peaks in KNOWN_PEAKS.items()}
    lines, num_left_out = [], 0
    for device, rate in rates.items():
        for words, seconds in BUDGET_SECONDS.items():
            budget = rate * seconds
            times = budget / largest.compute
            if times > MAX_EXTRAPOLATION:
                num_left_out += 1
                continue
            if sizes is None:
                best = exact(math.sqrt(budget / 6 / ratio))
                loss = interval(fit, lambda law, c=budget: float(law.loss(c)))
            else:
                best = interval(sizes, lambda law, c=budget: float(law.optimum(c)[0]))
                loss = interval(sizes, lambda law, c=budget: float(law.loss(*law.optimum(c))))
            price = next((price for part, price in prices.items() if part.lower() in device.lower()), None)
            money = "–" if price is None else f"{price * seconds / 3600:.3g}"
            size = f"{count(budget)}FLOP", counted(best), count(budget / 6 / best.value)
            lines.append((device, words, money, *size, str(loss), _multiple(times)))
    how = f"at the ladder's {ratio:.3g} tokens per parameter" if sizes is None else "by Chinchilla's law"
    head = ("device", "for", "money", "compute", "parameters", "tokens", "loss", "times the largest run")
    title = f"What time buys, {how}; GPUs at {GPU_UTILISATION:.0%} of their data sheets"
    if lines:
        findings.tables.append(Table(title, head, tuple(lines)))
    if num_left_out:
        findings.notes.append(
            f"What {num_left_out} of {num_left_out + len(lines)} budgets buy is left out: they are more than "
            f"{MAX_EXTRAPOLATION:,} times the largest run, too far to forecast."
        )


def _add_serving(findings: Findings, law: Chinchilla, largest: Row) -> None:
    """Add the table of the cheapest model for a loss with the cost of inference included."""
    lines, loss = [], float(law.loss(*law.optimum(largest.compute)))
    for times in (0, 10, 1000):
        served = times * largest.tokens
        n, d = law.inference_optimum(loss, float(served))
        lines.append((count(served), count(float(n)), count(float(d)), f"{float(d / n):.3g}"))
    head = ("tokens served", "parameters", "tokens trained on", "tokens per parameter")
    findings.tables.append(Table(f"Cheapest way to {loss:.4f} nats, serving included", head, tuple(lines)))


def _add_minima(findings: Findings, minima: Minima) -> None:
    """Add the best size of each group, and the power of compute with which it grows."""
    lines = tuple(
        (
            f"{count(m.compute)}FLOP",
            counted(Estimate(m.parameters, *(m.interval or (None, None)))),
            count(m.tokens),
            f"{m.tokens / m.parameters:.3g}",
            f"{m.loss:.4f}",
        )
        for m in minima
    )
    head = ("compute", "best parameters", "tokens", "tokens per parameter", "loss")
    findings.tables.append(Table("Best sizes at equal compute", head, lines))
    findings.notes += minima.notes
    if len(minima) >= 2:
        fitted = fit_exponent(minima)
        findings.values["isoflop_exponent"] = Estimate(fitted.exponent, *(fitted.interval or (None, None)))
        findings.lead.append(f"The best size grows as compute to the power {findings.values['isoflop_exponent']}.")


def compare(findings: Findings, baseline: Sequence[Row], method: Sequence[Row]) -> None:
    """Add a comparison of two ladders: the compute multiplier at both ends, its growth, where the curves cross."""
    names = baseline[0].arm, method[0].arm
    ladders = Ladders(dict(zip(names, (baseline, method), strict=True)))
    gained, crossing = ladders.gain(*names), ladders.crossing(*names)
    findings.values |= {"gain.least": gained.least, "gain.most": gained.most, "gain.growth": gained.growth}
    where = (
        "Whether the curves cross can't be told from these runs."
        if crossing is None
        else f"The curves cross at {counted(crossing, 'FLOP')}."
    )
    findings.lead.append(
        f"{names[1]} is worth {gained.least} times the compute of {names[0]} at the smallest compute and {gained.most} "
        f"times at the largest. {where}"
    )
    findings.notes += [*ladders.notes, *(f"{names[1]} against {names[0]}: {note}" for note in gained.notes)]
    both = {name: (rows, ladders.curve(name)) for name, rows in zip(names, (baseline, method), strict=True)}
    findings.pictures["side by side"] = partial(loss_against_cost, both, title="side by side")

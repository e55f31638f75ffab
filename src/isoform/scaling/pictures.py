"""Figures of studies as PNG bytes: curves on logarithmic axes with their intervals, residuals, parabolas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoform.figures import COLORS, new_figure, to_png
from isoform.scaling.curves import ScoredForecast, finite_rows
from isoform.scaling.fitting import Fit
from isoform.scaling.laws import PowerLaw
from isoform.scaling.minima import Minima
from isoform.scaling.multipliers import Curve
from isoform.scaling.study import Row
from isoform.terminal import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = [(color, marker, line) for marker, line in (("o", "-"), ("s", "--"), ("^", ":")) for color in COLORS]
"""Styles of the arms in order, all distinct."""
MAX_BANDS = 4
"""Intervals of more curves than this would hide each other."""


def loss_against_cost(
    curves: Mapping[str, tuple[Sequence[Row], Fit[PowerLaw] | Curve | None]],
    cost: Callable[[Row], float] = lambda row: row.compute,
    *,
    label: str = "training compute, FLOPs",
    forecasts: Sequence[ScoredForecast] = (),
    reach: float = 1.0,
) -> bytes:
    """Runs and curves of each arm, with 90 % intervals of up to `MAX_BANDS` curves; reach: multiple of the largest cost
    to which curves extend. Raises ValueError for more arms than there are styles."""
    if len(curves) > len(STYLES):
        raise ValueError(f"{len(curves)} arms can't be distinguished in one figure; draw {len(STYLES)} or fewer")
    figure, axes = new_figure()
    for (arm, (rows, fit)), (color, marker, style) in zip(curves.items(), STYLES, strict=False):
        rows = finite_rows(rows)
        costs = np.array([cost(row) for row in rows])
        losses = np.array([row.loss for row in rows])
        axes.plot(costs, losses, marker, color=color, markersize=4, alpha=0.75, label=arm)
        if fit is None or not len(costs):
            continue
        line = np.geomspace(costs.min(), costs.max() * reach, 120)
        axes.plot(line, fit.law.loss(line), style, color=color, linewidth=1.3)
        if fit.replicates and len(curves) <= MAX_BANDS:
            each = np.array([law.loss(line) for law in fit.replicates])
            axes.fill_between(line, *np.quantile(each, (0.05, 0.95), axis=0), color=color, alpha=0.15, linewidth=0)
    for i, scored in enumerate(forecasts):
        forecast = scored.forecast
        if forecast.low is not None and forecast.high is not None:
            bars = [[forecast.loss - forecast.low], [forecast.high - forecast.loss]]
            words = "forecast from runs below 1/8 of the compute" if i == 0 else None
            axes.errorbar(
                [scored.compute],
                [forecast.loss],
                yerr=bars,
                fmt="_",
                color="#1d2430",
                capsize=4,
                linewidth=1.2,
                label=words,
            )
    _logarithmic(axes, label)
    axes.legend(frameon=False)
    return to_png(figure)


def _logarithmic(axes: Axes, label: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("validation loss, nats per token")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 100 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 8 else FixedLocator(_even(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(FixedLocator([]))


def _even(low: float, high: float) -> list[float]:
    """At least four round numbers between `low` and `high`."""
    for step in (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02):
        ticks = [round(i * step, 2) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(ticks) >= 4:
            return ticks
    return [low, high]


def residuals(fit: Fit, compute: Sequence[float]) -> bytes:
    """The residuals of the law against compute, in percent."""
    figure, axes = new_figure(height=2.6)
    axes.axhline(0, color="#4d5866", linewidth=0.8)
    axes.plot(compute, 100 * np.asarray(fit.residuals), "o", color=COLORS[0], markersize=4, alpha=0.75)
    axes.set_xscale("log")
    axes.set_xlabel("training compute, FLOPs")
    axes.set_ylabel("residual, %")
    return to_png(figure)


def isoflop(rows: Sequence[Row], minima: Minima) -> bytes:
    """Loss against size at equal compute, with the parabola of each group and its minimum (Hoffmann et al. 2022)."""
    figure, axes = new_figure()
    rows = finite_rows(rows)
    for group, color in zip(sorted({row.group for row in rows}), COLORS * 9, strict=False):
        members = [row for row in rows if row.group == group]
        sizes, losses = np.log([row.parameters for row in members]), np.array([row.loss for row in members])
        compute = float(np.median([row.compute for row in members]))
        axes.plot(np.exp(sizes), losses, "o", color=color, markersize=4, label=f"{count(compute)}FLOP")
        if len(set(sizes.tolist())) >= 3:
            line = np.linspace(sizes.min(), sizes.max(), 60)
            axes.plot(np.exp(line), np.polyval(np.polyfit(sizes, losses, 2), line), color=color, linewidth=1.1)
    for minimum in minima:
        axes.plot(minimum.parameters, minimum.loss, "*", color="#1d2430", markersize=9)
    axes.set_xscale("log")
    axes.set_xlabel("effective parameters")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(frameon=False)
    return to_png(figure)


Interval = tuple[float, float | None, float | None]
"""A number and the ends of its interval."""


def dots(numbers: Mapping[str, Interval], label: str) -> bytes:
    """Numbers with their intervals, one below the other."""
    figure, _ = _dots(numbers, label)
    return to_png(figure)


def _dots(numbers: Mapping[str, Interval], label: str) -> tuple[Figure, Axes]:
    figure, axes = new_figure(height=0.9 + 0.38 * len(numbers))
    for i, (value, low, high) in enumerate(numbers.values()):
        if math.isfinite(value):
            axes.plot(value, i, "o", color=COLORS[0], markersize=5)
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [i, i], color=COLORS[0], linewidth=2)
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure, axes


def multipliers(gains: Mapping[str, Interval], label: str) -> bytes:
    """Multipliers with their intervals on a logarithmic axis, with a line at 1."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _dots(gains, label)
    axes.axvline(1, color="#4d5866", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_locator(NullLocator())
    return to_png(figure)

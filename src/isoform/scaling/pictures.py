"""Figures of studies: curves on logarithmic axes with their intervals, residuals, parabolas, numbers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isoform.figures import COLORS, FAINT, INK, literal, new_figure, new_panels, set_log_ticks
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

MARKERS = "os^Dv"
MAX_ARMS = 4
"""Arms in one panel: more would hide each other, so that each gets its own beside its baseline."""
RUNS = "runs"
"""The name of a lone arm."""
COLUMNS = 3
"""Panels side by side."""
Fitted = tuple[Sequence[Row], Fit[PowerLaw] | Curve | None]
"""The runs of an arm, and its curve."""


@dataclass(frozen=True)
class Axis:
    """The cost on the horizontal axis: of a run, and what it is called."""

    cost: Callable[[Row], float] = lambda row: row.compute
    label: str = "training compute, FLOP"


def loss_against_cost(
    curves: Mapping[str, Fitted],
    axis: Axis = Axis(),
    *,
    title: str = "",
    baselines: Mapping[str, str] | None = None,
    forecasts: Sequence[ScoredForecast] = (),
    reach: float = 1.0,
) -> Figure:
    """Runs and curves of each arm, with 90 % intervals; of more than `MAX_ARMS` arms a panel each, with its baseline in
    gray (baselines: by arm; default: the first). reach: multiple of the largest cost to which curves extend."""
    first = next(iter(curves))
    if len(curves) > MAX_ARMS:
        pairs = {arm: (baselines or {}).get(arm, first) for arm in curves if arm != first}
        return _side_by_side(curves, {arm: base for arm, base in pairs.items() if base in curves}, axis, title)
    figure, axes = new_figure()
    for (arm, fitted), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        _draw_curve(axes, fitted, axis, color, marker, label=_with_number(arm, fitted), reach=reach, has_band=True)
    _draw_forecasts(axes, forecasts)
    _set_logarithmic(axes)
    axes.set_xlabel(axis.label)
    axes.set_ylabel("validation loss, nats per token")
    axes.set_title(title)
    axes.legend(frameon=False, labelcolor=INK)
    return figure


def _with_number(arm: str, fitted: Fitted) -> str:
    number = len(finite_rows(fitted[0]))
    words = f"{number} run{'' if number == 1 else 's'}"
    return words if arm == RUNS else f"{literal(arm, 40)}, {words}"


def _side_by_side(curves: Mapping[str, Fitted], baselines: Mapping[str, str], axis: Axis, title: str) -> Figure:
    """A panel for each arm and its baseline, with the same limits."""
    columns = 2 if len(baselines) == 4 else COLUMNS
    rows = math.ceil(len(baselines) / columns)
    figure, panels = new_panels(rows, columns, 9.0, 0.8 + 2.4 * rows, shared=True)
    flat = [axes for row in panels for axes in row]
    for axes, (arm, base) in zip(flat, baselines.items(), strict=False):
        _draw_curve(axes, curves[base], axis, COLORS[-1], "s", label=literal(base, 24), has_band=False)
        _draw_curve(axes, curves[arm], axis, COLORS[0], "o", label=literal(arm, 24), has_band=False)
        axes.set_title(_with_number(arm, curves[arm]), fontsize=9)
        axes.legend(frameon=False, labelcolor=INK, fontsize=7)
    for axes in flat[len(baselines) :]:
        axes.set_axis_off()
    for axes in flat[len(baselines) - columns : len(baselines)]:
        axes.tick_params(labelbottom=True)
    _set_logarithmic(flat[0])
    figure.supxlabel(axis.label, fontsize=10, color=INK)
    figure.supylabel("validation loss, nats per token", fontsize=10, color=INK)
    figure.suptitle(f"{title}: each arm beside its baseline" if title else "", fontsize=11, color=INK)
    return figure


def _draw_curve(
    axes: Axes,
    fitted: Fitted,
    axis: Axis,
    color: str,
    marker: str,
    *,
    label: str,
    has_band: bool,
    reach: float = 1.0,
) -> None:
    rows, fit = finite_rows(fitted[0]), fitted[1]
    costs = np.array([axis.cost(row) for row in rows])
    losses = np.array([row.loss for row in rows])
    axes.plot(costs, losses, marker, color=color, markersize=4, alpha=0.75, label=label)
    if fit is None or not len(costs):
        return
    line = np.geomspace(costs.min(), costs.max() * reach, 120)
    axes.plot(line, fit.law.loss(line), color=color, linewidth=1.3)
    if fit.replicates and has_band and (not isinstance(fit, Fit) or fit.has_interval):
        each = np.array([law.loss(line) for law in fit.replicates])
        axes.fill_between(line, *np.quantile(each, (0.05, 0.95), axis=0), color=color, alpha=0.15, linewidth=0)


def _draw_forecasts(axes: Axes, forecasts: Sequence[ScoredForecast]) -> None:
    words: str | None = "forecast from runs below 1/8 of the compute"
    for scored in forecasts:
        loss, low, high = scored.forecast.loss, scored.forecast.low, scored.forecast.high
        if low is not None and high is not None:
            bars = [[loss - low], [high - loss]]
            style = {"fmt": "_", "color": INK, "capsize": 4, "linewidth": 1.2}
            axes.errorbar([scored.compute], [loss], yerr=bars, label=words, **style)
            words = None


def _set_logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _set_costs(axes)
    set_log_ticks(axes.yaxis, *axes.get_ylim())


def _set_costs(axes: Axes) -> None:
    """Costs on a logarithmic axis, as 1 T or 20."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1,) if high / low > 100 else (1, 3) if high / low > 20 else (1, 2, 5))
    )
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def residuals(fit: Fit, compute: Sequence[float]) -> Figure:
    """The residuals of the law against compute, in percent."""
    figure, axes = new_figure(height=2.8)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.plot(compute, 100 * np.asarray(fit.residuals), "o", color=COLORS[0], markersize=4, alpha=0.75)
    axes.set_xscale("log")
    _set_costs(axes)
    axes.set_title(f"residuals of the law, {len(compute)} runs")
    axes.set_xlabel("training compute, FLOP")
    axes.set_ylabel("residual, %")
    return figure


def isoflop(rows: Sequence[Row], minima: Minima) -> Figure:
    """Loss against size at equal compute, with the parabola of each group and its minimum (Hoffmann et al. 2022)."""
    figure, axes = new_figure()
    rows = finite_rows(rows)
    groups = sorted({row.group for row in rows})
    for i, group in enumerate(groups):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]
        members = [row for row in rows if row.group == group]
        sizes, losses = np.log([row.parameters for row in members]), np.array([row.loss for row in members])
        compute = float(np.median([row.compute for row in members]))
        axes.plot(np.exp(sizes), losses, marker, color=color, markersize=4, label=f"{count(compute)}FLOP")
        if len(set(sizes.tolist())) >= 3:
            line = np.linspace(sizes.min(), sizes.max(), 60)
            axes.plot(np.exp(line), np.polyval(np.polyfit(sizes, losses, 2), line), color=color, linewidth=1.1)
    for minimum in minima:
        axes.plot(minimum.parameters, minimum.loss, "*", color=INK, markersize=9)
    axes.set_xscale("log")
    _set_costs(axes)
    axes.set_title(f"equal compute, {len(rows)} runs; stars: the best sizes")
    axes.set_xlabel("effective parameters")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(frameon=False, labelcolor=INK)
    return figure


@dataclass(frozen=True)
class Interval:
    """A number, the ends of its interval, and how many runs it is of."""

    value: float
    low: float | None
    high: float | None
    num_runs: int


def dots(numbers: Mapping[str, Interval], title: str, label: str, *, reference: str = "") -> Figure:
    """Numbers with their intervals, one below the other from the least to the greatest; a line through that of
    `reference`."""
    figure, axes = _dots(numbers, title, label, is_sorted=True)
    if reference in numbers and math.isfinite(numbers[reference].value):
        axes.axvline(numbers[reference].value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        figure.supxlabel(f"{label}; dashed: {literal(reference, 40)}", fontsize=10, color=INK)
    return figure


def _dots(numbers: Mapping[str, Interval], title: str, label: str, *, is_sorted: bool) -> tuple[Figure, Axes]:
    figure, axes = new_figure(height=1.3 + 0.36 * len(numbers))
    names = sorted(numbers, key=lambda name: numbers[name].value) if is_sorted else list(numbers)
    for i, number in enumerate(numbers[name] for name in names):
        low, high = number.low, number.high
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [i, i], color=COLORS[0], linewidth=2)
        if math.isfinite(number.value):
            axes.plot(number.value, i, "o", color=COLORS[0], markersize=5)
    axes.set_yticks(range(len(numbers)), [f"{literal(name, 48)}  (n = {numbers[name].num_runs})" for name in names])
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    figure.suptitle(literal(title, 90), x=0.01, ha="left", fontsize=10, color=INK)
    figure.supxlabel(label, fontsize=10, color=INK)  # which may be wider than the axes
    return figure, axes


def multipliers(gains: Mapping[str, Interval], title: str, label: str) -> Figure:
    """Multipliers with their intervals on a logarithmic axis, in their order, with a line at 1."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _dots(gains, title, label, is_sorted=False)
    axes.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high / low > 12 else (1, 1.5, 2, 3, 5, 7)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_locator(NullLocator())
    return figure

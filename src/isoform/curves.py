"""What runs measured as they went, as figures: loss, learning rate, gradient norm, throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.figures import COLORS, FAINT, INK, literal, new_figure, set_log_ticks, to_svg
from isoform.objectives.config import Objective, Regression, TokenRegression, requirements_of
from isoform.terminal import count, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 1000
"""Points of a line; of more, the least and the greatest of each stretch are drawn."""
SMOOTHED = 0.05
"""Share of all points in a mean."""
SECONDS = [n * unit for unit in (1, 60, 3600) for n in (1, 2, 5, 10, 15, 20, 30)] + [n * 86400 for n in (1, 2, 5, 10)]
"""Distances between ticks of time."""
Points = tuple[np.ndarray, np.ndarray]
"""Tokens seen, and a value after each."""


@dataclass(frozen=True)
class Measure:
    """A loss as it is measured on training and validation rows, with its unit."""

    training: str
    validation: str
    unit: str


BITS = Measure("bits_per_byte", "validation_bits_per_byte", "bits per byte")
"""Which can be compared between codecs."""


def measure_of(objective: Objective) -> Measure:
    """The loss of an objective."""
    if isinstance(objective, Regression | TokenRegression):
        return Measure("loss", "validation_loss", "mean squared error")
    words = {"vocabulary": "token", "document": "label", "token": "tag", "embedding": "pair"}
    return Measure("loss", "validation_loss", f"nats per {words[requirements_of(objective).answer]}")


@dataclass(frozen=True, eq=False)
class Course:
    """The course of a run: the lines of its metrics, and its peak learning rate."""

    name: str
    lines: Sequence[dict[str, Any]]
    learning_rate: float

    def column(self, field: str) -> Points:
        """A field of the training lines."""
        having = [line for line in self.lines if "tokens_seen" in line and _is_finite(line.get(field))]
        return _arrays([(line["tokens_seen"], line[field]) for line in having])

    def validations(self, field: str) -> Points:
        """A field of the validations, which may fall on steps between two training lines."""
        steps, tokens = _arrays([(line["step"], line["tokens_seen"]) for line in self.lines if "tokens_seen" in line])
        having = [line for line in self.lines if _is_finite(line.get(field))]
        at, values = _arrays([(line["step"], line[field]) for line in having])
        return (np.interp(at, np.append(0, steps), np.append(0, tokens)) if len(steps) else at), values

    def times(self) -> Points:
        """Seconds of training, each greater than the one before."""
        tokens, seconds = self.column("train_seconds")
        rising = np.diff(seconds, prepend=0) > 0
        return tokens[rising], seconds[rising]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _arrays(pairs: Sequence[tuple[float, float]]) -> Points:
    columns = np.array(pairs, dtype=float).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean about each value, over fewer towards both ends, so that the fall at the beginning stays as steep."""
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]) // 2, round(SMOOTHED * len(values) / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _thinned(tokens: np.ndarray, values: np.ndarray) -> Points:
    """The same line of at most `MOST` points."""
    if len(values) <= MOST:
        return tokens, values
    parts = np.array_split(np.arange(len(values)), MOST // 2)
    chosen = np.unique([part[at] for part in parts for at in (values[part].argmin(), values[part].argmax())])
    return tokens[chosen], values[chosen]


def loss_curve(course: Course, measure: Measure, expected: float | None = None) -> str:
    """Training loss, raw and smoothed, validation and expected loss against tokens and time, from the start, as SVG."""
    figure, axes = new_figure(8, 3.9)
    training, validation = course.column(measure.training), course.validations(measure.validation)
    axes.plot(*_thinned(*training), color=COLORS[0], linewidth=0.7, alpha=0.35, label="training, each step logged")
    axes.plot(*_thinned(training[0], smoothed(training[1])), color=COLORS[0], linewidth=1.6, label="training, smoothed")
    axes.plot(*validation, "o-", color=COLORS[1], markersize=4.5, linewidth=1.2, label="validation")
    values = [*training[1], *validation[1]]
    if expected is not None:
        axes.axhline(expected, color=FAINT, linestyle=(0, (4, 3)), linewidth=1, label=f"expected, {expected:.4g}")
        values.append(expected)
    if len(validation[0]):
        at, last = validation[0][-1], validation[1][-1]
        axes.annotate(f"{last:.4g}", (at, last), (-4, 9), textcoords="offset points", ha="right", color=INK)
    _set_axes(axes, values, max([*training[0], *validation[0], 1]), measure)
    _add_times(axes, course)
    return to_svg(figure, f"loss over tokens, {measure.unit}")


def loss_curves(courses: Sequence[Course], measure: Measure) -> str:
    """The smoothed training loss and the validation loss of several runs, as SVG."""
    figure, axes = new_figure(8, 4.2)
    values: list[float] = []
    for course, color in zip(courses, COLORS, strict=False):
        tokens, losses = course.column(measure.training)
        validation = course.validations(measure.validation)
        axes.plot(*_thinned(tokens, smoothed(losses)), color=color, linewidth=0.9, alpha=0.55)
        axes.plot(*validation, "o-", color=color, markersize=4.5, linewidth=1.4, label=literal(course.name, 30))
        values += [*losses, *validation[1]]
    _set_axes(axes, values, max([1, *(t for c in courses for t in c.column("loss")[0])]), measure)
    return to_svg(figure, f"losses of {len(courses)} runs over tokens, {measure.unit}")


def _set_axes(axes: Axes, values: Sequence[float], tokens: float, measure: Measure) -> None:
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    if low > 0 and high > 1.5 * low:
        axes.set_yscale("log")
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin**1.5, high * margin)
        set_log_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_xlim(0, tokens * 1.01)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel(f"loss, {measure.unit}")
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.legend(frameon=False, labelcolor=INK)


def _add_times(axes: Axes, course: Course) -> None:
    """A second axis, above, with the seconds of training."""
    tokens, seconds = course.times()
    if len(seconds) < 2:
        return
    step = next((step for step in SECONDS if seconds[-1] / step <= 6), SECONDS[-1])
    ticks = np.arange(0, seconds[-1] * 1.001, step)
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    at = np.interp(ticks, np.append(0, seconds), np.append(0, tokens))
    top.set_xticks(at, [duration(tick).removesuffix(" 0 s").removesuffix(" 0 min") for tick in ticks])
    top.set_xlabel("training time", color=INK)
    top.spines[:].set_visible(False)
    top.tick_params(color=FAINT, labelcolor=INK, length=2)


@dataclass(frozen=True)
class Panel:
    """A small figure of one field of the metrics."""

    field: str
    title: str
    is_logarithmic: bool = False


PANELS = (
    Panel("learning_rate_factor", "learning rate"),
    Panel("gradient_norm", "gradient norm", is_logarithmic=True),
    Panel("tokens_per_second", "tokens per second"),
)


def panel(courses: Sequence[Course], what: Panel) -> str:
    """A field of the metrics of one run or several, raw and smoothed, against tokens, as SVG."""
    figure, axes = new_figure(3.1, 2.3)
    values: list[float] = []
    for course, color in zip(courses, COLORS, strict=False):
        tokens, column = course.column(what.field)
        if what.field == "learning_rate_factor":
            column = column * course.learning_rate
        if len(courses) == 1 and what.field != "learning_rate_factor":
            axes.plot(*_thinned(tokens, column), color=color, linewidth=0.7, alpha=0.35)
        line = column if what.field == "learning_rate_factor" else smoothed(column)
        axes.plot(*_thinned(tokens, line), color=color, linewidth=1.4)
        values += [*column]
    if what.is_logarithmic and values and 0 < 2 * min(values) < max(values):
        axes.set_yscale("log")
        set_log_ticks(axes.yaxis, *axes.get_ylim())
    elif values:
        axes.set_ylim(0, 1.08 * max(values) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: count(value))
    axes.set_title(what.title, fontsize=10)
    axes.set_xlabel("tokens seen")
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    return to_svg(figure, f"{what.title} over tokens")

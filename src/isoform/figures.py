"""Figures in one style, as PNG, or as SVG whose colours are those of the page around it, light or dark.

Texts in a figure may be anyone's: `literal` keeps them from being read as formulas. matplotlib is imported when a
figure is created, without its interface for notebooks, whose settings stay the user's.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import TYPE_CHECKING

from isoform.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, FAINT, LINE = "#1d2430", "#5b6675", "#d9dee5"
"""Of texts, axes and grids."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#c98a00", "#56b4e9", "#6b7683")
"""Of series: distinct to colour-blind eyes, too (after Okabe and Ito 2008)."""
VARIABLES = {INK: "ink", FAINT: "faint", LINE: "line"} | {color: f"series-{i}" for i, color in enumerate(COLORS)}
"""The CSS variables that replace the colours in SVG; outside a page that sets them the colours stay."""


def new_figure(width: float = 7.2, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches."""
    figure, ((axes,),) = new_panels(1, 1, width, height)
    return figure, axes


def new_panels(
    rows: int, columns: int, width: float, height: float, *, shared: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of axes, in inches; shared: all have the same limits, and only the outer ones numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
    for axes in panels.flat:
        _set_style(axes)
    return figure, [list(row) for row in panels]


def _set_style(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK)
    axes.grid(color=LINE, which="both", linewidth=0.6)
    axes.set_axisbelow(True)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(INK)


def literal(text: str, longest: int = 60) -> str:
    """A text for a figure, in which nothing is a formula or a control character; cut if it is long."""
    text = visible(text).replace("\n", "\\n").replace("\t", "\\t")
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.replace("$", "\\$")


def set_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Round numbers on a logarithmic axis, written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    is_wide = high > 8 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if is_wide else FixedLocator(_even(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_minor_formatter(NullFormatter())


def _even(low: float, high: float) -> list[float]:
    """At least four round numbers between `low` and `high`, which are above 0."""
    for power in range(math.ceil(math.log10(high)), math.floor(math.log10(high - low)) - 3, -1):
        for step in (5 * 10.0**power, 2 * 10.0**power, 10.0**power):
            ticks = [float(f"{i * step:.6g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
            if len(ticks) >= 4:
                return ticks
    return [low, high]


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # that the font lacks, which it draws as a box
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None}, facecolor="white")
    return file.getvalue()


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element without a background, whose texts are texts; title: what readers hear of it."""
    from html import escape

    from matplotlib import rc_context

    file = io.StringIO()
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "isoform"}):
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = file.getvalue()
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, name in VARIABLES.items():
        text = text.replace(f": {color}", f": var(--{name}, {color})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(visible(title))}" ', 1)

"""Figures in one style, as PNG or SVG without timestamps. matplotlib is imported when a figure is created."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#1f5fa8", "#b3392f", "#2f8f5b", "#8a5bb0", "#c98a1b", "#4d5866", "#d0699b", "#3aa6b0")


def new_figure(width: float = 7.2, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches."""
    figure, (axes,) = new_panels(1, width, height)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, which="both", linewidth=0.6)
    return figure, axes


def new_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; it is closed."""
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return file.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element; it is closed."""
    from matplotlib import pyplot

    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return file.getvalue()[file.getvalue().index("<svg") :]

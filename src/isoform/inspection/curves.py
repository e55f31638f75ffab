"""The course of a run in a few lines of text: its loss as bars, its gradient norms, the size of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from isoform.curves import Course, Measure, smoothed

BARS = " ▁▂▃▄▅▆▇█"
"""Eighths of a character, from none to all."""
ROWS = 4
"""Lines of the curve of the loss."""


def bars(values: ArrayLike, rows: int = 1) -> list[str]:
    """Positive numbers as bars of `rows` lines, on a logarithmic scale from the least, which stays visible, to the
    greatest; one character per number."""
    logs = np.log(np.asarray(values, float))
    span = np.ptp(logs)
    shares = (logs - logs.min()) / span if span > 0 else np.full(len(logs), 0.5)
    eighths = 1 + np.round(shares * (8 * rows - 1)).astype(int)
    return ["".join(BARS[min(8, max(0, n - 8 * row))] for n in eighths) for row in reversed(range(rows))]


def _columns(values: np.ndarray, width: int) -> np.ndarray:
    """Means of at most `width` stretches of equal length."""
    return np.array([part.mean() for part in np.array_split(values, min(width, len(values)))])


def _abridged(words: Sequence[str], width: int) -> str:
    """The words in a line of at most `width`, those in the middle left out if need be."""
    middle = len(words) // 2
    for left_out in range(len(words) - 1):
        half = left_out // 2
        chosen = [*words[: middle - half], "…", *words[middle + left_out - half :]] if left_out else words
        if len(line := "  ".join(chosen)) <= width:
            return line
    return words[-1]


def course_lines(course: Course, measure: Measure, width: int) -> Iterator[str]:
    """Loss, validation loss, gradient norm and learning rate of a run over its steps, in lines of at most `width`."""
    room = max(8, width - 46)
    tokens, losses = course.column(measure.training)
    if len(tokens) and losses.min() > 0:
        curve = _columns(smoothed(losses), room)
        lines = bars(curve, ROWS)
        yield f"{'training loss':<16}{curve.max():>9.4g} {lines[0]}"
        yield from (f"{'':<26}{line}" for line in lines[1:-1])
        yield f"{'':<16}{curve.min():>9.4g} {lines[-1]} {losses[-1]:.4g} at the end"
    _, validations = course.validations(measure.validation)
    if len(validations):
        shown = [f"{loss:.4g}" for loss in validations]
        yield f"{'validation loss':<16}{'':>9} {_abridged(shown, width - 26)}"
    _, norms = course.column("gradient_norm")
    if len(norms) and norms.min() > 0:
        yield f"{'gradient norm':<16}{norms.max():>9.3g} {bars(_columns(norms, room))[0]} {norms[-1]:.3g} at the end"
    _, factors = course.column("learning_rate_factor")
    if len(factors):
        line = bars(np.maximum(_columns(factors, room), 1e-3))[0]
        yield f"{'learning rate':<16}{factors.max() * course.learning_rate:>9.3g} {line}"


def weight_sizes(model: nn.Module) -> dict[str, float]:
    """The root mean square of the parameters of each part of a model: stem, each block, head."""
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        part = ".".join(parts[: parts.index("blocks") + 2]) if "blocks" in parts else parts[0]
        squares[part] = squares.get(part, 0.0) + float(parameter.detach().double().square().sum())
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {part: math.sqrt(squares[part] / counts[part]) for part in squares if counts[part]}


def weight_lines(sizes: dict[str, float], width: int) -> Iterator[str]:
    """The sizes of weights, as many to a line as fit."""
    line = f"{'weights (RMS)':<16}{'':>10}"
    indent = len(line)
    for part, size in sizes.items():
        text = f"{part.replace('.blocks.', ' ')} {size:.3g}"
        if len(line) > indent and len(line) + len(text) + 2 > width:
            yield line.rstrip()
            line = " " * indent
        line += ("  " if len(line) > indent else "") + text
    yield line

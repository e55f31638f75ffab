"""The best size at each compute, and the power of compute with which it grows (Hoffmann et al. 2022, 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isoform.scaling.laws import Points


@dataclass(frozen=True)
class Minimum:
    """The minimum of the loss at one compute."""

    compute: float
    """FLOPs, the geometric mean of the group."""
    parameters: float
    tokens: float
    loss: float
    error: float | None
    """Standard error of log N; None without degrees of freedom to estimate the noise."""
    interval: tuple[float, float] | None
    """90 % interval of `parameters` (Fieller 1954)."""
    degrees: int
    """Degrees of freedom of the noise, pooled over groups."""


@dataclass(frozen=True)
class Minima:
    """The minima, and notes on excluded groups."""

    minima: tuple[Minimum, ...]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Minimum]:
        return iter(self.minima)

    def __len__(self) -> int:
        return len(self.minima)

    def __getitem__(self, index: int) -> Minimum:
        return self.minima[index]


def _group_by_compute(compute: np.ndarray, gap: float = 1.1) -> np.ndarray:
    """[n], the index of each run's group: a gap of more than 10 % begins a new one."""
    order = np.argsort(compute)
    group = np.empty(len(compute), int)
    group[order] = np.cumsum(np.diff(np.log(compute[order]), prepend=-np.inf) > np.log(gap))
    return group


@dataclass(frozen=True, eq=False)
class _Parabola:
    """log loss = top + slope (log N - centre) + bend (log N - centre)², through the runs of one compute."""

    compute: float
    log_sizes: np.ndarray
    """[n]"""
    centre: float
    coefficients: np.ndarray
    """[3], top, slope and bend."""
    covariance: np.ndarray
    """[3, 3], of the coefficients, divided by the variance of the noise."""
    squares: float
    """Sum of the squared residuals."""


def _parabola(group: Points, compute: float) -> _Parabola:
    x, y = np.log(group.parameters), np.log(group.loss)
    centre = x.mean()
    design = np.stack([np.ones_like(x), x - centre, (x - centre) ** 2], 1)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    squares = float(((y - design @ coefficients) ** 2).sum())
    return _Parabola(compute, x, centre, coefficients, inverse, squares)


def isoflop_minima(points: Points, groups: np.ndarray | None = None) -> Minima:
    """A parabola of log loss in log N through each group of runs of equal compute (Hoffmann et al. 2022, 3.2).

    `groups` are [n] labels; None: a gap of more than 10 % in compute separates groups. The noise is pooled over groups.
    A group whose minimum lies outside its sizes, or is not significant, is excluded with a note. ValueError
    for a group that spans more than 30 % in compute.
    """
    labels = _group_by_compute(points.compute) if groups is None else np.asarray(groups)
    if labels.shape != points.loss.shape:
        raise ValueError(f"groups has shape {labels.shape} for {len(points)} runs; every run needs one label")
    notes, parabolas = [], []
    for label in np.unique(labels):
        group = points.where(labels == label)
        span = group.compute.max() / group.compute.min()
        if span > 1.3:
            raise ValueError(
                f"compute in group {label} spans a factor of {span:.2f}; split it: a group spans less than 1.3"
            )
        compute = float(np.exp(np.log(group.compute).mean()))
        sizes = len(np.unique(np.round(np.log(group.parameters), 6)))
        if sizes < 3:
            notes.append(f"{compute:.3g} FLOPs excluded: {sizes} sizes, and a parabola needs three")
        else:
            parabolas.append(_parabola(group, compute))
    degrees = sum(len(parabola.log_sizes) - 3 for parabola in parabolas)
    noise = sum(parabola.squares for parabola in parabolas) / degrees if degrees else None
    minima = []
    for parabola in parabolas:
        minimum = _minimum(parabola, noise, degrees)
        if isinstance(minimum, Minimum):
            minima.append(minimum)
        else:
            notes.append(f"{parabola.compute:.3g} FLOPs excluded: {minimum}")
    return Minima(tuple(minima), tuple(notes))


def _minimum(parabola: _Parabola, noise: float | None, degrees: int) -> Minimum | str:
    """The minimum of a parabola, or why there is none; `noise` is the variance of log loss, None if unknown."""
    x, centre, (top, slope, bend) = parabola.log_sizes, parabola.centre, parabola.coefficients
    if bend <= 0 or not x.min() <= centre - slope / (2 * bend) <= x.max():
        return "the minimum lies outside its sizes"
    offset = -slope / (2 * bend)
    error = interval = None
    if noise is not None:
        interval = _fieller(parabola, noise, degrees)
        if interval is None:
            return "its curvature can't be distinguished from noise"
        gradient = np.array([0, 1, 2 * offset]) / (2 * bend)
        error = float(np.sqrt(noise * gradient @ parabola.covariance @ gradient))
    n, loss = float(np.exp(centre + offset)), float(np.exp(top + slope * offset / 2))
    return Minimum(parabola.compute, n, parabola.compute / (6 * n), loss, error, interval, degrees)


def _fieller(parabola: _Parabola, noise: float, degrees: int) -> tuple[float, float] | None:
    """The sizes N at which slope + 2 bend x is not significantly nonzero (Fieller 1954, 90 %); None if unbounded."""
    from scipy.special import stdtrit

    _, slope, bend = parabola.coefficients
    limit = stdtrit(degrees, 0.95) ** 2 * noise
    square = 4 * (bend**2 - limit * parabola.covariance[2, 2])
    if square <= 0:
        return None
    linear = 4 * (slope * bend - limit * parabola.covariance[1, 2])
    root = np.sqrt(max(linear**2 - 4 * square * (slope**2 - limit * parabola.covariance[1, 1]), 0))
    low, high = (np.exp(parabola.centre + (-linear + sign * root) / (2 * square)) for sign in (-1, 1))
    return float(low), float(high)


@dataclass(frozen=True)
class Exponent:
    """Compute-optimal N = coefficient · C^exponent; the exponent of D is 1 - exponent."""

    exponent: float
    coefficient: float
    interval: tuple[float, float] | None
    """Interval of the exponent."""


def fit_exponent(minima: Minima, level: float = 0.9) -> Exponent:
    """A line through log N of the minima over log C, each weighted by its error (Hoffmann et al. 2022, 3.2).

    If the minima scatter more about the line than their errors imply, the interval is widened accordingly.
    No interval if their errors are unknown. ValueError below two minima of different compute.
    """
    from scipy.special import stdtrit

    x, y = (np.log([getattr(m, name) for m in minima]) for name in ("compute", "parameters"))
    if len(x) < 2 or np.ptp(x) < np.log(2):
        raise ValueError(
            f"{len(x)} minima within a factor of two of compute: {max(1, 2 - len(x))} more, at another, would suffice"
        )
    errors = [m.error for m in minima if m.error is not None]
    has_errors = len(errors) == len(x)
    weights = 1 / np.maximum(errors, 1e-12) ** 2 if has_errors else np.ones(len(x))
    centre = np.average(x, weights=weights)
    dx = x - centre
    exponent = float((weights * dx * y).sum() / (weights * dx**2).sum())
    constant = float(np.average(y, weights=weights) - exponent * centre)
    interval = None
    if has_errors:
        spread = (weights * dx**2).sum() ** -0.5
        squares = weights * (y - constant - exponent * x) ** 2
        excess = squares.sum() / (len(x) - 2) if len(x) > 2 else 0
        reach = float(stdtrit(minima[0].degrees, (1 + level) / 2) * spread * max(1, excess) ** 0.5)
        interval = (exponent - reach, exponent + reach)
    return Exponent(exponent, float(np.exp(constant)), interval)

"""Fitting the laws to runs, with intervals from a bootstrap.

Every law is fitted to the logarithm of the loss by one batched Levenberg-Marquardt descent, first from all the starts
of a fit at once, then for all its bootstrap replicates at once.

- the residual is log(predicted) - log(observed), under a Huber loss (Hoffmann et al. 2022, 3.3) whose width is twice
  the noise estimated from the data: their 1e-3 amounts to absolute deviations, which lose a third of the efficiency;
- replicates are new data: the fitted law times resampled residuals, each scaled up by its leverage, all of them by
  sqrt(df / chi2_df), so that percentiles become Student's for a law that is linear in its parameters;
- runs that share size and data (seeds) also share the law's misfit there, a variance component of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import numpy as np

from isoform.scaling.forms import (
    NO_FLOOR,
    ChinchillaForm,
    DataConstrainedForm,
    Form,
    KaplanForm,
    PowerLawForm,
)
from isoform.scaling.laws import Chinchilla, DataConstrained, Kaplan, Law, Points, PowerLaw, Values

HUBER = 2.0
"""Width of the Huber loss in units of the noise: least squares would be 1 to 2 % more precise on normal noise."""

MIN_POINTS = 6
"""With fewer fitted runs there is no interval."""


@dataclass(frozen=True)
class Forecast:
    """Predicted loss of one new run, in nats, with an interval from noise and the uncertainty of the law."""

    loss: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Fit(Generic[Law]):
    """A law fitted to n runs."""

    law: Law
    points: Points
    residuals: np.ndarray
    """[n], log of the observed loss over the law's."""
    noise: float
    """Standard deviation of the residuals, with n less the law's free parameters as degrees of freedom."""
    replicates: tuple[Law, ...]
    """The law fitted to each bootstrap sample."""
    new_noise: np.ndarray
    """[replicates, k], log noise of new runs for each replicate."""
    notes: tuple[str, ...] = ()
    """Warnings: parameters at a bound, runs of one size that deviate from the law together."""
    bounds: tuple[str, ...] = ()
    """Of the notes, those of parameters that these runs don't determine, but for a floor of 0."""

    @property
    def has_interval(self) -> bool:
        """Whether there are enough runs for intervals."""
        return len(self.points) >= MIN_POINTS and bool(self.replicates)

    @property
    def doubt(self) -> str:
        """Why the law is undetermined: too few runs, or a parameter at its bound; empty if it is determined."""
        if len(self.points) < MIN_POINTS:
            return f"{len(self.points)} runs, and fewer than {MIN_POINTS} give no interval"
        return "; ".join(self.bounds)

    def interval(self, function: Callable[[Law], Values], level: float = 0.9) -> tuple[float, float] | None:
        """Interval of `function(law)` at confidence `level`; None below six runs, or without replicates."""
        if not self.has_interval:
            return None
        values = np.array([float(function(law)) for law in self.replicates])
        return _percentiles(values, level)

    def forecast(self, function: Callable[[Law], Values], level: float = 0.9) -> Forecast:
        """Forecast of one new run whose loss under the law is `function(law)`; no interval below six runs."""
        loss = float(function(self.law))
        if not self.has_interval:
            return Forecast(loss, None, None)
        values = np.array([float(function(law)) for law in self.replicates])
        return Forecast(loss, *_percentiles(values[:, None] * np.exp(self.new_noise), level))


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: the probability of an interval lies between 0 and 1")
    # The k-th of m values stands for the probability k / (m + 1).
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return float(low), float(high)


def _descend(
    form: Form, observed: np.ndarray, start: np.ndarray, width: float, steps: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Least Huber loss of `predict - observed` from [b, p] starts by Levenberg-Marquardt, within the form's bounds.

    `observed` is [b, n] or [1, n]. Returns parameters [b, p] and the loss reached [b].
    """
    theta = np.clip(start, form.lower, form.upper)
    observed = np.broadcast_to(observed, (len(theta), observed.shape[-1]))
    predicted, jacobian = form.predict(theta)
    cost = _huber(predicted - observed, width)
    curvature, slope = _quadratic(predicted - observed, jacobian, width)
    damping = np.full(len(theta), 1e-3)
    idle = np.zeros(len(theta), int)
    live = np.arange(len(theta))
    for _ in range(steps):
        moved = _bounded_step(form, theta[live], curvature[live], slope[live], damping[live])
        predicted, jacobian = form.predict(moved)
        r = predicted - observed[live]
        reached = _huber(r, width)
        better = reached < cost[live]
        gain, change = cost[live] - reached, np.abs(moved - theta[live]).max(1, initial=0)
        small = (gain <= 1e-9 * cost[live]) & (change < 1e-5) | (cost[live] < 1e-26)
        idle[live] = np.where(small, idle[live] + 1, 0)
        improved = live[better]
        theta[improved], cost[improved] = moved[better], reached[better]
        curvature[improved], slope[improved] = _quadratic(r[better], jacobian[better], width)
        damping[live] = np.where(better, np.maximum(damping[live] / 6, 1e-12), damping[live] * 4)
        live = live[(idle[live] < 2) & (damping[live] < 1e10)]
        if not len(live):
            break
    return theta, cost


def _huber(r: np.ndarray, width: float) -> np.ndarray:
    """Residuals [b, n] to their Huber loss [b]."""
    size = np.abs(r)
    return np.where(size <= width, r * r / 2, width * (size - width / 2)).sum(-1)


def _quadratic(r: np.ndarray, jacobian: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton curvature [b, p, p] and slope [b, p] of the Huber loss."""
    weighted = np.swapaxes(jacobian * (width / np.maximum(np.abs(r), width))[..., None], 1, 2)
    return weighted @ jacobian, (weighted @ r[..., None])[..., 0]


def _bounded_step(
    form: Form, theta: np.ndarray, curvature: np.ndarray, slope: np.ndarray, damping: np.ndarray
) -> np.ndarray:
    """Parameters [b, p] after a damped step within the bounds."""
    h = curvature.copy()
    diagonal = np.einsum("bii->bi", h)
    diagonal += damping[:, None] * np.maximum(diagonal, 1e-9) + 1e-15
    # Parameters pushed against a bound stay; those that a step would carry past one stop at it, and the rest of the
    # step is solved for again.
    fixed = ((theta <= form.lower) & (slope >= 0)) | ((theta >= form.upper) & (slope <= 0))
    step = np.zeros_like(theta)
    for _ in range(theta.shape[1]):
        step = _solve_free(h, slope, step, fixed)
        inside = np.clip(theta + step, form.lower, form.upper) - theta
        crossed = inside != step
        if not crossed.any():
            break
        step = np.where(crossed, inside, step)
        fixed = fixed | crossed
    return np.clip(theta + step, form.lower, form.upper)


def _solve_free(h: np.ndarray, g: np.ndarray, step: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The step [b, p] to the minimum of the quadratic of slope g and curvature h, its `fixed` components unchanged."""
    fixed_step = np.where(fixed, step, 0)
    free = h * (~fixed[:, :, None] & ~fixed[:, None, :])
    free += np.eye(h.shape[1]) * fixed[:, :, None]
    right = np.where(fixed, 0, -g - (h @ fixed_step[..., None])[..., 0])
    return np.where(fixed, step, np.linalg.solve(free, right[..., None])[..., 0])


def _fit(form: Form[Law], points: Points, replicates: int, seed: int) -> Fit[Law]:
    """The point fit from all starts, then the replicates from the point fit."""
    observed = np.log(points.loss)[None]
    n = len(points)
    free = int((form.lower < form.upper).sum())
    df = n - free
    # Twice: with Hoffmann's width, in effect absolute deviations; then with the noise estimated from those.
    theta, cost = _descend(form, observed, form.starts, 1e-3)
    order = np.argsort(cost)[:8]
    theta = theta[order]
    first = (form.predict(theta[:1])[0] - observed)[0]
    spread = 1.4826 * np.median(np.abs(first)) * np.sqrt(n / df)
    width = max(HUBER * float(spread), 1e-7)
    theta, cost = _descend(form, observed, theta, width)
    best = theta[np.argmin(cost)]

    predicted, jacobian = form.predict(best[None])
    residuals = (observed - predicted)[0]
    noise = float(np.sqrt((residuals**2).sum() / df))
    _, group = np.unique(np.round(form.coordinates, 6), axis=0, return_inverse=True)
    group = group.reshape(-1)
    shared, evidence = _shared_variance(residuals, group, free)
    bounds = list(_notes(form, best, jacobian[0]))
    notes = [*bounds]
    if evidence > 2:
        notes.append(f"runs of one size agree better with each other than with the law, which is {shared**0.5:.2g} off")
    rng = np.random.default_rng(seed)
    drawn, new_noise = _draw_noise(
        residuals, jacobian[0][:, form.lower < form.upper], group, shared, free, replicates, rng
    )
    laws = ()
    if replicates:
        refitted, _ = _descend(form, predicted + drawn, np.repeat(best[None], replicates, 0), width)
        laws = tuple(form.build(t) for t in refitted)
    return Fit(
        form.build(best),
        points,
        residuals,
        noise,
        laws,
        new_noise,
        tuple(notes),
        tuple(b for b in bounds if b != NO_FLOOR),
    )


def _shared_variance(residuals: np.ndarray, group: np.ndarray, free: int) -> tuple[float, float]:
    """Variance of the law's misfit shared by all runs of a group, and its evidence in standard errors.

    It is 0 unless the groups' means scatter by one standard error more than seeds alone would cause.
    """
    size = np.bincount(group)
    n, groups = len(group), len(size)
    if not n > groups > free:
        return 0.0, 0.0
    mean = np.bincount(group, residuals) / size
    within = max(float(((residuals - mean[group]) ** 2).sum()) / (n - groups), 1e-14)
    between = float((size * mean**2).sum()) / (groups - free)
    evidence = (between / within - 1) / (2 / (groups - free) + 2 / (n - groups)) ** 0.5
    return (between - within) / (n / groups) if evidence > 1 else 0.0, evidence


def _draw_noise(
    residuals: np.ndarray,
    jacobian: np.ndarray,
    group: np.ndarray,
    shared: float,
    free: int,
    replicates: int,
    rng: np.random.Generator,
    num_new: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """Log noise of bootstrap samples [replicates, n], and of new runs beside them [replicates, num_new]."""
    size = np.bincount(group)
    n, groups = len(residuals), len(size)

    def scale(df: int) -> np.ndarray:
        # A single degree of freedom allows any noise; no 90 % interval extends beyond thirty times.
        return np.minimum(np.sqrt(df / rng.chisquare(df, (replicates, 1))), 30)

    if shared > 0:
        within = residuals - (np.bincount(group, residuals) / size)[group]
        several = size[group] > 1
        pool = within[several] * np.sqrt(size[group] / np.maximum(size[group] - 1, 1))[several]
        factor = scale(n - groups)
        off = np.sqrt(shared) * scale(groups - free) * rng.standard_normal((replicates, groups + num_new))
    else:
        q, _ = np.linalg.qr(jacobian)
        pool = residuals / np.sqrt(1 - np.minimum((q * q).sum(1), 0.95))
        pool -= pool.mean()
        factor, off = scale(n - free), np.zeros((replicates, groups + num_new))
    index = rng.integers(len(pool), size=(replicates, n + num_new))
    drawn = factor * pool[index] + off[:, np.concatenate([group, groups + np.arange(num_new)])]
    return drawn[:, :n], drawn[:, n:]


def _notes(form: Form, theta: np.ndarray, jacobian: np.ndarray) -> Iterator[str]:
    for i, (at_lower, at_upper) in enumerate(form.bound_notes):
        if form.lower[i] == form.upper[i]:
            continue
        if theta[i] - form.lower[i] < 1e-9:
            yield at_lower
        elif form.upper[i] - theta[i] < 1e-9:
            yield at_upper
        elif np.abs(jacobian[:, i]).max() < 1e-6:
            yield f"these runs don't determine a parameter, which keeps its initial value: {at_lower} or above"


def _require(points: Points, free: int, distinct: np.ndarray, spreads: dict[str, np.ndarray]) -> None:
    """ValueError unless there are more distinct runs than parameters and each of `spreads` covers a factor of two."""
    num_distinct = len(np.unique(np.round(distinct, 6), axis=0))
    missing = free + 1 - num_distinct
    if missing > 0:
        raise ValueError(
            f"{num_distinct} different runs for a law of {free} parameters: "
            f"{missing} more, of other sizes, would suffice"
        )
    for name, values in spreads.items():
        num_values = len(np.unique(np.round(values, 6)))
        if num_values < 3 or np.ptp(values) < np.log(2):
            raise ValueError(
                f"the runs have {num_values} different {name}, which cover a factor of {np.exp(np.ptp(values)):.3g}: "
                f"{max(1, 3 - num_values)} more, so that three cover a factor of two, would suffice"
            )


def _require_plane(points: Points, free: int, *more: np.ndarray) -> None:
    """The same for laws of N and D, whose runs must not lie on one line of log N and log D."""
    x, y = np.log(points.parameters), np.log(points.tokens)
    _require(points, free, np.stack([x, y, *more], 1), {"sizes": x, "numbers of tokens": y})
    off = np.linalg.svd(np.stack([x - x.mean(), y - y.mean()]), compute_uv=False)[-1] / np.sqrt(len(x))
    if off < 0.1:
        raise ValueError(
            "size and tokens of the runs rise together, so that the law can't distinguish them: "
            "2 more, with half and twice the tokens per parameter or beyond, would suffice"
        )


def fit_power_law(
    compute: Points | Values,
    loss: Values | None = None,
    *,
    with_floor: bool = True,
    replicates: int = 200,
    seed: int = 0,
) -> Fit[PowerLaw]:
    """L = floor + (scale / C)^exponent through runs, as Points or as their compute (FLOPs) and loss (nats).

    The floor is at least 0, the exponent at most 1. ValueError for too few runs or too little spread.
    """
    if isinstance(compute, Points):
        points = compute
    elif loss is not None:
        points = Points.from_compute(compute, loss)
    else:
        raise ValueError("loss is missing: pass Points, or compute and loss")
    x = np.log(points.compute)
    _require(points, 3 if with_floor else 2, x[:, None], {"values of compute": x})
    return _fit(PowerLawForm(points, with_floor=with_floor), points, replicates, seed)


def fit_chinchilla(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[Chinchilla]:
    """E + A / N^α + B / D^β through runs that differ in N and in D, and not along one line of the two.

    Exponents lie in [0.01, 2], the floor in [0, least loss]. ValueError for too few runs or too little spread.
    """
    _require_plane(points, 5)
    return _fit(ChinchillaForm(points), points, replicates, seed)


def fit_kaplan(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[Kaplan]:
    """((Nc / N)^(αN / αD) + Dc / D)^αD through runs that differ in N and in D, and not along one line of the two.

    Exponents lie in [0.01, 2]. ValueError for too few runs or too little spread.
    """
    _require_plane(points, 4)
    return _fit(KaplanForm(points), points, replicates, seed)


def fit_data_constrained(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[DataConstrained]:
    """Muennighoff et al.'s law through runs of which some repeat their data, beyond their `unique_tokens`.

    All seven parameters are fitted at once; the paper fits the two decays last, with the other five fixed.
    Decays lie in [0.05, 1000]. That of parameters is determined by runs with more of them than the optimum of one
    epoch; a note warns if there are none. ValueError for too few runs, too little spread or too few repeats.
    """
    unique = points.tokens if points.unique_tokens is None else points.unique_tokens
    repeats = points.tokens > 1.5 * unique
    if repeats.sum() < 2:
        raise ValueError(
            f"runs that repeat their data (D > 1.5 U): {repeats.sum()}; {2 - repeats.sum()} more would suffice"
        )
    _require_plane(points, 7, np.log(unique))
    # From Chinchilla's law of all runs, and of those that repeat little where there are enough of them.
    subsets = [points]
    if (~repeats).sum() > 8:
        subsets.append(points.where(~repeats))
    starts = [_fit(ChinchillaForm(runs), runs, 0, 0).law for runs in subsets]
    return _fit(DataConstrainedForm(points, starts), points, replicates, seed)

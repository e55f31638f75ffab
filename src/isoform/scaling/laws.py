"""How loss falls with size, data and compute: the published laws, fitted to runs, with intervals from a bootstrap.

The one idea: every law is fitted in the logarithm of the loss by one batched Gauss-Newton descent, which takes all the
starts of a fit at once and then all its bootstrap replicates at once.

Everywhere N is "parameters as compute counts them": the training FLOPs of a piece over six, so that C = 6 N D exactly.
D is the pieces seen in training, C is in FLOPs, the loss in nats per piece, all of it float64.

- the residual is log(predicted) - log(seen), under a Huber loss (Hoffmann et al. 2022, 3.3), whose width is twice the
  noise as read from the data: their 1e-3 amounts to absolute deviations, which cost a third of the runs' worth;
- replicates are new data: the fitted law times residuals drawn anew, each widened by its leverage, all of them by
  sqrt(df / chi2_df), so that percentiles become Student's for a law that is linear in its numbers;
- runs that share size and data (seeds) also share what the law misses there, a variance component of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Values = float | np.ndarray
"""A number, or an array of them."""

EXPONENTS = (0.01, 2.0)
"""Where exponents of N and of D may lie; that of compute is at most 1, as β α / (α + β) is with both at 2."""

LEAST_SLOPE = 0.005
"""Of log loss in log compute, in the middle of the runs: flatter runs have no law to be found."""

HUBER = 2.0
"""Width of the Huber loss in units of the noise: least squares would be 1 to 2 % more precise on normal noise."""

MIN_POINTS = 6
"""Below so many fitted runs no interval is given."""


# ---------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, eq=False)
class Points:
    """Runs to be fitted: arrays of one length n. ValueError for lengths that differ and for what isn't above 0."""

    parameters: np.ndarray
    """N, training FLOPs of a piece over six."""
    tokens: np.ndarray
    """D, pieces seen, each epoch counted."""
    loss: np.ndarray
    """Nats per piece."""
    unique_tokens: np.ndarray | None = None
    """U, pieces of the data set; what is seen beyond it are repeats. None: nothing is repeated."""

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens", "loss", "unique_tokens"):
            if getattr(self, name) is None:
                continue
            values = np.atleast_1d(np.asarray(getattr(self, name), np.float64))
            if values.ndim != 1 or values.shape != np.shape(np.atleast_1d(self.loss)):
                raise ValueError(f"{name} has shape {values.shape}; every field is one number a run")
            # A data set may be without end.
            sound = values > 0 if name == "unique_tokens" else (values > 0) & np.isfinite(values)
            if not sound.all():
                bad = int(np.argmin(sound))
                raise ValueError(
                    f"{name} of run {bad} is {values[bad]}; leave out runs that have no finite value above 0"
                )
            object.__setattr__(self, name, values)

    @classmethod
    def of_compute(cls, compute: Values, loss: Values) -> Points:
        """Runs of which only compute (FLOPs) is known: N and D stand in for it as sqrt(C / 6) each."""
        side = np.sqrt(np.asarray(compute, np.float64) / 6)
        return cls(side, side, np.asarray(loss, np.float64))

    @property
    def compute(self) -> np.ndarray:
        """C = 6 N D, FLOPs."""
        return 6 * self.parameters * self.tokens

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, mask: np.ndarray) -> Points:
        """The runs that a boolean mask or an array of numbers picks."""
        unique = None if self.unique_tokens is None else self.unique_tokens[mask]
        return Points(self.parameters[mask], self.tokens[mask], self.loss[mask], unique)


# ---------------------------------------------------------------------------------------------------------- the laws


@dataclass(frozen=True)
class PowerLaw:
    """L = floor + (scale / C)^exponent (Kaplan et al. 2020, eq. 1.3, with a floor)."""

    scale: float
    """FLOPs at which the part above the floor is one nat."""
    exponent: float
    floor: float = 0.0
    """Nats that no compute takes away."""

    def loss(self, compute: Values) -> np.ndarray:
        """Nats per piece at `compute` FLOPs."""
        return self.floor + (self.scale / np.asarray(compute, np.float64)) ** self.exponent


@dataclass(frozen=True)
class SharedFloor:
    """Power laws of several methods on one text, whose floor is that of the text."""

    laws: tuple[PowerLaw, ...]


@dataclass(frozen=True)
class Chinchilla:
    """L = E + A / N^α + B / D^β (Hoffmann et al. 2022, eq. 10)."""

    floor: float
    """E, nats."""
    scale_n: float
    """A."""
    alpha: float
    scale_d: float
    """B."""
    beta: float

    def loss(self, parameters: Values, tokens: Values) -> np.ndarray:
        """Nats per piece of N parameters after D pieces."""
        n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        return self.floor + self.scale_n * n**-self.alpha + self.scale_d * d**-self.beta

    @property
    def optimal_exponent(self) -> float:
        """a in N ∝ C^a at the least loss for its compute: β / (α + β) (eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, compute: Values) -> tuple[np.ndarray, np.ndarray]:
        """N and D of the least loss that `compute` FLOPs buy (eq. 4)."""
        product = np.asarray(compute, np.float64) / 6
        balance = self.alpha * self.scale_n / (self.beta * self.scale_d)
        n = balance ** (1 / (self.alpha + self.beta)) * product**self.optimal_exponent
        return n, product / n

    def tokens_per_parameter(self, compute: Values) -> np.ndarray:
        """D / N at the optimum of `compute` FLOPs."""
        n, d = self.optimum(compute)
        return d / n

    def inference_optimum(self, target_loss: Values, inference_tokens: Values) -> tuple[np.ndarray, np.ndarray]:
        """N and D that reach `target_loss` nats at the least 6 N D + 2 N D_inference (Sardana et al. 2023).

        `inference_tokens` are the pieces that the model will serve. ValueError for a loss that isn't above the floor.
        """
        above = np.asarray(target_loss, np.float64) - self.floor
        served = np.asarray(inference_tokens, np.float64)
        if np.any(above <= 0) or np.any(served < 0):
            raise ValueError(f"no model reaches {target_loss} nats serving {served}: the floor is {self.floor:.4g}")
        above, served = np.broadcast_arrays(above, served)

        def sizes(logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # The share of the loss above the floor that is N's to answer for is 1 / (1 + exp(-logit)).
            n = (self.scale_n * (1 + np.exp(-logit)) / above) ** (1 / self.alpha)
            return n, (self.scale_d * (1 + np.exp(logit)) / above) ** (1 / self.beta)

        # The slope of the cost in log N falls with the share; it is above 0 at the optimum without serving.
        low = np.full(above.shape, np.log(self.beta / self.alpha))
        high = low + 100
        for _ in range(100):
            middle = (low + high) / 2
            rises = 1 - self.alpha / self.beta * np.exp(middle) + served / (3 * sizes(middle)[1]) > 0
            low, high = np.where(rises, middle, low), np.where(rises, high, middle)
        return sizes((low + high) / 2)


@dataclass(frozen=True)
class Kaplan:
    """L = ((Nc / N)^(αN / αD) + Dc / D)^αD (Kaplan et al. 2020, eq. 1.5)."""

    critical_n: float
    alpha_n: float
    critical_d: float
    alpha_d: float

    def loss(self, parameters: Values, tokens: Values) -> np.ndarray:
        """Nats per piece of N parameters after D pieces."""
        n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        size = self.alpha_n / self.alpha_d * np.log(self.critical_n / n)
        return np.exp(self.alpha_d * np.logaddexp(size, np.log(self.critical_d / d)))


@dataclass(frozen=True)
class DataConstrained:
    """Chinchilla's law of what D pieces and N parameters are worth when data repeat (Muennighoff et al. 2023).

    With U pieces in the data set, D pieces seen are worth U_D (1 + r (1 - exp(-R / r))): U_D = min(D, U) are seen for
    the first time, R = D / U_D - 1 times again, and r = `decay_d`. Parameters likewise, where the first ones are
    those that Chinchilla's law would spend on the U pieces, with `decay_n`.
    """

    floor: float
    scale_n: float
    alpha: float
    scale_d: float
    beta: float
    decay_d: float
    """R_D*: after about so many repeats the worth of one more has fallen to 1 / e."""
    decay_n: float
    """R_N*."""

    @property
    def unconstrained(self) -> Chinchilla:
        """The law of a data set without end."""
        return Chinchilla(self.floor, self.scale_n, self.alpha, self.scale_d, self.beta)

    def loss(self, parameters: Values, tokens: Values, unique_tokens: Values = np.inf) -> np.ndarray:
        """Nats per piece of N parameters after D pieces, drawn from a data set of U."""
        n, d, u = (np.asarray(x, np.float64) for x in (parameters, tokens, unique_tokens))
        first_d = np.minimum(d, u)
        balance = np.log(self.alpha * self.scale_n / (self.beta * self.scale_d)) / (self.alpha + self.beta)
        optimum = balance + self.beta / self.alpha * (np.log(u) + balance)
        first_n = np.where(optimum < np.log(n), np.exp(np.minimum(optimum, np.log(n))), n)
        worth_d = first_d * (1 - self.decay_d * np.expm1(-(d / first_d - 1) / self.decay_d))
        worth_n = first_n * (1 - self.decay_n * np.expm1(-(n / first_n - 1) / self.decay_n))
        return self.unconstrained.loss(worth_n, worth_d)


Law = TypeVar("Law", PowerLaw, SharedFloor, Chinchilla, Kaplan, DataConstrained)


# ----------------------------------------------------------------------------------------------------------- the fit


@dataclass(frozen=True)
class Forecast:
    """What one new run may show: the law's loss, and the interval that noise and doubt about the law leave, in nats."""

    loss: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Fit(Generic[Law]):
    """A law fitted to n runs."""

    law: Law
    points: Points
    residuals: np.ndarray
    """[n], log of the loss seen over the law's."""
    noise: float
    """Standard deviation of the residuals, with n less the law's numbers as degrees of freedom."""
    replicates: tuple[Law, ...]
    """The law fitted to data drawn anew, once each."""
    fresh: np.ndarray
    """[replicates, k], log noise of new runs beside each replicate."""
    notes: tuple[str, ...] = ()
    """What a reader has to know: numbers at a bound, a law that the runs of one size depart from together."""

    def interval(self, function: Callable[[Law], Values], level: float = 0.9) -> tuple[float, float] | None:
        """Where `function(law)` lies, with the probability `level`; None below six runs, or without replicates."""
        if len(self.points) < MIN_POINTS or not self.replicates:
            return None
        values = np.array([float(function(law)) for law in self.replicates])
        return _percentiles(values, level)

    def forecast(self, function: Callable[[Law], Values], level: float = 0.9) -> Forecast:
        """Where one new run may land whose loss the law says to be `function(law)`; no interval below six runs."""
        loss = float(function(self.law))
        if len(self.points) < MIN_POINTS or not self.replicates:
            return Forecast(loss, None, None)
        values = np.array([float(function(law)) for law in self.replicates])
        return Forecast(loss, *_percentiles(values[:, None] * np.exp(self.fresh), level))


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: the probability of an interval lies between 0 and 1")
    # The k-th of m values stands for the probability k / (m + 1).
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Form(Generic[Law]):
    """A law as the descent sees it: p numbers within bounds, well scaled."""

    words: tuple[tuple[str, str], ...]
    """[p], what it means that a number lies at its lower or its upper bound."""
    predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Numbers [b, p] to log loss [b, n] and its derivatives [b, n, p]."""
    lower: np.ndarray
    upper: np.ndarray
    starts: np.ndarray
    """[s, p]"""
    build: Callable[[np.ndarray], Law]
    coordinates: np.ndarray
    """[n, k], logs of what the law reads: equal rows are seeds of one run."""


def _descend(
    form: _Form, seen: np.ndarray, start: np.ndarray, width: float, steps: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Least Huber loss of `predict - seen` from [b, p] starts by Levenberg-Marquardt, within the form's bounds.

    `seen` is [b, n] or [1, n]. Returns numbers [b, p] and what was reached [b].
    """
    theta = np.clip(start, form.lower, form.upper)
    seen = np.broadcast_to(seen, (len(theta), seen.shape[-1]))
    p = theta.shape[1]

    def cost_of(r: np.ndarray) -> np.ndarray:
        size = np.abs(r)
        return np.where(size <= width, r * r / 2, width * (size - width / 2)).sum(-1)

    def slopes(r: np.ndarray, jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weighted = jacobian * (width / np.maximum(np.abs(r), width))[..., None]
        return np.swapaxes(weighted, 1, 2) @ jacobian, (np.swapaxes(weighted, 1, 2) @ r[..., None])[..., 0]

    predicted, jacobian = form.predict(theta)
    cost = cost_of(predicted - seen)
    square, slope = slopes(predicted - seen, jacobian)
    damping = np.full(len(theta), 1e-3)
    idle = np.zeros(len(theta), int)
    live = np.arange(len(theta))
    for _ in range(steps):
        t, h, g = theta[live], square[live].copy(), slope[live]
        diagonal = np.einsum("bii->bi", h)
        diagonal += damping[live, None] * np.maximum(diagonal, 1e-9) + 1e-15
        # Numbers that lean on a bound stay; those that a step would carry past one go as far as it, and the rest of
        # the step is solved for again, knowing that.
        fixed = ((t <= form.lower) & (g >= 0)) | ((t >= form.upper) & (g <= 0))
        step = np.zeros_like(t)
        for _ in range(p):
            step = _solve_free(h, g, step, fixed)
            inside = np.clip(t + step, form.lower, form.upper) - t
            crossed = inside != step
            if not crossed.any():
                break
            step = np.where(crossed, inside, step)
            fixed = fixed | crossed
        moved = np.clip(t + step, form.lower, form.upper)
        predicted, jacobian = form.predict(moved)
        r = predicted - seen[live]
        reached = cost_of(r)
        better = reached < cost[live]
        gain = cost[live] - reached
        small = (gain <= 1e-9 * cost[live]) & (np.abs(moved - t).max(1, initial=0) < 1e-5) | (cost[live] < 1e-26)
        idle[live] = np.where(small, idle[live] + 1, 0)
        won = live[better]
        theta[won], cost[won] = moved[better], reached[better]
        square[won], slope[won] = slopes(r[better], jacobian[better])
        damping[live] = np.where(better, np.maximum(damping[live] / 6, 1e-12), damping[live] * 4)
        live = live[(idle[live] < 2) & (damping[live] < 1e10)]
        if not len(live):
            break
    return theta, cost


def _solve_free(h: np.ndarray, g: np.ndarray, step: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The step [b, p] to the bottom of the quadratic of slope g and curvature h, where some of it is given."""
    given = np.where(fixed, step, 0)
    free = h * (~fixed[:, :, None] & ~fixed[:, None, :])
    free += np.eye(h.shape[1]) * fixed[:, :, None]
    right = np.where(fixed, 0, -g - (h @ given[..., None])[..., 0])
    return np.where(fixed, step, np.linalg.solve(free, right[..., None])[..., 0])


def _fit(form: _Form[Law], points: Points, replicates: int, seed: int) -> Fit[Law]:
    """The point fit from all starts, then the replicates from the point fit."""
    seen = np.log(points.loss)[None]
    n = len(points)
    free = int((form.lower < form.upper).sum())
    df = n - free
    # Twice: with Hoffmann's width, in effect absolute deviations; then with the noise that these show.
    theta, cost = _descend(form, seen, form.starts, 1e-3)
    order = np.argsort(cost)[:8]
    theta = theta[order]
    first = (form.predict(theta[:1])[0] - seen)[0]
    spread = 1.4826 * np.median(np.abs(first)) * np.sqrt(n / df)
    width = max(HUBER * float(spread), 1e-7)
    theta, cost = _descend(form, seen, theta, width)
    best = theta[np.argmin(cost)]

    predicted, jacobian = form.predict(best[None])
    residuals = (seen - predicted)[0]
    noise = float(np.sqrt((residuals**2).sum() / df))
    _, group = np.unique(np.round(form.coordinates, 6), axis=0, return_inverse=True)
    group = group.reshape(-1)
    shared, evidence = _shared_variance(residuals, group, free)
    notes = list(_notes(form, best, jacobian[0]))
    if evidence > 2:
        notes.append(f"runs of one size agree better with each other than with the law, which is {shared**0.5:.2g} off")
    rng = np.random.default_rng(seed)
    drawn, fresh = _draw_noise(residuals, jacobian[0][:, form.lower < form.upper], group, shared, free, replicates, rng)
    laws = ()
    if replicates:
        anew, _ = _descend(form, predicted + drawn, np.repeat(best[None], replicates, 0), width)
        laws = tuple(form.build(t) for t in anew)
    return Fit(form.build(best), points, residuals, noise, laws, fresh, tuple(notes))


def _shared_variance(residuals: np.ndarray, group: np.ndarray, free: int) -> tuple[float, float]:
    """Variance of what the law misses in the same way in all runs of a group, and by how many standard errors it shows.

    It is believed when the groups' means scatter by one standard error more than seeds alone would make them, else 0.
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
    fresh: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """Log noise of data drawn anew [replicates, n], and of new runs beside them [replicates, fresh]."""
    size = np.bincount(group)
    n, groups = len(residuals), len(size)

    def scale(df: int) -> np.ndarray:
        # A single degree of freedom allows any noise at all; beyond thirty times lies none of a 90 % interval.
        return np.minimum(np.sqrt(df / rng.chisquare(df, (replicates, 1))), 30)

    if shared > 0:
        own = residuals - (np.bincount(group, residuals) / size)[group]
        several = size[group] > 1
        pool = own[several] * np.sqrt(size[group] / np.maximum(size[group] - 1, 1))[several]
        factor = scale(n - groups)
        off = np.sqrt(shared) * scale(groups - free) * rng.standard_normal((replicates, groups + fresh))
    else:
        q, _ = np.linalg.qr(jacobian)
        pool = residuals / np.sqrt(1 - np.minimum((q * q).sum(1), 0.95))
        pool -= pool.mean()
        factor, off = scale(n - free), np.zeros((replicates, groups + fresh))
    index = rng.integers(len(pool), size=(replicates, n + fresh))
    drawn = factor * pool[index] + off[:, np.concatenate([group, groups + np.arange(fresh)])]
    return drawn[:, :n], drawn[:, n:]


def _notes(form: _Form, theta: np.ndarray, jacobian: np.ndarray) -> Iterator[str]:
    for i, (at_lower, at_upper) in enumerate(form.words):
        if form.lower[i] == form.upper[i]:
            continue
        if theta[i] - form.lower[i] < 1e-9:
            yield at_lower
        elif form.upper[i] - theta[i] < 1e-9:
            yield at_upper
        elif np.abs(jacobian[:, i]).max() < 1e-6:
            yield f"these runs don't determine a number of the law, which is left where it began: {at_lower} or above"


def _require(points: Points, free: int, distinct: np.ndarray, spreads: dict[str, np.ndarray]) -> None:
    """ValueError unless there are more distinct runs than numbers and each of `spreads` covers a factor of two."""
    found = len(np.unique(np.round(distinct, 6), axis=0))
    missing = free + 1 - found
    if missing > 0:
        raise ValueError(
            f"{found} different runs for a law of {free} numbers: {missing} more, of other sizes, would suffice"
        )
    for name, values in spreads.items():
        kinds = len(np.unique(np.round(values, 6)))
        if kinds < 3 or np.ptp(values) < np.log(2):
            raise ValueError(
                f"the runs have {kinds} different {name}, which cover a factor of {np.exp(np.ptp(values)):.3g}: "
                f"{max(1, 3 - kinds)} more, so that there are three over a factor of two, would suffice"
            )


def _require_plane(points: Points, free: int, *more: np.ndarray) -> None:
    """The same for laws of N and D, which also have to leave the line between the two."""
    x, y = np.log(points.parameters), np.log(points.tokens)
    _require(points, free, np.stack([x, y, *more], 1), {"sizes": x, "numbers of pieces": y})
    off = np.linalg.svd(np.stack([x - x.mean(), y - y.mean()]), compute_uv=False)[-1] / np.sqrt(len(x))
    if off < 0.1:
        raise ValueError(
            "size and pieces of the runs rise together, so that the law can't tell them apart: "
            "2 more, with half and twice the pieces per parameter or beyond, would suffice"
        )


def fit_power_law(
    compute: Points | Values,
    loss: Values | None = None,
    *,
    with_floor: bool = True,
    replicates: int = 200,
    seed: int = 0,
) -> Fit[PowerLaw]:
    """L = floor + (scale / C)^exponent through runs given as Points, or as their compute (FLOPs) and loss (nats).

    The floor is at least 0, the exponent at most 1. ValueError for too few runs or too little spread.
    """
    if isinstance(compute, Points):
        points = compute
    elif loss is not None:
        points = Points.of_compute(compute, loss)
    else:
        raise ValueError("loss is missing: give Points, or compute and loss")
    x = np.log(points.compute)
    _require(points, 3 if with_floor else 2, x[:, None], {"values of compute": x})
    middle, centre = np.exp(np.log(points.loss).mean()), x.mean()
    dx = x - centre

    # In logs: height and slope in the middle of the runs, and where the exponent lies between the slope, which is its
    # value without a floor, and 1. In floor and exponent themselves the descent would creep along a bent valley.
    def shape(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        height, slope, between = theta.T[..., None]
        gamma = slope + (1 - slope) * between
        return height, slope, between, gamma

    def predict(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, slope, between, gamma = shape(theta)
        share, power = slope / gamma, np.exp(-gamma * dx)
        total = 1 + share * (power - 1)
        by_share, by_gamma = power - 1, -share * dx * power
        by_slope = by_share * (1 - share * (1 - between)) / gamma + by_gamma * (1 - between)
        by_between = (1 - slope) * (by_gamma - by_share * share / gamma)
        jacobian = np.stack([total, by_slope, by_between], -1) / total[..., None]
        return np.log(middle * total) + height, jacobian

    def build(theta: np.ndarray) -> PowerLaw:
        height, slope, _, gamma = (x.item() for x in shape(theta[None]))
        level = middle * np.exp(height)
        scale = np.exp(np.log(level * slope / gamma) / gamma + centre)
        return PowerLaw(float(scale), gamma, float(level * (1 - slope / gamma)))

    top = 1.0 if with_floor else 0.0
    starts = [[0, slope, t] for slope in (0.01, 0.03, 0.1, 0.3) for t in ((0, 0.1, 0.3, 0.7) if with_floor else (0,))]
    words = (
        ("the loss is at its lower bound", "the loss is at its upper bound"),
        (f"the loss hardly falls: its slope is at the bound, {LEAST_SLOPE}", "the slope is at its bound, 0.99"),
        ("the floor is at its bound, 0", "the exponent is at its bound, 1"),
    )
    lower, upper = np.array([-1, LEAST_SLOPE, 0]), np.array([1, 0.99, top])
    return _fit(_Form(words, predict, lower, upper, np.array(starts), build, x[:, None]), points, replicates, seed)


def fit_shared_floor(methods: Sequence[Points], *, replicates: int = 200, seed: int = 0) -> Fit[SharedFloor]:
    """(scale_i / C)^exponent_i + floor through the runs of each method i, with one floor for all.

    No method can say more of a text than there is to be said, so that what curves share is known better from all of
    them. The floor lies in [0, 0.9] of the least loss. ValueError for a method of too few runs or too little spread.
    """
    points = Points.of_compute(*(np.concatenate([getattr(p, name) for p in methods]) for name in ("compute", "loss")))
    of = np.repeat(np.arange(len(methods)), [len(p) for p in methods])
    xs = [np.log(p.compute) for p in methods]
    for x in xs:
        _require(points, 2, x[:, None], {"values of compute": x})
    if len(points) < 2 * len(methods) + 2:
        raise ValueError(f"{len(points)} runs for a law of {2 * len(methods) + 1} numbers: one more would suffice")
    x, centre = np.log(points.compute), np.array([x.mean() for x in xs])
    height = np.array([np.log(p.loss).mean() for p in methods])
    dx, least = x - centre[of], float(points.loss.min())

    # Of each method log loss (less its mean) and slope in the middle of its runs, in logs; then the floor's share.
    def predict(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        heights, slopes, floor = theta[:, :-1:2][:, of], theta[:, 1:-1:2][:, of], theta[:, -1:]
        level = np.exp(heights + height[of])
        share = np.maximum(1 - floor * least / level, 1e-3)
        gamma = slopes / share
        power = np.exp(-gamma * dx)
        total = 1 + share * (power - 1)
        by_share = power - 1 + gamma * dx * power
        by_floor = -by_share * least / level
        by_height = total + by_share * (1 - share)
        parts = np.stack([by_height, -dx * power], -1)[:, :, None] * (of[:, None] == np.arange(len(xs)))[..., None]
        columns = np.concatenate([parts.reshape(len(theta), len(x), -1), by_floor[..., None]], -1)
        return heights + height[of] + np.log(total), columns / total[..., None]

    def build(theta: np.ndarray) -> SharedFloor:
        floor, laws = float(theta[-1] * least), []
        for i in range(len(xs)):
            level = np.exp(theta[2 * i] + height[i])
            gamma = theta[2 * i + 1] / max(1 - floor / level, 1e-3)
            laws.append(PowerLaw(float(np.exp(np.log(level - floor) / gamma + centre[i])), float(gamma), floor))
        return SharedFloor(tuple(laws))

    n = len(methods)
    starts = [[*[0, slope] * n, floor] for slope in (0.01, 0.03, 0.1, 0.3) for floor in (0, 0.2, 0.5, 0.8)]
    of_one = (
        ("a loss is at its lower bound", "a loss is at its upper bound"),
        (f"a loss hardly falls: its slope is at the bound, {LEAST_SLOPE}", "a slope is at its bound, 0.99"),
    )
    words = (*of_one * n, ("the floor is at its bound, 0", "the floor is at its bound, 0.9 of the least loss"))
    lower, upper = np.array([*[-1, LEAST_SLOPE] * n, 0]), np.array([*[1, 0.99] * n, 0.9])
    coordinates = np.stack([x, of.astype(float)], 1)
    return _fit(_Form(words, predict, lower, upper, np.array(starts), build, coordinates), points, replicates, seed)


def _chinchilla_words() -> tuple[tuple[str, str], ...]:
    low, high = EXPONENTS
    return (
        ("the floor is at its bound, 0", "the floor is at its bound, the least loss seen"),
        ("the number of parameters has no effect", "scale_n is at its upper bound"),
        (f"alpha is at its bound, {low}", f"alpha is at its bound, {high}"),
        ("the number of pieces has no effect", "scale_d is at its upper bound"),
        (f"beta is at its bound, {low}", f"beta is at its bound, {high}"),
    )


# Of floor, log term and exponent of N, log term and exponent of D: terms at the middle of the runs over the least loss.
_LOWER = np.array([0, -9, EXPONENTS[0], -9, EXPONENTS[0]])
_UPPER = np.array([1, 5, EXPONENTS[1], 5, EXPONENTS[1]])


def _chinchilla_form(points: Points) -> _Form[Chinchilla]:
    x, y = np.log(points.parameters), np.log(points.tokens)
    least, cx, cy = points.loss.min(), x.mean(), y.mean()
    dx, dy = x - cx, y - cy

    def predict(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, a, alpha, b, beta = theta.T[..., None]
        u, v = np.exp(a - alpha * dx), np.exp(b - beta * dy)
        total = floor + u + v
        jacobian = np.stack([np.ones_like(u), u, -dx * u, v, -dy * v], -1) / total[..., None]
        return np.log(least * total), jacobian

    def build(theta: np.ndarray) -> Chinchilla:
        floor, a, alpha, b, beta = theta.tolist()
        scale_n, scale_d = least * np.exp(a + alpha * cx), least * np.exp(b + beta * cy)
        return Chinchilla(float(least * floor), float(scale_n), alpha, float(scale_d), beta)

    # For each pair of exponents the rest is linear: relative least squares, cut off at a little above 0.
    starts = []
    for alpha in (0.1, 0.25, 0.5, 1.0):
        for beta in (0.1, 0.25, 0.5, 1.0):
            columns = np.stack([np.ones_like(dx), np.exp(-alpha * dx), np.exp(-beta * dy)], 1)
            columns *= (least / points.loss)[:, None]
            floor, a, b = np.linalg.lstsq(columns, np.ones(len(points)), rcond=None)[0]
            starts.append([min(max(floor, 0.02), 0.98), np.log(max(a, 0.01)), alpha, np.log(max(b, 0.01)), beta])
    coordinates = np.stack([x, y], 1)
    return _Form(_chinchilla_words(), predict, _LOWER, _UPPER, np.array(starts), build, coordinates)


def fit_chinchilla(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[Chinchilla]:
    """E + A / N^α + B / D^β through runs that differ in N and in D, and not along one line of the two.

    Exponents lie in [0.01, 2], the floor in [0, least loss]. ValueError for too few runs or too little spread.
    """
    _require_plane(points, 5)
    return _fit(_chinchilla_form(points), points, replicates, seed)


def fit_kaplan(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[Kaplan]:
    """((Nc / N)^(αN / αD) + Dc / D)^αD through runs that differ in N and in D, and not along one line of the two.

    Exponents lie in [0.01, 2]. ValueError for too few runs or too little spread.
    """
    _require_plane(points, 4)
    x, y = np.log(points.parameters), np.log(points.tokens)
    cx, cy, middle = x.mean(), y.mean(), np.log(points.loss).mean()
    dx, dy = x - cx, y - cy

    # p and q are αN log(Nc / N) and αD log(Dc / D) in the middle of the runs: log losses if the other were without end.
    def predict(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, alpha_n, q, alpha_d = theta.T[..., None]
        u, v = (p - alpha_n * dx) / alpha_d, q / alpha_d - dy
        total = np.logaddexp(u, v)
        by_u, by_v = np.exp(u - total), np.exp(v - total)
        return middle + alpha_d * total, np.stack([by_u, -dx * by_u, by_v, total - by_u * u - by_v * q / alpha_d], -1)

    def build(theta: np.ndarray) -> Kaplan:
        p, alpha_n, q, alpha_d = theta.tolist()
        return Kaplan(
            float(np.exp((p + middle) / alpha_n + cx)), alpha_n, float(np.exp((q + middle) / alpha_d + cy)), alpha_d
        )

    low, high = EXPONENTS
    words = (
        ("the number of parameters has no effect", "critical_n is at its upper bound"),
        (f"alpha_n is at its bound, {low}", f"alpha_n is at its bound, {high}"),
        ("the number of pieces has no effect", "critical_d is at its upper bound"),
        (f"alpha_d is at its bound, {low}", f"alpha_d is at its bound, {high}"),
    )
    grid = (0.03, 0.1, 0.3, 0.8)
    starts = np.array([[-d * np.log(2), n, -d * np.log(2), d] for n in grid for d in grid])
    lower, upper = np.array([-9, low, -9, low]), np.array([1, high, 1, high])
    return _fit(_Form(words, predict, lower, upper, starts, build, np.stack([x, y], 1)), points, replicates, seed)


def fit_data_constrained(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[DataConstrained]:
    """Muennighoff et al.'s law through runs of which some repeat their data; `unique_tokens` says how much there is.

    All seven numbers are fitted at once, where the paper fits the decays last, to the other five.
    Decays lie in [0.05, 1000]. That of parameters is determined by runs with more of them than the optimum of one
    epoch; a note says where there are none. ValueError for too few runs, too little spread or too few repeats.
    """
    unique = points.tokens if points.unique_tokens is None else points.unique_tokens
    repeats = points.tokens > 1.5 * unique
    if repeats.sum() < 2:
        raise ValueError(
            f"runs that repeat their data (D > 1.5 U): {repeats.sum()}; {2 - repeats.sum()} more would suffice"
        )
    _require_plane(points, 7, np.log(unique))
    x, y = np.log(points.parameters), np.log(points.tokens)
    endless = np.isinf(unique)
    log_unique = np.log(np.where(endless, 1.0, unique))
    least, cx, cy = points.loss.min(), x.mean(), y.mean()
    first_d = np.where(endless, y, np.minimum(y, log_unique))
    repeats_d = np.expm1(y - first_d)

    def worth(first: np.ndarray, again: np.ndarray, decay: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log worth of `exp(first)` seen `again` times more, and its derivatives by log decay and by `first`."""
        fading = np.exp(-again / decay)
        times = 1 + decay * (1 - fading)
        return first + np.log(times), (times - 1 - again * fading) / times, 1 - fading * (again + 1) / times

    def predict(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, a, alpha, b, beta, log_rd, log_rn = theta.T[..., None]
        both, ratio = alpha + beta, beta / alpha
        balance = (np.log(alpha / beta) + a + alpha * cx - b - beta * cy) / both
        optimum = balance + ratio * (log_unique + balance)
        over = (optimum < x) & ~endless
        first_n = np.where(over, optimum, x)
        log_n, n_by_rn, n_by_first = worth(first_n, np.expm1(x - first_n), np.exp(log_rn))
        log_d, d_by_rd, _ = worth(first_d, repeats_d, np.exp(log_rd))
        u, v = np.exp(a - alpha * (log_n - cx)), np.exp(b - beta * (log_d - cy))
        total = floor + u + v
        # The first parameters are the optimum of the law itself, so that all its numbers move them.
        through = -alpha * u * np.where(over, n_by_first, 0)
        by_balance, slope = 1 + ratio, log_unique + balance
        columns = [
            np.ones_like(u),
            u + through * by_balance / both,
            u * (cx - log_n) + through * (by_balance * (1 / alpha + cx - balance) / both - ratio / alpha * slope),
            v - through * by_balance / both,
            v * (cy - log_d) + through * (by_balance * (-1 / beta - cy - balance) / both + slope / alpha),
            -beta * v * d_by_rd,
            -alpha * u * n_by_rn,
        ]
        return np.log(least * total), np.stack(columns, -1) / total[..., None]

    def build(theta: np.ndarray) -> DataConstrained:
        floor, a, alpha, b, beta, log_rd, log_rn = theta.tolist()
        scale_n, scale_d = least * np.exp(a + alpha * cx), least * np.exp(b + beta * cy)
        law = (float(least * floor), float(scale_n), alpha, float(scale_d), beta)
        return DataConstrained(*law, float(np.exp(log_rd)), float(np.exp(log_rn)))

    # From Chinchilla's law of all runs, and of those that repeat little where there are enough of them.
    begun = [points]
    if (~repeats).sum() > 8:
        begun.append(points.where(~repeats))
    starts = []
    for some in begun:
        law = _fit(_chinchilla_form(some), some, 0, 0).law
        a, b = (
            np.log(t / least) for t in (law.scale_n * np.exp(-law.alpha * cx), law.scale_d * np.exp(-law.beta * cy))
        )
        five = [law.floor / least, a, law.alpha, b, law.beta]
        starts += [[*five, np.log(rd), np.log(rn)] for rd in (1, 6, 40) for rn in (1, 6, 40)]
    words = (
        *_chinchilla_words(),
        ("decay_d is at its bound, 0.05: repeats are worth nothing", "decay_d is at its bound, 1000: repeats are new"),
        ("decay_n is at its bound, 0.05", "decay_n is at its bound, 1000"),
    )
    decays = np.log([[0.05, 0.05], [1000, 1000]])
    lower, upper = np.append(_LOWER, decays[0]), np.append(_UPPER, decays[1])
    coordinates = np.stack([x, y, log_unique], 1)
    return _fit(_Form(words, predict, lower, upper, np.array(starts), build, coordinates), points, replicates, seed)


# -------------------------------------------------------------------------------------------- minima at equal compute


@dataclass(frozen=True)
class Minimum:
    """Where the loss of runs of one compute is least."""

    compute: float
    """FLOPs, the geometric mean of the group."""
    parameters: float
    tokens: float
    loss: float
    error: float | None
    """Standard error of log N; None where no run is left over to tell noise."""
    interval: tuple[float, float] | None
    """Of `parameters`, 90 % (Fieller 1954)."""
    degrees: int
    """Of freedom, with which noise is known: that of all groups together."""


@dataclass(frozen=True)
class Minima:
    """The minima that were found, and what has to be said of groups that were left out."""

    minima: tuple[Minimum, ...]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Minimum]:
        return iter(self.minima)

    def __len__(self) -> int:
        return len(self.minima)

    def __getitem__(self, index: int) -> Minimum:
        return self.minima[index]


def _group_by_compute(compute: np.ndarray, gap: float = 1.1) -> np.ndarray:
    """[n], the number of each run's group: a gap of more than 10 % between neighbours begins another."""
    order = np.argsort(compute)
    group = np.empty(len(compute), int)
    group[order] = np.cumsum(np.diff(np.log(compute[order]), prepend=-np.inf) > np.log(gap))
    return group


def isoflop_minima(points: Points, groups: np.ndarray | None = None) -> Minima:
    """A parabola of log loss in log N through each group of runs of equal compute (Hoffmann et al. 2022, 3.2).

    `groups` are [n] labels; absent, runs belong together whose compute follows within 10 %. The noise is taken to be
    that of all groups together. A group whose minimum lies outside its sizes, or isn't told from noise, is left out,
    with a note. ValueError for a group that spans more than 30 % in compute.
    """
    from scipy.special import stdtrit

    labels = _group_by_compute(points.compute) if groups is None else np.asarray(groups)
    if labels.shape != points.loss.shape:
        raise ValueError(f"groups has shape {labels.shape} for {len(points)} runs; every run needs one label")
    notes, curves, squares, degrees = [], [], 0.0, 0
    for label in np.unique(labels):
        group = points.where(labels == label)
        span = group.compute.max() / group.compute.min()
        if span > 1.3:
            raise ValueError(f"compute in group {label} spans a factor of {span:.2f}; split it, below 1.3 is one group")
        compute = float(np.exp(np.log(group.compute).mean()))
        x, y = np.log(group.parameters), np.log(group.loss)
        kinds = len(np.unique(np.round(x, 6)))
        if kinds < 3:
            notes.append(f"{compute:.3g} FLOPs left out: {kinds} sizes, and a parabola needs three")
            continue
        centre = x.mean()
        design = np.stack([np.ones_like(x), x - centre, (x - centre) ** 2], 1)
        inverse = np.linalg.inv(design.T @ design)
        curve = inverse @ design.T @ y
        squares += float(((y - design @ curve) ** 2).sum())
        degrees += len(x) - 3
        curves.append((compute, centre, x, curve, inverse))
    noise = squares / degrees if degrees else None
    found = []
    for compute, centre, x, (top, slope, bend), inverse in curves:
        if bend <= 0 or not x.min() <= centre - slope / (2 * bend) <= x.max():
            notes.append(f"{compute:.3g} FLOPs left out: the minimum lies outside its sizes")
            continue
        place = -slope / (2 * bend)
        error = interval = None
        if noise is not None:
            # Fieller: the places whose slope, slope + 2 bend x, isn't told from 0.
            limit = stdtrit(degrees, 0.95) ** 2 * noise
            square = 4 * (bend**2 - limit * inverse[2, 2])
            if square <= 0:
                notes.append(f"{compute:.3g} FLOPs left out: its bend isn't told from noise")
                continue
            linear = 4 * (slope * bend - limit * inverse[1, 2])
            root = np.sqrt(max(linear**2 - 4 * square * (slope**2 - limit * inverse[1, 1]), 0))
            low, high = (np.exp(centre + (-linear + sign * root) / (2 * square)) for sign in (-1, 1))
            interval = (float(low), float(high))
            by = np.array([0, 1, 2 * place]) / (2 * bend)
            error = float(np.sqrt(noise * by @ inverse @ by))
        n = float(np.exp(centre + place))
        loss = float(np.exp(top + slope * place / 2))
        found.append(Minimum(compute, n, compute / (6 * n), loss, error, interval, degrees))
    return Minima(tuple(found), tuple(notes))


@dataclass(frozen=True)
class Exponent:
    """N = coefficient · C^exponent at the least loss for its compute; that of D is 1 - exponent."""

    exponent: float
    coefficient: float
    interval: tuple[float, float] | None
    """Of the exponent."""


def fit_exponent(minima: Minima, level: float = 0.9) -> Exponent:
    """A line through log N of the minima over log C, each weighted by its error (Hoffmann et al. 2022, 3.2).

    Where the minima scatter more about the line than their errors say, the interval is widened by as much.
    No interval where their errors aren't known. ValueError below two minima of different compute.
    """
    from scipy.special import stdtrit

    x, y = (np.log([getattr(m, name) for m in minima]) for name in ("compute", "parameters"))
    if len(x) < 2 or np.ptp(x) < np.log(2):
        raise ValueError(
            f"{len(x)} minima within a factor of two of compute: {max(1, 2 - len(x))} more, at another, would suffice"
        )
    errors = [m.error for m in minima if m.error is not None]
    known = len(errors) == len(x)
    weights = 1 / np.maximum(errors, 1e-12) ** 2 if known else np.ones(len(x))
    centre = np.average(x, weights=weights)
    dx = x - centre
    exponent = float((weights * dx * y).sum() / (weights * dx**2).sum())
    constant = float(np.average(y, weights=weights) - exponent * centre)
    interval = None
    if known:
        spread = (weights * dx**2).sum() ** -0.5
        left = weights * (y - constant - exponent * x) ** 2
        excess = left.sum() / (len(x) - 2) if len(x) > 2 else 0
        reach = float(stdtrit(minima[0].degrees, (1 + level) / 2) * spread * max(1, excess) ** 0.5)
        interval = (exponent - reach, exponent + reach)
    return Exponent(exponent, float(np.exp(constant)), interval)

"""How loss falls with size, data and compute: the published laws, fitted to runs, with intervals from a bootstrap.

The one idea: every law is fitted in the logarithm of the loss by one batched Gauss-Newton descent, which takes all the
starts of a fit at once and then all its bootstrap replicates at once.

Everywhere N is "parameters as compute counts them": the training FLOPs of a piece over six, so that C = 6 N D exactly.
D is the pieces seen in training, C is in FLOPs, the loss in nats per piece, all of it float64.

- the residual is log(predicted) - log(seen), under a Huber loss (Hoffmann et al. 2022, D.2), whose width is twice the
  noise as read from the data: their 1e-3 amounts to absolute deviations, which cost a third of the runs' worth;
- replicates are new data: the fitted law times residuals drawn anew, each widened by its leverage, all of them by
  sqrt(df / chi2_df), so that percentiles become Student's for a law that is linear in its numbers;
- runs that share size and data (seeds) also share what the law misses there, a variance component of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        """N and D that reach `target_loss` nats at the least 6 N D + 2 N D_inference (Sardana et al. 2023, eq. 2).

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
        return ((self.critical_n / n) ** (self.alpha_n / self.alpha_d) + self.critical_d / d) ** self.alpha_d


@dataclass(frozen=True)
class DataConstrained:
    """Chinchilla's law of what D pieces and N parameters are worth when data repeat (Muennighoff et al. 2023, eq. 5).

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
        balance = (self.alpha * self.scale_n / (self.beta * self.scale_d)) ** (1 / (self.alpha + self.beta))
        first_n = np.minimum(n, balance * (u * balance) ** (self.beta / self.alpha))
        worth_d = first_d * (1 - self.decay_d * np.expm1(-(d / first_d - 1) / self.decay_d))
        worth_n = first_n * (1 - self.decay_n * np.expm1(-(n / first_n - 1) / self.decay_n))
        return self.unconstrained.loss(worth_n, worth_d)


Law = TypeVar("Law", PowerLaw, Chinchilla, Kaplan, DataConstrained)


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

    names: tuple[str, ...]
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
    rng = np.random.default_rng(seed)
    drawn, fresh = _draw_noise(residuals, jacobian[0], form.coordinates, free, replicates, rng)
    laws = ()
    if replicates:
        anew, _ = _descend(form, predicted + drawn, np.repeat(best[None], replicates, 0), width)
        laws = tuple(form.build(t) for t in anew)
    return Fit(form.build(best), points, residuals, noise, laws, fresh, tuple(_notes(form, best, jacobian[0])))


def _draw_noise(
    residuals: np.ndarray,
    jacobian: np.ndarray,
    coordinates: np.ndarray,
    free: int,
    replicates: int,
    rng: np.random.Generator,
    fresh: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """Log noise of data drawn anew [replicates, n], and of new runs beside them [replicates, fresh]."""
    n = len(residuals)
    _, group, size = np.unique(np.round(coordinates, 6), axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    groups = len(size)

    def scale(df: int) -> np.ndarray:
        return np.sqrt(df / rng.chisquare(df, (replicates, 1)))

    def leverage(rows: np.ndarray) -> np.ndarray:
        q, _ = np.linalg.qr(rows)
        return np.minimum((q * q).sum(1), 0.95)

    pool = residuals / np.sqrt(1 - leverage(jacobian))
    pool -= pool.mean()
    factor, shared = scale(n - free), np.zeros((replicates, groups + fresh))
    if n > groups > free:
        mean = np.bincount(group, residuals) / size
        own = residuals - mean[group]
        within = (own**2).sum() / (n - groups)
        between = (size * mean**2).sum() / (groups - free)
        # Believed when it lies a standard error above what seeds alone would show, else the two are one noise.
        doubt = np.sqrt(2 / (groups - free) + 2 / (n - groups))
        if between > within * (1 + doubt):
            component = (between - within) / (n / groups)
            several = size[group] > 1
            pool = own[several] * np.sqrt(size[group] / (size[group] - 1 + 1e-9))[several]
            factor = scale(n - groups)
            shared = np.sqrt(component) * scale(groups - free) * rng.standard_normal((replicates, groups + fresh))
    index = rng.integers(len(pool), size=(replicates, n + fresh))
    drawn = factor * pool[index] + shared[:, np.concatenate([group, groups + np.arange(fresh)])]
    return drawn[:, :n], drawn[:, n:]


def _notes(form: _Form, theta: np.ndarray, jacobian: np.ndarray) -> Iterator[str]:
    for i, name in enumerate(form.names):
        if form.lower[i] == form.upper[i]:
            continue
        for bound in (form.lower[i], form.upper[i]):
            if abs(theta[i] - bound) < 1e-9:
                yield f"{name} lies at its bound, {bound:.3g}"
        if np.linalg.norm(jacobian[:, i]) < 1e-7:
            yield f"{name} isn't determined by these runs"


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
    names = ("loss", "slope", "exponent") if with_floor else ("loss", "exponent", "")
    bounds = np.array([[-1, LEAST_SLOPE, 0], [1, 0.99, top]])
    return _fit(_Form(names, predict, *bounds, np.array(starts), build, x[:, None]), points, replicates, seed)


def _worth_terms(theta: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of E + exp(a - α x) + exp(b - β y): the whole [b, n], and the terms of N and of D."""
    floor, a, alpha, b, beta = theta.T[:5, :, None]
    u, v = np.exp(a - alpha * dx), np.exp(b - beta * dy)
    return floor + u + v, u, v


def _chinchilla_form(points: Points) -> _Form[Chinchilla]:
    x, y = np.log(points.parameters), np.log(points.tokens)
    least, cx, cy = points.loss.min(), x.mean(), y.mean()
    dx, dy = x - cx, y - cy

    def predict(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, u, v = _worth_terms(theta, dx, dy)
        jacobian = np.stack([np.ones_like(u), u, -dx * u, v, -dy * v], -1) / total[..., None]
        return np.log(least * total), jacobian

    def build(theta: np.ndarray) -> Chinchilla:
        floor, a, alpha, b, beta = theta.tolist()
        return Chinchilla(
            float(least * floor),
            float(least * np.exp(a + alpha * cx)),
            alpha,
            float(least * np.exp(b + beta * cy)),
            beta,
        )

    # For each pair of exponents the rest is linear: relative least squares, cut off at a little above 0.
    starts = []
    for alpha in (0.1, 0.25, 0.5, 1.0):
        for beta in (0.1, 0.25, 0.5, 1.0):
            columns = (
                np.stack([np.ones_like(dx), np.exp(-alpha * dx), np.exp(-beta * dy)], 1)
                * (least / points.loss)[:, None]
            )
            floor, a, b = np.linalg.lstsq(columns, np.ones(len(points)), rcond=None)[0]
            starts.append([min(max(floor, 0.02), 0.98), np.log(max(a, 0.01)), alpha, np.log(max(b, 0.01)), beta])
    low, high = EXPONENTS
    return _Form(
        ("floor", "scale_n", "alpha", "scale_d", "beta"),
        predict,
        np.array([0, -9, low, -9, low]),
        np.array([1, 5, high, 5, high]),
        np.array(starts),
        build,
        np.stack([x, y], 1),
    )


def fit_chinchilla(points: Points, *, replicates: int = 200, seed: int = 0) -> Fit[Chinchilla]:
    """E + A / N^α + B / D^β through runs that differ in N and in D, and not along one line of the two.

    Exponents lie in [0.01, 2], the floor in [0, least loss]. ValueError for too few runs or too little spread.
    """
    x, y = np.log(points.parameters), np.log(points.tokens)
    _require(points, 5, np.stack([x, y], 1), {"sizes": x, "numbers of pieces": y})
    return _fit(_chinchilla_form(points), points, replicates, seed)

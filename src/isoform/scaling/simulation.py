"""Ladders of runs whose truth is known, and how well a fit finds it again.

The one idea: an interval of 90 % is honest if it holds the truth in 90 % of ladders drawn anew, and a forecast's if it
holds what one more run shows. Noise is log-normal: what seeds differ by is a share of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoform.scaling.fitting import Fit, fit_chinchilla, fit_data_constrained, fit_kaplan, fit_power_law
from isoform.scaling.laws import Chinchilla, DataConstrained, Kaplan, Points, PowerLaw

AnyLaw = PowerLaw | Chinchilla | Kaplan | DataConstrained

NUMBERS: dict[type[AnyLaw], tuple[str, ...]] = {
    PowerLaw: ("exponent", "floor"),
    Chinchilla: ("alpha", "beta", "optimal_exponent"),
    Kaplan: ("alpha_n", "alpha_d"),
    DataConstrained: ("alpha", "beta", "decay_d", "decay_n"),
}
"""Of each law, the numbers that a recovery looks at."""


@dataclass(frozen=True, eq=False)
class Design:
    """Runs to be made: arrays of one length n."""

    parameters: np.ndarray
    """N."""
    tokens: np.ndarray
    """D."""
    unique_tokens: np.ndarray | None = None
    """U, tokens of the data set."""

    @property
    def compute(self) -> np.ndarray:
        """C = 6 N D, FLOPs."""
        return 6 * self.parameters * self.tokens

    def beyond(self, reach: float) -> Design:
        """One run of `reach` times the largest compute, at the design's mean D / N, of its largest data set."""
        product = reach * self.compute.max() / 6
        ratio = np.exp(np.log(self.tokens / self.parameters).mean())
        unique = None if self.unique_tokens is None else self.unique_tokens.max(keepdims=True)
        return Design(np.array([(product / ratio) ** 0.5]), np.array([(product * ratio) ** 0.5]), unique)


def isoflop_design(
    lowest: float = 1e18,
    highest: float = 1e21,
    *,
    groups: int = 5,
    sizes: int = 8,
    tokens_per_parameter: float = 20.0,
    span: float = 100.0,
) -> Design:
    """Groups of equal compute (FLOPs), even in its logarithm, with a range of sizes each.

    In a group D / N covers a factor of `span` about `tokens_per_parameter`, so that sizes cover its root. A wide span
    tells N from D: at 100 the exponents of 40 runs are half again as sharp as at 10.
    """
    compute = np.repeat(np.geomspace(lowest, highest, groups), sizes)
    ratio = np.tile(tokens_per_parameter * np.geomspace(span**-0.5, span**0.5, sizes), groups)
    return Design((compute / 6 / ratio) ** 0.5, (compute / 6 * ratio) ** 0.5)


def ladder_design(
    lowest: float = 1e15,
    decades: float = 1.5,
    *,
    sizes: int = 9,
    seeds: int = 3,
    tokens_per_parameter: float = 20.0,
) -> Design:
    """Sizes even in the logarithm of compute (FLOPs), all at one D / N, with some seeds each."""
    compute = np.repeat(lowest * 10 ** np.linspace(0, decades, sizes), seeds)
    return Design((compute / 6 / tokens_per_parameter) ** 0.5, (compute / 6 * tokens_per_parameter) ** 0.5)


def _losses(law: AnyLaw, design: Design) -> np.ndarray:
    match law:
        case PowerLaw():
            return law.loss(design.compute)
        case DataConstrained():
            unique = np.inf if design.unique_tokens is None else design.unique_tokens
            return law.loss(design.parameters, design.tokens, unique)
        case _:
            return law.loss(design.parameters, design.tokens)


def simulate_ladder(law: AnyLaw, design: Design, noise: float, rng: np.random.Generator) -> Points:
    """The runs of a design whose log losses are the law's plus normal noise of standard deviation `noise`."""
    loss = _losses(law, design) * np.exp(noise * rng.standard_normal(len(design.tokens)))
    return Points(design.parameters, design.tokens, loss, design.unique_tokens)


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the truth, and where the true share lies with 95 % (Wilson 1927)."""

    share: float
    low: float
    high: float


def _wilson(held: np.ndarray) -> Coverage:
    n, share, z = len(held), float(held.mean()), 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    return Coverage(share, middle - half, middle + half)


@dataclass(frozen=True, eq=False)
class Recovery:
    """What fits to r simulated ladders found, for k numbers of the law."""

    law: AnyLaw
    names: tuple[str, ...]
    truth: np.ndarray
    """[k]"""
    estimates: np.ndarray
    """[r, k]"""
    intervals: np.ndarray
    """[r, k, 2]"""
    forecasts: np.ndarray
    """[r, 3]: a new run's loss by the fitted law, and its interval."""
    seen: np.ndarray
    """[r], what that run showed."""
    level: float
    """Of the intervals."""
    noted: int = 0
    """In how many repetitions the fit had something to say, such as a number at its bound."""

    @property
    def errors(self) -> np.ndarray:
        """[r, k], relative to the truth, as absolute values."""
        return np.abs(self.estimates / self.truth - 1)

    def median_error(self, name: str) -> float:
        """Of the number called `name`, relative."""
        return float(np.median(self.errors[:, self.names.index(name)]))

    def error_quantile(self, name: str, share: float = 0.9) -> float:
        """What `share` of the relative errors of `name` lie below."""
        return float(np.quantile(self.errors[:, self.names.index(name)], share))

    def coverage(self, name: str) -> Coverage:
        """How often the interval of `name` held the truth; of "forecast", how often it held the new run."""
        if name == "forecast":
            return _wilson((self.forecasts[:, 1] <= self.seen) & (self.seen <= self.forecasts[:, 2]))
        i = self.names.index(name)
        return _wilson((self.intervals[:, i, 0] <= self.truth[i]) & (self.truth[i] <= self.intervals[:, i, 1]))

    @property
    def forecast_width(self) -> float:
        """The median forecast's interval, high less low, over its loss."""
        return float(np.median((self.forecasts[:, 2] - self.forecasts[:, 1]) / self.forecasts[:, 0]))


def recovery(
    law: AnyLaw,
    *,
    design: Design | None = None,
    noise: float = 0.005,
    reach: float = 9.0,
    repetitions: int = 200,
    seed: int = 0,
    replicates: int = 200,
    level: float = 0.9,
) -> Recovery:
    """Draw ladders of `law`, fit each, and compare: the law's numbers, and a new run at `reach` times the compute.

    Without a design, a power law gets nine sizes with three seeds each over 1.5 decades, the laws of N and D get 40
    runs in five groups of equal compute from 1e18 to 1e21 FLOPs. `noise` is that of the log loss of one run.
    """
    if design is None:
        design = ladder_design() if isinstance(law, PowerLaw) else isoflop_design()
    ahead = design.beyond(reach)
    names = NUMBERS[type(law)]

    def numbers(of: AnyLaw) -> list[float]:
        return [getattr(of, name) for name in names]

    estimates, intervals, forecasts, seen, noted = [], [], [], [], 0
    for i in range(repetitions):
        rng = np.random.default_rng([seed, i])
        points = simulate_ladder(law, design, noise, rng)
        fit = _fit_like(law, points, replicates, i)
        estimates.append(numbers(fit.law))
        intervals.append([fit.interval(lambda of, name=name: getattr(of, name), level) for name in names])
        forecast = fit.forecast(lambda of: _losses(of, ahead)[0], level)
        forecasts.append([forecast.loss, forecast.low, forecast.high])
        seen.append(simulate_ladder(law, ahead, noise, rng).loss[0])
        noted += bool(fit.notes)
    return Recovery(
        law,
        names,
        np.array(numbers(law)),
        np.array(estimates),
        np.array(intervals, np.float64),
        np.array(forecasts, np.float64),
        np.array(seen),
        level,
        noted,
    )


def _fit_like(law: AnyLaw, points: Points, replicates: int, seed: int) -> Fit:
    """The fit of the law's kind."""
    match law:
        case PowerLaw():
            return fit_power_law(points, replicates=replicates, seed=seed)
        case Chinchilla():
            return fit_chinchilla(points, replicates=replicates, seed=seed)
        case Kaplan():
            return fit_kaplan(points, replicates=replicates, seed=seed)
        case DataConstrained():
            return fit_data_constrained(points, replicates=replicates, seed=seed)

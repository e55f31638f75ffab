"""Simulated ladders of runs with a known law, and how well a fit recovers it.

A 90 % interval is calibrated if it covers the truth in 90 % of simulated ladders, and a forecast's interval if it
covers the loss of one more run. Noise is log-normal: seeds differ by a fraction of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoform.scaling.estimate import Estimate, student
from isoform.scaling.fitting import Fit, fit_chinchilla, fit_data_constrained, fit_kaplan, fit_power_law
from isoform.scaling.laws import Chinchilla, DataConstrained, Kaplan, Points, PowerLaw

AnyLaw = PowerLaw | Chinchilla | Kaplan | DataConstrained

NUMBERS: dict[type[AnyLaw], tuple[str, ...]] = {
    PowerLaw: ("exponent", "floor"),
    Chinchilla: ("alpha", "beta", "optimal_exponent"),
    Kaplan: ("alpha_n", "alpha_d"),
    DataConstrained: ("alpha", "beta", "decay_d", "decay_n"),
}
"""The numbers of each law that a recovery compares."""


@dataclass(frozen=True, eq=False)
class Design:
    """Runs to simulate: arrays of one length n."""

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
        """One run of `reach` times the largest compute, at the design's mean D / N, with its largest data set."""
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
    """Groups of equal compute (FLOPs), evenly spaced in its logarithm, with a range of sizes each.

    In a group D / N covers a factor of `span` around `tokens_per_parameter`, so that sizes cover its root. A wide span
    separates N from D: at 100 the exponents of 40 runs are 1.5 times as precise as at 10.
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
    """Sizes evenly spaced in the logarithm of compute (FLOPs), all at one D / N, with `seeds` runs each."""
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


def coverage(held: np.ndarray, level: float = 0.9) -> Estimate:
    """The share of intervals that contain the truth, with its own interval (Wilson 1927)."""
    n, share, z = len(held), float(held.mean()), student(1e9, level)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    return Estimate(share, middle - half, middle + half)


@dataclass(frozen=True, eq=False)
class Recovery:
    """Results of fits to r simulated ladders, for k numbers of the law."""

    law: AnyLaw
    names: tuple[str, ...]
    truth: np.ndarray
    """[k]"""
    estimates: np.ndarray
    """[r, k]"""
    intervals: np.ndarray
    """[r, k, 2]"""
    forecasts: np.ndarray
    """[r, 3], a new run's loss by the fitted law, and its interval."""
    observed: np.ndarray
    """[r], the loss of that run."""
    level: float
    """Confidence level of the intervals."""
    num_noted: int = 0
    """Number of repetitions whose fit has notes, such as a parameter at its bound."""

    @property
    def errors(self) -> np.ndarray:
        """[r, k], absolute errors relative to the truth."""
        return np.abs(self.estimates / self.truth - 1)

    def median_error(self, name: str) -> float:
        """Median relative error of `name`."""
        return float(np.median(self.errors[:, self.names.index(name)]))

    def error_quantile(self, name: str, share: float = 0.9) -> float:
        """The quantile at `share` of the relative errors of `name`."""
        return float(np.quantile(self.errors[:, self.names.index(name)], share))

    def held(self, name: str) -> np.ndarray:
        """[r], whether the interval of `name` contains the truth; for "forecast", the new run."""
        if name == "forecast":
            return (self.forecasts[:, 1] <= self.observed) & (self.observed <= self.forecasts[:, 2])
        i = self.names.index(name)
        return (self.intervals[:, i, 0] <= self.truth[i]) & (self.truth[i] <= self.intervals[:, i, 1])

    def coverage(self, name: str) -> Estimate:
        """How often the interval of `name` contains the truth."""
        return coverage(self.held(name))

    @property
    def forecast_width(self) -> float:
        """Median width of the forecast's interval, relative to its loss."""
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
    """Simulate ladders of `law`, fit each, and compare the law's numbers, and a new run at `reach` times the compute.

    design: by default nine sizes with three seeds each over 1.5 decades for a power law, and 40 runs in five groups of
    equal compute from 1e18 to 1e21 FLOPs for the laws of N and D; noise: standard deviation of a run's log loss.
    """
    if design is None:
        design = ladder_design() if isinstance(law, PowerLaw) else isoflop_design()
    new_run = design.beyond(reach)
    names = NUMBERS[type(law)]

    def numbers(law: AnyLaw) -> list[float]:
        return [getattr(law, name) for name in names]

    estimates, intervals, forecasts, observed, num_noted = [], [], [], [], 0
    for i in range(repetitions):
        rng = np.random.default_rng([seed, i])
        points = simulate_ladder(law, design, noise, rng)
        fit = _fit_like(law, points, replicates, i)
        estimates.append(numbers(fit.law))
        intervals.append([fit.interval(lambda law, name=name: getattr(law, name), level) for name in names])
        forecast = fit.forecast(lambda law: _losses(law, new_run)[0], level)
        forecasts.append([forecast.loss, forecast.low, forecast.high])
        observed.append(simulate_ladder(law, new_run, noise, rng).loss[0])
        num_noted += bool(fit.notes)
    return Recovery(
        law,
        names,
        np.array(numbers(law)),
        np.array(estimates),
        np.array(intervals, np.float64),
        np.array(forecasts, np.float64),
        np.array(observed),
        level,
        num_noted,
    )


def _fit_like(law: AnyLaw, points: Points, replicates: int, seed: int) -> Fit:
    """Fit a law of the same type."""
    match law:
        case PowerLaw():
            return fit_power_law(points, replicates=replicates, seed=seed)
        case Chinchilla():
            return fit_chinchilla(points, replicates=replicates, seed=seed)
        case Kaplan():
            return fit_kaplan(points, replicates=replicates, seed=seed)
        case DataConstrained():
            return fit_data_constrained(points, replicates=replicates, seed=seed)

"""Parametrizations for fitting: well-scaled parameters within bounds, the log loss they predict, and its derivatives.

Each form centres the logarithms of N, D or C on the runs, so that its parameters are near 1 and hardly correlated, and
has starts for a descent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic

import numpy as np

from isoform.scaling.laws import Chinchilla, DataConstrained, Kaplan, Law, Points, PowerLaw

EXPONENTS = (0.01, 2.0)
"""Bounds of the exponents of N and of D; that of compute is at most 1, as β α / (α + β) is with both at 2."""

LEAST_SLOPE = 0.005
"""Least slope of log loss in log compute, in the middle of the runs: flatter runs don't determine a law."""

NO_FLOOR = "the floor is at its bound, 0"
"""The note on a law that is a plain power law."""

BoundNotes = tuple[tuple[str, str], ...]
"""[p], notes on each parameter at its lower and at its upper bound."""


class Form(ABC, Generic[Law]):
    """A law of p parameters, for n runs."""

    bound_notes: BoundNotes
    lower: np.ndarray
    """[p]"""
    upper: np.ndarray
    starts: np.ndarray
    """[s, p]"""
    coordinates: np.ndarray
    """[n, k], logs of the law's inputs: equal rows are seeds of one run."""

    @abstractmethod
    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From parameters [b, p], the log loss [b, n] and its derivatives [b, n, p]."""

    @abstractmethod
    def build(self, theta: np.ndarray) -> Law:
        """The law of parameters [p]."""


class PowerLawForm(Form[PowerLaw]):
    """log L = height + log(middle (1 + slope / γ (exp(-γ (log C - centre)) - 1))), γ = slope + (1 - slope) between.

    Height and slope are those of the curve in the middle of the runs; `between` puts the exponent γ between the
    slope, which is its value without a floor, and 1. In floor and exponent themselves the descent would creep along a
    curved valley.
    """

    def __init__(self, points: Points, *, with_floor: bool) -> None:
        x = np.log(points.compute)
        self.middle, self.centre = np.exp(np.log(points.loss).mean()), x.mean()
        self.dx = x - self.centre
        self.bound_notes = (
            ("the loss is at its lower bound", "the loss is at its upper bound"),
            (f"the loss hardly falls: its slope is at the bound, {LEAST_SLOPE}", "the slope is at its bound, 0.99"),
            (NO_FLOOR, "the exponent is at its bound, 1"),
        )
        self.lower, self.upper = np.array([-1, LEAST_SLOPE, 0]), np.array([1, 0.99, 1.0 if with_floor else 0.0])
        betweens = (0, 0.1, 0.3, 0.7) if with_floor else (0,)
        self.starts = np.array([[0, slope, between] for slope in (0.01, 0.03, 0.1, 0.3) for between in betweens])
        self.coordinates = x[:, None]

    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, slope, between = theta.T[..., None]
        gamma = slope + (1 - slope) * between
        share, power = slope / gamma, np.exp(-gamma * self.dx)
        total = 1 + share * (power - 1)
        by_share, by_gamma = power - 1, -share * self.dx * power
        by_slope = by_share * (1 - share * (1 - between)) / gamma + by_gamma * (1 - between)
        by_between = (1 - slope) * (by_gamma - by_share * share / gamma)
        jacobian = np.stack([total, by_slope, by_between], -1) / total[..., None]
        return np.log(self.middle * total) + height, jacobian

    def build(self, theta: np.ndarray) -> PowerLaw:
        height, slope, between = theta.tolist()
        gamma = slope + (1 - slope) * between
        level = self.middle * np.exp(height)
        scale = np.exp(np.log(level * slope / gamma) / gamma + self.centre)
        return PowerLaw(float(scale), gamma, float(level * (1 - slope / gamma)))


CHINCHILLA_BOUND_NOTES = (
    (NO_FLOOR, "the floor is at its bound, the least observed loss"),
    ("the number of parameters has no effect", "scale_n is at its upper bound"),
    (f"alpha is at its bound, {EXPONENTS[0]}", f"alpha is at its bound, {EXPONENTS[1]}"),
    ("the number of tokens has no effect", "scale_d is at its upper bound"),
    (f"beta is at its bound, {EXPONENTS[0]}", f"beta is at its bound, {EXPONENTS[1]}"),
)
CHINCHILLA_LOWER = np.array([0, -9, EXPONENTS[0], -9, EXPONENTS[0]])
CHINCHILLA_UPPER = np.array([1, 5, EXPONENTS[1], 5, EXPONENTS[1]])


class ChinchillaForm(Form[Chinchilla]):
    """log L = log(least (floor + exp(a - α (log N - cx)) + exp(b - β (log D - cy)))).

    The parameters are floor, a, α, b, β: the two terms in the middle of the runs, (cx, cy), relative to the least loss.
    """

    def __init__(self, points: Points) -> None:
        x, y = np.log(points.parameters), np.log(points.tokens)
        self.least, self.cx, self.cy = points.loss.min(), x.mean(), y.mean()
        self.dx, self.dy = x - self.cx, y - self.cy
        self.bound_notes, self.lower, self.upper = CHINCHILLA_BOUND_NOTES, CHINCHILLA_LOWER, CHINCHILLA_UPPER
        grid = (0.1, 0.25, 0.5, 1.0)
        self.starts = np.array([self._start(points.loss, alpha, beta) for alpha in grid for beta in grid])
        self.coordinates = np.stack([x, y], 1)

    def _start(self, loss: np.ndarray, alpha: float, beta: float) -> list[float]:
        """With fixed exponents the rest is linear: relative least squares, clipped a little above 0."""
        columns = np.stack([np.ones_like(self.dx), np.exp(-alpha * self.dx), np.exp(-beta * self.dy)], 1)
        columns *= (self.least / loss)[:, None]
        floor, a, b = np.linalg.lstsq(columns, np.ones(len(loss)), rcond=None)[0]
        return [min(max(floor, 0.02), 0.98), np.log(max(a, 0.01)), alpha, np.log(max(b, 0.01)), beta]

    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, a, alpha, b, beta = theta.T[..., None]
        u, v = np.exp(a - alpha * self.dx), np.exp(b - beta * self.dy)
        total = floor + u + v
        jacobian = np.stack([np.ones_like(u), u, -self.dx * u, v, -self.dy * v], -1) / total[..., None]
        return np.log(self.least * total), jacobian

    def build(self, theta: np.ndarray) -> Chinchilla:
        floor, a, alpha, b, beta = theta.tolist()
        scale_n, scale_d = self.least * np.exp(a + alpha * self.cx), self.least * np.exp(b + beta * self.cy)
        return Chinchilla(float(self.least * floor), float(scale_n), alpha, float(scale_d), beta)


class KaplanForm(Form[Kaplan]):
    """log L = middle + αD log(exp((p - αN (log N - cx)) / αD) + exp(q / αD - (log D - cy))).

    The parameters are p, αN, q, αD: p = αN log(Nc / N) and q = αD log(Dc / D) in the middle of the runs, (cx, cy),
    which are the log losses there, less their mean, if D or N respectively were infinite.
    """

    def __init__(self, points: Points) -> None:
        x, y = np.log(points.parameters), np.log(points.tokens)
        self.cx, self.cy, self.middle = x.mean(), y.mean(), np.log(points.loss).mean()
        self.dx, self.dy = x - self.cx, y - self.cy
        low, high = EXPONENTS
        self.bound_notes = (
            ("the number of parameters has no effect", "critical_n is at its upper bound"),
            (f"alpha_n is at its bound, {low}", f"alpha_n is at its bound, {high}"),
            ("the number of tokens has no effect", "critical_d is at its upper bound"),
            (f"alpha_d is at its bound, {low}", f"alpha_d is at its bound, {high}"),
        )
        self.lower, self.upper = np.array([-9, low, -9, low]), np.array([1, high, 1, high])
        grid = (0.03, 0.1, 0.3, 0.8)
        self.starts = np.array([[-d * np.log(2), n, -d * np.log(2), d] for n in grid for d in grid])
        self.coordinates = np.stack([x, y], 1)

    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, alpha_n, q, alpha_d = theta.T[..., None]
        u, v = (p - alpha_n * self.dx) / alpha_d, q / alpha_d - self.dy
        total = np.logaddexp(u, v)
        by_u, by_v = np.exp(u - total), np.exp(v - total)
        jacobian = np.stack([by_u, -self.dx * by_u, by_v, total - by_u * u - by_v * q / alpha_d], -1)
        return self.middle + alpha_d * total, jacobian

    def build(self, theta: np.ndarray) -> Kaplan:
        p, alpha_n, q, alpha_d = theta.tolist()
        critical_n = np.exp((p + self.middle) / alpha_n + self.cx)
        critical_d = np.exp((q + self.middle) / alpha_d + self.cy)
        return Kaplan(float(critical_n), alpha_n, float(critical_d), alpha_d)


class DataConstrainedForm(Form[DataConstrained]):
    """Chinchilla's form in the effective N' and D', with the logs of two decays (Muennighoff et al. 2023, section 3).

        L = E + A / N'^α + B / D'^β
        D' = U_D (1 + r_D (1 - exp(-R_D / r_D)))     U_D = min(D, U)           R_D = D / U_D - 1
        N' = U_N (1 + r_N (1 - exp(-R_N / r_N)))     U_N = min(N, N_opt(U))    R_N = N / U_N - 1
        log N_opt(U) = g + β / α (log U + g)         g = log(α A / (β B)) / (α + β)

    U is the size of the data set and N_opt(U) the optimal model size for it by Chinchilla's law, so that α, β, A and B
    affect U_N as well as the loss. The parameters are floor, a, α, b, β as in `ChinchillaForm`, log r_D, log r_N.
    """

    def __init__(self, points: Points, starts: Sequence[Chinchilla]) -> None:
        """starts: laws without repetition from which the descent begins, each with several decays."""
        assert points.unique_tokens is not None
        self.x, y = np.log(points.parameters), np.log(points.tokens)
        self.is_infinite = np.isinf(points.unique_tokens)
        self.log_unique = np.log(np.where(self.is_infinite, 1.0, points.unique_tokens))
        self.least, self.cx, self.cy = points.loss.min(), self.x.mean(), y.mean()
        self.first_d = np.where(self.is_infinite, y, np.minimum(y, self.log_unique))
        self.repeats_d = np.expm1(y - self.first_d)
        nothing, new = "0.05: repeats are worth nothing", "1000: repeats are new"
        of_d = (f"decay_d is at its bound, {nothing}", f"decay_d is at its bound, {new}")
        of_n = ("decay_n is at its bound, 0.05", "decay_n is at its bound, 1000")
        self.bound_notes = (*CHINCHILLA_BOUND_NOTES, of_d, of_n)
        low, high = np.log([[0.05, 0.05], [1000, 1000]])
        self.lower, self.upper = np.append(CHINCHILLA_LOWER, low), np.append(CHINCHILLA_UPPER, high)
        decays = [(np.log(rd), np.log(rn)) for rd in (1, 6, 40) for rn in (1, 6, 40)]
        self.starts = np.array([[*self._start(law), *logs] for law in starts for logs in decays])
        self.coordinates = np.stack([self.x, y, self.log_unique], 1)

    def _start(self, law: Chinchilla) -> list[float]:
        a = np.log(law.scale_n * np.exp(-law.alpha * self.cx) / self.least)
        b = np.log(law.scale_d * np.exp(-law.beta * self.cy) / self.least)
        return [law.floor / self.least, a, law.alpha, b, law.beta]

    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, a, alpha, b, beta, log_rd, log_rn = theta.T[..., None]
        balance = (np.log(alpha / beta) + a + alpha * self.cx - b - beta * self.cy) / (alpha + beta)
        optimum = balance + beta / alpha * (self.log_unique + balance)
        is_over = (optimum < self.x) & ~self.is_infinite
        first_n = np.where(is_over, optimum, self.x)
        log_n, n_by_rn, n_by_first = _effective_log(first_n, np.expm1(self.x - first_n), np.exp(log_rn))
        log_d, d_by_rd, _ = _effective_log(self.first_d, self.repeats_d, np.exp(log_rd))
        u, v = np.exp(a - alpha * (log_n - self.cx)), np.exp(b - beta * (log_d - self.cy))
        total = floor + u + v
        by_optimum = -alpha * u * np.where(is_over, n_by_first, 0)
        by_a, by_alpha, by_beta = self._through_optimum(by_optimum, balance, alpha, beta)
        columns = [
            np.ones_like(u),
            u + by_a,
            u * (self.cx - log_n) + by_alpha,
            v - by_a,
            v * (self.cy - log_d) + by_beta,
            -beta * v * d_by_rd,
            -alpha * u * n_by_rn,
        ]
        return np.log(self.least * total), np.stack(columns, -1) / total[..., None]

    def _through_optimum(
        self, by_optimum: np.ndarray, balance: np.ndarray, alpha: np.ndarray, beta: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives of the loss in a (and -b), α and β through log N_opt, from that in log N_opt."""
        both, ratio = alpha + beta, beta / alpha
        by_balance, by_ratio = 1 + ratio, self.log_unique + balance
        by_a = by_optimum * by_balance / both
        by_alpha = by_balance * (1 / alpha + self.cx - balance) / both - ratio / alpha * by_ratio
        by_beta = by_balance * (-1 / beta - self.cy - balance) / both + by_ratio / alpha
        return by_a, by_optimum * by_alpha, by_optimum * by_beta

    def build(self, theta: np.ndarray) -> DataConstrained:
        floor, a, alpha, b, beta, log_rd, log_rn = theta.tolist()
        scale_n, scale_d = self.least * np.exp(a + alpha * self.cx), self.least * np.exp(b + beta * self.cy)
        law = (float(self.least * floor), float(scale_n), alpha, float(scale_d), beta)
        return DataConstrained(*law, float(np.exp(log_rd)), float(np.exp(log_rn)))


def _effective_log(
    first: np.ndarray, again: np.ndarray, decay: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log of the effective number of `exp(first)` items repeated `again` times; derivatives by log decay, `first`."""
    fading = np.exp(-again / decay)
    times = 1 + decay * (1 - fading)
    return first + np.log(times), (times - 1 - again * fading) / times, 1 - fading * (again + 1) / times

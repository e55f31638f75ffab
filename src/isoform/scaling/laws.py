"""Published scaling laws of the loss in size, data and compute, and the runs they are fitted to.

N is always the effective parameters, training FLOPs per token / 6, so that C = 6 N D exactly. D is the tokens seen in
training, C is in FLOPs, the loss in nats per token, all float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Values = float | np.ndarray
"""A number, or an array of them."""


@dataclass(frozen=True, eq=False)
class Points:
    """Runs to fit: arrays of one length n. ValueError for lengths that differ and for values that aren't above 0."""

    parameters: np.ndarray
    """N, training FLOPs per token / 6."""
    tokens: np.ndarray
    """D, tokens seen, each epoch counted."""
    loss: np.ndarray
    """Nats per token."""
    unique_tokens: np.ndarray | None = None
    """U, tokens of the data set; tokens seen beyond it are repeats. None: no repetition."""

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens", "loss", "unique_tokens"):
            if getattr(self, name) is None:
                continue
            values = np.atleast_1d(np.asarray(getattr(self, name), np.float64))
            if values.ndim != 1 or values.shape != np.shape(np.atleast_1d(self.loss)):
                raise ValueError(f"{name} has shape {values.shape}; every field needs one number per run")
            # A data set may be infinite.
            valid = values > 0 if name == "unique_tokens" else (values > 0) & np.isfinite(values)
            if not valid.all():
                bad = int(np.argmin(valid))
                raise ValueError(f"{name} of run {bad} is {values[bad]}; leave out runs without a finite value above 0")
            object.__setattr__(self, name, values)

    @classmethod
    def from_compute(cls, compute: Values, loss: Values) -> Points:
        """Runs with known compute (FLOPs) only: N and D are set to sqrt(C / 6) each."""
        side = np.sqrt(np.asarray(compute, np.float64) / 6)
        return cls(side, side, np.asarray(loss, np.float64))

    @property
    def compute(self) -> np.ndarray:
        """C = 6 N D, FLOPs."""
        return 6 * self.parameters * self.tokens

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, mask: np.ndarray) -> Points:
        """The runs selected by a boolean mask or an index array."""
        unique = None if self.unique_tokens is None else self.unique_tokens[mask]
        return Points(self.parameters[mask], self.tokens[mask], self.loss[mask], unique)


@dataclass(frozen=True)
class PowerLaw:
    """L = floor + (scale / C)^exponent (Kaplan et al. 2020, eq. 1.3, with a floor)."""

    scale: float
    """FLOPs at which the part above the floor is one nat."""
    exponent: float
    floor: float = 0.0
    """Irreducible loss, nats."""

    def loss(self, compute: Values) -> np.ndarray:
        """Nats per token at `compute` FLOPs."""
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
        """Nats per token of N parameters after D tokens."""
        n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        return self.floor + self.scale_n * n**-self.alpha + self.scale_d * d**-self.beta

    @property
    def optimal_exponent(self) -> float:
        """a in compute-optimal N ∝ C^a: β / (α + β) (eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, compute: Values) -> tuple[np.ndarray, np.ndarray]:
        """N and D of the least loss for `compute` FLOPs (eq. 4)."""
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

        `inference_tokens`: tokens to serve, D_inference. ValueError for a loss that isn't above the floor.
        """
        above = np.asarray(target_loss, np.float64) - self.floor
        served = np.asarray(inference_tokens, np.float64)
        if np.any(above <= 0) or np.any(served < 0):
            raise ValueError(f"no model reaches {target_loss} nats serving {served}: the floor is {self.floor:.4g}")
        above, served = np.broadcast_arrays(above, served)

        def sizes(logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # N's share of the loss above the floor is 1 / (1 + exp(-logit)).
            n = (self.scale_n * (1 + np.exp(-logit)) / above) ** (1 / self.alpha)
            return n, (self.scale_d * (1 + np.exp(logit)) / above) ** (1 / self.beta)

        # The slope of the cost in log N falls with the share; it is above 0 at the optimum without inference.
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
        """Nats per token of N parameters after D tokens."""
        n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        size = self.alpha_n / self.alpha_d * np.log(self.critical_n / n)
        return np.exp(self.alpha_d * np.logaddexp(size, np.log(self.critical_d / d)))


@dataclass(frozen=True)
class DataConstrained:
    """Chinchilla's law of effective tokens and parameters when data repeat (Muennighoff et al. 2023).

    With U tokens in the data set, D tokens seen are worth U_D (1 + r (1 - exp(-R / r))) new ones: U_D = min(D, U) are
    unique, R = D / U_D - 1 is the number of repetitions, and r = `decay_d`. Parameters likewise with `decay_n`, where
    U_N is at most the optimal model size for the U tokens by Chinchilla's law.
    """

    floor: float
    scale_n: float
    alpha: float
    scale_d: float
    beta: float
    decay_d: float
    """R_D*: the number of repetitions after which the value of another one has fallen to 1 / e."""
    decay_n: float
    """R_N*."""

    @property
    def unconstrained(self) -> Chinchilla:
        """The law of an infinite data set."""
        return Chinchilla(self.floor, self.scale_n, self.alpha, self.scale_d, self.beta)

    def loss(self, parameters: Values, tokens: Values, unique_tokens: Values = np.inf) -> np.ndarray:
        """Nats per token of N parameters after D tokens, from a data set of U tokens."""
        n, d, u = (np.asarray(x, np.float64) for x in (parameters, tokens, unique_tokens))
        first_d = np.minimum(d, u)
        balance = np.log(self.alpha * self.scale_n / (self.beta * self.scale_d)) / (self.alpha + self.beta)
        optimum = balance + self.beta / self.alpha * (np.log(u) + balance)
        first_n = np.where(optimum < np.log(n), np.exp(np.minimum(optimum, np.log(n))), n)
        worth_d = first_d * (1 - self.decay_d * np.expm1(-(d / first_d - 1) / self.decay_d))
        worth_n = first_n * (1 - self.decay_n * np.expm1(-(n / first_n - 1) / self.decay_n))
        return self.unconstrained.loss(worth_n, worth_d)


Law = TypeVar("Law", PowerLaw, Chinchilla, Kaplan, DataConstrained)

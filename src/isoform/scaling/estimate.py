"""A number with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval, of 90 % unless said otherwise; None if there are too few runs for one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __format__(self, how: str) -> str:
        how = how or ".4g"
        if math.isnan(self.value):
            return "–"
        if self.low is None or self.high is None or self.low == self.high:
            return format(self.value, how)
        return f"{self.value:{how}} ({self.low:{how}} to {self.high:{how}})"

    def __str__(self) -> str:
        return format(self)


def exact(value: float) -> Estimate:
    """A number without uncertainty."""
    return Estimate(value, value, value)


def student(freedom: float, level: float = 0.9) -> float:
    """Half-width of an interval at a confidence level, in standard errors."""
    from scipy.special import stdtrit  # half a second to import

    return float(stdtrit(freedom, (1 + level) / 2))

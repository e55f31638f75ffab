"""Statistics without runs: what published constants imply, and what the intervals of every estimator hold.

A 90 % interval is sound if it contains the truth in 90 % of simulated studies. `coverages` simulates the designs of the
claims, and `fits` publishes the shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from isoform.ranges import Positive, Size, config
from isoform.scaling import simulation
from isoform.scaling.estimate import Estimate, exact
from isoform.scaling.findings import Findings, Table
from isoform.scaling.laws import Chinchilla
from isoform.scaling.statistics import Arms, Statistic, numbered
from isoform.scaling.study import Row
from isoform.scaling.worlds import ForecastDesign, LadderDesign, MeansDesign, StudyDesign

PUBLISHED = {
    "besiroglu": Chinchilla(1.8172, 482.01, 0.3478, 2085.43, 0.3658),
    "hoffmann": Chinchilla(1.6934, 406.4, 0.3392, 410.7, 0.2849),
    "hoffmann printed": Chinchilla(1.69, 406.4, 0.34, 410.7, 0.28),
}
"""Chinchilla's law. besiroglu: refitted to the same runs (Besiroglu et al. 2024, table 1). hoffmann: with the digits of
the TeX source of Hoffmann et al. 2022, as Besiroglu et al. quote them. hoffmann printed: as rounded in the body of the
paper, equation 10."""


CHECK_SEED = 20261127
"""Of the published check; the estimators were made, and are tested, with others."""


@config
class Recovery(Statistic):
    """How often the intervals of the claims' estimators contain the truth, at the claims' own designs.

    Numbers: least_coverage and most_coverage, the extremes over the designs of the intervals that decide claims, and
    most_false_gains, that of the share of arms worth exactly as much as their baseline that are distinguished from it.
    For each design and each of its intervals: DESIGN.INTERVAL, the share that holds.
    """

    repetitions: Size = 1000
    ladders: tuple[LadderDesign, ...] = ()
    forecasts: tuple[ForecastDesign, ...] = ()
    means: tuple[MeansDesign, ...] = ()
    chinchilla: bool = True
    """Whether to simulate the law of size and data too, which `isoform scale` fits: 40 runs over three decades."""

    CHINCHILLA = ("alpha", "beta", "optimal_exponent", "forecast")
    EXTREMES = ("least_coverage", "most_coverage", "most_false_gains")

    @property
    def designs(self) -> Sequence[StudyDesign]:
        """All designs."""
        return [*self.ladders, *self.forecasts, *self.means]

    def names(self, arms: Arms) -> list[str]:
        names = [name for design in self.designs for name in numbered(str(design), design.intervals)]
        laws = ["besiroglu", "hoffmann"] if self.chinchilla else []
        return [*self.EXTREMES, *names, *(name for law in laws for name in numbered(law, self.CHINCHILLA))]

    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        findings, lines = Findings(values=dict.fromkeys(self.EXTREMES, Estimate(math.nan))), []
        for what, number, held, width in _simulated(self):
            share = simulation.coverage(held, level)
            findings.values[f"{what}.{number}"] = share
            lines.append((what, number, f"{share:.1%}", f"{len(held)}", "–" if width is None else f"{width:.2g}"))
        below = [f"{design}.{number}" for design in self.designs for number in design.deciding]
        above = [f"{design}.{number}" for design in self.designs if design.is_exact for number in design.deciding]
        false = [f"{design}.false_gain" for design in self.ladders]
        for name, among, extreme in zip(self.EXTREMES, (below, above, false), (min, max, max), strict=True):
            if among:
                where = extreme(among, key=lambda number: findings.values[number].value)
                findings.values[name] = findings.values[where]
                findings.number_notes[name] = where
        head = ("design", "90 % interval of", "holds", "simulated studies", "median half-width")
        findings.tables.append(Table("Coverage at the designs of the claims", head, tuple(lines)))
        return findings


@lru_cache(maxsize=2)
def _simulated(recovery: Recovery) -> tuple[tuple[str, str, np.ndarray, float | None], ...]:
    """What is simulated, the number, whether its interval held in each study, and its median half-width. Cached, since
    a rule of several conditions asks at two levels of confidence."""
    results: list[tuple[str, str, np.ndarray, float | None]] = []
    for design in recovery.designs:
        num_studies = design.num_studies(recovery.repetitions)
        studies = [design.check(np.random.default_rng([CHECK_SEED, i])) for i in range(num_studies)]
        for number in design.intervals:
            checks = [study[number] for study in studies if number in study]
            held = np.array([check.is_held for check in checks])
            results.append((str(design), number, held, float(np.median([check.half_width for check in checks]))))
    for name in ("besiroglu", "hoffmann") if recovery.chinchilla else ():
        result = simulation.recovery(PUBLISHED[name], repetitions=min(200, recovery.repetitions))
        results += [(name, number, result.held(number), None) for number in Recovery.CHINCHILLA]
    return tuple(results)


@config
class Published(Statistic):
    """The compute-optimal size and tokens that the published constants of Chinchilla's law imply.

    Numbers, for besiroglu, hoffmann and "hoffmann printed": NAME.exponent of the optimal size, and
    NAME.tokens_per_parameter at `compute`.
    """

    compute: Positive = 5.76e23

    NUMBERS = ("exponent", "tokens_per_parameter")

    def names(self, arms: Arms) -> list[str]:
        return [name for law in PUBLISHED for name in numbered(law, self.NUMBERS)]

    def measure(self, arms: Arms, rows: Sequence[Row], level: float = 0.9) -> Findings:
        findings, lines = Findings(), []
        for name, law in PUBLISHED.items():
            size, tokens = map(float, law.optimum(self.compute))
            numbers = exact(law.optimal_exponent), exact(tokens / size)
            findings.values |= dict(zip(numbered(name, self.NUMBERS), numbers, strict=True))
            lines.append((name, f"{law.optimal_exponent:.3f}", f"{tokens / size:.1f}", f"{size:.3g}", f"{tokens:.3g}"))
        head = ("fit", "N ∝ C^", f"tokens per parameter at {self.compute:.3g} FLOPs", "N", "D")
        findings.tables.append(Table("What the constants imply", head, tuple(lines)))
        return findings

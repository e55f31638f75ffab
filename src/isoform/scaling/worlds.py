"""Simulated studies whose truth is known, drawn from wider families than any estimator assumes.

A world of ladders draws its law (a power law with a floor, without one, or broken), what an arm is worth and how that
grows, the scatter of arm × size (0 to 1 %), the noise between seeds, unequal between arms, and how far arms with a seed
share it. A world of means draws unequal noise, what seeds share, and test items of their own difficulty. Only the
design is given: arms, sizes, range, seeds, items.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isoform.ranges import Index, Positive, Size, config
from isoform.scaling.config import SMALL
from isoform.scaling.curves import score_forecasts
from isoform.scaling.estimate import Estimate
from isoform.scaling.items import ORDERS, pack, score
from isoform.scaling.multipliers import Ladders
from isoform.scaling.statistics import Arms, Compared, Contrast, Forecasts, KnownItems
from isoform.scaling.study import Row

SEED_NOISE = 0.006
"""The middle of the noise between seeds, as a fraction of the loss, as in the ladders of the claims."""
MOST_SCATTER = 0.01
"""The largest scatter of arm × size; in the claim `block` it is about half of it."""
SHARED_SCATTER = 0.003
"""Of size alone, equal for all arms: steps of the width."""


@dataclass(frozen=True)
class Check:
    """Whether an interval contained the truth of a study."""

    is_held: bool
    half_width: float

    @classmethod
    def of(cls, estimate: Estimate, truth: float, *, is_ratio: bool = False) -> Check:
        """is_ratio: half-widths in the logarithm."""
        assert estimate.low is not None and estimate.high is not None
        width = estimate.high - estimate.low
        if is_ratio:
            width = math.log(max(estimate.high, 1e-300) / max(estimate.low, 1e-300))
        return cls(bool(estimate.low <= truth <= estimate.high), width / 2)


class StudyDesign(ABC):
    """The runs of a claim, and which intervals its statistic gives."""

    @property
    @abstractmethod
    def intervals(self) -> tuple[str, ...]:
        """The numbers whose intervals are checked."""

    @property
    @abstractmethod
    def deciding(self) -> tuple[str, ...]:
        """Those of them that claims decide by."""

    @property
    def is_exact(self) -> bool:
        """Whether intervals hold as often as they say; otherwise they are wider, and hold more often."""
        return True

    @abstractmethod
    def num_studies(self, repetitions: int) -> int:
        """How many studies to simulate."""

    @abstractmethod
    def check(self, rng: np.random.Generator) -> dict[str, Check]:
        """One simulated study: which intervals contain the truth."""


@config
class LadderDesign(StudyDesign):
    """The runs of a claim that compares ladders."""

    arms: Size = 2
    sizes: Size = 4
    decades: Positive = 1.5
    seeds: Size = 3
    has_floor: bool = False
    """Whether the floor of the text is known from a longer ladder, to 0.03 nats."""

    @property
    def deciding(self) -> tuple[str, ...]:
        """At the largest size, and the trend."""
        return ("most", "growth", "loss_change")

    @property
    def intervals(self) -> tuple[str, ...]:
        """Exponents only with a known floor: four sizes don't determine both."""
        exponent = ("exponent",) if self.has_floor else ()
        return ("least", "most", "growth", "loss_change", *exponent, "false_gain")

    def __str__(self) -> str:
        floor = ", floor known" if self.has_floor else ""
        return f"{self.arms} arms × {self.sizes} sizes × {self.seeds} seeds, {self.decades:g} decades{floor}"

    def num_studies(self, repetitions: int) -> int:
        """Half with a gain and half without, which tell 11 from 12 %."""
        return 8 * repetitions

    def check(self, rng: np.random.Generator) -> dict[str, Check]:
        """One simulated study: which intervals contain the truth."""
        has_gain = bool(rng.integers(2))
        world = draw_world(self, rng, has_gain=has_gain)
        ladders = Ladders(simulate(world, rng), floor=world.floor)
        first, last = ladders.arms[0], ladders.arms[-1]
        gain, logs, losses = ladders.gain(first, last), world.log_multipliers()[-1], world.losses()
        checks = {
            "least": Check.of(gain.least, math.exp(logs[0]), is_ratio=True),
            "most": Check.of(gain.most, math.exp(logs[-1]), is_ratio=True),
            "growth": Check.of(gain.growth, world.growth),
            "loss_change": Check.of(gain.loss_change, losses[-1, -1] / losses[0, -1] - 1),
        }
        if world.law.exponent is not None and self.has_floor:
            checks["exponent"] = Check.of(ladders.exponent(last), world.law.exponent * (1 + world.growth))
        if not has_gain:
            checks["false_gain"] = Check(not checks["most"].is_held, checks["most"].half_width)
        return checks


Losses = Callable[[np.ndarray], np.ndarray]
"""From log compute, 0 at the smallest size, to losses in nats."""


@dataclass(frozen=True, eq=False)
class TrueLaw:
    """The loss of the first arm."""

    loss: Losses
    exponent: float | None
    """None of a broken law."""
    floor: float | None


@dataclass(frozen=True, eq=False)
class LadderWorld:
    """The truth of one simulated study: the loss of each arm, and what the last arm is worth against the first."""

    design: LadderDesign
    log_costs: np.ndarray
    """[s]"""
    law: TrueLaw
    log_multiplier: float
    """Of the last arm against the first, at the largest size."""
    growth: float
    floor: tuple[float, float] | None
    scatter: float
    noise: np.ndarray
    """[a], of seeds."""
    shared: float
    """Correlation of arms that share a seed."""

    def log_multipliers(self) -> np.ndarray:
        """[a, s], of each arm against the first; arms between have a share of the last one's."""
        last = self.log_multiplier + self.growth * (self.log_costs - self.log_costs[-1])
        return np.linspace(0, 1, self.design.arms)[:, None] * last

    def losses(self) -> np.ndarray:
        """[a, s], nats."""
        return self.law.loss(self.log_costs + self.log_multipliers())


def draw_world(design: LadderDesign, rng: np.random.Generator, *, has_gain: bool) -> LadderWorld:
    """A truth for a design; has_gain: whether the last arm is worth other than the first."""
    x = np.linspace(0, design.decades * math.log(10), design.sizes)
    law = draw_law(rng, x[-1])
    log_multiplier = rng.uniform(math.log(0.5), math.log(3)) if has_gain else 0.0
    return LadderWorld(
        design,
        x,
        law,
        log_multiplier,
        rng.uniform(-0.15, 0.15) if has_gain else 0.0,
        _measured_floor(law.loss, x[-1], rng) if design.has_floor else None,
        rng.uniform(0, MOST_SCATTER),
        SEED_NOISE * np.exp(rng.uniform(-0.7, 0.7, design.arms)),
        rng.uniform(0, 0.8),
    )


def draw_law(rng: np.random.Generator, span: float, *, breaks: bool | None = None) -> TrueLaw:
    """A power law with a floor, without one, or broken, over a span of log compute; None: any of the three."""
    start, exponent = rng.uniform(1.9, 2.3), rng.uniform(0.15, 0.3)
    floor, kind = rng.uniform(1.0, 1.4), rng.integers(3 if breaks is None else 2)
    if breaks:
        kind = 2
    if kind == 0:
        return TrueLaw(lambda x: floor + (start - floor) * np.exp(-exponent * x), exponent, floor)
    if kind == 1:
        slope = rng.uniform(0.04, 0.1)
        return TrueLaw(lambda x: start * np.exp(-slope * x), slope, 0.0)
    # The exponent changes smoothly, within half an e-fold of compute, to 0.6 to 1.4 times of what it was.
    turn, after = rng.uniform(0.3, 0.7) * span, exponent * rng.uniform(0.6, 1.4)

    def broken(x: np.ndarray) -> np.ndarray:
        bend = 0.5 * (np.logaddexp(0, (x - turn) / 0.5) - np.logaddexp(0, -turn / 0.5))
        return floor + (start - floor) * np.exp(-exponent * x - (after - exponent) * bend)

    return TrueLaw(broken, None, None)


def _measured_floor(loss: Losses, span: float, rng: np.random.Generator) -> tuple[float, float]:
    """The floor by a power law through 14 sizes over nearly twice the range, to 0.03 nats."""
    x = np.linspace(0, 1.8 * span, 14)
    long = Ladders({"long": [simulated_row("long", g, 0, math.exp(v), float(loss(v))) for g, v in enumerate(x)]})
    middle = long.floor.value + 0.015 * rng.standard_normal()
    return max(0.0, middle - 0.03), max(0.06, middle + 0.03)


def simulate(world: LadderWorld, rng: np.random.Generator) -> dict[str, list[Row]]:
    """The runs of a study in a world, by arm."""
    design, losses = world.design, world.losses()
    shape = design.arms, design.sizes, design.seeds
    seeds = math.sqrt(world.shared) * rng.standard_normal(shape[1:])
    seeds = seeds + math.sqrt(1 - world.shared) * rng.standard_normal(shape)
    size = SHARED_SCATTER * rng.standard_normal(design.sizes) + world.scatter * rng.standard_normal(shape[:2])
    noisy = losses[..., None] * np.exp(world.noise[:, None, None] * seeds + size[..., None])
    return {
        f"arm {a}": [
            simulated_row(f"arm {a}", g, s, 1e12 * math.exp(world.log_costs[g]), noisy[a, g, s])
            for g in range(design.sizes)
            for s in range(design.seeds)
        ]
        for a in range(design.arms)
    }


@config
class ForecastDesign(StudyDesign):
    """The runs of a claim that forecasts the largest of one ladder."""

    sizes: Size = 14
    decades: Positive = 2.7
    seeds: Size = 1
    small_seeds: Size = 3
    """Of the sizes below 1/8 of the largest compute."""
    breaks: bool = False
    """Whether the law breaks within the range, which no forecast knows of."""

    @property
    def deciding(self) -> tuple[str, ...]:
        """None where the law breaks."""
        return () if self.breaks else ("worst_error",)

    @property
    def intervals(self) -> tuple[str, ...]:
        """A broken law has neither exponent nor floor."""
        return ("forecast", "worst_error") if self.breaks else ("forecast", "worst_error", "exponent", "floor")

    def __str__(self) -> str:
        breaks = ", the law breaks" if self.breaks else ""
        seeds = f"{self.small_seeds} to {self.seeds} seeds"
        return f"forecasts, {self.sizes} sizes × {seeds}, {self.decades:g} decades{breaks}"

    def num_studies(self, repetitions: int) -> int:
        """A sixth, since each takes a quarter of a second."""
        return max(1, repetitions // 6)

    def check(self, rng: np.random.Generator) -> dict[str, Check]:
        """One simulated study: which intervals contain the truth."""
        x = np.linspace(0, self.decades * math.log(10), self.sizes)
        law, scatter = draw_law(rng, x[-1], breaks=self.breaks), rng.uniform(0, MOST_SCATTER)
        rows = []
        for group, log_cost in enumerate(x):
            off = scatter * rng.standard_normal()
            for seed in range(self.small_seeds if log_cost < x[-1] + math.log(SMALL) else self.seeds):
                loss = float(law.loss(log_cost)) * math.exp(off + SEED_NOISE * rng.standard_normal())
                rows.append(simulated_row("runs", group, seed, 1e12 * math.exp(log_cost), loss))
        scored = score_forecasts(rows, 3)
        values = Forecasts(top=3).measure(Arms(("runs",), {}, {}), rows).values
        errors = [abs(s.forecast.loss / float(law.loss(np.log(s.compute / 1e12))) - 1) for s in scored]
        last = scored[-1]
        forecast = Estimate(last.forecast.loss, last.forecast.low, last.forecast.high)
        checks = {
            "forecast": Check.of(forecast, last.actual, is_ratio=True),
            "worst_error": Check.of(values["worst_error"], max(errors)),
        }
        if law.exponent is not None and law.floor is not None:
            checks["exponent"] = Check.of(values["exponent"], law.exponent)
            checks["floor"] = Check.of(values["floor"], law.floor)
        return checks


@config
class MeansDesign(StudyDesign):
    """The runs of a claim that compares arms of one size."""

    measure: Literal["loss", "share", "BLEU"] = "loss"
    seeds: Size = 3
    arms: Size = 2
    """Two for a difference, four for a difference of differences."""
    num_items: Index = 0
    shares_seeds: bool = True
    """Whether the arms have the same seeds, so that they are paired."""
    keeps_items: bool = True
    """Whether the answers to each test item are known."""

    @property
    def intervals(self) -> tuple[str, ...]:
        """Of the first arm, and of the contrast."""
        return ("mean", "change")

    @property
    def deciding(self) -> tuple[str, ...]:
        """The contrast alone."""
        return ("change",)

    @property
    def is_exact(self) -> bool:
        """Not where answers weren't kept: intervals are then wider than they need to be."""
        return self.keeps_items

    def __str__(self) -> str:
        parts = [f"{self.measure} of {self.arms} arms × {self.seeds} seeds", "paired" if self.shares_seeds else "Welch"]
        if self.num_items:
            parts.append(f"{self.num_items} items" + ("" if self.keeps_items else ", answers not kept"))
        return ", ".join(parts)

    def num_studies(self, repetitions: int) -> int:
        """A third of them where a bootstrap resamples the items."""
        return max(1, repetitions // 3) if self.measure == "BLEU" else repetitions

    def check(self, rng: np.random.Generator) -> dict[str, Check]:
        """One simulated study: which intervals contain the truth."""
        names = tuple(f"arm {a}" for a in range(self.arms))
        effects, noise = rng.uniform(-1, 1, self.arms), np.exp(rng.uniform(-0.7, 0.7, self.arms))
        seeds = self._seeds(noise, rng)
        if self.measure == "loss":
            truths, items = 100 + effects, None
            rows, measured = [*self._rows(names, 100 + effects[:, None] + seeds, None)], "loss"
        else:
            draw = _draw_shares if self.measure == "share" else _draw_sentences
            truths, items = draw(effects, noise, seeds, self.num_items, rng)
            scores = np.array([[score(of_run) for of_run in arm] for arm in items])
            rows, measured = [*self._rows(names, scores, items if self.keeps_items else None)], "m"
        weights = [1.0, -1.0] if self.arms == 2 else [1.0, -1.0, -1.0, 1.0]
        contrast = Contrast(name="contrast", weights=dict(zip(names, weights, strict=True)))
        deviation = 0.6 if self.measure == "BLEU" else 0.0
        by_measure = {"m": names}, {"m": KnownItems(self.num_items, deviation)}
        arms = Arms(names, dict.fromkeys(names[1:], names[0]), *(by_measure if items else ({}, {})))
        values = Compared(loss=measured == "loss", contrasts=(contrast,)).measure(arms, rows).values
        return {
            "mean": Check.of(values[f"{names[0]}.{measured}"], float(truths[0])),
            "change": Check.of(values[f"contrast.{measured}"], float(np.dot(weights, truths))),
        }

    def _seeds(self, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[a, s], what each run's seed adds, of which arms with the same seeds share a part."""
        shared = rng.uniform(0, 0.9) if self.shares_seeds else 0.0
        common, own = rng.standard_normal(self.seeds), rng.standard_normal((self.arms, self.seeds))
        return noise[:, None] * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)

    def _rows(
        self, names: tuple[str, ...], values: np.ndarray, items: list[list[np.ndarray]] | None = None
    ) -> Iterator[Row]:
        for a, name in enumerate(names):
            for s in range(self.seeds):
                seed = s if self.shares_seeds else a * self.seeds + s
                if self.measure == "loss":
                    yield simulated_row(name, 0, seed, 1e12, float(values[a, s]))
                    continue
                packed = {} if items is None else {"m": pack(items[a][s])}
                yield replace(
                    simulated_row(name, 0, seed, 1e12, 1.0), measures={"m": float(values[a, s])}, items=packed
                )


ITEM_SPREAD, ARM_SPREAD, SEED_SPREAD = 0.8, 0.4, 0.06
"""Standard deviations of what items, items by arm, and seeds add to an answer's probit."""


def _draw_shares(
    effects: np.ndarray, noise: np.ndarray, seeds: np.ndarray, num_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The expected share of each arm over all items and seeds, and the answers of its runs to a sample of items."""
    from scipy.special import ndtr

    probits = 0.6 + 0.1 * effects
    hardness = ITEM_SPREAD * rng.standard_normal(num_items)
    by_arm = ARM_SPREAD * rng.standard_normal((len(effects), num_items))
    spread = np.sqrt(1 + ITEM_SPREAD**2 + ARM_SPREAD**2 + (SEED_SPREAD * noise) ** 2)
    items = []
    for a, probit in enumerate(probits):
        logits = probit + SEED_SPREAD * seeds[a][:, None] + hardness + by_arm[a]
        items.append([(rng.random(num_items) < ndtr(run)).astype(np.int64) for run in logits])
    return ndtr(probits / spread), items


def _draw_sentences(
    effects: np.ndarray, noise: np.ndarray, seeds: np.ndarray, num_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The BLEU of each arm over all sentences and seeds, and the statistics of its runs on a sample of sentences."""
    many, hardness = 4000, rng.standard_normal
    quality = 0.8 + 0.1 * effects
    truths = []
    for a, middle in enumerate(quality):
        drawn = SEED_SPREAD * noise[a] * np.linspace(-1.5, 1.5, 5)
        truths.append(np.mean([score(_sentences(middle + d, hardness(many), hardness(many), rng)) for d in drawn]))
    shared, lengths = hardness(num_items), rng.integers(8, 20, num_items)
    own = [hardness(num_items) for _ in quality]
    items = [
        [_sentences(middle + SEED_SPREAD * seed, shared, own[a], rng, lengths) for seed in seeds[a]]
        for a, middle in enumerate(quality)
    ]
    return np.array(truths), items


def _sentences(
    quality: float, shared: np.ndarray, own: np.ndarray, rng: np.random.Generator, lengths: np.ndarray | None = None
) -> np.ndarray:
    """[n, 2 + ORDERS], statistics of answers as long as their references, of which n-grams match at random."""
    lengths = rng.integers(8, 20, len(shared)) if lengths is None else lengths
    share = 1 / (1 + np.exp(-(quality + 0.5 * shared + 0.25 * own)))
    matches = [rng.binomial(lengths - n, share ** (1 + 0.6 * n)) for n in range(ORDERS)]
    return np.stack([lengths, lengths, *matches], 1)


def simulated_row(arm: str, group: int, seed: int, compute: float, loss: float) -> Row:
    """A run with 20 tokens per parameter that reached a loss."""
    size = math.sqrt(compute / 120)
    seconds = compute / 1e10
    tokens = max(1, round(20 * size))
    return Row("", arm, "ladder", seed, group + 1, group, size, tokens, compute, loss, train_seconds=seconds)

"""What a claim's design can tell: studies simulated from known noise, before any run is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from isoform.scaling.claims import Claim, Power, claim_arms
from isoform.scaling.config import SMALL, FixedRatio, Ladder
from isoform.scaling.items import unpaired_variance
from isoform.scaling.study import Row
from isoform.scaling.worlds import simulated_row

CHANCE = 0.8
"""Of telling a difference, at which it counts as detectable."""
NUM_STUDIES = 200
MULTIPLIERS = ("least", "most", "whole")
"""How their names end."""


@dataclass(frozen=True)
class Detectable:
    """What a design tells of one deciding number."""

    value: str
    smallest: float
    """The smallest difference from a bound that is told in `CHANCE` of studies; of multipliers, a factor."""
    chance: float
    """Of the condition being met, if the source is right."""

    def __str__(self) -> str:
        smallest = f"a factor of {self.smallest:.2f}" if is_multiplier(self.value) else f"{self.smallest:.2g}"
        return f"{self.value}: {smallest}, met in {100 * self.chance:.0f} % of studies if the source is right"


def is_multiplier(value: str) -> bool:
    """Whether a number is a multiplier, by its name: its differences are factors."""
    return value.rpartition(".")[2] in MULTIPLIERS


def detectable(claim: Claim, power: Power, studies: int = NUM_STUDIES) -> list[Detectable]:
    """For each condition of a claim's rule, what its design tells. The same rule and statistic decide as do on runs."""
    power = replace(power, items=power.items | {m: error / math.sqrt(2) for m, error in power.paired_items.items()})
    arms = claim_arms(replace(claim, power=power))
    simulated = [
        claim.statistic.measure(arms, [*_rows(claim, power, np.random.default_rng([2, i]))], claim.level).values
        for i in range(studies)
    ]
    results = []
    for condition in claim.rule:
        estimates = [values[condition.value] for values in simulated]
        met = [condition.verdict(estimate) is True for estimate in estimates]
        is_ratio = is_multiplier(condition.value)
        ends = np.array([[e.value, e.low, e.high] for e in estimates], np.float64)
        ends = np.log(np.maximum(ends, 1e-9)) if is_ratio else ends
        middle = np.median(ends[:, 0])
        sides = [np.quantile(middle - ends[:, 1], CHANCE), np.quantile(ends[:, 2] - middle, CHANCE)]
        bounds = condition.at_least, condition.at_most
        bounded = [side for side, bound in zip(sides, bounds, strict=True) if bound is not None]
        smallest = float(max(bounded))
        results.append(Detectable(condition.value, math.exp(smallest) if is_ratio else smallest, float(np.mean(met))))
    return results


def _rows(claim: Claim, power: Power, rng: np.random.Generator) -> Iterator[Row]:
    """One simulated study, in which the source is right."""
    if isinstance(claim.ladder, Ladder):
        yield from _ladder_rows(claim, claim.ladder, power, rng)
        return
    differences = {expected.arm: expected.differences for expected in power.expected}
    for arm in claim.arms:
        expected = differences.get(arm.name, {})
        item_errors = {m: _item_error(claim, power, m) * rng.standard_normal() for m in power.noise if m != "loss"}
        for seed in range(claim.ladder.seeds):
            loss = power.base.get("loss", 2.0) + expected.get("loss", 0.0)
            loss *= 1 + power.noise.get("loss", 0.0) * rng.standard_normal()
            measures = {
                m.name: power.base.get(m.name, 0.0)
                + expected.get(m.name, 0.0)
                + power.noise[m.name] * rng.standard_normal()
                + item_errors[m.name]
                for m in claim.measures
                if m.name in power.noise and (not m.arms or arm.name in m.arms)
            }
            yield replace(simulated_row(arm.name, 0, seed, 1e12, max(loss, 1e-3)), measures=measures)


def _item_error(claim: Claim, power: Power, measure: str) -> float:
    """Standard deviation of one arm's measure over the choice of the items."""
    if measure in power.items:
        return power.items[measure]
    number = max((getattr(m, "num_items", 0) for m in claim.measures if m.name == measure), default=0)
    share = power.base.get(measure, 0.0)
    return math.sqrt(unpaired_variance([share], [1.0], number)) if number else 0.0


def _ladder_rows(claim: Claim, ladder: Ladder, power: Power, rng: np.random.Generator) -> Iterator[Row]:
    """Runs of a power law, 0.73 nats above its floor of 1.32 at the smallest size, exponent 0.22."""
    sizes = ladder.design.sizes if isinstance(ladder.design, FixedRatio) else ladder.design.groups
    x = np.linspace(0, ladder.decades * math.log(10), sizes)
    shifts = _log_multipliers(claim, power, x)
    noise = power.noise.get("loss", 0.006)
    for name in shifts:
        off = power.scatter * rng.standard_normal(sizes)
        for group, log_cost in enumerate(x):
            is_small = log_cost < x[-1] + math.log(SMALL)
            loss = 1.32 + 0.73 * math.exp(-0.22 * (log_cost + shifts[name][group]))
            for seed in range(max(ladder.seeds, ladder.small_seeds) if is_small else ladder.seeds):
                noisy = loss * math.exp(off[group] + noise * rng.standard_normal())
                yield simulated_row(name, group, seed, 1e12 * math.exp(log_cost), noisy)


def _log_multipliers(claim: Claim, power: Power, x: np.ndarray) -> dict[str, np.ndarray]:
    """[s] of each arm against the first, from what the source says of each against its baseline."""
    arms, shifts = claim_arms(claim), dict[str, np.ndarray]()
    expected = {each.arm: each for each in power.expected}
    for arm in arms.names:
        own = np.zeros_like(x)
        if arm in expected:
            own = math.log(expected[arm].compute) + expected[arm].growth * (x - x[-1])
        shifts[arm] = own + (shifts[arms.baselines[arm]] if arm in arms.baselines else 0.0)
    return shifts

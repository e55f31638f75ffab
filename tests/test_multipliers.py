"""Multipliers, exponents and losses of ladders under one floor; their intervals in simulated studies."""

import math
from itertools import pairwise

import numpy as np
import pytest

from isoform.scaling.laws import PowerLaw
from isoform.scaling.multipliers import Ladders
from isoform.scaling.statistics import Exponents, Gains
from isoform.scaling.worlds import LadderDesign, draw_world, simulate, simulated_row

LAW = PowerLaw(scale=2e11, exponent=0.12, floor=0.8)


def rows(law: PowerLaw, *, arm="a", sizes=6, decades=2.0, seeds=3, noise=0.0, seed=0) -> list:
    rng, computes = np.random.default_rng(seed), 1e11 * 10 ** np.linspace(0, decades, sizes)
    return [
        simulated_row(arm, g, s, c, float(law.loss(c)) * math.exp(noise * rng.standard_normal()))
        for g, c in enumerate(computes)
        for s in range(seeds)
    ]


def test_without_noise_laws_floor_and_multipliers_are_recovered():
    laws = {"a": LAW, "b": PowerLaw(LAW.scale / 2, 0.12, 0.8), "c": PowerLaw(1e11, 0.15, 0.8)}
    ladders = Ladders({arm: rows(law, arm=arm) for arm, law in laws.items()}, floor=(0.75, 0.85))
    assert ladders.floor.value == pytest.approx(0.8, abs=0.002) and ladders.notes == []
    for arm, law in laws.items():
        assert ladders.exponent(arm).value == pytest.approx(law.exponent, rel=0.01)
        assert ladders.loss(arm, 1e14).value == pytest.approx(float(law.loss(1e14)), rel=1e-3)
        assert ladders.curve(arm).law.loss(1e12) == pytest.approx(float(law.loss(1e12)), rel=1e-4)
    half, grows = ladders.gain("a", "b"), ladders.gain("a", "c")
    assert half.least.value == pytest.approx(2, rel=1e-2) and half.most.value == pytest.approx(2, rel=1e-2)
    assert half.growth.value == pytest.approx(0, abs=1e-2) and half.scatter < 1e-3
    assert half.loss_change.value == pytest.approx(float(laws["b"].loss(1e13) / LAW.loss(1e13)) - 1, rel=1e-6)
    assert grows.growth.value == pytest.approx(0.25, abs=0.02), "its exponent over the baseline's, less 1"
    crossing = ladders.crossing("a", "c")
    assert crossing is not None and float(LAW.loss(crossing.value)) == pytest.approx(
        float(laws["c"].loss(crossing.value)), rel=1e-2
    )


def test_a_lower_loss_is_a_larger_multiplier_always():
    """At every size, with one baseline, whatever the runs and the floor."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        design = LadderDesign(arms=8, sizes=int(rng.integers(3, 7)), has_floor=bool(rng.integers(2)))
        world = draw_world(design, rng, has_gain=True)
        ladders = Ladders(simulate(world, rng), floor=world.floor)
        gains = [ladders.gain("arm 0", arm) for arm in ladders.arms[1:]]
        for end, size in (("least", 0), ("most", -1)):
            losses = ladders.log_losses[1:, size]
            values = [getattr(gains[i], end).value for i in np.argsort(losses)]
            assert all(better > worse for better, worse in pairwise(values)), (seed, end)


def test_all_arms_of_a_study_have_one_floor():
    ladders = Ladders({arm: rows(LAW, arm=arm, noise=0.004, seed=i) for i, arm in enumerate("abcd")})
    assert len({ladders.curve(arm).law.floor for arm in ladders.arms}) == 1
    assert all(a.floor == b.floor for a, b in zip(*(ladders.curve(arm).replicates for arm in "ab"), strict=True))


@pytest.mark.parametrize(
    "design",
    [
        LadderDesign(has_floor=True),
        LadderDesign(),
        LadderDesign(arms=10, has_floor=True),
        LadderDesign(arms=5, sizes=5, decades=2.0, seeds=2, has_floor=True),
        LadderDesign(sizes=6),
    ],
    ids=str,
)
def test_nine_in_ten_intervals_hold_at_the_designs_of_the_claims(design):
    """400 studies from laws that aren't assumed, with scatter of arm × size; other seeds than those of `fits`."""
    studies = [design.check(np.random.default_rng([7, i])) for i in range(400)]
    for number in ("least", "most", "growth", "loss_change"):
        share = np.mean([study[number].is_held for study in studies])
        assert 0.855 <= share <= 0.95, (number, share)
    false = np.mean([study["false_gain"].is_held for study in studies if "false_gain" in study])
    assert false <= 0.15, "of about 200: 10 % and 2.4 standard errors"


def test_scatter_between_sizes_widens_an_interval_and_is_noted():
    calm, rng = rows(LAW, noise=0.002), np.random.default_rng(1)
    other = rows(LAW, arm="b", noise=0.002, seed=2)
    off = {g: math.exp(0.01 * rng.standard_normal()) for g in range(6)}
    scattered = [
        simulated_row("b", row.group, row.seed, row.compute, (row.loss or 0) * off[row.group]) for row in other
    ]
    quiet, loud = (Ladders({"a": calm, "b": b}).gain("a", "b") for b in (other, scattered))
    widths = [math.log(gain.most.high / gain.most.low) for gain in (quiet, loud)]
    assert widths[1] > 3 * widths[0]
    assert any("scatters about its trend" in note for note in loud.notes)
    assert not any("scatters" in note for note in quiet.notes)


def test_what_a_number_rests_on_is_noted():
    noise = {"noise": 0.002}
    better = Ladders({"a": rows(LAW, **noise), "b": rows(PowerLaw(LAW.scale / 3, 0.12, 0.8), arm="b", seed=1, **noise)})
    assert "times beyond the baseline's largest run" in better.gain("a", "b").notes[0]
    assert better.gain("b", "a").notes == [], "a third of the compute is within the runs"
    straight = Ladders({"a": rows(PowerLaw(2e11, 0.05), sizes=5, noise=1e-4)})
    assert straight.floor.value < 0.2 and "at its bound, 0 nats" in straight.notes[0]


def test_the_level_sets_the_width():
    arms = {"a": rows(LAW, noise=0.004), "b": rows(LAW, arm="b", noise=0.004, seed=1)}
    narrow, wide = (Ladders(arms, level=level).gain("a", "b").most for level in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high


def test_a_size_that_an_arm_lacks_is_left_out_and_noted():
    shorter = [row for row in rows(LAW, arm="b", noise=0.002) if row.group < 5]
    ladders = Ladders({"a": rows(LAW, noise=0.002), "b": shorter})
    assert ladders.groups == [0, 1, 2, 3, 4] and "5 of 6 sizes" in ladders.notes[0]


@pytest.mark.parametrize("floor", [(1.3,), (1.4, 1.3), (-1.0, 1.0), (1.0, 1.1, 1.2)])
def test_bounds_of_a_floor_are_two(floor):
    for statistic in (Gains, Exponents):
        with pytest.raises(ValueError, match="two bounds in nats"):
            statistic(floor=floor)


def test_unsuitable_runs_are_refused():
    arms = {"a": rows(LAW, sizes=6), "b": [row for row in rows(LAW, arm="b") if row.group < 2]}
    with pytest.raises(ValueError, match="2 computes; 1 more would suffice"):
        Ladders(arms)
    with pytest.raises(ValueError, match="isn't below the least loss"):
        Ladders({"a": rows(LAW)}, floor=(3.0, 4.0))

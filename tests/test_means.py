"""Contrasts between means over seeds, paired or not, with the error of the test items."""

import numpy as np
import pytest
from scipy import stats

from isoform.scaling.estimate import Estimate
from isoform.scaling.means import ItemError, contrast, is_paired, spread
from isoform.scaling.worlds import MeansDesign

FIRST, SECOND = {0: 2.0, 1: 2.4, 2: 1.9, 3: 2.2}, {0: 1.7, 1: 2.2, 2: 1.5, 3: 2.0}


def ends(estimate):
    return pytest.approx((estimate.low, estimate.high))


def test_arms_with_the_same_seeds_are_paired():
    estimate = contrast([(1, FIRST), (-1, SECOND)])
    expected = stats.ttest_rel([*FIRST.values()], [*SECOND.values()]).confidence_interval(0.9)
    assert (expected.low, expected.high) == ends(estimate) and estimate.value == pytest.approx(0.275)
    shuffled = dict(reversed(SECOND.items()))
    assert contrast([(1, FIRST), (-1, shuffled)]) == estimate, "by seed, not by order"


def test_arms_with_other_seeds_are_compared_by_welch():
    other = {seed + 10: value for seed, value in SECOND.items()}
    assert not is_paired([FIRST, other]) and is_paired([FIRST, SECOND])
    estimate = contrast([(1, FIRST), (-1, other)], level=0.95)
    expected = stats.ttest_ind([*FIRST.values()], [*other.values()], equal_var=False).confidence_interval(0.95)
    assert (expected.low, expected.high) == ends(estimate)
    fewer = {seed: FIRST[seed] for seed in (0, 1, 2)}
    assert contrast([(1, fewer), (-1, SECOND)]) != contrast([(1, FIRST), (-1, SECOND)])


def test_a_difference_of_differences_is_taken_seed_by_seed():
    arms = [FIRST, SECOND, {0: 1.0, 1: 1.3, 2: 0.8, 3: 1.2}, {0: 0.9, 1: 1.1, 2: 0.9, 3: 1.0}]
    weights = [1, -1, -1, 1]
    estimate = contrast(list(zip(weights, arms, strict=True)))
    changes = [sum(w * arm[seed] for w, arm in zip(weights, arms, strict=True)) for seed in range(4)]
    low, high = stats.t.interval(0.9, 3, np.mean(changes), stats.sem(changes))
    assert (low, high) == ends(estimate)


def test_items_widen_an_interval_and_few_widen_it_more():
    bare = contrast([(1, FIRST)])
    few, many = (contrast([(1, FIRST)], ItemError(0.25 / n, n)) for n in (10, 1000))
    assert bare.high < many.high < few.high
    equal = {0: 0.75, 1: 0.75, 2: 0.75}
    assert contrast([(1, equal)]) == Estimate(0.75, 0.75, 0.75)
    items = contrast([(1, equal)], ItemError(0.75 * 0.25 / 200, 200))
    assert items.high - items.value == pytest.approx(stats.t.ppf(0.95, 199) * (0.75 * 0.25 / 200) ** 0.5)


def test_a_single_seed_has_no_interval():
    assert contrast([(1, {0: 1.5})]).low is None and contrast([(1, FIRST), (-1, {0: 1.0})]).low is None


def test_one_noisy_arm_does_not_speak_for_all():
    arms = [{i: float(v) for i, v in enumerate(np.random.default_rng(a).normal(0, 0.5, 4))} for a in range(9)]
    wild = {i: 8.0 * i for i in range(4)}
    deviations = spread([*arms, wild])
    assert deviations is not None and deviations.middle < 0.8 and deviations.most > 10 and spread([{0: 1.0}]) is None


@pytest.mark.parametrize(
    "design",
    [
        MeansDesign(),
        MeansDesign(seeds=4),
        MeansDesign(arms=4),
        MeansDesign(shares_seeds=False),
        MeansDesign(measure="share", num_items=200),
        MeansDesign(measure="share", num_items=1068),
    ],
    ids=str,
)
def test_nine_in_ten_intervals_hold(design):
    studies = [design.check(np.random.default_rng([8, i])) for i in range(500)]
    for number in design.intervals:
        assert 0.86 <= np.mean([study[number].is_held for study in studies]) <= 0.97, number


def test_answers_that_were_not_kept_make_intervals_wider():
    kept, lost = (MeansDesign(measure="share", num_items=1068, keeps_items=k) for k in (True, False))
    widths = [
        np.median([d.check(np.random.default_rng([9, i]))["change"].half_width for i in range(40)])
        for d in (kept, lost)
    ]
    assert widths[1] > 1.1 * widths[0]

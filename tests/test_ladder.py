"""Ladders: budgets, sizes and the transfer of hyper-parameters."""

import math
from dataclasses import replace

import pytest

from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.parts import Attention, Dense, Experts, Gated
from isoform.model.presets import PRESETS
from isoform.recipe import Recipe, recipe_of
from isoform.scaling.config import SMALL, FixedRatio, IsoFlop, Ladder, MuP, Powers, Unchanged
from isoform.scaling.ladder import LEAST_STEPS, effective_parameters, plan_ladder, resize, scale_rates
from isoform.training.config import AdamW, Muon, Training

BLOCK = BlockConfig(mixer=Attention(num_heads=4))
RECIPE = Recipe(
    model=ModelConfig(model_dim=64, vocab_size=90, decoder=StackConfig(num_layers=4, blocks=(BLOCK,))),
    training=Training(steps=500, global_batch_tokens=1024),
)


@pytest.mark.parametrize("budget", [1e13, 3e14])
@pytest.mark.parametrize("seeds", [(1, 1), (1, 3), (2, 3)])
def test_the_budget_is_spent_and_the_decades_are_covered(budget, seeds):
    ladder = Ladder(budget=budget, decades=2.0, design=FixedRatio(sizes=9), seeds=seeds[0], small_seeds=seeds[1])
    rungs = plan_ladder(RECIPE, ladder)
    assert sum(rung.compute for rung in rungs) == pytest.approx(budget, rel=0.03)
    computes = sorted({rung.group: rung.compute for rung in rungs}.values())
    assert len(computes) == 9
    assert math.log10(computes[-1] / computes[0]) == pytest.approx(2.0, abs=0.05)
    for rung in rungs:
        size_seeds = [r.seed for r in rungs if r.group == rung.group]
        is_small = rung.compute < SMALL * computes[-1]
        assert size_seeds == list(range(seeds[1] if is_small else seeds[0]))
        assert (
            rung.compute
            == 6 * rung.parameters * rung.tokens
            == pytest.approx(6 * effective_parameters(rung.recipe) * rung.tokens)
        )
        assert rung.tokens == rung.recipe.training.steps * rung.recipe.training.global_batch_tokens


def test_tokens_per_parameter_are_near_the_requested_ratio():
    rungs = plan_ladder(RECIPE, Ladder(budget=1e15, decades=2.5, design=FixedRatio(sizes=10, tokens_per_parameter=40)))
    ratios = [rung.tokens / rung.parameters for rung in rungs]
    assert all(10 < ratio < 160 for ratio in ratios)
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) == pytest.approx(40, rel=0.3)
    sizes = [rung.width for rung in rungs]
    assert sizes == sorted(sizes) and len(set(sizes)) >= 4


def test_groups_of_equal_compute_trade_size_for_tokens():
    rungs = plan_ladder(RECIPE, Ladder(budget=3e14, decades=1.0, design=IsoFlop(groups=3, sizes=4, spread=40)))
    for group in range(3):
        members = [rung for rung in rungs if rung.group == group]
        assert len(members) >= 3
        assert max(r.compute for r in members) / min(r.compute for r in members) < 1.1
        assert [r.tokens for r in members] == sorted((r.tokens for r in members), reverse=True)
        assert [r.parameters for r in members] == sorted(r.parameters for r in members)


def test_a_budget_in_minutes_is_the_compute_that_fits_at_the_measured_speed():
    def speed(recipe):
        return 1e9 * recipe.model.model_dim

    ladder = Ladder(minutes=10, decades=1.5, design=FixedRatio(sizes=6))
    rungs = plan_ladder(RECIPE, ladder, speed=speed)
    assert sum(rung.compute / speed(rung.recipe) for rung in rungs) == pytest.approx(600, rel=0.25)


def test_minutes_that_no_speed_meets_are_refused_before_any_is_measured():
    ladder, calls = Ladder(minutes=0.5, decades=2.0, design=FixedRatio(sizes=5)), []

    def speed(recipe):
        calls.append(recipe.model.model_dim)
        return 1e9

    with pytest.raises(ValueError, match=r"minutes=0.5 are too few .* 5 runs, .* at least .* at the measured peak"):
        plan_ladder(RECIPE, ladder, speed=speed, fastest=1e9)
    assert not calls
    with pytest.raises(ValueError, match=r"minutes=0.5 are too few .* about .* here; give more"):
        plan_ladder(RECIPE, ladder, speed=speed, fastest=1e15)
    refused = max(calls)
    calls.clear()
    rungs = plan_ladder(RECIPE, replace(ladder, minutes=1000), speed=speed, fastest=1e15)
    assert max(calls) <= 2 * max(rung.width for rung in rungs) and refused < max(calls)


@pytest.mark.parametrize("minutes", [5, 60, 1000])
@pytest.mark.parametrize("design", [FixedRatio(sizes=6), IsoFlop(groups=3, sizes=4, spread=40)])
def test_a_ladder_takes_its_minutes_at_any_speed(minutes, design):
    def speed(recipe):
        return 2e9 * recipe.model.model_dim**0.5

    ladder = Ladder(minutes=minutes, decades=1.5, design=design)
    rungs = plan_ladder(RECIPE, ladder, speed=speed, fastest=1e12)
    assert sum(rung.compute / speed(rung.recipe) for rung in rungs) == pytest.approx(60 * minutes, rel=0.1)
    assert min(rung.recipe.training.steps for rung in rungs) >= LEAST_STEPS


@pytest.mark.parametrize("width", [16, 32, 48, 128, 256])
def test_a_resized_model_keeps_its_heads_and_its_shape(width):
    block = replace(BLOCK, mixer=Attention(num_heads=4, num_kv_heads=2), feedforward=Gated(feedforward_dim=176))
    recipe = replace(RECIPE, model=replace(RECIPE.model, decoder=StackConfig(num_layers=4, blocks=(block,))))
    model = resize(recipe, width).model
    (sized,) = model.decoder.blocks
    assert model.head_dim(sized.attention) == 16
    assert sized.attention.num_heads == width // 16
    assert sized.attention.num_heads % sized.attention.num_kv_heads == 0
    assert model.decoder.num_layers == max(1, width // 16)
    assert sized.feedforward.feedforward_dim == pytest.approx(176 * width / 64, abs=4)
    assert resize(recipe, width, 0.0).model.decoder.num_layers == 4
    assert resize(recipe, width, 0.5).model.decoder.num_layers == round(4 * (width / 64) ** 0.5)


@pytest.mark.parametrize(("width", "heads"), [(20, 1), (28, 2), (40, 2), (68, 4), (76, 5), (104, 6)])
def test_widths_between_have_whole_heads_of_the_same_width(width, heads):
    model = resize(RECIPE, width).model
    (block,) = model.decoder.blocks
    assert block.attention.num_heads == heads and model.head_dim(block.attention) == 16


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_be_resized(name):
    recipe = recipe_of(
        PRESETS[name].model if PRESETS[name].model.vocab_size else replace(PRESETS[name].model, vocab_size=90)
    )
    half = resize(recipe, recipe.model.model_dim // 2)
    assert effective_parameters(half) < effective_parameters(recipe)


def test_experts_are_resized_as_feed_forwards():
    block = replace(BLOCK, feedforward=Experts(num_experts=4, expert=Dense(feedforward_dim=256)))
    recipe = replace(RECIPE, model=replace(RECIPE.model, decoder=StackConfig(num_layers=2, blocks=(block,))))
    sized = resize(recipe, 32).model.decoder.blocks[0].feedforward
    assert sized.num_experts == 4 and sized.expert.feedforward_dim == 128


def test_maximal_update_scales_adams_matrices_and_nothing_of_muon():
    adam = replace(RECIPE, training=replace(RECIPE.training, optimizer=AdamW(learning_rate=1e-3, weight_decay=0.1)))
    ladder = Ladder(budget=1e14, decades=2.0, transfer=MuP())
    for rung in plan_ladder(adam, ladder):
        optimizer, wider = rung.recipe.training.optimizer, rung.width / 64
        assert optimizer.learning_rate == pytest.approx(1e-3 / wider)
        assert optimizer.embedding_learning_rate == 1e-3
        assert optimizer.learning_rate * optimizer.weight_decay == pytest.approx(1e-4)
    muon = replace(RECIPE, training=replace(RECIPE.training, optimizer=Muon()))
    assert {rung.recipe.training.optimizer for rung in plan_ladder(muon, ladder)} == {Muon()}


def test_powers_move_rate_and_batch_with_compute():
    base = 6 * effective_parameters(RECIPE) * 500 * 1024
    ladder = Ladder(budget=1e15, decades=2.0, transfer=Powers(learning_rate=-0.2, batch=0.5))
    for rung in plan_ladder(RECIPE, ladder):
        times = rung.compute / base
        assert rung.recipe.training.optimizer.learning_rate == pytest.approx(1e-3 * times**-0.2, rel=0.05)
        batch = rung.recipe.training.global_batch_tokens
        assert batch % 128 == 0 and batch == pytest.approx(1024 * times**0.5, abs=70, rel=0.05)


def test_unchanged_is_the_recipes_own():
    for rung in plan_ladder(RECIPE, Ladder(budget=1e14, transfer=Unchanged())):
        assert rung.recipe.training.optimizer == RECIPE.training.optimizer


def test_rates_are_scaled_together():
    adam = scale_rates(AdamW(learning_rate=0.1, embedding_learning_rate=0.4), 0.5)
    assert (adam.learning_rate, adam.embedding_learning_rate) == (0.05, 0.2)
    muon = scale_rates(Muon(learning_rate=0.1, adam=AdamW(learning_rate=0.2)), 0.5)
    assert (muon.learning_rate, muon.adam.learning_rate) == (0.05, 0.1)


def test_a_budget_that_is_too_small_is_refused_with_a_sufficient_one():
    with pytest.raises(ValueError, match=rf"fewer than {LEAST_STEPS} are too few; .* would suffice") as caught:
        plan_ladder(RECIPE, Ladder(budget=3e9, decades=2.0))
    enough = float(str(caught.value).split("too few; ")[1].split(" FLOPs")[0])
    plan_ladder(RECIPE, Ladder(budget=1.02 * enough, decades=2.0))
    with pytest.raises(ValueError, match="too small"):
        plan_ladder(RECIPE, Ladder(budget=0.7 * enough, decades=2.0))


def test_invalid_ladders_are_refused():
    exits = replace(RECIPE.model, decoder=StackConfig(num_layers=4, blocks=(BLOCK,), exits=(2,)))
    with pytest.raises(ValueError, match="early exits"):
        plan_ladder(replace(RECIPE, model=exits), Ladder())
    for wrong in ({"budget": 0}, {"minutes": -1}, {"seeds": 0}, {"decades": -1}):
        with pytest.raises(ValueError, match="must be"):
            Ladder(**wrong)
    with pytest.raises(ValueError, match="sizes=0"):
        FixedRatio(sizes=0)
    with pytest.raises(ValueError, match=r"spread=0\.5"):
        IsoFlop(spread=0.5)

"""From a budget and a recipe to a list of runs: the width sets depth and heads, compute sets the tokens.

Parameters are effective parameters, N = training FLOPs per token / 6, so that C = 6 N D holds exactly, with attention,
head and routed experts included (as in the FLOPs per token of DeepSeek 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from isoform.model.baseline_config import LSTM, Baseline, CausalConvolution, NGramMlp
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.cost import Shape, training_flops
from isoform.model.parts import Attention, Dense, Experts, Gated, LinearRecurrence
from isoform.outside import External
from isoform.recipe import Recipe
from isoform.scaling.config import SMALL, FixedRatio, HeadsKeep, IsoFlop, Ladder, MuP, OneSize, Powers, Unchanged
from isoform.terminal import duration
from isoform.training.config import AdamW, Muon, Optimizer, learning_rate_of

LEAST_STEPS = 20
"""Optimizer steps below which a run doesn't represent its size."""


@dataclass(frozen=True)
class Rung:
    """One run of a ladder."""

    recipe: Recipe
    parameters: float
    """Effective parameters, N."""
    tokens: int
    compute: float
    """Training FLOPs, including those of the run it starts from."""
    group: int
    """Runs of one group have the same compute."""

    @property
    def width(self) -> int:
        return self.recipe.model.model_dim

    @property
    def num_layers(self) -> int:
        """Blocks of all stacks."""
        model = self.recipe.model
        return sum(stack.num_layers for stack in model.stacks) if isinstance(model, ModelConfig) else model.num_layers

    @property
    def seed(self) -> int:
        return self.recipe.seed


def plan_ladder(
    recipe: Recipe, ladder: Ladder, *, speed: Callable[[Recipe], float] | None = None, fastest: float = math.inf
) -> list[Rung]:
    """The runs of a ladder, in order of compute; the recipe's vocabulary must be filled in.

    speed: from a recipe to its FLOPs per second here, used if the ladder's budget is in minutes; fastest: what no
    recipe exceeds, so that minutes which are hopelessly few are refused before `speed` is called. Raises ValueError for
    a budget that is too small, with a sufficient one, and for a recipe that can't be resized.
    """
    if recipe.start:
        raise ValueError(f"a ladder resizes the model, which then can't start from {recipe.start}; leave start out")
    if recipe.data.rows == "bucketed":
        raise ValueError("a ladder computes FLOPs for rows of one length; set data.rows to packed")
    most = _most_compute(recipe, ladder, speed, fastest)
    rungs = _rungs(recipe, ladder, most)
    if (short := _shortest(rungs)) < LEAST_STEPS:
        enough = most
        while _shortest(_rungs(recipe, ladder, enough)) < LEAST_STEPS:
            enough *= 1.25
        spent, needed = (sum(rung.compute for rung in _rungs(recipe, ladder, top)) for top in (most, enough))
        raise ValueError(
            f"the budget of {spent:.2g} FLOPs is too small for this ladder: its shortest run would take {short} steps, "
            f"and fewer than {LEAST_STEPS} are too few; {needed:.2g} FLOPs would suffice, or fewer decades, or a "
            f"smaller training.global_batch_tokens"
        )
    return rungs


def _shortest(rungs: Sequence[Rung]) -> int:
    return min(rung.recipe.training.steps for rung in rungs)


def _rungs(recipe: Recipe, ladder: Ladder, most: float) -> list[Rung]:
    """The runs of a ladder whose largest has `most` FLOPs."""
    rungs = []
    for group, compute in enumerate(_computes(ladder, most)):
        seeds = _num_seeds(ladder, compute / most)
        widths: set[int] = set()
        for ratio in _ratios(ladder):
            sized = _nearest_size(recipe, ladder, _parameters(compute, ratio))
            if sized.model.model_dim in widths:
                continue
            widths.add(sized.model.model_dim)
            rungs += [_rung(recipe, sized, ladder, compute, group, recipe.seed + i) for i in range(seeds)]
    return rungs


def plan_one_size(recipe: Recipe, size: OneSize, flops_per_step: float, tokens_per_step: float) -> list[Rung]:
    """The recipe as written, once for each seed; a stated compute scales its steps, and with them those of the warm-up
    and between checkpoints."""
    training, schedule = recipe.training, recipe.training.schedule
    full_steps = training.steps if size.compute is None else size.compute / flops_per_step
    if (steps := max(1, round(size.share * full_steps))) != training.steps:
        times = steps / training.steps
        schedule = replace(schedule, warmup_steps=round(schedule.warmup_steps * times))
        every = math.ceil(training.checkpoint_every * times)
        training = replace(training, steps=steps, schedule=schedule, checkpoint_every=every)
    compute, tokens = training.steps * flops_per_step, round(training.steps * tokens_per_step)
    run = replace(recipe, training=training, expected_loss=None)
    return [
        Rung(replace(run, seed=recipe.seed + i), compute / tokens / 6, tokens, compute, 0) for i in range(size.seeds)
    ]


def continue_from(start: Rung, rung: Rung) -> Rung:
    """A rung as the continuation of another, whose compute and tokens are added."""
    return replace(rung, compute=start.compute + rung.compute, tokens=start.tokens + rung.tokens)


def split_rung(recipe: Recipe, ladder: Ladder, whole: Rung, share: float) -> tuple[Rung, Rung]:
    """A rung split in two: a run with `share` of its compute, and one of `recipe` at its width that continues from it
    with the rest."""
    seed = whole.recipe.seed
    first = _with_compute(whole.recipe, share * whole.compute, whole.group, seed, warmup_factor=share)
    sized = _resize_to(recipe, ladder, whole.width)
    second = _rung(recipe, sized, ladder, (1 - share) * whole.compute, whole.group, seed)
    return first, continue_from(first, second)


def effective_parameters(recipe: Recipe) -> float:
    """N: training FLOPs per token / 6."""
    length = recipe.row_length
    return training_flops(recipe.model, Shape(1, length, recipe.source_length or 0)) / length / 6


def _computes(ladder: Ladder, most: float) -> Sequence[float]:
    """The compute of each group, in increasing order."""
    count = ladder.design.sizes if isinstance(ladder.design, FixedRatio) else ladder.design.groups
    if count == 1:
        return [most]
    return [most * 10 ** (ladder.decades * (i / (count - 1) - 1)) for i in range(count)]


def _ratios(ladder: Ladder) -> Sequence[float]:
    """Tokens per parameter of a group's runs, in order of model size."""
    match ladder.design:
        case FixedRatio(tokens_per_parameter=ratio):
            return [ratio]
        case IsoFlop(sizes=sizes, tokens_per_parameter=ratio, spread=spread):
            middle = (sizes - 1) / 2
            return [ratio * spread ** ((middle - i) / max(1, sizes - 1)) for i in range(sizes)]
        case _:
            assert_never(ladder.design)


def _most_compute(recipe: Recipe, ladder: Ladder, speed: Callable[[Recipe], float] | None, fastest: float) -> float:
    """The compute of the largest run for which the whole ladder costs its budget."""
    if ladder.minutes is None:
        return ladder.budget / sum(share for share, _ in _shares(ladder))
    assert speed is not None, "a budget in minutes needs a measured speed"
    budget, low = 60 * ladder.minutes, _least_compute(recipe, ladder)
    flops = low * sum(share for share, _ in _shares(ladder))
    if flops > budget * fastest:
        raise _too_few_minutes(ladder, flops, f"at least {duration(flops / fastest)} at the measured peak")
    if (needed := _seconds(recipe, ladder, low, speed)) > budget:
        raise _too_few_minutes(ladder, flops, f"about {duration(needed)} here")
    high = 2 * low
    while _seconds(recipe, ladder, high, speed) < budget:  # from below: no model is measured that is much too large
        low, high = high, 2 * high
    while high / low > 1.001:  # bisection in the logarithm: time grows with the largest run's compute
        most = math.sqrt(low * high)
        low, high = (most, high) if _seconds(recipe, ladder, most, speed) < budget else (low, most)
    return low


def _seconds(recipe: Recipe, ladder: Ladder, most: float, speed: Callable[[Recipe], float]) -> float:
    """The time of a ladder whose largest run has `most` FLOPs."""
    runs = [(share * most, _parameters(share * most, ratio)) for share, ratio in _shares(ladder)]
    return sum(compute / speed(_nearest_size(recipe, ladder, parameters)) for compute, parameters in runs)


def _too_few_minutes(ladder: Ladder, flops: float, time: str) -> ValueError:
    return ValueError(
        f"minutes={ladder.minutes:g} are too few for this ladder: its {len([*_shares(ladder)])} runs, the shortest of "
        f"{LEAST_STEPS} steps, are {flops:.2g} FLOPs, {time}; give more, or fewer decades, or a smaller "
        f"training.global_batch_tokens"
    )


def _least_compute(recipe: Recipe, ladder: Ladder) -> float:
    """The compute of the largest run in the smallest ladder whose shortest run has LEAST_STEPS, within 5 %."""
    tokens = LEAST_STEPS * recipe.training.global_batch_tokens
    low = high = max((6 * tokens) ** 2 / (6 * ratio * share) for share, ratio in _shares(ladder)) / 16
    while _shortest(_rungs(recipe, ladder, high)) < LEAST_STEPS:
        low, high = high, 2 * high
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        is_enough = _shortest(_rungs(recipe, ladder, middle)) >= LEAST_STEPS
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def _parameters(compute: float, ratio: float) -> float:
    """Effective parameters of a run with so many tokens per parameter: C = 6 N D, D = r N."""
    return math.sqrt(compute / (6 * ratio))


def _num_seeds(ladder: Ladder, share: float) -> int:
    """Number of seeds of a run with `share` of the largest run's compute."""
    return ladder.seeds if share > SMALL * (1 + 1e-9) else max(ladder.seeds, ladder.small_seeds)


def _shares(ladder: Ladder) -> Iterator[tuple[float, float]]:
    """For each run of each seed: its compute as a fraction of the largest run's, and its tokens per parameter."""
    for compute in _computes(ladder, 1.0):
        seeds = _num_seeds(ladder, compute)
        for ratio in _ratios(ladder):
            yield from [(compute, ratio)] * seeds


def _rung(base: Recipe, sized: Recipe, ladder: Ladder, compute: float, group: int, seed: int) -> Rung:
    """A resized recipe with its steps, learning rates and seed; the warm-up keeps its share of the steps."""
    moved = _transfer(base, sized, ladder, compute)
    steps = compute / (6 * effective_parameters(sized) * moved.training.global_batch_tokens)
    return _with_compute(moved, compute, group, seed, warmup_factor=steps / base.training.steps)


def _with_compute(recipe: Recipe, compute: float, group: int, seed: int, *, warmup_factor: float) -> Rung:
    """A resized recipe with the steps for its compute; warmup_factor: scales the steps of the warm-up."""
    count, training = effective_parameters(recipe), recipe.training
    batch, schedule = training.global_batch_tokens, training.schedule
    steps = max(1, round(compute / (6 * count * batch)))
    training = replace(
        training,
        steps=steps,
        schedule=replace(schedule, warmup_steps=round(schedule.warmup_steps * warmup_factor)),
        validate_every=0,
        sample_every=0,
        checkpoint_every=max(1, steps // 8),
        keep_checkpoints=training.average_checkpoints,
        log_every=max(1, steps // 100),
    )
    run = replace(recipe, training=training, seed=seed, expected_loss=None)
    return Rung(run, count, steps * batch, 6 * count * steps * batch, group)


def _transfer(base: Recipe, sized: Recipe, ladder: Ladder, compute: float) -> Recipe:
    """The resized recipe with hyper-parameters transferred to its width or compute."""
    training = sized.training
    match ladder.transfer:
        case Unchanged():
            return sized
        case MuP():
            wider = sized.model.model_dim / base.model.model_dim
            return replace(sized, training=replace(training, optimizer=_for_width(training.optimizer, wider)))
        case Powers(learning_rate=rate, batch=batch):
            base_tokens = base.training.global_batch_tokens * base.training.steps
            times = compute / (6 * effective_parameters(base) * base_tokens)
            length = sized.row_length
            tokens = max(1, round(training.global_batch_tokens * times**batch / length)) * length
            optimizer = scale_rates(training.optimizer, times**rate)
            return replace(sized, training=replace(training, optimizer=optimizer, global_batch_tokens=tokens))
        case _:
            assert_never(ladder.transfer)


def _for_width(optimizer: Optimizer, wider: float) -> Optimizer:
    """Yang et al. 2022, table 8: the rate of matrices falls as 1 / width, that of embeddings and vectors stays."""
    match optimizer:
        case AdamW(learning_rate=rate, embedding_learning_rate=tables):
            return replace(
                optimizer,
                learning_rate=rate / wider,
                embedding_learning_rate=rate if tables is None else tables,
                weight_decay=optimizer.weight_decay * wider,
            )
        case Muon():
            return optimizer
        case External(name=name):
            raise ValueError(
                f"nothing tells how the rates of {name} depend on the width; set another --ladder.transfer"
            )
        case _:
            assert_never(optimizer)


def scale_rates(optimizer: Optimizer, factor: float) -> Optimizer:
    """The optimizer with all its learning rates times a factor."""
    rate = learning_rate_of(optimizer) * factor
    match optimizer:
        case AdamW(embedding_learning_rate=tables):
            return replace(
                optimizer, learning_rate=rate, embedding_learning_rate=None if tables is None else tables * factor
            )
        case Muon(adam=adam):
            scaled = scale_rates(adam, factor)
            assert isinstance(scaled, AdamW)
            return replace(optimizer, learning_rate=rate, adam=scaled)
        case External(options=options):
            return replace(optimizer, options={**options, "lr": rate})
        case _:
            assert_never(optimizer)


def _nearest_size(recipe: Recipe, ladder: Ladder, target: float) -> Recipe:
    """The recipe at the width whose parameters are nearest to `target`, on a logarithmic scale."""

    def sized(multiple: int) -> Recipe:
        return _resize_to(recipe, ladder, multiple * ladder.width_step)

    low, high = 1, 2
    while effective_parameters(sized(high)) < target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if effective_parameters(sized(middle)) < target else (low, middle)
    return min(sized(low), sized(high), key=lambda recipe: abs(math.log(effective_parameters(recipe) / target)))


def _resize_to(recipe: Recipe, ladder: Ladder, width: int) -> Recipe:
    return resize(recipe, width, ladder.depth_exponent, ladder.heads_keep)


def resize(recipe: Recipe, width: int, depth_exponent: float = 1.0, heads_keep: HeadsKeep = "width") -> Recipe:
    """The recipe at another width: heads keep their width or their number, layers scale as a power of the width, stated
    feed-forward widths keep their ratio.

    Raises ValueError for early exits, since they refer to layers that may no longer exist.
    """
    model = recipe.model
    times = width / model.model_dim
    if not isinstance(model, ModelConfig):
        return replace(recipe, model=_resize_baseline(model, width, times**depth_exponent))

    encoder, decoder = (
        None if stack is None else _resize_stack(model, stack, width, depth_exponent, heads_keep)
        for stack in (model.encoder, model.decoder)
    )
    return replace(recipe, model=replace(model, model_dim=width, encoder=encoder, decoder=decoder))


def _resize_stack(
    model: ModelConfig, stack: StackConfig, width: int, depth_exponent: float, heads_keep: HeadsKeep
) -> StackConfig:
    if stack.exits:
        raise ValueError("a ladder can't resize a model with early exits, which refer to its layers; leave exits out")
    layers = stack.num_layers * (width / model.model_dim) ** depth_exponent
    blocks = tuple(_resize_block(model, block, width, heads_keep) for block in stack.blocks)
    return replace(stack, num_layers=max(1, round(layers)), blocks=blocks)


def _resize_baseline(model: Baseline, width: int, deeper: float) -> Baseline:
    """A baseline at another width; a convolution keeps at least the layers that its receptive field needs."""
    layers = max(1, round(model.num_layers * deeper))
    match model:
        case LSTM():
            return replace(model, model_dim=width, num_layers=layers)
        case CausalConvolution(feedforward_dim=inner):
            layers = max(layers, model.least_layers)
            inner = _scaled(inner, width / model.model_dim)
            return replace(model, model_dim=width, num_layers=layers, feedforward_dim=inner)
        case NGramMlp(feedforward_dim=inner):
            inner = _scaled(inner, width / model.model_dim)
            return replace(model, model_dim=width, num_layers=layers, feedforward_dim=inner)
        case _:
            assert_never(model)


def _scaled(inner: int | None, times: float) -> int | None:
    """A stated inner width times a factor, as a multiple of 8."""
    return None if inner is None else max(8, round(inner * times / 8) * 8)


def _resize_block(model: ModelConfig, block: BlockConfig, width: int, heads_keep: HeadsKeep) -> BlockConfig:
    times = width / model.model_dim
    resize_heads = _more_heads if heads_keep == "width" else _wider_heads
    mixer, feedforward = block.mixer, block.feedforward
    if isinstance(mixer, Attention):
        mixer = resize_heads(mixer, model.head_dim(mixer), times)
    elif isinstance(mixer, LinearRecurrence):
        mixer = replace(mixer, state_dim=_scaled(mixer.state_dim, times))
    if isinstance(feedforward, Experts):
        feedforward = replace(feedforward, expert=_resize_feedforward(feedforward.expert, times))
    elif feedforward is not None:
        feedforward = _resize_feedforward(feedforward, times)
    return replace(block, mixer=mixer, feedforward=feedforward)


def _more_heads(attention: Attention, head_dim: int, times: float) -> Attention:
    """The number of heads scaled with the model's width, each as wide as before, in groups that divide it."""
    heads = max(1, round(attention.num_heads * times))
    groups = attention.num_heads // (attention.num_kv_heads or attention.num_heads)
    keys = None if attention.num_kv_heads is None else max(1, heads // groups)
    if attention.num_kv_heads == 1:
        keys = 1  # multi-query at every size
    while keys is not None and heads % keys:
        keys -= 1
    return replace(attention, num_heads=heads, num_kv_heads=keys, head_dim=head_dim)


def _wider_heads(attention: Attention, head_dim: int, times: float) -> Attention:
    """The same number of heads, of even width, since rotary positions rotate pairs."""
    return replace(attention, head_dim=max(2, round(head_dim * times / 2) * 2))


def _resize_feedforward(feedforward: Dense | Gated, times: float) -> Dense | Gated:
    return replace(feedforward, feedforward_dim=_scaled(feedforward.feedforward_dim, times))

"""The training loop: batch, forward and backward, clip, update, log, validate, sample, save.

There is no callback class: what varies is passed as functions. Each step reseeds torch from (seed, step), so that a
run continued from a checkpoint has the same random draws as an uninterrupted one. A run that is to stop is saved at
once: the validation and the sample due at its last step then come first when it continues.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from isoform.batch import Batch, GlobalBatch
from isoform.machine import Machine
from isoform.model.auxiliary import add_up
from isoform.model.experts import update_load_biases
from isoform.objectives.losses import Loss
from isoform.training.config import Training
from isoform.training.optimizer import schedule_factor

T = TypeVar("T")


class Diverged(ValueError):
    """A loss or gradient that isn't finite, before the optimizer changes the weights; or a weight after it has."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step


class Interrupted(Exception):
    """Validation or a sample ended early, since the run is to stop."""


def until_stopped(items: Iterable[T], should_stop: Callable[[], bool]) -> Iterator[T]:
    """The items. Raises Interrupted instead of returning the next one as soon as should_stop() is true."""
    for item in items:
        if should_stop():
            raise Interrupted
        yield item


@dataclass
class Progress:
    """The progress of a run. Times are of training only, without validation, samples and saving."""

    step: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    is_scored: bool = True
    """Whether the validation and the sample due at this step are done."""

    def advance(self, batch: GlobalBatch, seconds: float) -> None:
        """Count a step."""
        self.step += 1
        self.tokens_seen += sum(b.targets.numel() for b in batch.micro_batches)
        self.train_seconds += seconds


def train_loop(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    config: Training,
    *,
    batches: Callable[[int], GlobalBatch],
    loss: Callable[[Batch], Loss],
    machine: Machine,
    seed: int,
    progress: Progress,
    log: Callable[[dict[str, float | int]], None],
    validate: Callable[[], dict[str, float]],
    sample: Callable[[], None],
    save: Callable[[], None],
    should_stop: Callable[[], bool],
) -> None:
    """Train from progress.step to config.steps, updating `progress` in place; returns early on should_stop.

    batches(step) returns the rows of a step; loss(batch) sums over a batch; log receives a line of metrics; `validate`
    and `sample` may raise Interrupted; `save` is called whenever a checkpoint is due, and before an early return.
    Raises Diverged if loss or gradients are not finite.
    """
    rates = _Rates(progress)
    gc.collect()
    gc.disable()  # reference counting frees tensors; the cycle collector would only pause steps
    try:
        while progress.step < config.steps or not progress.is_scored:
            if progress.is_scored:
                step, start = progress.step, time.perf_counter()
                model.train()
                machine.seed(hash((seed, step)) % 2**63)
                batch = batches(step)
                sums = _forward_backward(batch, loss, machine)
                norm = _clip([*model.parameters()], config.clip_norm)
                _check_finite(step, norm, sums.nats, batch.weight)
                factor = schedule_factor(config.schedule, step, config.steps)
                _update(optimizers, factor, sums.loads)
                is_logged = step + 1 in (1, config.steps) or (step + 1) % config.log_every == 0
                if is_logged:
                    machine.synchronize()
                progress.advance(batch, time.perf_counter() - start)
                if is_logged:
                    log({**_metrics(progress, batch.weight, sums, norm, factor), **rates.update(progress)})
            validates, samples, saves = _due(config, progress.step)
            progress.is_scored, stops = not (validates or samples), should_stop()
            if not stops:
                try:
                    if validates:
                        log({"step": progress.step, **validate()})
                    if samples:
                        sample()
                    progress.is_scored = True
                except Interrupted:
                    stops = True
            if saves or stops:
                save()
            if stops:
                return
    finally:
        gc.enable()


def _due(config: Training, step: int) -> tuple[bool, bool, bool]:
    """Whether validation, a sample and a checkpoint are due after this many steps; at the end all are."""
    intervals = config.validation_interval, config.sample_every, config.checkpoint_every
    validates, samples, saves = (step == config.steps or (every > 0 and step % every == 0) for every in intervals)
    return validates, samples, saves


@dataclass
class _Sums:
    """Sums over the micro-batches of a step, as `Loss` has them."""

    nats: Tensor
    parts: dict[str, Tensor]
    counts: dict[str, Tensor]
    loads: dict[nn.Module, Tensor]


def _forward_backward(batch: GlobalBatch, loss: Callable[[Batch], Loss], machine: Machine) -> _Sums:
    """Accumulate the gradients of the mean loss of a global batch."""
    sums = _Sums(torch.zeros((), device=machine.device), {}, {}, {})
    for micro_batch in batch.micro_batches:
        with torch.autocast(machine.device.type, machine.dtype, enabled=machine.uses_autocast):
            result = loss(micro_batch.to(machine.device))
        (result.total / batch.weight).backward()
        sums.nats += result.nats
        add_up(sums.parts, result.parts)
        add_up(sums.counts, result.counts)
        add_up(sums.loads, result.loads)
    return sums


def _clip(parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Clip the gradients in place; returns their norm before that."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if clip_norm is not None and float(norm) > clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def _check_finite(step: int, norm: Tensor, nats: Tensor, weight: float) -> None:
    """Raises Diverged if the gradient norm isn't finite."""
    if not math.isfinite(float(norm)):
        raise Diverged(
            step + 1,
            f"the gradient norm is {float(norm)}, loss {float(nats) / weight:.4g}; "
            f"the weights are unchanged. Lower the learning rate or lengthen the warm-up",
        )


def check_finite(step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raises Diverged naming the first tensor, of groups of named ones, that has a value which isn't finite."""
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
                raise Diverged(
                    step,
                    f"the tensor {name} of the {group} has NaN or infinite values, so that no checkpoint "
                    f"is made of it; earlier ones are kept. Lower the learning rate or raise the optimizer's epsilon",
                )


def _update(optimizers: list[torch.optim.Optimizer], factor: float, loads: dict[nn.Module, Tensor]) -> None:
    """One step of all optimizers, with `factor` of their peak learning rates, and of the biases that balance loads."""
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        o.step()
        increment_version([p for group in o.param_groups for p in group["params"]])  # which fused ones leave to us
        o.zero_grad(set_to_none=True)
    update_load_biases(loads)


def _metrics(progress: Progress, weight: float, sums: _Sums, norm: Tensor, factor: float) -> dict[str, float | int]:
    """The line of metrics of a step, but for the rates."""
    return {
        "step": progress.step,
        "loss": float(sums.nats) / weight,
        "learning_rate_factor": factor,
        "gradient_norm": float(norm),
        **{name: float(value) / weight for name, value in sums.parts.items()},
        **{name: int(value) for name, value in sums.counts.items()},
        **_largest_load(sums.loads),
        "tokens_seen": progress.tokens_seen,
    }


def _largest_load(loads: dict[nn.Module, Tensor]) -> dict[str, float]:
    """The load of the most loaded expert, as a multiple of the mean load; empty for models without experts."""
    largest = [float(load.max() / load.mean()) for load in loads.values()]
    return {"experts_load_max": max(largest)} if largest else {}


class _Rates:
    """Rates since the last line of metrics."""

    def __init__(self, progress: Progress) -> None:
        self.tokens, self.seconds = progress.tokens_seen, progress.train_seconds

    def update(self, progress: Progress) -> dict[str, float]:
        tokens, seconds = progress.tokens_seen - self.tokens, progress.train_seconds - self.seconds
        self.tokens, self.seconds = progress.tokens_seen, progress.train_seconds
        return {"tokens_per_second": tokens / seconds, "train_seconds": progress.train_seconds}

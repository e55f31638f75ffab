"""The loop, top to bottom: batch, forward and backward, clip, step, note, look, keep.

No callbacks: what varies comes in as function arguments. Each step reseeds torch from (seed, step), so a
run continued from a checkpoint draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from isoform.batch import Batch, GlobalBatch
from isoform.machine import Machine
from isoform.model.auxiliary import add_up
from isoform.model.experts import update_load_biases
from isoform.objectives.losses import Loss
from isoform.training.config import Training
from isoform.training.optimizer import schedule_factor


class Diverged(ValueError):
    """A loss or gradient that is no longer finite; raised before the optimizer touches the weights."""


@dataclass
class Progress:
    """How far a run is. Times are of training alone: validation, samples and saving are left out."""

    step: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0


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
    note: Callable[[dict[str, float | int]], None],
    validate: Callable[[], dict[str, float]],
    sample: Callable[[], None],
    save: Callable[[], None],
    should_stop: Callable[[], bool],
) -> None:
    """Train from progress.step to config.steps, updating `progress` in place; returns early on should_stop.

    batches(step) gives the rows of a step; loss(batch) sums over a batch; note takes a line of metrics; `save` is
    called whenever a checkpoint is due, and before an early return. Raises Diverged when loss or gradients are not
    finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for group in (group for o in optimizers for group in o.param_groups):
        group.setdefault("initial_lr", group["lr"])
    since = _Window(progress)
    gc.collect()
    gc.disable()  # reference counting frees tensors; the cycle collector would only pause steps
    try:
        while progress.step < config.steps:
            step, started = progress.step, time.perf_counter()
            model.train()
            machine.seed(hash((seed, step)) % 2**63)
            batch = batches(step)
            nats, parts, counts, loads = torch.zeros((), device=machine.device), {}, {}, {}
            for micro_batch in batch.micro_batches:
                with torch.autocast(machine.device.type, machine.dtype, enabled=machine.uses_autocast):
                    result = loss(micro_batch.to(machine.device))
                (result.total / batch.weight).backward()
                nats += result.nats
                for sums, values in ((parts, result.parts), (counts, result.counts), (loads, result.loads)):
                    add_up(sums, values)
            norm = _clip(parameters, config.clip_norm)
            is_logged = step == 0 or (step + 1) % config.log_every == 0 or step + 1 == config.steps
            if not math.isfinite(float(norm)):
                raise Diverged(
                    f"step {step + 1}: the gradient norm is {float(norm)}, loss {float(nats) / batch.weight:.4g}; "
                    f"no weights were changed by it. Lower the learning rate or lengthen the warm-up"
                )
            factor = schedule_factor(config.schedule, step, config.steps)
            for o in optimizers:
                for group in o.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                o.step()
                o.zero_grad(set_to_none=True)
            update_load_biases(loads)
            if is_logged:
                machine.synchronize()
            progress.step += 1
            progress.tokens_seen += sum(b.targets.numel() for b in batch.micro_batches)
            progress.train_seconds += time.perf_counter() - started
            if is_logged:
                note(
                    {
                        "step": progress.step,
                        "loss": float(nats) / batch.weight,
                        "learning_rate_factor": factor,
                        "gradient_norm": float(norm),
                        **{name: float(value) / batch.weight for name, value in parts.items()},
                        **{name: int(value) for name, value in counts.items()},
                        **_heaviest(loads),
                        "tokens_seen": progress.tokens_seen,
                        **since.rates(progress),
                    }
                )
            is_last, stops = progress.step == config.steps, should_stop()
            if is_last or (config.validate_every and progress.step % config.validate_every == 0):
                note({"step": progress.step, **validate()})
            if is_last or (config.sample_every and progress.step % config.sample_every == 0):
                sample()
            if is_last or stops or (config.checkpoint_every and progress.step % config.checkpoint_every == 0):
                save()
            if stops:
                return
    finally:
        gc.enable()


def _clip(parameters: list[nn.Parameter], clip_norm: float | None) -> torch.Tensor:
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if clip_norm is not None and float(norm) > clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def _heaviest(loads: dict[nn.Module, torch.Tensor]) -> dict[str, float]:
    """The most loaded expert of the step, as a multiple of its even share; nothing for models without experts."""
    heaviest = [float(load.max() / load.mean()) for load in loads.values()]
    return {"experts_load_max": max(heaviest)} if heaviest else {}


class _Window:
    """Rates since the last line."""

    def __init__(self, progress: Progress) -> None:
        self.tokens, self.seconds = progress.tokens_seen, progress.train_seconds

    def rates(self, progress: Progress) -> dict[str, float]:
        tokens, seconds = progress.tokens_seen - self.tokens, progress.train_seconds - self.seconds
        self.tokens, self.seconds = progress.tokens_seen, progress.train_seconds
        return {"tokens_per_second": tokens / seconds, "train_seconds": progress.train_seconds}

"""Losses over whole splits, streamed: nothing is kept but sums."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from isoform.batch import Batch
from isoform.machine import Machine
from isoform.model.baselines import BaselineModel
from isoform.model.config import Model, ModelConfig, Pooled
from isoform.model.experts import Tally
from isoform.model.transformer import Transformer
from isoform.objectives.losses import likeness, target_losses
from isoform.objectives.views import View


@dataclass(frozen=True)
class Score:
    """loss: nats per target, or of numbers the mean squared error; bits_per_byte: over the bytes of the targets (None
    if they have none); accuracy: how often the most probable answer is right (None of numbers); exact: of how many
    segments every piece is, which is what greedy decoding gets right (None where it wasn't asked for)."""

    loss: float
    bits_per_byte: float | None
    accuracy: float | None
    exact: float | None
    num_targets: int


def apply(model: Transformer | BaselineModel, view: View, batch: Batch, tally: Tally | None = None) -> Tensor:
    """Logits (B, T, V) of a batch under an objective's masks; the tally takes what training needs beside them."""
    return model(batch.inputs, view.inputs_mask, batch.source, view.source_mask, tally)


MOSTLY = 0.9
"""Part of a batch's places that count, from which scoring the others too costs less than picking these out."""


def share_scored(config: Model, weights: Tensor) -> float:
    """The part of places with these loss weights (B, T) that the head scores: those that count if they are few, unless
    it looks at a segment as a whole, or other answers are scored beside these."""
    if not isinstance(config, ModelConfig) or isinstance(config.head, Pooled):
        return 1.0
    share = float((weights > 0).float().mean())
    return 1.0 if share >= MOSTLY or config.stacks[-1].exits or config.stacks[-1].ahead else share


def answers(
    model: Transformer | BaselineModel, view: View, batch: Batch, tally: Tally | None = None, *, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V) of a batch with their targets and weights (B, T); of contrasts those of one row.

    Where few places count only those are scored, as one row, unless it is to be `whole`.
    """
    if view.temperature is None:
        targets, weights = batch.targets, batch.loss_weights
        if whole or not isinstance(model, Transformer) or share_scored(model.config, weights) == 1:
            return apply(model, view, batch, tally), targets, weights
        hidden = model.hidden(batch.inputs, view.inputs_mask, batch.source, view.source_mask, tally)
        hidden, targets, weights = (t[batch.loss_weights > 0].unsqueeze(0) for t in (hidden, targets, weights))
        return model.logits(hidden), targets, weights
    assert batch.source is not None
    one = model(batch.inputs, view.inputs_mask, tally=tally)[batch.loss_weights > 0]
    there = batch.source.coordinates
    first = ((there.index == 0) & (there.segment >= 0)).expand(batch.source.ids.shape)
    return likeness(one, model(batch.source, view.source_mask, tally=tally)[first], view.temperature)


@torch.inference_mode()
def evaluate(
    model: Transformer | BaselineModel,
    view: View,
    batches: Iterable[tuple[Batch, int]],
    machine: Machine,
    *,
    by_segment: bool = False,
) -> Score:
    """Cross-entropy of every target of a split once; `batches` come with the bytes of their targets.

    Raises ValueError where there is no target at all.
    """
    model.eval()
    nats = correct = torch.zeros((), dtype=torch.float64)
    weight, num_bytes, exact, num_segments, is_number = 0.0, 0, 0, 0, False
    for batch, batch_bytes in batches:
        batch = batch.to(machine.device)
        with torch.autocast(machine.device.type, machine.dtype, enabled=machine.uses_autocast):
            logits, targets, weights = answers(model, view, batch, whole=by_segment)
        nats = nats + (target_losses(logits, targets) * weights).sum().double().cpu()
        is_number = is_number or targets.is_floating_point()
        is_right = logits.argmax(-1) == targets
        correct = correct + (is_right * weights).sum().double().cpu()
        weight += float(weights.sum())
        num_bytes += batch_bytes
        if by_segment:
            right, there = _whole_segments(is_right, batch)
            exact, num_segments = exact + right, num_segments + there
    if weight == 0:
        raise ValueError("there is nothing to evaluate: the text has no piece to predict; give a longer one")
    total = float(nats)
    return Score(
        total / weight,
        total / math.log(2) / num_bytes if num_bytes else None,
        None if is_number else float(correct) / weight,
        exact / num_segments if num_segments else None,
        round(weight),
    )


def _whole_segments(is_right: Tensor, batch: Batch) -> tuple[int, int]:
    """How many segments have every counted piece right, and how many there are."""
    segment, counts = batch.inputs.coordinates.segment, batch.loss_weights > 0
    rows = torch.arange(len(segment), device=segment.device).unsqueeze(1) * (int(segment.max()) + 1)
    key = (rows + segment)[counts]
    wrong = torch.zeros(int(key.max()) + 1, device=key.device).index_add_(0, key, (~is_right[counts]).float())
    present = key.unique()
    return int((wrong[present] == 0).sum()), len(present)

"""A task is an objective applied to a model: which logits are scored against which targets, and the loss of a batch.

An objective is configured in config.py, reads records by its view in views.py, and has its case in `build_task` here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from isoform.batch import Batch
from isoform.model.auxiliary import Auxiliary
from isoform.model.baseline_config import Model, as_transformer
from isoform.model.config import ModelConfig, Pooled, StackConfig
from isoform.model.network import Network
from isoform.model.recording import recorder_of
from isoform.objectives.config import (
    Causal,
    Classification,
    Contrastive,
    DenoiserMixture,
    Distillation,
    Masked,
    Objective,
    Prefix,
    Regression,
    Seq2seq,
    SpanCorruption,
    Tagging,
    TokenRegression,
    WithCrossEntropy,
)
from isoform.objectives.losses import (
    Loss,
    contrastive_logits,
    distillation_loss,
    weighted_cross_entropy,
    weighted_squared_error,
)
from isoform.objectives.views import View

NO_TEACHER = "distillation needs a teacher; name a run or a folder with objective.teacher"
DENSE_FROM = 0.9
"""Fraction of counted targets from which scoring all targets of a batch costs less than gathering the counted ones."""


class Scored(NamedTuple):
    """Logits (B, T, V) with their targets (B, T) and loss weights (B, T)."""

    logits: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """view: how records are read; score: the scored logits of a batch with their targets; criterion: their loss; teach:
    adds a teacher's loss on the same batch."""

    view: View
    score: Callable[[Network, View, Batch, Auxiliary | None, bool], Scored]
    criterion: Callable[[Tensor, Tensor, Tensor], Loss]
    teach: Callable[[View, Batch, Scored, Loss], Loss] | None = None

    def scored(self, model: Network, batch: Batch, *, dense: bool = False) -> Scored:
        """The counted logits of a batch: as one row if they are few, or all in their positions if `dense`."""
        return self.score(model, self.view, batch, None, dense)

    def loss(self, model: Network, batch: Batch) -> Loss:
        """The loss of a batch, with those of routers, early exits, multi-token prediction and a teacher."""
        recorder = recorder_of(["*.exits.*", "*.ahead.*"])
        auxiliary = Auxiliary(recorder=recorder)
        scored = self.score(model, self.view, batch, auxiliary, False)
        loss = with_auxiliary(self.criterion(*scored), auxiliary)
        if self.teach is not None:
            loss = self.teach(self.view, batch, scored, loss)
        if exits := recorder.with_parts("exits"):
            loss = self._with_exits(loss, model, batch, scored, exits)
        if ahead := recorder.with_parts("ahead"):
            loss = self._with_ahead(loss, model, batch, scored, ahead)
        return loss

    def _with_exits(self, loss: Loss, model: Network, batch: Batch, scored: Scored, hidden: list[Tensor]) -> Loss:
        """Add the mean loss of early exits, which predict the same targets as the last block."""
        coordinates = batch.inputs.coordinates
        early = [self.criterion(model.logits(x, coordinates), scored.targets, scored.weights).total for x in hidden]
        return _add_part(loss, "exit_loss", _stack(model).exit_loss * torch.stack(early).mean())

    def _with_ahead(self, loss: Loss, model: Network, batch: Batch, scored: Scored, hidden: list[Tensor]) -> Loss:
        """Add the mean loss of heads that predict the token d positions after the next one, in the same document."""
        document, totals = batch.inputs.coordinates.document, []
        for distance, x in enumerate(hidden, 1):
            same = document[:, distance:] == document[:, :-distance]
            logits, weights = model.logits(x[:, :-distance]), scored.weights[:, distance:] * same
            totals.append(self.criterion(logits, scored.targets[:, distance:], weights).total)
        return _add_part(loss, "ahead_loss", _stack(model).ahead_loss * torch.stack(totals).mean())


def _stack(model: Network) -> StackConfig:
    """The config of the stack under the head."""
    assert isinstance(model.config, ModelConfig)
    return model.config.stacks[-1]


def _add_part(loss: Loss, name: str, part: Tensor) -> Loss:
    return replace(loss, total=loss.total + part, parts={**loss.parts, name: part.detach()})


def with_auxiliary(loss: Loss, auxiliary: Auxiliary) -> Loss:
    """The loss with the auxiliary losses of the same pass, multiplied by the loss weight: sums over micro-batches,
    divided once by the total weight, are then means of the micro-batches' values, weighted like the other losses."""
    if not (auxiliary.losses or auxiliary.counts or auxiliary.loads):
        return loss
    sums = {name: value.detach() * loss.weight for name, value in auxiliary.losses.items()}
    return replace(
        loss,
        total=loss.total + sum(auxiliary.losses.values()) * loss.weight,
        parts={**loss.parts, **sums},
        counts={**loss.counts, **auxiliary.counts},
        loads={**loss.loads, **auxiliary.loads},
    )


def logits_of(model: Network, view: View, batch: Batch, auxiliary: Auxiliary | None = None) -> Tensor:
    """Logits (B, T, V) of a batch under a view's masks."""
    return model(batch.inputs, view.inputs_mask, batch.source, view.source_mask, auxiliary)


def scored_fraction(config: Model, weights: Tensor) -> float:
    """The fraction of targets with loss weights (B, T) that the head scores: the counted ones if few, else all.
    Pooled heads, early exits and multi-token prediction score all."""
    config = as_transformer(config)
    if not isinstance(config, ModelConfig) or isinstance(config.head, Pooled):
        return 1.0
    fraction = float((weights > 0).float().mean())
    return 1.0 if fraction >= DENSE_FROM or config.stacks[-1].exits or config.stacks[-1].ahead else fraction


def token_scores(model: Network, view: View, batch: Batch, auxiliary: Auxiliary | None, dense: bool) -> Scored:
    """Each token's logits with its target; if few targets count only those, as one row."""
    targets, weights = batch.targets, batch.loss_weights
    if dense or scored_fraction(model.config, weights) == 1:
        return Scored(logits_of(model, view, batch, auxiliary), targets, weights)
    hidden = model.hidden(batch.inputs, view.inputs_mask, batch.source, view.source_mask, auxiliary)
    hidden, targets, weights = (t[batch.loss_weights > 0].unsqueeze(0) for t in (hidden, targets, weights))
    return Scored(model.logits(hidden), targets, weights)


def contrastive_scores(
    model: Network, view: View, batch: Batch, auxiliary: Auxiliary | None, dense: bool, *, temperature: float
) -> Scored:
    """Each document's embedding against those of all possible partners in the batch, as one row."""
    assert batch.source is not None
    sources = model(batch.inputs, view.inputs_mask, auxiliary=auxiliary)[batch.loss_weights > 0]
    coordinates = batch.source.coordinates
    is_first = ((coordinates.index == 0) & (coordinates.document >= 0)).expand(batch.source.ids.shape)
    targets = model(batch.source, view.source_mask, auxiliary=auxiliary)[is_first]
    return Scored(*contrastive_logits(sources, targets, temperature))


def with_teacher(
    view: View, batch: Batch, scored: Scored, loss: Loss, *, teacher: Network | None, config: Distillation
) -> Loss:
    """The loss mixed with the teacher's on the same batch. Raises ValueError if there is no teacher."""
    if teacher is None:
        raise ValueError(NO_TEACHER)
    with torch.no_grad():
        logits = logits_of(teacher, view, batch)
    if logits.shape[1] != scored.logits.shape[1]:
        logits = logits[batch.loss_weights > 0].unsqueeze(0)
    return distillation_loss(loss, scored.logits, logits[..., : scored.logits.shape[-1]], scored.weights, config)


def _cross_entropy(objective: WithCrossEntropy) -> Callable[[Tensor, Tensor, Tensor], Loss]:
    return partial(weighted_cross_entropy, z_loss=objective.z_loss, label_smoothing=objective.label_smoothing)


def build_task(objective: Objective, view: View, teacher: Network | None = None) -> Task:
    """The task of an objective; `teacher`: the teacher model of a distillation, needed for the loss alone."""
    match objective:
        case (
            Causal()
            | Prefix()
            | Seq2seq()
            | Masked()
            | SpanCorruption()
            | DenoiserMixture()
            | Classification()
            | Tagging()
        ):
            return Task(view, token_scores, _cross_entropy(objective))
        case Regression() | TokenRegression():
            return Task(view, token_scores, weighted_squared_error)
        case Contrastive(temperature=temperature):
            return Task(view, partial(contrastive_scores, temperature=temperature), weighted_cross_entropy)
        case Distillation():
            teach = partial(with_teacher, teacher=teacher, config=objective)
            return Task(view, token_scores, _cross_entropy(objective), teach)
        case _:
            assert_never(objective)

"""Losses over whole splits, accumulated as sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isoform.batch import Batch
from isoform.codecs.codec import Codec
from isoform.data.loader import ValidationRows
from isoform.data.records import Record
from isoform.machine import Machine
from isoform.model.network import Network
from isoform.objectives.config import Contrastive
from isoform.objectives.losses import target_losses
from isoform.objectives.task import Scored, Task, build_task
from isoform.preparation import validation_rows
from isoform.recipe import Recipe
from isoform.training.trainer import until_stopped


@dataclass(frozen=True)
class Score:
    """loss: nats per target, or for numbers the mean squared error; bits_per_byte: over the bytes of the targets (None:
    they have none); accuracy: fraction of targets that are the most probable class (None for numbers); exact: fraction
    of documents with every token right, which greedy decoding reproduces (None: not requested)."""

    loss: float
    bits_per_byte: float | None
    accuracy: float | None
    exact: float | None
    num_targets: int


@torch.inference_mode()
def evaluate(
    model: Network,
    task: Task,
    batches: Iterable[tuple[Batch, int]],
    machine: Machine,
    *,
    by_document: bool = False,
) -> Score:
    """The score of a split; `batches` come with the number of bytes of their targets.

    by_document: whether to compute `exact`. Raises ValueError if there is no target.
    """
    model.eval()
    nats = correct = torch.zeros((), dtype=torch.float64)
    weight, num_bytes, exact, num_documents, is_number = 0.0, 0, 0, 0, False
    for batch, batch_bytes in batches:
        if not batch.loss_weights.any():
            continue
        batch = batch.to(machine.device)
        logits, targets, weights = _scored(model, task, batch, machine, dense=by_document)
        nats = nats + (target_losses(logits, targets) * weights).sum().double().cpu()
        is_number = is_number or targets.is_floating_point()
        is_right = logits.argmax(-1) == targets
        correct = correct + (is_right * weights).sum().double().cpu()
        weight += float(weights.sum())
        num_bytes += batch_bytes
        if by_document:
            num_right, num_targets = _correct_by_document(is_right, batch).unbind(1)
            exact += int((num_right == num_targets)[num_targets > 0].sum())
            num_documents += int((num_targets > 0).sum())
    if weight == 0:
        raise ValueError("there is nothing to evaluate: the text has no token to predict; give a longer one")
    total = float(nats)
    return Score(
        total / weight,
        total / math.log(2) / num_bytes if num_bytes else None,
        None if is_number else float(correct) / weight,
        exact / num_documents if num_documents else None,
        round(weight),
    )


def _scored(model: Network, task: Task, batch: Batch, machine: Machine, *, dense: bool) -> Scored:
    with torch.autocast(machine.device.type, machine.dtype, enabled=machine.uses_autocast):
        return task.scored(model, batch, dense=dense)


def _correct_by_document(is_right: Tensor, batch: Batch) -> Tensor:
    """For each document of a batch, in order (documents, 2): the number of its targets that are right, and of all.

    is_right: of each position (B, T), or of the counted ones alone (1, n).
    """
    document, is_counted = batch.inputs.coordinates.document, batch.loss_weights > 0
    right = is_right[is_counted] if is_right.shape == is_counted.shape else is_right.flatten()
    per_row = document.amax(1) + 1
    number = ((per_row.cumsum(0) - per_row).unsqueeze(1) + document)[is_counted]
    counts = torch.zeros(int(per_row.sum()), 2, dtype=torch.int64, device=right.device)
    return counts.index_add_(0, number, torch.stack([right.long(), torch.ones_like(number)], dim=1))


def evaluate_records(
    model: Network, recipe: Recipe, codec: Codec, records: Sequence[Record], machine: Machine, *, limit: int = 0
) -> Score:
    """The score on records, or on their first `limit` rows."""
    return evaluate_rows(model, recipe, validation_rows(recipe, records, codec), machine, limit=limit)


def evaluate_rows(
    model: Network,
    recipe: Recipe,
    rows: ValidationRows,
    machine: Machine,
    *,
    limit: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Score:
    """The score on all rows of a split, or on the first `limit`.

    Raises Interrupted as soon as should_stop(), which is called before each batch, is true.
    """
    batches = rows.batches(min(recipe.rows_per_pass, limit) if limit else recipe.rows_per_pass)
    batches = until_stopped(batches if not limit else _first_rows(batches, limit), should_stop)
    task = build_task(recipe.objective, rows.view)
    return evaluate(model, task, batches, machine, by_document=_scores_documents(recipe, rows))


@torch.inference_mode()
def correct_by_record(
    model: Network, recipe: Recipe, codec: Codec, records: Sequence[Record], machine: Machine
) -> np.ndarray:
    """For each record (n, 2): how many of its targets are the most probable class, and how many it has; 0 of a record
    that fits no row.

    Computed in the batches of `evaluate_records`, so that the ratio of the sums is its accuracy. Raises ValueError for
    rows that don't keep records apart, and for targets that aren't those of one record.
    """
    rows = validation_rows(recipe, records, codec)
    if rows.records is None or isinstance(recipe.objective, Contrastive):
        raise ValueError("accuracy by record needs an objective on single records, in rows that keep them apart")
    model.eval()
    task, by_document = build_task(recipe.objective, rows.view), _scores_documents(recipe, rows)
    parts = []
    for batch, _ in rows.batches(recipe.rows_per_pass):
        batch = batch.to(machine.device)
        logits, targets, _ = _scored(model, task, batch, machine, dense=by_document)
        parts.append(_correct_by_document(logits.argmax(-1) == targets, batch).cpu())
    counts = np.zeros((len(records), 2), np.int64)
    np.add.at(counts, rows.records, torch.cat(parts).numpy())
    return counts


def _scores_documents(recipe: Recipe, rows: ValidationRows) -> bool:
    """Whether it is worth asking which documents are right as a whole: those of several targets."""
    return recipe.data.keeps_records and not rows.view.is_whole


def _first_rows(batches: Iterable[tuple[Batch, int]], limit: int) -> Iterator[tuple[Batch, int]]:
    num_rows = 0
    for batch, num_bytes in batches:
        yield batch, num_bytes
        num_rows += len(batch.targets)
        if num_rows >= limit:
            return

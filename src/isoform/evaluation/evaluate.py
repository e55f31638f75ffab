"""Losses over whole splits, accumulated as sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isoform.batch import Batch
from isoform.codecs.codec import Codec
from isoform.data.loader import ValidationRows
from isoform.data.sources import Record
from isoform.machine import Machine
from isoform.model.network import Network
from isoform.objectives.losses import target_losses
from isoform.objectives.task import Task, build_task
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
        with torch.autocast(machine.device.type, machine.dtype, enabled=machine.uses_autocast):
            logits, targets, weights = task.scored(model, batch, dense=by_document)
        nats = nats + (target_losses(logits, targets) * weights).sum().double().cpu()
        is_number = is_number or targets.is_floating_point()
        is_right = logits.argmax(-1) == targets
        correct = correct + (is_right * weights).sum().double().cpu()
        weight += float(weights.sum())
        num_bytes += batch_bytes
        if by_document:
            batch_exact, batch_documents = _exact_documents(is_right, batch)
            exact, num_documents = exact + batch_exact, num_documents + batch_documents
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


def _exact_documents(is_right: Tensor, batch: Batch) -> tuple[int, int]:
    """The number of documents with every counted token right, and of all documents."""
    document, counts = batch.inputs.coordinates.document, batch.loss_weights > 0
    rows = torch.arange(len(document), device=document.device).unsqueeze(1) * (int(document.max()) + 1)
    key = (rows + document)[counts]
    wrong = torch.zeros(int(key.max()) + 1, device=key.device).index_add_(0, key, (~is_right[counts]).float())
    present = key.unique()
    return int((wrong[present] == 0).sum()), len(present)


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
    return evaluate(model, task, batches, machine, by_document=recipe.data.keeps_records and not rows.view.is_whole)


def _first_rows(batches: Iterable[tuple[Batch, int]], limit: int) -> Iterator[tuple[Batch, int]]:
    num_rows = 0
    for batch, num_bytes in batches:
        yield batch, num_bytes
        num_rows += len(batch.targets)
        if num_rows >= limit:
            return

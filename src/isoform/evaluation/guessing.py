"""What guessing would score on a validation split: what a run must beat to have learned anything.

Guesses know the targets of training alone, not the inputs: all outputs alike; each by its frequency; the most frequent
label; of numbers the mean; of the partners in a batch none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isoform.batch import Batch
from isoform.model.config import Pooled
from isoform.objectives.config import Contrastive, requirements_of
from isoform.preparation import Prepared

MOST_ROWS, MOST_TOKENS = 8192, 2**21
"""Of the training rows that are counted."""
SAME = 0.99
"""A loss above this share of a guess's is no better."""


@dataclass(frozen=True)
class Guess:
    """The loss of the best guess; accuracy: the share of the label that is most frequent in training (None: targets are
    no labels); how: what is guessed, in words."""

    loss: float
    how: str
    accuracy: float | None = None

    def is_beaten_by(self, loss: float, accuracy: float | None) -> bool:
        """Whether a score is better than guessing: by its loss, or, of labels, by its accuracy."""
        is_more_accurate = self.accuracy is not None and accuracy is not None and accuracy > self.accuracy
        return loss < SAME * self.loss or is_more_accurate


def best_guess(prepared: Prepared) -> Guess:
    """The best guess of a recipe's validation targets by what its training rows have, the first MOST_ROWS of them."""
    size = prepared.recipe.rows_per_pass
    validation = (batch for batch, _ in prepared.validation.batches(size))
    if isinstance(prepared.recipe.objective, Contrastive):
        counts = [int((batch.loss_weights > 0).sum()) for batch in validation]
        return Guess(sum(n * math.log(n) for n in counts if n) / sum(counts), "any partner in the batch")
    seen, asked = _targets(_training_rows(prepared, size)), _targets(validation)
    if np.issubdtype(asked[0].dtype, np.floating):
        mean = np.average(seen[0], weights=seen[1])
        return Guess(float(np.average((asked[0] - mean) ** 2, weights=asked[1])), "the mean of the training data")
    return _of_classes(prepared, seen, asked)


def _of_classes(prepared: Prepared, seen: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray]) -> Guess:
    head, num_outputs = prepared.recipe.model.head, prepared.recipe.model.vocab_size
    if isinstance(head, Pooled):
        num_outputs = head.num_outputs
    counts = np.bincount(seen[0], seen[1], num_outputs) + 1  # one more of each, so that none is impossible
    nats = -np.average(np.log(counts / counts.sum())[asked[0]], weights=asked[1])
    accuracy = None
    if requirements_of(prepared.recipe.objective).answer != "vocabulary":
        accuracy = float(np.average(asked[0] == counts.argmax(), weights=asked[1]))
    even = math.log(num_outputs)
    what = "token" if accuracy is None else "label"
    if even < nats:
        return Guess(even, f"any {what} of {num_outputs:,}", accuracy)
    return Guess(float(nats), f"each {what} by its frequency in training", accuracy)


def _training_rows(prepared: Prepared, size: int) -> Iterator[Batch]:
    loader, length = prepared.loader, prepared.recipe.model.context_length
    count = max(1, min(loader.rows_per_epoch, MOST_ROWS, MOST_TOKENS // length))
    return (loader.rows(first, min(size, count - first)) for first in range(0, count, size))


def _targets(batches: Iterator[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """The targets that count, and their weights."""
    targets, weights = [], []
    for batch in batches:
        counts = batch.loss_weights > 0
        targets.append(batch.targets[counts].numpy())
        weights.append(batch.loss_weights[counts].double().numpy())
    return np.concatenate(targets), np.concatenate(weights)

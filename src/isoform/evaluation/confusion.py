"""Where a classifier or tagger is right and wrong: which label is taken for which, F1, the most confident mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoform.data.records import Record
from isoform.evaluation.predictions import answers, fits, labels_of
from isoform.objectives.config import Classification, Tagging
from isoform.run import Trained

MOST_CLASSES = 12
"""Classes of which a matrix is shown."""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the text (or word) that it is about, the true label, the answer and its probability."""

    text: str
    truth: str
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts (n, n): how often a class, of each row, was answered with that of each column; mistakes: the most
    confident ones first; num_left_out: records longer than the context."""

    names: tuple[str, ...]
    counts: np.ndarray
    mistakes: tuple[Mistake, ...]
    num_left_out: int = 0

    @property
    def precision(self) -> np.ndarray:
        """Of the answers with each class, the share that is right (n,); 0 if there is none."""
        return np.diag(self.counts) / np.maximum(self.counts.sum(0), 1)

    @property
    def recall(self) -> np.ndarray:
        """Of the targets of each class, the share that is answered right (n,); 0 if there is none."""
        return np.diag(self.counts) / np.maximum(self.counts.sum(1), 1)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall of each class (n,)."""
        return 2 * np.diag(self.counts) / np.maximum(self.counts.sum(0) + self.counts.sum(1), 1)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that were asked for or answered."""
        occurs = (self.counts.sum(0) + self.counts.sum(1)) > 0
        return float(self.f1[occurs].mean()) if occurs.any() else 0.0

    def rows(self) -> Iterator[list[str]]:
        """Tables of texts: a heading, and for each class precision, recall, F1, its number, and of few classes what it
        is answered with."""
        few = len(self.names) <= MOST_CLASSES
        yield ["true label", "precision", "recall", "F1", "number", *(f"as {n}" for n in self.names if few)]
        numbers = zip(self.names, self.precision, self.recall, self.f1, self.counts, strict=True)
        for name, precision, recall, f1, counts in numbers:
            cells = [f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", f"{counts.sum():,}"]
            yield [name, *cells, *(f"{n:,}" for n in counts if few)]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        by_name = {
            name: {"precision": float(p), "recall": float(r), "f1": float(f)}
            for name, p, r, f in zip(self.names, self.precision, self.recall, self.f1, strict=True)
        }
        mistakes = [vars(mistake) for mistake in self.mistakes]
        return {"macro_f1": self.macro_f1, "classes": by_name, "counts": self.counts.tolist(), "mistakes": mistakes}


def confusion(trained: Trained, records: Sequence[Record], *, num_mistakes: int = 10) -> Confusion | None:
    """How the labels, or tags, of records are answered; None for a model without labels, or records without any.

    Records longer than the context are left out. Raises ValueError for a label that the model doesn't have.
    """
    objective = trained.recipe.objective
    if not isinstance(objective, Classification | Tagging):
        return None
    key, names = ("label", "tags")[isinstance(objective, Tagging)], labels_of(trained)
    labelled = [record for record in records if record.get(key) is not None]
    fitting = [record for record in labelled if fits(trained, record)]
    counts, mistakes = np.zeros((len(names), len(names)), np.int64), []
    numbers = {name: i for i, name in enumerate(names)}
    for record, answer in zip(fitting, answers(trained, fitting), strict=True):
        for text, truth, label, probability in _judged(record, answer, key):
            if truth not in numbers:
                raise ValueError(f"the {key} {truth!r} is not among {', '.join(names[:20])}")
            counts[numbers[truth], numbers[label]] += 1
            if truth != label:
                mistakes.append(Mistake(text, truth, label, probability))
    mistakes.sort(key=lambda mistake: -mistake.probability)
    left_out = len(labelled) - len(fitting)
    return Confusion(names, counts, tuple(mistakes[:num_mistakes]), left_out) if fitting else None


def _judged(record: Record, answer: dict[str, Any], key: str) -> Iterator[tuple[str, str, str, float]]:
    """What was asked, the truth, the answer and its probability."""
    if key == "label":
        yield str(record.get("text", "")), str(record[key]), answer["label"], answer["probability"]
    else:
        yield from zip(record["tokens"], map(str, record[key]), answer["tags"], answer["probabilities"], strict=True)

"""What a trained model answers to records: labels with probabilities, tags, numbers, vectors.

Records of similar length share a batch of limited size, so that memory doesn't grow with their number, and what a
record is answered doesn't depend on the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isoform.batch import COLUMNS, Encoding, Example, collate
from isoform.codecs.codec import TextCodec
from isoform.data.records import Record, location
from isoform.model.config import Pooled
from isoform.objectives.config import Classification, Regression, Tagging, TokenRegression
from isoform.objectives.task import logits_of
from isoform.run import Trained

BATCH_TOKENS = 4096
"""Tokens of a batch, padding included."""
CHUNK = 1024
"""Records that are encoded before the first of them is answered."""
NO_ANSWERS = "this model writes text and has no labels, numbers or vectors; ask it with isoform generate or chat"


def answers(
    trained: Trained, records: Sequence[Record], *, cuts: bool = False, batch_tokens: int = BATCH_TOKENS
) -> Iterator[dict[str, Any]]:
    """What the model answers to each record, in order, as JSON values: `label`, `probability` and the `probabilities`
    of all labels; `number`; for each word `tags` and their `probabilities`, or `numbers`; or a `vector`.

    Labels and tags in the records are ignored. cuts: whether a text that is longer than the context is cut to it, with
    a warning, rather than refused. Raises ValueError for a model without such answers, and with its location for a
    record that can't be read.
    """
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        encodings = [_encoded(trained, record, number, cuts=cuts) for number, record in enumerate(chunk, start)]
        scores = outputs(trained, encodings, batch_tokens=batch_tokens)
        for encoding, each in zip(encodings, scores, strict=True):
            yield _answer(trained, encoding, each)


def classify(trained: Trained, records: Sequence[Record], *, batch_tokens: int = BATCH_TOKENS) -> torch.Tensor:
    """The probabilities of the labels of n records, whose own labels are ignored: (n, classes).

    Raises ValueError for a model that was not trained for classification, and with its location for a record that
    can't be read or is longer than the context.
    """
    if not isinstance(trained.recipe.objective, Classification):
        raise ValueError("this model was not trained for labels; its recipe needs the objective classification")
    encodings = [_encoded(trained, record, number, cuts=False) for number, record in enumerate(records)]
    scores = outputs(trained, encodings, batch_tokens=batch_tokens)
    return torch.from_numpy(np.stack([each[0] for each in scores])).softmax(-1)


def fits(trained: Trained, record: Record) -> bool:
    """Whether a record is within the context."""
    config = trained.transformer.config
    return len(_tokens(trained, record)) <= config.length(config.stacks[-1])


def labels_of(trained: Trained) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order: its labels, or for images without names their indices."""
    objective, head = trained.recipe.objective, trained.transformer.config.head
    assert isinstance(objective, Classification | Tagging) and isinstance(head, Pooled)
    return objective.labels or tuple(map(str, range(head.num_outputs)))


@torch.inference_mode()
def outputs(trained: Trained, encodings: Sequence[Encoding], *, batch_tokens: int = BATCH_TOKENS) -> list[np.ndarray]:
    """The outputs of a pooled head for each Encoding, in order: (1, C) of a whole record, (T, C) of each of its tokens.

    Raises ValueError for a model without such a head, and for outputs that aren't finite.
    """
    model, view = trained.transformer, trained.view
    if not isinstance(model.config.head, Pooled):
        raise ValueError(NO_ANSWERS)
    is_each = model.config.head.over == "each"
    results = [np.zeros((0, 0), np.float32)] * len(encodings)
    order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]))
    while order:
        longest = len(encodings[order[-1]])
        size = max(1, batch_tokens // longest)
        numbers, order = order[-size:], order[:-size]
        batch = collate([[_without_target(encodings[i])] for i in numbers], longest).to(model.device)
        scores = logits_of(model, view, batch)[:, : None if is_each else 1].float().cpu().numpy()
        for i, each in zip(numbers, scores, strict=True):
            results[i] = each[: len(encodings[i])]
            if not np.isfinite(results[i]).all():
                raise ValueError("the outputs have NaN or infinite values; the model's weights are damaged")
    return results


def _without_target(encoding: Encoding) -> Example:
    nothing = np.zeros(len(encoding), np.int64)
    return Example(encoding, nothing, nothing.astype(np.float32))


def _encoded(trained: Trained, record: Record, number: int, *, cuts: bool) -> Encoding:
    """The tokens of a record within the context, those of words marked by tags."""
    where, config = location(record, number), trained.transformer.config
    if not isinstance(config.head, Pooled):
        raise ValueError(NO_ANSWERS)
    limit = config.length(config.stacks[-1])
    try:
        encoding = _tokens(trained, record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not len(encoding):
        raise ValueError(f"{where}: has no tokens; leave it out")
    if len(encoding) <= limit:
        return encoding
    if not cuts:
        raise ValueError(
            f"{where}: has {len(encoding)} tokens, and the model reads {limit} at once; shorten it, or add --cut to "
            f"leave out what is beyond"
        )
    warnings.warn(f"{where}: cut from {len(encoding)} to {limit} tokens; its end is not read", stacklevel=2)
    return _cut(trained, encoding, limit)


def _tokens(trained: Trained, record: Record) -> Encoding:
    """The tokens of a record without its label; a text whose words are to be tagged is split at spaces."""
    record = {key: value for key, value in record.items() if key not in ("label", "tags")}
    if not isinstance(trained.recipe.objective, Tagging | TokenRegression):
        return trained.codec.encode(record)
    words = record["tokens"] if "tokens" in record else str(record.get("text", "")).split()
    if not words:
        raise ValueError("has no words; leave it out")
    encoding = trained.codec.encode({"tokens": words, "tags": [0] * len(words)})
    assert encoding.tags is not None
    if np.isfinite(encoding.tags).sum() < len(words):
        raise ValueError("has a word that the tokenizer leaves out; remove it")
    return encoding


def _cut(trained: Trained, encoding: Encoding, limit: int) -> Encoding:
    """The beginning of a record, and what follows every text."""
    codec = trained.codec
    num_after = (len(codec.special_ids.after) or 1) if isinstance(codec, TextCodec) else 0
    num_after = min(num_after, limit - 1)
    saved = np.r_[: limit - num_after, len(encoding) - num_after : len(encoding)]
    columns = {name: column[saved] for name in COLUMNS if (column := getattr(encoding, name)) is not None}
    return replace(Encoding(encoding.ids[saved], **columns), prefix=min(encoding.prefix, limit - num_after))


def _answer(trained: Trained, encoding: Encoding, scores: np.ndarray) -> dict[str, Any]:
    """The outputs of one record by name."""
    match trained.recipe.objective:
        case Classification():
            names, probabilities = labels_of(trained), _softmax(scores[0])
            best = int(probabilities.argmax())
            by_name = dict(zip(names, probabilities.tolist(), strict=True))
            return {"label": names[best], "probability": float(probabilities[best]), "probabilities": by_name}
        case Regression():
            return {"number": float(scores[0, 0])}
        case Tagging():
            names, probabilities = labels_of(trained), _softmax(scores[_first_of_words(encoding)])
            tags = [names[i] for i in probabilities.argmax(-1)]
            return {"tags": tags, "probabilities": probabilities.max(-1).tolist()}
        case TokenRegression():
            return {"numbers": scores[_first_of_words(encoding), 0].tolist()}
        case _:
            return {"vector": scores[0].tolist()}


def _first_of_words(encoding: Encoding) -> np.ndarray:
    assert encoding.tags is not None
    return np.isfinite(encoding.tags)


def _softmax(scores: np.ndarray) -> np.ndarray:
    return torch.from_numpy(scores).softmax(-1).numpy()

"""Views of the data: an Encoding in, an Example out. What the target sees is decided here, as masks.

The views of sequences differ in two things only: whether the given prefix goes to an encoder of its own, and
whether it sees itself in both directions. Classification says one thing about a whole record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from isoform.batch import Encoding, Example
from isoform.mask import Causal as CausalMask
from isoform.mask import Full, Mask
from isoform.mask import Prefix as PrefixMask
from isoform.objectives.config import Causal, Classification, Objective, Prefix, Seq2seq


@dataclass(frozen=True)
class View:
    """How an objective reads records: the mask of each stack, and Examples with their lengths.

    `example(encoding, rng)` is deterministic for a given generator; `length(n, prefix)` is how many pieces
    the Example of an Encoding of n pieces puts into (inputs, source). is_whole: the target is about a record as a
    whole, so that it is never cut to fit a row.
    """

    inputs_mask: Mask
    source_mask: Mask
    example: Callable[[Encoding, np.random.Generator], Example]
    length: Callable[[int, int], tuple[int, int]]
    is_whole: bool = False


def next_piece(encoding: Encoding, rng: np.random.Generator) -> Example:
    """Every piece predicts the next; only what follows the prefix counts."""
    targets = encoding.ids[1:]
    is_counted = np.arange(1, len(encoding)) >= encoding.prefix
    if encoding.features is not None:  # only what has an id can be predicted
        is_counted, targets = is_counted & (targets >= 0), np.maximum(targets, 0)
    return Example(encoding.cut(0, -1), targets, is_counted.astype(np.float32))


def next_piece_after_prefix(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The same, with the prefix marked so that a mask can open it in both directions."""
    plain = next_piece(encoding, rng)
    return replace(plain, inputs=replace(plain.inputs, prefix=encoding.prefix))


def source_to_target(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The prefix to the encoder; the decoder starts from the prefix's last piece, the separator."""
    prefix = encoding.prefix
    if prefix < 1:
        raise ValueError("seq2seq needs records with a source and a target; this one has no source")
    targets = encoding.ids[prefix:]
    weights = np.ones(len(targets), np.float32)
    return Example(encoding.cut(prefix - 1, -1), targets, weights, source=encoding.cut(0, prefix))


def label(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The label, once: at the first piece, since a pooled head says the same all over a segment."""
    if encoding.label is None:
        raise ValueError("classification needs records with a label; this one has none")
    targets, weights = np.zeros(len(encoding), np.int64), np.zeros(len(encoding), np.float32)
    targets[0], weights[0] = encoding.label, 1
    return Example(encoding, targets, weights)


def build_view(config: Objective) -> View:
    """The view of an objective."""
    match config:
        case Causal():
            return View(CausalMask(), Full(), next_piece, lambda n, prefix: (n - 1, 0))
        case Prefix():
            mask = PrefixMask() | CausalMask()
            return View(mask, Full(), next_piece_after_prefix, lambda n, prefix: (n - 1, 0))
        case Seq2seq():
            return View(CausalMask(), Full(), source_to_target, lambda n, prefix: (n - prefix, prefix))
        case Classification():
            return View(Full(), Full(), label, lambda n, prefix: (n, 0), is_whole=True)
        case _:
            assert_never(config)

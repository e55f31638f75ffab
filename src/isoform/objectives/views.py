"""Views of the data: an Encoding in, an Example out. What the target sees is decided here, as masks.

The three views differ in two things only: whether the given prefix goes to an encoder of its own, and
whether it sees itself in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from isoform.batch import Encoding, Example
from isoform.mask import Causal as CausalMask
from isoform.mask import Full, Mask
from isoform.mask import Prefix as PrefixMask
from isoform.objectives.config import Causal, Objective, Prefix, Seq2seq


@dataclass(frozen=True)
class View:
    """How an objective reads records: the mask of each stack, and Examples with their lengths.

    `example(encoding, rng)` is deterministic for a given generator; `length(n, prefix)` is how many pieces
    the Example of an Encoding of n pieces puts into (inputs, source).
    """

    inputs_mask: Mask
    source_mask: Mask
    example: Callable[[Encoding, np.random.Generator], Example]
    length: Callable[[int, int], tuple[int, int]]


def next_piece(encoding: Encoding, rng: np.random.Generator) -> Example:
    """Every piece predicts the next; only what follows the prefix counts."""
    ids = encoding.ids
    weights = (np.arange(1, len(ids)) >= encoding.prefix).astype(np.float32)
    return Example(Encoding(ids[:-1]), ids[1:], weights)


def next_piece_after_prefix(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The same, with the prefix marked so that a mask can open it in both directions."""
    plain = next_piece(encoding, rng)
    return Example(Encoding(plain.inputs.ids, encoding.prefix), plain.targets, plain.loss_weights)


def source_to_target(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The prefix to the encoder; the decoder starts from the prefix's last piece, the separator."""
    ids, prefix = encoding.ids, encoding.prefix
    if prefix < 1:
        raise ValueError("seq2seq needs records with a source and a target; this one has no source")
    targets = ids[prefix:]
    return Example(
        Encoding(ids[prefix - 1 : -1]),
        targets,
        np.ones(len(targets), np.float32),
        source=Encoding(ids[:prefix]),
    )


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
        case _:
            assert_never(config)

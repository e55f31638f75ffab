"""What a decoding strategy is: it decides, step by step, with what the texts in a batch go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A text that was written: its ids, the end included if it was reached."""

    ids: np.ndarray
    score: float
    """Its log probability over its length to the power of the length penalty."""
    log_probability: float


@dataclass(frozen=True, eq=False)
class Step:
    """What was decided about n rows."""

    tokens: Tensor
    """(m,): with what the rows that go on do so."""
    rows: Tensor | None = None
    """(m,): which of the n they are, some perhaps more than once; None: all, in their order."""
    taken: Sequence[tuple[int, int]] = ()
    """The text that each of the n rows is, sample i of prompt p being p * width + i, and the token it took, be it the
    last; of a search, which is sure of no token before its end: none."""


class DecodingStrategy(ABC):
    """Decides with what the texts in a batch go on, until none does."""

    width: int
    """Rows of each prompt at the beginning."""
    group: int = 1
    """So many rows side by side always belong to one prompt, and read one row of the encoder's output."""
    max_tokens: int
    """The most steps."""

    @abstractmethod
    def advance(self, logits: Tensor, texts: Tensor, step: int) -> Step:
        """Decide about the step-th token after the prompts, the first being 1.

        logits (n, V); texts (n, S): what was read and written, prompts included, aligned at the right; shorter ones are
        filled up with their first token.
        """

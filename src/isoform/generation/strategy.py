"""The interface of decoding strategies, which choose the next tokens of a batch of texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from isoform.generation.constraints import Constraints


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A generated text: its ids, with the end token if it was reached."""

    ids: np.ndarray
    score: float
    """Its log probability divided by its length to the power of the length penalty."""
    log_probability: float


@dataclass(frozen=True, eq=False)
class Step:
    """The decision of a strategy about n rows."""

    tokens: Tensor
    """(m,): the next tokens of the rows that continue."""
    rows: Tensor | None = None
    """(m,): their indices among the n rows, which may repeat; None: all, in order."""
    chosen: Sequence[tuple[int, int]] = ()
    """For each of the n rows its text (sample i of prompt p is p * width + i) and the token chosen for it, which may be
    its last; empty for beam search, which settles no token before its end."""


class DecodingStrategy(ABC):
    """Chooses the next tokens of the texts in a batch, until none continues."""

    width: int
    """The initial number of rows per prompt."""
    group: int = 1
    """The number of consecutive rows that always belong to one prompt and share a row of the memory."""
    max_tokens: int
    """Maximum number of steps."""
    constraints: Constraints
    """Which tokens may be chosen, and which end a text."""

    @abstractmethod
    def advance(self, logits: Tensor, texts: Tensor, step: int) -> Step:
        """Choose the step-th token after the prompts, counted from 1.

        logits (n, V); texts (n, S): prompts and generated tokens, right-aligned; shorter ones begin with NONE.
        """

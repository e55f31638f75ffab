"""What training, evaluation and scoring need of any model: hidden states, logits, and how to compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from isoform.batch import Tokens
from isoform.mask import Coordinates, Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.baseline_config import Model
from isoform.model.component import Component
from isoform.model.config import Pooled
from isoform.model.experts import ExpertStack
from isoform.model.kernels import Linear

ConfigT = TypeVar("ConfigT", bound=Model)


class Network(Component, ABC, Generic[ConfigT]):
    """A stem, something between, and a head."""

    methods = ("hidden", "logits")
    config: ConfigT

    @abstractmethod
    def hidden(
        self,
        tokens: Tokens | Tensor,
        mask: Mask | None = None,
        source: Tokens | Tensor | None = None,
        source_mask: Mask | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """What the head reads (B, T, D); `source` goes to the encoder of an encoder-decoder.

        auxiliary: collects what routed modules and early exits report.
        """

    @abstractmethod
    def logits(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        """Hidden states (B, T, D) to scores (B, T, V); a pooled head needs the coordinates of packed tokens."""

    def forward(
        self,
        tokens: Tokens | Tensor | None = None,
        mask: Mask | None = None,
        source: Tokens | Tensor | None = None,
        source_mask: Mask | None = None,
        auxiliary: Auxiliary | None = None,
        *,
        features: Tensor | None = None,
    ) -> Tensor:
        """Scores, `logits(hidden(...))`, of ids (B, T) or, instead, of features (B, T, F): (B, T, V), or of a pooled
        head one of each row, (B, C).

        Rows of Tokens may hold several documents: of those a pooled head has outputs (B, T, C), equal within a
        document. Raises ValueError without an input, or with two.
        """
        given = tokens if features is None else features
        if given is None or (tokens is not None and features is not None):
            raise ValueError("a model reads ids or features: give one of them")
        coordinates = None if isinstance(given, Tensor) else given.coordinates
        output = self.logits(self.hidden(given, mask, source, source_mask, auxiliary), coordinates)
        return output[:, 0] if coordinates is None and self.is_pooled else output

    @property
    def is_pooled(self) -> bool:
        """Whether the head has one output for a whole document."""
        head = self.config.head
        return isinstance(head, Pooled) and head.over != "each"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the blocks' matrix products in this format, with all else in float32, in place: for CPUs, where
        autocast's smaller activations would cost more than they save. Parameters stay as they are."""
        for module in self.modules():
            if isinstance(module, Linear | ExpertStack):
                module.product_dtype = dtype

    @abstractmethod
    def use_kernel(self, kernel: str, *, trains: bool = False) -> None:
        """Attend by this kernel, in place; `trains`: gradients will be needed. Raises ValueError where it can't."""

    @abstractmethod
    def compile_blocks(self) -> None:
        """Let torch.compile translate what is repeated, in place."""

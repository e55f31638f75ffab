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
        tokens: Tokens | Tensor,
        mask: Mask | None = None,
        source: Tokens | Tensor | None = None,
        source_mask: Mask | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """Scores (B, T, V): `logits(hidden(...))`, for convenience."""
        coordinates = None if isinstance(tokens, Tensor) else tokens.coordinates
        return self.logits(self.hidden(tokens, mask, source, source_mask, auxiliary), coordinates)

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

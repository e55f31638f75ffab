"""A bag of n-grams that predicts the next token, to compare the Transformer with: it has its stem, head, norms and
feed-forward, and no block that passes information between tokens.

The bag knows nothing of packing: packed rows are laid out anew with one document a row, and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from isoform.batch import Tokens, plain_tokens
from isoform.mask import Causal, Coordinates, Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.baseline_config import NORM, Model, NGramMlp, as_transformer
from isoform.model.block import Residual
from isoform.model.component import Component, Role, roles_of
from isoform.model.config import ModelConfig
from isoform.model.embedding import LookupStem, VocabularyHead
from isoform.model.feedforward import build_feedforward
from isoform.model.kernels import dropout
from isoform.model.mixers.documents import Documents
from isoform.model.network import Network
from isoform.model.norm import build_norm
from isoform.model.parts import Dense
from isoform.model.transformer import Transformer


def shifted(x: Tensor, reaches: Sequence[int]) -> list[Tensor]:
    """The rows (B, T, D) shifted right by each of these distances, zeros before them."""
    most, length = max(reaches), x.shape[1]
    padded = functional.pad(x, (0, 0, most, 0))
    return [padded[:, most - by : most - by + length] for by in reaches]


class Bag(Component):
    """Each position's sum of the vectors of the last tokens, weighted by distance and feature."""

    roles = (("", Role.TABLE),)

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        newest, *earlier = shifted(x, range(len(self.weight)))
        summed = newest * self.weight[0]
        for weight, vectors in zip(self.weight[1:], earlier, strict=True):
            summed = torch.addcmul(summed, vectors, weight)
        return summed

    def reset_parameters(self) -> None:
        """The newest token weighs most, at first."""
        nn.init.zeros_(self.weight).add_(0.8 ** torch.arange(len(self.weight), device=self.weight.device).unsqueeze(1))


class FeedForwardBlock(nn.Module):
    """A feed-forward as a residual branch, its norm before it."""

    def __init__(self, config: NGramMlp) -> None:
        super().__init__()
        dense = Dense(feedforward_dim=config.inner_dim, activation="relu2")
        self.residual = Residual(NORM, "pre", config.model_dim, config.dropout)
        self.feedforward = build_feedforward(dense, config.model_dim, config.inner_dim)

    def forward(self, x: Tensor) -> Tensor:
        """The stream (B, T, D) through this block."""
        return self.residual(x, self.feedforward)


class Core(nn.Module):
    """What lies between embeddings and head, over rows of one document each."""

    def __init__(self, config: NGramMlp) -> None:
        super().__init__()
        self.bag = Bag(config.model_dim, config.bag)
        self.blocks = nn.ModuleList(FeedForwardBlock(config) for _ in range(config.num_layers))
        self.final_norm = build_norm(NORM, config.model_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, T, D) to hidden states (B, T, D)."""
        x = self.bag(x)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)


class NGramModel(Network[NGramMlp]):
    """The vectors of the last tokens and n-grams added up, and feed-forwards over the sum.

    Raises ValueError for a vocab_size of 0 (fill it in from the codec first).
    """

    def __init__(self, config: NGramMlp) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size={config.vocab_size}: set it to the number of tokens of the codec")
        self.config = config
        self.stem = LookupStem(config.stem, config.vocab_size, config.model_dim)
        self.core = Core(config)
        self.head = VocabularyHead(config.head, config.vocab_size, config.model_dim, self.stem.embedding)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter afresh: matrices for unit variance, n-gram tables, branches' last matrices and an untied
        head zero, so that its first predictions are uniform and every branch starts at zero."""
        roles = roles_of(self)
        for name, parameter in self.named_parameters():
            match roles[name]:
                case Role.SHIFT | Role.CONTEXT_EMBEDDING | Role.HEAD | Role.OUTPUT:
                    nn.init.zeros_(parameter)
                case Role.GAIN:
                    nn.init.ones_(parameter)
                case Role.EMBEDDING if self.config.head.tied:
                    nn.init.normal_(parameter, std=0.02)  # or it would first predict the same token again
                case _:
                    nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        for module in self.modules():
            if isinstance(module, Bag):
                module.reset_parameters()

    def hidden(
        self,
        tokens: Tokens | Tensor,
        mask: Mask | None = None,
        source: Tokens | Tensor | None = None,
        source_mask: Mask | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """What the head reads (B, T, D); the other arguments are those of a Transformer.

        Raises ValueError for a mask that isn't causal, for a source, and for rows that are too long or continue
        others.
        """
        tokens = plain_tokens(tokens) if isinstance(tokens, Tensor) else tokens
        coordinates, length = tokens.coordinates, tokens.ids.shape[1]
        if source is not None or mask not in (None, Causal()):
            raise ValueError(f"a baseline reads forwards and has no encoder, but was given the mask {mask}; use causal")
        if coordinates.start or length > self.config.context_length:
            raise ValueError(
                f"tokens {coordinates.start or 0} .. {(coordinates.start or 0) + length - 1} don't fit a baseline of "
                f"context_length={self.config.context_length}, which reads rows from their start; shorten the input"
            )
        x = self.stem(tokens)
        if self.config.dropout and self.training:
            x = dropout(x, self.config.dropout)
        documents = Documents(coordinates)
        return self.core(x) if documents.are_rows else documents.together(self.core(documents.apart(x)))

    def logits(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        return self.head(hidden, coordinates)

    def use_kernel(self, kernel: str, *, trains: bool = False) -> None:
        """There is one way to compute a baseline: raises ValueError for any kernel but auto."""
        if kernel != "auto":
            raise ValueError(f"kernel={kernel!r}: a baseline has no attention to compute; leave it at auto")

    def compile_blocks(self) -> None:
        self.core.compile()


def build_module(config: Model) -> Transformer | NGramModel:
    """The module of a model's config, its parameters drawn from torch's generator."""
    whole = as_transformer(config)
    return Transformer(whole) if isinstance(whole, ModelConfig) else NGramModel(whole)

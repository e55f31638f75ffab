"""Stems turn pieces into vectors, heads turn vectors into what is asked of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from isoform.batch import Pieces
from isoform.model.config import LayerNorm, Lookup, Norm, RMSNorm, Vocabulary


def build_norm(config: Norm, dim: int) -> nn.Module:
    """A norm over the last dimension."""
    match config:
        case LayerNorm():
            return nn.LayerNorm(dim, eps=config.epsilon, bias=config.bias)
        case RMSNorm():
            return nn.RMSNorm(dim, eps=config.epsilon, elementwise_affine=config.scale)


class LookupStem(nn.Module):
    """A vector per piece, optionally plus one for the piece before it, or for the pair of both."""

    def __init__(self, config: Lookup, vocab_size: int, model_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, model_dim)
        self.multiplier = math.sqrt(model_dim) if config.scale else 1.0
        self.norm = None if config.norm is None else build_norm(config.norm, model_dim)
        self.vocab_size, self.is_pair = vocab_size, config.previous == "pair"
        rows = {"none": 0, "piece": vocab_size + 1, "pair": (vocab_size + 1) * vocab_size}[config.previous]
        self.previous = nn.Embedding(rows, model_dim) if rows else None

    def forward(self, pieces: Pieces) -> Tensor:
        """Pieces (B, T) to (B, T, D)."""
        x = self.embedding(pieces.ids)
        if self.multiplier != 1.0:
            x = x * self.multiplier
        if self.previous is not None:
            before = self.previous_ids(pieces)
            x = x + self.previous(before * self.vocab_size + pieces.ids if self.is_pair else before)
        return x if self.norm is None else self.norm(x)

    def previous_ids(self, pieces: Pieces) -> Tensor:
        """The id before each piece (B, T); vocab_size where a segment begins."""
        if pieces.previous is not None:
            before = pieces.previous
        else:
            before = torch.cat([pieces.ids.new_full((len(pieces.ids), 1), self.vocab_size), pieces.ids[:, :-1]], 1)
        if pieces.coordinates.start is not None and pieces.coordinates.start > 0:
            return before
        return torch.where(pieces.coordinates.index == 0, self.vocab_size, before)


class VocabularyHead(nn.Module):
    """A score per piece of the vocabulary; tied heads borrow the embedding's table."""

    def __init__(self, config: Vocabulary, vocab_size: int, model_dim: int, table: Tensor) -> None:
        super().__init__()
        assert isinstance(table, nn.Parameter)
        self.weight = table if config.tied else nn.Parameter(torch.empty(vocab_size, model_dim))
        self.bias = nn.Parameter(torch.empty(vocab_size)) if config.bias else None
        self.softcap = config.softcap

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) to logits (B, T, V)."""
        logits = nn.functional.linear(hidden, self.weight, self.bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

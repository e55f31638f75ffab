"""Stems turn pieces into vectors, heads turn vectors into what is asked of them."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.batch import Pieces
from isoform.model.config import LayerNorm, Lookup, Norm, RMSNorm, Vocabulary
from isoform.model.kernels import rms_norm


class FastRMSNorm(nn.RMSNorm):
    """torch's RMSNorm through the kernel that is fast on the device."""

    def forward(self, x: Tensor) -> Tensor:
        """(.., D) to (.., D)."""
        return rms_norm(x, self.eps or 1e-6, self.weight)


def build_norm(config: Norm, dim: int) -> nn.Module:
    """A norm over the last dimension."""
    match config:
        case LayerNorm():
            return nn.LayerNorm(dim, eps=config.epsilon, bias=config.bias)
        case RMSNorm():
            return FastRMSNorm(dim, eps=config.epsilon, elementwise_affine=config.scale)
        case _:
            assert_never(config)


class LookupStem(nn.Module):
    """A vector per piece, optionally plus one for the piece before it and for the n-grams that end in it."""

    def __init__(self, config: Lookup, vocab_size: int, model_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, model_dim)
        self.multiplier = math.sqrt(model_dim) if config.scale else 1.0
        self.norm = None if config.norm is None else build_norm(config.norm, model_dim)
        self.vocab_size, self.orders = vocab_size, config.ngrams
        self.previous = nn.Embedding(vocab_size + 1, model_dim) if config.previous else None
        self.num_rows = [min((vocab_size + 1) ** n, config.ngram_rows) for n in config.ngrams]
        self.ngrams = nn.ModuleList(nn.Embedding(rows, model_dim) for rows in self.num_rows)
        self.looks_back = max((n - 1 for n in config.ngrams), default=int(config.previous))

    def forward(self, pieces: Pieces) -> Tensor:
        """Pieces (B, T) to (B, T, D)."""
        x = self.embedding(pieces.ids)
        if self.multiplier != 1.0:
            x = x * self.multiplier
        if self.looks_back:
            before = self.before(pieces)
            if self.previous is not None:
                x = x + self.previous(before[0])
            for order, num_rows, table in zip(self.orders, self.num_rows, self.ngrams, strict=True):
                x = x + table(self.ngram_ids(pieces.ids, before[: order - 1], num_rows))
        return x if self.norm is None else self.norm(x)

    def before(self, pieces: Pieces) -> list[Tensor]:
        """The ids (B, T) one, two, … places before each piece; vocab_size where the segment doesn't reach back."""
        num_rows, length = pieces.ids.shape
        none = pieces.ids.new_full((num_rows, self.looks_back), self.vocab_size)
        row = torch.cat([none, pieces.ids] if pieces.before is None else [none, pieces.before, pieces.ids], 1)
        shifted = (row[:, -length - back : row.shape[1] - back] for back in range(1, self.looks_back + 1))
        if pieces.coordinates.start is not None and pieces.before is None:
            return list(shifted)
        index = pieces.coordinates.index
        return [torch.where(index < back, self.vocab_size, ids) for back, ids in enumerate(shifted, 1)]

    def ngram_ids(self, ids: Tensor, before: list[Tensor], num_rows: int) -> Tensor:
        """Which row of a table of num_rows each n-gram (a piece and those before it) has (B, T)."""
        base, key = self.vocab_size + 1, ids
        for back, other in enumerate(before, 1):
            key = key + other * base**back
        is_exact = base ** (len(before) + 1) <= num_rows
        return key if is_exact else (key * HASH).remainder(PRIME).remainder(num_rows)


HASH, PRIME = 1_000_003, 2**31 - 1


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

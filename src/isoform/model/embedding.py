"""Stems turn tokens into vectors, heads turn hidden states into outputs."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from isoform.batch import Tokens
from isoform.mask import Coordinates
from isoform.model.component import Component, Role
from isoform.model.config import Convolution, Head, Linear, Lookup, MaskedVocabulary, Pooled, Stem, Vocabulary
from isoform.model.feedforward import ACTIVATIONS
from isoform.model.norm import build_norm


class LookupStem(Component):
    """A vector per token, plus, if configured, those of its token type, the previous token and the n-grams it ends."""

    roles = (
        ("", Role.EMBEDDING),
        ("previous", Role.CONTEXT_EMBEDDING),
        ("ngrams", Role.CONTEXT_EMBEDDING),
    )

    def __init__(self, config: Lookup, vocab_size: int, model_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, model_dim)
        self.multiplier = (math.sqrt(model_dim) if config.scale else 1.0) * config.factor
        self.norm = None if config.norm is None else build_norm(config.norm, model_dim)
        self.token_types = nn.Embedding(config.num_token_types, model_dim) if config.num_token_types else None
        self.vocab_size, self.orders = vocab_size, config.ngrams
        self.previous = nn.Embedding(vocab_size + 1, model_dim) if config.previous else None
        self.num_rows = [min((vocab_size + 1) ** n, config.ngram_rows) for n in config.ngrams]
        self.ngrams = nn.ModuleList(nn.Embedding(rows, model_dim) for rows in self.num_rows)
        self.looks_back = max((n - 1 for n in config.ngrams), default=int(config.previous))

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens (B, T) to (B, T, D). Raises ValueError for features."""
        if tokens.features is not None:
            raise ValueError("this model looks ids up, but was given features; set stem.kind to linear or convolution")
        x = self.embedding(tokens.ids)
        if self.multiplier != 1.0:
            x = x * self.multiplier
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if tokens.token_types is None else self.token_types(tokens.token_types))
        if self.looks_back:
            left_ids = self.left_ids(tokens)
            if self.previous is not None:
                x = x + self.previous(left_ids[0])
            for order, num_rows, table in zip(self.orders, self.num_rows, self.ngrams, strict=True):
                x = x + table(self.ngram_ids(tokens.ids, left_ids[: order - 1], num_rows))
        return x if self.norm is None else self.norm(x)

    def left_ids(self, tokens: Tokens) -> list[Tensor]:
        """The ids (B, T) one, two, … tokens earlier; vocab_size before the document's start."""
        num_rows, length = tokens.ids.shape
        none = tokens.ids.new_full((num_rows, self.looks_back), self.vocab_size)
        row = torch.cat(
            [none, tokens.ids] if tokens.left_context is None else [none, tokens.left_context, tokens.ids], 1
        )
        shifted = (row[:, -length - back : row.shape[1] - back] for back in range(1, self.looks_back + 1))
        if tokens.coordinates.start is not None and tokens.left_context is None:
            return list(shifted)
        index = tokens.coordinates.index
        return [torch.where(index < back, self.vocab_size, ids) for back, ids in enumerate(shifted, 1)]

    def ngram_ids(self, ids: Tensor, left_ids: list[Tensor], num_rows: int) -> Tensor:
        """Which row of a table of num_rows each n-gram (a token and those before it) has (B, T)."""
        base, key = self.vocab_size + 1, ids
        for back, left in enumerate(left_ids, 1):
            key = key + left * base**back
        is_exact = base ** (len(left_ids) + 1) <= num_rows
        return key if is_exact else (key * HASH).remainder(PRIME).remainder(num_rows)


HASH, PRIME = 1_000_003, 2**31 - 1


class LinearStem(Component):
    """Feature rows through one matrix; tokens that have an id get a learned vector instead."""

    roles = (("", Role.EMBEDDING),)
    looks_back = 0

    def __init__(self, config: Linear, model_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(config.num_features, model_dim, bias=config.bias)
        self.embedding = nn.Embedding(config.num_ids, model_dim) if config.num_ids else None

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens with features (B, T, F) to (B, T, D)."""
        x = self.projection(features_of(tokens, self.projection.in_features))
        if self.embedding is None:
            return x
        has_id = (tokens.ids >= 0).unsqueeze(-1)
        return torch.where(has_id, self.embedding(tokens.ids.clamp(min=0)), x)


class ConvolutionStem(Component):
    """Frames through two convolutions over time with GELUs, the second with a stride (Whisper, 2022, section 2.2)."""

    roles = (("", Role.EMBEDDING),)
    looks_back = 0

    def __init__(self, config: Convolution, model_dim: int) -> None:
        super().__init__()
        f, width, around = config.num_features, config.width, config.width // 2
        self.stride = config.stride
        self.first = nn.Conv1d(f, model_dim, width, padding=around)
        self.second = nn.Conv1d(model_dim, model_dim, width, padding=around, stride=config.stride)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens with `stride` frames each, (B, T, stride x F), to (B, T, D). Raises ValueError for packed rows."""
        frames = features_of(tokens, self.stride * self.first.in_channels)
        if tokens.coordinates.start != 0:
            raise ValueError("a convolution over time needs rows of one document from index 0 on; don't pack them")
        frames = frames.reshape(len(frames), -1, self.first.in_channels).mT
        return functional.gelu(self.second(functional.gelu(self.first(frames)))).mT


def features_of(tokens: Tokens, num_features: int) -> Tensor:
    """The features (B, T, F). Raises ValueError where they are missing or of another width."""
    features = tokens.features
    if features is None or features.shape[-1] != num_features:
        width = "none" if features is None else f"{features.shape[-1]}"
        raise ValueError(f"the stem reads {num_features} features per token, but the tokens have {width}")
    return features


def build_stem(config: Stem, vocab_size: int, model_dim: int) -> LookupStem | LinearStem | ConvolutionStem:
    """The module of a stem. Raises ValueError for a size that is still open."""
    match config:
        case Lookup():
            if vocab_size < 1:
                raise ValueError(f"vocab_size={vocab_size}: set it to the number of tokens of the codec")
            return LookupStem(config, vocab_size, model_dim)
        case Convolution():
            return ConvolutionStem(config, model_dim)
        case Linear():
            if config.num_features < 1:
                raise ValueError("stem.num_features=0: set it to the number of features that the codec gives")
            return LinearStem(config, model_dim)
        case _:
            assert_never(config)


class VocabularyHead(Component):
    """A score per token of the vocabulary; tied heads borrow the embedding's table."""

    roles = (("", Role.HEAD),)

    def __init__(self, config: Vocabulary, vocab_size: int, model_dim: int, table: nn.Embedding | None) -> None:
        super().__init__()
        self.weight = own_or_shared(config.tied, table, vocab_size, model_dim)
        self.bias = nn.Parameter(torch.empty(vocab_size)) if config.bias else None
        self.softcap, self.scale = config.softcap, config.scale

    def forward(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        """hidden (B, T, D) to logits (B, T, V)."""
        logits = functional.linear(hidden if self.scale is None else hidden * self.scale, self.weight, self.bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


class MaskedVocabularyHead(Component):
    """Dense, activation and norm, then a score per token of the vocabulary (BERT, Devlin et al. 2019)."""

    roles = (("", Role.HEAD),)

    def __init__(self, config: MaskedVocabulary, vocab_size: int, model_dim: int, table: nn.Embedding | None) -> None:
        super().__init__()
        self.dense = nn.Linear(model_dim, model_dim, bias=config.dense_bias)
        self.activation, self.norm = ACTIVATIONS[config.activation], build_norm(config.norm, model_dim)
        self.weight = own_or_shared(config.tied, table, vocab_size, model_dim)
        self.bias = nn.Parameter(torch.empty(vocab_size)) if config.bias else None

    def forward(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        """hidden (B, T, D) to logits (B, T, V)."""
        return functional.linear(self.norm(self.activation(self.dense(hidden))), self.weight, self.bias)


def own_or_shared(tied: bool, table: nn.Embedding | None, vocab_size: int, model_dim: int) -> nn.Parameter:
    """The weight (V, D) of a head."""
    if not tied:
        return nn.Parameter(torch.empty(vocab_size, model_dim))
    assert table is not None
    return table_of(table)


def table_of(embedding: nn.Embedding) -> nn.Parameter:
    """The table of an embedding."""
    assert isinstance(embedding.weight, nn.Parameter)
    return embedding.weight


class PooledHead(Component):
    """One output per document, repeated at each of its tokens."""

    roles = (("", Role.HEAD),)

    def __init__(self, config: Pooled, model_dim: int) -> None:
        super().__init__()
        if not config.embed and config.num_outputs < 1:
            raise ValueError("head.num_outputs=0: set it to the number of classes, or set head.embed")
        self.over, self.embeds = config.over, config.embed
        self.dense = nn.Linear(model_dim, model_dim, bias=config.dense_bias) if config.dense else None
        self.activation = ACTIVATIONS[config.activation]
        self.norm = None if config.norm is None else build_norm(config.norm, model_dim)
        self.output = None if config.embed else nn.Linear(model_dim, config.num_outputs, bias=config.bias)

    def forward(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        """hidden (B, T, D) at these coordinates (None: one document a row) to (B, T, C), equal within a document."""
        pooled = hidden if self.over == "each" else self.pool(hidden, coordinates)
        if self.dense is not None:
            pooled = self.activation(self.dense(pooled))
        if self.norm is not None:
            pooled = self.norm(pooled)
        return functional.normalize(pooled, dim=-1) if self.output is None else self.output(pooled)

    def pool(self, hidden: Tensor, coordinates: Coordinates | None) -> Tensor:
        """The hidden state that represents the document of each token, (B, T, D)."""
        if coordinates is None or coordinates.start is not None:
            first, last = hidden[:, :1], hidden[:, -1:]
            return {"first": first, "last": last, "mean": hidden.mean(1, keepdim=True)}[self.over].expand_as(hidden)
        document = coordinates.document
        same = (document.unsqueeze(2) == document.unsqueeze(1)) & (document >= 0).unsqueeze(2)
        if self.over == "mean":
            return same.to(hidden.dtype) @ hidden / same.sum(-1, keepdim=True).clamp(min=1)
        order = same.int()
        column = order.argmax(-1) if self.over == "first" else document.shape[1] - 1 - order.flip(-1).argmax(-1)
        return hidden.gather(1, column.unsqueeze(-1).expand_as(hidden))


def build_head(
    config: Head, vocab_size: int, model_dim: int, table: nn.Embedding | None
) -> VocabularyHead | MaskedVocabularyHead | PooledHead:
    """The module of a head; `table`: the stem's (V, D), for one that is tied."""
    match config:
        case Vocabulary():
            return VocabularyHead(config, vocab_size, model_dim, table)
        case MaskedVocabulary():
            return MaskedVocabularyHead(config, vocab_size, model_dim, table)
        case Pooled():
            return PooledHead(config, model_dim)
        case _:
            assert_never(config)

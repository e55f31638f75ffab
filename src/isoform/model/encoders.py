"""Named architectures with an encoder, alone or before a decoder, as values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isoform.mask import Window
from isoform.model.config import (
    BlockConfig,
    Convolution,
    Initialization,
    Linear,
    Lookup,
    MaskedVocabulary,
    ModelConfig,
    Pooled,
    StackConfig,
    Vocabulary,
)
from isoform.model.parts import (
    Attention,
    Buckets,
    Dense,
    Gated,
    LayerNorm,
    Learned,
    RMSNorm,
    Rotary,
    Sinusoidal,
)


def _pair(encoder: StackConfig, **decoder: Any) -> dict[str, Any]:
    """The two stacks of an encoder-decoder whose decoder differs from the encoder in these fields."""
    return {"encoder": encoder, "decoder": replace(encoder, cross="separate", **decoder)}


TRANSFORMER = ModelConfig(
    model_dim=512,
    context_length=512,
    vocab_size=37000,
    **_pair(
        StackConfig(
            num_layers=6,
            position=Sinusoidal(),
            blocks=(
                BlockConfig(
                    mixer=Attention(num_heads=8),
                    feedforward=Dense(feedforward_dim=2048, activation="relu", bias=True),
                    norm=LayerNorm(epsilon=1e-6),
                    norm_placement="post",
                ),
            ),
            final_norm=False,
        )
    ),
    stem=Lookup(scale=True),
    head=Vocabulary(tied=True),
    dropout=0.1,
    initialization=Initialization(embedding=512**-0.5, matrix=None),
)

_T5_BLOCK = BlockConfig(
    mixer=Attention(num_heads=12, head_dim=64, scale=1.0),
    feedforward=Gated(feedforward_dim=2048, activation="gelu_tanh"),
    norm=RMSNorm(epsilon=1e-6),
)
T5 = ModelConfig(
    model_dim=768,
    context_length=512,
    vocab_size=32128,
    **_pair(StackConfig(num_layers=12, position=Buckets(bidirectional=True), blocks=(_T5_BLOCK,)), position=Buckets()),
    head=Vocabulary(),
    dropout=0.1,
    initialization=Initialization(embedding=1.0, matrix=None),
)

BART = ModelConfig(
    model_dim=768,
    context_length=1024,
    vocab_size=50265,
    **_pair(
        StackConfig(
            num_layers=6,
            position=Learned(),
            blocks=(
                BlockConfig(
                    mixer=Attention(num_heads=12, bias=True),
                    feedforward=Dense(feedforward_dim=3072, bias=True),
                    norm_placement="post",
                ),
            ),
            input_norm=LayerNorm(),
            final_norm=False,
        )
    ),
    head=Vocabulary(tied=True),
    dropout=0.1,
)

MARIAN = ModelConfig(
    model_dim=512,
    context_length=512,
    vocab_size=58101,
    **_pair(
        StackConfig(
            num_layers=6,
            position=Sinusoidal(order="halves"),
            blocks=(
                BlockConfig(
                    mixer=Attention(num_heads=8, bias=True),
                    feedforward=Dense(feedforward_dim=2048, activation="silu", bias=True),
                    norm_placement="post",
                ),
            ),
            final_norm=False,
        )
    ),
    stem=Lookup(scale=True),
    head=Vocabulary(tied=True, bias=True),
    dropout=0.1,
)

WHISPER = ModelConfig(
    model_dim=384,
    context_length=448,
    vocab_size=51864,
    **_pair(
        StackConfig(
            num_layers=4,
            context_length=1500,
            position=Learned(),
            blocks=(
                BlockConfig(
                    mixer=Attention(num_heads=6, bias=True, key_bias=False),
                    feedforward=Dense(feedforward_dim=1536, bias=True),
                ),
            ),
        ),
        context_length=None,
    ),
    encoder_stem=Convolution(num_features=80),
    head=Vocabulary(tied=True),
)

BERT = ModelConfig(
    model_dim=768,
    context_length=512,
    vocab_size=30522,
    encoder=StackConfig(
        num_layers=12,
        position=Learned(),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=12, bias=True, dropout=0.1),
                feedforward=Dense(feedforward_dim=3072, bias=True),
                norm=LayerNorm(epsilon=1e-12),
                norm_placement="post",
            ),
        ),
        input_norm=LayerNorm(epsilon=1e-12),
        final_norm=False,
    ),
    decoder=None,
    stem=Lookup(num_token_types=2),
    head=MaskedVocabulary(norm=LayerNorm(epsilon=1e-12)),
    dropout=0.1,
)

MINILM = ModelConfig(
    model_dim=384,
    context_length=512,
    vocab_size=30522,
    encoder=StackConfig(
        num_layers=6,
        position=Learned(),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=12, bias=True),
                feedforward=Dense(feedforward_dim=1536, bias=True),
                norm=LayerNorm(epsilon=1e-12),
                norm_placement="post",
            ),
        ),
        input_norm=LayerNorm(epsilon=1e-12),
        final_norm=False,
    ),
    decoder=None,
    stem=Lookup(num_token_types=2),
    head=Pooled(over="mean", embed=True),
)

_MODERNBERT_GLOBAL = BlockConfig(
    mixer=Attention(num_heads=12),
    feedforward=Gated(feedforward_dim=1152, activation="gelu"),
    norm=LayerNorm(bias=False),
)
_MODERNBERT_LOCAL = replace(
    _MODERNBERT_GLOBAL,
    mixer=Attention(num_heads=12, pattern=Window(64, 64), position=Rotary(base=10_000.0)),
)
MODERNBERT = ModelConfig(
    model_dim=768,
    context_length=8192,
    vocab_size=50368,
    encoder=StackConfig(
        num_layers=22,
        position=Rotary(base=160_000.0),
        blocks=(_MODERNBERT_GLOBAL, _MODERNBERT_LOCAL, _MODERNBERT_LOCAL),
        input_norm=LayerNorm(bias=False),
        first_norm=False,
    ),
    decoder=None,
    head=MaskedVocabulary(norm=LayerNorm(bias=False), dense_bias=False),
)

VIT = ModelConfig(
    model_dim=768,
    context_length=197,
    vocab_size=1,
    encoder=StackConfig(
        num_layers=12,
        position=Learned(),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=12, bias=True),
                feedforward=Dense(feedforward_dim=3072, bias=True),
                norm=LayerNorm(epsilon=1e-12),
            ),
        ),
    ),
    decoder=None,
    stem=Linear(num_features=768, num_ids=1),
    head=Pooled(num_outputs=1000),
)

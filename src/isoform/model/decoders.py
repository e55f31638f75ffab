"""Named decoders as values, and the modern ones of our own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isoform.mask import Window
from isoform.model.config import (
    BlockConfig,
    Initialization,
    Lookup,
    ModelConfig,
    StackConfig,
    Vocabulary,
)
from isoform.model.parts import (
    Attention,
    Dense,
    Experts,
    Gated,
    LayerNorm,
    Learned,
    Llama3Extension,
    Position,
    RMSNorm,
    Rotary,
    TokenChoice,
)

GPT2 = ModelConfig(
    model_dim=768,
    context_length=1024,
    vocab_size=50257,
    decoder=StackConfig(
        num_layers=12,
        position=Learned(),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=12, bias=True, dropout=0.1),
                feedforward=Dense(activation="gelu_tanh", bias=True),
                norm=LayerNorm(epsilon=1e-5),
            ),
        ),
    ),
    head=Vocabulary(tied=True),
    dropout=0.1,
    initialization=Initialization(output="scaled"),
)

PYTHIA = ModelConfig(
    model_dim=768,
    context_length=2048,
    vocab_size=50304,
    decoder=StackConfig(
        num_layers=12,
        position=Rotary(fraction=0.25),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=12, bias=True),
                feedforward=Dense(feedforward_dim=3072, bias=True),
                parallel="own_norms",
            ),
        ),
    ),
)


def _llama(num_layers: int, feedforward_dim: int, position: Position, **attention: Any) -> StackConfig:
    """A decoder of Llama's blocks."""
    block = BlockConfig(
        mixer=Attention(**attention),
        feedforward=Gated(feedforward_dim=feedforward_dim),
        norm=RMSNorm(epsilon=1e-5),
    )
    return StackConfig(num_layers=num_layers, position=position, blocks=(block,))


LLAMA2 = ModelConfig(
    model_dim=4096,
    context_length=4096,
    vocab_size=32000,
    decoder=_llama(32, 11008, Rotary(), num_heads=32),
)
LLAMA3 = ModelConfig(
    model_dim=4096,
    context_length=131072,
    vocab_size=128256,
    decoder=_llama(32, 14336, Rotary(base=500_000.0, extension=Llama3Extension()), num_heads=32, num_kv_heads=8),
)
SMOLLM2 = ModelConfig(
    model_dim=576,
    context_length=8192,
    vocab_size=49152,
    decoder=_llama(30, 1536, Rotary(base=100_000.0), num_heads=9, num_kv_heads=3),
    head=Vocabulary(tied=True),
)
MISTRAL = ModelConfig(
    model_dim=4096,
    context_length=32768,
    vocab_size=32000,
    decoder=_llama(32, 14336, Rotary(), num_heads=32, num_kv_heads=8, pattern=Window(4095)),
)

_QWEN3_ATTENTION = Attention(num_heads=16, num_kv_heads=8, head_dim=128, qk_norm=RMSNorm(epsilon=1e-6))
QWEN3 = ModelConfig(
    model_dim=1024,
    context_length=40960,
    vocab_size=151936,
    decoder=StackConfig(
        num_layers=28,
        position=Rotary(base=1_000_000.0),
        blocks=(
            BlockConfig(mixer=_QWEN3_ATTENTION, feedforward=Gated(feedforward_dim=3072), norm=RMSNorm(epsilon=1e-6)),
        ),
    ),
    head=Vocabulary(tied=True),
)

_GEMMA_NORM = RMSNorm(epsilon=1e-6, zero_centered=True)
_GEMMA3_GLOBAL = BlockConfig(
    mixer=Attention(num_heads=4, num_kv_heads=1, head_dim=256, qk_norm=_GEMMA_NORM, scale=256**-0.5),
    feedforward=Gated(feedforward_dim=6912, activation="gelu_tanh"),
    norm=_GEMMA_NORM,
    norm_placement="sandwich",
)
_GEMMA3_LOCAL = replace(
    _GEMMA3_GLOBAL,
    mixer=replace(_GEMMA3_GLOBAL.attention, pattern=Window(511), position=Rotary(base=10_000.0)),
)
GEMMA3 = ModelConfig(
    model_dim=1152,
    context_length=32768,
    vocab_size=262144,
    decoder=StackConfig(
        num_layers=26,
        position=Rotary(base=1_000_000.0),
        blocks=(*[_GEMMA3_LOCAL] * 5, _GEMMA3_GLOBAL),
    ),
    stem=Lookup(scale=True),
    head=Vocabulary(tied=True),
)

OLMO2 = ModelConfig(
    model_dim=4096,
    context_length=4096,
    vocab_size=100352,
    decoder=StackConfig(
        num_layers=32,
        position=Rotary(base=500_000.0),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=32, qk_norm=RMSNorm(epsilon=1e-6), qk_norm_over="projection"),
                feedforward=Gated(feedforward_dim=11008),
                norm=RMSNorm(epsilon=1e-6),
                norm_placement="reordered",
            ),
        ),
    ),
)

MIXTRAL = ModelConfig(
    model_dim=4096,
    context_length=32768,
    vocab_size=32000,
    decoder=StackConfig(
        num_layers=32,
        position=Rotary(base=1_000_000.0),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=32, num_kv_heads=8),
                feedforward=Experts(
                    num_experts=8,
                    expert=Gated(feedforward_dim=14336),
                    router=TokenChoice(num_active=2, balance_loss=0.02),
                ),
                norm=RMSNorm(epsilon=1e-5),
            ),
        ),
    ),
)
QWEN3_MOE = ModelConfig(
    model_dim=2048,
    context_length=40960,
    vocab_size=151936,
    decoder=StackConfig(
        num_layers=48,
        position=Rotary(base=1_000_000.0),
        blocks=(
            BlockConfig(
                mixer=replace(_QWEN3_ATTENTION, num_heads=32, num_kv_heads=4),
                feedforward=Experts(
                    num_experts=128,
                    expert=Gated(feedforward_dim=768),
                    router=TokenChoice(num_active=8, balance_loss=0.001),
                ),
                norm=RMSNorm(epsilon=1e-6),
            ),
        ),
    ),
)

MODERN = ModelConfig(
    model_dim=256,
    context_length=256,
    decoder=StackConfig(
        num_layers=6,
        position=Rotary(),
        blocks=(
            BlockConfig(
                mixer=Attention(num_heads=4, qk_norm=RMSNorm(scale=False), value_shortcut=True),
                feedforward=Dense(activation="relu2"),
                norm=RMSNorm(scale=False),
                x0_shortcut=True,
            ),
        ),
    ),
    stem=Lookup(ngrams=(2, 3, 4), norm=RMSNorm(scale=False)),
    head=Vocabulary(softcap=15.0),
    initialization=Initialization(embedding=0.3, matrix=None, output="zero", head="zero"),
)

assert MODERN.decoder is not None
MODERN_PAIR = replace(
    MODERN,
    encoder=MODERN.decoder,
    decoder=replace(MODERN.decoder, cross="separate"),
    stem=Lookup(norm=RMSNorm(scale=False)),
)

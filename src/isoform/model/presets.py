"""Named architectures, as values, each with where it comes from. Sizes are fields like all others; a recipe changes
what it likes. `python -m isoform.model.presets` prints the table of docs/forms.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from isoform.mask import Window
from isoform.model.config import (
    Attention,
    BlockConfig,
    Buckets,
    Convolution,
    Dense,
    Experts,
    Gated,
    Initialization,
    LayerNorm,
    Learned,
    Linear,
    Llama3Extension,
    Lookup,
    MaskedVocabulary,
    ModelConfig,
    Pooled,
    Position,
    RMSNorm,
    Rotary,
    Sinusoidal,
    StackConfig,
    TokenChoice,
    Vocabulary,
)


@dataclass(frozen=True)
class Preset:
    """An architecture and its origin; `parameters`: what its makers publish, in their rounding, if they do."""

    model: ModelConfig
    year: int
    paper: str
    changed: str
    parameters: str | None = None


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
    stem=Lookup(num_kinds=2),
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
    stem=Lookup(num_kinds=2),
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

PRESETS: dict[str, Preset] = {
    "transformer": Preset(
        TRANSFORMER,
        2017,
        "Vaswani et al., Attention Is All You Need (base)",
        "attention instead of recurrence; encoder and decoder, sinusoids, post-norm, ReLU, one table for all",
        "65M",
    ),
    "bert": Preset(
        BERT,
        2019,
        "Devlin et al., BERT (base)",
        "the encoder alone, learned positions and kinds, GELU, a head for masked pieces",
        "110M",
    ),
    "gpt2": Preset(
        GPT2, 2019, "Radford et al., GPT-2 (small)", "the decoder alone, pre-norm, outputs scaled by depth", "124M"
    ),
    "bart": Preset(
        BART,
        2019,
        "Lewis et al., BART (base)",
        "2017's form with learned positions, GELU and normalised inputs",
        "139M",
    ),
    "t5": Preset(
        T5,
        2020,
        "Raffel et al., T5; Shazeer, GLU Variants (v1.1 base)",
        "pre-norm without centring, bucketed distances as biases, unscaled products, gated GELU, no biases",
        "248M",
    ),
    "marian": Preset(
        MARIAN,
        2020,
        "Junczys-Dowmunt et al., Marian; Tiedemann and Thottingal, OPUS-MT",
        "2017's form with biases, SiLU, and sines and cosines in halves",
        None,
    ),
    "vit": Preset(
        VIT, 2021, "Dosovitskiy et al., ViT (B/16)", "feature rows instead of words, a class piece, pre-norm", "86M"
    ),
    "minilm": Preset(
        MINILM,
        2021,
        "Wang et al., MiniLM; Reimers and Gurevych, Sentence-BERT (L6)",
        "BERT's form, small, whose mean is a sentence's vector",
        "22.7M",
    ),
    "whisper": Preset(
        WHISPER,
        2022,
        "Radford et al., Whisper (tiny.en)",
        "frames through two convolutions into the encoder; keys without bias",
        "39M",
    ),
    "pythia": Preset(
        PYTHIA,
        2023,
        "Black et al., GPT-NeoX; Biderman et al., Pythia (160M)",
        "attention and feed-forward beside each other, a quarter of each head turned",
        "162M",
    ),
    "llama2": Preset(
        LLAMA2, 2023, "Touvron et al., Llama 2 (7B)", "rotary positions, RMSNorm, gated SiLU, no biases", "6.7B"
    ),
    "mistral": Preset(
        MISTRAL, 2023, "Jiang et al., Mistral (7B)", "grouped queries and a window of 4,096 in every block", "7.2B"
    ),
    "mixtral": Preset(MIXTRAL, 2024, "Jiang et al., Mixtral (8x7B)", "eight experts of which two answer", "46.7B"),
    "llama3": Preset(
        LLAMA3,
        2024,
        "Grattafiori et al., Llama 3.1 (8B)",
        "grouped queries, a base of 500,000 and slow pairs slowed for 128k places",
        "8.0B",
    ),
    "modernbert": Preset(
        MODERNBERT,
        2024,
        "Warner et al., ModernBERT (base)",
        "BERT with rotary positions, pre-norm, gated GELU, and two of three blocks local",
        "149M",
    ),
    "olmo2": Preset(
        OLMO2,
        2024,
        "OLMo et al., OLMo 2 (7B)",
        "norms on what the branches give, and on whole queries and keys",
        "7.3B",
    ),
    "smollm2": Preset(SMOLLM2, 2025, "Allal et al., SmolLM2 (135M)", "Llama's form, deep and thin, tied", "135M"),
    "gemma3": Preset(
        GEMMA3,
        2025,
        "Gemma team, Gemma 3 (1B)",
        "five blocks with a window of 512 to one without, each kind with its own rotary base; norms on both sides",
        "1.0B",
    ),
    "qwen3": Preset(
        QWEN3, 2025, "Qwen team, Qwen3 (0.6B)", "each head's queries and keys normalised, wide heads", "0.6B"
    ),
    "qwen3-moe": Preset(
        QWEN3_MOE, 2025, "Qwen team, Qwen3 (30B-A3B)", "128 thin experts of which eight answer", "30.5B"
    ),
    "modern": Preset(
        MODERN,
        2026,
        "isoform, docs/log.md",
        "what learns fastest at laptop sizes, of the choices offered here: n-gram tables, squared ReLU, shortcuts",
    ),
    "modern-pair": Preset(
        MODERN_PAIR, 2026, "isoform, docs/log.md", "the same as an encoder and a decoder, without the tables"
    ),
}

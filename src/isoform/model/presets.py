"""Named architectures, as values, each with where it comes from. Sizes are fields like all others; a recipe changes
what it likes. `python -m isoform.model.presets` prints the table of docs/forms.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoform.config import nested, overlay, unknown_name
from isoform.model.config import (
    ModelConfig,
)
from isoform.model.decoders import (
    GEMMA3,
    GPT2,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    MIXTRAL,
    MODERN,
    MODERN_PAIR,
    OLMO2,
    PYTHIA,
    QWEN3,
    QWEN3_MOE,
    SMOLLM2,
)
from isoform.model.encoders import BART, BERT, MARIAN, MINILM, MODERNBERT, T5, TRANSFORMER, VIT, WHISPER


@dataclass(frozen=True)
class Preset:
    """An architecture and its origin; `parameters`: what its makers publish, in their rounding, if they do."""

    model: ModelConfig
    year: int
    paper: str
    changed: str
    parameters: str | None = None


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
        "the encoder alone, learned positions and token types, GELU, a head for masked tokens",
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
        VIT, 2021, "Dosovitskiy et al., ViT (B/16)", "feature rows instead of words, a class token, pre-norm", "86M"
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
        "grouped queries, a base of 500,000 and slow pairs slowed for 128k positions",
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


def preset(name: str, changes: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of a named architecture as its makers chose it, with changes by dotted path: values, configs or plain
    data, such as {"decoder.num_layers": 2, "decoder.blocks.mixer.num_heads": 4}.

    Raises ConfigError for an unknown name, and for changes that don't fit.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return overlay(PRESETS[name].model, nested(changes or {}))

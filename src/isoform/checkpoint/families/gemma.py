"""Gemma (Mesnard et al. 2024, https://arxiv.org/abs/2403.08295), Gemma 2 (Riviere et al. 2024,
https://arxiv.org/abs/2408.00118) and the text part of Gemma 3 (Gemma team 2025,
https://arxiv.org/abs/2503.19786)."""

from __future__ import annotations

import math
from dataclasses import replace

from isoform.checkpoint.families.decoder import DECODER, EVEN_HEADS, FEATURES, INNER_NORMS, block, decoder
from isoform.checkpoint.families.family import NotRepresentable
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.families.sliding import periodic_layers, two_rotaries
from isoform.checkpoint.families.table import (
    Aspect,
    Column,
    activation,
    flag,
    number,
    only,
    optional_number,
    put,
    stack_of,
)
from isoform.model.config import Lookup, ModelConfig
from isoform.model.parts import RMSNorm

_NORM = RMSNorm(zero_centered=True)
_BIAS = {"attention_bias": flag(False, "block.mixer.bias"), "use_bidirectional_attention": only(False)}


def _read_activation(fields: Fields, name: str) -> str:
    """The activation; this class takes GELU for its tanh form."""
    return "gelu_tanh" if fields.get(name) == "gelu" else fields.activation(name)


def _read_scale(config: ModelConfig, fields: Fields) -> ModelConfig:
    return put(config, {"decoder.blocks.mixer.scale": fields.count("query_pre_attn_scalar") ** -0.5})


def _write_scale(config: ModelConfig) -> dict[str, object]:
    """The number whose root divides the products, which the class takes whole. Raises NotRepresentable for another."""
    attention = stack_of(config).blocks[0].attention
    scale = attention.scale or config.head_dim(attention) ** -0.5
    square = scale**-2
    if square < 0.5 or not math.isclose(square, round(square), rel_tol=1e-12):
        raise NotRepresentable(f"attention.scale {scale:g}")
    return {"query_pre_attn_scalar": round(square)}


_SCALE = Aspect({"query_pre_attn_scalar": 256}, _read_scale, _write_scale)

GEMMA = decoder(
    "gemma",
    "Gemma",
    _BIAS
    | {
        "hidden_act": Column(
            "gelu_pytorch_tanh",
            ("block.feedforward.activation",),
            _read_activation,
            lambda value, _: ACTIVATION_NAMES[value],
        )
    },
    block=block(norm=_NORM),
    defaults={
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    tie=True,
    stem=Lookup(scale=True),
)

_GEMMA3 = {
    "hidden_activation": activation("gelu_pytorch_tanh", "block.feedforward.activation"),
    "rms_norm_eps": number(1e-6, "block.norm.epsilon", "block.mixer.qk_norm.epsilon"),
    "final_logit_softcapping": optional_number(None, "head.softcap"),
}
_OUTER_NORMS = {
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.pre_feedforward_layernorm.*",
}
GEMMA3 = {
    "hidden_activation": activation("gelu_pytorch_tanh", "block.feedforward.activation"),
    "rms_norm_eps": number(1e-6, "block.norm.epsilon", "block.mixer.qk_norm.epsilon"),
    "final_logit_softcapping": optional_number(None, "head.softcap"),
}
_OUTER_NORMS = {
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.pre_feedforward_layernorm.*",
}
_POSITIONS: dict[str, object] = {
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "partial_rotary_factor": None,
}
GEMMA2 = decoder(
    "gemma2",
    "Gemma2",
    _BIAS
    | {
        "hidden_activation": activation("gelu_pytorch_tanh", "block.feedforward.activation"),
        "attn_logit_softcapping": optional_number(50.0, "block.mixer.softcap"),
        "final_logit_softcapping": optional_number(30.0, "head.softcap"),
    },
    block=replace(block(norm=_NORM), norm_placement="sandwich"),
    sizes={name: column for name, column in FEATURES.items() if name != "hidden_act"},
    defaults={
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    tie=True,
    stem=Lookup(scale=True),
    aspects=(periodic_layers(4096, 2), _SCALE, EVEN_HEADS),
    names=DECODER | INNER_NORMS | _OUTER_NORMS,
)
GEMMA3 = decoder(
    "gemma3_text",
    "Gemma3",
    _BIAS | _GEMMA3,
    block=replace(block(norm=_NORM, qk_norm=_NORM), norm_placement="sandwich"),
    sizes={name: column for name, column in FEATURES.items() if name != "hidden_act"},
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
    tie=True,
    stem=Lookup(scale=True),
    classes=(),
    positions=periodic_layers(4096, 6, "sliding_window_pattern"),
    aspects=(two_rotaries(1_000_000.0, 10_000.0), _SCALE, EVEN_HEADS),
    names=DECODER | INNER_NORMS | _OUTER_NORMS,
)

"""The text part of Gemma 3 (Gemma team 2025, https://arxiv.org/abs/2503.19786)."""

from __future__ import annotations

import math

from isoform.checkpoint.families.decoder import (
    DECODER,
    INNER_NORMS,
    REDUNDANT,
    TIES,
    read_attention,
    read_decoder,
    read_layers,
    read_norm,
    read_window,
    require_even_heads,
    write_decoder,
    write_window,
)
from isoform.checkpoint.families.family import Family, NotRepresentable, decoder_of, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.families.rotary import read_rotaries
from isoform.checkpoint.families.sliding import (
    FULL,
    SLIDING,
    full_and_sliding,
    layer_types,
    read_blocks,
    write_rotaries,
)
from isoform.model.config import BlockConfig, ModelConfig, Vocabulary
from isoform.model.parts import Gated

_FIELDS: dict[str, object] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "partial_rotary_factor": None,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(use_bidirectional_attention=False)
    layers, every = read_layers(fields), fields.count("sliding_window_pattern")
    full = BlockConfig(
        mixer=read_attention(
            fields,
            bias=fields.flag("attention_bias"),
            qk_norm=read_norm(fields, zero_centered=True),
            scale=fields.count("query_pre_attn_scalar") ** -0.5,
        ),
        feedforward=Gated(
            feedforward_dim=fields.count("intermediate_size"), activation=fields.activation("hidden_activation")
        ),
        norm=read_norm(fields, zero_centered=True),
        norm_placement="sandwich",
    )
    position, local = read_rotaries(fields, {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}, scaled=(FULL,))
    implied = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    blocks = read_blocks(fields, implied, "sliding_window_pattern", full, read_window(fields), local)
    has_cap = fields.get("final_logit_softcapping") is not None
    softcap = fields.number("final_logit_softcapping") if has_cap else None
    return read_decoder(fields, names, blocks, position, scale=True, softcap=softcap)


def _write(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    layers = config.layers(stack)
    full, sliding = full_and_sliding(layers)
    require_even_heads(config, full)
    gated, scale = require(full.feedforward, Gated, "feedforward"), full.attention.scale
    return {
        **write_decoder(config, full),
        "intermediate_size": config.feedforward_dim(gated),
        "hidden_activation": ACTIVATION_NAMES[gated.activation],
        "layer_types": layer_types(layers),
        "sliding_window": write_window(sliding),
        "attention_bias": full.attention.bias,
        "query_pre_attn_scalar": _square(1 / (scale or config.head_dim(full.attention) ** -0.5)),
        "final_logit_softcapping": require(config.head, Vocabulary, "head").softcap,
        "rope_parameters": write_rotaries(stack, sliding),
    }


def _square(root: float) -> int:
    """The square, which the class takes as a whole number. Raises NotRepresentable for another."""
    square = root * root
    if square < 0.5 or not math.isclose(square, round(square), rel_tol=1e-12):
        raise NotRepresentable(f"attention.scale {1 / root:g}")
    return round(square)


_OUTER_NORMS = {
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.pre_feedforward_layernorm.*",
}
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fields=_FIELDS,
    read=_read,
    write=_write,
    names=DECODER | INNER_NORMS | _OUTER_NORMS,
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)

"""The text part of Gemma 3 (Gemma team 2025, https://arxiv.org/abs/2503.19786)."""

from __future__ import annotations

import math

from isoform.checkpoint.families.decoder import (
    DECODER,
    IGNORED,
    INNER_NORMS,
    read_attention,
    read_decoder,
    read_norm,
    write_decoder,
)
from isoform.checkpoint.families.family import Family, decoder_of, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.families.rotary import read_rotary
from isoform.checkpoint.families.sliding import (
    FULL,
    SLIDING,
    full_and_sliding,
    layer_types,
    read_blocks,
    write_rotaries,
)
from isoform.mask import Window
from isoform.model.config import BlockConfig, ModelConfig, Vocabulary
from isoform.model.parts import Gated, Rotary


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(attn_logit_softcapping=None, attention_bias=False, use_bidirectional_attention=False)
    layers, every = fields.count("num_hidden_layers", maximum=10_000), fields.get("sliding_window_pattern")
    every = int(str(fields.get("_sliding_window_pattern", every or 6)))
    full = BlockConfig(
        mixer=read_attention(
            fields,
            qk_norm=read_norm(fields, zero_centered=True),
            scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        ),
        feedforward=Gated(
            feedforward_dim=fields.count("intermediate_size"),
            activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        ),
        norm=read_norm(fields, zero_centered=True),
        norm_placement="sandwich",
    )
    blocks = read_blocks(
        fields,
        [SLIDING if (i + 1) % every else FULL for i in range(layers)],
        full,
        Window(fields.count("sliding_window", 4096) - 1),
        _read_sliding_rotary(fields),
    )
    return read_decoder(fields, blocks, read_rotary(fields, FULL, base=1_000_000.0), tied=True, scale=True)


def _read_sliding_rotary(fields: Fields) -> Rotary:
    if fields.get("rope_parameters"):
        return read_rotary(fields, SLIDING)
    return Rotary(base=fields.number("rope_local_base_freq", 10_000.0))


def _write(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    layers = config.layers(stack)
    full, sliding = full_and_sliding(layers)
    gated, scale = require(full.feedforward, Gated, "feedforward"), full.attention.scale
    window = require(sliding.attention.pattern, Window, "attention.pattern")
    return {
        **write_decoder(config, full),
        "intermediate_size": config.feedforward_dim(gated),
        "hidden_activation": ACTIVATION_NAMES[gated.activation],
        "layer_types": layer_types(layers),
        "sliding_window": window.before + 1,
        "query_pre_attn_scalar": _square(1 / (scale or config.head_dim(full.attention) ** -0.5)),
        "final_logit_softcapping": require(config.head, Vocabulary, "head").softcap,
        "attn_logit_softcapping": None,
        "attention_bias": False,
        "rope_parameters": write_rotaries(stack, sliding),
    }


def _square(root: float) -> float:
    """The square, as a whole number where it is one."""
    square = root * root
    return round(square) if math.isclose(square, round(square), rel_tol=1e-12) else square


_OUTER_NORMS = {
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.pre_feedforward_layernorm.*",
}
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=_read,
    write=_write,
    names=DECODER | INNER_NORMS | _OUTER_NORMS,
    ignored=IGNORED,
)

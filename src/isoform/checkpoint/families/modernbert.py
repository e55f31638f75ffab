"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663)."""

from __future__ import annotations

from isoform.checkpoint.families.family import Family, encoder_of, require
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
from isoform.model.config import BlockConfig, MaskedVocabulary, ModelConfig, StackConfig
from isoform.model.parts import Attention, Gated, LayerNorm, Rotary


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(attention_bias=False, mlp_bias=False, classifier_bias=False)
    norm = LayerNorm(epsilon=fields.number("norm_eps", 1e-5), bias=fields.flag("norm_bias", False))
    layers, every = fields.count("num_hidden_layers", maximum=10_000), fields.count("global_attn_every_n_layers", 3)
    full = BlockConfig(
        mixer=Attention(num_heads=fields.count("num_attention_heads")),
        feedforward=Gated(
            feedforward_dim=fields.count("intermediate_size"),
            activation=fields.activation("hidden_activation", "gelu"),
        ),
        norm=norm,
    )
    position, sliding_position = _read_rotaries(fields)
    half = fields.count("local_attention", 128) // 2
    default = [SLIDING if i % every else FULL for i in range(layers)]
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        encoder=StackConfig(
            num_layers=layers,
            blocks=read_blocks(fields, default, full, Window(half, half), sliding_position),
            position=position,
            input_norm=norm,
            first_norm=False,
        ),
        decoder=None,
        head=MaskedVocabulary(
            activation=fields.activation("classifier_activation", "gelu"),
            norm=norm,
            dense_bias=False,
            tied=fields.flag("tie_word_embeddings", True),
            bias=fields.flag("decoder_bias", True),
        ),
    )


def _read_rotaries(fields: Fields) -> tuple[Rotary, Rotary]:
    """The schemes of the full and of the sliding layers."""
    if fields.get("rope_parameters"):
        return read_rotary(fields, FULL, base=160_000.0), read_rotary(fields, SLIDING)
    return (
        Rotary(base=fields.number("global_rope_theta", 160_000.0)),
        Rotary(base=fields.number("local_rope_theta", 10_000.0)),
    )


def _write(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    layers, head = config.layers(stack), require(config.head, MaskedVocabulary, "head")
    full, sliding = full_and_sliding(layers)
    gated, norm = require(full.feedforward, Gated, "feedforward"), require(full.norm, LayerNorm, "norm")
    return {
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": full.attention.num_heads,
        "intermediate_size": config.feedforward_dim(gated),
        "hidden_activation": ACTIVATION_NAMES[gated.activation],
        "classifier_activation": ACTIVATION_NAMES[head.activation],
        "norm_eps": norm.epsilon,
        "norm_bias": norm.bias,
        "local_attention": 2 * require(sliding.attention.pattern, Window, "attention.pattern").before,
        "layer_types": layer_types(layers),
        "global_attn_every_n_layers": len(stack.blocks),
        "tie_word_embeddings": head.tied,
        "decoder_bias": head.bias,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "rope_parameters": write_rotaries(stack, sliding),
    }


MODERNBERT = Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    read=_read,
    write=_write,
    names={
        "stem.embedding.weight": "model.embeddings.tok_embeddings.weight",
        "encoder.input_norm.*": "model.embeddings.norm.*",
        "encoder.final_norm.*": "model.final_norm.*",
        "encoder.blocks.#.mixer_norm.before.*": "model.layers.#.attn_norm.*",
        "encoder.blocks.#.mixer.query_key_value.*": "model.layers.#.attn.Wqkv.*",
        "encoder.blocks.#.mixer.output.*": "model.layers.#.attn.Wo.*",
        "encoder.blocks.#.feedforward_norm.before.*": "model.layers.#.mlp_norm.*",
        "encoder.blocks.#.feedforward.gate_up.*": "model.layers.#.mlp.Wi.*",
        "encoder.blocks.#.feedforward.down.*": "model.layers.#.mlp.Wo.*",
        "head.dense.*": "head.dense.*",
        "head.norm.*": "head.norm.*",
        "head.weight": "decoder.weight",
        "head.bias": "decoder.bias",
    },
    ignored=("decoder.weight",),
)

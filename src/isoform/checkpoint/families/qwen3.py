"""Qwen3, dense and with experts (Yang et al. 2025, https://arxiv.org/abs/2505.09388)."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.decoder import (
    DECODER,
    FIELDS,
    PRE_NORMS,
    REDUNDANT,
    TIES,
    read_attention,
    read_decoder,
    read_gated,
    read_layers,
    read_norm,
    read_window,
    write_decoder,
    write_gated,
    write_window,
)
from isoform.checkpoint.families.family import Family, decoder_of, require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import read_rotary, write_rotary
from isoform.checkpoint.families.sliding import FULL, SLIDING, full_and_sliding, layer_types, read_blocks
from isoform.mask import Window
from isoform.model.config import BlockConfig, ModelConfig
from isoform.model.parts import Experts, Gated, TokenChoice

_FIELDS = FIELDS | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
}


def _read_block(fields: Fields) -> BlockConfig:
    attention = read_attention(fields, bias=fields.flag("attention_bias"), qk_norm=read_norm(fields))
    return BlockConfig(mixer=attention, feedforward=read_gated(fields), norm=read_norm(fields))


def _read_window(fields: Fields) -> Window | None:
    return read_window(fields) if fields.flag("use_sliding_window") else None


def _write(config: ModelConfig, block: BlockConfig, gated: Gated) -> dict:
    """The fields of both; gated: the feed-forward of layers without experts."""
    width = write_window(block)
    return {
        **write_decoder(config, block),
        **write_gated(config, gated),
        "attention_bias": block.attention.bias,
        "use_sliding_window": width is not None,
        "sliding_window": width,
        "rope_parameters": write_rotary(decoder_of(config).position),
    }


def _read_dense(fields: Fields, names: set[str]) -> ModelConfig:
    layers, window = read_layers(fields), _read_window(fields)
    first = layers if window is None else int(fields.number("max_window_layers"))
    implied = [SLIDING if i >= first else FULL for i in range(layers)]
    blocks = read_blocks(fields, implied, "max_window_layers" if window else "", _read_block(fields), window)
    return read_decoder(fields, names, blocks, read_rotary(fields))


def _write_dense(config: ModelConfig) -> dict:
    layers = config.layers(decoder_of(config))
    _, sliding = full_and_sliding(layers)
    written = _write(config, sliding, require(sliding.feedforward, Gated, "feedforward"))
    return {**written, "layer_types": layer_types(layers)}


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=_FIELDS | {"max_window_layers": 28, "layer_types": None},
    read=_read_dense,
    write=_write_dense,
    names=DECODER | PRE_NORMS,
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)


def _read_experts(fields: Fields, names: set[str]) -> ModelConfig:
    layers, step, dense = read_layers(fields), fields.count("decoder_sparse_step"), fields.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ValueError(f"{fields.where}: mlp_only_layers={dense!r} is no list of layers")
    block = _read_block(fields)
    block = replace(block, mixer=replace(block.attention, pattern=_read_window(fields)))
    experts = Experts(
        num_experts=fields.count("num_local_experts", maximum=10_000),
        expert=read_gated(fields, size="moe_intermediate_size"),
        router=TokenChoice(
            num_active=fields.count("num_experts_per_tok"),
            normalize=fields.flag("norm_topk_prob"),
            balance_loss=fields.number("router_aux_loss_coef"),
        ),
    )
    sparse = replace(block, feedforward=experts)
    blocks = tuple(sparse if i not in dense and (i + 1) % step == 0 else block for i in range(layers))
    return read_decoder(fields, names, shortest_period(blocks), read_rotary(fields))


def _write_experts(config: ModelConfig) -> dict:
    layers = config.layers(decoder_of(config))
    sparse = next((block for block in layers if isinstance(block.feedforward, Experts)), layers[0])
    experts = require(sparse.feedforward, Experts, "feedforward")
    router = require(experts.router, TokenChoice, "feedforward.router")
    dense = next((block.feedforward for block in layers if isinstance(block.feedforward, Gated)), experts.expert)
    return {
        **_write(config, sparse, require(dense, Gated, "feedforward.expert")),
        "moe_intermediate_size": write_gated(config, experts.expert)["intermediate_size"],
        "num_experts": experts.num_experts,
        "num_experts_per_tok": router.num_active,
        "norm_topk_prob": router.normalize,
        "router_aux_loss_coef": router.balance_loss,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, block in enumerate(layers) if not isinstance(block.feedforward, Experts)],
    }


_EXPERTS = {
    "decoder.blocks.#.feedforward.router.weight": "model.layers.#.mlp.gate.weight",
    "decoder.blocks.#.feedforward.experts.gate_up": "model.layers.#.mlp.experts.@.[gate_proj|up_proj].weight",
    "decoder.blocks.#.feedforward.experts.down": "model.layers.#.mlp.experts.@.down_proj.weight",
}
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=_FIELDS
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "head_dim": None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 768,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.001,
    },
    read=_read_experts,
    write=_write_experts,
    names=DECODER | PRE_NORMS | _EXPERTS,
    aliases={"num_experts": "num_local_experts"},
    newer_names={
        "model.layers.#.mlp.experts.gate_up_proj": "model.layers.#.mlp.experts.@.[gate_proj|up_proj].weight",
        "model.layers.#.mlp.experts.down_proj": "model.layers.#.mlp.experts.@.down_proj.weight",
    },
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)

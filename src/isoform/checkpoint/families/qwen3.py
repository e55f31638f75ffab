"""Qwen3, dense and with experts (Yang et al. 2025, https://arxiv.org/abs/2505.09388)."""

from __future__ import annotations

from isoform.checkpoint.families.decoder import (
    DECODER,
    IGNORED,
    PRE_NORMS,
    read_attention,
    read_decoder,
    read_gated,
    read_norm,
    write_decoder,
    write_gated,
)
from isoform.checkpoint.families.family import Family, decoder_of, require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import read_rotary, write_rotary
from isoform.model.config import BlockConfig, ModelConfig
from isoform.model.parts import Experts, FeedForward, TokenChoice

_FIXED = {"attention_bias": False, "use_sliding_window": False}
_FIXED_EXPERTS = {"decoder_sparse_step": 1, "mlp_only_layers": [], **_FIXED}


def _read(fields: Fields, feedforward: FeedForward) -> ModelConfig:
    kinds = fields.get("layer_types", ["full_attention"])
    if not isinstance(kinds, list) or {*map(str, kinds)} != {"full_attention"}:
        raise ValueError(f"{fields.where}: layer_types={kinds!r} is not supported, only full_attention")
    attention = read_attention(fields, qk_norm=read_norm(fields))
    block = BlockConfig(mixer=attention, feedforward=feedforward, norm=read_norm(fields))
    return read_decoder(fields, (block,), read_rotary(fields))


def _read_dense(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(**_FIXED)
    return _read(fields, read_gated(fields))


def _write_dense(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    return {
        **write_decoder(config, block),
        **write_gated(config, block.feedforward),
        **_FIXED,
        "rope_parameters": write_rotary(stack.position),
    }


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=_read_dense,
    write=_write_dense,
    names=DECODER | PRE_NORMS,
    ignored=IGNORED,
)


def _read_experts(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(**_FIXED_EXPERTS)
    fields.count("intermediate_size", 1)  # of dense layers, of which there are none
    experts = Experts(
        num_experts=fields.count("num_experts", fields.count("num_local_experts", 128, maximum=10_000), maximum=10_000),
        expert=read_gated(fields, size="moe_intermediate_size"),
        router=TokenChoice(
            num_active=fields.count("num_experts_per_tok", 8),
            normalize=fields.flag("norm_topk_prob", False),
            balance_loss=fields.number("router_aux_loss_coef", 0.001),
        ),
    )
    return _read(fields, experts)


def _write_experts(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    experts = require(block.feedforward, Experts, "feedforward")
    router = require(experts.router, TokenChoice, "feedforward.router")
    expert = write_gated(config, experts.expert)
    return {
        **write_decoder(config, block),
        **expert,
        "moe_intermediate_size": expert["intermediate_size"],
        "num_experts": experts.num_experts,
        "num_experts_per_tok": router.num_active,
        "norm_topk_prob": router.normalize,
        "router_aux_loss_coef": router.balance_loss,
        **_FIXED_EXPERTS,
        "rope_parameters": write_rotary(stack.position),
    }


_EXPERTS = {
    "decoder.blocks.#.feedforward.router.weight": "model.layers.#.mlp.gate.weight",
    "decoder.blocks.#.feedforward.experts.gate_up": "model.layers.#.mlp.experts.@.[gate_proj|up_proj].weight",
    "decoder.blocks.#.feedforward.experts.down": "model.layers.#.mlp.experts.@.down_proj.weight",
}
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read=_read_experts,
    write=_write_experts,
    names=DECODER | PRE_NORMS | _EXPERTS,
    ignored=IGNORED,
)

"""Mistral (Jiang et al. 2023, https://arxiv.org/abs/2310.06825) and Mixtral (2024, https://arxiv.org/abs/2401.04088)."""

from __future__ import annotations

from isoform.checkpoint.families.decoder import (
    DECODER,
    FIELDS,
    PRE_NORMS,
    REDUNDANT,
    TIES,
    read_attention,
    read_decoder,
    read_gated,
    read_norm,
    read_window,
    write_decoder,
    write_gated,
    write_window,
)
from isoform.checkpoint.families.family import Family, decoder_of, require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import read_rotary, write_rotary
from isoform.model.config import BlockConfig, ModelConfig
from isoform.model.parts import Experts, TokenChoice

_FIELDS = FIELDS | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131_072}


def _read_mistral(fields: Fields, names: set[str]) -> ModelConfig:
    block = BlockConfig(
        mixer=read_attention(fields, pattern=read_window(fields)),
        feedforward=read_gated(fields),
        norm=read_norm(fields),
    )
    return read_decoder(fields, names, (block,), read_rotary(fields))


def _write_mistral(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    return {
        **write_decoder(config, block),
        **write_gated(config, block.feedforward),
        "sliding_window": write_window(block),
        "rope_parameters": write_rotary(stack.position),
    }


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=_FIELDS | {"sliding_window": 4096},
    read=_read_mistral,
    write=_write_mistral,
    names=DECODER | PRE_NORMS,
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)


def _read_mixtral(fields: Fields, names: set[str]) -> ModelConfig:
    experts = Experts(
        num_experts=fields.count("num_local_experts", maximum=10_000),
        expert=read_gated(fields),
        router=TokenChoice(
            num_active=fields.count("num_experts_per_tok"), balance_loss=fields.number("router_aux_loss_coef")
        ),
    )
    attention = read_attention(fields, pattern=read_window(fields))
    block = BlockConfig(mixer=attention, feedforward=experts, norm=read_norm(fields))
    return read_decoder(fields, names, (block,), read_rotary(fields))


def _write_mixtral(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    experts = require(block.feedforward, Experts, "feedforward")
    router = require(experts.router, TokenChoice, "feedforward.router")
    return {
        **write_decoder(config, block),
        **write_gated(config, experts.expert),
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": router.num_active,
        "router_aux_loss_coef": router.balance_loss,
        "sliding_window": write_window(block),
        "rope_parameters": write_rotary(stack.position),
    }


_EXPERTS = {
    "decoder.blocks.#.feedforward.router.weight": "model.layers.#.block_sparse_moe.gate.weight",
    "decoder.blocks.#.feedforward.experts.gate_up": "model.layers.#.block_sparse_moe.experts.@.[w1|w3].weight",
    "decoder.blocks.#.feedforward.experts.down": "model.layers.#.block_sparse_moe.experts.@.w2.weight",
}
MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fields=_FIELDS
    | {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
    aliases={"num_experts": "num_local_experts"},
    newer_names={
        "model.layers.#.mlp.gate.weight": "model.layers.#.block_sparse_moe.gate.weight",
        "model.layers.#.mlp.experts.gate_up_proj": "model.layers.#.block_sparse_moe.experts.@.[w1|w3].weight",
        "model.layers.#.mlp.experts.down_proj": "model.layers.#.block_sparse_moe.experts.@.w2.weight",
    },
    read=_read_mixtral,
    write=_write_mixtral,
    names=DECODER | PRE_NORMS | _EXPERTS,
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)

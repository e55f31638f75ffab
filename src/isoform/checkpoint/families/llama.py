"""Llama 2 and 3, and other models of that model_type (Touvron et al. 2023, https://arxiv.org/abs/2307.09288)."""

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
    require_even_heads,
    write_decoder,
    write_gated,
)
from isoform.checkpoint.families.family import Family, decoder_of, require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import read_rotary, write_rotary
from isoform.model.config import BlockConfig, ModelConfig
from isoform.model.parts import Gated


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    block = BlockConfig(
        mixer=read_attention(fields, bias=fields.flag("attention_bias")),
        feedforward=read_gated(fields, bias=fields.flag("mlp_bias")),
        norm=read_norm(fields),
    )
    return read_decoder(fields, names, (block,), read_rotary(fields))


def _write(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    require_even_heads(config, block)
    return {
        **write_decoder(config, block),
        **write_gated(config, block.feedforward),
        "attention_bias": block.attention.bias,
        "mlp_bias": require(block.feedforward, Gated, "feedforward").bias,
        "rope_parameters": write_rotary(stack.position),
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=FIELDS | {"attention_bias": False, "mlp_bias": False},
    read=_read,
    write=_write,
    names=DECODER | PRE_NORMS,
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)

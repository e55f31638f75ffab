"""OLMo 2 (OLMo team 2024, https://arxiv.org/abs/2501.00656)."""

from __future__ import annotations

from isoform.checkpoint.families.decoder import (
    DECODER,
    FIELDS,
    INNER_NORMS,
    REDUNDANT,
    TIES,
    read_attention,
    read_decoder,
    read_gated,
    read_norm,
    write_decoder,
    write_gated,
)
from isoform.checkpoint.families.family import Family, decoder_of
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import read_rotary, write_rotary
from isoform.model.config import BlockConfig, ModelConfig


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    block = BlockConfig(
        mixer=read_attention(
            fields,
            bias=fields.flag("attention_bias"),
            qk_norm=read_norm(fields),
            qk_norm_over="projection",
        ),
        feedforward=read_gated(fields),
        norm=read_norm(fields),
        norm_placement="reordered",
    )
    return read_decoder(fields, names, (block,), read_rotary(fields))


def _write(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    written = {
        **write_decoder(config, block),
        **write_gated(config, block.feedforward),
        "attention_bias": block.attention.bias,
        "rope_parameters": write_rotary(stack.position),
    }
    if config.head_dim(block.attention) * block.attention.num_heads == config.model_dim:
        del written["head_dim"]  # which the class reads if it is there, though its config doesn't name it
    return written


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fields=FIELDS | {"vocab_size": 50304, "rms_norm_eps": 1e-5, "attention_bias": False},
    read=_read,
    write=_write,
    names=DECODER | INNER_NORMS,
    ties=TIES,
    redundant=REDUNDANT,
    prefix="model.",
)

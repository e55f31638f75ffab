"""Common to the encoder-decoders with BART's field names: each stack has its own sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from isoform.checkpoint.families.family import require, stacks_of
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.parts import Attention, Dense

Placement = Literal["pre", "post"]
_SIZES = {"layers": 12, "ffn_dim": 4096, "attention_heads": 16}


FIELDS: dict[str, object] = {
    "d_model": 1024,
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIZES.items()},
    "activation_function": "gelu",
    "tie_word_embeddings": True,
}
"""The fields of all, with BART's defaults; a family adds its own."""
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}


def read_encoder_decoder(
    fields: Fields, stack: StackConfig, *, placement: Placement, key_bias: bool = True, **options: Any
) -> ModelConfig:
    """The model whose stacks are `stack` with the sizes of each and this norm placement; `options`: fields of ours."""
    stacks: dict[str, Any] = {
        side: replace(
            stack,
            num_layers=fields.count(f"{side}_layers", maximum=10_000),
            blocks=(_block(fields, side, placement, key_bias),),
            cross="separate" if side == "decoder" else "none",
        )
        for side in ("encoder", "decoder")
    }
    return ModelConfig(model_dim=fields.count("d_model"), vocab_size=fields.count("vocab_size"), **stacks, **options)


def _block(fields: Fields, side: str, placement: Placement, key_bias: bool) -> BlockConfig:
    return BlockConfig(
        mixer=Attention(num_heads=fields.count(f"{side}_attention_heads"), bias=True, key_bias=key_bias),
        feedforward=Dense(
            feedforward_dim=fields.count(f"{side}_ffn_dim"),
            activation=fields.activation("activation_function"),
            bias=True,
        ),
        norm_placement=placement,
    )


def write_encoder_decoder(config: ModelConfig) -> dict:
    """The fields of sizes, of both stacks."""
    encoder, decoder = stacks_of(config)
    written: dict = {"is_encoder_decoder": True, "d_model": config.model_dim, "vocab_size": config.vocab_size}
    written["decoder_start_token_id"] = 0  # which the class requires
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        dense = require(stack.blocks[0].feedforward, Dense, "feedforward")
        written[f"{side}_layers"] = stack.num_layers
        written[f"{side}_attention_heads"] = stack.blocks[0].attention.num_heads
        written[f"{side}_ffn_dim"] = config.feedforward_dim(dense)
        written["activation_function"] = ACTIVATION_NAMES[dense.activation]
    return {**written, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def names_of_stacks(norm: Literal["before", "after"]) -> dict[str, str]:
    """The names in both stacks; `norm`: whether norms come before or after."""
    return _names("encoder", norm) | _names("decoder", norm) | _cross_names(norm)


def _names(stack: str, norm: str) -> dict[str, str]:
    ours, theirs = f"{stack}.blocks.#", f"model.{stack}.layers.#"
    return {
        f"{ours}.mixer_norm.{norm}.*": f"{theirs}.self_attn_layer_norm.*",
        f"{ours}.mixer.query_key_value.*": f"{theirs}.self_attn.[q_proj|k_proj|v_proj].*",
        f"{ours}.mixer.gap_bias.bias": f"{theirs}.self_attn.[q_proj|v_proj].bias",
        f"{ours}.mixer.output.*": f"{theirs}.self_attn.out_proj.*",
        f"{ours}.feedforward_norm.{norm}.*": f"{theirs}.final_layer_norm.*",
        f"{ours}.feedforward.up.*": f"{theirs}.fc1.*",
        f"{ours}.feedforward.down.*": f"{theirs}.fc2.*",
        f"{stack}.position.table": f"model.{stack}.embed_positions.weight",
        f"{stack}.input_norm.*": f"model.{stack}.layernorm_embedding.*",
        f"{stack}.final_norm.*": f"model.{stack}.layer_norm.*",
    }


def _cross_names(norm: str) -> dict[str, str]:
    return {
        f"decoder.blocks.#.cross_norm.{norm}.*": "model.decoder.layers.#.encoder_attn_layer_norm.*",
        "decoder.blocks.#.cross.query.*": "model.decoder.layers.#.encoder_attn.q_proj.*",
        "decoder.blocks.#.cross.key_value.*": "model.decoder.layers.#.encoder_attn.[k_proj|v_proj].*",
        "decoder.blocks.#.cross.gap_bias.bias": "model.decoder.layers.#.encoder_attn.v_proj.bias",
        "decoder.blocks.#.cross.output.*": "model.decoder.layers.#.encoder_attn.out_proj.*",
    }

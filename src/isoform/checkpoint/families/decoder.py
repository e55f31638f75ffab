"""Common to the decoders derived from Llama: fields, and names of tensors that differ in the norms only."""

from __future__ import annotations

from typing import Any

from isoform.checkpoint.families.family import NotRepresentable, decoder_of, reads_tied, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.families.rotary import ROTARY
from isoform.mask import Window
from isoform.model.config import BlockConfig, Lookup, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import Attention, FeedForward, Gated, RMSNorm, Rotary

FIELDS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    **ROTARY,
}
"""The fields of all, with Llama's defaults; a family adds its own."""


def read_attention(fields: Fields, **options: Any) -> Attention:
    """The attention with the heads of the config; `options`: further fields of ours."""
    return Attention(
        num_heads=fields.count("num_attention_heads"),
        num_kv_heads=fields.optional("num_key_value_heads"),
        head_dim=fields.optional("head_dim"),
        **options,
    )


def read_window(fields: Fields) -> Window | None:
    """The window of all layers; ours doesn't count the token itself."""
    width = fields.optional("sliding_window")
    return None if width is None else Window(width - 1)


def read_gated(fields: Fields, *, size: str = "intermediate_size", bias: bool = False) -> Gated:
    """The feed-forward, or an expert, with its width in the field `size`."""
    return Gated(feedforward_dim=fields.count(size), activation=fields.activation("hidden_act"), bias=bias)


def read_norm(fields: Fields, *, zero_centered: bool = False) -> RMSNorm:
    """The norm of all layers."""
    return RMSNorm(epsilon=fields.number("rms_norm_eps"), zero_centered=zero_centered)


def read_layers(fields: Fields) -> int:
    """The number of layers."""
    return fields.count("num_hidden_layers", maximum=10_000)


def read_decoder(
    fields: Fields,
    names: set[str],
    blocks: tuple[BlockConfig, ...],
    position: Rotary,
    *,
    scale: bool = False,
    softcap: float | None = None,
) -> ModelConfig:
    """The model around the blocks. scale: whether embeddings are scaled; softcap: that of the scores."""
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        stem=Lookup(scale=scale),
        decoder=StackConfig(num_layers=read_layers(fields), blocks=blocks, position=position),
        head=Vocabulary(tied=reads_tied(fields, names, "lm_head.weight"), softcap=softcap),
    )


def write_decoder(config: ModelConfig, block: BlockConfig) -> dict:
    """The fields of sizes, norm and head."""
    attention, norm = block.attention, require(block.norm, RMSNorm, "norm")
    return {
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": decoder_of(config).num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads or attention.num_heads,
        "head_dim": config.head_dim(block.attention),
        "rms_norm_eps": norm.epsilon,
        "tie_word_embeddings": require(config.head, Vocabulary, "head").tied,
    }


def require_even_heads(config: ModelConfig, block: BlockConfig) -> None:
    """Raises NotRepresentable for heads that don't divide the width, which some classes refuse, used or not."""
    if config.model_dim % block.attention.num_heads:
        raise NotRepresentable(f"model_dim {config.model_dim} with num_heads {block.attention.num_heads}")


def write_gated(config: ModelConfig, feedforward: FeedForward | None) -> dict:
    """The fields of the feed-forward, or of an expert."""
    gated = require(feedforward, Gated, "feedforward")
    return {"intermediate_size": config.feedforward_dim(gated), "hidden_act": ACTIVATION_NAMES[gated.activation]}


def write_window(block: BlockConfig) -> int | None:
    """The window of all layers."""
    pattern = block.attention.pattern
    return None if pattern is None else require(pattern, Window, "attention.pattern").before + 1


DECODER = {
    "stem.embedding.weight": "model.embed_tokens.weight",
    "decoder.final_norm.*": "model.norm.*",
    "head.weight": "lm_head.weight",
    "decoder.blocks.#.mixer.query_key_value.*": "model.layers.#.self_attn.[q_proj|k_proj|v_proj].*",
    "decoder.blocks.#.mixer.output.*": "model.layers.#.self_attn.o_proj.*",
    "decoder.blocks.#.mixer.query_norm.*": "model.layers.#.self_attn.q_norm.*",
    "decoder.blocks.#.mixer.key_norm.*": "model.layers.#.self_attn.k_norm.*",
    "decoder.blocks.#.feedforward.gate_up.*": "model.layers.#.mlp.[gate_proj|up_proj].*",
    "decoder.blocks.#.feedforward.down.*": "model.layers.#.mlp.down_proj.*",
}
PRE_NORMS = {
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.post_attention_layernorm.*",
}
INNER_NORMS = {
    "decoder.blocks.#.mixer_norm.inner.*": "model.layers.#.post_attention_layernorm.*",
    "decoder.blocks.#.feedforward_norm.inner.*": "model.layers.#.post_feedforward_layernorm.*",
}
TIES = {"lm_head.weight": "model.embed_tokens.weight"}
REDUNDANT = ("*.rotary_emb.inv_freq",)

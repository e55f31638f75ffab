"""What the decoders derived from Llama share: fields, classes, and names of tensors, which differ in the norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from isoform.checkpoint.families.family import Family, HeadClass, NotRepresentable
from isoform.checkpoint.families.rotary import rotary
from isoform.checkpoint.families.table import (
    Aspect,
    Column,
    activation,
    count,
    layers,
    number,
    optional,
    table,
    with_defaults,
)
from isoform.model.config import BlockConfig, Head, Lookup, ModelConfig, Pooled, StackConfig, Vocabulary
from isoform.model.parts import Attention, FeedForward, Gated, Norm, RMSNorm

SIZES: dict[str, Column] = {
    "vocab_size": count(32_000, "vocab_size"),
    "hidden_size": count(4096, "model_dim"),
    "intermediate_size": count(11_008, "block.feedforward.feedforward_dim"),
    "num_hidden_layers": layers(32, "stack.num_layers"),
    "num_attention_heads": count(32, "block.mixer.num_heads"),
    "num_key_value_heads": optional(None, "block.mixer.num_kv_heads"),
    "hidden_act": activation("silu", "block.feedforward.activation"),
    "max_position_embeddings": count(2048, "context_length"),
}
"""The fields of nearly all, with Llama's defaults."""
HEAD_DIM = {"head_dim": optional(None, "block.mixer.head_dim")}
RMS = {"rms_norm_eps": number(1e-6, "block.norm.epsilon")}
FEATURES = SIZES | HEAD_DIM | RMS
"""Llama's own."""


_GATED, _NORM = Gated(), RMSNorm()


def block(feedforward: FeedForward = _GATED, norm: Norm = _NORM, **attention: Any) -> BlockConfig:
    """Llama's block with another feed-forward, another norm, and fields of its attention."""
    return BlockConfig(mixer=Attention(**attention), feedforward=feedforward, norm=norm)


LLAMA_BLOCK = block()


def decoder(
    model_type: str,
    base: str,
    columns: Mapping[str, Column] | None = None,
    *,
    block: BlockConfig = LLAMA_BLOCK,
    defaults: Mapping[str, object] | None = None,
    tie: bool = False,
    stem: Lookup | None = None,
    stack: StackConfig | None = None,
    head: Vocabulary | None = None,
    weight: str = "lm_head.weight",
    causal: str = "ForCausalLM",
    tags: str = "score",
    classes: tuple[str, ...] = ("ForTokenClassification", "ForSequenceClassification"),
    sizes: Mapping[str, Column] = FEATURES,
    positions: Aspect | None = None,
    aspects: tuple[Aspect, ...] = (),
    names: Mapping[str, str] | None = None,
    ties: Mapping[str, str] | None = None,
    redundant: tuple[str, ...] = ("*.rotary_emb.inv_freq",),
    prefix: str = "model.",
    **options: Any,
) -> Family:
    """A decoder whose fields are `sizes`, with other `defaults`, and `columns`; base: the beginning of its classes'
    names, which ends in `causal`; classes: which others it has; weight, tags: what their heads are called; positions:
    rotary by default, with a `stack` of its own perhaps another scheme."""
    plain = stack or StackConfig(position=None)
    template = ModelConfig(decoder=replace(plain, blocks=(block,)), stem=stem or Lookup(), head=head or Vocabulary())
    return table(
        model_type,
        template,
        with_defaults({**sizes, **(columns or {})}, **(defaults or {})),
        decoder_heads(base, classes, template.head, weight=weight, causal=causal, tags=tags),
        tie=tie,
        aspects=(positions or rotary(), *aspects),
        names=names or DECODER | PRE_NORMS,
        ties=TIES if ties is None else ties,
        redundant=redundant,
        prefix=prefix,
        **options,
    )


def decoder_heads(
    base: str, classes: tuple[str, ...], head: Head, *, weight: str, causal: str, tags: str
) -> tuple[HeadClass, ...]:
    """A decoder's classes: one class per token, one of the whole text by its last token, and the next token."""
    return (
        *_classifiers(base, classes, tags),
        HeadClass(f"{base}{causal}", head, {"head.weight": weight, "head.bias": weight.replace("weight", "bias")}),
    )


def _classifiers(base: str, classes: tuple[str, ...], tags: str) -> list[HeadClass]:
    return [
        HeadClass(f"{base}{kind}", head, {"head.output.*": f"{name}.*"}, (f"{name}.{sign}",))
        for kind, name, sign, head in (
            ("ForTokenClassification", tags, "bias", Pooled(over="each")),
            ("ForSequenceClassification", "score", "weight", Pooled(over="last", bias=False)),
        )
        if kind in classes
    ]


def _write_even(config: ModelConfig) -> dict[str, object]:
    (stack,) = config.stacks
    heads = stack.blocks[0].attention.num_heads
    if config.model_dim % heads:
        raise NotRepresentable(f"model_dim {config.model_dim} with num_heads {heads}")
    return {}


EVEN_HEADS = Aspect(write=_write_even)
"""Of a class that refuses heads that don't divide the width, whether they must or not."""

DECODER = {
    "stem.embedding.weight": "model.embed_tokens.weight",
    "decoder.final_norm.*": "model.norm.*",
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

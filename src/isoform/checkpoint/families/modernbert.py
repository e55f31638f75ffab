"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663)."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.family import Family, HeadClass, encoder_of, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.families.rotary import read_rotaries
from isoform.checkpoint.families.sliding import (
    FULL,
    SLIDING,
    full_and_sliding,
    layer_types,
    read_blocks,
    write_rotaries,
)
from isoform.checkpoint.families.table import LABELS, read_head, write_head
from isoform.mask import Window
from isoform.model.config import BlockConfig, Head, MaskedVocabulary, ModelConfig, Pooled, StackConfig
from isoform.model.parts import Attention, Gated, LayerNorm

_FIELDS: dict[str, object] = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "layer_types": None,
    "global_attn_every_n_layers": 3,
    "rope_parameters": None,
    "rope_scaling": None,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "partial_rotary_factor": None,
    "local_attention": 128,
    "sliding_window": None,
    "mlp_bias": False,
    "decoder_bias": True,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "classifier_pooling": "cls",
    "tie_word_embeddings": True,
    **LABELS,
}


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    norm = LayerNorm(epsilon=fields.number("norm_eps"), bias=fields.flag("norm_bias"))
    layers, every = fields.count("num_hidden_layers", maximum=10_000), fields.count("global_attn_every_n_layers")
    full = BlockConfig(
        mixer=Attention(num_heads=fields.count("num_attention_heads"), bias=fields.flag("attention_bias")),
        feedforward=Gated(
            feedforward_dim=fields.count("intermediate_size"),
            activation=fields.activation("hidden_activation"),
            bias=fields.flag("mlp_bias"),
        ),
        norm=norm,
    )
    bases = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
    position, local = read_rotaries(fields, bases, scaled=(FULL, SLIDING))
    half = fields.optional("sliding_window") or fields.count("local_attention") // 2
    implied = [SLIDING if i % every else FULL for i in range(layers)]
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        encoder=StackConfig(
            num_layers=layers,
            blocks=read_blocks(fields, implied, "global_attn_every_n_layers", full, Window(half, half), local),
            position=position,
            input_norm=norm,
            first_norm=False,
        ),
        decoder=None,
        head=_read_head(fields, names, norm),
    )


def _read_head(fields: Fields, names: set[str], norm: LayerNorm) -> Head:
    """The head of the class whose tensors are there."""
    activation, bias = fields.activation("classifier_activation"), fields.flag("classifier_bias")
    pooling, head = fields.get("classifier_pooling"), read_head(fields, names, MODERNBERT)
    if pooling not in ("cls", "mean"):
        raise ValueError(f"{fields.where}: classifier_pooling={pooling!r} is neither cls nor mean")
    match head:
        case MaskedVocabulary():
            bias_of_scores = fields.flag("decoder_bias")
            return replace(head, activation=activation, norm=norm, dense_bias=bias, bias=bias_of_scores)
        case Pooled(dense=True, over=over):
            over = "mean" if over == "first" and pooling == "mean" else over
            return replace(head, over=over, activation=activation, norm=norm, dense_bias=bias)
        case _:
            return head


def _write(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    layers = config.layers(stack)
    full, sliding = full_and_sliding(layers)
    gated, norm = require(full.feedforward, Gated, "feedforward"), require(full.norm, LayerNorm, "norm")
    pattern = sliding.attention.pattern
    return {
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": full.attention.num_heads,
        "intermediate_size": config.feedforward_dim(gated),
        "hidden_activation": ACTIVATION_NAMES[gated.activation],
        "norm_eps": norm.epsilon,
        "norm_bias": norm.bias,
        "local_attention": 2 * require(pattern, Window, "attention.pattern").before if pattern else 128,
        "layer_types": layer_types(layers),
        "attention_bias": full.attention.bias,
        "mlp_bias": gated.bias,
        **_write_head(config.head),
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "rope_parameters": write_rotaries(stack, sliding),
    }


def _write_head(head: Head) -> dict[str, object]:
    written = write_head(head, MODERNBERT)
    match head:
        case MaskedVocabulary():
            written["decoder_bias"] = head.bias
        case Pooled(over=over):
            written["classifier_pooling"] = "mean" if over == "mean" else "cls"
    if isinstance(head, MaskedVocabulary) or (isinstance(head, Pooled) and head.dense):
        written["classifier_activation"] = ACTIVATION_NAMES[head.activation]
        written["classifier_bias"] = head.dense_bias
    return written


_DENSE = {"head.dense.*": "head.dense.*", "head.norm.*": "head.norm.*"}
_OUTPUT = _DENSE | {"head.output.*": "classifier.*"}
_CLASSIFIES = ("head.dense.weight", "classifier.weight")
_POOLED = Pooled(dense=True, norm=LayerNorm())
_HEADS = (
    HeadClass("ModernBertForSequenceClassification", Pooled(dense=True, norm=LayerNorm()), _OUTPUT, _CLASSIFIES),
    HeadClass(
        "ModernBertForTokenClassification", Pooled(over="each", dense=True, norm=LayerNorm()), _OUTPUT, _CLASSIFIES
    ),
    HeadClass(
        "ModernBertForMaskedLM",
        MaskedVocabulary(),
        _DENSE | {"head.weight": "decoder.weight", "head.bias": "decoder.bias"},
        ("head.dense.weight",),
    ),
    HeadClass("ModernBertModel", Pooled(over="mean", embed=True)),
)
MODERNBERT = Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    fields=_FIELDS,
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
    },
    heads=_HEADS,
    ties={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    prefix="model.",
)

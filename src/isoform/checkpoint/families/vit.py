"""The Vision Transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929) as an image classifier."""

from __future__ import annotations

import math

from isoform.checkpoint.families.family import Family, NotRepresentable, encoder_of, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.families.table import LABELS, read_labels, write_labels
from isoform.checkpoint.tensors import Reshaped
from isoform.model.config import BlockConfig, Linear, ModelConfig, Pooled, StackConfig
from isoform.model.parts import Attention, Dense, LayerNorm, Learned

_FIELDS: dict[str, object] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    **LABELS,
}


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    side, patch, channels = _side(fields, "image_size"), _side(fields, "patch_size"), fields.count("num_channels")
    block = BlockConfig(
        mixer=Attention(num_heads=fields.count("num_attention_heads"), bias=fields.flag("qkv_bias"), output_bias=True),
        feedforward=Dense(
            feedforward_dim=fields.count("intermediate_size"), activation=fields.activation("hidden_act"), bias=True
        ),
        norm=LayerNorm(epsilon=fields.number("layer_norm_eps")),
    )
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=(side // patch) ** 2 + 1,
        vocab_size=1,
        encoder=StackConfig(
            num_layers=fields.count("num_hidden_layers", maximum=10_000), blocks=(block,), position=Learned()
        ),
        decoder=None,
        stem=Linear(num_features=channels * patch * patch, num_ids=1),
        head=Pooled(num_outputs=read_labels(fields)) if "classifier.weight" in names else Pooled(embed=True),
    )


def _side(fields: Fields, name: str) -> int:
    """The side of a square, which may be given twice."""
    value = fields.get(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return Fields({name: value[0]}, fields.where).count(name, maximum=100_000)
    return fields.count(name, maximum=100_000)


def _write(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    block = stack.blocks[0]
    dense, (channels, patch) = require(block.feedforward, Dense, "feedforward"), _patch(config)
    head = require(config.head, Pooled, "head")
    labels = 0 if head.embed else head.num_outputs
    return {
        "architectures": ["ViTForImageClassification" if labels else "ViTModel"],
        "hidden_size": config.model_dim,
        "image_size": math.isqrt(config.context_length - 1) * patch,
        "patch_size": patch,
        "num_channels": channels,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": config.feedforward_dim(dense),
        "hidden_act": ACTIVATION_NAMES[dense.activation],
        "layer_norm_eps": require(block.norm, LayerNorm, "norm").epsilon,
        "qkv_bias": block.attention.bias,
        **(write_labels(labels) if labels else {}),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _patch(config: ModelConfig) -> tuple[int, int]:
    """Channels, three or one, and side of a square patch."""
    features = require(config.stem, Linear, "stem").num_features
    channels = 3 if features % 3 == 0 else 1
    side = math.isqrt(features // channels)
    if side * side * channels != features:
        raise NotRepresentable(f"stem.num_features {features}")
    return channels, side


def _projection_shape(config: ModelConfig) -> tuple[int, ...]:
    channels, side = _patch(config)
    return config.model_dim, channels, side, side


VIT = Family(
    model_type="vit",
    architecture="ViTForImageClassification",
    fields=_FIELDS,
    read=_read,
    write=_write,
    names={
        "stem.projection.*": "vit.embeddings.patch_embeddings.projection.*",
        "stem.embedding.weight": "vit.embeddings.cls_token",
        "encoder.position.table": "vit.embeddings.position_embeddings",
        "encoder.final_norm.*": "vit.layernorm.*",
        "encoder.blocks.#.mixer_norm.before.*": "vit.encoder.layer.#.layernorm_before.*",
        "encoder.blocks.#.feedforward_norm.before.*": "vit.encoder.layer.#.layernorm_after.*",
        "encoder.blocks.#.mixer.query_key_value.*": "vit.encoder.layer.#.attention.attention.[query|key|value].*",
        "encoder.blocks.#.mixer.output.*": "vit.encoder.layer.#.attention.output.dense.*",
        "encoder.blocks.#.feedforward.up.*": "vit.encoder.layer.#.intermediate.dense.*",
        "encoder.blocks.#.feedforward.down.*": "vit.encoder.layer.#.output.dense.*",
        "head.output.*": "classifier.*",
    },
    transforms={
        "stem.projection.weight": Reshaped(_projection_shape, order=(0, 2, 3, 1)),
        "stem.embedding.weight": Reshaped(lambda config: (1, 1, config.model_dim)),
        "encoder.position.table": Reshaped(lambda config: (1, config.context_length, config.model_dim)),
    },
    newer_names={
        "vit.layers.#.layernorm_before.*": "vit.encoder.layer.#.layernorm_before.*",
        "vit.layers.#.layernorm_after.*": "vit.encoder.layer.#.layernorm_after.*",
        **{
            f"vit.layers.#.attention.{part[0]}_proj.*": f"vit.encoder.layer.#.attention.attention.{part}.*"
            for part in ("query", "key", "value")
        },
        "vit.layers.#.attention.o_proj.*": "vit.encoder.layer.#.attention.output.dense.*",
        "vit.layers.#.mlp.fc1.*": "vit.encoder.layer.#.intermediate.dense.*",
        "vit.layers.#.mlp.fc2.*": "vit.encoder.layer.#.output.dense.*",
    },
    unused=("vit.pooler.dense.*", "vit.embeddings.mask_token"),
    prefix="vit.",
)

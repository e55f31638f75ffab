"""Whisper (Radford et al. 2022, https://arxiv.org/abs/2212.04356), from log-mel frames to text."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.encoder_decoder import (
    ALIASES,
    FIELDS,
    names_of_stacks,
    read_encoder_decoder,
    write_encoder_decoder,
)
from isoform.checkpoint.families.family import Family, reads_tied, require, stacks_of
from isoform.checkpoint.families.fields import Fields
from isoform.model.config import Convolution, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import Learned

_SIZES = {"layers": 4, "ffn_dim": 1536, "attention_heads": 6}


_FIELDS = FIELDS | {
    "vocab_size": 51_865,
    "d_model": 384,
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIZES.items()},
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
}


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    config = read_encoder_decoder(
        fields,
        StackConfig(position=Learned()),
        placement="pre",
        key_bias=False,
        context_length=fields.count("max_target_positions"),
        encoder_stem=Convolution(num_features=fields.count("num_mel_bins")),
        head=Vocabulary(tied=reads_tied(fields, names, "proj_out.weight")),
    )
    assert config.encoder is not None
    frames = fields.count("max_source_positions")
    return replace(config, encoder=replace(config.encoder, context_length=frames))


def _write(config: ModelConfig) -> dict:
    (encoder, _), stem = stacks_of(config), config.encoder_stem or config.stem
    return {
        **write_encoder_decoder(config),
        "num_mel_bins": require(stem, Convolution, "encoder_stem" if config.encoder_stem else "stem").num_features,
        "max_source_positions": config.length(encoder),
        "max_target_positions": config.context_length,
        "tie_word_embeddings": require(config.head, Vocabulary, "head").tied,
    }


WHISPER = Family(
    model_type="whisper",
    architecture="WhisperForConditionalGeneration",
    fields=_FIELDS,
    read=_read,
    write=_write,
    names={
        "stem.embedding.weight": "model.decoder.embed_tokens.weight",
        "head.weight": "proj_out.weight",
        "encoder_stem.first.*": "model.encoder.conv1.*",
        "encoder_stem.second.*": "model.encoder.conv2.*",
        **names_of_stacks("before"),
    },
    aliases=ALIASES | {"num_key_value_heads": "encoder_attention_heads"},
    ties={"proj_out.weight": "model.decoder.embed_tokens.weight"},
    prefix="model.",
)

"""BART (Lewis et al. 2019, https://arxiv.org/abs/1910.13461), mBART (Liu et al. 2020,
https://arxiv.org/abs/2001.08210) and Marian (Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344), which
differ in positions, and in where norms are.
"""

from __future__ import annotations

from isoform.checkpoint.families.encoder_decoder import (
    ALIASES,
    FIELDS,
    Placement,
    names_of_stacks,
    read_encoder_decoder,
    write_encoder_decoder,
)
from isoform.checkpoint.families.family import Family, reads_tied, require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.tensors import Reshaped, UnusedRows
from isoform.model.config import Lookup, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import LayerNorm, Learned, Sinusoidal


def _read(fields: Fields, names: set[str], stack: StackConfig, placement: Placement) -> ModelConfig:
    stem, tied = Lookup(scale=fields.flag("scale_embedding")), fields.flag("tie_word_embeddings")
    return read_encoder_decoder(
        fields,
        stack,
        placement=placement,
        context_length=fields.count("max_position_embeddings"),
        stem=stem,
        encoder_stem=None if tied and _ENCODER_TABLE not in names else stem,
        head=Vocabulary(tied=reads_tied(fields, names, "lm_head.weight"), bias="final_logits_bias" in names),
    )


def _read_bart(fields: Fields, names: set[str]) -> ModelConfig:
    return _read(fields, names, StackConfig(position=Learned(), input_norm=LayerNorm(), final_norm=False), "post")


def _read_mbart(fields: Fields, names: set[str]) -> ModelConfig:
    return _read(fields, names, StackConfig(position=Learned(), input_norm=LayerNorm()), "pre")


def _read_marian(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(share_encoder_decoder_embeddings=True, decoder_vocab_size=fields.get("vocab_size"))
    has_table = "model.encoder.embed_positions.weight" in names  # as files of earlier versions, which may hold any
    position = Learned() if has_table else Sinusoidal(order="halves")
    return _read(fields, names, StackConfig(position=position, final_norm=False), "post")


def _write_bart(config: ModelConfig) -> dict:
    return {
        **write_encoder_decoder(config),
        "max_position_embeddings": config.context_length,
        "scale_embedding": require(config.stem, Lookup, "stem").scale,
        "tie_word_embeddings": require(config.head, Vocabulary, "head").tied,
    }


def _write_marian(config: ModelConfig) -> dict:
    return {**_write_bart(config), "decoder_vocab_size": config.vocab_size, "share_encoder_decoder_embeddings": True}


_TABLE, _ENCODER_TABLE = "model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"
_TIES = dict.fromkeys((_TABLE, _ENCODER_TABLE, "lm_head.weight"), "model.shared.weight")
_NAMES = {
    "stem.embedding.weight": _TABLE,
    "encoder_stem.embedding.weight": _ENCODER_TABLE,
    "head.weight": "lm_head.weight",
    "head.bias": "final_logits_bias",
}
_BIAS = {"head.bias": Reshaped(lambda config: (1, config.vocab_size))}
_OFFSET = {f"{stack}.position.table": UnusedRows(2) for stack in ("encoder", "decoder")}
_FIELDS = FIELDS | {"vocab_size": 50_265, "max_position_embeddings": 1024, "scale_embedding": False}

BART = Family(
    model_type="bart",
    architecture="BartForConditionalGeneration",
    fields=_FIELDS,
    read=_read_bart,
    write=_write_bart,
    names=_NAMES | names_of_stacks("after"),
    transforms=_BIAS | _OFFSET,
    aliases=ALIASES,
    ties=_TIES,
    redundant=("model.encoder.version", "model.decoder.version"),
    prefix="model.",
)
MBART = Family(
    model_type="mbart",
    architecture="MBartForConditionalGeneration",
    fields=_FIELDS,
    read=_read_mbart,
    write=_write_bart,
    names=_NAMES | names_of_stacks("before"),
    transforms=_BIAS | _OFFSET,
    aliases=ALIASES,
    ties=_TIES,
    prefix="model.",
)
MARIAN = Family(
    model_type="marian",
    architecture="MarianMTModel",
    fields=_FIELDS | {"vocab_size": 58_101, "decoder_vocab_size": None, "share_encoder_decoder_embeddings": True},
    read=_read_marian,
    write=_write_marian,
    names=_NAMES | names_of_stacks("after"),
    transforms=_BIAS,
    aliases=ALIASES,
    ties=_TIES,
    prefix="model.",
)

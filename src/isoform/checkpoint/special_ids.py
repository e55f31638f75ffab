"""The fields of config.json about tokens, labels and generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("suppress_tokens", "begin_suppress_tokens", "no_repeat_ngram_size", "repetition_penalty", "length_penalty"),
    *("num_beams", "early_stopping", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p"),
    *("id2label", "label2id", "problem_type", "model_type", "tokenizer_class"),
)
"""The fields that go along with a model; they are written as they were read."""


def special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json; those that are absent stay so, and null stays null."""
    return {name: config[name] for name in FIELDS if name in config}


def own_ids(end: int, start: int | None) -> dict[str, Any]:
    """The fields for a tokenizer of isoform's own. end: ends a text; start: of a pair of stacks, begins a target."""
    ids = {"eos_token_id": end, "bos_token_id": end}
    if start is None:
        return ids
    return {**ids, "decoder_start_token_id": start, "forced_eos_token_id": None, "begin_suppress_tokens": None}

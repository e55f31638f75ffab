"""The fields of config.json about special tokens and generation, with the defaults of each model_type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("suppress_tokens", "begin_suppress_tokens", "no_repeat_ngram_size", "repetition_penalty", "length_penalty"),
    *("num_beams", "early_stopping", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p"),
)
"""The fields that go along with a model; they are written as they were read."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {"decoder_start_token_id": 0},
    "bart": {"decoder_start_token_id": 2, "forced_eos_token_id": 2},
    "marian": {"decoder_start_token_id": 58100, "forced_eos_token_id": 0},
    "whisper": {"decoder_start_token_id": 50257, "begin_suppress_tokens": [220, 50256]},
}
"""Of absent fields, for pairs of stacks; T5 starts with its padding."""


def special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, those that are absent with their defaults."""
    present = {name: config[name] for name in FIELDS if config.get(name) is not None}
    return {**DEFAULTS.get(str(config.get("model_type")), {}), **present}

"""The tokenizer.json of a byte-level BPE, from the vocabulary, merges and name of pre-tokenizer in a file."""

from __future__ import annotations

from typing import Any

from isoform.checkpoint.gguf.format import Header, is_count

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Values of token_type."""

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    """Split by a pattern, then bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTES, "use_regex": False}]}


_THREE_DIGITS = {"pre_tokenizer": _split(_CASELESS + r"|\p{N}{1,3}" + _REST)}
PRETOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": _BYTES},
    "smollm": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]}
    },
    "llama-bpe": _THREE_DIGITS,
    "dbrx": _THREE_DIGITS,
    "qwen2": {"pre_tokenizer": _split(_CASELESS + r"|\p{N}" + _REST), "normalizer": {"type": "NFC"}},
}
"""The pre-tokenizers by their names in GGUF."""


def read_tokenizer(header: Header, vocab_size: int) -> dict[str, Any] | None:
    """The tokenizer.json; None unless it is a byte-level BPE. Raises ValueError naming a damaged key."""
    begin, end = (_special_id(header, name, vocab_size) for name in ("bos", "eos"))
    if header.metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    pre = header.value("tokenizer.ggml.pre", str)
    if pre not in PRETOKENIZERS:
        raise ValueError(f"{header.path}: tokenizer.ggml.pre={pre!r} is not known (known: {', '.join(PRETOKENIZERS)})")
    tokens, token_types = _read_vocabulary(header, vocab_size)
    has_begin = header.metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and begin in range(len(tokens))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, token_types, {begin, end}),
        "normalizer": PRETOKENIZERS[pre].get("normalizer"),
        "pre_tokenizer": PRETOKENIZERS[pre]["pre_tokenizer"],
        "post_processor": _beginning(tokens[begin or 0], begin or 0) if has_begin else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens) if token_types[i] != UNUSED},
            "merges": header.values("tokenizer.ggml.merges", str),
        },
    }


def _special_id(header: Header, name: str, vocab_size: int) -> int | None:
    """The id of a special token. Raises ValueError for one outside the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = header.metadata.get(key)
    if value is not None and not (value == 0 or (is_count(value) and value < vocab_size)):
        raise ValueError(
            f"{header.path}: {key}={value!r} is outside the vocabulary of {vocab_size:,}; get the file again"
        )
    return value


def _read_vocabulary(header: Header, vocab_size: int) -> tuple[list[str], list[int]]:
    """The tokens and the type of each. Raises ValueError if their numbers don't fit each other, or the table."""
    tokens, key = header.values("tokenizer.ggml.tokens", str), "tokenizer.ggml.token_type"
    token_types = header.values(key, int) if key in header.metadata else [NORMAL] * len(tokens)
    if len(token_types) != len(tokens) or len(tokens) > vocab_size or len(set(tokens)) != len(tokens):
        raise ValueError(
            f"{header.path}: tokenizer.ggml.tokens has {len(tokens):,} tokens, {len(set(tokens)):,} of them different, "
            f"token_type {len(token_types):,} and the table {vocab_size:,} rows; these don't match, get the file again"
        )
    return tokens, token_types


def _added_tokens(tokens: list[str], token_types: list[int], ends: set[int | None]) -> list[dict[str, Any]]:
    """The tokens that are matched in a text before it is pre-tokenized."""
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token_type != USER_DEFINED,
        }
        for i, (token, token_type) in enumerate(zip(tokens, token_types, strict=True))
        if token_type in (CONTROL, USER_DEFINED) or (i in ends and token_type != UNUSED)
    ]


def _beginning(token: str, number: int) -> dict[str, Any]:
    """The post-processor that prepends a special token."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"SpecialToken": {"id": token, "type_id": 1}}, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }

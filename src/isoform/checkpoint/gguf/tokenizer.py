"""The tokenizer.json of byte pairs: over bytes, from merges and the name of a pre-tokenizer; or SentencePiece's, from
scores."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from isoform.checkpoint.gguf.format import Header, is_count
from isoform.codecs.document import BYTE_LEVEL, added_token, byte_pairs, template

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Values of token_type."""

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    """Split by a pattern, then bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**BYTE_LEVEL, "use_regex": False}]}


_DIGITS = {"type": "Digits", "individual_digits": True}
_THREE_DIGITS = {"pre_tokenizer": _split(_CASELESS + r"|\p{N}{1,3}" + _REST)}
PRETOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": BYTE_LEVEL},
    "smollm": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
        }
    },
    "llama-bpe": _THREE_DIGITS,
    "dbrx": _THREE_DIGITS,
    "qwen2": {"pre_tokenizer": _split(_CASELESS + r"|\p{N}" + _REST), "normalizer": {"type": "NFC"}},
}
"""The pre-tokenizers by their names in GGUF."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a file: its tokenizer.json, tokenizer_config.json, and ids as in config.json."""

    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    ids: dict[str, Any]


def read_vocabulary(header: Header, vocab_size: int) -> Vocabulary | None:
    """The tokenizer; None if there is none, with a warning if it is of a kind that isn't read.

    Raises ValueError naming a damaged key.
    """
    kind = header.metadata.get("tokenizer.ggml.model")
    begin, end, *more = (_special_id(header, name, vocab_size) for name in ("bos", "eos", "eot", "eom"))
    if kind not in ("gpt2", "llama"):
        if kind is not None:
            warnings.warn(
                f"{header.path}: its vocabulary is of the kind {kind!r}, which isn't read; gpt2 (byte pairs) and llama "
                f"(SentencePiece's) are",
                stacklevel=5,
            )
        return None
    tokens, token_types = _read_tokens(header, vocab_size)
    ids = {name: i for name, i in (("bos", begin), ("eos", end)) if i is not None and i < len(tokens)}
    pre = header.value("tokenizer.ggml.pre", str) if kind == "gpt2" else ""
    is_added = {
        "bos": _flag(header, "add_bos_token", kind == "llama" or pre == "llama-bpe"),
        "eos": _flag(header, "add_eos_token", False),
    }
    before, after = ({tokens[ids[name]]: ids[name]} if is_added[name] and name in ids else {} for name in is_added)
    around = template(before, after)
    added = _added_tokens(tokens, token_types, {begin, end, *more})
    if kind == "gpt2":
        tokenizer = _by_bytes(header, pre, tokens, token_types, added, around)
    else:
        tokenizer = _by_scores(header, tokens, token_types, added, around)
    names = {f"{name}_token": tokens[i] for name, i in ids.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    chat = header.metadata.get("tokenizer.chat_template")
    ends = list(dict.fromkeys(i for i in (end, *more) if i is not None))
    special = {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return Vocabulary(
        tokenizer,
        {**settings, **({"chat_template": chat} if isinstance(chat, str) else {})},
        {name: value for name, value in special.items() if value is not None},
    )


def _by_bytes(
    header: Header,
    pre: str,
    tokens: list[str],
    token_types: list[int],
    added: list[dict[str, Any]],
    around: dict[str, Any] | None,
) -> dict[str, Any]:
    """Byte-level byte pairs."""
    if pre not in PRETOKENIZERS:
        raise ValueError(f"{header.path}: tokenizer.ggml.pre={pre!r} is not known (known: {', '.join(PRETOKENIZERS)})")
    return byte_pairs(
        {token: i for i, token in enumerate(tokens) if token_types[i] != UNUSED},
        header.values("tokenizer.ggml.merges", str),
        added=added,
        decoder=BYTE_LEVEL,
        normalizer=PRETOKENIZERS[pre].get("normalizer"),
        pre_tokenizer=PRETOKENIZERS[pre]["pre_tokenizer"],
        post_processor=around,
        ignore_merges=pre == "llama-bpe",
    )


def _by_scores(
    header: Header,
    tokens: list[str],
    token_types: list[int],
    added: list[dict[str, Any]],
    around: dict[str, Any] | None,
) -> dict[str, Any]:
    """SentencePiece's byte pairs: of all pairs that make a token, that of the highest score is merged first."""
    scores = header.values("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise ValueError(f"{header.path}: {len(scores):,} scores for {len(tokens):,} tokens; get the file again")
    vocabulary = {token: i for i, token in enumerate(tokens) if token_types[i] != UNUSED}
    normal = {token for token, i in vocabulary.items() if token_types[i] == NORMAL}
    pairs = [
        (-scores[vocabulary[token]], vocabulary[token], token[:cut], token[cut:])
        for token in normal
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    has_prefix = _flag(header, "add_space_prefix", True)
    prepend: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if has_prefix else []
    strip: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unspace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    unknown = next((token for token, i in vocabulary.items() if token_types[i] == UNKNOWN), None)
    return byte_pairs(
        vocabulary,
        [[left, right] for _, _, left, right in sorted(pairs)],
        added=added,
        decoder={"type": "Sequence", "decoders": [unspace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        normalizer={"type": "Sequence", "normalizers": [*prepend, space]},
        post_processor=around,
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=any(token_type == BYTE for token_type in token_types),
    )


def _flag(header: Header, name: str, default: bool) -> bool:
    value = header.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ValueError(f"{header.path}: tokenizer.ggml.{name}={value!r} is neither true nor false")
    return value


def _special_id(header: Header, name: str, vocab_size: int) -> int | None:
    """The id of a special token. Raises ValueError for one outside the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = header.metadata.get(key)
    if value is not None and not (value == 0 or (is_count(value) and value < vocab_size)):
        raise ValueError(
            f"{header.path}: {key}={value!r} is outside the vocabulary of {vocab_size:,}; get the file again"
        )
    return value


def _read_tokens(header: Header, vocab_size: int) -> tuple[list[str], list[int]]:
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
        added_token(i, token, special=token_type != USER_DEFINED)
        for i, (token, token_type) in enumerate(zip(tokens, token_types, strict=True))
        if token_type in (UNKNOWN, CONTROL, USER_DEFINED) or (i in ends and token_type != UNUSED)
    ]

"""A tokenizer.json of byte pairs, as a document: for vocabularies that aren't in that format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

BYTE_LEVEL: Mapping[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
"""The pre-tokenizer and decoder of bytes, by GPT-2's pattern."""


def byte_pairs(
    vocabulary: Mapping[str, int],
    merges: Sequence[str | list[str]],
    *,
    added: Sequence[Mapping[str, Any]],
    decoder: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None = None,
    pre_tokenizer: Mapping[str, Any] | None = None,
    post_processor: Mapping[str, Any] | None = None,
    **model: Any,
) -> dict[str, Any]:
    """The document. `model`: options of the BPE model that aren't off."""
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": {**plain, **model, "vocab": dict(vocabulary), "merges": list(merges)},
    }


def added_token(number: int, text: str, *, special: bool = True) -> dict[str, Any]:
    """A token that is matched in a text before it is pre-tokenized."""
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **form, "special": special}


def template(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor that adds special tokens (name -> id) around a text; None if there are none."""

    def special(names: Mapping[str, int], part: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": part}} for name in names]

    if not before and not after:
        return None
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [*special(before, 0), first, *special(after, 0)],
        "pair": [*special(before, 0), first, *special(after, 0), *special(before, 1), second, *special(after, 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in {**before, **after}.items()},
    }


def with_template(document: bytes, after: Mapping[str, int]) -> bytes:
    """A tokenizer.json whose texts are followed by these special tokens."""
    form = {**json.loads(document), "post_processor": template({}, after)}
    return json.dumps(form, ensure_ascii=False, indent=1).encode()


def _letters() -> list[str]:
    """GPT-2's printable letter for every byte: the byte itself if printable, else one from U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


LETTERS = _letters()
BYTES = {letter: b for b, letter in enumerate(LETTERS)}
"""The byte of each letter."""

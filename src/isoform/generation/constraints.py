"""Which tokens end a text, must come, and must not: as a model's generation_config.json says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isoform.codecs.codec import TextCodec

APPLIED = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens"),
    *("begin_suppress_tokens", "max_length", "max_new_tokens", "do_sample", "num_return_sequences", "use_cache"),
    *("transformers_version", "_from_model_config", "trust_remote_code", "cache_implementation"),
}
"""Fields that are applied, that flags decide, or that change no text."""
NEUTRAL = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_beams": 1, "repetition_penalty": 1.0}
"""Values of settings at which transformers' own defaults leave a greedy text unchanged."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Ids, none of which is checked against the vocabulary."""

    ends: tuple[int, ...] = ()
    """Any of these ends a text."""
    stops: tuple[int, ...] = ()
    """These end a text, too, as a stop string does."""
    first: int | None = None
    """The first token of every text."""
    last: int | None = None
    """The last token of a text that reaches its maximum length."""
    never: tuple[int, ...] = ()
    """Tokens that are never chosen."""
    never_first: tuple[int, ...] = ()
    """Tokens that are not chosen first."""
    sequences: tuple[tuple[int, ...], ...] = ()
    """Of several tokens: the last is not chosen where the others precede it."""
    num_tokens: int | None = None
    """Rows of the table from this one on have no token and are never chosen; None: all have one."""

    @property
    def all_ends(self) -> tuple[int, ...]:
        """The ids after which a text doesn't continue."""
        return self.ends + self.stops

    def apply(self, scores: Tensor, texts: Tensor, step: int, max_tokens: int) -> Tensor:
        """Scores (n, V) of the step-th token, -inf for those that can't be chosen.

        texts (n, S): prompts and generated tokens.
        """
        if self.last is not None and step == max_tokens:
            scores = _only(scores, self.last)
        elif self.first is not None and step == 1:
            scores = _only(scores, self.first)
        never = self.never + (self.never_first if step == 1 else ())
        if never:
            scores = scores.index_fill(1, torch.tensor(never, device=scores.device), -torch.inf)
        if self.num_tokens is not None and self.num_tokens < scores.shape[1]:
            scores = scores.clone()
            scores[:, self.num_tokens :] = -torch.inf
        for *before, token in self.sequences:
            if len(before) <= texts.shape[1]:
                follows = (texts[:, -len(before) :] == torch.tensor(before, device=texts.device)).all(1)
                column = scores[:, token].masked_fill(follows, -torch.inf)
                scores = scores.index_copy(1, torch.tensor([token], device=scores.device), column.unsqueeze(1))
        return scores


def _only(scores: Tensor, token: int) -> Tensor:
    """The same score for one token, -inf for the others."""
    forced = torch.full_like(scores, -torch.inf)
    forced[:, token] = 0
    return forced


def constraints_of(codec: TextCodec, num_rows: int) -> Constraints:
    """What holds for a model with a table of num_rows rows, by the files that its codec came with.

    Warns about settings that aren't applied. Raises ValueError for ids that aren't rows of the table.
    """
    fields = codec.origin.generation
    ends = _ids(fields, "eos_token_id", num_rows) or ((codec.end_of_text,) if codec.special else ())
    lists = fields.get("bad_words_ids") or []
    if not isinstance(lists, list):
        raise ValueError(f"generation_config.json: bad_words_ids={lists!r} is no list of lists of ids; correct it")
    banned = [_checked("bad_words_ids", ids, num_rows) for ids in lists]
    single = [ids[0] for ids in banned if len(ids) == 1 and ids[0] not in ends]
    others = {
        name: value
        for name, value in fields.items()
        if name not in APPLIED and value not in (None, False, 0, [], {}) and value != NEUTRAL.get(name)
    }
    if others and codec.origin.files:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(others.items()))
        warnings.warn(f"the model's generation settings {settings} are not applied; flags decide", stacklevel=3)
    return Constraints(
        ends=ends,
        first=_one(fields, "forced_bos_token_id", num_rows),
        last=_one(fields, "forced_eos_token_id", num_rows),
        never=(*single, *_ids(fields, "suppress_tokens", num_rows), *codec.missing),
        never_first=_ids(fields, "begin_suppress_tokens", num_rows),
        sequences=tuple(ids for ids in banned if len(ids) > 1),
        num_tokens=codec.vocab_size if codec.vocab_size < num_rows else None,
    )


def with_stops(constraints: Constraints, codec: TextCodec, stop: Sequence[str]) -> tuple[Constraints, tuple[str, ...]]:
    """The constraints with the stop strings that are special tokens, and the other stop strings.

    Raises ValueError for a string that holds a special token and more.
    """
    by_name = {name: i for i, name in codec.special.items()}
    for string in stop:
        inside = next((name for name in by_name if name in string and name != string), None)
        if inside is not None and string not in by_name:
            raise ValueError(f"--stop {string!r} holds the special token {inside} and more; name the token alone")
    stops = tuple(by_name[string] for string in stop if string in by_name)
    return replace(constraints, stops=stops), tuple(string for string in stop if string not in by_name)


def _ids(fields: Mapping[str, Any], name: str, num_rows: int) -> tuple[int, ...]:
    value = fields.get(name)
    return () if value is None else _checked(name, value if isinstance(value, list | tuple) else [value], num_rows)


def _one(fields: Mapping[str, Any], name: str, num_rows: int) -> int | None:
    ids = _ids(fields, name, num_rows)
    return ids[0] if ids else None


def _checked(name: str, ids: object, num_rows: int) -> tuple[int, ...]:
    if not isinstance(ids, list | tuple) or not all(isinstance(i, int) and 0 <= i < num_rows for i in ids):
        raise ValueError(f"generation_config.json: {name}={ids!r} aren't ids of the model's {num_rows:,} tokens")
    return tuple(ids)

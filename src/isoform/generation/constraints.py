"""Which tokens end a text, must come, and must not: as a model's generation_config.json says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isoform.codecs.codec import TextCodec

NONE = -1
"""In texts of a batch, instead of a token where a text hasn't begun."""
APPLIED = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens"),
    *("begin_suppress_tokens", "max_length", "max_new_tokens", "do_sample", "num_return_sequences", "use_cache"),
    *("transformers_version", "_from_model_config", "trust_remote_code", "cache_implementation"),
    *(
        "model_type",
        "id2label",
        "label2id",
        "problem_type",
        "tokenizer_class",
        "renormalize_logits",
        "remove_invalid_values",
    ),
}
"""Fields that are applied, that flags decide, or that change no text."""
NEUTRAL = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
}
"""Values of settings at which transformers' own defaults leave a greedy text unchanged."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Ids, none of which is checked against the vocabulary."""

    ends: tuple[int, ...] = ()
    """Any of these ends a text."""
    stops: tuple[int, ...] = ()
    """These end a text, too, as a stop string does."""
    first: tuple[int, ...] = ()
    """One of these is the first token of every text without a prompt, each as probable as the others."""
    last: tuple[int, ...] = ()
    """One of these is the last token of a text that reaches its maximum length, likewise."""
    never: tuple[int, ...] = ()
    """Tokens that are chosen only as the first or the last one."""
    sequences: tuple[tuple[int, ...], ...] = ()
    """Of several tokens: the last is not chosen where the others precede it, likewise."""
    suppressed: tuple[int, ...] = ()
    """Tokens that are never chosen."""
    suppressed_first: tuple[int, ...] = ()
    """Tokens that are not chosen first, or second after `first`."""
    num_tokens: int | None = None
    """Rows of the table from this one on have no token and are never chosen; None: all have one."""

    @property
    def all_ends(self) -> tuple[int, ...]:
        """The ids after which a text doesn't continue."""
        return self.ends + self.stops

    def apply(self, scores: Tensor, texts: Tensor, step: int, max_tokens: int) -> Tensor:
        """Scores (n, V) of the step-th token, -inf for those that can't be chosen.

        texts (n, S): prompts and generated tokens, aligned at the right, NONE before they begin.
        """
        scores = _without(scores, self.never)
        for *before, token in self.sequences:
            if len(before) <= texts.shape[1]:
                follows = (texts[:, -len(before) :] == torch.tensor(before, device=texts.device)).all(1)
                column = scores[:, token].masked_fill(follows, -torch.inf)
                scores = scores.index_copy(1, torch.tensor([token], device=scores.device), column.unsqueeze(1))
        if self.first and step == 1:
            scores = torch.where(_have_length(texts, 1), _only(scores, self.first), scores)
        if self.last and step == max_tokens:
            scores = _only(scores, self.last)
        scores = _without(scores, self.suppressed)
        if self.suppressed_first and step <= 2:
            has_first = _have_length(texts, step) & bool(self.first)
            scores = torch.where(has_first == (step == 2), _without(scores, self.suppressed_first), scores)
        if self.num_tokens is not None and self.num_tokens < scores.shape[1]:
            scores = scores.clone()
            scores[:, self.num_tokens :] = -torch.inf
        return scores


def _have_length(texts: Tensor, length: int) -> Tensor:
    """Whether each text (n, 1) has this many tokens."""
    return (texts != NONE).sum(1, keepdim=True) == length


def _without(scores: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """The scores, -inf for these tokens."""
    return scores.index_fill(1, torch.tensor(tokens, device=scores.device), -torch.inf) if tokens else scores


def _only(scores: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """The same score for these tokens, -inf for the others."""
    forced = torch.full_like(scores, -torch.inf)
    return forced.index_fill(1, torch.tensor(tokens, device=scores.device), 0)


def constraints_of(codec: TextCodec, num_rows: int) -> Constraints:
    """What holds for a model with a table of num_rows rows, by the files that its codec came with.

    Warns about settings that aren't applied, and ids that aren't rows of the table. Raises ValueError for what are no
    ids, and if no token is left to choose.
    """
    fields = codec.origin.generation
    ends = _ids(fields, "eos_token_id", num_rows)
    if not ends and not codec.origin.is_foreign and codec.special:
        ends = (codec.end_of_text,)
    if not ends and codec.origin.is_foreign:
        warnings.warn("the model's files name no eos_token_id: a text ends at its maximum length", stacklevel=3)
    banned = _present("bad_words_ids", fields.get("bad_words_ids") or [], num_rows)
    single = [ids[0] for ids in banned if len(ids) == 1 and ids[0] not in ends]
    others = {
        name: value
        for name, value in fields.items()
        if name not in APPLIED and value not in (None, False, 0, [], {}) and value != NEUTRAL.get(name)
    }
    if others and codec.origin.files:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(others.items()))
        warnings.warn(f"the model's generation settings {settings} are not applied; flags decide", stacklevel=3)
    first, last = (_ids(fields, name, num_rows) for name in ("forced_bos_token_id", "forced_eos_token_id"))
    suppressed = (*_ids(fields, "suppress_tokens", num_rows), *codec.missing)
    num_tokens = min(codec.vocab_size, num_rows)
    for forced in (first, last):
        if forced and {*forced} <= {*suppressed}:
            raise ValueError(f"generation_config.json forces the token {forced[0]} and suppresses it; correct it")
    if len({*single, *suppressed, *range(num_tokens, num_rows)}) == num_rows:
        raise ValueError("generation_config.json suppresses all tokens; correct it")
    return Constraints(
        ends=ends,
        first=first,
        last=last,
        never=tuple(single),
        sequences=tuple(ids for ids in banned if len(ids) > 1),
        suppressed=suppressed,
        suppressed_first=_ids(fields, "begin_suppress_tokens", num_rows),
        num_tokens=num_tokens if num_tokens < num_rows else None,
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


def first_stop(text: str, stop: Sequence[str], start: int = 0) -> int:
    """Where the stop string that is complete first begins, searched from `start`; by default the length of the text."""
    matches = [(begin + len(string), begin) for string in stop if (begin := text.find(string, start)) >= 0]
    return min(matches)[1] if matches else len(text)


def _ids(fields: Mapping[str, Any], name: str, num_rows: int) -> tuple[int, ...]:
    value = fields.get(name)
    ids = () if value is None else value if isinstance(value, list | tuple) else [value]
    return tuple(i for (i,) in _present(name, [[i] for i in ids], num_rows))


def _present(name: str, texts: object, num_rows: int) -> list[tuple[int, ...]]:
    """Texts of ids; those with an id that no row of the table has are left out with a warning, as they can't come.

    Raises ValueError if they aren't ids.
    """
    if not isinstance(texts, list) or not all(
        isinstance(ids, list) and all(isinstance(i, int) for i in ids) for ids in texts
    ):
        raise ValueError(f"generation_config.json: {name} has {texts!r}, which aren't ids; correct it")
    absent = [i for ids in texts for i in ids if not 0 <= i < num_rows]
    if absent:
        warnings.warn(f"{name}: the model has no token {absent[0]} of {num_rows:,}; it is left out", stacklevel=4)
    return [tuple(ids) for ids in texts if not {*ids} & {*absent}]

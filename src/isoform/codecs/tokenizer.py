"""Tokenizers of other libraries, by `tokenizers`: WordPiece (Schuster and Nakajima 2012), Unigram (Kudo 2018), byte
pairs with marked spaces (SentencePiece) or over bytes with any option; and what all codecs by `tokenizers` share.

They may normalise a text first, such as lowercasing it or merging its spaces; decoding returns the normalised text.
"""

from __future__ import annotations

import json
import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, models

from isoform.batch import Encoding
from isoform.codecs.bounds import check_bounds, check_text, unseen, without_panics
from isoform.codecs.codec import END_OF_TEXT, FILE, SEPARATOR, StreamDecoder, TextCodec, utf8
from isoform.codecs.document import BYTES
from isoform.codecs.origin import SETTINGS, TOKENIZER_FILE, Origin, SpecialIds, own_settings
from isoform.files import write_files, write_text

ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
"""End-of-text tokens of other tokenizers."""
BEGINS = ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>")
"""Beginning-of-text tokens of other tokenizers."""
SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
PROBES = ("a", "0", "x y", ".", "é", "日")
"""Texts of which a tokenizer has a token for one at least."""
CLEAN = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
"""The spaces that clean_up_tokenization_spaces removes, in this order."""


class LibraryCodec(TextCodec):
    """A codec that a `tokenizers.Tokenizer` encodes, which it owns and modifies, with its vocabulary unchanged."""

    is_costly = True
    kind: str
    """Its kind in codec.json."""

    def __init__(self, tokenizer: Tokenizer, ids: SpecialIds | None = None, origin: Origin | None = None) -> None:
        """ids: None: by the names of special tokens. Raises ValueError if no special token ends a text."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.origin = tokenizer, origin or Origin()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special} | self._unmarked(vocabulary)
        by_name = {name: i for i, name in special.items()}
        guess = self._guess(by_name)
        if ids is None and guess is None:
            raise ValueError(f"the tokenizer has no special token for the end of a text; add one of {', '.join(ENDS)}")
        self._has_ids, ids = ids not in (None, guess), ids or guess
        assert ids is not None
        # without this, "<|endoftext|>" in a prompt would end it
        tokenizer.encode_special_tokens = not ids.are_read
        tokens = [b""] * (max(vocabulary.values()) + 1)
        for token, i in vocabulary.items():
            if i not in special:
                tokens[i] = token.encode() if i in added else self._bytes_of(token)
        self.missing = sorted({*range(len(tokens))} - {*vocabulary.values()})
        super().__init__(tokens, special=special, ids=ids, separator=by_name.get(SEPARATOR, ids.end))

    def _unmarked(self, vocabulary: Mapping[str, int]) -> dict[int, str]:
        """Special tokens that the tokenizer doesn't mark as such."""
        return {}

    @abstractmethod
    def _guess(self, by_name: Mapping[str, int]) -> SpecialIds | None:
        """The ids around texts by the names of special tokens; None if none ends a text."""

    @abstractmethod
    def _bytes_of(self, token: str) -> bytes:
        """The bytes that a token adds to a text."""

    def _own_ids(self) -> dict[str, object]:
        """The ids around texts as a field of a definition, if they aren't guessed."""
        return {"special_ids": asdict(self.special_ids)} if self._has_ids else {}

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and the files beside it, as they came."""
        if TOKENIZER_FILE in self.origin.files:
            return dict(self.origin.files)
        settings = own_settings(self.special[self.end_of_text])
        own = {} if self.origin.files else {"tokenizer_config.json": settings}
        return {**self.origin.files, **own, TOKENIZER_FILE: self.tokenizer.to_str(pretty=True).encode()}

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, the format of other libraries, what belongs to it, and codec.json."""
        write_files(Path(folder), self.files())
        origin = {"origin": dict(self.origin.ids)} if self.origin.files else {}
        built = {"class": self.origin.class_name} if self.origin.class_name else {}
        form = {"kind": self.kind, "file": TOKENIZER_FILE, **built, **self._own_ids(), **origin}
        write_text(Path(folder) / FILE, json.dumps(form) + "\n")

    def _with_special(self, names: Sequence[str]) -> LibraryCodec:
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.add_special_tokens(list(names))
        ids = self.special_ids if self._has_ids else None
        return type(self)(tokenizer, ids, self.origin.without_vocabulary())

    def encode_text(self, text: str) -> np.ndarray:
        utf8(text)
        with without_panics(f"the text {text[:40]!r} can't be encoded"):
            try:
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            except Exception as error:  # tokenizers raises nothing narrower
                raise ValueError(f"the tokenizer can't encode {text[:40]!r}: {error}") from None
        return np.array(ids, self.dtype)

    def _marked(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoding:
        utf8(text)
        tokenizer, is_kept = self.tokenizer, self.tokenizer.encode_special_tokens
        tokenizer.encode_special_tokens = False  # the text of a template names special tokens, which are meant
        try:
            with without_panics(f"the conversation {text[:40]!r} can't be encoded"):
                encoded = tokenizer.encode(text, add_special_tokens=False)
        finally:
            tokenizer.encode_special_tokens = is_kept
        is_target, offsets = np.zeros(len(encoded.ids), bool), np.array(encoded.offsets).reshape(-1, 2)
        for start, stop in spans:
            inside = np.flatnonzero((offsets[:, 0] < stop) & (offsets[:, 1] > start))
            if len(inside):
                is_target[inside[0] : inside[-1] + 1] = True
        return Encoding(np.array(encoded.ids, self.dtype), is_target=is_target)


class TokenizerCodec(LibraryCodec):
    """Any `tokenizers.Tokenizer`, with the text that it decodes.

    Without `ids` a text begins with the tokenizer's beginning-of-text token, if it has one ([CLS], <s>), and ends with
    its end-of-text token ([SEP], </s>). Raises ValueError for a tokenizer without the latter.
    """

    kind = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, ids: SpecialIds | None = None, origin: Origin | None = None) -> None:
        self._continuation = getattr(tokenizer.model, "continuing_subword_prefix", None)
        self._is_byte_level = is_byte_level(tokenizer)
        super().__init__(tokenizer, ids, origin)
        is_cleaned = bool(self.origin.settings.get("clean_up_tokenization_spaces"))
        self._is_cleaned = is_cleaned and not isinstance(tokenizer.model, models.BPE)

    @cached_property
    def is_byte(self) -> np.ndarray:
        """Whether each token (V,) is one byte of a character."""
        tokens = map(self.tokenizer.id_to_token, range(self.vocab_size))
        return np.array([token is not None and BYTE.fullmatch(token) is not None for token in tokens])

    def _unmarked(self, vocabulary: Mapping[str, int]) -> dict[int, str]:
        names = (*BEGINS, *ENDS, "[SEP]", "[MASK]", "[PAD]")
        return {vocabulary[name]: name for name in names if name in vocabulary}

    def _guess(self, by_name: Mapping[str, int]) -> SpecialIds | None:
        begin, end = (
            next((by_name[name] for name in names if name in by_name), None) for names in (BEGINS, ("[SEP]", *ENDS))
        )
        return None if end is None else SpecialIds(end, before=() if begin is None else (begin,))

    def _bytes_of(self, token: str) -> bytes:
        if self._is_byte_level and all(letter in BYTES for letter in token):
            return bytes(BYTES[letter] for letter in token)
        if match := BYTE.fullmatch(token):
            return bytes([int(match[1], 16)])
        prefix = self._continuation
        if prefix is not None:
            inside = token.startswith(prefix) and len(token) > len(prefix)
            return token[len(prefix) :].encode() if inside else f" {token}".encode()
        return token.replace(SPACE, " ").encode()

    def definition(self) -> dict[str, object]:
        form = json.loads(self.tokenizer.to_str())
        fields = {key: form[key] for key in ("normalizer", "pre_tokenizer", "model", "decoder")}
        special = {str(i): name for i, name in self.special.items()}
        return {"kind": self.kind, **fields, "special": special, **self._own_ids()}

    def decode(
        self, ids: np.ndarray | Sequence[int], *, prompt: np.ndarray | Sequence[int] = (), show_special: bool = False
    ) -> str:
        before: list[int] = self._checked(prompt).tolist()
        whole = self._text(before + self._checked(ids).tolist(), show_special)
        return whole[_common(whole, self._text(before, show_special)) :] if before else whole

    def _text(self, ids: Sequence[int], show_special: bool = False) -> str:
        with without_panics("tokens can't be decoded"):
            text = self.tokenizer.decode(ids, skip_special_tokens=not show_special)
        for old, new in CLEAN.items() if self._is_cleaned else ():
            text = text.replace(old, new)
        return text

    def stream_decoder(self, prompt: np.ndarray | Sequence[int] = ()) -> StreamDecoder:
        return _TextStream(self, self._checked(prompt).tolist())


class _TextStream(StreamDecoder):
    """Decodes the last tokens again with each new one, since a token's text depends on those before it."""

    WINDOW = 256
    """Tokens that are decoded again at most; then all but the last few are dropped."""

    def __init__(self, codec: TokenizerCodec, prompt: list[int]) -> None:
        self.codec, self.ids = codec, prompt[-32:]
        self.emitted = codec._text(self.ids)

    def push(self, token: int) -> str:
        self.ids.append(token)
        whole = self.codec._text(self.ids)
        # the bytes of a run are one text, or none if another one makes it invalid
        num_open = next((i for i, id in enumerate(reversed(self.ids)) if not self.codec.is_byte[id]), len(self.ids))
        stable = (self.codec._text(self.ids[:-num_open]) if num_open else whole).rstrip("\ufffd")
        if self.codec._is_cleaned:  # a space may vanish with the next signs
            stable = stable[: max(0, stable.rfind(" ", 0, max(0, stable.rfind(" "))))]
        new = self._emit(stable)
        if len(self.ids) > self.WINDOW and self.emitted == whole:
            self.ids = self.ids[-32:]
            self.emitted = self.codec._text(self.ids)
        return new

    def flush(self) -> str:
        return self._emit(self.codec._text(self.ids))

    def _emit(self, text: str) -> str:
        start = _common(text, self.emitted)
        if len(text) <= start:
            return ""
        self.emitted, new = text, text[start:]
        return new


def _common(first: str, second: str) -> int:
    """The number of characters at their beginnings that two texts have in common."""
    if first.startswith(second):
        return len(second)
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer's tokens are bytes, in GPT-2's letters."""
    return any("ByteLevel" in str(part) for part in (tokenizer.pre_tokenizer, tokenizer.normalizer, tokenizer.decoder))


def parse_tokenizer(text: str, path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without the dropout of merges, which would give a text other ids each time.

    Raises ValueError naming the file if it is of another format, or gives up on a text.
    """
    with unseen(), without_panics(str(path)):
        try:
            check_text(text)
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer.json ({error}); give one") from None
        try:
            check_bounds(tokenizer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for probe in PROBES:
            with suppress(Exception):  # it may have no token for this one
                tokenizer.decode(tokenizer.encode(probe).ids)
    if getattr(tokenizer.model, "dropout", None):
        warnings.warn(f"{path}: its dropout of {tokenizer.model.dropout:g} is not applied", stacklevel=2)
        tokenizer.model.dropout = None
    return tokenizer


def add_tokens(tokenizer: Tokenizer, origin: Origin, numbered: Mapping[str, object] | None = None) -> None:
    """Add the tokens that the files beside a tokenizer.json name, as transformers does: those that the vocabulary lacks
    follow it, in the order of their ids, then of their names; a token that is special stays so. numbered: those with
    ids, if others than the files beside it say."""
    present = [*tokenizer.get_added_tokens_decoder().values()]
    special, as_given = {token.content for token in present if token.special}, {*map(repr, present)}
    try:
        by_id = origin.numbered if numbered is None else numbered
        given = [_added(form) for _, form in sorted(by_id.items(), key=lambda item: int(item[0]))]
        named = [_added(form) for form in origin.named]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"the added tokens in {SETTINGS} or beside it are damaged; copy it again") from None
    added = [token for token in given if repr(token) not in as_given]
    for token in added:
        token.special = token.special or token.content in special
    contents = {token.content for token in (*present, *added)}
    tokenizer.add_tokens([*added, *(token for token in named if token.content not in contents)])


def _added(form: object) -> AddedToken:
    """The token of a table, or the special token of this text."""
    if isinstance(form, str):
        return AddedToken(form, special=True)
    if not isinstance(form, Mapping):
        raise TypeError(form)
    fields = {key: value for key, value in form.items() if key in ADDED}
    return AddedToken(fields.pop("content"), **fields)


ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
"""The fields of an added token."""


def ids_around(tokenizer: Tokenizer, origin: Origin, *, are_read: bool) -> SpecialIds:
    """The ids around texts, by the tokenizer's post-processor and the files beside it.

    The end is the last id that follows every text; else that of eos_token, the first eos_token_id, or a usual name.
    Raises ValueError if no token ends a text.
    """
    before, after = _affixes(tokenizer)
    names = [origin.names["eos_token"]] if "eos_token" in origin.names else []
    numbers = origin.generation.get("eos_token_id")
    candidates = [
        *after[-1:],
        *map(tokenizer.token_to_id, names),
        *(numbers if isinstance(numbers, list) else [numbers]),
        *map(tokenizer.token_to_id, ("[SEP]", *ENDS)),
    ]
    end = next((i for i in candidates if i is not None and tokenizer.id_to_token(i) is not None), None)
    if end is None:
        raise ValueError(f"the tokenizer has no special token for the end of a text; add one of {', '.join(ENDS)}")
    is_split = bool(origin.settings.get("split_special_tokens"))
    is_own = origin.ids.get("model_type") == "mbart"  # which begins a target with its last token
    start = (after or (end,))[-1] if is_own else origin.decoder_start
    return SpecialIds(end, before, after, start, are_read=are_read and not is_split)


def _affixes(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor adds before and after a text. Raises ValueError for one that does more."""
    for probe in PROBES:
        plain = whole = None
        with suppress(Exception):  # it may have no token for this one
            plain, whole = (tokenizer.encode(probe, add_special_tokens=adds) for adds in (False, True))
        if plain is None or whole is None or not plain.ids:
            continue
        mask = [*whole.special_tokens_mask, 0]
        first = mask.index(0)
        last = first + len(plain.ids)
        if whole.ids[first:last] != plain.ids or not all(mask[last:-1]):
            raise ValueError("its post_processor changes a text beside what precedes and follows it; give another one")
        return tuple(whole.ids[:first]), tuple(whole.ids[last:])
    return (), ()

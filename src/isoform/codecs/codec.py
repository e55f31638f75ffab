"""The interface of codecs: records to Encodings. Codecs for text also decode ids.

Those hold one table, the UTF-8 bytes of each token, from which decoding, streaming, printing and counting
bytes follow; a subclass adds how text is encoded and the codec's definition.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from isoform.batch import Encoding
from isoform.codecs.chat import laid_out, plain_parts, prompt_of
from isoform.codecs.origin import Origin, SpecialIds
from isoform.files import write_text
from isoform.history import with_earlier_names

END_OF_TEXT = "<|endoftext|>"
SEPARATOR = "<|separator|>"
MASK = "<|mask|>"
FILE = "codec.json"


def span_token(number: int) -> str:
    """The name of the special token that replaces the number-th corrupted span of a text (T5's sentinels)."""
    return f"<|span_{number}|>"


def mode_token(mode: str) -> str:
    """The name of the special token for the denoiser that a text was corrupted by (UL2's modes)."""
    return f"<|mode_{mode}|>"


def _names(name: str) -> tuple[str, ...]:
    """isoform's name of a special token, and those of other tokenizers."""
    if name == MASK:
        return MASK, "[MASK]", "<mask>"
    if name.startswith("<|span_"):
        return name, f"<extra_id_{name[len('<|span_') : -2]}>"
    return (name,)


class Codec(ABC):
    """Records to tokens: with ids, with feature vectors (id -1), or both."""

    is_costly: ClassVar[bool] = False
    """Whether encoding is slow enough for its result to be cached on disk."""
    num_features: int = 0
    """The number of features of a token without an id."""
    num_positions: tuple[int, ...] = ()
    """The number of positions along each axis; empty: a token's position is its index."""
    num_classes: int = 0
    """Records have labels 0 .. num_classes - 1; 0: no labels."""
    origin: Origin = Origin()
    """The files of the folder that the codec was read from, if it is another library's."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the definition: equal if ids and features mean the same."""
        text = json.dumps(with_earlier_names(self.definition()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @abstractmethod
    def definition(self) -> dict[str, object]:
        """All that determines the tokens of a record, as JSON values."""

    @abstractmethod
    def encode(self, record: Mapping[str, Any]) -> Encoding:
        """The tokens of a record. Raises ValueError for one that this codec can't encode."""

    def files(self) -> dict[str, bytes]:
        """The codec as files of other libraries, by name; empty if they have no such codec."""
        return dict(self.origin.files)

    def save(self, folder: str | Path) -> None:
        """Write codec.json into an existing folder; `load_codec` reads it."""
        text = json.dumps(self.definition(), ensure_ascii=False, indent=1)
        write_text(Path(folder) / FILE, text + "\n")


class TextCodec(Codec):
    """Text to tokens and back.

    end_of_text ends every record; separator comes between source and target (a tokenizer that was read
    from a file and has none uses end_of_text). `special_ids` has what else precedes and follows texts. Special tokens
    have no bytes; text that looks like one is encoded as ordinary text, unless `special_ids.are_read`.
    """

    missing: Sequence[int] = ()
    """The ids below vocab_size that no token has."""

    def __init__(
        self, tokens: Sequence[bytes], *, special: Mapping[int, str], ids: SpecialIds, separator: int | None = None
    ) -> None:
        self.special, self.special_ids = dict(special), ids
        self.end_of_text, self.separator = ids.end, ids.end if separator is None else separator
        self._tokens = tuple(tokens)

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self._tokens)

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of every token (V,) int64, 0 for special ones: the denominator of bits per byte."""
        return np.fromiter(map(len, self._tokens), np.int64, self.vocab_size)

    @property
    def generation_start(self) -> int | None:
        """The first input of the decoder of a pair of stacks, for a text that is generated; None: the last token of the
        source. Raises ValueError if the model's folder names none."""
        start = self.special_ids.decoder_start
        return self.origin.generation_start if start is not None and self.origin.is_foreign else start

    @abstractmethod
    def encode_text(self, text: str) -> np.ndarray:
        """Ids (T,) of a text, without special tokens. Raises ValueError for text that has no token."""

    def encode(self, record: Mapping[str, Any]) -> Encoding:
        """A record {"text"} to text + end-of-text, or {"source", "target"} to source + separator + target +
        end-of-text with the prefix up to the separator, or {"tokens"} to the words joined by spaces, with any {"tags"}
        at the first token of each word, or {"messages"} (`encode_messages`), or {"ids"} as they are. A {"label"}
        is kept. Raises ValueError for other records."""
        if "text" in record:
            return Encoding(self._join(self.encode_text(record["text"]), self.end_of_text), label=record.get("label"))
        if "messages" in record:
            return replace(self.encode_messages(record["messages"], record.get("tools")), label=record.get("label"))
        if "ids" in record:
            return Encoding(self._checked(record["ids"]).astype(self.dtype), label=record.get("label"))
        if "tokens" in record:
            return self._words(record["tokens"], record.get("tags"))
        if "source" in record and "target" in record:
            source, target = self.encode_source(record["source"]), self.encode_text(record["target"])
            before = self.special_ids.before if self.special_ids.decoder_start is not None else ()
            return Encoding(np.concatenate([source, self._join(target, self.end_of_text, before)]), prefix=len(source))
        raise ValueError(
            f"a record has the keys {sorted(record)}; it needs 'text', 'source' and 'target', 'tokens' and "
            f"'tags', or 'messages'"
        )

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Encoding:
        """A conversation as the model's chat template lays it out, else in the plain form of `chat.py`; only the tokens
        that the assistant says are targets, with that which ends its turn.

        Raises ValueError for a template that fails.
        """
        template = self.origin.template(has_tools=bool(tools))
        if template:
            values = {**self.origin.names, "tools": tools, "documents": None}
            text, spans = laid_out(template, messages, values, self.special.values())
            return self._marked(text, spans)
        ids, is_target = self._plain(plain_parts(messages), tools)
        ids, is_target = [self.special_ids.before, *ids], [False, *is_target]
        sizes = [*map(len, ids)]
        joined = np.concatenate([np.asarray(part, self.dtype) for part in ids])
        return Encoding(joined, is_target=np.repeat(np.array(is_target), sizes))

    def encode_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> np.ndarray:
        """Ids of a conversation up to where the assistant goes on, as `encode_messages` has them."""
        template = self.origin.template(has_tools=bool(tools))
        if template:
            values = {**self.origin.names, "tools": tools, "documents": None}
            return self._marked(prompt_of(template, messages, values), []).ids
        ids, _ = self._plain(plain_parts(messages, for_answer=True), tools)
        return np.concatenate([np.asarray(part, self.dtype) for part in (self.special_ids.before, *ids)])

    def _plain(self, parts: Iterable[tuple[str, bool]], tools: object) -> tuple[list[np.ndarray], list[bool]]:
        """The ids of the parts of a conversation, and whether the assistant says them."""
        if tools:
            raise ValueError("a conversation with tools needs a model with a chat template")
        ids, is_target = [], []
        for text, is_answer in parts:
            end = [self.end_of_text] if is_answer else []
            ids.append(np.concatenate([self.encode_text(text), np.array(end, self.dtype)]))
            is_target.append(is_answer)
        return ids, is_target

    def _marked(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoding:
        """A text that names special tokens, of which spans of characters are targets."""
        raise ValueError("a chat template needs a tokenizer")

    def encode_start(self, text: str) -> np.ndarray:
        """Ids of a text to continue: preceded by the tokens that texts begin with, if there are any."""
        return np.concatenate([np.array(self.special_ids.before, self.dtype), self.encode_text(text)])

    def encode_whole(self, text: str) -> np.ndarray:
        """Ids of a text with what precedes and follows every text."""
        return self._join(self.encode_text(text), None)

    def encode_source(self, text: str) -> np.ndarray:
        """Ids of the source of a target: a whole text, or for a decoder alone one with a separator."""
        is_whole = self.special_ids.decoder_start is not None
        return self.encode_whole(text) if is_whole else self._join(self.encode_text(text), self.separator)

    def _join(self, ids: np.ndarray, end: int | None, before: Sequence[int] | None = None) -> np.ndarray:
        """Ids between those that precede and follow every text; `end` follows if none do."""
        before = self.special_ids.before if before is None else before
        after = self.special_ids.after or (() if end is None else (end,))
        return np.concatenate([np.array(before, self.dtype), ids, np.array(after, self.dtype)])

    def _words(self, words: Sequence[str], tags: Sequence[int | float] | None) -> Encoding:
        parts = [self.encode_text(word if i == 0 else f" {word}") for i, word in enumerate(words)]
        ids = self._join(np.concatenate([np.zeros(0, self.dtype), *parts]), self.end_of_text)
        if tags is None:
            return Encoding(ids)
        token_tags = np.full(len(ids), np.nan)
        try:
            token_tags[len(self.special_ids.before) + np.cumsum([0, *map(len, parts[:-1])])] = tags
        except ValueError:
            raise ValueError(
                f"the tags {', '.join(map(str, tags))} aren't numbers; for names use the objective tagging"
            ) from None
        return Encoding(ids, tags=token_tags)

    def decode(
        self, ids: np.ndarray | Sequence[int], *, prompt: np.ndarray | Sequence[int] = (), show_special: bool = False
    ) -> str:
        """The text that ids add to a prompt; invalid UTF-8 becomes U+FFFD, special tokens are omitted unless
        show_special.

        Raises ValueError for an id outside the vocabulary.
        """
        table = self._shown if show_special else self._tokens
        return b"".join(map(table.__getitem__, self._checked(ids).tolist())).decode("utf-8", "replace")

    def special_token(self, name: str) -> int:
        """The id of a special token, by isoform's name. Raises ValueError if the codec has none."""
        by_name = {text: i for i, text in self.special.items()}
        for alias in _names(name):
            if alias in by_name:
                return by_name[alias]
        raise ValueError(f"the codec has no special token {name}, which this objective needs")

    def with_special(self, names: Sequence[str]) -> TextCodec:
        """The same codec with the special tokens that it lacks, after all existing ones."""
        present = set(self.special.values())
        missing = [name for name in names if not present & {*_names(name)}]
        return self._with_special(missing) if missing else self

    @abstractmethod
    def _with_special(self, names: Sequence[str]) -> TextCodec:
        """The same codec with new special tokens, in this order, after all existing ones."""

    @cached_property
    def word_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each token (V,) begins, and whether it ends, with a letter, a digit or a non-ASCII byte: a token
        continues a word if it begins and its predecessor ends so."""

        def is_inside(byte: int) -> bool:
            return byte >= 128 or chr(byte).isalnum()

        begins = np.array([bool(b) and is_inside(b[0]) for b in self._tokens])
        return begins, np.array([bool(b) and is_inside(b[-1]) for b in self._tokens])

    def stream_decoder(self, prompt: np.ndarray | Sequence[int] = ()) -> StreamDecoder:
        """A decoder for a text whose tokens arrive one by one after a prompt."""
        return ByteStream(self._tokens)

    def token_text(self, token: int) -> str:
        """A printable form of one token: unprintable characters are escaped."""
        text = self._shown[token].decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    @cached_property
    def _shown(self) -> tuple[bytes, ...]:
        return tuple(self.special[i].encode() if i in self.special else b for i, b in enumerate(self._tokens))

    def _checked(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        array = np.asarray(ids, np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise ValueError(f"{wrong} is not an id of this codec, which has 0 .. {self.vocab_size - 1}")
        return array


class StreamDecoder(ABC):
    """Tokens to text, one by one; text that a later token may change is buffered."""

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that one more token completes, possibly empty."""

    @abstractmethod
    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character."""


class ByteStream(StreamDecoder):
    """Tokens of bytes: those of an incomplete character are buffered."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokens[token])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text. Raises ValueError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at position {error.start}, "
            f"which is half a character; remove it"
        ) from None


def have_same_vocabulary(first: Codec, second: Codec) -> bool:
    """Whether ids mean the same; what surrounds texts may differ."""
    first_form, second_form = ({**codec.definition(), "special_ids": None} for codec in (first, second))
    return first_form == second_form


def as_text(codec: Codec) -> TextCodec:
    """The same codec. Raises ValueError for one that isn't for text."""
    if isinstance(codec, TextCodec):
        return codec
    raise ValueError(
        f"this model reads {codec.definition()['kind']}, not text, and generates none; score it with isoform evaluate"
    )


def check_encodings(codec: Codec, records: Iterable[Mapping[str, Any]]) -> None:
    """The contract of any codec, on records it should be able to encode; raises AssertionError if violated."""
    for record in records:
        encoding, repeated = codec.encode(record), codec.encode(record)
        ids, length = encoding.ids, len(encoding)
        assert ids.ndim == 1 and 0 <= encoding.prefix <= length
        assert (ids >= (-1 if codec.num_features else 0)).all() and (ids < codec.vocab_size).all()
        assert np.array_equal(ids, repeated.ids), "encoding twice returned two results"
        assert (encoding.features is None) == (codec.num_features == 0)
        if encoding.features is not None:
            assert encoding.features.shape == (length, codec.num_features) and encoding.features.dtype == np.float32
            assert not encoding.features[ids >= 0].any(), "a token has an id and features"
        assert encoding.token_types is None or encoding.token_types.shape == (length,)
        assert (encoding.positions is None) == (not codec.num_positions)
        if encoding.positions is not None:
            assert encoding.positions.shape == (length, len(codec.num_positions))
            assert ((encoding.positions >= 0) & (encoding.positions < codec.num_positions)).all()
        assert encoding.is_target is None or encoding.is_target.shape == (length,)
        assert encoding.label is None or 0 <= encoding.label < codec.num_classes


def check_codec(codec: TextCodec, texts: Iterable[str]) -> None:
    """The contract of a codec for text, on texts it should be able to encode; raises AssertionError if violated."""
    assert codec.token_bytes.shape == (codec.vocab_size,)
    assert {codec.end_of_text, codec.separator} <= set(codec.special)
    assert not codec.token_bytes[list(codec.special)].any()
    for text in texts:
        ids = codec.encode_text(text)
        assert ids.dtype == codec.dtype and ids.ndim == 1
        assert not np.isin(ids, list(codec.special)).any(), "a text was encoded with a special token"
        assert codec.decode(ids) == text, "decoding doesn't invert encoding"
        assert codec.token_bytes[ids].sum() == len(text.encode()), "token_bytes don't sum to the text's bytes"
        stream = codec.stream_decoder()
        parts = [stream.push(i) for i in ids.tolist()]
        assert "".join([*parts, stream.flush()]) == text, "streaming returned another text"
        check_encodings(codec, [{"text": text}, {"source": text, "target": text}])
        plain, pair = codec.encode({"text": text}), codec.encode({"source": text, "target": text})
        assert plain.prefix == 0 and plain.ids.tolist() == [*ids.tolist(), codec.end_of_text]
        assert pair.ids.tolist() == [*ids.tolist(), codec.separator, *ids.tolist(), codec.end_of_text]
        assert pair.prefix == len(ids) + 1

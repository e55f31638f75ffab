"""Codecs for text by characters and by bytes; byte pairs are in bpe.py.

Bytes and byte pairs can encode any text; characters only those of their alphabet.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from isoform.codecs.codec import END_OF_TEXT, SEPARATOR, TextCodec, utf8
from isoform.codecs.document import BYTE_LEVEL, LETTERS, added_token, byte_pairs
from isoform.codecs.origin import SETTINGS, TOKENIZER_FILE, SpecialIds, own_settings


class CharacterCodec(TextCodec):
    """One token per character: the alphabet, in its order, then end-of-text, separator and the special `extra`."""

    def __init__(self, alphabet: str, extra: Sequence[str] = ()) -> None:
        if not alphabet:
            raise ValueError("the alphabet is empty: there is no text to learn it from; give codec.alphabet")
        if len(set(alphabet)) < len(alphabet):
            twice = [c for c, n in Counter(alphabet).items() if n > 1]
            raise ValueError(f"codec.alphabet has {twice} more than once; give each character once")
        utf8(alphabet)
        self.alphabet, self.extra = alphabet, tuple(extra)
        n = len(alphabet)
        super().__init__(
            [*(c.encode() for c in alphabet), b"", b"", *(b"" for _ in extra)],
            special=dict(enumerate([END_OF_TEXT, SEPARATOR, *extra], n)),
            ids=SpecialIds(n),
            separator=n + 1,
        )
        self._codes = _code_points(alphabet)
        self._ids = np.full(self._codes.max() + 2, n, self.dtype)  # n: not in the alphabet
        self._ids[self._codes] = np.arange(n)

    def definition(self) -> dict[str, object]:
        return {"kind": "characters", "alphabet": self.alphabet, **_special_field(self.extra)}

    def _with_special(self, names: Sequence[str]) -> CharacterCodec:
        return CharacterCodec(self.alphabet, (*self.extra, *names))

    def encode_text(self, text: str) -> np.ndarray:
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if ids.max(initial=0) == self.end_of_text:
            index = int((ids == self.end_of_text).argmax())
            raise ValueError(
                f"the character {text[index]!r} (U+{ord(text[index]):04X}) at position {index} is not among the "
                f"{self.end_of_text} of the alphabet; give codec.alphabet, or use the codec bytes or bpe"
            )
        return ids

    def files(self) -> dict[str, bytes]:
        vocabulary = {c: i for i, c in enumerate(self.alphabet)}
        return _files(self, byte_pairs(vocabulary, [], added=_added(self), decoder={"type": "Fuse"}))

    def decode(
        self, ids: np.ndarray | Iterable[int], *, prompt: np.ndarray | Sequence[int] = (), show_special: bool = False
    ) -> str:
        array = self._checked(np.asarray(ids, np.int64))
        if show_special:
            return super().decode(array, show_special=True)
        return self._codes[array[array < self.end_of_text]].tobytes().decode("utf-32-le")


class ByteCodec(TextCodec):
    """One token per UTF-8 byte, then end-of-text, separator and the special tokens `extra`."""

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self.extra = tuple(extra)
        super().__init__(
            [*(bytes([b]) for b in range(256)), b"", b"", *(b"" for _ in extra)],
            special=dict(enumerate([END_OF_TEXT, SEPARATOR, *extra], 256)),
            ids=SpecialIds(256),
            separator=257,
        )

    def definition(self) -> dict[str, object]:
        return {"kind": "bytes", **_special_field(self.extra)}

    def files(self) -> dict[str, bytes]:
        vocabulary = {letter: b for b, letter in enumerate(LETTERS)}
        level = {**BYTE_LEVEL, "use_regex": False}
        return _files(self, byte_pairs(vocabulary, [], added=_added(self), decoder=level, pre_tokenizer=level))

    def _with_special(self, names: Sequence[str]) -> ByteCodec:
        return ByteCodec((*self.extra, *names))

    def encode_text(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(self.dtype)


def _special_field(extra: Sequence[str]) -> dict[str, object]:
    """Special tokens as a field of a definition; omitted if empty, so that earlier fingerprints stay valid."""
    return {"special": list(extra)} if extra else {}


def _added(codec: TextCodec) -> list[dict[str, object]]:
    return [added_token(number, name) for number, name in codec.special.items()]


def _files(codec: TextCodec, document: Mapping[str, object]) -> dict[str, bytes]:
    text = json.dumps(document, ensure_ascii=False, indent=1)
    return {TOKENIZER_FILE: text.encode(), SETTINGS: own_settings(codec.special[codec.end_of_text])}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))

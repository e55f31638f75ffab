"""Tokens written as their ids, for a vocabulary without a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isoform.batch import Encoding
from isoform.codecs.codec import TextCodec
from isoform.codecs.origin import Origin, SpecialIds


class NumberCodec(TextCodec):
    """ " 12 7" for the tokens 12 and 7, so that a model without its tokenizer can still be prompted.

    No end-of-text token is added; a generated text ends where `origin` says, or at its maximum length.
    """

    def __init__(self, vocab_size: int, origin: Origin | None = None) -> None:
        tokens = [f" {i}".encode() for i in range(vocab_size)]
        self.origin = origin or Origin()
        ids = SpecialIds(vocab_size, decoder_start=self.origin.decoder_start)
        super().__init__(tokens, special={}, ids=ids)

    @property
    def dtype(self) -> np.dtype:
        """uint32, which also holds the id that means no token."""
        return np.dtype(np.uint32)

    def definition(self) -> dict[str, object]:
        return {"kind": "numbers", "vocab_size": self.vocab_size}

    def _with_special(self, names: Sequence[str]) -> NumberCodec:
        raise ValueError(f"without a tokenizer there are no special tokens, such as {names[0]}; supply one")

    def encode(self, record: Mapping[str, object]) -> Encoding:
        return Encoding(self.encode_text(str(record.get("text", ""))))

    def encode_text(self, text: str) -> np.ndarray:
        try:
            ids = np.array([int(word) for word in text.split()], np.int64)
        except ValueError:
            raise ValueError(f"without a tokenizer a text is token ids such as '5 17', not {text!r}") from None
        if not len(ids):
            raise ValueError("without a tokenizer a text can't be empty; give a token id")
        return self._checked(ids).astype(self.dtype)

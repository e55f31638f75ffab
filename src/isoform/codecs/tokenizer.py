"""Tokenizers that aren't byte-level: WordPiece (Schuster and Nakajima 2012), Unigram (Kudo 2018) and byte pairs with
marked spaces (SentencePiece), as tokenizer.json files, by `tokenizers`.

They may normalise a text first, such as lowercasing it or merging its spaces; decoding returns the normalised text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from isoform.codecs.bpe import ENDS, TOKENIZER_FILE, BPECodec, read_text
from isoform.codecs.codec import FILE, SEPARATOR, TextCodec, utf8
from isoform.files import write_text

BEGINS = ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>")
"""Beginning-of-text tokens of other tokenizers."""
SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenizerCodec(TextCodec):
    """A `tokenizers.Tokenizer`, which it owns and modifies, with its vocabulary unchanged.

    A text begins with the tokenizer's beginning-of-text token, if it has one ([CLS], <s>), and ends with its
    end-of-text token ([SEP], </s>). Raises ValueError for a tokenizer without the latter.
    """

    is_costly = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special}
        special |= {vocab[name]: name for name in (*BEGINS, *ENDS, "[SEP]", "[MASK]", "[PAD]") if name in vocab}
        by_name = {name: i for i, name in special.items()}
        end = next((name for name in ("[SEP]", *ENDS) if name in by_name), None)
        if end is None:
            raise ValueError(f"the tokenizer has no special token for the end of a text; add one of {', '.join(ENDS)}")
        begin = next((name for name in BEGINS if name in by_name), None)
        continuation = getattr(tokenizer.model, "continuing_subword_prefix", None)
        tokens = [b""] * (max(vocab.values()) + 1)
        for token, i in vocab.items():
            if i not in special:
                tokens[i] = token.encode() if i in added else _bytes_of(token, continuation)
        separator = by_name.get(SEPARATOR, by_name[end])
        super().__init__(tokens, special=special, end_of_text=by_name[end], separator=separator)
        self.begin_of_text = None if begin is None else by_name[begin]

    def definition(self) -> dict[str, object]:
        form = json.loads(self.tokenizer.to_str())
        fields = {key: form[key] for key in ("normalizer", "pre_tokenizer", "model", "decoder")}
        return {"kind": "tokenizer", **fields, "special": {str(i): name for i, name in self.special.items()}}

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, the format of other libraries, and codec.json."""
        write_text(Path(folder) / TOKENIZER_FILE, self.tokenizer.to_str(pretty=True))
        write_text(Path(folder) / FILE, json.dumps({"kind": "tokenizer", "file": TOKENIZER_FILE}) + "\n")

    def _with_special(self, names: Sequence[str]) -> TokenizerCodec:
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.add_special_tokens(list(names))
        return TokenizerCodec(tokenizer)

    def encode_text(self, text: str) -> np.ndarray:
        utf8(text)
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, self.dtype)

    def decode(self, ids: np.ndarray | Sequence[int], *, show_special: bool = False) -> str:
        return self.tokenizer.decode(self._checked(ids).tolist(), skip_special_tokens=not show_special)


def _bytes_of(token: str, continuation: str | None) -> bytes:
    """The bytes that a token adds to a text."""
    if match := BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    if continuation is not None:
        inside = token.startswith(continuation) and len(token) > len(continuation)
        return token[len(continuation) :].encode() if inside else f" {token}".encode()
    return token.replace(SPACE, " ").encode()


def read_tokenizer(path: str | Path) -> TextCodec:
    """The codec of any tokenizer.json. Raises ValueError if the file is missing or of another format."""
    try:
        tokenizer = Tokenizer.from_str(read_text(Path(path)))
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer.json ({error}); give one") from None
    if isinstance(tokenizer.model, models.BPE) and SPACE not in tokenizer.get_vocab():
        return BPECodec(tokenizer)
    return TokenizerCodec(tokenizer)

"""Byte-level byte-pair encoding (Sennrich et al. 2016; over bytes: GPT-2, 2019), by `tokenizers`.

It is trained on texts, or read from a tokenizer.json or from a .tiktoken file of ranks.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from isoform.codecs.bounds import without_panics
from isoform.codecs.codec import END_OF_TEXT, SEPARATOR, utf8
from isoform.codecs.document import BYTES, LETTERS
from isoform.codecs.origin import Origin, SpecialIds
from isoform.codecs.tokenizer import ENDS, LibraryCodec
from isoform.reading import TOKENIZER, read_text

LONGEST_WORD = 1000
"""Longer words are cut after this many bytes to learn from them, which takes quadratic time in a word's length."""
PROBE = "A b\n  c\té 12'll "
CHUNK = 2**14  # characters encoded by a thread at a time; larger is slower, 4 kB is no faster


class BPECodec(LibraryCodec):
    """Byte-level byte pairs, by a `tokenizers.Tokenizer`, which it owns and modifies.

    The vocabulary stays unchanged, so that pretrained weights fit: a tokenizer without a separator uses end-of-text
    instead, and a text with a byte that has no token can't be encoded. Raises ValueError for tokenizers that aren't
    byte-level or whose decoding doesn't restore the text.
    """

    kind = "bpe"

    def __init__(self, tokenizer: Tokenizer, ids: SpecialIds | None = None, origin: Origin | None = None) -> None:
        super().__init__(tokenizer, ids, origin)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        absent = [b for b, letter in enumerate(LETTERS) if letter not in vocabulary]
        if any(chr(b).isprintable() for b in absent if b < 128):
            raise ValueError(
                f"the tokenizer is not byte-level: it has no token for {len(absent)} of 256 bytes "
                f"(the first is {absent[0]}); use one trained with the ByteLevel alphabet"
            )
        self._absent = bytes(absent)  # rare bytes that some tokenizers have no token for
        added = tokenizer.get_added_tokens_decoder().values()
        self._can_cut = (
            isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
            and tokenizer.pre_tokenizer.use_regex
            and tokenizer.normalizer is None
            and all(token.special and not (token.lstrip or token.rstrip) for token in added)
        )
        plain = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if not token.special}
        for text, parts in (PROBE, self.encode_text(PROBE).tolist()), *((text, [i]) for i, text in plain.items()):
            for back in (self.decode(parts), tokenizer.decode(parts)):
                if back != text:
                    raise ValueError(
                        f"the tokenizer turns {text!r} into {back!r}; switch off the option for that, such as "
                        f"add_prefix_space"
                    )

    def _guess(self, by_name: Mapping[str, int]) -> SpecialIds | None:
        end = next((by_name[name] for name in ENDS if name in by_name), None)
        return None if end is None else SpecialIds(end)

    def _bytes_of(self, token: str) -> bytes:
        if unknown := [c for c in token if c not in BYTES]:
            raise ValueError(
                f"the tokenizer's token {token!r} is not made of bytes ({unknown[0]!r}); only byte-level tokenizers "
                f"can be read"
            )
        return bytes(BYTES[c] for c in token)

    def definition(self) -> dict[str, object]:
        form = json.loads(self.tokenizer.to_str())
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in form["model"]["merges"]]
        return {
            "kind": self.kind,
            "vocab": form["model"]["vocab"],
            "merges": merges,
            "special": self.special,
            "normalizer": form["normalizer"],
            "pre_tokenizer": form["pre_tokenizer"],
            **self._own_ids(),
        }

    def encode_text(self, text: str) -> np.ndarray:
        data = utf8(text)
        if self._absent and (unknown := {*data} & {*self._absent}):
            raise ValueError(f"the tokenizer has no token for the byte {min(unknown)}, which is in the text; remove it")
        if len(text) <= CHUNK or not self._can_cut:
            return super().encode_text(text)
        parts, chunks = [], _chunks(text)
        while group := list(itertools.islice(chunks, 256)):  # bounds the memory that a large text takes
            with without_panics(f"the text {group[0][:40]!r} can't be encoded"):
                encodings = self.tokenizer.encode_batch_fast(group, add_special_tokens=False)
            parts += [np.array(encoding.ids, self.dtype) for encoding in encodings]
        return np.concatenate(parts)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPECodec:
    """Train on byte pairs that occur at least twice; the last two of vocab_size tokens are special.

    For learning alone, words of more than LONGEST_WORD bytes are cut, as a text without spaces is a single word.
    Raises ValueError for a vocab_size too small for all bytes; warns if the texts have too few pairs.
    """
    if vocab_size < 258:
        raise ValueError(
            f"codec.vocab_size={vocab_size} has no room for 256 bytes and 2 special tokens; set 258 or more"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words, parts = tokenizer.pre_tokenizer, Regex(f"[\\s\\S]{{1,{LONGEST_WORD}}}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Split(parts, "isolated")])
    tokenizer.train_from_iterator((chunk for text in texts for chunk in _chunks(text)), trainer)
    tokenizer.pre_tokenizer = words
    tokenizer.add_special_tokens([END_OF_TEXT, SEPARATOR])
    codec = BPECodec(tokenizer)
    if codec.vocab_size < vocab_size:
        warnings.warn(f"the training text yields only {codec.vocab_size} of {vocab_size} tokens", stacklevel=2)
    return codec


def bpe_from_tiktoken(path: str | Path) -> BPECodec:
    """The tokenizer of a .tiktoken file, lines of base64 bytes and rank, with GPT-2's pattern.

    A rank is the order of a merge, but not its two parts; these are recovered by byte-pair encoding of the
    token's bytes with lower ranks only. end-of-text takes the first free id (GPT-2: 50256). Raises ValueError
    for a malformed file, and for large vocabularies (cl100k, o200k), which use other patterns.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path, TOKENIZER).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: {line[:40]!r} is not base64 and a rank; get the file again"
            ) from None
    if len(ranks) > 60_000:
        raise ValueError(f"{path} has {len(ranks)} tokens, so its pattern isn't GPT-2's; give its tokenizer.json")
    if not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError(f"{path} has not all 256 bytes among its tokens; get the file again")
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merge(token, ranks, below=rank)
            if len(parts) != 2:
                raise ValueError(f"{path}: the token {token!r} is not a merge of two earlier ones; get the file again")
            merges.append((_letters_of(parts[0]), _letters_of(parts[1])))
    vocab = {_letters_of(token): rank for token, rank in ranks.items()}
    taken = set(ranks.values())
    vocab[END_OF_TEXT] = next(i for i in itertools.count() if i not in taken)
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return BPECodec(tokenizer)


def _chunks(text: str) -> Iterator[str]:
    """Parts of a text of about CHUNK characters, cut before a line feed that a visible character follows.

    GPT-2's pattern never joins such a line feed with its neighbours, so the ids don't change. Python's \\S is
    narrower than the pattern's, which is safe.
    """
    begin, line_start = 0, re.compile(r"\n(?=\S)")
    while begin < len(text):
        match = line_start.search(text, begin + CHUNK)
        end = match.start() if match else len(text)
        yield text[begin:end]
        begin = end


def _merge(token: bytes, ranks: dict[bytes, int], *, below: int) -> list[bytes]:
    """Byte-pair encoding of one token with the merges of ranks < below."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        best = min(pairs)
        if best >= below:
            break
        index = pairs.index(best)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _letters_of(token: bytes) -> str:
    return "".join(LETTERS[b] for b in token)

"""All codecs: from a config to its codec, and from a folder to the codec saved in it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import assert_never

from isoform.codecs.bpe import TOKENIZER_FILE, bpe_from_tiktoken, read_bpe, read_text, train_bpe
from isoform.codecs.codec import FILE, Codec
from isoform.codecs.config import BPE, Bytes, Characters, Patches, Tokenizer
from isoform.codecs.config import Codec as CodecConfig
from isoform.codecs.image import PatchCodec, load_patches
from isoform.codecs.text import ByteCodec, CharacterCodec
from isoform.codecs.tokenizer import read_tokenizer


def build_codec(config: CodecConfig, texts: Iterable[str]) -> Codec:
    """The codec of a config; what the config leaves unset is learned from the training texts."""
    match config:
        case Characters():
            return CharacterCodec(config.alphabet or _alphabet(texts))
        case Bytes():
            return ByteCodec()
        case BPE(path=""):
            return train_bpe(texts, config.vocab_size)
        case BPE():
            codec = bpe_from_tiktoken(config.path) if config.path.endswith(".tiktoken") else read_bpe(config.path)
            if config.vocab_size not in (BPE().vocab_size, codec.vocab_size):
                warnings.warn(
                    f"codec.vocab_size={config.vocab_size} is ignored: path has {codec.vocab_size} tokens",
                    stacklevel=2,
                )
            return codec
        case Tokenizer(path=path):
            return read_tokenizer(path)
        case Patches():
            return PatchCodec(config)
        case _:
            assert_never(config)


def load_codec(folder: str | Path) -> Codec:
    """The codec saved in a folder, which may have only a tokenizer.json. Raises ValueError if there is none."""
    folder = Path(folder)
    if not (folder / FILE).exists() and (folder / TOKENIZER_FILE).exists():
        return read_tokenizer(folder / TOKENIZER_FILE)
    try:
        form = json.loads(read_text(folder / FILE))
        kind = form["kind"]
        alphabet = form["alphabet"] if kind == "characters" else ""
        extra = tuple(map(str, form.get("special", ()))) if kind in ("characters", "bytes") else ()
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{folder / FILE} is damaged; copy it again or train once more") from None
    match kind:
        case "characters":
            return CharacterCodec(alphabet, extra)
        case "bytes":
            return ByteCodec(extra)
        case "bpe":
            return read_bpe(folder / TOKENIZER_FILE)
        case "tokenizer":
            return read_tokenizer(folder / TOKENIZER_FILE)
        case "patches":
            return load_patches(form, folder / FILE)
        case _:
            raise ValueError(f"{folder / FILE} is of the unknown kind {kind!r}; upgrade isoform")


def _alphabet(texts: Iterable[str]) -> str:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return "".join(sorted(characters))

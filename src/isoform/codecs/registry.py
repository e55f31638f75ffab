"""All codecs: from a config to its codec, and from a folder to the codec saved in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, assert_never

from tokenizers import models

from isoform.codecs.bpe import BPECodec, bpe_from_tiktoken, train_bpe
from isoform.codecs.classes import CLASSES, build, class_of, warn_of_difference
from isoform.codecs.codec import FILE, Codec
from isoform.codecs.config import BPE, Bytes, Characters, Patches, Tokenizer
from isoform.codecs.config import Codec as CodecConfig
from isoform.codecs.image import PatchCodec, load_patches
from isoform.codecs.origin import TOKENIZER_FILE, Origin, SpecialIds, read_origin
from isoform.codecs.text import ByteCodec, CharacterCodec
from isoform.codecs.tokenizer import (
    LibraryCodec,
    TokenizerCodec,
    add_tokens,
    ids_around,
    is_byte_level,
    parse_tokenizer,
)
from isoform.outside import External, called, refusal, resolved
from isoform.reading import TOKENIZER, read_json, read_text


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
        case External():
            return own_codec(config)
        case _:
            assert_never(config)


def own_codec(config: External) -> Codec:
    """A codec of the user's own: the object that the config names, or what its class or function returns. Raises
    ValueError for something else, and NotNamed."""
    part = resolved(config, "codec")
    codec = part if isinstance(part, Codec) else called(config, "codec")
    if not isinstance(codec, Codec):
        raise refusal(config.name, "codec", "an isoform.Codec", codec)
    return codec


def read_bpe(path: str | Path) -> BPECodec:
    """A byte-level tokenizer.json. Raises ValueError if the file is missing or of another format."""
    codec = read_tokenizer(path)
    if not isinstance(codec, BPECodec):
        model = type(codec.tokenizer.model).__name__
        raise ValueError(f"{path} holds a {model} model that isn't byte-level; set codec.kind to tokenizer")
    return codec


def read_tokenizer(
    path: str | Path, ids: Mapping[str, Any] | None = None, *, are_read: bool = False
) -> BPECodec | TokenizerCodec:
    """The codec of a tokenizer.json, with what the files beside it say.

    ids: of a model's folder, the fields of its config.json about special tokens; None: a tokenizer alone, which adds
    special tokens by their names if it has no post-processor. are_read: whether the name of a special token in a text
    is read as that token, as transformers does. Raises ValueError if a file is missing, or of another format.
    """
    path = Path(path)
    origin = read_origin(path.parent, ids) if path.name == TOKENIZER_FILE else Origin()
    origin = origin if ids is not None else origin.of_texts()
    tokenizer, origin = _tokenizer_of(path, origin)
    is_silent = ids is None and tokenizer.post_processor is None
    return _codec(tokenizer, None if is_silent else ids_around(tokenizer, origin, are_read=are_read), origin)


def _tokenizer_of(path: Path, origin: Origin, name: str | None = None) -> tuple[Any, Origin]:
    """The tokenizer of a tokenizer.json, or of a class if transformers builds it so; name: the class, if settled."""
    document = read_text(path, TOKENIZER)
    tokenizer = parse_tokenizer(document, path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    is_new, name = name is None, class_of(origin, document) if name is None else name
    if not name or name not in CLASSES:
        add_tokens(tokenizer, origin)
        if name:
            warnings.warn(
                f"{path} is followed, but transformers builds this tokenizer by {name}, which isoform doesn't read: "
                f"texts may have other tokens there",
                stacklevel=4,
            )
        return tokenizer, origin
    built, origin = build(name, document, origin, tokenizer.post_processor)
    if is_new:
        warn_of_difference(path, name, built, tokenizer, name)
    return built, origin


def files_for(codec: Codec, files: Mapping[str, bytes], ids: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """The files of a codec, for a folder whose config.json has these fields about tokens.

    They stay as they are unless transformers would build another tokenizer from them there. Warns if it does so
    whatever they say; path: of their tokenizer.json, for that.
    """
    files = dict(files)
    if TOKENIZER_FILE not in files or _class_in(files, ids) == codec.origin.class_name:
        return files
    if isinstance(codec, LibraryCodec):
        document = codec.tokenizer.to_str(pretty=True).encode() if codec.origin.files else files[TOKENIZER_FILE]
        files = dict(codec.origin.plain({**files, TOKENIZER_FILE: document}).files)
    name, document = _class_in(files, ids), files[TOKENIZER_FILE].decode()
    if name in CLASSES:
        file = parse_tokenizer(document, path)
        built, _ = build(name, document, Origin(files, ids), file.post_processor)
        warn_of_difference(path, name, built, file, TOKENIZER_FILE)
    return files


def _class_in(files: Mapping[str, bytes], ids: Mapping[str, Any]) -> str:
    return class_of(Origin(files, ids), files[TOKENIZER_FILE].decode())


def _codec(tokenizer: Any, ids: SpecialIds | None, origin: Origin) -> BPECodec | TokenizerCodec:
    if isinstance(tokenizer.model, models.BPE) and is_byte_level(tokenizer):
        try:
            return BPECodec(tokenizer, ids, origin)
        except ValueError:  # decoding doesn't restore the text
            pass
    return TokenizerCodec(tokenizer, ids, origin)


def load_codec(folder: str | Path, ids: Mapping[str, Any] | None = None) -> Codec:
    """The codec saved in a folder; or that of another library's folder, which has only a tokenizer.json, with the
    fields of its config.json about special tokens, `ids`. Raises ValueError if there is none."""
    folder = Path(folder)
    if not (folder / FILE).exists() and (folder / TOKENIZER_FILE).exists():
        return read_tokenizer(folder / TOKENIZER_FILE, ids or {}, are_read=True)
    form = read_json(folder / FILE)
    try:
        kind = form["kind"]
        alphabet = form["alphabet"] if kind == "characters" else ""
        if not isinstance(alphabet, str):
            raise TypeError(alphabet)
        extra = tuple(map(str, form.get("special", ()))) if kind in ("characters", "bytes") else ()
        special_ids = SpecialIds(**form["special_ids"]) if "special_ids" in form else None
        origin = read_origin(folder, form["origin"]) if "origin" in form else Origin()
    except (KeyError, TypeError):
        raise ValueError(f"{folder / FILE} is damaged; copy it again or train once more") from None
    match kind:
        case "characters":
            return CharacterCodec(alphabet, extra)
        case "bytes":
            return ByteCodec(extra)
        case "bpe" | "tokenizer":
            tokenizer, origin = _tokenizer_of(folder / TOKENIZER_FILE, origin, str(form.get("class", "")))
            return (BPECodec if kind == "bpe" else TokenizerCodec)(tokenizer, special_ids, origin)
        case "patches":
            return load_patches(form, folder / FILE)
        case _:
            raise ValueError(f"{folder / FILE} is of the unknown kind {kind!r}; upgrade isoform")


def _alphabet(texts: Iterable[str]) -> str:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return "".join(sorted(characters))

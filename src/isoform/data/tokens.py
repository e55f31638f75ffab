"""Records as concatenated tokens, with the length and the prefix of each: in memory, or memory-mapped from disk.

Only ids are cached on disk, since only text is costly to encode. The cache key is made of the codec's fingerprint and
the records' hash, so an entry is never stale; files whose hash differs from the one in their index are made anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from isoform.batch import COLUMNS, Encoding
from isoform.codecs.codec import Codec, TextCodec
from isoform.data.records import Record, location
from isoform.files import hash_file, make_folder, write_chunks, write_text
from isoform.machine import cache_folder
from isoform.reading import read_json

FORMAT = 1
NOT_CACHED = {"tags", "messages", "ids"}
"""Parts of records that have more than ids for each token, or are ids."""
LARGE = 32 * 2**20  # characters from which any text is cached on disk, to be memory-mapped


@dataclass(frozen=True, eq=False)
class TokenStore:
    """All records as concatenated tokens: ids (N,), features (N, F), token_types (N,), positions (N, P), tags (N,),
    is_target (N,); lengths and prefixes (n,) of each record, in tokens; labels (n,); records: the originals."""

    ids: np.ndarray
    lengths: np.ndarray
    prefixes: np.ndarray
    features: np.ndarray | None = None
    token_types: np.ndarray | None = None
    positions: np.ndarray | None = None
    labels: Sequence[int | float | None] | None = None
    tags: np.ndarray | None = None
    is_target: np.ndarray | None = None
    records: Sequence[Record] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """The index of each record's first token among the ids (n,)."""
        return np.cumsum(self.lengths) - self.lengths

    def location(self, record: int) -> str:
        """The location of a record: its file and line, or its number."""
        return location(self.records[record], record) if self.records else f"record {record}"

    def encoding(self, record: int, start: int = 0, stop: int | None = None) -> Encoding:
        """A record, or tokens start .. stop of it; the prefix is kept only if start is 0."""
        begin, length = int(self.starts[record]), int(self.lengths[record])
        part = slice(begin + start, begin + (length if stop is None else stop))
        columns = {name: column[part] for name in COLUMNS if (column := getattr(self, name)) is not None}
        label = None if self.labels is None else self.labels[record]
        prefix = int(self.prefixes[record]) if start == 0 else 0
        return Encoding(self.ids[part], prefix, label=label, **columns)


def load_tokens(records: Sequence[Record], codec: Codec, *, cache: bool | None = None) -> TokenStore:
    """The tokens of records under a codec.

    cache: whether to store the ids of texts in the user's cache folder; default: if the codec is costly or the text
    large. A cache that can't be written only causes a warning. Raises ValueError naming the record that the codec
    can't encode.
    """
    if cache is None:
        cache = codec.is_costly or (isinstance(codec, TextCodec) and _is_large(records))
    if not cache or not isinstance(codec, TextCodec) or any(record.keys() & NOT_CACHED for record in records):
        return _encode(records, codec)
    contents = _hash_of(records)
    key = hashlib.sha256(f"{FORMAT} {codec.fingerprint} {contents}".encode()).hexdigest()[:32]
    shard = _Shard(cache_folder() / "tokens", key)
    tokens = shard.read()
    if tokens is None:
        tokens = _encode(records, codec)
        try:
            shard.write(tokens, {"codec": codec.fingerprint, "records": contents})
        except OSError as error:
            warnings.warn(f"the tokens can't be cached in {shard.folder} ({error.strerror})", stacklevel=2)
        else:
            tokens = shard.read() or tokens
    return replace(tokens, labels=_labels(records), records=records)


def _encode(records: Sequence[Record], codec: Codec) -> TokenStore:
    encodings = []
    for number, record in enumerate(records):
        try:
            encodings.append(codec.encode(record))
        except ValueError as error:
            raise ValueError(f"{location(record, number)}: {error}") from None
    if not encodings:
        raise ValueError("there are no records to encode; give some")
    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    prefixes = np.fromiter((e.prefix for e in encodings), np.int64, len(encodings))
    ids = encodings[0].ids if len(encodings) == 1 else np.concatenate([e.ids for e in encodings])
    if any(e.is_target is not None for e in encodings):
        encodings = [replace(e, is_target=_targets_of(e)) for e in encodings]
    joined = {name: _joined([getattr(e, name) for e in encodings]) for name in COLUMNS}
    return TokenStore(ids, lengths, prefixes, **joined, labels=_labels(records), records=records)


def _targets_of(encoding: Encoding) -> np.ndarray:
    """Whether each token is predicted: of texts and pairs, those after the prefix."""
    return np.arange(len(encoding)) >= encoding.prefix if encoding.is_target is None else encoding.is_target


def _labels(records: Sequence[Record]) -> list[int | float | None] | None:
    """The label of each record; None if none has one."""
    labels = [record.get("label") for record in records]
    return labels if any(label is not None for label in labels) else None


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The records' columns, concatenated. Raises ValueError if only some records have the column."""
    columns = [part for part in parts if part is not None]
    if columns and len(columns) < len(parts):
        raise ValueError(
            f"{len(columns)} of {len(parts)} records have features, token types or positions and the rest have none; "
            f"the codec must return them for all"
        )
    return np.concatenate(columns) if columns else None


def _is_large(records: Iterable[Record]) -> bool:
    total = 0
    for record in records:
        total += sum(len(value) for value in record.values() if isinstance(value, str))
        if total > LARGE:
            return True
    return False


def _hash_of(records: Iterable[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        for key, value in sorted(record.items()):
            if not isinstance(value, str):
                continue  # a label that is a number
            data = value.encode("utf-8", "surrogatepass")
            digest.update(f"{key} {len(data)}\n".encode())
            digest.update(data)
        digest.update(b"\0")
    return digest.hexdigest()


def _array_chunks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """A .npy file."""
    header, array = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    yield header.getvalue()
    yield array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class _Shard:
    """Three files: ids, records (lengths and prefixes), and the index with their hashes, written last."""

    folder: Path
    key: str

    @property
    def files(self) -> tuple[Path, Path]:
        return self.folder / f"{self.key}.ids.npy", self.folder / f"{self.key}.records.npy"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.key}.json"

    def read(self) -> TokenStore | None:
        """The stored tokens, or None if a file is missing or damaged."""
        try:
            index = read_json(self.index)
            if [hash_file(path).sha256 for path in self.files] != index["sha256"]:
                return None
            ids, records = (np.asarray(np.load(path, mmap_mode="r")) for path in self.files)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return TokenStore(ids, records[0], records[1])

    def write(self, tokens: TokenStore, origin: dict[str, str]) -> None:
        """Each file is replaced atomically, so that concurrent readers and writers are safe."""
        make_folder(self.folder)
        arrays = tokens.ids, np.stack([tokens.lengths, tokens.prefixes])
        entries = [write_chunks(path, _array_chunks(array)) for path, array in zip(self.files, arrays, strict=True)]
        index = {
            "format": FORMAT,
            **origin,
            "num_records": len(tokens),
            "num_tokens": len(tokens.ids),
            "sha256": [entry.sha256 for entry in entries],
        }
        write_text(self.index, json.dumps(index, indent=1))

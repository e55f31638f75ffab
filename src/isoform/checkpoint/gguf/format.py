"""The file format: metadata, where the tensors lie, and how their numbers are coded.

The header is walked here, each size against the file's before memory is taken; the library `gguf` knows the number
formats. Text in the file, such as a chat template, is data and nothing else.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoform.machine import library

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The metadata types that have one size, as `struct` writes them."""
MOST_DIMENSIONS = 4
LARGEST = 2**31
"""No size among the metadata may be larger."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What is given as it is stored; all else is dequantised to float32."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as it lies in the file: shape, rows first, the number format, and its bytes from `begin` to `end`."""

    name: str
    shape: tuple[int, ...]
    format: int
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """All that a file says before its numbers: metadata and where each tensor lies in its bytes, `data`."""

    path: Path
    data: np.ndarray
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def value(self, key: str, kind: type) -> Any:
        """A value that has to be there. Raises ValueError naming the key."""
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            state = "is missing" if value is None else f"is {value!r}"
            raise ValueError(
                f"{self.path}: the key {key!r} {state}; a {kind.__name__} is needed, convert the model again"
            )
        return value

    def values(self, key: str, kind: type) -> list:
        """An array of one kind that has to be there. Raises ValueError naming the key."""
        values = self.value(key, list)
        if not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{self.path}: {key} holds something else than {kind.__name__}; get it again")
        return values

    def count(self, key: str) -> int:
        """A size; an array with the same for every block counts as one. Raises ValueError naming the key."""
        value = self.metadata.get(key)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value):
                raise ValueError(f"{self.path}: {key!r} differs from block to block, which is not supported")
            value = value[0]
        if not is_count(value):
            state = "is missing" if value is None else f"is {value!r}"
            raise ValueError(
                f"{self.path}: the key {key!r} {state}; a whole number from 1 is needed, get the file again"
            )
        assert isinstance(value, int)
        return value

    def real(self, key: str) -> float:
        """A real number, as it was meant before it was rounded to float32. Raises ValueError naming the key."""
        value = float(self.value(key, float))
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{self.path}: {key}={value!r} has to be finite and greater than 0; get the file again")
        return float(str(np.float32(value)))

    def raw(self, info: TensorInfo) -> np.ndarray:
        """The bytes of a tensor."""
        return self.data[info.begin : info.end]


def is_count(value: object) -> bool:
    """Whether this is a whole number that a size can be."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


class _Reader:
    """A place in the file, and reading on from it, never beyond the end."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int, what: str) -> memoryview:
        """The next bytes. Raises ValueError where the file ends before."""
        if count > len(self.data) - self.at:
            raise ValueError(
                f"{self.path} ends in {what}: {count:,} bytes are asked for at {self.at:,} of {len(self.data):,}; "
                "it is truncated or damaged, get it again"
            )
        self.at += count
        return self.data[self.at - count : self.at].data

    def scalar(self, letter: str, what: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, what: str) -> str:
        """The next string. Raises ValueError where it isn't UTF-8."""
        raw = bytes(self.take(self.scalar("Q", what), what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is no UTF-8; the file is damaged, get it again") from None

    def value(self, what: str) -> Any:
        """The next value of metadata, after its type."""
        kind = self.scalar("I", what)
        if kind == STRING:
            return self.text(what)
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind != ARRAY:
            raise ValueError(f"{self.path}: {what} has the unknown type {kind}; the file is damaged, get it again")
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind == STRING:
            self.room(count, 8, what)
            return [self.text(what) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"{self.path}: {what} is an array of type {kind}, which no known key has")
        return np.frombuffer(
            self.take(count * struct.calcsize(f"<{SCALARS[kind]}"), what), f"<{SCALARS[kind]}"
        ).tolist()

    def room(self, count: int, least: int, what: str) -> None:
        """Raises ValueError if so many things of at least so many bytes can't follow."""
        if count * least > len(self.data) - self.at:
            raise ValueError(
                f"{self.path}: {what} says it has {count:,} entries, but {len(self.data) - self.at:,} bytes follow; "
                "it is truncated or damaged, get it again"
            )


def read_header(path: str | Path) -> Header:
    """The metadata and the places of the tensors; no numbers are read.

    Raises ValueError for a file that is missing, something else, truncated, or describes what can't be.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); check the path") from None
    reader = _Reader(path, data)
    if bytes(data[:4]) != MAGIC:
        raise ValueError(f"{path} is no GGUF file: it begins with {bytes(data[:4])!r} instead of {MAGIC!r}")
    reader.at = 4
    version = reader.scalar("I", "its version")
    if version not in VERSIONS:
        swapped = " (its bytes are swapped: big-endian files are not supported)" if version & 0xFFFF == 0 else ""
        raise ValueError(f"{path} has GGUF version {version}{swapped}; 2 and 3 can be read, convert the model again")
    num_tensors, num_keys = reader.scalar("Q", "the number of tensors"), reader.scalar("Q", "the number of keys")
    reader.room(num_keys, 8 + 4 + 1, "the metadata")
    metadata: dict[str, Any] = {}
    for i in range(num_keys):
        key = reader.text(f"the name of key {i}")
        if key in metadata:
            raise ValueError(f"{path}: the key {key!r} is there twice; the file is damaged, get it again")
        metadata[key] = reader.value(f"the key {key!r}")
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise ValueError(f"{path} is one of {parts} parts; join them with llama-gguf-split --merge")
    alignment = metadata.get("general.alignment", 32)
    if not is_count(alignment) or alignment & (alignment - 1):
        raise ValueError(
            f"{path}: general.alignment={alignment!r} is no power of two; the file is damaged, get it again"
        )
    reader.room(num_tensors, 8 + 4 + 8 + 4 + 8, "the list of tensors")
    infos = [_tensor_info(reader, i) for i in range(num_tensors)]
    begin = -(-reader.at // alignment) * alignment
    return Header(path, data, metadata, _placed(path, infos, begin, alignment, size))


def _tensor_info(reader: _Reader, number: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape with rows first, number format and offset of the next tensor."""
    name = reader.text(f"the name of tensor {number}")
    what = f"the tensor {name!r}"
    rank = reader.scalar("I", what)
    if not 1 <= rank <= MOST_DIMENSIONS:
        raise ValueError(f"{reader.path}: {what} has {rank} dimensions, not 1 to {MOST_DIMENSIONS}; get the file again")
    shape = tuple(reader.scalar("Q", what) for _ in range(rank))[::-1]
    return name, shape, reader.scalar("I", what), reader.scalar("Q", what)


def _placed(
    path: Path, infos: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """Where each tensor lies. Raises ValueError for one that is there twice, or reaches into another or too far."""
    sizes = library("gguf", extra="hub").GGML_QUANT_SIZES
    tensors: dict[str, TensorInfo] = {}
    for name, shape, code, offset in infos:
        what = f"{path}: the tensor {name!r}"
        if name in tensors:
            raise ValueError(f"{what} is there twice; the file is damaged, get it again")
        if min(shape) < 1:
            raise ValueError(f"{what} has shape {list(shape)}; the file is damaged, get it again")
        if code not in sizes:
            raise ValueError(f"{what} has the unknown number format {code}; is the library gguf too old for it?")
        block, num_bytes = sizes[code]
        if shape[-1] % block:
            raise ValueError(
                f"{what} has rows of {shape[-1]:,} numbers, which blocks of {block} don't fill; get it again"
            )
        if offset % alignment:
            raise ValueError(
                f"{what} begins at {offset:,}, no multiple of {alignment}; the file is damaged, get it again"
            )
        end = begin + offset + math.prod(shape) // block * num_bytes
        if end > size:
            raise ValueError(
                f"{what} of shape {list(shape)} reaches to byte {end:,}, but the file has {size:,}; "
                "it is truncated or damaged, get it again"
            )
        tensors[name] = TensorInfo(name, shape, code, begin + offset, end)
    ordered = sorted(tensors.values(), key=lambda t: t.begin)
    for one, other in itertools.pairwise(ordered):
        if other.begin < one.end:
            raise ValueError(f"{path}: the tensors {one.name!r} and {other.name!r} overlap; get the file again")
    return tensors


def check_format(header: Header, info: TensorInfo) -> None:
    """Raises ValueError for a number format that can't be turned into floating numbers."""
    gguf = library("gguf", extra="hub")
    kind = gguf.GGMLQuantizationType(info.format)
    try:
        if kind.name not in FLOATS:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise ValueError(
            f"{header.path}: the tensor {info.name!r} has the format {kind.name}, which can't be turned into "
            "floating numbers; take a file in another"
        ) from None


def read_numbers(header: Header, info: TensorInfo) -> Tensor:
    """The numbers of a tensor, in memory of its own: F32, F16 and BF16 as they are stored, all else in float32."""
    gguf = library("gguf", extra="hub")
    kind, raw = gguf.GGMLQuantizationType(info.format), header.raw(info)
    if kind.name in FLOATS:
        return torch.from_numpy(np.array(raw)).view(FLOATS[kind.name]).reshape(info.shape)
    rows = np.asarray(raw).reshape(math.prod(info.shape[:-1]), -1)
    with np.errstate(all="ignore"):  # whoever builds the model looks for numbers that aren't finite
        values = np.asarray(gguf.dequantize(rows, kind), np.float32)
    return torch.from_numpy(values.reshape(info.shape))

"""The file format: metadata, the offsets of tensors, and the encoding of their numbers.

The header is parsed here, with each size checked against the file's before memory is allocated; the library `gguf`
decodes the number formats. Text in the file, such as a chat template, is only data.
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

from isoform.machine import import_optional

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The metadata types of fixed size, as `struct` formats."""
MAX_DIMENSIONS = 4
LARGEST = 2**31
"""The upper limit of sizes in the metadata."""
MAX_VALUES = 4 * 10**6
"""The most values in the lists of the metadata; a vocabulary of 300,000 tokens has 1,500,000."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Formats that are returned as stored; all others are dequantised to float32."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file: its shape, rows first, number format, and bytes from `begin` to `end`."""

    name: str
    shape: tuple[int, ...]
    format: int
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """The header of a file: metadata and the tensors' offsets into its bytes, `data`."""

    path: Path
    data: np.ndarray
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def value(self, key: str, expected: type) -> Any:
        """A required value. Raises ValueError naming the key."""
        value = self.metadata.get(key)
        if not isinstance(value, expected):
            state = "is missing" if value is None else f"is {value!r}"
            raise ValueError(
                f"{self.path}: the key {key!r} {state}; a {expected.__name__} is needed, convert the model again"
            )
        return value

    def values(self, key: str, expected: type) -> list:
        """A required array of one type. Raises ValueError naming the key."""
        values = self.value(key, list)
        if not all(isinstance(value, expected) for value in values):
            raise ValueError(f"{self.path}: {key} holds values that are not {expected.__name__}; get it again")
        return values

    def count(self, key: str) -> int:
        """A size; an array with one size for every block is accepted. Raises ValueError naming the key."""
        value = self.metadata.get(key)
        if isinstance(value, list) and value:
            if any(size != value[0] for size in value):
                raise ValueError(f"{self.path}: {key!r} differs from block to block, which is not supported")
            value = value[0]
        if not is_count(value):
            state = "is missing" if value is None else f"is {value!r}"
            raise ValueError(f"{self.path}: the key {key!r} {state}; an integer >= 1 is needed, get the file again")
        assert isinstance(value, int)
        return value

    def real(self, key: str) -> float:
        """A positive number: the shortest decimal of the stored float32. Raises ValueError naming the key."""
        value = float(self.value(key, float))
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{self.path}: {key}={value!r} must be finite and greater than 0; get the file again")
        return float(str(np.float32(value)))

    def raw(self, info: TensorInfo) -> np.ndarray:
        """The bytes of a tensor."""
        return self.data[info.begin : info.end]


def is_count(value: object) -> bool:
    """Whether this is an integer that can be a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


class _Reader:
    """Sequential reads from a file, never beyond its end."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.offset, self.num_values = path, data, 0, 0

    def take(self, count: int, what: str) -> memoryview:
        """The next bytes. Raises ValueError if the file ends before."""
        if count > len(self.data) - self.offset:
            raise ValueError(
                f"{self.path} ends in {what}: {count:,} bytes are needed at {self.offset:,} of {len(self.data):,}; "
                "it is truncated or damaged, get it again"
            )
        self.offset += count
        return self.data[self.offset - count : self.offset].data

    def scalar(self, letter: str, what: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, what: str) -> str:
        """The next string. Raises ValueError if it isn't UTF-8."""
        raw = bytes(self.take(self.scalar("Q", what), what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is no UTF-8; the file is damaged, get it again") from None

    def value(self, what: str) -> Any:
        """The next value of metadata, after its type."""
        value_type = self.scalar("I", what)
        if value_type == STRING:
            return self.text(what)
        if value_type in SCALARS:
            return self.scalar(SCALARS[value_type], what)
        if value_type != ARRAY:
            raise ValueError(
                f"{self.path}: {what} has the unknown type {value_type}; the file is damaged, get it again"
            )
        value_type, count = self.scalar("I", what), self.scalar("Q", what)
        self.num_values += count
        if self.num_values > MAX_VALUES:
            raise ValueError(
                f"{self.path}: {what} brings the values of its metadata above {MAX_VALUES:,}; get it again"
            )
        if value_type == STRING:
            self.check_room(count, 8, what)
            return [self.text(what) for _ in range(count)]
        if value_type not in SCALARS:
            raise ValueError(f"{self.path}: {what} is an array of type {value_type}, which no known key has")
        return np.frombuffer(
            self.take(count * struct.calcsize(f"<{SCALARS[value_type]}"), what), f"<{SCALARS[value_type]}"
        ).tolist()

    def check_room(self, count: int, least: int, what: str) -> None:
        """Raises ValueError if `count` entries of at least `least` bytes can't follow."""
        if count * least > len(self.data) - self.offset:
            raise ValueError(
                f"{self.path}: {what} has {count:,} entries, but {len(self.data) - self.offset:,} bytes follow; "
                "it is truncated or damaged, get it again"
            )


def read_header(path: str | Path) -> Header:
    """The metadata and the offsets of the tensors; no numbers are read.

    Raises ValueError for a file that is missing, of another format, truncated, or inconsistent.
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
    reader.offset = 4
    version = reader.scalar("I", "its version")
    if version not in VERSIONS:
        swapped = " (its bytes are swapped: big-endian files are not supported)" if version & 0xFFFF == 0 else ""
        raise ValueError(f"{path} has GGUF version {version}{swapped}; 2 and 3 can be read, convert the model again")
    num_tensors, num_keys = reader.scalar("Q", "the number of tensors"), reader.scalar("Q", "the number of keys")
    reader.check_room(num_keys, 8 + 4 + 1, "the metadata")
    metadata: dict[str, Any] = {}
    for i in range(num_keys):
        key = reader.text(f"the name of key {i}")
        if key in metadata:
            raise ValueError(f"{path}: the key {key!r} occurs twice; the file is damaged, get it again")
        metadata[key] = reader.value(f"the key {key!r}")
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise ValueError(f"{path} is one of {parts} parts; join them with llama-gguf-split --merge")
    alignment = metadata.get("general.alignment", 32)
    if not is_count(alignment) or alignment & (alignment - 1):
        raise ValueError(
            f"{path}: general.alignment={alignment!r} is no power of two; the file is damaged, get it again"
        )
    reader.check_room(num_tensors, 8 + 4 + 8 + 4 + 8, "the list of tensors")
    infos = [_tensor_info(reader, i) for i in range(num_tensors)]
    begin = -(-reader.offset // alignment) * alignment
    return Header(path, data, metadata, _located(path, infos, begin, alignment, size))


def _tensor_info(reader: _Reader, number: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape with rows first, number format and offset of the next tensor."""
    name = reader.text(f"the name of tensor {number}")
    what = f"the tensor {name!r}"
    rank = reader.scalar("I", what)
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise ValueError(f"{reader.path}: {what} has {rank} dimensions, not 1 to {MAX_DIMENSIONS}; get the file again")
    shape = tuple(reader.scalar("Q", what) for _ in range(rank))[::-1]
    return name, shape, reader.scalar("I", what), reader.scalar("Q", what)


def _located(
    path: Path, infos: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """The tensors with their offsets. Raises ValueError for duplicates, overlaps and tensors beyond the end."""
    sizes = import_optional("gguf", extra="hub").GGML_QUANT_SIZES
    tensors: dict[str, TensorInfo] = {}
    for name, shape, code, offset in infos:
        what = f"{path}: the tensor {name!r}"
        if name in tensors:
            raise ValueError(f"{what} occurs twice; the file is damaged, get it again")
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
    for before, after in itertools.pairwise(ordered):
        if after.begin < before.end:
            raise ValueError(f"{path}: the tensors {before.name!r} and {after.name!r} overlap; get the file again")
    return tensors


def check_format(header: Header, info: TensorInfo) -> None:
    """Raises ValueError for a number format that can't be dequantised."""
    gguf = import_optional("gguf", extra="hub")
    quantization = gguf.GGMLQuantizationType(info.format)
    try:
        if quantization.name not in FLOATS:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:
        raise ValueError(
            f"{header.path}: the tensor {info.name!r} has the format {quantization.name}, which can't be "
            "dequantised; take a file in another format"
        ) from None


def read_numbers(header: Header, info: TensorInfo) -> Tensor:
    """The values of a tensor, in its own memory: F32, F16 and BF16 as stored, all other formats in float32."""
    gguf = import_optional("gguf", extra="hub")
    quantization, raw = gguf.GGMLQuantizationType(info.format), header.raw(info)
    if quantization.name in FLOATS:
        return torch.from_numpy(np.array(raw)).view(FLOATS[quantization.name]).reshape(info.shape)
    rows = np.asarray(raw).reshape(math.prod(info.shape[:-1]), -1)
    with np.errstate(all="ignore"):  # the caller checks for values that aren't finite
        values = np.asarray(gguf.dequantize(rows, quantization), np.float32)
    return torch.from_numpy(values.reshape(info.shape))

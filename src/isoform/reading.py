"""Files that anyone may have made, read within limits: plain files only, no larger than their kind is, as UTF-8.

Whatever is wrong with one is a ValueError that names it, before much memory or time is spent: pipes and devices would
block or never end, and a short file can describe a large value.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
import stat
import tomllib
import zlib
from pathlib import Path
from typing import Any, BinaryIO

KB, MB, GB = 2**10, 2**20, 2**30
DOCUMENT = 16 * MB
"""The largest JSON document: configs, indices of tensors, summaries, studies."""
TABLES = MB
"""The largest TOML file: recipes and claims."""
TOKENIZER = 128 * MB
"""The largest file of a tokenizer; the largest of published models has 33 MB."""
TEXT = GB
"""The largest text that is read whole: prompts, logs, samples."""
LINE = 64 * MB
"""The longest record of a .jsonl file."""
MAX_VALUES = 10**6
"""Values in a JSON document: each takes up to a hundred bytes of memory."""
MAX_PARTS = 64
"""Parts of a dotted key; `tomllib` takes quadratic time and memory for them."""
MAX_TENSORS = 10**5
"""Tensors of a safetensors file."""
MAX_HEADER = 32 * MB
"""The header of a safetensors file."""
MAX_RATIO = 100
"""Bytes of text for each compressed byte, in files of more than UNPACKED bytes; prose has 2 to 5, logs up to 50."""
UNPACKED = 64 * MB

AT_ONCE = 16 * MB
"""Bytes of one read: memory is taken for all that is asked for, whatever the file has."""

LINE_END = re.compile(r"\r\n?|\n")
"""What ends a line, in all files of lines; no other character does, not U+2028 nor NUL."""

KINDS = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}
_STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{3,5}'
    r"|'''(?:[^']|'(?!''))*+'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*+"'
    r"|'[^'\n]*+'"
    r"|#[^\n]*+",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_PARTS},}}+")


def is_url(name: str) -> bool:
    """Whether a name is that of something elsewhere: https://…, hf://…; nothing here reads those."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:/", name) is not None and not re.match(r"[a-zA-Z]:/", name)


def open_plain(path: str | Path, limit: int | None = None) -> BinaryIO:
    """A plain file, to be read, of at most `limit` bytes.

    Raises ValueError for pipes, devices, sockets, folders and larger files, without reading them, OSError for a file
    that can't be opened.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - it is returned
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            what = next((name for is_kind, name in KINDS.items() if is_kind(status.st_mode)), "no plain file")
            raise ValueError(f"{path} is {what}; give a file")
        if limit is not None and status.st_size > limit:
            raise ValueError(f"{path} has {status.st_size:,} bytes, and at most {limit:,} are read of such a file")
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting for the other end of a pipe. Python refuses folders by itself."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The bytes of a plain file. Raises ValueError, naming the file, if it is none, is larger, or can't be read."""
    try:
        with open_plain(path, limit) as file:
            parts, room = [], limit + 1
            while room and (part := file.read(min(room, AT_ONCE))):
                parts.append(part)
                room -= len(part)
            data = b"".join(parts)
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); check the path and its permissions") from error
    if len(data) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes, which is all that is read of such a file")
    return data


def read_text(path: str | Path, limit: int = TEXT) -> str:
    """The text of a file. Raises ValueError, naming the file, for what `read_bytes` and `decode` refuse."""
    return decode(read_bytes(path, limit), path)


def decode(data: bytes, path: object) -> str:
    """Bytes as UTF-8. Raises ValueError naming the file and the first byte that isn't."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
        where = f"offset {error.start}, line {line}"
        is_utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        remedy = "convert it with: iconv -f UTF-16 -t UTF-8" if is_utf16 else "convert it"
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at {where} ({error.reason}); {remedy}"
        ) from None


def without_mark(text: str) -> str:
    """A text without the byte order mark that it may begin with; all else stays as it is."""
    return text.removeprefix("\ufeff")


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends, which the last one may lack."""
    text = without_mark(text)
    return (LINE_END.sub("\n", text) if "\r" in text else text).removesuffix("\n").split("\n")


def read_json(path: str | Path, limit: int = DOCUMENT) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, for anything else."""
    return parse_json(read_bytes(path, limit), path)


def parse_json(data: bytes, path: object) -> dict[str, Any]:
    """The JSON object in bytes that a file held. Raises ValueError, naming the file, for anything else."""
    text = decode(data, path)
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise ValueError(f"{path} has more than {MAX_VALUES:,} values, which is all that is read of such a file")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; copy it again") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} where an object is expected; copy it again")
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ValueError, naming the file and if possible the line, for anything else."""
    text = read_text(path, TABLES)
    if _LONG_KEY.search(_STRING_OR_COMMENT.sub("_", text)):
        raise ValueError(f"{path} has a key of more than {MAX_PARTS} parts; write tables instead")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; write fewer brackets") from None
    except ValueError as error:
        line = text.count("\n") + 1
        raise ValueError(f"{path}: {error}".replace("end of document", f"line {line}, the end")) from None


def check_lines(path: str | Path) -> None:
    """Raises ValueError for a file with a line longer than LINE, of which no more is read."""
    length, number = 0, 1
    with open_plain(path) as file:
        while part := file.read(MB):
            first, *rest = part.split(b"\n")
            if length + len(first) > LINE:
                raise ValueError(f"{path}, line {number} has more than {LINE:,} bytes; end lines, or cut the record")
            length, number = (len(rest[-1]) if rest else length + len(first)), number + len(rest)


def decompress(data: bytes, path: str | Path) -> bytes:
    """The contents of a .gz, .bz2 or .xz file. Raises ValueError if it is damaged, or holds far more than its size."""
    suffix, raw = Path(path).suffix.lower(), io.BytesIO(data)
    parts, size = [], 0
    try:
        with _unpacked(suffix, raw) as file:
            while part := file.read(MB):
                parts.append(part)
                size += len(part)
                check_ratio(size, raw.tell(), path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError) as error:
        raise ValueError(f"{path} can't be decompressed ({error}); get the file again") from None
    return b"".join(parts)


def _unpacked(suffix: str, raw: BinaryIO) -> Any:
    """A compressed file, to be read."""
    match suffix:
        case ".bz2" | ".tbz2":
            return bz2.BZ2File(raw)
        case ".xz" | ".txz":
            return lzma.LZMAFile(raw)
        case _:
            return gzip.GzipFile(fileobj=raw)


class TooLarge(ValueError):
    """A file that holds more than is read of it."""


def check_ratio(size: int, compressed: int, path: str | Path) -> None:
    """Raises TooLarge for contents of so many bytes that no text of this compressed size has them."""
    if size > UNPACKED and size > MAX_RATIO * compressed:
        raise TooLarge(
            f"{path} holds more than {MAX_RATIO} times its own size, as no text does; decompress it yourself if it "
            f"is one"
        )


def check_safetensors(path: str | Path) -> None:
    """Raises ValueError for a file that isn't plain, or whose header is larger than that of any model."""
    try:
        with open_plain(path) as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, MAX_HEADER + 1))
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); check the path and its permissions") from error
    if len(header) > MAX_HEADER or header.count(b'"data_offsets"') > MAX_TENSORS:
        raise ValueError(
            f"{path} has a header of {size:,} bytes; at most {MAX_TENSORS:,} tensors and {MAX_HEADER:,} bytes are read"
        )

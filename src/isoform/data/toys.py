"""Toy data, which need no files: words to reverse, capitals to find, digits to recognize."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from isoform.data.packages import package_folder
from isoform.data.records import Record, Source, has_lowest_hash
from isoform.machine import physical_memory
from isoform.reading import decompress, read_bytes

REVERSE = "reverse 1: 3..12 of a..z by SHA-256, held out where crc32 % 40 == 0"


def reverse_record(index: int, *, is_validation: bool) -> Record:
    """A random word of 3 to 12 letters with its reversal, a function of the index alone.

    A checksum of the word decides its split: 1 in 40 is for validation.
    """
    word, attempt = "", 0
    while not word or (zlib.crc32(word.encode()) % 40 == 0) != is_validation:
        drawn = hashlib.sha256(f"reverse {is_validation:d} {index} {attempt}".encode()).digest()
        length, *letters = struct.unpack_from(">13H", drawn)
        word = "".join(chr(97 + letter % 26) for letter in letters[: 3 + length % 10])
        attempt += 1
    return {"source": word, "target": word[::-1]}


CAPITALS = "capitals 1: 6..14 of A..Z by SHA-256, in order among a..z, held out where crc32 % 40 == 0"


def capitals_record(index: int, ratio: int, *, is_validation: bool) -> Record:
    """A source of lowercase letters that contains 6 to 14 capitals, which are the target, and is `ratio` times as long;
    a function of the index alone. At ratio 1 the target is a copy of the source.

    A checksum of the target decides its split: 1 in 40 is for validation.
    """
    attempt = 0
    while True:
        digest = hashlib.sha256(f"capitals {ratio} {is_validation:d} {index} {attempt}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        length, attempt = int(rng.integers(6, 15)), attempt + 1
        capitals, letters = rng.integers(65, 91, length), rng.integers(97, 123, ratio * length)
        letters[np.sort(rng.choice(len(letters), length, replace=False))] = capitals
        target = "".join(map(chr, capitals))
        if (zlib.crc32(target.encode()) % 40 == 0) == is_validation:
            return {"source": "".join(map(chr, letters)), "target": target}


def load_toy(name: str, *, is_validation: bool) -> tuple[Sequence[Record], Source]:
    """The records of a toy by its name, and their source. Raises ValueError for an unknown toy."""
    if name == "digits":
        return _load_digits(is_validation=is_validation)
    toy, _, ratio = name.partition(":")
    count = range(500 if is_validation else 20_000)
    if name == "reverse":
        records, definition = [reverse_record(i, is_validation=is_validation) for i in count], REVERSE
    elif toy == "capitals" and ratio.isdecimal() and int(ratio) > 0:
        records = [capitals_record(i, int(ratio), is_validation=is_validation) for i in count]
        definition = f"{CAPITALS} {ratio}"
    else:
        raise ValueError(f"unknown toy {name!r}; choose toy:reverse, toy:capitals:RATIO or toy:digits")
    digest = hashlib.sha256(definition.encode()).hexdigest()
    size = sum(len(record["source"]) + len(record["target"]) for record in records)
    return records, Source(f"toy:{name}", digest, size, len(records))


DIGITS = "datasets/data/digits.csv.gz"


def _load_digits(*, is_validation: bool) -> tuple[Sequence[Record], Source]:
    """1,797 handwritten digits of 8 x 8 pixels, 0 .. 16, with their labels (Alpaydin and Kaynak 1998).

    The file is part of scikit-learn, which is not imported. The fifth with the lowest hashes is for validation.
    """
    data = read_bytes(package_folder("sklearn") / DIGITS, physical_memory())
    table = np.loadtxt(decompress(data, DIGITS).decode().splitlines(), np.float32, delimiter=",")
    records = [{"image": row[:-1].reshape(8, 8), "label": int(row[-1])} for row in table]
    in_validation = has_lowest_hash(records, 0.2)
    split = [record for record, is_in in zip(records, in_validation, strict=True) if is_in == is_validation]
    title = "Optical recognition of handwritten digits (scikit-learn)"
    return split, Source(title, hashlib.sha256(data).hexdigest(), len(data), len(records))

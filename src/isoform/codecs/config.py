"""The codec that turns records into tokens. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Characters:
    """One token per character; the alphabet is the set of characters in the text."""

    alphabet: str = ""
    """The characters, in order of their ids; empty: learned from the text, validation part included."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """One token per UTF-8 byte: no text is out of vocabulary."""


@dataclass(frozen=True, kw_only=True)
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al. 2016), learned from the training text or read from a file."""

    vocab_size: int = 2048
    """The number of tokens to learn, the two special ones included; a file's vocabulary is used unchanged."""
    path: str = ""
    """A byte-level tokenizer.json, or a .tiktoken file of ranks with GPT-2's pattern; empty: learned from
    the training text."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokenizer of another model, read from its tokenizer.json: WordPiece, Unigram or any byte-pair encoding."""

    path: str = ""
    """The file."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """An image cut into squares, row by row, each of which is one token (Dosovitskiy et al. 2021)."""

    size: int = 2
    """Pixels along a side of a square."""
    height: int = 8
    """Height of every image, in pixels."""
    width: int = 8
    """Width of every image, in pixels."""
    channels: int = 1
    """Numbers per pixel."""
    maximum: float = 16.0
    """The greatest pixel value, the least being 0: features are scaled to -1 .. 1."""
    num_classes: int = 10
    """Labels are 0 .. num_classes - 1."""
    class_token: bool = True
    """Whether a class token precedes the patches."""
    positions: Literal["grid", "order"] = "grid"
    """grid: a token's position is its row and column; order: its index."""

    def __post_init__(self) -> None:
        if min(self.size, self.height, self.width, self.channels, self.num_classes) < 1 or not self.maximum > 0:
            raise ValueError(f"{self}: all numbers must be positive")
        if self.height % self.size or self.width % self.size:
            raise ValueError(
                f"codec.size={self.size} doesn't divide an image of {self.height} x {self.width} pixels; "
                f"choose a divisor of both"
            )


Codec = Characters | Bytes | BPE | Tokenizer | Patches

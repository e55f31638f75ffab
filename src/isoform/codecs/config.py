"""The codec that turns records into tokens. Torch-free."""

from typing import Literal

from isoform.outside import External
from isoform.ranges import Positive, Size, config


@config
class Characters:
    """One token per character; the alphabet is the set of characters in the text."""

    alphabet: str = ""
    """The characters, in order of their ids; empty: learned from the text, validation part included."""


@config
class Bytes:
    """One token per UTF-8 byte: no text is out of vocabulary."""


@config
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al. 2016), learned from the training text or read from a file."""

    vocab_size: Size = 2048
    """The number of tokens to learn, the two special ones included; a file's vocabulary is used unchanged."""
    path: str = ""
    """A byte-level tokenizer.json, or a .tiktoken file of ranks with GPT-2's pattern; empty: learned from
    the training text."""


@config
class Tokenizer:
    """The tokenizer of another model, read from its tokenizer.json: WordPiece, Unigram or any byte-pair encoding."""

    path: str = ""
    """The file."""


@config
class Patches:
    """An image cut into squares, row by row, each of which is one token (Dosovitskiy et al. 2021)."""

    size: Size = 2
    """Pixels along a side of a square."""
    height: Size = 8
    """Height of every image, in pixels."""
    width: Size = 8
    """Width of every image, in pixels."""
    channels: Size = 1
    """Numbers per pixel."""
    maximum: Positive = 16.0
    """The greatest pixel value, the least being 0: features are scaled to -1 .. 1."""
    num_classes: Size = 10
    """Labels are 0 .. num_classes - 1."""
    class_token: bool = True
    """Whether a class token precedes the patches."""
    positions: Literal["grid", "order"] = "grid"
    """grid: a token's position is its row and column; order: its index."""

    def __post_init__(self) -> None:
        if self.height % self.size or self.width % self.size:
            raise ValueError(
                f"codec.size={self.size} doesn't divide an image of {self.height} x {self.width} pixels; "
                f"choose a divisor of both"
            )


Codec = Characters | Bytes | BPE | Tokenizer | Patches | External

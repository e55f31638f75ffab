"""Which codec turns records into pieces. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Characters:
    """One piece per character; the alphabet is what the text contains."""

    alphabet: str = ""
    """The characters, in order of their ids; empty: learned from the text, held-out part included."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """One piece per UTF-8 byte: nothing is ever unknown."""


@dataclass(frozen=True, kw_only=True)
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al. 2016), learned from the training text or read in."""

    vocab_size: int = 2048
    """How many pieces to learn, the two special ones included; a file's are taken as they are."""
    path: str = ""
    """A byte-level tokenizer.json, or a .tiktoken file of ranks with GPT-2's pattern; empty: learned from
    the training text."""


Codec = Characters | Bytes | BPE

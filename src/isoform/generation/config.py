"""Decoding settings: beam search and sampling. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Search for the most probable texts (Sutskever et al. 2014, section 3.2)."""

    size: int = 4
    """The number of beams."""
    length_penalty: float = 1.0
    """A text's score is its log probability divided by its length, the end token included, to this power."""
    early_stopping: Literal["size", "bound", "never"] = "bound"
    """When the search ends. size: `size` texts are finished; bound: no active text would score better if it ended now;
    never: nor at its maximum length."""
    max_tokens: int = 200
    """Maximum number of generated tokens."""
    num_best: int = 1
    """The number of texts returned, the best first."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_best <= self.size or self.max_tokens < 1:
            raise ValueError(
                f"num_best={self.num_best} must lie between 1 and size={self.size}, max_tokens={self.max_tokens} be "
                f"at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings, applied in this order: repetition penalty, temperature, top_k, top_p, min_p."""

    max_tokens: int = 500
    """Maximum number of generated tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens with this total probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens at least this fraction as probable as the most probable one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Tokens already in the text have positive logits divided, negative ones multiplied by this (CTRL, 2019)."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these strings, each a text or the name of a special token."""
    num_samples: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_tokens", 1, None),
            ("temperature", 0, None),
            ("top_k", 0, None),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("num_samples", 1, None),
        ):
            value = getattr(self, name)
            if not value >= low or (high is not None and value > high):
                span = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name}={value} must be {span}")
        if not all(self.stop):
            raise ValueError("stop='' would end every text at once; give a string")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be greater than 0")

"""How the next token is chosen. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Search for the most probable texts (Sutskever et al. 2014, section 3.2)."""

    size: int = 4
    """How many texts are kept at each step."""
    length_penalty: float = 1.0
    """A text's score is its log probability over its length, the end included, to this power."""
    early_stopping: Literal["size", "bound", "never"] = "bound"
    """When a search ends: `size` texts are finished; none of those that go on would be better if it ended now; or, if
    it were as long as it may become."""
    max_tokens: int = 200
    """The most tokens of a text."""
    num_best: int = 1
    """How many texts are told of, the best first."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_best <= self.size or self.max_tokens < 1:
            raise ValueError(
                f"num_best={self.num_best} must lie between 1 and size={self.size}, max_tokens={self.max_tokens} be "
                f"at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choices are made in this order: repetition penalty, temperature, top_k, top_p, min_p."""

    max_tokens: int = 500
    """The most tokens to generate."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens at least this fraction as probable as the most probable one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Tokens already in the text have positive logits divided, negative ones multiplied by this (CTRL, 2019)."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these strings."""
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
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be greater than 0")

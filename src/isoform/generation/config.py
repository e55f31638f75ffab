"""Decoding settings: beam search and sampling. Torch-free."""

from typing import Literal

from isoform.ranges import Count, Exponent, Factor, Index, NonNegative, Rows, Seed, Share, config


@config
class Beam:
    """Search for the most probable texts (Sutskever et al. 2014, section 3.2)."""

    size: Rows = 4
    """The number of beams."""
    length_penalty: Exponent = 1.0
    """A text's score is its log probability divided by its length, the end token included, to this power."""
    early_stopping: Literal["size", "bound", "never"] = "bound"
    """When the search ends. size: `size` texts are finished; bound: no active text would score better if it ended now;
    never: nor at its maximum length."""
    max_tokens: Count = 200
    """Maximum number of generated tokens."""
    num_best: Rows = 1
    """The number of texts returned, the best first."""

    def __post_init__(self) -> None:
        if self.num_best > self.size:
            raise ValueError(f"num_best={self.num_best} must be at most size={self.size}")


@config
class Sampling:
    """Sampling settings, applied in this order: repetition penalty, temperature, top_k, top_p, min_p."""

    max_tokens: Count = 500
    """Maximum number of generated tokens."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: Index = 0
    """Only the k most probable tokens; 0: all."""
    top_p: Share = 1.0
    """Only the most probable tokens with this total probability (Holtzman et al. 2020)."""
    min_p: Share = 0.0
    """Only tokens at least this fraction as probable as the most probable one (Nguyen et al. 2024)."""
    repetition_penalty: Factor = 1.0
    """Tokens already in the text have positive logits divided, negative ones multiplied by this (CTRL, 2019)."""
    seed: Seed = 0
    """The seed of the random draws."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these strings, each a text or the name of a special token."""
    num_samples: Rows = 1
    """The number of texts."""

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("stop='' would end every text at once; give a string")

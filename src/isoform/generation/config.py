"""How the next piece is chosen. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choices are made in this order: repetition penalty, temperature, top_k, top_p, min_p."""

    max_tokens: int = 500
    """The most pieces to generate."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the most probable piece."""
    top_k: int = 0
    """Only the k most probable pieces; 0: all."""
    top_p: float = 1.0
    """Only the most probable pieces that together reach this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only pieces at least this fraction as probable as the most probable one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Pieces already in the text have positive logits divided, negative ones multiplied by this (CTRL, 2019)."""
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

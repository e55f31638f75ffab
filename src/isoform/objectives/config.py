"""What a model is trained to say. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Predict every next piece (after the given prefix, where a record has one) from those before it."""

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' normaliser near 1 (PaLM, 2022)."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary in training (Szegedy et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Like causal, but the given prefix sees itself in both directions (T5's prefix language model)."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Seq2seq:
    """The given prefix is read by an encoder, the rest is predicted by a decoder that attends to it."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The whole record is read in both directions by an encoder, and its label is what is to be said about it."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


Objective = Causal | Prefix | Seq2seq | Classification

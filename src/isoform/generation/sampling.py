"""From logits to the next piece."""

from __future__ import annotations

import torch
from torch import Tensor

from isoform.generation.config import Sampling


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the pieces `seen` (B, S) less likely in logits (B, V) (Keskar et al. 2019, section 4.1)."""
    scores = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(scores > 0, scores / penalty, scores * penalty))


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, V) of the next piece after temperature and cut-offs; temperature must not be 0.

    At least the most probable piece always stays.
    """
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        is_cut = ordered.cumsum(-1) - ordered >= sampling.top_p
        is_cut[:, 0] = False
        probabilities = probabilities.masked_fill(is_cut.scatter(1, order, is_cut), 0.0)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    if sampling.top_p < 1 or sampling.min_p > 0:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def choose(logits: Tensor, seen: Tensor | None, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next piece (B,) for logits (B, V); `seen` (B, S) is the text so far, read by the repetition penalty."""
    if sampling.repetition_penalty != 1.0 and seen is not None:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(distribution(logits, sampling), 1, generator=generator).squeeze(1)

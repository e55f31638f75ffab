"""From logits to the next token, sampled or greedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isoform.data.order import generator
from isoform.generation.config import Sampling
from isoform.generation.constraints import NONE, Constraints
from isoform.generation.strategy import DecodingStrategy, Step

COLDEST = 1e-30
"""Temperatures below this are 0: logits can't be divided by them."""
BLOCK = 64
"""The number of random numbers drawn at once for a text."""


def penalize(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Make `tokens` (B, S) less likely in logits (B, V) (Keskar et al. 2019, section 4.1); NONE before the last counts
    for none."""
    tokens = torch.where(tokens == NONE, tokens[:, -1:], tokens)
    scores = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(scores > 0, scores / penalty, scores * penalty))


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, V) of the next token after temperature, COLDEST at least, and cut-offs.

    The most probable token is never removed.
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


class Sampler(DecodingStrategy):
    """Samples num_samples texts of each prompt. A text's random numbers are a function of the seed, its prompt's number
    and its own, and don't depend on the rest of the batch."""

    def __init__(self, sampling: Sampling, numbers: Sequence[int], constraints: Constraints) -> None:
        """numbers: of the prompts."""
        self.sampling, self.constraints = sampling, constraints
        self.ends = {*constraints.all_ends}
        self.width, self.max_tokens = sampling.num_samples, sampling.max_tokens
        self.texts = list(range(len(numbers) * self.width))  # the text of each row
        self.generators = [
            generator(sampling.seed, sample, "sample", number) for number in numbers for sample in range(self.width)
        ]
        self.uniform = np.empty((len(self.texts), 0))

    def advance(self, logits: Tensor, texts: Tensor, step: int) -> Step:
        tokens = self._choose(logits, texts, step)
        chosen = list(zip(self.texts, tokens.tolist(), strict=True))
        active = [row for row, (_, token) in enumerate(chosen) if token not in self.ends and step < self.max_tokens]
        if len(active) == len(chosen):
            return Step(tokens, None, chosen)
        self.texts, self.uniform = [self.texts[row] for row in active], self.uniform[active]
        rows = torch.tensor(active, dtype=torch.long, device=tokens.device)
        return Step(tokens[rows], rows, chosen)

    def _choose(self, logits: Tensor, texts: Tensor, step: int) -> Tensor:
        """The next token of each row (n,)."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0:
            logits = penalize(logits, texts, sampling.repetition_penalty)
        logits = self.constraints.apply(logits, texts, step, self.max_tokens)
        if sampling.temperature < COLDEST:
            return logits.argmax(-1)
        probabilities = distribution(logits, sampling)
        if probabilities.device.type == "mps":
            probabilities = probabilities.cpu()  # MPS has no float64
        cumulative = probabilities.double().cumsum(-1)
        uniform = torch.from_numpy(self._draw(step)).to(cumulative.device)
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1).to(logits.device)

    def _draw(self, step: int) -> np.ndarray:
        """A random number from [0, 1) for each row (n, 1)."""
        column = (step - 1) % BLOCK
        if column == 0:
            self.uniform = np.stack([self.generators[text].random(BLOCK) for text in self.texts])
        return self.uniform[:, column : column + 1]

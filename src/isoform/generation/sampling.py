"""From logits to the next piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isoform.data.order import generator
from isoform.generation.config import Sampling


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A text that was found: its ids, the end included if it was reached."""

    ids: np.ndarray
    score: float
    """Its log probability over its length to the power of the length penalty."""
    log_probability: float


class Choice(ABC):
    """Chooses the next pieces of the texts in a batch, `width` of each prompt, until none goes on."""

    width: int
    together: int = 1
    """So many rows beside each other always belong to one prompt."""
    found: list[list[Hypothesis]]
    """What was found for each prompt."""

    @abstractmethod
    def advance(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """With logits (n, V) of the step-th piece, the first being 1: the rows that go on, and with which piece."""


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


class Draws(Choice):
    """num_samples texts of each prompt, drawn piece by piece, each with random numbers of its own."""

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[tuple[int, np.ndarray]],
        steps: int,
        end: int,
        device: torch.device,
    ) -> None:
        """prompts: the number and the ids of each."""
        self.sampling, self.steps, self.end, self.width = sampling, steps, end, sampling.num_samples
        self.found = [[] for _ in prompts]
        count = len(prompts) * self.width
        self.going = torch.arange(count, device=device)
        self.texts = torch.zeros(count, steps, dtype=torch.long, device=device)
        self.totals = torch.zeros(count, dtype=torch.float64, device=device)
        self.ended: dict[int, Hypothesis] = {}
        longest = max(len(ids) for _, ids in prompts)
        given = [np.pad(ids, (longest - len(ids), 0), mode="edge") for _, ids in prompts for _ in range(self.width)]
        self.given = torch.from_numpy(np.stack(given).astype(np.int64)).to(device)
        drawn = [
            generator(sampling.seed, sample, "sample", number).random(steps)
            for number, _ in prompts
            for sample in range(self.width)
        ]
        self.uniform = torch.from_numpy(np.stack(drawn)).to(device)

    def advance(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        going, sampling = self.going, self.sampling
        plain = logits.float().log_softmax(-1)
        if sampling.repetition_penalty != 1.0:
            seen = torch.cat([self.given[going], self.texts[going, : step - 1]], 1)
            logits = penalize(logits, seen, sampling.repetition_penalty)
        if sampling.temperature == 0:
            ids = logits.argmax(-1)
        else:
            reached = distribution(logits, sampling).double().cumsum(-1)
            at = self.uniform[going, step - 1 : step] * reached[:, -1:]
            ids = torch.searchsorted(reached, at, right=True).squeeze(1)
        self.texts[going, step - 1] = ids
        self.totals[going] += plain.gather(1, ids.unsqueeze(1)).squeeze(1)
        has_ended = (ids == self.end) | (step == self.steps)
        for text in going[has_ended].tolist():
            total = float(self.totals[text])
            self.ended[text] = Hypothesis(self.texts[text, :step].cpu().numpy(), total / step, total)
        on = (~has_ended).nonzero().flatten()
        self.going = going[on]
        if not len(on):
            width = self.width
            self.found = [[self.ended[i] for i in range(at, at + width)] for at in range(0, len(self.ended), width)]
        return on, ids[on]

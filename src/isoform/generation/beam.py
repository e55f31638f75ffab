"""Beam search: at each step the most probable texts of every prompt are continued.

Its results and its stopping rules are those of `transformers` with the same settings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from isoform.generation.config import Beam
from isoform.generation.constraints import Constraints
from isoform.generation.strategy import DecodingStrategy, Hypothesis, Step

IMPOSSIBLE = -math.inf
"""The score of candidates that can't be chosen."""


class BeamSearch(DecodingStrategy):
    """The active and the finished texts of the P prompts whose search hasn't ended; the other prompts have been removed
    from the batch."""

    def __init__(self, beam: Beam, num_prompts: int, constraints: Constraints, *, device: torch.device) -> None:
        self.beam, self.constraints, self.max_tokens = beam, constraints, beam.max_tokens
        self.ends = torch.tensor(constraints.all_ends, dtype=torch.long, device=device)
        self.width = self.group = beam.size
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(num_prompts)]
        self.prompts = list(range(num_prompts))
        shape = num_prompts, beam.size
        self.totals = torch.full(shape, IMPOSSIBLE, device=device)
        self.totals[:, 0] = 0  # at first all texts of a prompt are equal
        self.finished_texts = torch.zeros(*shape, 0, dtype=torch.long, device=device)
        self.finished_scores = torch.full(shape, IMPOSSIBLE, device=device)
        self.finished_lengths = torch.zeros(shape, dtype=torch.long, device=device)

    def advance(self, logits: Tensor, texts: Tensor, step: int) -> Step:
        size, vocabulary = self.beam.size, logits.shape[-1]
        scores = self.constraints.apply(logits.float().log_softmax(-1), texts, step, self.max_tokens)
        totals = self.totals.unsqueeze(2) + scores.view(len(self.prompts), size, vocabulary)
        # Twice as many as are continued, since at most half of them can have ended.
        best, indices = totals.flatten(1).topk(min(2 * size, size * vocabulary))
        origin, tokens = indices // vocabulary, indices % vocabulary
        has_ended = torch.isin(tokens, self.ends) | (step == self.max_tokens)

        generated = texts[:, texts.shape[1] - (step - 1) :].view(len(self.prompts), size, step - 1)
        self._finish(torch.cat([_gather(generated, origin), tokens.unsqueeze(2)], 2), best, has_ended)
        self.totals, chosen = torch.where(has_ended, IMPOSSIBLE, best).topk(size)
        origin, tokens = _gather(origin, chosen), _gather(tokens, chosen)
        rows = origin + size * torch.arange(len(self.prompts), device=origin.device).unsqueeze(1)
        is_active = self._is_active(step)
        if not is_active.all():
            tokens, rows = tokens[is_active], rows[is_active]
            self._remove(is_active)
        return Step(tokens.flatten(), rows.flatten())

    def _finish(self, texts: Tensor, totals: Tensor, has_ended: Tensor) -> None:
        """Add those of the most probable texts (P, n, step) that have ended to the finished ones."""
        size, step = self.beam.size, texts.shape[2]
        counts = has_ended.clone()
        counts[:, size:] = False
        scores = torch.where(counts, totals / step**self.beam.length_penalty, IMPOSSIBLE)
        self.finished_scores, best = torch.cat([self.finished_scores, scores], 1).topk(size)
        self.finished_texts = _gather(torch.cat([functional.pad(self.finished_texts, (0, 1)), texts], 1), best)
        lengths = torch.full(scores.shape, step, device=best.device)
        self.finished_lengths = _gather(torch.cat([self.finished_lengths, lengths], 1), best)

    def _is_active(self, step: int) -> Tensor:
        """Whether the search of each prompt (P,) continues."""
        beam = self.beam
        if step == self.max_tokens:
            return torch.zeros(len(self.prompts), dtype=torch.bool, device=self.totals.device)
        is_full = (self.finished_scores > IMPOSSIBLE).all(1)
        if beam.early_stopping == "size":
            return ~is_full
        length = self.max_tokens if beam.early_stopping == "never" and beam.length_penalty > 0 else step
        return ~is_full | (self.totals[:, 0] / length**beam.length_penalty > self.finished_scores[:, -1])

    def _remove(self, is_active: Tensor) -> None:
        """Store the results of the prompts (P,) that aren't active, and remove these."""
        for index in (~is_active).nonzero().flatten().tolist():
            self.hypotheses[self.prompts[index]] = self._best(index)
        self.prompts = [self.prompts[index] for index in is_active.nonzero().flatten().tolist()]
        self.totals, self.finished_texts = self.totals[is_active], self.finished_texts[is_active]
        self.finished_scores, self.finished_lengths = self.finished_scores[is_active], self.finished_lengths[is_active]

    def _best(self, index: int) -> list[Hypothesis]:
        """The best finished texts of a prompt, the best first."""
        finished = zip(
            self.finished_texts[index].cpu().numpy(),
            self.finished_lengths[index].tolist(),
            self.finished_scores[index].tolist(),
            strict=True,
        )
        return [
            Hypothesis(text[:length], score, score * length**self.beam.length_penalty)
            for text, length, score in list(finished)[: self.beam.num_best]
            if score > IMPOSSIBLE
        ]


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    """Of values (B, n, …) those at indices (B, m)."""
    indices = indices.view(*indices.shape, *[1] * (values.dim() - 2))
    return values.gather(1, indices.expand(-1, -1, *values.shape[2:]))

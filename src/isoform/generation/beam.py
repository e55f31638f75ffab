"""Beam search: at each step the most probable texts of every prompt go on.

What it finds is what `transformers` finds with the same settings, whose rules of ending it follows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from isoform.generation.config import Beam
from isoform.generation.strategy import DecodingStrategy, Hypothesis, Step

NEVER = -1e9
"""Of what can't be chosen."""


class BeamSearch(DecodingStrategy):
    """The texts that go on, and those that are finished, of the P prompts whose search hasn't ended; the others have
    left the batch."""

    def __init__(self, beam: Beam, num_prompts: int, *, end: int, device: torch.device) -> None:
        self.beam, self.end, self.max_tokens = beam, end, beam.max_tokens
        self.width = self.group = beam.size
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(num_prompts)]
        self.prompts = list(range(num_prompts))
        shape = num_prompts, beam.size
        self.totals = torch.full(shape, NEVER, device=device)
        self.totals[:, 0] = 0  # all texts of a prompt are the same yet
        self.done_texts = torch.zeros(*shape, 0, dtype=torch.long, device=device)
        self.done_scores = torch.full(shape, NEVER, device=device)
        self.done_lengths = torch.zeros(shape, dtype=torch.long, device=device)

    def advance(self, logits: Tensor, texts: Tensor, step: int) -> Step:
        size, vocabulary = self.beam.size, logits.shape[-1]
        log_probabilities = logits.float().log_softmax(-1).view(len(self.prompts), size, vocabulary)
        totals = self.totals.unsqueeze(2) + log_probabilities
        # Twice as many as go on, since at most half of them can have ended.
        best, places = totals.flatten(1).topk(min(2 * size, size * vocabulary))
        origin, tokens = places // vocabulary, places % vocabulary
        has_ended = (tokens == self.end) | (step == self.max_tokens)

        written = texts[:, texts.shape[1] - (step - 1) :].view(len(self.prompts), size, step - 1)
        self._finish(torch.cat([_gathered(written, origin), tokens.unsqueeze(2)], 2), best, has_ended)
        self.totals, chosen = torch.where(has_ended, best + NEVER, best).topk(size)
        origin, tokens = _gathered(origin, chosen), _gathered(tokens, chosen)
        rows = origin + size * torch.arange(len(self.prompts), device=origin.device).unsqueeze(1)
        goes_on = self._goes_on(step)
        if not goes_on.all():
            tokens, rows = tokens[goes_on], rows[goes_on]
            self._leave(goes_on)
        return Step(tokens.flatten(), rows.flatten())

    def _finish(self, texts: Tensor, totals: Tensor, has_ended: Tensor) -> None:
        """Take in those texts (P, n, step) that have ended among the most probable ones."""
        size, step = self.beam.size, texts.shape[2]
        counts = has_ended.clone()
        counts[:, size:] = False
        scores = torch.where(counts, totals / step**self.beam.length_penalty, NEVER)
        self.done_scores, best = torch.cat([self.done_scores, scores], 1).topk(size)
        self.done_texts = _gathered(torch.cat([functional.pad(self.done_texts, (0, 1)), texts], 1), best)
        lengths = torch.full(scores.shape, step, device=best.device)
        self.done_lengths = _gathered(torch.cat([self.done_lengths, lengths], 1), best)

    def _goes_on(self, step: int) -> Tensor:
        """Of which prompts (P,) the search goes on."""
        beam = self.beam
        if step == self.max_tokens:
            return torch.zeros(len(self.prompts), dtype=torch.bool, device=self.totals.device)
        is_full = (self.done_scores > NEVER / 2).all(1)
        if beam.early_stopping == "size":
            return ~is_full
        length = self.max_tokens if beam.early_stopping == "never" and beam.length_penalty > 0 else step
        return ~is_full | (self.totals[:, 0] / length**beam.length_penalty > self.done_scores[:, -1])

    def _leave(self, goes_on: Tensor) -> None:
        """Note what was found for the prompts (P,) whose search doesn't go on, and leave them."""
        for place in (~goes_on).nonzero().flatten().tolist():
            self.hypotheses[self.prompts[place]] = self._best(place)
        self.prompts = [self.prompts[place] for place in goes_on.nonzero().flatten().tolist()]
        self.totals, self.done_texts = self.totals[goes_on], self.done_texts[goes_on]
        self.done_scores, self.done_lengths = self.done_scores[goes_on], self.done_lengths[goes_on]

    def _best(self, place: int) -> list[Hypothesis]:
        """The best texts that are finished, the best first."""
        finished = zip(
            self.done_texts[place].cpu().numpy(),
            self.done_lengths[place].tolist(),
            self.done_scores[place].tolist(),
            strict=True,
        )
        return [
            Hypothesis(text[:length], score, score * length**self.beam.length_penalty)
            for text, length, score in list(finished)[: self.beam.num_best]
            if score > NEVER / 2
        ]


def _gathered(values: Tensor, places: Tensor) -> Tensor:
    """Of values (B, n, …) those at (B, m)."""
    places = places.view(*places.shape, *[1] * (values.dim() - 2))
    return values.gather(1, places.expand(-1, -1, *values.shape[2:]))

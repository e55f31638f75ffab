"""Beam search: at each step the most probable texts of every prompt go on.

What is found is what `transformers` finds with the same settings, whose rules of ending it follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoform.generation.config import Beam
from isoform.generation.sampling import Choice, Hypothesis

NEVER = -1e9
"""Of what can't be chosen."""


class Search(Choice):
    """The texts that go on, and those that are finished, of the prompts whose search hasn't ended; the others have left
    the batch."""

    def __init__(self, beam: Beam, num_prompts: int, steps: int, end: int, device: torch.device) -> None:
        self.beam, self.steps, self.end = beam, steps, end
        self.width = self.together = beam.size
        self.found = [[] for _ in range(num_prompts)]
        self.prompts = list(range(num_prompts))
        shape = num_prompts, beam.size
        self.texts = torch.zeros(*shape, steps, dtype=torch.long, device=device)
        self.totals = torch.full(shape, NEVER, device=device)
        self.totals[:, 0] = 0  # all texts of a prompt are the same yet
        self.done_texts, self.done_scores = self.texts.clone(), torch.full(shape, NEVER, device=device)
        self.done_lengths = torch.zeros(shape, dtype=torch.long, device=device)

    def advance(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        size, vocabulary = self.beam.size, logits.shape[-1]
        log_probabilities = logits.float().log_softmax(-1).view(len(self.prompts), size, vocabulary)
        totals = self.totals.unsqueeze(2) + log_probabilities
        # Twice as many as go on, since at most half of them can have ended.
        best, at = totals.flatten(1).topk(min(2 * size, size * vocabulary))
        origin, ids = at // vocabulary, at % vocabulary
        texts = _gathered(self.texts, origin)
        texts[:, :, step - 1] = ids
        has_ended = (ids == self.end) | (step == self.steps)

        self._finish(texts, best, has_ended, step)
        self.totals, chosen = torch.where(has_ended, best + NEVER, best).topk(size)
        self.texts, origin, ids = (_gathered(t, chosen) for t in (texts, origin, ids))
        goes_on = self._goes_on(step)
        for place in (~goes_on).nonzero().flatten().tolist():
            self._tell(place)
        base = size * torch.arange(len(goes_on), device=origin.device).unsqueeze(1)
        rows, ids = (base + origin)[goes_on].flatten(), ids[goes_on].flatten()
        self.prompts = [p for p, on in zip(self.prompts, goes_on.tolist(), strict=True) if on]
        for name in ("texts", "totals", "done_texts", "done_scores", "done_lengths"):
            setattr(self, name, getattr(self, name)[goes_on])
        return rows, ids

    def _finish(self, texts: Tensor, totals: Tensor, has_ended: Tensor, step: int) -> None:
        """Take in those that have ended among the most probable ones."""
        size = self.beam.size
        counts = has_ended.clone()
        counts[:, size:] = False
        scores = torch.where(counts, totals / step**self.beam.length_penalty, NEVER)
        self.done_scores, best = torch.cat([self.done_scores, scores], 1).topk(size)
        self.done_texts = _gathered(torch.cat([self.done_texts, texts], 1), best)
        lengths = torch.full(scores.shape, step, device=best.device)
        self.done_lengths = _gathered(torch.cat([self.done_lengths, lengths], 1), best)

    def _goes_on(self, step: int) -> Tensor:
        """Of which prompts (B,) the search goes on."""
        beam = self.beam
        if step == self.steps:
            return torch.zeros(len(self.prompts), dtype=torch.bool, device=self.totals.device)
        is_full = (self.done_scores > NEVER / 2).all(1)
        if beam.early_stopping == "size":
            return ~is_full
        length = self.steps if beam.early_stopping == "never" and beam.length_penalty > 0 else step
        return ~is_full | (self.totals[:, 0] / length**beam.length_penalty > self.done_scores[:, -1])

    def _tell(self, place: int) -> None:
        """Note what was found for a prompt."""
        found = self.found[self.prompts[place]]
        for text, length, score in zip(
            self.done_texts[place].cpu().numpy(),
            self.done_lengths[place].tolist(),
            self.done_scores[place].tolist(),
            strict=True,
        ):
            if score > NEVER / 2 and len(found) < self.beam.num_best:
                found.append(Hypothesis(text[:length], score, score * length**self.beam.length_penalty))


def _gathered(values: Tensor, at: Tensor) -> Tensor:
    """Of values (B, n, …) those at (B, m)."""
    at = at.view(*at.shape, *[1] * (values.dim() - 2))
    return values.gather(1, at.expand(-1, -1, *values.shape[2:]))

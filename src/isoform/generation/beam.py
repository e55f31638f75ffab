"""Beam search, many prompts at once: at each step the most probable texts of every prompt go on.

What is found is what `transformers` finds with the same settings, whose rules of ending it follows; a prompt whose
search has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isoform.batch import Encoding, Example, Pieces, collate
from isoform.codecs.codec import TextCodec
from isoform.generation.config import Beam
from isoform.generation.decode import Prompt, build_prompt
from isoform.mask import Mask
from isoform.model.transformer import Memory, Transformer
from isoform.objectives.views import View

NEVER = -1e9
"""Of what can't be chosen."""


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A text that was found: its ids, the end included if it was reached."""

    ids: np.ndarray
    score: float
    """Its log probability over its length to the power of the length penalty."""
    log_probability: float


@torch.inference_mode()
def beam_search(
    model: Transformer, prompts: Sequence[Prompt], beam: Beam, *, end: int, mask: Mask | None = None
) -> list[list[Hypothesis]]:
    """The best `num_best` texts after each prompt, the best first.

    end: the piece that ends a text; mask: the decoder's (absent: causal). Raises ValueError for prompts or sources
    that don't fit the context.
    """
    model.eval()
    _check_lengths(model, prompts)
    longest = max(len(prompt.ids) for prompt in prompts)
    steps = min(beam.max_tokens, model.config.context_length - longest + 1)
    memory = _encoded(model, prompts)
    cache = model.build_cache(len(prompts), capacity=longest + steps)
    pieces = _laid([Encoding(prompt.ids, prompt.prefix) for prompt in prompts], model)
    last = torch.tensor([len(prompt.ids) - 1 for prompt in prompts], device=model.device)
    hidden = model.decode(pieces, mask, memory, cache)[torch.arange(len(prompts)), last].unsqueeze(1)
    search = _Search(beam, len(prompts), steps, end, model.device)
    rows = torch.arange(len(prompts), device=model.device).repeat_interleave(beam.size)
    read = _right_aligned(prompts, model).index_select(0, rows)
    cache.select(rows)
    memory, hidden = _selected(memory, rows), hidden.index_select(0, rows)
    for step in range(1, steps + 1):
        logits = model.logits(hidden).squeeze(1)
        rows, ids = search.advance(logits.float().log_softmax(-1), step)
        if not len(rows):
            break
        if len(rows) < len(logits):
            memory = _selected(memory, rows)
        cache.select(rows, keeps_memory=len(rows) == len(logits))
        before = read.index_select(0, rows)
        read = torch.cat([before, ids.unsqueeze(1)], 1)[:, -before.shape[1] :] if before.shape[1] else before
        hidden = model.decode(Pieces(ids.unsqueeze(1), cache.next_coordinates(), before), mask, memory, cache)
    return search.found


def answer(
    model: Transformer,
    codec: TextCodec,
    texts: Sequence[str],
    beam: Beam,
    *,
    view: View,
    is_pair: bool,
    pieces_at_once: int = 4096,
) -> list[list[tuple[str, float]]]:
    """The best answers to each text, a source or the beginning of what goes on, with their scores; many at once.

    Texts of like length share a batch of so many pieces, so that little of it is empty. Raises ValueError, with the
    number of the text, for one that doesn't fit.
    """
    prompts = [build_prompt(codec, text, is_pair=is_pair, view=view) for text in texts]
    lengths = [len(p.ids) if p.source is None else len(p.source) for p in prompts]
    _check_lengths(model, prompts)
    found: list[list[tuple[str, float]]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    while order:
        longest = order[-1]
        count = max(1, pieces_at_once // (beam.size * lengths[longest]))
        batch, order = order[-count:], order[:-count]
        hypotheses = beam_search(model, [prompts[i] for i in batch], beam, end=codec.end_of_text, mask=view.inputs_mask)
        for i, best in zip(batch, hypotheses, strict=True):
            found[i] = [(codec.decode(one.ids), one.score) for one in best]
    return found


def _check_lengths(model: Transformer, prompts: Sequence[Prompt]) -> None:
    """ValueError for the first prompt or source that doesn't fit the context, with its number."""
    config = model.config
    for number, prompt in enumerate(prompts, 1):
        asked = [(len(prompt.ids), config.context_length)]
        if prompt.source is not None and config.encoder is not None:
            asked.append((len(prompt.source), config.length(config.encoder)))
        for length, limit in asked:
            if length > limit:
                raise ValueError(
                    f"text {number} has {length} pieces, which don't fit context_length={limit}; shorten it"
                )


class _Search:
    """The texts that go on, and those that are finished, of the prompts whose search hasn't ended."""

    def __init__(self, beam: Beam, num_prompts: int, steps: int, end: int, device: torch.device) -> None:
        self.beam, self.steps, self.end = beam, steps, end
        self.found: list[list[Hypothesis]] = [[] for _ in range(num_prompts)]
        self.prompts = list(range(num_prompts))
        shape = num_prompts, beam.size
        self.texts = torch.zeros(*shape, steps, dtype=torch.long, device=device)
        self.totals = torch.full(shape, NEVER, device=device)
        self.totals[:, 0] = 0  # all texts of a prompt are the same yet
        self.done_texts, self.done_scores = self.texts.clone(), torch.full(shape, NEVER, device=device)
        self.done_lengths = torch.zeros(shape, dtype=torch.long, device=device)

    def advance(self, log_probabilities: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """With log probabilities (B * size, V) of the step-th piece: the rows that go on, and with which piece."""
        size, vocabulary = self.beam.size, log_probabilities.shape[-1]
        totals = self.totals.unsqueeze(2) + log_probabilities.view(len(self.prompts), size, vocabulary)
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


def _encoded(model: Transformer, prompts: Sequence[Prompt]) -> Memory | None:
    """What the encoder makes of all sources; None where there are none."""
    sources = [prompt.source for prompt in prompts if prompt.source is not None]
    if not sources:
        return None
    assert len(sources) == len(prompts)
    return model.encode(_laid([Encoding(source) for source in sources], model))


def _laid(encodings: Sequence[Encoding], model: Transformer) -> Pieces:
    """Rows of one Encoding each, filled up with empty slots on the right."""
    none = np.zeros(0, np.int64)
    rows = [[Example(e, none, none.astype(np.float32))] for e in encodings]
    return collate(rows, max(map(len, encodings))).inputs.to(model.device)


def _selected(memory: Memory | None, rows: Tensor) -> Memory | None:
    """The memory of some rows. Only where its pieces stand is asked of it once its keys are in the cache."""
    if memory is None:
        return None
    at = memory.coordinates
    coordinates = replace(at.map(lambda t: t.expand(len(memory.hidden), -1).index_select(0, rows)), start=at.start)
    return Memory(memory.hidden.index_select(0, rows), coordinates)


def _right_aligned(prompts: Sequence[Prompt], model: Transformer) -> Tensor:
    """The last pieces of each prompt that the stem looks back at, after pieces that are none."""
    back = model.stem.looks_back
    read = np.full((len(prompts), back), model.config.vocab_size, np.int64)
    for row, prompt in zip(read, prompts, strict=True):
        if kept := min(back, len(prompt.ids)):
            row[-kept:] = prompt.ids[-kept:]
    return torch.from_numpy(read).to(model.device)

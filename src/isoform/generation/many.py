"""Many prompts at once, by whatever chooses their next pieces; a text that has ended leaves the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from isoform.batch import Encoding, Example, Pieces, collate
from isoform.codecs.codec import TextCodec
from isoform.generation.beam import Search
from isoform.generation.config import Beam, Sampling
from isoform.generation.decode import Prompt, build_prompt
from isoform.generation.sampling import Choice, Draws, Hypothesis
from isoform.mask import Mask
from isoform.model.block import Memory
from isoform.model.transformer import Transformer
from isoform.objectives.views import View


def beam_search(
    model: Transformer, prompts: Sequence[Prompt], beam: Beam, *, end: int, mask: Mask | None = None
) -> list[list[Hypothesis]]:
    """The best `num_best` texts after each prompt, the best first.

    end: the piece that ends a text; mask: the decoder's (absent: causal). Raises ValueError for prompts or sources
    that don't fit the context.
    """
    return _continued(
        model,
        prompts,
        lambda steps: Search(beam, len(prompts), steps, end, model.device),
        max_tokens=beam.max_tokens,
        mask=mask,
    )


def sample(
    model: Transformer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    end: int,
    mask: Mask | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """num_samples texts after each prompt, drawn. The rest as beam_search; `stop` is not looked for.

    numbers: of the prompts (absent: 0, 1, …); a prompt's number and a sample's decide its random numbers, so that what
    is drawn doesn't depend on what else is asked at once.
    """
    given = list(zip(range(len(prompts)) if numbers is None else numbers, [p.ids for p in prompts], strict=True))
    return _continued(
        model,
        prompts,
        lambda steps: Draws(sampling, given, steps, end, model.device),
        max_tokens=sampling.max_tokens,
        mask=mask,
    )


def answer(
    model: Transformer,
    codec: TextCodec,
    texts: Sequence[str],
    how: Beam | Sampling,
    *,
    view: View,
    is_pair: bool,
    pieces_at_once: int = 4096,
) -> list[list[tuple[str, float]]]:
    """The answers to each text, a source or the beginning of what goes on, with their scores; many at once.

    Texts of like length share a batch of so many pieces, so that little of it is empty. Raises ValueError, with the
    number of the text, for one that doesn't fit.
    """
    prompts = [build_prompt(codec, text, is_pair=is_pair, view=view) for text in texts]
    lengths = [len(p.ids) if p.source is None else len(p.source) for p in prompts]
    _check_lengths(model, prompts)
    width = how.size if isinstance(how, Beam) else how.num_samples
    found: list[list[tuple[str, float]]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    while order:
        count = max(1, pieces_at_once // (width * lengths[order[-1]]))
        batch, order = order[-count:], order[:-count]
        asked = [prompts[i] for i in batch]
        if isinstance(how, Beam):
            hypotheses = beam_search(model, asked, how, end=codec.end_of_text, mask=view.inputs_mask)
        else:
            hypotheses = sample(model, asked, how, end=codec.end_of_text, mask=view.inputs_mask, numbers=batch)
        stop = () if isinstance(how, Beam) else how.stop
        for i, each in zip(batch, hypotheses, strict=True):
            found[i] = [(_before(codec.decode(one.ids), stop), one.score) for one in each]
    return found


def _before(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


@torch.inference_mode()
def _continued(
    model: Transformer,
    prompts: Sequence[Prompt],
    build: Callable[[int], Choice],
    *,
    max_tokens: int,
    mask: Mask | None,
) -> list[list[Hypothesis]]:
    """What a Choice, built for so many steps, makes of all prompts."""
    model.eval()
    _check_lengths(model, prompts)
    longest = max(len(prompt.ids) for prompt in prompts)
    steps = min(max_tokens, model.config.context_length - longest + 1)
    memory = _encoded(model, prompts)
    cache = model.build_cache(len(prompts), capacity=longest + steps)
    pieces = _laid([Encoding(prompt.ids, prompt.prefix) for prompt in prompts], model)
    last = torch.tensor([len(prompt.ids) - 1 for prompt in prompts], device=model.device)
    hidden = model.decode(pieces, mask, memory, cache)[torch.arange(len(prompts)), last].unsqueeze(1)
    choice = build(steps)
    rows = torch.arange(len(prompts), device=model.device).repeat_interleave(choice.width)
    read = _right_aligned(prompts, model).index_select(0, rows)
    sharing = rows[:: choice.together]
    cache.select(rows, sharing)
    memory, hidden = _selected(memory, sharing), hidden.index_select(0, rows)
    for step in range(1, steps + 1):
        logits = model.logits(hidden).squeeze(1)
        rows, ids = choice.advance(logits, step)
        if not len(rows):
            break
        sharing = rows[:: choice.together] // choice.together if len(rows) < len(logits) else None
        cache.select(rows, sharing)
        memory = memory if sharing is None else _selected(memory, sharing)
        before = read.index_select(0, rows)
        read = torch.cat([before, ids.unsqueeze(1)], 1)[:, -before.shape[1] :] if before.shape[1] else before
        hidden = model.decode(Pieces(ids.unsqueeze(1), cache.next_coordinates(), before), mask, memory, cache)
    return choice.found


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


def _encoded(model: Transformer, prompts: Sequence[Prompt]) -> Memory | None:
    """What the encoder makes of all sources, under one mask; None where there are none."""
    sources = [prompt.source for prompt in prompts if prompt.source is not None]
    if not sources:
        return None
    assert len(sources) == len(prompts)
    return model.encode(_laid([Encoding(source) for source in sources], model), prompts[0].source_mask)


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

"""Batched generation: beam search and sampling for many prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from isoform.codecs.codec import TextCodec
from isoform.generation.beam import BeamSearch
from isoform.generation.config import Beam, Sampling
from isoform.generation.constraints import Constraints, constraints_of, first_stop, with_stops
from isoform.generation.decode import Prompt, build_prompt, check_lengths, decode_loop
from isoform.generation.sampling import Sampler
from isoform.generation.strategy import Hypothesis
from isoform.mask import Mask
from isoform.model.transformer import Transformer
from isoform.objectives.views import View


def beam_search(
    model: Transformer, prompts: Sequence[Prompt], beam: Beam, constraints: Constraints, *, mask: Mask | None = None
) -> list[list[Hypothesis]]:
    """The `num_best` most probable texts after each prompt, the best first.

    mask: the decoder's (default: causal). Raises ValueError for a source or a prefix that doesn't fit the context.
    """
    search = BeamSearch(beam, len(prompts), constraints, device=model.device)
    for _ in decode_loop(model, prompts, search, mask=mask):
        pass
    return search.hypotheses


def sample(
    model: Transformer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    constraints: Constraints,
    *,
    mask: Mask | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """num_samples sampled texts after each prompt. `stop` strings are ignored; arguments and errors as in beam_search.

    numbers: of the prompts (default: 0, 1, …); the numbers of a prompt and of a sample seed its random numbers, so that
    samples don't depend on the rest of the batch.
    """
    sampler = Sampler(sampling, range(len(prompts)) if numbers is None else numbers, constraints)
    ids: list[list[int]] = [[] for _ in sampler.texts]
    totals = [0.0] * len(ids)
    for step, logits in decode_loop(model, prompts, sampler, mask=mask):
        tokens = torch.tensor([token for _, token in step.chosen], device=logits.device)
        log_probabilities = logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        for (text, token), log_probability in zip(step.chosen, log_probabilities, strict=True):
            ids[text].append(token)
            totals[text] += log_probability
    texts = [Hypothesis(np.array(each), total / len(each), total) for each, total in zip(ids, totals, strict=True)]
    return [texts[first : first + sampler.width] for first in range(0, len(texts), sampler.width)]


def answer(
    model: Transformer,
    codec: TextCodec,
    texts: Sequence[str],
    decoding: Beam | Sampling,
    *,
    view: View,
    answers_source: bool,
    batch_tokens: int = 4096,
) -> list[list[tuple[str, float]]]:
    """The outputs for each text, a source or a prompt to continue, with their scores.

    Texts of similar length share a batch of about batch_tokens, to limit padding. Raises ValueError, with the number
    of the text, for one that can't be encoded or doesn't fit the context.
    """
    prompts = []
    for number, text in enumerate(texts, 1):
        try:
            prompts.append(build_prompt(codec, text, answers_source=answers_source, view=view))
        except ValueError as error:
            raise ValueError(f"text {number}: {error}") from None
    lengths = [len(p.ids) if p.source is None else len(p.source) for p in prompts]
    check_lengths(model, prompts)
    width = decoding.size if isinstance(decoding, Beam) else decoding.num_samples
    constraints = constraints_of(codec, model.config.vocab_size)
    constraints, stop = with_stops(constraints, codec, () if isinstance(decoding, Beam) else decoding.stop)
    answers: list[list[tuple[str, float]]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    while order:
        size = max(1, batch_tokens // (width * lengths[order[-1]]))
        numbers, order = order[-size:], order[:-size]
        batch = [prompts[i] for i in numbers]
        if isinstance(decoding, Beam):
            hypotheses = beam_search(model, batch, decoding, constraints, mask=view.inputs_mask)
        else:
            hypotheses = sample(model, batch, decoding, constraints, mask=view.inputs_mask, numbers=numbers)
        for i, each in zip(numbers, hypotheses, strict=True):
            prompt = prompts[i].text
            decoded = [codec.decode(h.ids, prompt=prompt) for h in each]
            answers[i] = [(t[: first_stop(t, stop)], h.score) for t, h in zip(decoded, each, strict=True)]
    return answers

"""Generation, one piece at a time over a key/value cache, and the walk that shows what the model expected.

A text that outgrows the context goes on from its last half: those pieces are read again from index 0, so
the model never sees a place it wasn't trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isoform.batch import Pieces, plain_pieces
from isoform.codecs.codec import TextCodec
from isoform.generation.config import Sampling
from isoform.generation.sampling import choose
from isoform.mask import Mask
from isoform.model.block import Memory
from isoform.model.transformer import Transformer
from isoform.objectives.views import View


@dataclass(frozen=True, eq=False)
class Prompt:
    """What generation starts from: ids the decoder reads first, how many of them see each other in both
    directions, and ids for an encoder, with its mask (absent: full)."""

    ids: np.ndarray
    prefix: int = 0
    source: np.ndarray | None = None
    source_mask: Mask | None = None


def build_prompt(codec: TextCodec, text: str, *, is_pair: bool, view: View) -> Prompt:
    """A text to continue, or, for a model of pairs, the source whose target is wanted.

    An empty text starts after an end-of-text piece, where documents begin.
    """
    ids = codec.encode_start(text)
    if not is_pair:
        return Prompt(ids if len(ids) else np.array([codec.end_of_text]))
    source = np.append(ids, codec.separator)
    _, source_length = view.length(len(source) + 1, len(source))
    if source_length:
        return Prompt(source[-1:], source=source, source_mask=view.source_mask)
    return Prompt(source, prefix=len(source))


@torch.inference_mode()
def generate_ids(
    model: Transformer, prompt: Prompt, sampling: Sampling, mask: Mask | None = None
) -> Iterator[np.ndarray]:
    """Yields the next piece of each of num_samples texts, (num_samples,), up to max_tokens times.

    mask: the decoder's (absent: causal). Raises ValueError for a source or a prefix that doesn't fit the
    context.
    """
    model.eval()
    device, limit = model.device, model.config.context_length
    generator = torch.Generator(device).manual_seed(sampling.seed)
    memory = _encoded(model, prompt, sampling.num_samples)
    if prompt.prefix >= limit:
        raise ValueError(f"a prompt of {prompt.prefix} pieces leaves no room in context_length={limit}; shorten it")
    start = torch.as_tensor(prompt.ids.astype(np.int64), device=device)
    text = start.repeat(sampling.num_samples, 1)
    pieces = _first(text if text.shape[1] <= limit else text[:, -(limit // 2) :], prompt.prefix)
    cache = model.build_cache(sampling.num_samples)
    needs_text = sampling.repetition_penalty != 1.0
    for _ in range(sampling.max_tokens):
        hidden = model.decode(pieces, mask, memory, cache)
        ids = choose(model.logits(hidden[:, -1:]).squeeze(1), text if needs_text else None, sampling, generator)
        yield ids.cpu().numpy()
        before, ids = text[:, -model.stem.looks_back :], ids.unsqueeze(1)
        text = torch.cat([text, ids], 1)
        if cache.length - cache.num_before < limit:
            pieces = Pieces(ids, cache.next_coordinates(), before)
        else:
            pieces = plain_pieces(text[:, -(limit // 2) :])
            cache = model.build_cache(sampling.num_samples)


def _first(ids: Tensor, prefix: int) -> Pieces:
    pieces = plain_pieces(ids)
    if not prefix:
        return pieces
    given = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) < prefix
    return Pieces(ids, replace(pieces.coordinates, prefix=given, start=None))


def _encoded(model: Transformer, prompt: Prompt, num_rows: int) -> Memory | None:
    """What the encoder makes of the source, a row for each text; None where there is none."""
    source = prompt.source
    if source is None:
        return None
    assert model.config.encoder is not None
    limit = model.config.length(model.config.encoder)
    if len(source) > limit:
        raise ValueError(f"a source of {len(source)} pieces doesn't fit context_length={limit}; shorten it")
    ids = torch.as_tensor(source.astype(np.int64), device=model.device)
    return model.encode(ids.repeat(num_rows, 1), prompt.source_mask)


@dataclass(frozen=True)
class Generation:
    """A generated text, without the prompt; reason: `length`, `end` (end-of-text piece) or `stop` (string)."""

    text: str
    num_pieces: int
    reason: str


class _Growing:
    """One text as its pieces arrive: emits what can no longer become part of a stop string."""

    def __init__(self, codec: TextCodec, stop: Sequence[str]) -> None:
        self.codec, self.stop, self.decoder = codec, stop, codec.stream_decoder()
        self.text, self.emitted, self.num_pieces, self.reason = "", 0, 0, ""

    def push(self, piece: int) -> str:
        self.num_pieces += 1
        if piece == self.codec.end_of_text:
            return self.finish("end")
        self.text += self.decoder.push(piece)
        found = [at for at in (self.text.find(s, max(0, self.emitted - len(s))) for s in self.stop) if at >= 0]
        if found:
            self.text, self.reason = self.text[: min(found)], "stop"
            return self._emit(len(self.text))
        held = max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        return self._emit(len(self.text) - held)

    def finish(self, reason: str) -> str:
        self.reason = reason
        self.text += self.decoder.flush()
        return self._emit(len(self.text))

    def _emit(self, end: int) -> str:
        new = self.text[self.emitted : end]
        self.emitted = max(end, self.emitted)
        return new


def generate(
    model: Transformer, codec: TextCodec, prompt: Prompt, sampling: Sampling, mask: Mask | None = None
) -> Iterator[tuple[int, str] | Generation]:
    """Generate num_samples texts: yields (sample, new text) as it comes, and at the end each Generation in turn."""
    texts = [_Growing(codec, sampling.stop) for _ in range(sampling.num_samples)]
    for ids in generate_ids(model, prompt, sampling, mask):
        for n, (growing, piece) in enumerate(zip(texts, ids.tolist(), strict=True)):
            if not growing.reason:
                new = growing.push(piece)
                if new:
                    yield n, new
        if all(growing.reason for growing in texts):
            break
    for n, growing in enumerate(texts):
        if not growing.reason:
            rest = growing.finish("length")
            if rest:
                yield n, rest
    for growing in texts:
        yield Generation(growing.text, growing.num_pieces, growing.reason)


@dataclass(frozen=True)
class Expectation:
    """What the model expected at one piece: its probability (None for the first, which nothing precedes), its
    rank (1 is the most probable), the entropy in bits, and the most probable pieces with probabilities."""

    piece: int
    probability: float | None
    rank: int | None
    entropy: float | None
    alternatives: list[tuple[int, float]]


@torch.inference_mode()
def walk(model: Transformer, ids: np.ndarray, *, num_alternatives: int = 5) -> list[Expectation]:
    """Walk a text piece by piece with the distribution over the vocabulary.

    Texts longer than the context are read in windows that overlap by half, so that each piece but the first
    half context's has at least half a context before it.
    """
    model.eval()
    device, limit = model.device, model.config.context_length
    text = torch.as_tensor(np.asarray(ids, np.int64), device=device)
    steps = [Expectation(int(text[0]), None, None, None, [])]
    begin = 0
    while len(steps) < len(text):
        window = text[begin : begin + limit]
        log_probabilities = model(window.unsqueeze(0))[0].float().log_softmax(-1)
        for at in range(len(steps) - 1 - begin, min(len(window), len(text) - begin - 1)):
            row, piece = log_probabilities[at], int(text[begin + at + 1])
            top = row.topk(min(num_alternatives, len(row)))
            steps.append(
                Expectation(
                    piece,
                    float(row[piece].exp()),
                    int((row > row[piece]).sum()) + 1,
                    float(-(row.exp() * row).nan_to_num().sum() / np.log(2)),
                    list(zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)),
                )
            )
        begin += max(1, limit // 2)
    return steps

"""The decoding loop: many prompts at once with a key/value cache, under any decoding strategy.

A text that has ended is removed from the batch. One that outgrows the context continues from its last half: those
tokens are read again from index 0, so that the model never sees a position it wasn't trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from isoform.batch import Encoding, Example, Tokens, collate
from isoform.codecs.codec import TextCodec
from isoform.generation.constraints import NONE
from isoform.generation.strategy import DecodingStrategy, Step
from isoform.mask import Causal, Full, Mask
from isoform.model.block import Memory
from isoform.model.transformer import Transformer
from isoform.objectives.views import View


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt: ids for the decoder, the length of their bidirectional prefix, and ids for an encoder, with its mask
    (default: full)."""

    ids: np.ndarray
    prefix: int = 0
    source: np.ndarray | None = None
    source_mask: Mask | None = None
    is_continued: bool = False
    """Whether the prefix is the beginning of the text, rather than a source that a target follows."""

    @property
    def text(self) -> np.ndarray:
        """The ids whose text the generated one continues: none after a source."""
        has_source = self.source is not None or (self.prefix > 0 and not self.is_continued)
        return self.ids[:0] if has_source else self.ids


def build_prompt(codec: TextCodec, text: str, *, answers_source: bool, view: View) -> Prompt:
    """The prompt for a text to continue, or, for a model of pairs, for the source of a target.

    An empty text becomes an end-of-text token, which documents follow. Raises ValueError for a view in which tokens
    attend to later ones: its model fills in what is masked, and continues nothing.
    """
    if view.inputs_mask == Full():
        raise ValueError(
            "this model was trained to read texts in both directions, so that it can't continue one; isoform evaluate "
            "scores it"
        )
    if not answers_source:
        ids = codec.encode_start(text)
        ids = ids if len(ids) else np.array([codec.end_of_text])
        return Prompt(ids, prefix=0 if view.inputs_mask == Causal() else len(ids), is_continued=True)
    source, start = codec.encode_source(text), codec.generation_start
    _, source_length = view.length(len(source) + 1, len(source))
    if source_length:
        first = source[-1:] if start is None else np.array([start])
        return Prompt(first, source=source, source_mask=view.source_mask)
    return Prompt(source, prefix=len(source))


def check_lengths(model: Transformer, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for the first source or prefix that doesn't fit the context, with the number of its prompt."""
    config = model.config
    for number, prompt in enumerate(prompts, 1):
        lengths = [(0 if prompt.is_continued else prompt.prefix, config.decoder)]
        if prompt.source is not None:
            lengths.append((len(prompt.source), config.encoder))
        for length, stack in lengths:
            assert stack is not None
            if length > (limit := config.length(stack)):
                raise ValueError(
                    f"text {number} has {length} tokens, which don't fit context_length={limit}; shorten it"
                )


@torch.inference_mode()
def decode_loop(
    model: Transformer, prompts: Sequence[Prompt], strategy: DecodingStrategy, *, mask: Mask | None = None
) -> Iterator[tuple[Step, Tensor]]:
    """Yields the Step of a strategy and its logits (n, V), until no text continues.

    mask: the decoder's (default: causal). Raises ValueError for a source or a prefix that doesn't fit the context, and
    for logits that aren't finite.
    """
    model.eval()
    check_lengths(model, prompts)
    batch = _Batch(model, prompts, strategy, mask)
    hidden = batch.read(strategy.width)
    for number in count(1):
        logits = model.logits(hidden).squeeze(1)
        if not math.isfinite(float(logits.max())):  # NaN is the largest
            raise ValueError("the logits have NaN or infinite values; the model's weights are damaged or have diverged")
        step = strategy.advance(logits, batch.texts, number)
        yield step, logits
        if not len(step.tokens):
            return
        if step.rows is not None:
            batch.select(step.rows)
        hidden = batch.append(step.tokens)


class _Batch:
    """The n active texts: their tokens and the model's cache."""

    def __init__(
        self, model: Transformer, prompts: Sequence[Prompt], strategy: DecodingStrategy, mask: Mask | None
    ) -> None:
        assert model.config.decoder is not None
        self.model, self.prompts, self.mask, self.group = model, prompts, mask, strategy.group
        self.limit = model.config.length(model.config.decoder)
        longest = max(len(prompt.ids) for prompt in prompts)
        self.capacity = min(self.limit, longest + strategy.max_tokens)
        rows = np.full((len(prompts), longest), NONE, np.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            row[longest - len(prompt.ids) :] = prompt.ids
        self.texts = torch.from_numpy(rows).to(model.device)  # (n, S), aligned at the right
        self.owners = torch.arange(len(prompts), device=model.device)  # (n,): the prompt of each text
        self.num_new = 0
        self.sources = _encode_sources(model, prompts)

    def read(self, repeats: int = 1) -> Tensor:
        """Read the texts, as far as they fit the context, and continue each in `repeats` rows: the hidden states
        (n * repeats, 1, D) of their last tokens."""
        windows = [self._window(*row) for row in zip(self.texts.cpu().numpy(), self.owners.tolist(), strict=True)]
        memory = None if self.sources is None else _select_memory(self.sources, self.owners)
        memory_length = 0 if memory is None else memory.hidden.shape[1]
        self.cache = self.model.build_cache(len(windows), self.capacity, memory_length)
        hidden = self.model.decode(_lay(windows, self.model.device), self.mask, memory, self.cache)

        rows = torch.arange(len(windows), device=hidden.device).repeat_interleave(repeats)
        newest = torch.tensor([len(window) - 1 for window in windows], device=hidden.device)
        readers = rows[:: self.group]  # one row per group, whose rows share their memory
        self.texts, self.owners = self.texts.index_select(0, rows), self.owners.index_select(0, rows)
        self.cache.select(rows, readers)
        self.memory = None if memory is None else _select_memory(replace(memory, layers=(), outputs=()), readers)
        return hidden[rows, newest[rows]].unsqueeze(1)

    def _window(self, text: np.ndarray, owner: int) -> Encoding:
        """The part of a text that is read, with its prefix: all of it, until it outgrows the context."""
        prompt = self.prompts[owner]
        length = len(prompt.ids) + self.num_new
        window = window_length(length, len(prompt.ids), self.limit)
        return Encoding(text[-window:], prompt.prefix if window == length else 0)

    def select(self, rows: Tensor) -> None:
        """Continue with these rows (m,), which may repeat."""
        memory_rows = None  # all groups continue, in their order
        if len(rows) < len(self.texts):
            groups = rows // self.group
            memory_rows = groups[:: self.group]
            self.memory = None if self.memory is None else _select_memory(self.memory, memory_rows)
        self.texts, self.owners = self.texts.index_select(0, rows), self.owners.index_select(0, rows)
        self.cache.select(rows, memory_rows)

    def append(self, tokens: Tensor) -> Tensor:
        """Append a token (n,) to each text: their hidden states (n, 1, D)."""
        self.texts = torch.cat([self.texts, tokens.unsqueeze(1)], 1)
        self.num_new += 1
        if self.cache.length - self.cache.num_memory_tokens == self.limit:
            return self.read()
        before = self.texts[:, -1 - self.model.stem.looks_back : -1]
        inputs = Tokens(tokens.unsqueeze(1), self.cache.next_coordinates(), before)
        return self.model.decode(inputs, self.mask, self.memory, self.cache)


def window_length(length: int, prompt_length: int, limit: int) -> int:
    """How many tokens at the end of a text are read: all, up to the limit; whenever the text, or its prompt, outgrows
    the limit, the window restarts at half of it."""
    first_cut = max(prompt_length, limit + 1)
    if length < first_cut:
        return length
    half = max(1, limit // 2)
    return half + (length - first_cut) % (limit + 1 - half)


def _encode_sources(model: Transformer, prompts: Sequence[Prompt]) -> Memory | None:
    """The memory of all sources, under one mask; None if there are none."""
    sources = [prompt.source for prompt in prompts if prompt.source is not None]
    if not sources:
        return None
    assert len(sources) == len(prompts)
    return model.encode(_lay([Encoding(source) for source in sources], model.device), prompts[0].source_mask)


def _lay(encodings: Sequence[Encoding], device: torch.device) -> Tokens:
    """Rows of one Encoding each, padded on the right."""
    none = np.zeros(0, np.int64)
    rows = [[Example(e, none, none.astype(np.float32))] for e in encodings]
    return collate(rows, max(map(len, encodings))).inputs.to(device)


def _select_memory(memory: Memory, rows: Tensor) -> Memory:
    """The memory of some rows (m,)."""
    coordinates = memory.coordinates.map(lambda t: t.expand(len(memory.hidden), *t.shape[1:]).index_select(0, rows))
    layers = tuple((key.index_select(0, rows), value.index_select(0, rows)) for key, value in memory.layers)
    outputs = tuple(output.index_select(0, rows) for output in memory.outputs)
    coordinates = replace(coordinates, start=memory.coordinates.start)
    return Memory(memory.hidden.index_select(0, rows), coordinates, layers, outputs)

"""Streaming generation: the texts after one prompt, as they are generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isoform.codecs.codec import StreamDecoder, TextCodec
from isoform.generation.config import Sampling
from isoform.generation.constraints import Constraints, constraints_of, first_stop, with_stops
from isoform.generation.decode import Prompt, decode_loop
from isoform.generation.sampling import Sampler
from isoform.mask import Mask
from isoform.model.transformer import Transformer


@dataclass(frozen=True)
class Generation:
    """A generated text, without the prompt; reason: `length`, `end` (a token that ends texts) or `stop` (a string, or
    a special token)."""

    text: str
    num_tokens: int
    reason: str
    ids: tuple[int, ...] = ()
    """Its tokens, with the one that ended it."""


class _Text:
    """One text as its tokens arrive; emits what can no longer become part of a stop string."""

    def __init__(self, decoder: StreamDecoder, constraints: Constraints, stop: Sequence[str]) -> None:
        self.decoder, self.constraints, self.stop = decoder, constraints, stop
        self.text, self.num_emitted, self.ids, self.reason = "", 0, list[int](), ""

    def push(self, token: int) -> str:
        """The text that this token completes; empty once the text has ended."""
        if self.reason:
            return ""
        self.ids.append(token)
        if token in self.constraints.stops:
            return self.finish("stop")
        if token in self.constraints.ends:
            return self.finish("end")
        return self._add(self.decoder.push(token))

    def finish(self, reason: str) -> str:
        """End the text: its remaining part."""
        if self.reason:
            return ""
        new = self._add(self.decoder.flush())
        if self.reason:
            return new
        self.reason = reason
        return new + self._emit(len(self.text))

    def _add(self, new: str) -> str:
        """The part of the text that can be shown after some more of it; it ends before a stop string."""
        self.text += new
        start = first_stop(self.text, self.stop, max(0, self.num_emitted - max(map(len, self.stop), default=0)))
        if start < len(self.text):
            self.text, self.reason = self.text[:start], "stop"
            return self._emit(start)
        pending = max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        return self._emit(len(self.text) - pending)

    def _emit(self, end: int) -> str:
        new = self.text[self.num_emitted : end]
        self.num_emitted = max(end, self.num_emitted)
        return new


def generate(
    model: Transformer, codec: TextCodec, prompt: Prompt, sampling: Sampling, mask: Mask | None = None
) -> Iterator[tuple[int, str] | Generation]:
    """Generate num_samples texts: yields (sample, new text) incrementally, and at the end each Generation in order.

    The random numbers are those of the first prompt of `sample`.
    """
    constraints, stop = with_stops(constraints_of(codec, model.config.vocab_size), codec, sampling.stop)
    texts = [_Text(codec.stream_decoder(prompt.text), constraints, stop) for _ in range(sampling.num_samples)]
    for step, _ in decode_loop(model, [prompt], Sampler(sampling, [0], constraints), mask=mask):
        for number, token in step.chosen:
            if new := texts[number].push(token):
                yield number, new
        if all(text.reason for text in texts):
            break
    for number, text in enumerate(texts):
        if rest := text.finish("length"):
            yield number, rest
    for text in texts:
        yield Generation(text.text, len(text.ids), text.reason, tuple(text.ids))

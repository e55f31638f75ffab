"""The texts after one prompt, as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isoform.codecs.codec import TextCodec
from isoform.generation.config import Sampling
from isoform.generation.decode import Prompt, decode_loop
from isoform.generation.sampling import Sampler
from isoform.mask import Mask
from isoform.model.transformer import Transformer


@dataclass(frozen=True)
class Generation:
    """A generated text, without the prompt; reason: `length`, `end` (end-of-text token) or `stop` (string)."""

    text: str
    num_tokens: int
    reason: str


class _Text:
    """One text as its tokens arrive: gives what can no longer become part of a stop string."""

    def __init__(self, codec: TextCodec, stop: Sequence[str]) -> None:
        self.codec, self.stop, self.decoder = codec, stop, codec.stream_decoder()
        self.text, self.num_given, self.num_tokens, self.reason = "", 0, 0, ""

    def push(self, token: int) -> str:
        """What can be given now that this token has come; a text that has ended takes no more."""
        if self.reason:
            return ""
        self.num_tokens += 1
        if token == self.codec.end_of_text:
            return self.finish("end")
        self.text += self.decoder.push(token)
        starts = [self.text.find(string, max(0, self.num_given - len(string))) for string in self.stop]
        if begun := [start for start in starts if start >= 0]:
            self.text, self.reason = self.text[: min(begun)], "stop"
            return self._give(len(self.text))
        held = max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        return self._give(len(self.text) - held)

    def finish(self, reason: str) -> str:
        """The rest, since nothing more comes."""
        if self.reason:
            return ""
        self.reason = reason
        self.text += self.decoder.flush()
        return self._give(len(self.text))

    def _give(self, end: int) -> str:
        new = self.text[self.num_given : end]
        self.num_given = max(end, self.num_given)
        return new


def generate(
    model: Transformer, codec: TextCodec, prompt: Prompt, sampling: Sampling, mask: Mask | None = None
) -> Iterator[tuple[int, str] | Generation]:
    """Generate num_samples texts: yields (sample, new text) as it comes, and at the end each Generation in turn.

    The draws are those of the first prompt of `sample`.
    """
    texts = [_Text(codec, sampling.stop) for _ in range(sampling.num_samples)]
    for step, _ in decode_loop(model, [prompt], Sampler(sampling, [0], end=codec.end_of_text), mask=mask):
        for number, token in step.taken:
            if new := texts[number].push(token):
                yield number, new
        if all(text.reason for text in texts):
            break
    for number, text in enumerate(texts):
        if rest := text.finish("length"):
            yield number, rest
    for text in texts:
        yield Generation(text.text, text.num_tokens, text.reason)

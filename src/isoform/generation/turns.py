"""A conversation with a model, turn by turn: prompts that fit the context, and answers as they are generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from isoform.codecs.chat import Message
from isoform.codecs.codec import TextCodec
from isoform.generation.config import Sampling
from isoform.generation.decode import Prompt
from isoform.generation.streaming import Generation, generate
from isoform.mask import Causal, Mask
from isoform.model.transformer import Transformer

PLAIN_STOP = "\nUser:"
"""Where an answer in the plain form of conversations ends, besides at the end of the text."""
PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def fitted(codec: TextCodec, messages: Sequence[Message], most: int) -> tuple[np.ndarray, int]:
    """The prompt (T,) of a conversation for its next answer, and how many messages are left out of it.

    While it has more than `most` tokens the oldest turn, a user's message with what follows it, is left out; system
    messages at the beginning stay. Raises ValueError if the last turn alone is too long, and for a template that fails.
    """
    start = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, rest = [*messages[:start]], [*messages[start:]]
    turns = [i for i, message in enumerate(rest) if message["role"] == "user"] or [0]
    ids = np.zeros(0, codec.dtype)
    for first in turns:
        first = 0 if first == turns[0] else first
        ids = codec.encode_prompt([*system, *rest[first:]])
        if len(ids) <= most:
            return ids, first
    raise ValueError(f"the message has {len(ids)} tokens with what precedes it, and {most} fit; shorten it")


def ends_of_turn(codec: TextCodec) -> tuple[str, ...]:
    """What ends an answer besides the tokens that end texts: the special token that ends a turn, or in the plain form
    the next turn."""
    if not codec.origin.template():
        return (PLAIN_STOP,)
    with suppress(ValueError):  # of a template that doesn't say where answers end
        encoding = codec.encode_messages(PROBE)
        if encoding.is_target is not None and encoding.is_target.any():
            last = int(encoding.ids[encoding.is_target][-1])
            return (codec.special[last],) if last in codec.special else ()
    return ()


def reply(
    model: Transformer, codec: TextCodec, ids: np.ndarray, sampling: Sampling, mask: Mask
) -> Iterator[str | Generation]:
    """The answer after a prompt (T,), as it is generated, and at the end the Generation, within the context."""
    assert model.config.decoder is not None
    room = model.config.length(model.config.decoder) - len(ids)
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room), stop=(*sampling.stop, *ends_of_turn(codec)))
    prefix = 0 if mask == Causal() else len(ids)
    prompt = Prompt(ids, prefix=prefix, is_continued=not prefix)
    for event in generate(model, codec, prompt, sampling, mask):
        yield event if isinstance(event, Generation) else event[1]

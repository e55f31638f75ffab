"""Cost of the turns of a conversation in which each answer is conditioned on all earlier turns, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from isoform.model.config import ModelConfig
from isoform.model.cost import key_value_bytes


@dataclass(frozen=True)
class ConversationTurn:
    """A question and its answer."""

    read: int
    """Tokens read for the first time."""
    read_again: int
    """Tokens of earlier turns that have to be read again."""
    bytes_held: int
    """Keys and values cached when the answer ends."""


def conversation_turns(
    config: ModelConfig,
    num_turns: int,
    *,
    question_tokens: int,
    answer_tokens: int,
    is_causal: bool,
    bytes_per_number: int = 4,
) -> list[ConversationTurn]:
    """The turns of a conversation with `question_tokens` and `answer_tokens` per turn.

    is_causal: whether the source is attended to causally, so that it need not be read again as it grows. An encoder
    still reads the answers that the decoder generated, unless both are one stack with joint attention, layer by layer.
    """
    decoder, encoder = config.decoder, config.encoder
    assert decoder is not None, "only a decoder generates"
    is_one_stack = encoder is None or (
        config.share_stacks and decoder.cross == "joint" and decoder.memory_layers == "layerwise"
    )
    decoder_bytes = key_value_bytes(config, decoder, bytes_per_number=bytes_per_number)
    encoder_bytes = 0
    if encoder is not None and is_causal and not is_one_stack:  # it continues from its own keys and values
        encoder_bytes = key_value_bytes(config, encoder, bytes_per_number=bytes_per_number)
    turns = []
    for turn in range(num_turns):
        past = turn * (question_tokens + answer_tokens)
        if not is_causal:
            read_again = past
        else:
            read_again = 0 if is_one_stack or turn == 0 else answer_tokens
        source = past + question_tokens
        cached = decoder_bytes * (source + answer_tokens) + encoder_bytes * source
        turns.append(ConversationTurn(question_tokens, read_again, cached))
    return turns

"""A canonical form of equivalent model configs, so that a config can be compared with the one read back."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.family import NotRepresentable
from isoform.model.config import BlockConfig, Initialization, ModelConfig, StackConfig
from isoform.model.parts import Attention, Experts, FeedForward, TokenChoice


def shortest_period(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """The shortest period of the blocks."""
    for period in range(1, len(blocks)):
        if all(block == blocks[i % period] for i, block in enumerate(blocks)):
            return blocks[:period]
    return blocks


def canonical(config: ModelConfig) -> ModelConfig:
    """The same function with every open field filled in, and the fields that only training reads at their defaults.

    Raises NotRepresentable for blocks that no family has: a mixer other than attention, or no feed-forward.
    """
    return replace(
        config,
        encoder=None if config.encoder is None else _stack(config, config.encoder),
        decoder=None if config.decoder is None else _stack(config, config.decoder),
        dropout=0.0,
        initialization=Initialization(),
    )


def _stack(config: ModelConfig, stack: StackConfig) -> StackConfig:
    plain = StackConfig()
    return replace(
        stack,
        blocks=shortest_period(tuple(_block(config, block) for block in config.layers(stack))),
        context_length=None if stack.context_length == config.context_length else stack.context_length,
        exits=(),
        exit_loss=plain.exit_loss,
        ahead=0,
        ahead_loss=plain.ahead_loss,
    )


def _block(config: ModelConfig, block: BlockConfig) -> BlockConfig:
    if not isinstance(block.mixer, Attention):
        raise NotRepresentable("mixer")
    if block.feedforward is None:
        raise NotRepresentable("feedforward")
    attention = _attention(block.mixer, config.head_dim(block.mixer))
    return replace(block, mixer=attention, feedforward=_feedforward(config, block.feedforward))


def _attention(attention: Attention, head_dim: int) -> Attention:
    return replace(
        attention,
        num_kv_heads=attention.num_kv_heads or attention.num_heads,
        head_dim=head_dim,
        key_bias=attention.key_bias if attention.bias else True,
        output_bias=attention.bias if attention.output_bias is None else attention.output_bias,
        scale=None if attention.scale == head_dim**-0.5 else attention.scale,
        dropout=0.0,
    )


def _feedforward(config: ModelConfig, feedforward: FeedForward) -> FeedForward:
    if not isinstance(feedforward, Experts):
        return replace(feedforward, feedforward_dim=config.feedforward_dim(feedforward))
    router = feedforward.router
    if isinstance(router, TokenChoice):
        router = replace(router, balance_loss=0.0, z_loss=0.0)
    expert = replace(feedforward.expert, feedforward_dim=config.feedforward_dim(feedforward.expert))
    return replace(feedforward, expert=expert, router=router)

"""A canonical form of equivalent model configs, so that a config can be compared with the one read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from isoform.checkpoint.families.family import NotRepresentable
from isoform.config import kind_of
from isoform.model.config import BlockConfig, Initialization, Lookup, ModelConfig, Pooled, StackConfig
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
    stem = config.stem
    if isinstance(stem, Lookup) and not stem.ngrams:
        stem = replace(stem, ngram_rows=Lookup().ngram_rows)
    has_both = config.encoder is not None and config.decoder is not None and not config.share_stacks
    head = config.head
    if isinstance(head, Pooled) and head.embed:
        head = replace(head, num_outputs=0, bias=True)
    if isinstance(head, Pooled) and not head.dense:
        head = replace(head, activation=Pooled().activation, dense_bias=True)
    return replace(
        config,
        stem=stem,
        head=head,
        encoder_stem=config.encoder_stem or (stem if has_both else None),
        encoder=None if config.encoder is None else _stack(config, config.encoder),
        decoder=None if config.decoder is None else _stack(config, config.decoder),
        dropout=0.0,
        initialization=Initialization(),
    )


def _stack(config: ModelConfig, stack: StackConfig) -> StackConfig:
    plain = StackConfig()
    schemes = {block.mixer.position for block in stack.blocks if isinstance(block.mixer, Attention)}
    if stack.position is None and len(schemes) == 1:
        stack = replace(stack, position=next(iter(schemes)))
    return replace(
        stack,
        blocks=shortest_period(tuple(_block(config, stack, block) for block in config.layers(stack))),
        context_length=None if stack.context_length == config.context_length else stack.context_length,
        exits=(),
        exit_loss=plain.exit_loss,
        ahead_loss=plain.ahead_loss,
    )


def _block(config: ModelConfig, stack: StackConfig, block: BlockConfig) -> BlockConfig:
    if not isinstance(block.mixer, Attention):
        raise NotRepresentable("mixer")
    if block.feedforward is None:
        raise NotRepresentable("feedforward")
    attention = _attention(block.mixer, config.head_dim(block.mixer))
    if attention.position == stack.position:
        attention = replace(attention, position=None)
    return replace(block, mixer=attention, feedforward=_feedforward(config, block.feedforward))


def _attention(attention: Attention, head_dim: int) -> Attention:
    return replace(
        attention,
        num_kv_heads=attention.num_kv_heads or attention.num_heads,
        head_dim=head_dim,
        key_bias=attention.key_bias if attention.bias else True,
        output_bias=attention.bias if attention.output_bias is None else attention.output_bias,
        qk_norm_over="head" if attention.qk_norm is None else attention.qk_norm_over,
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


_DERIVED = {
    "output_bias": "bias",
    "key_bias": "bias",
    "num_kv_heads": "num_heads",
    "head_dim": "num_heads",
    "encoder_stem": "stem",
}
"""Fields that another one stands for where they are left open."""


ABSENT = "never without "
"""Before a field that a class always has, and the config leaves out."""


def changes(config: ModelConfig, target: Any, back: Any, path: str = "") -> Iterator[str]:
    """What another class lacks of a config, whose canonical form is `target`: the fields in which that differs from
    `back`, as the config has them, with their values, and without the fields of a part of another kind."""
    if type(target) is not type(back) and (is_dataclass(target) or is_dataclass(back)):
        yield f"{ABSENT}{path}" if target is None else f"no {_own(config, path)} {kind_of(type(target))}"
    elif is_dataclass(target):
        for field in fields(target):
            inner = f"{path}.{field.name}".lstrip(".")
            yield from changes(config, getattr(target, field.name), getattr(back, field.name), inner)
    elif isinstance(target, tuple) and any(is_dataclass(item) for item in (*target, *back)):
        for i in range(max(len(target), len(back))):
            yield from changes(config, target[i % len(target)], back[i % len(back)], f"{path}.{i}")
    elif target != back:
        yield f"{ABSENT}{path}" if target is None else f"no {_own(config, path)}={target!r}"


def _own(config: ModelConfig, path: str) -> str:
    """The path of a field of the canonical form in the config itself."""
    value: Any = config
    names: list[str] = []
    for name in path.split("."):
        if isinstance(value, tuple):
            name = str(int(name) % len(value))
            value = value[int(name)]
        else:
            name = _DERIVED.get(name, name) if getattr(value, name) is None else name
            value = getattr(value, name)
        names.append(name)
    return ".".join(names)

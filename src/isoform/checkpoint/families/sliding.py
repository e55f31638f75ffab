"""Stacks that alternate layers of full attention with layers of sliding-window attention and their own rotary base."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import write_rotary
from isoform.mask import Window
from isoform.model.config import BlockConfig, StackConfig
from isoform.model.parts import Rotary

FULL, SLIDING = "full_attention", "sliding_attention"


def read_blocks(
    fields: Fields, default: list[str], full: BlockConfig, window: Window, position: Rotary
) -> tuple[BlockConfig, ...]:
    """The blocks by `layer_types`, or by `default` if that field is absent.

    Raises ValueError for a number of layers other than that of `default`, or an unknown type.
    """
    kinds = fields.get("layer_types", default)
    if not isinstance(kinds, list) or len(kinds) != len(default) or {*kinds} - {FULL, SLIDING}:
        raise ValueError(f"{fields.where}: layer_types={kinds!r} doesn't name a type for each of {len(default)} layers")
    sliding = replace(full, mixer=replace(full.attention, pattern=window, position=position))
    return shortest_period(tuple(full if kind == FULL else sliding for kind in kinds))


def full_and_sliding(layers: list[BlockConfig]) -> tuple[BlockConfig, BlockConfig]:
    """A layer of each type; the first layer for a type that is absent."""
    full = next((block for block in layers if block.attention.pattern is None), layers[0])
    return full, next((block for block in layers if block.attention.pattern is not None), layers[0])


def layer_types(layers: list[BlockConfig]) -> list[str]:
    """The type of each layer."""
    return [SLIDING if block.attention.pattern else FULL for block in layers]


def write_rotaries(stack: StackConfig, sliding: BlockConfig) -> dict:
    """The rotary scheme of each layer type."""
    return {FULL: write_rotary(stack.position), SLIDING: write_rotary(sliding.attention.position or stack.position)}

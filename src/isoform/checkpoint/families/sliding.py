"""Stacks that alternate layers of full attention with layers of sliding-window attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import write_rotary
from isoform.mask import Window
from isoform.model.config import BlockConfig, StackConfig
from isoform.model.parts import Rotary

FULL, SLIDING = "full_attention", "sliding_attention"


def read_blocks(
    fields: Fields,
    implied: Sequence[str],
    source: str,
    full: BlockConfig,
    window: Window | None,
    position: Rotary | None = None,
) -> tuple[BlockConfig, ...]:
    """The blocks by `layer_types`, or `implied` by the field `source` if that is absent; `window` and `position` (None:
    the stack's) are those of sliding layers.

    Raises ValueError for another number of layers, an unknown type, or a sliding layer without a window.
    """
    given = fields.get("layer_types")
    kinds = list(implied) if given is None else given
    if isinstance(kinds, list):
        kinds = [FULL if kind == "attention" else kind for kind in kinds]  # its name in earlier versions
    if not isinstance(kinds, list) or len(kinds) != len(implied) or not all(k in (FULL, SLIDING) for k in kinds):
        raise ValueError(
            f"{fields.where}: layer_types={given!r} doesn't name {FULL} or {SLIDING} for each of {len(implied)} layers"
        )
    if fields.values.get(source) is not None and kinds != list(implied):
        fields.contradicts(source, "layer_types", given, taken="layer_types")
    if window is None and SLIDING in kinds:
        raise ValueError(f"{fields.where}: layer_types names {SLIDING}, but no sliding_window is in use; set one")
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

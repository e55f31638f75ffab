"""Stacks whose layers differ in their windows, or in whether positions turn their queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import read_rotaries, write_rotary
from isoform.checkpoint.families.table import Aspect, put, read_window, stack_of, write_window
from isoform.mask import Window
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
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


def write_types(config: ModelConfig) -> dict[str, object]:
    """The type of each layer, and the window of those that have one."""
    layers = config.layers(stack_of(config))
    _, sliding = full_and_sliding(layers)
    width = write_window(sliding.attention.pattern)
    return {"layer_types": layer_types(layers), "sliding_window": width}


def later_layers(width: int) -> Aspect:
    """Windows from the layer `max_window_layers` on, if there are windows (Qwen2)."""

    def read(config: ModelConfig, fields: Fields) -> ModelConfig:
        stack = stack_of(config)
        pattern = read_window(fields, "sliding_window") if fields.flag("use_sliding_window") else None
        first = stack.num_layers if pattern is None else int(fields.number("max_window_layers"))
        implied = [SLIDING if i >= first else FULL for i in range(stack.num_layers)]
        source = "max_window_layers" if pattern else ""
        return put(config, {"decoder.blocks": read_blocks(fields, implied, source, stack.blocks[0], pattern)})

    def write(config: ModelConfig) -> dict[str, object]:
        written = write_types(config)
        types, result = layer_types(config.layers(stack_of(config))), {**written}
        if types == sorted(types):  # full layers first
            result["max_window_layers"] = types.count(FULL)
        return {**result, "use_sliding_window": written["sliding_window"] is not None}

    fields = {"use_sliding_window": False, "sliding_window": width, "max_window_layers": 28, "layer_types": None}
    return Aspect(fields, read, write)


def periodic_layers(width: int, period: int, field: str = "") -> Aspect:
    """Windows in all layers but one of `period`, which `field` may change (Gemma 2 and 3)."""

    def read(config: ModelConfig, fields: Fields) -> ModelConfig:
        stack, every = stack_of(config), fields.count(field) if field else period
        implied = [SLIDING if (i + 1) % every else FULL for i in range(stack.num_layers)]
        pattern = read_window(fields, "sliding_window")
        return put(config, {"decoder.blocks": read_blocks(fields, implied, field, stack.blocks[0], pattern)})

    return Aspect(
        {"sliding_window": width, "layer_types": None} | ({field: period} if field else {}), read, write_types
    )


def two_rotaries(base: float, local: float) -> Aspect:
    """A rotary scheme of its own for layers with a window (Gemma 3)."""

    def read(config: ModelConfig, fields: Fields) -> ModelConfig:
        bases = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}
        position, near = read_rotaries(fields, bases, scaled=(FULL,))
        blocks = [
            put(block, {"mixer.position": near if block.attention.pattern else None})
            for block in stack_of(config).blocks
        ]
        return put(config, {"decoder.position": position, "decoder.blocks": tuple(blocks)})

    def write(config: ModelConfig) -> dict[str, object]:
        stack = stack_of(config)
        _, sliding = full_and_sliding(config.layers(stack))
        return {"rope_parameters": write_rotaries(stack, sliding)}

    fields = {"rope_parameters": None, "rope_scaling": None, "partial_rotary_factor": None}
    return Aspect({**fields, "rope_theta": base, "rope_local_base_freq": local}, read, write)


def unturned_layers(interval: int, positions: Aspect) -> Aspect:
    """Layers without positions, which alone may have windows, in turn with others that have `positions` (SmolLM3)."""

    def read(config: ModelConfig, fields: Fields) -> ModelConfig:
        config = positions.read(config, fields)
        stack, step, turned = stack_of(config), fields.count("no_rope_layer_interval"), fields.get("no_rope_layers")
        turned = [(i + 1) % step != 0 for i in range(stack.num_layers)] if turned is None else turned
        if not isinstance(turned, list) or len(turned) < stack.num_layers or not all(t in (0, 1) for t in turned):
            raise ValueError(
                f"{fields.where}: no_rope_layers={turned!r} isn't 0 or 1 for each of {stack.num_layers} layers"
            )
        pattern = read_window(fields, "sliding_window")
        slides = fields.flag("use_sliding_window") and pattern is not None
        implied = [SLIDING if slides and not turned[i] else FULL for i in range(stack.num_layers)]
        blocks = read_blocks(fields, implied, "", stack.blocks[0], pattern)
        blocks = [
            put(blocks[i % len(blocks)], {"mixer.position": stack.position if turned[i] else None})
            for i in range(stack.num_layers)
        ]
        return put(config, {"decoder.position": None, "decoder.blocks": shortest_period(tuple(blocks))})

    def write(config: ModelConfig) -> dict[str, object]:
        stack = stack_of(config)
        positions = [block.attention.position or stack.position for block in config.layers(stack)]
        scheme = next((position for position in positions if position is not None), Rotary())
        return {
            **write_types(config),
            "use_sliding_window": True,
            "no_rope_layers": [int(position is not None) for position in positions],
            "rope_parameters": write_rotary(scheme),
        }

    fields = {"use_sliding_window": False, "sliding_window": None, "layer_types": None, "no_rope_layers": None}
    return Aspect({**positions.fields, **fields, "no_rope_layer_interval": interval}, read, write)

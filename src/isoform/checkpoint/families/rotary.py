"""Rotary positions in the config.json of every family that has them."""

from __future__ import annotations

from typing import assert_never

from isoform.checkpoint.families.family import NotRepresentable
from isoform.checkpoint.families.fields import Fields
from isoform.model.parts import (
    Extension,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    Position,
    Rotary,
    YaRNExtension,
)


def read_rotary(fields: Fields, kind: str = "", *, base: float = 10000.0) -> Rotary:
    """The rotary scheme of a config: of all layers, or of one layer type, `kind`; in both spellings of the field."""
    table = fields.table("rope_parameters") if fields.get("rope_parameters") else fields.table("rope_scaling")
    fields.get("rope_scaling")
    if kind and kind in table.values:
        table = table.table(kind)
    base = table.number("rope_theta", fields.number("rope_theta", base))
    fraction = table.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    original = table.count("original_max_position_embeddings", fields.count("max_position_embeddings", 2048))
    name, factor = table.get("rope_type", table.get("type", "default")), table.number("factor", 1.0)
    extension: Extension | None
    match name:
        case "default":
            extension = None
        case "linear":
            extension = LinearExtension(factor=factor)
        case "yarn":
            table.require(mscale=None, truncate=True)
            attention_factor = table.get("attention_factor")
            extension = YaRNExtension(
                factor=factor,
                original_length=original,
                beta_fast=table.number("beta_fast", 32.0),
                beta_slow=table.number("beta_slow", 1.0),
                attention_factor=None if attention_factor is None else table.number("attention_factor", 1.0),
            )
        case "llama3":
            extension = Llama3Extension(
                factor=factor,
                low_frequency_factor=table.number("low_freq_factor", 1.0),
                high_frequency_factor=table.number("high_freq_factor", 4.0),
                original_length=original,
            )
        case _:
            raise ValueError(f"{table.where}: rope_type={name!r} is not supported (default, linear, yarn, llama3 are)")
    return Rotary(base=base, fraction=fraction, extension=extension)


def write_rotary(position: Position | None) -> dict:
    """The fields of a rotary scheme. Raises NotRepresentable for another scheme."""
    if not isinstance(position, Rotary) or position.axes != 1:
        raise NotRepresentable(f"position {type(position).__name__}")
    partial = {} if position.fraction == 1.0 else {"partial_rotary_factor": position.fraction}
    base = {"rope_theta": position.base, **partial}
    match position.extension:
        case None:
            return {**base, "rope_type": "default"}
        case LinearExtension(factor=factor):
            return {**base, "rope_type": "linear", "factor": factor}
        case Llama3Extension() as e:
            return {
                **base,
                "rope_type": "llama3",
                "factor": e.factor,
                "low_freq_factor": e.low_frequency_factor,
                "high_freq_factor": e.high_frequency_factor,
                "original_max_position_embeddings": e.original_length,
            }
        case YaRNExtension() as e:
            factor = {} if e.attention_factor is None else {"attention_factor": e.attention_factor}
            return {
                **base,
                "rope_type": "yarn",
                "factor": e.factor,
                "beta_fast": e.beta_fast,
                "beta_slow": e.beta_slow,
                "original_max_position_embeddings": e.original_length,
                **factor,
            }
        case NTKExtension():
            raise NotRepresentable("position.extension ntk_extension")
        case _:
            assert_never(position.extension)

"""Rotary positions in the config.json of every family that has them, in both spellings: `rope_parameters` (from
transformers 5 on), or `rope_theta` and `rope_scaling` beside each other.

Of what a config may say about them, only what the classes read is read: most turn all features, whatever
`partial_rotary_factor` is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import assert_never

from isoform.checkpoint.families.family import NotRepresentable
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.table import Aspect, put
from isoform.model.config import ModelConfig
from isoform.model.parts import (
    Extension,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    Position,
    Rotary,
    YaRNExtension,
)

_ORIGINAL = "original_max_position_embeddings"
FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", _ORIGINAL)
"""The fields of a family whose layers have the same scheme."""
_KEYS: dict[object, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL},
    "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate", _ORIGINAL},
}
"""What each type of scheme reads beside its base."""


def rotary(
    base: float = 10000.0,
    share: float | None = None,
    *,
    base_field: str = "rope_theta",
    share_field: str = "partial_rotary_factor",
    types: tuple[object, ...] = (*_KEYS,),
) -> Aspect:
    """The scheme of all layers of a family, with its defaults; share: of a family that may turn a part of the features;
    types: the types of schemes that it computes."""
    named = {"rope_theta": base_field, "partial_rotary_factor": share_field}
    defaults = {"rope_theta": base, "partial_rotary_factor": share}
    fields = {named.get(name, name): defaults.get(name) for name in FIELDS}

    def read(config: ModelConfig, fields: Fields) -> ModelConfig:
        (stack,) = config.stacks
        width = None if share is None else config.head_dim(stack.blocks[0].attention)
        position = read_rotary(fields, named, width, types)
        return put(config, {"encoder.position" if stack is config.encoder else "decoder.position": position})

    def write(config: ModelConfig) -> dict[str, object]:
        (stack,) = config.stacks
        return {"rope_parameters": write_rotary(stack.position, is_partial=share is not None)}

    return Aspect(fields, read, write)


def read_rotary(fields: Fields, named: Mapping[str, str], width: int | None, types: tuple[object, ...]) -> Rotary:
    """The scheme of all layers. named: the fields that complete its table; width: that of a head whose features may
    turn in part."""
    table, given = fields.table("rope_scaling"), fields.table("rope_parameters")
    if table.values and given.values and table.values != given.values:
        fields.contradicts("rope_parameters", "rope_scaling", table.values, taken="rope_scaling")
    values = dict(table.values or given.values)
    for name, outside in named.items():
        if name in values and fields.values.get(outside) not in (None, values[name]):
            fields.contradicts(outside, f"rope_parameters: {name}", values[name], taken="the latter")
        values.setdefault(name, fields.get(outside))
    original, inside = fields.optional(_ORIGINAL), values.get(_ORIGINAL)
    if original is not None:
        if inside not in (None, original):
            fields.contradicts(_ORIGINAL, f"rope_parameters: {_ORIGINAL}", inside, taken="the former")
        values[_ORIGINAL] = original
    table = Fields(values, f"{fields.where}: rope_parameters")
    return _read(table, fields.count("max_position_embeddings"), width, types)


def read_rotaries(fields: Fields, bases: Mapping[str, str], scaled: tuple[str, ...]) -> list[Rotary]:
    """The scheme of each layer type, whose base stands in the field `bases[type]` if its table has none; `scaled`: the
    types that `rope_scaling` changes."""
    tables, scaling = fields.table("rope_parameters"), fields.table("rope_scaling").values
    unread = sorted(tables.values.keys() - bases.keys())
    if unread:
        warnings.warn(
            f"{tables.where}: {', '.join(unread)} without a layer type (known: {', '.join(bases)}): ignored, as by "
            f"transformers",
            stacklevel=2,
        )
    schemes = []
    for kind, base in bases.items():
        given = {} if tables.values.get(kind) is None else tables.table(kind).values
        values = {**(given or {"rope_type": "default"}), **(scaling if kind in scaled else {})}
        if given and values != {**values, **given}:
            fields.contradicts("rope_parameters", "rope_scaling", scaling, taken="rope_scaling")
        if "rope_theta" in values and fields.values.get(base) not in (None, values["rope_theta"]):
            fields.contradicts(base, f"rope_parameters: {kind}: rope_theta", values["rope_theta"], taken="the latter")
        values.setdefault("rope_theta", fields.get(base))
        values.setdefault("partial_rotary_factor", fields.get("partial_rotary_factor"))
        table = Fields(values, f"{fields.where}: rope_parameters: {kind}")
        schemes.append(_read(table, fields.count("max_position_embeddings")))
    return schemes


def _read(table: Fields, length: int, width: int | None = None, types: tuple[object, ...] = (*_KEYS,)) -> Rotary:
    """The scheme of a table that is complete but for the original length, `length`."""
    kind = table.get("rope_type", table.get("type", "default"))
    if table.get("type", kind) != kind:
        table.contradicts("rope_type", "type", table.get("type"), taken="rope_type")
    if kind not in types:
        raise ValueError(f"{table.where}: rope_type={kind!r} is not supported ({', '.join(map(str, types))} are)")
    fraction = 1.0 if width is not None else _check_fraction(table, kind)
    if width is not None and table.get("partial_rotary_factor") is not None:
        fraction = int(width * table.number("partial_rotary_factor")) / width
    names = {"rope_type", "type", "rope_theta", "partial_rotary_factor", _ORIGINAL} | _KEYS[kind]
    unread = sorted(name for name in table.values.keys() - names if table.values[name])
    if unread:
        warnings.warn(
            f"{table.where}: the fields {', '.join(unread)} are not read by rope_type={kind!r}; they are ignored",
            stacklevel=2,
        )
    extension = _read_extension(table, kind, length)
    return Rotary(base=table.number("rope_theta"), fraction=fraction, extension=extension)


def _check_fraction(table: Fields, kind: object) -> float:
    """Warns that a class turns all features; refuses what it can't compute."""
    fraction = table.get("partial_rotary_factor", 1.0)
    if fraction in (None, 1.0):
        return 1.0
    if kind != "default":
        raise ValueError(
            f"{table.where}: partial_rotary_factor={fraction!r} with rope_type={kind!r} is not supported, nor can "
            f"transformers' class compute it; only 1.0 is"
        )
    warnings.warn(
        f"{table.where}: partial_rotary_factor={fraction!r} is ignored, as by transformers: all features are turned",
        stacklevel=2,
    )
    return 1.0


def _read_extension(table: Fields, kind: object, length: int) -> Extension | None:
    original = length if table.get(_ORIGINAL) is None else table.count(_ORIGINAL)
    match kind:
        case "linear":
            return LinearExtension(factor=table.number("factor"))
        case "llama3":
            return Llama3Extension(
                factor=table.number("factor"),
                low_frequency_factor=table.number("low_freq_factor"),
                high_frequency_factor=table.number("high_freq_factor"),
                original_length=original,
            )
        case "yarn":
            if table.get("truncate", True) is not True:
                raise ValueError(f"{table.where}: truncate={table.get('truncate')!r} is not supported, only true")
            factor = table.number("factor")
            return YaRNExtension(
                factor=factor,
                original_length=original,
                beta_fast=table.number("beta_fast") if table.get("beta_fast") else 32.0,
                beta_slow=table.number("beta_slow") if table.get("beta_slow") else 1.0,
                attention_factor=_attention_factor(table, factor),
            )
        case _:
            return None


def _attention_factor(table: Fields, factor: float) -> float | None:
    """What YaRN multiplies queries and keys by; None: by its own formula."""
    if table.get("attention_factor") is not None:
        return table.number("attention_factor")
    if not (table.get("mscale") and table.get("mscale_all_dim")) or factor <= 1:
        return None if factor >= 1 else 1.0
    above, below = (0.1 * table.number(name) * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim"))
    return above / below


def write_rotary(position: Position | None, *, is_partial: bool = False) -> dict:
    """The table of a rotary scheme; is_partial: with the share of the features that turn. Raises NotRepresentable for
    another scheme."""
    if not isinstance(position, Rotary):
        raise NotRepresentable(f"position {type(position).__name__}")
    if position.axes != 1:
        raise NotRepresentable(f"position.axes={position.axes}")
    base = {"rope_theta": position.base} | ({"partial_rotary_factor": position.fraction} if is_partial else {})
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

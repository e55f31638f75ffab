"""Families as tables: a row says which field of a config.json is which field of ours, and is read both ways.

What takes several fields together is an Aspect; what differs between the classes of a model_type is a HeadClass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from isoform.checkpoint.families.canonical import canonical
from isoform.checkpoint.families.family import Family, HeadClass, NotRepresentable, decoder_of, encoder_of, reads_tied
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from isoform.config import kind_of
from isoform.mask import Window
from isoform.model.config import Head, MaskedVocabulary, ModelConfig, Pooled, StackConfig, Vocabulary

LABELS: dict[str, object] = {"id2label": None, "num_labels": None}
"""The fields that say how many classes a classifier has."""


def _same(value: Any, default: object) -> Any:
    return value


@dataclass(frozen=True)
class Column:
    """A field of a config.json: its value where it is absent; the fields of ours that have its value (`stack`: of the
    only stack, `block`: of each of its blocks, `head`: of a head over the vocabulary, `pooled`: of another); and how
    either is read of the other."""

    default: object
    paths: tuple[str, ...]
    read: Callable[[Fields, str], Any]
    write: Callable[[Any, Any], object] = _same
    """Of our value and the default."""


def count(default: int | None, *paths: str) -> Column:
    """A whole number >= 1."""
    return Column(default, paths, Fields.count)


def layers(default: int, *paths: str) -> Column:
    """A number of layers."""
    return Column(default, paths, lambda fields, name: fields.count(name, maximum=10_000))


def optional(default: int | None, *paths: str) -> Column:
    """A whole number >= 1, or None."""
    return Column(default, paths, Fields.optional)


def number(default: float, *paths: str) -> Column:
    """A real number."""
    return Column(default, paths, Fields.number)


def optional_number(default: float | None, *paths: str) -> Column:
    """A real number, or None."""
    return Column(default, paths, lambda fields, name: None if fields.get(name) is None else fields.number(name))


def factor(default: float, *paths: str) -> Column:
    """A factor, which ours leaves out where it is 1."""
    return Column(
        default,
        paths,
        lambda fields, name: None if fields.number(name) == 1 else fields.number(name),
        lambda value, _: 1.0 if value is None else value,
    )


def flag(default: bool, *paths: str) -> Column:
    """True or false."""
    return Column(default, paths, Fields.flag)


def activation(default: str, *paths: str) -> Column:
    """The name of an activation, written as the default is where that is the same."""
    return Column(
        default,
        paths,
        Fields.activation,
        lambda value, default: default if value == ACTIVATIONS[default] else ACTIVATION_NAMES[value],
    )


def choice(default: bool, yes: object, no: object, *paths: str) -> Column:
    """True or false, for one of two values of ours."""
    return Column(default, paths, lambda fields, name: yes if fields.flag(name) else no, lambda value, _: value == yes)


def window(default: int | None, *paths: str) -> Column:
    """The width of a window to the left, the token itself included, which ours doesn't count."""

    return Column(default, paths, read_window, lambda pattern, _: write_window(pattern))


def read_window(fields: Fields, name: str) -> Window | None:
    """A window to the left by its width."""
    width = fields.optional(name)
    return None if width is None else Window(width - 1)


def write_window(pattern: object) -> int | None:
    """The width of a window. Raises NotRepresentable for another pattern."""
    if pattern is not None and not isinstance(pattern, Window):
        raise NotRepresentable(f"mixer.pattern {kind_of(type(pattern))}")
    return None if pattern is None else pattern.before + 1


def only(value: object) -> Column:
    """A field that must have this value, or be absent."""
    return Column(value, (), lambda fields, name: fields.require(**{name: value}))


def with_defaults(columns: Mapping[str, Column], **defaults: object) -> dict[str, Column]:
    """The columns with other values where these fields are absent."""
    return {name: replace(column, default=defaults.get(name, column.default)) for name, column in columns.items()}


def _unchanged(config: ModelConfig, fields: Fields) -> ModelConfig:
    return config


def _nothing(config: ModelConfig) -> dict[str, object]:
    return {}


@dataclass(frozen=True)
class Aspect:
    """Fields of a config.json, with their defaults, that say something of ours together."""

    fields: Mapping[str, object] = field(default_factory=dict)
    read: Callable[[ModelConfig, Fields], ModelConfig] = _unchanged
    write: Callable[[ModelConfig], dict[str, object]] = _nothing


def put(value: Any, changes: Mapping[str, object]) -> Any:
    """A copy of a tree of dataclasses with these values under dotted paths; in a tuple, of all its elements."""
    if isinstance(value, tuple):
        return tuple(put(item, changes) for item in value)
    own: dict[str, object] = {}
    below: dict[str, dict[str, object]] = {}
    for path, new in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = new
        else:
            own[name] = new
    return replace(value, **own, **{name: put(getattr(value, name), inner) for name, inner in below.items()})


def take(value: Any, path: str, above: str = "model") -> Any:
    """The value under a dotted path; of a tuple, of its first element that has one. Raises NotRepresentable where a
    part, that of the field `above`, is of another kind, which has no such field."""
    if isinstance(value, tuple):
        for item in value[:-1]:
            with suppress(NotRepresentable):
                return take(item, path, above)
        return take(value[-1], path, above)
    name, _, rest = path.partition(".")
    if not is_dataclass(value) or name not in value.__dataclass_fields__:
        raise NotRepresentable(f"{above} {type(value).__name__}")
    return take(getattr(value, name), rest, name) if rest else getattr(value, name)


def read_labels(fields: Fields) -> int:
    """The number of classes."""
    names = fields.table("id2label").values
    if not names or fields.get("num_labels") is not None:
        number = 2 if fields.get("num_labels") is None else fields.count("num_labels")
        if names and len(names) != number:
            fields.contradicts("num_labels", "the number of names in id2label", len(names), taken="num_labels")
        return number
    return len(names)


def write_labels(number: int) -> dict[str, object]:
    """Names for the classes, by their numbers."""
    names = [f"LABEL_{i}" for i in range(number)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def table(
    model_type: str,
    template: ModelConfig,
    columns: Mapping[str, Column],
    heads: tuple[HeadClass, ...],
    *,
    tie: bool | None = None,
    aspects: tuple[Aspect, ...] = (),
    written: Mapping[str, object] | None = None,
    **options: Any,
) -> Family:
    """The family of a table: what the rows leave open is as in `template`.

    heads: its classes, each before those whose tensors it has, too. tie: the default of `tie_word_embeddings`, None
    where there is no such field; written: fields of every file that say nothing about a model; options: further fields
    of Family.
    """
    fields = {name: row.default for name, row in columns.items()}
    fields |= {name: default for aspect in aspects for name, default in aspect.fields.items()} | LABELS
    fields |= {} if tie is None else {"tie_word_embeddings": tie}

    def read(given: Fields, names: set[str]) -> ModelConfig:
        config = replace(template, head=read_head(given, names, family))
        values = [(path, row.read(given, name)) for name, row in columns.items() for path in row.paths or ("",)]
        config = put(config, {whole: value for path, value in values if (whole := _whole(config, path))})
        for aspect in aspects:
            config = aspect.read(config, given)
        return config

    def write(config: ModelConfig) -> dict[str, object]:
        (encoder_of if template.decoder is None else decoder_of)(config)
        filled, result = canonical(config), dict(written or {})
        for name, row in columns.items():
            path = _whole(config, row.paths[0]) if row.paths else ""
            if path:
                value = take(config, path)
                result[name] = row.write(take(filled, path) if value is None else value, row.default)
        for aspect in aspects:
            result |= aspect.write(config)
        return result | write_head(config.head, family)

    family = Family(
        model_type=model_type, architecture=heads[-1].architecture, fields=fields, read=read, write=write, heads=heads,
        **options,
    )  # fmt: skip
    return family


def _whole(config: ModelConfig, path: str) -> str:
    """A path spelled out for a model; empty if its head is of another kind."""
    first, _, rest = path.partition(".")
    stack = "encoder" if config.decoder is None else "decoder"
    names = {"stack": stack, "block": f"{stack}.blocks"}
    if first in ("head", "pooled"):
        head = config.head
        fits = isinstance(head, Pooled) == (first == "pooled") and rest.split(".")[0] in head.__dataclass_fields__
        return f"head.{rest}" if fits else ""
    return f"{names.get(first, first)}.{rest}" if rest else path


def read_head(fields: Fields, names: set[str], family: Family) -> Head:
    """The head of the class whose tensors are there."""
    each = family.class_there(fields.values, names)
    assert each is not None
    if isinstance(each.head, Pooled):
        return each.head if each.head.embed else replace(each.head, num_outputs=read_labels(fields))
    if "tie_word_embeddings" not in family.fields:
        return each.head
    return replace(each.head, tied=reads_tied(fields, names, each.names["head.weight"]))


def write_head(head: Head, family: Family) -> dict[str, object]:
    """The fields of a head, and its class."""
    result: dict[str, object] = {"architectures": [family.class_of(head).architecture]}
    if isinstance(head, Vocabulary | MaskedVocabulary):
        return result | ({"tie_word_embeddings": head.tied} if "tie_word_embeddings" in family.fields else {})
    return result if head.embed else result | write_labels(head.num_outputs)


def stack_of(config: ModelConfig) -> StackConfig:
    """The only stack of a model."""
    (stack,) = config.stacks
    return stack

"""The type of a family, and the error for models that it can't represent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.tensors import Transform
from isoform.config import kind_of
from isoform.model.config import Head, ModelConfig, StackConfig

T = TypeVar("T")


class NotRepresentable(ValueError):
    """A model config that a family can't represent; the text names the field."""


@dataclass(frozen=True, eq=False)
class HeadClass:
    """A class of a model_type: its head (`num_outputs` left open), the names of the head's tensors, and the tensors
    by which a folder shows that it is of this class."""

    architecture: str
    head: Head
    names: Mapping[str, str] = field(default_factory=dict)
    signs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One model_type: how its config is read and written, and its tensors' names mapped to ours.

    `fields`: those of config.json that its class computes with, with their values where they are absent; a field that
    isn't among them can be neither read nor written. `read(fields, names)`: from a config.json and the names of the
    tensors; `write(config)`: raises NotRepresentable for what it can't represent. `names`: ours to theirs, as
    checkpoint/tensors.py reads them; `transforms`: by our name, how a tensor of theirs differs.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, object]
    read: Callable[[Fields, set[str]], ModelConfig]
    write: Callable[[ModelConfig], dict]
    names: Mapping[str, str]
    heads: tuple[HeadClass, ...] = ()
    """Its classes, if they differ in their heads; `names` then lacks those of the heads."""
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields, which precede them."""
    newer_names: Mapping[str, str] = field(default_factory=dict)
    """What transformers calls tensors since version 5, where a folder keeps that: patterns of those to `names`."""
    ties: Mapping[str, str] = field(default_factory=dict)
    """Tensors of theirs that are another one where `tie_word_embeddings` says so, as it does for `always_tied`. A file
    may hold either name, or both; untied, all are there."""
    always_tied: bool = False
    redundant: tuple[str, ...] = ()
    """Patterns of tensors that hold no parameter."""
    unused: tuple[str, ...] = ()
    """Patterns of parameters that our model has no use for, which are left aside with a warning; but for those of the
    class whose tensors are there."""
    prefix: str = ""
    """The prefix of names in the class with a head, which the class without lacks."""

    @property
    def all_names(self) -> list[str]:
        """All names of theirs, of every class."""
        return [*self.names.values(), *(name for each in self.heads for name in each.names.values())]

    def names_of(self, config: ModelConfig) -> Mapping[str, str]:
        """The table of names for a model. Raises NotRepresentable for a head that no class has."""
        return {**self.names, **self.class_of(config.head).names} if self.heads else self.names

    def class_of(self, head: Head) -> HeadClass:
        """The class whose head is nearest to one, of the same kind. Raises NotRepresentable if there is none."""
        alike = [each for each in self.heads if type(each.head) is type(head)]
        if not alike:
            raise NotRepresentable(f"head {kind_of(type(head))}")
        return max(
            alike, key=lambda each: sum(getattr(each.head, f.name) == getattr(head, f.name) for f in fields(head))
        )

    def class_there(self, config: Mapping[str, object], names: set[str]) -> HeadClass | None:
        """The class whose tensors are there; if several have them, the one that a config.json names."""
        fitting = [each for each in self.heads if names.issuperset(each.signs)]
        named = (each for each in fitting if config.get("architectures") == [each.architecture])
        return next(named, fitting[0] if fitting else None)

    def fields_of(self, config: Mapping[str, object], where: str) -> Fields:
        """The fields of a config.json, under the names that the family reads."""
        values, given = dict(config), Fields(config, where)
        for alias, name in self.aliases.items():
            if alias in config:
                if config.get(name, config[alias]) != config[alias]:
                    given.contradicts(name, alias, config[alias], taken=alias)
                values[name] = values.pop(alias)
        return Fields(values, where, self.fields)

    def read_name(self, source: str) -> str:
        """Which of the tensors tied to `source` ours is read from: the first copy if the class computes with copies."""
        used = {*self.all_names}
        copies = [copy for copy, other in self.ties.items() if other == source and copy in used]
        return copies[0] if source not in used and copies else source


def reads_tied(fields: Fields, names: set[str], head: str) -> bool:
    """Whether the head uses the stem's table: the config says so, and the file has no other head."""
    return fields.flag("tie_word_embeddings") and head not in names


def require(value: object, kind: type[T], where: str) -> T:
    """The value, if it is of this kind. Raises NotRepresentable otherwise."""
    if not isinstance(value, kind):
        raise NotRepresentable(f"{where} {type(value).__name__}")
    return value


def decoder_of(config: ModelConfig) -> StackConfig:
    """The stack of a decoder-only model. Raises NotRepresentable for another."""
    if config.decoder is None or config.encoder is not None:
        raise NotRepresentable("encoder")
    return config.decoder


def encoder_of(config: ModelConfig) -> StackConfig:
    """The stack of an encoder-only model. Raises NotRepresentable for another."""
    if config.encoder is None or config.decoder is not None:
        raise NotRepresentable("decoder")
    return config.encoder


def stacks_of(config: ModelConfig) -> tuple[StackConfig, StackConfig]:
    """Encoder and decoder of an encoder-decoder. Raises NotRepresentable for another."""
    if config.encoder is None or config.decoder is None:
        raise NotRepresentable("encoder" if config.encoder is None else "decoder")
    return config.encoder, config.decoder

"""The type of a family, and the error for models that it can't represent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.tensors import Transform
from isoform.model.config import ModelConfig, StackConfig

T = TypeVar("T")


class NotRepresentable(ValueError):
    """A model config that a family can't represent; the text names the field."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One model_type: how its config is read and written, and its tensors' names mapped to ours.

    `read(fields, names)`: from a config.json and the names of the tensors; `write(config)`: raises NotRepresentable for
    what it can't represent. `names`: ours to theirs, as checkpoint/tensors.py reads them; `transforms`: by our name,
    how a tensor of theirs differs. `ignored`: patterns of tensors that may be present and are redundant.
    """

    model_type: str
    architecture: str
    read: Callable[[Fields, set[str]], ModelConfig]
    write: Callable[[ModelConfig], dict]
    names: Mapping[str, str]
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    """The prefix of names in the class with a head, which the class without lacks."""


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

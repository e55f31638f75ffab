"""Recording tensors by name while a model runs: nothing is computed, kept or changed that isn't asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Recorder:
    """Takes in the tensors whose names are wanted; passed down through a model, each part of which adds its own name.

    Names are those of modules with what they have to show: decoder.blocks.2.mixer.weights.
    """

    wants: Callable[[str], bool]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    prefix: str = ""

    def within(self, name: str) -> Recorder:
        """The recorder of a part."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def take(self, name: str, make: Callable[[], Tensor]) -> None:
        """Take in what `make` gives, if its name is wanted."""
        if self.wants(full := self.prefix + name):
            self.tensors[full] = make()

    def beside(self, other: Recorder | None) -> Recorder:
        """One that takes in what either wants."""
        if other is None:
            return self
        return replace(self, wants=lambda name: self.wants(name) or other.wants(name))

    def give(self, other: Recorder | None) -> None:
        """Let another one have of these tensors what it wants."""
        if other is not None:
            other.tensors.update({name: tensor for name, tensor in self.tensors.items() if other.wants(name)})

    def ending(self, *parts: str) -> list[Tensor]:
        """The tensors in whose names these parts stand, in the order in which they came."""
        return [tensor for name, tensor in self.tensors.items() if all(f".{part}." in f".{name}." for part in parts)]


def recorder_of(patterns: Iterable[str]) -> Recorder:
    """A recorder of names, in which `*` stands for anything."""
    patterns = tuple(patterns)
    return Recorder(lambda name: any(fnmatchcase(name, pattern) for pattern in patterns))

"""Recording tensors by name while a model runs: nothing is computed, stored or changed that wasn't requested."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import Tensor


class Recorder:
    """Stores the tensors whose names match; passed down through a model, each part of which adds its name.

    A name is a module's path and what it computes: decoder.blocks.2.mixer.weights.
    """

    def __init__(
        self, wants: Callable[[str], bool], tensors: dict[str, Tensor] | None = None, prefix: str = ""
    ) -> None:
        self.wants, self.prefix = wants, prefix
        self.tensors = {} if tensors is None else tensors

    def within(self, name: str) -> Recorder:
        """The recorder of a part."""
        return Recorder(self.wants, self.tensors, f"{self.prefix}{name}.")

    def wants_any(self, names: Iterable[str]) -> bool:
        """Whether one of these names matches."""
        return any(self.wants(self.prefix + name) for name in names)

    def take(self, name: str, make: Callable[[], Tensor]) -> None:
        """Store what `make` returns, if its name matches."""
        if self.wants(full := self.prefix + name):
            self.tensors[full] = make()

    def beside(self, other: Recorder | None) -> Recorder:
        """One that stores what either wants."""
        if other is None:
            return self
        return Recorder(lambda name: self.wants(name) or other.wants(name), self.tensors, self.prefix)

    def give(self, other: Recorder | None) -> None:
        """Hand the tensors that another one wants to it."""
        if other is not None:
            other.tensors.update({name: tensor for name, tensor in self.tensors.items() if other.wants(name)})

    def with_parts(self, *parts: str) -> list[Tensor]:
        """The tensors whose names contain all these parts, in the order of recording."""
        return [tensor for name, tensor in self.tensors.items() if all(f".{part}." in f".{name}." for part in parts)]


def recorder_of(patterns: Iterable[str]) -> Recorder:
    """A recorder of names, in which `*` stands for anything."""
    patterns = tuple(patterns)
    return Recorder(lambda name: any(fnmatchcase(name, pattern) for pattern in patterns))

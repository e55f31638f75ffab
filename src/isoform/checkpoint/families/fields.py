"""The reader of a config.json's fields, and the names of activations in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from isoform.model.parts import Activation

LARGEST = 2**31
"""The upper limit of sizes in a config.json."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "linear": "linear",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
ACTIVATION_NAMES: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "linear": "linear",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "tanh": "tanh",
}


class Fields:
    """Typed access to a config.json. Raises ValueError naming the field for wrong types and absurd sizes.

    `defaults`: the fields that the family's class reads, with their values where they are absent; no other field can be
    read. Tables inside a config have none: what they lack is absent.
    """

    def __init__(self, values: Mapping[str, object], where: str, defaults: Mapping[str, object] | None = None) -> None:
        self.values, self.where, self.defaults = values, where, defaults

    def get(self, name: str, default: Any = None) -> object:
        """A value of any type; default: of a field of a table."""
        if self.defaults is not None:
            assert name in self.defaults, f"{name} is no field of this family"
            default = self.defaults[name]
        return self.values.get(name, default)

    def count(self, name: str, default: int | None = None, *, maximum: int = LARGEST) -> int:
        """An integer >= 1."""
        value = self.get(name, default)
        if value is None and name not in self.values:
            raise ValueError(f"{self.where} lacks {name!r}; it is not a complete config of this family")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise ValueError(f"{self.where}: {name}={value!r} is no integer from 1 to {maximum}")
        return value

    def optional(self, name: str) -> int | None:
        """An integer >= 1, or None."""
        return None if self.get(name) is None else self.count(name)

    def contradicts(self, name: str, other: str, value: object, *, taken: str) -> None:
        """Warns that two fields contradict each other, of which transformers takes one."""
        warnings.warn(
            f"{self.where}: {name}={self.values.get(name)!r} and {other}={value!r} contradict each other; {taken} is "
            f"taken, as transformers does",
            stacklevel=2,
        )

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{self.where}: {name}={value!r} is no finite number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: {name}={value!r} is neither true nor false")
        return value

    def table(self, name: str) -> Fields:
        """A table; empty if absent."""
        value = self.get(name)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {name}={value!r} is no table")
        return Fields(value, f"{self.where}: {name}")

    def require(self, **values: object) -> None:
        """Raises ValueError if a field has a value other than the supported one, or None."""
        for name, allowed in values.items():
            value = self.get(name)
            if value is not None and value != allowed:
                raise ValueError(f"{self.where}: {name}={value!r} is not supported, only {allowed!r}")

    def activation(self, name: str) -> Activation:
        """Our name of an activation."""
        value = self.get(name)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ValueError(f"{self.where}: {name}={value!r} is not supported (known: {', '.join(ACTIVATIONS)})")
        return ACTIVATIONS[value]

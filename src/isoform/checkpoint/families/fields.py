"""The reader of a config.json's fields, and the names of activations in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from isoform.model.parts import Activation

LARGEST = 2**31
"""The upper limit of sizes in a config.json."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "linear": "linear",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
}
ACTIVATION_NAMES: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "linear": "linear",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "silu": "silu",
}


class Fields:
    """Typed access to a config.json. Raises ValueError naming the field for wrong types and absurd sizes.

    `read`: the names that were looked up.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values, self.where = values, where
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> object:
        """A value of any type."""
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None, *, maximum: int = LARGEST) -> int:
        """An integer >= 1; it must be present unless there is a default."""
        value = self.get(name, default)
        if value is None:
            raise ValueError(f"{self.where} lacks {name!r}; it is not a complete config of this family")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise ValueError(f"{self.where}: {name}={value!r} is no integer from 1 to {maximum}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{self.where}: {name}={value!r} is no finite number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: {name}={value!r} is neither true nor false")
        return value

    def table(self, name: str) -> Fields:
        """A table; empty if absent."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {name}={value!r} is no table")
        return Fields(value, f"{self.where}: {name}")

    def require(self, **values: object) -> None:
        """Raises ValueError if a field is present with a value other than the supported one."""
        for name, allowed in values.items():
            value = self.get(name, allowed)
            if value != allowed:
                raise ValueError(f"{self.where}: {name}={value!r} is not supported, only {allowed!r}")

    def activation(self, name: str, default: str) -> Activation:
        """Our name of an activation."""
        value = self.get(name, default)
        if value not in ACTIVATIONS:
            raise ValueError(f"{self.where}: {name}={value!r} is not supported (known: {', '.join(ACTIVATIONS)})")
        return ACTIVATIONS[str(value)]

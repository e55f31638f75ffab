"""Ranges of numbers, declared beside a field and checked wherever its value comes from: a file, a flag or Python.

    @config
    class AdamW:
        beta1: Rate = 0.9

Building an AdamW with beta1=1 raises OutOfRange, and the readers of files and flags put the path before the field.
Numbers are finite, and no larger than what float32 holds, or of integers, than what a float holds exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = math.ldexp(2 - 2**-23, 127)
SMALLEST = math.ldexp(1, -126)
"""Above 0."""
LARGEST_INTEGER = 2**53


@dataclass(frozen=True, kw_only=True)
class Range:
    """The finite numbers between two bounds, each of which belongs to the range (`at_least`, `at_most`) or doesn't."""

    above: float = -math.inf
    at_least: float = -LARGEST
    below: float = math.inf
    at_most: float = LARGEST

    def contains(self, number: Any) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        return self.above < number < self.below and self.at_least <= number <= self.at_most

    def describe(self, number: Any) -> str:
        """The range in words; bounds that only keep numbers within what computers hold, if a number exceeds them."""
        is_tiny = self.above < number < self.at_least
        low = f"above {self.above:g}" if self.above > -math.inf and not is_tiny else f"at least {self.at_least:g}"
        high = f"below {self.below:g}" if self.below < math.inf else f"at most {_written(self.at_most)}"
        has_low = self.above > -math.inf or self.at_least > -LARGEST or number < self.at_least
        has_high = self.below < math.inf or self.at_most <= 1 or number > self.at_most
        return " and ".join([low] * has_low + [high] * has_high) or "a finite number"


def _written(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


Number = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0, at_least=SMALLEST)]
Factor = Annotated[float, Range(at_least=1e-3, at_most=1e3)]
"""Of logits, which it may not make infinite."""
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
PositiveShare = Annotated[float, Range(above=0, at_most=1)]
Rate = Annotated[float, Range(at_least=0, below=1)]
"""Of dropout, say, or of a decaying average: not everything."""
PositiveRate = Annotated[float, Range(above=0, below=1)]
Count = Annotated[int, Range(at_least=1, at_most=LARGEST_INTEGER)]
Index = Annotated[int, Range(at_least=0, at_most=LARGEST_INTEGER)]
"""An index, or a count that may be 0."""
Size = Annotated[int, Range(at_least=1, at_most=2**31 - 1)]
"""Of a dimension of a tensor."""
OptionalSize = Annotated[int, Range(at_least=0, at_most=2**31 - 1)]
"""A size for which 0 has a meaning of its own."""
Exponent = Annotated[float, Range(at_least=-5, at_most=5)]
"""Of a length."""
Rows = Annotated[int, Range(at_least=1, at_most=10_000)]
"""Of a batch, for each of its texts."""
OptionalRows = Annotated[int, Range(at_least=0, at_most=10_000)]
Threads = Annotated[int, Range(at_least=0, at_most=1024)]
"""Of a processor; 0 has a meaning of its own."""
Layers = Annotated[int, Range(at_least=1, at_most=10_000)]
OptionalLayers = Annotated[int, Range(at_least=0, at_most=10_000)]
NGram = Annotated[int, Range(at_least=2, at_most=64)]
Several = Annotated[int, Range(at_least=2, at_most=2**31 - 1)]
Ratio = Annotated[float, Range(at_least=1)]
Base = Annotated[float, Range(above=1)]
"""Of a power or a logarithm."""
Seed = Annotated[int, Range(at_least=0, at_most=2**63 - 1)]


class OutOfRange(ValueError):
    """A number outside the range of its field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}{problem}")
        self.field, self.problem = field, problem


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """A class as a frozen dataclass with keywords, the numbers of which are checked before its own __post_init__."""
    own: Callable[[Any], None] | None = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        check_numbers(self)
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__  # pyrefly: ignore
    return dataclass(frozen=True, kw_only=True)(cls)


def check_numbers(value: object) -> None:
    """Raises OutOfRange for the first number of a dataclass that is outside its declared range."""
    for name, (limits, is_whole) in ranges_of(type(value)).items():
        for number in _numbers(getattr(value, name)):
            if isinstance(number, bool) or not isinstance(number, Integral if is_whole else Real):
                raise OutOfRange(name, f"={number!r} must be {'an integer' if is_whole else 'a number'}")
            if not limits.contains(number):
                raise OutOfRange(name, f"={number} must be {limits.describe(number)}")


@functools.cache
def ranges_of(cls: type) -> dict[str, tuple[Range, bool]]:
    """The fields of a dataclass that have a range: the range, and whether they are integers."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: limits for name, hint in hints.items() if (limits := _range_of(hint)) is not None}


def _range_of(hint: Any) -> tuple[Range, bool] | None:
    if get_origin(hint) is Annotated:
        limits = next((mark for mark in hint.__metadata__ if isinstance(mark, Range)), None)
        return None if limits is None else (limits, hint.__origin__ is int)
    if get_origin(hint) in (Union, UnionType, tuple, dict):
        return next(filter(None, map(_range_of, get_args(hint))), None)
    return None


def _numbers(value: Any) -> Iterator[Any]:
    """The numbers of a field: itself, those of a tuple or the values of a dictionary; none for None."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    yield from value if isinstance(value, tuple) else () if value is None else (value,)

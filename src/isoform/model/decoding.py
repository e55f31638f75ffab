"""The number format in which a model decodes fastest on a CPU, by measuring what decoding does: products of one row
with all matrices of the blocks, one after the other.

A smaller format halves the bytes that are read, and adds conversions: which of the two counts depends on the processor
and on whether the matrices fit its caches. So it is measured for each size class of models, once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from isoform.machine import DTYPES, Machine, cache_folder, describe, remembered
from isoform.model.experts import ExpertStack
from isoform.model.kernels import Linear
from isoform.model.network import Network

MOST = 2**26
"""Numbers in the matrices that are measured; more don't fit any cache either."""
GAIN = 0.9
"""A smaller format must take less than this share of float32's time, or float32 is kept."""
SECONDS = 0.2
"""Of measuring."""


@dataclass(frozen=True)
class DecodingSpeed:
    """Rows a second through the blocks' matrices of a size class, in each format; and which is chosen."""

    numbers: int
    """In the matrices of the smallest models of the class; in those of all others are less than twice as many."""
    rates: dict[str, float]
    is_kept: bool
    """Whether the cache has it, so that the choice stays the same."""

    @property
    def dtype(self) -> torch.dtype:
        """float32, unless another format is clearly faster."""
        best = max(self.rates, key=lambda name: self.rates[name])
        return DTYPES[best] if self.rates["float32"] < GAIN * self.rates[best] else torch.float32


def decoding_speed(machine: Machine, shapes: Sequence[tuple[int, int]], *, refresh: bool = False) -> DecodingSpeed:
    """The speeds of decoding with matrices of these shapes (outputs, inputs) on a CPU, measured now (in half a second)
    or read from the cache: the first model of a size class decides for all of it."""
    numbers = sum(outputs * inputs for outputs, inputs in shapes)
    numbers = 2 ** (max(1, min(numbers, MOST)).bit_length() - 1)
    about = {name: value for name, value in describe(machine).items() if name != "dtype"}
    measured = remembered("decoding", {**about, "numbers": numbers}, lambda: _measure(shapes), refresh=refresh)
    return DecodingSpeed(numbers, measured.rates, measured.is_kept)


def decoding_dtype(model: Network) -> torch.dtype:
    """The format of products in which a model decodes fastest on this CPU; a warning if the choice can't be kept."""
    shapes = shapes_of(model)
    if not shapes:
        return torch.float32
    speed = decoding_speed(Machine(torch.device("cpu"), torch.float32), shapes)
    if not speed.is_kept:
        warnings.warn(
            f"the format in which this model decodes faster can't be kept in {cache_folder()}: it is measured at each "
            f"call, and texts may differ by rounding; set dtype, or ISOFORM_CACHE to a folder that can be written to",
            stacklevel=3,
        )
    return speed.dtype


def shapes_of(model: Network) -> list[tuple[int, int]]:
    """The shapes (outputs, inputs) of the blocks' matrices that one token goes through; of experts, of a single one."""
    shapes = []
    for module in model.modules():
        if isinstance(module, Linear):
            shapes.append((module.out_features, module.in_features))
        elif isinstance(module, ExpertStack):
            shapes += [tuple(matrices.shape[1:]) for matrices in (module.first, module.down)]
    return shapes


def _measure(shapes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Rows a second in each format: the fastest of several passes. The formats take turns, so that both meet whatever
    else the machine does; a pass that is not counted fills the caches first."""
    layers, best = _layers(shapes), dict.fromkeys(DTYPES, float("inf"))
    rows = {layer.in_features: torch.ones(1, 1, layer.in_features) for layer in layers}
    until = time.perf_counter() + SECONDS
    with torch.inference_mode():
        while min(best.values()) == float("inf") or time.perf_counter() < until:
            for name, dtype in DTYPES.items():
                for layer in layers:
                    layer.product_dtype = dtype
                for _ in range(2):
                    start = time.perf_counter()
                    for layer in layers:
                        layer(rows[layer.in_features])
                    seconds = time.perf_counter() - start
                best[name] = min(best[name], seconds)
    return {name: 1 / seconds for name, seconds in best.items()}


def _layers(shapes: Sequence[tuple[int, int]]) -> list[Linear]:
    """Matrices of these shapes, as many as MOST allows, filled, so that they take memory."""
    layers, left = list[Linear](), MOST
    for outputs, inputs in shapes:
        if layers and outputs * inputs > left:
            break
        left -= outputs * inputs
        with torch.device("meta"):
            layer = Linear(inputs, outputs, bias=False)
        layers.append(layer.to_empty(device="cpu"))
        nn.init.constant_(layers[-1].weight, 1e-3)
    return layers

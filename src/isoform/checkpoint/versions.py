"""Tensors of checkpoints that earlier versions wrote, under today's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

LAYOUT = 2
"""Counts up when parameters are named or laid out otherwise. 1: a block's mixer was `attention`, and an LSTM or a
convolution was a model of its own."""

RENAMED = (
    (r"(\.blocks\.\d+)\.attention(_norm)?\.", r"\1.mixer\2."),
    (r"^core(\.blocks\.\d+)\.branches\.0\.(lstm|output)\.", r"decoder\1.mixer.\2."),
    (r"^core(\.blocks\.\d+)\.branches\.1\.", r"decoder\1.feedforward."),
)


def name_today(name: str) -> str:
    """What a parameter that layout 1 called `name` is called."""
    for before, today in RENAMED:
        name = re.sub(before, today, name)
    return name


def upgraded(tensors: Mapping[str, Tensor], layout: int) -> dict[str, Tensor]:
    """A model's tensors of an earlier layout as those of today."""
    return dict(tensors) if layout == LAYOUT else {name_today(name): tensor for name, tensor in tensors.items()}

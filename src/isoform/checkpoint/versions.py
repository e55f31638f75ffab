"""Tensors of checkpoints that earlier versions wrote, under today's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from isoform.model.component import grouped, groups_of, row_dim

LAYOUT = 3
"""Incremented when names or layouts of parameters change. 1: a block's mixer was `attention`, and an LSTM or a
convolution was a separate model. 2: matrices with the same input were concatenated, not interleaved by group, and
token types were `kinds`."""

RENAMED = (
    (r"(\.blocks\.\d+)\.attention(_norm)?\.", r"\1.mixer\2."),
    (r"^core(\.blocks\.\d+)\.branches\.0\.(lstm|output)\.", r"decoder\1.mixer.\2."),
    (r"^core(\.blocks\.\d+)\.branches\.1\.", r"decoder\1.feedforward."),
    (r"^core(\.blocks\.\d+)\.branches\.0\.(up|down)\.", r"core\1.feedforward.\2."),
    (r"^(encoder_)?stem\.kinds\.", r"\1stem.token_types."),
)


def current_name(name: str) -> str:
    """Today's name of a parameter that an earlier layout called `name`."""
    for before, today in RENAMED:
        name = re.sub(before, today, name)
    return name


def upgrade_tensors(tensors: Mapping[str, Tensor], layout: int, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model in an earlier layout, converted to today's, which `model` has; also an optimizer's slots,
    whose names continue the parameter's."""
    if layout == LAYOUT:
        return dict(tensors)
    tensors, groups = {current_name(name): tensor for name, tensor in tensors.items()}, groups_of(model)
    for name, tensor in tensors.items():
        sizes = groups.get(name) or groups.get(name.rpartition(".")[0])
        if sizes is not None and tensor.dim() > 0 and tensor.shape[row_dim(tensor)] % sum(sizes) == 0:
            tensors[name] = grouped(tensor, sizes)  # those of another shape are refused where they are loaded
    return tensors

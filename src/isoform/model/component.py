"""What the outside must know of a module's parameters: the role of each, how several matrices lie in one, and which
methods beside `forward` use them.

Initialization and optimizers read roles; conversions between layouts read groups; whoever shards a model from outside
reads groups and methods, and finds nothing about devices here.
"""

from __future__ import annotations

import math
from enum import Enum, auto

import torch
from torch import Tensor, nn


class Role(Enum):
    """What a parameter is for."""

    EMBEDDING = auto()
    """Of a stem: what turns tokens into vectors."""
    CONTEXT_EMBEDDING = auto()
    """Of a stem: vectors of earlier tokens and n-grams, which are zero at first."""
    TABLE = auto()
    """Rows that are looked up elsewhere, such as those of positions."""
    MATRIX = auto()
    """A matrix inside a block."""
    OUTPUT = auto()
    """A matrix that leads back into the residual stream."""
    ADAPTER = auto()
    """A thin matrix beside one inside a block."""
    ROUTER = auto()
    """Scores that decide where a token goes."""
    HEAD = auto()
    """Of the head."""
    GAIN = auto()
    """A vector that is multiplied by, 1 at first."""
    SHIFT = auto()
    """A vector that is added, 0 at first."""
    MIX = auto()
    """Weights of a sum, which keep the values they are made with."""


class Component(nn.Module):
    """A module that declares what its parameters are. Undeclared vectors are gains, or shifts if called a
    bias; matrices must be declared."""

    roles: tuple[tuple[str, Role], ...] = ()
    """Of a parameter, or of all matrices of a submodule, by path from here ("" is everything); the innermost module
    decides, and in one module the last that fits."""

    groups: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Of parameters that are several matrices with the same input, by path: how many rows of each make a group. Groups
    lie one after the other, so that a shard of whole groups is a smaller module of the same kind."""

    methods: tuple[str, ...] = ()
    """Methods that use its parameters as `forward` does."""


def roles_of(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter, by name. Raises ValueError for a matrix whose role no module declares."""
    parameters, roles = dict(model.named_parameters()), {}
    for name, parameter in parameters.items():
        if parameter.dim() == 1:
            roles[name] = Role.SHIFT if "bias" in name.rpartition(".")[2] else Role.GAIN
    for path, module in model.named_modules():
        for inner, role in module.roles if isinstance(module, Component) else ():
            whole = ".".join(filter(None, (path, inner)))
            start = f"{whole}." if whole else ""
            for name, parameter in module.named_parameters(prefix=path):
                is_meant = name == whole or (parameter.dim() > 1 and name.startswith(start))
                if is_meant and name in parameters:  # a tied table has one name
                    roles[name] = role
    if missing := sorted(parameters.keys() - roles.keys()):
        raise ValueError(f"no module declares what {missing[0]} is for; add it to its module's `roles`")
    return {name: roles[name] for name in parameters}


def groups_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The groups of each tensor that is several matrices, by name."""
    return {
        ".".join(filter(None, (path, name))): sizes
        for path, module in model.named_modules()
        for name, sizes in (module.groups if isinstance(module, Component) else ())
    }


GROUPS = (8, 4, 2)
"""How many groups features that belong to no head are laid out in: the most in which a group's width is a multiple of
ALIGNED, else 2. Eight are the accelerators of one machine."""
ALIGNED = 32
"""Elementwise kernels are slow on shorter or ragged runs of memory."""


def group_width(features: int) -> int:
    """How many of a matrix's features make a group where any could."""
    for count in GROUPS:
        if features % (count * ALIGNED) == 0:
            return features // count
    return features // math.gcd(features, GROUPS[-1])


def rows_of_parts(tensor: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Which rows of a tensor of such groups are those of its first matrix, of its second, …; rows are outputs:
    (outputs, ..) or, of experts, (E, outputs, inputs)."""
    rows = torch.arange(tensor.shape[row_dim(tensor)]).view(-1, sum(sizes))
    return [part.flatten() for part in rows.split(sizes, 1)]


def grouped(tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A tensor whose matrices lie one above the other, as such groups."""
    rows = torch.cat(rows_of_parts(tensor, sizes)).to(tensor.device)
    return torch.empty_like(tensor).index_copy_(row_dim(tensor), rows, tensor)


def row_dim(tensor: Tensor) -> int:
    """The dimension of a parameter's outputs."""
    return max(0, tensor.dim() - 2)

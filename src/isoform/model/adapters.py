"""Low-rank adapters (LoRA, Hu et al. 2022): beside a matrix that stays, two thin ones that learn.

Untrained adapters change no output, and merging them into the matrices gives a plain model again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from isoform.model.component import Role
from isoform.model.config import LowRank
from isoform.model.embedding import PooledHead
from isoform.model.kernels import Linear
from isoform.model.mixers.attention import MultiHeadAttention


class AdaptedLinear(Linear):
    """A Linear of which weight and bias stay: x W^T + b, and alpha / rank times x A^T B^T."""

    def __init__(self, plain: Linear, config: LowRank) -> None:
        rows, columns = plain.weight.shape
        with torch.device("meta"):
            super().__init__(columns, rows, bias=plain.bias is not None, role=plain.role, group=plain.group)
        self.weight, self.bias, self.product_dtype = plain.weight, plain.bias, plain.product_dtype
        like = {"device": plain.weight.device, "dtype": plain.weight.dtype}
        self.adapter_a = nn.Parameter(torch.randn(config.rank, columns, **like) * columns**-0.5)
        self.adapter_b = nn.Parameter(torch.zeros(rows, config.rank, **like))
        self.scale = config.alpha / config.rank
        self.saved_weight: Tensor | None = None
        self.roles = (*self.roles, ("adapter_a", Role.ADAPTER), ("adapter_b", Role.ADAPTER))
        if self.group:
            self.groups = (*self.groups, ("adapter_b", self.group))

    @property
    def change(self) -> Tensor:
        """What the adapter adds to the weight (out, in)."""
        return self.scale * (self.adapter_b @ self.adapter_a)

    def forward(self, input: Tensor) -> Tensor:
        """(.., inputs) to (.., outputs)."""
        plain = super().forward(input)
        return plain if self.saved_weight is not None else plain + self._beside(input, self.adapter_b)

    def outputs_after(self, input: Tensor, first: int) -> Tensor:
        """(.., inputs) to the outputs (.., fewer) of each group but its first ones."""
        plain = super().outputs_after(input, first)
        if self.saved_weight is not None:
            return plain
        return plain + self._beside(input, self.rest_of_groups(self.adapter_b, first))

    def _beside(self, input: Tensor, adapter_b: Tensor) -> Tensor:
        return self.scale * linear(linear(input, self.adapter_a), adapter_b)


def adapt(model: nn.Module, config: LowRank) -> None:
    """Put adapters beside the matrices that the config names, in place; all other parameters are frozen, except
    those of a pooled head, which is new.

    Raises ValueError for a target that names no matrix.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, PooledHead):
            module.requires_grad_(True)
    used = set()
    for parent_name, parent in list(model.named_modules()):
        alias = parent_name.replace(".mixer", ".attention") if isinstance(parent, MultiHeadAttention) else parent_name
        for name, child in list(parent.named_children()):
            path = f"{parent_name}.{name}"
            names = f".{alias}.{name}.{path}."
            matching = {target for target in config.targets if f".{target}." in names}
            if type(child) is Linear and ".blocks." in path and matching:
                setattr(parent, name, AdaptedLinear(child, config))
                used |= matching
    if missing := [target for target in config.targets if target not in used]:
        raise ValueError(
            f"adapters.targets: {', '.join(missing)} names no matrix of the blocks; try attention, mixer, cross, "
            f"feedforward, query_key_value, output, up or down"
        )


def adapted(model: nn.Module) -> Sequence[tuple[str, AdaptedLinear]]:
    """The matrices that have adapters, by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the adapters to their matrices, in place; `unmerge` brings back the same bits."""
    for _, module in adapted(model):
        if module.saved_weight is None:
            module.saved_weight = module.weight.clone()
            module.weight += module.change


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Subtract the adapters from their matrices again: the saved bits are restored."""
    for _, module in adapted(model):
        if module.saved_weight is not None:
            module.weight.copy_(module.saved_weight)
            module.saved_weight = None


@torch.no_grad()
def without_adapters(model: nn.Module) -> None:
    """Merge for good: the model has plain matrices again, all of which can learn."""
    merge(model)
    for path, module in adapted(model):
        parent, _, name = path.rpartition(".")
        rows, columns = module.weight.shape
        with torch.device("meta"):
            plain = Linear(columns, rows, bias=module.bias is not None, role=module.role, group=module.group)
        plain.weight, plain.bias, plain.product_dtype = module.weight, module.bias, module.product_dtype
        setattr(model.get_submodule(parent), name, plain)
    model.requires_grad_(True)

"""The feed-forward network: the computation each token does on its own, between rounds of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from isoform.model.component import Role, group_width
from isoform.model.kernels import Linear, gelu_tanh, relu2
from isoform.model.parts import Activation, Dense, Gated

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "linear": lambda x: x,
    "relu": functional.relu,
    "relu2": relu2,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class DenseFeedForward(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: Dense, model_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(model_dim, feedforward_dim, bias=config.bias)
        self.down = Linear(feedforward_dim, model_dim, bias=config.bias, role=Role.OUTPUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), with gate and up as one product (Shazeer 2020)."""

    def __init__(self, config: Gated, model_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        width = group_width(feedforward_dim)
        self.gate_up = Linear(model_dim, 2 * feedforward_dim, bias=config.bias, group=(width, width))
        self.down = Linear(feedforward_dim, model_dim, bias=config.bias, role=Role.OUTPUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate, up = self.gate_up(x).unflatten(-1, (-1, 2, self.gate_up.group[0])).unbind(-2)
        return self.down((self.activation(gate) * up).flatten(-2))


def build_feedforward(
    config: Dense | Gated, model_dim: int, feedforward_dim: int
) -> DenseFeedForward | GatedFeedForward:
    """The module of a feed-forward config without experts; D = model_dim, F = feedforward_dim."""
    match config:
        case Dense():
            return DenseFeedForward(config, model_dim, feedforward_dim)
        case Gated():
            return GatedFeedForward(config, model_dim, feedforward_dim)
        case _:
            assert_never(config)

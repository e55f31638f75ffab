"""Norms over the last dimension."""

from __future__ import annotations

from typing import assert_never

from torch import Tensor, nn

from isoform.model.component import Component, Role
from isoform.model.kernels import rms_norm
from isoform.model.parts import LayerNorm, Norm, RMSNorm


class FastRMSNorm(nn.RMSNorm):
    """torch's RMSNorm through the kernel that is fast on the device."""

    def forward(self, x: Tensor) -> Tensor:
        """(.., D) to (.., D)."""
        return rms_norm(x, self.eps or 1e-6, self.weight)


class ZeroCenteredRMSNorm(nn.RMSNorm, Component):
    """RMSNorm whose gain is 1 + weight, so that decay pulls it to 1 (Gemma)."""

    roles = (("weight", Role.SHIFT),)

    def forward(self, x: Tensor) -> Tensor:
        """(.., D) to (.., D)."""
        return rms_norm(x, self.eps or 1e-6, 1 + self.weight)


def build_norm(config: Norm, dim: int) -> nn.Module:
    """The module of a norm over D = dim features."""
    match config:
        case LayerNorm():
            return nn.LayerNorm(dim, eps=config.epsilon, elementwise_affine=config.scale, bias=config.bias)
        case RMSNorm(zero_centered=True):
            return ZeroCenteredRMSNorm(dim, eps=config.epsilon)
        case RMSNorm():
            return FastRMSNorm(dim, eps=config.epsilon, elementwise_affine=config.scale)
        case _:
            assert_never(config)

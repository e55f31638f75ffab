"""Plain functions for the few operations that PyTorch does slowly on a CPU, each with its own backward pass.

They keep one tensor where autograd would keep three, and read memory once where it would read it often; one
test holds each to its plain form. Elsewhere (inference, CUDA) the plain form is used; torch.compile takes them as they
are, and is faster so on CPUs. One more shows how fused kernels compute attention: `online_attention`.
"""

from __future__ import annotations

import math
import weakref

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from isoform.model.component import Component, Role

SHORT = 128
"""Rows up to this long are attended to by plain products, which beat the flash kernel on CPUs there."""


def wants_plain(x: Tensor) -> bool:
    """Whether the plain form is the fast one for this tensor, as there is no backward pass on a CPU."""
    return x.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")


class _ReducedLinear(Function):
    """x W^T + b with the three products in a smaller format, float32 outside of them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        out = functional.linear(x, weight).float()
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        reduced = grad.to(x.dtype)
        grad_x = (reduced @ weight).float().view(x.shape)
        grad_weight = (reduced.mT @ x.flatten(0, -2)).float()
        return grad_x, grad_weight, grad.sum(0) if ctx.has_bias else None, None


class Rounded:
    """A parameter's copy in a smaller format, and of which numbers it is one."""

    def __init__(self, parameter: Tensor, dtype: torch.dtype) -> None:
        self.origin, self.address = weakref.ref(parameter), parameter.data_ptr()
        self.version, self.copy = parameter._version, parameter.to(dtype)

    def is_of(self, parameter: Tensor, dtype: torch.dtype) -> bool:
        """Whether it still is the copy of this parameter in this format."""
        is_same = self.origin() is parameter and self.address == parameter.data_ptr()
        return is_same and self.version == parameter._version and self.copy.dtype == dtype


class Linear(nn.Linear, Component):
    """torch's Linear, whose products may run in a smaller format on a CPU that is good at it.

    group: of several matrices as one product, how many outputs of each make a group (see Component.groups).
    """

    product_dtype = torch.float32
    methods = ("outputs_after",)
    _rounded: Rounded | None = None

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, role: Role = Role.MATRIX, group: tuple[int, ...] = ()
    ) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.role, self.group = role, group
        self.roles = (("weight", role),)
        if group:
            self.groups = (("weight", group), *([("bias", group)] if bias else []))

    def forward(self, input: Tensor) -> Tensor:
        """(.., inputs) to (.., outputs)."""
        dtype = self.product_dtype
        if dtype == torch.float32:
            return functional.linear(input, self.weight, self.bias)
        if torch.compiler.is_compiling():  # which would guard on the copy's identity
            return _ReducedLinear.apply(input, self.weight, self.bias, dtype)
        if torch.is_grad_enabled():
            self._rounded = None  # an update may follow, and a fused optimizer's changes no version
            return _ReducedLinear.apply(input, self.weight, self.bias, dtype)
        if self._rounded is None or not self._rounded.is_of(self.weight, dtype):
            self._rounded = Rounded(self.weight, dtype)
        out = functional.linear(input.to(dtype), self._rounded.copy).float()
        return out if self.bias is None else out + self.bias

    def outputs_after(self, input: Tensor, first: int) -> Tensor:
        """(.., inputs) to the outputs (.., fewer) of each group but its first ones."""
        weight = self.rest_of_groups(self.weight, first)
        bias, dtype = None if self.bias is None else self.rest_of_groups(self.bias, first), self.product_dtype
        if dtype == torch.float32:
            return functional.linear(input, weight, bias)
        return _ReducedLinear.apply(input, weight, bias, dtype)

    def rest_of_groups(self, rows: Tensor, first: int) -> Tensor:
        """Of a tensor with a row for each output, those of each group but its first ones."""
        return rows.unflatten(0, (-1, sum(self.group)))[:, first:].flatten(0, 1)


class _ReLU2(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021)."""
    return functional.relu(x).square() if wants_plain(x) else _ReLU2.apply(x)


class _GELUTanh(Function):
    """x sigmoid(2 u), u = sqrt(2 / pi) (x + c x^3); the slope is worked out on the way forward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        root, c = 2 * math.sqrt(2 / math.pi), 0.044715
        square = x * x
        gate = torch.addcmul(x, x, square, value=c).mul_(root).sigmoid_()
        out = x * gate
        slope = torch.addcmul(out, out, gate, value=-1).mul_(square.mul_(3 * root * c).add_(root)).add_(gate)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh form, as in GPT-2 (Hendrycks and Gimpel 2016)."""
    return functional.gelu(x, approximate="tanh") if wants_plain(x) else _GELUTanh.apply(x)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx, x: Tensor, epsilon: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = scale.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        out = x * scale
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        out, scale = ctx.saved_tensors
        along = (grads[0] * out).mean(-1, keepdim=True)
        return torch.addcmul(grads[0], out, along, value=-1).mul_(scale), None


def rms_norm(x: Tensor, epsilon: float, gain: Tensor | None = None) -> Tensor:
    """x over its root mean square along the last dimension, times the gain (Zhang and Sennrich 2019)."""
    if wants_plain(x):
        return functional.rms_norm(x, (x.shape[-1],), gain, epsilon)
    out = _RMSNorm.apply(x, epsilon)
    return out if gain is None else out * gain


def dropout(x: Tensor, rate: float) -> Tensor:
    """Each number is 0 with probability `rate` (to 1 / 65536), else divided by 1 - rate (Srivastava et al. 2014).

    On CPUs drawing is what costs: one 64-bit draw decides about four numbers.
    """
    if wants_plain(x):
        return functional.dropout(x, rate)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    is_kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(rate * 2**16) - 2**15
    return x * is_kept.to(x.dtype).div_(1 - rate)


def online_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, block: int = 64) -> Tensor:
    """softmax(q k^T / sqrt(H)) v over the keys that `visible` (.., T, S) names: q (.., T, H), k and v (.., S, H) to
    (.., T, H).

    It reads the keys block by block, so that no row of scores is ever whole: online softmax (Milakov and Gimelshein
    2018), which is the core of FlashAttention (Dao et al. 2022). Of the keys so far it holds the greatest score, and
    the sums of weights and of weighted values relative to that; a greater score shrinks both sums. A query without keys
    gives zeros. It is here to be read, and as an oracle for the kernels that lowering.py calls.
    """
    top = q.new_full((*q.shape[:-1], 1), torch.finfo(q.dtype).min)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    for keys, values, seen in zip(k.split(block, -2), v.split(block, -2), visible.split(block, -1), strict=True):
        scores = (q @ keys.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -math.inf)
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - higher).exp(), (top - higher).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights @ values
        top = higher
    return out / total.clamp(min=torch.finfo(q.dtype).tiny)


class _ShortAttention(Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, additive_mask: Tensor) -> Tensor:
        shape, scale = q.shape, q.shape[-1] ** -0.5
        q, k, v = (t.reshape(-1, *shape[2:]) for t in (q, k, v))
        weights = torch.baddbmm(additive_mask, q, k.mT, alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(shape)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        shape, scale = grads[0].shape, q.shape[-1] ** -0.5
        grad = grads[0].reshape(q.shape)
        along = torch.bmm(grad, v.mT).mul_(weights)
        scores = torch.addcmul(along, weights, along.sum(-1, keepdim=True), value=-1).mul_(scale)
        return *(torch.bmm(a, b).view(shape) for a, b in ((scores, k), (scores.mT, q), (weights.mT, grad))), None


def short_causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, N, T, H) to (B, N, T, H), for rows of at most SHORT tokens on a CPU."""
    length = q.shape[2]
    additive_mask = q.new_full((1, length, length), -math.inf).triu_(1)
    return _ShortAttention.apply(q, k, v, additive_mask)


def is_short(q: Tensor, k: Tensor) -> bool:
    """Whether short_causal_attention is the fast way to train on these."""
    return q.requires_grad and q.shape == k.shape and q.shape[2] <= SHORT and not wants_plain(q)

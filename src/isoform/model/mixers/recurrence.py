"""A diagonal gated linear recurrence as a block's mixer: h_t = a_t h_(t-1) + b_t, feature by feature.

Since a_t and b_t see only token t, all steps are known before the first is taken: a row is cut into chunks, each gone
through from zero beside the others, and what one ends with is carried into the next (minGRU, Feng et al. 2024; HGRN,
Qin et al. 2023; RG-LRU, De et al. 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import pad

from isoform.model.cache import RecurrentState, StateShape
from isoform.model.component import Component, Role, group_width
from isoform.model.kernels import Linear
from isoform.model.mixers.documents import Documents
from isoform.model.recording import Recorder


def step_by_step(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """h (B, T, S) of h_t = a_t h_(t-1) + b_t with h_0 = first (B, S): the definition, one step after the other."""
    states, state = [], first
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        state = torch.addcmul(b_t, a_t, state)
        states.append(state)
    return torch.stack(states, 1)


def chunked(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """The same in about 2 sqrt(T) steps."""
    length = a.shape[1]
    size = math.isqrt(length - 1) + 1
    rest = -length % size
    a, b = (pad(t, (0, 0, 0, rest)).unflatten(1, (-1, size)) for t in (a, b))  # (B, chunks, size, S)
    decays, states = torch.empty_like(a), torch.empty_like(b)  # from the start of its chunk to each step
    decays[:, :, 0], states[:, :, 0] = a[:, :, 0], b[:, :, 0]
    for i in range(1, size):
        torch.mul(decays[:, :, i - 1], a[:, :, i], out=decays[:, :, i])
        torch.addcmul(b[:, :, i], a[:, :, i], states[:, :, i - 1], out=states[:, :, i])
    carried = step_by_step(decays[:, :, -1], states[:, :, -1], first)
    before = torch.cat([first.unsqueeze(1), carried[:, :-1]], 1).unsqueeze(2)
    return torch.addcmul(states, decays, before).flatten(1, 2)[:, :length]


class _Scan(Function):
    """`chunked`, whose backward pass is the same recurrence from the end: g_t = grad_t + a_(t+1) g_(t+1)."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, first: Tensor) -> Tensor:
        states = chunked(a, b, first)
        ctx.save_for_backward(a, states, first)
        return states

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, states, first = ctx.saved_tensors
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
        grad_b = chunked(later.flip(1), grads[0].flip(1), torch.zeros_like(first)).flip(1)
        before = torch.cat([first.unsqueeze(1), states[:, :-1]], 1)
        return grad_b * before, grad_b, grad_b[:, 0] * a[:, 0]


def scan(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """All states (B, T, S) of h_t = a_t h_(t-1) + b_t, h_0 = first (B, S)."""
    return torch.addcmul(b, a, first.unsqueeze(1)) if a.shape[1] == 1 else _Scan.apply(a, b, first)


class RecurrenceMixer(Component):
    """output(h * silu(gate)), h_t = a_t h_(t-1) + (1 - a_t) c_t; a = sigmoid(decay), c and gate come of one product.
    The state: h (B, S)."""

    recordable = ("decays", "states")

    def __init__(self, model_dim: int, state_dim: int) -> None:
        super().__init__()
        self.state_dim, width = state_dim, group_width(state_dim)
        self.decay_candidate_gate = Linear(model_dim, 3 * state_dim, bias=False, group=(width, width, width))
        self.decay_bias = nn.Parameter(torch.empty(state_dim))
        self.output = Linear(state_dim, model_dim, bias=False, role=Role.OUTPUT)

    @property
    def state_shape(self) -> StateShape:
        """What a cache keeps of each row."""
        return StateShape(((self.state_dim,),))

    def forward(
        self, x: Tensor, documents: Documents, state: RecurrentState | None = None, recorder: Recorder | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D); `state` is read at the start and replaced by the state after the last token."""
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = self.decay_candidate_gate(x).to(wide).unflatten(-1, (-1, 3, self.decay_candidate_gate.group[0]))
        decay, candidate, gate = parts.unbind(-2)  # (B, T, groups, width)
        decay = decay + self.decay_bias.view_as(decay[0, 0])
        a, b = decay.sigmoid().flatten(2), ((-decay).sigmoid() * candidate).flatten(2)
        if not documents.are_rows:
            is_token = documents.is_token.unsqueeze(-1)
            a = a.masked_fill(documents.begins.unsqueeze(-1), 0).masked_fill(~is_token, 1)
            b = b * is_token
        first = b.new_zeros(len(b), b.shape[-1]) if state is None else state.tensors[0]
        h = scan(a, b, first)
        if state is not None:
            state.tensors = (h[:, -1],)
        if recorder is not None:
            recorder.take("decays", lambda: a)
            recorder.take("states", lambda: h)
        return self.output((h * nn.functional.silu(gate).flatten(2)).to(x.dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """States that forget half within 1 to 256 tokens at first, evenly by logarithm."""
        half_lives = torch.logspace(0, 8, len(self.decay_bias), base=2, device=self.decay_bias.device)
        self.decay_bias.copy_(torch.logit(0.5 ** (1 / half_lives)))

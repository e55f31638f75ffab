"""Experts: several feed-forwards, of which a router picks some for each token (Shazeer et al. 2017).

Pairs of a token and an expert are sorted by expert, so that each expert works on rows that lie side by side and
on no others. What routing costs and counts is reported to an Auxiliary that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from isoform.model.auxiliary import Auxiliary
from isoform.model.component import Component, Role, group_width
from isoform.model.feedforward import ACTIVATIONS, build_feedforward
from isoform.model.kernels import Rounded
from isoform.model.parts import Activation, Dense, ExpertChoice, Experts, Gated, TokenChoice

aten = torch.ops.aten

BACKWARD: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": aten.gelu_backward,
    "gelu_tanh": lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"),
    "linear": lambda grad, x: grad,
    "relu": lambda grad, x: aten.threshold_backward(grad, x, 0),
    "relu2": lambda grad, x: x.relu().mul_(2).mul_(grad),
    "sigmoid": lambda grad, x: aten.sigmoid_backward(grad, x.sigmoid()),
    "silu": aten.silu_backward,
    "tanh": lambda grad, x: aten.tanh_backward(grad, x.tanh()),
}
"""From an activation's gradient and its input to the input's gradient."""


def update_load_biases(loads: Mapping[nn.Module, Tensor]) -> None:
    """Move each balanced router's bias against the load (E) of a whole step; for after the optimizer's step."""
    for module, load in loads.items():
        if isinstance(module, TokenChoiceFeedForward):
            module.balance(load)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which expert works on which tokens: M pairs, sorted by expert and, within one, by token.

    rows: the token of each pair (M); sizes: pairs of each expert; by_token: the pairs sorted by token (M); starts:
    where each token's pairs begin in that (P).
    """

    rows: Tensor
    sizes: list[int]
    by_token: Tensor
    starts: Tensor

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, begin, end) of each expert that has pairs."""
        spans, begin = [], 0
        for expert, size in enumerate(self.sizes):
            if size:
                spans.append((expert, begin, begin + size))
            begin += size
        return spans


def build_plan(rows: Tensor, sizes: Tensor, num_tokens: int) -> Plan:
    """The plan of pairs that are sorted by expert; sizes (E): how many each expert has."""
    by_token = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows, minlength=num_tokens)
    return Plan(rows, sizes.tolist(), by_token, counts.cumsum(0) - counts)


class _Experts(Function):
    """Gather, each expert's products, sum per token. Kept are x and the experts' first products, and without a gate,
    where they would cost as much as the rest, the activations."""

    @staticmethod
    def forward(ctx, x, weights, up, down, plan, activation, width, dtype):
        x, up, down, saved = x.to(dtype), up.to(dtype), down.to(dtype), []
        out = _work(x, weights, up, down, plan, activation, width, saved)
        ctx.save_for_backward(x, weights, up, down, *saved)
        ctx.how = plan, activation, width
        return out

    @staticmethod
    def backward(ctx, *grads):
        x, weights, up, down, *saved = ctx.saved_tensors
        plan, activation, width = ctx.how
        wide = weights.dtype
        grad = grads[0].to(x.dtype)
        grad_up, grad_down = up.new_empty(up.shape, dtype=wide), down.new_empty(down.shape, dtype=wide)
        grad_weights = torch.empty_like(weights)
        grad_pairs = grad.new_empty(len(plan.rows), x.shape[1], dtype=wide)
        for expert, size in enumerate(plan.sizes):
            if not size:
                grad_up[expert].zero_()
                grad_down[expert].zero_()
        for i, (expert, begin, end) in enumerate(plan.spans):
            rows, weight = plan.rows[begin:end], weights[begin:end, None]
            below = grad.index_select(0, rows)
            grad_inner = (below @ down[expert]).to(wide)
            if width:
                pre_activation = saved[i].to(wide)
                gate, up_branch = _gate_and_up(pre_activation, width)
                active = ACTIVATIONS[activation](gate)
                inner = (active * up_branch).flatten(1)
            else:
                pre_activation, inner = saved[2 * i].to(wide), saved[2 * i + 1]
                gate, up_branch, active = pre_activation, None, inner
            grad_weights[begin:end] = torch.linalg.vecdot(grad_inner, inner)
            grad_inner.mul_(weight)
            _product(below.mT, (inner * weight).to(x.dtype), grad_down[expert])
            if up_branch is None:
                grad_pre_activation = BACKWARD[activation](grad_inner, gate)
            else:
                grad_pre_activation, grad_inner = torch.empty_like(pre_activation), grad_inner.view_as(active)
                grad_gate, grad_up_branch = _gate_and_up(grad_pre_activation, width)
                torch.mul(grad_inner, active, out=grad_up_branch)
                grad_gate.copy_(BACKWARD[activation](grad_inner.mul_(up_branch), gate))
            grad_pre_activation = grad_pre_activation.to(x.dtype)
            _product(grad_pre_activation.mT, x.index_select(0, rows), grad_up[expert])
            _product(grad_pre_activation, up[expert], grad_pairs[begin:end])
        return _sum_by_token(grad_pairs, plan), grad_weights, grad_up, grad_down, None, None, None, None


def _work(x, weights, up, down, plan, activation, width, saved=None) -> Tensor:
    """The forward pass on a CPU, in the dtype of x except between products; `saved` collects what the backward pass
    reads."""
    wide = weights.dtype
    pairs = x.new_empty(len(plan.rows), x.shape[1], dtype=wide)
    for expert, begin, end in plan.spans:
        pre_activation = x.index_select(0, plan.rows[begin:end]) @ up[expert].mT
        inner = _inner(pre_activation.to(wide), activation, width)
        if saved is not None:
            saved.extend((pre_activation,) if width else (pre_activation, inner))
        _product((inner * weights[begin:end, None]).to(x.dtype), down[expert].mT, pairs[begin:end])
    return _sum_by_token(pairs, plan)


def _inner(pre_activation: Tensor, activation: Activation, width: int) -> Tensor:
    """What the first product (.., F), or that of gate and up (.., 2F) in groups of `width` each, makes (.., F)."""
    if not width:
        return ACTIVATIONS[activation](pre_activation)
    gate, up = _gate_and_up(pre_activation, width)
    return (ACTIVATIONS[activation](gate) * up).flatten(-2)


def _gate_and_up(pre_activation: Tensor, width: int) -> tuple[Tensor, Tensor]:
    gate, up = pre_activation.unflatten(-1, (-1, 2, width)).unbind(-2)
    return gate, up


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _sum_by_token(pairs: Tensor, plan: Plan) -> Tensor:
    """Pairs (M, D) to the sums of each token's (P, D), always added in the order of the experts."""
    if not len(pairs):
        return pairs.new_zeros(len(plan.starts), pairs.shape[1])
    return torch.embedding_bag(pairs, plan.by_token, plan.starts, False, 0)[0]


class ExpertStack(Component):
    """The experts' matrices, each kind as one parameter: up (E, F, D), or gate_up (E, 2F, D), and down (E, D, F)."""

    roles = (
        ("", Role.MATRIX),
        ("down", Role.OUTPUT),
    )
    methods = ("work", "work_on_one", "work_plainly")
    product_dtype = torch.float32
    _rounded: tuple[Rounded, Rounded] | None = None

    def __init__(self, config: Dense | Gated, num_experts: int, model_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.width = group_width(feedforward_dim) if isinstance(config, Gated) else 0
        if self.width:
            self.gate_up = _drawn(num_experts, 2 * feedforward_dim, model_dim)
            self.groups = (("gate_up", (self.width, self.width)),)
        else:
            self.up = _drawn(num_experts, feedforward_dim, model_dim)
        self.down = _drawn(num_experts, model_dim, feedforward_dim)

    @property
    def first(self) -> nn.Parameter:
        """What reads the tokens."""
        return self.gate_up if self.width else self.up

    def work_on_one(self, x: Tensor, weights: Tensor, experts: list[int]) -> Tensor:
        """One token (1, D) through its experts, weighted by weights (k), without a backward pass."""
        dtype = x.dtype if self.product_dtype == torch.float32 else self.product_dtype
        (up, down), read, out = self._rounded_to(dtype), x.to(dtype), torch.zeros_like(x)
        for expert, weight in zip(experts, weights.tolist(), strict=True):
            inner = _inner(functional.linear(read, up[expert]).to(x.dtype), self.activation, self.width)
            out.add_(functional.linear(inner.to(dtype), down[expert]), alpha=weight)
        return out

    @torch.compiler.disable
    def work(self, x: Tensor, weights: Tensor, plan: Plan) -> Tensor:
        """Tokens (P, D) to the sums over their experts (P, D), weighted by weights (M); zeros without an expert."""
        if x.device.type != "cpu" or torch.is_autocast_enabled(x.device.type):
            return self.work_plainly(x, weights, plan)
        how = plan, self.activation, self.width
        dtype = x.dtype if self.product_dtype == torch.float32 else self.product_dtype
        if torch.is_grad_enabled():
            self._rounded = None  # an update may follow, and a fused optimizer's changes no version
            return _Experts.apply(x, weights, self.first, self.down, *how, dtype).to(x.dtype)
        up, down = self._rounded_to(dtype)
        return _work(x.to(dtype), weights, up, down, *how).to(x.dtype)

    def work_plainly(self, x: Tensor, weights: Tensor, plan: Plan) -> Tensor:
        """The same by plain operations, for autograd: on other devices than CPUs, and where autocast is on."""
        pairs = [
            functional.linear(
                _inner(functional.linear(part, self.first[expert]), self.activation, self.width), self.down[expert]
            )
            for part, expert in zip(x[plan.rows].split(plan.sizes), range(len(plan.sizes)), strict=True)
            if len(part)
        ]
        out = torch.zeros_like(x)
        if not pairs:
            return out + 0 * x
        return out.index_add(0, plan.rows, (torch.cat(pairs) * weights[:, None]).to(x.dtype))

    def _rounded_to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first and the last matrices (E, …) in this format."""
        if dtype == self.down.dtype:
            return self.first, self.down
        both = self.first, self.down
        if self._rounded is None or not all(r.is_of(p, dtype) for r, p in zip(self._rounded, both, strict=True)):
            self._rounded = Rounded(self.first, dtype), Rounded(self.down, dtype)
        return self._rounded[0].copy, self._rounded[1].copy


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)


class Router(nn.Linear, Component):
    """Scores, never in less than float32, whatever format other products run in."""

    roles = (("weight", Role.ROUTER),)

    def forward(self, input: Tensor) -> Tensor:
        """(.., D) to (.., scores)."""
        wide = torch.promote_types(input.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.to(wide), self.weight.to(wide), bias)


class Routed(nn.Module):
    """What both kinds of routing share: a router, experts, and a feed-forward that every token goes through."""

    def __init__(self, config: Experts, model_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.router = Router(model_dim, config.num_experts, bias=False)
        self.experts = ExpertStack(config.expert, config.num_experts, model_dim, feedforward_dim)
        width = config.num_shared * feedforward_dim
        self.shared = build_feedforward(config.expert, model_dim, width) if width else None


class TokenChoiceFeedForward(Routed):
    """Each token goes to its num_active best experts (Shazeer et al. 2017; Fedus et al. 2022; Mixtral, 2024).

    The weights are softmax or sigmoid scores of the chosen, over their sum if `normalize` (Mixtral's softmax over
    the chosen logits is that of `softmax`), times `scale`. With a bias_rate a bias per expert is added to the
    scores where experts are chosen, and nowhere else (Wang et al. 2024); `balance` moves it.

    A capacity holds in training alone: an expert takes ceil(capacity_factor x num_active x tokens / E) tokens of a
    row, the first ones, so that a token's result depends on its past alone; in evaluation all are taken, so that
    reading at once and token by token, where the count of earlier tokens is unknown, give the same.
    """

    load_bias: Tensor | None

    def __init__(self, config: Experts, router: TokenChoice, model_dim: int, feedforward_dim: int) -> None:
        super().__init__(config, model_dim, feedforward_dim)
        self.config = router
        self.register_buffer("load_bias", torch.zeros(config.num_experts) if router.bias_rate else None)

    def forward(self, x: Tensor, present: Tensor | None = None, auxiliary: Auxiliary | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); present (B, T): which slots hold a token, None: all. Other slots give zeros,
        but for shared experts, and count nowhere."""
        config, flat = self.config, x.reshape(-1, x.shape[-1])
        logits = self.router(flat)
        scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
        preferred = scores.detach() if self.load_bias is None else scores.detach() + self.load_bias
        chosen = preferred.topk(config.num_active, dim=-1).indices
        taken = None if present is None else present.reshape(-1, 1).expand_as(chosen)
        if auxiliary is not None:
            self._report(auxiliary, logits, scores, chosen, present)
        if config.capacity_factor is not None and self.training:
            fits = self._fits(chosen.view(*x.shape[:2], -1), present, config.capacity_factor).view_as(chosen)
            if auxiliary is not None:
                refused = ~fits if taken is None else taken & ~fits
                auxiliary.add(self, counts={"experts_dropped": refused.sum()})
            taken = fits if taken is None else taken & fits
        weights = scores.gather(-1, chosen)
        if config.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if config.scale != 1:
            weights = weights * config.scale
        out = self._routed(flat, weights, chosen, taken).view_as(x)
        return out if self.shared is None else out + self.shared(x)

    @torch.compiler.disable
    def _routed(self, flat: Tensor, weights: Tensor, chosen: Tensor, taken: Tensor | None) -> Tensor:
        num_active, num_experts = chosen.shape[1], self.num_experts
        if len(flat) == 1 and taken is None and flat.device.type == "cpu" and not torch.is_grad_enabled():
            return self.experts.work_on_one(flat, weights[0], chosen[0].tolist())
        where = chosen.flatten() if taken is None else chosen.masked_fill(~taken, num_experts).flatten()
        sizes = torch.bincount(where, minlength=num_experts)[:num_experts]
        order = torch.argsort(where, stable=True)
        if taken is not None:
            order = order[: int(sizes.sum())]
        plan = build_plan(order // num_active, sizes, len(flat))
        return self.experts.work(flat, weights.flatten()[order], plan)

    def _fits(self, chosen: Tensor, present: Tensor | None, factor: float) -> Tensor:
        """Which choices (B, T, k) find room, in the order of a row's tokens."""
        num_experts = self.num_experts
        wants = functional.one_hot(chosen, num_experts).sum(-2)
        if present is not None:
            wants = wants * present.unsqueeze(-1)
        before = (wants.cumsum(1) - wants).gather(-1, chosen)
        num_tokens = chosen.new_full((len(chosen),), chosen.shape[1]) if present is None else present.sum(-1)
        share = factor * chosen.shape[-1] / num_experts
        return before < quota(num_tokens, share).view(-1, 1, 1)

    def _report(
        self, auxiliary: Auxiliary, logits: Tensor, scores: Tensor, chosen: Tensor, present: Tensor | None
    ) -> None:
        """Losses and load over the tokens that are present, before any is refused.

        balance: E sum_i f_i P_i (Fedus et al. 2022, eq. 4), f_i expert i's share of all choices and P_i its mean
        score, as a share of the token's scores: 1 when even, for any num_active, by which Mixtral's code multiplies
        it. z: mean log(Z)^2 (Zoph et al. 2022, eq. 5).
        """
        config, losses = self.config, {}
        is_chosen = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)
        is_token = None if present is None else present.reshape(-1, 1).to(scores.dtype)
        load = (is_chosen if is_token is None else is_chosen * is_token).sum(0)
        if config.balance_loss:
            shares = scores if config.score == "softmax" else scores / (scores.sum(-1, keepdim=True) + 1e-20)
            even = (load / load.sum().clamp(min=1) * _mean(shares, is_token)).sum() * self.num_experts
            losses["balance_loss"] = config.balance_loss * even
        if config.z_loss:
            losses["router_z_loss"] = config.z_loss * _mean(logits.logsumexp(-1, keepdim=True).square(), is_token).sum()
        auxiliary.add(self, losses=losses, load=load.detach())

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """Move the bias of each expert by bias_rate towards an even load (E) (Wang et al. 2024, algorithm 1)."""
        if self.load_bias is not None:
            self.load_bias += self.config.bias_rate * torch.sign(load.mean() - load).to(self.load_bias)


def quota(num_tokens: Tensor, share: float) -> Tensor:
    """share x tokens, rounded up unless it is rounding itself that lifts it above a whole number."""
    return torch.ceil(num_tokens * share - 1e-3).long()


def _mean(values: Tensor, is_token: Tensor | None) -> Tensor:
    """Mean (..) of values (P, ..) over the tokens that are is_token (P, 1)."""
    return values.mean(0) if is_token is None else (values * is_token).sum(0) / is_token.sum().clamp(min=1)


class ExpertChoiceFeedForward(Routed):
    """Each expert takes its ceil(capacity_factor x tokens / E) best tokens of a row (Zhou et al. 2022).

    A token is weighted by its softmax over the experts; the softmax is the paper's S, and the k best of a column
    are its G. One that no expert takes gets zero, so that only the residual stream keeps it.
    """

    def __init__(self, config: Experts, router: ExpertChoice, model_dim: int, feedforward_dim: int) -> None:
        super().__init__(config, model_dim, feedforward_dim)
        self.config = router

    def forward(self, x: Tensor, present: Tensor | None = None, auxiliary: Auxiliary | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); present (B, T): which slots hold a token, None: all."""
        scores = self.router(x).softmax(-1)
        out = self._routed(x, scores, present, auxiliary)
        return out if self.shared is None else out + self.shared(x)

    @torch.compiler.disable
    def _routed(self, x: Tensor, scores: Tensor, present: Tensor | None, auxiliary: Auxiliary | None) -> Tensor:
        rows, length = x.shape[:2]
        is_token = torch.ones(rows, length, dtype=torch.bool, device=x.device) if present is None else present
        share = self.config.capacity_factor / self.num_experts
        takes = quota(is_token.sum(-1), share).clamp(max=length)
        ranked = scores.detach().masked_fill(~is_token.unsqueeze(-1), -1.0)
        picks = ranked.topk(int(takes.max()), dim=1).indices.permute(2, 0, 1)
        is_taken = torch.arange(picks.shape[-1], device=x.device) < takes.unsqueeze(-1)
        is_taken = is_taken & is_token.unsqueeze(0).expand(self.num_experts, -1, -1).gather(-1, picks)
        first = torch.arange(rows, device=x.device).view(1, -1, 1) * length
        tokens = (picks + first)[is_taken]
        experts = torch.arange(self.num_experts, device=x.device).view(-1, 1, 1).expand_as(picks)[is_taken]
        plan = build_plan(tokens, is_taken.sum((1, 2)), rows * length)
        if auxiliary is not None:
            missed = is_token.flatten().index_fill(0, tokens, False).sum()
            auxiliary.add(self, counts={"experts_missed": missed})
        weights = scores.flatten(0, 1)[tokens, experts]
        return self.experts.work(x.reshape(-1, x.shape[-1]), weights, plan).view_as(x)


def build_experts(
    config: Experts, model_dim: int, feedforward_dim: int
) -> TokenChoiceFeedForward | ExpertChoiceFeedForward:
    """The module of a feed-forward config with experts; D = model_dim, F = feedforward_dim of one expert."""
    match config.router:
        case TokenChoice():
            return TokenChoiceFeedForward(config, config.router, model_dim, feedforward_dim)
        case ExpertChoice():
            return ExpertChoiceFeedForward(config, config.router, model_dim, feedforward_dim)
        case _:
            assert_never(config.router)


def upcycle_state(dense: Mapping[str, Tensor], config: Experts) -> dict[str, Tensor]:
    """A dense feed-forward's tensors as those of experts that are copies of it (Komatsuzaki et al. 2023).

    dense: up.weight or gate_up.weight, and down.weight; returned: experts.up or experts.gate_up, and experts.down.
    The router stays as it was drawn: with weights that sum to 1 the model answers as before, whoever is chosen.
    Raises ValueError where that doesn't hold: weights that aren't normalised, shared experts, biases, other shapes.
    """
    router = config.router
    if not isinstance(router, TokenChoice) or not router.normalize or router.scale != 1 or config.num_shared:
        raise ValueError(
            "copies of one feed-forward answer as it does only if weights sum to 1: set router = token_choice with "
            "normalize = true and scale = 1, and num_shared = 0"
        )
    first = "gate_up" if isinstance(config.expert, Gated) else "up"
    if dense.keys() != {f"{first}.weight", "down.weight"}:
        raise ValueError(
            f"the dense feed-forward has {', '.join(sorted(dense))}; these experts are copies of {first}.weight and "
            f"down.weight, without biases"
        )
    copies = {name: dense[f"{name}.weight"].expand(config.num_experts, -1, -1) for name in (first, "down")}
    return {f"experts.{name}": tensor.clone() for name, tensor in copies.items()}

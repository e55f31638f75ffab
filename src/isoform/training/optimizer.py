"""Optimizers and schedules: torch's AdamW, our Muon, and schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from isoform.checkpoint.versions import current_name
from isoform.config import ConfigError
from isoform.model.component import Role, roles_of
from isoform.outside import External, called, refusal
from isoform.training.config import (
    AdamW,
    Cosine,
    InverseSquareRoot,
    Muon,
    Optimizer,
    Schedule,
    WarmupStableDecay,
)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan (2024): fast rather than exact; singular values end in about 0.7 .. 1.2."""


def schedule_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of step 0 .. steps - 1 as a fraction of its peak."""
    warmup = schedule.warmup_steps
    rising = (step + 1) / warmup if step < warmup else 1.0
    match schedule:
        case WarmupStableDecay():
            decay = max(1, round(schedule.decay_fraction * steps))
            remaining = min(1.0, (steps - step) / decay)
            return min(rising, schedule.final + (1 - schedule.final) * remaining)
        case Cosine():
            if step < warmup:
                return rising
            fraction = (step - warmup) / max(1, steps - warmup)
            return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * fraction))
        case InverseSquareRoot():
            return rising if step < warmup else math.sqrt(max(1, warmup) / (step + 1))
        case _:
            assert_never(schedule)


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximately the nearest (semi-)orthogonal matrices: a quintic Newton-Schulz iteration on (B, R, C).

    Each step multiplies X by a polynomial in its Gram matrix G = X X^T. In float32 all steps are computed on the
    small square G, and X is used only at both ends; in bfloat16, which is precise enough otherwise (Jordan 2024),
    G has too few digits for that, and every step multiplies X.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    if dtype == torch.float32:
        gram, product = x @ x.mT, None
        for remaining in reversed(range(steps)):
            polynomial = _polynomial(gram)
            product = polynomial if product is None else product @ polynomial
            if remaining:
                gram = polynomial @ gram @ polynomial
        x = x if product is None else product @ x
    else:
        for _ in range(steps):
            x = _polynomial(x @ x.mT) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial


class MuonOptimizer(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (Jordan 2024). Matrices of one shape, with each expert's separate, are updated
    as one batch.

    `dtype` is that of the matrix products: bfloat16 only where the device is fast at it.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        config: Muon,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {
            "lr": config.learning_rate,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
        }
        super().__init__(matrices, defaults)
        self.steps, self.dtype = config.newton_schulz_steps, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                momenta = [self._momentum(p) for p in params]
                grads = [p.grad for p in params if p.grad is not None]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
                updates = orthogonalize(torch.stack(ahead).flatten(0, -3), self.steps, self.dtype)
                scale = group["lr"] * math.sqrt(max(1.0, shape[-2] / shape[-1]))
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates.view(-1, *shape).unbind()), alpha=-scale)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


Named = Sequence[tuple[str, nn.Parameter]]
STEMS = ("stem.", "encoder_stem.")
EMBEDDINGS = {Role.EMBEDDING, Role.CONTEXT_EMBEDDING}
ORTHOGONAL = {Role.MATRIX, Role.OUTPUT, Role.ADAPTER}
"""The roles of parameters that Muon updates."""


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Exclude the parameters with these prefixes from training. Raises ValueError for a prefix that no name has."""
    for prefix in prefixes:
        start = current_name(f"{prefix.rstrip('.')}.")
        parameters = [p for n, p in model.named_parameters() if f"{n}.".startswith(start)]
        if not parameters:
            names = sorted({".".join(n.split(".")[:2]) for n, _ in model.named_parameters()})
            raise ValueError(f"training.frozen: no parameter's name begins with {prefix!r} (known: {names})")
        for parameter in parameters:
            parameter.requires_grad_(False)


def build_optimizers(
    config: Optimizer,
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    *,
    layer_decay: float = 1.0,
    roles: Mapping[str, Role] | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model's parameters, by their roles (None: those of the model).

    dtype: of Muon's matrix products; layer_decay: the learning rate of each block as a fraction of that above it.
    """
    roles = roles_of(model) if roles is None else roles
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("training.frozen leaves no parameters to train; freeze fewer")
    by_factor = _by_layer(named, layer_decay)
    match config:
        case AdamW():
            return [_adamw(config, by_factor, roles)]
        case Muon():
            matrices = {f: [(n, p) for n, p in part if roles[n] in ORTHOGONAL] for f, part in by_factor.items()}
            rest = {f: [(n, p) for n, p in part if roles[n] not in ORTHOGONAL] for f, part in by_factor.items()}
            optimizers: list[torch.optim.Optimizer] = []
            if any(matrices.values()):
                rate = config.learning_rate
                groups = [{"params": [p for _, p in part], "lr": f * rate} for f, part in matrices.items() if part]
                optimizers.append(MuonOptimizer(groups, config, dtype))
            return [*optimizers, _adamw(config.adam, rest, roles)] if any(rest.values()) else optimizers
        case External():
            return [_own_optimizer(config, by_factor)]
        case _:
            assert_never(config)


def _own_optimizer(config: External, by_factor: Mapping[float, Named]) -> torch.optim.Optimizer:
    """An optimizer of the user's own: a class or function that is called with groups of parameters and the options.
    Raises ValueError for one that can't be stepped without a closure, or saved."""
    trial = nn.Parameter(torch.ones(2, 2))
    trial.grad = torch.ones_like(trial)
    tried = _called(config, [{"params": [trial]}])
    try:
        tried.step()
    except Exception as error:
        raise ConfigError(f"the optimizer {config.name} can't be stepped: {type(error).__name__}: {error}") from error
    for slot, value in tried.state[trial].items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"the optimizer {config.name} keeps {slot!r} as {type(value).__name__}, which a checkpoint can't hold; "
                f"keep it as a tensor"
            )
    optimizer = _called(config, [{"params": [p for _, p in part]} for part in by_factor.values()])
    for group, factor in zip(optimizer.param_groups, by_factor, strict=True):
        group["lr"] *= factor
    return optimizer


def _called(config: External, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    optimizer = called(config, "training.optimizer", groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise refusal(config.name, "training.optimizer", "a torch.optim.Optimizer", optimizer)
    if len(optimizer.param_groups) != len(groups) or not all("lr" in group for group in optimizer.param_groups):
        raise ConfigError(
            f"training.optimizer: {config.name} doesn't keep the groups it is called with, each with an lr"
        )
    return optimizer


def optimizer_flops(config: Optimizer, model: nn.Module) -> int:
    """FLOPs of the matrix products of one update, which training FLOPs leave out: those of Muon's Newton-Schulz
    iteration, 4 m² n + 2 m³ a step for an m × n matrix with m ≤ n (Jordan 2024). AdamW has none."""
    if not isinstance(config, Muon):
        return 0
    roles, total = roles_of(model), 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and roles[name] in ORTHOGONAL:
            *batch, rows, columns = parameter.shape
            least, most = sorted((rows, columns))
            total += math.prod(batch) * (4 * least**2 * most + 2 * least**3)
    return config.newton_schulz_steps * total


def _by_layer(named: Named, decay: float) -> dict[float, Named]:
    """Parameters by their learning rate relative to the topmost ones."""
    if decay == 1:
        return {1.0: named}
    depths = [_depth(n) for n, _ in named]
    top = max(depth for depth in depths if depth is not None) + 1 if any(d is not None for d in depths) else 0
    by_factor: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for depth, parameter in zip(depths, named, strict=True):
        by_factor.setdefault(decay ** (top - depth) if depth is not None else 1.0, []).append(parameter)
    return dict(by_factor)


def _depth(name: str) -> int | None:
    """0 for the stem, i + 1 for the i-th block; None for what is above the blocks."""
    if name.startswith(STEMS):
        return 0
    parts = name.split(".")
    if "ahead" in parts:
        return None
    return int(parts[parts.index("blocks") + 1]) + 1 if "blocks" in parts else None


def _adamw(config: AdamW, by_factor: Mapping[float, Named], roles: Mapping[str, Role]) -> torch.optim.Optimizer:
    groups = []
    for factor, named in by_factor.items():
        rate, decay = factor * config.learning_rate, config.weight_decay
        tables_rate = rate if config.embedding_learning_rate is None else factor * config.embedding_learning_rate
        tables = [p for n, p in named if roles[n] in EMBEDDINGS]
        matrices = [p for n, p in named if roles[n] not in EMBEDDINGS and p.dim() >= 2]
        vectors = [p for _, p in named if p.dim() < 2]
        groups += [
            {"params": tables, "lr": tables_rate, "weight_decay": decay},
            {"params": matrices, "lr": rate, "weight_decay": decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=all(p.device.type in ("cpu", "cuda", "mps") for group in groups for p in group["params"]),
    )


def optimizer_state(optimizers: list[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """The optimizers' state as flat tensors, named by parameter and slot: decoder.final_norm.weight.exp_avg."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{slot}": tensor
        for optimizer in optimizers
        for parameter, slots in optimizer.state.items()
        for slot, tensor in slots.items()
    }


def load_optimizer_state(
    optimizers: list[torch.optim.Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state; learning rates and other settings stay those of the config."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    slots_of: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, slot = path.rpartition(".")
        slots_of.setdefault(name, {})[slot] = tensor
    for optimizer in optimizers:
        index = {i: names[p] for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
        state = {i: slots_of[name] for i, name in index.items() if name in slots_of}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def named_slots(
    tensors: Mapping[str, Tensor], config: Optimizer, model: nn.Module, *, layer_decay: float
) -> dict[str, Tensor]:
    """The optimizer state of layout 1, named by optimizer index, parameter index and slot, as named by parameter."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    roles = {name: Role.HEAD if name.startswith("encoder_stem.") else role for name, role in roles_of(model).items()}
    numbered = [
        [names[p] for group in optimizer.param_groups for p in group["params"]]
        for optimizer in build_optimizers(config, model, layer_decay=layer_decay, roles=roles)
    ]
    named = {}
    for path, tensor in tensors.items():
        optimizer, parameter, slot = path.split(".")
        named[f"{numbered[int(optimizer)][int(parameter)]}.{slot}"] = tensor
    return named

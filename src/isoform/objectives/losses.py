"""Losses return sums, never means: who knows the weight of the whole global batch divides once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from isoform.objectives.config import Distillation


@dataclass(frozen=True, eq=False)
class Loss:
    """total: what is minimised, summed over the batch; nats: the plain cross-entropy in it, detached;
    weight: the sum of the loss weights.

    parts: further sums, detached, that are divided by the weight where they are noted; counts: numbers that are noted
    as they are; loads: how many tokens chose each expert, by module.
    """

    total: Tensor
    nats: Tensor
    weight: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    loads: dict[nn.Module, Tensor] = field(default_factory=dict)


def target_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each target (B, T) what is lost on it with logits (B, T, V): its nats, or of numbers the squared error."""
    if targets.is_floating_point():
        return (logits[..., 0].float() - targets).square()
    return cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view(targets.shape)


def contrastive_logits(one: Tensor, other: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (n, D) of things and of their partners to logits (1, 2 n, n) with targets and weights (1, 2 n): which
    of the others is the partner, asked from both sides, each for half."""
    similar = one @ other.mT / temperature
    partner = torch.arange(len(one), device=one.device).repeat(2)
    weights = torch.full((1, 2 * len(one)), 0.5, device=one.device)
    return torch.cat([similar, similar.mT]).unsqueeze(0), partner.unsqueeze(0), weights


def distilled(plain: Loss, logits: Tensor, taught: Tensor, weights: Tensor, config: Distillation) -> Loss:
    """The loss with the teacher's share in it: the divergence of the teacher's distribution from the student's, from
    logits (B, T, V) of both, times the square of the temperature, which keeps its gradients as large (Hinton et al.
    2015)."""
    ours, theirs = ((x.float() / config.temperature).log_softmax(-1) for x in (logits, taught))
    away = (theirs.exp() * (theirs - ours)).sum(-1)
    divergence = config.temperature**2 * (away * weights).sum()
    total = (1 - config.share) * plain.total + config.share * divergence
    return replace(plain, total=total, parts={**plain.parts, "divergence": divergence.detach()})


def weighted_square(logits: Tensor, targets: Tensor, weights: Tensor) -> Loss:
    """Squared errors of the first of logits (B, T, V), each weighted (B, T)."""
    total = (target_losses(logits, targets) * weights).sum()
    return Loss(total, total.detach(), weights.sum())


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Loss:
    """Cross-entropy of logits (B, T, V) with targets (B, T), each weighted (B, T), in nats.

    z_loss adds z_loss * log(Z)^2 (PaLM, section 5); label_smoothing mixes the target with the uniform
    distribution (Szegedy et al. 2016). Positions of weight 0 have no influence whatever they hold.
    """
    flat, weights = logits.flatten(0, -2).float(), weights.flatten()
    nats = cross_entropy(flat, targets.flatten(), reduction="none")
    plain = (nats * weights).sum()
    total = plain
    if label_smoothing or z_loss:
        log_z = flat.logsumexp(-1)
        if label_smoothing:
            uniform = log_z - flat.mean(-1)
            total = total + label_smoothing * ((uniform - nats) * weights).sum()
        if z_loss:
            total = total + z_loss * (log_z.square() * weights).sum()
    return Loss(total, plain.detach(), weights.sum())

"""Losses. They return sums, never means; the caller divides once by the weight of the whole global batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from isoform.objectives.config import Distillation


@dataclass(frozen=True, eq=False)
class Loss:
    """total: the training loss, summed over the batch; nats: its plain cross-entropy, detached; weight: the sum of the
    loss weights.

    parts: further sums, detached, that are divided by the weight when logged; counts: numbers that are logged
    unchanged; loads: the number of tokens routed to each expert, by module.
    """

    total: Tensor
    nats: Tensor
    weight: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    loads: dict[nn.Module, Tensor] = field(default_factory=dict)


def target_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target (B, T) under logits (B, T, V): its nats, or for numbers the squared error."""
    if targets.is_floating_point():
        return (logits[..., 0].float() - targets).square()
    return cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view(targets.shape)


def contrastive_logits(sources: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (1, 2 n, n) with targets and weights (1, 2 n) from embeddings (n, D) of sources and their targets: the
    InfoNCE classification of each row's partner, in both directions, each with weight 1/2."""
    similarities = sources @ targets.mT / temperature
    partners = torch.arange(len(sources), device=sources.device).repeat(2)
    weights = torch.full((1, 2 * len(sources)), 0.5, device=sources.device)
    return torch.cat([similarities, similarities.mT]).unsqueeze(0), partners.unsqueeze(0), weights


def distillation_loss(
    plain: Loss, logits: Tensor, teacher_logits: Tensor, weights: Tensor, config: Distillation
) -> Loss:
    """The loss mixed with the teacher's: KL(teacher || student) of the distributions given by the logits (B, T, V)
    of both, times the square of the temperature, which preserves the scale of its gradients (Hinton et al. 2015)."""
    student, teacher = ((x.float() / config.temperature).log_softmax(-1) for x in (logits, teacher_logits))
    per_token = (teacher.exp() * (teacher - student)).sum(-1)
    divergence = config.temperature**2 * (per_token * weights).sum()
    total = (1 - config.share) * plain.total + config.share * divergence
    return replace(plain, total=total, parts={**plain.parts, "divergence": divergence.detach()})


def weighted_squared_error(logits: Tensor, targets: Tensor, weights: Tensor) -> Loss:
    """Squared errors of the first output in logits (B, T, V), each weighted (B, T)."""
    total = (target_losses(logits, targets) * weights).sum()
    return Loss(total, total.detach(), weights.sum())


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Loss:
    """Cross-entropy of logits (B, T, V) with targets (B, T), each weighted (B, T), in nats.

    z_loss adds z_loss * log(Z)^2 (PaLM, section 5); label_smoothing mixes the target with the uniform
    distribution (Szegedy et al. 2016). Positions of weight 0 have no influence.
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

"""Losses return sums, never means: who knows the weight of the whole global batch divides once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, eq=False)
class Loss:
    """total: what is minimised, summed over the batch; nats: the plain cross-entropy in it, detached;
    weight: the sum of the loss weights.

    parts: further sums, detached, that are divided by the weight where they are noted; counts: numbers that are noted
    as they are; loads: how many pieces chose each expert, by module.
    """

    total: Tensor
    nats: Tensor
    weight: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    loads: dict[nn.Module, Tensor] = field(default_factory=dict)


def add_up(sums: dict, values: Mapping) -> None:
    """Add each value to the sum of its name, in place."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


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

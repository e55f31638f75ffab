"""An estimate of the memory of a training step, by arithmetic."""

from __future__ import annotations

from typing import assert_never

from isoform.model.activations import activation_numbers
from isoform.model.baseline_config import Model
from isoform.model.cost import Shape, num_matrix_parameters, num_parameters
from isoform.outside import External
from isoform.terminal import count
from isoform.training.config import AdamW, Muon, Optimizer, Training

FLOAT = 4


def state_memory(config: Model, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer in float32: what training takes whatever the batch."""
    parameters = num_parameters(config)
    match optimizer:
        case AdamW() | External():  # of the user's own it is unknown, and taken to be the same
            state = 2 * parameters
        case Muon():  # momentum for matrices, two moments for the rest
            state = 2 * parameters - num_matrix_parameters(config)
        case _:
            assert_never(optimizer)
    return {"parameters": FLOAT * parameters, "gradients": FLOAT * parameters, "optimizer": FLOAT * state}


def check_memory(config: Model, training: Training, available: int) -> None:
    """Raises ValueError for a model that can't be trained in `available` bytes, whatever the batch."""
    needed, trains_all = state_memory(config, training.optimizer), training.adapters is None and not training.frozen
    if (least := sum(needed.values()) if trains_all else needed["parameters"]) > available:
        raise ValueError(
            f"a model of {num_parameters(config):,} parameters takes at least {count(least)}B to train, and this "
            f"machine has {count(available)}B; make it smaller (model.model_dim, num_layers)"
        )


def training_memory(config: Model, shape: Shape, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of parameters, gradients, optimizer and activations for micro-batches of this shape, in float32."""
    return {**state_memory(config, optimizer), "activations": FLOAT * activation_numbers(config, shape)}

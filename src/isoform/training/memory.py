"""An estimate of the memory of a training step, by arithmetic."""

from __future__ import annotations

from typing import assert_never

from isoform.model.activations import activation_numbers
from isoform.model.baseline_config import Model
from isoform.model.cost import Shape, num_matrix_parameters, num_parameters
from isoform.training.config import AdamW, Muon, Optimizer

FLOAT = 4


def training_memory(config: Model, shape: Shape, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of parameters, gradients, optimizer and activations for micro-batches of this shape, in float32."""
    parameters = num_parameters(config)
    match optimizer:
        case AdamW():
            state = 2 * parameters
        case Muon():  # momentum for matrices, two moments for the rest
            state = 2 * parameters - num_matrix_parameters(config)
        case _:
            assert_never(optimizer)
    return {
        "parameters": FLOAT * parameters,
        "gradients": FLOAT * parameters,
        "optimizer": FLOAT * state,
        "activations": FLOAT * activation_numbers(config, shape),
    }

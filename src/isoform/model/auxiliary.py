"""What a forward pass reports beside its output: auxiliary losses, loads of experts, recorded tensors.

The model only reports it; `objectives/task.py` decides what to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from isoform.model.recording import Recorder


@dataclass(eq=False)
class Auxiliary:
    """Created for each forward pass and passed in.

    losses: means over the pass's tokens, times their weights in the config, summed over modules;
    counts: plain sums over modules; loads: how many tokens chose each expert (E), by module; recorder: stores
    tensors by name, such as the hidden states (B, T, D) of early exits, exits.N, and of heads that predict the N-th
    token after the next one, ahead.N.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    loads: dict[nn.Module, Tensor] = field(default_factory=dict)
    recorder: Recorder | None = None

    @torch.compiler.disable
    def add(
        self,
        module: nn.Module,
        *,
        losses: Mapping[str, Tensor] | None = None,
        counts: Mapping[str, Tensor] | None = None,
        load: Tensor | None = None,
    ) -> None:
        """Add what one module reports of one pass through it."""
        add_up(self.losses, losses or {})
        add_up(self.counts, counts or {})
        add_up(self.loads, {} if load is None else {module: load})


def add_up(sums: dict, values: Mapping) -> None:
    """Add each value to the sum of its name, in place."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value

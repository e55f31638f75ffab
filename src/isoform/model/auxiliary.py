"""What a forward pass reports beside its output: auxiliary losses, loads of experts, recorded tensors.

The model only reports it; `objectives/task.py` decides what to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isoform.model.recording import Recorder


class Auxiliary:
    """Created for each forward pass and passed in. Not a dataclass: libraries that wrap modules rebuild those on the
    way, and what is added to one would be lost.

    losses: means over the pass's tokens, times their weights in the config, summed over modules;
    counts: plain sums over modules; loads: how many tokens chose each expert (E), by module; recorder: stores
    tensors by name, such as the hidden states (B, T, D) of early exits, exits.N, and of heads that predict the N-th
    token after the next one, ahead.N.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.losses: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.loads: dict[nn.Module, Tensor] = {}
        self.recorder = recorder

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

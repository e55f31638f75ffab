"""A causal dilated convolution as a block's mixer (ByteNet, Kalchbrenner et al. 2016; Bai et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoform.model.cache import RecurrentState, StateShape
from isoform.model.component import Role
from isoform.model.kernels import Linear
from isoform.model.mixers.documents import Documents
from isoform.model.parts import CausalConvolution
from isoform.model.recording import Recorder


class ConvolutionMixer(nn.Module):
    """One product with the tokens under the kernel side by side, oldest first. The state: the last R inputs (B, R, D).

    Written so its weights are one matrix (outputs, taps x inputs): Muon treats it as any other, and on CPUs its product
    runs in the format of the others.
    """

    recordable = ()

    def __init__(self, config: CausalConvolution, model_dim: int) -> None:
        super().__init__()
        self.distances = [i * config.dilation for i in reversed(range(config.kernel_size))]
        self.output = Linear(config.kernel_size * model_dim, model_dim, bias=False, role=Role.OUTPUT)

    @property
    def reach(self) -> int:
        """How far it looks back."""
        return self.distances[0]

    @property
    def state_shape(self) -> StateShape:
        """What a cache keeps of each row."""
        return StateShape(((self.reach, self.output.out_features),))

    def forward(
        self, x: Tensor, documents: Documents, state: RecurrentState | None = None, recorder: Recorder | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D); `state` is read at the start and replaced by the state after the last token."""
        rows = x if documents.are_rows else documents.apart(x)
        if state is None:
            past = rows.new_zeros(len(rows), self.reach, rows.shape[-1])
        else:
            past = state.tensors[0] if documents.are_rows else documents.states(state.tensors[0])
        padded, length = torch.cat([past, rows], 1), rows.shape[1]
        if state is not None and documents.are_rows:
            state.tensors = (padded[:, length:],)
        elif state is not None:
            newest = documents.lengths.unsqueeze(1) + torch.arange(self.reach, device=x.device)
            ends = padded.gather(1, newest.unsqueeze(-1).expand(-1, -1, padded.shape[-1]))
            state.tensors = (documents.last(state.tensors[0], ends),)
        taps = [padded[:, self.reach - d : self.reach - d + length] for d in self.distances]
        out = self.output(torch.cat(taps, -1))
        return out if documents.are_rows else documents.together(out)

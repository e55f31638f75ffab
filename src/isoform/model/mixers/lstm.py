"""Long short-term memory (Hochreiter and Schmidhuber 1997) as a block's mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from isoform.model.cache import RecurrentState, StateShape
from isoform.model.component import Component, Role
from isoform.model.mixers.documents import Documents
from isoform.model.recording import Recorder


class LSTMMixer(Component):
    """One layer, over each document from a state of zeros. The state: hidden and cell (B, D) each."""

    roles = (("lstm", Role.MATRIX),)
    recordable = ("states",)

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(model_dim, model_dim, batch_first=True)

    @property
    def state_shape(self) -> StateShape:
        """What a cache keeps of each row."""
        return StateShape(((self.lstm.hidden_size,), (self.lstm.hidden_size,)))

    def forward(
        self, x: Tensor, documents: Documents, state: RecurrentState | None = None, recorder: Recorder | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D); `state` is read at the start and replaced by the state after the last token."""
        out = self._run(x, documents, state)
        if recorder is not None:
            recorder.take("states", lambda: out)
        return out

    def _run(self, x: Tensor, documents: Documents, state: RecurrentState | None) -> Tensor:
        if not documents.are_rows and not len(documents.lengths):
            return torch.zeros_like(x)  # empty slots alone, which nn.LSTM refuses
        if state is None:
            rows = x if documents.are_rows else documents.apart(x)
            out, _ = self.lstm(rows)
            return out if documents.are_rows else documents.together(out)
        if documents.are_rows:
            hidden, cell = (t.unsqueeze(0) for t in state.tensors)
            out, (hidden, cell) = self.lstm(x, (hidden, cell))
            state.tensors = hidden.squeeze(0), cell.squeeze(0)
            return out
        begins = tuple(documents.states(t).unsqueeze(0) for t in state.tensors)
        rows = pack_padded_sequence(documents.apart(x), documents.lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, ends = self.lstm(rows, begins)
        out, _ = pad_packed_sequence(packed, batch_first=True)
        state.tensors = tuple(documents.last(t, e.squeeze(0)) for t, e in zip(state.tensors, ends, strict=True))
        return documents.together(out)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Orthogonal recurrence, and gates that remember at first (Jozefowicz et al. 2015)."""
        for name, parameter in self.lstm.named_parameters():
            gates = parameter.chunk(4)  # input, forget, cell, output
            if "weight_hh" in name:
                for gate in gates:
                    nn.init.orthogonal_(gate)
            elif "weight_ih" in name:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            else:
                nn.init.zeros_(parameter)
                if "bias_ih" in name:
                    nn.init.ones_(gates[1])

"""Which tokens of a batch belong to the same document, for mixers that read each from its start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isoform.mask import Causal, Coordinates, Mask


def check_reads_forward(mask: Mask) -> None:
    """Raises ValueError for a mask under which mixers that read each document from its start would see less than they
    may, or more."""
    if mask != Causal():
        raise ValueError(
            f"the mask {mask} with a recurrence or a convolution, which read forwards and need a causal one; "
            f"choose an objective that predicts every next token, or attention in every block"
        )


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents in rows (B, T), in which the tokens of one lie in order; empty slots may lie anywhere.

    previous: the document (B,) of the token that came before, in each row of a cache, -1 for none; None: no cache.
    """

    coordinates: Coordinates
    previous: Tensor | None = None

    @property
    def are_rows(self) -> bool:
        """Whether each row is one document, new or continuing the one of its state."""
        start = self.coordinates.start
        if self.previous is None or start is None:
            return start is not None
        return start > 0 or bool((self.previous < 0).all())

    @cached_property
    def is_token(self) -> Tensor:
        """Which slots hold a token (B, T)."""
        return self.coordinates.document >= 0

    @cached_property
    def begins(self) -> Tensor:
        """Which tokens begin a document other than that of the state (B, T)."""
        document, is_token = self.coordinates.document, self.is_token
        columns = torch.arange(document.shape[1], device=document.device)
        newest = torch.where(is_token, columns, -1).cummax(1).values
        newest = torch.cat([newest.new_full((len(document), 1), -1), newest[:, :-1]], 1)
        previous = newest.new_full((len(document),), -1) if self.previous is None else self.previous
        before = torch.where(newest < 0, previous.unsqueeze(1), document.gather(1, newest.clamp(min=0)))
        return is_token & (document != before)

    @cached_property
    def _layout(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each token (n) the number of its document and its position in that; of each document (M) its row, and its
        number within the row, 0 for one that continues the state's."""
        number_in_row = self.begins.cumsum(1)[self.is_token]
        row = self.is_token.nonzero()[:, 0]
        is_first = torch.ones_like(row, dtype=torch.bool)
        is_first[1:] = (row[1:] != row[:-1]) | (number_in_row[1:] != number_in_row[:-1])
        number = is_first.cumsum(0) - 1
        position = torch.arange(len(number), device=number.device) - is_first.nonzero()[number, 0]
        return number, position, row[is_first], number_in_row[is_first]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each document (M,)."""
        return torch.bincount(self._layout[0])

    def apart(self, x: Tensor) -> Tensor:
        """Rows x (B, T, D) as one row for each document (M, L, D), zeros after its end."""
        number, position, row, _ = self._layout
        length = int(position.max()) + 1 if len(position) else 0
        return x.new_zeros(len(row), length, x.shape[-1]).index_put((number, position), x[self.is_token])

    def together(self, rows: Tensor) -> Tensor:
        """The inverse of `apart`: (M, L, D) to (B, T, D); empty slots are zero."""
        number, position, _, _ = self._layout
        out = rows.new_zeros(*self.is_token.shape, rows.shape[-1])
        return out.index_put((self.is_token,), rows[number, position])

    def states(self, state: Tensor) -> Tensor:
        """The state (M, …) that each document starts from, of the states (B, …) of rows: its row's, or zeros."""
        _, _, row, number_in_row = self._layout
        continues = (number_in_row == 0).view(-1, *[1] * (state.dim() - 1))
        return state[row] * continues

    def last(self, state: Tensor, ends: Tensor) -> Tensor:
        """The states (B, …) of rows after their documents, which end with these (M, …)."""
        _, _, row, _ = self._layout
        is_last = torch.ones_like(row, dtype=torch.bool)
        is_last[:-1] = row[1:] != row[:-1]
        return state.index_put((row[is_last],), ends[is_last])

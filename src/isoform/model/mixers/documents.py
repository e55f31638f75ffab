"""Which tokens of a batch belong to the same document, for mixers that go through each from its start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isoform.mask import Coordinates


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents in rows (B, T), in which the tokens of one lie in order; empty slots may lie anywhere.

    previous: the document (B,) of the token that came before, in each row of a cache, -1 for none; None: no cache.
    """

    coordinates: Coordinates
    previous: Tensor | None = None

    @property
    def are_rows(self) -> bool:
        """Whether each row is one document, or goes on with the one that its state is of."""
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
        """Which tokens begin a document that the state isn't of (B, T)."""
        document, is_token = self.coordinates.document, self.is_token
        columns = torch.arange(document.shape[1], device=document.device)
        newest = torch.where(is_token, columns, -1).cummax(1).values
        newest = torch.cat([newest.new_full((len(document), 1), -1), newest[:, :-1]], 1)
        previous = newest.new_full((len(document),), -1) if self.previous is None else self.previous
        before = torch.where(newest < 0, previous.unsqueeze(1), document.gather(1, newest.clamp(min=0)))
        return is_token & (document != before)

    @cached_property
    def _positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token (n) its document's number and its place in that; of each document (M) its row, and there its
        number, 0 for one that goes on."""
        in_row = self.begins.cumsum(1)[self.is_token]
        row = (
            torch.arange(len(self.is_token), device=in_row.device).unsqueeze(1).expand_as(self.is_token)[self.is_token]
        )
        keys, number = (row * (self.is_token.shape[1] + 1) + in_row).unique_consecutive(return_inverse=True)
        lengths = torch.bincount(number, minlength=len(keys))
        position = torch.arange(len(number), device=number.device) - (lengths.cumsum(0) - lengths)[number]
        return number, position, keys

    @property
    def lengths(self) -> Tensor:
        """Tokens of each document (M,)."""
        return torch.bincount(self._positions[0])

    def apart(self, x: Tensor) -> Tensor:
        """Rows x (B, T, D) as one row for each document (M, L, D), zeros after its end."""
        number, position, keys = self._positions
        rows = x.new_zeros(len(keys), int(position.max()) + 1, x.shape[-1])
        return rows.index_put((number, position), x[self.is_token])

    def together(self, rows: Tensor) -> Tensor:
        """What `apart` took apart (M, L, D), in its rows again (B, T, D); empty slots are zero."""
        number, position, _ = self._positions
        out = rows.new_zeros(*self.is_token.shape, rows.shape[-1])
        return out.index_put((self.is_token,), rows[number, position])

    def states(self, state: Tensor) -> Tensor:
        """What each document (M, …) begins with, of the states (B, …) of rows: its own, or zeros."""
        row, in_row = self._rows_and_numbers
        goes_on = (in_row == 0).view(-1, *[1] * (state.dim() - 1))
        return state[row] * goes_on

    def last(self, state: Tensor, ends: Tensor) -> Tensor:
        """The states (B, …) of rows after documents that end with these (M, …)."""
        row, _ = self._rows_and_numbers
        is_last = torch.ones_like(row, dtype=torch.bool)
        is_last[:-1] = row[1:] != row[:-1]
        return state.index_put((row[is_last],), ends[is_last])

    @property
    def _rows_and_numbers(self) -> tuple[Tensor, Tensor]:
        keys, width = self._positions[2], self.is_token.shape[1] + 1
        return keys // width, keys % width

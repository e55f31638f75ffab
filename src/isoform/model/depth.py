"""Mixture of depths: of each row only some tokens go through a block, the others stay as they are (Raposo et al. 2024).

A block's wiring, for x (B, T, D) at `coordinates`, with `present` (B, T) or None:

    subset = self.depth.choose(x, present, auxiliary)        # training, and evaluation without a causal order
    subset = self.depth.predict(x, present)              # evaluation in a causal order, cached or not
    inside = subset.gather(x)                            # (B, C, D), in the order they had
    y = block(inside, at = subset.coordinates(coordinates), present = subset.is_chosen)
    x = subset.scatter_back(x, inside, y)

Attention is among the chosen: their own coordinates (document -1 where a slot is empty) are queries and keys alike, so
that mask, documents and positions mean what they mean elsewhere, and whatever else the block reads token by token (the
embeddings of an x0 shortcut, the first block's values) goes through `gather` too. `predict` keeps all T slots, so a
cache takes the block's keys with `subset.coordinates(coordinates)`: a token that didn't go through has document -1
there, which no query sees. A block whose subset has no token may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from isoform.mask import Coordinates
from isoform.model.auxiliary import Auxiliary
from isoform.model.experts import Router, quota
from isoform.model.parts import Depth


@dataclass(frozen=True, eq=False)
class Subset:
    """The tokens of each row that go through: C slots, in the order of the row.

    indices: the token in each slot (B, C), ascending, None: every token has its own slot; is_chosen: whether the slot
    counts (B, C); weights: what the block adds to a token is multiplied by (B, C).
    """

    indices: Tensor | None
    is_chosen: Tensor
    weights: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """What belongs to each slot (B, C, ..) of what belongs to each token (B, T, ..)."""
        if self.indices is None:
            return x
        if x.shape[0] != len(self.indices):
            x = x.expand(len(self.indices), *x.shape[1:])
        indices = self.indices.view(*self.indices.shape, *[1] * (x.dim() - 2))
        return x.gather(1, indices.expand(*self.indices.shape, *x.shape[2:]))

    def coordinates(self, coordinates: Coordinates) -> Coordinates:
        """Where the slots stand (B, C); empty ones are in no document."""
        rows = len(self.is_chosen)
        inside = coordinates.map(lambda t: self.gather(t.expand(rows, *t.shape[1:])))
        return replace(inside, document=inside.document.masked_fill(~self.is_chosen, -1))

    def scatter_back(self, x: Tensor, inside: Tensor, y: Tensor) -> Tensor:
        """The stream (B, T, D) after a block made y (B, C, D) of inside = gather(x): x + weight (y - inside) where a
        token was chosen (Raposo et al. 2024, eq. 1, f being what the block adds), x elsewhere."""
        added = (y - inside) * self.weights.unsqueeze(-1).to(y.dtype)
        added = added.masked_fill(~self.is_chosen.unsqueeze(-1), 0)
        if self.indices is None:
            return x + added
        return x.scatter_add(1, self.indices.unsqueeze(-1).expand_as(added), added)


def choose(scores: Tensor, present: Tensor | None, share: float) -> Subset:
    """The ceil(share x tokens) tokens of each row that score highest, in their order; weights are sigmoids.

    scores (B, T); present (B, T): which slots hold a token, None: all. The paper multiplies by the score itself,
    which at first is next to nothing; the sigmoid chooses alike and starts from a half.
    """
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    takes = quota(present.sum(-1, keepdim=True), share)
    ranked = scores.detach().masked_fill(~present, -torch.inf).topk(max(1, int(takes.max())), dim=-1).indices
    indices, order = ranked.sort(-1)
    return Subset(indices, order < takes, scores.sigmoid().gather(-1, indices))


class DepthRouter(nn.Module):
    """Scores tokens and, with a predictor, learns to predict from the token alone whether it will be chosen."""

    def __init__(self, config: Depth, model_dim: int) -> None:
        super().__init__()
        self.config = config
        self.router = Router(model_dim, 1, bias=False)
        self.predictor = Router(model_dim, 1) if config.predictor else None

    def choose(self, x: Tensor, present: Tensor | None = None, auxiliary: Auxiliary | None = None) -> Subset:
        """The tokens of x (B, T, D) that go through, by their rank in the row: it looks at the future."""
        subset = choose(self.router(x).squeeze(-1), present, self.config.share)
        if auxiliary is not None:
            auxiliary.add(self, losses=self._losses(x, subset, present))
        return subset

    def predict(self, x: Tensor, present: Tensor | None = None) -> Subset:
        """Those that the predictor chooses, each token by itself; all slots are kept."""
        assert self.predictor is not None, "config.py refuses depth without a predictor where order is causal"
        is_chosen, weights = self.predictor(x).squeeze(-1) > 0, self.router(x).squeeze(-1).sigmoid()
        return Subset(None, is_chosen if present is None else is_chosen & present, weights)

    def _losses(self, x: Tensor, subset: Subset, present: Tensor | None) -> dict[str, Tensor]:
        if self.predictor is None:
            return {}
        foreseen = self.predictor(x.detach()).squeeze(-1)
        assert subset.indices is not None
        happened = torch.zeros_like(foreseen).scatter_(1, subset.indices, subset.is_chosen.to(foreseen.dtype))
        nats = functional.binary_cross_entropy_with_logits(foreseen, happened, reduction="none")
        mean = nats.mean() if present is None else (nats * present).sum() / present.sum().clamp(min=1)
        return {"predictor_loss": self.config.predictor_loss * mean}

"""A mixer of the user's own: an nn.Module that reads rows of one document each, under a mask of booleans."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isoform.mask import Causal, Coordinates, Mask, dense_mask
from isoform.model.cache import KeyValueShape, KeyValueState
from isoform.model.component import Component, Role
from isoform.model.mixers.documents import Documents
from isoform.model.recording import Recorder
from isoform.outside import External, build_mixer


class ExternalMixer(Component):
    """MODULE:NAME(model_dim, **options), whose forward(x, allowed) turns (B, T, D) into (B, T, D).

    Each row of x is one document from its start, padded at its end; allowed (B, T, T): whether token t may read token
    s; padding reads itself alone. Packed rows come apart before, and together again after it. While a text is
    generated the cache keeps what the mixer read, and it reads all of it again for each token.

    Parameters keep the values that they are made with. Matrices count as such, for Muon too; arrays of more dimensions
    are left to AdamW.
    """

    recordable = ()

    def __init__(self, config: External, model_dim: int) -> None:
        super().__init__()
        self.part, self.model_dim = build_mixer(config, model_dim), model_dim
        self.roles = tuple(
            (f"part.{name}", Role.MATRIX if parameter.dim() == 2 else Role.MIX)
            for name, parameter in self.part.named_parameters()
            if parameter.dim() != 1
        )

    @property
    def state_shape(self) -> KeyValueShape:
        """What a cache keeps of each row: what the mixer read."""
        return KeyValueShape(1, self.model_dim)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        coordinates: Coordinates,
        state: KeyValueState | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); coordinates: of x, or with a state of all that it holds then."""
        length = x.shape[1]
        if state is not None:
            together = state.append(x.unsqueeze(1), x.unsqueeze(1))[0].squeeze(1)
            return self.forward(together, mask, coordinates)[:, -length:]
        if coordinates.start == 0:
            return self.part(x, _allowed(mask, coordinates).expand(len(x), -1, -1))
        documents = Documents(coordinates)
        apart = documents.apart(x)
        inside = coordinates.map(lambda t: _apart(documents, t))
        document = _apart(documents, coordinates.document + 1) - 1
        inside = Coordinates(document, inside.index, inside.prefix, inside.position, is_ordered=True)
        return documents.together(self.part(apart, _allowed(mask, inside)))


def _apart(documents: Documents, t: Tensor) -> Tensor:
    """A tensor of rows (B, T, …) as one row for each document (M, L, …)."""
    t = t.expand(*documents.is_token.shape, *t.shape[2:])
    rows = documents.apart(t.reshape(*t.shape[:2], -1))
    return rows.reshape(*rows.shape[:2], *t.shape[2:])


@torch.no_grad()
def check_mixer(
    build: Callable[[int], nn.Module], model_dim: int = 16, length: int = 8, mask: Mask | None = None
) -> None:
    """The contract of a mixer of the user's own, under a mask (None: causal); raises AssertionError if violated.

    It returns a tensor of its input's shape, the same one each time, and what a token becomes depends on no token that
    it may not read, and on no padding.
    """
    module, mask = build(model_dim).eval(), Causal() if mask is None else mask
    x = torch.randn(2, length, model_dim, generator=torch.Generator().manual_seed(0))
    cut = length // 2
    other = torch.cat([x[:, :cut], -x[:, cut:]], 1)
    index = torch.arange(length).expand(2, length)
    whole = Coordinates(torch.zeros_like(index), index, start=0)
    padded = Coordinates(torch.where(index < cut, 0, -1), index)
    allowed = _allowed(mask, whole)
    out = module(x, allowed)
    assert out.shape == x.shape, f"an input {tuple(x.shape)} became {tuple(out.shape)}"
    assert torch.equal(out, module(x, allowed)), "the same input had two outputs"
    is_blind = ~allowed[:, :, cut:].any(-1)
    limit = 1e-5 * out.abs().max()
    assert ((module(other, allowed) - out)[is_blind].abs() <= limit).all(), (
        "a token depends on one that it may not read"
    )
    allowed = _allowed(mask, padded)
    change = (module(other, allowed) - module(x, allowed))[:, :cut]
    assert (change.abs() <= limit).all(), "a token depends on padding"


def _allowed(mask: Mask, coordinates: Coordinates) -> Tensor:
    """Which tokens each token may read (B, T, T); padding reads itself, so that no softmax is empty."""
    allowed = dense_mask(mask, coordinates, coordinates)
    is_same = torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
    return allowed | (is_same & (coordinates.document < 0).unsqueeze(2))

"""Attention: a round of data-dependent message passing between pieces (Vaswani et al. 2017, section 3.2).

Every piece emits a query, a key and a value; along each allowed edge, a softmax of query-key products says
how much of the value flows. The heart is `attend` and `Attention.forward`; `examples/message_passing.py`
is the same thing as loops over a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from isoform.mask import Causal, Coordinates, Full, Mask, attended
from isoform.model.cache import LayerCache
from isoform.model.config import AttentionConfig
from isoform.model.kernels import Linear, is_short, rms_norm, short_causal_attention
from isoform.model.position import Turn

CAUSAL, ALL = "causal", "all"
EPSILON = 1e-6
Allowed = Tensor | str
"""Which keys each query may see: booleans (B, 1, T, S), or one of the shortcuts CAUSAL and ALL."""


def lower(mask: Mask, query: Coordinates, key: Coordinates) -> Allowed:
    """The mask on these coordinates, as the kernel wants it; plain rows take shortcuts."""
    if query.start is not None and key.start is not None:
        num_queries, num_keys = query.index.shape[-1], key.index.shape[-1]
        if mask == Full():
            return ALL
        if mask == Causal() and query.start == key.start and num_queries == num_keys:
            return CAUSAL
        if mask == Causal() and num_queries == 1 and query.start == key.start + num_keys - 1:
            return ALL
    return attended(mask, query, key).unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Allowed, *, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(H)) v over the allowed keys: (B, N, T, H) with (B, K, S, H) to (B, N, T, H).

    A query without any key gives zeros and no gradient.
    """
    is_grouped = q.shape[1] != k.shape[1]
    if isinstance(allowed, str):
        is_causal = allowed == CAUSAL and q.shape[2] > 1
        if is_causal and not dropout and is_short(q, k):
            return short_causal_attention(q, k, v)
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal, enable_gqa=is_grouped)
    has_key = allowed.any(-1, keepdim=True)
    edges = allowed | ~has_key  # a row of the softmax needs something to normalise over
    out = scaled_dot_product_attention(q, k, v, attn_mask=edges, dropout_p=dropout, enable_gqa=is_grouped)
    return out * has_key


class Attention(nn.Module):
    """Multi-head attention of a piece to its own sequence, or (`cross`) to an encoder's output."""

    def __init__(self, config: AttentionConfig, model_dim: int, head_dim: int, *, cross: bool = False) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads or config.num_heads
        self.head_dim, self.qk_norm, self.dropout = head_dim, config.qk_norm, config.dropout
        query_dim, kv_dim = self.num_heads * head_dim, self.num_kv_heads * head_dim
        if cross:
            self.query = Linear(model_dim, query_dim, bias=config.bias)
            self.key_value = Linear(model_dim, 2 * kv_dim, bias=config.bias)
        else:  # one product instead of three
            self.query_key_value = Linear(model_dim, query_dim + 2 * kv_dim, bias=config.bias)
        self.output = Linear(query_dim, model_dim, bias=config.bias)
        has_shortcut = config.value_shortcut and not cross
        self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5])) if has_shortcut else None

    def forward(
        self,
        x: Tensor,
        allowed: Allowed,
        turn: Turn,
        first_values: Tensor | None = None,
        cache: LayerCache | None = None,
        end: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, D) to (B, T, D), and the values (B, T, K, H) for the blocks above.

        `end`: the slot after the newest piece's, where there is a cache.
        """
        num_rows, length, _ = x.shape
        heads = self.query_key_value(x).view(num_rows, length, -1, self.head_dim)
        qk, v = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=2)
        qk = turn(rms_norm(qk, EPSILON) if self.qk_norm else qk)
        values = v
        if self.value_mix is not None and first_values is not None:
            v = self.value_mix[0] * v + self.value_mix[1] * first_values
        q, k = qk.transpose(1, 2).split([self.num_heads, self.num_kv_heads], dim=1)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v, end)
        return self.collect(attend(q, k, v, allowed, dropout=self.dropout if self.training else 0.0)), values

    def read(self, x: Tensor, memory: Tensor, allowed: Allowed, cache: LayerCache | None = None) -> Tensor:
        """Cross-attention: x (B, T, D) asks the encoder's output, memory (B, S, D)."""
        num_rows, length, _ = x.shape
        q = self.query(x).view(num_rows, length, -1, self.head_dim).transpose(1, 2)
        if cache is None or cache.memory is None:
            kv = self.key_value(memory).view(num_rows, memory.shape[1], -1, self.head_dim).transpose(1, 2)
            k, v = kv.split(self.num_kv_heads, dim=1)
            k = rms_norm(k, EPSILON) if self.qk_norm else k
            if cache is not None:
                cache.memory = (k, v)
        else:
            k, v = cache.memory
        q = rms_norm(q, EPSILON) if self.qk_norm else q
        return self.collect(attend(q, k, v, allowed, dropout=self.dropout if self.training else 0.0))

    def collect(self, heads: Tensor) -> Tensor:
        """Heads (B, N, T, H) side by side and back into the residual stream (B, T, D)."""
        return self.output(heads.transpose(1, 2).flatten(2))

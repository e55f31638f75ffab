"""Attention: a round of data-dependent message passing between tokens (Vaswani et al. 2017, section 3.2).

Every token emits a query, a key and a value; along each allowed edge, a softmax of query-key products decides
how much of the value flows. The heart is `MultiHeadAttention.forward` and `attend` in lowering.py;
`examples/message_passing.py` is the same thing as loops over a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoform.model.cache import KeyValueState
from isoform.model.component import Component, Role
from isoform.model.kernels import Linear
from isoform.model.lowering import ALL, Allowed, attend, attention_weights
from isoform.model.norm import build_norm
from isoform.model.parts import Attention, RMSNorm
from isoform.model.position import Relative, Rotation, unrotated
from isoform.model.recording import Recorder

KeysValues = tuple[Tensor, Tensor]
"""Of tokens: (B, K, T, H) each."""


@dataclass(frozen=True, eq=False)
class AttentionTerms:
    """What mask and positions contribute to attention: which keys each query may see, the rotation of queries and keys,
    a bias (B or 1, N, T, S) of the scores, and vectors relative to the distance."""

    allowed: Allowed = ALL
    rotation: Rotation = unrotated
    bias: Tensor | None = None
    relative: Relative | None = None


class GapBias(Component):
    """A bias for the queries and the value of each group of heads, and none for its key."""

    methods = ("of_values",)

    def __init__(self, num_groups: int, queries: int, head_dim: int) -> None:
        super().__init__()
        self.queries, self.head_dim = queries, head_dim
        self.bias = nn.Parameter(torch.zeros(num_groups * (queries + 1) * head_dim))
        self.groups = (("bias", (queries * head_dim, head_dim) if queries else (head_dim,)),)

    def forward(self, heads: Tensor) -> Tensor:
        """Queries, key and value of each group (B, T, K, Q + 2, H) with their bias."""
        bias = self.bias.view(-1, self.queries + 1, self.head_dim)
        key = bias.new_zeros(len(bias), 1, self.head_dim)
        return heads + torch.cat([bias[:, : self.queries], key, bias[:, self.queries :]], 1)

    def of_values(self, v: Tensor) -> Tensor:
        """Values (B, T, K, H) with theirs."""
        return v + self.bias.view(-1, self.queries + 1, self.head_dim)[:, -1]


class MultiHeadAttention(Component):
    """Multi-head attention of a token to its own sequence, or (`cross`) to an encoder's output.

    Heads come in groups: one key, one value and the `queries` that share them, Q in each of K groups.
    """

    kernel = "auto"
    recordable = ("queries", "keys", "values", "weights")
    roles = (("value_mix", Role.MIX),)
    methods = ("read", "keys_values")

    def __init__(self, config: Attention, model_dim: int, head_dim: int, *, cross: bool = False) -> None:
        super().__init__()
        num_groups = config.num_kv_heads or config.num_heads
        self.queries = config.num_heads // num_groups
        self.head_dim, self.scale, self.dropout, self.softcap = head_dim, config.scale, config.dropout, config.softcap
        query_dim, kv_dim = config.num_heads * head_dim, num_groups * head_dim
        bias, has_gap = config.bias and config.key_bias, config.bias and not config.key_bias
        if cross:
            self.query = Linear(model_dim, query_dim, bias=config.bias)
            self.key_value = Linear(model_dim, 2 * kv_dim, bias=bias, group=(head_dim, head_dim))
        else:  # one product instead of three
            group = (self.queries * head_dim, head_dim, head_dim)
            self.query_key_value = Linear(model_dim, query_dim + 2 * kv_dim, bias=bias, group=group)
        self.gap_bias = GapBias(num_groups, 0 if cross else self.queries, head_dim) if has_gap else None
        output_bias = config.bias if config.output_bias is None else config.output_bias
        self.output = Linear(query_dim, model_dim, bias=output_bias, role=Role.OUTPUT)
        norm, self.is_whole = config.qk_norm, config.qk_norm_over == "projection"
        is_alike = norm is None or (not self.is_whole and norm == RMSNorm(epsilon=norm.epsilon, scale=False))
        self.is_together = is_alike and self.queries == 1
        """Whether queries and keys are normed and turned as one."""
        self.query_norm = None if norm is None else build_norm(norm, query_dim if self.is_whole else head_dim)
        self.key_norm = None if norm is None else build_norm(norm, kv_dim if self.is_whole else head_dim)
        has_shortcut = config.value_shortcut and not cross
        self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5])) if has_shortcut else None

    @property
    def num_heads(self) -> int:
        """Heads here, which may be a shard's."""
        return self.output.weight.shape[1] // self.head_dim

    @property
    def num_kv_heads(self) -> int:
        """Groups of heads here."""
        return self.num_heads // self.queries

    def forward(
        self,
        x: Tensor,
        terms: AttentionTerms,
        first_values: Tensor | None = None,
        cache: KeyValueState | None = None,
        context: KeysValues | None = None,
        recorder: Recorder | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, D) to (B, T, D), and the values (B, T, K, H) for the blocks above.

        context: keys and values of tokens before these, which are attended to as well.
        """
        qkv_BTKGH = self.query_key_value(x).unflatten(-1, (-1, self.queries + 2, self.head_dim))
        qkv_BTKGH = qkv_BTKGH if self.gap_bias is None else self.gap_bias(qkv_BTKGH)
        v_BTKH = values_BTKH = qkv_BTKGH[:, :, :, -1]
        if self.is_together:
            qk_BTKGH = self.normalized(qkv_BTKGH[:, :, :, :-1], self.query_norm)
            q_BTNH, k_BTKH = terms.rotation(qk_BTKGH).unbind(3)
        else:
            q_BTNH = terms.rotation(self.normalized(qkv_BTKGH[:, :, :, :-2], self.query_norm)).flatten(2, 3)
            k_BTKH = terms.rotation(self.normalized(qkv_BTKGH[:, :, :, -2], self.key_norm))
        if self.value_mix is not None and first_values is not None:
            v_BTKH = self.value_mix[0] * v_BTKH + self.value_mix[1] * first_values
        q, k, v = (heads.transpose(1, 2) for heads in (q_BTNH, k_BTKH, v_BTKH))
        if recorder is not None:
            for name, heads in (("queries", q), ("keys", k), ("values", v)):
                recorder.take(name, lambda heads=heads: heads)
        if context is not None:
            k, v = torch.cat([context[0], k], 2), torch.cat([context[1], v], 2)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.collect(self.mixed(q, k, v, terms, recorder)), values_BTKH

    def keys_values(self, memory: Tensor, rotation: Rotation) -> KeysValues:
        """Keys and values (B, K, S, H) of an encoder's output (B, S, D), by this stack's projections."""
        kv = self.query_key_value.outputs_after(memory, self.queries * self.head_dim)
        k_BSKH, v_BSKH = kv.unflatten(-1, (-1, 2, self.head_dim)).unbind(3)
        v_BSKH = v_BSKH if self.gap_bias is None else self.gap_bias.of_values(v_BSKH)
        return rotation(self.normalized(k_BSKH, self.key_norm)).transpose(1, 2), v_BSKH.transpose(1, 2)

    def read(
        self,
        x: Tensor,
        memory: Tensor,
        terms: AttentionTerms,
        cache: KeyValueState | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """Cross-attention of x (B, T, D) to the encoder's output, memory (B, S, D). Memory may have fewer rows: each is
        then attended to by B / len(memory) adjacent rows of x."""
        num_rows, length, _ = x.shape
        q_BTNH = self.normalized(self.query(x).view(num_rows, length, -1, self.head_dim), self.query_norm)
        q = q_BTNH.view(len(memory), -1, *q_BTNH.shape[2:]).transpose(1, 2)
        if cache is None or cache.memory is None:
            kv_BSKGH = self.key_value(memory).unflatten(-1, (-1, 2, self.head_dim))
            k_BSKH, v_BSKH = (kv_BSKGH if self.gap_bias is None else self.gap_bias(kv_BSKGH)).unbind(3)
            k, v = self.normalized(k_BSKH, self.key_norm).transpose(1, 2), v_BSKH.transpose(1, 2)
            if cache is not None:
                cache.memory = (k, v)
        else:
            k, v = cache.memory
        return self.collect(self.mixed(q, k, v, terms, recorder)).view_as(x)

    def normalized(self, heads: Tensor, norm: nn.Module | None) -> Tensor:
        """Queries or keys (B, T, .., H) after their norm."""
        if norm is None:
            return heads
        return norm(heads.flatten(2)).view(heads.shape) if self.is_whole else norm(heads)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, terms: AttentionTerms, recorder: Recorder | None = None) -> Tensor:
        """The weighted sum of values for each query, (B, N, T, H)."""
        if recorder is not None:
            recorder.take("weights", lambda: self.weights(q, k, terms))
        dropout, bias = self.dropout if self.training else 0.0, self.bias(q, terms)
        relative = None if terms.relative is None else terms.relative.mixed
        if relative is None and self.softcap is None:
            return attend(q, k, v, terms.allowed, scale=self.scale, bias=bias, dropout=dropout, kernel=self.kernel)
        weights = nn.functional.dropout(self.weights(q, k, terms), dropout)
        out = weights @ v.repeat_interleave(self.queries, 1)
        return out if relative is None else out + relative(weights)

    def weights(self, q: Tensor, k: Tensor, terms: AttentionTerms) -> Tensor:
        """Attention weights (B, N, T, S), whichever kernel is used otherwise."""
        bias = self.bias(q, terms)
        return attention_weights(q, k, terms.allowed, scale=self.scale, bias=bias, softcap=self.softcap)

    def bias(self, q: Tensor, terms: AttentionTerms) -> Tensor | None:
        """What positions add to the scores, (B or 1, N, T, S)."""
        if terms.relative is None:
            return terms.bias
        return terms.relative.scores(q * (q.shape[-1] ** -0.5 if self.scale is None else self.scale))

    def collect(self, heads: Tensor) -> Tensor:
        """Heads (B, N, T, H) side by side and back into the residual stream (B, T, D)."""
        return self.output(heads.transpose(1, 2).flatten(2))

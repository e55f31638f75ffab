"""From a mask to a kernel: how the one predicate becomes booleans, a band or a shortcut, and the softmax over it.

`lower` looks at mask and coordinates once for all blocks that share them; `attend` takes what it gives. A mask that
holds every query to the tokens near it becomes a band: chunks of queries against the keys around them, so that time
and memory grow with the length and not with its square (Beltagy et al. 2020, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from isoform.machine import compiler
from isoform.mask import Both, Causal, Coordinates, Either, Full, Mask, Prefix, Window, allowed_pair, dense_mask
from isoform.model.compiling import compiled
from isoform.model.kernels import is_short, short_causal_attention

CAUSAL, ALL = "causal", "all"
CHUNK = 128
"""Queries of a band that share their keys. At 8192 tokens and a window of 256, 64 is as fast and 256 a tenth slower."""


@dataclass(frozen=True, eq=False)
class Band:
    """A mask that reaches `before` slots back and `after` ahead, on T slots cut into chunks of queries.

    Chunk i asks the slots i chunk - before .. (i + 1) chunk + after - 1. additive_mask (B or 1, chunks, chunk,
    chunk + before + after) float32: 0 where a query sees a key, else -inf; has_key (B, 1, T, 1): which queries see
    any, None: all.
    Queries that see none are 0 everywhere in `additive_mask`, as a softmax needs something to normalise over.
    """

    chunk: int
    before: int
    after: int
    additive_mask: Tensor
    has_key: Tensor | None


@dataclass(frozen=True, eq=False)
class Blocks:
    """What FlexAttention wants: the predicate of one pair, (row, head, query, key) to a boolean, and its blocks, for
    `sizes` = (rows, queries, keys), rounded up: what is beyond the actual ones sees nothing."""

    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    block_mask: Any
    sizes: tuple[int, int, int]


Allowed = Tensor | str | Band | Blocks
"""Which keys each query may see: booleans (B or 1, 1, T, S), a band, blocks, or one of the shortcuts CAUSAL and ALL."""


# Which masks have a shape that kernels can use ------------------------------------------------------------------------


@lru_cache
def index_bounds(mask: Mask) -> tuple[float, float] | None:
    """How many tokens back and ahead, by index, a query can see at most; None where neither has a bound."""
    before, after = _bounds(mask)
    return None if before == after == math.inf else (before, after)


def look_back(mask: Mask) -> int | None:
    """How many tokens back a query can see at most; None: all."""
    before, _ = _bounds(mask)
    return None if before == math.inf else int(before)


def _bounds(mask: Mask) -> tuple[float, float]:
    match mask:
        case Causal():
            return math.inf, 0
        case Window(before=before, after=after):
            return before, after
        case Both(left=left, right=right):
            (b, a), (d, c) = _bounds(left), _bounds(right)
            return min(b, d), min(a, c)
        case Either(left=left, right=right):
            (b, a), (d, c) = _bounds(left), _bounds(right)
            return max(b, d), max(a, c)
    return math.inf, math.inf


@lru_cache
def exact_window(mask: Mask) -> tuple[float, float] | None:
    """Of plain rows: (before, after) if a query sees exactly that many tokens back and ahead; None if not.

    All masks below see the token itself, or nothing at all (a prefix that plain rows don't have, -inf), so that what
    is common to two of them, or in either, is a window again.
    """
    match mask:
        case Full():
            return math.inf, math.inf
        case Prefix():
            return -math.inf, -math.inf
        case Causal() | Window():
            return _bounds(mask)
        case Both(left=left, right=right) | Either(left=left, right=right):
            first, second = exact_window(left), exact_window(right)
            if first is None or second is None:
                return None
            choose = min if isinstance(mask, Both) else max
            return choose(first[0], second[0]), choose(first[1], second[1])
    return None


def lower(
    mask: Mask, query: Coordinates, key: Coordinates, *, wants_bias: bool = False, kernel: str = "auto"
) -> Allowed:
    """The mask on these coordinates, as the kernel wants it.

    wants_bias: a bias of all pairs will be added to the scores, or weights requested, which bands can't do.
    """
    if kernel == "flex":
        return _blocks(mask, query, key)
    exact = exact_window(mask)
    shortcut = _shortcut(exact, query, key)
    if shortcut is not None:
        return shortcut
    is_exact = query.start is not None and exact is not None and exact[0] >= 0
    widest = exact if is_exact else index_bounds(mask)
    if widest is not None and kernel == "auto" and not wants_bias and _is_banded(widest, query, key):
        before, after = int(widest[0]), int(widest[1])
        return _plain_band(query, before, after) if is_exact else _band(mask, query, before, after)
    return dense_mask(mask, query, key).unsqueeze(1)


def _shortcut(exact: tuple[float, float] | None, query: Coordinates, key: Coordinates) -> str | None:
    """ALL or CAUSAL, if that is what plain rows see."""
    if exact is None or query.bounds is None or key.bounds is None:
        return None
    is_back, is_ahead = query.bounds[1] - key.bounds[0] <= exact[0], key.bounds[1] - query.bounds[0] <= exact[1]
    if is_back and is_ahead:
        return ALL
    starts = query.start, query.index.shape[-1]
    same = query.start is not None and starts == (key.start, key.index.shape[-1])
    return CAUSAL if is_back and exact[1] == 0 and same else None


def _is_banded(widest: tuple[float, float], query: Coordinates, key: Coordinates) -> bool:
    """Whether slots that are further apart than the mask reaches can't see each other, and that makes most pairs."""
    same = query is key or (query.start is not None and query.start == key.start)
    length = query.index.shape[-1]
    is_square = same and query.is_ordered and length == key.index.shape[-1]
    return is_square and length >= 2 * (widest[0] + widest[1] + CHUNK)


def _columns(slots: Coordinates, size: int, offset: int) -> tuple[Tensor, Tensor]:
    """The slots from `offset` after the beginning of each chunk on, (chunks, size), and whether the row has them."""
    length = slots.index.shape[-1]
    starts = torch.arange(offset, length + offset, CHUNK, device=slots.index.device)
    columns = starts.unsqueeze(1) + torch.arange(size, device=slots.index.device)
    return columns.clamp(0, length - 1), (columns >= 0) & (columns < length)


def _plain_band(slots: Coordinates, before: int, after: int) -> Band:
    """Chunks of plain rows differ only at the ends; queries past the end see every slot that exists."""
    width = CHUNK + before + after
    _, is_inside = _columns(slots, width, -before)
    distance = torch.arange(CHUNK, device=is_inside.device).unsqueeze(1) + before
    distance = distance - torch.arange(width, device=is_inside.device)
    visible = ((distance <= before) & (distance >= -after)) & is_inside.unsqueeze(1)
    visible[-1] |= ~visible[-1].any(-1, keepdim=True)
    return Band(CHUNK, before, after, _additive(visible).unsqueeze(0), None)


def _band(mask: Mask, slots: Coordinates, before: int, after: int) -> Band:
    """The predicate on the slots around each chunk of queries."""
    num_rows, length = max(len(slots.index), len(slots.document)), slots.index.shape[-1]
    width = CHUNK + before + after

    def chunked(columns: Tensor, is_inside: Tensor) -> Coordinates:
        inside = slots.map(lambda t: t.expand(num_rows, *t.shape[1:])[:, columns].flatten(0, 1))
        return replace(inside, document=inside.document.masked_fill(~is_inside.repeat(num_rows, 1), -1))

    visible = dense_mask(mask, chunked(*_columns(slots, CHUNK, 0)), chunked(*_columns(slots, width, -before)))
    visible = visible.view(num_rows, -1, CHUNK, width)
    has_key = visible.any(-1, keepdim=True)
    return Band(CHUNK, before, after, _additive(visible | ~has_key), has_key.view(num_rows, 1, -1, 1)[:, :, :length])


def _additive(visible: Tensor) -> Tensor:
    """What is added to the scores."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -math.inf)


def _blocks(mask: Mask, query: Coordinates, key: Coordinates) -> Blocks:
    (num_rows, num_queries), num_keys = query.index.shape, key.index.shape[1]
    sizes = _rounded(num_rows), _rounded(num_queries), _rounded(num_keys)
    query, key = (_padded(side, num_rows, sizes[0], size) for side, size in zip((query, key), sizes[1:], strict=True))

    def mask_mod(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return allowed_pair(mask, query.map(lambda t: t[row, i]), key.map(lambda t: t[row, j]))

    return _built_blocks(mask_mod, sizes, query.index.device)


def _built_blocks(mask_mod: Callable[..., Tensor], sizes: tuple[int, int, int], device: torch.device) -> Blocks:
    from torch.nn.attention.flex_attention import create_block_mask

    num_rows, num_queries, num_keys = sizes
    return Blocks(mask_mod, create_block_mask(mask_mod, num_rows, None, num_queries, num_keys, str(device)), sizes)


def _rounded(size: int) -> int:
    """The next power of two: FlexAttention compiles a program for each shape, so that few shapes should occur."""
    return 1 << (size - 1).bit_length()


def _padded(tokens: Coordinates, num_rows: int, rows: int, columns: int) -> Coordinates:
    """Coordinates of num_rows rows with padding up to `rows` and `columns`, as torch 2.13 can compile them: it fails on
    expanded tensors on CPUs, and takes numbers out of a gathered vector wrongly."""
    split, length = tokens.split_axes(), tokens.index.shape[1]
    missing = 0, columns - length, 0, rows - num_rows
    full = split.map(lambda t: functional.pad(t.expand(num_rows, length), missing).contiguous())
    is_token = torch.arange(rows, device=full.index.device).unsqueeze(1) < num_rows
    is_token = is_token & (torch.arange(columns, device=full.index.device) < length)
    return replace(full, document=full.document.masked_fill(~is_token, -1))


# Kernels --------------------------------------------------------------------------------------------------------------

ABILITIES: dict[str, frozenset[str]] = {
    "auto": frozenset({"bias", "relative", "values", "dropout", "weights", "gradients"}),
    "dense": frozenset({"bias", "relative", "values", "dropout", "weights", "gradients"}),
    "sdpa": frozenset({"bias", "relative", "dropout", "gradients"}),
    "flex": frozenset({"bias", "relative", "gradients"}),
}
"""What each kernel can do beyond queries, keys and values: add a bias to the scores that depends on positions (`bias`)
or on the query too (`relative`), mix relative vectors into the values (`values`), drop weights out, return them."""


def check_kernel(kernel: str, *, needs: Collection[str], device: torch.device | str) -> None:
    """Raises ValueError for an unknown kernel, or one that can't do on this device what is needed (see ABILITIES)."""
    if kernel not in ABILITIES:
        raise ValueError(f"kernel={kernel!r} isn't there; choose among {', '.join(ABILITIES)}")
    is_cpu = torch.device(device).type == "cpu"
    lacks = set(needs) - ABILITIES[kernel] | (set(needs) & {"gradients"} if kernel == "flex" and is_cpu else set())
    if lacks:
        able = ", ".join(name for name, can in ABILITIES.items() if can.issuperset(needs) and name != kernel)
        raise ValueError(
            f"kernel={kernel!r} on {torch.device(device).type} can't do {', '.join(sorted(lacks))}; choose {able}"
        )
    if kernel == "flex" and is_cpu and compiler() is None:
        raise ValueError("kernel='flex' is compiled, but there is no C++ compiler here; install one or choose auto")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Allowed,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Tensor:
    """softmax(scale q k^T + bias) v over the allowed keys: (B, N, T, H) with (B, K, S, H) to (B, N, T, H).

    scale: absent, 1 / sqrt(H); bias: (B or 1, N, T, S). A query without any key gives zeros and no gradient.
    Raises ValueError where the kernel can't compute this.
    """
    if kernel == "dense":
        weights = functional.dropout(attention_weights(q, k, allowed, scale=scale, bias=bias), dropout)
        return weights @ _per_head(v, q)
    if kernel == "flex":
        return _attend_flex(q, k, v, allowed, scale, bias, dropout)
    if isinstance(allowed, Band) and bias is None and kernel == "auto":
        return _attend_band(q, k, v, allowed, scale, dropout)
    is_grouped = q.shape[1] != k.shape[1]
    if isinstance(allowed, str) and (bias is None or allowed == ALL):
        is_causal = allowed == CAUSAL and q.shape[2] > 1
        if is_causal and not dropout and scale is None and kernel == "auto" and is_short(q, k):
            return short_causal_attention(q, k, v)
        return scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
        )
    visible = dense_allowed(allowed, q, k)
    has_key = visible.any(-1, keepdim=True)
    visible = visible | ~has_key  # a row of the softmax needs something to normalise over
    scores = visible if bias is None else bias.masked_fill(~visible, -math.inf)
    out = scaled_dot_product_attention(q, k, v, attn_mask=scores, dropout_p=dropout, scale=scale, enable_gqa=is_grouped)
    return out * has_key


def attention_weights(
    q: Tensor,
    k: Tensor,
    allowed: Allowed,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The softmax itself, in plain products: (B, N, T, H) with (B, K, S, H) to (B, N, T, S); zeros without keys.

    softcap: bounds the scaled products, before the bias is added.
    """
    scores = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ _per_head(k, q).mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if not isinstance(allowed, str) or allowed != ALL:
        visible = dense_allowed(allowed, q, k)
        has_key = visible.any(-1, keepdim=True)
        return scores.masked_fill(~visible & has_key, -math.inf).softmax(-1) * has_key
    return scores.softmax(-1)


def _per_head(kv: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B, K, S, H) for each of N query heads."""
    groups = q.shape[1] // kv.shape[1]
    return kv if groups == 1 else kv.repeat_interleave(groups, 1)


def dense_allowed(allowed: Allowed, q: Tensor, k: Tensor) -> Tensor:
    """What `lower` gave, as booleans (B or 1, 1, T, S), for q (.., T, H) and k (.., S, H)."""
    num_queries, num_keys = q.shape[2], k.shape[2]
    match allowed:
        case Tensor():
            return allowed
        case Blocks(mask_mod=mask_mod):
            row, i, j = (torch.arange(n, device=q.device) for n in (len(q), num_queries, num_keys))
            return mask_mod(row[:, None, None], row[:1], i[:, None], j).unsqueeze(1)
        case Band():
            return _dense_band(allowed, num_queries)
    visible = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=q.device)
    return visible if allowed == ALL else visible.tril(num_keys - num_queries)


def _dense_band(band: Band, length: int) -> Tensor:
    rows, num_chunks, chunk, width = band.additive_mask.shape
    padded_BTS = torch.zeros(rows, num_chunks * chunk, num_chunks * chunk + width - chunk, dtype=torch.bool)
    padded_BTS = padded_BTS.to(band.additive_mask.device)
    for i in range(num_chunks):
        queries = slice(i * chunk, (i + 1) * chunk)
        padded_BTS[:, queries, queries.start : queries.start + width] = band.additive_mask[:, i] == 0
    visible_B1TS = padded_BTS[:, :length, band.before : band.before + length].unsqueeze(1)
    return visible_B1TS if band.has_key is None else visible_B1TS & band.has_key


def _attend_band(q: Tensor, k: Tensor, v: Tensor, band: Band, scale: float | None, dropout: float) -> Tensor:
    """Each chunk of queries against the keys around it; row by row, with the chunks as the batch."""
    num_rows, num_heads, length, _ = q.shape
    num_chunks, width = band.additive_mask.shape[1], band.additive_mask.shape[3]
    missing = num_chunks * band.chunk - length
    queries = functional.pad(q, (0, 0, 0, missing)) if missing else q
    keys, values = (functional.pad(t, (0, 0, band.before, band.after + missing)) for t in (k, v))
    masks = band.additive_mask.to(q.dtype).unsqueeze(2).expand(num_rows, -1, -1, -1, -1)
    rows_TNH = []
    for q_NTH, k_KSH, v_KSH, mask in zip(*(t.unbind() for t in (queries, keys, values, masks)), strict=True):
        out_CNTH = scaled_dot_product_attention(  # chunks as the batch
            q_NTH.unflatten(1, (num_chunks, band.chunk)).transpose(0, 1),
            k_KSH.unfold(1, width, band.chunk).permute(1, 0, 3, 2),
            v_KSH.unfold(1, width, band.chunk).permute(1, 0, 3, 2),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=num_heads != k.shape[1],
        )
        rows_TNH.append(out_CNTH.transpose(1, 2).flatten(0, 1))
    out_BTNH = rows_TNH[0].unsqueeze(0) if num_rows == 1 else torch.stack(rows_TNH)
    out = out_BTNH[:, :length].transpose(1, 2)
    return out if band.has_key is None else out * band.has_key


@lru_cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention, has_open_shapes=False)  # for open ones the C++ of torch 2.13 is wrong


def _attend_flex(
    q: Tensor, k: Tensor, v: Tensor, allowed: Allowed, scale: float | None, bias: Tensor | None, dropout: float
) -> Tensor:
    """FlexAttention; on CPUs forward only. Its backward pass needs CUDA."""
    has_gradients = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, bias))
    needs = {"dropout": bool(dropout), "bias": bias is not None, "gradients": has_gradients}
    check_kernel("flex", needs=[name for name, is_needed in needs.items() if is_needed], device=q.device)
    blocks = allowed if isinstance(allowed, Blocks) else _dense_blocks(dense_allowed(allowed, q, k), len(q))
    num_rows, num_queries, num_keys = blocks.sizes
    score_mod = None
    if bias is not None:
        biases = _padded_heads(bias, len(bias), num_queries, num_keys)

        def score_mod(score: Tensor, row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + biases[row.clamp(max=len(biases) - 1), head, i, j]

    padded = (_padded_heads(t, num_rows, n, t.shape[3]) for t, n in ((q, num_queries), (k, num_keys), (v, num_keys)))
    out = _compiled_flex()(
        *padded, score_mod=score_mod, block_mask=blocks.block_mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[: len(q), :, : q.shape[2]]


def _padded_heads(t: Tensor, rows: int, columns: int, width: int) -> Tensor:
    """(B, N, T, H) with zeros up to these sizes."""
    missing = 0, width - t.shape[3], 0, columns - t.shape[2], 0, 0, 0, rows - len(t)
    return functional.pad(t, missing) if any(missing) else t.contiguous()


def _dense_blocks(visible: Tensor, num_rows: int) -> Blocks:
    """Booleans (B or 1, 1, T, S) as blocks for num_rows rows."""
    sizes = _rounded(num_rows), _rounded(visible.shape[2]), _rounded(visible.shape[3])
    padded = _padded_heads(visible.expand(num_rows, -1, -1, -1), *sizes)

    def mask_mod(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return padded[row, 0, i, j]

    return _built_blocks(mask_mod, sizes, visible.device)

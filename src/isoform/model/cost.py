"""What a model costs, by arithmetic on its config: parameters, FLOPs, bytes. Nothing is built or run.

A product of (m, k) by (k, n) counts 2 m k n; attention is counted in full, masked or not, as the kernels
that skip are a property of the machine; training is three times the forward pass (each product has two in
its backward pass). Tested against the built model and torch's FLOP counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from isoform.model.config import (
    BlockConfig,
    Dense,
    Gated,
    LayerNorm,
    Learned,
    ModelConfig,
    Norm,
    RMSNorm,
    Rotary,
    StackConfig,
)


@dataclass(frozen=True)
class Shape:
    """What goes through a model at once: rows of `length` pieces, and `source_length` into the encoder."""

    num_rows: int
    length: int
    source_length: int = 0


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model, tied tables counted once."""
    d, v = config.model_dim, config.vocab_size
    looking_back = (v + 1) * config.stem.previous + sum(
        min((v + 1) ** n, config.stem.ngram_rows) for n in config.stem.ngrams
    )
    stem = (v + looking_back) * d + _norm(config.stem.norm, d)
    head = (0 if config.head.tied else v * d) + (v if config.head.bias else 0)
    return stem + head + sum(_stack_parameters(config, stack) for stack in _stacks(config))


def num_matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the blocks' matrices alone."""
    d, total = config.model_dim, 0
    for stack in _stacks(config):
        for block in config.layers(stack):
            query, kv = _attention_widths(config, block)
            attentions = 2 if stack.cross != "none" else 1
            matrices = 3 if isinstance(block.feedforward, Gated) else 2
            total += attentions * (d * (query + 2 * kv) + query * d) + matrices * d * config.feedforward_dim(block)
    return total


def forward_flops(config: ModelConfig, shape: Shape) -> int:
    """FLOPs of one forward pass over rows of this shape, the head included."""
    rows, length, source = shape.num_rows, shape.length, shape.source_length
    flops = 2 * rows * length * config.model_dim * config.vocab_size
    if config.encoder is not None:
        own = source if config.decoder is not None else length
        flops += _stack_flops(config, config.encoder, rows, own, 0)
    if config.decoder is not None:
        flops += _stack_flops(config, config.decoder, rows, length, source)
    return flops


def training_flops(config: ModelConfig, shape: Shape) -> int:
    """FLOPs of a forward and a backward pass; the optimizer's own are not counted."""
    return 3 * forward_flops(config, shape)


def cache_bytes(config: ModelConfig, *, bytes_per_number: int = 4) -> int:
    """Bytes of the key/value cache per piece of one row of the decoder."""
    if config.decoder is None:
        return 0
    blocks = config.layers(config.decoder)
    numbers = sum(2 * (b.attention.num_kv_heads or b.attention.num_heads) * config.head_dim(b) for b in blocks)
    return numbers * bytes_per_number


def activation_numbers(config: ModelConfig, shape: Shape) -> int:
    """Numbers kept between the forward and the backward pass, logits included."""
    rows, length, source = shape.num_rows, shape.length, shape.source_length
    d, v = config.model_dim, config.vocab_size
    is_pair = config.encoder is not None and config.decoder is not None
    kept = rows * length * (3 * d + (4 if config.head.softcap else 3) * v)
    for stack in _stacks(config):
        own = source if is_pair and stack is config.encoder else length
        for block in config.layers(stack):
            kept += rows * own * _block_activations(config, stack, block)
            if stack.cross != "none":
                query, kv = _attention_widths(config, block)
                kept += rows * (own * (2 * d + 2 * query) + source * 2 * kv)
    return kept


def _block_activations(config: ModelConfig, stack: StackConfig, block: BlockConfig) -> int:
    d, f = config.model_dim, config.feedforward_dim(block)
    query, kv = _attention_widths(config, block)
    attention = query + 2 * kv + query
    if isinstance(stack.position, Rotary) or block.attention.qk_norm:
        attention += query + kv  # normalised and turned copies
    if block.attention.value_shortcut:
        attention += kv
    if block.x0_shortcut:
        attention += d
    inner = 4 * f if isinstance(block.feedforward, Gated) else 2 * f
    dropped = 2 * d if config.dropout else 0
    return 4 * d + attention + inner + dropped


def _stacks(config: ModelConfig) -> list[StackConfig]:
    return [stack for stack in (config.encoder, config.decoder) if stack is not None]


def _norm(norm: Norm | None, dim: int) -> int:
    match norm:
        case None:
            return 0
        case LayerNorm(bias=bias):
            return 2 * dim if bias else dim
        case RMSNorm(scale=scale):
            return dim if scale else 0
        case _:
            assert_never(norm)


def _stack_parameters(config: ModelConfig, stack: StackConfig) -> int:
    d, blocks = config.model_dim, config.layers(stack)
    table = config.context_length * d if isinstance(stack.position, Learned) else 0
    final = _norm(blocks[0].norm, d) if stack.final_norm else 0
    return table + final + sum(_block_parameters(config, b, cross=stack.cross != "none") for b in blocks)


def _block_parameters(config: ModelConfig, block: BlockConfig, *, cross: bool) -> int:
    d, f = config.model_dim, config.feedforward_dim(block)
    query, kv = _attention_widths(config, block)
    attention = d * (query + 2 * kv) + query * d
    if block.attention.bias:
        attention += query + 2 * kv + d
    match block.feedforward:
        case Dense(bias=bias):
            feedforward = 2 * d * f + (f + d if bias else 0)
        case Gated(bias=bias):
            feedforward = 3 * d * f + (2 * f + d if bias else 0)
        case _:
            assert_never(block.feedforward)
    norms = 2 if block.norm_placement == "sandwich" else 1
    branches = 3 if cross else 2
    mixes = (2 if block.attention.value_shortcut else 0) + (2 if block.x0_shortcut else 0)
    return attention * (branches - 1) + feedforward + branches * norms * _norm(block.norm, d) + mixes


def _attention_widths(config: ModelConfig, block: BlockConfig) -> tuple[int, int]:
    head_dim, attention = config.head_dim(block), block.attention
    return attention.num_heads * head_dim, (attention.num_kv_heads or attention.num_heads) * head_dim


def _stack_flops(config: ModelConfig, stack: StackConfig, rows: int, length: int, source: int) -> int:
    d, flops = config.model_dim, 0
    for block in config.layers(stack):
        query, kv = _attention_widths(config, block)
        matrices = 3 if isinstance(block.feedforward, Gated) else 2
        per_piece = d * (query + 2 * kv) + query * d + matrices * d * config.feedforward_dim(block)
        per_pair = 2 * query
        flops += 2 * rows * (length * per_piece + length * length * per_pair)
        if stack.cross != "none":
            flops += 2 * rows * (length * 2 * d * query + source * 2 * d * kv + length * source * per_pair)
    return flops

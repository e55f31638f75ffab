"""One block: a mixer and a feed-forward as residual branches, and what a stack's blocks share in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.mask import Coordinates, Full, Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.cache import Cache, KeyValueShape, LayerShape, prefix_of
from isoform.model.component import Component, Role
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.depth import DepthRouter, Subset
from isoform.model.experts import build_experts
from isoform.model.feedforward import build_feedforward
from isoform.model.kernels import dropout
from isoform.model.lowering import look_back, lower
from isoform.model.mixers.attention import AttentionTerms, KeysValues, MultiHeadAttention
from isoform.model.mixers.convolution import ConvolutionMixer
from isoform.model.mixers.documents import Documents
from isoform.model.mixers.lstm import LSTMMixer
from isoform.model.mixers.recurrence import RecurrenceMixer
from isoform.model.norm import build_norm
from isoform.model.parts import (
    LSTM,
    Attention,
    CausalConvolution,
    Experts,
    LinearRecurrence,
    Norm,
    Rotary,
    Shaw,
)
from isoform.model.position import RotaryPosition, Rotation, Scheme, ShawPosition
from isoform.model.recording import Recorder


@dataclass(frozen=True, eq=False)
class Memory:
    """An encoder's output (B, S, D), the coordinates of its tokens and, for layerwise reading, the keys and values of
    each block (cross = joint) or its output, normed as that of the last (separate). In a beam search it has fewer rows
    than the decoder, each shared by adjacent rows."""

    hidden: Tensor
    coordinates: Coordinates
    layers: tuple[KeysValues, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    def shift_past(self, tokens: Coordinates) -> Coordinates:
        """The coordinates of the decoder's tokens (B, T), whose indices continue the encoder's of the same document.
        Raises ValueError for tokens with positions of their own, which can't be shifted."""
        source = self.coordinates
        if source.start == 0 and tokens.start == 0:
            shift = source.index.shape[1]
            return replace(tokens, index=tokens.index + shift, start=shift)
        if tokens.position is not None or source.position is not None:
            raise ValueError("cross='joint' is for tokens that stand at their index; set cross to separate")
        document = source.document.repeat_interleave(max(1, len(tokens.document) // len(source.document)), 0)
        same = (tokens.document.unsqueeze(2) == document.unsqueeze(1)) & (document >= 0).unsqueeze(1)
        shift = same.sum(2)
        return replace(tokens, index=tokens.index + shift, start=None)

    def joined(self, tokens: Coordinates) -> Coordinates:
        """The coordinates of the encoder's tokens and of those after them, (B, S + T)."""
        source = self.coordinates

        def both(left: Tensor, right: Tensor) -> Tensor:
            rows = max(len(left), len(right))
            return torch.cat([t.expand(rows, *t.shape[1:]) for t in (left, right)], 1)

        has_prefix = tokens.prefix is not None or source.prefix is not None
        prefix = both(prefix_of(source), prefix_of(tokens)) if has_prefix else None
        is_plain = source.start == 0 and tokens.start == source.index.shape[1]
        document, index = both(source.document, tokens.document), both(source.index, tokens.index)
        return Coordinates(document, index, prefix, start=0 if is_plain else None)


class ForwardContext:
    """What the blocks of a stack share during one forward pass; what depends on mask and positions is computed once.
    Not a dataclass, as Auxiliary isn't.

    keys: the coordinates of the keys without a cache (None: those of the tokens); documents: which tokens belong
    together, for recurrences. first_values is set by the first block.
    """

    def __init__(
        self,
        x0: Tensor,
        coordinates: Coordinates,
        mask: Mask,
        memory: Memory | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
        *,
        kernel: str = "auto",
        keys: Coordinates | None = None,
        recorder: Recorder | None = None,
        documents: Documents | None = None,
    ) -> None:
        self.x0, self.coordinates, self.mask, self.memory, self.cache = x0, coordinates, mask, memory, cache
        self.auxiliary, self.kernel, self.keys, self.recorder = auxiliary, kernel, keys, recorder
        self.documents = documents
        self.first_values: Tensor | None = None
        self.computed: dict[tuple, AttentionTerms] = {}
        self.rotations: dict[int | tuple[int, str], Rotation] = {}

    def terms(self, block: BlockConfig, scheme: Scheme, layer: int) -> AttentionTerms:
        """What mask and positions contribute to a block's attention."""
        uncached = self.coordinates if self.keys is None else self.keys
        keys = uncached if self.cache is None else self.cache.keys(layer)
        pattern = block.attention.pattern
        same = pattern, id(scheme), id(keys)
        if same not in self.computed:
            if id(scheme) not in self.rotations:
                self.rotations[id(scheme)] = scheme.rotation(self.coordinates)
            bias, relative = scheme.bias(self.coordinates, keys), scheme.relative(self.coordinates, keys)
            mask = self.mask if pattern is None else self.mask & pattern
            needs_all = bias is not None or relative is not None or block.attention.softcap is not None
            allowed = lower(mask, self.coordinates, keys, wants_bias=needs_all, kernel=self.kernel)
            self.computed[same] = AttentionTerms(allowed, self.rotations[id(scheme)], bias, relative)
        return self.computed[same]

    @cached_property
    def memory_terms(self) -> AttentionTerms:
        """Of cross-attention: a token sees its own document's source. Rows that share a row of memory are joined."""
        assert self.memory is not None
        query, key, rows = self.coordinates, self.memory.coordinates, len(self.memory.hidden)
        if rows < len(query.index):
            query = replace(query.map(lambda t: t.unflatten(0, (rows, -1)).flatten(1, 2)), span=query.bounds)
        return AttentionTerms(lower(Full(), query, key, kernel=self.kernel))

    def memory_rotation(self, scheme: Scheme) -> Rotation:
        """How a scheme rotates the keys (B, S, K, H) of the memory's tokens."""
        assert self.memory is not None
        key = (id(scheme), "memory")
        if key not in self.rotations:
            self.rotations[key] = scheme.rotation(self.memory.coordinates)
        return self.rotations[key]

    @property
    def present(self) -> Tensor | None:
        """Which slots hold a token (B, T); None: all."""
        return None if self.coordinates.start is not None else self.coordinates.document >= 0

    def within(self, subset: Subset) -> ForwardContext:
        """The same for some of the tokens."""
        inside = ForwardContext(
            subset.gather(self.x0),
            subset.coordinates(self.coordinates),
            self.mask,
            self.memory,
            self.cache,
            self.auxiliary,
            kernel=self.kernel,
            recorder=self.recorder,
            documents=self.documents,
        )
        inside.first_values = None if self.first_values is None else subset.gather(self.first_values)
        return inside


BEFORE_INNER_AFTER = {
    "pre": (True, False, False),
    "post": (False, False, True),
    "reordered": (False, True, False),
    "sandwich": (True, True, False),
    "bare": (False, False, False),
}


class Residual(nn.Module):
    """after(x + scale inner(f(before(x)))), each norm optional: where a norm sits is a row of the table."""

    def __init__(self, norm: Norm, placement: str, dim: int, dropout: float, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        before, inner, after = BEFORE_INNER_AFTER[placement]
        self.before = build_norm(norm, dim) if before else None
        self.inner = build_norm(norm, dim) if inner else None
        self.after = build_norm(norm, dim) if after else None
        self.dropout = dropout

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """The stream (B, T, D) with the branch f added."""
        x = x + self.branch(f(self.entrance(x)))
        return x if self.after is None else self.after(x)

    def entrance(self, x: Tensor) -> Tensor:
        """The input of f, from the stream (B, T, D)."""
        return x if self.before is None else self.before(x)

    def branch(self, y: Tensor) -> Tensor:
        """The output of f (B, T, D), as it is added to the stream."""
        if self.inner is not None:
            y = self.inner(y)
        y = y if self.scale == 1.0 else y * self.scale
        return dropout(y, self.dropout) if self.dropout and self.training else y


class Block(Component):
    """A mixer (and cross-attention where there is an encoder), then a feed-forward, or both beside each other."""

    roles = (("x0_mix", Role.MIX),)

    def __init__(
        self, config: BlockConfig, model: ModelConfig, stack: StackConfig, position: Scheme | None, *, is_first: bool
    ) -> None:
        """`position`: a scheme of its own; None: the stack's."""
        super().__init__()
        dim, mixer, feedforward = model.model_dim, config.mixer, config.feedforward
        self.config = config

        def residual(placement: str = config.norm_placement) -> Residual:
            return Residual(config.norm, placement, dim, model.dropout, config.residual_scale)

        self.position = position
        self.mixer_norm = residual("bare") if is_first and not stack.first_norm else residual()
        self.mixer = build_mixer(config, model)
        self.is_joint = stack.cross == "joint"
        self.cross_norm, self.cross = None, None
        if stack.cross == "separate" and isinstance(mixer, Attention):
            self.cross_norm = residual()
            self.cross = MultiHeadAttention(mixer, dim, model.head_dim(mixer), cross=True)
        self.feedforward_norm, self.feedforward = None, None
        if feedforward is not None:
            self.feedforward_norm = residual("bare") if config.parallel == "one_norm" else residual()
            if isinstance(feedforward, Experts):
                self.feedforward = build_experts(feedforward, dim, model.feedforward_dim(feedforward.expert))
            else:
                self.feedforward = build_feedforward(feedforward, dim, model.feedforward_dim(feedforward))
        self.is_routed = isinstance(feedforward, Experts)
        self.x0_mix = nn.Parameter(torch.tensor([1.0, 0.0])) if config.x0_shortcut else None
        self.depth = None if config.depth is None else DepthRouter(config.depth, dim)
        self.is_causal = stack is model.decoder

    def forward(
        self, x: Tensor, shared: ForwardContext, scheme: Scheme, layer: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The stream (B, T, D) through this block, the layer-th on its way; `scheme`: the stack's positions.

        Beside it are returned the tensors of this block that are read elsewhere, recorded ones and the first values:
        libraries that wrap blocks watch what these return.
        """
        recorded = {} if shared.recorder is None else shared.recorder.tensors
        num_recorded, is_first = len(recorded), shared.first_values is None
        x = self._forward_routed(x, shared, scheme, layer)
        outside = tuple(recorded.values())[num_recorded:]
        if is_first and shared.first_values is not None:
            outside += (shared.first_values,)
        return x, outside

    def _forward_routed(self, x: Tensor, shared: ForwardContext, scheme: Scheme, layer: int) -> Tensor:
        """The stream (B, T, D); only some of the tokens pass through the block, if it has a depth router."""
        if self.depth is None:
            return self._forward_all(x, shared, scheme, layer)
        if self.is_causal and not self.training:
            subset = self.depth.predict(x, shared.present)
        else:
            subset = self.depth.choose(x, shared.present, shared.auxiliary)
        inside = subset.gather(x)
        if shared.cache is not None:
            shared.cache.extend(subset.coordinates(shared.coordinates), layer)
        return subset.scatter_back(x, inside, self._forward_all(inside, shared.within(subset), scheme, layer))

    def _forward_all(self, x: Tensor, shared: ForwardContext, scheme: Scheme, layer: int) -> Tensor:
        """The stream (B, T, D) of the tokens that this block processes."""
        if self.x0_mix is not None:
            x = self.x0_mix[0] * x + self.x0_mix[1] * shared.x0
        if self.feedforward is None or self.feedforward_norm is None:
            return self.read(self.mixer_norm(x, lambda y: self.mixed(y, shared, scheme, layer)), shared, layer)
        if self.config.parallel != "none":
            y = self.mixer_norm.entrance(x)
            beside = y if self.config.parallel == "one_norm" else self.feedforward_norm.entrance(x)
            x = x + self.mixer_norm.branch(self.mixed(y, shared, scheme, layer))
            x = x + self.feedforward_norm.branch(self.transformed(beside, shared, layer))
            return self.read(x, shared, layer)
        x = self.mixer_norm(x, lambda y: self.mixed(y, shared, scheme, layer))
        x = self.read(x, shared, layer)
        return self.feedforward_norm(x, lambda y: self.transformed(y, shared, layer))

    @property
    def cache_shape(self) -> LayerShape:
        """What a cache stores of each row for this block."""
        if not isinstance(self.mixer, MultiHeadAttention):
            return self.mixer.state_shape
        pattern = self.config.attention.pattern
        window = None if pattern is None else look_back(pattern)
        return KeyValueShape(self.mixer.num_kv_heads, self.mixer.head_dim, window, is_own=self.depth is not None)

    def mixed(self, y: Tensor, shared: ForwardContext, scheme: Scheme, layer: int) -> Tensor:
        """The mixer's output (B, T, D)."""
        recorder = None if shared.recorder is None else shared.recorder.within(f"blocks.{layer}.mixer")
        cache, scheme = shared.cache, scheme if self.position is None else self.position
        if isinstance(self.mixer, MultiHeadAttention):
            context = self.context(self.mixer, shared, scheme, layer) if self.is_joint and shared.memory else None
            terms, state = shared.terms(self.config, scheme, layer), None if cache is None else cache.keys_values(layer)
            y, values = self.mixer(y, terms, shared.first_values, state, context, recorder)
            if shared.first_values is None:
                shared.first_values = values
        else:
            assert shared.documents is not None
            y = self.mixer(y, shared.documents, None if cache is None else cache.state(layer), recorder)
        if shared.recorder is not None:
            shared.recorder.take(f"blocks.{layer}.mixer", lambda: y)
        return y

    def transformed(self, y: Tensor, shared: ForwardContext, layer: int) -> Tensor:
        """The feed-forward's output (B, T, D)."""
        assert self.feedforward is not None
        y = self.feedforward(y, shared.present, shared.auxiliary) if self.is_routed else self.feedforward(y)
        if shared.recorder is not None:
            shared.recorder.take(f"blocks.{layer}.feedforward", lambda: y)
        return y

    def context(self, attention: MultiHeadAttention, shared: ForwardContext, scheme: Scheme, layer: int) -> KeysValues:
        """Keys and values (B, K, S, H) of the encoder's tokens, to be attended to jointly with the block's own."""
        memory = shared.memory
        assert memory is not None
        if memory.layers:
            return memory.layers[min(layer, len(memory.layers) - 1)]
        return attention.keys_values(memory.hidden, shared.memory_rotation(scheme))

    def read(self, x: Tensor, shared: ForwardContext, layer: int) -> Tensor:
        """The stream (B, T, D) after cross-attention to the memory (B, S, D), where the block has it."""
        memory, cross = shared.memory, self.cross
        if memory is None or cross is None or self.cross_norm is None:
            return x
        state = None if shared.cache is None else shared.cache.keys_values(layer)
        recorder = None if shared.recorder is None else shared.recorder.within(f"blocks.{layer}.cross")
        hidden = memory.outputs[min(layer, len(memory.outputs) - 1)] if memory.outputs else memory.hidden
        return self.cross_norm(x, lambda y: cross.read(y, hidden, shared.memory_terms, state, recorder))


def build_mixer(
    config: BlockConfig, model: ModelConfig
) -> MultiHeadAttention | LSTMMixer | ConvolutionMixer | RecurrenceMixer:
    """The module of a block's mixer."""
    match config.mixer:
        case Attention():
            return MultiHeadAttention(config.mixer, model.model_dim, model.head_dim(config.mixer))
        case LSTM():
            return LSTMMixer(model.model_dim)
        case CausalConvolution():
            return ConvolutionMixer(config.mixer, model.model_dim)
        case LinearRecurrence():
            return RecurrenceMixer(model.model_dim, model.state_dim(config.mixer))
        case _:
            assert_never(config.mixer)


def _own_positions(layers: list[BlockConfig], model: ModelConfig, stack: StackConfig) -> list[Scheme | None]:
    """The scheme of each block that has one of its own; equal rotary schemes are one, as their tables are large."""
    rotary: dict[tuple[Rotary, int], Scheme] = {}
    schemes: list[Scheme | None] = []
    for block in layers:
        if not isinstance(block.mixer, Attention):
            schemes.append(None)
            continue
        position = block.mixer.position
        if position is not None:
            key = position, model.rotated_dim(block.mixer, position)
            if key not in rotary:
                rotary[key] = RotaryPosition(*key, model.num_positions(stack))
            schemes.append(rotary[key])
        else:
            shaw = stack.position if isinstance(stack.position, Shaw) else None
            schemes.append(None if shaw is None else ShawPosition(shaw, model.head_dim(block.mixer)))
    return schemes

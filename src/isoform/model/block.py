"""One block: a mixer and a feed-forward as residual branches, and what a stack's blocks share in a forward pass.

What is shared is computed outside of the code that torch compiles. That code takes tensors, which differ from batch to
batch and from layer to layer, so that blocks of one kind are one program, or a second one where shapes vary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.mask import Coordinates, Full, Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.cache import Cache, KeyValueShape, KeyValueState, LayerShape, RecurrentState, prefix_of
from isoform.model.compiling import compiled
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
from isoform.model.mixers.external import ExternalMixer
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
from isoform.outside import External


@dataclass(frozen=True, eq=False)
class Memory:
    """An encoder's output (B, S, D), the coordinates of its tokens and, for layerwise reading, the keys and values of
    each block (cross = joint) or its output, normed as that of the last (separate). In a beam search it has fewer rows
    than the decoder, each shared by adjacent rows."""

    hidden: Tensor
    coordinates: Coordinates
    layers: tuple[KeysValues, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    def for_layer(self, layer: int) -> Memory:
        """What one layer of the decoder reads of it; layers beyond the encoder's last read that."""
        if self.layers:
            return replace(self, layers=(self.layers[min(layer, len(self.layers) - 1)],))
        if self.outputs:
            return replace(self, hidden=self.outputs[min(layer, len(self.outputs) - 1)], outputs=())
        return self

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
        self.rotations: dict[tuple[Scheme, Coordinates], Rotation] = {}

    def inputs(self, block: Block, scheme: Scheme, layer: int) -> BlockInputs:
        """What a block, the layer-th on the way, reads beside the stream; `scheme`: the stack's positions."""
        scheme, cache = scheme if block.position is None else block.position, self.cache
        is_attention, is_external = isinstance(block.mixer, MultiHeadAttention), isinstance(block.mixer, ExternalMixer)
        has_keys, keys = is_attention or is_external, self.coordinates
        if is_external and cache is not None:
            keys = cache.keys(layer)
        memory = self.memory if block.is_joint or block.cross is not None else None
        return BlockInputs(
            x0=self.x0,
            first_values=self.first_values,
            terms=self.terms(block.config, scheme, layer) if is_attention else None,
            memory=None if memory is None else memory.for_layer(layer),
            memory_terms=None if memory is None else self.memory_terms(scheme, is_joint=block.is_joint),
            documents=None if has_keys else self.documents,
            read=(self.mask, keys) if is_external else None,
            present=self.present if block.is_routed else None,
            keys_values=cache.keys_values(layer) if cache is not None and has_keys else None,
            state=None if cache is None or has_keys else cache.state(layer),
            auxiliary=self.auxiliary,
            recorder=self._recorder(block, layer),
        )

    def terms(self, block: BlockConfig, scheme: Scheme, layer: int) -> AttentionTerms:
        """What mask and positions contribute to a block's attention."""
        uncached = self.coordinates if self.keys is None else self.keys
        keys = uncached if self.cache is None else self.cache.keys(layer)
        pattern = block.attention.pattern
        same = pattern, scheme, keys
        if same not in self.computed:
            bias, relative = scheme.bias(self.coordinates, keys), scheme.relative(self.coordinates, keys)
            mask = self.mask if pattern is None else self.mask & pattern
            needs_all = bias is not None or relative is not None or block.attention.softcap is not None
            allowed = lower(mask, self.coordinates, keys, wants_bias=needs_all, kernel=self.kernel)
            self.computed[same] = AttentionTerms(allowed, self.rotation(scheme, self.coordinates), bias, relative)
        return self.computed[same]

    def memory_terms(self, scheme: Scheme, *, is_joint: bool) -> AttentionTerms:
        """Of cross-attention; if attention is joint, how the keys of the memory's tokens are rotated."""
        assert self.memory is not None
        if not is_joint:
            return self.cross_terms
        return AttentionTerms(rotation=self.rotation(scheme, self.memory.coordinates))

    @cached_property
    def cross_terms(self) -> AttentionTerms:
        """Of cross-attention: a token sees its own document's source. Rows that share a row of memory are joined."""
        assert self.memory is not None
        query, key, rows = self.coordinates, self.memory.coordinates, len(self.memory.hidden)
        if rows < len(query.index):
            query = replace(query.map(lambda t: t.unflatten(0, (rows, -1)).flatten(1, 2)), span=query.bounds)
        return AttentionTerms(lower(Full(), query, key, kernel=self.kernel))

    def rotation(self, scheme: Scheme, coordinates: Coordinates) -> Rotation:
        """How a scheme rotates the queries and keys of tokens at these coordinates."""
        if (scheme, coordinates) not in self.rotations:
            self.rotations[scheme, coordinates] = scheme.rotation(coordinates)
        return self.rotations[scheme, coordinates]

    def _recorder(self, block: Block, layer: int) -> Recorder | None:
        """That of a block, if any of the tensors that it could record is wanted."""
        inside = None if self.recorder is None else self.recorder.within(f"blocks.{layer}")
        return inside if inside is not None and inside.wants_any(block.recordable) else None

    @cached_property
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


@dataclass(eq=False)
class BlockInputs:
    """What one block reads beside the stream, in one pass.

    terms: of its attention; memory, memory_terms: what it reads of the encoder, and how; documents: for a recurrence;
    read: for a mixer of the user's own, mask and coordinates of the tokens that it reads;
    present: which slots hold a token (B, T), for experts (None: all); keys_values, state: what a cache stores for it.
    """

    x0: Tensor
    first_values: Tensor | None
    terms: AttentionTerms | None
    memory: Memory | None
    memory_terms: AttentionTerms | None
    documents: Documents | None
    read: tuple[Mask, Coordinates] | None
    present: Tensor | None
    keys_values: KeyValueState | None
    state: RecurrentState | None
    auxiliary: Auxiliary | None
    recorder: Recorder | None

    @property
    def have_fixed_shapes(self) -> bool:
        """Whether all shapes follow from the batch's, and nothing is written into a cache or a recorder."""
        are_rows = self.documents is None or self.documents.are_rows
        is_own = self.read is None
        return is_own and are_rows and self.keys_values is None and self.state is None and self.recorder is None


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
        return self.added(x, f(self.entrance(x)))

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream (B, T, D) with the output y of f added."""
        x = x + self.branch(y)
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
    is_compiled = False
    """Whether torch compiles it where shapes don't depend on values."""

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
        num_recorded = len(recorded)
        x, values = self._forward_routed(x, shared, scheme, layer)
        outside = tuple(recorded.values())[num_recorded:]
        if shared.first_values is None and values is not None:
            shared.first_values = values
            outside += (values,)
        return x, outside

    def _forward_routed(
        self, x: Tensor, shared: ForwardContext, scheme: Scheme, layer: int
    ) -> tuple[Tensor, Tensor | None]:
        """The stream (B, T, D), and values for the blocks above; with a depth router only some of the tokens pass
        through the block, and their values don't serve others."""
        if self.depth is None:
            inputs = shared.inputs(self, scheme, layer)
            run = _compiled_block() if self.is_compiled and inputs.have_fixed_shapes else Block._forward_all
            return run(self, x, inputs)
        if self.is_causal and not self.training:
            subset = self.depth.predict(x, shared.present)
        else:
            subset = self.depth.choose(x, shared.present, shared.auxiliary)
        inside = subset.gather(x)
        if shared.cache is not None:
            shared.cache.extend(subset.coordinates(shared.coordinates), layer)
        y, _ = self._forward_all(inside, shared.within(subset).inputs(self, scheme, layer))
        return subset.scatter_back(x, inside, y), None

    def _forward_all(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor | None]:
        """The stream (B, T, D) of the tokens that this block processes, and the values of its attention."""
        if self.x0_mix is not None:
            x = self.x0_mix[0] * x + self.x0_mix[1] * inputs.x0
        read = self.mixer_norm.entrance(x)
        y, values = self.mixed(read, inputs)
        if self.feedforward_norm is None:
            return self.read(self.mixer_norm.added(x, y), inputs), values
        if self.config.parallel != "none":
            beside = read if self.config.parallel == "one_norm" else self.feedforward_norm.entrance(x)
            x = x + self.mixer_norm.branch(y)
            x = x + self.feedforward_norm.branch(self.transformed(beside, inputs))
            return self.read(x, inputs), values
        x = self.read(self.mixer_norm.added(x, y), inputs)
        return self.feedforward_norm(x, lambda y: self.transformed(y, inputs)), values

    @property
    def cache_shape(self) -> LayerShape:
        """What a cache stores of each row for this block."""
        if not isinstance(self.mixer, MultiHeadAttention):
            return self.mixer.state_shape
        pattern = self.config.attention.pattern
        window = None if pattern is None else look_back(pattern)
        return KeyValueShape(self.mixer.num_kv_heads, self.mixer.head_dim, window, is_own=self.depth is not None)

    @property
    def recordable(self) -> tuple[str, ...]:
        """The names of the tensors that are recorded inside."""
        names = ["mixer", *(f"mixer.{name}" for name in self.mixer.recordable)]
        names += [] if self.cross is None else ["cross.weights"]
        return (*names, *([] if self.feedforward is None else ["feedforward"]))

    def mixed(self, y: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor | None]:
        """The mixer's output (B, T, D), and the values (B, T, K, H) of attention."""
        recorder, values = None if inputs.recorder is None else inputs.recorder.within("mixer"), None
        if isinstance(self.mixer, MultiHeadAttention):
            context = self.context(self.mixer, inputs) if self.is_joint and inputs.memory is not None else None
            assert inputs.terms is not None
            y, values = self.mixer(y, inputs.terms, inputs.first_values, inputs.keys_values, context, recorder)
        elif isinstance(self.mixer, ExternalMixer):
            assert inputs.read is not None
            y = self.mixer(y, *inputs.read, inputs.keys_values, recorder)
        else:
            assert inputs.documents is not None
            y = self.mixer(y, inputs.documents, inputs.state, recorder)
        if inputs.recorder is not None:
            inputs.recorder.take("mixer", lambda: y)
        return y, values

    def transformed(self, y: Tensor, inputs: BlockInputs) -> Tensor:
        """The feed-forward's output (B, T, D)."""
        assert self.feedforward is not None
        y = self.feedforward(y, inputs.present, inputs.auxiliary) if self.is_routed else self.feedforward(y)
        if inputs.recorder is not None:
            inputs.recorder.take("feedforward", lambda: y)
        return y

    def context(self, attention: MultiHeadAttention, inputs: BlockInputs) -> KeysValues:
        """Keys and values (B, K, S, H) of the encoder's tokens, to be attended to jointly with the block's own."""
        memory, terms = inputs.memory, inputs.memory_terms
        assert memory is not None and terms is not None
        return memory.layers[0] if memory.layers else attention.keys_values(memory.hidden, terms.rotation)

    def read(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """The stream (B, T, D) after cross-attention to the memory (B, S, D), where the block has it."""
        memory, terms, cross = inputs.memory, inputs.memory_terms, self.cross
        if memory is None or terms is None or cross is None or self.cross_norm is None:
            return x
        recorder = None if inputs.recorder is None else inputs.recorder.within("cross")
        return self.cross_norm(x, lambda y: cross.read(y, memory.hidden, terms, inputs.keys_values, recorder))


@lru_cache
def _compiled_block() -> Callable[[Block, Tensor, BlockInputs], tuple[Tensor, Tensor | None]]:
    return compiled(Block._forward_all, has_open_shapes=True)


def build_mixer(
    config: BlockConfig, model: ModelConfig
) -> MultiHeadAttention | LSTMMixer | ConvolutionMixer | RecurrenceMixer | ExternalMixer:
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
        case External():
            return ExternalMixer(config.mixer, model.model_dim)
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

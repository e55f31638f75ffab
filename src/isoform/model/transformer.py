"""The Transformer: one stack of blocks that is an encoder, a decoder, or one of each, by its config.

encode -> Memory, decode -> hidden, logits are separate calls; who attends to whom comes in as a mask, what
was seen before as a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.batch import Pieces, plain_pieces
from isoform.mask import Causal, Coordinates, Full, Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.cache import Cache, KeyValueShape, LayerShape
from isoform.model.config import (
    LSTM,
    Attention,
    BlockConfig,
    CausalConvolution,
    Experts,
    Grid,
    Learned,
    LinearRecurrence,
    ModelConfig,
    Norm,
    Rotary,
    Shaw,
    Sinusoidal,
    StackConfig,
)
from isoform.model.depth import DepthRouter, Subset
from isoform.model.embedding import LookupStem, PooledHead, build_head, build_stem, table_of
from isoform.model.experts import build_experts
from isoform.model.feedforward import build_feedforward
from isoform.model.kernels import dropout
from isoform.model.lowering import check_kernel, look_back, lower
from isoform.model.mixers.attention import Edges, KeysValues, MultiHeadAttention
from isoform.model.mixers.convolution import ConvolutionMixer
from isoform.model.mixers.documents import Documents
from isoform.model.mixers.lstm import LSTMMixer
from isoform.model.mixers.recurrence import RecurrenceMixer
from isoform.model.network import Network
from isoform.model.norm import ZeroCenteredRMSNorm, build_norm
from isoform.model.position import RotaryPosition, Scheme, ShawPosition, Turn, build_position
from isoform.model.recording import Recorder, recorder_of


@dataclass(frozen=True, eq=False)
class Memory:
    """An encoder's output (B, S, D), where its pieces stand, and the keys and values of each of its blocks, where a
    decoder reads those. In a search it has fewer rows than the pieces, each read by so many that lie side by side."""

    hidden: Tensor
    coordinates: Coordinates
    layers: tuple[KeysValues, ...] = ()

    def before(self, pieces: Coordinates) -> Coordinates:
        """Where the decoder's pieces (B, T) stand when they come after the encoder's of the same segment: their indices
        shifted by those. Raises ValueError for pieces with places of their own, which can't be shifted."""
        there = self.coordinates
        if there.start == 0 and pieces.start == 0:
            shift = there.index.shape[1]
            return replace(pieces, index=pieces.index + shift, start=shift)
        if pieces.place is not None or there.place is not None:
            raise ValueError("cross='joint' is for pieces that stand at their index; set cross to separate")
        segment = there.segment.repeat_interleave(max(1, len(pieces.segment) // len(there.segment)), 0)
        shift = (pieces.segment.unsqueeze(2) == segment.unsqueeze(1)).sum(2)
        return replace(pieces, index=pieces.index + shift, start=None)

    def joined(self, pieces: Coordinates) -> Coordinates:
        """Where the encoder's pieces and those after them stand, (B, S + T)."""
        there = self.coordinates

        def both(one: Tensor, other: Tensor) -> Tensor:
            rows = max(len(one), len(other))
            return torch.cat([t.expand(rows, *t.shape[1:]) for t in (one, other)], 1)

        def given(one: Coordinates) -> Tensor:
            return torch.zeros_like(one.segment, dtype=torch.bool) if one.prefix is None else one.prefix

        prefix = None if pieces.prefix is None and there.prefix is None else both(given(there), given(pieces))
        is_plain = there.start == 0 and pieces.start == there.index.shape[1]
        segment, index = both(there.segment, pieces.segment), both(there.index, pieces.index)
        return Coordinates(segment, index, prefix, start=0 if is_plain else None)


@dataclass(eq=False)
class Pass:
    """What the blocks of a stack share during one pass through it; what depends on mask and places is made once."""

    x0: Tensor
    coordinates: Coordinates
    mask: Mask
    memory: Memory | None = None
    cache: Cache | None = None
    auxiliary: Auxiliary | None = None
    first_values: Tensor | None = None
    kernel: str = "auto"
    keys: Coordinates | None = None
    """Where the keys stand without a cache, if there are more than the pieces themselves."""
    recorder: Recorder | None = None
    documents: Documents | None = None
    """Which tokens belong together, for recurrences."""
    made: dict[tuple, Edges] = field(default_factory=dict)
    turns: dict[int | tuple[int, str], Turn] = field(default_factory=dict)

    def edges(self, block: BlockConfig, scheme: Scheme, layer: int) -> Edges:
        """Who may attend to whom in a block, and what places say about it."""
        own = self.coordinates if self.keys is None else self.keys
        keys = own if self.cache is None else self.cache.keys(layer)
        pattern = block.attention.pattern
        known = pattern, id(scheme), id(keys)
        if known not in self.made:
            if id(scheme) not in self.turns:
                self.turns[id(scheme)] = scheme.at(self.coordinates)
            bias, relative = scheme.bias(self.coordinates, keys), scheme.relative(self.coordinates, keys)
            mask = self.mask if pattern is None else self.mask & pattern
            needs_all = bias is not None or relative is not None
            allowed = lower(mask, self.coordinates, keys, wants_bias=needs_all, kernel=self.kernel)
            self.made[known] = Edges(allowed, self.turns[id(scheme)], bias, relative)
        return self.made[known]

    @cached_property
    def memory_edges(self) -> Edges:
        """Who may ask the memory: every piece of the same segment. Rows that share a row of it ask side by side."""
        assert self.memory is not None
        asking, there, rows = self.coordinates, self.memory.coordinates, len(self.memory.hidden)
        if rows < len(asking.index) and None in (asking.start, there.start):
            asking = asking.map(lambda t: t.unflatten(0, (rows, -1)).flatten(1, 2))
        return Edges(lower(Full(), asking, there, kernel=self.kernel))

    def memory_turn(self, scheme: Scheme) -> Turn:
        """How a scheme turns the keys (B, S, K, H) of the memory's pieces."""
        assert self.memory is not None
        if (known := (id(scheme), "memory")) not in self.turns:
            self.turns[known] = scheme.at(self.memory.coordinates)
        return self.turns[known]

    @property
    def present(self) -> Tensor | None:
        """Which slots hold a piece (B, T); None: all."""
        return None if self.coordinates.start is not None else self.coordinates.segment >= 0

    def within(self, subset: Subset) -> Pass:
        """The same for some of the pieces."""
        return replace(
            self,
            x0=subset.gather(self.x0),
            coordinates=subset.coordinates(self.coordinates),
            first_values=None if self.first_values is None else subset.gather(self.first_values),
            keys=None,
            made={},
            turns={},
        )


BEFORE_INNER_AFTER = {
    "pre": (True, False, False),
    "post": (False, False, True),
    "reordered": (False, True, False),
    "sandwich": (True, True, False),
    "bare": (False, False, False),
}


class Residual(nn.Module):
    """after(x + inner(f(before(x)))), each norm optional: where a norm sits is a row of the table."""

    def __init__(self, norm: Norm, placement: str, dim: int, dropout: float) -> None:
        super().__init__()
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
        """What f reads of the stream (B, T, D)."""
        return x if self.before is None else self.before(x)

    def branch(self, y: Tensor) -> Tensor:
        """What f gave (B, T, D), as it is added to the stream."""
        if self.inner is not None:
            y = self.inner(y)
        return dropout(y, self.dropout) if self.dropout and self.training else y


class Block(nn.Module):
    """A mixer (and cross-attention where there is an encoder), then a feed-forward, or both beside each other."""

    def __init__(
        self, config: BlockConfig, model: ModelConfig, stack: StackConfig, position: Scheme | None, *, is_first: bool
    ) -> None:
        """`position`: a scheme of its own; None: the stack's."""
        super().__init__()
        dim, mixer, feedforward = model.model_dim, config.mixer, config.feedforward
        self.config = config

        def residual(placement: str = config.norm_placement) -> Residual:
            return Residual(config.norm, placement, dim, model.dropout)

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

    def forward(self, x: Tensor, shared: Pass, scheme: Scheme, layer: int) -> Tensor:
        """The stream (B, T, D) through this block, the layer-th on its way; `scheme`: the stack's positions."""
        if self.depth is None:
            return self.through(x, shared, scheme, layer)
        if self.is_causal and not self.training:
            subset = self.depth.predict(x, shared.present)
        else:
            subset = self.depth.choose(x, shared.present, shared.auxiliary)
        inside = subset.gather(x)
        if shared.cache is not None:
            shared.cache.extend(subset.coordinates(shared.coordinates), layer)
        return subset.scatter_back(x, inside, self.through(inside, shared.within(subset), scheme, layer))

    def through(self, x: Tensor, shared: Pass, scheme: Scheme, layer: int) -> Tensor:
        """The pieces (B, T, D) that go through."""
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
        """What a cache keeps of each row for this block."""
        if not isinstance(self.mixer, MultiHeadAttention):
            return self.mixer.state_shape
        pattern = self.config.attention.pattern
        window = None if pattern is None else look_back(pattern)
        return KeyValueShape(self.mixer.num_kv_heads, self.mixer.head_dim, window, is_own=self.depth is not None)

    def mixed(self, y: Tensor, shared: Pass, scheme: Scheme, layer: int) -> Tensor:
        """What the mixer makes of the tokens (B, T, D)."""
        record = None if shared.recorder is None else shared.recorder.within(f"blocks.{layer}.mixer")
        cache, scheme = shared.cache, scheme if self.position is None else self.position
        if isinstance(self.mixer, MultiHeadAttention):
            context = self.context(self.mixer, shared, scheme, layer) if self.is_joint and shared.memory else None
            edges, state = shared.edges(self.config, scheme, layer), None if cache is None else cache.keys_values(layer)
            y, values = self.mixer(y, edges, shared.first_values, state, context, record)
            if shared.first_values is None:
                shared.first_values = values
        else:
            assert shared.documents is not None
            y = self.mixer(y, shared.documents, None if cache is None else cache.state(layer), record)
        if shared.recorder is not None:
            shared.recorder.take(f"blocks.{layer}.mixer", lambda: y)
        return y

    def transformed(self, y: Tensor, shared: Pass, layer: int) -> Tensor:
        """What the feed-forward makes of each token (B, T, D)."""
        assert self.feedforward is not None
        y = self.feedforward(y, shared.present, shared.auxiliary) if self.is_routed else self.feedforward(y)
        if shared.recorder is not None:
            shared.recorder.take(f"blocks.{layer}.feedforward", lambda: y)
        return y

    def context(self, attention: MultiHeadAttention, shared: Pass, scheme: Scheme, layer: int) -> KeysValues:
        """Keys and values (B, K, S, H) of the encoder's pieces, to be attended to jointly with the block's own."""
        memory = shared.memory
        assert memory is not None
        if memory.layers:
            return memory.layers[layer]
        return attention.keys_values(memory.hidden, shared.memory_turn(scheme))

    def read(self, x: Tensor, shared: Pass, layer: int) -> Tensor:
        """The stream (B, T, D) with what cross-attention read of the memory (B, S, D), where the block has any."""
        memory, cross = shared.memory, self.cross
        if memory is None or cross is None or self.cross_norm is None:
            return x
        state = None if shared.cache is None else shared.cache.keys_values(layer)
        record = None if shared.recorder is None else shared.recorder.within(f"blocks.{layer}.cross")
        return self.cross_norm(x, lambda y: cross.read(y, memory.hidden, shared.memory_edges, state, record))


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
        own = block.mixer.position
        if own is not None:
            known = own, model.rotated_dim(block.mixer, own)
            if known not in rotary:
                rotary[known] = RotaryPosition(*known, model.num_places(stack))
            schemes.append(rotary[known])
        else:
            shaw = stack.position if isinstance(stack.position, Shaw) else None
            schemes.append(None if shaw is None else ShawPosition(shaw, model.head_dim(block.mixer)))
    return schemes


class Ahead(nn.Module):
    """Blocks beside each other that read what a stack's last block wrote and say pieces further on."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class Stack(nn.Module):
    """Blocks in series over one position scheme, and a final norm."""

    kernel = "auto"

    def __init__(self, config: StackConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config, layers = config, model.layers(config)
        attentions = [block.mixer for block in layers if isinstance(block.mixer, Attention)]
        sharing = [attention for attention in attentions if attention.position is None] or attentions
        self.context_length, num_places = model.length(config), model.num_places(config)
        rotary = config.position if isinstance(config.position, Rotary) else Rotary()
        is_read = bool(attentions) or isinstance(config.position, Learned | Grid | Sinusoidal)
        self.position = build_position(
            config.position if is_read else None,
            model_dim=model.model_dim,
            num_heads={attention.num_heads for attention in sharing},
            rotated_dims={model.rotated_dim(attention, rotary) for attention in sharing},
            context_length=num_places,
        )
        self.has_recurrence = len(attentions) < len(layers)
        self.input_norm = None if config.input_norm is None else build_norm(config.input_norm, model.model_dim)
        own = _own_positions(layers, model, config)
        self.blocks = nn.ModuleList(
            Block(block, model, config, own[i], is_first=i == 0) for i, block in enumerate(layers)
        )
        self.final_norm = build_norm(layers[0].norm, model.model_dim) if config.final_norm else None
        self.ahead = Ahead(Block(layers[-1], model, config, own[-1], is_first=False) for _ in range(config.ahead))
        self.dropout = model.dropout

    def forward(
        self,
        x: Tensor,
        coordinates: Coordinates,
        mask: Mask,
        memory: Memory | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """Embeddings (B, T, D) of pieces at these coordinates to hidden states (B, T, D)."""
        keys = None
        if memory is not None and self.config.cross == "joint":
            own, coordinates = coordinates, memory.before(coordinates)
            if cache is not None and cache.length:
                memory = None  # its keys are in the cache
            else:
                keys = memory.joined(coordinates)
            if cache is not None and keys is not None:
                cache.come_after(coordinates.index - own.index, keys.index.shape[1] - own.index.shape[1])
        documents = self._documents(coordinates, mask, cache) if self.has_recurrence else None
        if cache is not None:
            cache.extend(coordinates if keys is None else keys)
        x = self.position.embed(x, coordinates)
        if self.input_norm is not None:
            x = self.input_norm(x)
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        shared = Pass(
            x,
            coordinates,
            mask,
            memory,
            cache,
            auxiliary,
            kernel=self.kernel,
            keys=keys,
            recorder=recorder,
            documents=documents,
        )
        for layer in range(self.num_layers):
            x = self.blocks[layer % len(self.blocks)](x, shared, self.position, layer)
            if recorder is not None:
                self._record(x, recorder, layer)
        if recorder is not None:
            for i, block in enumerate(self.ahead.blocks):
                run = partial(block, x, shared, self.position, self.num_layers + i)
                recorder.take(f"ahead.{i + 1}", lambda run=run: self.finished(run()))
        return self.finished(x)

    def _record(self, x: Tensor, recorder: Recorder, layer: int) -> None:
        """The stream after a block, and where it is an early exit, as the head reads it."""
        recorder.take(f"blocks.{layer}", lambda: x)
        if layer + 1 in self.config.exits:
            recorder.take(f"exits.{layer + 1}", lambda: self.finished(x))

    def _documents(self, coordinates: Coordinates, mask: Mask, cache: Cache | None) -> Documents:
        if mask != Causal():
            raise ValueError(
                f"the mask {mask} with a recurrence or a convolution, which read forwards and need a causal one; "
                f"choose an objective that predicts every next token, or attention in every block"
            )
        return Documents(coordinates, None if cache is None else cache.newest_document)

    @property
    def num_layers(self) -> int:
        """Blocks that a piece goes through."""
        return len(self.blocks) * self.config.loops

    def finished(self, x: Tensor) -> Tensor:
        """The stream (B, T, D) as the head reads it."""
        return x if self.final_norm is None else self.final_norm(x)


class Transformer(Network[ModelConfig]):
    """An encoder, a decoder, or both, with one stem and one head.

    Raises ValueError for a vocab_size of 0 (fill it in from the codec first).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = build_stem(config.stem, config.vocab_size, config.model_dim)
        other = config.encoder_stem
        self.encoder_stem = None if other is None else build_stem(other, config.vocab_size, config.model_dim)
        is_own = not config.share_stacks
        self.encoder = Stack(config.encoder, config) if config.encoder is not None and is_own else None
        self.decoder = None if config.decoder is None else Stack(config.decoder, config)
        table = self.stem.embedding if isinstance(self.stem, LookupStem) else None
        self.head = build_head(config.head, config.vocab_size, config.model_dim, table)
        self.reset_parameters()

    def tie(self) -> None:
        """Let a tied head borrow the stem's table again, after the table was replaced."""
        assert isinstance(self.stem, LookupStem) and not isinstance(self.head, PooledHead)
        self.head.weight = table_of(self.stem.embedding)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter afresh, as config.initialization says, from torch's generator."""
        init = self.config.initialization
        stacks = self.config.own_stacks
        branches = sum(stack.num_layers * stack.loops * (2 + (stack.cross == "separate")) for stack in stacks)
        for name, parameter in self.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf.endswith("_mix"):
                continue  # shortcuts keep the values they were made with
            module = self.get_submodule(name.rpartition(".")[0])
            if leaf == "bias" or isinstance(module, ZeroCenteredRMSNorm):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            elif name.startswith(("stem.previous", "stem.ngrams")):
                nn.init.zeros_(parameter)
            elif name.startswith(("stem.", "encoder_stem.")) or leaf.endswith("table"):
                nn.init.normal_(parameter, std=init.embedding)
            elif name.startswith("head.") and init.head == "zero":
                nn.init.zeros_(parameter)
            else:
                std = parameter.shape[-1] ** -0.5 if init.matrix is None else init.matrix
                if name.endswith((".output.weight", ".down.weight", ".down")) and ".blocks." in name:
                    std *= {"matrix": 1.0, "scaled": branches**-0.5, "zero": 0.0}[init.output]
                nn.init.normal_(parameter, std=std)
        for module in self.modules():
            if isinstance(module, LSTMMixer | RecurrenceMixer):
                module.reset_parameters()

    def encode(self, pieces: Pieces | Tensor, mask: Mask | None = None, auxiliary: Auxiliary | None = None) -> Memory:
        """What the encoder makes of pieces (B, S); everything sees everything unless a mask says otherwise."""
        stack, decoder = self.decoder if self.config.share_stacks else self.encoder, self.config.decoder
        if stack is None or self.config.encoder is None:
            raise ValueError("this model has no encoder; set model.encoder, or use decode")
        pieces = self._checked(pieces, self.config.length(self.config.encoder))
        x = (self.stem if self.encoder_stem is None else self.encoder_stem)(pieces)
        mask, asked = Full() if mask is None else mask, None if auxiliary is None else auxiliary.recorder
        if decoder is None or decoder.reads == "last":
            recorder = None if asked is None else asked.within("encoder")
            return Memory(
                stack(x, pieces.coordinates, mask, auxiliary=auxiliary, recorder=recorder), pieces.coordinates
            )
        needed = recorder_of(["encoder.blocks.*.mixer.keys", "encoder.blocks.*.mixer.values"])
        recorder = needed.beside(asked)
        hidden = stack(x, pieces.coordinates, mask, auxiliary=auxiliary, recorder=recorder.within("encoder"))
        recorder.give(asked)
        layers = zip(recorder.ending("mixer", "keys"), recorder.ending("mixer", "values"), strict=True)
        return Memory(hidden, pieces.coordinates, tuple(layers))

    def decode(
        self,
        pieces: Pieces | Tensor,
        mask: Mask | None = None,
        memory: Memory | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the decoder; causal unless a mask says otherwise.

        Raises ValueError for a missing or an unexpected memory, and for pieces beyond context_length.
        """
        decoder = self._decoder()
        if (memory is None) != (decoder.config.cross == "none"):
            wants = "no memory" if decoder.config.cross == "none" else "the encoder's memory"
            raise ValueError(f"decoder.cross={decoder.config.cross!r} wants {wants}")
        pieces = self._checked(pieces, decoder.context_length)
        mask = Causal() if mask is None else mask
        recorder = None if auxiliary is None or auxiliary.recorder is None else auxiliary.recorder.within("decoder")
        return decoder(self.stem(pieces), pieces.coordinates, mask, memory, cache, auxiliary, recorder)

    def logits(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        return self.head(hidden, coordinates)

    def hidden(
        self,
        pieces: Pieces | Tensor,
        mask: Mask | None = None,
        source: Pieces | Tensor | None = None,
        source_mask: Mask | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        if self.decoder is None:
            return self.encode(pieces, mask, auxiliary).hidden
        memory = None if source is None else self.encode(source, source_mask, auxiliary)
        return self.decode(pieces, mask, memory, auxiliary=auxiliary)

    def build_cache(self, num_rows: int, capacity: int | None = None) -> Cache:
        """An empty cache for the decoder, of `capacity` slots (absent: context_length); with joint attention it has
        room for the encoder's pieces beside them."""
        decoder, config = self._decoder(), self.config
        stack = decoder.config
        return Cache(
            [block.cache_shape for block in decoder.blocks if isinstance(block, Block)] * stack.loops,
            num_rows=num_rows,
            capacity=(capacity or config.length(stack)) + config.num_places(stack) - config.length(stack),
            device=self.device,
            dtype=next(self.parameters()).dtype,
        )

    def use_kernel(self, kernel: str, *, trains: bool = False) -> None:
        """Attend by this kernel, in place: auto, dense, sdpa or flex; `trains`: gradients will be asked for.

        Raises ValueError naming what the position schemes or dropout need that the kernel can't do.
        """
        if kernel != "auto" and not any(isinstance(module, MultiHeadAttention) for module in self.modules()):
            raise ValueError(f"kernel={kernel!r}: this model has no attention to compute; leave it at auto")
        for stack in (self.encoder, self.decoder):
            schemes = [] if stack is None else [m for m in stack.modules() if isinstance(m, Scheme)]
            attentions = [] if stack is None else [m for m in stack.modules() if isinstance(m, MultiHeadAttention)]
            needs = {need for scheme in schemes for need in scheme.needs}
            needs |= {"dropout"} if any(attention.dropout for attention in attentions) else set()
            needs |= {"gradients"} if trains else set()
            check_kernel(kernel, needs=needs, device=self.device)
            for module in [stack, *attentions] if stack is not None else []:
                module.kernel = kernel

    def compile_blocks(self) -> None:
        """Let torch.compile translate each block, in place; shapes are taken as fixed."""
        for stack in (self.encoder, self.decoder):
            for block in [] if stack is None else stack.blocks:
                block.compile(dynamic=False)

    def cut(self, num_layers: int) -> Transformer:
        """The model that stops after so many of its last stack's blocks, sharing all parameters: an early exit.

        Raises ValueError for more blocks than there are, and for a looped stack.
        """
        is_encoder = self.decoder is None
        stack = self.encoder if is_encoder else self.decoder
        assert stack is not None
        config = stack.config
        if not 1 <= num_layers <= config.num_layers or config.loops > 1:
            raise ValueError(
                f"num_layers={num_layers}: cut after block 1 .. {config.num_layers} of a stack without loops"
            )
        blocks = tuple(self.config.layers(config)[:num_layers])
        shorter = replace(config, blocks=blocks, num_layers=num_layers, exits=())
        whole = self.config
        with torch.device("meta"):
            other = Transformer(replace(whole, encoder=shorter) if is_encoder else replace(whole, decoder=shorter))
        part = other.encoder if is_encoder else other.decoder
        assert part is not None
        part.position, part.input_norm, part.final_norm = stack.position, stack.input_norm, stack.final_norm
        part.blocks = nn.ModuleList(list(stack.blocks)[:num_layers])
        other.stem, other.encoder_stem, other.head = self.stem, self.encoder_stem, self.head
        if not is_encoder:
            other.encoder = self.encoder
        return other.train(self.training)

    def _decoder(self) -> Stack:
        if self.decoder is None:
            raise ValueError("this model has no decoder; set model.decoder, or use encode")
        return self.decoder

    def _checked(self, pieces: Pieces | Tensor, context_length: int) -> Pieces:
        """As Pieces. Raises ValueError for those that stand beyond the context."""
        if isinstance(pieces, Tensor):
            pieces = plain_pieces(pieces)
        start, length = pieces.coordinates.start or 0, pieces.ids.shape[1]
        if start + length > context_length:
            raise ValueError(
                f"pieces {start} .. {start + length - 1} don't fit context_length={context_length}; "
                f"shorten the input or train with a longer context"
            )
        return pieces

"""The Transformer: one stack of blocks that is an encoder, a decoder, or one of each, by its config.

encode -> Memory, decode -> hidden, logits are separate calls; who attends to whom comes in as a mask, what
was seen before as a cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import assert_never

import torch
from torch import Tensor, nn

from isoform.batch import Tokens, plain_tokens
from isoform.mask import Causal, Coordinates, Full, Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.block import Block, ForwardContext, Memory, _own_positions
from isoform.model.cache import Cache
from isoform.model.component import Role, grouped, groups_of, roles_of
from isoform.model.config import ModelConfig, StackConfig
from isoform.model.embedding import LookupStem, PooledHead, build_head, build_stem, table_of
from isoform.model.kernels import dropout
from isoform.model.lowering import check_kernel
from isoform.model.mixers.attention import MultiHeadAttention
from isoform.model.mixers.documents import Documents, check_reads_forward
from isoform.model.mixers.external import ExternalMixer
from isoform.model.mixers.lstm import LSTMMixer
from isoform.model.mixers.recurrence import RecurrenceMixer
from isoform.model.network import Network
from isoform.model.norm import build_norm
from isoform.model.parts import (
    Attention,
    Grid,
    Learned,
    Recurrent,
    Rotary,
    Sinusoidal,
)
from isoform.model.position import Scheme, build_position
from isoform.model.recording import Recorder, recorder_of


class Ahead(nn.Module):
    """Blocks side by side that read the output of a stack's last block and predict tokens further ahead."""

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
        self.context_length, num_positions = model.length(config), model.num_positions(config)
        rotary = config.position if isinstance(config.position, Rotary) else Rotary()
        is_read = bool(attentions) or isinstance(config.position, Learned | Grid | Sinusoidal)
        self.position = build_position(
            config.position if is_read else None,
            model_dim=model.model_dim,
            num_heads={attention.num_heads for attention in sharing},
            rotated_dims={model.rotated_dim(attention, rotary) for attention in sharing},
            context_length=num_positions,
        )
        self.has_recurrence = any(isinstance(block.mixer, Recurrent) for block in layers)
        self.input_norm = None if config.input_norm is None else build_norm(config.input_norm, model.model_dim)
        schemes = _own_positions(layers, model, config)
        self.blocks = nn.ModuleList(
            Block(block, model, config, schemes[i], is_first=i == 0) for i, block in enumerate(layers)
        )
        self.final_norm = build_norm(layers[0].norm, model.model_dim) if config.final_norm else None
        self.ahead = Ahead(Block(layers[-1], model, config, schemes[-1], is_first=False) for _ in range(config.ahead))
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
        """Embeddings (B, T, D) of tokens at these coordinates to hidden states (B, T, D)."""
        keys = None
        if memory is not None and self.config.cross == "joint":
            unshifted, coordinates = coordinates, memory.shift_past(coordinates)
            if cache is not None and cache.length:
                memory = None  # its keys are in the cache
            else:
                keys = memory.joined(coordinates)
            if cache is not None and keys is not None:
                cache.come_after(coordinates.index - unshifted.index, keys.index.shape[1] - unshifted.index.shape[1])
        documents = self._documents(coordinates, mask, cache) if self.has_recurrence else None
        if cache is not None:
            cache.extend(coordinates if keys is None else keys)
        x = self.position.embed(x, coordinates)
        if self.input_norm is not None:
            x = self.input_norm(x)
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        shared = ForwardContext(
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
            x, _ = self.blocks[layer % len(self.blocks)](x, shared, self.position, layer)
            if recorder is not None:
                self._record(x, recorder, layer)
        if recorder is not None:
            for i, block in enumerate(self.ahead.blocks):
                run = partial(block, x, shared, self.position, self.num_layers + i)
                recorder.take(f"ahead.{i + 1}", lambda run=run: self.normalized(run()[0]))
        return self.normalized(x)

    def _record(self, x: Tensor, recorder: Recorder, layer: int) -> None:
        """Record the stream after a block and, at an early exit, as the head reads it."""
        recorder.take(f"blocks.{layer}", lambda: x)
        if layer + 1 in self.config.exits:
            recorder.take(f"exits.{layer + 1}", lambda: self.normalized(x))

    def _documents(self, coordinates: Coordinates, mask: Mask, cache: Cache | None) -> Documents:
        check_reads_forward(mask)
        return Documents(coordinates, None if cache is None else cache.newest_document)

    @property
    def num_layers(self) -> int:
        """Blocks that a token passes through, loops counted."""
        return len(self.blocks) * self.config.loops

    def normalized(self, x: Tensor) -> Tensor:
        """The stream (B, T, D) as the head reads it."""
        return x if self.final_norm is None else self.final_norm(x)


class Transformer(Network[ModelConfig]):
    """An encoder, a decoder, or both, with one stem and one head.

    Raises ValueError for a vocab_size of 0 (fill it in from the codec first).
    """

    methods = ("encode", "decode", *Network.methods)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = build_stem(config.stem, config.vocab_size, config.model_dim)
        stem, has_encoder = config.encoder_stem, config.encoder is not None and not config.share_stacks
        self.encoder_stem = None if stem is None else build_stem(stem, config.vocab_size, config.model_dim)
        self.encoder = Stack(config.encoder, config) if config.encoder is not None and has_encoder else None
        self.decoder = None if config.decoder is None else Stack(config.decoder, config)
        table = self.stem.embedding if isinstance(self.stem, LookupStem) else None
        self.head = build_head(config.head, config.vocab_size, config.model_dim, table)
        if self.device.type != "meta":  # where there is nothing to draw
            self.reset_parameters()

    def tie(self) -> None:
        """Let a tied head borrow the stem's table again, after the table was replaced."""
        assert isinstance(self.stem, LookupStem) and not isinstance(self.head, PooledHead)
        self.head.weight = table_of(self.stem.embedding)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's generator, by config.initialization; those of mixers of the user's own
        keep what they were made with."""
        init = self.config.initialization
        stacks = self.config.own_stacks
        branches = sum(stack.num_layers * stack.loops * (2 + (stack.cross == "separate")) for stack in stacks)
        roles, groups = roles_of(self), groups_of(self)
        own = {id(p) for m in self.modules() if isinstance(m, ExternalMixer) for p in m.parameters()}
        for name, parameter in self.named_parameters():
            if id(parameter) in own:
                continue
            std = parameter.shape[-1] ** -0.5 if init.matrix is None else init.matrix
            match roles[name]:
                case Role.MIX:
                    pass
                case Role.GAIN:
                    nn.init.ones_(parameter)
                case Role.SHIFT | Role.CONTEXT_EMBEDDING:
                    nn.init.zeros_(parameter)
                case Role.EMBEDDING | Role.TABLE:
                    nn.init.normal_(parameter, std=init.embedding)
                case Role.HEAD if init.head == "zero":
                    nn.init.zeros_(parameter)
                case Role.OUTPUT:
                    factor = {"matrix": 1.0, "scaled": branches**-0.5, "zero": 0.0}[init.output]
                    nn.init.normal_(parameter, std=factor * std)
                case Role.MATRIX | Role.ADAPTER | Role.ROUTER | Role.HEAD:
                    nn.init.normal_(parameter, std=std)
                    if name in groups:  # drawn as if the matrices lay one above the other
                        parameter.copy_(grouped(parameter, groups[name]))
                case _ as role:
                    assert_never(role)
        for module in self.modules():
            if isinstance(module, LSTMMixer | RecurrenceMixer):
                module.reset_parameters()

    def encode(self, tokens: Tokens | Tensor, mask: Mask | None = None, auxiliary: Auxiliary | None = None) -> Memory:
        """The encoder's output for tokens (B, S); the default mask is Full."""
        stack, decoder = self.decoder if self.config.share_stacks else self.encoder, self.config.decoder
        if stack is None or self.config.encoder is None:
            raise ValueError("this model has no encoder; set model.encoder, or use decode")
        tokens = self._checked(tokens, self.config.length(self.config.encoder))
        x = (self.stem if self.encoder_stem is None else self.encoder_stem)(tokens)
        mask, requested = Full() if mask is None else mask, None if auxiliary is None else auxiliary.recorder
        if decoder is None or decoder.memory_layers == "last":
            recorder = None if requested is None else requested.within("encoder")
            return Memory(
                stack(x, tokens.coordinates, mask, auxiliary=auxiliary, recorder=recorder), tokens.coordinates
            )
        outputs = [f"encoder.blocks.{layer}" for layer in range(stack.num_layers - 1)]
        keys_values = ["encoder.blocks.*.mixer.keys", "encoder.blocks.*.mixer.values"]
        recorder = recorder_of(outputs if decoder.cross == "separate" else keys_values).beside(requested)
        hidden = stack(x, tokens.coordinates, mask, auxiliary=auxiliary, recorder=recorder.within("encoder"))
        recorder.give(requested)
        if decoder.cross == "separate":
            below = [stack.normalized(recorder.tensors[name]) for name in outputs]
            return Memory(hidden, tokens.coordinates, outputs=(*below, hidden))
        layers = zip(recorder.with_parts("mixer", "keys"), recorder.with_parts("mixer", "values"), strict=True)
        return Memory(hidden, tokens.coordinates, tuple(layers))

    def decode(
        self,
        tokens: Tokens | Tensor,
        mask: Mask | None = None,
        memory: Memory | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the decoder; the default mask is Causal.

        Raises ValueError for a missing or an unexpected memory, and for tokens beyond context_length.
        """
        decoder = self._decoder()
        if (memory is None) != (decoder.config.cross == "none"):
            wants = "no memory" if decoder.config.cross == "none" else "the encoder's memory"
            raise ValueError(f"decoder.cross={decoder.config.cross!r} wants {wants}")
        tokens = self._checked(tokens, decoder.context_length)
        mask = Causal() if mask is None else mask
        recorder = None if auxiliary is None or auxiliary.recorder is None else auxiliary.recorder.within("decoder")
        return decoder(self.stem(tokens), tokens.coordinates, mask, memory, cache, auxiliary, recorder)

    def logits(self, hidden: Tensor, coordinates: Coordinates | None = None) -> Tensor:
        return self.head(hidden, coordinates)

    def hidden(
        self,
        tokens: Tokens | Tensor,
        mask: Mask | None = None,
        source: Tokens | Tensor | None = None,
        source_mask: Mask | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        if self.decoder is None:
            return self.encode(tokens, mask, auxiliary).hidden
        memory = None if source is None else self.encode(source, source_mask, auxiliary)
        return self.decode(tokens, mask, memory, auxiliary=auxiliary)

    def build_cache(self, num_rows: int, capacity: int | None = None, memory_length: int | None = None) -> Cache:
        """An empty cache for the decoder, of `capacity` slots (None: context_length); with joint attention it has
        room for the encoder's `memory_length` tokens (None: as many as it may read) beside them."""
        decoder, config = self._decoder(), self.config
        stack = decoder.config
        room = config.num_positions(stack) - config.length(stack)
        return Cache(
            [block.cache_shape for block in decoder.blocks if isinstance(block, Block)] * stack.loops,
            num_rows=num_rows,
            capacity=(capacity or config.length(stack)) + (room if memory_length is None else min(room, memory_length)),
            device=self.device,
            dtype=next(self.parameters()).dtype,
        )

    def use_kernel(self, kernel: str, *, trains: bool = False) -> None:
        """Attend by this kernel, in place: auto, dense, sdpa or flex; `trains`: gradients will be needed.

        Raises ValueError naming what the position schemes or dropout need that the kernel can't do.
        """
        if kernel != "auto" and not any(isinstance(module, MultiHeadAttention) for module in self.modules()):
            raise ValueError(f"kernel={kernel!r}: this model has no attention to compute; leave it at auto")
        for stack in (self.encoder, self.decoder):
            schemes = [] if stack is None else [m for m in stack.modules() if isinstance(m, Scheme)]
            attentions = [] if stack is None else [m for m in stack.modules() if isinstance(m, MultiHeadAttention)]
            needs = {need for scheme in schemes for need in scheme.needs}
            needs |= {"dropout"} if any(attention.dropout for attention in attentions) else set()
            needs |= {"weights"} if any(attention.softcap is not None for attention in attentions) else set()
            needs |= {"gradients"} if trains else set()
            check_kernel(kernel, needs=needs, device=self.device)
            for module in [stack, *attentions] if stack is not None else []:
                module.kernel = kernel

    def compile_blocks(self) -> None:
        """Let torch.compile translate each kind of block, in place."""
        for module in self.modules():
            if isinstance(module, Block):
                module.is_compiled = True

    def truncated(self, num_layers: int) -> Transformer:
        """The model with only the first num_layers blocks of its last stack, sharing all parameters: an early exit.

        Raises ValueError for more blocks than the stack has, and for a looped stack.
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
            cut = Transformer(replace(whole, encoder=shorter) if is_encoder else replace(whole, decoder=shorter))
        part = cut.encoder if is_encoder else cut.decoder
        assert part is not None
        part.position, part.input_norm, part.final_norm = stack.position, stack.input_norm, stack.final_norm
        part.blocks = nn.ModuleList(list(stack.blocks)[:num_layers])
        cut.stem, cut.encoder_stem, cut.head = self.stem, self.encoder_stem, self.head
        if not is_encoder:
            cut.encoder = self.encoder
        return cut.train(self.training)

    def _decoder(self) -> Stack:
        if self.decoder is None:
            raise ValueError("this model has no decoder; set model.decoder, or use encode")
        return self.decoder

    def _checked(self, tokens: Tokens | Tensor, context_length: int) -> Tokens:
        """As Tokens. Raises ValueError for those that stand beyond the context."""
        if isinstance(tokens, Tensor):
            tokens = plain_tokens(tokens)
        start, length = tokens.coordinates.start or 0, tokens.ids.shape[1]
        if start + length > context_length:
            raise ValueError(
                f"tokens {start} .. {start + length - 1} don't fit context_length={context_length}; "
                f"shorten the input or train with a longer context"
            )
        return tokens

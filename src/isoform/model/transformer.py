"""The Transformer: one stack of blocks that is an encoder, a decoder, or one of each, by its config.

encode -> Memory, decode -> hidden, logits are separate calls; who attends to whom comes in as a mask, what
was seen before as a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoform.batch import Pieces, plain_pieces
from isoform.mask import Causal, Coordinates, Full, Mask
from isoform.model.attention import ALL, Allowed, Attention, lower
from isoform.model.cache import Cache
from isoform.model.config import BlockConfig, ModelConfig, Norm, StackConfig
from isoform.model.embedding import LookupStem, VocabularyHead, build_norm
from isoform.model.feedforward import build_feedforward
from isoform.model.kernels import Linear, dropout
from isoform.model.position import Turn, build_position


@dataclass(frozen=True, eq=False)
class Memory:
    """An encoder's output (B, S, D) and where its pieces stand."""

    hidden: Tensor
    coordinates: Coordinates


@dataclass(eq=False)
class Pass:
    """What the blocks of a stack share during one pass through it."""

    x0: Tensor
    turn: Turn
    allowed: Callable[[BlockConfig], Allowed]
    memory: Tensor | None = None
    memory_allowed: Allowed = ALL
    cache: Cache | None = None
    first_values: Tensor | None = None


BEFORE_INNER_AFTER = {
    "pre": (True, False, False),
    "post": (False, False, True),
    "reordered": (False, True, False),
    "sandwich": (True, True, False),
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
        y = f(x if self.before is None else self.before(x))
        if self.inner is not None:
            y = self.inner(y)
        if self.dropout and self.training:
            y = dropout(y, self.dropout)
        return x + y if self.after is None else self.after(x + y)


class Block(nn.Module):
    """Attention (and cross-attention where there is an encoder), then feed-forward."""

    def __init__(self, config: BlockConfig, model: ModelConfig, index: int, *, cross: bool) -> None:
        super().__init__()
        dim, head_dim = model.model_dim, model.head_dim(config)
        self.config, self.index = config, index

        def residual() -> Residual:
            return Residual(config.norm, config.norm_placement, dim, model.dropout)

        self.attention_norm, self.attention = residual(), Attention(config.attention, dim, head_dim)
        if cross:
            self.cross_norm = residual()
            self.cross = Attention(config.attention, dim, head_dim, cross=True)
        self.feedforward_norm = residual()
        self.feedforward = build_feedforward(config.feedforward, dim, model.feedforward_dim(config))
        self.x0_mix = nn.Parameter(torch.tensor([1.0, 0.0])) if config.x0_shortcut else None

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        """The stream (B, T, D) through this block."""
        if self.x0_mix is not None:
            x = self.x0_mix[0] * x + self.x0_mix[1] * shared.x0
        cache, end = (None, 0) if shared.cache is None else (shared.cache.layers[self.index], shared.cache.length)

        def attention(y: Tensor) -> Tensor:
            allowed = shared.allowed(self.config)
            y, values = self.attention(y, allowed, shared.turn, shared.first_values, cache, end)
            if shared.first_values is None:
                shared.first_values = values
            return y

        x = self.attention_norm(x, attention)
        if shared.memory is not None:
            memory, edges = shared.memory, shared.memory_allowed
            x = self.cross_norm(x, lambda y: self.cross.read(y, memory, edges, cache))
        return self.feedforward_norm(x, self.feedforward)


class Stack(nn.Module):
    """Blocks in series over one position scheme, and a final norm."""

    def __init__(self, config: StackConfig, model: ModelConfig) -> None:
        super().__init__()
        layers = model.layers(config)
        self.position = build_position(
            config.position,
            model_dim=model.model_dim,
            head_dims={model.head_dim(block) for block in layers},
            context_length=model.context_length,
        )
        cross = config.cross != "none"
        self.blocks = nn.ModuleList(Block(block, model, i, cross=cross) for i, block in enumerate(layers))
        self.final_norm = build_norm(layers[0].norm, model.model_dim) if config.final_norm else None
        self.dropout, self.context_length = model.dropout, model.context_length

    def forward(
        self,
        x: Tensor,
        coordinates: Coordinates,
        mask: Mask,
        memory: Memory | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Embeddings (B, T, D) of pieces at these coordinates to hidden states (B, T, D)."""
        keys = coordinates if cache is None else cache.extend(coordinates)
        lowered: dict[Mask, Allowed] = {}

        def allowed(block: BlockConfig) -> Allowed:
            pattern = block.attention.pattern
            whole = mask if pattern is None else mask & pattern
            if whole not in lowered:
                lowered[whole] = lower(whole, coordinates, keys)
            return lowered[whole]

        x = self.position.embed(x, coordinates)
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        shared = Pass(x, self.position.at(coordinates), allowed, cache=cache)
        if memory is not None:
            shared.memory = memory.hidden
            shared.memory_allowed = lower(Full(), coordinates, memory.coordinates)
        for block in self.blocks:
            x = block(x, shared)
        return x if self.final_norm is None else self.final_norm(x)


class Transformer(nn.Module):
    """An encoder, a decoder, or both, with one stem and one head.

    Raises ValueError for a vocab_size of 0 (fill it in from the codec first).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size={config.vocab_size}: set it to the number of pieces of the codec")
        self.config = config
        self.stem = LookupStem(config.stem, config.vocab_size, config.model_dim)
        self.encoder = None if config.encoder is None else Stack(config.encoder, config)
        self.decoder = None if config.decoder is None else Stack(config.decoder, config)
        self.head = VocabularyHead(config.head, config.vocab_size, config.model_dim, self.stem.embedding.weight)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter afresh, as config.initialization says, from torch's generator."""
        init = self.config.initialization
        stacks = [s for s in (self.encoder, self.decoder) if s is not None]
        branches = sum(
            len(s.blocks) * (2 + (c.cross != "none")) for s, c in zip(stacks, self._stack_configs(), strict=True)
        )
        for name, parameter in self.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf.endswith("_mix"):
                continue  # shortcuts keep the values they were made with
            if leaf == "bias":
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            elif name.startswith(("stem.previous", "stem.ngrams")):
                nn.init.zeros_(parameter)
            elif name.startswith("stem.") or leaf == "table":
                nn.init.normal_(parameter, std=init.embedding)
            elif name.startswith("head.") and init.head == "zero":
                nn.init.zeros_(parameter)
            else:
                std = parameter.shape[1] ** -0.5 if init.matrix is None else init.matrix
                if name.endswith((".output.weight", ".down.weight")):
                    std *= {"matrix": 1.0, "scaled": branches**-0.5, "zero": 0.0}[init.output]
                nn.init.normal_(parameter, std=std)

    def _stack_configs(self) -> list[StackConfig]:
        return [c for c in (self.config.encoder, self.config.decoder) if c is not None]

    def encode(self, pieces: Pieces | Tensor, mask: Mask | None = None) -> Memory:
        """What the encoder makes of pieces (B, S); everything sees everything unless a mask says otherwise."""
        assert self.encoder is not None, "this model has no encoder"
        pieces = self._checked(pieces)
        hidden = self.encoder(self.stem(pieces), pieces.coordinates, Full() if mask is None else mask)
        return Memory(hidden, pieces.coordinates)

    def decode(
        self,
        pieces: Pieces | Tensor,
        mask: Mask | None = None,
        memory: Memory | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the decoder; causal unless a mask says otherwise.

        Raises ValueError for a missing or an unexpected memory, and for pieces beyond context_length.
        """
        assert self.decoder is not None and self.config.decoder is not None, "this model has no decoder"
        if (memory is None) != (self.config.decoder.cross == "none"):
            wants = "no memory" if self.config.decoder.cross == "none" else "the encoder's memory"
            raise ValueError(f"decoder.cross={self.config.decoder.cross!r} wants {wants}")
        pieces = self._checked(pieces)
        mask = Causal() if mask is None else mask
        return self.decoder(self.stem(pieces), pieces.coordinates, mask, memory, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T, D) to scores (B, T, V)."""
        return self.head(hidden)

    def hidden(
        self,
        pieces: Pieces | Tensor,
        mask: Mask | None = None,
        source: Pieces | Tensor | None = None,
        source_mask: Mask | None = None,
    ) -> Tensor:
        """What the head reads (B, T, D), whichever stacks there are; `source` goes to the encoder of a pair."""
        if self.decoder is None:
            return self.encode(pieces, mask).hidden
        memory = None if source is None else self.encode(source, source_mask)
        return self.decode(pieces, mask, memory)

    def forward(
        self,
        pieces: Pieces | Tensor,
        mask: Mask | None = None,
        source: Pieces | Tensor | None = None,
        source_mask: Mask | None = None,
    ) -> Tensor:
        """Scores (B, T, V): `logits(hidden(...))`, for convenience."""
        return self.logits(self.hidden(pieces, mask, source, source_mask))

    def build_cache(self, num_rows: int, capacity: int | None = None) -> Cache:
        """An empty cache for the decoder, of `capacity` slots (absent: context_length)."""
        assert self.config.decoder is not None, "this model has no decoder"
        layers = self.config.layers(self.config.decoder)
        shapes = [
            (block.attention.num_kv_heads or block.attention.num_heads, self.config.head_dim(block)) for block in layers
        ]
        weight = self.stem.embedding.weight
        return Cache(
            shapes,
            num_rows=num_rows,
            capacity=capacity or self.config.context_length,
            device=weight.device,
            dtype=weight.dtype,
        )

    def reduce_products(self, dtype: torch.dtype) -> None:
        """Run the blocks' matrix products in this format, with all else in float32, in place: for CPUs, where
        autocast's smaller activations would cost more than they save. Parameters stay as they are."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.product_dtype = dtype

    def compile_blocks(self) -> None:
        """Let torch.compile translate each block, in place; shapes are taken as fixed."""
        for stack in (self.encoder, self.decoder):
            for block in [] if stack is None else stack.blocks:
                block.compile(dynamic=False)

    def _checked(self, pieces: Pieces | Tensor) -> Pieces:
        if isinstance(pieces, Tensor):
            pieces = plain_pieces(pieces)
        start, length = pieces.coordinates.start or 0, pieces.ids.shape[1]
        if start + length > self.config.context_length:
            raise ValueError(
                f"pieces {start} .. {start + length - 1} don't fit context_length={self.config.context_length}; "
                f"shorten the input or train with a longer context"
            )
        return pieces

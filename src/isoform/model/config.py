"""The Transformer as a tree of choices: every architecture is a value of ModelConfig. Torch-free.

A choice is a union of dataclasses, named in files by its `kind`; what is absent takes its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from isoform.mask import Window


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A vector per place, added to the embeddings; places end at context_length."""


@dataclass(frozen=True, kw_only=True)
class Sinusoidal:
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, section 3.5)."""

    base: float = 10000.0


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys turned by an angle that grows with the place (Su et al. 2021)."""

    base: float = 10000.0


Position = Learned | Sinusoidal | Rotary


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Centre and scale to unit variance (Ba et al. 2016)."""

    epsilon: float = 1e-5
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class RMSNorm:
    """Scale to unit root mean square (Zhang and Sennrich 2019)."""

    epsilon: float = 1e-6
    scale: bool = True
    """A learned gain per feature."""


Norm = LayerNorm | RMSNorm


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head attention; fewer key/value heads than heads make it grouped-query, one multi-query."""

    num_heads: int = 4
    num_kv_heads: int | None = None
    """Key/value heads; absent: num_heads."""
    head_dim: int | None = None
    """Width of a head; absent: model_dim / num_heads."""
    bias: bool = False
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys, without a gain (Henry et al. 2020)."""
    value_shortcut: bool = False
    """Mix the first block's values into this block's, with learned weights (ResFormer, Zhou et al. 2024)."""
    dropout: float = 0.0
    """Dropout of the attention weights."""
    pattern: Window | None = None
    """A window and-ed to the objective's mask."""

    def __post_init__(self) -> None:
        groups = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        if self.num_heads < 1 or groups < 1 or self.num_heads % groups:
            raise ValueError(
                f"num_heads={self.num_heads} must be a positive multiple of num_kv_heads={groups}; "
                f"choose num_kv_heads among the divisors of num_heads"
            )


Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Two matrices with an activation between; relu2 is the squared ReLU (So et al. 2021)."""

    feedforward_dim: int | None = None
    """Inner width; absent: 4 x model_dim."""
    activation: Activation = "gelu"
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Gated:
    """activation(gate x) * (up x), then down (Shazeer 2020)."""

    feedforward_dim: int | None = None
    """Inner width; absent: 8/3 x model_dim, rounded up to a multiple of 8."""
    activation: Activation = "silu"
    bias: bool = False


FeedForward = Dense | Gated


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One block: attention and feed-forward, each a residual branch."""

    attention: AttentionConfig = AttentionConfig()
    feedforward: FeedForward = Dense()
    norm: Norm = LayerNorm()
    norm_placement: Literal["pre", "post", "reordered", "sandwich"] = "pre"
    """pre: before the branch; post: after the sum (2017); reordered: on the branch's output; sandwich: both
    sides of the branch."""
    x0_shortcut: bool = False
    """Mix the embeddings into the block's input, with learned weights."""


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A pile of blocks; `blocks` are repeated in turn until there are num_layers."""

    num_layers: int = 4
    blocks: tuple[BlockConfig, ...] = (BlockConfig(),)
    position: Position | None = Rotary()
    final_norm: bool = True
    """Normalise what leaves the stack, as the first block's norm does (post-norm stacks go without)."""
    cross: Literal["none", "separate"] = "none"
    """separate: each block also attends to the encoder's output, with parameters of its own."""

    def __post_init__(self) -> None:
        if self.num_layers < 1 or not self.blocks:
            raise ValueError(f"num_layers={self.num_layers} with {len(self.blocks)} blocks; both must be >= 1")


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """A vector per piece."""

    scale: bool = False
    """Multiply embeddings by sqrt(model_dim) (2017)."""
    norm: Norm | None = None
    """Normalise the embeddings."""
    previous: bool = False
    """Also look up the piece before, in a table of its own."""
    ngrams: tuple[int, ...] = ()
    """Also look up the last n pieces, for each n >= 2 named here, each in a table of its own."""
    ngram_rows: int = 16384
    """Most rows of such a table; where there are more n-grams they share rows by a hash (Svenstrup et al. 2017)."""

    def __post_init__(self) -> None:
        if any(n < 2 for n in self.ngrams) or self.ngram_rows < 1:
            raise ValueError(f"ngrams={self.ngrams} with ngram_rows={self.ngram_rows}: n must be >= 2, rows >= 1")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A score per piece of the vocabulary."""

    tied: bool = False
    """Use the embedding's table (Press and Wolf 2017)."""
    bias: bool = False
    softcap: float | None = None
    """cap * tanh(logits / cap) (Gemma 2)."""


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """How parameters are drawn: normal, with these standard deviations; biases are 0, gains 1."""

    embedding: float = 0.02
    matrix: float | None = 0.02
    """Of every matrix in the blocks and the head; absent: 1 / sqrt(inputs)."""
    output: Literal["matrix", "scaled", "zero"] = "matrix"
    """Projections back into the residual stream: like the rest, divided by sqrt(branches) (GPT-2), or zero."""
    head: Literal["matrix", "zero"] = "matrix"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: an encoder, a decoder, or both."""

    model_dim: int = 128
    context_length: int = 128
    """The most pieces a stack sees at once, and the length of training rows."""
    vocab_size: int = 0
    """Pieces; 0: as many as the codec has."""
    encoder: StackConfig | None = None
    decoder: StackConfig | None = StackConfig()
    stem: Lookup = Lookup()
    head: Vocabulary = Vocabulary()
    dropout: float = 0.0
    """Dropout of the embeddings and of each branch's output."""
    initialization: Initialization = Initialization()

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise ValueError("a model needs an encoder or a decoder; both are none")
        if self.decoder is not None and (self.decoder.cross != "none") != (self.encoder is not None):
            raise ValueError(
                f"decoder.cross={self.decoder.cross!r} with {'no' if self.encoder is None else 'an'} encoder: "
                f"cross-attention goes with an encoder; set both or neither"
            )
        if self.encoder is not None and self.encoder.cross != "none":
            raise ValueError(f"encoder.cross={self.encoder.cross!r}: only a decoder attends to an encoder")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and less than 1")
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i, block in enumerate(stack.blocks if stack else ()):
                heads = block.attention.num_heads
                if block.attention.head_dim is None and self.model_dim % heads:
                    raise ValueError(
                        f"{name}.blocks.{i}: model_dim={self.model_dim} is not divisible by num_heads={heads}; "
                        f"choose another number or set head_dim"
                    )
                if isinstance(stack.position if stack else None, Rotary) and self.head_dim(block) % 2:
                    raise ValueError(
                        f"{name}.blocks.{i}: rotary positions turn pairs, so head_dim={self.head_dim(block)} "
                        f"must be even"
                    )

    def head_dim(self, block: BlockConfig) -> int:
        """Width H of a head of this block."""
        return block.attention.head_dim or self.model_dim // block.attention.num_heads

    def feedforward_dim(self, block: BlockConfig) -> int:
        """Inner width F of this block's feed-forward."""
        match block.feedforward:
            case Dense(feedforward_dim=width):
                return width or 4 * self.model_dim
            case Gated(feedforward_dim=width):
                return width or -(-8 * self.model_dim // 3 // 8) * 8
            case _:
                assert_never(block.feedforward)

    def layers(self, stack: StackConfig) -> list[BlockConfig]:
        """The config of each of the stack's blocks, bottom to top."""
        return [stack.blocks[i % len(stack.blocks)] for i in range(stack.num_layers)]

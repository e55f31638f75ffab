"""The Transformer as a tree of choices: every architecture is a value of ModelConfig, its parts those of parts.py.
Torch-free.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, assert_never

from isoform.model.parts import (
    Activation,
    Attention,
    Dense,
    Depth,
    ExpertChoice,
    Experts,
    FeedForward,
    Gated,
    LayerNorm,
    LinearRecurrence,
    Mixer,
    Norm,
    Position,
    Rotary,
)
from isoform.ranges import (
    Layers,
    NGram,
    NonNegative,
    OptionalLayers,
    OptionalSize,
    Positive,
    Rate,
    Size,
    config,
)


@config
class BlockConfig:
    """One block: a mixer, which passes information between tokens, and a feed-forward, each a residual branch."""

    mixer: Mixer = Attention()
    """How tokens exchange information."""
    feedforward: FeedForward | None = Dense()
    """None: the block has only the mixer."""
    norm: Norm = LayerNorm()
    """Of both branches."""
    norm_placement: Literal["pre", "post", "reordered", "sandwich"] = "pre"
    """pre: before the branch; post: after the sum (2017); reordered: on the branch's output; sandwich: both
    sides of the branch."""
    parallel: Literal["none", "own_norms", "one_norm"] = "none"
    """Attention and feed-forward beside each other: with a norm each (GPT-NeoX) or one for both (GPT-J, PaLM)."""
    residual_scale: Positive = 1.0
    """What the output of each branch is multiplied by before it is added (Granite)."""
    depth: Depth | None = None
    """Let only some tokens through this block."""
    x0_shortcut: bool = False
    """Mix the embeddings into the block's input, with learned weights."""

    @property
    def attention(self) -> Attention:
        """The mixer, where it must be attention. Raises ValueError for another."""
        if isinstance(self.mixer, Attention):
            return self.mixer
        raise ValueError(f"this is for blocks whose mixer is attention, but one is {type(self.mixer).__name__}")

    def __post_init__(self) -> None:
        if self.feedforward is None and self.parallel != "none":
            raise ValueError(f"parallel={self.parallel!r} without a feed-forward: there is nothing beside the mixer")
        if self.depth is not None and not isinstance(self.mixer, Attention):
            raise ValueError(
                f"depth with the mixer {type(self.mixer).__name__}: only attention lets tokens pass a block by; leave "
                f"depth out"
            )
        if self.parallel != "none" and self.norm_placement != "pre":
            raise ValueError(
                f"parallel={self.parallel!r} with norm_placement={self.norm_placement!r}: parallel branches have their "
                f"norms before them; set norm_placement to pre"
            )


@config
class StackConfig:
    """Blocks in series; `blocks` are repeated in turn up to num_layers."""

    num_layers: Layers = 4
    """Blocks of the stack."""
    blocks: tuple[BlockConfig, ...] = (BlockConfig(),)
    loops: Layers = 1
    """How often the stack is applied, with the same parameters (Universal Transformer, Dehghani et al. 2019)."""
    position: Position | None = Rotary()
    """How the order of tokens is seen; None: not at all, unless blocks have their own."""
    context_length: Size | None = None
    """The most tokens this stack sees at once; None: the model's."""
    input_norm: Norm | None = None
    """Normalise what enters the first block, positions included (BERT)."""
    first_norm: bool = True
    """Whether the first block's attention has its norm; ModernBERT has input_norm instead."""
    final_norm: bool = True
    """Normalise what leaves the stack, as the first block's norm does (post-norm stacks go without)."""
    cross: Literal["none", "separate", "joint"] = "none"
    """How a decoder attends to an encoder. separate: in each block once more, with parameters of its own; joint: to the
    encoder's tokens and its own at once, as if they had come before it."""
    memory_layers: Literal["last", "layerwise"] = "last"
    """What a decoder reads of an encoder. last: its output, in every block; layerwise: in each block what the encoder's
    block of the same number has: for joint attention its keys and values, for separate its output (He et al. 2018,
    "Layer-wise coordination")."""
    exits: tuple[Layers, ...] = ()
    """Numbers of blocks after which the head is trained to predict too, through the final norm (early exit)."""
    exit_loss: NonNegative = 0.3
    """Weight of the exits' mean loss beside that of the last block."""
    ahead: OptionalLayers = 0
    """Number of extra heads, each a block on top of the last one, that predict the tokens after the next one; only in
    training (Gloeckle et al. 2024, section 2)."""
    ahead_loss: NonNegative = 0.3
    """Weight of those heads' mean loss beside that of the next token."""

    def __post_init__(self) -> None:
        if self.memory_layers == "layerwise" and self.cross == "none":
            raise ValueError(
                "memory_layers='layerwise' with cross='none': there is no encoder to read; set cross to separate"
            )
        if not self.blocks:
            raise ValueError("blocks is empty; a stack needs one")
        if any(exit >= self.num_layers * self.loops for exit in self.exits):
            raise ValueError(
                f"exits={self.exits}: an exit is the number of a block before the last, 1 .. "
                f"{self.num_layers * self.loops - 1}"
            )


@config
class Lookup:
    """A vector per token."""

    scale: bool = False
    """Multiply embeddings by sqrt(model_dim) (2017)."""
    factor: Positive = 1.0
    """Multiply embeddings by this number, too (Granite)."""
    norm: Norm | None = None
    """Normalise the embeddings."""
    num_token_types: OptionalSize = 0
    """Rows of a table of token types, added to the embeddings (BERT)."""
    previous: bool = False
    """Also look up the token before, in a table of its own."""
    ngrams: tuple[NGram, ...] = ()
    """Also look up the last n tokens, for each n >= 2 named here, each in a table of its own."""
    ngram_rows: Size = 16384
    """Most rows of such a table; where there are more n-grams they share rows by a hash (Svenstrup et al. 2017)."""


@config
class Linear:
    """Feature rows through one matrix: patches, frames, measurements; tokens with an id are looked up instead."""

    num_features: OptionalSize = 0
    """Numbers per token; 0: the codec's."""
    bias: bool = True
    """A learned offset per feature."""
    num_ids: OptionalSize = 0
    """Learned vectors for tokens that have an id instead of features, such as a class token; 0: the codec's
    number."""


@config
class Convolution:
    """Feature rows through two convolutions over time with GELUs, the second with a stride (Whisper).

    A token holds the `stride` frames that become it, side by side.
    """

    num_features: Size = 80
    """Numbers per frame."""
    width: Size = 3
    """Frames under a kernel; odd."""
    stride: Size = 2
    """Frames that become one token."""

    def __post_init__(self) -> None:
        if self.width % 2 == 0:
            raise ValueError(f"width={self.width} must be odd")


Stem = Lookup | Linear | Convolution


@config
class Vocabulary:
    """A score per token of the vocabulary."""

    tied: bool = False
    """Use the embedding's table (Press and Wolf 2017)."""
    bias: bool = False
    """A learned offset per token."""
    softcap: Positive | None = None
    """cap * tanh(logits / cap) (Gemma 2)."""
    scale: Positive | None = None
    """What hidden states are multiplied by first (T5 of 2020: 1 / sqrt(model_dim))."""


@config
class MaskedVocabulary:
    """A dense layer, an activation and a norm before the scores (BERT's masked-language head)."""

    activation: Activation = "gelu"
    """Of the dense layer."""
    norm: Norm = LayerNorm()
    dense_bias: bool = True
    """Bias of the dense layer."""
    tied: bool = True
    bias: bool = True
    """A learned offset per token."""


@config
class Pooled:
    """One output for a whole document, repeated at each of its tokens: class scores, numbers, or a vector."""

    over: Literal["first", "mean", "last", "each"] = "first"
    """The hidden state that represents a document: its first token's, the mean, or its last token's; each: every token
    by itself (tags)."""
    num_outputs: OptionalSize = 0
    """Classes or numbers; 0: the codec's number of classes, or with `embed` none, the vector itself."""
    embed: bool = False
    """Return the pooled vector, scaled to length 1, instead of scores (sentence embedding)."""
    dense: bool = False
    """A dense layer with an activation before the scores (BERT's pooler)."""
    activation: Activation = "tanh"
    """Of the dense layer."""
    dense_bias: bool = True
    """Bias of the dense layer."""
    norm: Norm | None = None
    """After the dense layer (ModernBERT)."""
    bias: bool = True
    """A learned offset per output."""

    def __post_init__(self) -> None:
        if self.norm is not None and not self.dense:
            raise ValueError("head.norm without head.dense: the norm follows the dense layer; set dense, or no norm")


Head = Vocabulary | MaskedVocabulary | Pooled


@config
class Initialization:
    """How parameters are drawn: normal, with these standard deviations; biases are 0, gains 1."""

    embedding: NonNegative = 0.02
    """Of the embedding tables."""
    matrix: NonNegative | None = 0.02
    """Of every matrix in the blocks and the head; None: 1 / sqrt(inputs)."""
    output: Literal["matrix", "scaled", "zero"] = "matrix"
    """Projections back into the residual stream: like the rest, divided by sqrt(branches) (GPT-2), or zero."""
    head: Literal["matrix", "zero"] = "matrix"
    """The matrix of the head: like the rest, or zero."""


@config
class LowRank:
    """Only thin matrices beside those of the blocks learn (LoRA, Hu et al. 2022)."""

    rank: Size = 8
    """The inner width of the thin matrices."""
    alpha: Positive = 16.0
    """The product of the thin matrices is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("attention", "feedforward")
    """Parts of the names of matrices that get some: attention, cross, feedforward, query_key_value, output, up …"""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("adapters: targets is empty; name a part of the names of matrices")


Form = Literal["encoder", "decoder", "encoder_decoder"]


@config
class ModelConfig:
    """A whole model: an encoder, a decoder, or both."""

    model_dim: Size = 128
    """Width D of the residual stream."""
    context_length: Size = 128
    """The most tokens a stack sees at once, and the length of training rows."""
    vocab_size: OptionalSize = 0
    """Tokens of the vocabulary; 0: the codec's."""
    encoder: StackConfig | None = None
    """The stack that reads a source or a whole text; None: there is none."""
    decoder: StackConfig | None = StackConfig()
    """The stack that writes; None: there is none."""
    stem: Stem = Lookup()
    """How tokens become vectors."""
    encoder_stem: Stem | None = None
    """The encoder's stem in an encoder-decoder; None: the decoder's."""
    share_stacks: bool = False
    """Encoder and decoder are one stack, with the same parameters."""
    head: Head = Vocabulary()
    """How hidden states become scores."""
    dropout: Rate = 0.0
    """Dropout of the embeddings and of each branch's output."""
    initialization: Initialization = Initialization()
    """How parameters are drawn."""

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise ValueError("a model needs an encoder or a decoder; both are none")
        if self.decoder is not None and self.decoder.cross == "none" and self.encoder is not None:
            raise ValueError(
                "a decoder beside an encoder that it doesn't attend to (decoder.cross='none'); for an encoder alone "
                'set decoder = "none", for an encoder-decoder set decoder.cross'
            )
        if self.decoder is not None and self.decoder.cross != "none" and self.encoder is None:
            raise ValueError(
                f"decoder.cross={self.decoder.cross!r} with no encoder: cross-attention goes with an encoder; set both "
                f"or neither"
            )
        if self.encoder is not None and self.encoder.cross != "none":
            raise ValueError(f"encoder.cross={self.encoder.cross!r}: only a decoder attends to an encoder")
        if self.encoder is not None and self.encoder.ahead:
            raise ValueError("encoder.ahead: only a decoder predicts what comes after the next token")
        if self.encoder is not None and self.decoder is not None:
            self._check_pair(self.encoder, self.decoder)
        elif self.share_stacks:
            raise ValueError("share_stacks goes with an encoder and a decoder")
        if self.encoder is not None and self.decoder is not None and self.encoder.exits:
            raise ValueError("encoder.exits: the head reads the decoder, so only that may have exits")
        if self.encoder_stem is not None and (self.encoder is None or self.decoder is None):
            raise ValueError("encoder_stem goes with an encoder and a decoder; a single stack reads through stem")
        if not isinstance(self.head, Pooled) and self.head.tied and not isinstance(self.stem, Lookup):
            raise ValueError(f"head.tied with a {type(self.stem).__name__} stem: only a Lookup has a table to share")
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i, block in enumerate(stack.blocks if stack else ()):
                assert stack is not None
                self._check(f"{name}.blocks.{i}", stack, block)

    def _check_pair(self, encoder: StackConfig, decoder: StackConfig) -> None:
        encoder_as_decoder = replace(
            encoder, cross=decoder.cross, memory_layers=decoder.memory_layers, context_length=decoder.context_length
        )
        if self.share_stacks and (encoder_as_decoder != decoder or decoder.exits or decoder.ahead):
            raise ValueError(
                "share_stacks: encoder and decoder are the same blocks, so that they must be alike except for "
                "cross, memory_layers and context_length, without exits and ahead, which would predict the source"
            )
        if self.share_stacks and self.encoder_stem is not None:
            raise ValueError("share_stacks with encoder_stem: stacks that are shared read through one stem")
        if decoder.cross == "separate" and not any(isinstance(b.mixer, Attention) for b in self.layers(decoder)):
            raise ValueError(
                "cross='separate' needs a block with attention, which reads the encoder; add one to decoder.blocks"
            )
        below, above = (stack.num_layers * stack.loops for stack in (encoder, decoder))
        if decoder.memory_layers == "layerwise" and below != above:
            raise ValueError(
                f"memory_layers='layerwise': the encoder has {below} blocks and the decoder {above}; make them "
                f"the same number, or set memory_layers to last"
            )
        if decoder.cross != "joint":
            return
        layers_with_keys = [
            *self.layers(decoder),
            *(self.layers(encoder) if decoder.memory_layers == "layerwise" else []),
        ]
        if any(block.depth is not None for block in layers_with_keys) or any(
            b.parallel != "none" for b in self.layers(decoder)
        ):
            raise ValueError(
                "cross='joint' can't be combined with depth or parallel blocks, nor memory_layers='layerwise' with "
                "depth in the encoder; set cross to separate"
            )
        if any(not isinstance(block.mixer, Attention) for block in layers_with_keys):
            raise ValueError(
                "cross='joint' asks for keys in every block, which only attention has; set cross to separate"
            )
        if decoder.memory_layers == "layerwise" and self._keys(decoder) != self._keys(encoder):
            raise ValueError(
                "memory_layers='layerwise' with cross='joint' needs keys of the same heads and width in both stacks"
            )

    def _keys(self, stack: StackConfig) -> list[tuple[int, int]]:
        """Of each block that a token goes through: how many heads keys have, and how wide they are."""
        blocks = self.layers(stack) * stack.loops
        return [(b.attention.num_kv_heads or b.attention.num_heads, self.head_dim(b.attention)) for b in blocks]

    def _check(self, where: str, stack: StackConfig, block: BlockConfig) -> None:
        if isinstance(block.mixer, Attention):
            self._check_attention(where, stack, block, block.mixer)
        if isinstance(block.feedforward, Experts) and isinstance(block.feedforward.router, ExpertChoice):
            self._check_sight(where, stack, "router = expert_choice")
        if block.depth is not None and not block.depth.predictor:
            self._check_sight(where, stack, "depth without a predictor")

    def _check_attention(self, where: str, stack: StackConfig, block: BlockConfig, attention: Attention) -> None:
        heads = attention.num_heads
        if attention.head_dim is None and self.model_dim % heads:
            raise ValueError(
                f"{where}: model_dim={self.model_dim} is not divisible by num_heads={heads}; "
                f"choose another number or set head_dim"
            )
        position = attention.position or stack.position
        if isinstance(position, Rotary) and self.rotated_dim(attention, position) % (2 * position.axes):
            raise ValueError(
                f"{where}: rotary positions turn pairs, so the {self.rotated_dim(attention, position)} turned features "
                f"of head_dim={self.head_dim(attention)} must be a multiple of {2 * position.axes}"
            )

    def _check_sight(self, where: str, stack: StackConfig, what: str) -> None:
        if stack is self.decoder:
            raise ValueError(
                f"{where}: {what} looks at a row's future, which a causal decoder may not; use it in an encoder, "
                f"or choose router = token_choice, or depth with a predictor"
            )

    def head_dim(self, attention: Attention) -> int:
        """Width H of a head."""
        return attention.head_dim or self.model_dim // attention.num_heads

    def rotated_dim(self, attention: Attention, position: Rotary) -> int:
        """How many features of a head are turned."""
        return round(self.head_dim(attention) * position.fraction)

    def feedforward_dim(self, feedforward: Dense | Gated) -> int:
        """Inner width F of a feed-forward, or of one expert."""
        match feedforward:
            case Dense(feedforward_dim=width):
                return width or 4 * self.model_dim
            case Gated(feedforward_dim=width):
                return width or -(-8 * self.model_dim // 3 // 8) * 8
            case _:
                assert_never(feedforward)

    def state_dim(self, mixer: LinearRecurrence) -> int:
        """Width of a recurrence's state."""
        return mixer.state_dim or self.model_dim

    def layers(self, stack: StackConfig) -> list[BlockConfig]:
        """The config of each of the stack's blocks, bottom to top."""
        return [stack.blocks[i % len(stack.blocks)] for i in range(stack.num_layers)]

    def length(self, stack: StackConfig) -> int:
        """The most tokens a stack takes in at once."""
        return stack.context_length or self.context_length

    def num_positions(self, stack: StackConfig) -> int:
        """Where the tokens of a stack may stand: after those of the encoder, if both are attended to jointly."""
        if self.encoder is None or self.decoder is None or self.decoder.cross != "joint":
            return self.length(stack)
        is_alone = stack is self.encoder and not self.share_stacks
        return self.length(self.encoder) if is_alone else self.length(self.encoder) + self.length(self.decoder)

    @property
    def form(self) -> Form:
        """Which stacks the model has."""
        return "decoder" if self.encoder is None else "encoder" if self.decoder is None else "encoder_decoder"

    @property
    def own_stacks(self) -> list[StackConfig]:
        """The stacks that have parameters of their own."""
        return self.stacks[-1:] if self.share_stacks else self.stacks

    @property
    def stacks(self) -> list[StackConfig]:
        """The model's stacks, the encoder first."""
        return [stack for stack in (self.encoder, self.decoder) if stack is not None]

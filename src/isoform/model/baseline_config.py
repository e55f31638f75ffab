"""Models without attention, to compare the Transformer with, each stated by a few numbers. Torch-free.

An LSTM and a convolution are stacks of blocks like any other, as `as_transformer` spells them out; a bag of n-grams is
not.
"""

from __future__ import annotations

from isoform.model import parts
from isoform.model.config import BlockConfig, Initialization, Lookup, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import Dense, RMSNorm
from isoform.ranges import Layers, OptionalSize, Rate, Several, Size, config

NORM = RMSNorm(scale=False)


@config
class _Baseline:
    """What the baselines have in common: a stem and a head, and residual blocks between them."""

    model_dim: Size = 128
    """Width of the residual stream."""
    num_layers: Layers = 4
    """Blocks."""
    context_length: Size = 128
    """The most tokens seen at once, and the length of training rows."""
    vocab_size: OptionalSize = 0
    """Tokens; 0: the codec's."""
    stem: Lookup = Lookup(norm=RMSNorm(scale=False))
    head: Vocabulary = Vocabulary()
    dropout: Rate = 0.0
    """Dropout of the embeddings and of each branch's output."""


@config
class LSTM(_Baseline):
    """Layers of long short-term memory (Hochreiter and Schmidhuber 1997), each a residual branch with its norm before
    it; six have the matrices of four of the Transformer's blocks."""

    num_layers: Layers = 6

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The blocks that are repeated."""
        return (BlockConfig(mixer=parts.LSTM(), feedforward=None, norm=NORM),)


@config
class CausalConvolution(_Baseline):
    """Blocks of a causal dilated convolution and a feed-forward (ByteNet, Kalchbrenner et al. 2016; Bai et al. 2018).

    The dilation grows by `dilation_growth` from block to block until an output sees as far back as it should, then
    begins again at 1.
    """

    kernel_size: Several = 5
    """Tokens under a kernel."""
    dilation_growth: Size = 3
    """How many times as far apart the tokens under the next block's kernel are."""
    receptive_field: Size | None = None
    """How many tokens an output sees at least, its own included; None: context_length."""
    feedforward_dim: Size | None = None
    """Inner width of each block's feed-forward; None: 4 x model_dim."""

    def __post_init__(self) -> None:
        reach, cycle = self._reach, self._cycle
        if len(cycle) > self.num_layers:
            seen = 1 + (self.kernel_size - 1) * sum(cycle[: self.num_layers])
            raise ValueError(
                f"num_layers={self.num_layers} with kernel_size={self.kernel_size} and "
                f"dilation_growth={self.dilation_growth} see {seen} tokens, not the {reach} of "
                f"{'context_length' if self.receptive_field is None else 'receptive_field'}; set "
                f"num_layers={len(cycle)} or more, a larger kernel_size or dilation_growth, or receptive_field={seen}"
            )

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The blocks that are repeated, one for each dilation."""
        feedforward = Dense(feedforward_dim=self.feedforward_dim, activation="relu2")
        return tuple(
            BlockConfig(
                mixer=parts.CausalConvolution(kernel_size=self.kernel_size, dilation=d),
                feedforward=feedforward,
                norm=NORM,
            )
            for d in self._cycle
        )

    @property
    def least_layers(self) -> int:
        """Blocks that it takes to see as far back as it should."""
        return len(self._cycle)

    @property
    def _reach(self) -> int:
        return self.context_length if self.receptive_field is None else self.receptive_field

    @property
    def _cycle(self) -> list[int]:
        cycle, seen = [1], self.kernel_size
        while seen < self._reach:
            cycle.append(cycle[-1] * self.dilation_growth)
            seen += (self.kernel_size - 1) * cycle[-1]
        return cycle


@config
class NGramMlp(_Baseline):
    """The vectors of the last tokens and of the n-grams that end in them, added up, and a feed-forward network over the
    sum (after Bengio et al. 2003, and fastText's bags, Joulin et al. 2016). `stem` has the n-grams."""

    num_layers: Layers = 6
    stem: Lookup = Lookup(ngrams=(2, 3, 4), norm=RMSNorm(scale=False))
    bag: Size = 16
    """How many tokens are in the sum: the newest and those before it, each weighted by distance and feature."""
    feedforward_dim: Size | None = None
    """Inner width of each block's feed-forward; None: 4 x model_dim."""

    @property
    def inner_dim(self) -> int:
        """Inner width F of a block's feed-forward."""
        return 4 * self.model_dim if self.feedforward_dim is None else self.feedforward_dim


Baseline = LSTM | CausalConvolution | NGramMlp
Model = ModelConfig | Baseline


def as_transformer(model: Model) -> ModelConfig | NGramMlp:
    """The model with a baseline that is a stack of blocks spelled out."""
    if isinstance(model, ModelConfig | NGramMlp):
        return model
    embedding = 0.02 if model.head.tied else model.model_dim**-0.5  # or a tied head would begin by repeating the token
    return ModelConfig(
        model_dim=model.model_dim,
        context_length=model.context_length,
        vocab_size=model.vocab_size,
        decoder=StackConfig(num_layers=model.num_layers, blocks=model.blocks, position=None),
        stem=model.stem,
        head=model.head,
        dropout=model.dropout,
        initialization=Initialization(embedding=embedding, matrix=None, output="zero", head="zero"),
    )

"""The parts of a block as values: positions, norms, mixers, feed-forwards. Torch-free.

A choice is a union of dataclasses, named in files by its `kind`; what is absent takes its default.
"""

from __future__ import annotations

from typing import Literal

from isoform.mask import FixedSparse, Local2D, Strided, Window
from isoform.outside import External
from isoform.ranges import Base, NonNegative, OptionalSize, Positive, PositiveShare, Rate, Several, Size, config


@config
class Learned:
    """A vector per position, added to the embeddings; positions end at the stack's context_length."""


@config
class Grid:
    """A learned vector per row and one per column, added to the embeddings of tokens with two-dimensional positions."""

    rows: Size = 8
    """Rows of the grid."""
    columns: Size = 8
    """Columns of the grid."""


@config
class Sinusoidal:
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, section 3.5)."""

    base: Base = 10000.0
    """Periods grow from 2π to about 2π times this."""
    order: Literal["interleaved", "halves"] = "interleaved"
    """interleaved: sine and cosine of a frequency side by side (2017); halves: all sines, then all cosines."""


@config
class LinearExtension:
    """Places divided by `factor` (Chen et al. 2023)."""

    factor: Positive = 2.0
    """How many times as long the context becomes."""


@config
class NTKExtension:
    """A base raised so that the slowest pair turns `factor` times slower and the fastest as before (bloc97 2023)."""

    factor: Positive = 2.0
    """How many times as long the context becomes."""


@config
class YaRNExtension:
    """Slow pairs slowed by `factor`, fast ones left, a ramp between, and scores scaled (Peng et al. 2023)."""

    factor: Positive = 4.0
    """How many times as long the context becomes."""
    original_length: Size = 2048
    """Places the model was trained on before."""
    beta_fast: Positive = 32.0
    """Turns within original_length from which a pair is left alone."""
    beta_slow: Positive = 1.0
    """Turns within original_length up to which a pair is slowed in full."""
    attention_factor: Positive | None = None
    """Multiplies queries and keys; None: 0.1 ln(factor) + 1."""


@config
class Llama3Extension:
    """Pairs slower than a wavelength slowed by `factor`, faster ones left, a ramp between (Llama 3.1, 2024)."""

    factor: Positive = 8.0
    """How many times as slow the slow pairs become."""
    low_frequency_factor: Positive = 1.0
    """Pairs that turn at most this often within original_length are slowed in full."""
    high_frequency_factor: Positive = 4.0
    """Pairs that turn at least this often within original_length are left alone."""
    original_length: Size = 8192

    def __post_init__(self) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor={self.high_frequency_factor} must be above "
                f"low_frequency_factor={self.low_frequency_factor}"
            )


Extension = LinearExtension | NTKExtension | YaRNExtension | Llama3Extension


@config
class Rotary:
    """Queries and keys turned by an angle that grows with the position (Su et al. 2021)."""

    base: Base = 10000.0
    """A larger one makes slow pairs slower, so that greater distances differ."""
    fraction: PositiveShare = 1.0
    """Share of a head's features that are turned; the rest stay as they are (GPT-NeoX)."""
    axes: Size = 1
    """Numbers of a position, each of which turns its equal share of the features: 2 for rows and columns."""
    extension: Extension | None = None
    """How a longer context than the one trained on is reached."""


@config
class Shaw:
    """Learned vectors per clipped distance, added to keys and values in every block (Shaw et al. 2018)."""

    distance: Size = 16
    """Distances beyond it share a vector."""
    values: bool = True
    """Whether values have such vectors too."""


@config
class Buckets:
    """A learned bias per head and bucket of distances, shared by all blocks (T5, Raffel et al. 2020)."""

    num_buckets: Several = 32
    """Biases per head; half of them are for a single distance each."""
    max_distance: Size = 128
    """Distances from here on share the last bucket."""
    bidirectional: bool = False
    """Whether what lies ahead has buckets of its own (encoders)."""

    def __post_init__(self) -> None:
        exact = self.num_buckets // (4 if self.bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(
                f"num_buckets={self.num_buckets} must be at least {4 if self.bidirectional else 2}, and max_distance="
                f"{self.max_distance} beyond the {exact} distances that have a bucket of their own"
            )


@config
class ALiBi:
    """A bias that falls linearly with the distance, by a fixed slope per head (Press et al. 2022)."""


Position = Learned | Grid | Sinusoidal | Rotary | Shaw | Buckets | ALiBi


@config
class LayerNorm:
    """Centre and scale to unit variance (Ba et al. 2016)."""

    epsilon: Positive = 1e-5
    """Added to the variance, so that nothing is divided by 0."""
    bias: bool = True
    """A learned offset per feature."""
    scale: bool = True
    """A learned gain per feature; without, no bias either (OLMo)."""

    def __post_init__(self) -> None:
        if self.bias and not self.scale:
            raise ValueError("bias without scale: a norm without a learned gain has no bias; set bias to false")


@config
class RMSNorm:
    """Scale to unit root mean square (Zhang and Sennrich 2019)."""

    epsilon: Positive = 1e-6
    """Added to the mean square, so that nothing is divided by 0."""
    scale: bool = True
    """A learned gain per feature."""
    zero_centered: bool = False
    """The gain is 1 + the stored number (Gemma)."""

    def __post_init__(self) -> None:
        if self.zero_centered and not self.scale:
            raise ValueError("zero_centered says how the gain is stored, but scale=False leaves it out; set one")


Norm = LayerNorm | RMSNorm
Pattern = Window | Strided | FixedSparse | Local2D


@config
class Attention:
    """Multi-head attention; fewer key/value heads than heads make it grouped-query, one multi-query."""

    num_heads: Size = 4
    """Query heads."""
    num_kv_heads: Size | None = None
    """Key/value heads; None: num_heads."""
    head_dim: Size | None = None
    """Width of a head; None: model_dim / num_heads."""
    bias: bool = False
    """Of query, key and value."""
    key_bias: bool = True
    """Whether keys share in `bias`; it changes no output, since softmax ignores what all keys have in common."""
    output_bias: bool | None = None
    """None: as `bias`."""
    qk_norm: Norm | None = None
    """Normalise queries and keys (Henry et al. 2020)."""
    qk_norm_over: Literal["head", "projection"] = "head"
    """head: each head by itself; projection: all heads together, before the split (OLMo 2)."""
    scale: Positive | None = None
    """What query-key products are multiplied by; None: 1 / sqrt(head_dim)."""
    softcap: Positive | None = None
    """cap * tanh(score / cap), of the scaled products (Gemma 2)."""
    value_shortcut: bool = False
    """Mix the first block's values into this block's, with learned weights (ResFormer, Zhou et al. 2024)."""
    dropout: Rate = 0.0
    """Dropout of the attention weights."""
    pattern: Pattern | None = None
    """A mask and-ed to the objective's, such as a window."""
    position: Rotary | None = None
    """This block's own rotary scheme; None: the stack's scheme."""

    def __post_init__(self) -> None:
        groups = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        if self.num_heads % groups:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={groups}; "
                f"choose num_kv_heads among the divisors of num_heads"
            )


@config
class LSTM:
    """Long short-term memory over the tokens of a document (Hochreiter and Schmidhuber 1997), as wide as the model."""


@config
class CausalConvolution:
    """A causal dilated convolution (ByteNet, Kalchbrenner et al. 2016; Bai et al. 2018)."""

    kernel_size: Size = 5
    """Tokens under the kernel, the newest included."""
    dilation: Size = 1
    """Positions between them."""


@config
class LinearRecurrence:
    """A diagonal gated linear recurrence: h_t = a_t h_(t-1) + (1 - a_t) c_t, where a_t and c_t see token t alone, and
    the output is h_t times a gate (minGRU, Feng et al. 2024; HGRN, Qin et al. 2023)."""

    state_dim: Size | None = None
    """Width of the state; None: model_dim."""


Recurrent = LSTM | CausalConvolution | LinearRecurrence
"""Mixers that go through a document from its start and keep a state of fixed size."""
Mixer = Attention | Recurrent | External


Activation = Literal["gelu", "gelu_tanh", "linear", "relu", "relu2", "sigmoid", "silu", "tanh"]
"""linear: x itself; relu2: the squared ReLU (So et al. 2021)."""


@config
class Dense:
    """Two matrices with an activation between."""

    feedforward_dim: Size | None = None
    """Inner width; None: 4 x model_dim."""
    activation: Activation = "gelu"
    """Between the two matrices."""
    bias: bool = False
    """Biases of both matrices."""


@config
class Gated:
    """activation(gate x) * (up x), then down (Shazeer 2020, eq. 5 and 6): by its activation GLU (sigmoid), the bilinear
    form (linear), ReGLU (relu), GEGLU (gelu) or SwiGLU (silu)."""

    feedforward_dim: Size | None = None
    """Inner width; None: 8/3 x model_dim, rounded up to a multiple of 8."""
    activation: Activation = "silu"
    """Of the gate."""
    bias: bool = False
    """Biases of all three matrices."""


@config
class TokenChoice:
    """Each token goes to the experts that score highest for it; none is dropped unless there is a capacity."""

    num_active: Size = 2
    """Experts per token."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How logits of the router become weights: over all experts at once, or each by itself."""
    normalize: bool = True
    """Whether the weights of a token's experts sum to 1."""
    scale: Positive = 1.0
    """What the weights are multiplied by after that."""
    balance_loss: NonNegative = 0.0
    """Weight of the load-balancing loss (Switch Transformer, Fedus et al. 2022, eq. 4)."""
    z_loss: NonNegative = 0.0
    """Weight of the router's log(Z)^2 (ST-MoE, Zoph et al. 2022, eq. 5)."""
    bias_rate: NonNegative = 0.0
    """How fast a bias per expert, which only decides who is chosen, moves against the load (Wang et al. 2024)."""
    capacity_factor: Positive | None = None
    """An expert takes at most this times its even share of a row's tokens, the first ones; None: all of them."""


@config
class ExpertChoice:
    """Each expert takes the tokens of a row that score highest for it (Zhou et al. 2022): it looks at the future,
    so it is for encoders."""

    capacity_factor: Positive = 2.0
    """Experts per token, on average."""


Router = TokenChoice | ExpertChoice


@config
class Experts:
    """Several feed-forwards, of which a router picks some for each token (Shazeer et al. 2017)."""

    num_experts: Size = 8
    """Experts that the router chooses among."""
    expert: Dense | Gated = Gated()
    """What each expert is; without biases."""
    router: Router = TokenChoice()
    """Which experts a token goes to."""
    num_shared: OptionalSize = 0
    """Experts that every token goes to, as one feed-forward of num_shared times the width (DeepSeekMoE, 2024)."""

    def __post_init__(self) -> None:
        active = self.router.num_active if isinstance(self.router, TokenChoice) else 1
        if active > self.num_experts:
            raise ValueError(f"router.num_active={active} must be at most num_experts={self.num_experts}")
        if self.expert.bias:
            raise ValueError("experts have no biases; set expert.bias to false")


FeedForward = Dense | Gated | Experts


@config
class Depth:
    """Mixture of depths: of each row only the tokens that score highest go through the block (Raposo et al. 2024).

    Which ones they are looks at the future, so a predictor that sees only the token itself is trained beside it;
    without one it is refused under a causal mask, and a decoder's results are those of the predictor.
    """

    share: PositiveShare = 0.125
    """Share of a row's tokens that go through."""
    predictor: bool = True
    """Whether there is that predictor."""
    predictor_loss: NonNegative = 0.01
    """Weight of the predictor's cross-entropy."""

"""What a model is trained to say, and what that asks of records, stacks and head. Torch-free."""

from dataclasses import dataclass
from typing import Literal, assert_never

from isoform.model.config import Form


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Predict every next token (after the given prefix, where a record has one) from those before it."""

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' normaliser near 1 (PaLM, 2022)."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the vocabulary in training (Szegedy et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Like causal, but the given prefix sees itself in both directions (T5's prefix language model)."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Seq2seq:
    """The given prefix is read by an encoder, the rest is predicted by a decoder that attends to it."""

    causal: bool = False
    """Whether the prefix, too, is seen only by what follows it."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Say the label of a record: an encoder reads it in both directions, a decoder up to its end."""

    labels: tuple[str, ...] = ()
    """The names of the classes, in the order of their scores; empty: those of the training records."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """Say the tag of each word of a text, at the word's first token."""

    labels: tuple[str, ...] = ()
    """The names of the tags, in the order of their scores; empty: those of the training records."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Say a number about a record; the loss is the squared error."""


@dataclass(frozen=True, kw_only=True)
class TokenRegression:
    """Say a number about each word of a text, at the word's first token; the loss is the squared error."""


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate} must lie between 0 and 1")


def _check_spans(span: float, num_special: int) -> None:
    if span < 1 or num_special < 1:
        raise ValueError(f"span={span} and num_special={num_special} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Say which tokens of a text, read in both directions, were hidden (BERT, Devlin et al. 2019, section 3.1)."""

    rate: float = 0.15
    """Of all tokens so many are to be predicted."""
    mask_rate: float = 0.8
    """Of those so many are replaced by the mask token …"""
    random: float = 0.1
    """… and so many by a random token; the rest stay as they are."""
    whole_words: bool = False
    """Choose words rather than tokens."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if min(self.mask_rate, self.random) < 0 or self.mask_rate + self.random > 1:
            raise ValueError(
                f"mask_rate={self.mask_rate} and random={self.random} must be at least 0, and at most 1 together"
            )


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Spans of a text are left out, a special token in the place of each, and are what is to be said (T5, Raffel et al.
    2020, section 3.1.4): by the decoder of an encoder-decoder, or by one stack after the text, as its prefix."""

    rate: float = 0.15
    """Of all tokens so many are left out."""
    span: float = 3.0
    """Mean length of what is left out, in tokens."""
    num_special: int = 100
    """Special tokens to stand for spans: the most spans of a text."""
    causal: bool = False
    """In one stack: whether the text, too, is seen only by what follows it."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        _check_spans(self.span, self.num_special)


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One of a mixture."""

    mode: str
    """Which special token stands before the text: R (regular), S (sequential), X (extreme)."""
    rate: float
    """Of all tokens so many are left out."""
    span: float | None = None
    """Their mean length; absent: one span, which ends the text."""
    weight: float = 1.0
    """How often it is chosen."""

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        _check_spans(self.span or 1, 1)
        if not self.mode.isalnum() or self.weight <= 0:
            raise ValueError(f"mode={self.mode!r} must be a letter or a word, weight={self.weight} above 0")


UL2 = (
    Denoiser(mode="R", rate=0.15, span=3),
    Denoiser(mode="R", rate=0.15, span=8),
    Denoiser(mode="X", rate=0.5, span=3),
    Denoiser(mode="X", rate=0.5, span=8),
    Denoiser(mode="X", rate=0.15, span=64),
    Denoiser(mode="X", rate=0.5, span=64),
    Denoiser(mode="S", rate=0.25),
)
"""The mixture of Tay et al. 2022, table 1."""


@dataclass(frozen=True, kw_only=True)
class DenoiserMixture:
    """Span corruption by one of several denoisers, drawn for each text anew; a special token before the text says of
    which mode it is (UL2, Tay et al. 2022)."""

    denoisers: tuple[Denoiser, ...] = UL2
    num_special: int = 100
    causal: bool = False
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.denoisers:
            raise ValueError("a mixture of denoisers needs at least one")
        _check_spans(1, self.num_special)


Corruption = SpanCorruption | DenoiserMixture
"""Objectives that leave spans out, for an encoder-decoder or for one stack."""


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Bring source and target of a pair together and all others of the batch apart, both read by one encoder whose head
    embeds (InfoNCE, van den Oord et al. 2018; both ways, as CLIP, Radford et al. 2021)."""

    temperature: float = 0.05
    """What similarities, cosines, are divided by."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Say every next token as a teacher would (Hinton et al. 2015): causal, or seq2seq for an encoder-decoder."""

    teacher: str = ""
    """A run directory, Hugging Face folder or GGUF file; it must have the same codec."""
    share: float = 0.5
    """Of the loss so much is the teacher's, the rest the text's."""
    temperature: float = 1.0
    """Logits of both are divided by this."""
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.temperature <= 0:
            raise ValueError(f"share={self.share} must lie in 0 .. 1, temperature={self.temperature} above 0")


WithClasses = Classification | Tagging
"""Objectives whose answers are names."""

WithCrossEntropy = (
    Causal | Prefix | Seq2seq | Masked | SpanCorruption | DenoiserMixture | Classification | Tagging | Distillation
)
"""Objectives whose loss is a cross-entropy with a z loss and label smoothing."""

Objective = (
    Causal
    | Prefix
    | Seq2seq
    | Masked
    | SpanCorruption
    | DenoiserMixture
    | Classification
    | Tagging
    | Regression
    | TokenRegression
    | Contrastive
    | Distillation
)

Answer = Literal["vocabulary", "document", "token", "embedding"]
"""What a head gives: scores of the vocabulary, one answer for a document, one for each token, or a vector."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What an objective asks of what it is trained with."""

    forms: tuple[Form, ...]
    """Which stacks a model may have."""
    answer: Answer = "vocabulary"
    names: Literal["label", "tags"] | None = None
    """The key of records under which the names of classes stand."""
    num_outputs: int | None = None
    """Of the head; absent: as many as there are classes."""


ONE_STACK: tuple[Form, ...] = ("encoder", "decoder")
ANY: tuple[Form, ...] = (*ONE_STACK, "encoder_decoder")


def requirements_of(objective: Objective) -> Requirements:
    """What an objective asks of records, stacks and head."""
    match objective:
        case Causal() | Prefix():
            return Requirements(forms=ONE_STACK)
        case Seq2seq():
            return Requirements(forms=("encoder_decoder",))
        case SpanCorruption() | DenoiserMixture() | Distillation():
            return Requirements(forms=ANY)
        case Masked():
            return Requirements(forms=("encoder",))
        case Classification():
            return Requirements(forms=ONE_STACK, answer="document", names="label")
        case Tagging():
            return Requirements(forms=ONE_STACK, answer="token", names="tags")
        case Regression():
            return Requirements(forms=ONE_STACK, answer="document", num_outputs=1)
        case TokenRegression():
            return Requirements(forms=ONE_STACK, answer="token", num_outputs=1)
        case Contrastive():
            return Requirements(forms=("encoder",), answer="embedding")
        case _:
            assert_never(objective)

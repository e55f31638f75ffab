"""Training objectives, and what they require of records, stacks and head. Torch-free."""

from dataclasses import dataclass
from typing import Literal, assert_never

from isoform.annotations import ModelPath
from isoform.model.config import Form
from isoform.ranges import NonNegative, Positive, PositiveRate, Rate, Ratio, Share, Size, config


@config
class Causal:
    """Predict every next token (after the prefix, if a record has one) from the preceding tokens."""

    z_loss: NonNegative = 0.0
    """Weight of log(Z)^2, which keeps the softmax normaliser Z near 1 (PaLM, 2022)."""
    label_smoothing: Rate = 0.0
    """Probability mass spread evenly over the vocabulary in training (Szegedy et al. 2016)."""


@config
class Prefix:
    """Like causal, but attention within the prefix is bidirectional (T5's prefix language model). A record's source is
    its prefix; of a plain text it is a random part, drawn anew in each epoch, and only the rest is predicted."""

    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0


@config
class Seq2seq:
    """The source is read by an encoder; the target is predicted by a decoder that attends to it."""

    causal: bool = False
    """Whether the source, too, has a causal mask."""
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0


@config
class Classification:
    """Predict the label of a record, from a bidirectional encoder or from a decoder's last token."""

    labels: tuple[str, ...] = ()
    """The names of the classes, in the order of the model's outputs; empty: those of the training records."""
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0


@config
class Tagging:
    """Predict the tag of each word of a text, at the word's first token."""

    labels: tuple[str, ...] = ()
    """The names of the tags, in the order of the model's outputs; empty: those of the training records."""
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0


@config
class Regression:
    """Predict a number for a record; the loss is the squared error."""


@config
class TokenRegression:
    """Predict a number for each word of a text, at the word's first token; the loss is the squared error."""


@config
class Masked:
    """Masked language modelling: predict the masked tokens of a text from both directions (BERT, Devlin et al. 2019,
    section 3.1), by an encoder or by a decoder without a causal mask. Of an encoder-decoder the encoder reads the
    masked text and the decoder predicts the whole original (BART, Lewis et al. 2020, section 2.2)."""

    rate: PositiveRate = 0.15
    """Fraction of tokens that are predicted."""
    mask_rate: Share = 0.8
    """Fraction of the predicted tokens that are replaced by the mask token."""
    random: Share = 0.1
    """Fraction of the predicted tokens that are replaced by a random token; the rest stay unchanged."""
    whole_words: bool = False
    """Select whole words rather than tokens."""
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0

    def __post_init__(self) -> None:
        if self.mask_rate + self.random > 1:
            raise ValueError(f"mask_rate={self.mask_rate} and random={self.random} must be at most 1 together")


@config
class SpanCorruption:
    """Predict spans of a text, each of which is replaced by a special token (T5, Raffel et al. 2020, section 3.1.4):
    with the decoder of an encoder-decoder, or with a single stack that reads the corrupted text as its prefix."""

    rate: PositiveRate = 0.15
    """Fraction of tokens that are corrupted."""
    span: Ratio = 3.0
    """Mean length of a corrupted span, in tokens."""
    num_special: Size = 100
    """The number of special tokens that replace spans: the most spans of a text."""
    causal: bool = False
    """In a single stack: whether the corrupted text, too, has a causal mask."""
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0


@config
class Denoiser:
    """One denoiser of a mixture."""

    mode: str
    """The special token before the text: R (regular), S (sequential), X (extreme)."""
    rate: PositiveRate
    """Fraction of tokens that are corrupted."""
    span: Ratio | None = None
    """Mean span length, in tokens; none: a single span at the end of the text."""
    weight: Positive = 1.0
    """Sampling weight."""

    def __post_init__(self) -> None:
        if not self.mode.isalnum():
            raise ValueError(f"mode={self.mode!r} must be a letter or a word")


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


@config
class DenoiserMixture:
    """Span corruption by one of several denoisers, sampled for each text; a special token before the text names the
    denoiser's mode (UL2, Tay et al. 2022)."""

    denoisers: tuple[Denoiser, ...] = UL2
    num_special: Size = 100
    causal: bool = False
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0

    def __post_init__(self) -> None:
        if not self.denoisers:
            raise ValueError("a mixture of denoisers needs at least one")


Corruption = SpanCorruption | DenoiserMixture
"""Span-corruption objectives, for an encoder-decoder or for a single stack."""


@config
class Contrastive:
    """Contrast each pair's source and target with the rest of the batch, both embedded by one stack (InfoNCE, van den
    Oord et al. 2018; symmetric, as in CLIP, Radford et al. 2021)."""

    temperature: Positive = 0.05
    """Divisor of the cosine similarities."""


@config
class Distillation:
    """Match a teacher's next-token distributions (Hinton et al. 2015): causal, or seq2seq for an encoder-decoder."""

    teacher: ModelPath = ""
    """A run directory, Hugging Face folder or GGUF file; the codec must be the same."""
    share: Share = 0.5
    """Weight of the teacher's loss; the rest is the cross-entropy with the text."""
    temperature: Positive = 1.0
    """Divisor of the logits of both models."""
    z_loss: NonNegative = 0.0
    label_smoothing: Rate = 0.0


WithClasses = Classification | Tagging
"""Objectives whose outputs are named classes."""

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
"""A head's output: logits of the vocabulary, one output per document, one per token, or an embedding."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """An objective's requirements of records, stacks and head."""

    forms: tuple[Form, ...]
    """The forms a model may have."""
    otherwise: str = ""
    """Why not the others."""
    answer: Answer = "vocabulary"
    names: Literal["label", "tags"] | None = None
    """The key of records with the names of classes."""
    num_outputs: int | None = None
    """The number of outputs of the head; None: the number of classes."""
    fills_in: bool = False
    """Whether a single stack predicts tokens in their own positions, rather than the next ones."""

    def has_next_token(self, form: Form) -> bool:
        """Whether a decoder predicts the next token."""
        return self.answer == "vocabulary" and not (self.fills_in and form != "encoder_decoder")


SINGLE_STACK: tuple[Form, ...] = ("encoder", "decoder")
ANY: tuple[Form, ...] = (*SINGLE_STACK, "encoder_decoder")
ANSWERS_ARE_TEXTS = "an encoder-decoder answers by a text; seq2seq trains it on answers in words"


def requirements_of(objective: Objective) -> Requirements:
    """The requirements of an objective of records, stacks and head."""
    match objective:
        case Causal() | Prefix():
            return Requirements(forms=SINGLE_STACK, otherwise="it gives an encoder nothing to read; seq2seq does")
        case Seq2seq():
            return Requirements(forms=("encoder_decoder",), otherwise="a single stack reads pairs by causal or prefix")
        case SpanCorruption() | DenoiserMixture() | Distillation():
            return Requirements(forms=ANY)
        case Masked():
            return Requirements(forms=ANY, fills_in=True)
        case Classification():
            return Requirements(forms=SINGLE_STACK, otherwise=ANSWERS_ARE_TEXTS, answer="document", names="label")
        case Tagging():
            return Requirements(forms=SINGLE_STACK, otherwise=ANSWERS_ARE_TEXTS, answer="token", names="tags")
        case Regression():
            return Requirements(forms=SINGLE_STACK, otherwise=ANSWERS_ARE_TEXTS, answer="document", num_outputs=1)
        case TokenRegression():
            return Requirements(forms=SINGLE_STACK, otherwise=ANSWERS_ARE_TEXTS, answer="token", num_outputs=1)
        case Contrastive():
            return Requirements(forms=SINGLE_STACK, otherwise="one stack embeds both texts", answer="embedding")
        case _:
            assert_never(objective)

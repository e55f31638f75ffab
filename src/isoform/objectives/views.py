"""Views of the data: an Encoding in, an Example out. What the target sees is decided here, as masks.

The views of sequences differ in two things only: whether the given prefix goes to an encoder of its own, and
whether it sees itself in both directions. Span corruption first makes such a prefix of a plain text. Masking and
classification read all of it in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from isoform.batch import Encoding, Example, collate
from isoform.codecs.codec import Codec, TextCodec, as_text
from isoform.mask import Causal as CausalMask
from isoform.mask import Full, Mask, dense_mask
from isoform.mask import Prefix as PrefixMask
from isoform.objectives.config import (
    Causal,
    Classification,
    Contrastive,
    DenoiserMixture,
    Distillation,
    Masked,
    Objective,
    Prefix,
    Regression,
    Seq2seq,
    SpanCorruption,
    Tagging,
    TokenRegression,
)
from isoform.objectives.corruption import Denoising, Masking


@dataclass(frozen=True)
class View:
    """How an objective reads records: the mask of each stack, and Examples with their lengths.

    `example(encoding, rng)` is deterministic for a given generator; `length(n, prefix)` is the most tokens that
    the Example of an Encoding of n tokens puts into (inputs, source), 0 where it has nothing to predict.
    is_whole: the target is about a record as a whole, so that it is never cut to fit a row; overlap: how many tokens
    the parts of a record that is cut have in common; is_text: the targets are the text, each token of it once, so that
    nats per byte mean something.
    """

    inputs_mask: Mask
    source_mask: Mask
    example: Callable[[Encoding, np.random.Generator], Example]
    length: Callable[[int, int], tuple[int, int]]
    is_whole: bool = False
    overlap: int = 1
    is_text: bool = True


def next_token(encoding: Encoding, rng: np.random.Generator) -> Example:
    """Every token predicts the next; only what follows the prefix counts."""
    targets = encoding.ids[1:]
    is_counted = np.arange(1, len(encoding)) >= encoding.prefix
    if encoding.features is not None:  # only what has an id can be predicted
        is_counted, targets = is_counted & (targets >= 0), np.maximum(targets, 0)
    return Example(encoding.cut(0, -1), targets, is_counted.astype(np.float32))


def next_token_after_prefix(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The same, with the prefix marked so that a mask can open it in both directions."""
    plain = next_token(encoding, rng)
    return replace(plain, inputs=replace(plain.inputs, prefix=encoding.prefix))


def source_to_target(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The prefix to the encoder; the decoder starts from the prefix's last token, the separator."""
    prefix = encoding.prefix
    if prefix < 1:
        raise ValueError("seq2seq needs records with a source and a target; this one has no source")
    targets = encoding.ids[prefix:]
    weights = np.ones(len(targets), np.float32)
    return Example(encoding.cut(prefix - 1, -1), targets, weights, source=encoding.cut(0, prefix))


def label(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The label, once: at the first token, since a pooled head says the same all over a document."""
    if encoding.label is None:
        raise ValueError("classification needs records with a label; this one has none")
    targets, weights = np.zeros(len(encoding), np.int64), np.zeros(len(encoding), np.float32)
    targets[0], weights[0] = encoding.label, 1
    return Example(encoding, targets, weights)


def number(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The record's number, once."""
    if not isinstance(encoding.label, int | float):
        raise ValueError(f"regression needs records with a number as their label, not {encoding.label!r}")
    targets, weights = np.zeros(len(encoding), np.float32), np.zeros(len(encoding), np.float32)
    targets[0], weights[0] = encoding.label, 1
    return Example(encoding, targets, weights)


def word_tags(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The tag of each word, at its first token."""
    if encoding.tags is None:
        raise ValueError("tagging needs records with tokens and tags; this one has none")
    return Example(encoding, np.nan_to_num(encoding.tags).astype(np.int64), _are_there(encoding.tags))


def word_numbers(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The number of each word, at its first token."""
    if encoding.tags is None:
        raise ValueError("token_regression needs records with tokens and a number for each as its tag")
    return Example(encoding, np.nan_to_num(encoding.tags).astype(np.float32), _are_there(encoding.tags))


def _are_there(tags: np.ndarray) -> np.ndarray:
    return np.isfinite(tags).astype(np.float32)


def two_readings(encoding: Encoding, rng: np.random.Generator) -> Example:
    """Source and target apart, each as one text; the pair counts once, at the source's first token."""
    prefix = encoding.prefix
    if not 1 < prefix < len(encoding):
        raise ValueError("a contrast needs records with a source and a target; this one has none")
    weights = np.zeros(prefix, np.float32)
    weights[0] = 1
    return Example(encoding.cut(0, prefix), np.zeros(prefix, np.int64), weights, source=encoding.cut(prefix))


def _after(change: Denoising, view: View) -> Callable[[Encoding, np.random.Generator], Example]:
    """A view of what a text becomes."""
    return lambda encoding, rng: view.example(change(encoding, rng), rng)


def _needed(codec: Codec | None) -> TextCodec:
    if codec is None:
        raise ValueError("this objective hides tokens, so its view must know their codec; give build_view a codec")
    return as_text(codec)


def build_view(
    config: Objective, codec: Codec | None = None, *, is_encoder_decoder: bool = False, is_causal: bool = False
) -> View:
    """The view of an objective; where one is for several forms, is_encoder_decoder and is_causal (a decoder alone) say
    for which.

    Raises ValueError for an objective that hides tokens and a codec without the special ones that this takes.
    """
    match config:
        case Causal():
            return View(CausalMask(), Full(), next_token, lambda n, prefix: (n - 1, 0))
        case Prefix():
            mask = PrefixMask() | CausalMask()
            return View(mask, Full(), next_token_after_prefix, lambda n, prefix: (n - 1, 0))
        case Seq2seq(causal=causal):
            mask = CausalMask() if causal else Full()
            return View(CausalMask(), mask, source_to_target, lambda n, prefix: (n - prefix, prefix), overlap=0)
        case Classification() | Regression() | Tagging() | TokenRegression():
            about = {Classification: label, Regression: number, Tagging: word_tags, TokenRegression: word_numbers}
            mask = CausalMask() if is_causal else Full()
            example = about[type(config)]
            return View(mask, Full(), example, lambda n, prefix: (n, 0), is_whole=True, is_text=False)
        case Contrastive():
            return View(
                inputs_mask=Full(),
                source_mask=Full(),
                example=two_readings,
                length=lambda n, prefix: (prefix, n - prefix),
                is_whole=True,
                is_text=False,
            )
        case Distillation():
            return build_view(Seq2seq() if is_encoder_decoder else Causal())
        case Masked():
            hide = Masking(config, _needed(codec))
            return View(Full(), Full(), hide, lambda n, prefix: (n, 0), overlap=0, is_text=False)
        case SpanCorruption() | DenoiserMixture():
            leave_out = Denoising(config, _needed(codec))
            if is_encoder_decoder:
                view = replace(build_view(Seq2seq()), length=lambda n, prefix: leave_out.lengths(n)[::-1])
            else:
                one = build_view(Causal() if config.causal else Prefix())
                view = replace(one, length=lambda n, prefix: (max(0, leave_out.total(n) - 1), 0))
            return replace(view, example=_after(leave_out, view), overlap=0, is_text=False)
        case _:
            assert_never(config)


def check_view(view: View, encodings: Iterable[Encoding], seeds: Iterable[int] = range(4)) -> None:
    """The contract of any view, on Encodings that it should be able to read; AssertionError where it is broken.

    A view gives the same Example for the same random numbers, leaves what it reads as it was, stays within the lengths
    that it states, and doesn't show a token what that token should say next.
    """
    for encoding in encodings:
        before = encoding.ids.copy()
        stated = view.length(len(encoding), encoding.prefix)
        for seed in seeds:
            example, again = (view.example(encoding, np.random.default_rng(seed)) for _ in range(2))
            assert np.array_equal(encoding.ids, before), "the view changed what it read"
            _check_same(example, again)
            inputs, source = example.inputs, example.source
            assert len(inputs) == len(example.targets) == len(example.loss_weights), "not one target a token"
            assert len(inputs) <= stated[0], f"{len(inputs)} tokens where at most {stated[0]} were stated"
            assert (0 if source is None else len(source)) <= stated[1], "a longer source than stated"
            weights = example.loss_weights
            assert weights.dtype == np.float32 and np.isfinite(weights).all() and (weights >= 0).all(), (
                "loss weights are float32, finite, and at least 0"
            )
            counted = np.asarray(example.targets)[weights > 0]
            is_id = np.issubdtype(counted.dtype, np.integer)
            assert np.isfinite(counted).all() and (not is_id or (counted >= 0).all()), "a target that is none counts"
            is_shifted = np.array_equal(example.targets[:-1][weights[:-1] > 0], inputs.ids[1:][weights[:-1] > 0])
            if is_shifted and not view.is_whole:
                _check_unseen(view.inputs_mask, inputs, weights)


def _check_same(one: Example, other: Example) -> None:
    same = np.array_equal(one.inputs.ids, other.inputs.ids) and np.array_equal(one.targets, other.targets)
    sources = [None if e.source is None else e.source.ids.tolist() for e in (one, other)]
    assert same and sources[0] == sources[1] and np.array_equal(one.loss_weights, other.loss_weights), (
        "two Examples from the same random numbers"
    )


def _check_unseen(mask: Mask, inputs: Encoding, weights: np.ndarray) -> None:
    """Of tokens that predict the next: none may attend to it."""
    batch = collate([[Example(inputs, inputs.ids, weights)]], len(inputs))
    seen = dense_mask(mask, batch.inputs.coordinates, batch.inputs.coordinates)[0].diagonal(1).numpy()
    assert not (seen & (weights[:-1] > 0)).any(), "a token may attend to what it should say"

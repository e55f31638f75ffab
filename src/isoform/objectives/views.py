"""Views of the data: functions from an Encoding to an Example, with the attention masks of each objective.

The views of sequences differ in two ways only: whether the prefix is read by a separate encoder, and whether
attention within it is bidirectional. Span corruption first turns a plain text into a prefix and targets. Masking and
classification read the whole text bidirectionally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
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
from isoform.objectives.corruption import Denoising, Masking, check_plain


@dataclass(frozen=True)
class View:
    """How an objective reads records: the mask of each stack, and Examples with their lengths.

    `example(encoding, rng)` is deterministic for a given generator; `length(n, prefix)` is the most tokens that
    the Example of an Encoding of n tokens has as (inputs, source), 0 if it has nothing to predict.
    `check(encoding)` raises ValueError for an Encoding that it can't read (None: it reads all), so that all records can
    be checked before the first row is made. is_whole: the target is a property of the whole record, so that it is never
    cut to fit a row; overlap: the number of tokens that consecutive parts of a cut record share; is_text: the targets
    are the text, each token once, so that nats per byte are meaningful.
    """

    inputs_mask: Mask
    source_mask: Mask
    example: Callable[[Encoding, np.random.Generator], Example]
    length: Callable[[int, int], tuple[int, int]]
    check: Callable[[Encoding], None] | None = None
    is_whole: bool = False
    overlap: int = 1
    is_text: bool = True


def next_token(encoding: Encoding, rng: np.random.Generator) -> Example:
    """Every token predicts the next; only targets after the prefix count, of a conversation those that the assistant
    says."""
    targets = encoding.ids[1:]
    is_counted = np.arange(1, len(encoding)) >= encoding.prefix
    if encoding.is_target is not None:
        is_counted = is_counted & encoding.is_target[1:]
    if encoding.features is not None:  # only tokens with an id can be predicted
        is_counted, targets = is_counted & (targets >= 0), np.maximum(targets, 0)
    return Example(encoding.cut(0, -1), targets, is_counted.astype(np.float32))


def next_token_after_prefix(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The same, with the prefix marked so that a mask can make it bidirectional. That of a plain text is drawn, between
    its first token and all but its last (T5, Raffel et al. 2020, section 3.2.3); that of a conversation ends where the
    assistant begins."""
    if not encoding.prefix and encoding.is_target is not None:
        encoding = replace(encoding, prefix=int(encoding.is_target.argmax()))
    elif not encoding.prefix and encoding.features is None:
        encoding = replace(encoding, prefix=int(rng.integers(1, len(encoding))))
    plain = next_token(encoding, rng)
    return replace(plain, inputs=replace(plain.inputs, prefix=encoding.prefix))


def source_to_target(encoding: Encoding, rng: np.random.Generator, *, start: int | None = None) -> Example:
    """The prefix to the encoder; the decoder starts from the prefix's last token, the separator, or from `start`."""
    _check_source(encoding)
    prefix = encoding.prefix
    targets = encoding.ids[prefix:]
    weights = np.ones(len(targets), np.float32)
    inputs = encoding.cut(prefix - 1, -1)
    if start is not None:
        inputs = replace(inputs, ids=np.concatenate([np.array([start], inputs.ids.dtype), inputs.ids[1:]]))
    return Example(inputs, targets, weights, source=encoding.cut(0, prefix))


def _check_source(encoding: Encoding) -> None:
    if encoding.prefix < 1:
        raise ValueError("seq2seq needs records with a source and a target; this one has no source")


def label(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The label, once: at the first token, since a pooled head has the same output all over a document."""
    _check_label(encoding)
    assert encoding.label is not None
    targets, weights = np.zeros(len(encoding), np.int64), np.zeros(len(encoding), np.float32)
    targets[0], weights[0] = encoding.label, 1
    return Example(encoding, targets, weights)


def _check_label(encoding: Encoding) -> None:
    if encoding.label is None:
        raise ValueError("classification needs records with a label; this one has none")


def number(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The record's number, once."""
    _check_number(encoding)
    targets, weights = np.zeros(len(encoding), np.float32), np.zeros(len(encoding), np.float32)
    targets[0], weights[0] = encoding.label, 1
    return Example(encoding, targets, weights)


def _check_number(encoding: Encoding) -> None:
    if not isinstance(encoding.label, int | float):
        raise ValueError(f"regression needs records with a number as their label, not {encoding.label!r}")


def word_tags(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The tag of each word, at its first token."""
    _check_tags(encoding)
    assert encoding.tags is not None
    return Example(encoding, np.nan_to_num(encoding.tags).astype(np.int64), _is_finite(encoding.tags))


def word_numbers(encoding: Encoding, rng: np.random.Generator) -> Example:
    """The number of each word, at its first token."""
    _check_tags(encoding)
    assert encoding.tags is not None
    return Example(encoding, np.nan_to_num(encoding.tags).astype(np.float32), _is_finite(encoding.tags))


def _check_tags(encoding: Encoding) -> None:
    if encoding.tags is None:
        raise ValueError("this objective needs records with tokens and tags, names or numbers; this one has none")


def _is_finite(tags: np.ndarray) -> np.ndarray:
    return np.isfinite(tags).astype(np.float32)


def source_and_target(encoding: Encoding, rng: np.random.Generator) -> Example:
    """Source and target as separate texts; the pair counts once, at the source's first token."""
    _check_pair(encoding)
    prefix = encoding.prefix
    weights = np.zeros(prefix, np.float32)
    weights[0] = 1
    return Example(encoding.cut(0, prefix), np.zeros(prefix, np.int64), weights, source=encoding.cut(prefix))


def _check_pair(encoding: Encoding) -> None:
    if not 1 < encoding.prefix < len(encoding):
        raise ValueError("contrastive needs records with a source and a target; this one has none")


def _corrupted_example(
    corrupt: Callable[[Encoding, np.random.Generator], Encoding], view: View
) -> Callable[[Encoding, np.random.Generator], Example]:
    """The Example function of a view applied to corrupted texts."""
    return lambda encoding, rng: view.example(corrupt(encoding, rng), rng)


def _decoder_start(codec: Codec | None) -> int | None:
    return codec.special_ids.decoder_start if isinstance(codec, TextCodec) else None


def _require_text_codec(codec: Codec | None) -> TextCodec:
    if codec is None:
        raise ValueError("this objective masks tokens, so its view needs the codec; give build_view a codec")
    return as_text(codec)


def build_view(
    config: Objective, codec: Codec | None = None, *, is_encoder_decoder: bool = False, is_causal: bool = False
) -> View:
    """The view of an objective; for objectives of several forms is_encoder_decoder and is_causal (a decoder alone)
    select the form.

    Raises ValueError for an objective that needs special tokens and a codec without them.
    """
    match config:
        case Causal():
            return View(CausalMask(), Full(), next_token, lambda n, prefix: (n - 1, 0))
        case Prefix():
            mask = PrefixMask() | CausalMask()
            return View(mask, Full(), next_token_after_prefix, lambda n, prefix: (n - 1, 0))
        case Seq2seq(causal=causal):
            mask = CausalMask() if causal else Full()
            example = partial(source_to_target, start=_decoder_start(codec))
            view = View(CausalMask(), mask, example, lambda n, prefix: (n - prefix, prefix), overlap=0)
            return replace(view, check=_check_source)
        case Classification() | Regression() | Tagging() | TokenRegression():
            example, check = {
                Classification: (label, _check_label),
                Regression: (number, _check_number),
                Tagging: (word_tags, _check_tags),
                TokenRegression: (word_numbers, _check_tags),
            }[type(config)]
            mask = CausalMask() if is_causal else Full()
            return View(mask, Full(), example, lambda n, prefix: (n, 0), check, is_whole=True, is_text=False)
        case Contrastive():
            mask = CausalMask() if is_causal else Full()
            return View(
                inputs_mask=mask,
                source_mask=mask,
                example=source_and_target,
                length=lambda n, prefix: (prefix, n - prefix),
                check=_check_pair,
                is_whole=True,
                is_text=False,
            )
        case Distillation():
            return build_view(Seq2seq() if is_encoder_decoder else Causal(), codec)
        case Masked():
            masking = Masking(config, _require_text_codec(codec))
            if is_encoder_decoder:
                view = replace(build_view(Seq2seq(), codec), length=lambda n, prefix: (n, n + 1), check=check_plain)
                return replace(view, example=_corrupted_example(masking.pair, view), is_text=False)
            return View(Full(), Full(), masking, lambda n, prefix: (n, 0), check_plain, overlap=0, is_text=False)
        case SpanCorruption() | DenoiserMixture():
            denoising = Denoising(config, _require_text_codec(codec))
            if is_encoder_decoder:
                view = replace(build_view(Seq2seq(), codec), length=lambda n, prefix: denoising.lengths(n)[::-1])
            else:
                plain = build_view(Causal() if config.causal else Prefix())
                view = replace(plain, length=lambda n, prefix: (max(0, denoising.total(n) - 1), 0))
            example = _corrupted_example(denoising, view)
            return replace(view, example=example, check=check_plain, overlap=0, is_text=False)
        case _:
            assert_never(config)


def check_view(view: View, encodings: Iterable[Encoding], seeds: Iterable[int] = range(4)) -> None:
    """The contract of any view, on Encodings that it should be able to read; raises AssertionError if violated.

    A view returns the same Example for the same random numbers, doesn't modify its input, stays within its declared
    lengths, and no token can attend to its own target.
    """
    for encoding in encodings:
        before = encoding.ids.copy()
        declared = view.length(len(encoding), encoding.prefix)
        for seed in seeds:
            example, repeated = (view.example(encoding, np.random.default_rng(seed)) for _ in range(2))
            assert np.array_equal(encoding.ids, before), "the view modified its input"
            _check_same(example, repeated)
            inputs, source = example.inputs, example.source
            assert len(inputs) == len(example.targets) == len(example.loss_weights), "not one target per token"
            assert len(inputs) <= declared[0], f"{len(inputs)} tokens, but at most {declared[0]} were declared"
            assert (0 if source is None else len(source)) <= declared[1], "a longer source than declared"
            weights = example.loss_weights
            assert weights.dtype == np.float32 and np.isfinite(weights).all() and (weights >= 0).all(), (
                "loss weights are float32, finite, and at least 0"
            )
            counted = np.asarray(example.targets)[weights > 0]
            is_id = np.issubdtype(counted.dtype, np.integer)
            assert np.isfinite(counted).all() and (not is_id or (counted >= 0).all()), "an invalid target counts"
            is_shifted = np.array_equal(example.targets[:-1][weights[:-1] > 0], inputs.ids[1:][weights[:-1] > 0])
            if is_shifted and not view.is_whole:
                _check_unseen(view.inputs_mask, inputs, weights)


def _check_same(first: Example, second: Example) -> None:
    same = np.array_equal(first.inputs.ids, second.inputs.ids) and np.array_equal(first.targets, second.targets)
    sources = [None if e.source is None else e.source.ids.tolist() for e in (first, second)]
    assert same and sources[0] == sources[1] and np.array_equal(first.loss_weights, second.loss_weights), (
        "different Examples from the same random numbers"
    )


def _check_unseen(mask: Mask, inputs: Encoding, weights: np.ndarray) -> None:
    """No token that predicts the next may attend to it."""
    batch = collate([[Example(inputs, inputs.ids, weights)]], len(inputs))
    is_visible = dense_mask(mask, batch.inputs.coordinates, batch.inputs.coordinates)[0].diagonal(1).numpy()
    assert not (is_visible & (weights[:-1] > 0)).any(), "a token may attend to its own target"

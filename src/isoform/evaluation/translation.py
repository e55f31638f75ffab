"""Translation quality: BLEU (Papineni et al. 2002) by sacrebleu, on tokenised and on plain text.

Papers that train on lowercased, tokenised text score that text; sacrebleu's default scores plain text. The two differ
by several points on the same translations, so each score comes with its signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.codecs.codec import as_text
from isoform.data.records import Record
from isoform.generation.answers import answer
from isoform.generation.config import Beam, Sampling
from isoform.machine import import_optional
from isoform.reading import LINE_END
from isoform.run import Trained

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


@dataclass(frozen=True)
class Bleu:
    """A score of 0 .. 100, with its signature."""

    score: float
    signature: str


@dataclass(frozen=True)
class TranslationScore:
    """BLEU of one set of translations, on tokenised and on plain text."""

    tokenised: Bleu
    """Both sides lowercased, with normalised punctuation, and tokenised by Moses."""
    plain: Bleu
    """Unchanged, cased text; sacrebleu's own tokenisation (13a)."""
    num_pairs: int


@dataclass(frozen=True)
class _Form:
    """Answers and references as one of the scores sees them."""

    bleu: type[BLEU]
    settings: dict[str, Any]
    answers: list[str]
    references: list[str]
    signature: str = ""
    """What is added to sacrebleu's."""

    def score(self) -> Bleu:
        metric = self.bleu(**self.settings)
        score = metric.corpus_score(self.answers, [self.references]).score
        return Bleu(score, f"{metric.get_signature()}{self.signature}")

    def statistics(self) -> np.ndarray:
        metric = self.bleu(**self.settings, effective_order=True)  # sentences may be short; the counts don't change
        scores = [metric.sentence_score(a, [r]) for a, r in zip(self.answers, self.references, strict=True)]
        return np.array([[s.sys_len, s.ref_len, *s.counts] for s in scores])


def score_translations(answers: Sequence[str], references: Sequence[str], language: str) -> TranslationScore:
    """BLEU of answers (n) against one reference each (n).

    language: of the references ("de"), for Moses' list of abbreviations. Raises ValueError if the numbers of answers
    and references differ, or are 0.
    """
    forms = _forms(answers, references, language)
    return TranslationScore(forms["tokenised"].score(), forms["plain"].score(), len(references))


def sentence_statistics(answers: Sequence[str], references: Sequence[str], language: str) -> dict[str, np.ndarray]:
    """What each sentence adds to the two scores, `tokenised` and `plain`, as arrays (n, 6): lengths of answer and
    reference in tokens, matching n-grams of orders 1 .. 4. Raises what `score_translations` raises."""
    return {name: form.statistics() for name, form in _forms(answers, references, language).items()}


def _forms(answers: Sequence[str], references: Sequence[str], language: str) -> dict[str, _Form]:
    if len(answers) != len(references) or not references:
        raise ValueError(f"{len(answers)} answers for {len(references)} references; there must be one for each")
    bleu = import_optional("sacrebleu.metrics", extra="eval").BLEU
    moses = import_optional("sacremoses", extra="eval")
    normalizer, tokenizer = moses.MosesPunctNormalizer(language), moses.MosesTokenizer(language)

    def tokenised(text: str) -> str:
        return tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True, escape=False)

    on_tokens = {"tokenize": "none", "lowercase": True, "force": True}
    signature = f"|pre:lowercase+normalize-punctuation+moses.{language}"
    return {
        "tokenised": _Form(bleu, on_tokens, [*map(tokenised, answers)], [*map(tokenised, references)], signature),
        "plain": _Form(bleu, {}, [*answers], [*references]),
    }


def translate(
    trained: Trained, records: Sequence[Record], beam: Beam, language: str
) -> tuple[TranslationScore, list[str]]:
    """The score of a model's translations of the sources of pairs, and the translations, one line each.

    Raises ValueError for a model or records without sources.
    """
    if not trained.answers_source or "source" not in records[0]:
        raise ValueError("a translation needs a model and data of sources and targets; name pairs with --path")
    hypotheses = answer_lines(trained, [record["source"] for record in records], beam)
    answers = [each[0][0] for each in hypotheses]
    return score_translations(answers, [record["target"] for record in records], language), answers


def answer_lines(trained: Trained, texts: Sequence[str], decoding: Beam | Sampling) -> list[list[tuple[str, float]]]:
    """The outputs for each text, without line breaks, with their scores."""
    codec = as_text(trained.codec)
    view, answers_source = trained.view, trained.answers_source
    answers = answer(trained.transformer, codec, texts, decoding, view=view, answers_source=answers_source)
    return [[(LINE_END.sub(" ", text), score) for text, score in each] for each in answers]

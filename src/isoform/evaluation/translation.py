"""How good translations are: BLEU (Papineni et al. 2002) as sacrebleu counts it, twice.

Papers that train on lowercased, tokenised text score it as it is; sacrebleu's default scores plain text. The two differ
by several points on the same answers, so that each comes with what was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoform.codecs.codec import as_text
from isoform.data.sources import Record
from isoform.generation.answers import answer
from isoform.generation.config import Beam, Sampling
from isoform.machine import import_optional
from isoform.run import Trained

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


@dataclass(frozen=True)
class Bleu:
    """A score of 0 .. 100, and all that decides it."""

    score: float
    signature: str


@dataclass(frozen=True)
class TranslationScore:
    """One set of answers, scored in both ways."""

    tokenised: Bleu
    """Both sides lowercased, their punctuation normalised, and cut into tokens as Moses does."""
    plain: Bleu
    """As written, cased; sacrebleu's own tokens (13a)."""
    num_pairs: int


def score_translations(answers: Sequence[str], references: Sequence[str], language: str) -> TranslationScore:
    """BLEU of answers (n) against one reference each (n).

    language: of the references ("de"), whose abbreviations Moses' tokenizer knows. Raises ValueError for another
    number of answers than references, and for none.
    """
    if len(answers) != len(references) or not references:
        raise ValueError(f"{len(answers)} answers for {len(references)} references; there must be one for each")
    metrics = import_optional("sacrebleu.metrics", extra="eval")
    moses = import_optional("sacremoses", extra="eval")
    normalizer, tokenizer = moses.MosesPunctNormalizer(language), moses.MosesTokenizer(language)

    def tokenised(text: str) -> str:
        return tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True, escape=False)

    on_tokens = metrics.BLEU(tokenize="none", lowercase=True, force=True)
    score = _score(on_tokens, list(map(tokenised, answers)), list(map(tokenised, references)))
    signature = f"{score.signature}|pre:lowercase+normalize-punctuation+moses.{language}"
    plain = _score(metrics.BLEU(), list(answers), list(references))
    return TranslationScore(Bleu(score.score, signature), plain, len(references))


def translate(
    trained: Trained, records: Sequence[Record], beam: Beam, language: str
) -> tuple[TranslationScore, list[str]]:
    """How well a model answers the sources of pairs, and its answers, a line each.

    Raises ValueError for a model or records without sources.
    """
    if not trained.answers_source or "source" not in records[0]:
        raise ValueError("a translation needs a model and data of sources and targets; name pairs with --path")
    found = answer_lines(trained, [record["source"] for record in records], beam)
    answers = [each[0][0] for each in found]
    return score_translations(answers, [record["target"] for record in records], language), answers


def answer_lines(trained: Trained, texts: Sequence[str], how: Beam | Sampling) -> list[list[tuple[str, float]]]:
    """Answers to each text, each on one line, with their scores."""
    codec = as_text(trained.codec)
    found = answer(trained.transformer, codec, texts, how, view=trained.view, answers_source=trained.answers_source)
    return [[(text.replace("\n", " "), score) for text, score in each] for each in found]


def _score(metric: BLEU, answers: list[str], references: list[str]) -> Bleu:
    score = metric.corpus_score(answers, [references]).score
    return Bleu(score, str(metric.get_signature()))

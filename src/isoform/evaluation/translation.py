"""Translation quality: BLEU (Papineni et al. 2002) by sacrebleu, on tokenised and on plain text.

Papers that train on lowercased, tokenised text score that text; sacrebleu's default scores plain text. The two differ
by several points on the same translations, so each score comes with its signature.
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


def score_translations(answers: Sequence[str], references: Sequence[str], language: str) -> TranslationScore:
    """BLEU of answers (n) against one reference each (n).

    language: of the references ("de"), for Moses' list of abbreviations. Raises ValueError if the numbers of answers
    and references differ, or are 0.
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


def _score(metric: BLEU, answers: list[str], references: list[str]) -> Bleu:
    score = metric.corpus_score(answers, [references]).score
    return Bleu(score, str(metric.get_signature()))

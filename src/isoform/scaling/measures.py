"""Measures of a finished run besides its loss: translation quality, accuracy, the loss of another objective.

A value is saved in the run's folder under a hash of the measure and its data, so that it is computed once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal, assert_never

from isoform.config import to_dict
from isoform.data.sources import load_source
from isoform.evaluation.evaluate import evaluate_records
from isoform.evaluation.translation import answer_lines, translate
from isoform.files import read_sealed, write_sealed
from isoform.generation.config import Beam
from isoform.machine import Machine
from isoform.model.config import ModelConfig
from isoform.objectives.config import Causal, Objective, Seq2seq
from isoform.preparation import load_records
from isoform.ranges import Exponent, Index, Rows, Size, config
from isoform.recipe import Recipe, load_recipe
from isoform.run import Run, load, read_summary
from isoform.scaling.conversation import conversation_turns
from isoform.scaling.study import Row


@config
class Validation:
    """The last validation of training: the loss, or the accuracy."""

    name: str
    what: Literal["loss", "accuracy"]
    arms: tuple[str, ...] = ()
    """The arms to measure; empty: all."""


@config
class Translation:
    """BLEU of the translations of validation sources."""

    name: str
    path: str
    language: str
    form: Literal["tokenised", "plain"] = "tokenised"
    beams: Rows = 5
    length_penalty: Exponent = 1.0
    limit: Index = 0
    """Number of pairs, the first ones; 0: all."""
    arms: tuple[str, ...] = ()


@config
class Answers:
    """Exact match: the share of validation sources whose greedy output equals the target."""

    name: str
    path: str
    arms: tuple[str, ...] = ()


@config
class Loss:
    """The validation loss of another objective, in nats per token."""

    name: str
    objective: Objective
    path: str = ""
    """Empty: the run's own validation split."""
    arms: tuple[str, ...] = ()


@config
class Conversation:
    """Cost of a conversation in which every answer is conditioned on all earlier turns, computed from the config."""

    name: str
    what: Literal["read_again", "bytes_held"]
    """Tokens of earlier turns that are read again, the mean over turns; or bytes of keys and values cached when the
    last turn ends."""
    turns: Size = 20
    question_tokens: Size = 32
    """New tokens of each turn."""
    answer_tokens: Size = 32
    """Tokens of each answer."""
    arms: tuple[str, ...] = ()


Measure = Validation | Translation | Answers | Loss | Conversation


def take_measures(measures: Sequence[Measure], rows: Sequence[Row], pool: Path, machine: Machine) -> list[Row]:
    """The rows with the measures of their runs; those that have them, or no loss, are unchanged."""
    return [_measure_row(measures, row, pool, machine) for row in rows]


def _measure_row(measures: Sequence[Measure], row: Row, pool: Path, machine: Machine) -> Row:
    missing = [m for m in measures if (not m.arms or row.arm in m.arms) and m.name not in row.measures]
    if not row.is_finite or not missing:
        return row
    results = {m.name: _value(m, pool / row.id, machine) for m in missing}
    values = {name: value for name, (value, _) in results.items()}
    signatures = {name: signature for name, (_, signature) in results.items() if signature}
    return replace(row, measures=row.measures | values, signatures=row.signatures | signatures)


def _conversation(measure: Conversation, recipe: Recipe) -> float:
    assert isinstance(recipe.model, ModelConfig)
    is_causal = isinstance(recipe.objective, Causal) or (
        isinstance(recipe.objective, Seq2seq) and recipe.objective.causal
    )
    turns = conversation_turns(
        recipe.model,
        measure.turns,
        question_tokens=measure.question_tokens,
        answer_tokens=measure.answer_tokens,
        is_causal=is_causal,
    )
    return float(turns[-1].bytes_held if measure.what == "bytes_held" else fmean(turn.read_again for turn in turns))


def _value(measure: Measure, folder: Path, machine: Machine) -> tuple[float, str]:
    """The number, and the signature of its computation, if it has one."""
    if isinstance(measure, Validation):
        value = read_summary(Run(folder))[f"validation_{measure.what}"]
        if value is None:
            raise ValueError(f"the run {folder.name} has no {measure.what}; leave the measure {measure.name!r} out")
        return float(value), ""
    if isinstance(measure, Conversation):
        return _conversation(measure, load_recipe(str(Run(folder).recipe))), ""
    split = load_source(measure.path, measure.path) if measure.path else None
    data = "" if split is None else ",".join(source.sha256 for source in split.sources)
    which = measure.form if isinstance(measure, Translation) else "value"
    fields = {key: value for key, value in to_dict(measure).items() if key not in ("name", "path", "arms", "form")}
    cache_key = json.dumps([type(measure).__name__, fields, data])
    path = folder / f"measure-{hashlib.sha256(cache_key.encode()).hexdigest()[:16]}.json"
    with suppress(ValueError):  # a value that is missing or damaged is computed
        saved = read_sealed(path)
        return float(saved["values"][which]), saved["signatures"].get(which, "")
    trained, signatures = load(folder, machine.device, machine.dtype), {}
    match measure:
        case Translation(limit=limit):
            assert split is not None
            records = split.validation[:limit] if limit else split.validation
            beam = Beam(size=measure.beams, length_penalty=measure.length_penalty)
            score, _ = translate(trained, records, beam, measure.language)
            values = {"tokenised": score.tokenised.score, "plain": score.plain.score}
            signatures = {"tokenised": score.tokenised.signature, "plain": score.plain.signature}
        case Answers():
            assert split is not None
            outputs = answer_lines(trained, [record["source"] for record in split.validation], Beam(size=1))
            matches = [best[0][0] == record["target"] for best, record in zip(outputs, split.validation, strict=True)]
            values = {which: fmean(matches)}
        case Loss(objective=objective):
            recipe = replace(trained.recipe, objective=objective, data=replace(trained.recipe.data, rows="packed"))
            records = (load_records(recipe.data)[1] if split is None else split).validation
            values = {which: evaluate_records(trained.model, recipe, trained.codec, records, machine).loss}
        case _:
            assert_never(measure)
    write_sealed(path, {"asked": fields, "values": values, "signatures": signatures})
    return values[which], signatures.get(which, "")

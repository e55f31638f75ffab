"""What is asked of a finished run beside its loss: how well it translates, what another objective makes of it.

An answer is kept beside the run, by what was asked and of which data, so that it is asked once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, assert_never

from isoform.config import to_dict
from isoform.data.sources import load_source
from isoform.evaluation.evaluate import evaluate_validation
from isoform.evaluation.translation import answer_lines, translate
from isoform.files import write_text
from isoform.generation.config import Beam
from isoform.machine import Machine
from isoform.model.config import ModelConfig
from isoform.objectives.config import Causal, Objective, Seq2seq
from isoform.preparation import load_records
from isoform.recipe import Recipe, load_recipe
from isoform.run import Run, load
from isoform.scaling.conversation import conversation_turns
from isoform.scaling.study import Row


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What training measured last: the loss, or the share of answers that are right."""

    name: str
    what: Literal["loss", "accuracy"]
    arms: tuple[str, ...] = ()
    """Of which arms it is asked; empty: all."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """BLEU of the answers to held-out sources."""

    name: str
    path: str
    language: str
    form: Literal["tokenised", "plain"] = "tokenised"
    beams: int = 5
    length_penalty: float = 1.0
    limit: int = 0
    """The first so many pairs; 0: all."""
    arms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The share of held-out sources that are answered as they should be, to the letter, by the most probable tokens."""

    name: str
    path: str
    arms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss on held-out records of what another objective asks, in nats per token."""

    name: str
    objective: Objective
    path: str = ""
    """Empty: what the run itself held out."""
    arms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a conversation costs, counted, in which every answer is given all that came before."""

    name: str
    what: Literal["read_again", "bytes_held"]
    """Tokens that were read before and are read again, the mean of the turns; or bytes of keys and values held when
    the last one ends."""
    turns: int = 20
    asked: int = 32
    """New tokens of a turn."""
    said: int = 32
    """Tokens of an answer."""
    arms: tuple[str, ...] = ()


Measure = Validation | Translation | Answers | Loss | Conversation


def take_measures(measures: Sequence[Measure], rows: Sequence[Row], pool: Path, machine: Machine) -> list[Row]:
    """The rows with what was asked of their runs; those that have it, or no loss, are left as they are."""
    return [_measured(measures, row, pool, machine) for row in rows]


def _measured(measures: Sequence[Measure], row: Row, pool: Path, machine: Machine) -> Row:
    asked = [one for one in measures if (not one.arms or row.arm in one.arms) and one.name not in row.measures]
    if not row.is_finite or not asked:
        return row
    taken = {one.name: _value(one, pool / row.id, machine) for one in asked}
    values = {name: value for name, (value, _) in taken.items()}
    signatures = {name: signature for name, (_, signature) in taken.items() if signature}
    return replace(row, measures=row.measures | values, signatures=row.signatures | signatures)


def _conversation(measure: Conversation, recipe: Recipe) -> float:
    assert isinstance(recipe.model, ModelConfig)
    is_causal = isinstance(recipe.objective, Causal) or (
        isinstance(recipe.objective, Seq2seq) and recipe.objective.causal
    )
    turns = conversation_turns(
        recipe.model,
        measure.turns,
        question_tokens=measure.asked,
        answer_tokens=measure.said,
        is_causal=is_causal,
    )
    return float(turns[-1].bytes_held if measure.what == "bytes_held" else fmean(turn.read_again for turn in turns))


def _value(measure: Measure, folder: Path, machine: Machine) -> tuple[float, str]:
    """The number, and what beside the answers decides it, where that has a name."""
    if isinstance(measure, Validation):
        value = json.loads(Run(folder).summary.read_text(encoding="utf-8"))[f"validation_{measure.what}"]
        if value is None:
            raise ValueError(f"the run {folder.name} has no {measure.what}; leave the measure {measure.name!r} out")
        return float(value), ""
    if isinstance(measure, Conversation):
        return _conversation(measure, load_recipe(str(Run(folder).recipe))), ""
    split = load_source(measure.path, measure.path) if measure.path else None
    data = "" if split is None else ",".join(source.sha256 for source in split.sources)
    which = measure.form if isinstance(measure, Translation) else "value"
    asked = {key: value for key, value in to_dict(measure).items() if key not in ("name", "path", "arms", "form")}
    said = json.dumps([type(measure).__name__, asked, data])
    path = folder / f"measure-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return float(kept["values"][which]), kept["signatures"].get(which, "")
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
            found = answer_lines(trained, [record["source"] for record in split.validation], Beam(size=1))
            right = [each[0][0] == record["target"] for each, record in zip(found, split.validation, strict=True)]
            values = {which: fmean(right)}
        case Loss(objective=objective):
            recipe = replace(trained.recipe, objective=objective, data=replace(trained.recipe.data, rows="packed"))
            records = (load_records(recipe.data)[1] if split is None else split).validation
            values = {which: evaluate_validation(trained.model, recipe, trained.codec, records, machine).loss}
        case _:
            assert_never(measure)
    write_text(path, json.dumps({"asked": asked, "values": values, "signatures": signatures}) + "\n")
    return values[which], signatures.get(which, "")

"""Measures of a finished run besides its loss: translation quality, accuracy, the loss of another objective.

A value is saved in the run's folder under a hash of the measure and its data, so that it is computed once; with it, of
shares and BLEU, the results for each test item (`items.py`), from which its sampling error follows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple, assert_never

import numpy as np

from isoform.config import to_dict
from isoform.data.records import Record
from isoform.data.sources import load_lines, load_source
from isoform.evaluation.evaluate import correct_by_record, evaluate_records
from isoform.evaluation.translation import answer_lines, sentence_statistics, translate
from isoform.files import read_sealed, write_sealed
from isoform.generation.config import Beam
from isoform.machine import DTYPES, Machine, can_compile, using_threads
from isoform.model.config import ModelConfig
from isoform.objectives.config import Causal, Contrastive, Objective, Seq2seq
from isoform.preparation import load_records
from isoform.ranges import Exponent, Index, OptionalSize, Rows, Size, config
from isoform.recipe import Recipe, load_recipe
from isoform.run import Run, Trained, load, read_summary
from isoform.scaling.conversation import conversation_turns
from isoform.scaling.items import pack, score, unpack
from isoform.scaling.study import Row


@config
class Validation:
    """The last validation of training: the loss, or the accuracy."""

    name: str
    what: Literal["loss", "accuracy"]
    num_items: OptionalSize = 0
    """Number of validation records that an accuracy is a share of, for runs without results by item; 0: unknown."""
    clusters: str = ""
    """A file beside the data with a line for each test item; equal lines mark items that share a source, such as
    sentences of one text. Empty: none do."""
    arms: tuple[str, ...] = ()
    """The arms to measure; empty: all."""

    def __post_init__(self) -> None:
        if (self.num_items or self.clusters) and self.what == "loss":
            raise ValueError("num_items and clusters are for shares of test items, not for a loss; leave them out")


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
    num_items: OptionalSize = 0
    """Number of pairs that are scored, for runs without results by item; 0: unknown."""
    clusters: str = ""
    """A file beside the data with a line for each test item; equal lines mark items that share a source, such as
    sentences of one text. Empty: none do."""
    arms: tuple[str, ...] = ()


@config
class Answers:
    """Exact match: the share of validation sources whose greedy output equals the target."""

    name: str
    path: str
    num_items: OptionalSize = 0
    """Number of pairs that the measure is a share of, for runs without results by item; 0: unknown."""
    clusters: str = ""
    """A file beside the data with a line for each test item; equal lines mark items that share a source, such as
    sentences of one text. Empty: none do."""
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

VALUE = "value"
"""The form of a measure that has a single one."""
NOT_COMPUTED_FROM = ("name", "path", "arms", "form", "num_items", "clusters")
"""Fields of a measure on which its results don't depend, the data's path among them."""


def take_measures(measures: Sequence[Measure], rows: Sequence[Row], pool: Path, machine: Machine) -> list[Row]:
    """The rows with the measures of their runs; those that have them, or no loss, are unchanged."""
    return [_measure_row(measures, row, pool, machine) for row in rows]


def _measure_row(measures: Sequence[Measure], row: Row, pool: Path, machine: Machine) -> Row:
    missing = [m for m in measures if (not m.arms or row.arm in m.arms) and m.name not in row.measures]
    if not row.is_finite or not missing:
        return row
    results = {m.name: _with_clusters(_result(m, pool / row.id, machine), m, pool / row.id) for m in missing}
    return replace(
        row,
        measures=row.measures | {name: result.value for name, result in results.items()},
        signatures=row.signatures | {name: result.signature for name, result in results.items() if result.signature},
        items=row.items | {name: result.items for name, result in results.items() if result.items},
    )


class _Result(NamedTuple):
    """A number; the signature of its computation and its items, packed, if it has them."""

    value: float
    signature: str = ""
    items: str = ""


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


def _result(measure: Measure, folder: Path, machine: Machine) -> _Result:
    """The result of a measure of the run in a folder, computed unless it is saved there."""
    if isinstance(measure, Conversation):
        return _Result(_conversation(measure, load_recipe(str(Run(folder).recipe))))
    split, data = None, ""
    if isinstance(measure, Validation):
        value = read_summary(Run(folder))[f"validation_{measure.what}"]
        if value is None:
            raise ValueError(f"the run {folder.name} has no {measure.what}; leave the measure {measure.name!r} out")
        if measure.what == "loss" or not _has_items(load_recipe(str(Run(folder).recipe))):
            return _Result(float(value))
        data = str(value)  # that of the run's records, and of the model they were scored by
    elif measure.path:
        split = load_source(measure.path, measure.path)
        data = split.fingerprint
    fields = {key: value for key, value in to_dict(measure).items() if key not in NOT_COMPUTED_FROM}
    cache_key = json.dumps([type(measure).__name__, fields, data])
    path = folder / f"measure-{hashlib.sha256(cache_key.encode()).hexdigest()[:16]}.json"
    form = measure.form if isinstance(measure, Translation) else VALUE
    with suppress(ValueError):  # a value that is missing or damaged is computed
        saved = read_sealed(path)
        if "items" in saved or isinstance(measure, Loss):  # earlier versions saved none
            value, signatures, items = saved["values"][form], saved["signatures"], saved.get("items", {})
            return _Result(float(value), signatures.get(form, ""), items.get(form, ""))
    trained = load(folder, machine.device, dtype=None)
    records = _own_records(trained, folder) if split is None else split.validation
    if isinstance(measure, Validation):
        results = {VALUE: _accuracy(trained, records, machine, folder)}
    else:
        results = _compute(measure, trained, records, machine)
    values = {form: result.value for form, result in results.items()}
    signatures = {form: result.signature for form, result in results.items() if result.signature}
    items = {form: result.items for form, result in results.items() if result.items}
    write_sealed(path, {"asked": fields, "values": values, "signatures": signatures, "items": items})
    return results[form]


def _with_clusters(result: _Result, measure: Measure, folder: Path) -> _Result:
    """The result, with the clusters of its items if the measure names a file of them."""
    if isinstance(measure, Loss | Conversation) or not measure.clusters:
        return result
    if not result.items:
        raise ValueError(f"the run {folder.name} has no results by item for {measure.name!r}; leave clusters out")
    data = load_recipe(str(Run(folder).recipe)).data
    beside = (data.validation_path or data.path) if isinstance(measure, Validation) else measure.path
    path, items = Path(beside).parent / measure.clusters, unpack(result.items)
    lines = load_lines(str(path))
    if isinstance(measure, Translation) and measure.limit:
        lines = lines[: measure.limit]
    if len(lines) != len(items):
        raise ValueError(f"{path} has {len(lines)} lines for {len(items)} items of {measure.name!r}; give one for each")
    return result._replace(items=pack(items, np.array(lines)))


def _has_items(recipe: Recipe) -> bool:
    """Whether the accuracy of a run is one over records: not over a stream, or among the partners of a batch."""
    return recipe.data.keeps_records and not isinstance(recipe.objective, Contrastive)


def _own_records(trained: Trained, folder: Path) -> Sequence[Record]:
    """A run's validation records. Raises ValueError if its data changed since."""
    split = load_records(trained.recipe.data)[1]
    if trained.data not in ("", split.fingerprint):
        raise ValueError(f"the data of the run {folder.name} changed, and its validation split with it; restore it")
    return split.validation


def _compute(
    measure: Translation | Answers | Loss, trained: Trained, records: Sequence[Record], machine: Machine
) -> dict[str, _Result]:
    """The results of a measure on records, by form."""
    match measure:
        case Translation(limit=limit):
            records = records[:limit] if limit else records
            beam = Beam(size=measure.beams, length_penalty=measure.length_penalty)
            scored, answers = translate(trained, records, beam, measure.language)
            items = sentence_statistics(answers, [record["target"] for record in records], measure.language)
            return {
                form: _Result(bleu.score, bleu.signature, pack(items[form]))
                for form, bleu in (("tokenised", scored.tokenised), ("plain", scored.plain))
            }
        case Answers():
            outputs = answer_lines(trained, [record["source"] for record in records], Beam(size=1))
            matches = [best[0][0] == record["target"] for best, record in zip(outputs, records, strict=True)]
            return {VALUE: _Result(fmean(matches), items=pack(np.array(matches)))}
        case Loss(objective=objective):
            recipe = replace(trained.recipe, objective=objective, data=replace(trained.recipe.data, rows="packed"))
            return {VALUE: _Result(evaluate_records(trained.model, recipe, trained.codec, records, machine).loss)}
        case _:
            assert_never(measure)


def _accuracy(trained: Trained, records: Sequence[Record], machine: Machine, folder: Path) -> _Result:
    """A run's accuracy on its validation records, which was computed when its training ended, now by record.

    With the format of products and the threads of its training, and compiled blocks where that is the default. Raises
    ValueError if the accuracy is another one than in the run's summary.
    """
    summary = read_summary(Run(folder))
    expected, made = summary["validation_accuracy"], summary["machine"]
    machine = replace(machine, dtype=DTYPES[made["dtype"]])
    if machine.device.type == "cpu":
        trained.model.set_matmul_dtype(machine.dtype)
    elif machine.device.type == "cuda" and can_compile(machine):
        trained.model.compile_blocks()
    with using_threads(made["threads"]):
        counts = correct_by_record(trained.model, trained.recipe, trained.codec, records, machine)
    items = counts[:, 0] if (counts[:, 1] == 1).all() else counts
    if not math.isclose(score(items), expected, rel_tol=1e-9):
        raise ValueError(
            f"the model of the run {folder} has a validation accuracy of {score(items):.6g} here, and of "
            f"{expected:.6g} in its summary; measure it where it was trained: {made['device']}, torch {made['torch']}"
        )
    return _Result(expected, items=pack(items))

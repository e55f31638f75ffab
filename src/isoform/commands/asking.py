"""The command predict: what a trained model answers to records."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from isoform.commands.command import Result, chosen_machine
from isoform.data.config import Keys
from isoform.data.records import Located, Record, kind_of_record
from isoform.data.sources import load_lines, read_records
from isoform.evaluation.predictions import answers
from isoform.files import write_chunks
from isoform.options import PredictOptions
from isoform.reading import TEXT, decode, split_lines, without_mark
from isoform.run import load
from isoform.terminal import Terminal

STANDARD_INPUT = "standard input"


def predict(options: PredictOptions, terminal: Terminal) -> Result:
    """Labels, tags, numbers or vectors of records."""
    if options.out and Path(options.out).is_dir():
        raise ValueError(f"{options.out} is a folder; name a file")
    machine = chosen_machine(options.machine)
    dtype = torch.float32 if options.machine.dtype == "auto" else machine.dtype
    trained = load(options.run, machine.device, dtype, **options.own.parts)
    trained.model.use_kernel(options.machine.kernel)
    records = _records(options, trained.recipe.data.keys, terminal)
    answered = answers(trained, records, cuts=options.cut, batch_tokens=options.batch_tokens)
    rows = ({**_shown(record, n), **each} for n, (record, each) in enumerate(zip(records, answered, strict=True), 1))
    saved: list[dict[str, Any]] = []
    lines = _lines(options, rows, saved if terminal.json else None)
    if options.out:
        write_chunks(Path(options.out), (line.encode() for line in lines))
        terminal.say(f"{len(records)} answers  {options.out}")
    else:
        for line in lines:
            if not terminal.json:
                terminal.write(line)
    return Result({"run": options.run, "path": options.path, "answers": saved})


def _records(options: PredictOptions, keys: Keys, terminal: Terminal) -> Sequence[Record]:
    """What is asked about: the lines of a text, or the records of another file."""
    if options.path and not options.path.lower().endswith(".txt"):
        return read_records(options.path, Keys(text=options.text_key or keys.text))
    where = options.path or STANDARD_INPUT
    if options.path:
        lines = load_lines(options.path)
    else:
        if sys.stdin is None:
            raise ValueError("standard input is closed; name a file with --path")
        if sys.stdin.isatty():
            terminal.say("a text on each line, Ctrl-D at the end:")
        lines = split_lines(without_mark(decode(sys.stdin.buffer.read(TEXT), where)))
    texts = [Located({"text": line}, f"{where}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise ValueError(f"{where} has no text; give one on each line")
    if len(texts) < len(lines):
        warnings.warn(f"{where}: {len(lines) - len(texts)} empty lines are left aside", stacklevel=2)
    return texts


def _shown(record: Record, number: int) -> dict[str, Any]:
    """A record as it stands beside its answer: what is text in it, and its own label; its number if it has no text."""
    shown = {key: value for key, value in record.items() if key in ("text", "source", "tokens")}
    truth = {f"true_{key}": record[key] for key in ("label", "tags") if record.get(key) is not None}
    return {**(shown or {kind_of_record(record): number}), **truth}


def _lines(
    options: PredictOptions, rows: Iterable[Mapping[str, Any]], saved: list[dict[str, Any]] | None
) -> Iterator[str]:
    """The lines of the output. saved: takes the rows, for --json."""
    is_jsonl = options.format == "jsonl" or (options.format == "auto" and options.out.lower().endswith(".jsonl"))
    header: list[str] = []
    for row in rows:
        if saved is not None:
            saved.append(dict(row))
        if is_jsonl:
            yield json.dumps(row, ensure_ascii=False) + "\n"
            continue
        cells = _cells(row)
        if not header:
            header = [*cells]
            yield _csv(header)
        yield _csv([cells.get(name, "") for name in header])


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one row of CSV: words and tags with spaces between them, a column for each number of a vector; of
    the probabilities that of the answer."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "vector":
            cells |= {f"vector.{i}": number for i, number in enumerate(value, 1)}
        elif isinstance(value, list):
            cells[name] = " ".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in value)
        elif not isinstance(value, Mapping):
            cells[name] = f"{value:.6g}" if isinstance(value, float) else value
    return cells


def _csv(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()

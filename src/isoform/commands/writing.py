"""The commands generate and evaluate."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from isoform.codecs.codec import as_text
from isoform.commands.command import Result, asking, chosen_machine, say_next
from isoform.data.records import Record
from isoform.evaluation.confusion import Confusion, confusion
from isoform.evaluation.evaluate import evaluate_records
from isoform.evaluation.translation import answer_lines, translate
from isoform.experiment import records_of
from isoform.files import make_folder, write_bytes, write_text
from isoform.generation.answers import beam_search
from isoform.generation.config import Beam
from isoform.generation.constraints import constraints_of
from isoform.generation.decode import Prompt, build_prompt
from isoform.generation.scoring import score_tokens
from isoform.generation.streaming import Generation
from isoform.generation.streaming import generate as generate_texts
from isoform.inspection.attention import MOST_TOKENS, draw_attention, maps_of, row_of
from isoform.inspection.probabilities import to_lines
from isoform.inspection.rows import token_name
from isoform.machine import describe
from isoform.model.config import Pooled
from isoform.objectives.views import View
from isoform.options import EvaluateOptions, GenerateOptions
from isoform.reading import TEXT, decode, read_text, split_lines, without_mark
from isoform.run import Trained, load
from isoform.terminal import Terminal, one_line

SHOWN = 90
"""Characters of a text that was answered wrong."""


def generate(options: GenerateOptions, terminal: Terminal) -> Result:
    """Continue a text with a trained model."""
    for path in (options.out, options.attention):
        if path and Path(path).is_dir():
            raise ValueError(f"{path} is a folder; name a file")
    machine = chosen_machine(options.machine)
    dtype = None if options.machine.dtype == "auto" else machine.dtype
    with terminal.doing(f"loading {options.run}"):
        trained = load(options.run, machine.device, dtype, **options.own.parts)
    result = _generate(options, trained, terminal)
    return replace(result, values={**result.values, "machine": describe(replace(machine, dtype=trained.dtype))})


def _generate(options: GenerateOptions, trained: Trained, terminal: Terminal) -> Result:
    """The texts of a prompt, or of each line of a file."""
    model = trained.transformer
    model.use_kernel(options.machine.kernel)
    if model.decoder is None or isinstance(model.config.head, Pooled):
        what = "is an encoder" if model.decoder is None else "predicts labels"
        raise ValueError(
            f"{options.run} {what}, which can't generate text; name a model with a decoder and a vocabulary"
        )
    if options.path:
        return _answer(options, trained, terminal)
    text = options.prompt
    if text is None:
        has_input = sys.stdin is not None and not sys.stdin.isatty()
        text = without_mark(decode(sys.stdin.buffer.read(TEXT), "standard input")) if has_input else ""
    view, codec = trained.view, as_text(trained.codec)
    prompt = build_prompt(codec, text, answers_source=trained.answers_source, view=view)
    if options.beams:
        return _search(options, trained, text, prompt, view, terminal)
    sampling, finished = options.sampling, []
    shows = not terminal.json and not options.probabilities
    if shows and sampling.num_samples == 1 and not trained.answers_source:
        terminal.write(text)
    for event in generate_texts(model, codec, prompt, sampling, view.inputs_mask):
        if isinstance(event, Generation):
            finished.append(event)
        elif shows and sampling.num_samples == 1:
            terminal.write(event[1])
    if shows and sampling.num_samples == 1:
        terminal.write("\n")
    elif shows:
        for number, generation in enumerate(finished, 1):
            terminal.write(f"-- {number} --\n{'' if trained.answers_source else text}{generation.text}\n")
    if options.attention:
        _draw_attention(options.attention, trained, prompt, finished[0].ids, terminal)
    values: dict = {"prompt": text, "samples": [asdict(generation) for generation in finished]}
    if options.probabilities:
        values["probabilities"] = [_score(trained, prompt.ids, generation, terminal) for generation in finished]
    return Result(values)


def _answer(options: GenerateOptions, trained: Trained, terminal: Terminal) -> Result:
    """The outputs for each line of a file, by beam search or sampling."""
    lines = split_lines(read_text(options.path))
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise ValueError(f"{options.path}, line {empty[0]} is empty; remove it")
    try:
        with terminal.doing(f"answering {len(lines):,} lines"):
            hypotheses = answer_lines(trained, lines, _beam(options) if options.beams else options.sampling)
    except ValueError as error:
        raise ValueError(f"{options.path}: {error}") from None
    best = [text for each in hypotheses for text, _ in each]
    if options.sampling.num_samples > 1:
        best = [f"{n}\t{score:.4f}\t{text}" for n, each in enumerate(hypotheses, 1) for text, score in each]
    if options.out:
        write_text(Path(options.out), "".join(f"{line}\n" for line in best))
        terminal.say(f"{len(best)} answers  {options.out}")
    else:
        for line in best:
            terminal.write(f"{line}\n")
    answers = [[{"text": text, "score": score} for text, score in each] for each in hypotheses]
    return Result({"path": options.path, "answers": answers})


def _beam(options: GenerateOptions) -> Beam:
    return Beam(
        size=options.beams,
        length_penalty=options.length_penalty,
        max_tokens=options.sampling.max_tokens,
        num_best=options.sampling.num_samples,
    )


def _search(
    options: GenerateOptions, trained: Trained, text: str, prompt: Prompt, view: View, terminal: Terminal
) -> Result:
    """The most probable texts of a beam search, with their scores."""
    codec = as_text(trained.codec)
    beam, mask = _beam(options), view.inputs_mask
    constraints = constraints_of(codec, trained.transformer.config.vocab_size)
    (hypotheses,) = beam_search(trained.transformer, [prompt], beam, constraints, mask=mask)
    samples = [
        {
            "text": codec.decode(h.ids, prompt=prompt.text),
            "num_tokens": len(h.ids),
            "score": h.score,
            "log_p": h.log_probability,
        }
        for h in hypotheses
    ]
    start = "" if trained.answers_source else text
    for sample in samples:
        score = f"{sample['score']:.3f}  " if len(samples) > 1 else ""
        terminal.write(f"{score}{start}{sample['text']}\n")
    if options.attention:
        _draw_attention(options.attention, trained, prompt, hypotheses[0].ids, terminal)
    return Result({"prompt": text, "samples": samples})


def _draw_attention(path: str, trained: Trained, prompt: Prompt, output: Iterable[int], terminal: Terminal) -> None:
    """Save a figure of the attention in a prompt and its output: to the source, or of a decoder alone to earlier
    tokens."""
    codec, model = as_text(trained.codec), trained.transformer
    assert model.config.decoder is not None
    ids = np.concatenate([prompt.ids, np.array([i for i in output if i != codec.end_of_text], np.int64)])
    ids = ids[: min(MOST_TOKENS, model.config.length(model.config.decoder))]
    has_cross = prompt.source is not None and model.config.decoder.cross == "separate"
    outputs = [codec.token_text(i) for i in (*ids[1:].tolist(), codec.end_of_text)]
    batch = row_of(ids, min(prompt.prefix, len(ids)), prompt.source)
    maps = maps_of(model, batch, trained.view, codec, outputs=outputs, kinds=["cross" if has_cross else "decoder"])
    write_bytes(Path(path), draw_attention(maps))
    terminal.say(f"attention      {path}")


def _score(trained: Trained, prompt: np.ndarray, generation: Generation, terminal: Terminal) -> list[dict]:
    """The probabilities of the tokens of a prompt and of what followed, as lines and as JSON values."""
    model = trained.transformer
    if model.encoder is not None or trained.answers_source:
        raise ValueError(
            "--probabilities needs a model of plain texts; this one was trained on pairs of source and target"
        )
    codec = as_text(trained.codec)
    scores = score_tokens(model, np.concatenate([prompt, generation.ids]).astype(np.int64))
    width = shutil.get_terminal_size((80, 24)).columns
    for line in to_lines(scores, codec, width):
        terminal.draw(line)
    return [
        {
            **asdict(score),
            "token": token_name(codec, score.token),
            "alternatives": [(token_name(codec, token), probability) for token, probability in score.alternatives],
        }
        for score in scores
    ]


def evaluate(options: EvaluateOptions, terminal: Terminal) -> Result:
    """Loss and bits per byte of runs, and their scores on tasks."""
    machine, results = chosen_machine(options.machine), []
    confusions: dict[str, Confusion] = {}
    command: tuple[str, ...] = ()
    for path in options.runs:
        with terminal.doing(f"loading {path}"):
            trained = load(path, machine.device, **options.own.parts)
        trained.model.use_kernel(options.machine.kernel)
        with terminal.doing("reading the data"):
            validation, recipe = records_of(trained, options.path, path), trained.recipe
        command = asking(path, recipe)
        with terminal.doing(f"evaluating {path}"):
            score = evaluate_records(trained.model, recipe, trained.codec, validation, machine, limit=options.limit)
        if not math.isfinite(score.loss):
            raise ValueError(f"{path}: the loss is {score.loss}; the model's weights are damaged or have diverged")
        results.append({"run": path, "step": trained.step, **asdict(score)})
        if not options.limit and (judged := confusion(trained, validation)) is not None:
            confusions[path] = judged
            results[-1]["confusion"] = judged.to_json()
        if "translation" in options.tasks:
            results[-1]["translation"] = _translate(options, trained, validation, path, terminal)
    columns = {
        "loss": [f"{r['loss']:.4f}" for r in results],
        "bits/byte": ["–" if r["bits_per_byte"] is None else f"{r['bits_per_byte']:.4f}" for r in results],
        "accuracy": ["–" if r["accuracy"] is None else format(r["accuracy"], ".2%") for r in results],
        "targets": [f"{r['num_targets']:,}" for r in results],
    }
    if "translation" in options.tasks:
        for name in ("tokenised", "plain"):
            columns[f"BLEU {name}"] = [f"{r['translation'][name]['score']:.2f}" for r in results]
    width = max(len(str(r["run"])) for r in results)
    terminal.say(f"{'run':<{width}}" + "".join(f"  {name:>9}" for name in columns))
    for r, *values in zip(results, *columns.values(), strict=True):
        terminal.say(
            f"{r['run']:<{width}}"
            + "".join(f"  {value:>{max(9, len(name))}}" for name, value in zip(columns, values, strict=True))
        )
    for name in ("tokenised", "plain") if "translation" in options.tasks else ():
        terminal.say(f"BLEU {name:<9}  {results[0]['translation'][name]['signature']}")
    for path, judged in confusions.items():
        _say_confusion(path, judged, terminal)
    say_next(terminal, *command)
    return Result({"results": results})


def _say_confusion(path: str, judged: Confusion, terminal: Terminal) -> None:
    """Print how each label is answered, and the most confident mistakes."""
    rows = [[one_line(cell) for cell in row] for row in judged.rows()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aside = f", {judged.num_left_out} records beyond the context left out" if judged.num_left_out else ""
    terminal.say(f"\n{path}: macro F1 {judged.macro_f1:.4f}{aside}")
    for first, *others in rows:
        cells = "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        terminal.say(f"{first:<{widths[0]}}{cells}")
    for mistake in judged.mistakes:
        text = one_line(mistake.text)
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
        terminal.say(f"{mistake.probability:>7.1%}  {mistake.label}, but {mistake.truth}: {shown}")


def _translate(
    options: EvaluateOptions, trained: Trained, records: Sequence[Record], path: str, terminal: Terminal
) -> dict[str, object]:
    """The translation score of a model as JSON values, with the beam search's settings and time."""
    records = records[: options.limit] if options.limit else records
    beam = Beam(size=options.beams, length_penalty=options.length_penalty)
    started = time.perf_counter()
    score, answers = translate(trained, records, beam, options.language)
    seconds = time.perf_counter() - started
    if options.out:
        file = Path(options.out) / f"{Path(path).name}.txt"
        make_folder(file.parent)
        write_text(file, "".join(f"{line}\n" for line in answers))
        terminal.say(f"{len(answers)} answers  {file}")
    return {**asdict(score), "beam": asdict(beam), "seconds": seconds}

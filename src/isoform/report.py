"""The page of a run, finished or not: curves, samples, recipe and costs in one self-contained HTML file.

A page is a list of sections; a section is a function of the state of the run, and None if it has nothing to show.
The table of forms.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoform.codecs.config import Patches
from isoform.config import ConfigError, differences, validated
from isoform.curves import PANELS, Course, Measure, loss_curve, measure_of, panel
from isoform.evaluation.confusion import confusion
from isoform.evaluation.predictions import classify
from isoform.files import write_text
from isoform.markup import Section, escaped, facts, figure, folded, table, to_page, verbatim
from isoform.metrics import read_metrics
from isoform.model.config import ModelConfig, Pooled
from isoform.model.cost import num_active_parameters, num_parameters
from isoform.model.presets import PRESETS
from isoform.objectives.config import Classification, Tagging
from isoform.preparation import load_records
from isoform.reading import read_text
from isoform.recipe import Recipe, builtin_recipes, draft_recipe
from isoform.run import Run, load, read_divergence, read_recipe, read_summary
from isoform.terminal import count, duration
from isoform.training.config import learning_rate_of

FILLED_IN = ("model.vocab_size", "model.stem.num_features", "model.stem.num_ids", "model.head.num_outputs")
"""Fields that a run takes from its data, wherever a recipe leaves them out."""


@dataclass(frozen=True, eq=False)
class RunState:
    """How far a run is, and what it measured: `summary` and `divergence` are None unless it ended so."""

    run: Run
    recipe: Recipe
    course: Course
    summary: dict[str, Any] | None
    divergence: dict[str, Any] | None

    @property
    def measure(self) -> Measure:
        """The loss of its objective."""
        return measure_of(self.recipe.objective)

    @property
    def last(self) -> dict[str, Any]:
        """The last values of all fields of its metrics."""
        return {key: value for line in self.course.lines for key, value in line.items()}

    @property
    def is_text(self) -> bool:
        """Whether its loss has bits per byte, so that it is of a text."""
        return "validation_bits_per_byte" in self.last or "bits_per_byte" in self.last


def state_of_run(folder: str | Path) -> RunState:
    """The state of a run. Raises ValueError for a folder without one, DamagedFile for files that aren't as the run
    wrote them."""
    run = Run(Path(folder))
    if not run.exists:
        raise ValueError(f"{folder} is no run directory (it has no recipe.toml); name the folder of a run")
    recipe = read_recipe(run)
    summary = read_summary(run) if run.is_finished else None
    divergence = read_divergence(run) if summary is None and run.has_diverged else None
    rate = math.nan
    with suppress(ValueError):  # an optimizer of the user's own may have it by default
        rate = learning_rate_of(recipe.training.optimizer)
    course = Course(Path(folder).resolve().name, read_metrics(run.metrics), rate)
    return RunState(run, recipe, course, summary, divergence)


def write_report(run: Run, path: Path | None = None) -> None:
    """Write report.html, or another file, from recipe, metrics, samples and summary, as far as there are any."""
    state = state_of_run(run.folder)
    page = to_page(state.course.name, lead_of(state), (section(state) for section in SECTIONS))
    write_text(path or run.report, page)


def lead_of(state: RunState) -> str:
    """The result of a run in a line."""
    last, training = state.last, state.recipe.training
    parts = [] if state.summary is not None else [f"Not finished: step {last.get('step', 0):,} of {training.steps:,}."]
    if state.divergence is not None:
        parts = [f"Diverged: step {state.divergence['step']:,}, {state.divergence['message'].partition(': ')[2]}."]
    loss = last.get("validation_loss") if state.summary is None else state.summary["validation_loss"]
    if loss is not None:
        parts.append(_result(state, loss))
    return " ".join(parts)


def _result(state: RunState, loss: float) -> str:
    values = state.last if state.summary is None else {**state.last, **state.summary}
    if state.measure.unit == "mean squared error":
        result = f"Validation mean squared error {loss:.4g}"
    else:
        result = f"Validation loss {loss:.4f} {state.measure.unit}"
    per_byte = values.get("bits_per_byte") if state.summary else values.get("validation_bits_per_byte")
    if per_byte is not None:
        result += f", {per_byte:.4f} bits per byte"
    elif values.get("validation_accuracy") is not None:
        result += f", accuracy {values['validation_accuracy']:.2%}"
    expected = _expected(state)
    start = values.get("validation_loss_before")
    before = "" if start is None else f"; {start:.4f} before the first step"
    is_better = values.get("beats_guessing", True)  # which runs of earlier versions don't state
    guess = "" if is_better else f" No better than guessing {values['guess']}: {values['guess_loss']:.4g}."
    return f"{result}{'' if expected is None else f' (expected {expected:.4f})'}{before}.{guess}"


def _expected(state: RunState) -> float | None:
    return state.recipe.expected_loss if state.summary is None else state.summary["expected_loss"]


def _loss(state: RunState) -> Section:
    if not state.course.lines:
        return Section("Loss", "<p>No step is logged yet.</p>")
    return Section("Loss", figure(loss_curve(state.course, state.measure, _expected(state))))


def _panels(state: RunState) -> Section | None:
    if not state.course.lines:
        return None
    figures = "".join(figure(panel([state.course], what)) for what in PANELS)
    return Section("Learning rate, gradients, throughput", f'<div class="panels">{figures}</div>')


def _samples(state: RunState) -> Section | None:
    """The samples by their steps, the last one first and open."""
    text = read_text(state.run.samples) if state.run.samples.exists() else ""
    _, *parts = re.split(r"^== step (\d+)\n", text, flags=re.MULTILINE)
    samples = [(int(step), body.strip()) for step, body in zip(parts[::2], parts[1::2], strict=True)]
    if not samples:
        return None
    (step, last), *earlier = reversed(samples)
    older = "".join(folded(f"after step {step:,}", verbatim(body)) for step, body in earlier)
    return Section("Samples", f"<p>After step {step:,}:</p>{verbatim(last)}{older}")


def _costs(state: RunState) -> Section:
    summary = state.summary
    return Section("Result and cost", facts(_rows_so_far(state) if summary is None else _rows(summary)))


def _rows_so_far(state: RunState) -> list[tuple[str, str, str]]:
    last, model = state.last, state.recipe.model
    rows = [_parameters(num_parameters(model), num_active_parameters(model))]
    if "tokens_seen" in last:
        rows += [("Steps, tokens", f"{last['step']:,}, {count(last['tokens_seen'])}", "so far")]
    if "train_seconds" in last:
        rows += [("Training time", duration(last["train_seconds"]), "measured, so far")]
        rows += [("Throughput", f"{count(last['tokens_per_second'])} tokens/s", "measured, of the last steps logged")]
    return rows


def _recipe(state: RunState) -> Section:
    """The recipe by what it changes of a built-in one, and whole."""
    name, changed = nearest_builtin(state.recipe, state.run.folder.resolve().name.rpartition("-")[0])
    lines = [(path, written(before), written(now)) for path, before, now in changed]
    fields = f"{len(lines)} field{'' if len(lines) == 1 else 's'}"
    words = f"As <code>{name}</code>" + (f", but for {fields}:" if lines else ", unchanged.")
    body = f"<p>{words}</p>{table(('field', name, 'this run'), lines) if lines else ''}"
    return Section("Recipe", body + folded("the whole recipe", verbatim(read_text(state.run.recipe))))


def nearest_builtin(recipe: Recipe, hint: str = "") -> tuple[str, list[tuple[str, object, object]]]:
    """The built-in recipe or preset that a run's recipe differs least from, or that `hint` names, and the fields that
    differ: dotted path, value there, value here."""
    nearest: tuple[str, list[tuple[str, object, object]]] | None = None
    for name in [hint] if hint in builtin_recipes() or hint in PRESETS else [*builtin_recipes(), *PRESETS]:
        try:
            base = validated(draft_recipe(name))
        except ConfigError:  # a preset whose objective can't be trained by the defaults
            continue
        changed = [change for change in differences(base, recipe) if not _is_filled_in(*change)]
        if nearest is None or len(changed) < len(nearest[1]):
            nearest = name, changed
    assert nearest is not None
    return nearest


def _is_filled_in(path: str, before: object, now: object) -> bool:
    is_of_data = path in FILLED_IN or path.startswith("objective.labels")
    return path == "expected_loss" or (is_of_data and before in (None, 0, (), []))


def written(value: object) -> str:
    """A value of a recipe as in its file; none if it is absent."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _next(state: RunState) -> Section:
    """Commands that go on from here."""
    folder, training, summary = shlex.quote(str(state.run.folder)), state.recipe.training, state.summary
    commands = [
        (f"isoform train {folder}", "continue" if state.divergence is None else "go on from its last checkpoint")
    ]
    if summary is not None:
        is_better = summary.get("beats_guessing", True)
        writes = [(f"isoform generate {folder} --prompt '…'", "continue a text")] if state.is_text and is_better else []
        if isinstance(state.recipe.model, ModelConfig) and isinstance(state.recipe.model.head, Pooled):
            writes = [(f"isoform predict {folder} --path FILE", "ask it")]
        commands = [
            *writes,
            (f"isoform evaluate {folder} --path FILE", "score it on other data"),
            (f"isoform train {folder} --training.steps {2 * training.steps}", "train it further"),
            (f"isoform inspect {folder} --attention attention.png", "see what attends to what"),
        ]
        if summary.get("exportable"):
            commands.append((f"isoform convert {folder} FOLDER", f"for transformers: {summary['exportable']}"))
    commands.append((f"isoform report {folder} OTHER", "compare it with another run"))
    width = max(len(command) for command, _ in commands)
    return Section("How to go on", verbatim("\n".join(f"{command:<{width}}  # {what}" for command, what in commands)))


def _accuracy(accuracy: float | None) -> list[tuple[str, str, str]]:
    return (
        []
        if accuracy is None
        else [("Accuracy", f"{accuracy:.2%}", "of the most probable label, on the validation split")]
    )


def _rows(summary: dict) -> list[tuple[str, str, str]]:
    machine, data = summary["machine"], summary["data"]
    return [
        _parameters(summary["num_parameters"], summary["num_active_parameters"]),
        *_frozen(summary),
        ("Steps, tokens", f"{summary['steps']:,}, {count(summary['tokens'])}", ""),
        ("Training compute", f"{count(summary['flops'])}FLOP", "counted: 3 x forward, attention in full"),
        (
            "Training time",
            duration(summary["train_seconds"]),
            "measured, without validation, samples, saving",
        ),
        ("Whole process", duration(summary["wall_seconds"]), "measured"),
        ("Throughput", f"{count(summary['tokens_per_second'])} tokens/s", "measured"),
        (
            "Utilisation",
            f"{summary['utilisation']:.1%}",
            f"of {count(summary['peak_flops'])}FLOP/s measured here",
        ),
        ("Peak memory", f"{count(summary['peak_memory_bytes'])}B", "measured"),
        *_energy(summary["energy_joules"]),
        *_accuracy(summary["validation_accuracy"]),
        *([("Loss of guessing", f"{summary['guess_loss']:.4f}", summary["guess"])] if "guess" in summary else []),
        *((("Data", f"{d['title']}, {count(d['num_bytes'])}B", f"SHA-256 {d['sha256'][:16]}…")) for d in data),
        (
            "Machine",
            machine["device"],
            f"{_threads(machine['threads'])}, {machine['instructions']}, {machine['dtype']}",
        ),
        ("Versions", f"torch {machine['torch']}", f"Python {machine['python']}, {machine['system']}"),
    ]


def _parameters(number: int, active: int) -> tuple[str, str, str]:
    return "Parameters", f"{number:,}", "counted" if active == number else f"{active:,} active, counted"


def _threads(number: int) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"


def _frozen(summary: dict) -> list[tuple[str, str, str]]:
    """What was trained, where that isn't all."""
    if not summary.get("num_frozen_parameters"):
        return []
    return [("Trained", f"{summary['num_trained_parameters']:,}", f"{summary['num_frozen_parameters']:,} frozen")]


def _energy(joules: float | None) -> list[tuple[str, str, str]]:
    return [] if joules is None else [("Energy", f"{count(joules)}J", "measured, of the whole machine")]


def _predictions(state: RunState) -> Section | None:
    """Ten validation images with the predicted labels, if the model classifies images."""
    recipe, run = state.recipe, state.run
    if state.summary is None or not isinstance(recipe.codec, Patches):
        return None
    if not isinstance(recipe.objective, Classification):
        return None
    title = "Predictions on validation images"
    try:
        records, trained = load_records(recipe.data)[1].validation[:10], load(run.folder)
    except (ValueError, OSError) as error:  # the data may have moved since, or the model have parts of the user's own
        return Section(title, f"<p>Not shown: {escaped(str(error))}.</p>")
    probabilities, labels = classify(trained, records).max(-1)
    cells = ""
    for record, label, probability in zip(records, labels.tolist(), probabilities.tolist(), strict=True):
        truth = "" if label == record["label"] else f", true label {escaped(str(record['label']))}"
        cells += f"<td>{picture(record['image'])}<br>{label}{truth} <small>{probability:.0%}</small></td>"
    return Section(title, f'<div class="wide"><table><tr>{cells}</tr></table></div>')


def _confusion(state: RunState) -> Section | None:
    """How the labels of the validation split are answered, and the most confident mistakes, of texts."""
    recipe = state.recipe
    if state.summary is None or not isinstance(recipe.objective, Classification | Tagging):
        return None
    title = "Labels"
    try:
        judged = confusion(load(state.run.folder), load_records(recipe.data)[1].validation)
    except (ValueError, OSError) as error:  # the data may have moved since
        return Section(title, f"<p>Not shown: {escaped(str(error))}.</p>")
    if judged is None:
        return None
    head, *lines = judged.rows()
    body = f"<p>Macro F1 {judged.macro_f1:.4f}, on the validation split.</p>{table(head, lines)}"
    wrong = [(f"{m.probability:.1%}", m.label, m.truth, m.text[:400]) for m in judged.mistakes if m.text]
    if wrong:
        body += "<p>The most confident mistakes:</p>" + table(("probability", "answer", "true label", "text"), wrong)
    return Section(title, body)


def picture(image: np.ndarray) -> str:
    """An image (height, width) or (height, width, channels) as SVG, the largest value black; channels are averaged."""
    gray = image if image.ndim == 2 else image.mean(-1)
    shades = np.round(255 * (1 - gray / max(gray.max(), 1e-9))).astype(int)
    squares = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="rgb({s},{s},{s})"/>' for (y, x), s in np.ndenumerate(shades)
    )
    height, width = gray.shape
    return f'<svg viewBox="0 0 {width} {height}" width="56" shape-rendering="crispEdges">{squares}</svg>'


SECTIONS: tuple[Callable[[RunState], Section | None], ...] = (
    _loss,
    _panels,
    _predictions,
    _confusion,
    _samples,
    _costs,
    _next,
    _recipe,
)
"""The page, top to bottom."""


def forms_table() -> str:
    """The presets as a Markdown table, in the order of their years: the table of docs/forms.md."""
    lines = [
        "| preset | year | from | form | what it changed | parameters | published |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, preset in sorted(PRESETS.items(), key=lambda item: item[1].year):
        model = preset.model
        form = model.form.replace("_", "–")
        total, active = num_parameters(model), num_active_parameters(model)
        counted = "by the codec" if not model.vocab_size else f"{total:,}"
        counted += f", {active:,} active" if active != total else ""
        lines.append(
            f"| `{name}` | {preset.year} | {preset.paper} | {form} | {preset.changed} | {counted} | "
            f"{preset.parameters or '–'} |"
        )
    return "\n".join(lines) + "\n"

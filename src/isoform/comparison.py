"""Several runs on one page: their curves one over the other, their results, and the fields in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isoform.config import differences
from isoform.curves import BITS, PANELS, Measure, loss_curves, panel
from isoform.figures import COLORS
from isoform.files import write_text
from isoform.manifest import read_manifest
from isoform.markup import Section, escaped, figure, table, to_page
from isoform.model.cost import num_parameters
from isoform.report import RunState, lead_of, state_of_run, written
from isoform.terminal import count, duration


def write_comparison(folders: Sequence[str], path: Path) -> None:
    """Write the page of several runs. Raises ValueError for more than there are colours, and for another folder."""
    if len(folders) > len(COLORS):
        raise ValueError(f"{len(folders)} runs can't be told apart in one figure; name at most {len(COLORS)}")
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    runs = [state_of_run(folder) for folder in folders]
    names = [state.course.name for state in runs]
    if len({*names}) < len(names):
        runs = [replace(state, course=replace(state.course, name=str(state.run.folder))) for state in runs]
    write_text(path, to_page(" · ".join(k.course.name for k in runs), _lead(runs), _sections(runs)))


def _lead(runs: Sequence[RunState]) -> str:
    losses = {state.course.name: state.last.get(_measure(runs).validation) for state in runs}
    having = {name: loss for name, loss in losses.items() if loss is not None}
    if not having or (len({state.measure for state in runs}) > 1 and _measure(runs) != BITS):
        return "; ".join(f"{state.course.name}: {lead_of(state)}" for state in runs)
    best = min(having, key=lambda name: having[name])
    return f"Lowest validation loss: {best}, {having[best]:.4f} {_measure(runs).unit}."


def _fingerprints(runs: Sequence[RunState], what: str) -> set[str]:
    """Those of data or codec in the runs' manifests; of earlier versions none."""
    manifests = [read_manifest(state.run.folder) for state in runs]
    return {m.fingerprints[what] for m in manifests if m is not None and what in m.fingerprints}


def _measure(runs: Sequence[RunState]) -> Measure:
    """Bits per byte for runs of several codecs, if all have them: losses of other tokens can't be compared."""
    if len(_fingerprints(runs, "codec")) > 1 and all("validation_bits_per_byte" in state.last for state in runs):
        return BITS
    return runs[0].measure


def _sections(runs: Sequence[RunState]) -> list[Section]:
    names = "".join(
        f'<span class="name" style="border-color: var(--series-{i})">{escaped(state.course.name)}</span> '
        for i, state in enumerate(runs)
    )
    courses = [state.course for state in runs]
    doubts = "".join(f"<p>{escaped(doubt)}</p>" for doubt in _doubts(runs))
    curves = figure(loss_curves(courses, _measure(runs)), "Thin: training, smoothed. With dots: validation.")
    figures = "".join(figure(panel(courses, what)) for what in PANELS)
    head = ("", *(state.course.name for state in runs))
    fields = _differing(runs)
    return [
        Section("Loss", f"{doubts}{curves}"),
        Section("Learning rate, gradients, throughput", f'<p>{names}</p><div class="panels">{figures}</div>'),
        Section("Results and costs", table(head, _results(runs))),
        Section("Recipes", table(("field", *head[1:]), fields) if fields else "<p>The recipes are the same.</p>"),
    ]


def _doubts(runs: Sequence[RunState]) -> list[str]:
    """Why the losses may not be comparable."""
    doubts = []
    if len({state.measure for state in runs}) > 1:
        doubts.append("The runs have different objectives: their losses can't be compared.")
    if len(_fingerprints(runs, "data")) > 1:
        doubts.append("The runs have different data: their validation losses are of different texts or records.")
    if len(_fingerprints(runs, "codec")) > 1 and _measure(runs) != BITS:
        doubts.append("The runs have different codecs: their losses are of different tokens.")
    return doubts


def _results(runs: Sequence[RunState]) -> list[Sequence[str]]:
    """What each run reached, a line for each number that one of them has."""
    lines: list[Sequence[str]] = []
    for name, shown in (
        ("state", _state),
        ("validation loss", lambda state: _number(state.last.get("validation_loss"), ".4f")),
        ("bits per byte", lambda state: _number(state.last.get("validation_bits_per_byte"), ".4f")),
        ("accuracy", lambda state: _number(state.last.get("validation_accuracy"), ".2%")),
        ("parameters", lambda state: count(num_parameters(state.recipe.model))),
        ("tokens", lambda state: count(state.last.get("tokens_seen", 0))),
        ("training compute", lambda state: "–" if state.summary is None else f"{count(state.summary['flops'])}FLOP"),
        ("training time", lambda state: duration(state.last.get("train_seconds", 0))),
        ("tokens per second", lambda state: _throughput(state)),
    ):
        cells = tuple(shown(state) for state in runs)
        if set(cells) != {"–"}:
            lines.append((name, *cells))
    return lines


def _state(state: RunState) -> str:
    if state.divergence is not None:
        return f"diverged at step {state.divergence['step']:,}"
    step = state.last.get("step", 0)
    return f"finished, {step:,} steps" if state.summary is not None else f"step {step:,}, not finished"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _throughput(state: RunState) -> str:
    last = state.last
    seconds = last.get("train_seconds", 0)
    return f"{count(last['tokens_seen'] / seconds)}" if seconds else "–"


def _differing(runs: Sequence[RunState]) -> list[Sequence[str]]:
    """The fields in which the recipes differ, with the value in each."""
    first, *others = (state.recipe for state in runs)
    changes = [{path: (before, now) for path, before, now in differences(first, other)} for other in others]
    lines: list[Sequence[str]] = []
    for path in dict.fromkeys(path for change in changes for path in change):
        before = next(change[path][0] for change in changes if path in change)
        values = [before, *(change[path][1] if path in change else before for change in changes)]
        lines.append((path, *map(written, values)))
    return lines

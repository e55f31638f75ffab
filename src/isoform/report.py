"""The report of a run, with curves, samples, recipe and costs, as a self-contained HTML file; the table of forms."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from isoform.codecs.config import Patches
from isoform.config import from_dict, load_toml
from isoform.data.sources import load_source
from isoform.experiment import classify
from isoform.figures import new_figure, to_svg
from isoform.files import write_text
from isoform.model.cost import num_active_parameters, num_parameters
from isoform.model.presets import PRESETS
from isoform.objectives.config import Classification
from isoform.reading import read_text
from isoform.recipe import Recipe
from isoform.run import Run, load, read_summary
from isoform.terminal import count, duration
from isoform.training.metrics import read_metrics

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #ffffff; --faint: #5b6675; --line: #d9dee5; --box: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --paper: #14181e; --faint: #9aa5b4; --line: #323a45; --box: #1c222a; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 54rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--faint); margin-top: .3rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; color: var(--faint); width: 34%; }
td small { color: var(--faint); }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1rem;
      overflow-x: auto; white-space: pre-wrap; font: 13.5px/1.5 ui-monospace, monospace; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
figure svg { width: 100%; height: auto; display: block; }
summary { cursor: pointer; color: var(--faint); }
"""


def write_report(run: Run) -> None:
    """Write report.html from recipe, metrics, samples and summary. The run must be finished."""
    summary = read_summary(run)
    samples = read_text(run.samples)
    recipe = read_text(run.recipe)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(run.folder.name)} · isoform</title><style>{STYLE}</style></head><body>
<h1>{html.escape(run.folder.name)}</h1>
<p class="lead">{html.escape(_lead(summary))}</p>
<h2>Loss</h2><figure>{loss_curves(read_metrics(run.metrics))}</figure>
<h2>Result and cost</h2>{_table(_rows(summary))}
{_predictions(run)}{_samples(samples) if samples else ""}
<h2>Recipe, resolved</h2><pre>{html.escape(recipe)}</pre>
</body></html>
"""
    write_text(run.report, page)


def loss_curves(metrics: Sequence[dict]) -> str:
    """Training and validation loss against tokens seen, as SVG."""
    training = [(line["tokens_seen"], line["loss"]) for line in metrics if "loss" in line]
    tokens = {0: 0, **{line["step"]: line["tokens_seen"] for line in metrics if "tokens_seen" in line}}
    validation = [
        (tokens[m["step"]], m["validation_loss"]) for m in metrics if "validation_loss" in m and m["step"] in tokens
    ]
    figure, axes = new_figure(8, 3.6)
    axes.plot(*zip(*training, strict=True), color="#9db2c9", linewidth=1, label="training")
    axes.plot(*zip(*validation, strict=True), color="#b3392f", marker="o", markersize=4, label="validation")
    last_tokens, last_loss = validation[-1]
    axes.annotate(f"{last_loss:.3f}", (last_tokens, last_loss), xytext=(-4, 8), textcoords="offset points", ha="right")
    floor = min(loss for _, loss in training + validation)
    start = training[min(len(training) - 1, max(1, len(training) // 20))][1]
    axes.set_ylim(floor * 0.95, max(start, validation[0][1]) * 1.05)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss per target")
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.legend(frameon=False)
    return to_svg(figure)


def _lead(summary: dict) -> str:
    loss, per_byte = summary["validation_loss"], summary["bits_per_byte"]
    if summary["validation_accuracy"] is None:
        result = f"Validation mean squared error {loss:.4g}"
    elif per_byte is None:
        result = f"Validation loss {loss:.4f} nats per label, accuracy {summary['validation_accuracy']:.2%}"
    else:
        result = f"Validation loss {loss:.4f} nats per token, {per_byte:.4f} bits per byte"
    expected = summary["expected_loss"]
    start = summary.get("validation_loss_before")
    before = "" if start is None else f"; {start:.4f} before the first step"
    is_better = summary.get("beats_guessing", True)  # which runs of earlier versions don't state
    guess = "" if is_better else f" No better than guessing {summary['guess']}: {summary['guess_loss']:.4g}."
    return f"{result}{'' if expected is None else f' (expected {expected:.4f})'}{before}.{guess}"


def _accuracy(accuracy: float | None) -> list[tuple[str, str, str]]:
    return (
        []
        if accuracy is None
        else [("Accuracy", f"{accuracy:.2%}", "of the most probable label, on the validation split")]
    )


def _rows(summary: dict) -> list[tuple[str, str, str]]:
    machine, data = summary["machine"], summary["data"]
    return [
        (
            "Parameters",
            f"{summary['num_parameters']:,}",
            f"{summary['num_active_parameters']:,} active, counted",
        ),
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
            f"{machine['threads']} threads, {machine['instructions']}, {machine['dtype']}",
        ),
        ("Versions", f"torch {machine['torch']}", f"Python {machine['python']}, {machine['system']}"),
    ]


def _frozen(summary: dict) -> list[tuple[str, str, str]]:
    """What was trained, where that isn't all."""
    if not summary.get("num_frozen_parameters"):
        return []
    return [("Trained", f"{summary['num_trained_parameters']:,}", f"{summary['num_frozen_parameters']:,} frozen")]


def _energy(joules: float | None) -> list[tuple[str, str, str]]:
    return [] if joules is None else [("Energy", f"{count(joules)}J", "measured, of the whole machine")]


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(what)}</th><td>{html.escape(value)} <small>{html.escape(note)}</small></td></tr>"
        for what, value, note in rows
    )
    return f"<table>{cells}</table>"


def _samples(text: str) -> str:
    parts = [part.split("\n", 1) for part in text.split("== step ")[1:]]
    *earlier, (step, last) = parts
    older = "".join(f"<p>step {html.escape(s)}</p><pre>{html.escape(body.strip())}</pre>" for s, body in earlier)
    folded = f"<details><summary>Earlier samples</summary>{older}</details>" if earlier else ""
    return f"<h2>Samples</h2><p>step {html.escape(step)}</p><pre>{html.escape(last.strip())}</pre>{folded}"


def _predictions(run: Run) -> str:
    """Ten validation images with the predicted labels, if the model classifies images."""
    recipe = from_dict(Recipe, load_toml(run.recipe))
    if not isinstance(recipe.codec, Patches) or not isinstance(recipe.objective, Classification):
        return ""
    records = load_source(recipe.data.path, recipe.data.validation_path, recipe.data.keys).validation[:10]
    probabilities, labels = classify(load(run.folder), records).max(-1)
    cells = ""
    for record, label, probability in zip(records, labels.tolist(), probabilities.tolist(), strict=True):
        truth = "" if label == record["label"] else f", true label {record['label']}"
        cells += f"<td>{picture(record['image'])}<br>{label}{truth} <small>{probability:.0%}</small></td>"
    return f"<h2>Predictions on validation images</h2><table><tr>{cells}</tr></table>"


def picture(image: np.ndarray) -> str:
    """An image (height, width) or (height, width, channels) as SVG, the largest value black; channels are averaged."""
    gray = image if image.ndim == 2 else image.mean(-1)
    shades = np.round(255 * (1 - gray / max(gray.max(), 1e-9))).astype(int)
    squares = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="rgb({s},{s},{s})"/>' for (y, x), s in np.ndenumerate(shades)
    )
    height, width = gray.shape
    return f'<svg viewBox="0 0 {width} {height}" width="56" shape-rendering="crispEdges">{squares}</svg>'


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

"""Looking at what there is: training rows, trained runs, their attention, their pages."""

from __future__ import annotations

import shutil
from pathlib import Path

from isoform.batch import Batch
from isoform.checkpoint.store import newest_step
from isoform.codecs.codec import as_text, have_same_vocabulary
from isoform.commands.command import Result, asking, say_next
from isoform.comparison import write_comparison
from isoform.config import kind_of
from isoform.files import write_bytes
from isoform.generation.decode import build_prompt
from isoform.inspection.attention import draw_attention, maps_of, row_of
from isoform.inspection.curves import course_lines, weight_lines, weight_sizes
from isoform.inspection.rows import read_rows, to_lines
from isoform.mask import Full
from isoform.options import InspectOptions, ReportOptions
from isoform.preparation import Prepared, prepare
from isoform.recipe import Recipe, builtin_recipes, is_model_path
from isoform.report import state_of_run, write_report
from isoform.run import Run, Trained, load_beside
from isoform.terminal import Terminal


def report(options: ReportOptions, terminal: Terminal) -> Result:
    """Write the page of a run, finished or not, or one page of several."""
    if options.out and Path(options.out).is_dir():
        raise ValueError(f"{options.out} is a folder; name a file")
    if len(options.runs) == 1:
        path = Path(options.out) if options.out else Run(Path(options.runs[0])).report
        write_report(Run(Path(options.runs[0])), path)
    else:
        path = Path(options.out or "comparison.html")
        write_comparison(options.runs, path)
    terminal.say(f"report         {path}")
    return Result({"runs": [*options.runs], "report": str(path)})


def inspect(options: InspectOptions, terminal: Terminal, name: str) -> Result:
    """Print how a run went, and training rows as the model reads them; draw its attention."""
    has_model = name not in builtin_recipes() and is_model_path(name)
    if options.attention and not has_model:
        raise ValueError(
            f"--attention draws what a trained model does, and {name} is none; name a run or another model"
        )
    if options.prompt and not options.attention:
        raise ValueError("--prompt is the text whose attention is drawn; give --attention FILE.png, too")
    width = shutil.get_terminal_size((100, 24)).columns
    values: dict = {}
    with terminal.doing(f"loading {name}"):
        trained = load_beside(options.recipe, name) if options.attention else None
    if has_model and Run(Path(name)).exists:
        values |= _print_course(options.recipe, name, trained, terminal, width)
    prepared = None
    if not options.prompt:
        prepared = prepare(options.recipe, terminal=terminal)
        values["rows"] = _print_rows(options, prepared, terminal, name, width)
    if trained is not None:
        _draw(options, trained, prepared, terminal)
        values["attention"] = options.attention
    if name:
        say_next(terminal, *(asking(name, options.recipe) if has_model else ("train", name)))
    return Result(values)


def _print_course(recipe: Recipe, name: str, trained: Trained | None, terminal: Terminal, width: int) -> dict:
    """Loss, gradient norms and sizes of weights of a run, in a few lines."""
    state = state_of_run(name)
    for line in course_lines(state.course, state.measure, width):
        terminal.say(line)
    if not (state.run.is_finished or newest_step(state.run.checkpoints)):
        return {}
    sizes = weight_sizes((trained or load_beside(recipe, name)).model)
    for line in weight_lines(sizes, width):
        terminal.say(line)
    terminal.say()
    return {"weights": sizes}


def _print_rows(options: InspectOptions, prepared: Prepared, terminal: Terminal, name: str, width: int) -> list[dict]:
    rows = list(read_rows(prepared, options.examples, options.first))
    terminal.say(
        f"{name}: {kind_of(type(prepared.recipe.objective))}, {prepared.loader.rows_per_epoch:,} rows of "
        f"{prepared.recipe.row_length} tokens per epoch"
    )
    for index, row in enumerate(rows, options.first):
        terminal.say(f"\nrow {index}: ", end="")
        for line in to_lines(row, width=width, columns=options.columns):
            terminal.draw(line)
    return [row.to_json() for row in rows]


def _draw(options: InspectOptions, trained: Trained, prepared: Prepared | None, terminal: Terminal) -> None:
    """Save a figure of the attention in the first row, or in a text."""
    if Path(options.attention).is_dir():
        raise ValueError(f"{options.attention} is a folder; name a file")
    if prepared is None:
        batch, view = _row_of_prompt(options.prompt, trained), trained.view
    else:
        if not have_same_vocabulary(prepared.codec, trained.codec):
            raise ValueError(
                "the data give another vocabulary than the run's; restore them, or name a text with --prompt"
            )
        batch, view = prepared.loader.rows(options.first, 1), prepared.view
    outputs = [] if prepared is None else _targets(prepared, options.first)
    maps = maps_of(trained.transformer, batch, view, trained.codec, outputs=outputs)
    write_bytes(Path(options.attention), draw_attention(maps))
    terminal.say(f"attention      {options.attention}")


def _row_of_prompt(text: str, trained: Trained) -> Batch:
    """The row in which a model reads a text: an encoder whole, a decoder as what it continues."""
    codec, view = as_text(trained.codec), trained.view
    if trained.transformer.decoder is None or view.inputs_mask == Full():
        return row_of(codec.encode_whole(text))
    prompt = build_prompt(codec, text, answers_source=trained.answers_source, view=view)
    return row_of(prompt.ids, prompt.prefix, prompt.source)


def _targets(prepared: Prepared, number: int) -> list[str]:
    """What each token of a row is to predict."""
    (row,) = read_rows(prepared, 1, number)
    return ["·" if target is None else target for target in row.targets]

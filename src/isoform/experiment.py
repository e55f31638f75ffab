"""From a recipe to a finished run: prepare data and model, train, save, resume, summarize.

This module connects the packages; the loop itself is in `training/trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from isoform import run as runs
from isoform.checkpoint.store import (
    lock_folder,
)
from isoform.codecs.codec import as_text
from isoform.codecs.origin import TEMPLATES
from isoform.codecs.registry import load_codec
from isoform.config import ConfigError
from isoform.files import StorageError, make_folder, refuse_links
from isoform.generation.config import Sampling
from isoform.generation.decode import build_prompt
from isoform.generation.streaming import Generation
from isoform.generation.streaming import generate as generate_texts
from isoform.journal import Journal
from isoform.machine import (
    Machine,
    choose_machine,
    device_memory,
    in_words,
)
from isoform.preparation import Prepared, global_batch, prepare
from isoform.recipe import Recipe
from isoform.run import Run, Trained
from isoform.session import Session, build_model
from isoform.terminal import Terminal
from isoform.training.memory import check_memory
from isoform.training.optimizer import build_optimizers
from isoform.training.trainer import Progress, train_loop


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    name: str = "run",
    machine: Machine | None = None,
    compile: bool | None = None,
    kernel: str = "auto",
    terminal: Terminal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
) -> Run:
    """Train a recipe in a run directory (default: runs/NAME-N, new), or continue an existing run.

    With the same recipe the run continues, with more training.steps it is extended, a finished run is left as it is;
    what else may change is in `recipe.CHANGEABLE`, any other difference raises ConfigError listing the fields.
    overwrite: train from the start in a folder that holds a run, whose files are removed after the first checkpoint.
    should_stop is called after each step, and between the batches of validation and the tokens of a sample; the run is
    saved as soon as it returns True.
    """
    terminal = Terminal(quiet=True) if terminal is None else terminal
    machine = choose_machine() if machine is None else machine
    terminal.say(f"machine        {in_words(machine)}")
    check_memory(recipe.model, recipe.training, device_memory(machine))
    run = runs.next_run(name) if out is None else Run(Path(out))
    try:
        make_folder(run.folder)
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the folder {run.folder} can't be created: {error.strerror}; choose another --out"
        ) from error
    with lock_folder(run.folder):
        refuse_links(run.folder, run.model, run.model / TEMPLATES)
        journal = Journal(run, terminal, overwrite=overwrite)
        prepared = prepare(recipe, load_codec(run.model) if journal.continues else None, terminal)
        changes = journal.changes(prepared.recipe) if journal.continues else {}
        if journal.continues and journal.is_complete(changes):
            terminal.say(f"{run.folder} is finished: {prepared.recipe.training.steps} steps")
            return run
        for line in prepared.describe():
            terminal.say(line)
        session = Session(journal, prepared, machine, compile, kernel, terminal, should_stop)
        session.begin(changes)
        session.train()
    return run


def generate(trained: Trained, prompt: str, sampling: Sampling | None = None) -> Iterator[str]:
    """Generate one sample as a stream of text: the continuation of a prompt, or the target for a source.

    `generation.streaming.generate` has further options.
    """
    model, view, codec = trained.transformer, trained.view, as_text(trained.codec)
    start = build_prompt(codec, prompt, answers_source=trained.answers_source, view=view)
    sampling = replace(sampling or Sampling(), num_samples=1)
    for event in generate_texts(model, codec, start, sampling, view.inputs_mask):
        if not isinstance(event, Generation):
            yield event[1]


def measure_speed(prepared: Prepared, machine: Machine, *, steps: int = 3) -> float:
    """Training FLOPs per second of a prepared recipe on this machine; nothing is saved.

    The best of `steps` steps after one to warm up, or their mean if steps are of several shapes.
    """
    recipe = prepared.recipe
    model = build_model(recipe, machine)
    progress, seconds = Progress(), []
    short = replace(recipe.training, steps=steps + 1, average_checkpoints=1, log_every=1)
    short = replace(short, validate_every=0, sample_every=0, checkpoint_every=0)
    train_loop(
        model,
        build_optimizers(recipe.training.optimizer, model, machine.dtype),
        short,
        batches=lambda step: global_batch(prepared, step),
        loss=partial(prepared.task.loss, model),
        machine=machine,
        seed=recipe.seed,
        progress=progress,
        log=lambda line: seconds.append(progress.train_seconds) if "loss" in line else None,
        validate=dict,
        sample=lambda: None,
        save=lambda: None,
        should_stop=lambda: False,
    )
    durations = [after - before for before, after in pairwise(seconds)]
    return prepared.flops_per_step / (min(durations) if len(prepared.loader.shapes) == 1 else fmean(durations))

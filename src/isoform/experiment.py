"""From a recipe to a finished run, and what is done with one from Python: generate, evaluate, classify.

This module connects the packages; the loop itself is in `training/trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, overload

from isoform import recipe as recipes
from isoform import run as runs
from isoform.checkpoint.store import (
    lock_folder,
)
from isoform.codecs.codec import as_text
from isoform.codecs.origin import TEMPLATES
from isoform.codecs.registry import load_codec
from isoform.config import ConfigError, to_dict, unknown_name
from isoform.data.records import Record
from isoform.evaluation.evaluate import Score, evaluate_records
from isoform.evaluation.predictions import answers
from isoform.files import StorageError, make_folder, refuse_links
from isoform.generation.answers import answer
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
from isoform.metrics import LogFunction
from isoform.model.config import Pooled
from isoform.outside import External, NotNamed, external, unnamed
from isoform.preparation import Prepared, global_batch, load_records, prepare
from isoform.recipe import Recipe
from isoform.run import Run, Trained, recipe_at
from isoform.session import Session, build_model
from isoform.terminal import Terminal
from isoform.trackers import check_trackers, tracking
from isoform.training.config import Tracker
from isoform.training.memory import check_memory
from isoform.training.optimizer import build_optimizers
from isoform.training.trainer import Progress, train_loop


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None, *, start: str | Path = "") -> Recipe:
    """The recipe of a name: a built-in one, a TOML file, a run, a Hugging Face folder or GGUF file, or a preset.

    changes: by dotted path, values, configs or plain data: {"training.steps": 20, "training.optimizer": Muon()}.
    start: the model that training starts with. Raises ConfigError for what doesn't exist, or doesn't fit.
    """
    return recipes.load_recipe(str(name), changes, start=str(start), recipe_at=recipe_at)


def train(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    name: str = "",
    codec: Any = None,
    view: Any = None,
    log: LogFunction | Tracker | Sequence[LogFunction | Tracker] = (),
    quiet: bool = False,
    machine: Machine | None = None,
    compile: bool | None = None,
    kernel: str = "auto",
    terminal: Terminal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
) -> Run:
    """Train a recipe, or that of a name, in a run directory (default: the run that is named, or runs/NAME-N, new); or
    continue an existing run.

    With the same recipe the run continues, with more training.steps it is extended, a finished run is left as it is;
    what else may change is in `recipe.CHANGEABLE`, any other difference raises ConfigError listing the fields.

    codec, view: of the user's own instead of the recipe's, as objects or by MODULE:NAME; a view is a View, or is called
    with the codec.

    log: a function that is called with each line of metrics.jsonl, without its step, and the step, or the name of a
    tracker (tensorboard, wandb, trackio), or several; what it raises ends the training.
    quiet: report no progress on standard output; warnings come all the same. machine, compile, kernel: where and how
    to compute. overwrite: train from the start in a folder that holds a run, whose files are removed after the first
    checkpoint. should_stop is called after each step, and between the batches of validation and the tokens of a sample;
    the run is saved as soon as it returns True.
    """
    if not isinstance(recipe, Recipe):
        path, recipe = str(recipe), load_recipe(recipe)
        name = name or Path(path).stem
        out = path if out is None and path not in recipes.builtin_recipes() and Run(Path(path)).exists else out
    logs = [log] if isinstance(log, str) or callable(log) else [*log]
    check_trackers(trackers := [each for each in logs if isinstance(each, str)])
    recipe = _with_parts(recipe, codec, view)
    terminal = Terminal(quiet=quiet) if terminal is None else terminal
    machine = choose_machine() if machine is None else machine
    terminal.say(f"machine        {in_words(machine)}")
    check_memory(recipe.model, recipe.training, device_memory(machine))
    run = runs.next_run(name or "run") if out is None else Run(Path(out))
    _make_folder(run.folder)
    with lock_folder(run.folder):
        refuse_links(run.folder, run.model, run.model / TEMPLATES)
        journal = Journal(run, terminal, overwrite=overwrite)
        is_own = isinstance(recipe.codec, External)
        prepared = prepare(recipe, load_codec(run.model) if journal.continues and not is_own else None, terminal)
        changes = journal.changes(prepared.recipe) if journal.continues else {}
        if journal.continues and journal.is_complete(changes):
            terminal.say(f"{run.folder} is finished: {prepared.recipe.training.steps} steps")
            return run
        for line in prepared.describe():
            terminal.say(line)
        session = Session(journal, prepared, machine, compile, kernel, terminal, should_stop)
        with tracking(trackers, run.folder, to_dict(prepared.recipe), session.progress.step) as functions:
            session.begin(changes)
            session.train([*functions, *(each for each in logs if callable(each))])
    return run


def _with_parts(recipe: Recipe, codec: Any, view: Any) -> Recipe:
    """The recipe with parts of the user's own. Raises NotNamed for others that it has."""
    recipe = recipe if codec is None else replace(recipe, codec=external(codec))
    recipe = recipe if view is None else replace(recipe, view=external(view))
    if missing := unnamed(recipe):
        raise NotNamed("the recipe", missing)
    return recipe


def _make_folder(folder: Path) -> None:
    """Make a run's folder. Raises ConfigError if it can't be, StorageError for want of room."""
    try:
        make_folder(folder)
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be created: {error.strerror}; choose another --out") from error


Model = Trained | Run | str | Path
"""A trained model, or where one is: what `isoform.load` takes."""


def _loaded(model: Model) -> Trained:
    if isinstance(model, Trained):
        return model
    return runs.load(model.folder if isinstance(model, Run) else model)


@overload
def generate(model: Model, prompt: str, sampling: Sampling | None = None, **settings: Any) -> Iterator[str]: ...


@overload
def generate(model: Model, prompt: Sequence[str], sampling: Sampling | None = None, **settings: Any) -> list[str]: ...


def generate(
    model: Model, prompt: str | Sequence[str], sampling: Sampling | None = None, **settings: Any
) -> Iterator[str] | list[str]:
    """What follows a prompt, or the target of a source: a stream of text, as it is generated. Of several prompts, their
    texts as a list.

    settings: fields of `Sampling`: max_tokens=20, temperature=0.8. Raises ValueError for an unknown setting, a prompt
    that can't be encoded, and a model that doesn't generate. `generation.streaming.generate` has further options.
    """
    known_settings = [field.name for field in fields(Sampling)]
    if unknown := [name for name in settings if name not in known_settings]:
        raise unknown_name("setting", unknown[0], known_settings)
    sampling = replace(sampling or Sampling(), **settings)
    if sampling.num_samples != 1:
        raise ValueError(
            f"num_samples={sampling.num_samples}: one text is generated for each prompt; give a list that repeats it"
        )
    trained = _loaded(model)
    network, view, codec = trained.transformer, trained.view, as_text(trained.codec)
    if network.decoder is None or isinstance(network.config.head, Pooled):
        raise ValueError("this model generates no text: it needs a decoder and a head with a vocabulary")
    if isinstance(prompt, str):
        start = build_prompt(codec, prompt, answers_source=trained.answers_source, view=view)
        events = generate_texts(network, codec, start, sampling, view.inputs_mask)
        return (event[1] for event in events if not isinstance(event, Generation))
    texts = answer(network, codec, prompt, sampling, view=view, answers_source=trained.answers_source)
    return [text for ((text, _),) in texts]


def evaluate(model: Model, path: str | Path = "", *, limit: int = 0, machine: Machine | None = None) -> Score:
    """The score of a model on its validation split, or on all of `path`; limit: on the first rows only.

    Raises ValueError for a model without data, or whose data changed since it was trained.
    """
    trained = _loaded(model)
    machine = choose_machine(trained.model.device.type) if machine is None else machine
    records = records_of(trained, str(path), "this model")
    return evaluate_records(trained.model, trained.recipe, trained.codec, records, machine, limit=limit)


def predict(model: Model, records: Iterable[str | Record]) -> list[dict[str, Any]]:
    """What a model with a pooled head answers to each text or record: `label`, `probability` and `probabilities`,
    `number`, `tags` or `numbers` of words, or a `vector`.

    Raises ValueError for another model, and for a record that doesn't fit.
    """
    given = [{"text": record} if isinstance(record, str) else record for record in records]
    return list(answers(_loaded(model), given))


def records_of(trained: Trained, path: str, name: str) -> Sequence[Record]:
    """The validation records of a trained model, or all of `path`. Raises ValueError, with the model's name, for one
    without data, or whose data changed."""
    data = trained.recipe.data
    if not (path or data.path or data.mixture):
        raise ValueError(f"{name} was trained elsewhere and has no validation text; name one with --path")
    named = replace(data, path=path, validation_path=path, mixture=()) if path else data
    split = load_records(named)[1]
    if not path and trained.data not in ("", split.fingerprint):
        raise ValueError(
            f"the data of the run {name} changed (fingerprint {trained.data}, now {split.fingerprint}), and its "
            f"validation split with it; restore it, or name a text with --path"
        )
    return split.validation


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

"""A recipe in, a finished run out: prepares data and model, trains, keeps, resumes, sums up.

This is where the rooms of the house meet; the loop itself is `training/trainer.py`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from isoform import run as runs
from isoform.batch import Batch, Example, collate
from isoform.checkpoint.huggingface import exportable, state_of
from isoform.checkpoint.store import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_document,
    load_tensors,
    lock_folder,
    purge_checkpoints,
    save_checkpoint,
)
from isoform.codecs.codec import Codec, TextCodec, as_text
from isoform.codecs.config import Characters
from isoform.codecs.text import build_codec, load_codec
from isoform.config import ConfigError, differences, from_dict, load_toml
from isoform.data.config import Data
from isoform.data.labels import label_names, numbered
from isoform.data.loader import Loader, MixtureLoader, build_loader, validation_batches
from isoform.data.sources import Record, Split, first_part, load_source
from isoform.data.tokens import Tokens, load_tokens
from isoform.evaluation.evaluate import Score, answers, apply, evaluate, share_scored
from isoform.generation.config import Sampling
from isoform.generation.decode import build_prompt
from isoform.generation.streaming import Generation
from isoform.generation.streaming import generate as generate_texts
from isoform.machine import Energy, Machine, can_compile, choose_machine, describe, measured_peaks, peak_memory
from isoform.model.adapters import adapt
from isoform.model.baselines import BaselineModel, build_module
from isoform.model.cost import Shape, num_active_parameters, num_parameters, training_flops
from isoform.model.experts import Tally
from isoform.model.growth import take
from isoform.model.transformer import Transformer
from isoform.objectives.config import Classification, Corruption, Distillation, Labelled, Objective, Tagging
from isoform.objectives.corruption import special_pieces
from isoform.objectives.losses import Loss, build_loss, distilled
from isoform.objectives.views import View
from isoform.recipe import Recipe
from isoform.run import Run, Trained
from isoform.terminal import Progress as Bar
from isoform.terminal import Terminal, count
from isoform.training.ledger import JsonLedger, cut_metrics, read_metrics
from isoform.training.optimizer import build_optimizers, freeze, load_optimizer_state, optimizer_state
from isoform.training.trainer import Diverged, GlobalBatch, Progress, train_loop


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a recipe becomes before anything is trained: its vocabulary size is filled in."""

    recipe: Recipe
    split: Split
    codec: Codec
    view: View
    loader: Loader
    bytes_per_piece: float | None
    """Of the training text; None if it isn't text that is predicted."""
    teacher: Transformer | None = None
    """Whom a student listens to."""

    @property
    def is_pair(self) -> bool:
        """Whether a source is answered, rather than a text continued."""
        return self.split.is_pair or isinstance(self.recipe.objective, Corruption)

    @cached_property
    def flops_per_step(self) -> int:
        """Training FLOPs of one global batch; the mean, where batches are of several shapes."""
        loader, model = self.loader, self.recipe.model
        weights = torch.cat([b.loss_weights.flatten() for b in global_batch(self, 0).micro_batches])
        scored = share_scored(model, weights)
        flops = sum(n * training_flops(model, Shape(*shape, scored)) for shape, n in loader.shapes.items())
        return round(self.recipe.rows_per_step * flops / loader.rows_per_epoch)

    @cached_property
    def tokens_per_step(self) -> float:
        """Places of one global batch, empty ones included; likewise."""
        places = sum(n * rows * length for (rows, length, _), n in self.loader.shapes.items())
        return self.recipe.rows_per_step * places / self.loader.rows_per_epoch


def prepare(recipe: Recipe, codec: Codec | None = None) -> Prepared:
    """Load the records, build the codec (or take this one, or that of the model to start from), cut the rows.

    Raises ValueError for data that won't do, and what `isoform.load` raises.
    """
    parts, split = load_records(recipe.data)
    recipe = _with_labels(recipe, split)
    if codec is None:
        codec = runs.load(recipe.start).codec if recipe.start else build_codec(recipe.codec, _texts(recipe, split))
    if isinstance(codec, TextCodec):
        codec = codec.with_special(special_pieces(recipe.objective))
    recipe = runs.filled(recipe, codec)
    view = runs.view_of(recipe, codec)
    tokens = [_tokens(recipe, first_part(part.train, recipe.data.fraction), codec) for part in parts]
    loaders = [
        build_loader(
            recipe.data,
            part,
            view,
            context_length=recipe.model.context_length,
            source_length=recipe.source_length,
            seed=recipe.seed,
            together=recipe.rows_per_step,
        )
        for part in tokens
    ]
    loader = _mixed(recipe, loaders)
    bytes_per_piece = None
    if isinstance(codec, TextCodec) and view.is_text:
        bytes_per_piece = float(codec.piece_bytes[tokens[0].ids[: 2**20]].mean())
    teacher = _teacher(recipe.objective, codec) if isinstance(recipe.objective, Distillation) else None
    return Prepared(recipe, split, codec, view, loader, bytes_per_piece, teacher)


def load_records(data: Data) -> tuple[Sequence[Split], Split]:
    """The records of each source, and of all together."""
    if not data.mixture:
        split = load_source(data.path, data.validation_path)
        return [split], split
    parts = [load_source(part.path, part.validation_path) for part in data.mixture]
    train, validation = ([r for part in parts for r in getattr(part, name)] for name in ("train", "validation"))
    return parts, Split(train, validation, tuple(source for part in parts for source in part.sources))


def _mixed(recipe: Recipe, loaders: Sequence[Loader]) -> Loader:
    if len(loaders) == 1:
        return loaders[0]
    data = recipe.data
    weights = [
        loader.rows_per_epoch ** (1 / data.temperature) if part.weight is None else part.weight
        for loader, part in zip(loaders, data.mixture, strict=True)
    ]
    return MixtureLoader(loaders, weights, recipe.seed)


def _teacher(objective: Distillation, codec: Codec) -> Transformer:
    """The model of a teacher. Raises ValueError for one that speaks in other pieces."""
    if not objective.teacher:
        raise ValueError("distillation needs a teacher; name a run or a folder with objective.teacher")
    teacher = runs.load(objective.teacher)
    if teacher.codec.fingerprint != codec.fingerprint:
        raise ValueError(
            f"the teacher {objective.teacher} has another codec than the student; begin the student with it by "
            f"codec.path, or teach by what it writes"
        )
    return teacher.transformer


def _with_labels(recipe: Recipe, split: Split) -> Recipe:
    """The recipe with the names of its labels, where it leaves them to the records; images come with numbers."""
    objective = recipe.objective
    if not isinstance(objective, Classification | Tagging) or objective.labels or "image" in split.train[0]:
        return recipe
    names = label_names(split.train, _label_key(objective))
    return replace(recipe, objective=replace(objective, labels=names))


def _label_key(objective: Classification | Tagging) -> str:
    return "tags" if isinstance(objective, Tagging) else "label"


def _tokens(recipe: Recipe, records: Sequence[Record], codec: Codec) -> Tokens:
    """The pieces of records, their labels as numbers."""
    objective = recipe.objective
    if isinstance(objective, Classification | Tagging) and objective.labels:
        records = numbered(records, objective.labels, _label_key(objective))
    return load_tokens(records, codec)


def _texts(recipe: Recipe, split: Split) -> list[str]:
    """What a codec learns from: the training records; for an alphabet, which must be complete, all records."""
    records = [*split.train, *split.validation] if isinstance(recipe.codec, Characters) else split.train
    return [text for record in records for text in record.values() if isinstance(text, str)]


def evaluate_held_out(
    model: Transformer | BaselineModel,
    recipe: Recipe,
    codec: Codec,
    records: Sequence[Record],
    machine: Machine,
    *,
    limit: int = 0,
) -> Score:
    """The score on held-out records, whole, or on their first `limit` rows."""
    view = runs.view_of(recipe, codec)
    batches = validation_batches(
        recipe.data,
        _tokens(recipe, records, codec),
        codec,
        view,
        context_length=recipe.model.context_length,
        source_length=recipe.source_length,
        batch_rows=min(recipe.rows_per_pass, limit) if limit else recipe.rows_per_pass,
    )
    rows = iter(batches) if not limit else _first_rows(batches, limit)
    return evaluate(model, view, rows, machine, by_segment=recipe.data.keeps_records and not view.is_whole)


def _first_rows(batches: Iterable[tuple[Batch, int]], limit: int) -> Iterator[tuple[Batch, int]]:
    seen = 0
    for batch, num_bytes in batches:
        yield batch, num_bytes
        seen += len(batch.targets)
        if seen >= limit:
            return


def build_model(recipe: Recipe, machine: Machine) -> Transformer | BaselineModel:
    """The recipe's model, its parameters drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = build_module(recipe.model).to(machine.device)
    if machine.device.type == "cpu":
        model.reduce_products(machine.dtype)
    if recipe.training.adapters is not None:
        adapt(model, recipe.training.adapters)
    freeze(model, recipe.training.frozen)
    return model


def begin_with(model: Transformer | BaselineModel, start: Transformer | BaselineModel) -> None:
    """Give a model the parameters of another. Raises ValueError naming what differs between them."""
    if isinstance(model, Transformer) and isinstance(start, Transformer):
        take(model, start)
    elif differences(model.config, start.config):
        changed = ", ".join(path for path, _, _ in differences(model.config, start.config))
        raise ValueError(f"the model to start from is another one; these fields differ: {changed}")
    else:
        model.load_state_dict(start.state_dict())


def batch_loss(
    model: Transformer | BaselineModel, view: View, objective: Objective, teacher: Transformer | None = None
) -> Callable[[Batch], Loss]:
    """The loss of a batch under an objective, with what routed parts, early exits, heads that look further ahead and a
    teacher add to it."""

    against = build_loss(objective)

    def loss(batch: Batch) -> Loss:
        tally = Tally()
        logits, targets, weights = answers(model, view, batch, tally)
        result = tally.added_to(against(logits, targets, weights))
        if isinstance(objective, Distillation):
            assert teacher is not None
            with torch.no_grad():
                taught = apply(teacher, view, batch)
            if taught.shape[1] != logits.shape[1]:
                taught = taught[batch.loss_weights > 0].unsqueeze(0)
            result = distilled(result, logits, taught[..., : logits.shape[-1]], weights, objective)
        if not isinstance(model, Transformer):
            return result
        stack, at = model.config.stacks[-1], batch.inputs.coordinates
        if tally.exits:
            early = [against(model.logits(x, at), targets, weights).total for x in tally.exits]
            result = _beside(result, "exit_loss", stack.exit_loss * torch.stack(early).mean())
        if tally.ahead:
            further = []
            for distance, x in enumerate(tally.ahead, 1):
                same = at.segment[:, distance:] == at.segment[:, :-distance]
                logits = model.logits(x[:, :-distance])
                further.append(against(logits, targets[:, distance:], weights[:, distance:] * same).total)
            result = _beside(result, "ahead_loss", stack.ahead_loss * torch.stack(further).mean())
        return result

    return loss


def _beside(loss: Loss, name: str, more: Tensor) -> Loss:
    return replace(loss, total=loss.total + more, parts={**loss.parts, name: more.detach()})


def global_batch(prepared: Prepared, step: int) -> GlobalBatch:
    """The rows of a step: a pure function of the recipe and the step, cut into micro-batches."""
    rows, size = prepared.recipe.rows_per_step, prepared.recipe.rows_per_pass
    starts = range(step * rows, (step + 1) * rows, size)
    parts = [prepared.loader.rows(at, min(size, (step + 1) * rows - at)) for at in starts]
    return GlobalBatch(parts, prepared.loader.weight(step * rows, rows))


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
) -> Run:
    """Train a recipe into a run directory (absent: runs/NAME-N, new), or continue the run that is there.

    The same recipe continues, more training.steps extend, a finished run is left as it is; any other
    difference raises ConfigError listing the fields. should_stop is asked after each step.
    """
    terminal = Terminal(quiet=True) if terminal is None else terminal
    machine = choose_machine() if machine is None else machine
    run = runs.next_run(name) if out is None else Run(Path(out))
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {run.folder} can't be made: {error.strerror}; choose another --out") from error
    with lock_folder(run.folder):
        prepared = prepare(recipe, load_codec(run.model) if run.exists else None)
        if run.exists:
            _check_continuation(run, prepared.recipe, terminal)
        elif any(path.name != ".lock" for path in run.folder.iterdir()):
            raise ConfigError(f"{run.folder} holds something else than a run; name a new folder with --out")
        runs.begin(run, prepared.recipe, prepared.codec, is_pair=prepared.is_pair)
        _Session(run, prepared, machine, compile, kernel, terminal).go(should_stop)
    return run


def _check_continuation(run: Run, recipe: Recipe, terminal: Terminal) -> None:
    old = from_dict(Recipe, load_toml(run.recipe))
    changed = differences(old, recipe)
    fields = {path for path, _, _ in changed}
    if fields == {"training.steps"} and recipe.training.steps > old.training.steps:
        terminal.say(f"extending {run.folder} from {old.training.steps} to {recipe.training.steps} steps")
    elif fields:
        lines = "".join(f"\n  {path}: {before} there, {now} asked" for path, before, now in changed)
        raise ConfigError(
            f"{run.folder} holds a run of another recipe; choose another --out, or the same values for:{lines}"
        )


def generate(trained: Trained, prompt: str, sampling: Sampling | None = None) -> Iterator[str]:
    """What a trained model writes after a prompt (or, for a model of pairs, in answer to it), as it comes.

    One sample; `generation.streaming.generate` has the rest.
    """
    model, view, codec = trained.transformer, trained.view, as_text(trained.codec)
    start = build_prompt(codec, prompt, is_pair=trained.is_pair, view=view)
    one = replace(sampling or Sampling(), num_samples=1)
    for event in generate_texts(model, codec, start, one, view.inputs_mask):
        if not isinstance(event, Generation):
            yield event[1]


@torch.inference_mode()
def classify(trained: Trained, records: Sequence[Record]) -> torch.Tensor:
    """How probable each label is of records (n), without the labels they may have: (n, classes).

    Raises ValueError for a model that was trained for something else.
    """
    view = trained.view
    if not view.is_whole:
        raise ValueError("this model was not trained for labels; its recipe needs the objective classification")
    encodings = [trained.codec.encode(record) for record in records]
    rows = [[Example(e, np.zeros(len(e), np.int64), np.zeros(len(e), np.float32))] for e in encodings]
    batch = collate(rows, max(map(len, encodings))).to(trained.model.device)
    return apply(trained.model, view, batch)[:, 0].float().softmax(-1)


def measure_speed(prepared: Prepared, machine: Machine, *, steps: int = 3) -> float:
    """Training FLOPs per second of a prepared recipe here: the best of some steps after one to warm up, or their mean
    where steps are of several shapes.

    Nothing is kept of them.
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
        loss=batch_loss(model, prepared.view, recipe.objective, prepared.teacher),
        machine=machine,
        seed=recipe.seed,
        progress=progress,
        note=lambda line: seconds.append(progress.train_seconds) if "loss" in line else None,
        validate=dict,
        sample=lambda: None,
        save=lambda: None,
        should_stop=lambda: False,
    )
    each = [after - before for before, after in pairwise(seconds)]
    return prepared.flops_per_step / (min(each) if len(prepared.loader.shapes) == 1 else fmean(each))


class _Session:
    """One process's part of a run: from its newest checkpoint to its end, or to the next interruption."""

    def __init__(
        self,
        run: Run,
        prepared: Prepared,
        machine: Machine,
        compile: bool | None,
        kernel: str,
        terminal: Terminal,
    ) -> None:
        self.run, self.prepared, self.machine, self.terminal = run, prepared, machine, terminal
        self.recipe = prepared.recipe
        self.model = build_model(self.recipe, machine)
        self.model.use_kernel(kernel, trains=True)
        teacher = prepared.teacher
        self.teacher = None if teacher is None else teacher.to(machine.device)
        training = self.recipe.training
        self.optimizers = build_optimizers(
            training.optimizer, self.model, machine.dtype, layer_decay=training.layer_decay
        )
        self.progress, self.wall_before, self.joules_before = Progress(), 0.0, 0.0
        self.energy = Energy()
        self.bar, self.validation = Bar(), {}
        self.prompt = self._sample_prompt()
        self.peak_flops = measured_peaks(machine).matmul
        self.fingerprints = {
            "data": ",".join(source.sha256 for source in prepared.split.sources),
            "codec": prepared.codec.fingerprint,
        }
        checkpoint = find_checkpoint(run.checkpoints, on_corrupt=terminal.warn)
        if checkpoint is None and self.recipe.start:
            begin_with(self.model, runs.load(self.recipe.start).model)
        self._restore(checkpoint)
        if compile is None:
            compile = machine.device.type == "cuda"
        if compile and not can_compile(machine):
            terminal.warn("no C++ compiler was found, so the blocks are not compiled")
        elif compile:
            self.model.compile_blocks()

    @property
    def _writes(self) -> bool:
        """Whether the model goes on with a text; encoders, baselines and what answers with labels don't."""
        is_decoder = isinstance(self.model, Transformer) and self.model.decoder is not None
        return is_decoder and not isinstance(self.recipe.objective, Labelled)

    def _sample_prompt(self) -> str:
        """The recipe's prompt, unless this text has other characters than the one the recipe was made for."""
        codec = self.prepared.codec
        if not isinstance(codec, TextCodec) or not self._writes:
            return ""
        try:
            codec.encode_text(self.recipe.sample_prompt)
        except ValueError as error:
            self.terminal.warn(f"samples begin with nothing: {error}")
            return ""
        return self.recipe.sample_prompt

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        samples_length = 0
        if checkpoint is not None:
            for what, now in self.fingerprints.items():
                if (then := checkpoint.manifest.fingerprints.get(what)) != now:
                    raise ConfigError(
                        f"the {what} changed under the run {self.run.folder} (fingerprint {then}, now {now}); "
                        f"bring it back or start a new run"
                    )
            runs.load_state(self.model, load_tensors(checkpoint, "model"))
            load_optimizer_state(self.optimizers, load_tensors(checkpoint, "optimizer"))
            state = load_document(checkpoint, "state")
            self.progress = Progress(**state["progress"])
            self.wall_before, samples_length = state["wall_seconds"], state["samples_length"]
            self.joules_before = state["energy_joules"]
            if 0 < self.progress.step < self.recipe.training.steps:
                self.terminal.say(f"continuing {self.run.folder} from step {self.progress.step}")
        cut_metrics(self.run.metrics, self.progress.step)
        self.run.samples.touch()
        os.truncate(self.run.samples, samples_length)

    @property
    def wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self.terminal.started

    @property
    def energy_joules(self) -> float | None:
        """Of the whole machine since the run began; None where that can't be read, now or before."""
        here = self.energy.joules
        return None if here is None or self.joules_before is None else self.joules_before + here

    def go(self, should_stop: Callable[[], bool]) -> None:
        training, first = self.recipe.training, self.progress.step
        if first >= training.steps and self.run.summary.exists():
            self.terminal.say(f"{self.run.folder} is finished: {first} steps")
            return
        for stale in (self.run.summary, self.run.report, self.run.weights, self.run.diverged):
            stale.unlink(missing_ok=True)  # of the shorter run that this one extends
        ledger = JsonLedger(self.run.metrics)
        try:
            with self.terminal.progress(training.steps, first) as self.bar:
                train_loop(
                    self.model,
                    self.optimizers,
                    training,
                    batches=lambda step: global_batch(self.prepared, step),
                    loss=batch_loss(self.model, self.prepared.view, self.recipe.objective, self.teacher),
                    machine=self.machine,
                    seed=self.recipe.seed,
                    progress=self.progress,
                    note=lambda line: ledger.note(self._watched(line)),
                    validate=self.validate,
                    sample=self.sample,
                    save=self.save,
                    should_stop=should_stop,
                )
        except Diverged as error:
            said = {"step": self.progress.step + 1, "message": str(error)}
            runs.write_text(self.run.diverged, json.dumps(said) + "\n")
            raise
        finally:
            ledger.close()
        if self.progress.step == training.steps:
            self.finish()

    def _watched(self, line: dict) -> dict:
        if "tokens_per_second" in line:
            _ = self.energy_joules  # its counters wrap
            flops = self.prepared.flops_per_step / self.prepared.tokens_per_step
            line["utilisation"] = line["tokens_per_second"] * flops / self.peak_flops
            loss = f"loss {line['loss']:.3f}"
            if self.prepared.bytes_per_piece is not None:
                line["bits_per_byte"] = line["loss"] / math.log(2) / self.prepared.bytes_per_piece
                loss += f"  {line['bits_per_byte']:.3f} bits/byte"
            held = f"  held out {self.validation['validation_loss']:.3f}" if self.validation else ""
            self.bar.update(
                line["step"],
                f"{loss}{held}  {count(line['tokens_per_second'])} tokens/s  {line['utilisation']:.0%} of peak",
            )
        return line

    def validate(self) -> dict[str, float]:
        """Loss over the whole held-out split."""
        records = self.prepared.split.validation
        score = evaluate_held_out(self.model, self.recipe, self.prepared.codec, records, self.machine)
        self.validation = {
            "validation_loss": score.loss,
            **({} if score.accuracy is None else {"validation_accuracy": score.accuracy}),
        }
        if score.bits_per_byte is not None:
            self.validation["validation_bits_per_byte"] = score.bits_per_byte
        if score.exact is not None:
            self.validation["validation_exact"] = score.exact
        return self.validation

    def sample(self) -> None:
        """Append a sample to samples.txt, if there is text to write and a Transformer to write it."""
        recipe, prepared = self.recipe, self.prepared
        if not isinstance(prepared.codec, TextCodec) or not self._writes or not recipe.training.sample_tokens:
            return
        assert isinstance(self.model, Transformer)
        sampling = Sampling(max_tokens=recipe.training.sample_tokens, temperature=0.8, seed=recipe.seed)
        prompt = build_prompt(prepared.codec, self.prompt, is_pair=prepared.is_pair, view=prepared.view)
        *_, last = generate_texts(self.model, prepared.codec, prompt, sampling, prepared.view.inputs_mask)
        assert isinstance(last, Generation)
        with self.run.samples.open("a", encoding="utf-8") as file:
            file.write(f"== step {self.progress.step}\n{self.prompt}{last.text}\n\n")

    def save(self) -> None:
        """Commit a checkpoint, then let go of those no longer kept."""
        state = {
            "progress": asdict(self.progress),
            "wall_seconds": self.wall_seconds,
            "energy_joules": self.energy_joules,
            "samples_length": self.run.samples.stat().st_size,
        }
        save_checkpoint(
            self.run.checkpoints,
            step=self.progress.step,
            tensors={"model": state_of(self.model), "optimizer": optimizer_state(self.optimizers)},
            documents={"state": state},
            fingerprints=self.fingerprints,
        )
        purge_checkpoints(self.run.checkpoints, keep=self.recipe.training.keep_checkpoints)

    def finish(self) -> None:
        """Write the model by itself, the mean of the last checkpoints if that is asked for, and the summary."""
        if self.recipe.training.average_checkpoints > 1:
            self._average()
        partial = self.run.weights.with_suffix(".partial")
        save_file(state_of(self.model), partial)
        partial.replace(self.run.weights)
        runs.write_text(self.run.summary, json.dumps(self.summary(), indent=1) + "\n")

    def _average(self) -> None:
        """Put the mean of the last checkpoints into the model, and see how well it does."""
        count = self.recipe.training.average_checkpoints
        last = sorted(list_checkpoints(self.run.checkpoints), key=lambda c: c.step)[-count:]
        if len(last) < count:
            raise ConfigError(
                f"{len(last)} checkpoints are left of the {count} that training.average_checkpoints asks for; they "
                f"were removed, or set aside as damaged"
            )
        total: dict[str, Tensor] = {}
        for checkpoint in last:
            for name, tensor in load_tensors(checkpoint, "model").items():
                total[name] = total.get(name, 0) + tensor.double() / count
        runs.load_state(self.model, {name: tensor.float() for name, tensor in total.items()})
        self.validate()

    def summary(self) -> dict[str, object]:
        """What was reached and what it cost; FLOPs are counted by arithmetic, times and memory measured."""
        measured = [line for line in read_metrics(self.run.metrics) if "validation_loss" in line][-1]
        if self.recipe.training.average_checkpoints > 1:
            measured = self.validation
        progress, parameters = self.progress, num_parameters(self.recipe.model)
        flops = self.prepared.flops_per_step * progress.step
        return {
            "validation_loss": measured["validation_loss"],
            "bits_per_byte": measured.get("validation_bits_per_byte"),
            "validation_accuracy": measured.get("validation_accuracy"),
            **({"validation_exact": measured["validation_exact"]} if "validation_exact" in measured else {}),
            "expected_loss": self.recipe.expected_loss,
            "steps": progress.step,
            "tokens": progress.tokens_seen,
            "wall_seconds": self.wall_seconds,
            "train_seconds": progress.train_seconds,
            "tokens_per_second": progress.tokens_seen / progress.train_seconds,
            "num_parameters": parameters,
            "num_active_parameters": num_active_parameters(self.recipe.model),
            "num_trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "flops": flops,
            "utilisation": flops / progress.train_seconds / self.peak_flops,
            "peak_flops": self.peak_flops,
            "peak_memory_bytes": peak_memory(self.machine),
            "energy_joules": self.energy_joules,
            "exportable": exportable(self.recipe.model),
            "data": self.prepared.split.describe(),
            "machine": describe(self.machine),
        }

"""The part of a run in one process: model, optimizers and journal, from the newest checkpoint to the end or a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from isoform import run as runs
from isoform.busy import OtherProcesses, advice, num_cores
from isoform.checkpoint.huggingface import exportable
from isoform.checkpoint.store import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_document,
    load_tensors,
    purge_checkpoints,
    save_checkpoint,
)
from isoform.checkpoint.tensors import state_of
from isoform.checkpoint.versions import LAYOUT, upgrade_tensors
from isoform.codecs.codec import TextCodec
from isoform.config import ConfigError, differences
from isoform.evaluation.evaluate import evaluate_rows
from isoform.evaluation.guessing import best_guess
from isoform.generation.config import Sampling
from isoform.generation.decode import Prompt, build_prompt, check_lengths
from isoform.generation.streaming import Generation
from isoform.generation.streaming import generate as generate_texts
from isoform.journal import Journal, earlier_logs
from isoform.machine import (
    Energy,
    Machine,
    can_compile,
    describe,
    device_memory,
    measured_peaks,
    peak_memory,
)
from isoform.mask import Full
from isoform.metrics import LogFunction, read_metrics
from isoform.model.adapters import adapt
from isoform.model.baselines import build_module
from isoform.model.cost import num_active_parameters, num_parameters
from isoform.model.growth import OtherModel, load_grown
from isoform.model.network import Network
from isoform.model.transformer import Transformer
from isoform.objectives.config import requirements_of
from isoform.preparation import Prepared, global_batch
from isoform.recipe import Recipe, identity_of
from isoform.terminal import Progress as Bar
from isoform.terminal import Terminal, count
from isoform.training.config import doubts
from isoform.training.memory import check_memory
from isoform.training.optimizer import build_optimizers, freeze, load_optimizer_state, named_slots, optimizer_state
from isoform.training.trainer import Diverged, Interrupted, Progress, check_finite, train_loop, until_stopped


def build_model(recipe: Recipe, machine: Machine) -> Network:
    """The recipe's model, initialized with the recipe's seed.

    Raises ValueError, before anything is allocated, for a model that can't be trained in this machine's memory.
    """
    check_memory(recipe.model, recipe.training, device_memory(machine))
    torch.manual_seed(recipe.seed)
    model = build_module(recipe.model).to(machine.device)
    if machine.device.type == "cpu":
        model.set_matmul_dtype(machine.dtype)
    if recipe.training.adapters is not None:
        adapt(model, recipe.training.adapters)
    freeze(model, recipe.training.frozen)
    return model


def initialize_from(model: Network, start: Network) -> list[str]:
    """Copy the parameters of `start` to a model, and return what is another about context and positions. Raises
    ValueError naming the fields that differ otherwise."""
    if isinstance(model, Transformer) and isinstance(start, Transformer):
        return load_grown(model, start)
    if differences(model.config, start.config):
        fields = ", ".join(path for path, _, _ in differences(model.config, start.config))
        raise OtherModel(f"the model to start from has another config; these fields differ: {fields}")
    model.load_state_dict(start.state_dict())
    return []


class Session:
    """The part of a run in one process: from the newest checkpoint to the end or an interruption."""

    def __init__(
        self,
        journal: Journal,
        prepared: Prepared,
        machine: Machine,
        compile: bool | None,
        kernel: str,
        terminal: Terminal,
        should_stop: Callable[[], bool],
    ) -> None:
        self.journal, self.prepared, self.machine, self.terminal = journal, prepared, machine, terminal
        self.others, self.has_advised = OtherProcesses(), False
        self.run, self.should_stop = journal.run, should_stop
        self.listeners: Sequence[LogFunction] = ()
        self.recipe = prepared.recipe
        self.model = build_model(self.recipe, machine)
        self.model.use_kernel(kernel, trains=True)
        if prepared.teacher is not None:
            prepared.teacher.to(machine.device)
        training = self.recipe.training
        self.optimizers = build_optimizers(
            training.optimizer, self.model, machine.dtype, layer_decay=training.layer_decay
        )
        self.progress, self.wall_before, self.joules_before = Progress(), 0.0, 0.0
        self.logs: dict[str, dict] = {}
        self.energy = Energy()
        self.bar, self.validation = Bar(), {}
        self.prompt = self._sample_prompt()
        with terminal.doing("measuring the peak of this machine"):
            self.peak_flops = measured_peaks(machine).matmul
        self.fingerprints = {
            "data": prepared.split.fingerprint,
            "codec": prepared.codec.fingerprint,
            "recipe": identity_of(self.recipe),
        }
        journal.check_fingerprints(self.fingerprints, journal.fingerprints)
        checkpoint = find_checkpoint(self.run.checkpoints, terminal.warn) if journal.continues else None
        if checkpoint is None and self.recipe.start:
            with terminal.doing(f"loading {self.recipe.start}"):
                changes = self._start()
            if changes:
                terminal.say(f"start          {'; '.join(changes)}")
        self._restore(checkpoint)
        if compile is None:
            compile = machine.device.type == "cuda"
        if compile and not can_compile(machine):
            terminal.warn("no C++ compiler was found, so the blocks are not compiled")
        elif compile:
            self.model.compile_blocks()

    def _start(self) -> list[str]:
        """Take the parameters of the model to start from; returns what is another about context and positions."""
        start, data = self.recipe.start, self.recipe.data
        try:
            return initialize_from(self.model, runs.load_beside(self.recipe, start).model)
        except OtherModel as error:
            named = f" --data.path {data.path}" if data.path else ""
            raise ConfigError(f"{error}. To train it as it is: isoform train --start {start}{named}") from None

    @property
    def _generates_text(self) -> bool:
        """Whether the model generates text; encoders, baselines, classifiers and decoders that fill in masks don't."""
        is_decoder = isinstance(self.model, Transformer) and self.model.decoder is not None
        is_decoder = is_decoder and self.prepared.view.inputs_mask != Full()
        return is_decoder and requirements_of(self.recipe.objective).answer == "vocabulary"

    def _sample_prompt(self) -> str:
        """The recipe's prompt; empty if it has characters that the codec lacks, or doesn't fit the context."""
        prepared, model = self.prepared, self.model
        if not isinstance(prepared.codec, TextCodec) or not self._generates_text:
            return ""
        assert isinstance(model, Transformer)
        try:
            check_lengths(model, [self._build_prompt(prepared.codec, self.recipe.sample_prompt)])
        except ValueError as error:
            if self.recipe.sample_prompt != Recipe().sample_prompt:
                self.terminal.warn(f"samples begin without a prompt: {error}")
            return ""
        return self.recipe.sample_prompt

    def _build_prompt(self, codec: TextCodec, text: str) -> Prompt:
        return build_prompt(codec, text, answers_source=self.prepared.answers_source, view=self.prepared.view)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.journal.check_fingerprints(self.fingerprints, checkpoint.manifest.fingerprints)
            runs.load_state(self.model, runs.model_tensors(checkpoint, self.model))
            slots = load_tensors(checkpoint, "optimizer")
            if (layout := runs.layout_of(checkpoint)) == 1:
                training, layout = self.recipe.training, 2
                slots = named_slots(slots, training.optimizer, self.model, layer_decay=training.layer_decay)
            load_optimizer_state(self.optimizers, self.model, upgrade_tensors(slots, layout, self.model))
            state = load_document(checkpoint, "state")
            self.progress = Progress(**state["progress"])
            self.wall_before, self.joules_before = state["wall_seconds"], state["energy_joules"]
            self.logs = state["logs"] if "logs" in state else earlier_logs(self.run, checkpoint.step, state)
            if 0 < self.progress.step < self.recipe.training.steps:
                self.terminal.say(f"continuing {self.run.folder} from step {self.progress.step}")

    @property
    def wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self.terminal.started

    @property
    def energy_joules(self) -> float | None:
        """Of the whole machine since the run began; None if it couldn't be read, now or earlier."""
        joules = self.energy.joules
        return None if joules is None or self.joules_before is None else self.joules_before + joules

    def begin(self, changes: Mapping[str, tuple]) -> None:
        """Write the files with which the run begins, or what changes of one that continues."""
        prepared = self.prepared
        self._check_average()
        if self.num_frozen:
            self.terminal.say(f"parameters     {self.num_trained:,} trained, {self.num_frozen:,} frozen")
        for doubt in doubts(self.recipe.training):
            self.terminal.warn(doubt)
        self.journal.begin(
            self.recipe,
            prepared.codec,
            self.fingerprints,
            answers_source=prepared.answers_source,
            step=self.progress.step,
            changes=changes,
        )

    @property
    def num_trained(self) -> int:
        """Parameters that learn, those of adapters included."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def num_frozen(self) -> int:
        """Parameters that stay."""
        return sum(p.numel() for p in self.model.parameters() if not p.requires_grad)

    def train(self, log: Sequence[LogFunction] = ()) -> None:
        """Train to the end, or until `should_stop`, and write the results; log: called with each line of metrics, after
        it was written."""
        self.listeners = log
        training, first = self.recipe.training, self.progress.step
        try:
            self.journal.open_logs(self.logs, first)
            if self.recipe.start and first == 0:
                self._validate_start()
            with self.terminal.progress(training.steps, first) as self.bar:
                train_loop(
                    self.model,
                    self.optimizers,
                    training,
                    batches=lambda step: global_batch(self.prepared, step),
                    loss=partial(self.prepared.task.loss, self.model),
                    machine=self.machine,
                    seed=self.recipe.seed,
                    progress=self.progress,
                    log=self.log,
                    validate=self.validate,
                    sample=self.sample,
                    save=self.save,
                    should_stop=self.should_stop,
                )
            if self.progress.step == training.steps and self.progress.is_scored:
                with suppress(Interrupted):
                    self.finish()
        except Diverged as error:
            self.journal.diverge(error.step, str(error))
            raise
        finally:
            self.journal.close()

    def log(self, line: dict) -> None:
        """Write a line of metrics, with derived fields, and hand it on."""
        line = self._with_utilisation(line)
        self.journal.log(line)
        for listener in self.listeners:
            listener({name: value for name, value in line.items() if name != "step"}, line["step"])

    def _with_utilisation(self, line: dict) -> dict:
        """The line of metrics with derived fields; shows it on the progress bar."""
        if "tokens_per_second" in line:
            _ = self.energy_joules  # its counters wrap
            self._advise()
            flops = self.prepared.flops_per_step / self.prepared.tokens_per_step
            line["utilisation"] = line["tokens_per_second"] * flops / self.peak_flops
            loss = f"loss {line['loss']:.3f}"
            if self.prepared.bytes_per_token is not None:
                line["bits_per_byte"] = line["loss"] / math.log(2) / self.prepared.bytes_per_token
                loss += f"  {line['bits_per_byte']:.3f} bits/byte"
            validation = f"  validation {self.validation['validation_loss']:.3f}" if self.validation else ""
            self.bar.update(
                line["step"],
                f"{loss}{validation}  {count(line['tokens_per_second'])} tokens/s  {line['utilisation']:.0%} of peak",
            )
        return line

    def _advise(self) -> None:
        """Say once that other processes take the cores that this one computes on."""
        if self.has_advised or self.machine.device.type != "cpu":
            return
        if text := advice(self.others.num_busy_cores(), torch.get_num_threads(), num_cores()):
            self.has_advised = True
            self.terminal.warn(text)

    def _validate_start(self) -> None:
        """The scores before the first step, which training is to improve."""
        with suppress(Interrupted), self.terminal.doing("scoring the model before the first step"):
            self.log({"step": 0, **self.validate()})
            self.terminal.say(f"before         {self.validation['validation_loss']:.4f} on the validation split")
        self.validation = {}

    def validate(self) -> dict[str, float]:
        """Loss and other scores on the whole validation split."""
        with self.terminal.doing("validating"):
            score = evaluate_rows(
                self.model, self.recipe, self.prepared.validation, self.machine, should_stop=self.should_stop
            )
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
        """Append a sample to samples.txt, if the model generates text."""
        recipe, prepared = self.recipe, self.prepared
        if not isinstance(prepared.codec, TextCodec) or not self._generates_text or not recipe.training.sample_tokens:
            return
        assert isinstance(self.model, Transformer)
        check_finite(self.progress.step, {"model": state_of(self.model)})
        sampling = Sampling(max_tokens=recipe.training.sample_tokens, temperature=0.8, seed=recipe.seed)
        prompt = self._build_prompt(prepared.codec, self.prompt)
        events = generate_texts(self.model, prepared.codec, prompt, sampling, prepared.view.inputs_mask)
        with self.terminal.doing("writing a sample"):
            *_, last = until_stopped(events, self.should_stop)
        assert isinstance(last, Generation)
        self.journal.add_sample(f"== step {self.progress.step}\n{self.prompt}{last.text}\n\n")

    def save(self) -> None:
        """Commit a checkpoint, then remove those beyond keep_checkpoints, and what it supersedes.

        Raises Diverged if it would hold a value that isn't finite.
        """
        tensors = {"model": state_of(self.model), "optimizer": optimizer_state(self.optimizers, self.model)}
        check_finite(self.progress.step, tensors)
        state = {
            "progress": asdict(self.progress),
            "wall_seconds": self.wall_seconds,
            "energy_joules": self.energy_joules,
            "logs": self.journal.state(self.progress.step, is_scored=self.progress.is_scored),
        }
        save_checkpoint(
            self.run.checkpoints,
            step=self.progress.step,
            tensors=tensors,
            documents={"state": state},
            fingerprints={**self.fingerprints, "layout": str(LAYOUT)},
        )
        purge_checkpoints(self.run.checkpoints, keep=self.recipe.training.keep_checkpoints)
        self.journal.remove_superseded()

    def finish(self) -> None:
        """Write the final model, averaged over the last checkpoints if configured, and the summary.

        Raises Interrupted, with nothing written, if the run is to stop while the average is validated.
        """
        if self.recipe.training.average_checkpoints > 1:
            self._average()
        summary = self.summary()
        self.journal.finish(state_of(self.model), summary)
        if not summary["beats_guessing"]:
            self.terminal.warn(
                f"the validation loss of {summary['validation_loss']:.4f} is no better than guessing "
                f"{summary['guess']}, which has {summary['guess_loss']:.4f}; lower the learning rate or train longer"
            )

    def _check_average(self) -> None:
        """Raises ConfigError if fewer checkpoints will exist at the end than are to be averaged."""
        training, step = self.recipe.training, self.progress.step
        every, count = training.checkpoint_every or training.steps, training.average_checkpoints
        future = (training.steps - 1) // every - step // every + 1
        total = len(list_checkpoints(self.run.checkpoints)) + future
        if step < training.steps and total < count:
            raise ConfigError(
                f"only {total} of the {count} checkpoints that training.average_checkpoints needs will exist at "
                f"step {training.steps}, since others were removed, or set aside as damaged; restore them, or extend "
                f"the run with training.steps"
            )

    def _average(self) -> None:
        """Load the mean of the last checkpoints into the model, and validate it."""
        count = self.recipe.training.average_checkpoints
        last = sorted(list_checkpoints(self.run.checkpoints), key=lambda c: c.step)[-count:]
        total: dict[str, Tensor] = {}
        for checkpoint in last:
            for name, tensor in runs.model_tensors(checkpoint, self.model).items():
                total[name] = total.get(name, 0) + tensor.double() / count
        runs.load_state(self.model, {name: tensor.float() for name, tensor in total.items()})
        self.validate()

    def summary(self) -> dict[str, object]:
        """The results and the cost: FLOPs are counted by arithmetic, times and memory are measured."""
        if not self.validation:  # it was killed after the last checkpoint
            lines = [line for line in read_metrics(self.run.metrics) if "validation_loss" in line]
            of_last = [line for line in lines if line["step"] == self.progress.step]
            self.validation = of_last[-1] if of_last else self.validate()
        measured = self.validation
        progress, parameters = self.progress, num_parameters(self.recipe.model)
        flops = self.prepared.flops_per_step * progress.step
        scored = [line for line in read_metrics(self.run.metrics) if line["step"] == 0]
        before = scored[0]["validation_loss"] if scored else None
        with self.terminal.doing("comparing with guessing"):
            guess = best_guess(self.prepared)
        return {
            "validation_loss": measured["validation_loss"],
            **({} if before is None else {"validation_loss_before": before}),
            "bits_per_byte": measured.get("validation_bits_per_byte"),
            "validation_accuracy": measured.get("validation_accuracy"),
            **({"validation_exact": measured["validation_exact"]} if "validation_exact" in measured else {}),
            "guess_loss": guess.loss,
            "guess": guess.how,
            "beats_guessing": guess.is_beaten_by(measured["validation_loss"], measured.get("validation_accuracy")),
            "expected_loss": self.recipe.expected_loss,
            "steps": progress.step,
            "tokens": progress.tokens_seen,
            "wall_seconds": self.wall_seconds,
            "train_seconds": progress.train_seconds,
            "tokens_per_second": progress.tokens_seen / progress.train_seconds,
            "num_parameters": parameters,
            "num_active_parameters": num_active_parameters(self.recipe.model),
            "num_trained_parameters": self.num_trained,
            "num_frozen_parameters": self.num_frozen,
            "flops": flops,
            "utilisation": flops / progress.train_seconds / self.peak_flops,
            "peak_flops": self.peak_flops,
            "peak_memory_bytes": peak_memory(self.machine),
            "energy_joules": self.energy_joules,
            "exportable": exportable(self.recipe.model),
            "data": self.prepared.split.describe(),
            "machine": describe(self.machine),
        }

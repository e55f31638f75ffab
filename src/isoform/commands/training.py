"""Training."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

from isoform.commands.command import Result, chosen_machine
from isoform.commands.costs import print_costs, run_costs
from isoform.config import validated
from isoform.experiment import train as train_recipe
from isoform.machine import in_words
from isoform.model.baseline_config import as_transformer
from isoform.model.config import ModelConfig, Pooled
from isoform.options import TrainOptions
from isoform.preparation import prepare
from isoform.reading import read_text
from isoform.recipe import builtin_recipes, draft_recipe, with_adapters, without_statements
from isoform.report import write_report
from isoform.run import Run, read_recipe, read_summary, recipe_at
from isoform.signals import code_of, interruptions
from isoform.terminal import Terminal, count, duration
from isoform.training.config import doubts

NO_BETTER = ": the run is no better"


def train(options: TrainOptions, terminal: Terminal, name: str) -> Result:
    """Train a recipe, or continue the run in --out."""
    recipe, machine = options.recipe, chosen_machine(options.machine)
    if options.lora:
        recipe = validated(with_adapters(recipe, options.lora))
    if name in builtin_recipes() or name.endswith(".toml"):
        recipe = without_statements(recipe, draft_recipe(name, start=recipe.start, recipe_at=recipe_at))
    out = options.out or (name if name not in builtin_recipes() and Run(Path(name)).exists else "")
    if options.dry_run:
        terminal.say(f"machine        {in_words(machine)}")
        prepared = prepare(recipe, terminal=terminal)
        for line in prepared.describe():
            terminal.say(line)
        for doubt in doubts(recipe.training):
            terminal.warn(doubt)
        print_costs(prepared, machine, terminal)
        return Result(run_costs(prepared, machine))
    with interruptions(terminal) as asked:
        run = train_recipe(
            recipe,
            out or None,
            name=Path(name or recipe.start).stem or "run",
            log=options.log,
            machine=machine,
            compile=options.machine.compile,
            kernel=options.machine.kernel,
            terminal=terminal,
            should_stop=asked.should_stop,
            overwrite=options.overwrite,
        )
    if not run.is_finished:
        last = asked.received[-1]
        terminal.say(f"stopped after a clean save; continue with: isoform train --out {shlex.quote(str(run.folder))}")
        return Result({"out": str(run.folder), "stopped": signal.Signals(last).name}, code_of(last))
    if options.report:
        with terminal.doing("writing the report"):
            write_report(run)
    summary = read_summary(run)
    _say_summary(run, summary, terminal, writes=isinstance(as_transformer(recipe.model), ModelConfig))
    return Result({"out": str(run.folder), **summary})


def _say_summary(run: Run, summary: dict, terminal: Terminal, *, writes: bool) -> None:
    samples = read_text(run.samples).split("== step ")
    if len(samples) > 1:
        terminal.say(f"\n{samples[-1].split(chr(10), 1)[1].strip()}\n")
    expected = summary["expected_loss"]
    expectation = "" if expected is None else f"   expected {expected:.3f}"
    start = summary.get("validation_loss_before")
    before = "" if start is None else f"   {start:.4f} before the first step"
    per_byte, is_text = summary["bits_per_byte"], summary["bits_per_byte"] is not None
    unit = "token" if is_text else "label"
    terminal.say(f"validation     {summary['validation_loss']:.4f} nats per {unit}{expectation}{before}")
    score = (
        f"{per_byte:.4f} bits per byte"
        if is_text
        else "mean squared error"
        if summary["validation_accuracy"] is None
        else f"{summary['validation_accuracy']:.2%} accuracy"
    )
    terminal.say(f"               {score}")
    is_better = summary.get("beats_guessing", True)  # which runs of earlier versions don't state
    if "guess" in summary:
        terminal.say(f"guessing       {summary['guess_loss']:.4f}, {summary['guess']}{'' if is_better else NO_BETTER}")
    terminal.say(
        f"cost           {_parameters(summary)}, {count(summary['flops'])}FLOP, "
        f"{duration(summary['train_seconds'])} of training, {count(summary['tokens_per_second'])} tokens/s, "
        f"{summary['utilisation']:.0%} of the measured peak"
    )
    if run.report.exists():
        terminal.say(f"report         {run.report}")
    recipe, folder = read_recipe(run), shlex.quote(str(run.folder))
    if isinstance(recipe.model, ModelConfig) and isinstance(recipe.model.head, Pooled) and is_better:
        data = recipe.data.path if recipe.data.path.startswith("toy:") else "FILE"
        terminal.say(f"ask            isoform predict {folder} --path {data}")
    if is_text and writes and is_better:
        terminal.say(f"continue       isoform generate {folder} --prompt '…'")


def _parameters(summary: dict) -> str:
    """How many parameters a model has, and how many of them were trained."""
    trained, frozen = summary["num_trained_parameters"], summary["num_frozen_parameters"]
    return f"{count(trained)} of {count(trained + frozen)} parameters" if frozen else f"{count(trained)} parameters"

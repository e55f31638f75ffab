"""Common to the commands: results, and the machine of the options."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from isoform.machine import Machine, choose_machine
from isoform.model.config import ModelConfig, Pooled
from isoform.objectives.config import requirements_of
from isoform.options import MachineOptions
from isoform.recipe import Recipe
from isoform.terminal import ExitCode, Terminal


@dataclass(frozen=True)
class Result:
    """The result of a command: values for --json, and the exit code."""

    values: dict
    exit_code: ExitCode = ExitCode.DONE


def chosen_machine(options: MachineOptions) -> Machine:
    """The machine of the options."""
    return choose_machine(options.device, options.dtype, deterministic=options.deterministic, threads=options.threads)


def say_next(terminal: Terminal, *words: str) -> None:
    """Print the command to type next, quoted for a shell."""
    terminal.say(f"next           {shlex.join(['isoform', *words])}")


def asking(path: str, recipe: Recipe, *, has_template: bool = False) -> tuple[str, ...]:
    """The command that asks a trained model, by what it answers."""
    model, data = recipe.model, recipe.data.path
    if isinstance(model, ModelConfig) and isinstance(model.head, Pooled):
        return "predict", path, "--path", data if data.startswith("toy:") else "FILE"
    if not isinstance(model, ModelConfig) or not requirements_of(recipe.objective).has_next_token(model.form):
        return "evaluate", path, "--path", "FILE"
    return ("chat", path) if has_template else ("generate", path, "--prompt", "…")

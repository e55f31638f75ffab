"""Common to the commands: results, and the machine of the options."""

from __future__ import annotations

from dataclasses import dataclass

from isoform.machine import Machine, choose_machine
from isoform.options import MachineOptions
from isoform.terminal import ExitCode


@dataclass(frozen=True)
class Result:
    """The result of a command: values for --json, and the exit code."""

    values: dict
    exit_code: ExitCode = ExitCode.DONE


def chosen_machine(options: MachineOptions) -> Machine:
    """The machine of the options."""
    return choose_machine(options.device, options.dtype, deterministic=options.deterministic, threads=options.threads)

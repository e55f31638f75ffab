"""Common to the commands: results, the machine of the options, and signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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
    return choose_machine(options.device, options.dtype, deterministic=options.deterministic)


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list for the training loop; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Common to the commands: results, the machine of the options, and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


ENDING = (signal.SIGINT, signal.SIGTERM)
"""A second one of these ends the process at once."""
SAVING = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if name in signal.Signals.__members__)
"""The terminal was closed; a queue warns that time is up. Both may come more than once, and Windows has neither."""


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collect signals that ask for an end in a list for the training loop; a second one ends the process at once.

    SIGHUP stays ignored if it is ignored already, as under nohup.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if number in ENDING:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        if len(received) == 1:
            with suppress(OSError):  # not through a stream, which the signal may have interrupted
                os.write(2, b"isoform: stopping; the state is saved first\n")

    heard = [s for s in (*ENDING, *SAVING) if s in ENDING or signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, note) for s in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

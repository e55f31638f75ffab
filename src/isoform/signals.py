"""Signals that ask a process to end: at once, or, where there is something to save, as soon as that is done.

Python calls handlers between two instructions of the main thread alone: not amid a library's call, which may take half
a minute. So a thread of its own hears of signals, too, and can end the process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread, current_thread, main_thread
from typing import Any

from isoform.terminal import ExitCode, Terminal

ENDING = (signal.SIGINT, signal.SIGTERM)
"""A second one of these ends the process at once."""
SAVING = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if name in signal.Signals.__members__)
"""The terminal was closed; a queue warns that time is up. Both may come more than once, and Windows has neither."""
PATIENCE = 0.5
"""Seconds that Python has to raise KeyboardInterrupt."""


@contextmanager
def listening(hear: Callable[[int], bool]) -> Iterator[None]:
    """Call hear(number), in a thread of its own, for each signal that has a handler in Python. A signal for which it
    returns False goes on to the function that is called where this one stands within another `listening`."""
    reader, writer = os.pipe()
    if sys.platform != "win32":
        os.set_blocking(writer, False)
    around = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reader, 1)[0]:
            if not hear(number) and around != -1:
                os.write(around, bytes([number]))

    thread = Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(around)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


@contextmanager
def handled(handler: Callable[[int, object], None], numbers: tuple[int, ...]) -> Iterator[dict[int, Any]]:
    """A handler of signals in the main thread; yields those before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def keyboard_interrupts(terminal: Terminal) -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, and ends the process if a library's call doesn't return soon. Where somebody
    else answers that signal, they still do."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    raised = Event()

    def interrupt(number: int, frame: object) -> None:
        raised.set()
        raise KeyboardInterrupt

    def hear(number: int) -> bool:
        if number == signal.SIGINT and not raised.wait(PATIENCE):
            os._exit(terminal.fail(ExitCode.INTERRUPTED, "interrupted"))
        return True

    with listening(hear), handled(interrupt, (signal.SIGINT,)):
        yield


def code_of(number: int) -> ExitCode:
    """The exit code of a process that a signal ended, and that may be started again."""
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TRANSIENT


class Interruptions:
    """Signals that ask for an end, from the first call of `should_stop` on; before that they end the process."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.are_collected = False

    def should_stop(self) -> bool:
        """Whether a signal came. It is called as soon as there is something to save."""
        self.are_collected = True
        return bool(self.received)

    @contextmanager
    def collected(self) -> Iterator[Callable[[], bool]]:
        """`should_stop`, for a while: afterwards there is nothing to save again."""
        try:
            yield self.should_stop
        finally:
            self.are_collected = False


@contextmanager
def interruptions(terminal: Terminal) -> Iterator[Interruptions]:
    """Collect signals that ask for an end, for a command that then saves its state; a second one is answered as if this
    function weren't called, and ends the process at once.

    SIGHUP stays ignored if it is ignored already, as under nohup.
    """
    asked, heard = Interruptions(), list[int]()
    numbers = tuple(s for s in (*ENDING, *SAVING) if s in ENDING or signal.getsignal(s) != signal.SIG_IGN)

    def note(number: int, frame: object) -> None:
        asked.received.append(number)
        if number in ENDING and asked.are_collected:
            signal.signal(number, before[number])

    def hear(number: int) -> bool:
        if number not in numbers:
            return False
        if not asked.are_collected:
            why = f"stopped by {signal.Signals(number).name} with nothing to save; start the same command again"
            os._exit(terminal.fail(code_of(number), why))
        is_first, is_second = not heard, number in heard
        heard.append(number)
        if is_first:
            with suppress(OSError):  # not through a stream, which the signal may have interrupted
                os.write(2, b"isoform: stopping; the state is saved first\n")
        return not is_second

    with listening(hear), handled(note, numbers) as before:
        yield asked

"""What a person sees: lines, warnings and progress, on a terminal or plainly elsewhere; never on --json's output.

And what other programs see: exit codes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

STYLES = {"input": "36", "given": "34", "target": "1;32", "ignored": "2"}
"""What a terminal is told for a colour."""


class ExitCode(IntEnum):
    """How a command ended, for whoever started it; docs/bad-input.md says when each is given."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 65
    STORAGE = 74
    TRANSIENT = 75
    """Start the same command again, and it goes on."""
    INTERRUPTED = 130


@dataclass
class Terminal:
    """Where words go. With `json`, standard output is kept for the one object and words go to standard error."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    started: float = field(default_factory=time.perf_counter)

    def say(self, text: str = "", *, end: str = "\n") -> None:
        """Print for a person, unless quiet."""
        if not self.quiet:
            stream = sys.stderr if self.json else sys.stdout
            stream.write(text + end)
            stream.flush()

    def paint(self, text: str, style: str) -> str:
        """Text in a style's colour, where there are colours: on a terminal, unless NO_COLOR is set."""
        stream = sys.stderr if self.json else sys.stdout
        if not text or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return text
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    def warn(self, text: str) -> None:
        """Something the user should know; shown even when quiet."""
        sys.stderr.write(f"warning: {text}\n")
        sys.stderr.flush()

    @contextmanager
    def progress(self, total: int, done: int = 0) -> Iterator[Progress]:
        """A bar on a terminal, a line every few seconds elsewhere."""
        stream = sys.stderr if self.json else sys.stdout
        if self.quiet:
            yield Progress()
        elif stream.isatty() and os.environ.get("TERM") != "dumb":
            with _bar(total, done, stream) as progress:
                yield progress
        else:
            yield _Lines(self, total, done)


class Progress:
    """Progress nobody watches; the base of those somebody does."""

    def update(self, done: int, words: str) -> None:
        """So much is done, and this is how it goes."""


class _Lines(Progress):
    def __init__(self, terminal: Terminal, total: int, done: int, every: float = 5.0) -> None:
        self.terminal, self.total, self.first, self.every = terminal, total, done, every
        self.start = self.last = time.perf_counter()
        self.said = done

    def update(self, done: int, words: str) -> None:
        now = time.perf_counter()
        waits = self.every if done != self.said else 12 * self.every  # where nothing moves, that is said now and then
        if now - self.last >= waits or done == self.total:
            self.last, self.said = now, done
            here = done - self.first
            left = f"  {duration((now - self.start) / here * (self.total - done))} left" if here else ""
            self.terminal.say(f"{done:>7} / {self.total}  {words}{left}")


@contextmanager
def _bar(total: int, done: int, stream) -> Iterator[Progress]:
    from rich.console import Console  # a tenth of a second that only a terminal has to pay
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        MofNCompleteColumn(),
        BarColumn(None),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(file=stream), transient=False) as rich:
        task = rich.add_task("", total=total, completed=done, words="")

        class Bar(Progress):
            def update(self, done: int, words: str) -> None:
                rich.update(task, completed=done, words=words)

        yield Bar()


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 2 min 10 s, 3 h 4 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: float) -> str:
    """A large number in words: 812, 13.1 k, 124 M, 2.1 T."""
    for size, suffix in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"

"""Output for people: lines, warnings and progress, on a terminal or as plain lines; never on the output of --json.

And for programs: exit codes.
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
"""The ANSI codes of the styles."""


class ExitCode(IntEnum):
    """How a command ended; docs/bad-input.md lists when each is returned."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 65
    STORAGE = 74
    TRANSIENT = 75
    """The same command, started again, continues."""
    INTERRUPTED = 130


@dataclass
class Terminal:
    """Output streams. With `json`, standard output is reserved for the one object and text goes to standard error."""

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
        """Text in a style's colour if colours are supported: on a terminal, unless NO_COLOR is set."""
        stream = sys.stderr if self.json else sys.stdout
        if not text or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return text
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    def warn(self, text: str) -> None:
        """Print a warning, even when quiet."""
        sys.stderr.write(f"warning: {text}\n")
        sys.stderr.flush()

    @contextmanager
    def progress(self, total: int, completed: int = 0) -> Iterator[Progress]:
        """A bar on a terminal, a line every few seconds elsewhere."""
        stream = sys.stderr if self.json else sys.stdout
        if self.quiet:
            yield Progress()
        elif stream.isatty() and os.environ.get("TERM") != "dumb":
            with _bar(total, completed, stream) as progress:
                yield progress
        else:
            yield _Lines(self, total, completed)


class Progress:
    """Progress that is not shown; the base class of those that are."""

    def update(self, completed: int, text: str) -> None:
        """Set the number of completed units, and the text beside it."""


class _Lines(Progress):
    def __init__(self, terminal: Terminal, total: int, completed: int, every: float = 5.0) -> None:
        self.terminal, self.total, self.first, self.every = terminal, total, completed, every
        self.start = self.last = time.perf_counter()
        self.shown = completed

    def update(self, completed: int, text: str) -> None:
        now = time.perf_counter()
        interval = self.every if completed != self.shown else 12 * self.every  # without progress a line is rarer
        if now - self.last >= interval or completed == self.total:
            self.last, self.shown = now, completed
            new = completed - self.first
            rest = f"  {duration((now - self.start) / new * (self.total - completed))} left" if new else ""
            self.terminal.say(f"{completed:>7} / {self.total}  {text}{rest}")


@contextmanager
def _bar(total: int, completed: int, stream) -> Iterator[Progress]:
    from rich.console import Console  # takes a tenth of a second, so only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        MofNCompleteColumn(),
        BarColumn(None),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(file=stream), transient=False) as rich:
        task = rich.add_task("", total=total, completed=completed, text="")

        class Bar(Progress):
            def update(self, completed: int, text: str) -> None:
                rich.update(task, completed=completed, text=text)

        yield Bar()


def duration(seconds: float) -> str:
    """Seconds as text: 8 s, 2 min 10 s, 3 h 4 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: float) -> str:
    """A large number as text: 812, 13.1 k, 124 M, 2.1 T."""
    for size, suffix in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"

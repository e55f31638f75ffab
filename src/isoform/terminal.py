"""Output for people: lines, warnings and progress, on a terminal or as plain lines; never on the output of --json.

And for programs: exit codes, and the one object of --json. Names and texts come from files that anyone may have made,
so control characters are shown, not sent; and the reader of an output may leave, which ends the output alone.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from threading import Event, RLock, Thread
from typing import Any, TextIO

STYLES = {
    "input": "36",
    "given": "34",
    "target": "1;32",
    "ignored": "2",
    "likely": "32",
    "possible": "33",
    "unlikely": "35",
    "surprising": "1;31",
}
"""The ANSI codes of the styles."""
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff]|\r(?!\n)")
"""What a terminal would obey instead of showing: control characters but for tab and line feed, overrides of
direction (Boucher and Anderson 2021), line separators, halves of characters."""
LONGEST = 4000
"""Characters of a message or warning; the rest is left out."""
PATIENCE = 1.0
"""Seconds after which anything says what it is doing."""


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
    failure: OSError | None = None
    """Why standard output has ended, if it has."""
    bar: Progress | None = None
    """That of a terminal, while there is one."""
    work: list[str] = field(default_factory=list)
    """What is being done, the innermost last."""
    lock: Any = field(default_factory=RLock, repr=False, compare=False)
    """Held while something is written: `doing` writes from a thread of its own."""
    in_place: TextIO | None = None
    """A terminal whose last line is written again and again, and which other lines replace."""

    def say(self, text: str = "", *, end: str = "\n") -> None:
        """Print for a person, unless quiet. Never fails: without a reader nothing is printed."""
        self.draw([(text, "")], end=end)

    def draw(self, spans: Sequence[tuple[str, str]], *, end: str = "\n") -> None:
        """Print texts with their styles ("": none), in colour where that is supported."""
        if not self.quiet:
            self._put(self._stream, "".join(self._painted(*span) for span in spans) + end)

    def write(self, text: str) -> None:
        """Print a text that a command was asked to make; as it is, but for control characters on a terminal.

        Raises the OSError with which standard output has ended.
        """
        stream = self._stream
        if not self.quiet and stream is not None:
            self._put(stream, visible(text) if stream.isatty() else text)
        if self.failure is not None:
            raise self.failure

    def emit(self, value: object) -> None:
        """Print a value as one line of JSON, whose control characters are escaped."""
        stream = sys.stdout
        is_ascii = stream is not None and "utf" not in (stream.encoding or "utf-8").lower()
        text = json.dumps(value, ensure_ascii=is_ascii)
        self._put(stream, CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning, even when quiet."""
        self._put(sys.stderr, f"warning: {one_line(text)}\n")

    def fail(self, code: ExitCode, text: str, trace: str = "") -> ExitCode:
        """Print why a command failed, after a traceback; with `json` as an object, too. Returns the code."""
        self._put(sys.stderr, f"{visible(trace)}isoform: {one_line(text)}\n")
        if self.json:
            what, _, remedy = text.partition("; ")
            self.emit({"error": {"code": code, "message": what, "remedy": remedy}})
        return code

    @contextmanager
    def doing(self, what: str, *, is_brief: bool = False) -> Iterator[None]:
        """Say what is being done, and for how long, as soon as it has taken a second: on standard error, since standard
        output may be the text that a command makes. On a terminal in place, elsewhere as lines that get rarer.

        Of what is done inside something else the innermost is named, with the time of the whole. is_brief: it doesn't
        take long enough for lines, so that only a terminal shows it.
        """
        stream = sys.stderr
        if self.quiet or stream is None or (is_brief and not _is_screen(stream)):
            yield
            return
        if self.bar is not None:
            self.bar.note(what)
            yield
            self.bar.note("")
            return
        self.work.append(what)
        end, thread = Event(), None
        if len(self.work) == 1:
            thread = Thread(target=self._tell, args=(stream, end), daemon=True)
            thread.start()
        try:
            yield
        finally:
            if thread is not None:
                end.set()
                thread.join()
                self._put(stream, "")
            self.work.pop()

    def _tell(self, stream: TextIO, end: Event) -> None:
        """Until the end: what is being done."""
        started, wait, is_screen = time.perf_counter(), PATIENCE, _is_screen(stream)
        while not end.wait(wait):
            line = f"{one_line(self.work[-1])} … {duration(time.perf_counter() - started)}"
            if is_screen:
                self._put(stream, f"\r{line}\x1b[K", in_place=True)
            else:
                self._put(stream, f"{line}\n")
                wait = min(2 * wait, 60 * PATIENCE)

    @property
    def _stream(self) -> TextIO | None:
        return sys.stderr if self.json else sys.stdout

    def _put(self, stream: TextIO | None, text: str, *, in_place: bool = False) -> None:
        """Write and flush, in the place of what was written in place before."""
        with self.lock:
            if self.in_place is not None and not in_place:
                self._send(self.in_place, "\r\x1b[K")
            self.in_place = stream if in_place else None
            if text:
                self._send(stream, text)

    def _send(self, stream: TextIO | None, text: str) -> None:
        """Write and flush. A stream that can't be written to leads nowhere from then on."""
        if stream is None:
            return
        try:
            stream.write(text)
            stream.flush()
        except OSError as error:
            with suppress(OSError):  # of streams without a descriptor
                if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
                    error = BrokenPipeError(errno.EPIPE, "the terminal was closed")
            if stream is sys.stdout:
                self.failure = self.failure or error
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)

    def _painted(self, text: str, style: str) -> str:
        """Visible text in a style's colour if colours are supported: on a terminal, unless NO_COLOR is set."""
        stream, text = self._stream, visible(text)
        is_plain = stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb"
        if not text or not style or is_plain or os.environ.get("NO_COLOR"):
            return text
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    @contextmanager
    def progress(self, total: int, completed: int = 0) -> Iterator[Progress]:
        """A bar on a terminal, a line every few seconds elsewhere."""
        stream = self._stream
        if self.quiet or stream is None:
            yield Progress()
        elif _is_screen(stream):
            try:
                with _bar(total, completed, self, stream) as self.bar:
                    yield self.bar
            finally:
                self.bar = self.in_place = None
        else:
            yield _Lines(self, total, completed)


class Progress:
    """Progress that is not shown; the base class of those that are."""

    def update(self, completed: int, text: str) -> None:
        """Set the number of completed units, and the text beside it."""

    def note(self, text: str) -> None:
        """Set what is being done between two units; empty: nothing else."""


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


def _is_screen(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be written again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class _Screen(io.StringIO):
    """A terminal as a file, which may be closed while something is written to it."""

    def __init__(self, terminal: Terminal, stream: TextIO) -> None:
        super().__init__()
        self.terminal, self.stream = terminal, stream

    def write(self, text: str) -> int:
        self.terminal._put(self.stream, text, in_place=True)
        return len(text)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()


def steady_streams() -> None:
    """Make standard output and error writable whatever they are: closed, or in an encoding that lacks characters.

    Closed ones are opened on the null device: else the next file that is opened would take their descriptor, and with
    it what libraries print. Characters that can't be written are replaced.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


@contextmanager
def _bar(total: int, completed: int, terminal: Terminal, stream: TextIO) -> Iterator[Progress]:
    from rich.console import Console  # takes a tenth of a second, so only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        MofNCompleteColumn(),
        BarColumn(None),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(file=_Screen(terminal, stream)), transient=False) as rich:
        task = rich.add_task("", total=total, completed=completed, text="")

        class Bar(Progress):
            text = ""

            def update(self, completed: int, text: str) -> None:
                self.text = text
                rich.update(task, completed=completed, text=text)

            def note(self, text: str) -> None:
                rich.update(task, text=f"{text} …" if text else self.text)

        yield Bar()


def visible(text: str) -> str:
    """Text whose control characters are written as escapes, so that a terminal shows them."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Visible text without line feeds and tabs, cut if it is very long."""
    text = visible(text.strip()).replace("\r\n", "\n").replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


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
    for size, suffix in ((1e21, " Z"), (1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"

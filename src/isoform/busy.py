"""How busy other processes keep the processor, by the system's own counters, and how many threads that leaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
LEAST_SECONDS = 1.0
"""Of an interval: the system counts in hundredths of a second."""
TOLERANCE = 0.5
"""Cores that may be wanted beyond those there are."""


def num_cores() -> int:
    """The cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # of Linux alone
        return os.cpu_count() or 1


class OtherProcesses:
    """What other processes do, from when it was made; where the system doesn't count that (it does on Linux), by the
    load average of the last minute."""

    def __init__(self, stat: Path = STAT) -> None:
        self.stat = stat
        self.before = self._read()

    def _read(self) -> tuple[float, float, float | None]:
        """Seconds of the clock, of this process on all cores, and of all processes (None: unknown)."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return time.perf_counter(), own, _busy_seconds(self.stat)

    @property
    def seconds_left(self) -> float:
        """Until there is an answer."""
        return LEAST_SECONDS + self.before[0] - time.perf_counter()

    def num_busy_cores(self) -> float | None:
        """The mean number of cores that they kept busy since the last answer; None if that was less than a second ago,
        or the system doesn't say."""
        now, before = self._read(), self.before
        elapsed, own = now[0] - before[0], now[1] - before[1]
        if elapsed < LEAST_SECONDS:
            return None
        self.before = now
        if now[2] is not None and before[2] is not None:
            return max(0.0, (now[2] - before[2] - own) / elapsed)
        try:
            return max(0.0, os.getloadavg()[0] - own / elapsed)
        except (AttributeError, OSError):  # Windows has none
            return None


def _busy_seconds(stat: Path) -> float | None:
    """Seconds that all cores have worked since the system started; those that a hypervisor took away are counted."""
    try:
        name, *ticks = stat.read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, *others = map(int, ticks[:8])
        return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK") if name == "cpu" else None
    except (OSError, ValueError):
        return None


def advice(busy: float | None, threads: int, cores: int) -> str:
    """What to do about the cores that other processes keep busy; empty if there is nothing to do: enough of them are
    free, or one thread is all there is."""
    if busy is None or threads == 1 or busy + threads <= cores + TOLERANCE:
        return ""
    fewer = max(1, min(threads - 1, int(cores - busy)))
    return (
        f"other processes keep {busy:.1f} of {cores} cores busy, and {threads} threads wait for one another at every "
        f"product; fewer are likely to be faster: --threads {fewer}"
    )

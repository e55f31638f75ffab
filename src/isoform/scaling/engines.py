"""Where the commands of a study run: on this machine, in a Ray cluster, or under Slurm.

A command is a list of arguments like `isoform train RECIPE --out FOLDER`: it can be resumed, and does nothing if it has
already finished. So an engine is stateless: it starts commands, returns their exit codes and terminates them; restarts
are the caller's business. Only strings are sent between machines, never objects of this package; the nodes of a cluster
must share a file system and have the same environment installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isoform.files import open_own
from isoform.machine import import_optional

CANNOT_START = 127
"""Exit code of a command that could not be started, as in shells; its log contains the reason."""


@dataclass(frozen=True)
class Command:
    """A process to run: its arguments, additional environment variables, and the file for its output."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    log: Path


@dataclass(eq=False)
class Ticket:
    """A started command: the engine's handle of it, and whether it was asked to stop."""

    handle: Any
    is_stopped: bool = False


class Engine(ABC):
    """Where commands run, each with `threads` CPUs, set as OMP_NUM_THREADS unless its own environment sets that."""

    threads: int

    @property
    @abstractmethod
    def slots(self) -> int:
        """Maximal number of concurrent commands; large if the engine queues commands itself."""

    @abstractmethod
    def start(self, command: Command) -> Ticket:
        """Start or queue a command; its output is appended to its log."""

    def start_all(self, commands: Sequence[Command]) -> list[Ticket]:
        """Start several commands, together if that shortens a queue."""
        return [self.start(command) for command in commands]

    @abstractmethod
    def code(self, ticket: Ticket) -> int | None:
        """Exit code, or minus the signal that ended the command; None while it runs or waits.

        It is -9 for a command lost with its node, and -15 for one stopped before it began.
        """

    def stop(self, ticket: Ticket) -> None:
        """Ask a command to save and exit (SIGTERM), without waiting.

        Further calls do nothing: a second SIGTERM would end a run before it has saved.
        """
        if not ticket.is_stopped:
            ticket.is_stopped = True
            self._end(ticket)

    @abstractmethod
    def _end(self, ticket: Ticket) -> None:
        """Send SIGTERM, once."""

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release the engine's resources; all commands should have ended."""

    def _arguments(self, command: Command) -> tuple[list[str], dict[str, str], str, str]:
        """Arguments of `launch`, as plain values; log and current folder are absolute paths."""
        environment = {"OMP_NUM_THREADS": str(self.threads), **dict(command.environment)}
        return list(command.words), environment, str(command.log.absolute()), str(Path.cwd())


def launch(words: list[str], environment: dict[str, str], log: str, folder: str) -> subprocess.Popen[bytes] | None:
    """Start a process in a folder, its output appended to a log; None if it can't start, with the error in the log."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", opener=open_own) as file:
        try:
            return subprocess.Popen(
                words,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            file.write(f"{words[0]} can't be started: {error}\n".encode())
            return None


def run(words: list[str], environment: dict[str, str], log: str, folder: str, signals: tuple[int, ...]) -> int:
    """Launch a process and wait for its exit code; the first of `signals` to arrive is passed on to it as SIGTERM.

    This is all of this package that a node runs. Signals are recorded and checked between waits, so that none is lost
    while the process is starting.
    """
    with _record_signals(signals) as received:
        process = launch(words, environment, log, folder) if not received else None
        if process is None:
            return -signal.SIGTERM if received else CANNOT_START
        while not received:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
        process.terminate()
        return process.wait()


@contextlib.contextmanager
def _record_signals(signals: tuple[int, ...]) -> Iterator[list[int]]:
    received: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class LocalEngine(Engine):
    """Processes of this machine, at most `workers` at once.

    They outlive the process that started them if it is killed. A Ctrl-C at the terminal reaches them too.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads

    @property
    def slots(self) -> int:
        return self.workers

    def start(self, command: Command) -> Ticket:
        return Ticket(launch(*self._arguments(command)))

    def code(self, ticket: Ticket) -> int | None:
        return CANNOT_START if ticket.handle is None else ticket.handle.poll()

    def _end(self, ticket: Ticket) -> None:
        if ticket.handle is not None:
            ticket.handle.terminate()


class RayEngine(Engine):
    """Tasks of the Ray cluster at RAY_ADDRESS (`auto`: that of this machine), by default of a new one.

    Without an address Ray could also join the cluster that another study started, which ends with that study. Ray does
    not retry a task that is lost with its node or worker: the caller decides. Ray ends the tasks when the process that
    started them ends.
    """

    def __init__(self, workers: int, threads: int, *, gpus: float = 0) -> None:
        self.threads, self.ray = threads, import_optional("ray", extra="cluster")
        self.needs = {"CPU": threads, **({"GPU": gpus} if gpus else {})}
        self.owns_cluster = not self.ray.is_initialized()
        if self.owns_cluster:
            with _preserve_sigterm():
                self._connect(workers)
        if self.slots == 0:
            self.close()
            resources = " and ".join(f"{number} {what}" for what, number in self.needs.items())
            raise ValueError(f"no node of the Ray cluster has {resources}; request fewer for each command")
        self.run = self.ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run)

    def _connect(self, workers: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"num_cpus": workers * self.threads, "include_dashboard": False}
            options |= {"object_store_memory": 10**8}  # it stores only exit codes
        try:
            self.ray.init(address, **options)
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster answers at RAY_ADDRESS={address}; start it, or unset RAY_ADDRESS"
            ) from error

    @property
    def slots(self) -> int:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(min(int(node.get(what, 0) // number) for what, number in self.needs.items()) for node in nodes)

    def start(self, command: Command) -> Ticket:
        return Ticket(self.run.remote(*self._arguments(command), (signal.SIGINT, signal.SIGTERM)))

    def code(self, ticket: Ticket) -> int | None:
        ready, _ = self.ray.wait([ticket.handle], timeout=0)
        if not ready:
            return None
        errors = self.ray.exceptions
        try:
            return self.ray.get(ticket.handle)
        except errors.TaskCancelledError:
            return -signal.SIGTERM
        except errors.RayTaskError:
            raise  # from `run`: the node lacks the package, or doesn't share the file system
        except errors.RayError:
            return -9

    def _end(self, ticket: Ticket) -> None:
        self.ray.cancel(ticket.handle, force=False)  # sends SIGINT, which `run` passes on as SIGTERM

    def close(self) -> None:
        if self.owns_cluster:
            self.ray.shutdown()


class SlurmEngine(Engine):
    """Jobs under Slurm, submitted by submitit; commands started together form one array.

    They outlive the process that submitted them. Slurm is configured not to requeue them, since the caller restarts
    them, and to send SIGTERM before their time limit. submitit pickles the call of `run`, by its name and with plain
    values.
    """

    def __init__(
        self,
        workers: int,
        threads: int,
        folder: Path,
        *,
        gpus: int = 0,
        timeout_min: int = 240,
        partition: str | None = None,
        cluster: Literal["slurm", "local"] = "slurm",
    ) -> None:
        self.threads, self.cluster = threads, cluster
        submitit = import_optional("submitit", extra="cluster")
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=cluster)
        except RuntimeError as error:
            raise ValueError(f"Slurm can't be used here: {error}; choose another engine") from error
        self.executor.update_parameters(
            name="isoform",
            timeout_min=timeout_min,
            cpus_per_task=threads,
            gpus_per_node=gpus or None,
            slurm_partition=partition,
            slurm_array_parallelism=workers,
            slurm_additional_parameters={"signal": "TERM@90", "no-requeue": True},
        )
        self.patience = 30.0 if cluster == "slurm" else 0.0
        """Seconds between checks of the queue, and until a job that left it without a result counts as lost."""
        self.queue: set[str] | None = None
        self.queue_seen = -self.patience
        self.missing_since: dict[Ticket, float] = {}

    @property
    def slots(self) -> int:
        return 1000  # Slurm's own default for the size of an array

    def start(self, command: Command) -> Ticket:
        return self.start_all([command])[0]

    def start_all(self, commands: Sequence[Command]) -> list[Ticket]:
        if not commands:
            return []
        # Slurm sends signals to every process of a job; passed on, they would arrive twice.
        signals = () if self.cluster == "slurm" else (signal.SIGTERM, signal.SIGUSR2)
        with self.executor.batch():
            jobs = [self.executor.submit(run, *self._arguments(command), signals) for command in commands]
        return [Ticket(job) for job in jobs]

    def code(self, ticket: Ticket) -> int | None:
        now, job = time.monotonic(), ticket.handle
        has_ended = job.done() if self.cluster == "local" else self._has_left_queue(job.job_id, now)
        if job.paths.result_pickle.exists():
            return job.result()
        if not has_ended:
            self.missing_since.pop(ticket, None)
            if ticket.is_stopped and self.cluster == "local":
                self._end(
                    ticket
                )  # a local job loses a signal that arrives as it starts; `run` passes on only the first
        elif now - self.missing_since.setdefault(ticket, now) >= self.patience:
            return -signal.SIGTERM if ticket.is_stopped else -9
        return None

    def _has_left_queue(self, job_id: str, now: float) -> bool:
        """Whether a job has left Slurm's queue, by squeue: sacct, which submitit uses, is not on every cluster."""
        if now - self.queue_seen >= self.patience:
            words = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            result = subprocess.run(words, capture_output=True, text=True, check=False)
            self.queue, self.queue_seen = set(result.stdout.split()) if result.returncode == 0 else None, now
        return self.queue is not None and job_id not in self.queue

    def _end(self, ticket: Ticket) -> None:
        job = ticket.handle
        if self.cluster == "slurm":
            job.cancel(check=False)
        elif not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)  # a local job's cancel() would give it a second to save


@contextlib.contextmanager
def _preserve_sigterm() -> Iterator[None]:
    """Restore this process's handler of SIGTERM, which ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def build_engine(
    name: Literal["local", "ray", "slurm"],
    workers: int,
    threads: int,
    folder: Path,
    *,
    gpus: int = 0,
    timeout_min: int = 240,
    partition: str | None = None,
) -> Engine:
    """An engine for commands of `threads` CPUs each, `workers` of them at once, unless a cluster sets the number.

    folder: for Slurm's scripts; gpus: of each command in a cluster; timeout_min: time limit of a Slurm job in minutes,
    shortly before which it is asked to stop. Raises ValueError for missing packages or clusters.
    """
    match name:
        case "local":
            return LocalEngine(workers, threads)
        case "ray":
            return RayEngine(workers, threads, gpus=gpus)
        case "slurm":
            return SlurmEngine(workers, threads, folder, gpus=gpus, timeout_min=timeout_min, partition=partition)

"""Where the commands of a study run: on this machine, in a Ray cluster, or under Slurm.

A command is a line of words like `isoform train RECIPE --out FOLDER`: it can be resumed, and does nothing when it is
done already. So an engine needs no memory of its own: it starts commands, says how they ended and asks them to end; who
starts what again, and when, is its caller's business. Between machines go words, never objects of ours; the nodes of a
cluster are expected to share a file system and to have the same environment installed.
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

from isoform.machine import import_optional

CANNOT_START = 127
"""The code of a command that could not be started, as shells have it; its log says why."""


@dataclass(frozen=True)
class Command:
    """A process to run: its words, what is added to its environment, and the file its output goes to."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    log: Path


@dataclass(eq=False)
class Ticket:
    """A command that was started: what its engine knows it by, and whether it was asked to end."""

    handle: Any
    is_stopped: bool = False


class Engine(ABC):
    """Where commands run, each with `threads` CPUs, which it is told by OMP_NUM_THREADS unless it says otherwise."""

    threads: int

    @property
    @abstractmethod
    def slots(self) -> int:
        """Commands that run at once; large where the engine queues those that have to wait."""

    @abstractmethod
    def start(self, command: Command) -> Ticket:
        """Start it, or queue it; its output is added to its log."""

    def start_all(self, commands: Sequence[Command]) -> list[Ticket]:
        """Start several, together where that spares a queue."""
        return [self.start(command) for command in commands]

    @abstractmethod
    def code(self, ticket: Ticket) -> int | None:
        """How it ended: its exit code, or minus the signal that ended it; None while it runs or waits.

        A command that was lost with its node has -9, one that was asked to end before it began -15.
        """

    def stop(self, ticket: Ticket) -> None:
        """Ask it to end after a clean save (SIGTERM), without waiting.

        Asking again does nothing: a second SIGTERM would end a run before it has saved.
        """
        if not ticket.is_stopped:
            ticket.is_stopped = True
            self._end(ticket)

    @abstractmethod
    def _end(self, ticket: Ticket) -> None:
        """Send SIGTERM, once."""

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what the engine holds; commands should have ended before."""

    def _arguments(self, command: Command) -> tuple[list[str], dict[str, str], str, str]:
        """What `launch` takes, as plain values: the log and the current folder by their full paths."""
        environment = {"OMP_NUM_THREADS": str(self.threads), **dict(command.environment)}
        return list(command.words), environment, str(command.log.absolute()), str(Path.cwd())


def launch(words: list[str], environment: dict[str, str], log: str, folder: str) -> subprocess.Popen[bytes] | None:
    """Start words in a folder, their output added to a log; None if that can't be done, which the log then says."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as file:
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
    """Launch words and wait for their exit code; of `signals`, the first is passed on to them as SIGTERM.

    This is all that a node runs of ours. Signals are noted and looked at between waits, so that none is lost while
    the process is being made.
    """
    with _noted(signals) as asked:
        process = launch(words, environment, log, folder) if not asked else None
        if process is None:
            return -signal.SIGTERM if asked else CANNOT_START
        while not asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
        process.terminate()
        return process.wait()


@contextlib.contextmanager
def _noted(signals: tuple[int, ...]) -> Iterator[list[int]]:
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in signals}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Local(Engine):
    """Processes of this machine, as many at once as there are workers.

    They need nobody: if the process that started them is killed, they run on to their end. A Ctrl-C at the terminal
    reaches them as well as it.
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
    """Tasks of a Ray cluster: of the one that RAY_ADDRESS names (`auto`: that of this machine), else of its own.

    Without a name Ray would also take the cluster that another study made for itself, which goes away with it. A task
    that is lost with its node or its worker is not tried again by Ray: the caller decides. When the process that
    started them ends, however it does, Ray ends its tasks.
    """

    def __init__(self, workers: int, threads: int, *, gpus: float = 0) -> None:
        self.threads, self.ray = threads, import_optional("ray", extra="cluster")
        self.needs = {"CPU": threads, **({"GPU": gpus} if gpus else {})}
        self.is_ours = not self.ray.is_initialized()
        if self.is_ours:
            with _own_sigterm():
                self._connect(workers)
        if self.slots == 0:
            self.close()
            wanted = " and ".join(f"{number} {what}" for what, number in self.needs.items())
            raise ValueError(f"no node of the Ray cluster has {wanted}; let each command have fewer")
        self.run = self.ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run)

    def _connect(self, workers: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"num_cpus": workers * self.threads, "include_dashboard": False}
            options |= {"object_store_memory": 10**8}  # exit codes are all that lies there
        try:
            self.ray.init(address, **options)
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster answers at RAY_ADDRESS={address}; start it, or unset that") from error

    @property
    def slots(self) -> int:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(min(int(has.get(what, 0) // number) for what, number in self.needs.items()) for has in nodes)

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
            raise  # ours: the node lacks the package, or doesn't share the file system
        except errors.RayError:
            return -9

    def _end(self, ticket: Ticket) -> None:
        self.ray.cancel(ticket.handle, force=False)  # comes as SIGINT, which `run` passes on as SIGTERM

    def close(self) -> None:
        if self.is_ours:
            self.ray.shutdown()


class SlurmEngine(Engine):
    """Jobs under Slurm, submitted by submitit; those that are started together are one array.

    They outlive the process that submitted them. Slurm is told not to requeue them, since their caller starts them
    again, and to send SIGTERM a while before their time is up. submitit pickles the call of `run`, by its name and
    with plain words.
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
        """Seconds between two looks at the queue, and until a job that left it without a result counts as lost."""
        self.queue: set[str] | None = None
        self.queue_seen = -self.patience
        self.gone_since: dict[Ticket, float] = {}

    @property
    def slots(self) -> int:
        return 1000  # Slurm's own default for the size of an array

    def start(self, command: Command) -> Ticket:
        return self.start_all([command])[0]

    def start_all(self, commands: Sequence[Command]) -> list[Ticket]:
        if not commands:
            return []
        # Slurm itself sends signals to every process of a job; passed on, they would arrive twice.
        signals = () if self.cluster == "slurm" else (signal.SIGTERM, signal.SIGUSR2)
        with self.executor.batch():
            jobs = [self.executor.submit(run, *self._arguments(command), signals) for command in commands]
        return [Ticket(job) for job in jobs]

    def code(self, ticket: Ticket) -> int | None:
        now, job = time.monotonic(), ticket.handle
        is_gone = job.done() if self.cluster == "local" else self._has_left_queue(job.job_id, now)
        if job.paths.result_pickle.exists():
            return job.result()
        if not is_gone:
            self.gone_since.pop(ticket, None)
            if ticket.is_stopped and self.cluster == "local":
                self._end(ticket)  # a local job loses the signal that meets it as it begins; `run` takes only the first
        elif now - self.gone_since.setdefault(ticket, now) >= self.patience:
            return -signal.SIGTERM if ticket.is_stopped else -9
        return None

    def _has_left_queue(self, job_id: str, now: float) -> bool:
        """Whether Slurm has done with a job, as it says itself: sacct, which submitit asks, is not on every cluster."""
        if now - self.queue_seen >= self.patience:
            words = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            said = subprocess.run(words, capture_output=True, text=True, check=False)
            self.queue, self.queue_seen = set(said.stdout.split()) if said.returncode == 0 else None, now
        return self.queue is not None and job_id not in self.queue

    def _end(self, ticket: Ticket) -> None:
        job = ticket.handle
        if self.cluster == "slurm":
            job.cancel(check=False)
        elif not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)  # a local job's cancel() would give it a second to save


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does on SIGTERM, which ray.init would replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """An engine for commands of `threads` CPUs each; `workers` of them at once, where the engine doesn't know better.

    folder is for Slurm's scripts; gpus are each command's in a cluster; a Slurm job has timeout_min minutes, and is
    asked to end before they are over. Raises ValueError for what is absent.
    """
    match name:
        case "local":
            return Local(workers, threads)
        case "ray":
            return RayEngine(workers, threads, gpus=gpus)
        case "slurm":
            return SlurmEngine(workers, threads, folder, gpus=gpus, timeout_min=timeout_min, partition=partition)

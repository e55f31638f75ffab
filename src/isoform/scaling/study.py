"""A study is a list of runs: each has an id that hashes its content, is skipped if finished and resumed if interrupted.

A run is one command, `isoform train FILE --out FOLDER`, so that it survives the process that started it, and any engine
can execute it. POOL/ID.toml is its recipe, POOL/ID its run directory, POOL/ID.log its output.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from isoform.checkpoint.store import is_in_use, newest_step
from isoform.config import differences, dump_toml, from_dict, load_toml, non_defaults
from isoform.files import DamagedFile, StorageError, make_folder, write_text
from isoform.history import with_earlier_names
from isoform.model.baselines import Model, build_module
from isoform.preparation import Prepared
from isoform.recipe import DATA_PATHS, Recipe, is_changeable
from isoform.run import Run, read_divergence, read_summary
from isoform.scaling.engines import Command, Engine, Ticket
from isoform.scaling.ladder import Rung
from isoform.terminal import ExitCode, Terminal, count, duration
from isoform.training.config import Muon, Optimizer, learning_rate_of
from isoform.training.optimizer import optimizer_flops

ATTEMPTS = 3
"""Starts without a new checkpoint in between before a run counts as failed."""

FAILED = "ended with"
"""How the reason of a run begins that ended with an exit code instead of a result."""

RESTARTABLE = (ExitCode.TRANSIENT, ExitCode.INTERRUPTED)
"""Exit codes after which a run is restarted, as after a signal."""


@dataclass(frozen=True)
class Job:
    """One run of a study, and its arm of the comparison."""

    arm: str
    rung: Rung
    id: str
    purpose: str = "ladder"
    """ladder, sweep (of learning rates), verify, or start (of another run)."""
    start: Job | None = None
    """The run from whose model it starts."""


@dataclass(frozen=True)
class Row:
    """The results of a finished run; every published number is computed from these."""

    id: str
    arm: str
    purpose: str
    seed: int
    width: int
    group: int
    parameters: float
    """Effective parameters: training FLOPs per token / 6."""
    tokens: int
    compute: float
    loss: float | None
    """Validation loss, nats per token; None if the run diverged."""
    reason: str = ""
    """Why there is no loss."""
    optimizer_compute: float = 0.0
    """FLOPs of the optimizer's matrix products, which `compute` leaves out: Muon's Newton-Schulz iterations."""
    learning_rate: float = 0.0
    num_layers: int = 0
    num_parameters: int = 0
    num_active_parameters: int = 0
    bits_per_byte: float | None = None
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    tokens_per_second: float = 0.0
    utilisation: float = 0.0
    peak_memory_bytes: int = 0
    energy_joules: float | None = None
    """Of the whole machine; None if its counters can't be read."""
    steps: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    """Further measures, by name."""
    signatures: dict[str, str] = field(default_factory=dict)
    """How a measure was computed, as its library reports it (sacrebleu's signatures)."""
    items: dict[str, str] = field(default_factory=dict)
    """The results of a measure for each test item, by its name, as `items.pack` writes them."""
    machine: dict[str, Any] = field(default_factory=dict)
    data: tuple[dict[str, Any], ...] = ()

    @property
    def total_compute(self) -> float:
        """Training FLOPs with those of the optimizer."""
        return self.compute + self.optimizer_compute

    @property
    def is_finite(self) -> bool:
        """Whether there is a finite loss."""
        return self.loss is not None and math.isfinite(self.loss)


ID_VERSION = 1
"""Increases when a default of a recipe's fields changes. Ids hash the fields that differ from their defaults, so that a
new field that is off by default doesn't change the ids of earlier runs."""


def fingerprint(prepared: Prepared) -> str:
    """Hashes of the data of a recipe, independent of their paths."""
    return ",".join(source.sha256 for source in prepared.split.sources)


def make_job(arm: str, rung: Rung, data: str, purpose: str = "ladder", start: Job | None = None) -> Job:
    """A run with its id: the hash of its recipe's fields other than defaults, with the data's fingerprint instead of
    paths, and the id of the run it starts from instead of its path."""
    content = non_defaults(replace(rung.recipe, sample_prompt="", expected_loss=None))
    content["data"] = non_defaults(replace(rung.recipe.data, path="", validation_path=""))
    if start is not None:
        content["start"] = start.id
    text = json.dumps([ID_VERSION, with_earlier_names(content), data], sort_keys=True)
    return Job(arm, rung, hashlib.sha256(text.encode()).hexdigest()[:16], purpose, start)


def planned_row(job: Job) -> Row:
    """The row of a run before it is made."""
    rung, training = job.rung, job.rung.recipe.training
    return Row(
        id=job.id,
        arm=job.arm,
        purpose=job.purpose,
        seed=rung.seed,
        width=rung.width,
        group=rung.group,
        parameters=rung.parameters,
        tokens=rung.tokens,
        compute=rung.compute,
        loss=None,
        learning_rate=learning_rate_of(training.optimizer),
        num_layers=rung.num_layers,
        steps=training.steps,
        optimizer_compute=_optimizer_compute(job),
    )


def _optimizer_compute(job: Job) -> float:
    """FLOPs of the optimizer's matrix products, those of the run it starts from included."""
    training = job.rung.recipe.training
    flops = float(_update_flops(job.rung.recipe.model, training.optimizer) * training.steps)
    return flops + (0.0 if job.start is None else _optimizer_compute(job.start))


@lru_cache
def _update_flops(model: Model, optimizer: Optimizer) -> int:
    """FLOPs of the matrix products of one update."""
    if not isinstance(optimizer, Muon):
        return 0
    with torch.device("meta"):
        return optimizer_flops(optimizer, build_module(model))


@dataclass
class _Running:
    job: Job
    ticket: Ticket
    step: int


class Study:
    """The runs of a list of jobs, in a pool folder that may be shared with other studies."""

    def __init__(self, jobs: Sequence[Job], pool: Path, imported: Mapping[str, Row] | None = None) -> None:
        """imported: rows by id of runs made elsewhere, used as they are."""
        self.jobs = list({job.id: job for job in jobs}.values())
        self.pool, self.failures = pool, dict[str, str]()
        self.imported = {id: row for id, row in (imported or {}).items() if not row.reason.startswith(FAILED)}
        for job in self.jobs:  # an imported row has no model to start from
            if job.start is not None and self.row(job) is None:
                self.imported.pop(job.start.id, None)
        for job in jobs:
            for path in (self.pool / f"{job.id}.toml", Run(self.pool / job.id).recipe):
                if path.exists():
                    self._check(job, path)

    def _check(self, job: Job, path: Path) -> None:
        """Raises ValueError unless a recipe is that of a job, but for what may change when a run is continued."""
        saved = from_dict(Recipe, load_toml(path))
        start = job.rung.recipe.start if job.start is None else saved.start
        changed = [path for path, _, _ in differences(saved, replace(job.rung.recipe, start=start))]
        if not all(is_changeable(path, DATA_PATHS) for path in changed):
            raise ValueError(
                f"{path} is the recipe of another run with the same id; it was edited or copied: move it and "
                f"{self.pool / job.id} away, or choose another --pool"
            )

    def row(self, job: Job) -> Row | None:
        """The row of a run, if it ended."""
        run, rung, base = Run(self.pool / job.id), job.rung, planned_row(job)
        if (summary := _summary_of(run)) is not None:
            loss = summary["validation_loss"]
            fields = {name: summary[name] for name in _FROM_SUMMARY if name in summary}
            row = replace(base, loss=loss, data=tuple(summary["data"]), **fields)
            return row if row.is_finite else replace(row, loss=None, reason="the validation loss is not finite")
        if (divergence := _divergence_of(run)) is not None:
            return replace(base, reason=f"diverged: {divergence['message'].split(';')[0]}")
        if job.start is not None and (start := self.row(job.start)) is not None and not start.is_finite:
            return replace(base, reason=f"the run {start.id} from which it starts has no loss")
        if job.id in self.failures:
            return replace(base, reason=self.failures[job.id])
        if job.id in self.imported:
            return replace(
                self.imported[job.id],
                arm=job.arm,
                purpose=job.purpose,
                group=rung.group,
                optimizer_compute=base.optimizer_compute,
            )
        return None

    @property
    def rows(self) -> list[Row]:
        """The rows of all runs that ended, in the order of the jobs."""
        return [row for job in self.jobs if (row := self.row(job)) is not None]

    @property
    def pending(self) -> list[Job]:
        """The runs still to be made, the most expensive first, which balances the workers."""
        return sorted((j for j in self.jobs if self.row(j) is None), key=lambda j: (-j.rung.compute, j.id))

    def run(
        self,
        engine: Engine,
        terminal: Terminal,
        *,
        flags: Sequence[str] = (),
        should_stop: Callable[[], bool] = lambda: False,
        poll: float = 0.2,
    ) -> bool:
        """Make the missing runs; returns False if stopped before the end.

        flags: of `isoform train`, such as --device. A run that was killed is restarted from its checkpoint; one that
        another process is making is waited for; one that fails is recorded and skipped.
        """
        make_folder(self.pool)
        waiting, running = self.pending, []
        attempts: dict[str, int] = {}
        total, started = sum(job.rung.compute for job in waiting), time.perf_counter()
        if waiting:
            terminal.say(f"{len(self.jobs) - len(waiting)} of {len(self.jobs)} runs are finished")
        with terminal.progress(100) as bar:
            while waiting or running:
                if should_stop():
                    for current in running:
                        engine.stop(current.ticket)
                    while any(engine.code(current.ticket) is None for current in running):
                        time.sleep(poll)
                    return False
                ready = list(islice(self._ready(waiting), engine.slots - len(running)))
                waiting = [job for job in waiting if job not in ready]
                ready = [job for job in ready if self.row(job) is None]  # another process may have made it meanwhile
                tickets = engine.start_all([self._command(job, flags) for job in ready])
                running += [_Running(job, t, self._step(job)) for job, t in zip(ready, tickets, strict=True)]
                for current in list(running):
                    code = engine.code(current.ticket)
                    if code is None:
                        continue
                    running.remove(current)
                    self._finish(current, code, waiting, attempts, terminal)
                remaining = sum(job.rung.compute for job in waiting) + sum(map(self._remaining_compute, running))
                words = f"% of the compute, {len(waiting) + len(running)} runs to go"
                bar.update(min(99, int(100 * (1 - remaining / total))) if waiting or running else 100, words)
                time.sleep(poll)
        if total:
            terminal.say(f"{count(total)}FLOP in {duration(time.perf_counter() - started)}")
        return True

    def check(self) -> None:
        """Raises StorageError or ValueError if runs failed for another reason than that they diverged: a result would
        be that of another study."""
        if not self.failures:
            return
        runs = "; ".join(f"the run {id} {failure}" for id, failure in self.failures.items())
        number = f"{len(self.failures)} of {len(self.jobs)} runs failed"
        message = f"{number}, so there is no result: {runs}. Correct that and start the same command again"
        if any(failure.startswith(f"{FAILED} {ExitCode.STORAGE}:") for failure in self.failures.values()):
            raise StorageError(errno.EIO, message)
        raise ValueError(message)

    def _command(self, job: Job, flags: Sequence[str]) -> Command:
        path = self.pool / f"{job.id}.toml"
        if not path.exists():
            start = job.rung.recipe.start if job.start is None else str(self.pool / job.start.id)
            write_text(path, dump_toml(replace(job.rung.recipe, start=start)))
        words = (
            sys.executable,
            "-P",
            "-m",
            "isoform.cli",
            "train",
            str(path),
            "--out",
            str(self.pool / job.id),
            "--no_report",
            "--quiet",
        )
        return Command((*words, *flags), (), self.pool / f"{job.id}.log")

    def _ready(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """The jobs that no other process is making and whose start has ended."""
        return (
            job
            for job in jobs
            if (job.start is None or self.row(job.start) is not None) and not is_in_use(self.pool / job.id)
        )

    def _remaining_compute(self, running: _Running) -> float:
        """FLOPs that remain after a run's newest checkpoint."""
        rung = running.job.rung
        return rung.compute * (1 - self._step(running.job) / rung.recipe.training.steps)

    def _step(self, job: Job) -> int:
        """The step of a run's newest checkpoint, by its name."""
        return newest_step(self.pool / job.id / "checkpoints")

    def _finish(
        self, running: _Running, code: int, waiting: list[Job], attempts: dict[str, int], terminal: Terminal
    ) -> None:
        job = running.job
        if (row := self.row(job)) is not None:
            if not row.is_finite:
                terminal.warn(f"the run {job.id} ({_describe(job)}) {row.reason}")
            return
        step = self._step(job)
        attempts[job.id] = 0 if step > running.step else attempts.get(job.id, 0) + 1
        if (code < 0 or code in RESTARTABLE) and attempts[job.id] < ATTEMPTS:
            waiting.insert(0, job)
            return
        log = self.pool / f"{job.id}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        message = lines[-1].removeprefix("isoform: ") if lines else "no output"
        self.failures[job.id] = f"{FAILED} {code}: {message}"
        terminal.warn(f"the run {job.id} ({_describe(job)}) ended with {code}: {message}; its output is in {log}")


_FROM_SUMMARY = (
    "num_parameters",
    "num_active_parameters",
    "bits_per_byte",
    "train_seconds",
    "wall_seconds",
    "tokens_per_second",
    "utilisation",
    "peak_memory_bytes",
    "energy_joules",
    "machine",
)


def _summary_of(run: Run) -> dict[str, Any] | None:
    """The summary of a finished run; None if it isn't finished, or must be finished again since it is damaged."""
    try:
        return read_summary(run) if run.is_finished else None
    except DamagedFile:
        return None


def _divergence_of(run: Run) -> dict[str, Any] | None:
    """Step and message of a run that diverged; None of another, or if it must diverge again since they are damaged."""
    try:
        return read_divergence(run) if run.has_diverged else None
    except DamagedFile:
        return None


def _describe(job: Job) -> str:
    return f"{job.arm}, width {job.rung.width}, {count(job.rung.compute)}FLOP, seed {job.rung.seed}"


def rows_to_json(rows: Iterable[Row]) -> list[dict]:
    """Rows as JSON values."""
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(row).items()} for row in rows]


def rows_from_json(values: Iterable[dict[str, Any]]) -> dict[str, Row]:
    """Rows by id, from the values of `rows_to_json`."""
    rows: dict[str, Row] = {}
    for value in values:
        fields: dict[str, Any] = {**value, "data": tuple(value["data"])}
        rows[value["id"]] = Row(**fields)
    return rows

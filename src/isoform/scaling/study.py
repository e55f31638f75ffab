"""A study is a list of runs: each has an id made of its content, is skipped when done and resumed when cut.

A run is one command, `isoform train FILE --out FOLDER`, so that it survives whatever happens to the process that asked
for it, and any engine can carry it. POOL/ID.toml is its recipe, POOL/ID its run directory, POOL/ID.log what it said.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from isoform.checkpoint.store import is_in_use
from isoform.config import dump_toml, from_dict, load_toml, non_defaults, to_dict
from isoform.files import write_text
from isoform.history import as_before
from isoform.preparation import Prepared
from isoform.recipe import Recipe
from isoform.run import Run
from isoform.scaling.engines import Command, Engine, Ticket
from isoform.scaling.ladder import Rung
from isoform.terminal import ExitCode, Terminal, count, duration

ATTEMPTS = 3
"""Starts without a new checkpoint in between after which a run is given up."""

RESTARTABLE = (ExitCode.TRANSIENT, ExitCode.INTERRUPTED)
"""Endings after which a run is started again, as after a signal that ended it."""


@dataclass(frozen=True)
class Job:
    """One run of a study: which arm of the comparison it belongs to, and what it is."""

    arm: str
    rung: Rung
    id: str
    purpose: str = "ladder"
    """ladder, sweep (of learning rates), verify, or start (of another run)."""
    start: Job | None = None
    """The run whose model it goes on from."""


@dataclass(frozen=True)
class Row:
    """What is known of a finished run; every published number is made of these."""

    id: str
    arm: str
    purpose: str
    seed: int
    width: int
    group: int
    parameters: float
    """As compute counts them: training FLOPs per token / 6."""
    tokens: int
    compute: float
    loss: float | None
    """Held out, nats per token; None if the run diverged."""
    reason: str = ""
    """Why there is no loss."""
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
    """Of the whole machine; None where its counters can't be read."""
    steps: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    """What else was asked of it."""
    signatures: dict[str, str] = field(default_factory=dict)
    """What decides such a number beside the run, as the library that gives it writes it (sacrebleu's signatures)."""
    machine: dict[str, Any] = field(default_factory=dict)
    data: tuple[dict[str, Any], ...] = ()

    @property
    def is_finite(self) -> bool:
        """Whether there is a loss to look at."""
        return self.loss is not None and math.isfinite(self.loss)


ID_VERSION = 1
"""Counts up when a default of a recipe's fields changes. Ids are made of what is said beyond the defaults, so that a
new field, which is off where nobody knew of it, leaves the runs of old studies where they are found."""


def fingerprint(prepared: Prepared) -> str:
    """What the data of a recipe are, wherever they lie."""
    return ",".join(source.sha256 for source in prepared.split.sources)


def make_job(arm: str, rung: Rung, data: str, purpose: str = "ladder", start: Job | None = None) -> Job:
    """A run with its id: the hash of what its recipe says beyond the defaults, with the data's fingerprint in place of
    their paths, and the id of the run it starts from in place of that one's."""
    content = non_defaults(replace(rung.recipe, sample_prompt="", expected_loss=None))
    content["data"] = non_defaults(replace(rung.recipe.data, path="", validation_path=""))
    if start is not None:
        content["start"] = start.id
    text = json.dumps([ID_VERSION, as_before(content), data], sort_keys=True)
    return Job(arm, rung, hashlib.sha256(text.encode()).hexdigest()[:16], purpose, start)


def planned(job: Job) -> Row:
    """What is known of a run before it is made."""
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
        learning_rate=training.optimizer.learning_rate,
        num_layers=rung.num_layers,
        steps=training.steps,
    )


@dataclass
class _Running:
    job: Job
    ticket: Ticket
    step: int


class Study:
    """The runs of a list of jobs in a pool folder that may hold those of other studies."""

    def __init__(self, jobs: Sequence[Job], pool: Path, known: Mapping[str, Row] | None = None) -> None:
        """known: rows of runs that were made elsewhere and are taken as they are."""
        self.jobs = list({job.id: job for job in jobs}.values())
        self.pool, self.known, self.failures = pool, dict(known or {}), dict[str, str]()
        for job in self.jobs:  # what is only known of can't be started from
            if job.start is not None and self.row(job) is None:
                self.known.pop(job.start.id, None)
        for job in jobs:
            self._check(job)

    def _check(self, job: Job) -> None:
        path = self.pool / f"{job.id}.toml"
        if not path.exists():
            return
        there = from_dict(Recipe, load_toml(path))
        start = job.rung.recipe.start if job.start is None else there.start
        if to_dict(there) != to_dict(replace(job.rung.recipe, data=there.data, start=start)):
            raise ValueError(
                f"{path} is the recipe of another run with the same id; it was changed by hand or copied: move it and "
                f"{self.pool / job.id} away, or choose another --pool"
            )

    def row(self, job: Job) -> Row | None:
        """What is known of a run, if it ended."""
        run, rung, base = Run(self.pool / job.id), job.rung, planned(job)
        if run.summary.exists():
            summary = json.loads(run.summary.read_text(encoding="utf-8"))
            loss = summary["validation_loss"]
            taken = {name: summary[name] for name in _FROM_SUMMARY if name in summary}
            row = replace(base, loss=loss, data=tuple(summary["data"]), **taken)
            return row if row.is_finite else replace(row, loss=None, reason="the held-out loss is not finite")
        if run.diverged.exists():
            said = json.loads(run.diverged.read_text(encoding="utf-8"))
            return replace(base, reason=f"diverged: {said['message'].split(';')[0]}")
        if job.start is not None and (start := self.row(job.start)) is not None and not start.is_finite:
            return replace(base, reason=f"the run {start.id} that it starts from has no loss")
        if job.id in self.failures:
            return replace(base, reason=self.failures[job.id])
        if job.id in self.known:
            return replace(self.known[job.id], arm=job.arm, purpose=job.purpose, group=rung.group)
        return None

    @property
    def rows(self) -> list[Row]:
        """What is known of all runs that ended, in the order of the jobs."""
        return [row for job in self.jobs if (row := self.row(job)) is not None]

    @property
    def open(self) -> list[Job]:
        """The runs that are still to be made, the most expensive first, which fills all workers to the end."""
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
        """Make the runs that are missing; False if it was asked to stop before the end.

        flags: of `isoform train`, such as --device. A run that was killed is started again and goes on from its
        checkpoint; one that another process is making is waited for; one that fails is noted and left.
        """
        self.pool.mkdir(parents=True, exist_ok=True)
        waiting, running = self.open, []
        attempts: dict[str, int] = {}
        total, started = sum(job.rung.compute for job in waiting), time.perf_counter()
        if waiting:
            terminal.say(f"{len(self.jobs) - len(waiting)} of {len(self.jobs)} runs are done")
        with terminal.progress(100) as bar:
            while waiting or running:
                if should_stop():
                    for one in running:
                        engine.stop(one.ticket)
                    while any(engine.code(one.ticket) is None for one in running):
                        time.sleep(poll)
                    return False
                free = list(islice(self._free(waiting), engine.slots - len(running)))
                waiting = [job for job in waiting if job not in free]
                free = [job for job in free if self.row(job) is None]  # another process may have made it meanwhile
                tickets = engine.start_all([self._command(job, flags) for job in free])
                running += [_Running(job, one, self._step(job)) for job, one in zip(free, tickets, strict=True)]
                for one in list(running):
                    code = engine.code(one.ticket)
                    if code is None:
                        continue
                    running.remove(one)
                    self._ended(one, code, waiting, attempts, terminal)
                to_go = sum(job.rung.compute for job in waiting) + sum(map(self._left, running))
                words = f"% of the compute, {len(waiting) + len(running)} runs to go"
                bar.update(min(99, int(100 * (1 - to_go / total))) if waiting or running else 100, words)
                time.sleep(poll)
        if total:
            terminal.say(f"{count(total)}FLOP in {duration(time.perf_counter() - started)}")
        return True

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

    def _free(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Those that no other process is making, and whose start is made."""
        return (
            job
            for job in jobs
            if (job.start is None or self.row(job.start) is not None) and not is_in_use(self.pool / job.id)
        )

    def _left(self, one: _Running) -> float:
        """FLOPs that a run still has to go from its newest checkpoint."""
        rung = one.job.rung
        return rung.compute * (1 - self._step(one.job) / rung.recipe.training.steps)

    def _step(self, job: Job) -> int:
        """How far a run's newest checkpoint is, by its name."""
        names = [p.name for p in (self.pool / job.id / "checkpoints").glob("step-*")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def _ended(
        self, one: _Running, code: int, waiting: list[Job], attempts: dict[str, int], terminal: Terminal
    ) -> None:
        job = one.job
        if (row := self.row(job)) is not None:
            if not row.is_finite:
                terminal.warn(f"the run {job.id} ({_words(job)}) {row.reason}")
            return
        step = self._step(job)
        attempts[job.id] = 0 if step > one.step else attempts.get(job.id, 0) + 1
        if (code < 0 or code in RESTARTABLE) and attempts[job.id] < ATTEMPTS:
            waiting.insert(0, job)
            return
        log = self.pool / f"{job.id}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        said = lines[-1].removeprefix("isoform: ") if lines else "nothing"
        self.failures[job.id] = f"ended with {code}: {said}"
        terminal.warn(f"the run {job.id} ({_words(job)}) ended with {code}: {said}; all it said is in {log}")


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


def _words(job: Job) -> str:
    return f"{job.arm}, width {job.rung.width}, {count(job.rung.compute)}FLOP, seed {job.rung.seed}"


def rows_to_json(rows: Iterable[Row]) -> list[dict]:
    """Rows as JSON values."""
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(row).items()} for row in rows]


def rows_from_json(values: Iterable[dict[str, Any]]) -> dict[str, Row]:
    """Rows by id, as they were written."""
    found: dict[str, Row] = {}
    for value in values:
        taken: dict[str, Any] = {**value, "data": tuple(value["data"])}
        found[value["id"]] = Row(**taken)
    return found

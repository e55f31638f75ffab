"""Common to the benchmarks: timing, the commit, machine and versions of a measurement, and the result files."""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from isoform.batch import Batch, GlobalBatch
from isoform.machine import Machine, choose_machine, describe
from isoform.machine import commit as commit_of
from isoform.model.transformer import Transformer
from isoform.objectives.losses import Loss
from isoform.training.config import Training
from isoform.training.trainer import Progress, train_loop

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
CODE = ("src", "benchmarks/*.py", "tests/peers.py", "requirements.lock")
"""What is measured: a change of it makes a commit a different one."""
START = time.perf_counter()
sys.path.insert(0, str(ROOT / "tests"))


def commit() -> str:
    """The commit of the code that is measured, "+changes" if files of it differ from those committed."""
    used = Path(inspect.getfile(choose_machine))
    if not used.is_relative_to(ROOT):
        raise SystemExit(f"isoform is imported from {used}, not from {ROOT}; install or point PYTHONPATH at the latter")
    return commit_of(ROOT, CODE)


COMMIT = commit()
"""When the process started, before anyone can edit a file."""


def save_results(name: str, values: dict[str, object], device: str = "cpu") -> None:
    """Print the values and write them to results/NAME.json, with commit, date, command, machine and versions."""
    about = {
        "commit": COMMIT,
        "date": date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *[Path(a).name for a in sys.argv[1:]]]),
        "total_seconds": round(time.perf_counter() - START),
        "machine": describe(choose_machine(device)),
        "versions": {package: version(package) for package in ("isoform", "torch", "transformers", "numpy")},
    }
    text = json.dumps({**about, **values}, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def summary(numbers: Sequence[float]) -> dict[str, object]:
    """Median, minimum and maximum of repeated measurements."""
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers), "repeats": len(numbers)}


def isoform(*arguments: str) -> dict:
    """The output of `isoform ARGUMENTS --json -q`."""
    process = subprocess.run(
        [sys.executable, "-m", "isoform.cli", *arguments, "--json", "-q"], capture_output=True, text=True
    )
    if process.returncode:
        raise SystemExit(f"isoform {' '.join(arguments)} ended with {process.returncode}: {process.stderr}")
    return json.loads(process.stdout)


def peer(script: str, *arguments: str) -> dict:
    """The JSON object that a peer's script prints."""
    path = Path(__file__).parent / script
    process = subprocess.run(
        [sys.executable, str(path), *arguments], capture_output=True, text=True, env={**os.environ}
    )
    if process.returncode:
        raise SystemExit(f"{script} ended with {process.returncode}: {process.stderr}")
    return json.loads(process.stdout)


def training_steps(
    model: Transformer,
    optimizers: Sequence[torch.optim.Optimizer],
    machine: Machine,
    batches: Callable[[int], GlobalBatch],
    loss: Callable[[Batch], Loss],
    steps: int,
) -> Callable[[], float]:
    """A function that runs `steps` complete steps of our trainer and returns the seconds of training."""
    progress = Progress()
    config = Training(steps=10**6, validate_every=0, checkpoint_every=0)

    def work() -> float:
        goal, before = progress.step + steps, progress.train_seconds
        train_loop(
            model,
            optimizers,
            config,
            batches=batches,
            loss=loss,
            machine=machine,
            seed=0,
            progress=progress,
            log=lambda line: None,
            validate=dict,
            sample=lambda: None,
            save=lambda: None,
            should_stop=lambda: progress.step >= goal,
        )
        return progress.train_seconds - before

    return work


def in_turn(works: dict[str, Callable[[], float | None]], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each function, called in turn, A B A B …, so that drifts of speed affect all equally.

    A function that returns a number is timed by that instead.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            start = time.perf_counter()
            measured = work()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start if measured is None else measured)
    return seconds


def ratios(seconds: dict[str, list[float]], ours: str, peer: str) -> dict[str, object]:
    """The peer's seconds over ours, pair by pair."""
    return summary([b / a for a, b in zip(seconds[ours], seconds[peer], strict=True)])


def beside_the_best(seconds: dict[str, list[float]], num_tokens: int) -> dict[str, object]:
    """Tokens per second of each form of both, and ours as multiples of the fastest of the peer's."""
    theirs = [name for name in seconds if name.startswith("transformers")]
    best = min(theirs, key=lambda name: statistics.median(seconds[name]))
    return {
        "tokens_per_second": {name: summary([num_tokens / s for s in times]) for name, times in seconds.items()},
        "best_of_the_peer": best,
        "times_the_best_of_the_peer": {name: ratios(seconds, name, best) for name in seconds if name not in theirs},
    }

"""Common to the benchmarks: timing, the machine and versions of a measurement, and the result files."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from isoform.batch import Batch, GlobalBatch
from isoform.machine import Machine, choose_machine, describe
from isoform.model.transformer import Transformer
from isoform.objectives.losses import Loss
from isoform.training.config import Training
from isoform.training.trainer import Progress, train_loop

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def save_results(name: str, values: dict[str, object], device: str = "cpu") -> None:
    """Print the values and write them to results/NAME.json, with machine, versions and command."""
    machine = describe(choose_machine(device))
    versions = {package: version(package) for package in ("isoform", "torch", "transformers", "numpy")}
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *[Path(a).name for a in sys.argv[1:]]])
    text = json.dumps({"command": command, "machine": machine, "versions": versions, **values}, indent=1)
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

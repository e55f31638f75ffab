"""Trackers of other libraries: TensorBoard, Weights & Biases and trackio, each a function of metrics and their step.

They are told what metrics.jsonl holds, and keep it where they do: what a run is made of does not depend on them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, get_args

from isoform.config import unknown_name
from isoform.machine import import_optional
from isoform.metrics import LogFunction
from isoform.training.config import Tracker

PROJECT = "isoform"


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for an unknown name, and for a package that isn't installed."""
    for name in names:
        if name not in _BUILDERS:
            raise unknown_name("tracker", name, get_args(Tracker))
        import_optional(name, extra="track")


@contextmanager
def tracking(names: Sequence[str], folder: Path, recipe: Mapping[str, Any], step: int) -> Iterator[list[LogFunction]]:
    """The functions of these trackers, for a run in a folder that begins or continues after a step."""
    with ExitStack() as stack:
        yield [stack.enter_context(_BUILDERS[name](folder, recipe, step)) for name in names]


@contextmanager
def _tensorboard(folder: Path, recipe: Mapping[str, Any], step: int) -> Iterator[LogFunction]:
    """Event files in FOLDER/tensorboard; those of steps after the checkpoint that a run continues from are void."""
    writer = import_optional("torch.utils.tensorboard", extra="track").SummaryWriter(
        folder / "tensorboard", purge_step=step + 1 if step else None
    )

    def log(metrics: dict[str, Any], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, recipe: Mapping[str, Any], step: int) -> Iterator[LogFunction]:
    """A run of the project isoform, named like the folder; a run that continues goes on with its own.
    WANDB_MODE=offline keeps it in FOLDER/wandb."""
    wandb = import_optional("wandb", extra="track")
    number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    settings = {"project": PROJECT, "name": folder.name, "id": number, "resume": "allow"}
    run = wandb.init(**settings, dir=str(folder), config=dict(recipe))
    try:
        yield lambda metrics, step: run.log(metrics, step=step)
    finally:
        run.finish()


@contextmanager
def _trackio(folder: Path, recipe: Mapping[str, Any], step: int) -> Iterator[LogFunction]:
    """A run of the project isoform, named like the folder, in trackio's own folder; `trackio show` draws it."""
    trackio = import_optional("trackio", extra="track")
    with redirect_stdout(sys.stderr):
        run = trackio.init(project=PROJECT, name=folder.name, resume="allow", config=dict(recipe))

    def log(metrics: dict[str, Any], step: int) -> None:
        run.log(metrics, step=step)

    try:
        yield log
    finally:
        with redirect_stdout(sys.stderr):
            trackio.finish()


_BUILDERS: dict[str, Callable[[Path, Mapping[str, Any], int], AbstractContextManager[LogFunction]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}

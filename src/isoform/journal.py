"""What a run writes besides its checkpoints: how it begins, changes, goes on and ends, so that it can be killed at any
call and continued.

Files are written before the manifest that lists them, the manifest of a beginning before recipe.toml; logs are synced
before the checkpoint that states their length; what is superseded is removed after what supersedes it exists.
"""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from isoform.checkpoint.folder import FORMAT, describe_model
from isoform.checkpoint.huggingface import CONFIG
from isoform.checkpoint.store import newest_step, remove_leftovers, tensor_chunks
from isoform.checkpoint.versions import LAYOUT
from isoform.codecs.codec import FILE, Codec
from isoform.codecs.origin import FILES, TEMPLATES, templates_in
from isoform.config import ConfigError, differences, dump_toml
from isoform.files import (
    DISK,
    DamagedFile,
    Entry,
    Log,
    StorageError,
    entry_of,
    hash_file,
    is_temporary,
    make_folder,
    remove,
    remove_temporaries,
    write_chunks,
    write_text,
)
from isoform.manifest import (
    DIVERGED,
    DUE,
    RECIPE,
    SUMMARY,
    WEIGHTS,
    Change,
    Manifest,
    read_manifest,
    verify_files,
    write_manifest,
)
from isoform.metrics import read_metrics
from isoform.recipe import Recipe, is_changeable
from isoform.run import Run, read_recipe, read_summary
from isoform.terminal import Terminal

EARLIER = ".earlier-"
"""The folder of a run that another one overwrites, until that has a checkpoint."""


def is_vacant(folder: Path) -> bool:
    """Whether no run has begun in a folder, and nothing else lies there: what a start leaves that was killed, or that
    ran out of space, is nothing."""
    if any(path.name.startswith(EARLIER) for path in folder.iterdir()):
        return not Run(folder).exists
    names = {path.name for path in folder.iterdir() if not is_temporary(path)} - {".lock", "manifest.json"}
    model = folder / "model"
    if "model" in names and model.is_dir() and not model.is_symlink():
        names.remove("model")
        inside = {path.relative_to(model).as_posix() for path in model.rglob("*") if not is_temporary(path)}
        names |= inside - {CONFIG, FILE, *FILES, TEMPLATES, *templates_in(model)}
    return not names


def _set_aside(folder: Path) -> None:
    """Move all files of a run that is overwritten into a folder of their own, recipe.toml first, so that it is no run
    any more; or go on with that."""
    earlier = next((path for path in folder.iterdir() if path.name.startswith(EARLIER)), None)
    if earlier is None and not Run(folder).exists:
        return
    if earlier is None:
        earlier = folder / f"{EARLIER}{uuid.uuid4().hex[:8]}"
        make_folder(earlier)
    files = [path for path in folder.iterdir() if path.name != ".lock" and not path.name.startswith(EARLIER)]
    for path in sorted(files, key=lambda path: path.name != RECIPE):
        DISK.rename(path, earlier / path.name)
    DISK.sync_folder(folder)


class Journal:
    """The files of one run, while this process trains it."""

    def __init__(self, run: Run, terminal: Terminal, *, overwrite: bool = False) -> None:
        """Raises ConfigError for a folder with something else than a run, DamagedFile for a run whose recipe or model
        isn't as it was written."""
        if not run.exists and not is_vacant(run.folder):
            raise ConfigError(f"{run.folder} is not empty and holds no run; name a new folder with --out")
        self.run, self.terminal, self.continues = run, terminal, run.exists and not overwrite
        self.is_restored = False
        self.manifest = self._read_manifest() if self.continues else None
        if self.manifest is not None:
            verify_files(run.folder, self.manifest, self.manifest.beginning)
        for folder in (run.folder, run.model, run.model / TEMPLATES):
            remove_temporaries(folder)
        remove_leftovers(run.checkpoints)
        self.metrics: Log | None = None
        self.samples: Log | None = None
        self._before_scores: tuple[object, Entry] | None = None
        if self.continues and self.manifest is None and not self.is_restored:
            terminal.warn(
                f"{run.folder} was begun by an earlier version: nothing tells whether its files are as they were "
                f"written; from now on a manifest does"
            )

    def _read_manifest(self) -> Manifest | None:
        """The manifest; None if the run has none, or has lost it and has a checkpoint, which verifies recipe, codec and
        logs. Raises DamagedFile."""
        try:
            return read_manifest(self.run.folder)
        except DamagedFile as error:
            problem = str(error).partition(";")[0]
            if not newest_step(self.run.checkpoints):
                raise DamagedFile(
                    f"{problem}, and without a checkpoint nothing tells what it had; restore it from a copy, or train "
                    f"again with --overwrite or another --out"
                ) from None
        self.terminal.warn(f"{problem}; it is made again from the last checkpoint, with the results")
        self.is_restored = True
        return None

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of what the run was begun with; empty if nothing states them."""
        return {} if self.manifest is None else self.manifest.fingerprints

    def check_fingerprints(self, now: Mapping[str, str], then: Mapping[str, str]) -> None:
        """Raises ConfigError if what a run was made from isn't what it is to continue with."""
        for what, value in now.items():
            if what in then and then[what] != value:
                raise ConfigError(
                    f"the {what} of the run {self.run.folder} changed (fingerprint {then[what]}, now {value}); "
                    f"restore it or start a new run"
                )

    def changes(self, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
        """The fields in which a recipe differs from that of the run, which it is to continue: the values there and now.

        Raises ConfigError listing those that may not change.
        """
        old = read_recipe(self.run)
        changed = differences(old, recipe)
        is_shorter = recipe.training.steps < old.training.steps
        refused = [c for c in changed if not is_changeable(c[0]) or (c[0] == "training.steps" and is_shorter)]
        if refused:
            values = "; ".join(f"{path}: {before!r} there, {now!r} requested" for path, before, now in refused)
            raise ConfigError(
                f"{self.run.folder} holds a run of another recipe; choose another --out, or the same values for: "
                f"{values}"
            )
        return {path: (before, now) for path, before, now in changed}

    def is_complete(self, changes: Mapping[str, Any]) -> bool:
        """Whether a run that is to continue with these changes is finished, and its results are as it wrote them.

        If they aren't, the last checkpoint makes them again. Raises DamagedFile, or ConfigError for a model to train
        further, if there is no checkpoint.
        """
        run, has_checkpoint = self.run, newest_step(self.run.checkpoints) > 0
        if self.is_restored:
            return False
        if run.is_finished and "training.steps" not in changes:
            try:
                self._verify_results()
            except DamagedFile as error:
                if not has_checkpoint:
                    raise
                self.terminal.warn(f"{error}; it is made again from the last checkpoint")
                return False
            return True
        if run.weights.exists() and not has_checkpoint:
            raise ConfigError(
                f"{run.folder} holds a finished model, but no checkpoint from which training could continue; choose "
                f"another --out, or replace that model with --overwrite"
            )
        return False

    def _verify_results(self) -> None:
        run, manifest = self.run, self.manifest
        if manifest is not None:
            verify_files(run.folder, manifest, manifest.files.keys() - set(manifest.beginning))
        elif not run.weights.is_file() or not run.weights.stat().st_size:
            raise DamagedFile(f"{run.weights} is missing or empty; restore it from a copy")
        read_summary(run)

    def begin(
        self,
        recipe: Recipe,
        codec: Codec,
        fingerprints: Mapping[str, str],
        *,
        answers_source: bool,
        step: int = 0,
        changes: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        """Write the files of a run that begins, or what has changed of one that continues from a step."""
        run, manifest = self.run, self.manifest
        if not self.continues:
            _set_aside(run.folder)
            remove(run.model)
        if manifest is None:
            files = self._write_model(recipe, codec, answers_source=answers_source)
            manifest = Manifest({}, fingerprints).with_files(files)
        old = hash_file(run.recipe) if self.continues else None
        if manifest.changes and old == manifest.changes[-1].before:  # killed before that change was written
            manifest = replace(manifest, changes=manifest.changes[:-1])
        if old is not None and changes:
            manifest = replace(manifest, changes=(*manifest.changes, Change(step, changes, old)))
        text = dump_toml(recipe)
        for path, (old_value, new_value) in (changes or {}).items():
            words = f"extending {run.folder}" if path == "training.steps" else f"{run.folder}: {path}"
            unit = " steps" if path == "training.steps" else ""
            self.terminal.say(f"{words} from {old_value} to {new_value}{unit}, after step {step}")
        new = entry_of(RECIPE, text.encode()) if old is None or changes else old
        manifest = manifest.of_beginning.with_files({RECIPE: new})
        if manifest != self.manifest:
            write_manifest(run.folder, manifest)
        if new != old:
            write_text(run.recipe, text)
        self.manifest = manifest

    def _write_model(self, recipe: Recipe, codec: Codec, *, answers_source: bool) -> dict[str, Entry]:
        """Write config and codec; returns all files of model/ but the weights."""
        folder = self.run.model
        make_folder(folder)
        codec.save(folder)
        format = FORMAT if self.is_restored or not self.continues else DUE - 1  # its manifest comes after it
        config = describe_model(recipe.model, answers_source=answers_source, format=format)
        write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_temporary(path)]
        own = [path for path in paths if path != self.run.weights]
        return {f"model/{path.relative_to(folder).as_posix()}": hash_file(path) for path in own}

    def open_logs(self, logs: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Open the logs, cut back to what a checkpoint of this step states of them. Raises DamagedFile."""
        self.metrics = self._log(self.run.metrics, logs, step)
        self.samples = self._log(self.run.samples, logs, step)
        DISK.sync_folder(self.run.folder)

    def _log(self, path: Path, logs: Mapping[str, Mapping[str, Any]], step: int) -> Log:
        stated = logs.get(path.name, {"size": 0, "sha256": None})
        if stated["size"] and not path.exists():
            self.terminal.warn(f"{path} is missing: what it had up to step {step} is lost; it goes on from there")
            return Log(path)
        try:
            return Log(path, stated["size"], stated["sha256"])
        except DamagedFile as error:
            raise DamagedFile(f"{error}, or remove it to continue without what it had up to step {step}") from None

    def log(self, line: Mapping[str, object]) -> None:
        """Append a line of metrics."""
        assert self.metrics is not None
        if "validation_loss" in line:
            self._before_scores = line["step"], self.metrics.entry
        self.metrics.append(json.dumps(line) + "\n")

    def add_sample(self, text: str) -> None:
        """Append a sample."""
        assert self.samples is not None
        self.samples.append(text)

    def close(self) -> None:
        """Close the logs."""
        for log in (self.metrics, self.samples):
            if log is not None:
                log.close()

    def state(self, step: int, *, is_scored: bool = True) -> dict[str, dict[str, Any]]:
        """Name, size and hash of the logs, which are on the disk then, for the state of a checkpoint; of a step that is
        to be validated again, without its validation.

        Raises StorageError for a run directory that was moved or removed: a checkpoint would begin another one.
        """
        assert self.metrics is not None and self.samples is not None
        if not self.run.exists:
            raise StorageError(
                errno.ENOENT,
                f"{self.run.folder} was moved or removed during training, so that step {step} can't be saved; put it "
                f"back and start the same command again",
            )
        self.metrics.sync()
        self.samples.sync()
        metrics = self.metrics.entry
        if not is_scored and self._before_scores is not None and self._before_scores[0] == step:
            metrics = self._before_scores[1]
        return {entry.path: asdict(entry) for entry in (metrics, self.samples.entry)}

    def remove_superseded(self) -> None:
        """Remove the results of an earlier end of this run, or of a run that this one overwrites, which a checkpoint
        of this one supersedes."""
        run = self.run
        for path in (run.summary, run.report, run.weights, run.diverged, *run.folder.glob(f"{EARLIER}*")):
            remove(path)

    def diverge(self, step: int, message: str) -> None:
        """State that the run ended with numbers that aren't finite."""
        assert self.manifest is not None
        entry = write_text(self.run.diverged, json.dumps({"step": step, "message": message}) + "\n")
        self.manifest = self.manifest.with_files({DIVERGED: entry})
        write_manifest(self.run.folder, self.manifest)

    def finish(self, tensors: Mapping[str, Tensor], summary: Mapping[str, object]) -> None:
        """Write the final model and the summary, and list them."""
        assert self.manifest is not None
        weights = write_chunks(self.run.weights, tensor_chunks("model", tensors, {"layout": str(LAYOUT)}))
        text = write_text(self.run.summary, json.dumps(summary, indent=1) + "\n")
        logs = {log.path.name: log.entry for log in (self.metrics, self.samples) if log is not None}
        if self.run.checkpoints.is_dir():
            DISK.sync_folder(self.run.checkpoints)  # so that nothing temporary outlives a finished run
        self.manifest = self.manifest.with_files({WEIGHTS: weights, SUMMARY: text, **logs})
        write_manifest(self.run.folder, self.manifest)


def earlier_logs(run: Run, step: int, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the logs had at a checkpoint of an earlier version, whose state has only the length of the samples.

    Raises DamagedFile if a line before the last one can't be read.
    """
    lines = [line for line in read_metrics(run.metrics) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(run.metrics, text)
    size = min(state["samples_length"], run.samples.stat().st_size if run.samples.exists() else 0)
    return {"metrics.jsonl": {"size": len(text), "sha256": None}, "samples.txt": {"size": size, "sha256": None}}

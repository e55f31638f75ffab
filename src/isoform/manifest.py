"""The manifest of a run: which files it has, by size and hash, so that none is lost or changed unnoticed.

It is sealed by a hash of its own and written before recipe.toml, which says that a run has begun, but after all other
files that it lists; so a run without one is of an earlier version, or has lost it, as the format in its config.json
says. See docs/decisions/0014-manifest-of-a-run.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isoform.files import DamagedFile, Entry, hash_file, read_sealed, write_sealed
from isoform.reading import read_json

NAME = "manifest.json"
FORMAT = 1
RECIPE = "recipe.toml"
MODEL = "model"
WEIGHTS = "model/model.safetensors"
SUMMARY = "summary.json"
DIVERGED = "diverged.json"
CONFIG = "model/config.json"
DUE = 4
"""The format of a run's config.json from which on it has a manifest."""


@dataclass(frozen=True)
class Change:
    """Fields of the recipe that were changed when a run was continued."""

    step: int
    """The step from which it continued."""
    fields: Mapping[str, tuple[Any, Any]]
    """By dotted path: the values before and after."""
    before: Entry
    """The recipe before: still valid, since the process may have ended between writing the manifest and the recipe."""


@dataclass(frozen=True)
class Manifest:
    """The files of a run, by their path in its folder; fingerprints of data and codec; changes of the recipe."""

    files: Mapping[str, Entry]
    fingerprints: Mapping[str, str]
    changes: tuple[Change, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the run ended with a summary."""
        return SUMMARY in self.files

    @property
    def has_diverged(self) -> bool:
        """Whether the run ended with numbers that aren't finite."""
        return DIVERGED in self.files

    @property
    def of_beginning(self) -> Manifest:
        """The same, without the files that are written when a run ends."""
        begun = {path: entry for path, entry in self.files.items() if _is_of_beginning(path)}
        return replace(self, files=begun)

    @property
    def beginning(self) -> list[str]:
        """The files that describe the model, without its weights."""
        return [path for path in self.files if _is_of_beginning(path)]

    def with_files(self, entries: Mapping[str, Entry]) -> Manifest:
        """The same with further files, or new contents of them."""
        return replace(
            self, files={**self.files, **{path: replace(entry, path=path) for path, entry in entries.items()}}
        )


def _is_of_beginning(path: str) -> bool:
    return path == RECIPE or (path.startswith(f"{MODEL}/") and path != WEIGHTS)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run; None if it has none, as those of earlier versions. Raises DamagedFile if it is damaged, or
    missing from a run of today's format."""
    path = folder / NAME
    remedy = f"restore it from a copy; or isoform train --out {folder} makes it again, if there is a checkpoint"
    if not path.exists():
        if _is_due(folder):
            raise DamagedFile(f"{path} is missing; {remedy}")
        return None
    try:
        data = read_sealed(path)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; {remedy}") from None
    try:
        version, fingerprints = int(data["format"]), dict(data["fingerprints"])
        changes = [
            Change(int(c["step"]), {k: (v[0], v[1]) for k, v in c["fields"].items()}, _entry(c["before"]))
            for c in data["changes"]
        ]
        files = {entry.path: entry for entry in map(_entry, data["files"])}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFile(f"{path} is no manifest ({type(error).__name__}: {error}); {remedy}") from None
    if version > FORMAT:
        raise ValueError(f"{path} has format {version}, this isoform reads up to {FORMAT}; upgrade isoform")
    return Manifest(files, fingerprints, tuple(changes))


def _is_due(folder: Path) -> bool:
    """Whether a run has begun here whose config.json is of a format that comes with a manifest."""
    config = folder / CONFIG
    if not (folder / RECIPE).exists() or not config.exists():
        return False
    version = read_json(config).get("format")
    return isinstance(version, int) and version >= DUE


def _entry(values: Mapping[str, Any]) -> Entry:
    return Entry(str(values["path"]), int(values["size"]), str(values["sha256"]))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a run."""
    files = [asdict(replace(entry, path=path)) for path, entry in manifest.files.items()]
    changes = [asdict(change) for change in manifest.changes]
    values = {"format": FORMAT, "files": files, "fingerprints": dict(manifest.fingerprints), "changes": changes}
    write_sealed(folder / NAME, values)


def verify_files(folder: Path, manifest: Manifest, paths: Iterable[str]) -> None:
    """Read files of a run back. Raises DamagedFile naming the first that isn't as the run wrote it; files that the
    manifest doesn't list are none of the run's, and so are damage, too."""
    for path in paths:
        entry, file = manifest.files.get(path), folder / path
        if entry is None or not file.is_file():
            what = "is not listed in the manifest of its run" if file.is_file() else "is missing"
            raise DamagedFile(f"{file} {what}; restore it from a copy or train again with another --out")
        size, sizes = file.stat().st_size, {entry.size, *(change.before.size for change in manifest.changes)}
        actual = hash_file(file) if size in sizes else Entry(path, size, "(not computed)")
        if _same(actual, entry):
            continue
        if path == RECIPE and manifest.changes and _same(actual, manifest.changes[-1].before):
            continue
        remedy = "restore it from a copy or train again with another --out"
        if path == RECIPE:
            remedy = "undo the edit or restore it from a copy, and change what may be changed by flags"
        raise DamagedFile(
            f"{file} is not as the run wrote it: {actual.size} bytes with SHA-256 {actual.sha256[:16]}…, its manifest "
            f"says {entry.size} and {entry.sha256[:16]}…; {remedy}"
        )


def _same(a: Entry, b: Entry) -> bool:
    return (a.size, a.sha256) == (b.size, b.sha256)

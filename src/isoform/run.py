"""The run directory: its files, and how a model is loaded from it.

recipe.toml  manifest.json  metrics.jsonl  summary.json  samples.txt  report.html  checkpoints/  model/
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from isoform.checkpoint.folder import (
    check_size,
    describe_model,
    is_own_folder,
    read_config,
    read_weights,
    write_weights,
)
from isoform.checkpoint.huggingface import (
    CONFIG,
    is_folder,
    read_folder,
    write_folder,
)
from isoform.checkpoint.labels import label_fields
from isoform.checkpoint.special_ids import own_ids, special_ids
from isoform.checkpoint.store import Checkpoint, find_checkpoint, load_tensors
from isoform.checkpoint.versions import upgrade_tensors
from isoform.codecs.codec import TextCodec
from isoform.codecs.document import with_template
from isoform.codecs.numbers import NumberCodec
from isoform.codecs.origin import TOKENIZER_FILE
from isoform.codecs.registry import files_for, load_codec
from isoform.config import from_dict, kind_of, load_toml, to_dict
from isoform.data.packages import PACKAGE, package_folder
from isoform.files import DamagedFile, staged, write_files, write_text
from isoform.manifest import DIVERGED, SUMMARY, WEIGHTS, read_manifest, verify_files
from isoform.metrics import columns, read_metrics
from isoform.model.adapters import adapt, without_adapters
from isoform.model.baselines import build_module
from isoform.model.config import ModelConfig, Pooled
from isoform.model.decoding import decoding_dtype
from isoform.model.network import Network
from isoform.model.presets import PRESETS
from isoform.objectives.config import Causal
from isoform.outside import External, named, parts_of, with_parts
from isoform.reading import check_safetensors, is_url, read_json
from isoform.recipe import Recipe, builtin_recipes, recipe_of
from isoform.trained import (
    Own,
    Trained,
    check_destination,
    check_own,
    codec_in,
    described,
    load_gguf,
    load_saved,
    load_state,
    own_codec_of,
    with_own,
)


@dataclass(frozen=True)
class Run:
    """The files of one run."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def history(self) -> dict[str, list]:
        """The metrics as the columns of a table with a row for each step, NaN where it lacks a field: what a DataFrame
        is made of. docs/metrics.md has the fields. Raises DamagedFile."""
        return columns(read_metrics(self.metrics))

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.txt"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def diverged(self) -> Path:
        """Exists if the run ended with a loss or gradient that isn't finite: the step and the message."""
        return self.folder / "diverged.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def weights(self) -> Path:
        return self.model / "model.safetensors"

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.recipe.exists()

    @property
    def is_finished(self) -> bool:
        """Whether it ended with a summary: by its manifest, since one of fewer steps may still lie there."""
        manifest = read_manifest(self.folder)
        return self.summary.exists() if manifest is None else manifest.is_finished

    @property
    def has_diverged(self) -> bool:
        """Whether it ended with a loss, gradient or weight that isn't finite."""
        manifest = read_manifest(self.folder)
        return self.diverged.exists() if manifest is None else manifest.has_diverged


def next_run(name: str, root: Path = Path("runs")) -> Run:
    """The first of NAME-1, NAME-2, … that doesn't exist."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return Run(root / f"{name}-{number}")


def read_recipe(run: Run) -> Recipe:
    """The recipe of a run. Raises ConfigError if it can't be read."""
    if not run.recipe.stat().st_size:
        raise DamagedFile(f"{run.recipe} is empty; restore it from a copy or start a new run")
    return from_dict(Recipe, load_toml(run.recipe))


def read_summary(run: Run) -> dict[str, Any]:
    """The summary of a finished run. Raises DamagedFile unless it is as the run wrote it."""
    return _read_result(run, SUMMARY)


def read_divergence(run: Run) -> dict[str, Any]:
    """Step and message of a run that diverged. Raises DamagedFile unless they are as the run wrote them."""
    return _read_result(run, DIVERGED)


def _read_result(run: Run, name: str) -> dict[str, Any]:
    manifest = read_manifest(run.folder)
    if manifest is not None:
        verify_files(run.folder, manifest, [name])
    try:
        return read_json(run.folder / name)
    except ValueError as error:  # of a run of an earlier version
        raise DamagedFile(str(error)) from None


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    *,
    codec: Any = None,
    view: Any = None,
    mixers: Sequence[Any] = (),
) -> Trained:
    """Load the model of a run directory, a Hugging Face folder, a GGUF file, or a folder that `save` wrote; or of one
    of these inside an installed package, `package:NAME/PATH`.

    Of a run: its newest checkpoint that verifies, else model/. dtype: of the blocks' matrix products on a CPU; None:
    the one in which the model decodes faster here, measured once for models of its size.

    codec, view, mixers: parts of the user's own that a run was trained with, as objects or by MODULE:NAME. No run
    causes an import: without them NotNamed is raised.

    Raises ValueError if there is no model, no checkpoint yet, or a model of an unknown family; CorruptCheckpoint if all
    checkpoints are damaged.
    """
    trained = load_with(str(path), partial(with_own, codec=codec, view=view, mixers=mixers))
    dtype = dtype if torch.device(device).type == "cpu" else torch.float32
    dtype = decoding_dtype(trained.model) if dtype is None else dtype
    trained.model.set_matmul_dtype(dtype)
    return replace(trained, model=trained.model.to(device).eval(), dtype=dtype)


def load_with(name: str, own: Own) -> Trained:
    """What `load` returns, on the CPU, with the parts of the user's own that a function fills in."""
    path = _model_path(name)
    if path.suffix == ".gguf":
        return load_gguf(path)
    if is_folder(path) and not Run(path).exists:
        model = read_folder(path)
        codec = codec_in(path, model.config, special_ids(read_json(path / CONFIG)))
        codec.origin = replace(codec.origin, is_foreign=True)
        return described(model, codec, path)
    if not Run(path).exists and is_own_folder(path):
        return load_saved(path, own)
    return _load_run(Run(path), own)


def load_beside(recipe: Recipe, path: str) -> Trained:
    """What `load` returns of a model that a recipe starts with or learns from, with the recipe's own parts."""
    return load_with(path, partial(with_parts, parts=parts_of(recipe)))


def _model_path(path: str) -> Path:
    """The path of a model, perhaps inside an installed package."""
    if is_url(path):
        raise ValueError(f"{path} is a URL, and nothing is downloaded; name a folder or file on this machine")
    if not path.startswith(PACKAGE):
        return Path(path)
    package, _, inside = path.removeprefix(PACKAGE).partition("/")
    if ".." in Path(inside).parts or Path(inside).is_absolute():
        raise ValueError(f"{path} leads out of the package; give a path inside it, or the path of the folder itself")
    return package_folder(package) / inside


def recipe_at(path: str, names: Container[str] = ()) -> Recipe:
    """The recipe of the model that `load` returns: that of a run, or one that describes the model. names: those of
    external parts that the user gave. Raises what `load` raises."""
    trained = load_with(path, partial(named, names=names))
    return replace(trained.recipe, model=trained.model.config)


def export(trained: Trained, folder: Path) -> str:
    """Write a model and its tokenizer as a folder for transformers; returns the name of the class that reads it.

    What came with the model (special ids, generation settings, chat template) goes along as it came. Raises ValueError
    naming the fields that no class there can represent, or for a folder that isn't empty: it is written whole or not
    at all.
    """
    check_destination(folder)
    codec, form = trained.codec, trained.transformer.config.form
    ids, files = dict(codec.origin.ids), codec.files()
    if isinstance(codec, TextCodec) and codec.special and not codec.origin.files:
        ids = own_ids(codec.end_of_text, codec.separator if form == "encoder_decoder" else None)
        ends = {"encoder": codec.end_of_text, "encoder_decoder": codec.separator}
        after = codec.end_of_text if isinstance(trained.transformer.config.head, Pooled) else ends.get(form)
        if after is not None:  # which every text has in training
            files[TOKENIZER_FILE] = with_template(files[TOKENIZER_FILE], {codec.special[after]: after})
    ids = {**label_fields(trained.recipe.objective), **ids}
    with staged(folder) as stage:
        architecture = write_folder(trained.transformer, stage, ids)
        fields = special_ids(read_json(stage / CONFIG))
        write_files(stage, files_for(codec, files, fields, folder / TOKENIZER_FILE))
    return architecture


def save(model: Trained | Network, folder: str | Path) -> None:
    """Write a model into a new folder, of a trained one with codec and objective, which `load` reads. A model without a
    codec is given one that writes tokens as their ids.

    Raises ValueError for a folder that isn't empty; it is written whole or not at all.
    """
    folder = Path(folder)
    check_destination(folder)
    network = model.model if isinstance(model, Trained) else model
    if isinstance(model, Trained):
        objective, answers_source = model.recipe.objective, model.answers_source
    else:
        is_transformer = isinstance(network.config, ModelConfig)
        objective = recipe_of(network.config).objective if is_transformer else Causal()
        answers_source = is_transformer and network.config.form == "encoder_decoder"
    config = describe_model(network.config, answers_source=answers_source)
    config["objective"] = {"kind": kind_of(type(objective)), **to_dict(objective)}
    if isinstance(model, Trained):
        own = {"codec": model.recipe.codec, "view": model.recipe.view}
        config |= {kind: to_dict(part) for kind, part in own.items() if isinstance(part, External)}
        config["fingerprint"] = model.codec.fingerprint
    with staged(folder) as stage:
        write_text(stage / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        if isinstance(model, Trained) and not isinstance(model.codec, NumberCodec):
            model.codec.save(stage)
        write_weights(stage / Path(WEIGHTS).name, network)


def _load_run(run: Run, own: Own) -> Trained:
    """The model of a finished run, or the newest checkpoint of another."""
    path = run.folder
    if not run.exists:
        raise ValueError(f"{path} {_what_is_missing(str(path))}")
    manifest = read_manifest(path)
    if manifest is not None:
        verify_files(path, manifest, manifest.beginning)
    recipe = own(read_recipe(run))
    check_own(recipe, path)
    config, model_config = read_config(run.model / CONFIG)
    model_config = with_parts(model_config, parts_of(recipe))
    checkpoint, weights = None, run.weights
    if not run.is_finished:
        checkpoint = find_checkpoint(run.checkpoints)
        if checkpoint is None:
            raise ValueError(f"{path} has no checkpoint yet; continue it with: isoform train --out {path}")
        weights = checkpoint.path / "model.safetensors"
    elif not weights.is_file():
        raise DamagedFile(f"{weights} is missing; restore it from a copy or train again with another --out")
    check_size(run.model / CONFIG, model_config, weights)
    model = build_module(model_config)
    if recipe.training.adapters is not None:
        adapt(model, recipe.training.adapters)
    if checkpoint is not None:
        tensors, step = model_tensors(checkpoint, model), checkpoint.step
    else:
        check_safetensors(weights)
        if manifest is not None:
            verify_files(path, manifest, [WEIGHTS])
        tensors = read_weights(weights, model, layout=int(config.get("layout", 1)))
        step = recipe.training.steps
    load_state(model, tensors)
    without_adapters(model)
    stated = checkpoint.manifest if checkpoint is not None else manifest
    fingerprint = stated.fingerprints.get("codec", "") if stated is not None else ""
    return Trained(
        model,
        own_codec_of(recipe, fingerprint, path) if isinstance(recipe.codec, External) else load_codec(run.model),
        recipe,
        bool(config.get("answers_source", config.get("is_pair"))),
        step,
        stated.fingerprints.get("data", "") if stated is not None else "",
    )


def _what_is_missing(name: str) -> str:
    """Why a name is no trained model, and what to do about it."""
    if not Path(name).exists() and name in builtin_recipes():
        return f"is a recipe, not a trained model; train it with: isoform train {name}"
    if not Path(name).exists() and name in PRESETS:
        return (
            f"is an architecture without weights; train one with: isoform train {name} --data.path TEXT, or download "
            f"published weights into a folder and name that"
        )
    return (
        "is not a run directory (it has no recipe.toml), no Hugging Face folder and no GGUF file; train a model with: "
        "isoform train RECIPE"
    )


def model_tensors(checkpoint: Checkpoint, model: Network) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint, in today's layout."""
    return upgrade_tensors(load_tensors(checkpoint, "model"), layout_of(checkpoint), model)


def layout_of(checkpoint: Checkpoint) -> int:
    """The layout of a checkpoint: the names and shapes of its parameters; see checkpoint/versions.py."""
    return int(checkpoint.manifest.fingerprints.get("layout", 1))

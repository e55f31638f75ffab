"""The run directory: its files, and how a model is loaded from it.

recipe.toml  manifest.json  metrics.jsonl  summary.json  samples.txt  report.html  checkpoints/  model/
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from isoform.checkpoint.gguf.model import read_gguf
from isoform.checkpoint.huggingface import (
    CONFIG,
    INDEX,
    is_folder,
    read_folder,
    write_folder,
)
from isoform.checkpoint.labels import label_fields, with_labels
from isoform.checkpoint.special_ids import own_ids, special_ids
from isoform.checkpoint.store import Checkpoint, find_checkpoint, load_tensors
from isoform.checkpoint.tensors import state_of
from isoform.checkpoint.versions import upgrade_tensors
from isoform.codecs.codec import Codec, TextCodec
from isoform.codecs.document import with_template
from isoform.codecs.image import patches_of
from isoform.codecs.numbers import NumberCodec
from isoform.codecs.origin import FILES, GENERATION, TEMPLATES, TOKENIZER_FILE, read_origin
from isoform.codecs.registry import files_for, load_codec
from isoform.config import from_dict, kind_of, load_toml
from isoform.data.packages import PACKAGE, package_folder
from isoform.files import DamagedFile, is_unfinished, staged, write_files
from isoform.manifest import DIVERGED, SUMMARY, WEIGHTS, read_manifest, verify_files
from isoform.model.adapters import adapt, without_adapters
from isoform.model.baseline_config import Model
from isoform.model.baselines import build_module
from isoform.model.config import Linear, ModelConfig, Pooled
from isoform.model.cost import num_parameters
from isoform.model.decoding import decoding_dtype
from isoform.model.network import Network
from isoform.model.presets import PRESETS
from isoform.model.transformer import Transformer
from isoform.objectives.views import View, build_view
from isoform.reading import check_safetensors, is_url, read_json
from isoform.recipe import Recipe, builtin_recipes, recipe_of

FORMAT = 4


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


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model in evaluation mode, its codec and recipe; `answers_source`: whether it was trained on pairs;
    `data`: the fingerprint of the data it was trained on (empty: unknown); `dtype`: of its blocks' products."""

    model: Network
    codec: Codec
    recipe: Recipe
    answers_source: bool
    step: int
    data: str = ""
    dtype: torch.dtype = torch.float32

    @property
    def view(self) -> View:
        """The view of records that it was trained with."""
        return view_of(self.recipe, self.codec)

    @property
    def transformer(self) -> Transformer:
        """The model, for code that needs a Transformer. Raises ValueError for a baseline."""
        if isinstance(self.model, Transformer):
            return self.model
        raise ValueError(
            f"this model is a baseline ({kind_of(type(self.model.config))}), to be compared by isoform evaluate; "
            f"to generate or convert, train its recipe with model.kind = model_config"
        )


def view_of(recipe: Recipe, codec: Codec) -> View:
    """The view of a recipe's objective, for the form of its model."""
    is_causal = isinstance(recipe.model, ModelConfig) and recipe.model.decoder is not None
    return build_view(recipe.objective, codec, is_encoder_decoder=recipe.is_encoder_decoder, is_causal=is_causal)


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


def load(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32) -> Trained:
    """Load the model of a run directory, a Hugging Face folder, or a GGUF file; or of one of these inside an installed
    package, `package:NAME/PATH`.

    Of a run: its newest checkpoint that verifies, else model/. dtype: of the blocks' matrix products on a CPU; None:
    the one in which the model decodes faster here, measured once for models of its size.

    Raises ValueError if there is no model, no checkpoint yet, or a model of an unknown family; CorruptCheckpoint if all
    checkpoints are damaged.
    """
    path = _model_path(str(path))
    if path.suffix == ".gguf":
        trained = _load_gguf(path)
    elif is_folder(path) and not Run(path).exists:
        model = read_folder(path)
        codec = _codec_of(path, model.config, special_ids(read_json(path / CONFIG)))
        codec.origin = replace(codec.origin, is_foreign=True)
        trained = _imported(model, codec, path)
    else:
        trained = _load_run(Run(path))
    dtype = dtype if torch.device(device).type == "cpu" else torch.float32
    dtype = decoding_dtype(trained.model) if dtype is None else dtype
    trained.model.set_matmul_dtype(dtype)
    return replace(trained, model=trained.model.to(device).eval(), dtype=dtype)


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


def recipe_at(path: str) -> Recipe:
    """The recipe of the model that `load` returns: that of a run, or one that describes the model. Raises what that
    raises."""
    trained = load(path)
    return replace(trained.recipe, model=trained.model.config)


def _load_gguf(path: Path) -> Trained:
    """The model of a GGUF file."""
    file = read_gguf(path)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), file.files)
        return _imported(file.model, _codec_of(Path(folder), file.model.config, file.special_ids, path), path)


def _codec_of(folder: Path, config: ModelConfig, ids: Mapping[str, Any], path: Path | None = None) -> Codec:
    """The codec of a folder; tokens are written as their ids if no tokenizer can be read. path: named in warnings."""
    if isinstance(config.stem, Linear) and isinstance(config.head, Pooled):
        channels = 3 if config.stem.num_features % 3 == 0 else 1
        size, patches = math.isqrt(config.stem.num_features // channels), config.context_length - 1
        side, classes = math.isqrt(patches) * size, config.head.num_outputs
        return patches_of(read_origin(folder, ids), size=size, side=side, channels=channels, num_classes=classes)
    try:
        if not (folder / TOKENIZER_FILE).exists():
            raise ValueError("there is no tokenizer.json")
        return load_codec(folder, ids)
    except ValueError as error:
        codec = NumberCodec(config.vocab_size, read_origin(folder, ids))  # raises what is no matter of a tokenizer
        warnings.warn(f"{path or folder}: {error}; tokens are written as their ids", stacklevel=4)
        return codec


def _imported(model: Transformer, codec: Codec, path: Path) -> Trained:
    """A model of another library, with a recipe that describes it. Raises ValueError for tokens that it has no row for;
    rows without a token are common."""
    if codec.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {codec.vocab_size} tokens, the model's table {model.config.vocab_size} rows; "
            f"get the tokenizer of this model, or resize the table and save the model again"
        )
    starts: list[int | None] = []
    if isinstance(codec, TextCodec):
        starts = [codec.special_ids.decoder_start]
        with suppress(ValueError):  # of a model that can't generate
            starts.append(codec.generation_start)
    start = next((i for i in starts if i is not None and not 0 <= i < model.config.vocab_size), None)
    if start is not None:
        raise ValueError(
            f"{path}: decoder_start_token_id={start}, and the model's table has {model.config.vocab_size} rows; "
            f"correct it in {GENERATION} and {CONFIG}"
        )
    recipe = with_labels(recipe_of(model.config), codec.origin.ids)
    return Trained(model, codec, recipe, model.config.form == "encoder_decoder", 0)


def check_destination(folder: Path) -> None:
    """Raises ValueError for a folder to export to that exists and isn't empty; one that an export left unfinished is
    written again."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if folder.is_dir() and is_unfinished(folder):
        ours = {CONFIG, INDEX, *FILES, TEMPLATES}
        names = {name for name in names - ours if not name.endswith((".safetensors", ".partial"))}
    if names:
        raise ValueError(f"{folder} exists and is not empty; name a new folder")


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


def _load_run(run: Run) -> Trained:
    """The model of a finished run, or the newest checkpoint of another."""
    path = run.folder
    if not run.exists:
        raise ValueError(f"{path} {_what_is_missing(str(path))}")
    manifest = read_manifest(path)
    if manifest is not None:
        verify_files(path, manifest, manifest.beginning)
    recipe = read_recipe(run)
    config, model_config = _read_config(run.model / CONFIG)
    checkpoint, weights = None, run.weights
    if not run.is_finished:
        checkpoint = find_checkpoint(run.checkpoints)
        if checkpoint is None:
            raise ValueError(f"{path} has no checkpoint yet; continue it with: isoform train --out {path}")
        weights = checkpoint.path / "model.safetensors"
    elif not weights.is_file():
        raise DamagedFile(f"{weights} is missing; restore it from a copy or train again with another --out")
    if (size := num_parameters(model_config)) > (num_bytes := weights.stat().st_size):
        raise ValueError(
            f"{run.model / CONFIG} describes {size:,} parameters, but {weights} has {num_bytes:,} bytes; they differ"
        )
    model = build_module(model_config)
    if recipe.training.adapters is not None:
        adapt(model, recipe.training.adapters)
    if checkpoint is not None:
        tensors, step = model_tensors(checkpoint, model), checkpoint.step
    else:
        check_safetensors(weights)
        if manifest is not None:
            verify_files(path, manifest, [WEIGHTS])
        try:
            with safe_open(weights, "pt") as file:
                layout = int((file.metadata() or {}).get("layout", config.get("layout", 1)))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors, step = upgrade_tensors(tensors, layout, model), recipe.training.steps
        except SafetensorError as error:
            raise ValueError(f"{weights} is damaged ({error}); copy it again or train it again") from error
    load_state(model, tensors)
    without_adapters(model)
    stated = checkpoint.manifest if checkpoint is not None else manifest
    return Trained(
        model,
        load_codec(run.model),
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


def _read_config(path: Path) -> tuple[dict[str, Any], Model]:
    """The config.json of a run, and the model that it describes. Raises ValueError naming the file."""
    config = read_json(path)
    version, model = config.get("format", 0), config.get("model")
    if not isinstance(version, int) or not isinstance(model, dict):
        raise ValueError(f"{path} is damaged: it needs a number 'format' and a table 'model'; copy it again")
    if version > FORMAT:
        raise ValueError(f"{path} was written in format {version}, this isoform reads up to {FORMAT}; upgrade it")
    kind = {"kind": kind_of(ModelConfig)}  # which older runs omit
    try:
        return config, from_dict(Model, {**kind, **model})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def model_tensors(checkpoint: Checkpoint, model: Network) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint, in today's layout."""
    return upgrade_tensors(load_tensors(checkpoint, "model"), layout_of(checkpoint), model)


def layout_of(checkpoint: Checkpoint) -> int:
    """The layout of a checkpoint: the names and shapes of its parameters; see checkpoint/versions.py."""
    return int(checkpoint.manifest.fingerprints.get("layout", 1))


def load_state(model: Network, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model. Raises ValueError naming those that are missing, unexpected or of another shape."""
    expected = state_of(model)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape]
    if missing or extra or shapes:
        raise ValueError(
            f"these weights are of another model: missing {missing}, unexpected {extra}, of another shape {shapes}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)

"""The run directory: what lies where, and how a model comes back out of it.

recipe.toml  metrics.jsonl  summary.json  samples.txt  report.html  checkpoints/  model/
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from isoform.checkpoint.store import find_checkpoint, load_tensors
from isoform.codecs.codec import Codec
from isoform.codecs.text import load_codec
from isoform.config import dump_toml, from_dict, load_toml, to_dict
from isoform.model.config import ModelConfig
from isoform.model.cost import num_matrix_parameters
from isoform.model.transformer import Transformer
from isoform.recipe import Recipe

FORMAT = 1


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


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run made: a model in evaluation mode, its codec and recipe; `is_pair`: it was given sources."""

    model: Transformer
    codec: Codec
    recipe: Recipe
    is_pair: bool
    step: int


def next_run(name: str, root: Path = Path("runs")) -> Run:
    """A new run directory's name: NAME-1, NAME-2, …"""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return Run(root / f"{name}-{number}")


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def begin(run: Run, recipe: Recipe, codec: Codec, *, is_pair: bool) -> None:
    """Write what a run knows from its start: codec and model config, and last its recipe."""
    run.model.mkdir(parents=True, exist_ok=True)
    codec.save(run.model)
    config = {
        "model_type": "isoform",
        "format": FORMAT,
        "is_pair": is_pair,
        "model": to_dict(recipe.model),
    }
    write_text(run.model / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    write_text(run.recipe, dump_toml(recipe))


LARGE = 4_000_000
"""Parameters in matrices from which a model leaves a CPU's caches, so that smaller products are faster to decode."""


def load(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Trained:
    """The newest state of the model in a run directory: of its newest checkpoint that verifies, else model/.

    dtype: of the products of a large model on a CPU; small ones are faster in float32.

    Raises ValueError where there is no run or nothing was kept yet, CorruptCheckpoint where all is damaged.
    """
    run = Run(Path(path))
    if not run.exists:
        raise ValueError(f"{path} is not a run directory (it has no recipe.toml); train one with: isoform train RECIPE")
    recipe = from_dict(Recipe, load_toml(run.recipe))
    config = json.loads((run.model / "config.json").read_text(encoding="utf-8"))
    if config.get("format", 0) > FORMAT:
        raise ValueError(
            f"{path} was written in format {config['format']}, this isoform reads up to {FORMAT}; upgrade it"
        )
    model = Transformer(from_dict(ModelConfig, config["model"]))
    checkpoint = find_checkpoint(run.checkpoints) if run.checkpoints.is_dir() else None
    weights = run.weights
    if checkpoint is not None:
        tensors, step = load_tensors(checkpoint, "model"), checkpoint.step
    elif weights.exists():
        try:
            tensors, step = load_file(weights), recipe.training.steps
        except SafetensorError as error:
            raise ValueError(f"{weights} is damaged ({error}); copy it again or train once more") from error
    else:
        raise ValueError(f"{path} has no checkpoint yet; continue it with: isoform train --out {path}")
    load_state(model, tensors)
    if torch.device(device).type == "cpu" and num_matrix_parameters(model.config) >= LARGE:
        model.reduce_products(dtype)
    return Trained(model.to(device).eval(), load_codec(run.model), recipe, bool(config["is_pair"]), step)


def model_state(model: Transformer) -> dict[str, torch.Tensor]:
    """The model's tensors by name, a tied table once."""
    state = dict(model.state_dict())
    if model.config.head.tied:
        del state["head.weight"]
    return state


def load_state(model: Transformer, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors into the model. Raises ValueError naming what is missing, unexpected or of another shape."""
    expected = model_state(model)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape]
    if missing or extra or shapes:
        raise ValueError(
            f"these weights are of another model: missing {missing}, unexpected {extra}, reshaped {shapes}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)


def filled(recipe: Recipe, codec: Codec) -> Recipe:
    """The recipe with its vocabulary size taken from the codec. Raises ValueError if it states another."""
    stated = recipe.model.vocab_size
    if stated and stated < codec.vocab_size:
        raise ValueError(
            f"model.vocab_size={stated} is smaller than the codec's {codec.vocab_size} pieces; "
            f"leave it out to take the codec's"
        )
    return replace(recipe, model=replace(recipe.model, vocab_size=stated or codec.vocab_size))

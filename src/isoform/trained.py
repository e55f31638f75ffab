"""A trained model: network, codec, recipe and view; and what makes one of files that aren't a run's."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isoform.checkpoint.folder import check_size, read_config, read_weights
from isoform.checkpoint.gguf.model import read_gguf
from isoform.checkpoint.huggingface import CONFIG, INDEX
from isoform.checkpoint.labels import with_labels
from isoform.checkpoint.tensors import state_of
from isoform.codecs.codec import FILE, Codec, TextCodec
from isoform.codecs.config import Characters
from isoform.codecs.image import patches_of
from isoform.codecs.numbers import NumberCodec
from isoform.codecs.origin import FILES, GENERATION, TEMPLATES, TOKENIZER_FILE, read_origin
from isoform.codecs.registry import load_codec, own_codec
from isoform.config import from_dict, kind_of
from isoform.data.config import Data
from isoform.files import DamagedFile, is_unfinished, write_files
from isoform.manifest import WEIGHTS
from isoform.model.baselines import build_module
from isoform.model.config import Linear, ModelConfig, Pooled
from isoform.model.network import Network
from isoform.model.transformer import Transformer
from isoform.objectives.config import Causal, Objective
from isoform.objectives.corruption import special_tokens
from isoform.objectives.views import View, build_view
from isoform.outside import (
    OPTIMIZER,
    External,
    NotNamed,
    called,
    external,
    name_of,
    parts_of,
    refusal,
    resolved,
    unnamed,
    with_parts,
)
from isoform.recipe import Recipe, recipe_of
from isoform.training.config import Training


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
    """The view of a recipe's objective, for the form of its model; or the recipe's own, which is a View or is called
    with the codec. Raises ValueError for something else, and NotNamed."""
    if recipe.view is not None:
        part = resolved(recipe.view, "view")
        view = part if isinstance(part, View) else called(recipe.view, "view", codec)
        if not isinstance(view, View):
            raise refusal(recipe.view.name, "view", "an isoform.View", view)
        return view
    is_causal = isinstance(recipe.model, ModelConfig) and recipe.model.decoder is not None
    return build_view(recipe.objective, codec, is_encoder_decoder=recipe.is_encoder_decoder, is_causal=is_causal)


def check_destination(folder: Path) -> None:
    """Raises ValueError for a folder to export to that exists and isn't empty; one that an export left unfinished is
    written again."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if folder.is_dir() and is_unfinished(folder):
        ours = {CONFIG, FILE, INDEX, *FILES, TEMPLATES}
        names = {name for name in names - ours if not name.endswith((".safetensors", ".partial"))}
    if names:
        raise ValueError(f"{folder} exists and is not empty; name a new folder")


Own = Callable[[Recipe], Recipe]
"""A function that gives a run's recipe the objects of the parts that the user named."""


def with_own(recipe: Recipe, *, codec: Any, view: Any, mixers: Sequence[Any]) -> Recipe:
    """The recipe of a run with parts of the user's own. Raises ValueError for one that the run doesn't have."""
    for kind, config, part in (("codec", recipe.codec, codec), ("view", recipe.view, view)):
        if part is None:
            continue
        if not isinstance(config, External):
            raise ValueError(f"this model has no {kind} of its own; leave {kind} out")
        named = with_parts(config, {config.name: resolved(external(part), kind)})
        recipe = replace(recipe, codec=named) if kind == "codec" else replace(recipe, view=named)
    return with_parts(recipe, parts_of(tuple(map(external, mixers))))


def check_own(recipe: Recipe, path: Path) -> None:
    """Raises NotNamed for the parts that loading a model takes, if the user didn't name them."""
    needed = {field: name for field, name in unnamed(recipe).items() if field != OPTIMIZER}
    if needed:
        raise NotNamed(str(path), needed)


def own_codec_of(recipe: Recipe, fingerprint: str, path: Path) -> Codec:
    """The codec of the user's own that a model was trained with. Raises ValueError for another one."""
    assert isinstance(recipe.codec, External)
    codec = own_codec(recipe.codec)
    if isinstance(codec, TextCodec):
        codec = codec.with_special(special_tokens(recipe.objective))
    if fingerprint and codec.fingerprint != fingerprint:
        raise ValueError(
            f"the codec {name_of(codec)} has another definition (fingerprint {codec.fingerprint}) than that of {path} "
            f"({fingerprint}); give the codec that it was trained with"
        )
    return codec


def load_gguf(path: Path) -> Trained:
    """The model of a GGUF file."""
    file = read_gguf(path)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), file.files)
        return described(file.model, codec_in(Path(folder), file.model.config, file.special_ids, path), path)


def codec_in(folder: Path, config: ModelConfig, ids: Mapping[str, Any], path: Path | None = None) -> Codec:
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


def described(model: Transformer, codec: Codec, path: Path) -> Trained:
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


def load_saved(folder: Path, own: Own) -> Trained:
    """A model that `save` wrote."""
    config, model_config = read_config(folder / CONFIG)
    if not isinstance(config.get("objective"), dict):
        raise ValueError(f"{folder} is the part of a run that holds its model; name the run directory")
    weights = folder / Path(WEIGHTS).name
    if not weights.is_file():
        raise DamagedFile(f"{weights} is missing; restore it from a copy, or save the model again")
    try:
        objective = from_dict(Objective, config["objective"], where="objective")
        own_parts = {k: from_dict(External, config[k], where=k) for k in ("codec", "view") if k in config}
        recipe = Recipe(
            data=Data(path="", rows="stream" if isinstance(objective, Causal) else "packed"),
            objective=objective,
            model=model_config,
            codec=own_parts.get("codec", Characters()),
            view=own_parts.get("view"),
            training=Training(global_batch_tokens=model_config.context_length),
        )
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    recipe = own(recipe)
    check_own(recipe, folder)
    check_size(folder / CONFIG, recipe.model, weights)
    model = build_module(recipe.model)
    load_state(model, read_weights(weights, model))
    if isinstance(recipe.codec, External):
        codec = own_codec_of(recipe, str(config.get("fingerprint", "")), folder)
    elif (folder / FILE).exists() or (folder / TOKENIZER_FILE).exists():
        codec = load_codec(folder)
    else:
        codec = NumberCodec(max(1, model_config.vocab_size))
    return Trained(model, codec, recipe, bool(config.get("answers_source")), 0)


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

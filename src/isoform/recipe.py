"""A recipe is an experiment as a TOML file: data, codec, objective, model and training.

The built-in ones are in `recipes/`; their first lines give the command, the expected time and the expected result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, assert_never

from isoform.codecs.config import Characters, Codec
from isoform.config import ConfigError, from_dict, kind_of, load_toml, non_defaults, overlay, to_dict, unknown_name
from isoform.data.config import Data
from isoform.history import with_earlier_names
from isoform.model.baseline_config import Baseline, Model
from isoform.model.config import Form, Head, MaskedVocabulary, ModelConfig, Pooled, Vocabulary
from isoform.model.presets import PRESETS
from isoform.objectives.config import (
    Answer,
    Causal,
    Classification,
    Contrastive,
    Masked,
    Objective,
    Seq2seq,
    Tagging,
    requirements_of,
)
from isoform.ranges import NonNegative, Seed, config
from isoform.training.config import Training

DATA_PATHS = ("data.path", "data.validation_path", "data.mixture.*.path", "data.mixture.*.validation_path")
"""Where data lie; what they are is known by their hash."""

CHANGEABLE = (
    "training.steps",
    "training.log_every",
    "training.validate_every",
    "training.sample_every",
    "training.sample_tokens",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    *DATA_PATHS,
    "sample_prompt",
    "expected_loss",
)
"""What may change when a run is continued, by a flag: how long it trains (never less), what it reports and keeps, and
where the same data lie. All else decides which numbers are computed."""

START = "start"
"""The name of the preset that stands for the model in `start`."""
ModelOf = Callable[[str], Model]
"""A function that reads the config of a model on disk."""


@config
class Recipe:
    """One experiment."""

    data: Data = Data()
    codec: Codec = Characters()
    objective: Objective = Causal()
    model: Model = ModelConfig()
    """A Transformer (the default kind), or a baseline to compare it with."""
    training: Training = Training()
    seed: Seed = 0
    """The seed of all random numbers: parameters, order, dropout, samples."""
    start: str = ""
    """A run directory, Hugging Face folder or GGUF file (or package:NAME/PATH of one) whose parameters and codec
    training starts with; model.preset = "start" takes its config, too. The model may differ in dropout, in its
    context and what of positions has no parameters (a rotary base, an extension), and in further special tokens,
    learned positions and a head for other outputs, which are newly initialized; or have experts instead of a
    feed-forward, which are then copies of it."""
    sample_prompt: str = "\n"
    """The prompt of samples during training."""
    expected_loss: NonNegative | None = None
    """The validation loss this recipe was measured to reach."""

    def __post_init__(self) -> None:
        tokens, length = self.training.global_batch_tokens, self.model.context_length
        if tokens % length:
            raise ValueError(
                f"training.global_batch_tokens={tokens} is not a multiple of model.context_length={length}; "
                f"choose {max(1, tokens // length) * length}"
            )
        if isinstance(self.model, ModelConfig):
            _check_stacks(self.model, self.objective)
        else:
            _check_baseline(self.model, self.objective)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return isinstance(self.model, ModelConfig) and self.model.form == "encoder_decoder"

    @property
    def rows_per_step(self) -> int:
        """Rows of a global batch."""
        return self.training.global_batch_tokens // self.model.context_length

    @property
    def source_length(self) -> int | None:
        """The maximum length of a source in tokens; None unless the model is an encoder-decoder."""
        model = self.model
        if not isinstance(model, ModelConfig) or model.encoder is None or model.decoder is None:
            return None
        return model.length(model.encoder)

    @property
    def rows_per_pass(self) -> int:
        """Rows of a forward pass."""
        return min(self.training.micro_batch_size or self.rows_per_step, self.rows_per_step)


def _check_stacks(model: ModelConfig, objective: Objective) -> None:
    name, needs = kind_of(type(objective)), requirements_of(objective)
    if model.form not in needs.forms:
        raise ValueError(
            f"objective.kind={name!r} is for the form {' or '.join(needs.forms)}, and this model's is {model.form}: "
            f"{needs.otherwise}; set that objective, or model.encoder and model.decoder (none: no such stack)"
        )
    output, over = _output_of(model.head)
    if output != needs.answer:
        remedies = {
            "vocabulary": "kind vocabulary or masked_vocabulary",
            "document": "kind pooled, over first, mean or last, and embed false",
            "token": "kind pooled, over each, and embed false",
            "embedding": "kind pooled and embed true",
        }
        raise ValueError(
            f"objective.kind={name!r} needs a head with {needs.answer} outputs, but this one has {output} outputs; set "
            f"model.head to {remedies[needs.answer]}"
        )
    if model.decoder is not None and model.decoder.ahead and not needs.has_next_token(model.form):
        raise ValueError(
            f"objective.kind={name!r} with decoder.ahead={model.decoder.ahead}: it predicts no next token, so that "
            f"there is none after that; set ahead to 0"
        )
    if isinstance(model.head, Pooled) and over == "first" and model.decoder is not None:
        raise ValueError(
            "a decoder's first token attends to itself only; set model.head.over to last or mean, or "
            "model.decoder to none"
        )


def _output_of(head: Head) -> tuple[Answer, str]:
    """What a head has outputs for, and from which hidden states."""
    match head:
        case Vocabulary() | MaskedVocabulary():
            return "vocabulary", "each"
        case Pooled(embed=True, over=over):
            return "embedding", over
        case Pooled(over=over):
            return ("token" if over == "each" else "document"), over
        case _:
            assert_never(head)


def _check_baseline(model: Baseline, objective: Objective) -> None:
    if not isinstance(objective, Causal):
        raise ValueError(
            f"objective {type(objective).__name__} with model.kind={kind_of(type(model))!r}: baselines only predict "
            f"the next token; set objective.kind to causal, or model.kind to model_config"
        )


def builtin_recipes() -> dict[str, Path]:
    """The paths of the built-in recipes, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def load_recipe(name: str, *, start: str = "", model_of: ModelOf | None = None) -> Recipe:
    """A built-in recipe by its name, or a TOML file by its path.

    `preset` in [model] names its base: one of the presets, or `start`, the model that training starts with.
    start: replaces the recipe's own; model_of: reads the config of a model on disk. Raises ConfigError for an unknown
    recipe, key or preset, and for the preset `start` if either is missing.
    """
    builtin = builtin_recipes()
    if not _is_path(name) and name not in builtin:
        raise unknown_name("recipe", name, builtin)
    data = load_toml(Path(name) if _is_path(name) else builtin[name])
    return recipe_from_dict({**data, "start": start} if start else data, model_of)


def load_form(name: str) -> Recipe:
    """A recipe as load_recipe returns it, or for the name of a preset a recipe of that model, for inspection."""
    builtin = builtin_recipes()
    if _is_path(name) or name in builtin:
        return load_recipe(name)
    if name not in PRESETS:
        raise unknown_name("recipe or preset", name, [*builtin, *PRESETS])
    return recipe_of(PRESETS[name].model)


def is_changeable(path: str, fields: Sequence[str] = CHANGEABLE) -> bool:
    """Whether the field of this dotted path is among those that may change, by default when a run is continued."""
    return any(fnmatchcase(path, pattern) for pattern in fields)


def identity_of(recipe: Recipe) -> str:
    """The hash of all fields of a resolved recipe that may not change when a run is continued; fields that are renamed,
    or new ones with their defaults, don't change it."""
    content = with_earlier_names(_without_changeable(non_defaults(recipe), ""))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_changeable(data: Any, where: str) -> Any:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if items is None:
        return data
    paths = {key: (item, f"{where}.{key}" if where else str(key)) for key, item in items}
    inner = {key: _without_changeable(item, path) for key, (item, path) in paths.items() if not is_changeable(path)}
    return inner if isinstance(data, dict) else [*inner.values()]


def is_model_path(name: str) -> bool:
    """Whether a name is that of a trained model on disk: an existing folder, or a GGUF file."""
    return name.endswith(".gguf") or Path(name).is_dir()


def recipe_of(model: ModelConfig) -> Recipe:
    """A recipe that describes a model without one."""
    generating: dict[Form, Objective] = {"encoder_decoder": Seq2seq(), "encoder": Masked(), "decoder": Causal()}
    objectives: dict[Answer, Objective] = {
        "vocabulary": generating[model.form],
        "document": Classification(),
        "token": Tagging(),
        "embedding": Contrastive(),
    }
    objective = objectives[_output_of(model.head)[0]]
    return Recipe(
        data=Data(path="", rows="stream" if isinstance(objective, Causal) else "packed"),
        objective=objective,
        model=model,
        training=Training(global_batch_tokens=model.context_length),
    )


def _is_path(name: str) -> bool:
    return name.endswith(".toml") or "/" in name or "\\" in name


def recipe_from_dict(data: Mapping[str, Any], model_of: ModelOf | None = None) -> Recipe:
    """A recipe from plain data, the preset of its model resolved."""
    return from_dict(Recipe, _without_preset(data, model_of))


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with plain data overlaid; a preset in it replaces the model."""
    return overlay(recipe, _without_preset(changes))


def _without_preset(data: Mapping[str, Any], model_of: ModelOf | None = None) -> dict[str, Any]:
    """Plain data with the model's preset replaced by all its fields."""
    if not isinstance(table := data.get("model", {}), Mapping):
        return dict(data)  # which `from_dict` refuses
    model = dict(table)
    preset = model.pop("preset", None)
    if preset is None:
        return dict(data)
    if preset == START:
        return {**data, "model": _overlaid(_model_of_start(data, model_of), model)}
    if preset not in PRESETS:
        raise unknown_name("preset", str(preset), [START, *PRESETS])
    if (kind := model.get("kind", "model_config")) != "model_config":
        raise ConfigError(
            f"model: preset={preset!r} with kind={kind!r}: presets are Transformers; leave one of them out"
        )
    return {**data, "model": _overlaid(replace(PRESETS[preset].model, vocab_size=0), model)}


def _overlaid(base: Model, changes: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"kind": kind_of(type(base)), **to_dict(overlay(base, changes), in_full=True)}
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _model_of_start(data: Mapping[str, Any], model_of: ModelOf | None) -> Model:
    start = data.get("start")
    if not start or model_of is None:
        raise ConfigError(
            f"model: preset={START!r} is the model that training starts with; name its folder or file with start, or "
            f"--start of isoform train"
        )
    return model_of(start)

"""A recipe is an experiment as a document: data, codec, objective, model and training in one TOML file.

The built-in ones lie in `recipes/`; their first lines say command, expected time and expected result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

from isoform.codecs.config import Characters, Codec
from isoform.config import ConfigError, from_dict, kind_of, load_toml, overlay, to_dict, unknown_name
from isoform.data.config import Data
from isoform.model.baseline_config import Baseline, Model
from isoform.model.config import Head, MaskedVocabulary, ModelConfig, Pooled, Vocabulary
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
from isoform.training.config import Training

START = "start"
"""The preset that is the model which `start` names."""
ModelOf = Callable[[str], Model]
"""Reads the config of a model on disk."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    data: Data = Data()
    codec: Codec = Characters()
    objective: Objective = Causal()
    model: Model = ModelConfig()
    """A Transformer, which is what `kind` means where it is absent, or a baseline to compare it with."""
    training: Training = Training()
    seed: int = 0
    """Of everything random: parameters, order, dropout, samples."""
    start: str = ""
    """A run directory, Hugging Face folder or GGUF file (or package:NAME/PATH of one) whose parameters and codec
    training begins with; model.preset = "start" takes its model, too. The model must be the same, but for dropout,
    further special tokens and a head that gives something else, which begin anew; or have experts where that one has a
    feed-forward, which are then copies of it."""
    sample_prompt: str = "\n"
    """What samples during training continue."""
    expected_loss: float | None = None
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
        """Whether an encoder reads one thing and a decoder says another."""
        return isinstance(self.model, ModelConfig) and self.model.form == "encoder_decoder"

    @property
    def rows_per_step(self) -> int:
        """Rows of a global batch."""
        return self.training.global_batch_tokens // self.model.context_length

    @property
    def source_length(self) -> int | None:
        """The most tokens of a source; None where there is no encoder of its own."""
        model = self.model
        if not isinstance(model, ModelConfig) or model.encoder is None or model.decoder is None:
            return None
        return model.length(model.encoder)

    @property
    def rows_per_pass(self) -> int:
        """Rows that go through the model at once."""
        return min(self.training.micro_batch_size or self.rows_per_step, self.rows_per_step)


def _check_stacks(model: ModelConfig, objective: Objective) -> None:
    name, needs = kind_of(type(objective)), requirements_of(objective)
    if model.form not in needs.forms:
        raise ValueError(
            f"objective.kind={name!r} is for the form {' or '.join(needs.forms)}, and this model's is {model.form}; "
            f"set another objective, or model.encoder and model.decoder (none: there is no such stack)"
        )
    answer, over = _answer_of(model.head)
    if answer != needs.answer:
        wanted = {
            "vocabulary": "kind vocabulary or masked_vocabulary",
            "document": "kind pooled, over first, mean or last, and embed false",
            "token": "kind pooled, over each, and embed false",
            "embedding": "kind pooled and embed true",
        }
        raise ValueError(
            f"objective.kind={name!r} takes a head for each {needs.answer}, but this one is for each {answer}; set "
            f"model.head to {wanted[needs.answer]}"
        )
    if answer == "document" and over == "first" and model.decoder is not None:
        raise ValueError(
            "a decoder's first token has seen nothing of its document; set model.head.over to last or mean, or "
            "model.decoder to none"
        )


def _answer_of(head: Head) -> tuple[Answer, str]:
    """What a head gives, and from which hidden states."""
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
            f"every next token; set objective.kind to causal, or model.kind to model_config"
        )


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def load_recipe(name: str, *, start: str = "", model_of: ModelOf | None = None) -> Recipe:
    """A built-in recipe by its name, or a TOML file by its path. `preset` in [model] names what it starts from: one of
    the presets, or `start`, the model that training begins with.

    start: takes the place of the recipe's own; model_of: reads the config of a model on disk. Raises ConfigError for an
    unknown recipe, key or preset, and for the preset `start` without either.
    """
    known = builtin_recipes()
    if not _is_path(name) and name not in known:
        raise unknown_name("recipe", name, known)
    data = load_toml(Path(name) if _is_path(name) else known[name])
    return recipe_from_dict({**data, "start": start} if start else data, model_of)


def load_form(name: str) -> Recipe:
    """A recipe as load_recipe gives it, or a preset by its name: a recipe of that model, to be looked at."""
    known = builtin_recipes()
    if _is_path(name) or name in known:
        return load_recipe(name)
    if name not in PRESETS:
        raise unknown_name("recipe or preset", name, [*known, *PRESETS])
    return recipe_of(PRESETS[name].model)


def is_model_path(name: str) -> bool:
    """Whether a name is that of a trained model on disk: a folder that is there, or a GGUF file."""
    return name.endswith(".gguf") or Path(name).is_dir()


def recipe_of(model: ModelConfig) -> Recipe:
    """A recipe that says what a model is, for one that comes without."""
    objective: Objective = Causal()
    if model.form == "encoder_decoder":
        objective = Seq2seq()
    elif model.decoder is None:
        answers: dict[Answer, Objective] = {
            "vocabulary": Masked(),
            "document": Classification(),
            "token": Tagging(),
            "embedding": Contrastive(),
        }
        objective = answers[_answer_of(model.head)[0]]
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
    """The recipe with plain data laid over it; a preset among it starts the model afresh."""
    return overlay(recipe, _without_preset(changes))


def _without_preset(data: Mapping[str, Any], model_of: ModelOf | None = None) -> dict[str, Any]:
    """Plain data in which the model's preset is laid out in full."""
    model = dict(data.get("model", {}))
    preset = model.pop("preset", None)
    if preset is None:
        return dict(data)
    if preset == START:
        return {**data, "model": _laid_over(_model_of_start(data, model_of), model)}
    if preset not in PRESETS:
        raise unknown_name("preset", str(preset), [START, *PRESETS])
    if (kind := model.get("kind", "model_config")) != "model_config":
        raise ConfigError(
            f"model: preset={preset!r} with kind={kind!r}: presets are Transformers; leave one of them out"
        )
    return {**data, "model": _laid_over(replace(PRESETS[preset].model, vocab_size=0), model)}


def _laid_over(base: Model, changes: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"kind": kind_of(type(base)), **to_dict(overlay(base, changes), in_full=True)}
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _model_of_start(data: Mapping[str, Any], model_of: ModelOf | None) -> Model:
    start = data.get("start")
    if not start or model_of is None:
        raise ConfigError(
            f"model: preset={START!r} is the model that training begins with; name its folder or file with start, or "
            f"--start of isoform train"
        )
    return model_of(start)

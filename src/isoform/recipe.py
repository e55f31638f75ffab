"""A recipe is an experiment as a TOML file: data, codec, objective, model and training.

The built-in ones are in `recipes/`; their first lines give the command, the expected time and the expected result.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, assert_never

from isoform.annotations import ModelPath
from isoform.codecs.config import Characters, Codec
from isoform.config import (
    ConfigError,
    draft,
    draft_over,
    kind_of,
    load_toml,
    nested,
    non_defaults,
    overlay,
    to_dict,
    unknown_name,
    validated,
)
from isoform.data.config import Data
from isoform.history import with_earlier_names
from isoform.manifest import RECIPE
from isoform.model.baseline_config import Baseline, Model
from isoform.model.config import Form, Head, LowRank, MaskedVocabulary, ModelConfig, Pooled, StackConfig, Vocabulary
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
from isoform.outside import External, named
from isoform.ranges import NonNegative, Seed, config
from isoform.reading import is_url
from isoform.training.config import AdamW, Training, WarmupStableDecay

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
TUNING_ROW, TUNING_BATCH, TUNING_EPOCHS = 512, 1024, 3.0
"""Of training that starts with a model and has no recipe: tokens of a row and of a step, passes over the data."""
RecipeAt = Callable[[str], "Recipe"]
"""A function that describes a model on disk."""


@config
class Recipe:
    """One experiment."""

    data: Data = Data()
    """Where the records come from."""
    codec: Codec = Characters()
    """How records become tokens."""
    objective: Objective = Causal()
    """What is predicted, and from what."""
    view: External | None = None
    """How records are read, if not as the objective does."""
    model: Model = ModelConfig()
    """A Transformer (the default kind), or a baseline to compare it with; --model.preset NAME takes all fields of a
    named architecture."""
    training: Training = Training()
    """Steps, batch, optimizer, schedule, and what is saved when."""
    seed: Seed = 0
    """The seed of all random numbers: parameters, order, dropout, samples."""
    start: ModelPath = ""
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
        tokens, length, most = self.training.global_batch_tokens, self.row_length, self.model.context_length
        if length > most:
            raise ValueError(
                f"data.row_length={length} is more than the model reads at once, model.context_length={most}; set it "
                f"to {most} or less"
            )
        if tokens % length:
            name = "data.row_length" if self.data.row_length else "model.context_length"
            raise ValueError(
                f"training.global_batch_tokens={tokens} is not a multiple of {name}={length}; "
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
    def row_length(self) -> int:
        """Tokens of a row."""
        return self.data.row_length or self.model.context_length

    @property
    def rows_per_step(self) -> int:
        """Rows of a global batch."""
        return self.training.global_batch_tokens // self.row_length

    @property
    def source_length(self) -> int | None:
        """The maximum length of a source in tokens; None unless the model is an encoder-decoder."""
        model = self.model
        if not isinstance(model, ModelConfig) or model.encoder is None or model.decoder is None:
            return None
        return min(model.length(model.encoder), self.data.row_length or model.length(model.encoder))

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


def load_recipe(
    name: str, changes: Mapping[str, Any] | None = None, *, start: str = "", recipe_at: RecipeAt | None = None
) -> Recipe:
    """The recipe of a name, as `draft_recipe` finds it, with changes by dotted path: values, configs or plain data,
    such as {"training.steps": 20, "training.optimizer": Muon()}; model.preset is one of them. With changes the recipe
    expects no loss, which was measured without.

    Raises ConfigError for what doesn't exist, or doesn't fit.
    """
    data = nested(changes or {})
    model = data.get("model")
    preset = str(model.pop("preset", "")) if isinstance(model, dict) else ""
    base = draft_recipe(name, start=start, preset=preset, recipe_at=recipe_at)
    recipe = draft_over(base, {"expected_loss": None, **data}) if changes else base
    return validated(named(recipe, None if is_own_file(name) else {*_texts(data)}))


def is_own_file(name: str) -> bool:
    """Whether a name is that of a recipe's file, whose external parts the user names with it; the recipe.toml of a run
    records names alone."""
    return name.endswith(".toml") and Path(name).name != RECIPE


def _texts(data: Any) -> Iterator[str]:
    """The texts in plain data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping | list):
        for item in data.values() if isinstance(data, Mapping) else data:
            yield from _texts(item)


def draft_recipe(
    name: str, *, start: str = "", preset: str = "", recipe_at: RecipeAt | None = None, adapts: bool = False
) -> Recipe:
    """The recipe of a name, over which flags may be laid before it is `validated`: in this order a built-in recipe, a
    TOML file, a run directory (its recipe), a Hugging Face folder or GGUF file (training that starts with its model),
    or a preset (that model, trained by the defaults).

    start, preset: replace the recipe's own; the name may be empty with one of them. recipe_at: describes a model on
    disk. adapts: whether low-rank adapters are to be trained, which learn at another rate. Raises ConfigError for an
    unknown name, key or preset, and for a model on disk without `recipe_at`.
    """
    if is_url(name) or is_url(start):
        raise ConfigError(f"{name or start} is a URL, and nothing is downloaded; name a file or folder on this machine")
    builtin, folder = builtin_recipes(), Path(name or ".")
    if name in builtin or name.endswith(".toml"):
        return _read(load_toml(builtin.get(name, folder)), start, preset, recipe_at)
    if name and preset:
        raise ConfigError(f"{name} with model.preset={preset!r}: both are models; name one of them")
    if name and (folder / RECIPE).is_file():
        return _read(load_toml(folder / RECIPE), start, "", recipe_at)
    if name and start and is_model_path(name):
        raise ConfigError(f"{name} with start={start!r}: training starts with one model; name one of them")
    if not (name or preset) or is_model_path(name):
        return _tuning(name or start, recipe_at, adapts=adapts)
    if folder.is_file():
        raise ConfigError(f"{name} is no recipe; to train on it: isoform train shakespeare --data.path {name}")
    if "/" in name or "\\" in name:
        raise ConfigError(f"{name} doesn't exist; name a recipe, a preset, a run, a Hugging Face folder or a GGUF file")
    if (name or preset) not in PRESETS:
        raise unknown_name("recipe or preset", name or preset, [*builtin, *PRESETS])
    return replace(recipe_of(replace(PRESETS[name or preset].model, vocab_size=0)), start=start)


def load_form(name: str, recipe_at: RecipeAt | None = None) -> Recipe:
    """The recipe of a name as `draft_recipe` finds it, to look at: a preset has the vocabulary that its makers chose,
    a model on disk its own recipe."""
    if name not in builtin_recipes() and is_model_path(name) and recipe_at is not None:
        return recipe_at(name)
    is_preset = name in PRESETS and name not in builtin_recipes()
    return recipe_of(PRESETS[name].model) if is_preset else draft_recipe(name, recipe_at=recipe_at)


def _read(data: Mapping[str, Any], start: str, preset: str, recipe_at: RecipeAt | None) -> Recipe:
    """The draft of a recipe as plain data, with another start or preset."""
    if start:
        data = {**data, "start": start}
    if preset:
        data = {**data, "model": {**data.get("model", {}), "preset": preset}}
    return draft(Recipe, _without_preset(data, recipe_at))


def _tuning(start: str, recipe_at: RecipeAt | None, *, adapts: bool) -> Recipe:
    """Training that starts with a model on disk and takes its objective; its data are to be named. The numbers were
    measured with a model of 135 million parameters and a small text: docs/log.md."""
    if recipe_at is None:
        raise ConfigError(f"start={start!r} names a model on disk, which can't be read here")
    trained = recipe_at(start)
    context = trained.model.context_length
    length = min(context, TUNING_ROW)
    training = Training(
        epochs=TUNING_EPOCHS,
        global_batch_tokens=length * max(1, TUNING_BATCH // length),
        optimizer=AdamW(learning_rate=1e-3 if adapts else 1e-4, weight_decay=0.01),
        schedule=WarmupStableDecay(warmup_steps=20, decay_fraction=0.9),
    )
    data = Data(path="", rows=trained.data.rows, row_length=length if length < context else 0)
    return Recipe(data=data, objective=trained.objective, model=trained.model, training=training, start=start)


def without_statements(recipe: Recipe, written: Recipe) -> Recipe:
    """A recipe that began as `written`, without what that states of itself alone: the loss that it was measured to
    reach, and where the data are others the prompt of its samples."""
    if recipe == written:
        return recipe
    expected = None if recipe.expected_loss == written.expected_loss else recipe.expected_loss
    is_same = (recipe.data.path, recipe.data.mixture) == (written.data.path, written.data.mixture)
    is_own = is_same or recipe.sample_prompt != written.sample_prompt
    prompt = recipe.sample_prompt if is_own else Recipe().sample_prompt
    return replace(recipe, expected_loss=expected, sample_prompt=prompt)


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
    """Whether a name is that of a trained model on disk: an existing folder, a GGUF file, or one in a package."""
    return name.endswith(".gguf") or name.startswith("package:") or (name != "" and Path(name).is_dir())


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


def recipe_from_dict(data: Mapping[str, Any], recipe_at: RecipeAt | None = None) -> Recipe:
    """A recipe from plain data, the preset of its model resolved."""
    return validated(_read(data, "", "", recipe_at))


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with plain data overlaid; a preset in it replaces the model."""
    return overlay(recipe, _without_preset(changes))


def _without_preset(data: Mapping[str, Any], recipe_at: RecipeAt | None = None) -> dict[str, Any]:
    """Plain data with the model's preset replaced by all its fields."""
    if not isinstance(table := data.get("model", {}), Mapping):
        return dict(data)  # which `draft` refuses
    model = dict(table)
    preset = model.pop("preset", None)
    if preset is None:
        return dict(data)
    if preset == START:
        return {**data, "model": _laid_over(_model_of_start(data, recipe_at), model)}
    if preset not in PRESETS:
        raise unknown_name("preset", str(preset), [START, *PRESETS])
    if (kind := model.get("kind", "model_config")) != "model_config":
        raise ConfigError(
            f"model: preset={preset!r} with kind={kind!r}: presets are Transformers; leave one of them out"
        )
    return {**data, "model": _laid_over(replace(PRESETS[preset].model, vocab_size=0), model)}


def _laid_over(base: Model, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a model with changes, field by field. Lists of blocks are cycles, here as in a stack: each block of
    the list is laid over each block of the preset's that it falls on."""
    changes = dict(changes)
    for side in ("encoder", "decoder"):
        stack, table = getattr(base, side, None), changes.get(side)
        if not isinstance(stack, StackConfig) or not isinstance(table, Mapping):
            continue
        if isinstance(above := table.get("blocks"), list) and above:
            count = math.lcm(len(stack.blocks), len(above))
            below = tuple(stack.blocks[i % len(stack.blocks)] for i in range(count))
            base = replace(base, **{side: replace(stack, blocks=below)})  # pyrefly: ignore
            changes[side] = {**table, "blocks": {str(i): above[i % len(above)] for i in range(count)}}
    return {"kind": kind_of(type(base)), **to_dict(draft_over(base, changes, where="model"), in_full=True)}


def _model_of_start(data: Mapping[str, Any], recipe_at: RecipeAt | None) -> Model:
    start = data.get("start")
    if not start or recipe_at is None:
        raise ConfigError(
            f"model: preset={START!r} is the model that training starts with; name its folder or file with start, or "
            f"--start of isoform train"
        )
    return recipe_at(start).model


def with_adapters(recipe: Recipe, rank: int = 0) -> Recipe:
    """The recipe, perhaps a draft, with low-rank adapters, of another rank than its own unless that is 0."""
    adapters: dict[str, Any] = {"kind": kind_of(LowRank), **({"rank": rank} if rank else {})}
    return draft_over(recipe, {"training": {"adapters": adapters}})

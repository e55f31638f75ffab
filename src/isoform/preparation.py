"""From a recipe to the objects for training: records, codec, view, loader, task, and the sizes of its model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from isoform.batch import GlobalBatch
from isoform.codecs.codec import Codec, TextCodec, check_codec, check_encodings, have_same_vocabulary
from isoform.codecs.config import BPE, Characters
from isoform.codecs.registry import build_codec
from isoform.config import kind_of
from isoform.data.config import Data
from isoform.data.labels import encode_labels, label_names
from isoform.data.loader import Loader, MixtureLoader, ValidationRows, build_loader
from isoform.data.markdown import without_marks
from isoform.data.records import Record, Split, take_fraction, texts_of
from isoform.data.sources import load_source
from isoform.data.tokens import TokenStore, load_tokens
from isoform.mask import Mask
from isoform.model.baseline_config import Model
from isoform.model.config import Convolution, Head, Linear, Lookup, ModelConfig, Pooled, Stem
from isoform.model.cost import Shape, num_parameters, training_flops
from isoform.model.mixers.documents import check_reads_forward
from isoform.model.mixers.external import check_mixer
from isoform.model.parts import Grid, Recurrent
from isoform.model.transformer import Transformer
from isoform.objectives.config import Corruption, Distillation, Objective, WithClasses, requirements_of
from isoform.objectives.corruption import special_tokens
from isoform.objectives.task import NO_TEACHER, Task, build_task, scored_fraction
from isoform.objectives.views import View, check_view
from isoform.outside import External, build_mixer
from isoform.recipe import Recipe
from isoform.run import load_beside
from isoform.terminal import Terminal, count
from isoform.trained import view_of
from isoform.training.config import Training


@dataclass(frozen=True, eq=False)
class Prepared:
    """A recipe, with its vocabulary size filled in, and the objects for training it."""

    recipe: Recipe
    split: Split
    codec: Codec
    view: View
    loader: Loader
    validation: ValidationRows
    bytes_per_token: float | None
    """Of the training text; None unless text is predicted."""
    teacher: Transformer | None = None

    @property
    def answers_source(self) -> bool:
        """Whether the model maps a source to a target, rather than continue a text."""
        has_source = self.split.has_source or self.recipe.is_encoder_decoder
        return has_source or isinstance(self.recipe.objective, Corruption)

    @property
    def task(self) -> Task:
        """The objective with its view and teacher."""
        return build_task(self.recipe.objective, self.view, self.teacher)

    def describe(self) -> list[str]:
        """What is known of data, model and training as soon as they are prepared, as lines."""
        recipe, split, rows = self.recipe, self.split, self.loader.rows_per_epoch
        size = count(sum({source.sha256: source.num_bytes for source in split.sources}.values()))
        vocabulary = f", {self.codec.vocab_size:,} tokens in the vocabulary" * isinstance(self.codec, TextCodec)
        texts = f"{len(split.train):,} to train on, {len(split.validation):,} to validate"
        steps, tokens = recipe.training.steps, recipe.training.global_batch_tokens
        epochs = steps * recipe.rows_per_step / rows
        return [
            f"records        {texts}, {size}B{vocabulary}",
            f"parameters     {num_parameters(recipe.model):,}",
            f"training       {steps:,} steps of {tokens:,} tokens, {epochs:.2g} epochs of {rows:,} rows",
        ]

    @cached_property
    def flops_per_step(self) -> int:
        """Training FLOPs of one global batch; the mean if batches are of several shapes."""
        loader, model = self.loader, self.recipe.model
        weights = torch.cat([b.loss_weights.flatten() for b in global_batch(self, 0).micro_batches])
        scored = scored_fraction(model, weights)
        flops = sum(n * training_flops(model, Shape(*shape, scored)) for shape, n in loader.shapes.items())
        return round(self.recipe.rows_per_step * flops / loader.rows_per_epoch)

    @cached_property
    def tokens_per_step(self) -> float:
        """Positions of one global batch, including padding; the mean if batches are of several shapes."""
        positions = sum(n * rows * length for (rows, length, _), n in self.loader.shapes.items())
        return self.recipe.rows_per_step * positions / self.loader.rows_per_epoch


def prepare(recipe: Recipe, codec: Codec | None = None, terminal: Terminal | None = None) -> Prepared:
    """Load the records, build the codec (or use this one, or that of the model to start from), pack the rows; the
    terminal says which of these it is that takes time.

    Raises ValueError for unsuitable data, that for validation and a teacher included, and what `isoform.load` raises.
    """
    terminal = Terminal(quiet=True) if terminal is None else terminal
    with terminal.doing("preparing the data"):
        with terminal.doing("reading the data"):
            parts, split = load_records(recipe.data)
        recipe = _with_labels(recipe, split)
        if codec is None and recipe.start:
            with terminal.doing(f"loading {recipe.start}"):
                codec = _codec_of_start(recipe)
        elif codec is None:
            with terminal.doing(_codec_in_words(recipe)):
                codec = build_codec(recipe.codec, _texts(recipe, split))
        return _prepared(recipe, parts, split, codec, terminal)


def _prepared(recipe: Recipe, parts: Sequence[Split], split: Split, codec: Codec, terminal: Terminal) -> Prepared:
    """The records under a codec, packed."""
    if isinstance(codec, TextCodec):
        codec = codec.with_special(special_tokens(recipe.objective))
    recipe = with_sizes(recipe, codec)
    view = view_of(recipe, codec)
    _check_masks(recipe.model, view)
    _check_own_parts(recipe, split.train, codec, view)
    with terminal.doing(f"encoding {len(split.train):,} records"):
        tokens = [tokens_of(recipe, take_fraction(part.train, recipe.data.fraction), codec) for part in parts]
    with terminal.doing("packing the rows"):
        names = [part.path for part in recipe.data.mixture] or [""]
        loaders = [_loader(recipe, part, view, name) for part, name in zip(tokens, names, strict=True)]
        loader = _mixture(recipe, loaders)
    recipe = replace(recipe, training=_within_epochs(recipe, loader.rows_per_epoch))
    bytes_per_token = None
    if isinstance(codec, TextCodec) and view.is_text:
        bytes_per_token = float(codec.token_bytes[tokens[0].ids[: 2**20]].mean())
    with terminal.doing(f"encoding {len(split.validation):,} validation records"):
        validation = validation_rows(recipe, split.validation, codec)
    teacher = None
    if isinstance(recipe.objective, Distillation):
        with terminal.doing(f"loading the teacher {recipe.objective.teacher}"):
            teacher = _teacher(recipe, recipe.objective, codec)
    return Prepared(recipe, split, codec, view, loader, validation, bytes_per_token, teacher)


def _codec_in_words(recipe: Recipe) -> str:
    """What building the codec takes."""
    match recipe.codec:
        case BPE(path="", vocab_size=size):
            return f"learning a vocabulary of {size:,} tokens"
        case Characters(alphabet=""):
            return "collecting the characters"
        case _:
            return "building the codec"


def _within_epochs(recipe: Recipe, rows_per_epoch: int) -> Training:
    """The training of a recipe with no more steps than its epochs allow, which it then states."""
    training = recipe.training
    if training.epochs is None:
        return training
    steps = min(training.steps, max(1, math.ceil(training.epochs * rows_per_epoch / recipe.rows_per_step)))
    warmup = min(training.schedule.warmup_steps, steps // 10)
    return replace(training, epochs=None, steps=steps, schedule=replace(training.schedule, warmup_steps=warmup))


def _codec_of_start(recipe: Recipe) -> Codec:
    """The codec of the model to start from; a warning if the recipe sets another."""
    trained = load_beside(recipe, recipe.start)
    if recipe.codec not in (Recipe().codec, trained.recipe.codec):
        warnings.warn(
            f"the codec is that of {recipe.start}; codec.kind={kind_of(type(recipe.codec))!r} and its fields "
            f"have no effect",
            stacklevel=3,
        )
    codec = trained.codec
    codec.origin = replace(codec.origin, is_foreign=False)
    return codec


def validation_rows(recipe: Recipe, records: Sequence[Record], codec: Codec) -> ValidationRows:
    """The rows on which records are scored. Raises ValueError for records that can't be."""
    return ValidationRows(
        recipe.data,
        tokens_of(recipe, records, codec),
        codec,
        view_of(recipe, codec),
        context_length=recipe.row_length,
        source_length=recipe.source_length,
    )


def load_records(data: Data) -> tuple[Sequence[Split], Split]:
    """The records of each source of data, and of all."""
    parts = [load_source(part.path, part.validation_path, data.keys) for part in data.mixture or [data]]
    if data.markdown == "plain":
        parts = [without_marks(part) for part in parts]
    if len(parts) == 1:
        return parts, parts[0]
    train, validation = ([r for part in parts for r in getattr(part, name)] for name in ("train", "validation"))
    return parts, Split(train, validation, tuple(source for part in parts for source in part.sources))


def _loader(recipe: Recipe, tokens: TokenStore, view: View, name: str) -> Loader:
    """The training rows of a source; errors begin with its name, if it is one of several."""
    try:
        return build_loader(
            recipe.data,
            tokens,
            view,
            context_length=recipe.row_length,
            source_length=recipe.source_length,
            seed=recipe.seed,
            rows_per_step=recipe.rows_per_step,
        )
    except ValueError as error:
        raise ValueError(f"data.mixture, {name}: {error}" if name else str(error)) from None


def _mixture(recipe: Recipe, loaders: Sequence[Loader]) -> Loader:
    if len(loaders) == 1:
        return loaders[0]
    data = recipe.data
    weights = [
        loader.rows_per_epoch ** (1 / data.temperature) if part.weight is None else part.weight
        for loader, part in zip(loaders, data.mixture, strict=True)
    ]
    return MixtureLoader(loaders, weights, recipe.seed)


def _teacher(recipe: Recipe, objective: Distillation, codec: Codec) -> Transformer:
    """The model of a teacher. Raises ValueError for one with another codec or form, or a shorter context."""
    if not objective.teacher:
        raise ValueError(NO_TEACHER)
    teacher = load_beside(recipe, objective.teacher)
    if not have_same_vocabulary(teacher.codec, codec):
        raise ValueError(
            f"the teacher {objective.teacher} has another codec than the student; use the teacher's by "
            f"codec.path, or train on texts that it generates"
        )
    _check_teacher(recipe, objective.teacher, teacher.transformer.config)
    return teacher.transformer


def _check_teacher(recipe: Recipe, name: str, teacher: ModelConfig) -> None:
    """Raises ValueError for a teacher that can't score the rows of a recipe."""
    model = recipe.model
    form = model.form if isinstance(model, ModelConfig) else "decoder"
    if teacher.form != form or isinstance(teacher.head, Pooled):
        raise ValueError(f"the teacher {name} is a model of another form ({teacher.form}); this recipe's is {form}")
    needs = [recipe.source_length or 0, recipe.row_length][-len(teacher.stacks) :]
    for stack, need in zip(teacher.stacks, needs, strict=True):
        if teacher.length(stack) < need:
            raise ValueError(
                f"the teacher {name} reads {teacher.length(stack)} tokens, fewer than the rows of {need}; set "
                f"data.row_length lower"
            )
    if teacher.vocab_size < model.vocab_size:
        raise ValueError(
            f"the teacher {name} scores {teacher.vocab_size} tokens, fewer than model.vocab_size={model.vocab_size}; "
            f"leave that out"
        )


def _check_masks(model: Model, view: View) -> None:
    """Raises ValueError for a stack whose mixers can't read under its mask."""
    if isinstance(model, ModelConfig):
        for stack, mask in zip(model.stacks, _masks(view, len(model.stacks)), strict=True):
            if any(isinstance(block.mixer, Recurrent) for block in stack.blocks):
                check_reads_forward(mask)


def _masks(view: View, num_stacks: int) -> list[Mask]:
    """The masks of a model's stacks, the encoder first."""
    return [view.source_mask, view.inputs_mask][2 - num_stacks :]


def _check_own_parts(recipe: Recipe, records: Sequence[Record], codec: Codec, view: View) -> None:
    """Raises ValueError for a codec, view or mixer of the user's own that breaks its contract on the first records."""
    first = [{key: v[:1000] if isinstance(v, str) else v for key, v in record.items()} for record in records[:3]]
    checks: list[tuple[External, Callable[[], None]]] = []
    if isinstance(recipe.codec, External):
        texts = [value for record in first for value in record.values() if isinstance(value, str)]
        checks.append((recipe.codec, partial(check_encodings, codec, first)))
        if isinstance(codec, TextCodec):
            checks.append((recipe.codec, partial(check_codec, codec, texts)))
    if recipe.view is not None:
        checks.append((recipe.view, lambda: check_view(view, map(codec.encode, first))))
    stacks = recipe.model.stacks if isinstance(recipe.model, ModelConfig) else []
    for stack, mask in zip(stacks, _masks(view, len(stacks)), strict=True):
        mixers = [block.mixer for block in stack.blocks if isinstance(block.mixer, External)]
        checks += [
            (m, partial(check_mixer, partial(build_mixer, m), recipe.model.model_dim, mask=mask)) for m in mixers
        ]
    for part, check in checks:
        try:
            check()
        except AssertionError as error:
            raise ValueError(f"{part.name} breaks its contract: {error}; docs/python.md has it") from error


def _with_labels(recipe: Recipe, split: Split) -> Recipe:
    """The recipe with the names of its labels from the records if it has none; labels of images are indices."""
    objective, key = recipe.objective, requirements_of(recipe.objective).names
    if key is None or not isinstance(objective, WithClasses) or objective.labels or "image" in split.train[0]:
        return recipe
    return replace(recipe, objective=replace(objective, labels=label_names(split.train, key)))


def tokens_of(recipe: Recipe, records: Sequence[Record], codec: Codec) -> TokenStore:
    """The tokens of records, with labels as indices."""
    objective, key = recipe.objective, requirements_of(recipe.objective).names
    if key is not None and isinstance(objective, WithClasses) and objective.labels:
        records = encode_labels(records, objective.labels, key)
    return load_tokens(records, codec)


def _texts(recipe: Recipe, split: Split) -> list[str]:
    """The texts that a codec is trained on: the training records; for an alphabet, which must be complete, all."""
    records = [*split.train, *split.validation] if isinstance(recipe.codec, Characters) else split.train
    return [text for record in records for text in texts_of(record)]


def global_batch(prepared: Prepared, step: int) -> GlobalBatch:
    """The rows of a step, split into micro-batches: a pure function of the recipe and the step."""
    rows, size = prepared.recipe.rows_per_step, prepared.recipe.rows_per_pass
    starts = range(step * rows, (step + 1) * rows, size)
    parts = [prepared.loader.rows(start, min(size, (step + 1) * rows - start)) for start in starts]
    return GlobalBatch(parts, prepared.loader.weight(step * rows, rows))


def with_sizes(recipe: Recipe, codec: Codec) -> Recipe:
    """The recipe with the sizes of its vocabulary, stem and head taken from the codec.

    Raises ValueError if it has sizes that don't fit, or a stem or head that is incompatible with the codec.
    """
    sized = _with_widths(recipe.model, recipe.objective, codec)
    vocab_size = sized.vocab_size
    if vocab_size and vocab_size < codec.vocab_size and recipe.start:
        vocab_size = codec.vocab_size  # its special tokens are added to those of the model that training starts with
    if vocab_size and vocab_size < codec.vocab_size:
        raise ValueError(
            f"model.vocab_size={vocab_size} is smaller than the codec's {codec.vocab_size} tokens; "
            f"leave it out to use the codec's"
        )
    return replace(recipe, model=replace(sized, vocab_size=vocab_size or max(1, codec.vocab_size)))


def _with_widths(model: Model, objective: Objective, codec: Codec) -> Model:
    """The model with the sizes of stem and head taken from the codec."""
    stem = _sized_stem(model.stem, codec)
    if not isinstance(model, ModelConfig):
        return model
    for stack in model.stacks:
        if isinstance(stack.position, Grid):
            _check_grid((stack.position.rows, stack.position.columns), codec)
    return replace(model, stem=stem, head=_sized_head(model.head, objective, codec))


def _sized_stem(stem: Stem, codec: Codec) -> Stem:
    if (codec.num_features == 0) != isinstance(stem, Lookup):
        what = f"rows of {codec.num_features} features, for the stems linear and convolution"
        raise ValueError(
            f"the stem {type(stem).__name__} with the codec {codec.definition()['kind']}, which returns "
            f"{what if codec.num_features else 'ids, for the stem lookup'}; set model.stem.kind"
        )
    if isinstance(stem, Lookup):
        return stem
    if isinstance(stem, Linear):
        stem = replace(
            stem, num_features=stem.num_features or codec.num_features, num_ids=stem.num_ids or codec.vocab_size
        )
    num_features = stem.num_features * (stem.stride if isinstance(stem, Convolution) else 1)
    if num_features != codec.num_features:
        raise ValueError(
            f"the stem reads {num_features} features per token, the codec returns {codec.num_features}; "
            f"leave model.stem.num_features out"
        )
    return stem


def _sized_head(head: Head, objective: Objective, codec: Codec) -> Head:
    if not isinstance(head, Pooled) or head.embed:
        return head
    num_labels = len(objective.labels) if isinstance(objective, WithClasses) else 0
    num_outputs = requirements_of(objective).num_outputs or num_labels or codec.num_classes
    if not (head.num_outputs or num_outputs) or 0 < head.num_outputs < num_outputs:
        raise ValueError(
            f"a head with num_outputs={head.num_outputs} is too small for {num_outputs} outputs; leave it out to use "
            f"that number"
        )
    return replace(head, num_outputs=head.num_outputs or num_outputs)


def _check_grid(sizes: tuple[int, ...], codec: Codec) -> None:
    if len(codec.num_positions) != len(sizes) or any(n < m for n, m in zip(sizes, codec.num_positions, strict=True)):
        needs = " x ".join(map(str, codec.num_positions)) or "no"
        raise ValueError(
            f"a position grid of {' x '.join(map(str, sizes))} with a codec that has {needs} positions on a grid; set "
            f"rows and columns of the position to that, or another position"
        )

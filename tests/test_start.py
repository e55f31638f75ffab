"""A run may begin with the parameters and codec of another model."""

import json
import re
from dataclasses import replace

import pytest
import torch

from isoform import experiment
from isoform.cli import main
from isoform.codecs.config import BPE
from isoform.data.config import Data
from isoform.model.config import BlockConfig, ModelConfig, Pooled, StackConfig
from isoform.model.parts import Attention, Dense, Experts, Learned, Rotary, TokenChoice
from isoform.model.presets import PRESETS
from isoform.recipe import Recipe, load_recipe
from isoform.run import export, load, model_of
from isoform.training.config import AdamW, Training

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
    assert load_recipe("tune.toml", start="second", model_of=model_of).model.model_dim == 24
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

"""From Python everything is as near as on the command line: docs/python.md runs, and so does what users try first."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isoform
from isoform.batch import plain_coordinates
from isoform.cli import main
from isoform.config import ConfigError, dump_toml, nested
from isoform.metrics import read_metrics
from isoform.model.cost import num_parameters
from isoform.run import Run

DOCS = Path(__file__).parent.parent / "docs"
TEXT = "To be, or not to be, that is the question.\n" * 80
SMALL = {
    "data.path": "text.txt",
    "model.model_dim": 16,
    "model.context_length": 16,
    "model.decoder.num_layers": 1,
    "model.decoder.blocks.mixer.num_heads": 2,
    "training.steps": 4,
    "training.global_batch_tokens": 64,
    "training.log_every": 2,
    "training.validate_every": 2,
    "training.sample_tokens": 4,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A text, and a run of it."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "text.txt").write_text(TEXT)
    changes = {**SMALL, "data.path": str(folder / "text.txt")}
    isoform.train(isoform.load_recipe("gpt2", changes), folder / "run", quiet=True)
    return folder


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def python_blocks(page: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))


def test_the_page_runs_as_it_stands(tmp_path):
    (tmp_path / "my.txt").write_text(TEXT)
    script = tmp_path / "page.py"
    script.write_text(python_blocks("python.md"))
    command = [sys.executable, "-W", "error", str(script)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs/own/summary.json").exists() and (tmp_path / "models/tiny-gpt2/config.json").exists()


def test_every_public_name_exists_and_has_a_docstring():
    for name in isoform.__all__:
        value = getattr(isoform, name)
        assert name == "__version__" or value.__doc__, name
    assert {"StackConfig", "BlockConfig", "Attention", "Pooled", "Linear", "preset", "classify", "evaluate"} <= {
        *isoform.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = isoform.nothing


def test_types_know_every_public_name():
    text = Path(isoform.__file__).read_text(encoding="utf-8")
    assert {*re.findall(r"import (\w+) as \1", text)} == {*isoform.__all__} - {"__version__"}


# --- recipes


def test_a_recipe_is_changed_by_dotted_paths(here):
    recipe = isoform.load_recipe(
        "shakespeare",
        {
            "training.steps": 20,
            "training.optimizer": isoform.Muon(learning_rate=0.01),
            "model.decoder.num_layers": 2,
            "data": {"path": here / "text.txt"},
        },
    )
    plain = isoform.load_recipe("shakespeare")
    assert (recipe.training.steps, recipe.model.decoder.num_layers) == (20, 2)
    assert recipe.training.optimizer == isoform.Muon(learning_rate=0.01)
    assert recipe.data == replace(plain.data, path=str(here / "text.txt"))
    assert recipe.expected_loss is None and plain.expected_loss is not None
    assert recipe.model.decoder.blocks == plain.model.decoder.blocks
    other = isoform.load_recipe("shakespeare", {"model.preset": "gpt2", "model.model_dim": 192})
    assert other.model.decoder.blocks == isoform.preset("gpt2").decoder.blocks
    assert isoform.load_recipe(here / "run").start == ""
    assert isoform.load_recipe("", start=here / "run").start == str(here / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.stepz": 3}, 'did you mean "steps"'),
        ({"training.steps": "many"}, "training.steps: expected int, got 'many'"),
        ({"training.steps": 0}, "training.steps=0 must be at least 1"),
        ({"training": {"steps": 3}, "training.steps": 4}, "training.steps contradicts another change"),
        ({"training.steps": 3, "training.steps.x": 4}, "training.steps.x contradicts another change"),
        ({"model.decoder.blocks.7.norm.kind": "rms_norm"}, 'no element "7"'),
        ({"model.preset": "gpt"}, 'unknown preset "gpt": did you mean "gpt2"'),
    ],
)
def test_a_change_that_does_not_fit_is_refused_with_its_path(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        isoform.load_recipe("shakespeare", changes)


def test_paths_nest():
    assert nested({"a.b": 1, "a.c": (1, 2), "d": {"e.f": None}}) == {
        "a": {"b": 1, "c": [1, 2]},
        "d": {"e": {"f": None}},
    }


def test_a_preset_is_a_config_with_changes():
    config = isoform.preset("gpt2", {"model_dim": 64, "decoder.num_layers": 2, "decoder.blocks.mixer.num_heads": 4})
    (block,) = config.decoder.blocks
    assert (config.model_dim, block.mixer.num_heads, block.mixer.bias) == (64, 4, True)
    assert isoform.preset("gpt2").vocab_size == 50257
    with pytest.raises(ConfigError, match='did you mean "gpt2"'):
        isoform.preset("gpt3")


# --- train, generate, evaluate


def test_train_takes_a_name_and_continues_the_run_that_is_named(here, tmp_path, capsys):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(dump_toml(isoform.load_recipe("gpt2", {**SMALL, "training.steps": 2})))
    run = isoform.train(recipe, quiet=True)
    assert run.folder == Path("runs/mine-1") and run.is_finished
    assert isoform.train(run.folder, quiet=True) == run
    assert capsys.readouterr().out == ""


def test_train_reports_unless_quiet(here, tmp_path, capsys):
    recipe = isoform.load_recipe("gpt2", SMALL)
    isoform.train(recipe, tmp_path / "loud")
    loud = capsys.readouterr().out
    assert re.search(r"4 / 4 +loss [0-9.]+", loud)
    isoform.train(recipe, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().out == ""


def test_log_gets_each_line_as_it_is_written(here, tmp_path):
    calls = []
    run = isoform.train(
        isoform.load_recipe("gpt2", SMALL), tmp_path / "run", log=lambda m, s: calls.append((s, m)), quiet=True
    )
    lines = read_metrics(run.metrics)
    assert [{"step": step, **metrics} for step, metrics in calls] == lines
    assert any("validation_loss" in metrics for _, metrics in calls) and all("step" not in m for _, m in calls)

    def stop(metrics, step):
        raise RuntimeError(f"no tracker at step {step}")

    with pytest.raises(RuntimeError, match="no tracker at step 1"):
        isoform.train(isoform.load_recipe("gpt2", SMALL), tmp_path / "other", log=stop, quiet=True)


def test_the_history_is_a_table_with_a_row_for_each_step(here):
    table = Run(here / "run").history()
    assert table["step"] == [1, 2, 4]
    assert {len(column) for column in table.values()} == {3}
    assert math.isnan(table["validation_loss"][0]) and table["validation_loss"][2] > 0
    assert all(loss > 0 for loss in table["loss"])


def test_generate_streams_one_text_and_lists_several(here):
    run = Run(here / "run")
    for model in (run, run.folder, str(run.folder), isoform.load(run.folder)):
        one = "".join(isoform.generate(model, "To be", max_tokens=8, temperature=0))
        both = isoform.generate(model, ["To be", "or not"], max_tokens=8, temperature=0)
        assert both[0] == one and len(both) == 2 and len(one) > 0
    assert isoform.generate(run, ["To be"], isoform.Sampling(max_tokens=3)) == isoform.generate(
        run, ["To be"], max_tokens=3
    )
    with pytest.raises(ConfigError, match='unknown setting "max_token": did you mean "max_tokens"'):
        isoform.generate(run, "To be", max_token=3)
    with pytest.raises(ValueError, match="num_samples=3: one text is generated for each prompt"):
        isoform.generate(run, "To be", num_samples=3)
    with pytest.raises(ValueError, match="temperature=-1 must be at least 0"):
        isoform.generate(run, "To be", temperature=-1)


def test_evaluate_scores_the_validation_split_or_a_text(here, capsys):
    score = isoform.evaluate(Run(here / "run"))
    assert main(["evaluate", "run", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert score.loss == pytest.approx(result["loss"], rel=1e-6)
    other = isoform.evaluate("run", here / "text.txt")
    assert other.num_targets > score.num_targets
    with pytest.raises(ValueError, match="has no validation text"):
        isoform.evaluate(replace(isoform.load("run"), recipe=isoform.load_recipe("gpt2")))


# --- models


def classifier(**fields) -> isoform.Transformer:
    torch.manual_seed(0)
    config = isoform.ModelConfig(
        model_dim=16,
        context_length=8,
        decoder=None,
        encoder=isoform.StackConfig(num_layers=1, blocks=(isoform.BlockConfig(mixer=isoform.Attention(num_heads=2)),)),
        stem=isoform.Linear(num_features=8),
        head=isoform.Pooled(over="mean", num_outputs=3),
    )
    return isoform.Transformer(replace(config, **fields)).eval()


def test_features_go_straight_in_and_classes_come_out():
    model, x = classifier(), torch.rand(5, 6, 8)
    y = model(features=x)
    assert y.shape == (5, 3)
    tokens = isoform.Tokens(torch.full((5, 6), -1), plain_coordinates(5, 6), features=x)
    assert torch.equal(model(tokens)[:, 0], y) and model(tokens).shape == (5, 6, 3)
    assert torch.equal(model(x), y) and torch.equal(model(features=x.double()), y)
    y.sum().backward()
    ids = classifier(stem=isoform.Lookup(), vocab_size=9)
    assert ids(torch.randint(9, (5, 6))).shape == (5, 3)
    each = classifier(head=isoform.Pooled(over="each", num_outputs=3))
    assert each(features=x).shape == (5, 6, 3)
    vectors = classifier(head=isoform.Pooled(over="mean", embed=True))
    torch.testing.assert_close(vectors(features=x).norm(dim=-1), torch.ones(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier()(), "ids or features: give one of them"),
        (lambda: classifier()(torch.zeros(1, 2, 8), features=torch.zeros(1, 2, 8)), "give one of them"),
        (lambda: classifier()(features=torch.rand(5, 8)), r"floats of shape \(5, 8\): ids are integers"),
        (lambda: classifier()(features=torch.rand(5, 6, 7)), "reads 8 features per token, but the tokens have 7"),
        (
            lambda: classifier()(torch.zeros(1, 2, dtype=torch.long)),
            "reads 8 features per token, but the tokens have none",
        ),
        (
            lambda: classifier(stem=isoform.Lookup(), vocab_size=9)(features=torch.rand(5, 6, 8)),
            "looks ids up, but was given features",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def attention_only(**fields) -> isoform.ModelConfig:
    block = isoform.BlockConfig(mixer=isoform.Attention(num_heads=2), feedforward=None)
    stack = isoform.StackConfig(num_layers=2, blocks=(block,))
    return replace(isoform.ModelConfig(model_dim=16, context_length=16, vocab_size=11, decoder=stack), **fields)


def test_a_model_of_attention_alone_is_built_counted_recorded_and_saved(tmp_path):
    model = isoform.Transformer(attention_only())
    ids = torch.randint(11, (2, 7))
    assert model(ids).shape == (2, 7, 11)
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    weights = isoform.record(model, ids, "decoder.blocks.*.mixer.weights")
    assert [w.shape for w in weights.values()] == [(2, 2, 7, 7)] * 2
    torch.testing.assert_close(weights["decoder.blocks.1.mixer.weights"].sum(-1), torch.ones(2, 2, 7))
    deeper = isoform.deepen(model, 4)
    torch.testing.assert_close(deeper(ids), model(ids))
    for grow in (lambda: isoform.widen(model, 64), lambda: isoform.upcycle(model, 2)):
        with pytest.raises(ValueError, match="a block here has none"):
            grow()
    isoform.save(model, tmp_path / "saved")
    trained = isoform.load(tmp_path / "saved")
    assert torch.equal(trained.model(ids), model.eval()(ids))
    with pytest.raises(ValueError, match="no class"):
        isoform.export(trained, tmp_path / "export")


NONE = ["--model.decoder.blocks.feedforward", "none"]


@pytest.mark.parametrize("recipe", ["shakespeare", "gpt2", "llama2"])
def test_every_verb_takes_a_recipe_of_attention_alone(recipe, here, tmp_path, capsys):
    flags = [word for path, value in SMALL.items() for word in (f"--{path}", str(value))]
    if recipe == "llama2":
        flags += ["--model.decoder.blocks.mixer.num_kv_heads", "2"]
    assert main(["estimate", recipe, *flags, *NONE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_parameters"] > 0
    assert main(["inspect", recipe, *flags, *NONE, "-q"]) == 0
    out = str(tmp_path / "run")
    assert main(["train", recipe, *flags, *NONE, "--out", out, "-q"]) == 0
    assert main(["train", "--out", out, "--training.steps", "6", "-q"]) == 0
    assert all(block.feedforward is None for block in isoform.load(out).model.config.decoder.blocks)
    for command in (["generate", out, "--prompt", "To", "--max_tokens", "4"], ["evaluate", out], ["estimate", out]):
        assert main(command) == 0
    assert main(["recipes", "--diff", out, recipe, "-q"]) == 0
    assert main(["convert", out, str(tmp_path / "converted")]) == 65
    assert "no class" in capsys.readouterr().err


# --- saving


def test_a_trained_model_is_saved_with_its_codec_and_objective(here, tmp_path):
    trained = isoform.load(here / "run")
    isoform.save(trained, tmp_path / "model")
    again = isoform.load(tmp_path / "model")
    assert again.codec.fingerprint == trained.codec.fingerprint
    assert again.recipe.objective == trained.recipe.objective and again.model.config == trained.model.config
    prompt = {"max_tokens": 8, "temperature": 0}
    assert isoform.generate(again, ["To be"], **prompt) == isoform.generate(trained, ["To be"], **prompt)
    for command in (
        ["generate", "--max_tokens", "3", "--prompt", "To"],
        ["evaluate", "--path", str(here / "text.txt")],
    ):
        assert main([command[0], str(tmp_path / "model"), *command[1:]]) == 0
    with pytest.raises(ValueError, match="exists and is not empty; name a new folder"):
        isoform.save(trained, tmp_path / "model")
    with pytest.raises(ValueError, match="is the part of a run that holds its model; name the run directory"):
        isoform.load(here / "run/model")


def test_a_model_without_a_codec_is_saved_and_writes_numbers(tmp_path):
    models = {
        "decoder": isoform.Transformer(attention_only()),
        "classifier": classifier(),
        "pair": isoform.Transformer(
            attention_only(
                encoder=attention_only().decoder, decoder=replace(attention_only().decoder, cross="separate")
            )
        ),
    }
    for name, model in models.items():
        isoform.save(model, tmp_path / name)
        loaded = isoform.load(tmp_path / name)
        assert loaded.model.config == model.config
        for before, after in zip(model.parameters(), loaded.model.parameters(), strict=True):
            assert torch.equal(before, after)
    (text,) = isoform.generate(tmp_path / "decoder", ["3 4"], max_tokens=3)
    assert len(text.split()) == 3


def test_a_damaged_saved_model_is_refused(tmp_path):
    isoform.save(isoform.Transformer(attention_only()), tmp_path / "model")
    config, weights = tmp_path / "model/config.json", tmp_path / "model/model.safetensors"
    text = config.read_text()
    for before, after, message in (
        ('"num_layers": 2', '"num_layers": 2000', "describes"),
        ('"kind": "causal"', '"kind": "casual"', 'unknown kind "casual"'),
        ('"format": 4', '"format": 5', "upgrade it"),
    ):
        assert before in text
        config.write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=message):
            isoform.load(tmp_path / "model")
    config.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        isoform.load(tmp_path / "model")
    weights.unlink()
    with pytest.raises(ValueError, match="missing; restore it"):
        isoform.load(tmp_path / "model")

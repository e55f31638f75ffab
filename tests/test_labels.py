"""Objectives with labels: classes, tags, numbers; requirements of records, and what models learn."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import isoform
from isoform.batch import collate
from isoform.cli import main
from isoform.codecs.bpe import train_bpe
from isoform.codecs.text import ByteCodec
from isoform.data.labels import encode_labels, label_names
from isoform.data.records import location, take_fraction
from isoform.data.sources import load_source
from isoform.data.tokens import load_tokens
from isoform.evaluation.predictions import classify
from isoform.experiment import train
from isoform.model.config import Pooled
from isoform.model.embedding import PooledHead
from isoform.objectives.config import Classification, Regression, Tagging, TokenRegression
from isoform.objectives.views import build_view, check_view
from isoform.recipe import recipe_from_dict

CODEC = ByteCodec()
BLOCKS = {"num_layers": 1, "blocks": {"0": {"mixer": {"num_heads": 2}}}}
ENCODER, DECODER = {"encoder": BLOCKS, "decoder": "none"}, {"decoder": BLOCKS}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def recipe(path, objective, model, steps=60):
    return recipe_from_dict(
        {
            "data": {"path": path, "rows": "packed"},
            "codec": {"kind": "bytes"},
            "objective": objective,
            "model": {"model_dim": 32, "context_length": 32, **model},
            "training": {
                "steps": steps,
                "global_batch_tokens": 512,
                "optimizer": {"kind": "muon", "learning_rate": 0.02, "adam": {"learning_rate": 0.02}},
                "validate_every": 0,
            },
        }
    )


def words(count: int):
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcxyz"), rng.integers(3, 9))) for _ in range(count)]


@pytest.mark.parametrize("model", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_a_model_learns_which_letter_a_text_begins_with(model, tmp_path):
    path = write(tmp_path / "data.jsonl", [{"text": w, "label": f"begins-{w[0]}"} for w in words(2000)])
    over = {"head": {"kind": "pooled", "over": "first" if model is ENCODER else "last"}}
    run = train(recipe(path, {"kind": "classification"}, {**model, **over}), tmp_path / "run")
    summary = json.loads(run.summary.read_text())
    assert summary["validation_accuracy"] > 0.9 and summary["bits_per_byte"] is None
    trained = isoform.load(run.folder)
    assert trained.recipe.objective.labels == tuple(f"begins-{c}" for c in "abcxyz")
    assert trained.recipe.model.head.num_outputs == 6
    probabilities = classify(trained, [{"text": "xab"}, {"text": "czz"}])
    assert [trained.recipe.objective.labels[i] for i in probabilities.argmax(-1)] == ["begins-x", "begins-c"]
    assert main(["evaluate", str(run.folder)]) == 0
    assert main(["generate", str(run.folder), "--prompt", "a"]) == 65
    unknown = write(tmp_path / "other.jsonl", [{"text": "abc", "label": "begins-q"}])
    assert main(["evaluate", str(run.folder), "--path", unknown]) == 65


def test_tags_are_learned_at_the_first_token_of_each_word(tmp_path):
    rng, records = np.random.default_rng(1), []
    for _ in range(1500):
        tokens = [str(rng.choice(["the", "a", "dog", "cat", "runs", "naïve"])) for _ in range(rng.integers(1, 5))]
        kind = {"the": "DET", "a": "DET", "runs": "VERB"}
        records.append({"tokens": tokens, "tags": [kind.get(t, "NOUN") for t in tokens]})
    path = write(tmp_path / "tags.jsonl", records)
    head = {"head": {"kind": "pooled", "over": "each"}}
    run = train(recipe(path, {"kind": "tagging"}, {**ENCODER, **head}, steps=80), tmp_path / "run")
    assert json.loads(run.summary.read_text())["validation_accuracy"] > 0.9
    assert isoform.load(run.folder).recipe.objective.labels == ("DET", "NOUN", "VERB")


def test_numbers_are_learned(tmp_path, capsys):
    path = write(tmp_path / "numbers.jsonl", [{"text": w, "label": w.count("a") - 0.5} for w in words(2000)])
    head = {"head": {"kind": "pooled", "over": "mean"}}
    config = recipe(path, {"kind": "regression"}, {**ENCODER, **head}, steps=150)
    run = train(config, tmp_path / "run")
    summary = json.loads(run.summary.read_text())
    spread = np.var([w.count("a") for w in words(2000)])
    assert summary["validation_loss"] < 0.4 * spread and summary["validation_accuracy"] is None
    assert main(["evaluate", str(run.folder)]) == 0 and "–" in capsys.readouterr().out
    toml = tmp_path / "config.toml"
    from isoform.config import dump_toml

    toml.write_text(dump_toml(replace(config, training=replace(config.training, steps=2))))
    assert main(["train", str(toml), "--out", str(tmp_path / "cli")]) == 0
    assert "mean squared error" in capsys.readouterr().out
    assert "mean squared error" in (tmp_path / "cli/report.html").read_text()


def test_a_number_is_learned_for_each_word(tmp_path):
    rng, length = np.random.default_rng(2), {"a": -1, "dog": 0.5, "naïve": 2.25}
    texts = [[str(w) for w in rng.choice(list(length), rng.integers(1, 5))] for _ in range(1500)]
    path = write(tmp_path / "numbers.jsonl", [{"tokens": t, "tags": [length[w] for w in t]} for t in texts])
    head = {"head": {"kind": "pooled", "over": "each"}}
    run = train(recipe(path, {"kind": "token_regression"}, {**ENCODER, **head}, steps=80), tmp_path / "run")
    summary = json.loads(run.summary.read_text())
    assert summary["validation_loss"] < 0.05 * np.var(list(length.values())) and summary["validation_accuracy"] is None
    trained = isoform.load(run.folder)
    encoding = CODEC.encode({"tokens": ["dog", "a", "naïve"], "tags": [0.5, -1, 2]})
    example = trained.view.example(encoding, np.random.default_rng(0))
    batch, marked = collate([[example]], len(encoding)), np.flatnonzero(example.loss_weights)
    assert example.targets[marked].tolist() == [0.5, -1, 2]
    with torch.no_grad():
        predicted = trained.model(batch.inputs, trained.view.inputs_mask)[0, marked, 0]
    torch.testing.assert_close(predicted, torch.tensor([0.5, -1, 2.25]), atol=0.5, rtol=0)
    path = write(tmp_path / "names.jsonl", [{"tokens": ["a"], "tags": ["NOUN"]}] * 9)
    with pytest.raises(ValueError, match=r"names.jsonl, line .: the tags NOUN aren't numbers"):
        train(recipe(path, {"kind": "token_regression"}, {**ENCODER, **head}), tmp_path / "other")


def test_views_keep_the_contract_and_count_one_position_per_target():
    codec = train_bpe(["the dog runs"] * 9, 265)
    encoding = codec.encode({"tokens": ["the", "dog", "runs"], "tags": [0, 2, 1]})
    assert codec.decode(encoding.ids) == "the dog runs"
    example = build_view(Tagging()).example(encoding, np.random.default_rng(0))
    marked = np.flatnonzero(example.loss_weights)
    assert example.targets[marked].tolist() == [0, 2, 1]
    firsts = [codec.decode(encoding.ids[a:b]).strip() for a, b in zip(marked, [*marked[1:], -1], strict=True)]
    assert firsts == ["the", "dog", "runs"]
    assert not encoding.tags[len(encoding) - 1] >= 0 and codec.encode({"tokens": ["a"]}).tags is None
    text = CODEC.encode({"text": "abc", "label": 1.5})
    numbers = CODEC.encode({"tokens": ["ab", "c"], "tags": [-2.5, 1]})
    for objective, labelled in (
        (Tagging(), encoding),
        (TokenRegression(), numbers),
        (Regression(), text),
        (Classification(), replace(text, label=2)),
    ):
        for is_causal in (False, True):
            check_view(build_view(objective, is_causal=is_causal), [labelled])
    batch = collate([[build_view(Regression()).example(text, np.random.default_rng(0))]], 6)
    assert batch.targets.dtype == torch.float32 and batch.targets[0, 0] == 1.5
    for objective, words_ in (
        (Regression(), "a number"),
        (Tagging(), "tokens and tags"),
        (Classification(), "a label"),
    ):
        with pytest.raises(ValueError, match=words_):
            build_view(objective).example(CODEC.encode({"text": "abc"}), np.random.default_rng(0))


def test_label_names_are_sorted_and_encoded(tmp_path):
    records = [{"text": "a", "label": n} for n in (10, 2, "b", "a", 2)]
    names = label_names(records, "label")
    assert names == ("2", "10", "a", "b")
    assert [r["label"] for r in encode_labels(records, names, "label")] == [1, 0, 3, 2, 0]
    assert label_names([{"tokens": ["x", "y"], "tags": ["N", "V"]}], "tags") == ("N", "V")
    assert encode_labels([{"text": "x"}], names, "label") == [{"text": "x"}]
    lines = ['{"text": "x", "label": "10"}', "", '{"text": "yy", "label": "a"}', '{"text": "z", "label": "a"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    train = load_source(str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")).train
    assert [location(r, 0) for r in encode_labels(train, names, "label")] == [
        f"{tmp_path}/a.jsonl, line {n}" for n in (1, 3, 4)
    ]
    assert [r["label"] for r in take_fraction(train, 0.7)] == ["10", "a"], "labelled texts are taken whole"
    plays = [{"text": "abcdefgh"}, {"text": "x"}, {"text": "ijkl"}]
    assert [r["text"] for r in take_fraction(plays, 0.5)] == ["abcd", "ij"], "a part of each, so that none is missing"
    assert take_fraction(plays, 1.0) == plays
    with pytest.raises(ValueError, match="less than a character"):
        take_fraction(plays, 0.1)
    pairs = [{"source": str(i), "target": "x"} for i in range(10)]
    assert [r["source"] for r in take_fraction(pairs, 0.3)] == ["0", "3", "6"]
    with pytest.raises(ValueError, match="record 1: has no 'label'"):
        label_names([{"text": "a", "label": 1}, {"text": "b"}], "label")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "a", "label": {}}, "line 2, label: {} is not a text"),
        ({"text": "a", "label": [1]}, r"line 2, label: \[1\] is not a text"),
        ({"tokens": ["a", "b"], "tags": ["N"]}, "line 2: 2 tokens with 1 tags"),
        ({"tokens": [], "tags": []}, "line 2, tokens: .* not a list, or is empty"),
        ({"tokens": ["a", " "], "tags": [1, 2]}, "line 2, tokens is empty"),
        ({"tokens": "ab", "tags": ["N", "V"]}, "line 2, tokens: 'ab' is not a list"),
        ({"source": " ", "target": "b"}, "line 2, source is empty"),
        ({"source": "a", "target": ""}, "line 2, target is empty"),
        ({"label": 1}, "line 2: the keys"),
    ],
)
def test_lines_that_are_not_records_are_named(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_source(write(tmp_path / "x.jsonl", [{"text": "fine", "label": 1}, line]))


def test_unknown_labels_are_named_by_file_and_line(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"text": w, "label": w[0]} for w in words(50)])
    validation = write(tmp_path / "val.jsonl", [{"text": "a", "label": "a"}, {"text": "b", "label": "?"}])
    config = recipe(path, {"kind": "classification"}, {**ENCODER, "head": {"kind": "pooled"}})
    config = replace(config, data=replace(config.data, validation_path=validation))
    with pytest.raises(ValueError, match=r"val.jsonl, line 2: the label '\?' is not among a, b"):
        train(config, tmp_path / "run")


def test_labels_survive_the_cache_and_do_not_change_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = [{"text": w, "label": i % 3} for i, w in enumerate(words(20))]
    first, again = (load_tokens(records, CODEC, cache=True) for _ in range(2))
    assert list(first.labels) == list(again.labels) == [i % 3 for i in range(20)]
    assert again.encoding(4).label == 1 and location(records[4], 4) == "record 4"
    assert load_tokens([{"text": w} for w in words(20)], CODEC, cache=True).labels is None


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ({"kind": "classification"}, ENCODER, "set model.head to kind pooled"),
        ({"kind": "causal"}, {**DECODER, "head": {"kind": "pooled"}}, "set model.head to kind vocabulary"),
        ({"kind": "classification"}, {**DECODER, "head": {"kind": "pooled"}}, "first token attends to itself only"),
        ({"kind": "tagging"}, {**ENCODER, "head": {"kind": "pooled"}}, "over each"),
        ({"kind": "regression"}, {**ENCODER, "head": {"kind": "pooled", "over": "each"}}, "over first, mean or last"),
    ],
)
def test_heads_that_do_not_fit_an_objective_are_named(objective, model, message):
    with pytest.raises(ValueError, match=message):
        recipe("x", objective, model)


def test_a_head_over_each_token_reads_it_alone():
    torch.manual_seed(0)
    head, hidden = PooledHead(Pooled(over="each", num_outputs=3), 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(head(hidden)[1, 3], head(hidden[1:, 3:4])[0, 0])

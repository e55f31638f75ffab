"""Answers of trained models: labels, tags, numbers, vectors; whatever the batch, and as transformers has them."""

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers as peers

import isoform
from isoform.cli import main
from isoform.evaluation.confusion import Confusion, confusion
from isoform.evaluation.predictions import answers, classify, outputs
from isoform.experiment import train
from test_classifiers import NAMES, labelled
from test_labels import ENCODER, recipe, words, write

TEXTS = ["the lazy dog", "the quick brown fox jumps", "What's new, pussycat?", "dog", "a fox " * 9]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("bert"), "BertForSequenceClassification", **NAMES)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A run that was trained to tell how long a word is."""
    folder = tmp_path_factory.mktemp("numbers")
    path = write(folder / "data.jsonl", [{"text": w, "label": len(w)} for w in words(400)])
    form = {**ENCODER, "head": {"kind": "pooled", "over": "mean"}}
    return train(recipe(path, {"kind": "regression"}, form, steps=5), folder / "run").folder


def asked(capsys, *arguments: str, code: int = 0) -> str:
    assert main(["predict", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_a_classifier_answers_as_transformers_does(bert, capsys, tmp_path):
    pipeline = peers.pipeline("text-classification", str(bert), top_k=None)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    lines = asked(capsys, bert, "--path", tmp_path / "texts.txt", "--format", "jsonl").splitlines()
    tokenizer, model = (getattr(peers, f"Auto{kind}").from_pretrained(bert) for kind in (
        "Tokenizer", "ModelForSequenceClassification"))  # fmt: skip
    trained = isoform.load(bert)
    for text, line, theirs in zip(TEXTS, map(json.loads, lines), pipeline(TEXTS), strict=True):
        expected = {each["label"]: each["score"] for each in theirs}
        assert line["text"] == text
        assert line["label"] == max(expected, key=expected.get)
        assert line["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert line["probability"] == max(line["probabilities"].values())
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0].numpy()
        np.testing.assert_allclose(outputs(trained, [trained.codec.encode({"text": text})])[0][0], logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_answers_do_not_depend_on_the_batch_or_the_order(kind, tmp_path):
    trained = isoform.load(labelled(tmp_path, kind, **NAMES))
    records = [{"text": " ".join(["dog", "lazy", "fox"][i % 3 : i % 3 + 1] * (1 + i % 7))} for i in range(40)]
    alone = [*answers(trained, records, batch_tokens=1)]
    for size in (16, 100, 4096):
        together = [*answers(trained, records, batch_tokens=size)]
        backwards = [*answers(trained, records[::-1], batch_tokens=size)][::-1]
        for first, *others in zip(alone, together, backwards, strict=True):
            for other in others:
                assert _names(first) == _names(other)
                np.testing.assert_allclose(_numbers(first), _numbers(other), atol=1e-6)


def _names(answer: dict) -> object:
    return answer.get("label", answer.get("tags"))


def _numbers(answer: dict) -> list[float]:
    values = answer["probabilities"]
    return [*(values.values() if isinstance(values, dict) else values)]


def test_a_tagger_tags_words_as_transformers_does(tmp_path, capsys):
    folder = labelled(tmp_path / "in", "BertForTokenClassification", **NAMES)
    sentence = "the quick brown fox"
    path = write(tmp_path / "data.jsonl", [{"tokens": sentence.split(), "tags": ["cat"] * 4}])
    (line,) = map(json.loads, asked(capsys, folder, "--path", path, "--format", "jsonl").splitlines())
    tokenizer, model = (getattr(peers, f"Auto{kind}").from_pretrained(folder) for kind in (
        "Tokenizer", "ModelForTokenClassification"))  # fmt: skip
    inputs = tokenizer(sentence.split(), is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits[0].softmax(-1)
    ids = inputs.word_ids()
    first = [ids.index(word) for word in range(4)]
    assert line["tags"] == [model.config.id2label[int(scores[i].argmax())] for i in first]
    assert line["probabilities"] == pytest.approx([float(scores[i].max()) for i in first], abs=1e-5)
    assert line["true_tags"] == ["cat"] * 4
    (tmp_path / "t.txt").write_text(sentence)
    (row,) = csv.DictReader(io.StringIO(asked(capsys, folder, "--path", tmp_path / "t.txt")))
    assert row["tags"].split() == line["tags"]


def test_a_number_and_a_vector(numbers, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("abc\nabcxyz\n")
    rows = [*csv.DictReader(io.StringIO(asked(capsys, numbers, "--path", tmp_path / "t.txt")))]
    assert [row["text"] for row in rows] == ["abc", "abcxyz"] and all(float(row["number"]) for row in rows)
    pairs = write(tmp_path / "pairs.jsonl", [{"source": w, "target": w[::-1]} for w in words(200)])
    form = {**ENCODER, "head": {"kind": "pooled", "over": "mean", "embed": True}}
    run = train(recipe(pairs, {"kind": "contrastive"}, form, steps=3), tmp_path / "run")
    out = tmp_path / "vectors.csv"
    asked(capsys, run.folder, "--path", tmp_path / "t.txt", "--out", out)
    for row in csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))):
        vector = [float(value) for name, value in row.items() if name.startswith("vector.")]
        assert len(vector) == 32 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_standard_input_is_a_text_on_each_line(bert):
    command = [sys.executable, "-m", "isoform", "predict", str(bert)]
    done = subprocess.run(command, input=b'the dog\n\na fox, "quoted"\n', capture_output=True, check=True)
    rows = [*csv.DictReader(io.StringIO(done.stdout.decode()))]
    assert [row["text"] for row in rows] == ["the dog", 'a fox, "quoted"']
    assert all(row["label"] in NAMES["label2id"] and 0 < float(row["probability"]) <= 1 for row in rows)
    assert b"1 empty lines are left aside" in done.stderr


def test_a_long_text_is_refused_or_cut_as_transformers_cuts(bert, tmp_path, capsys):
    trained = isoform.load(bert)
    limit = trained.recipe.model.context_length
    long = " ".join(["the lazy dog"] * limit)
    (tmp_path / "t.txt").write_text(f"dog\n{long}\n")
    error = asked(capsys, bert, "--path", tmp_path / "t.txt", code=65)
    assert "t.txt, line 2: has" in error and f"reads {limit} at once" in error and "--cut" in error
    with pytest.raises(ValueError, match="reads"):
        classify(trained, [{"text": long}])
    tokenizer, model = (getattr(peers, f"Auto{kind}").from_pretrained(bert) for kind in (
        "Tokenizer", "ModelForSequenceClassification"))  # fmt: skip
    with torch.no_grad():
        inputs = tokenizer(long, truncation=True, max_length=limit, return_tensors="pt")
        expected = model(**inputs).logits[0].softmax(-1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (answer,) = answers(trained, [{"text": long}], cuts=True)
    assert [*answer["probabilities"].values()] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "its end is not read" in str(caught[0].message)


def test_tables_keep_their_order_and_their_labels(bert, tmp_path, capsys):
    path = tmp_path / "data.csv"
    path.write_text('id,review,label\n1,the lazy dog,dog\n2,"a fox, quick",cat\n')
    rows = [*csv.DictReader(io.StringIO(asked(capsys, bert, "--path", path, "--text_key", "review")))]
    assert [(row["text"], row["true_label"]) for row in rows] == [("the lazy dog", "dog"), ("a fox, quick", "cat")]
    values = json.loads(asked(capsys, bert, "--path", path, "--json"))
    assert [answer["label"] for answer in values["answers"]] == [row["label"] for row in rows]


def test_a_model_that_writes_says_how_it_is_asked(tmp_path, capsys):
    path = write(tmp_path / "data.jsonl", [{"text": w} for w in words(100)])
    run = train(recipe(path, {"kind": "causal"}, {"decoder": ENCODER["encoder"]}, steps=1), tmp_path / "run")
    (tmp_path / "t.txt").write_text("abc")
    assert "isoform generate" in asked(capsys, run.folder, "--path", tmp_path / "t.txt", code=65)


def test_an_encoder_without_decoder_none_is_told_which_to_set():
    with pytest.raises(ValueError, match='for an encoder alone set decoder = "none"'):
        recipe("x.jsonl", {"kind": "classification"}, {"encoder": ENCODER["encoder"], "head": {"kind": "pooled"}})


def test_confusion_is_as_scikit_learn_has_it(bert, tmp_path, capsys):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    records = [
        {
            "text": " ".join(rng.choice(["the", "dog", "fox", "lazy", "quick"], 5)),
            "label": str(rng.choice(["dog", "fox"])),
        }
        for _ in range(60)
    ]
    trained = isoform.load(bert)
    judged = confusion(trained, records)
    predicted, truth = [a["label"] for a in answers(trained, records)], [r["label"] for r in records]
    names = list(trained.recipe.objective.labels)
    assert np.array_equal(judged.counts, metrics.confusion_matrix(truth, predicted, labels=names))
    expected = metrics.precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    for ours, theirs in zip((judged.precision, judged.recall, judged.f1), expected, strict=False):
        np.testing.assert_allclose(ours, theirs)
    assert judged.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0))
    assert judged.mistakes and all(m.label != m.truth for m in judged.mistakes)
    confidence = [m.probability for m in judged.mistakes]
    assert confidence == sorted(confidence, reverse=True) and len(confidence) == 10
    path = write(tmp_path / "data.jsonl", records)
    assert main(["evaluate", str(bert), "--path", path, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["confusion"]["macro_f1"] == judged.macro_f1
    assert np.trace(judged.counts) / 60 == pytest.approx(result["accuracy"])
    assert main(["evaluate", str(bert), "--path", path]) == 0
    assert judged.mistakes[0].text in capsys.readouterr().out


def test_many_labels_have_no_matrix():
    names = tuple(map(str, range(13)))
    rows = [*Confusion(names, np.eye(13, dtype=int), ()).rows()]
    assert len(rows) == 14 and {len(row) for row in rows} == {5}


def test_the_page_and_the_end_of_training_say_what_labels_are_answered(tmp_path, capsys):
    path = write(tmp_path / "data.csv", [])
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"{w},{w[0]}\n" for w in words(900)))
    flags = ["--data.path", path, "--training.epochs", "1", "--codec.kind", "bytes", "--model.model_dim", "32"]
    assert main(["train", "sentiment", *flags, "--out", str(tmp_path / "a run"), "--lr", "0.02"]) == 0
    assert "isoform predict '" in capsys.readouterr().out
    page = (tmp_path / "a run/report.html").read_text()
    assert "Macro F1" in page and "isoform predict" in page


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "estimate"])
def test_verbs_end_with_the_command_to_type_next(verb, numbers, tmp_path, capsys):
    folder = tmp_path / "my run"
    shutil.copytree(numbers, folder)
    assert main([verb, str(folder)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    what = "train" if verb == "estimate" else "predict"
    assert shlex.split(last)[:4] == ["next", "isoform", what, str(folder)]

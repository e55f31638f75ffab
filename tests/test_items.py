"""Results by test item: kept as text, the score they give, and its variance over test sets."""

import base64
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU

from isoform.cli import main
from isoform.data.sources import load_source
from isoform.evaluation.evaluate import correct_by_record
from isoform.evaluation.translation import score_translations, sentence_statistics
from isoform.files import read_sealed, write_sealed
from isoform.machine import choose_machine
from isoform.objectives.config import Seq2seq
from isoform.ranges import OutOfRange
from isoform.run import Run, load, read_summary
from isoform.scaling.items import (
    HEADER,
    MAX_BYTES,
    clusters_of,
    pack,
    sampling_variance,
    score,
    unpack,
    unpaired_variance,
)
from isoform.scaling.measures import Answers, Loss, Translation, Validation, take_measures
from isoform.scaling.study import Row, rows_from_json, rows_to_json

MACHINE = choose_machine("cpu", "float32")


def sentences(rng: np.random.Generator, skills: list[float], hardness: np.ndarray, lengths: np.ndarray) -> list:
    """Statistics of BLEU for runs of these skills on sentences of shared hardness and reference lengths."""
    arrays = []
    for skill in skills:
        answers = np.maximum(1, lengths + rng.integers(-2, 3, len(lengths)))
        totals = np.maximum(0, answers[:, None] - np.arange(4))
        shares = 1 / (1 + np.exp(hardness - skill))[:, None] ** np.arange(1, 5)
        arrays.append(np.column_stack([answers, lengths, rng.binomial(totals, shares)]))
    return arrays


def drawn(rng: np.random.Generator, form: str, skills: list[float], num_items: int, spread: float = 1.5) -> list:
    """The items of a new test set, for runs of these skills."""
    hardness = rng.normal(0, spread, num_items)
    if form == "bleu":
        return sentences(rng, skills, hardness, rng.integers(4, 25, num_items))
    shares = [1 / (1 + np.exp(hardness - skill)) for skill in skills]
    if form == "accuracy":
        return [rng.binomial(1, share) for share in shares]
    counts = rng.integers(0, 12, num_items)
    return [np.column_stack([rng.binomial(counts, share), counts]) for share in shares]


FORMS = ("accuracy", "tokens", "bleu")


@pytest.mark.parametrize("form", FORMS)
def test_items_are_kept_as_short_text(form):
    (items,) = drawn(np.random.default_rng(0), form, [0.5], 1000)
    text = pack(items)
    assert np.array_equal(unpack(text), items) and unpack(text).dtype == np.int64
    assert len(text) < {"accuracy": 300, "tokens": 1600, "bleu": 6000}[form]
    assert pack(unpack(text)) == text
    sources = pack(items, np.repeat(np.arange(200)[::-1] * 10, 5))
    assert np.array_equal(unpack(sources), items) and clusters_of(text) is None
    assert np.array_equal(clusters_of(sources), np.repeat(np.arange(200)[::-1], 5)) and len(sources) < len(text) + 1000
    large = np.array([[3, 70_000], [0, 300]])
    assert np.array_equal(unpack(pack(large)), large) and np.array_equal(unpack(pack(np.array([True]))), [1])


@pytest.mark.parametrize("form", FORMS)
def test_damaged_items_are_refused(form):
    (items,) = drawn(np.random.default_rng(1), form, [0.5], 40)
    clusters = np.arange(40) // 4
    text = pack(items, clusters)
    changed = [f"{text[:i]}{c}{text[i + 1 :]}" for i in range(len(text)) for c in "Az9+é\n" if c != text[i]]
    for damaged in (*changed, *(text[:i] for i in range(len(text))), text + "AAAA", text + text):
        try:
            is_same = np.array_equal(unpack(damaged), items) and np.array_equal(clusters_of(damaged), clusters)
            assert is_same, "another spelling of the same bytes"
        except ValueError as error:
            assert str(error).startswith("the items of a measure are damaged")


def test_items_are_unpacked_within_bounds():
    def packed(size: int, items: int, columns: int, data: bytes) -> str:
        return base64.b64encode(zlib.compress(HEADER.pack(size, items, columns, False) + data, 9)).decode()

    assert np.array_equal(unpack(packed(1, 2, 0, b"\1\0")), [1, 0])
    for hostile in (
        packed(1, 1, 0, bytes(1 << 27)),
        packed(4, 1 << 31, 10, b""),
        packed(1, MAX_BYTES + 1, 0, b""),
        packed(0, 1 << 31, 10, b""),
        packed(8, 1, 0, bytes(8)),
        packed(1, 0, 0, b""),
        packed(1, 2, 3, bytes(6)),
        packed(1, 1, 6, b"\2\2\2\1\1\0"),
        packed(1, 1, 0, b"\2"),
        packed(1, 1, 2, b"\2\1"),
    ):
        with pytest.raises(ValueError, match="are damaged"):
            unpack(hostile)
    for wrong in ([0.5, 1.0], [], [2], [[1, 2, 3]], [[-1, 2]], [[3, 2]], [[3, 3, 4, 0, 0, 0]], [[[1, 2]]], 1):
        with pytest.raises(ValueError, match=r"items are whole numbers|below 0, or above"):
            pack(np.array(wrong))
    for clusters in (np.zeros(2), np.arange(3)):
        with pytest.raises(ValueError, match="cluster"):
            pack(np.array([0, 1]), clusters)
    with pytest.raises(ValueError, match="exceed"):
        pack(np.array([[0, 1 << 33]]))


WORDS = ["der", "die", "das", "Hund", "Mann", "geht", "über", "eine", "Straße", ",", "z. B.", "„Schnee“", "U.S."]


@pytest.mark.parametrize("seed", range(4))
def test_bleu_of_the_items_is_that_of_sacrebleu(seed):
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(60)]
    answers = [line if rng.random() < 0.3 else " ".join(rng.permutation(line.split())) for line in references]
    cases = [
        (answers, references),
        (references, references),
        (references[:1], answers[:1]),
        (["der Hund"] * 3, ["der Hund geht über eine Straße"] * 3),
        (["Hund der geht Mann über"], ["der Hund und Mann geht eine"]),
        (["nichts", ""], ["der Hund", "die Straße"]),
    ]
    for hypotheses, truth in cases:
        expected, by_form = score_translations(hypotheses, truth, "de"), sentence_statistics(hypotheses, truth, "de")
        for name, bleu in (("tokenised", expected.tokenised), ("plain", expected.plain)):
            assert score(by_form[name]) == pytest.approx(bleu.score, rel=1e-12, abs=1e-9)
        assert score(by_form["plain"]) == pytest.approx(BLEU().corpus_score(hypotheses, [truth]).score, abs=1e-9)
        assert all(np.array_equal(unpack(pack(items)), items) for items in by_form.values())


def test_the_variance_of_bleu_is_that_of_sacrebleus_bootstrap():
    rng = np.random.default_rng(10)
    references = [" ".join(rng.choice(WORDS, rng.integers(4, 20))) for _ in range(250)]
    answers = [line if rng.random() < 0.4 else " ".join(rng.permutation(line.split())) for line in references]
    sampled = BLEU().corpus_score(answers, [references], n_bootstrap=2000)
    items = sentence_statistics(answers, references, "de")["plain"]
    assert math.sqrt(sampling_variance([[items]], [1])) == pytest.approx(sampled._ci / 1.96, rel=0.1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_second", [True, False])
def test_the_variance_is_that_over_repeated_test_sets(form, has_second):
    rng, repetitions = np.random.default_rng(2), 500
    skills = ([0.4], [0.0]) if form == "accuracy" else ([0.4, 0.6], [0.0, 0.1, -0.1])
    scores, variances = [], []
    for repetition in range(repetitions):
        runs, num_first = drawn(rng, form, [*skills[0], *skills[1]], 150), len(skills[0])
        first, second = runs[:num_first], runs[num_first:] if has_second else None
        arms, weights = ([first, second], [1, -1]) if second else ([first], [1])
        scores.append(np.mean([score(r) for r in first]) - (np.mean([score(r) for r in second]) if second else 0))
        if repetition % 5 == 0:
            variances.append(sampling_variance(arms, weights, resamples=400, seed=repetition))
    assert math.sqrt(np.mean(variances)) == pytest.approx(np.std(scores, ddof=1), rel=0.1), "3 standard errors"


def test_what_runs_and_items_add_together_is_counted_with_the_runs():
    rng, variances, noise = np.random.default_rng(8), [], []
    for _ in range(300):
        shares = 1 / (1 + np.exp(rng.normal(0, 1.5, 200)))
        runs = [rng.binomial(1, shares) for _ in range(3)]
        variances.append(sampling_variance([runs], [1]))
        noise.append(shares.var(ddof=1) / 200)
    assert np.mean(variances) == pytest.approx(np.mean(noise), rel=0.06), "the items' own part alone"


@pytest.mark.parametrize("form", FORMS)
def test_pairing_cancels_what_is_hard_for_both(form):
    runs = drawn(np.random.default_rng(3), form, [0.3, 0.3, 0.0, 0.0], 400, spread=3)
    paired = sampling_variance([runs[:2], runs[2:]])
    assert 0 < paired < 0.5 * (sampling_variance([runs[:2]], [1]) + sampling_variance([runs[2:]], [1]))
    assert sampling_variance([runs[:2], runs[:2]]) == 0
    if form == "accuracy":
        assert paired < unpaired_variance([score(runs[0]), score(runs[2])], [1, -1], 400)


def test_the_closed_form_is_that_of_the_bootstrap():
    runs = drawn(np.random.default_rng(4), "accuracy", [0.5, 0.2, 0.0], 300)
    closed = sampling_variance([runs[:1], runs[1:2]])
    by_bootstrap = sampling_variance([runs[:1], runs[1:2]], clusters=np.arange(300), resamples=20_000)
    assert by_bootstrap == pytest.approx(closed, rel=0.04), "its standard error is 1 %"
    share = score(runs[0])
    assert sampling_variance([runs[:1]], [1]) == pytest.approx(unpaired_variance([share], [1], 299), rel=1e-12)
    assert unpaired_variance([0.5, 0.2], [1, -1], 100) == pytest.approx(0.0041)


def test_items_of_one_source_are_drawn_together():
    rng, scores, variances = np.random.default_rng(5), [], []
    clusters = np.repeat(np.arange(60)[::-1] * 7, 5)
    for repetition in range(400):
        hardness = np.repeat(rng.normal(0, 2, 60), 5)
        items = rng.binomial(1, 1 / (1 + np.exp(hardness)))
        scores.append(score(items))
        if repetition % 5 == 0:
            variances.append(sampling_variance([[items]], [1], clusters, resamples=400, seed=repetition))
    assert math.sqrt(np.mean(variances)) == pytest.approx(np.std(scores, ddof=1), rel=0.11), "3 standard errors"
    assert sampling_variance([[items]], [1]) < 0.6 * variances[-1]
    order = rng.permutation(300)
    shuffled = sampling_variance([[items[order]]], [1], clusters[order], seed=1)
    assert shuffled == pytest.approx(sampling_variance([[items]], [1], clusters, seed=1))


def test_many_resamples_are_drawn_in_blocks(monkeypatch):
    runs = drawn(np.random.default_rng(6), "bleu", [0.5], 50)
    whole = sampling_variance([runs], [1], resamples=300)
    monkeypatch.setattr("isoform.scaling.items.MAX_WEIGHTS", 50 * 7)
    monkeypatch.setattr("isoform.scaling.items.MAX_CACHED", 0)
    assert sampling_variance([runs], [1], resamples=300) == pytest.approx(whole, rel=1e-12)


def test_other_items_are_refused():
    rng = np.random.default_rng(7)
    first, second = drawn(rng, "bleu", [0.5], 30), drawn(rng, "bleu", [0.5], 30)
    right = np.array([0, 1, 1])
    for arguments, message in (
        (([first, second],), "the references differ"),
        (([[right], [right[:2]]],), r"\[2, 3\] of them"),
        (([[right[:1]]], [1]), "one item has no variance"),
        (([[right]], [1], np.zeros(3)), "all items are of one cluster"),
        (([[right]], [1], np.arange(2)), "clusters of shape"),
        (([[np.array([[0, 0], [0, 0], [1, 1]])]], [1]), "too few of the items have targets"),
        (([[right * 0.5]], [1]), "whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling_variance(*arguments)
    for wrong in (([35.0, 0.5], [1, -1], 10), ([0.5, -0.1], [1, -1], 10), ([0.5], [1], 0)):
        with pytest.raises(ValueError, match="only shares"):
            unpaired_variance(*wrong)


def a_row(id: str) -> Row:
    return Row(
        id=id, arm="a", purpose="ladder", seed=0, width=16, group=0, parameters=1.0, tokens=1, compute=1.0, loss=1.0
    )


def test_rows_keep_their_items():
    row = replace(a_row("x"), measures={"right": 0.5}, items={"right": pack(np.array([0, 1]))})
    written = json.loads(json.dumps(rows_to_json([row])))
    assert rows_from_json(written) == {"x": row}
    del written[0]["items"]
    assert rows_from_json(written)["x"].items == {}


SMALL = [
    *("--model.model_dim", "16", "--training.global_batch_tokens", "256", "--training.sample_tokens", "0"),
    *("--no_report", "-q"),
]


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A folder of two runs: on sentences with labels, and on the same as pairs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(8)
    lines = []
    for number in range(300):
        text = " ".join(rng.choice(["a", "bad", "good", "film"], 1 + number % 6))
        lines.append({"text": text, "label": "pos" if text.count("good") > text.count("bad") else "neg"})
    for name, part in (("train", lines[:220]), ("test", lines[220:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
        Path(f"{name}.text").write_text("".join(f"{line['text']}\n" for line in part))
        Path(f"{name}.word").write_text("".join(f"{line['label']}\n" for line in part))
    data = ["--data.path", "train.jsonl", "--data.validation_path", "test.jsonl", "--data.rows", "packed"]
    labels = ["--objective.kind", "classification", "--model.head.kind", "pooled", "--model.head.over", "last"]
    model = ["--codec.kind", "bytes", "--model.decoder.num_layers", "1", "--model.context_length", "32"]
    train = ["train", "shakespeare", *data, *labels, *model, *SMALL, "--training.steps", "25"]
    assert main([*train, "--out", "labels"]) == 0
    data = ["--data.path", "train.{text,word}", "--data.validation_path", "test.{text,word}"]
    model = ["--codec.kind", "bytes", "--model.context_length", "32"]
    assert main(["train", "reverse-seq2seq", *data, *model, *SMALL, "--training.steps", "14", "--out", "pairs"]) == 0
    return tmp_path


def measured(pool: Path, run: str, *measures) -> Row:
    (row,) = take_measures(measures, [a_row(run)], pool, MACHINE)
    return row


def test_measures_keep_the_results_of_each_item(pool):
    accuracy = Validation(name="accuracy", what="accuracy")
    row = measured(pool, "labels", accuracy, Validation(name="last", what="loss"))
    items, records = unpack(row.items["accuracy"]), load_source("test.jsonl", "test.jsonl").validation
    summary = read_summary(Run(pool / "labels"))
    assert row.measures == {"accuracy": summary["validation_accuracy"], "last": summary["validation_loss"]}
    assert items.shape == (len(records),) and 0.5 < score(items) < 1 and set(row.items) == {"accuracy"}
    assert score(items) == pytest.approx(summary["validation_accuracy"], rel=1e-12)
    trained = load(pool / "labels")
    alone = [correct_by_record(trained.model, trained.recipe, trained.codec, [r], MACHINE)[0] for r in records]
    assert np.array_equal(alone, np.column_stack([items, np.ones_like(items)])), "in the order of the records"

    answers = Answers(name="right", path="test.{text,word}")
    bleu = Translation(name="plain", path="test.{text,word}", language="en", form="plain", beams=2, limit=30)
    bleus = bleu, replace(bleu, name="tokenised", form="tokenised")
    row = measured(pool, "pairs", answers, accuracy, *bleus, Loss(name="loss", objective=Seq2seq()))
    items, counts = unpack(row.items["right"]), unpack(row.items["accuracy"])
    assert items.shape == (len(records),) and score(items) == row.measures["right"]
    assert counts.shape == (len(records), 2) and score(counts) == pytest.approx(row.measures["accuracy"], rel=1e-12)
    summary = read_summary(Run(pool / "pairs"))
    assert np.mean(counts[:, 0] == counts[:, 1]) == pytest.approx(summary["validation_exact"])
    for form in ("plain", "tokenised"):
        assert unpack(row.items[form]).shape == (30, 6)
        assert score(unpack(row.items[form])) == pytest.approx(row.measures[form], abs=1e-9)
    assert set(row.items) == {"right", "accuracy", "plain", "tokenised"}, "a loss has none"
    assert 0 < score(items) < 1 and sampling_variance([[items], [counts]]) > 0, (
        "shares of records and of their tokens may be compared"
    )


def test_items_may_share_a_source(pool):
    Path("test.film").write_text("".join(f"film {number // 4}\n" for number in range(80)))
    accuracy = Validation(name="accuracy", what="accuracy", clusters="test.film")
    row = measured(pool, "labels", accuracy)
    assert np.array_equal(np.bincount(clusters_of(row.items["accuracy"])), [4] * 20)
    plain = measured(pool, "labels", replace(accuracy, clusters=""))
    assert np.array_equal(unpack(row.items["accuracy"]), unpack(plain.items["accuracy"]))
    assert clusters_of(plain.items["accuracy"]) is None and len(list(pool.glob("labels/measure-*.json"))) == 1
    bleu = Translation(name="bleu", path="test.{text,word}", language="en", limit=30, clusters=str(pool / "test.film"))
    row = measured(pool, "pairs", bleu, Answers(name="right", path="test.{text,word}", clusters="test.film"))
    assert {name: len(clusters_of(text)) for name, text in row.items.items()} == {"bleu": 30, "right": 80}
    with pytest.raises(ValueError, match=r"train\.text has 220 lines for 80 items of 'accuracy'"):
        measured(pool, "labels", replace(accuracy, clusters="train.text"))
    with pytest.raises(ValueError, match=r"(?s)nowhere"):
        measured(pool, "labels", replace(accuracy, clusters="nowhere"))


def test_a_value_saved_without_items_is_computed_again(pool):
    answers, loss = Answers(name="right", path="test.{text,word}"), Loss(name="loss", objective=Seq2seq())
    row = measured(pool, "pairs", answers, loss)
    by_kind = {len(read_sealed(path)["items"]): path for path in pool.glob("pairs/measure-*.json")}
    before = {path: path.stat().st_mtime_ns for path in by_kind.values()}
    assert measured(pool, "pairs", replace(answers, name="other", num_items=80), loss).items == {
        "other": row.items["right"]
    }
    assert {path: path.stat().st_mtime_ns for path in by_kind.values()} == before
    for path in by_kind.values():
        saved = read_sealed(path)
        write_sealed(path, {**{k: saved[k] for k in ("asked", "signatures")}, "values": {"value": 5.0}})
    again = measured(pool, "pairs", answers, loss)
    assert again.items == row.items and again.measures == {"right": row.measures["right"], "loss": 5.0}
    assert read_sealed(by_kind[1])["items"] == {"value": row.items["right"]}


def test_an_accuracy_is_that_of_the_summary_or_an_error(pool, monkeypatch):
    accuracy = Validation(name="accuracy", what="accuracy")
    changed = {**read_summary(Run(pool / "labels")), "validation_accuracy": 0.1}
    with monkeypatch.context() as patch:
        patch.setattr("isoform.scaling.measures.read_summary", lambda run: changed)
        with pytest.raises(ValueError, match=r"accuracy of 0\.\d+ here, and of 0\.1 in its summary; measure it where"):
            measured(pool, "labels", accuracy)
    assert not list(pool.glob("labels/measure-*.json"))
    with Path("test.jsonl").open("a") as file:
        file.write('{"text": "good", "label": "pos"}\n')
    with pytest.raises(ValueError, match="the data of the run labels changed"):
        measured(pool, "labels", accuracy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_accuracy_is_computed_in_the_format_of_the_training(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    words = ["".join(np.random.default_rng(number).choice(list("abcdef"), 12)) for number in range(400)]
    Path("words.whole").write_text("".join(f"{word}\n" for word in words))
    Path("words.half").write_text("".join(f"{word[::2]}\n" for word in words))
    data = ["--data.path", "words.{whole,half}", "--data.validation_path", "words.{whole,half}"]
    train = ["train", "reverse-seq2seq", *data, "--codec.kind", "bytes", "--model.context_length", "32", *SMALL]
    assert main([*train, "--training.steps", "30", "--dtype", dtype, "--out", "run"]) == 0
    row, threads = measured(tmp_path, "run", Validation(name="accuracy", what="accuracy")), torch.get_num_threads()
    counts = unpack(row.items["accuracy"])
    assert counts.shape == (400, 2) and score(counts) == pytest.approx(row.measures["accuracy"], rel=1e-12)
    assert torch.get_num_threads() == threads
    trained, other = load(tmp_path / "run"), torch.bfloat16 if dtype == "float32" else torch.float32
    trained.model.set_matmul_dtype(other)
    records = load_source("words.{whole,half}", "words.{whole,half}").validation
    others = correct_by_record(trained.model, trained.recipe, trained.codec, records, MACHINE)
    assert 0 < np.abs(others - counts).sum() < 50, "the other format decides a few targets otherwise"


def test_only_shares_of_records_have_items(pool):
    Path("text.txt").write_text("good film. bad film. " * 200)
    plain = ["--data.path", "text.txt", "--model.decoder.num_layers", "1", "--model.context_length", "32"]
    assert main(["train", "shakespeare", *plain, *SMALL, "--training.steps", "2", "--out", "stream"]) == 0
    accuracy = Validation(name="accuracy", what="accuracy", num_items=5)
    row = measured(pool, "stream", accuracy)
    with pytest.raises(ValueError, match="the run stream has no results by item for 'accuracy'"):
        measured(pool, "stream", replace(accuracy, clusters="text.txt"))
    assert row.items == {} and row.measures == {"accuracy": read_summary(Run(pool / "stream"))["validation_accuracy"]}
    trained = load(pool / "stream")
    with pytest.raises(ValueError, match="rows that keep them apart"):
        correct_by_record(trained.model, trained.recipe, trained.codec, [{"text": "good film."}], MACHINE)
    with pytest.raises(ValueError, match="for shares of test items, not for a loss"):
        Validation(name="loss", what="loss", num_items=5)
    with pytest.raises(ValueError, match="for shares of test items, not for a loss"):
        Validation(name="loss", what="loss", clusters="test.film")
    with pytest.raises(OutOfRange, match="num_items=-1 must be at least 0"):
        Answers(name="right", path="test.{text,word}", num_items=-1)


def test_a_record_that_fits_no_row_counts_for_nothing(pool):
    trained = load(pool / "labels")
    records = [{"text": "good", "label": "pos"}, {"text": "good " * 50, "label": "pos"}, {"text": "", "label": "neg"}]
    with pytest.warns(UserWarning, match="1 of 3 validation records"):
        counts = correct_by_record(trained.model, trained.recipe, trained.codec, records, MACHINE)
    assert counts[:, 1].tolist() == [1, 0, 1]

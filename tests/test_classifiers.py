"""Classifiers, taggers and regressions of transformers' classes: logits, names of labels, scores of records, and what
was trained here read by them."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as peers

import isoform
from families import LENGTH, Peer, all_peers, make
from isoform.batch import Tokens
from isoform.checkpoint.huggingface import read_folder, write_folder
from isoform.cli import main
from isoform.evaluation.predictions import classify
from isoform.experiment import train
from isoform.mask import Coordinates
from isoform.objectives.config import Classification, Regression, Tagging, TokenRegression
from test_families import ids
from test_labels import recipe, words, write
from test_whole import WORDS, wordpiece_tokenizer

logging.getLogger("transformers").setLevel(logging.CRITICAL)
PEERS = all_peers()
BASES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "modernbert": "ModernBert",
    "llama3": "Llama",
    "gpt2": "GPT2",
    "qwen2": "Qwen2",
    "mixtral": "Mixtral",
    "gpt_neox": "GPTNeoX",
    "opt": "OPT",
    "bloom": "Bloom",
}
CLASSES = [
    (name, f"{base}For{kind}")
    for name, base in BASES.items()
    for kind in ("SequenceClassification", "TokenClassification")
    if hasattr(peers, f"{base}For{kind}")
]


def made(name: str, kind: str, folder: Path, **fields):
    """A model of theirs with five classes."""
    config = PEERS[name].config
    pad = 1 if config.model_type in ("roberta", "camembert", "opt") else 0
    config = type(config)(**{**config.to_dict(), "num_labels": 5, "pad_token_id": pad, **fields})
    return make(Peer(config, getattr(peers, kind)), folder)


@pytest.mark.parametrize(("name", "kind"), CLASSES, ids=str)
@torch.no_grad()
def test_logits_are_equal_in_and_out(name, kind, tmp_path):
    theirs = made(name, kind, tmp_path / "in")
    ours, pad = read_folder(tmp_path / "in"), theirs.config.pad_token_id
    text, is_real = ids(1), torch.ones(2, LENGTH, dtype=torch.long)
    is_real[1, 22:] = 0
    index = torch.arange(LENGTH).expand(2, -1)
    expected = theirs(input_ids=text.masked_fill(is_real == 0, pad), attention_mask=is_real).logits
    got = ours(Tokens(text, Coordinates(is_real - 1, index)))
    is_whole = kind.endswith("SequenceClassification")
    got, expected = (got[:, 0], expected) if is_whole else (got[is_real.bool()], expected[is_real.bool()])
    assert expected.std() > 0.1 and (got - expected).abs().max() < 1e-4 * expected.std()
    assert write_folder(ours, tmp_path / "out", {"model_type": theirs.config.model_type}) == kind
    again, report = getattr(peers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and again.config.num_labels == 5
    before = {n: t for n, t in theirs.state_dict().items() if "position_embeddings" not in n and "positions" not in n}
    assert all(torch.equal(tensor, again.state_dict()[n]) for n, tensor in before.items())


def test_a_classifier_pools_as_its_config_says(tmp_path):
    theirs = made("modernbert", "ModernBertForSequenceClassification", tmp_path, classifier_pooling="mean")
    ours = read_folder(tmp_path)
    assert ours.config.head.over == "mean"
    with torch.no_grad():
        torch.testing.assert_close(ours(ids(1)), theirs(ids(1)).logits, atol=1e-4, rtol=0)


def labelled(folder: Path, kind: str, **fields) -> Path:
    """A BERT with a tokenizer and named labels."""
    tokenizer = peers.PreTrainedTokenizerFast(tokenizer_object=wordpiece_tokenizer(), **WORDS)
    made("bert", kind, folder, vocab_size=len(tokenizer), **fields)
    tokenizer.save_pretrained(folder)
    return folder


NAMES = {"id2label": {0: "dog", 1: "fox", 2: "cat"}, "label2id": {"dog": 0, "fox": 1, "cat": 2}, "num_labels": 3}


def by_name(trained, scores) -> dict[str, float]:
    return dict(zip(trained.recipe.objective.labels, scores.tolist(), strict=True))


def theirs_by_name(scores: list[dict]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in scores}


def test_labels_are_read_scored_and_written_by_name(tmp_path, capsys):
    folder = labelled(tmp_path / "in", "BertForSequenceClassification", **NAMES)
    trained, pipeline = isoform.load(folder), peers.pipeline("text-classification", str(folder), top_k=None)
    texts = ["the lazy dog", "What's new, pussycat?"]
    assert isinstance(trained.recipe.objective, Classification)
    assert trained.recipe.objective.labels == ("dog", "fox", "cat")
    got = classify(trained, [{"text": text} for text in texts])
    for scores, ours in zip(pipeline(texts), got, strict=True):
        assert by_name(trained, ours) == pytest.approx(theirs_by_name(scores), abs=1e-5)
    best = [trained.recipe.objective.labels[i] for i in got.argmax(-1)]
    path = write(tmp_path / "data.jsonl", [{"text": t, "label": b} for t, b in zip(texts, best, strict=True)])
    assert main(["evaluate", str(folder), "--path", path]) == 0
    assert "100" in capsys.readouterr().out
    unknown = write(tmp_path / "other.jsonl", [{"text": "a dog", "label": "bird"}])
    assert main(["evaluate", str(folder), "--path", unknown]) == 65
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    again = peers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    assert again(texts) == pipeline(texts)


@pytest.mark.parametrize(
    ("kind", "fields", "objective"),
    [
        ("BertForSequenceClassification", {"num_labels": 1}, Regression),
        ("BertForTokenClassification", {"num_labels": 1, "problem_type": "regression"}, TokenRegression),
        ("BertForTokenClassification", NAMES, Tagging),
    ],
)
def test_what_outputs_are_is_read_of_the_config(kind, fields, objective, tmp_path):
    trained = isoform.load(labelled(tmp_path, kind, **fields))
    assert isinstance(trained.recipe.objective, objective)
    if objective is Tagging:
        assert trained.recipe.objective.labels == ("dog", "fox", "cat")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "labels here exclude each other"),
        ({"problem_type": "regression"}, "with 5 outputs is not supported"),
    ],
)
def test_labels_that_are_no_classes_are_refused(fields, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        isoform.load(labelled(tmp_path, "BertForSequenceClassification", **fields))


LLAMA_BLOCK = {"mixer": {"num_heads": 2}, "feedforward": {"kind": "gated"}, "norm": {"kind": "rms_norm"}}
BERT_BLOCK = {"mixer": {"num_heads": 2, "bias": True}, "feedforward": {"bias": True}, "norm_placement": "post"}
FORMS = {
    "BertForSequenceClassification": {
        "encoder": {"num_layers": 1, "blocks": {"0": BERT_BLOCK}, "position": {"kind": "learned"}, "final_norm": False,
                    "input_norm": {"kind": "layer_norm"}},
        "decoder": "none", "stem": {"num_token_types": 1}, "head": {"kind": "pooled", "dense": True},
    },
    "LlamaForSequenceClassification": {
        "decoder": {"num_layers": 1, "blocks": {"0": LLAMA_BLOCK}},
        "head": {"kind": "pooled", "over": "last", "bias": False},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_a_trained_classifier_is_read_by_their_pipeline_with_its_labels(kind, tmp_path):
    path = write(tmp_path / "data.jsonl", [{"text": w, "label": f"begins-{w[0]}"} for w in words(400)])
    run = train(recipe(path, {"kind": "classification"}, FORMS[kind], steps=20), tmp_path / "run")
    trained = isoform.load(run.folder)
    assert isoform.export(trained, tmp_path / "out") == kind
    pipeline = peers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    for text in ("xab", "czz"):
        (ours,) = classify(trained, [{"text": text}])
        assert by_name(trained, ours) == pytest.approx(theirs_by_name(pipeline([text])[0]), abs=1e-5)


def scaled(image, factor: float, mean: float, spread: float) -> torch.Tensor:
    return ((torch.tensor(image) * factor - mean) / spread).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        (None, (1 / 255, 0.5, 0.5)),
        ({}, (1 / 255, 0.5, 0.5)),
        ({"rescale_factor": 1 / 100, "image_mean": [0.25] * 3, "image_std": [0.25] * 3}, (1 / 100, 0.25, 0.25)),
        ({"do_rescale": False, "image_mean": [100] * 3, "image_std": [100] * 3}, (1.0, 100, 100)),
    ],
)
def test_an_image_means_to_a_vit_what_it_means_to_transformers(settings, scaling, tmp_path):
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    theirs = make(PEERS["vit"], folder)
    if settings is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    trained = isoform.load(folder)
    image = rng.integers(0, 50, (16, 16, 3)).astype(np.float32)
    expected = theirs(pixel_values=scaled(image, *scaling)).logits.softmax(-1)
    torch.testing.assert_close(classify(trained, [{"image": image}]), expected, atol=1e-5, rtol=0)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    again = isoform.load(tmp_path / "out")
    torch.testing.assert_close(classify(again, [{"image": image}]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"image_mean": "x"},
        {"rescale_factor": 0},
    ],
)
def test_a_scaling_that_is_not_followed_is_named(settings, tmp_path):
    make(PEERS["vit"], tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="don't scale a range from 0 to -1"):
        isoform.load(tmp_path)

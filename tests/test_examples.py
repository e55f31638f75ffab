"""The examples are true, and what they show is what the library computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import data_file
from isoform.batch import plain_coordinates
from isoform.mask import Causal, Full
from isoform.model.lowering import attend, lower

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.mark.parametrize(("mask", "edges"), [(Causal(), "decoder_edges"), (Full(), "encoder_edges")])
def test_attention_is_message_passing(mask, edges):
    import message_passing

    torch.manual_seed(0)
    q, k, v = (torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    nodes = [message_passing.Node(*(t[i].tolist() for t in (q, k, v))) for i in range(6)]
    messages = message_passing.message_pass(nodes, getattr(message_passing, edges)(6))
    coordinates = plain_coordinates(1, 6)
    ours = attend(q[None, None], k[None, None], v[None, None], lower(mask, coordinates, coordinates))[0, 0]
    torch.testing.assert_close(ours, torch.tensor(messages, dtype=torch.float64))


def test_a_node_without_edges_hears_nothing():
    import message_passing

    assert message_passing.message_pass([message_passing.Node([1.0], [1.0], [5.0])], set()) == [[0.0]]


def test_first_run_is_short_and_runs(tmp_path):
    script = EXAMPLES / "first_run.py"
    assert len(script.read_text().splitlines()) < 60
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question:\nROMEO: " * 60)
    process = subprocess.run(
        [sys.executable, str(script), str(text), "4"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "%" in process.stdout and (tmp_path / "runs/first-run-1/summary.json").exists()


def test_corpora_become_records_and_what_is_held_out_is_in_no_training_file(tmp_path):
    zips = data_file("nltk_corpora/movie_reviews.zip").parent
    script = EXAMPLES / "nltk_corpora.py"
    subprocess.run([sys.executable, str(script), str(zips), str(tmp_path)], check=True)

    def records(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]

    held_out, read = records("films-held-out.jsonl"), records("films.jsonl")
    assert (len(held_out), len(read)) == (200, 1800 + 65 + 59)
    assert not {r["text"] for r in held_out} & {r["text"] for r in read}
    for name, sizes in (("reviews", (1800, 200)), ("sentences", (9594, 1068))):
        train, test = records(f"{name}-train.jsonl"), records(f"{name}-test.jsonl")
        assert (len(train), len(test)) == sizes
        assert {r["label"] for r in train} == {r["label"] for r in test} == {"neg", "pos"}
        texts = (tmp_path / f"{name}-test.text").read_text(encoding="utf-8").splitlines()
        labels = (tmp_path / f"{name}-test.opinion").read_text(encoding="utf-8").splitlines()
        assert [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)] == test
    ends = [" ".join(r["text"].split()[-100:]) for r in held_out]
    assert [r["text"] for r in records("reviews-test.jsonl")] == ends

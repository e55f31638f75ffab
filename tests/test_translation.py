"""Translation: BLEU as by sacrebleu's own command, on a trained model's translations."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isoform.cli import main
from isoform.evaluation.translation import score_translations
from isoform.inspection.attention import cross_attention
from isoform.model.config import ModelConfig, StackConfig
from isoform.model.parts import Buckets
from isoform.model.transformer import Transformer

REFERENCES = [
    "Ein Mann geht über die Straße, z. B. am Montag.",
    "Zwei Hunde spielen im „Schnee“ – laut & froh.",
    "Eine Frau liest ein Buch auf der Bank.",
    "Das ist gut.",
]
ANSWERS = [
    "ein Mann geht über eine Straße , z. B. am Montag.",
    'Zwei Hunde spielen in dem "Schnee" – laut & froh.',
    "Eine frau liest auf einer Bank das Buch.",
    "Das ist gut.",
]
TINY = [
    *("--model.model_dim", "16", "--model.context_length", "32", "--training.steps", "3"),
    *("--training.global_batch_tokens", "128", "--training.sample_tokens", "4", "--no_report", "-q"),
]


def by_command(folder: Path, answers: list[str], *flags: str) -> float:
    (folder / "answers").write_text("".join(f"{line}\n" for line in answers), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(folder / "references"), "-i", str(folder / "answers"), "-b"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    process = subprocess.run([*command, "-w", "6", *flags], capture_output=True, text=True, check=True, env=environment)
    return float(process.stdout)


def test_bleu_equals_the_command_of_sacrebleu(tmp_path):
    score = score_translations(ANSWERS, REFERENCES, "de")
    (tmp_path / "references").write_text("".join(f"{line}\n" for line in REFERENCES), encoding="utf-8")
    assert score.plain.score == pytest.approx(by_command(tmp_path, ANSWERS), abs=1e-5)
    assert "case:mixed" in score.plain.signature and "tok:13a" in score.plain.signature

    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalizer, tokenizer = MosesPunctNormalizer("de"), MosesTokenizer("de")

    def prepared(lines):
        return [tokenizer.tokenize(normalizer.normalize(line.lower()), return_str=True, escape=False) for line in lines]

    (tmp_path / "references").write_text("".join(f"{line}\n" for line in prepared(REFERENCES)), encoding="utf-8")
    published = by_command(tmp_path, prepared(ANSWERS), "--tokenize", "none", "--lowercase", "--force")
    assert score.tokenised.score == pytest.approx(published, abs=1e-5)
    assert "case:lc" in score.tokenised.signature and score.tokenised.signature.endswith("moses.de")
    assert score.tokenised.score > score.plain.score, "case and quotes count in one of them only"
    assert score.num_pairs == 4


def test_what_cannot_be_scored_is_an_error(monkeypatch):
    perfect = score_translations(REFERENCES, REFERENCES, "de")
    assert perfect.plain.score == pytest.approx(100) and perfect.tokenised.score == pytest.approx(100)
    for answers in (ANSWERS[:3], []):
        with pytest.raises(ValueError, match=f"{len(answers)} answers for 4"):
            score_translations(answers, REFERENCES, "de")
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ValueError, match=r"'sacremoses' is not installed; run: pip install 'isoform\[eval\]'"):
        score_translations(ANSWERS, REFERENCES, "de")


def test_runs_are_evaluated_by_translation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("en", ["a man walks", "two dogs", "that is good"] * 20), ("de", ANSWERS[1:] * 20)):
        Path(f"t.{name}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    data = ["--data.path", "t.{en,de}", "--codec.kind", "bytes"]
    assert main(["train", "reverse-seq2seq", *data, *TINY, "--model.context_length", "64", "--out", "run"]) == 0
    capsys.readouterr()
    arguments = ["evaluate", "run", "--path", "t.{en,de}", "--tasks", "translation", "--language", "de", "--limit", "3"]
    assert main([*arguments, "--beams", "2", "--out", "answers", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    answers = Path("answers/run.txt").read_text(encoding="utf-8").split("\n")[:-1]
    again = score_translations(answers, ANSWERS[1:], "de")
    translation = result["translation"]
    assert (
        translation["plain"]["score"] == again.plain.score
        and translation["tokenised"]["signature"] == again.tokenised.signature
    )
    assert (translation["num_pairs"], translation["beam"]["size"]) == (3, 2) and translation["seconds"] > 0
    assert main(["generate", "run", "--prompt", "two dogs", "--beams", "2", "--attention", "a.png"]) == 0
    assert Path("a.png").read_bytes().startswith(b"\x89PNG") and "a.png" in capsys.readouterr().out
    assert main([*arguments, "--beams", "2"]) == 0
    output = capsys.readouterr().out
    assert "BLEU plain" in output and "tok:13a" in output and "moses.de" in output

    Path("text.txt").write_text("That is good. " * 400)
    plain = ["train", "shakespeare", "--data.path", "text.txt", "--model.decoder.num_layers", "1", *TINY]
    assert main([*plain, "--out", "plain"]) == 0
    assert main(["generate", "plain", "--attention", "b.png", "--prompt", "T"]) == 0, "a decoder alone attends, too"
    assert Path("b.png").read_bytes().startswith(b"\x89PNG") and "b.png" in capsys.readouterr().out
    assert main(["evaluate", "plain", "--tasks", "translation"]) == 65
    assert "needs a model and data of sources and targets" in capsys.readouterr().err
    assert main(["evaluate", "run", "--path", "t.{en,de}", "--tasks", "summary"]) == 65
    assert "translation" in capsys.readouterr().err


@pytest.mark.parametrize("kernel", ["dense", "sdpa"])
def test_cross_attention_weights_are_those_used(kernel):
    torch.manual_seed(0)
    stack = StackConfig(num_layers=2, position=Buckets(), cross="separate")
    config = ModelConfig(
        model_dim=16, vocab_size=9, context_length=12, encoder=StackConfig(num_layers=1), decoder=stack
    )
    model = Transformer(config).eval()
    model.use_kernel(kernel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    source, inputs = np.arange(7), np.array([1, 3, 5, 7])
    weights = cross_attention(model, source, inputs)
    assert weights.shape == (2, 4, 4, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 4))
    before = model.decode(torch.from_numpy(inputs)[None], None, model.encode(torch.from_numpy(source)[None]))
    cross_attention(model, source, inputs)
    after = model.decode(torch.from_numpy(inputs)[None], None, model.encode(torch.from_numpy(source)[None]))
    assert torch.equal(before, after), "looking changes nothing"
    with pytest.raises(ValueError, match="no cross-attention"):
        cross_attention(
            Transformer(replace(config, encoder=None, decoder=replace(stack, cross="none"))), source, inputs
        )

"""A run that was stopped, however, ends in the same bits as one that wasn't."""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isoform.config import ConfigError
from isoform.data.config import Data
from isoform.experiment import train
from isoform.machine import choose_machine
from isoform.metrics import CLOCK_FIELDS, read_metrics
from isoform.model.config import BlockConfig, Lookup, ModelConfig, StackConfig
from isoform.model.parts import Dense, Experts, TokenChoice
from isoform.recipe import Recipe
from isoform.run import Run, load
from isoform.scaling import engines
from isoform.signals import interruptions
from isoform.terminal import Terminal
from isoform.training.config import AdamW, Muon, Training

CPU = choose_machine("cpu", "float32")
PLAIN = Dense(activation="relu2")


@pytest.fixture
def text(tmp_path) -> Path:
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is", "the", "question"], k=1500)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words))
    return path


def recipe(text: Path, feedforward=PLAIN, **fields) -> Recipe:
    block = BlockConfig(feedforward=feedforward)
    model = ModelConfig(
        model_dim=16,
        context_length=16,
        decoder=StackConfig(num_layers=2, blocks=(block,)),
        stem=Lookup(ngrams=(2,)),
        dropout=0.1,
    )
    defaults = {"steps": 12, "global_batch_tokens": 128, "validate_every": 4, "checkpoint_every": 3, "sample_every": 5}
    training = Training(**{**defaults, "sample_tokens": 10, "log_every": 2, **fields})
    return Recipe(data=Data(path=str(text)), model=model, training=training, sample_prompt="t")


def state(run: Run):
    """All that must not depend on where a run was cut."""
    lines = [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in read_metrics(run.metrics)]
    return lines, run.samples.read_text(), load(run.folder).model.state_dict()


def assert_same(a: Run, b: Run) -> None:
    (lines_a, samples_a, tensors_a), (lines_b, samples_b, tensors_b) = state(a), state(b)
    assert lines_a == lines_b
    assert samples_a == samples_b
    assert all(torch.equal(tensors_a[name], tensors_b[name]) for name in tensors_a)


ROUTED = Experts(
    num_experts=4, router=TokenChoice(balance_loss=0.1, z_loss=0.1, bias_rate=0.01, capacity_factor=1.0), num_shared=1
)
KINDS = {
    "adamw": {"optimizer": AdamW()},
    "muon": {"optimizer": Muon()},
    "accumulated": {"optimizer": Muon(), "micro_batch_size": 3},
    "experts": {"optimizer": Muon(), "feedforward": ROUTED},
}


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_stopped_and_continued_is_uninterrupted(text, tmp_path, fields, cut):
    whole = train(recipe(text, **fields), tmp_path / "whole", machine=CPU)
    seen = []
    part = train(
        recipe(text, **fields),
        tmp_path / "part",
        machine=CPU,
        should_stop=lambda: seen.append(0) or len(seen) == cut,
    )
    assert not part.summary.exists()
    train(recipe(text, **fields), part.folder, machine=CPU)
    assert_same(whole, part)


def command(text: Path, out: Path, *flags: str) -> list[str]:
    toml = text.parent / "recipe.toml"
    toml.write_text(
        f'sample_prompt = "t"\n[data]\npath = "{text}"\n[model]\nmodel_dim = 16\ncontext_length = 16\ndropout = 0.1\n'
        "decoder.num_layers = 2\n"
        "[training]\nsteps = 240\nglobal_batch_tokens = 128\nvalidate_every = 100\ncheckpoint_every = 20\n"
    )
    words = ["train", str(toml), "--out", str(out), "--dtype", "float32", "--no_report", *flags]
    return [sys.executable, "-m", "isoform.cli", *words]


def test_killed_anywhere_it_continues_to_the_same_bits(text, tmp_path, forked):
    def start(name: str):
        return engines.launch(command(text, tmp_path / name, "-q"), {}, str(tmp_path / "log"), str(tmp_path))

    def newest() -> str:
        return max((path.name for path in (tmp_path / "part/checkpoints").glob("step-*")), default="")

    assert start("whole").wait() == 0
    for _ in range(2):
        before, process, until = newest(), start("part"), time.monotonic() + 30
        while newest() == before:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start("part").wait() == 0
    assert_same(Run(tmp_path / "whole"), Run(tmp_path / "part"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_a_run_after_a_clean_save(text, tmp_path, hangups, forked, name):
    """Also during a validation that takes minutes; a signal that may come more than once ends nothing at once."""
    out, log = tmp_path / "run", tmp_path / "log"
    (tmp_path / "long.txt").write_text(text.read_text() * 400)
    validation = ["--data.validation_path", str(tmp_path / "long.txt"), "--training.validate_every", "3"]
    process = engines.launch(command(text, out, "--training.steps", "100000", *validation), {}, str(log), str(tmp_path))
    until = time.monotonic() + 60
    while '"step": 1,' not in ((out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.5)
    for _ in range(2 if name in ("SIGHUP", "SIGUSR1") else 1):
        os.kill(process.pid, getattr(signal, name))
    sent = time.monotonic()
    assert process.wait() == (130 if name == "SIGINT" else 75)
    assert time.monotonic() - sent < 5
    assert "stopping" in log.read_text() and "clean save" in log.read_text()
    assert load(out).step == 3


def test_a_hangup_that_is_ignored_stays_ignored():
    before, term = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with interruptions(Terminal()):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != term
        assert signal.getsignal(signal.SIGTERM) == term
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("calls", range(0, 17, 2))
def test_a_run_stopped_during_validation_or_a_sample_continues_with_it(text, tmp_path, calls):
    """should_stop is asked after each step, between batches, and between the tokens of a sample; every second process
    is killed instead, with what it has done since the last checkpoint."""
    fields = {"steps": 4, "validate_every": 2, "sample_every": 2, "checkpoint_every": 3, "sample_tokens": 5}
    whole, part, number = train(recipe(text, **fields), tmp_path / "whole", machine=CPU), Run(tmp_path / "part"), 0
    while not part.summary.exists():
        number, asked = number + 1, iter(range(1000))

        def should_stop(number=number, asked=asked) -> bool:
            is_over = next(asked) == calls + number // 2
            if is_over and number % 2 == 0:
                raise KeyboardInterrupt
            return is_over

        with suppress(KeyboardInterrupt):
            train(recipe(text, **fields), part.folder, machine=CPU, should_stop=should_stop)
    assert number > 1
    assert_same(whole, part)


def test_more_steps_extend_and_anything_else_is_refused(text, tmp_path, capsys):
    run = train(recipe(text), tmp_path / "run", machine=CPU)
    before = run.metrics.read_text()
    train(recipe(text), run.folder, machine=CPU, terminal=Terminal())
    assert "is finished" in capsys.readouterr().out
    assert run.metrics.read_text() == before
    train(recipe(text, steps=15), run.folder, machine=CPU, terminal=Terminal())
    assert "from 12 to 15 steps" in capsys.readouterr().out
    assert load(run.folder).step == 15
    with pytest.raises(ConfigError, match=r"seed: 0 there, 7 requested"):
        train(replace(recipe(text, steps=15), seed=7), run.folder, machine=CPU)
    with pytest.raises(ConfigError, match=r"training\.steps"):
        train(recipe(text, steps=14), run.folder, machine=CPU)


def test_an_extended_run_that_is_stopped_is_not_finished(text, tmp_path):
    run = train(recipe(text), tmp_path / "run", machine=CPU)
    train(recipe(text, steps=20), run.folder, machine=CPU, should_stop=lambda: True)
    assert not run.summary.exists()
    assert load(run.folder).step == 13


def test_changed_data_is_refused(text, tmp_path):
    run = train(recipe(text), tmp_path / "run", machine=CPU, should_stop=lambda: True)
    text.write_text(text.read_text().replace("be", "bo", 1))
    with pytest.raises(ConfigError, match=r"the data of the run .* changed"):
        train(recipe(text), run.folder, machine=CPU)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(text, tmp_path, capsys):
    run = train(recipe(text), tmp_path / "whole", machine=CPU)
    seen = []
    part = train(recipe(text), tmp_path / "part", machine=CPU, should_stop=lambda: seen.append(0) or len(seen) == 10)
    newest = max(part.checkpoints.glob("step-*"))
    (newest / "model.safetensors").write_bytes(b"nothing")
    train(recipe(text), part.folder, machine=CPU, terminal=Terminal())
    assert "model.safetensors" in capsys.readouterr().err
    assert_same(run, part)


def test_a_prompt_of_unknown_characters_does_not_stop_a_run(text, tmp_path, capsys):
    run = train(replace(recipe(text), sample_prompt="#"), tmp_path / "run", machine=CPU, terminal=Terminal(quiet=True))
    assert "samples begin without a prompt" in capsys.readouterr().err
    assert run.summary.exists()

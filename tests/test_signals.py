"""Signals end a process within a second wherever there is nothing to save, even amid a library's call."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import faults
from isoform.checkpoint.store import newest_step
from isoform.experiment import train
from isoform.journal import is_vacant
from isoform.machine import choose_machine
from isoform.recipe import load_recipe
from isoform.run import Run
from isoform.scaling import engines

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
CALL = "import hashlib; print('begun', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**8)"
"""A call of a library during which no handler of Python's runs: minutes, or until the process ends."""
CPU = choose_machine("cpu", "float32")
TESTS = str(Path(__file__).parent)
NOTHING = "isoform: stopped by {} with nothing to save; start the same command again\n"


def end(script: str, folder: Path, *names: str) -> tuple[int, str]:
    """Run a script until it has printed a line, send it signals, half a second apart, and return code and errors."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, TESTS])}
    words = [sys.executable, "-c", script]
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while "begun" not in (line := process.stdout.readline()):
                assert line, process.stderr.read()
            for name in names:
                time.sleep(0.5)
                process.send_signal(getattr(signal, name))
            sent = time.monotonic()
            code = process.wait(20)
            assert time.monotonic() - sent < 1
        finally:
            process.kill()
        return code, process.stderr.read()


def test_a_keyboard_interrupt_ends_any_command_amid_a_call(tmp_path):
    script = f"""
from isoform.signals import keyboard_interrupts
from isoform.terminal import Terminal
with keyboard_interrupts(Terminal()):
    {CALL}
"""
    assert end(script, tmp_path, "SIGINT") == (130, "isoform: interrupted\n")
    code, errors = end(script.replace(CALL, "print('begun', flush=True)\n    while True: pass"), tmp_path, "SIGINT")
    assert code != 130 and errors.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_a_run_amid_a_call(tmp_path, name):
    script = f"""
from isoform.signals import interruptions, keyboard_interrupts
from isoform.terminal import Terminal
with keyboard_interrupts(Terminal()), interruptions(Terminal()) as asked:
    asked.should_stop()
    print("begun", flush=True)
    while not asked.should_stop():
        pass
    {CALL}
"""
    code, errors = end(script, tmp_path, name, name)
    assert code == (130 if name == "SIGINT" else -signal.SIGTERM)
    assert errors.startswith("isoform: stopping; the state is saved first\n")


def test_other_signals_end_nothing():
    script = """
import os, signal, time
from isoform.signals import interruptions
from isoform.terminal import Terminal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interruptions(Terminal()):
    for name in (signal.SIGALRM, signal.SIGHUP):
        os.kill(os.getpid(), name)
        time.sleep(0.2)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_vocabulary_is_learned_ends_the_process(tmp_path, forked, name):
    generator = random.Random(0)
    words = ("".join(generator.choices("etaoinshrdlu", k=9)) for _ in range(400_000))
    (tmp_path / "words.txt").write_text(" ".join(words))
    (tmp_path / "recipe.toml").write_text(faults.RECIPE.format(steps=1).replace("text.txt", "words.txt"))
    words = [sys.executable, "-m", "isoform.cli", "train", "recipe.toml", "--out", "run"]
    learned = ["--codec.kind", "bpe", "--codec.vocab_size", "20000"]
    process = engines.launch([*words, *learned], {}, str(tmp_path / "log"), str(tmp_path))
    until = time.monotonic() + 60
    while not (tmp_path / "run/.lock").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(1)
    os.kill(process.pid, getattr(signal, name))
    sent = time.monotonic()
    assert process.wait() == (130 if name == "SIGINT" else 75)
    assert time.monotonic() - sent < 1
    log = (tmp_path / "log").read_text()
    assert log.endswith(NOTHING.format(name)) and is_vacant(tmp_path / "run")


@pytest.mark.parametrize(("name", "step"), [("SIGINT", 0), ("SIGHUP", 0), ("SIGTERM", 2), ("SIGUSR1", 2)])
def test_a_run_stopped_while_it_is_prepared_continues(tmp_path, monkeypatch, hangups, name, step):
    scenario, run = faults.train_scenario(), Run(tmp_path / "part/run")
    monkeypatch.chdir(scenario.start(tmp_path / "whole"))
    assert scenario.command(tmp_path) == 0
    monkeypatch.chdir(scenario.start(tmp_path / "part"))
    if step:
        asked = iter(range(100))
        train(load_recipe("recipe.toml"), run.folder, machine=CPU, should_stop=lambda: next(asked) > step)
    words = ["train", "recipe.toml", "--out", "run", *faults.CPU]
    script = f"""
import sys
from isoform import cli, experiment
prepare = experiment.prepare
def slow(*arguments):
    {CALL}
    return prepare(*arguments)
experiment.prepare = slow
sys.exit(cli.main({words}))
"""
    assert end(script, tmp_path / "part", name) == (130 if name == "SIGINT" else 75, NOTHING.format(name))
    assert (newest_step(run.checkpoints) > 0) == run.exists == (step > 0)
    assert scenario.command(tmp_path) == 0
    assert scenario.result(tmp_path / "part") == scenario.result(tmp_path / "whole")


@pytest.mark.parametrize("where", ["prepare", "decide"])
def test_a_study_stopped_between_its_runs_continues(tmp_path, monkeypatch, where):
    study = faults.study_scenario(faults.Inline)
    monkeypatch.chdir(study.start(tmp_path / "study"))
    script = f"""
import os, sys, faults
from pathlib import Path
from isoform.scaling import lab
original = lab.{where}
def slow(*arguments):
    {CALL}
    return original(*arguments)
lab.{where} = slow
sys.exit(faults.study_scenario(faults.Inline).command(Path.cwd()))
"""
    code, errors = end(script, tmp_path / "study", "SIGTERM")
    assert code == 75 and errors.endswith(NOTHING.format("SIGTERM"))
    made = {path: path.stat().st_mtime_ns for path in Path("pool").glob("*/summary.json")}
    assert len(made) == (2 if where == "decide" else 0)
    assert study.command(tmp_path / "study") == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    assert json.loads(Path("results/claim.json").read_text())["verdict"] == "confirmed"

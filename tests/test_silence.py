"""Nothing is silent: what a command says at once, what it says while something takes long, and on which stream."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isoform import terminal as terminals
from isoform.busy import OtherProcesses, advice
from isoform.cli import main
from isoform.model.cost import num_parameters
from isoform.opening import opening
from isoform.recipe import builtin_recipes, load_recipe
from isoform.terminal import Terminal

TEXT = "ROMEO: to be, or not to be, that is the question.\n"
TINY = [
    *("--model.model_dim", "16", "--model.context_length", "16", "--model.decoder.num_layers", "1"),
    *("--training.steps", "5", "--training.global_batch_tokens", "64", "--training.sample_tokens", "10"),
]
FIRST_LINE_WITHIN = 10.0
"""Seconds for the first line of `train`, which takes 0.5 on a quiet machine: here others may compute."""


class Stream(io.StringIO):
    """A stream, perhaps a terminal."""

    def __init__(self, *, is_screen: bool) -> None:
        super().__init__()
        self.is_screen = is_screen

    def isatty(self) -> bool:
        return self.is_screen


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(terminals, "PATIENCE", 0.001)
    monkeypatch.setenv("TERM", "xterm")


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_elsewhere_than_on_a_terminal_lines_tell_what_is_done(impatient, monkeypatch, capsys):
    stream = Stream(is_screen=False)
    monkeypatch.setattr(sys, "stderr", stream)
    terminal = Terminal()
    with terminal.doing("preparing"):
        wait_for(lambda: "preparing … 0 s\n" in stream.getvalue())
        with terminal.doing("reading \x1b[2J"):
            wait_for(lambda: "reading \\x1b[2J … 0 s\n" in stream.getvalue())
    assert not terminal.work and capsys.readouterr().out == "" and "\r" not in stream.getvalue()


def test_on_a_terminal_one_line_tells_it_and_is_gone_when_another_comes(impatient, monkeypatch):
    stream = Stream(is_screen=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with Terminal().doing("reading"):
        wait_for(lambda: stream.getvalue().count("\rreading … 0 s\x1b[K") > 2)
    assert "\n" not in stream.getvalue() and stream.getvalue().endswith("\x1b[K\r\x1b[K")


@pytest.mark.parametrize(("options", "is_brief"), [({"quiet": True}, False), ({}, True)])
def test_nothing_is_told_if_quiet_or_if_only_a_terminal_would_show_it(impatient, monkeypatch, options, is_brief):
    stream = Stream(is_screen=False)
    monkeypatch.setattr(sys, "stderr", stream)
    with Terminal(**options).doing("reading", is_brief=is_brief):
        time.sleep(0.02)
    assert stream.getvalue() == ""


def test_what_is_quick_says_nothing_and_an_error_ends_it(capfd):
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), terminal.doing("dividing"):
        _ = 1 / 0
    assert not terminal.work and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", builtin_recipes())
def test_any_recipe_tells_its_model_and_data_before_pytorch_is_there(name):
    recipe = load_recipe(name)
    model, data, *_ = opening(recipe)
    assert f"{num_parameters(recipe.model):,} parameters" in model and f"width {recipe.model.model_dim}" in model
    assert (recipe.data.path or recipe.data.mixture[0].path) in data


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 80)
    return tmp_path / "text.txt"


def test_the_first_line_comes_before_pytorch(text):
    words = [sys.executable, "-X", "importtime", "-m", "isoform.cli", "train", "shakespeare", "--data.path", str(text)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*words, *TINY, "--dry_run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        imported, line = "", process.stdout.readline()
        while line.startswith("import time:"):
            imported, line = imported + line, process.stdout.readline()
        seconds = time.perf_counter() - started
        process.kill()
    assert line.startswith("model          decoder, 1 layers of width 16") and seconds < FIRST_LINE_WITHIN
    assert "isoform.config" in imported and re.search(r"\| +(torch|numpy)$", imported, re.M) is None


def test_train_tells_model_data_machine_records_and_steps(text, monkeypatch, capsys):
    monkeypatch.chdir(text.parent)
    train = ["train", "shakespeare", "--data.path", "text.txt", *TINY, "--dtype", "float32", "--no_report"]
    assert main([*train, "--out", "run"]) == 0
    out = capsys.readouterr().out
    for words in ("decoder, 1 layers of width 16, context 16", "text.txt, read as characters", "1 thread, float32"):
        assert words in out, words
    assert "1 to train on, 1 to validate, 4 kB" in out and "5 steps of 64 tokens" in out
    assert main([*train, "--out", "quiet", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*train, "--out", "json", "--json"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def stat(path: Path, busy: int, idle: int) -> Path:
    path.write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    return path


def test_the_cores_of_others_are_those_that_are_busy_without_ours(tmp_path, monkeypatch):
    clock, own = [100.0], [7.0]
    monkeypatch.setattr("isoform.busy.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("isoform.busy.os.times", lambda: os.times_result((own[0], 0.0, 0.0, 0.0, clock[0])))
    monkeypatch.setattr("isoform.busy.os.sysconf", lambda name: 100)
    others = OtherProcesses(stat(tmp_path / "stat", 1000, 5000))
    clock[0] += 0.5
    assert others.num_busy_cores() is None  # too short a while to tell
    clock[0], own[0] = 104.0, 10.0
    stat(tmp_path / "stat", 1000 + 700, 5000)
    assert others.num_busy_cores() == pytest.approx((7 - 3) / 4)
    clock[0] = 105.0
    assert others.num_busy_cores() == 0.0
    (tmp_path / "stat").write_text("nothing")
    clock[0] = 107.0
    monkeypatch.setattr("isoform.busy.os.getloadavg", lambda: (1.5, 0.0, 0.0))
    assert others.num_busy_cores() == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("busy", "threads", "cores", "fewer"),
    [(0.2, 2, 2, None), (1.1, 2, 2, 1), (5.0, 2, 2, 1), (2.9, 8, 8, 5), (None, 2, 2, None), (5.0, 1, 2, None)],
)
def test_fewer_threads_are_advised_where_others_take_the_cores(busy, threads, cores, fewer):
    text = advice(busy, threads, cores)
    assert text.endswith(f"--threads {fewer}") if fewer else text == ""


def test_a_busy_machine_is_warned_of_once(text, monkeypatch, capsys):
    monkeypatch.chdir(text.parent)
    monkeypatch.setattr("isoform.session.OtherProcesses.num_busy_cores", lambda self: 3.0)
    monkeypatch.setattr("isoform.session.torch.get_num_threads", lambda: 2)
    words = ["train", "shakespeare", "--data.path", "text.txt", *TINY, "--training.log_every", "1", "--out", "run"]
    assert main([*words, "--dtype", "float32", "--no_report", "-q"]) == 0
    assert capsys.readouterr().err.count("other processes keep 3.0 of") == 1

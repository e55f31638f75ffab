"""What reaches a terminal, a pipe and a program, whatever the streams are and whatever files hold."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from isoform.cli import main
from isoform.terminal import Terminal, one_line, steady_streams, visible

HOSTILE = "\x1b]0;title\x07\x1b[2J \x9b31m \u202edrow\u2066 \ud800 \u2028 a\rb"
HARMLESS = "naïve → 猫 🎉 \u200d\ttab\nline\r\n"
TINY = [
    *("--model.model_dim", "16", "--model.context_length", "16", "--model.decoder.num_layers", "1"),
    *("--training.global_batch_tokens", "64", "--training.sample_tokens", "5", "--dtype", "float32", "--no_report"),
]


class Screen(io.TextIOWrapper):
    """A terminal, as far as a program can tell."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="replace")

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()


def is_plain(text: str) -> bool:
    return not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in text)


def test_control_characters_are_shown_and_all_others_kept():
    assert is_plain(visible(HOSTILE)) and r"\x1b]0;title\x07" in visible(HOSTILE) and r"a\rb" in visible(HOSTILE)
    assert visible(HARMLESS) == HARMLESS
    assert visible("".join(map(chr, range(0x110000)))).isascii() is False
    assert one_line("a\nisoform: all is well") == r"a\nisoform: all is well"
    assert len(one_line("x" * 10**6)) < 5000


def test_a_screen_gets_texts_without_their_control_characters(monkeypatch):
    terminal, screen = Terminal(), Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal.say(HOSTILE)
    terminal.write(f"{HOSTILE}\n")
    terminal.emit({"text": HOSTILE})
    assert is_plain(screen.shown)
    assert json.loads(screen.shown.splitlines()[-1]) == {"text": HOSTILE}
    terminal.draw([(HOSTILE, "target")])
    assert screen.shown.endswith(f"\x1b[1;32m{visible(HOSTILE)}\x1b[0m\n")


def test_another_reader_gets_a_generated_text_as_it_is(capsys):
    terminal = Terminal()
    terminal.write("\x1b[31m")
    terminal.say("\x1b[31m")
    assert capsys.readouterr().out == "\x1b[31m" + r"\x1b[31m" + "\n"


def test_a_failure_is_one_line_whatever_the_file_is_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a\nisoform: all is well\x1b[2J.toml").write_text("a = [")
    assert main(["train", "./a\nisoform: all is well\x1b[2J.toml"]) == 65
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and is_plain(error) and r"\x1b[2J" in error
    with warnings.catch_warnings():
        Terminal().warn("a\nwarning: \x1b[2J")
    assert capsys.readouterr().err == "warning: a\\nwarning: \\x1b[2J\n"


def test_help_shows_the_values_of_a_recipe(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(r'sample_prompt = "\u001b]0;title\u0007"')
    assert main(["train", str(tmp_path / "r.toml"), "--help-all"]) == 0
    assert is_plain(text := capsys.readouterr().out) and "]0;title" in text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
def test_an_encoding_that_lacks_characters_gets_others_for_them(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--help"]) == 0
    assert "usage: isoform COMMAND" in stream.buffer.getvalue().decode(encoding)
    stream.buffer.seek(0)
    stream.buffer.truncate()
    assert main(["train", "→猫", "--json"]) == 65
    assert "→猫" in json.loads(stream.buffer.getvalue().decode(encoding))["error"]["message"]
    Terminal().write("→ 猫 é")
    assert stream.buffer.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["recipes", "--json"], ["estimate", "gpt2", "--json"]])
def test_an_output_that_is_full_is_a_failure_of_storage(arguments, monkeypatch, capsys):
    with Path("/dev/full").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == 74
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--version"], ["recipes"], ["recipes", "--json"], ["train", "nothing"]])
def test_a_closed_pipe_is_no_failure(arguments, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == (65 if "nothing" in arguments else 0)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
@pytest.mark.parametrize("arguments", [["--version"], ["recipes"], ["recipes", "--json"], ["train", "nothing"]])
def test_a_closed_terminal_is_no_failure(arguments, monkeypatch, capfd):
    import pty

    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        os.close(master)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == (65 if "nothing" in arguments else 0)
    assert "Traceback" not in capfd.readouterr().err


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "isoform.cli", *words]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such descriptors")
def test_closed_descriptors_are_no_failure_and_taken_by_nothing_else():
    shell = 'exec "$0" "$@" <&- >&- 2>&-'
    code = "import os, sys; from isoform.terminal import steady_streams; steady_streams(); sys.exit(os.open('/', 0))"
    assert subprocess.run(["/bin/sh", "-c", shell, sys.executable, "-c", code]).returncode == 3
    assert subprocess.run(["/bin/sh", "-c", shell, *command("recipes", "--json")]).returncode == 0
    steady_streams()


def test_training_goes_on_without_a_reader(tmp_path):
    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question.\n" * 60)
    words = ["train", "shakespeare", "--data.path", str(tmp_path / "text.txt"), "--training.steps", "12", *TINY]
    words += ["--sample_prompt", "t", "--training.log_every", "1", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        lines = process.stderr.read().decode().splitlines()
        assert not [line for line in lines if " … " not in line and "no better than guessing" not in line]
    assert process.returncode == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 12

"""The help of each verb fits a screen, its examples are true, and shells complete what is typed."""

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from isoform import options
from isoform.annotations import summary_of
from isoform.cli import COMMANDS, main
from isoform.completion import SCRIPTS
from isoform.flags import fields_of, flags_of, parse_flags
from isoform.help import LINES
from isoform.model.presets import PRESETS
from isoform.recipe import builtin_recipes, draft_recipe


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def page(capsys, monkeypatch, *arguments: str, width: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_a_page_fits_a_screen_and_names_all_own_flags(verb, width, capsys, monkeypatch):
    text = page(capsys, monkeypatch, verb, "--help", width=width)
    lines = text.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= width
    assert "no_" not in text and "[STR" not in text
    config = getattr(options, COMMANDS[verb].options)()
    own = [flag.path for flag in flags_of(config) if flag.group != "recipe"]
    short = [name for name, each in options.SHORTS.items() if fields_of(each, flags_of(config))]
    for name in own + (short if COMMANDS[verb].takes else []):
        assert re.search(rf"--{name}\b", text), name
    assert f"isoform {verb}" in text[text.index("examples:") :]
    assert page(capsys, monkeypatch, "help", verb, width=width) == text


def test_the_page_of_training_is_the_ten_flags_and_examples(capsys, monkeypatch):
    text = page(capsys, monkeypatch, "train", "--help")
    assert 24 <= len(text.splitlines()) <= 40
    for name in ("data", "steps", "lr", "batch", "layers", "width", "context", "seed", "out", "start"):
        assert re.search(rf"^  --{name} [A-Z]+ +\w", text, re.MULTILINE), name
    assert text.count("\n  isoform train ") == 3 and "--help-all" in text
    whole = page(capsys, monkeypatch, "train", "shakespeare", "--help-all")
    assert "--model.decoder.blocks.0.mixer.num_heads INTEGER" in whole and r"(default: 'ROMEO\n')" in whole
    part = page(capsys, monkeypatch, "help", "train", "training.optimizer")
    assert "--training.optimizer.learning_rate NUMBER" in part and "--model" not in part


@pytest.mark.parametrize("verb", COMMANDS)
def test_examples_are_read(verb):
    """All words of an example are flags and values of the verb, though its files aren't here."""
    cls = getattr(options, COMMANDS[verb].options)
    lines = [line.strip() for line in summary_of(cls).splitlines() if line.startswith("isoform ")]
    assert lines
    for line in lines:
        _, name, *words = shlex.split(line.partition(" > ")[0], comments=True)
        assert name == verb and len(line) <= 118
        base = cls()
        if COMMANDS[verb].takes:
            recipe, *rest = words if not words[0].startswith("-") else ["shakespeare", *words]
            base, words = cls(recipe=draft_recipe(recipe) if not recipe.endswith(".gguf") else base.recipe), rest
        parse_flags(base, words, prog="", shorts=options.SHORTS if COMMANDS[verb].takes else {})


@pytest.mark.parametrize("name", [*builtin_recipes(), *PRESETS])
def test_every_form_of_a_model_has_the_short_names(name):
    flags = flags_of(options.TrainOptions(recipe=draft_recipe(name)))
    assert all(fields_of(short, flags) for short in options.SHORTS.values())


@pytest.mark.parametrize("kind", ["lstm", "causal_convolution", "n_gram_mlp"])
def test_layers_of_a_baseline(kind):
    base = options.TrainOptions(recipe=draft_recipe("tinyshakespeare"))
    line = ["--model.kind", kind, "--layers", "7", "--width", "24", "--context", "64", "--batch", "128", "--lr", "0.5"]
    recipe = parse_flags(base, line, prog="", shorts=options.SHORTS).recipe
    assert (recipe.model.num_layers, recipe.model.model_dim, recipe.model.context_length) == (7, 24, 64)
    assert recipe.training.global_batch_tokens == 128 and recipe.training.optimizer.learning_rate == 0.5


def test_without_arguments_a_verb_shows_its_page(capsys):
    for verb, command in COMMANDS.items():
        if verb in ("doctor", "recipes", "reproduce"):  # which list what there is
            continue
        assert main([verb]) == 65
        out, err = capsys.readouterr()
        assert out.startswith(f"usage: isoform {verb} "), command
        assert len(err.splitlines()) == 1 and err.endswith(f"; see isoform {verb} --help\n")


# Completion


def completed(capsys, *words: str) -> list[str]:
    assert main(["completion", "bash", "--", *words]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out.splitlines()


@pytest.mark.parametrize(
    ("line", "some", "never"),
    [
        ("", ["train", "generate", "help", "completion", "--version"], []),
        ("tr", ["train"], ["generate"]),
        ("help ev", ["evaluate"], ["train"]),
        ("completion ", ["bash", "zsh", "fish"], []),
        ("train ", ["shakespeare", "gpt2", "/"], []),
        ("train shakespeare ", [], ["gpt2", "/"]),
        ("train shakespeare --l", ["--lr", "--layers"], ["--data"]),
        (
            "train shakespeare --",
            ["--lr", "--model.", "--training.", "--out", "--no_report", "--help-all"],
            ["--report"],
        ),
        ("train --model.", ["--model.kind", "--model.model_dim", "--model.decoder."], ["--model.decoder.kind"]),
        ("train shakespeare --model.preset g", ["gpt2"], ["shakespeare"]),
        ("train --model.pre", ["--model.preset"], []),
        ("train --model.kind ", ["model_config", "lstm"], ["none", "/"]),
        ("train --model.kind=l", ["--model.kind=lstm"], []),
        ("train --model.kind = l", ["lstm"], ["model_config"]),
        ("train --model.kind lstm --model.n", ["--model.num_layers"], []),
        ("train gpt2 --model.decoder.n", ["--model.decoder.num_layers"], []),
        ("train --training.optimizer.kind muon --training.optimizer.", ["--training.optimizer.adam."], []),
        ("train --model.encoder.kind ", ["stack_config"], []),
        ("train --data ", ["/"], ["shakespeare"]),
        ("train --lr ", [], ["/"]),
        ("train --dtype b", ["bfloat16"], ["auto"]),
        ("train --compile ", [], ["true"]),
        ("train --compile=", ["--compile=true", "--compile=none"], []),
        ("train --json --quiet --d", ["--data", "--data.", "--device"], []),
        ("generate ", ["/"], ["shakespeare"]),
        ("generate run ", [], ["/"]),
        ("evaluate run ", ["/"], []),
        ("evaluate run --tasks ", ["translation"], []),
        ("convert a ", ["/"], []),
        ("recipes --diff gpt2 b", ["bert"], ["gpt2"]),
        ("recipes --diff gpt2 bert ", [], ["gpt2"]),
        ("reproduce ", ["chinchilla"], []),
        ("scale shakespeare --price", ["--price."], []),
        ("nothing ", [], ["/"]),
    ],
)
def test_what_may_come_next(line, some, never, capsys):
    found = completed(capsys, *line.split(" "))
    assert {*some} <= {*found} and not {*never} & {*found}
    assert len(found) == len({*found}) and (some or not found or found == ["/"] or "--" in line)


def test_completion_says_how_it_is_installed(capsys):
    assert main(["completion", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(shell in text for shell in SCRIPTS)
    assert main(["completion"]) == 65
    assert capsys.readouterr().err == "isoform: name a shell: bash, zsh, fish\n"


PROGRAM = """#!/bin/sh
if [ "$1" = completion ]; then exec {python} -m isoform "$@"; fi
printf '<%s>' "$@"; echo; echo done
"""
PLAIN = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}
INSTALL = {shell: f'eval "$(isoform completion {shell})"' for shell in SCRIPTS} | {
    "fish": "isoform completion fish | source"
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_real_shell_completes(shell, tmp_path):
    """Keys are pressed in an interactive shell, whose `isoform` prints the words it was called with."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    import fcntl
    import pty
    import termios

    program = tmp_path / "bin/isoform"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=shlex.quote(sys.executable)))
    program.chmod(0o755)
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts/all of it.txt").touch()
    paths = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    screen, inner = pty.openpty()
    process = subprocess.Popen(
        [shell, *PLAIN[shell]],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, **paths, "TERM": "xterm", "COLUMNS": "200"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # a terminal that keys come from
    )
    os.close(inner)

    def press(keys: str, *, until: str) -> str:
        text, end = "", time.monotonic() + 60
        os.write(screen, keys.encode())
        while not re.search(until, text) and time.monotonic() < end:
            if select.select([screen], [], [], 0.1)[0]:
                text += os.read(screen, 4096).decode(errors="replace")
        assert re.search(until, text), text
        return text

    try:
        press(f"{INSTALL[shell]}; echo 're'ady\n", until=r"ready\s")
        keys = "isoform trai\tmulti3\t--model.ki\tlst\t--model.num_l\t3 --data my\tall\t\n"
        text = press(keys, until=r"done\s")
        words = ["train", "multi30k", "--model.kind", "lstm", "--model.num_layers", "3", "--data"]
        assert "".join(f"<{word}>" for word in [*words, "my texts/all of it.txt"]) in text
    finally:
        process.kill()
        process.wait()
        os.close(screen)

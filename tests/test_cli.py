"""The command line: what it offers, what it does, and how it ends when something is wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import isoform
from isoform import options
from isoform.annotations import Inlined
from isoform.cli import COMMANDS, main
from isoform.model.presets import PRESETS

SNAPSHOT = Path(__file__).parent / "snapshots/interface.json"
TINY = [
    *("--model.model_dim", "16", "--model.context_length", "16", "--model.decoder.num_layers", "1"),
    *("--training.steps", "5", "--training.global_batch_tokens", "64", "--training.sample_tokens", "10"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with a text and a trained run."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "text.txt").write_text("ROMEO: to be, or not to be, that is the question.\n" * 80)
    before = Path.cwd()
    os.chdir(folder)
    assert main(["train", "shakespeare", "--data.path", "text.txt", *TINY, "--out", "run", "-q"]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def in_workspace(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def flags(kind: type, path: str = "") -> list[str]:
    """Every field under a dataclass, dotted; unions by all their members."""
    paths = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        inline = any(isinstance(m, Inlined) for m in getattr(hint, "__metadata__", ()))
        dotted = path if inline else f"{path}.{name}".lstrip(".")
        hints, classes = [hint], []
        while hints:
            h = hints.pop()
            if isinstance(h, type) and dataclasses.is_dataclass(h):
                classes.append(h)
            elif typing.get_origin(h) is not typing.Literal:
                hints += typing.get_args(h)
        paths += [f for c in classes for f in flags(c, dotted)] if classes else [dotted]
    return sorted(set(paths))


def test_the_interface_changes_only_on_purpose():
    """Updated with UPDATE_SNAPSHOTS=1; differences belong in the changelog."""
    now = {
        "names": isoform.__all__,
        "commands": {name: flags(getattr(options, command.options)) for name, command in COMMANDS.items()},
    }
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    assert now == json.loads(SNAPSHOT.read_text())


def test_public_names_are_there():
    assert all(getattr(isoform, name) is not None for name in isoform.__all__)
    assert set(isoform.__all__) == set(dir(isoform))
    with pytest.raises(AttributeError, match="nothing"):
        isoform.nothing  # noqa: B018


HELP = """
import sys
from isoform.cli import COMMANDS, main
from isoform.completion import SCRIPTS
line = ["completion", "bash", "--", "train", "shakespeare", "--model.kind", ""]
helps = [[command, flag] for command in COMMANDS for flag in ("--help", "--help-all")]
for arguments in [[], ["--help"], ["help", "train", "model"], *helps, *(["completion", s] for s in SCRIPTS), line]:
    print("=== isoform", *arguments)
    assert main(arguments) == 0, arguments
    assert "torch" not in sys.modules and "matplotlib" not in sys.modules, arguments
"""


def test_help_never_loads_torch():
    process = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    pages = process.stdout.split("=== ")[1:]
    assert len(pages) == 7 + 2 * len(COMMANDS) and all(len(page.splitlines()) > 3 for page in pages)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"isoform {isoform.__version__}\n"


def output_of(capsys, *arguments: str) -> dict:
    """The JSON object that a command prints."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_leaves_a_whole_run(in_workspace, capsys):
    values = output_of(capsys, "train", "shakespeare", "--data.path", "text.txt", *TINY, "--seed", "3")
    run = in_workspace / values["out"]
    assert run.name == "shakespeare-1"
    for name in (
        "recipe.toml",
        "metrics.jsonl",
        "summary.json",
        "samples.txt",
        "report.html",
        "model/model.safetensors",
    ):
        assert (run / name).stat().st_size
    assert values["steps"] == 5 and values["tokens"] == 320
    summary = json.loads((run / "summary.json").read_text())
    assert {k: v for k, v in values.items() if k != "out"} == summary
    assert 0 < summary["utilisation"] < 1.5
    assert "<svg" in (run / "report.html").read_text()


def test_a_dry_run_leaves_nothing(in_workspace, capsys):
    before = sorted(in_workspace.rglob("*"))
    values = output_of(capsys, "train", "shakespeare", "--data.path", "text.txt", *TINY, "--dry_run")
    assert values["flops"] == values["flops_per_step"] * 5
    assert sorted(in_workspace.rglob("*")) == before


def test_generate(in_workspace, capsys):
    assert main(["generate", "run", "--prompt", "to be", "--max_tokens", "7", "--temperature", "0"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("to be")
    values = output_of(capsys, "generate", "run", "--prompt", "to be", "--max_tokens", "7", "--temperature", "0")
    assert "to be" + values["samples"][0]["text"] + "\n" == first
    values = output_of(
        capsys, "generate", "run", "--prompt", "to", "--num_samples", "2", "--max_tokens", "5", "--seed", "4"
    )
    assert len(values["samples"]) == 2
    values = output_of(
        capsys, "generate", "run", "--prompt", "to", "--max_tokens", "9", "--stop", "e", "o", "--probabilities"
    )
    assert "e" not in values["samples"][0]["text"]
    walked = values["probabilities"][0]
    assert walked[0]["probability"] is None
    assert all(0 <= line["probability"] <= 1 and line["rank"] >= 1 for line in walked[1:])


def test_generate_reads_standard_input(in_workspace):
    command = [sys.executable, "-m", "isoform.cli", "generate", "run", "--max_tokens", "3"]
    process = subprocess.run(command, input="that is", capture_output=True, text=True, check=True)
    assert process.stdout.startswith("that is")


def test_evaluate(in_workspace, capsys):
    result = output_of(capsys, "evaluate", "run")["results"][0]
    summary = json.loads((in_workspace / "run/summary.json").read_text())
    assert result["loss"] == pytest.approx(summary["validation_loss"], rel=1e-3)
    assert result["loss"] / 0.6931471805599453 == pytest.approx(result["bits_per_byte"], rel=2e-2)
    both = output_of(capsys, "evaluate", "run", "run", "--path", "text.txt")["results"]
    assert len(both) == 2 and both[0] == both[1] and both[0]["num_targets"] == 4000
    assert output_of(capsys, "evaluate", "run", "--limit", "1")["results"][0]["num_targets"] == 16


def test_estimate_doctor_recipes(in_workspace, capsys):
    values = output_of(capsys, "estimate", "shakespeare", "--data.path", "text.txt", *TINY)
    trained = json.loads((in_workspace / "run/summary.json").read_text())
    assert values["num_parameters"] == trained["num_parameters"]
    assert values["flops"] == trained["flops"]
    values = output_of(capsys, "doctor")
    assert values["matmul_flops"] > 1e8 and "cpu" in values["devices"]
    assert "shakespeare" in output_of(capsys, "recipes")["recipes"]
    changed = output_of(capsys, "recipes", "--diff", "reverse-decoder", "reverse-prefix")["differences"]
    assert [line["field"] for line in changed] == ["objective.kind"]
    assert output_of(capsys, "recipes", "--show", "shakespeare")["text"].startswith("# ")


BAD = {
    "unknown command": (["trian"], 'did you mean "train"?'),
    "no recipe": (["train"], "name a recipe"),
    "unknown recipe": (["train", "shakespear"], 'did you mean "shakespeare"?'),
    "no such TOML": (["train", "nothing.toml"], "nothing.toml"),
    "unknown flag": (["train", "shakespeare", "--learning_rate", "3"], 'did you mean "--lr"? see isoform train --help'),
    "unknown short name": (["estimate", "shakespeare", "--step", "3"], 'did you mean "--steps"? see isoform estimate'),
    "a short name and its field": (
        ["train", "shakespeare", "--lr", "3", "--training.optimizer.learning_rate", "3"],
        "--lr contradicts --training.optimizer.learning_rate",
    ),
    "no number after a short name": (
        ["train", "shakespeare", "--lr", "x"],
        "--lr: expected float, got 'x'; see isoform",
    ),
    "out of range": (["train", "shakespeare", "--layers", "0"], "--layers=0 must be at least 1"),
    "contradiction": (
        ["train", "shakespeare", "--batch", "100"],
        "--batch=100 is not a multiple of",
    ),
    "unknown group": (["train", "--help", "modl"], 'did you mean "model"?'),
    "no model": (["generate"], "name MODEL: a run directory"),
    "unknown shell": (["completion", "csh"], "(known: bash, zsh, fish)"),
    "unknown key": (
        ["train", "shakespeare", "--model.decoder.num_layer", "3"],
        'did you mean "num_layers"?',
    ),
    "not a number": (["train", "shakespeare", "--seed", "x"], "got 'x'"),
    "heads don't divide": (
        ["train", "shakespeare", "--model.model_dim", "30", "--data.path", "text.txt"],
        "not divisible by num_heads=4",
    ),
    "missing file": (["train", "shakespeare", "--data.path", "nothing.txt"], "nothing.txt"),
    "missing package": (["train", "shakespeare", "--data.path", "package:nothing_at_all"], "nothing_at_all"),
    "empty file": (["train", "shakespeare", "--data.path", "empty.txt"], "empty.txt"),
    "not UTF-8": (["train", "shakespeare", "--data.path", "latin.txt"], "offset 2"),
    "too short": (["train", "shakespeare", "--data.path", "short.txt"], "data.row_length=4"),
    "absent device": (["generate", "run", "--device", "cuda:77"], "cuda:77"),
    "unseen character": (["generate", "run", "--prompt", "naïve"], "U+00EF"),
    "not a run": (["generate", "nothing"], "not a run directory"),
    "no run": (["evaluate"], "name MODEL: run directories"),
    "impossible sampling": (["generate", "run", "--top_p", "7"], "top_p=7"),
    "foreign folder": (["train", "shakespeare", "--data.path", "text.txt", "--out", "foreign"], "holds no run"),
    "damaged run": (["generate", "damaged"], "model.safetensors"),
}


@pytest.fixture(scope="module")
def bad_workspace(workspace) -> Path:
    """The same folder, with everything in it that can be wrong."""
    import shutil

    (workspace / "empty.txt").write_text("")
    (workspace / "latin.txt").write_bytes(b"na\xefve")
    (workspace / "short.txt").write_text("to be")
    (workspace / "foreign").mkdir()
    (workspace / "foreign/letter.txt").write_text("dear")
    shutil.copytree(workspace / "run", workspace / "damaged")
    for path in (workspace / "damaged").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    return workspace


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(bad_workspace, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(bad_workspace)
    assert main(arguments) == 65
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert main([*arguments, "--json"]) == 65
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == 65 and words in error["message"] + "; " + error["remedy"]


def test_an_internal_error_is_one_line_and_a_traceback_in_a_file(in_workspace, monkeypatch, capsys):
    monkeypatch.setattr("isoform.commands.about.builtin_recipes", lambda: 1 / 0)
    assert main(["recipes"]) == 1
    line = capsys.readouterr().err.strip()
    assert "ZeroDivisionError" in line and len(line.splitlines()) == 1
    log = Path(line.split("traceback in ")[1].rstrip(")"))
    assert "Traceback" in log.read_text()
    log.unlink()


def test_out_of_memory_names_the_setting(in_workspace, monkeypatch, capsys):
    def build(*arguments):
        torch.empty(2**50)

    monkeypatch.setattr("isoform.session.build_module", build)
    assert main(["train", "shakespeare", "--data.path", "text.txt", *TINY, "--out", "large"]) == 65
    assert "micro_batch_size" in capsys.readouterr().err


def test_a_full_disk_ends_in_74_with_the_last_checkpoint_kept(in_workspace, monkeypatch, capsys):
    import errno

    from isoform.checkpoint import store

    assert main(["train", "shakespeare", "--data.path", "text.txt", *TINY, "--out", "full", "-q"]) == 0

    class Full(store.Files):
        def rename(self, old, new):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = store.save_checkpoint
    monkeypatch.setattr("isoform.session.save_checkpoint", lambda *a, **k: real(*a, **k, files=Full()))
    assert main(["train", "--out", "full", "--training.steps", "9", "-q"]) == 74
    assert "No space left" in capsys.readouterr().err
    assert main(["generate", "full", "--prompt", "to", "--max_tokens", "1", "-q"]) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_estimated(name, capsys):
    assert main(["estimate", name, "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["num_active_parameters"] <= values["num_parameters"]
    assert "NVIDIA H200" in values["work"]["training"]["roofs"] and values["work"]["reading"]["intensity"] > 1
    assert ("one more token" in values["work"]) == (PRESETS[name].model.decoder is not None)


def test_two_presets_are_compared_as_stacks(capsys):
    assert main(["recipes", "--diff", "bert", "gpt2"]) == 0
    output = capsys.readouterr().out
    assert "model.form: encoder -> decoder" in output and "norm_placement: post -> pre" in output
    assert "num_layers" not in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "nowhere"], "name DESTINATION: the folder to write"),
        (["convert", "nowhere", "out"], "no Hugging Face folder"),
        (["generate", "nothing.gguf"], "nothing.gguf can't be read"),
        (["estimate", "brt"], 'did you mean "bert"'),
        (["train", "reverse-decoder", "--kernel", "flex", "--training.steps", "1"], "can't do gradients"),
    ],
)
def test_forms_and_folders_are_refused_with_a_message(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 65
    assert words in capsys.readouterr().err


INTERRUPTED_IMPORT = """
import os, signal, sys
from isoform.cli import main

class Finder:
    def find_spec(self, name, *rest):
        if name == "isoform.options":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(10**6))
            except KeyboardInterrupt:
                raise RecursionError

sys.meta_path.insert(0, Finder())
sys.exit(main(["doctor"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_an_interrupt_amid_an_import_is_no_other_error():
    process = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "isoform: interrupted\n")

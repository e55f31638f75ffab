"""What a run writes besides its checkpoints: damage is refused by name or made good, a start that was killed is none, a
finished model stays, and what may change when a run is continued is one list."""

import errno
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from isoform import experiment, session
from isoform.cli import main
from isoform.config import ConfigError, dump_toml
from isoform.data.config import Data
from isoform.evaluation.evaluate import evaluate_records
from isoform.experiment import train
from isoform.files import DamagedFile, Files, hash_file
from isoform.machine import choose_machine
from isoform.manifest import DUE, read_manifest, write_manifest
from isoform.metrics import read_metrics
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.parts import Attention, Dense, Experts
from isoform.preparation import load_records
from isoform.recipe import CHANGEABLE, Recipe, identity_of, with_changes
from isoform.run import Run, load, read_recipe, read_summary
from isoform.scaling.ladder import Rung
from isoform.scaling.study import Study, make_job
from isoform.terminal import ExitCode, Terminal
from isoform.training.config import AdamW, Training
from isoform.training.trainer import Diverged

pytestmark = pytest.mark.filterwarnings("ignore:names of earlier versions are read")

CPU = choose_machine("cpu", "float32")
QUIET = Terminal(quiet=True)
OLD = Path(__file__).parent / "old_runs"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 40)
    return path


def recipe(text: Path, **fields) -> Recipe:
    stack = StackConfig(num_layers=1, blocks=(BlockConfig(mixer=Attention(num_heads=2)),))
    model = ModelConfig(model_dim=16, context_length=16, decoder=stack)
    defaults = {"steps": 6, "global_batch_tokens": 32, "validate_every": 2, "checkpoint_every": 2, "log_every": 1}
    defaults["sample_every"] = 2
    training = Training(**{**defaults, "sample_tokens": 3, **fields})
    return Recipe(data=Data(path=str(text)), model=model, training=training, sample_prompt="to")


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory) -> Path:
    return train(recipe(text), tmp_path_factory.mktemp("runs") / "finished", machine=CPU).folder


@pytest.fixture(scope="module")
def stopped(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    return train(recipe(text), folder, machine=CPU, should_stop=lambda: step_of(folder) == 3).folder


def step_of(folder: Path) -> int:
    """The last step of a log."""
    return max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)


@pytest.fixture
def run(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def part(stopped, tmp_path) -> Run:
    return Run(shutil.copytree(stopped, tmp_path / "part"))


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    return load(run.folder).model.state_dict()


def assert_same(a: Run, b: Run) -> None:
    mine, theirs = tensors_of(a), tensors_of(b)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert a.samples.read_text() == b.samples.read_text()
    losses = [[(m["step"], m.get("loss"), m.get("validation_loss")) for m in read_metrics(r.metrics)] for r in (a, b)]
    assert losses[0] == losses[1]
    assert read_summary(a)["validation_loss"] == read_summary(b)["validation_loss"]


BEGUN = {
    "an empty folder": lambda folder: None,
    "a lock": lambda folder: (folder / ".lock").write_text("process 1"),
    "model/": lambda folder: (folder / "model").mkdir(),
    "a codec": lambda folder: ((folder / "model").mkdir(), (folder / "model/codec.json").write_text("{}")),
    "all but a recipe": lambda folder: (
        (folder / "model").mkdir(),
        [(folder / "model" / name).write_text("") for name in ("codec.json", "tokenizer.json", "config.json")],
        (folder / "manifest.json").write_text(""),
    ),
    "a file that was being written": lambda folder: (folder / f".{'0' * 32}.partial").write_text("half"),
}


@pytest.mark.parametrize("make", BEGUN.values(), ids=BEGUN)
def test_a_start_that_was_killed_is_a_run_not_begun(text, finished, tmp_path, make):
    folder = tmp_path / "run"
    folder.mkdir()
    make(folder)
    assert_same(train(recipe(text), folder, machine=CPU), Run(finished))
    assert {path.name for path in (folder / "model").iterdir()} == {"codec.json", "config.json", "model.safetensors"}
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("name", ["notes.txt", "model/notes.txt", "checkpoints/step-00000001/state.json"])
def test_a_folder_with_anything_else_is_left_alone(text, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(recipe(text), tmp_path / "run", machine=CPU)
    assert path.read_text() == "mine"


FILES = ["recipe.toml", "model/config.json", "model/codec.json", "metrics.jsonl", "samples.txt"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["digit", "empty", "shorter"])
def test_damage_is_refused_by_name_when_a_run_continues(text, part, name, kind):
    path = part.folder / name
    data = path.read_bytes()
    digit = next(i for i in reversed(range(len(data))) if chr(data[i]).isalnum())
    path.write_bytes({"digit": data[:digit] + b"9" + data[digit + 1 :], "empty": b"", "shorter": data[:-2]}[kind])
    if path.read_bytes() == data:
        path.write_bytes(data[:digit] + b"8" + data[digit + 1 :])
    with pytest.raises(DamagedFile, match=rf"{path} is (damaged|not as the run wrote it)"):
        train(recipe(text), part.folder, machine=CPU)
    path.write_bytes(data)
    train(recipe(text), part.folder, machine=CPU)


@pytest.mark.parametrize("name", ["recipe.toml", "model/config.json", "model/codec.json", "model/model.safetensors"])
def test_damage_is_refused_by_name_when_a_model_is_loaded(run, name):
    shutil.rmtree(run.checkpoints)
    path = run.folder / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=f"{path} is not as the run wrote it"):
        load(run.folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json"])
def test_a_finished_run_is_its_final_model_and_another_says_which_checkpoint_it_is(run, part, name):
    before = tensors_of(run)
    for each in (run, part):
        (max(each.checkpoints.glob("step-*")) / name).write_bytes(b"")
    after = tensors_of(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.warns(UserWarning, match=rf"{name}.*; step 2 is used instead"):
        assert load(part.folder).step == 2


@pytest.mark.parametrize("name", ["summary.json", "model/model.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_damaged_results_are_made_again_from_the_last_checkpoint(text, finished, run, capsys, name, damage):
    path = run.folder / name
    path.unlink() if damage is None else path.write_bytes(damage)
    if name == "summary.json":
        with pytest.raises(DamagedFile, match=r"summary\.json"):
            read_summary(run)
    train(recipe(text), run.folder, machine=CPU, terminal=Terminal(quiet=True))
    assert f"{path} is" in capsys.readouterr().err
    assert_same(run, Run(finished))
    shutil.rmtree(run.checkpoints)
    assert_same(run, Run(finished))


@pytest.mark.parametrize("name", ["finished", "part", "diverged"])
@pytest.mark.parametrize("problem", ["damaged", "missing"])
def test_a_lost_manifest_is_refused_by_name_and_made_again_from_a_checkpoint(
    text, finished, run, part, capsys, name, problem
):
    each = run if name == "finished" else part
    path = each.folder / "manifest.json"
    if name == "diverged":
        each.diverged.write_text("{}")
        write_manifest(each.folder, read_manifest(each.folder).with_files({"diverged.json": hash_file(each.diverged)}))
    path.unlink() if problem == "missing" else path.write_bytes(path.read_bytes().replace(b"recipe", b"Recipe", 1))
    if each is run:
        each.weights.write_bytes(each.weights.read_bytes()[::-1])  # no one can tell
    for act in (partial(load, each.folder), lambda: each.is_finished, lambda: each.has_diverged):
        with pytest.raises(
            DamagedFile, match=rf"{path} is {problem}.*; restore it from a copy; or isoform train --out"
        ):
            act()
    if each is part:
        shutil.copytree(part.folder, part.folder.parent / "bare", ignore=shutil.ignore_patterns("step-*"))
        with pytest.raises(DamagedFile, match=rf"is {problem}.*without a checkpoint.*; restore it .*--overwrite"):
            train(recipe(text), part.folder.parent / "bare", machine=CPU)
    train(recipe(text), each.folder, machine=CPU, terminal=QUIET)
    assert capsys.readouterr().err.count("it is made again from the last checkpoint") == 1
    assert_same(each, Run(finished))
    train(recipe(text), each.folder, machine=CPU, terminal=QUIET)
    assert capsys.readouterr().err == "" and each.is_finished and not each.has_diverged


@pytest.mark.parametrize("feedforward", (Dense(), Experts(num_experts=2, expert=Dense(feedforward_dim=16))))
def test_a_validation_is_of_the_weights_of_its_step(text, tmp_path, feedforward):
    """Also the second one, in a format of which rounded copies are kept, after updates by a fused optimizer."""
    machine, plain = choose_machine("cpu", "bfloat16"), recipe(text)
    block = replace(plain.model.decoder.blocks[0], feedforward=feedforward)
    decoder = replace(plain.model.decoder, blocks=(block,))
    training = replace(plain.training, optimizer=AdamW(learning_rate=0.05))
    changed = replace(plain, model=replace(plain.model, decoder=decoder), training=training)
    run = train(changed, tmp_path / "run", machine=machine, terminal=QUIET)
    trained, split = load(run.folder, machine.device, machine.dtype), load_records(changed.data)[1]
    trained.model.set_matmul_dtype(machine.dtype)
    score = evaluate_records(trained.model, trained.recipe, trained.codec, split.validation, machine)
    assert read_summary(run)["validation_loss"] == pytest.approx(score.loss, abs=1e-9)


def test_a_lost_manifest_is_no_way_to_change_a_run(text, run, tmp_path):
    (run.folder / "manifest.json").unlink()
    run.metrics.write_text(run.metrics.read_text().replace("1", "2", 1))
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl is damaged"):
        train(recipe(text), run.folder, machine=CPU)


def test_a_torn_last_line_is_cut_and_what_follows_a_checkpoint_is_made_again(text, finished, part):
    with part.metrics.open("a") as metrics, part.samples.open("a") as samples:
        metrics.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
        samples.write("== step 4\n")
    assert [line["step"] for line in read_metrics(part.metrics)][-1] == 4
    train(recipe(text), part.folder, machine=CPU)
    assert_same(part, Run(finished))


def test_a_lost_log_is_said_and_the_summary_takes_no_other_step(text, finished, part, run, capsys):
    part.metrics.unlink()
    train(recipe(text), part.folder, machine=CPU, terminal=Terminal(quiet=True))
    assert f"{part.metrics} is missing: what it had up to step 3 is lost" in capsys.readouterr().err
    assert next(line["step"] for line in read_metrics(part.metrics)) == 4
    run.summary.unlink()
    run.metrics.unlink()
    train(recipe(text), run.folder, machine=CPU)
    assert read_summary(run)["validation_loss"] == read_summary(Run(finished))["validation_loss"]


@pytest.mark.parametrize("line", [b"", b"\0" * 40, b'{"step": 2, "loss', b"[1]", b'{"loss": 1}', b"\xff"])
def test_a_damaged_line_within_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(DamagedFile, match=f"{path}, line 2 is damaged"):
        read_metrics(path)


def test_an_earlier_version_s_run_without_its_last_lines_is_validated_again(tmp_path, monkeypatch):
    monkeypatch.chdir(OLD)
    run = Run(shutil.copytree(OLD / "causal", tmp_path / "causal"))
    whole = Run(shutil.copytree(OLD / "causal", tmp_path / "whole"))
    then = train(load(whole.folder).recipe, whole.folder, machine=CPU)
    train(load(run.folder).recipe, run.folder, machine=CPU)
    true = read_summary(then)["validation_loss"]
    lines = run.metrics.read_text().splitlines(keepends=True)
    state = max(run.checkpoints.glob("step-*")) / "state.json"
    assert "logs" in json.loads(state.read_text())
    for kept in (lines[:-1], []):
        run.metrics.write_text("".join(kept))
        run.summary.unlink()
        (run.folder / "manifest.json").unlink(missing_ok=True)
        with pytest.raises(DamagedFile, match=r"metrics\.jsonl is damaged"):
            train(load(run.folder).recipe, run.folder, machine=CPU)
        run.metrics.unlink()
        train(load(run.folder).recipe, run.folder, machine=CPU)
        assert read_summary(run)["validation_loss"] == true


def test_a_run_of_an_earlier_version_continues_with_one_warning_and_has_hashes_then(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(OLD)
    folder = shutil.copytree(OLD / "causal", tmp_path / "causal")
    flags = ["--device", "cpu", "--dtype", "float32", "--no_report", "--quiet"]
    assert main(["train", "--out", str(folder), *flags]) == ExitCode.DONE
    err = capsys.readouterr().err
    assert err.count("was begun by an earlier version") == 1
    assert main(["train", "--out", str(folder), *flags, "--training.steps", "30"]) == ExitCode.DONE
    assert "earlier version:" not in capsys.readouterr().err
    manifest = read_manifest(folder)
    assert manifest is not None and {"recipe.toml", "model/config.json", "model/codec.json"} <= {*manifest.beginning}
    state = json.loads((max((folder / "checkpoints").glob("step-*")) / "manifest.json").read_text())
    assert state["fingerprints"]["recipe"] == manifest.fingerprints["recipe"]


def test_a_run_of_an_earlier_version_is_one_until_it_has_a_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(OLD)
    folder = shutil.copytree(OLD / "causal", tmp_path / "causal")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("isoform.journal.write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            train(load(folder).recipe, folder, machine=CPU)
    assert json.loads((folder / "model/config.json").read_text())["format"] == DUE - 1
    train(load(folder).recipe, folder, machine=CPU, terminal=QUIET)
    assert "was begun by an earlier version" in capsys.readouterr().err and Run(folder).is_finished


def test_a_finished_model_stays_until_another_one_is_there(text, finished, run):
    weights = run.weights.read_bytes()
    shutil.rmtree(run.checkpoints)
    train(recipe(text), run.folder, machine=CPU)  # it is finished
    with pytest.raises(ConfigError, match=r"holds a finished model, but no checkpoint .* --overwrite"):
        train(recipe(text, steps=9), run.folder, machine=CPU)
    assert run.weights.read_bytes() == weights and run.summary.exists()
    seen: dict[int, bool] = {}

    def stop() -> bool:
        seen[step_of(run.folder)] = any(run.folder.glob(".earlier-*/model/model.safetensors"))
        return 4 in seen

    other = replace(recipe(text, steps=9), seed=7)
    train(other, run.folder, machine=CPU, overwrite=True, should_stop=stop)
    assert seen == {1: True, 2: True, 3: False, 4: False}  # until the checkpoint of step 2
    assert load(run.folder).step == 4 and not run.weights.exists()
    train(other, run.folder, machine=CPU)
    assert load(run.folder).recipe.seed == 7


def test_an_overwriting_that_was_killed_is_done_again(text, tmp_path, finished):
    for call in range(1, 6):
        run = Run(shutil.copytree(finished, tmp_path / f"run{call}"))
        renames = []

        class Killed(BaseException):
            pass

        def rename(self, old, new, renames=renames, call=call):
            renames.append(old)
            if len(renames) == call:
                raise Killed
            old.replace(new)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Files, "rename", rename)
            train(recipe(text, steps=2), run.folder, machine=CPU, overwrite=True)
        train(recipe(text, steps=2), run.folder, machine=CPU, overwrite=True)
        assert load(run.folder).step == 2 and not list(run.folder.glob(".earlier-*"))


def test_the_results_of_fewer_steps_stay_until_there_is_a_checkpoint_of_more(text, run):
    seen = {}

    def stop() -> bool:
        seen[step_of(run.folder)] = run.summary.exists(), run.is_finished
        return 9 in seen

    train(recipe(text, steps=10), run.folder, machine=CPU, should_stop=stop)
    assert seen == {7: (True, False), 8: (True, False), 9: (False, False)}


ALLOWED = {
    "training.steps": 9,
    "training.log_every": 3,
    "training.validate_every": 1,
    "training.sample_every": 3,
    "training.sample_tokens": 2,
    "training.checkpoint_every": 1,
    "training.keep_checkpoints": 5,
    "sample_prompt": "be",
    "expected_loss": 2.0,
}


def nested(path: str, value: object) -> dict:
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("path", ALLOWED)
def test_what_may_change_is_changed_by_flags_and_recorded(text, part, path):
    changed = with_changes(recipe(text), nested(path, ALLOWED[path]))
    train(changed, part.folder, machine=CPU)
    manifest = read_manifest(part.folder)
    assert manifest is not None
    (change,) = manifest.changes
    assert change.step == 3 and [*change.fields] == [path] and change.fields[path][1] == ALLOWED[path]
    train(changed, part.folder, machine=CPU)
    assert path in CHANGEABLE and identity_of(changed) == identity_of(recipe(text))


def test_the_same_data_may_move_and_other_data_may_not(text, part, tmp_path, capsys):
    moved, other = tmp_path / "moved.txt", tmp_path / "other.txt"
    moved.write_text(text.read_text())
    other.write_text(text.read_text().replace("be", "bo", 1))
    with pytest.raises(ConfigError, match=r"the data of the run .* changed"):
        train(recipe(other), part.folder, machine=CPU)
    train(recipe(moved), part.folder, machine=CPU)
    assert load(part.folder).recipe.data.path == str(moved)
    evaluate = ["evaluate", str(part.folder), "--device", "cpu"]
    assert main(evaluate) == 0
    moved.write_text(other.read_text())
    assert main(evaluate) == 65 and "and its validation split with it" in capsys.readouterr().err
    assert main([*evaluate, "--path", str(moved)]) == 0


IDENTITY = "caf9b8fedbe2f7492aa82486dd3c3bddf2357d7cae2e980487d723e01a90a871"
REFUSED = {
    "seed": 3,
    "training.steps": 5,
    "training.optimizer.learning_rate": 0.5,
    "training.micro_batch_size": 1,
    "training.clip_norm": 0.1,
    "model.dropout": 0.1,
    "data.fraction": 0.9,
}


@pytest.mark.parametrize("path", REFUSED)
def test_anything_else_is_refused(text, part, path):
    with pytest.raises(ConfigError, match=path):
        train(with_changes(recipe(text), nested(path, REFUSED[path])), part.folder, machine=CPU)


@pytest.mark.parametrize("fault", ["before the recipe", "after it"])
def test_a_change_that_was_cut_off_is_made_or_not(text, part, finished, fault):
    rename, more = Files.rename, recipe(text, steps=9)

    def fail(self, old, new):
        if new.name != "recipe.toml" or fault == "after it":
            rename(self, old, new)
        if new.name == "recipe.toml":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Files, "rename", fail)
        train(more, part.folder, machine=CPU)
    steps = load(part.folder).recipe.training.steps
    assert steps == (6 if fault == "before the recipe" else 9)
    train(recipe(text, steps=steps), part.folder, machine=CPU)
    manifest = read_manifest(part.folder)
    assert manifest is not None and len(manifest.changes) == (steps == 9)
    if steps == 6:
        assert_same(part, Run(finished))


def test_the_identity_of_a_recipe_is_that_of_all_that_may_not_change(text, monkeypatch):
    mine = recipe(text)
    monkeypatch.chdir(OLD)
    earlier = load("causal").recipe
    assert identity_of(earlier) == IDENTITY  # whatever its fields are called
    for path, value in REFUSED.items():
        if path != "training.steps":
            assert identity_of(with_changes(mine, nested(path, value))) != identity_of(mine)


def test_a_recipe_that_its_checkpoint_wasnt_made_by_is_refused(text, part):
    (part.folder / "manifest.json").unlink()
    part.recipe.write_text(part.recipe.read_text().replace("num_heads = 2", "num_heads = 4"))
    other = read_recipe(part)
    with pytest.raises(ConfigError, match=r"the recipe of the run .* changed \(fingerprint \w+, now \w+\)"):
        train(other, part.folder, machine=CPU)


@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_a_checkpoint_with_a_value_that_isnt_finite_is_none(text, tmp_path, what):
    poisoned = with_changes(recipe(text, checkpoint_every=1, keep_checkpoints=1), {"sample_prompt": "to"})
    run = Run(tmp_path / "run")

    def poison() -> bool:
        if step_of(run.folder) == 3:
            (poison.model if what == "model" else poison.optimizer)()
        return False

    class Session(session.Session):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            poison.model = lambda: next(iter(self.model.parameters())).data.view(-1)[:1].fill_(float("nan"))
            state = lambda: next(s for s in self.optimizers[0].state.values())  # noqa: E731
            poison.optimizer = lambda: state()["exp_avg"].view(-1)[:1].fill_(float("inf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Session", Session)
        with pytest.raises(Diverged, match=rf"^step 3: the tensor \S+ of the {what} has NaN or infinite values"):
            train(poisoned, run.folder, machine=CPU, should_stop=poison)
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-00000002"]
    assert run.has_diverged and load(run.folder).step == 2
    train(poisoned, run.folder, machine=CPU)
    assert not run.has_diverged and not run.diverged.exists() and run.is_finished


def test_a_step_that_is_too_large_makes_no_checkpoint(text, tmp_path):
    huge = recipe(text, optimizer=AdamW(learning_rate=1e38), steps=1)
    with pytest.raises(Diverged, match=r"the tensor .* of the model has NaN"):
        train(huge, tmp_path / "run", machine=CPU)
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))
    assert json.loads((tmp_path / "run/diverged.json").read_text())["step"] == 1


def job(run: Run):
    return make_job("a", Rung(read_recipe(run), 1.0, 6 * 32, 1.0, 0), "data")


@pytest.mark.parametrize("damage", ['"validation_loss": 9', "", "{"])
def test_a_study_doesnt_take_a_summary_that_was_changed(run, tmp_path, damage):
    made = job(run)
    folder = tmp_path / "pool" / made.id
    shutil.copytree(run.folder, folder)
    study = Study([made], tmp_path / "pool")
    assert not study.pending
    summary = folder / "summary.json"
    whole = summary.read_text()
    changed = whole.replace('"validation_loss": ', f"{damage}") if len(damage) > 1 else damage
    summary.write_text(changed)
    assert study.pending == [made]
    summary.write_text(whole)
    assert study.rows[0].loss == read_summary(Run(folder))["validation_loss"]


def test_a_study_with_a_failed_run_has_no_result(run, tmp_path):
    made = job(run)
    study = Study([made], tmp_path / "pool")
    study.check()
    study.failures[made.id] = "ended with 65: no such text"
    with pytest.raises(ValueError, match=f"1 of 1 runs failed, .* the run {made.id} ended with 65: no such text"):
        study.check()
    study.failures[made.id] = "ended with 74: disk full"
    with pytest.raises(OSError, match="disk full") as caught:
        study.check()
    assert caught.value.errno == errno.EIO


def test_a_full_disk_is_74_wherever_it_fills_up(text, tmp_path, capsys, finished):
    path = tmp_path / "recipe.toml"
    path.write_text(dump_toml(recipe(text)))
    flags = ["--device", "cpu", "--dtype", "float32", "--no_report", "--quiet"]
    for name in ("config.json", "recipe.toml", "manifest.json", "model.safetensors", "summary.json"):
        rename = Files.rename

        def full(self, old, new, name=name, rename=rename):
            if new.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rename(self, old, new)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Files, "rename", full)
            assert main(["train", str(path), "--out", str(tmp_path / f"out-{name}"), *flags]) == ExitCode.STORAGE
        assert f"{name} can't be written: No space left on device; make room" in capsys.readouterr().err
        assert main(["train", str(path), "--out", str(tmp_path / f"out-{name}"), *flags]) == ExitCode.DONE
        assert_same(Run(tmp_path / f"out-{name}"), Run(finished))


def test_a_run_is_converted_and_continued_without_a_warning(run, tmp_path, capsys):
    assert main(["convert", str(run.folder), str(tmp_path / "out")]) == ExitCode.DONE
    assert main(["generate", str(tmp_path / "out"), "--prompt", "to", "--max_tokens", "3"]) == ExitCode.DONE
    assert capsys.readouterr().err == ""


def test_a_run_that_was_moved_meanwhile_is_whole_and_begins_no_other(text, tmp_path, capsys, finished):
    path, moved = tmp_path / "recipe.toml", Run(tmp_path / "moved")
    path.write_text(dump_toml(recipe(text)))
    command = ["train", str(path), "--out", str(tmp_path / "run"), "--device", "cpu", "--dtype", "float32"]
    log = experiment.Journal.log

    def move(self, line):
        log(self, line)
        if line["step"] == 3:
            self.run.folder.rename(moved.folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Journal, "log", move)
        assert main(command) == ExitCode.STORAGE
    assert "was moved or removed during training, so that step 4 can't be saved" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", "--out", str(moved.folder), *command[4:], "--no_report"]) == ExitCode.DONE
    assert_same(moved, Run(finished))


def test_a_file_that_may_not_grow_is_a_full_disk(text, tmp_path, monkeypatch, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(dump_toml(recipe(text)))

    def limited(self, handle):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(Files, "sync", limited)
    assert main(["train", str(path), "--out", str(tmp_path / "run"), "--device", "cpu"]) == ExitCode.STORAGE
    assert "can't be written: File too large; make room" in capsys.readouterr().err


def test_a_manifest_of_a_later_version_is_refused(run):
    manifest = read_manifest(run.folder)
    assert manifest is not None
    write_manifest(run.folder, manifest)
    assert read_manifest(run.folder) == manifest

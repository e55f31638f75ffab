"""Runs that an earlier release made, stopped in the middle: they are loaded, scored, gone on with and exported as that
release would have done it. Old recipes begin the same runs again, and studies find theirs by the same ids.

`old_runs/make.py` says how they were made; the names in their files occur nowhere here.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import isoform
from isoform.cli import main
from isoform.codecs.numbers import NumberCodec
from isoform.commands.writing import evaluate
from isoform.machine import choose_machine
from isoform.objectives.task import logits_of
from isoform.options import EvaluateOptions, MachineOptions
from isoform.preparation import prepare, with_sizes
from isoform.recipe import Recipe
from isoform.scaling import lab
from isoform.scaling.claims import load_claim
from isoform.scaling.ladder import Rung
from isoform.scaling.study import make_job, rows_from_json
from isoform.terminal import ExitCode, Terminal

OLD = Path(__file__).parent / "old_runs"
RESULTS = OLD.parent.parent / "docs/results"
CLAIMS = json.loads((OLD / "ids.json").read_text())
EXPECTED = {path.parent.name: json.loads(path.read_text()) for path in sorted(OLD.glob("*/expected.json"))}
STOPPED = [name for name, expected in EXPECTED.items() if "losses" in expected]
CPU = choose_machine("cpu", "float32")
QUIET = Terminal(quiet=True)
pytestmark = pytest.mark.filterwarnings("ignore:names of earlier versions are read")


@pytest.fixture(autouse=True)
def at_old_runs(monkeypatch):
    """Recipes name data and other runs from there."""
    monkeypatch.chdir(OLD)


def close(value):
    """Equal but for rounding. With one thread or two, AVX-512, AVX2 or SSE no number differs by more than 5e-7 of its
    value, since few steps are made; numbers of logits are written with six digits."""
    return pytest.approx(value, rel=1e-5, abs=1e-5)


def losses_of(run: Path) -> dict[int, float]:
    """The training loss of each step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_loaded_and_says_the_same(name):
    trained = isoform.load(name)
    assert trained.step == EXPECTED[name]["step"]
    prepared = prepare(trained.recipe, trained.codec)
    batch = prepared.loader.rows(0, 1)
    with torch.inference_mode():
        scores = logits_of(trained.model, prepared.view, batch)[batch.loss_weights > 0]
    assert scores[-1][:5].tolist() == close(EXPECTED[name]["logits"])


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_scored_with_earlier_names(name):
    options = EvaluateOptions(runs=(name,), machine=MachineOptions(device="cpu", dtype="float32"))
    (result,) = evaluate(options, QUIET).values["results"]
    assert result["loss"] == close(EXPECTED[name]["loss"])


@pytest.mark.parametrize("name", STOPPED)
def test_it_goes_on_to_the_same_end(name, tmp_path):
    run = shutil.copytree(OLD / name, tmp_path / name)
    isoform.train(isoform.load_recipe(f"{run}/recipe.toml"), run, machine=CPU)
    check_end(run, EXPECTED[name])


def test_the_command_goes_on_with_it(tmp_path):
    run = shutil.copytree(OLD / "experts", tmp_path / "experts")
    flags = ["--device", "cpu", "--dtype", "float32", "--no_report", "--quiet"]
    assert main(["train", "--out", str(run), *flags]) == ExitCode.DONE
    check_end(run, EXPECTED["experts"])


def check_end(run: Path, expected: dict) -> None:
    """Whether a run that went on had the losses that it should have had."""
    losses = losses_of(run)
    assert {step: losses[int(step)] for step in expected["losses"]} == close(expected["losses"])
    assert len(losses) == expected["step"] + len(expected["losses"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["validation_loss"] == close(expected["final_loss"])
    newest = isoform.load(run).model.state_dict()
    shutil.rmtree(run / "checkpoints")
    final = isoform.load(run).model.state_dict()  # of a run that an earlier version began
    assert newest.keys() == final.keys()
    assert summary["steps"] and all(torch.equal(final[name], tensor) for name, tensor in newest.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_exported_with_earlier_names(name, tmp_path):
    trained, expected = isoform.load(name), EXPECTED[name]
    if "architecture" in expected:
        assert isoform.export(trained, tmp_path) == expected["architecture"]
    else:
        refusal = expected["refusal"].replace("has words for", "can represent")  # as the message was worded
        with pytest.raises(ValueError, match=f"^{refusal}"):
            isoform.export(trained, tmp_path)


@pytest.mark.parametrize("name", STOPPED)
def test_its_recipe_begins_the_same_run(name, tmp_path):
    recipe = isoform.load_recipe(f"{name}/recipe.toml")
    run = isoform.train(recipe, tmp_path / name, machine=CPU, should_stop=lambda: 2 in losses_of(tmp_path / name))
    losses = losses_of(OLD / name)
    assert losses_of(run.folder) == close({step: losses[step] for step in (1, 2)})


@pytest.mark.parametrize("name", STOPPED)
def test_a_study_finds_it(name):
    recipe = isoform.load_recipe(f"{name}/recipe.toml")
    assert make_job("", Rung(recipe, 0.0, 0, 0.0, 0), "data").id == EXPECTED[name]["id"]


@dataclass(frozen=True)
class StandIn:
    """What planning asks of an arm whose data aren't here."""

    recipe: Recipe
    split: SimpleNamespace
    codec: NumberCodec
    flops_per_step: float
    tokens_per_step: float = 1.0


def stand_ins(arms: dict, recipes: dict, rows: list) -> Iterator[StandIn]:
    """Each arm with what is known of its data: their hashes from its published runs, and from ids.json how many tokens
    the codec has, the labels, and the FLOPs of a step."""
    for arm, recipe in recipes.items():
        tokens, labels, flops_per_step = arms[arm]
        if labels:
            recipe = replace(recipe, objective=replace(recipe.objective, labels=tuple(labels)))
        codec = NumberCodec(tokens)
        sources = next(row["data"] for row in rows if row["arm"] == arm)
        split = SimpleNamespace(sources=[SimpleNamespace(**source) for source in sources])
        yield StandIn(with_sizes(recipe, codec), split, codec, flops_per_step)


class Planned(Exception):
    """All runs of a claim are planned."""


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_finds_its_published_runs(claim, monkeypatch):
    rows, ids = json.loads((RESULTS / f"{claim}.json").read_text())["rows"], set()
    loaded, known = load_claim(claim), rows_from_json(rows)
    prepared = stand_ins(CLAIMS[claim], loaded.recipes, rows)

    def plan_runs(jobs, *others):
        ids.update(job.id for job in jobs)
        assert ids <= known.keys()
        if all(job.purpose == "sweep" for job in jobs):
            return [known[job.id] for job in jobs]
        raise Planned

    monkeypatch.setattr(lab, "prepare", lambda *recipe_and_codec: next(prepared))
    monkeypatch.setattr(lab, "make_runs", plan_runs)
    with pytest.raises(Planned):
        lab.check_claim(loaded, None, None, QUIET, RESULTS, command="", extend=True)
    assert ids == known.keys()


def test_every_published_run_is_asked_for():
    with_runs = {path.stem for path in RESULTS.glob("*.json") if json.loads(path.read_text())["rows"]}
    assert with_runs == set(CLAIMS)

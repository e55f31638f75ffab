"""Studies with real processes: finished runs are skipped, interrupted ones resumed, failures reported."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from isoform.codecs.config import Characters
from isoform.config import dump_toml
from isoform.data.config import Data
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.parts import Attention, Dense, Experts, TokenChoice
from isoform.preparation import prepare
from isoform.recipe import Recipe
from isoform.scaling.engines import LocalEngine
from isoform.scaling.ladder import Rung
from isoform.scaling.study import Study, fingerprint, make_job, rows_from_json, rows_to_json
from isoform.terminal import Terminal
from isoform.training.config import AdamW, Training

pytestmark = pytest.mark.usefixtures("forked")
TEXT = "to be or not to be, that is the question. " * 60
QUIET = Terminal(quiet=True)


def recipe(path, *, steps=20, seed=0, every=0, rate=1e-3) -> Recipe:
    return Recipe(
        data=Data(path=str(path)),
        codec=Characters(),
        model=ModelConfig(
            model_dim=16,
            context_length=16,
            decoder=StackConfig(num_layers=1, blocks=(BlockConfig(mixer=Attention(num_heads=2)),)),
        ),
        training=Training(
            steps=steps,
            global_batch_tokens=64,
            validate_every=0,
            checkpoint_every=every,
            sample_tokens=1,
            optimizer=AdamW(learning_rate=rate),
            clip_norm=None,
        ),
        seed=seed,
    )


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def job(run_recipe: Recipe, arm="a", group=0):
    prepared, steps = prepare(run_recipe), run_recipe.training.steps
    rung = Rung(prepared.recipe, 100.0, steps * 64, 6e4 * steps, group)
    return make_job(arm, rung, fingerprint(prepared))


def test_an_id_is_a_hash_of_the_content(text, tmp_path):
    elsewhere = tmp_path / "copy.txt"
    elsewhere.write_text(TEXT)
    first = job(recipe(text))
    assert job(recipe(elsewhere)).id == first.id == job(replace(recipe(text), sample_prompt="x", expected_loss=1.0)).id
    changed = [
        recipe(text, seed=1),
        recipe(text, steps=21),
        replace(recipe(text), data=Data(path=str(text), fraction=0.5)),
    ]
    elsewhere.write_text(TEXT + "!")
    assert len({first.id, job(recipe(elsewhere)).id, *(job(r).id for r in changed)}) == 5


def test_runs_are_made_once_and_rows_survive_json(text, tmp_path):
    jobs = [job(recipe(text, seed=seed), arm="ab"[seed]) for seed in (0, 1)]
    study = Study([*jobs, jobs[0]], tmp_path / "pool")
    assert study.run(LocalEngine(2, 1), QUIET) and not study.pending
    assert [row.arm for row in study.rows] == ["a", "b"]
    for row in study.rows:
        assert row.is_finite and row.steps == 20 and row.num_parameters > 0 and row.tokens_per_second > 0
        assert row.machine["threads"] == 1 and row.data[0]["title"] == "text.txt"
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").rglob("*.json*")}
    again = Study(jobs, tmp_path / "pool")
    assert again.run(LocalEngine(2, 1), QUIET)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").rglob("*.json*")}
    imported = rows_from_json(json.loads(json.dumps(rows_to_json(study.rows))))
    elsewhere = Study(jobs, tmp_path / "other", imported)
    assert not elsewhere.pending and elsewhere.rows == study.rows


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def test_a_worker_that_is_killed_resumes_from_its_checkpoint(text, tmp_path):
    long, short = job(recipe(text, steps=400, every=50)), job(recipe(text, seed=1))
    pool = tmp_path / "pool"
    engine, killed = LocalEngine(2, 1), []
    start = engine.start

    def record_start(command):
        ticket = start(command)
        if long.id in str(command.log):
            killed.append(ticket.handle)
        return ticket

    engine.start = record_start

    def kill():
        wait_for(lambda: list((pool / long.id / "checkpoints").glob("step-*")))
        killed[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    study = Study([long, short], pool)
    assert study.run(engine, QUIET)
    killer.join()
    assert len(killed) == 2 and killed[0].returncode == -signal.SIGKILL
    assert [row.is_finite for row in study.rows] == [True, True]
    uninterrupted = Study([long], tmp_path / "other")
    assert uninterrupted.run(LocalEngine(1, 1), QUIET)
    assert uninterrupted.rows[0].loss == study.rows[0].loss


CLIMB = """
import sys
from pathlib import Path
from test_study import QUIET, LocalEngine, Study, job, recipe
text, pool = sys.argv[1:]
jobs = [job(recipe(text, steps=400, every=50)), job(recipe(text, seed=1))]
Study(jobs, Path(pool)).run(LocalEngine(2, 1), QUIET)
"""


def test_the_parent_may_be_killed_and_no_run_is_repeated(text, tmp_path):
    pool = tmp_path / "pool"
    path = [os.path.dirname(__file__), *sys.path]  # noqa: PTH120
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    parent = subprocess.Popen([sys.executable, "-c", CLIMB, str(text), str(pool)], env=environment)
    long, short = job(recipe(text, steps=400, every=50)), job(recipe(text, seed=1))
    wait_for(lambda: (pool / short.id / "summary.json").exists())
    finished = (pool / short.id / "summary.json").stat().st_mtime_ns
    parent.kill()
    parent.wait()
    study = Study([long, short], pool)
    assert study.run(LocalEngine(2, 1), QUIET)
    assert [row.is_finite for row in study.rows] == [True, True]
    assert (pool / short.id / "summary.json").stat().st_mtime_ns == finished
    assert "Traceback" not in (pool / f"{long.id}.log").read_text()


def test_a_study_that_is_stopped_saves_and_resumes(text, tmp_path):
    run, pool = job(recipe(text, steps=1200, every=300)), tmp_path / "pool"
    study = Study([run], pool)
    stops = []

    def should_stop():
        metrics = pool / run.id / "metrics.jsonl"
        stops.append(metrics.exists() and metrics.stat().st_size > 0)
        return stops[-1]

    assert not study.run(LocalEngine(1, 1), QUIET, should_stop=should_stop)
    (checkpoint,) = (pool / run.id / "checkpoints").glob("step-*")
    assert 0 < int(checkpoint.name.split("-")[1]) < 1200
    assert study.run(LocalEngine(1, 1), QUIET) and study.rows[0].is_finite


def test_a_diverged_run_has_no_loss_and_is_not_repeated(text, tmp_path, capfd):
    run = job(recipe(text, rate=1e30, steps=40))
    study = Study([run], tmp_path / "pool")
    assert study.run(LocalEngine(1, 1), Terminal(quiet=True))
    (row,) = study.rows
    assert (not row.is_finite and "not finite" in row.reason) or "diverged: step" in row.reason
    assert row.reason in capfd.readouterr().err
    assert not Study([run], tmp_path / "pool").pending


def test_a_failed_run_is_reported_with_its_error(text, tmp_path):
    run = job(recipe(text))
    study = Study([run], tmp_path / "pool")
    text.unlink()
    assert study.run(LocalEngine(1, 1), QUIET)
    (row,) = study.rows
    assert row.reason.startswith("ended with 65: ") and "text.txt" in row.reason
    assert Study([run], tmp_path / "pool").pending == [run]


def test_a_run_starts_from_another_and_waits_for_it(text, tmp_path):
    dense = recipe(text, steps=60)
    block = dense.model.decoder.blocks[0]
    experts = Experts(num_experts=4, expert=Dense(), router=TokenChoice(num_active=2))
    upcycled = replace(dense.model, decoder=StackConfig(num_layers=1, blocks=(replace(block, feedforward=experts),)))
    first = job(dense)
    child = replace(dense, model=upcycled, training=replace(dense.training, steps=5))
    prepared = prepare(child)
    rung = Rung(prepared.recipe, 100.0, 65 * 64, 6e4 * 65, 0)
    second = make_job("b", rung, fingerprint(prepared), start=first)
    assert second.id != make_job("b", rung, fingerprint(prepared)).id
    study = Study([second, first], tmp_path / "pool")
    assert study.run(LocalEngine(2, 1), QUIET)
    scratch = Study([make_job("b", rung, fingerprint(prepared))], tmp_path / "pool")
    assert scratch.run(LocalEngine(2, 1), QUIET)
    started, dense_row = study.rows
    assert started.loss < scratch.rows[0].loss - 0.3 and started.loss < dense_row.loss + 0.3
    imported = rows_from_json(rows_to_json(study.rows))
    assert not Study([second, first], tmp_path / "elsewhere", imported).pending
    del imported[second.id]
    assert set(Study([second, first], tmp_path / "elsewhere", imported).pending) == {first, second}


def test_runs_that_changed_places_are_refused(text, tmp_path):
    runs, pool = [job(recipe(text, steps=1, seed=seed)) for seed in (0, 1)], tmp_path / "pool"
    assert Study(runs, pool).run(LocalEngine(2, 1), QUIET)
    assert not Study(runs, pool).pending
    for old, new in ((runs[0].id, "x"), (runs[1].id, runs[0].id), ("x", runs[1].id)):
        (pool / old).rename(pool / new)
    with pytest.raises(ValueError, match=rf"{runs[0].id}/recipe\.toml is the recipe of another run"):
        Study(runs, pool)


def test_two_recipes_with_one_id_are_refused(text, tmp_path):
    run, pool = job(recipe(text)), tmp_path / "pool"
    pool.mkdir()
    mine = run.rung.recipe
    half = replace(mine, data=replace(mine.data, fraction=0.5))
    for other in (dump_toml(recipe(text, steps=7)), dump_toml(half), ""):
        (pool / f"{run.id}.toml").write_text(other)
        with pytest.raises(ValueError, match="recipe of another run with the same id"):
            Study([run], pool)
    (pool / f"{run.id}.toml").write_text(dump_toml(replace(mine, data=replace(mine.data, path="moved.txt"))))
    assert Study([run], pool).pending == [run]

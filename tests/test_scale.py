"""`isoform scale` from plan to report, on a small text with real processes."""

import json
from pathlib import Path

import pytest
import torch

from isoform.cli import main

pytestmark = pytest.mark.usefixtures("forked")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "hen", "runs", "from", "it", ".")
RECIPE = """
[data]
path = "{text}"
validation_path = "{held}"
[model]
model_dim = 16
context_length = 16
decoder = {{ num_layers = 1, blocks = {{ 0 = {{ mixer = {{ num_heads = 2 }} }} }} }}
[training]
steps = 100
global_batch_tokens = 256
sample_tokens = 1
optimizer = {{ kind = "adamw", learning_rate = 0.01 }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    text = " ".join(WORDS[(i * i + i // 3) % len(WORDS)] for i in range(20000))
    (folder / "text.txt").write_text(text[:-4000])
    (folder / "held.txt").write_text(text[-4000:])
    recipe = RECIPE.format(text=folder / "text.txt", held=folder / "held.txt")
    (folder / "small.toml").write_text(recipe)
    return folder


def scale(folder: Path, *flags: str) -> int:
    return main(["scale", str(folder / "small.toml"), "--pool", str(folder / "pool"), *flags])


LADDER = ("--budget", "8e9", "--decades", "0.9", "--design.sizes", "6", "--design.tokens_per_parameter", "4")


def test_a_dry_run_prints_the_plan_and_runs_nothing(folder, capsys):
    assert scale(folder, *LADDER, "--dry_run", "--json") == 0
    shown = capsys.readouterr()
    (plan,) = json.loads(shown.out)["plans"].values()
    assert plan["runs"] == 6 == len(plan["sizes"])
    assert plan["flops"] == pytest.approx(8e9, rel=0.05) and plan["seconds"] > 0 and plan["disk_bytes"] > 0
    assert 0 < plan["epochs"] < 1 and not (folder / "pool").exists()
    assert "6 runs" in shown.err and "of disk" in shown.err and "epochs" in shown.err


def test_a_ladder_is_run_fitted_and_reported_and_the_second_time_only_reported(folder, capsys):
    out = folder / "first"
    assert scale(folder, *LADDER, "--out", str(out), "--price.here", "0.5", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    for name in ("forecast", "exponent", "floor"):
        value, low, high = printed["values"][name]
        assert low <= value <= high, name
    study = json.loads((out / "study.json").read_text())
    assert len(study["rows"]) == 6 and study["repeats"] == {"least": 1, "most": 1} and study["seeds"] == [0]
    pool = {path.stem for path in (folder / "pool").glob("*.toml")}
    assert {row["id"] for row in study["rows"]} == pool
    for row in study["rows"]:
        summary = json.loads((folder / "pool" / row["id"] / "summary.json").read_text())
        assert summary["validation_loss"] == row["loss"] and summary["flops"] == pytest.approx(row["compute"])
    page = (out / "report.html").read_text()
    for words in ("Laws", "Runs", "Chinchilla", "Undetermined: the exponent is at its bound", " GFLOP"):
        assert words in page, words
    assert str(folder) not in page and str(folder) not in (out / "study.json").read_text()
    for picture in ("loss-against-compute.png", "residuals.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "pool").rglob("summary.json")}
    assert scale(folder, *LADDER, "--out", str(folder / "again")) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "pool").rglob("summary.json")}
    assert json.loads((folder / "again/study.json").read_text())["values"] == study["values"]


def test_two_recipes_are_compared_and_a_forecast_is_verified(folder, capsys):
    flags = ("--against", "training.optimizer.learning_rate=0.0005", "--forecast", "2", "--verify")
    assert scale(folder, *LADDER, *flags, "--out", str(folder / "two")) == 0
    shown = capsys.readouterr().out
    assert "is worth" in shown and "the forecast was off by" in shown
    study = json.loads((folder / "two/study.json").read_text())
    assert study["values"]["gain.most"][0] < 1
    assert sorted({row["arm"] for row in study["rows"]}) == [
        "forecast",
        "small",
        "training.optimizer.learning_rate=0.0005",
    ]
    (verified,) = [row for row in study["rows"] if row["purpose"] == "verify"]
    most = max(row["compute"] for row in study["rows"] if row["arm"] == "small")
    assert verified["compute"] == pytest.approx(2 * most, rel=0.1)
    assert study["values"]["forecast_error"][0] == pytest.approx(
        abs(study["values"]["forecast"][0] / verified["loss"] - 1)
    )


def test_speeds_are_measured_once_and_between_their_widths_interpolated(folder, monkeypatch, capsys):
    measured = []

    def speed(prepared, machine, **rest):
        measured.append((prepared.recipe.model.model_dim, torch.get_num_threads()))
        return 1e9

    monkeypatch.setattr("isoform.scaling.lab.measure_speed", speed)
    monkeypatch.setenv("ISOFORM_CACHE", str(folder / "speeds"))
    flags = ("--minutes", "1.5", "--decades", "0.9", "--design.sizes", "6", "--dry_run", "--json", "--workers", "1")
    assert scale(folder, *flags) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"].values()
    assert plan["seconds"] == pytest.approx(90, rel=0.1)
    widths = {size["width"] for size in plan["sizes"]}
    assert len({width for width, _ in measured}) == len(measured) and {threads for _, threads in measured} == {1}
    assert min(width for width, _ in measured) <= min(widths) and max(widths) <= max(width for width, _ in measured)
    before = len(measured)
    assert scale(folder, *flags) == 0 and len(measured) == before
    assert scale(folder, *flags, "--threads", "2") == 0 and {threads for _, threads in measured[before:]} == {2}
    before = len(measured)
    for path in (folder / "speeds/measured").glob("speed-*.json"):
        path.write_text(path.read_text().replace("1", "2"))
    assert scale(folder, *flags) == 0 and len(measured) > before  # what is damaged is measured again
    measured.clear()
    assert scale(folder, *flags[2:], "--minutes", "0.0001") == 65 and not measured
    assert "are too few for this ladder" in capsys.readouterr().err


def test_unsuitable_budgets_and_changes_are_refused_with_a_remedy(folder, capsys):
    assert scale(folder, "--budget", "1e7", "--decades", "1") == 65
    assert "would suffice" in capsys.readouterr().err
    assert (
        scale(folder, "--budget", "2e9", "--decades", "0.2", "--design.sizes", "2", "--out", str(folder / "few")) == 65
    )
    assert "would suffice" in capsys.readouterr().err
    assert scale(folder, *LADDER, "--against", "training.stepz=3", "--dry_run") == 65
    assert 'unknown key "stepz"' in capsys.readouterr().err
    assert scale(folder, "--decades", "-1") == 65
    assert "decades=-1" in capsys.readouterr().err
    assert main(["scale"]) == 65
    assert "name a recipe" in capsys.readouterr().err

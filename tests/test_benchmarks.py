"""The benchmarks' tables in the documents are those of their JSON; a sweep goes on until its best is inside."""

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def module(monkeypatch):
    """Imports a file of benchmarks/."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module


def test_the_tables_are_those_of_the_results(module):
    tables, seen = module("tables"), []
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert tables.written(text) == text, f"{path.name}: run python benchmarks/tables.py"
        seen += re.findall(r"<!-- (\w+): written", text)
    assert sorted(seen) == sorted(tables.PARTS)


def test_no_number_of_a_measurement_stands_outside_the_tables(module):
    """Of the page of the benchmarks; what is left are sizes and counts that their code sets."""
    tables = module("tables")
    for path, heading in ((ROOT / "README.md", r"## Measured\n(.*?)\n## Claims"), (tables.DOCUMENTS[1], r"(.*)")):
        text = re.search(heading, path.read_text(encoding="utf-8"), re.DOTALL)[1]
        text = re.sub(r"<!-- \w+: written.*?<!-- end -->", "", text, flags=re.DOTALL)
        assert re.findall(r"\d+\.\d+|\d+ ?(?:%|×|ms\b|seconds)", text) == []


def test_a_changed_result_changes_the_tables(module, monkeypatch):
    tables = module("tables")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = {**tables.RESULTS["training"]["times_the_best_of_the_peer"]}
    changed["isoform float32"] = {"median": 9.87, "min": 9.86, "max": 9.88}
    training = {**tables.RESULTS["training"], "times_the_best_of_the_peer": changed, "commit": "0123456789+changes"}
    monkeypatch.setitem(tables.RESULTS, "training", training)
    early = {key: value for key, value in tables.RESULTS["windows"].items() if key != "commit"}
    monkeypatch.setitem(tables.RESULTS, "windows", early)
    assert "9.87× (9.86–9.88) in float32" in tables.written(text)
    assert "| `0123456789+changes` |" in tables.origins() and f"| {tables.LATER} |" in tables.origins()


def test_a_row_measured_elsewhere_says_so(module, monkeypatch):
    tables = module("tables")
    result = tables.RESULTS["training"]
    monkeypatch.setitem(tables.RESULTS, "training", {**result, "machine": {**result["machine"], "device": "Abacus(R)"}})
    row = tables.training("training", "training", result)
    assert str(row).startswith("| training; here Abacus |")


@pytest.mark.parametrize("best", (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 7e-2))
def test_a_sweep_ends_with_its_best_rate_inside(module, best):
    losses = module("tinyshakespeare").swept(lambda rate: abs(math.log(rate / best)), (1e-3, 2e-3, 4e-3))
    rates = [*losses]
    index = rates.index(min(losses, key=losses.get))
    assert 0 < index < len(rates) - 1 and rates == sorted(rates) and {1e-3, 2e-3, 4e-3} <= set(rates)


def test_a_diverged_rate_is_worse_than_any(module):
    def loss(rate):
        return math.nan if rate > 1e-3 else abs(rate - 5e-4)

    losses = module("tinyshakespeare").swept(loss, (1e-3, 2e-3, 4e-3))
    assert [*losses] == [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]


def test_results_carry_their_commit(module, tmp_path, monkeypatch):
    harness = module("harness")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.setattr(harness.inspect, "getfile", lambda _: str(tmp_path / "src/isoform/machine.py"))
    (tmp_path / "src").mkdir()
    code, page = tmp_path / "src/model.py", tmp_path / "page.md"
    code.write_text("1")
    page.write_text("1")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "All")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    page.write_text("2")
    assert re.fullmatch("[0-9a-f]{10}", harness.commit())
    code.write_text("2")
    assert re.fullmatch(r"[0-9a-f]{10}\+changes", harness.commit())
    monkeypatch.setattr(harness.inspect, "getfile", lambda _: "/elsewhere/isoform/machine.py")
    with pytest.raises(SystemExit, match="elsewhere"):
        harness.commit()

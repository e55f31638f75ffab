"""The wheel and the source distribution have what they should, and the wheel trains the demo where it is installed."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with both; that of `make dist`, or built here."""
    if os.environ.get("ISOFORM_DIST"):
        return ROOT / os.environ["ISOFORM_DIST"]
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


def test_the_wheel_has_all_of_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "src/isoform"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0 and tracked.stdout:
        assert names == {name.removeprefix("src/") for name in tracked.stdout.splitlines()}
    assert {"isoform/py.typed", "isoform/recipes/shakespeare.toml", "isoform/claims/verdicts.json"} <= names
    assert "isoform/claims/law.toml" in names


def test_the_source_distribution_can_be_built_and_tested(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = ("pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "Makefile", "requirements.lock", "mkdocs.yml")
    assert names >= {*needed, "src/isoform/py.typed", "tests/conftest.py", "docs/design.md", "tools/pages.py"}
    assert not {name for name in names if name.startswith((".venv", "runs/", "site/", "dist/"))}


def test_the_wheel_trains_the_demo_in_a_fresh_environment(dist, tmp_path):
    """The packages of this environment are seen by their folder, in which an editable isoform isn't."""
    (wheel,) = dist.glob("*.whl")
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    words = ["--disable-pip-version-check", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (packages / "locked.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    small = ("--model.model_dim", "32", "--model.decoder.num_layers", "1", "--model.stem.ngram_rows", "64")
    flags = ("--training.steps", "20", "--training.sample_tokens", "20", *small, "--out", "run")
    process = subprocess.run(
        [str(python.with_name("isoform")), "train", "shakespeare", *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "validation" in process.stdout and (tmp_path / "run/report.html").exists()
    where = subprocess.run(
        [str(python), "-c", "import isoform; print(isoform.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(packages)

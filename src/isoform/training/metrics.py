"""The metrics log: metrics.jsonl, one JSON object per line, appended during a run and cut back on resume."""

from __future__ import annotations

import json
from pathlib import Path

from isoform.files import DamagedFile

CLOCK_FIELDS = frozenset({"tokens_per_second", "train_seconds", "utilisation"})
"""Fields measured with a clock: the only ones in which the log of a resumed run may differ."""


def read_metrics(path: Path) -> list[dict]:
    """The lines of a log; a last line that a killed process left incomplete is dropped.

    Raises DamagedFile, naming the line, if any other isn't a line of metrics.
    """
    if not path.exists():
        return []
    lines = []
    *whole, _ = path.read_bytes().split(b"\n")
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise DamagedFile(f"{path}, line {number} is damaged; restore the file from a copy, or remove the line")
        lines.append(line)
    return lines

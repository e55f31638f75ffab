"""The metrics log: metrics.jsonl, one JSON object per line, appended during a run and cut back on resume.

docs/metrics.md has every field with its unit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from isoform.files import DamagedFile

CLOCK_FIELDS = frozenset({"tokens_per_second", "train_seconds", "utilisation"})
"""Fields measured with a clock: the only ones in which the log of a resumed run may differ."""
LogFunction = Callable[[dict[str, Any], int], None]
"""What is called with each line of a log: its fields without the step, and the step."""


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


def columns(lines: Iterable[Mapping[str, Any]]) -> dict[str, list]:
    """Lines as the columns of a table with a row for each step, in order, and NaN where a step lacks a field."""
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        rows.setdefault(line["step"], {}).update(line)
    names = dict.fromkeys(["step", *(name for row in rows.values() for name in row)])
    return {name: [rows[step].get(name, math.nan) for step in sorted(rows)] for name in names}

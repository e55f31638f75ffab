"""The metrics log: metrics.jsonl, one JSON object per line, appended during a run and truncated on resume."""

from __future__ import annotations

import json
from pathlib import Path

from isoform.files import write_text

CLOCK_FIELDS = frozenset({"tokens_per_second", "train_seconds", "utilisation"})
"""Fields measured with a clock: the only ones in which the log of a resumed run may differ."""


class MetricsLog:
    """Lines of metrics in a file; every line is flushed, so that a killed run loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict) -> None:
        """Append a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """All complete lines of a log; an incomplete last line is dropped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def truncate_metrics(path: Path, step: int, *, is_scored: bool = True) -> None:
    """Keep the lines up to `step`, from which the run continues; without its validation unless the step is scored."""
    lines = [
        line
        for line in read_metrics(path)
        if line["step"] < step or (line["step"] == step and (is_scored or "loss" in line))
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

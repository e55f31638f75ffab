"""The ledger: metrics.jsonl, one JSON object a line, appended as the run goes and cut back on resume."""

from __future__ import annotations

import json
from pathlib import Path

from isoform.files import write_text

CLOCK_FIELDS = frozenset({"tokens_per_second", "train_seconds", "utilisation"})
"""Fields read from a clock: the only ones in which a resumed run's ledger may differ."""


class MetricsLog:
    """Lines of metrics in a file; every line is flushed, so that a killed run leaves what it knew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def note(self, line: dict) -> None:
        """Append a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """All whole lines of a ledger; a torn last line is dropped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the lines up to `step`, which is where the run goes on from."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

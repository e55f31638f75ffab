"""Time to a loss on Tiny Shakespeare: our recipes over seeds and a plain Hugging Face loop.

    python benchmarks/tinyshakespeare.py input.txt [--seeds 5] [--long-seeds 3]

The peer trains the classic recipe (4 layers, width 128, 4 heads, context 64, batch 12, 2,000 steps); its learning
rate is swept on the last tenth of the training text, as ours was.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from harness import isoform, peer, save_results, summary

RATES = ("1e-3", "2e-3", "4e-3")
FIELDS = ("validation_loss", "train_seconds", "wall_seconds")


def runs_of(recipe: str, path: str, seeds: range, folder: str) -> dict[str, object]:
    """Medians of a recipe over seeds, and its cost."""
    runs = [
        isoform("train", recipe, "--data.path", path, "--seed", str(s), "--out", f"{folder}/{recipe}-{s}")
        for s in seeds
    ]
    cost = {key: runs[0][key] for key in ("steps", "tokens", "num_parameters", "flops")}
    return {
        **{field: summary([run[field] for run in runs]) for field in FIELDS},
        "losses": [run["validation_loss"] for run in runs],
        "tokens_per_second": summary([run["tokens_per_second"] for run in runs]),
        "utilisation": summary([run["utilisation"] for run in runs]),
        **cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--long-seeds", type=int, default=3)
    options = parser.parse_args()
    path = str(options.path)
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "training-part.txt"
        text = options.path.read_text(encoding="utf-8")
        inner.write_text(text[: int(0.9 * len(text))], encoding="utf-8")
        swept = {rate: peer("peer_training.py", str(inner), "--learning-rate", rate) for rate in RATES}
        best = min(swept, key=lambda rate: swept[rate]["validation_loss"])
        sprint = runs_of("tinyshakespeare-sprint", path, range(options.seeds), folder)
        theirs = [peer("peer_training.py", path, "--learning-rate", best, "--seed", str(s)) for s in range(2)]
        long = runs_of("tinyshakespeare", path, range(options.long_seeds), folder)
    peer_seconds = summary([run["train_seconds"] for run in theirs])
    save_results(
        "tinyshakespeare",
        {
            "data": {"title": "Tiny Shakespeare", "bytes": options.path.stat().st_size},
            "sprint": sprint,
            "long": long,
            "peer": {
                "learning_rate": best,
                "swept": {rate: run["validation_loss"] for rate, run in swept.items()},
                "validation_loss": summary([run["validation_loss"] for run in theirs]),
                "train_seconds": peer_seconds,
                "steps": 2000,
            },
            "sprint_train_seconds_over_peer": sprint["train_seconds"]["median"] / peer_seconds["median"],
        },
    )


if __name__ == "__main__":
    main()

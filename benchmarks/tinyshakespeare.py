"""Time to a loss on Tiny Shakespeare: our recipes over seeds and a plain Hugging Face loop.

    python benchmarks/tinyshakespeare.py input.txt [--seeds 5] [--long-seeds 3] [--peer-steps 2000]

The peer trains the classic recipe (4 layers, width 128, 4 heads, context 64, batch 12, 2,000 steps) in the fastest of
its forms, compiled before the clock starts; its learning rate is swept on the last tenth of the training text, as ours
was, doubled and halved until the best rate is between worse ones.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import isoform, peer, save_results, summary
from peer_training import BATCH, CONTEXT, FORMS, STEPS
from training import classic

from isoform.model.cost import Shape, training_flops

RATES = (2e-3, 4e-3, 8e-3)
"""Where the sweep begins."""
TRIED, PEER_SEEDS = 200, 2
"""Steps that decide which form of the peer is the fastest; its final runs."""
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
        "seeds": [*seeds],
        **cost,
    }


def best_rate(losses: dict[float, float]) -> float:
    """The rate with the least loss; one that diverged is worse than any."""
    return min(losses, key=lambda rate: (math.isnan(losses[rate]), losses[rate]))


def swept(measure: Callable[[float], float], rates: Sequence[float] = RATES) -> dict[float, float]:
    """The loss at each rate, ascending; the sweep goes on past an end, by factors of 2, while the best is that end."""
    losses = {rate: measure(rate) for rate in rates}
    while (best := best_rate(losses)) in (min(losses), max(losses)):
        beyond = 2 * best if best == max(losses) else best / 2
        losses[beyond] = measure(beyond)
    return dict(sorted(losses.items()))


def peer_runs(text: str, path: str, inner: str, steps: int) -> dict[str, object]:
    """The peer at its fastest, with the learning rate that is best on the last tenth of the training text."""
    Path(inner).write_text(text[: int(0.9 * len(text))], encoding="utf-8")

    def run(data: str, rate: float, form: str, seed: int = 0, steps: int = steps) -> dict:
        words = ("--learning-rate", str(rate), "--form", form, "--seed", str(seed), "--steps", str(steps))
        return peer("peer_training.py", data, *words)

    speeds = {form: run(inner, RATES[0], form, steps=TRIED)["tokens_per_second"] for form in FORMS}
    form = max(FORMS, key=speeds.__getitem__)
    losses = swept(lambda rate: run(inner, rate, form)["validation_loss"])
    best = best_rate(losses)
    seeds = range(PEER_SEEDS)
    runs = [run(path, best, form, seed) for seed in seeds]
    return {
        "form": form,
        "tokens_per_second_of_forms": speeds,
        "learning_rate": best,
        "swept": {str(rate): loss for rate, loss in losses.items()},
        "validation_loss": summary([run["validation_loss"] for run in runs]),
        "train_seconds": summary([run["train_seconds"] for run in runs]),
        "seeds": [*seeds],
        "steps": steps,
        "num_parameters": runs[0]["num_parameters"],
        "flops": steps * training_flops(classic(), Shape(BATCH, CONTEXT)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--long-seeds", type=int, default=3)
    parser.add_argument("--peer-steps", type=int, default=STEPS)
    options = parser.parse_args()
    path, text = str(options.path), options.path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        theirs = peer_runs(text, path, f"{folder}/training-part.txt", options.peer_steps)
        sprint = runs_of("tinyshakespeare-sprint", path, range(options.seeds), folder)
        long = runs_of("tinyshakespeare", path, range(options.long_seeds), folder)
    data = {"title": "Tiny Shakespeare", "bytes": options.path.stat().st_size}
    save_results("tinyshakespeare", {"data": data, "sprint": sprint, "long": long, "peer": theirs})


if __name__ == "__main__":
    main()

"""The savings of a window: one attention, forward and backward, banded and full causal, by length of the row.

python benchmarks/windows.py [--rounds 5] [--window 256]

Each length runs in its own processes: one for interleaved times, and one per kernel for its peak memory, the maximum
memory of the process less that with only the inputs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from harness import in_turn, ratios, save_results, summary

from isoform.batch import plain_coordinates
from isoform.mask import Causal, Mask, Window
from isoform.model.lowering import Band, attend, lower

LENGTHS = (1024, 2048, 4096, 8192, 16384)
NUM_HEADS, HEAD_DIM = 8, 64


def masks(window: int) -> dict[str, Mask]:
    """A window counts the token itself."""
    return {"causal": Causal(), "window": Causal() & Window(window - 1)}


def work(mask: Mask, length: int) -> Callable[[], float]:
    """One attention of one row, forward and backward, with the lowering of its mask; returns its seconds."""
    torch.manual_seed(0)
    coordinates = plain_coordinates(1, length)
    q, k, v = (torch.randn(1, NUM_HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(3))
    weight = torch.randn(1, NUM_HEADS, length, HEAD_DIM)

    def run() -> float:
        q.grad = k.grad = v.grad = None
        start = time.perf_counter()
        attend(q, k, v, lower(mask, coordinates, coordinates)).backward(weight)
        return time.perf_counter() - start

    return run


def peak_kilobytes() -> int:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(length: int, window: int, rounds: int, kernel: str | None) -> dict[str, object]:
    """Measured in this process: seconds of both, or the megabytes of one beyond its inputs."""
    if kernel is None:
        coordinates = plain_coordinates(1, length)
        assert length < 4 * window or isinstance(lower(masks(window)["window"], coordinates, coordinates), Band)
        return dict(in_turn({name: work(mask, length) for name, mask in masks(window).items()}, rounds=rounds))
    work(masks(window)[kernel], 1)()  # so that what torch loads at first use is not counted
    work(masks(4)[kernel], 1024)()
    run = work(masks(window)[kernel], length)
    before = peak_kilobytes()
    run()
    return {"megabytes": round((peak_kilobytes() - before) / 1024, 1)}


def in_a_process(*arguments: object) -> dict:
    """The output of this script, run with these arguments."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--length", type=int, help="measure this length alone, in this process")
    parser.add_argument("--memory", choices=("causal", "window"), help="of this kernel, instead of times")
    options = parser.parse_args()
    if options.length:
        print(json.dumps(measured(options.length, options.window, options.rounds, options.memory)))
        return
    results: dict[str, object] = {"window": options.window, "num_heads": NUM_HEADS, "head_dim": HEAD_DIM}
    for length in LENGTHS:
        common = ("--length", length, "--window", options.window, "--rounds", options.rounds)
        seconds = in_a_process(*common)
        results[str(length)] = {
            "milliseconds": {name: summary([1e3 * s for s in times]) for name, times in seconds.items()},
            "times_as_fast": ratios(seconds, "window", "causal"),
            "megabytes_on_top": {
                name: in_a_process(*common, "--memory", name)["megabytes"] for name in ("causal", "window")
            },
        }
    save_results("windows", results)


if __name__ == "__main__":
    main()

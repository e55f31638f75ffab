"""Start-up times: help, and the first training step after the command.

python benchmarks/startup.py input.txt [--rounds 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import in_turn, save_results, summary

ISOFORM = [str(Path(sys.executable).with_name("isoform"))]
COMMANDS = ("train", "generate", "evaluate", "estimate", "doctor", "recipes")


def helps(*words: str) -> None:
    """Print the help of a command."""
    subprocess.run([*ISOFORM, *words, "--help"], capture_output=True, check=True)


def seconds_to_first_step(path: str) -> float:
    """Seconds from the command to the line of metrics of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "run", time.perf_counter()
        command = [*ISOFORM, "train", "tinyshakespeare", "--data.path", path, "--out", str(out), "-q"]
        process = subprocess.Popen(command)
        while not ((out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size):
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    works = {"isoform --help": helps, **{f"isoform {v} --help": lambda v=v: helps(v) for v in COMMANDS}}
    seconds = in_turn(works, rounds=options.rounds)
    first = [seconds_to_first_step(options.path) for _ in range(options.rounds + 1)][1:]
    save_results(
        "startup",
        {"seconds": {name: summary(times) for name, times in seconds.items()}, "first_step_seconds": summary(first)},
    )


if __name__ == "__main__":
    main()

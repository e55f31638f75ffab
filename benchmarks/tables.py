"""Write the tables of README.md and docs/benchmarks.md from benchmarks/results/*.json.

    python benchmarks/tables.py

Between two comments of a document everything is written by this file; a test compares them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/benchmarks.md")
RESULTS = {path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("results/*.json"))}
LATER = "before commits were recorded"
"""What stands for the commit of a result that has none."""


def middle(of: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    """The median alone."""
    return f"{scale * of['median']:,.{digits}f}"


def spread(of: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    """The median, and the least and the most."""
    return f"{middle(of, digits, scale)} ({scale * of['min']:,.{digits}f}–{scale * of['max']:,.{digits}f})"


def times(of: Mapping[str, Any]) -> str:
    """A ratio."""
    return f"{middle(of, 2)}× ({spread(of, 2).partition(' (')[2]}"


def setting(name: str) -> tuple[str, ...]:
    """Processor, threads and versions of a result."""
    result = RESULTS[name]
    machine, versions = result["machine"], result["versions"]
    device = machine["device"].replace("(R)", "")
    return (
        device,
        f"{machine['threads']} threads",
        f"{machine['instructions']} with {machine['dtype']} as the default",
        f"torch {versions['torch']}",
        f"transformers {versions['transformers']}",
        f"Python {machine['python']}",
    )


USUAL = Counter(map(setting, RESULTS)).most_common(1)[0][0]
"""The setting of most results; a row that differs says in what."""


def elsewhere(name: str) -> str:
    """In what a result's setting differs from the usual one."""
    different = [part for part, usual in zip(setting(name), USUAL, strict=True) if part != usual]
    return f"; here {', '.join(different)}" if different else ""


def commit(name: str) -> str:
    """The commit of a result."""
    return f"`{RESULTS[name]['commit']}`" if "commit" in RESULTS[name] else LATER


@dataclass(frozen=True)
class Row:
    """A line of the large table, and of README's if it is brief."""

    name: str
    what: str
    ours: str
    theirs: str
    is_brief: bool = False

    def __str__(self) -> str:
        return f"| {self.what}{elsewhere(self.name)} | {self.ours} | {self.theirs} | `{self.name}` |"


def shakespeare() -> list[Row]:
    """Time to a loss on Tiny Shakespeare."""
    result, name = RESULTS["tinyshakespeare"], "tinyshakespeare"
    sprint, long, peer = result["sprint"], result["long"], result["peer"]
    rates = ", ".join(f"{float(rate):g}" for rate in peer["swept"])
    return [
        Row(
            name,
            "Tiny Shakespeare, characters: seconds of training",
            f"{spread(sprint['train_seconds'], 1)}, {sprint['steps']} steps",
            f"{spread(peer['train_seconds'], 0)}, {peer['steps']:,} steps, {peer['form']}",
            True,
        ),
        Row(
            name,
            "… validation loss reached, nats",
            f"{spread(sprint['validation_loss'], 3)}, {sprint['validation_loss']['repeats']} seeds",
            f"{spread(peer['validation_loss'], 3)}, {peer['validation_loss']['repeats']} seeds",
            True,
        ),
        Row(
            name,
            "… parameters / training FLOPs",
            f"{sprint['num_parameters'] / 1e6:.1f} M, mostly tables / {sprint['flops'] / 1e12:.2f} T",
            f"{peer['num_parameters'] / 1e6:.1f} M / {peer['flops'] / 1e12:.1f} T",
            True,
        ),
        Row(name, "… learning rate", "of the recipe", f"{float(peer['learning_rate']):g}, the best of {rates}"),
        Row(
            name,
            "Tiny Shakespeare in two minutes: validation loss, nats",
            f"{spread(long['validation_loss'], 3)}, {long['validation_loss']['repeats']} seeds",
            "–",
            True,
        ),
        Row(name, "… seconds of the whole process", spread(long["wall_seconds"], 0), "–"),
    ]


def training(name: str, what: str, result: Mapping[str, Any], *, is_compiled: bool = False) -> Row:
    """Training speed in both precisions, beside the fastest form of the peer."""
    ours, end = result["times_the_best_of_the_peer"], " compiled" if is_compiled else ""
    cells = [f"{times(ours[f'isoform {dtype}{end}'])} in {dtype}" for dtype in ("bfloat16", "float32")]
    forms = sum(key.startswith("transformers") for key in result["tokens_per_second"])
    best = result["best_of_the_peer"].removeprefix("transformers ")
    return Row(name, what, ", ".join(cells), f"1: {best}, the fastest of {forms} measured", is_brief=True)


def decoding() -> list[Row]:
    """Greedy decoding of one row."""
    rows = []
    for size in ("0.8M", "10.7M"):
        result = RESULTS["decoding"][size]
        ours, equal = result["times_transformers"], result["equal_outputs"]
        same = "equal" if equal["isoform"] else "unequal"
        ours = f"{times(ours['isoform'])} in float32, {times(ours['bfloat16'])} in bfloat16"
        rows.append(Row("decoding", f"decoding one row, {size}, {same} outputs", ours, "1: `generate`, float32", True))
    return rows


def attention() -> list[Row]:
    """Windows, and a recurrence instead of attention."""
    rows, longest = [], max(RESULTS["mixers"]["lengths"], key=int)
    recurrence = RESULTS["mixers"]["lengths"][longest]["linear_recurrence"]["times_attention"]
    what = f"tokens per second of linear recurrence in rows of {int(longest):,}"
    rows.append(Row("mixers", what, times(recurrence), "1: isoform's attention", True))
    windows = RESULTS["windows"]
    for length in ("8192", "16384"):
        result = windows[length]
        milliseconds = result["milliseconds"]
        rows.append(
            Row(
                "windows",
                f"window of {windows['window']} at {int(length):,} tokens, milliseconds forward and backward",
                f"{spread(milliseconds['window'], 0)}, {times(result['times_as_fast'])} as fast",
                f"{spread(milliseconds['causal'], 0)}: isoform without the window",
                length == "8192",
            )
        )
    return rows


def rows() -> list[Row]:
    """All of the large table."""
    objectives, startup = RESULTS["objectives"], RESULTS["startup"]
    beam, block = objectives["beam_search"], RESULTS["experts"]["gated, float32"]
    first = " / ".join(middle(startup["seconds"][key], 2) for key in ("isoform --help", "isoform train --help"))
    return [
        *shakespeare(),
        training("training", "tokens per second, training GPT-2 4×128", RESULTS["training"]),
        training("training", "… ours compiled", RESULTS["training"], is_compiled=True),
        training("objectives", "tokens per second, training BERT 4×256 on masked tokens", objectives["masked"]),
        training("objectives", "tokens per second, training BART 3 + 3×256 on pairs", objectives["seq2seq"]),
        Row(
            "objectives",
            f"beam search, 4 beams, {beam['same_answers']} answers equal",
            times(beam["times_the_peer"]),
            "1: `generate`",
            True,
        ),
        *decoding(),
        *attention(),
        Row(
            "experts",
            "milliseconds of a block with 8 experts, 2 active, float32, at equal active parameters",
            f"{spread(block['block']['experts_milliseconds'], 0)}, {times(block['block']['times_dense'])} the time",
            f"{spread(block['block']['dense_milliseconds'], 0)}: isoform's dense block",
        ),
        Row(
            "experts",
            "… of its feed-forward alone",
            f"{spread(block['feedforward']['experts_milliseconds'], 0)}, "
            f"{times(block['feedforward']['times_dense'])} the time",
            f"{spread(block['feedforward']['dense_milliseconds'], 0)}",
        ),
        Row(
            "startup",
            "seconds of `isoform --help` / `isoform train --help` / to the first training step",
            f"{first} / {middle(startup['first_step_seconds'], 1)}",
            "–",
        ),
    ]


HEAD = "| what | isoform | compared with: a plain loop of transformers | `benchmarks/….py` |\n|---|---|---|---|\n"


def brief() -> str:
    """README's table."""
    commits = {commit(name) for name in {row.name for row in rows() if row.is_brief}}
    origin = f"commit {commits.pop()}" if len(commits) == 1 and LATER not in commits else "commits: in the whole table"
    lines = [
        f"{', '.join(USUAL)}.",
        f"Median (least–most); × is how many times as fast; {origin}, [benchmarks](docs/benchmarks.md).",
        "",
        HEAD + "\n".join(str(row) for row in rows() if row.is_brief),
    ]
    return "\n".join(lines)


def whole() -> str:
    """The large table."""
    return f"{', '.join(USUAL)}.\n\n{HEAD}" + "\n".join(map(str, rows()))


def mixers() -> str:
    """What each mixer costs over the length of the row."""
    lengths = RESULTS["mixers"]["lengths"]
    lines = [
        f"Thousands of tokens per second, and how many times attention's{elsewhere('mixers')}:",
        "",
        "| mixer | " + " | ".join(f"rows of {int(length):,}" for length in lengths) + " |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    for name in next(iter(lengths.values())):
        cells = []
        for of_length in lengths.values():
            speed = spread(of_length[name]["tokens_per_second"], 1, 1e-3)
            cells.append(speed if name == "attention" else f"{speed}: {times(of_length[name]['times_attention'])}")
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def estimates() -> str:
    """How well `isoform estimate` estimates."""
    presets, memory = RESULTS["estimates"]["presets"].values(), RESULTS["estimates"]["memory"].values()
    pairs = (("num_parameters", "built_parameters"), ("flops", "counted_flops"))
    exact = sum(all(preset[a] == preset[b] for a, b in pairs) for preset in presets)
    errors, runs = [100 * run["error"] for run in memory], len(memory)
    lines = [
        f"`isoform estimate` counts parameters and FLOPs exactly for {exact} of {len(presets)} presets that read",
        "tokens and have no experts. Its peak",
        f"memory of the process was off by {min(errors):.0f} to {max(errors):.0f} % in {runs} runs of three steps,",
        "since fragmentation in the allocator is not counted.",
    ]
    return "\n".join(lines)


def origins() -> str:
    """Where each result comes from."""
    lines = ["| command | commit | date | machine and versions | minutes |", "|---|---|---|---|---|"]
    for name, result in RESULTS.items():
        minutes = f"{result['total_seconds'] / 60:.1f}" if "total_seconds" in result else "–"
        cells = (f"`{result['command']}`", commit(name), result.get("date", "–"), ", ".join(setting(name)), minutes)
        lines.append(f"| {' | '.join(cells)} |")
    seconds = [result.get("total_seconds") for result in RESULTS.values()]
    if None not in seconds:
        lines += ["", f"All of them together took {sum(seconds) / 60:.0f} minutes."]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {f.__name__: f for f in (brief, whole, mixers, estimates, origins)}


def written(text: str) -> str:
    """A document with its parts as the results have them."""
    return re.sub(
        r"(<!-- (\w+): written by benchmarks/tables.py -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{PARTS[match[2]]()}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    for path in DOCUMENTS:
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

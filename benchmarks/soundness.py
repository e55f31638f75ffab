"""What a process that is killed, a full disk, a power cut or a flipped bit does to runs, studies, exports and caches,
and what files do that are made to harm.

    python benchmarks/soundness.py

Writes docs/results/soundness.md and soundness.json; with names of sections (kills, cuts, flips, hostile) it only prints
those. Each command runs in forks of this process, with small models; tests/faults.py has the faults, tests/hostile.py
the files.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from harness import RESULTS

import faults
import hostile
from isoform.machine import choose_machine, measured_peaks
from isoform.scaling.estimate import exact
from isoform.scaling.findings import Findings, Table
from isoform.scaling.pages import StudyReport, provenance, publish

STATES = {"train": 600, "study": 150, "scale": 150, "convert": 150, "cache": 150}
FAILURES = ("can't continue", "another result", "another exit code")
FLIPS = 500
Section = Callable[[Path], tuple[Table, dict[str, int]]]


def scenarios(root: Path, launch: type = faults.Worker) -> list[faults.Scenario]:
    """The commands, with the finished run that is converted and the ladder all but one of whose runs are made; each
    ran once in this process, which is warm then."""
    train, study = faults.train_scenario(), faults.study_scenario(launch)
    source, made = root / "source", root / "made"
    if not source.exists():
        for scenario in (train, study):
            folder = scenario.start(source if scenario is train else root / "warm")
            os.chdir(folder)
            assert scenario.command(folder) == 0
        faults.all_but_one(faults.scale_scenario(launch=faults.Inline), made)
        gc.collect()
        gc.freeze()  # else each fork would look for garbage in what was imported
    convert = faults.convert_scenario(source / "run")
    return [train, study, faults.scale_scenario(made, launch), convert, faults.cache_scenario()]


def kills(root: Path) -> tuple[Table, dict[str, int]]:
    """kill -9 before, within and after, and a full disk before and within, every call that changes the disk. The
    commands are tried beside each other."""
    with ProcessPoolExecutor(len(STATES), mp_context=get_context("fork")) as pool:
        results = [*pool.map(_kills_of, STATES, [root / name for name in STATES])]
    lines, bad = [line for line, _ in results], Counter[str]()
    for _, counts in results:
        bad.update(counts)
    failures = ", ".join(f"{name}: {bad[name]}" for name in FAILURES)
    lines.append(("all", "", f"{bad['faults']}", failures))
    head = ("command", "calls", "faults", "exit codes; at the end, what then failed")
    table = Table("Killed, or out of disk, at every call that changes it", head, tuple(lines))
    return table, {"faults": bad["faults"], **{f"faults, {name}": bad[name] for name in FAILURES}}


def _kills_of(name: str, root: Path) -> tuple[tuple[str, ...], Counter[str]]:
    """The line of one command, and how many of its faults failed, and how."""
    root.mkdir()
    scenario = next(scenario for scenario in scenarios(root) if scenario.name == name)
    calls = faults.count_calls(scenario, root / "count")
    expected = scenario.result(root / "count")
    codes, bad = Counter[int](), Counter[str]()
    for kind, fault in faults.FAULTS.items():
        for call in range(1, calls + 1):
            outcome = faults.try_fault(scenario, root / "try", call, fault, expected)
            codes[outcome.code] += 1
            is_expected = outcome.code in ((-9, 0) if "killed" in kind else (74, 0))
            is_so = (
                not outcome.is_sound and outcome.again != 0,
                not outcome.is_sound and outcome.again == 0,
                not is_expected,
            )
            for failure in [failure for failure, holds in zip(FAILURES, is_so, strict=True) if holds]:
                bad[failure] += 1
                print(f"{name}, call {call}, {kind}: {failure}: {outcome.words[-700:]}", flush=True)
    bad["faults"] = calls * len(faults.FAULTS)
    words = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    print(name, calls, words, flush=True)
    return (name, f"{calls}", f"{bad['faults']}", words), bad


def cuts(root: Path) -> tuple[Table, dict[str, int]]:
    """States that a power cut may leave, of every artefact."""
    lines, total, bad = [], 0, 0
    for scenario in scenarios(root, faults.Inline):
        operations = faults.trace(scenario, root / "trace")
        expected = scenario.result(root / "trace")
        shutil.rmtree(root / "trace")
        for seed in range(STATES[scenario.name]):
            outcome = faults.try_power_cut(scenario, root / "try", operations, seed, expected)
            total += 1
            if not outcome.is_sound:
                bad += 1
                print(f"{scenario.name}, state {seed}: {outcome.again} {outcome.words[-700:]}", flush=True)
        lines.append((scenario.name, f"{len(operations)}", f"{STATES[scenario.name]}"))
        print(*lines[-1], flush=True)
    lines.append(("all", "", f"{total}, of which unreadable, mixed or silently wrong: {bad}"))
    table = Table("Power cuts", ("command", "operations", "legal states"), tuple(lines))
    return table, {"cuts": total, "cuts, bad": bad}


def flips(root: Path) -> tuple[Table, dict[str, int]]:
    """Flipped bits in all files of a run, finished or killed in its middle, that is then continued."""
    train = scenarios(root)[0]
    expected, counts = train.result(root / "source"), Counter[str]()
    calls = faults.count_calls(train, root / "count")
    train.start(root / "part")
    train.run(root / "part", faults.injected(faults.Counter(), calls * 3 // 4, faults.FAULTS["killed after"]))
    for seed in range(FLIPS):
        base = root / ("source", "part")[seed % 2]
        kind, where = faults.try_flip(train, base, root / "try", seed, expected)
        counts[kind] += 1
        if kind in ("silent", "unnamed"):
            print(f"{kind}: {base.name}/{where}", flush=True)
    kinds = ("found", "harmless", "unnamed", "silent")
    line = tuple(f"{counts[kind]}" for kind in kinds)
    head = ("flips", "found and named", "harmless", "found, unnamed", "silent")
    table = Table("Flipped bits", head, ((f"{FLIPS}", *line),))
    return table, {"flips": FLIPS, **{f"flips, {kind}": counts[kind] for kind in kinds}}


def hostile_files(root: Path) -> tuple[Table, dict[str, int]]:
    """Files that are made to harm, each read by the verb that takes it, in a fork that an audit hook watches."""
    os.chdir(root)
    outcomes = [*hostile.outcomes(hostile.all_cases())]
    harmful = [outcome for outcome in outcomes if not hostile.is_fine(outcome)]
    for outcome in harmful:
        print(outcome, flush=True)
    refused = [outcome for outcome in outcomes if outcome.code == 65]
    slowest, largest = max(o.seconds for o in refused), max(o.megabytes for o in refused)
    head = ("files", "refused in a line", "used harmlessly", "else", "slowest", "most memory")
    used = len(outcomes) - len(refused) - sum(outcome.code not in (0, 65) for outcome in harmful)
    line = (len(outcomes), len(refused), used, len(harmful), f"{slowest:.2f} s", f"{largest:.0f} MB")
    title = "Files made to harm: processes, sockets and writes elsewhere are counted as else"
    table = Table(title, head, (tuple(map(str, line)),))
    return table, {"files": len(outcomes), "files refused": len(refused), "files, harmful": len(harmful)}


SECTIONS: dict[str, Section] = {"kills": kills, "cuts": cuts, "flips": flips, "hostile": hostile_files}


def section(name: str) -> tuple[Table, dict[str, int]]:
    """One section, in a process and a folder of its own."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        table, counts = SECTIONS[name](Path(root).resolve())
        os.chdir("/")
    print(name, counts, f"{time.perf_counter() - started:.0f} s", flush=True)
    return table, counts


def main(names: list[str]) -> None:
    """Go through the sections, and write the page unless only some were named."""
    os.environ["ISOFORM_CACHE"] = tempfile.mkdtemp()
    torch.set_num_threads(1)  # a fork would wait for the others
    measured_peaks(choose_machine("cpu", "float32"))
    with ProcessPoolExecutor(len(SECTIONS), mp_context=get_context("fork")) as pool:
        results = [*pool.map(section, names or SECTIONS)]
    if names:
        return
    tables = [table for table, _ in results]
    values = {key: value for _, counts in results for key, value in counts.items()}
    bad = (
        sum(values[key] for key in values if key.startswith(("faults, ", "cuts, ", "files, ")))
        + values["flips, silent"]
        + values["flips, unnamed"]
    )
    report = StudyReport(
        title="What is lost when a process is killed, a disk is full, power is cut, a bit flips or a file means harm?",
        lead=[
            f"**{'Nothing' if not bad else f'{bad} cases fail'}.** Every command was run again after each fault, and "
            "its result compared with that of an undisturbed one: weights, metrics but for clocks, samples, verdicts."
        ],
        findings=Findings(values={key: exact(value) for key, value in values.items()}, tables=tables),
        rows=[],
        provenance=provenance("python benchmarks/soundness.py", [], choose_machine("cpu", "float32"), 1),
    )
    pages = RESULTS.parent.parent / "docs/results"
    publish(report, pages / "soundness.md", pages / "soundness.json")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Whatever call is the last one of a process, or fails since the disk is full, wherever power is cut and whichever bit
flips: the same command again ends as it would have, or names the file. `benchmarks/soundness.py` tries all of them."""

import gc
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import faults
from isoform.commands import about, studies, training  # noqa: F401 - before the forks
from isoform.machine import choose_machine, measured_peaks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and /proc")
KILLS = {"train": 66, "convert": 18, "cache": 10, "study": 6, "scale": 5}
CUTS = {"train": 30, "convert": 20, "cache": 20, "study": 3, "scale": 3}
FLIPS = 40


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory) -> Iterator[dict[str, faults.Scenario]]:
    """The commands, each of which ran once in this process, so that forks begin warm; `source` is a finished run."""
    measured_peaks(choose_machine("cpu", "float32"))
    here, root = Path.cwd(), tmp_path_factory.mktemp("warm")
    train, study = faults.train_scenario(), faults.study_scenario(faults.Inline)
    for scenario in (train, study):
        os.chdir(scenario.start(root / scenario.name))
        assert scenario.command(root / scenario.name) == 0
    made = faults.all_but_one(faults.scale_scenario(launch=faults.Inline), root / "made")
    os.chdir(here)
    gc.collect()
    gc.freeze()
    others = faults.convert_scenario(root / "train/run"), faults.cache_scenario()
    yield {each.name: each for each in (train, *others, faults.study_scenario(), faults.scale_scenario(made))}


def in_one_process(scenario: faults.Scenario) -> faults.Scenario:
    """The same, with the runs of a study in the process of the study."""
    inline = faults.study_scenario(faults.Inline), faults.scale_scenario(scenario.made, faults.Inline)
    return {each.name: each for each in inline}.get(scenario.name, scenario)


@pytest.fixture(scope="module")
def finished(scenarios, tmp_path_factory) -> dict[str, tuple[int, object]]:
    """The number of calls of each command, and what it makes."""
    root = tmp_path_factory.mktemp("counted")
    calls = {name: faults.count_calls(scenario, root / name) for name, scenario in scenarios.items()}
    return {name: (calls[name], scenario.result(root / name)) for name, scenario in scenarios.items()}


@pytest.mark.parametrize("name", KILLS)
def test_any_call_may_be_the_last_or_find_the_disk_full(scenarios, finished, tmp_path, name):
    generator, (calls, expected) = random.Random(name), finished[name]
    assert calls > 15
    for _ in range(KILLS[name]):
        call, kind = generator.randint(1, calls), generator.choice([*faults.FAULTS])
        outcome = faults.try_fault(scenarios[name], tmp_path / "try", call, faults.FAULTS[kind], expected)
        assert outcome.is_sound, (call, kind, outcome)
        assert outcome.code in ((-9, 0) if "killed" in kind else (74, 0)), (call, kind, outcome)


@pytest.mark.parametrize("name", CUTS)
def test_the_power_may_be_cut_at_any_time(scenarios, finished, tmp_path, capfd, name):
    scenario, (_, expected) = scenarios[name], finished[name]
    operations = faults.trace(in_one_process(scenario), tmp_path / "trace")
    for seed in range(CUTS[name]):
        outcome = faults.try_power_cut(scenario, tmp_path / "try", operations, seed, expected)
        assert outcome.is_sound, (seed, outcome)


def test_a_flipped_bit_is_named_or_harmless(scenarios, finished, tmp_path):
    train, (calls, expected) = scenarios["train"], finished["train"]
    for base in ("whole", "part"):
        at = calls * 3 // 4 if base == "part" else -1
        train.run(train.start(tmp_path / base), faults.injected(faults.Counter(), at, faults.FAULTS["killed after"]))
    counts: dict[str, int] = {}
    for seed in range(FLIPS):
        base = tmp_path / ("whole", "part")[seed % 2]
        kind, where = faults.try_flip(train, base, tmp_path / "try", seed, expected)
        assert kind in ("found", "harmless"), where
        counts[kind] = counts.get(kind, 0) + 1
    assert counts["found"] > FLIPS / 2


WRITES = os.O_WRONLY | os.O_RDWR
OBSERVED: list[tuple[str, str]] = []


def watch() -> None:
    """Note all files that this process opens to write; a hook can't be removed, so it is for forks."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & WRITES:
            flags = arguments[2]
            how = "new" if flags & os.O_EXCL else "appended" if flags & os.O_APPEND else "in place"
            OBSERVED.append((str(Path(os.fsdecode(arguments[0])).absolute()), how))
        elif event in ("os.truncate", "os.link", "os.symlink"):
            OBSERVED.append((str(Path(os.fsdecode(arguments[0])).absolute()), event))

    sys.addaudithook(hook)


@pytest.mark.parametrize("name", KILLS)
def test_nothing_is_written_in_place(scenarios, tmp_path, name):
    scenario = in_one_process(scenarios[name])
    folder = scenario.start(tmp_path / name)

    def act() -> int:
        watch()
        os.chdir(folder)
        code = scenario.command(folder)
        (folder / "opened").write_text("\n".join("\t".join(each) for each in OBSERVED))
        return code

    assert faults.in_fork(act, folder / "output") == 0
    opened = [line.split("\t") for line in (folder / "opened").read_text().splitlines()]
    assert len(opened) > 2
    apart = (str(Path(tempfile.gettempdir()).resolve()) + "/tmp", "/dev/")
    logs = ("metrics.jsonl", "samples.txt", ".log")
    for path, how in opened:
        is_temporary = how == "new" and (path.endswith(".partial") or "/.tmp-" in path)
        is_log = how == "appended" and path.endswith(logs)
        assert is_temporary or is_log or path.startswith(apart) or path.endswith(("/.lock", "/output")), (path, how)

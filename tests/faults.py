"""Faults of processes and disks: any call that changes the disk is made the last one of a process, or fails for want of
space; traces of such calls, from which every state is built that a power cut may leave; flipped bits.

Commands run in forks of a process that has imported everything. `benchmarks/soundness.py` goes through all faults, the
tests through some.
"""

import errno
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from isoform.cli import main
from isoform.codecs.text import ByteCodec
from isoform.data.tokens import load_tokens
from isoform.files import Files
from isoform.metrics import CLOCK_FIELDS, read_metrics
from isoform.recipe import load_recipe
from isoform.run import Run, load, read_summary
from isoform.scaling import engines, ladder
from isoform.scaling.study import Study

CALLS = ("make_folder", "write", "append", "sync", "sync_folder", "rename", "remove")
"""The methods of Files."""
CPU = ("--device", "cpu", "--dtype", "float32")
STUDY = ("--pool", "pool", "--workers", "1")
LADDER = (
    *("--budget", "2e6", "--decades", "0.9", "--width_step", "2", "--heads_keep", "number"),
    *("--design.sizes", "4", "--design.tokens_per_parameter", "0.015"),
)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 12
RECIPE = """
sample_prompt = "to"
[data]
path = "text.txt"
[model]
preset = "llama2"
model_dim = 8
context_length = 16
[model.decoder]
num_layers = 1
[model.decoder.blocks.0]
mixer = {{ num_heads = 1, num_kv_heads = 1, head_dim = 8 }}
feedforward = {{ feedforward_dim = 16 }}
[training]
steps = {steps}
global_batch_tokens = 16
validate_every = 2
sample_every = 2
sample_tokens = 2
checkpoint_every = 1
keep_checkpoints = 1
log_every = 1
"""
CLAIM = """
statement = "A loss is above zero."
source = "us"
says = "Yes."
limits = "Anything else."
headline = { value = "low.loss", text = "{} nats" }
power = { noise = { loss = 0.01 } }
recipe = "recipe.toml"
rule = [{ value = "low.loss", at_least = 0.0 }]
ladder = { kind = "one_size", seeds = 2 }
statistic = { kind = "compared" }
[[arms]]
name = "low"
"""


def before(name: str, arguments: tuple, act: Callable) -> None:
    """Nothing of the call is done."""


def half(name: str, arguments: tuple, act: Callable) -> None:
    """Half of the call is done, if it can be done by halves."""
    if name == "append":
        file, data = arguments
        file.write(data[: len(data) // 2])
    elif name == "write":
        act()
        os.truncate(arguments[0], arguments[0].stat().st_size // 2)
    elif name == "remove" and arguments[0].is_dir():
        for path in sorted(arguments[0].rglob("*"))[::2]:
            if path.is_file():
                path.unlink()


def after(name: str, arguments: tuple, act: Callable) -> None:
    """All of the call is done."""
    act()


def killed(how: Callable) -> Callable:
    """The call is the last one before kill -9."""

    def fault(name: str, arguments: tuple, act: Callable) -> None:
        try:
            how(name, arguments, act)
        finally:  # also where there was nothing to remove
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def full(how: Callable) -> Callable:
    """The call fails, since the disk is full."""

    def fault(name: str, arguments: tuple, act: Callable) -> None:
        how(name, arguments, act)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fault


FAULTS = {
    "killed before": killed(before),
    "killed half-way": killed(half),
    "killed after": killed(after),
    "full before": full(before),
    "full half-way": full(half),
}


class Counter:
    """A number that forked processes share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return struct.unpack("q", self.memory[:8])[0]

    def next(self) -> int:
        """The next number, from 1 on."""
        self.memory[:8] = struct.pack("q", self.value + 1)
        return self.value


@contextmanager
def observed(around: Callable) -> Iterator[None]:
    """Every call that changes the disk goes through around(name, arguments, act)."""
    originals = {name: getattr(Files, name) for name in CALLS}

    def wrap(name: str, original: Callable) -> Callable:
        return lambda self, *arguments: around(name, arguments, lambda: original(self, *arguments))

    for name, original in originals.items():
        setattr(Files, name, wrap(name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Files, name, original)


def injected(counter: Counter, at: int, fault: Callable):
    """The fault at one call, of whichever process."""
    return observed(lambda name, arguments, act: (fault if counter.next() == at else as_it_is)(name, arguments, act))


def as_it_is(name: str, arguments: tuple, act: Callable) -> object:
    """The call itself; but the disk isn't waited for, since no power is cut."""
    return None if name == "sync" else act()


def write_to(path: str | Path) -> None:
    """Append this process's output to a file."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = sys.stderr = os.fdopen(handle, "a", buffering=1)


def in_fork(act: Callable[[], int], output: Path) -> int:
    """Run a function in a forked process whose output goes to a file; its code, or minus the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks beside threads, and starts none
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            write_to(output)
            warnings.simplefilter("default")
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Worker:
    """`python -m isoform.cli` in a fork, with the interface of subprocess.Popen that engines use."""

    def __init__(self, words: list[str], environment: dict[str, str], log: str, folder: str) -> None:
        arguments, self.code = words[words.index("isoform.cli") + 1 :], None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                write_to(log)
                code = main(arguments)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


class Inline:
    """`python -m isoform.cli` in this process, so that what it writes is traced, too."""

    def __init__(self, words: list[str], environment: dict[str, str], log: str, folder: str) -> None:
        self.code = main(words[words.index("isoform.cli") + 1 :])

    def poll(self) -> int:
        return self.code


@dataclass(frozen=True)
class Scenario:
    """A command in a folder, and what it makes there."""

    name: str
    command: Callable[[Path], int]
    result: Callable[[Path], object]
    """Values to compare: all that must not depend on where the command was cut. Raises for what can't be read."""
    files: dict[str, str] = field(default_factory=dict)
    made: Path | None = None
    """A folder with what an earlier command has made."""

    def start(self, folder: Path) -> Path:
        """A new folder with what the command reads."""
        shutil.copytree(self.made, folder) if self.made else folder.mkdir(parents=True)
        for name, text in self.files.items():
            (folder / name).write_text(text)
        return folder

    def run(self, folder: Path, inside=None) -> int:
        """The exit code of the command, in a fork, inside a context manager."""

        def act() -> int:
            os.chdir(folder)
            if inside is None:
                return self.command(folder)
            with inside:
                return self.command(folder)

        return in_fork(act, folder / "output")


def run_result(run: Run) -> object:
    """What a finished run computed; its files are read as anyone reads them."""
    trained = load(run.folder)
    lines = [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in read_metrics(run.metrics)]
    weights = {name: tensor.numpy().tobytes() for name, tensor in trained.model.state_dict().items()}
    return trained.step, weights, lines, run.samples.read_text(), read_summary(run)["validation_loss"]


def leftovers(folder: Path) -> list[Path]:
    """What a process leaves behind that is killed while it writes."""
    names = (".partial", ".tmp-", ".trash-", ".earlier-")
    return [path for path in folder.rglob(".*") if any(name in path.name for name in names)]


def train_scenario(steps: int = 3) -> Scenario:
    """A run with checkpoints, validations and samples."""
    return Scenario(
        "train",
        lambda folder: main(["train", "recipe.toml", "--out", "run", *CPU, "--no_report"]),
        lambda folder: (run_result(Run(folder / "run")), leftovers(folder)),
        {"text.txt": TEXT, "recipe.toml": RECIPE.format(steps=steps)},
    )


def convert_scenario(source: Path) -> Scenario:
    """A run, exported for transformers."""

    def result(folder: Path) -> object:
        assert not leftovers(folder), leftovers(folder)
        return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}

    return Scenario("convert", lambda folder: main(["convert", str(source), "out"]), result)


def cache_scenario() -> Scenario:
    """Tokens, stored in the cache folder."""

    def tokens(folder: Path):
        os.environ["ISOFORM_CACHE"] = str(folder / "cache")
        return load_tokens([{"text": TEXT}, {"text": TEXT[:100]}], ByteCodec(), cache=True)

    def command(folder: Path) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a cache that can't be written only costs time
            tokens(folder)
        return 0

    def result(folder: Path) -> object:
        assert not leftovers(folder), leftovers(folder)
        before = os.environ.get("ISOFORM_CACHE")
        stored = tokens(folder)
        os.environ.pop("ISOFORM_CACHE") if before is None else os.environ.update(ISOFORM_CACHE=before)
        files = {path.name: path.read_bytes() for path in (folder / "cache/tokens").iterdir()}
        return np.asarray(stored.ids).tobytes(), np.asarray(stored.lengths).tobytes(), files

    return Scenario("cache", command, result)


def study_scenario(launch: Any = Worker) -> Scenario:
    """A claim with two runs, its page and JSON."""

    def command(folder: Path) -> int:
        with started_by(launch):
            return main(["reproduce", "claim.toml", *STUDY, "--out", "results", *CPU])

    def result(folder: Path) -> object:
        values = json.loads((folder / "results/claim.json").read_text())
        rows = [[row[key] for key in ("id", "arm", "loss", "reason", "measures")] for row in values["rows"]]
        assert not leftovers(folder), leftovers(folder)
        return values["verdict"], values["values"], rows, sorted(path.name for path in (folder / "results").iterdir())

    files = {"text.txt": TEXT, "recipe.toml": RECIPE.format(steps=1), "claim.toml": CLAIM}
    return Scenario("study", command, result, files)


def scale_scenario(made: Path | None = None, launch: Any = Worker) -> Scenario:
    """A ladder of runs of one to three steps, its report and JSON; made: a folder in which some of them are made."""

    def command(folder: Path) -> int:
        with started_by(launch), patch.object(ladder, "LEAST_STEPS", 1):
            return main(["scale", "recipe.toml", *LADDER, *STUDY, "--out", "results", *CPU])

    def result(folder: Path) -> object:
        values = json.loads((folder / "results/study.json").read_text())
        rows = [[row[key] for key in ("id", "width", "tokens", "loss", "reason")] for row in values["rows"]]
        assert not leftovers(folder), leftovers(folder)
        return values["values"], rows, sorted(path.name for path in (folder / "results").iterdir())

    return Scenario("scale", command, result, {"text.txt": TEXT, "recipe.toml": RECIPE.format(steps=1)}, made)


def all_but_one(scenario: Scenario, folder: Path) -> Path:
    """A folder in which all runs of a ladder are made but that of the smallest model, and nothing else."""
    os.chdir(scenario.start(folder))
    assert scenario.command(folder) == 0
    shutil.rmtree(folder / "results")
    by_width = {load_recipe(str(path)).model.model_dim: path.stem for path in (folder / "pool").glob("*.toml")}
    smallest = folder / "pool" / by_width[min(by_width)]
    for path in [*(folder / "pool").glob(f"{smallest.name}.*"), smallest]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@contextmanager
def started_by(launch: Any) -> Iterator[None]:
    """The commands of studies are started by a function, and looked at often."""
    with patch.object(engines, "launch", launch), patch.dict(Study.run.__kwdefaults__, poll=0.02):
        yield


def count_calls(scenario: Scenario, folder: Path) -> int:
    """How often the undisturbed command changes the disk."""
    counter = Counter()
    assert scenario.run(scenario.start(folder), injected(counter, -1, before)) == 0, (folder / "output").read_text()
    return counter.value


@dataclass(frozen=True)
class Outcome:
    """What became of a command with a fault: its code, that of the same command again, and whether all is as without
    the fault."""

    code: int
    again: int
    is_same: bool
    words: str

    @property
    def is_sound(self) -> bool:
        """Whether all is as without the fault; a conversion that was complete is then refused, since its folder isn't
        empty."""
        return self.is_same and (self.again == 0 or "is not empty" in self.words)


def try_fault(scenario: Scenario, folder: Path, at: int, fault: Callable, expected: object) -> Outcome:
    """Make one call of a command fail, then run the command again."""
    scenario.start(folder)
    code = scenario.run(folder, injected(Counter(), at, fault))
    return _again(scenario, folder, expected, code)


def _again(scenario: Scenario, folder: Path, expected: object, code: int, *, is_right: bool = True) -> Outcome:
    """Run a command again, and remove its folder."""
    again = scenario.run(folder, observed(as_it_is))
    try:
        is_same, words = is_right and scenario.result(folder) == expected, ""
    except (ValueError, OSError, AssertionError) as error:
        is_same, words = False, repr(error)
    words += (folder / "output").read_text()[-2000:]
    shutil.rmtree(folder)
    return Outcome(code, again, is_same, words)


@dataclass(frozen=True)
class Operation:
    """A call that changed the disk; paths are relative to the folder that is watched."""

    name: str
    path: Path
    target: Path | None = None
    data: bytes = b""


def trace(scenario: Scenario, folder: Path) -> list[Operation]:
    """The calls of a command, in this process, with what they wrote."""
    operations: list[Operation] = []
    scenario.start(folder)

    def relative(path: object) -> Path:
        return Path(os.path.relpath(folder / str(path), folder))

    def note(name: str, arguments: tuple, act: Callable) -> object:
        if name == "make_folder":
            missing = [p for p in (*reversed(arguments[0].parents), arguments[0]) if not p.is_dir()]
            operations.extend(Operation(name, relative(path)) for path in missing)
            return act()
        if name == "sync":
            operations.append(Operation(name, relative(Path(f"/proc/self/fd/{arguments[0]}").readlink())))
            return act()
        if name == "sync_folder":
            return act()  # its sync is noted
        if name == "write":
            index = len(operations)
            operations.append(Operation("write", relative(arguments[0])))
            result = act()
            operations[index] = Operation("write", relative(arguments[0]), None, arguments[0].read_bytes())
            return result
        if name == "append":
            operations.append(Operation(name, relative(arguments[0].name), None, bytes(arguments[1])))
            return act()
        target = relative(arguments[1]) if name == "rename" else None
        operations.append(Operation(name, relative(arguments[0]), target))
        return act()

    here = Path.cwd()
    os.chdir(folder)
    try:
        with observed(note):
            assert scenario.command(folder) == 0
    finally:
        os.chdir(here)
    return operations


def after_power_cut(operations: list[Operation], seed: int) -> tuple[list[Operation], dict[int, float]]:
    """A legal state: what was done up to a random instant, less any of the names whose folder wasn't synced since, and
    with any share of the contents that weren't synced since. Returns what reached the disk, and the shares."""
    generator = random.Random(seed)
    done = operations[: generator.randrange(len(operations) + 1)]
    lost, shares = set[int](), dict[int, float]()
    how_much = generator.choice([0.0, 0.3, 1.0])
    for index, operation in enumerate(done):
        synced = {later.path for later in done[index:] if later.name == "sync"}
        folders = {operation.path.parent, *([operation.target.parent] if operation.target else [])}
        if operation.name in ("write", "append") and operation.path not in synced:
            shares[index] = generator.choice([0.0, 0.5, 1.0])
        names = operation.name in ("make_folder", "write", "rename", "remove")
        if names and not folders <= synced and generator.random() < how_much:
            lost.add(index)
    return [op for index, op in enumerate(done) if index not in lost], {
        new: shares[old] for new, old in enumerate(i for i in range(len(done)) if i not in lost) if old in shares
    }


def replay(operations: list[Operation], shares: dict[int, float], folder: Path) -> None:
    """Do again in another folder what reached the disk; what isn't possible, since something is lost, isn't done."""
    for index, operation in enumerate(operations):
        path, data = folder / operation.path, operation.data
        data = data[: int(len(data) * shares.get(index, 1.0))]
        with suppress(FileNotFoundError, NotADirectoryError):
            if operation.name == "make_folder":
                path.mkdir(exist_ok=True)
            elif operation.name == "write":
                path.write_bytes(data)
            elif operation.name == "append":
                with path.open("ab") as file:
                    file.write(data)
            elif operation.name == "rename":
                assert operation.target is not None
                target = folder / operation.target
                if target.is_dir() and not path.is_dir():
                    continue
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
            elif operation.name == "remove":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def try_power_cut(
    scenario: Scenario, folder: Path, operations: list[Operation], seed: int, expected: object
) -> Outcome:
    """Build a state that a power cut may leave, read it, and run the command again."""
    scenario.start(folder)
    replay(*after_power_cut(operations, seed), folder)
    run, is_right = Run(folder / "run"), True
    if run.exists and run.is_finished:
        is_right = (run_result(run), []) == expected
    return _again(scenario, folder, expected, 0, is_right=is_right)


def try_flip(scenario: Scenario, base: Path, folder: Path, seed: int, expected: object) -> tuple[str, str]:
    """Flip a bit of a file of a run, and continue it: `found` if that names the file, `harmless` if all is as without
    it, `unnamed`, or `silent`; and what was flipped."""
    generator = random.Random(seed)
    shutil.copytree(base, folder)
    path = generator.choice(sorted(p for p in (folder / "run").rglob("*") if p.is_file() and p.stat().st_size))
    where = f"{path.relative_to(folder)} bit {flip(path, generator)}"
    (folder / "output").write_text("")
    code, words = scenario.run(folder, observed(as_it_is)), ""
    try:
        is_same = code == 0 and scenario.result(folder) == expected
    except (ValueError, OSError) as error:
        is_same, words = False, str(error)
    words += (folder / "output").read_text()
    shutil.rmtree(folder)
    is_named = path.name in words or (path.parent.parent.name == "checkpoints" and path.parent.name in words)
    kind = "harmless" if is_same and not is_named else "found" if is_named else "silent" if code == 0 else "unnamed"
    return kind, f"{where}: {words[-500:]}"


def flip(path: Path, generator: random.Random) -> int:
    """Flip one bit of a file; returns which."""
    data = bytearray(path.read_bytes())
    bit = generator.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return bit

"""Wherever a command runs, it is started, ends and is asked to end in the same way."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from isoform.scaling import engines
from isoform.scaling.engines import Command, Engine, Local, RayEngine, SlurmEngine

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals"),
]


def needs(name: str) -> None:
    """Skip where a package of the extra is absent; CI has it, or fails."""
    if find_spec(name) is None and not os.environ.get("CI"):
        pytest.skip(f"needs the package {name}")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """A Ray cluster of two nodes with one CPU each, both on this machine, and in its environment where it is."""
    needs("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 10**8}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(num_gpus=1, **node)
        cluster.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
        cluster.shutdown()


@pytest.fixture(params=["local", "ray", "slurm"], scope="module")
def engine(request, tmp_path_factory) -> Iterator[Engine]:
    match request.param:
        case "local":
            made = Local(workers=2, threads=1)
        case "ray":
            request.getfixturevalue("two_nodes")
            made = RayEngine(workers=2, threads=1)
        case _:
            needs("submitit")
            made = SlurmEngine(workers=2, threads=1, folder=tmp_path_factory.mktemp("jobs"), cluster="local")
    yield made
    made.close()


def python(folder: Path, code: str, name: str = "log", **environment: str) -> Command:
    return Command((sys.executable, "-c", code), tuple(environment.items()), folder / "logs" / name)


def ended(engine: Engine, *tickets) -> list[int]:
    until = time.monotonic() + 30
    while None in (codes := [engine.code(ticket) for ticket in tickets]):
        assert time.monotonic() < until, codes
        time.sleep(0.05)
    return [code for code in codes if code is not None]


def said(command: Command, word: str) -> str:
    """The log, once the word is in it."""
    until = time.monotonic() + 30
    while not command.log.exists() or word not in command.log.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    return command.log.read_text()


def test_codes_come_through_and_output_lands_in_the_log(engine, tmp_path):
    script = "import os, sys; print(sys.argv[1:]); sys.stderr.write(os.environ['WORD']); sys.exit(int({}))"
    commands = [python(tmp_path, script.format(code), f"{code}", WORD="Wörter") for code in (0, 3, 65)]
    assert ended(engine, *engine.start_all(commands)) == [0, 3, 65]
    assert all("[]" in c.log.read_text() and "Wörter" in c.log.read_text() for c in commands)


def test_a_command_knows_its_threads_and_its_folder(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = "import os; print(os.environ['OMP_NUM_THREADS'], os.getcwd(), flush=True)"
    plain, other = python(Path(), script), python(Path(), script, "other", OMP_NUM_THREADS="7")
    assert ended(engine, engine.start(plain), engine.start(other)) == [0, 0]
    assert plain.log.read_text().split() == ["1", str(tmp_path)]
    assert other.log.read_text().split() == ["7", str(tmp_path)]


SAVES = """
import signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(0))
print("ready", flush=True)
until = time.monotonic() + 60
while not received and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(1.5)
sys.exit(75 if len(received) == 1 else 1)
"""


def test_a_command_that_is_stopped_twice_is_asked_once_and_ends_in_its_own_way(engine, tmp_path):
    command = python(tmp_path, SAVES)
    ticket = engine.start(command)
    said(command, "ready")
    assert engine.code(ticket) is None
    engine.stop(ticket)
    engine.stop(ticket)
    assert ended(engine, ticket) == [75]
    engine.stop(ticket)


def test_a_command_that_is_stopped_as_it_starts_ends_too(engine, tmp_path):
    commands = [python(tmp_path, "import time; time.sleep(60)", f"{i}") for i in range(4)]
    tickets = engine.start_all(commands)
    for ticket in tickets:
        engine.stop(ticket)
    assert ended(engine, *tickets) == [-signal.SIGTERM] * 4


def test_a_command_that_is_killed_did_not_end_well(engine, tmp_path):
    command = python(tmp_path, "import os, time; print('me', os.getpid(), flush=True); time.sleep(60)")
    ticket = engine.start(command)
    os.kill(int(said(command, "\n").split()[1]), signal.SIGKILL)
    assert ended(engine, ticket) == [-signal.SIGKILL]


def test_a_command_whose_watcher_is_killed_did_not_end_well(engine, tmp_path):
    if isinstance(engine, Local):
        pytest.skip("a process of this machine has no watcher but us")
    script = "import os, time; print('parent', os.getppid(), flush=True); time.sleep(3)"
    command = python(tmp_path, script)
    ticket = engine.start(command)
    os.kill(int(said(command, "\n").split()[1]), signal.SIGKILL)
    assert ended(engine, ticket) == [-signal.SIGKILL]


def test_what_cannot_be_started_says_so_in_its_log(engine, tmp_path):
    command = Command(("/no/such/program",), (), tmp_path / "log")
    assert ended(engine, engine.start(command)) == [engines.CANNOT_START]
    assert "/no/such/program can't be started" in command.log.read_text()


def test_slots(engine):
    assert engine.slots == (1000 if isinstance(engine, SlurmEngine) else 2)
    assert engine.start_all([]) == []


def test_both_nodes_of_a_cluster_work_and_more_commands_wait(two_nodes, tmp_path):
    engine = RayEngine(workers=2, threads=1)
    script = "import os, time; print(os.environ['RAY_RAYLET_PID']); time.sleep(0.5)"
    commands = [python(tmp_path, script, f"{i}") for i in range(5)]
    assert ended(engine, *engine.start_all(commands)) == [0] * 5
    assert len({command.log.read_text() for command in commands}) == 2
    engine.close()

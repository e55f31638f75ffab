"""Commands start, end and stop in the same way on every engine."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from isoform.scaling import engines
from isoform.scaling.engines import Command, Engine, LocalEngine, RayEngine, SlurmEngine, build_engine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def needs(name: str) -> None:
    """Skip where a package of the extra is absent; CI has it, or fails."""
    if find_spec(name) is None and not os.environ.get("CI"):
        pytest.skip(f"needs the package {name}")


@pytest.fixture(scope="module")
def own_ray() -> Iterator[pytest.MonkeyPatch]:
    """Ray without telemetry, and with a secret of its own, which it reads once per process."""
    needs("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield patch


@pytest.fixture(scope="module")
def two_nodes(own_ray) -> Iterator[None]:
    """A Ray cluster of two nodes with one CPU each, both on this machine, and in its environment where it is."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(num_gpus=1, **node)
    cluster.wait_for_nodes()
    own_ray.setenv("RAY_ADDRESS", cluster.address)
    yield
    ray.shutdown()
    cluster.shutdown()


SLURM = """#!{python}
import os, re, signal, subprocess, sys
from pathlib import Path

jobs = Path(__file__).parent / "jobs"
jobs.mkdir(exist_ok=True)
match Path(__file__).name:
    case "sbatch":
        main = 1 + len(list(jobs.iterdir()))
        array = re.search("--array=0-([0-9]+)", Path(sys.argv[1]).read_text())
        for task in range(1 + int(array[1])) if array else [None]:
            names = {{"SLURM_JOB_ID": f"{{main}}"}}
            if array:
                names |= {{"SLURM_ARRAY_JOB_ID": f"{{main}}", "SLURM_ARRAY_TASK_ID": f"{{task}}"}}
            words, null = ["bash", sys.argv[1]], subprocess.DEVNULL
            process = subprocess.Popen(
                words, env=os.environ | names, stdin=null, stdout=null, stderr=null, start_new_session=True
            )
            (jobs / (f"{{main}}_{{task}}" if array else f"{{main}}")).write_text(f"{{process.pid}}")
        print("Submitted batch job", main)
    case "srun":  # --unbuffered --output FILE --error FILE, and words
        os.execv(sys.argv[6], sys.argv[6:])
    case "squeue":
        for job in jobs.iterdir():
            try:
                os.killpg(int(job.read_text()), 0)
                print(job.name)
            except ProcessLookupError:
                pass
    case "scancel":
        os.killpg(int((jobs / sys.argv[1]).read_text()), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    """The four programs of Slurm that are used: no queue, but arrays, and signals to every process of a job."""
    needs("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (folder / name).write_text(SLURM.format(python=sys.executable))
        (folder / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(params=["local", "ray", "submitit", "slurm"], scope="module")
def engine(request, tmp_path_factory) -> Iterator[Engine]:
    match request.param:
        case "local":
            built = LocalEngine(workers=2, threads=1)
        case "ray":
            request.getfixturevalue("two_nodes")
            built = RayEngine(workers=2, threads=1)
        case "submitit":
            needs("submitit")
            built = SlurmEngine(workers=2, threads=1, folder=tmp_path_factory.mktemp("jobs"), cluster="local")
        case _:
            request.getfixturevalue("slurm")
            built = SlurmEngine(workers=2, threads=1, folder=tmp_path_factory.mktemp("jobs"))
            built.patience = 0.5
    yield built
    built.close()


def python(folder: Path, code: str, name: str = "log", **environment: str) -> Command:
    return Command((sys.executable, "-c", code), tuple(environment.items()), folder / "logs" / name)


def exit_codes(engine: Engine, *tickets) -> list[int]:
    until = time.monotonic() + 120
    while None in (codes := [engine.code(ticket) for ticket in tickets]):
        assert time.monotonic() < until, codes
        time.sleep(0.05)
    return [code for code in codes if code is not None]


def wait_for_log(command: Command, word: str) -> str:
    """The log, once the word is in it."""
    until = time.monotonic() + 120
    while not command.log.exists() or word not in command.log.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    return command.log.read_text()


def test_ray_starts_a_cluster_without_an_address(own_ray, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with closing(build_engine("ray", 2, 3, tmp_path)) as engine:
        assert engine.slots == 2
        assert exit_codes(engine, engine.start(python(tmp_path, "raise SystemExit(3)"))) == [3]
    assert signal.getsignal(signal.SIGTERM) is before


def test_exit_codes_are_returned_and_output_is_logged(engine, tmp_path):
    script = "import os, sys; print(sys.argv[1:]); sys.stderr.write(os.environ['WORD']); sys.exit(int({}))"
    commands = [python(tmp_path, script.format(code), f"{code}", WORD="Wörter") for code in (0, 3, 65)]
    assert exit_codes(engine, *engine.start_all(commands)) == [0, 3, 65]
    assert all("[]" in c.log.read_text() and "Wörter" in c.log.read_text() for c in commands)


def test_a_command_has_its_threads_and_its_folder(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = "import os; print(os.environ['OMP_NUM_THREADS'], os.getcwd(), flush=True)"
    plain, changed = python(Path(), script), python(Path(), script, "other", OMP_NUM_THREADS="7")
    assert exit_codes(engine, engine.start(plain), engine.start(changed)) == [0, 0]
    assert plain.log.read_text().split() == ["1", str(tmp_path)]
    assert changed.log.read_text().split() == ["7", str(tmp_path)]


SAVES = """
import signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(0))
print("ready", flush=True)
until = time.monotonic() + 60
while not received and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.5)
sys.exit(75 if len(received) == 1 else 1)
"""


def test_a_command_that_is_stopped_twice_gets_one_signal_and_exits_by_itself(engine, tmp_path):
    command = python(tmp_path, SAVES)
    ticket = engine.start(command)
    wait_for_log(command, "ready")
    assert engine.code(ticket) is None
    engine.stop(ticket)
    engine.stop(ticket)
    assert exit_codes(engine, ticket) == [75]
    engine.stop(ticket)


def test_a_command_that_is_stopped_as_it_starts_ends_too(engine, tmp_path):
    commands = [python(tmp_path, "import time; time.sleep(60)", f"{i}") for i in range(4)]
    tickets = engine.start_all(commands)
    for ticket in tickets:
        engine.stop(ticket)
    assert exit_codes(engine, *tickets) == [-signal.SIGTERM] * 4


def test_a_killed_command_has_the_code_of_its_signal(engine, tmp_path):
    command = python(tmp_path, "import os, time; print('me', os.getpid(), flush=True); time.sleep(60)")
    ticket = engine.start(command)
    os.kill(int(wait_for_log(command, "\n").split()[1]), signal.SIGKILL)
    assert exit_codes(engine, ticket) == [-signal.SIGKILL]


@pytest.mark.parametrize("engine", ["ray", "submitit", "slurm"], indirect=True, scope="module")  # not this test's own
def test_a_command_whose_parent_is_killed_has_the_code_of_the_signal(engine, tmp_path):
    script = "import os, time; print('parent', os.getppid(), flush=True); time.sleep(1.5)"
    command = python(tmp_path, script)
    ticket = engine.start(command)
    os.kill(int(wait_for_log(command, "\n").split()[1]), signal.SIGKILL)
    assert exit_codes(engine, ticket) == [-signal.SIGKILL]


def test_a_command_that_cannot_start_logs_the_error(engine, tmp_path):
    command = Command(("/no/such/program",), (), tmp_path / "log")
    assert exit_codes(engine, engine.start(command)) == [engines.CANNOT_START]
    assert "/no/such/program can't be started" in command.log.read_text()


def test_slots(engine):
    assert engine.slots == (1000 if isinstance(engine, SlurmEngine) else 2)
    assert engine.start_all([]) == []


def test_both_nodes_of_a_cluster_work_and_more_commands_wait(two_nodes, tmp_path):
    script = "import os, time; print(os.environ['RAY_RAYLET_PID']); time.sleep(0.5)"
    commands = [python(tmp_path, script, f"{i}") for i in range(5)]
    with closing(RayEngine(workers=2, threads=1)) as engine:
        assert exit_codes(engine, *engine.start_all(commands)) == [0] * 5
    assert len({command.log.read_text() for command in commands}) == 2


def test_commands_started_together_are_one_array_without_requeue(slurm, tmp_path):
    engine = SlurmEngine(2, 3, tmp_path / "jobs", timeout_min=90, partition="short")
    tickets = engine.start_all([python(tmp_path, "", f"{i}") for i in range(3)])
    assert exit_codes(engine, *tickets) == [0] * 3
    (script,) = (tmp_path / "jobs").glob("*_submission.sh")
    flags = {"array=0-2%2", "cpus-per-task=3", "time=90", "partition=short", "no-requeue", "signal=TERM@90"}
    assert flags <= {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines()}


def test_build_engine_names_a_missing_package(monkeypatch, tmp_path):
    assert isinstance(build_engine("local", 3, 1, tmp_path), LocalEngine)
    for name, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"'{package}' is not installed; run: pip install 'isoform\[cluster\]'"):
            build_engine(name, 1, 1, tmp_path)


def test_slurm_without_its_programs_is_refused(monkeypatch, tmp_path):
    needs("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="Slurm can't be used here"):
        build_engine("slurm", 1, 1, tmp_path)


def test_a_cluster_without_the_resources_of_a_command_is_refused(two_nodes):
    with pytest.raises(ValueError, match="no node of the Ray cluster has 2 CPU;"):
        RayEngine(workers=1, threads=2)
    with pytest.raises(ValueError, match="no node of the Ray cluster has 1 CPU and 2 GPU;"):
        RayEngine(workers=1, threads=1, gpus=2)


def test_a_command_sees_the_gpu_assigned_to_it(two_nodes, tmp_path):
    with closing(RayEngine(workers=1, threads=1, gpus=1)) as engine:
        command = python(tmp_path, "import os; print('GPU', os.environ['CUDA_VISIBLE_DEVICES'])")
        assert exit_codes(engine, engine.start(command)) == [0]
    assert command.log.read_text() == "GPU 0\n"


ORPHAN = """
import sys
from pathlib import Path
from isoform.scaling.engines import Command, LocalEngine
script = "import time; print('ready', flush=True); time.sleep(1); print('finished')"
LocalEngine(1, 1).start(Command((sys.executable, "-c", script), (), Path(sys.argv[1])))
input()
"""


def test_a_local_command_outlives_the_process_that_started_it(tmp_path):
    command = Command((), (), tmp_path / "log")
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, str(command.log)], stdin=subprocess.PIPE)
    wait_for_log(command, "ready")
    parent.kill()
    parent.communicate()
    assert "finished" in wait_for_log(command, "finished")

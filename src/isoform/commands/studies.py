"""The commands scale and reproduce."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from isoform.commands.command import Result, chosen_machine, say_next
from isoform.machine import Machine
from isoform.options import MachineOptions, ReproduceOptions, ScaleOptions, StudyOptions
from isoform.scaling.claims import builtin_claims, load_claim
from isoform.scaling.engines import build_engine
from isoform.scaling.lab import (
    Stopped,
    StudyExecutor,
    check_claim,
    comparison_recipe,
    make_plan,
    print_plan,
    run_ladder,
)
from isoform.scaling.pages import read_published
from isoform.scaling.verdicts import Published, shipped_verdicts
from isoform.signals import interruptions
from isoform.terminal import ExitCode, Terminal


def scale(options: ScaleOptions, terminal: Terminal, name: str) -> Result:
    """Plan a ladder of sizes, run it, fit its law, forecast, report."""
    machine, title = chosen_machine(options.machine), Path(name).stem
    out = Path(options.out or f"runs/scale-{title}")
    with _executor(options.study, options.machine, machine, out, terminal) as executor:
        arms = {title: options.recipe}
        if options.against:
            arm, recipe = comparison_recipe(options.recipe, options.against)
            arms[arm] = recipe
        plans, engine = {}, executor.engine
        for arm, recipe in arms.items():
            plans[arm] = make_plan(
                recipe, options.ladder, machine, terminal, workers=engine.slots, threads=engine.threads
            )
            terminal.say(arm if len(arms) > 1 else "", end="\n" if len(arms) > 1 else "")
            print_plan(plans[arm], terminal)
        if options.dry_run:
            return Result({"plans": {arm: plan.to_json() for arm, plan in plans.items()}})
        try:
            values = run_ladder(
                plans,
                executor,
                machine,
                terminal,
                out,
                forecast=options.forecast,
                verify=options.verify,
                prices=options.price,
                command=_command_line("scale"),
            )
        except Stopped:
            terminal.say("stopped after a clean save; the same command continues")
            return Result({"stopped": True}, ExitCode.TRANSIENT)
    terminal.say(f"report         {out / 'report.html'}")
    if name:
        say_next(terminal, "train", name)
    return Result({"out": str(out), **values})


def reproduce(options: ReproduceOptions, terminal: Terminal) -> Result:
    """Check a claim: make its runs, decide by its rule, write its page."""
    out = Path(options.out)
    if options.list or not options.claim:
        return _list_claims(out, terminal)
    loaded, machine = load_claim(options.claim, quick=options.quick, data=options.data), chosen_machine(options.machine)
    terminal.say(f"{loaded.claim.statement}\n")
    with _executor(options.study, options.machine, machine, out, terminal) as executor:
        try:
            values = check_claim(
                loaded, executor, machine, terminal, out, command=_command_line("reproduce"), extend=options.extend
            )
        except Stopped:
            terminal.say("stopped after a clean save; the same command continues")
            return Result({"stopped": True}, ExitCode.TRANSIENT)
    for condition in loaded.claim.rule:
        terminal.say(f"  {condition!s:<52}{_estimate(values['values'][condition.value])}")
    for warning in values["warnings"]:
        terminal.warn(warning)
    terminal.say(f"\n{loaded.id}: {values['verdict']}, {values['headline']}")
    terminal.say(f"page           {out / loaded.name}.md")
    say_next(
        terminal, "reproduce", "--list", *(() if options.out == ReproduceOptions().out else ("--out", options.out))
    )
    return Result({key: value for key, value in values.items() if key != "rows"})


@contextmanager
def _executor(
    options: StudyOptions, machine: MachineOptions, device: Machine, out: Path, terminal: Terminal
) -> Iterator[StudyExecutor]:
    """The engine of a study, closed at the end, and the flags of its runs."""
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
    engine = build_engine(options.engine, workers, machine.threads or 1, out, gpus=int(device.device.type == "cuda"))
    with interruptions(terminal) as asked:
        try:
            yield StudyExecutor(engine, tuple(flags), asked.collected, Path(options.pool))
        finally:
            engine.close()


def _estimate(ends: Sequence[float | None]) -> str:
    value, low, high = ends
    text = "–" if value is None else f"{value:.4g}"
    return text if low is None or high is None or low == high else f"{text} ({low:.4g} to {high:.4g})"


def _command_line(verb: str) -> str:
    """The command line for a page, without this machine's folders."""
    words = sys.argv[sys.argv.index(verb) + 1 :] if verb in sys.argv else []
    shown, skip_next = [], False
    for word in words:
        if skip_next or word in ("--out", "--pool", "--json", "-q", "--quiet"):
            skip_next = word in ("--out", "--pool")
            continue
        shown.append(Path(word).name if "/" in word else word)
    return " ".join(["isoform", verb, *shown])


def _list_claims(out: Path, terminal: Terminal) -> Result:
    """All claims as a table: statement, verdict and one number, from the folder or as they come with the package."""
    shipped, claims = shipped_verdicts(), {}
    lines = ["| claim | verdict | number, 90 % interval |", "|---|---|---|"]
    for name in builtin_claims():
        path = out / f"{name}.json"
        entry = Published.of(read_published(path, terminal)) if path.exists() else shipped.get(name)
        claims[name] = None if entry is None else asdict(entry)
        statement = load_claim(name).claim.statement if entry is None else entry.statement
        verdict, number = ("not run yet", "–") if entry is None else (entry.verdict, entry.headline)
        lines.append(f"| [{name}]({name}.md): {statement} | {verdict} | {number} |")
    terminal.say("\n".join(lines))
    return Result({"claims": claims})

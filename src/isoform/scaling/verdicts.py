"""What a page and the list of claims say of a verdict: sentence, deciding numbers, what was run, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoform.codecs.config import Bytes, Characters
from isoform.preparation import Prepared
from isoform.reading import read_json
from isoform.recipe import Recipe
from isoform.scaling.claims import UNTOLD, WITHDRAWN, Claim, Decision, LoadedClaim
from isoform.scaling.config import OneSize
from isoform.scaling.findings import Table
from isoform.scaling.power import CHANCE, Detectable
from isoform.scaling.study import Job, Row
from isoform.terminal import count
from isoform.training.config import Muon

COUNTED = (
    "matrix products of forward and backward passes, attention in full even where a mask leaves half of it unused; not "
    "lookups, norms and other elementwise work"
)


def headline(claim: Claim, decision: Decision) -> str:
    """The number that stands for the claim, with its interval."""
    estimate = decision.findings.values[claim.headline.value]
    return claim.headline.text.replace("{}", format(estimate, claim.headline.form).replace("%", " %"))


def sentence(claim: Claim, decision: Decision) -> str:
    """The verdict and its number, in a line."""
    return f"**{decision.verdict[0].upper()}{decision.verdict[1:]}: {headline(claim, decision)}.**"


def deciding_table(claim: Claim, decision: Decision) -> Table:
    """The numbers that decide, with their bounds and whether they are met."""
    words = {True: "met", False: "contradicted", None: "can't be told"}
    findings = decision.findings
    lines = tuple(
        (condition.value, str(findings.values[condition.value]), condition.bounds, words[outcome],
         findings.number_notes.get(condition.value, ""))
        for condition, outcome in zip(claim.rule, decision.outcomes, strict=True)
    )  # fmt: skip
    head = "number", f"value, {100 * claim.level:.0f} % interval", "rule", "outcome", "note"
    return Table("The numbers that decide", head, lines)


def facts(
    loaded: LoadedClaim, decision: Decision, scope: Mapping[str, str], power: Sequence[Detectable]
) -> dict[str, str]:
    """What a reader must know beside the verdict, by heading."""
    claim = loaded.claim
    parts = {"The source": f"{claim.says} ({claim.source})"}
    if decision.verdict == WITHDRAWN:
        parts["Why it is withdrawn"] = claim.withdrawn
    if decision.verdict in (WITHDRAWN, UNTOLD) and claim.remedy:
        parts["What would decide it"] = claim.remedy
    parts |= scope
    seeds = "a fixed number, before the runs" if not claim.sampling else claim.sampling
    if loaded.recipes:
        parts["Seeds"] = f"{claim.ladder.seeds} a run; {seeds}"
    if power:
        source, numbers = claim.power.source if claim.power else "", "; ".join(map(str, power))
        parts["Smallest differences that the design tells"] = (
            f"with a chance of {100 * CHANCE:.0f} %, simulated from known noise ({source}): {numbers}"
        )
    parts["Not to be concluded"] = claim.limits
    if claim.history:
        parts["Changed after a first result"] = " ".join(claim.history)
    return parts


def scope_of(
    loaded: LoadedClaim,
    prepared: Mapping[str, Prepared],
    jobs: Sequence[Job],
    rows: Sequence[Row],
    factors: Mapping[str, float],
) -> dict[str, str]:
    """Sizes and context, epochs, what was tuned, and what is counted."""
    if not rows:
        return {}
    claim, recipes = loaded.claim, [*loaded.recipes.values()]
    lengths = sorted({p.recipe.row_length for p in prepared.values()})
    units = " or ".join(dict.fromkeys(_unit(p.recipe) for p in prepared.values()))
    sizes = sorted(row.num_parameters for row in rows)
    parameters = count(sizes[0]) if sizes[0] == sizes[-1] else f"{count(sizes[0])} to {count(sizes[-1])}"
    context = " to ".join(f"{length}" for length in dict.fromkeys((lengths[0], lengths[-1])))
    scope = {"Scale": f"{parameters} parameters, contexts of {context} {units}"}
    scope["Epochs of the data"] = _epochs(prepared, jobs)
    scope["Tuned"] = " ".join(filter(None, (_tuned(claim, factors), _shared_settings(recipes), claim.tuned)))
    shares = [row.optimizer_compute / row.compute for row in rows if row.optimizer_compute]
    muon = (
        f"; Muon's Newton–Schulz iterations add {100 * min(shares):.0f} to {100 * max(shares):.0f} %" if shares else ""
    )
    used = ", and are counted in multipliers" if shares and not isinstance(claim.ladder, OneSize) else ""
    scope["Counted as FLOPs"] = f"{COUNTED}{muon}{used}"
    return scope


def _unit(recipe: Recipe) -> str:
    kinds = ((Characters, "characters"), (Bytes, "bytes"))
    return next((unit for kind, unit in kinds if isinstance(recipe.codec, kind)), "tokens")


def _epochs(prepared: Mapping[str, Prepared], jobs: Sequence[Job]) -> str:
    """How often each arm's longest run saw its data."""
    epochs: dict[str, float] = {}
    for job in jobs:
        recipe = job.rung.recipe
        seen = recipe.training.steps * recipe.rows_per_step / prepared[job.arm].loader.rows_per_epoch
        epochs[job.arm] = max(epochs.get(job.arm, 0.0), seen)
    texts = {arm: f"{number:.2g}" for arm, number in epochs.items()}
    if len(set(texts.values())) == 1:
        return f"{next(iter(texts.values()))} in the longest run of each arm"
    if len(texts) <= 4:
        return ", ".join(f"{arm} {text}" for arm, text in texts.items()) + " in the longest run"
    return f"{min(epochs.values()):.2g} to {max(epochs.values()):.2g} in the longest run of an arm"


def _tuned(claim: Claim, factors: Mapping[str, float]) -> str:
    """What the sweep tried, and found."""
    if not claim.sweep:
        return "No learning rate was swept."
    tried = ", ".join(f"{factor:g}" for factor in claim.sweep)
    best = ", ".join(f"{arm} × {factor:g}" for arm, factor in factors.items())
    return (
        f"The learning rate of each arm: its own times {tried}, further where the best lay at an end, one seed at the "
        f"second size, carried on by a power of compute (best: {best})."
    )


def _shared_settings(recipes: Sequence[Recipe]) -> str:
    warmups = sorted({recipe.training.schedule.warmup_steps for recipe in recipes})
    clips = {recipe.training.clip_norm for recipe in recipes}
    warmup = " to ".join(f"{steps}" for steps in dict.fromkeys((warmups[0], warmups[-1])))
    clipping = "none" if clips == {None} else ", ".join(sorted(f"{clip:g}" for clip in clips if clip is not None))
    optimizers = {"Muon" if isinstance(r.training.optimizer, Muon) else "AdamW" for r in recipes}
    return f"Warm-up of {warmup} steps, gradients clipped at {clipping}, {' and '.join(sorted(optimizers))}, not tuned."


@dataclass(frozen=True)
class Published:
    """A claim's entry in a list of verdicts."""

    statement: str
    verdict: str
    headline: str
    commit: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Published:
        """From the JSON of a claim."""
        return cls(values["statement"], values["verdict"], values["headline"], values["commit"])


def shipped_verdicts() -> dict[str, Published]:
    """The verdicts that come with the package, by claim."""
    path = Path(__file__).parent.parent / "claims" / "verdicts.json"
    return {name: Published(**entry) for name, entry in read_json(path).items()}

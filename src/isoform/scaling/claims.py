"""A claim is a file: question, source, runs, statistic, and the rule that decides, written before the runs.

A statistic turns the runs into `Findings`: numbers with intervals, tables and figures. The rule compares the numbers
with bounds: if all intervals lie inside, the claim holds; if one lies outside, it doesn't; otherwise it is undecided.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoform.config import ConfigError, from_dict, load_toml, unknown_name
from isoform.data.config import resolve_path
from isoform.ranges import Number, Positive, PositiveShare, config
from isoform.recipe import Recipe, builtin_recipes, load_recipe, with_changes
from isoform.scaling.config import Ladder, OneSize
from isoform.scaling.curves import Estimate
from isoform.scaling.findings import Findings
from isoform.scaling.measures import Answers, Loss, Measure, Translation
from isoform.scaling.statistics import AnyStatistic, Arms
from isoform.scaling.study import Row


@config
class Condition:
    """Bounds on one of the statistic's numbers."""

    value: str
    at_least: Number | None = None
    at_most: Number | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the bound on {self.value!r} needs at_least, at_most or both")

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} ≤ {self.value} ≤ {self.at_most:g}"
        return f"{self.value} ≤ {self.at_most:g}" if self.at_least is None else f"{self.value} ≥ {self.at_least:g}"

    def verdict(self, estimate: Estimate) -> bool | None:
        """Whether the whole interval is inside (True) or outside (False); None if it is undecided."""
        low, high = estimate.low, estimate.high
        if low is None or high is None or math.isnan(estimate.value):
            return None
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        return True if least <= low and high <= most else False if high < least or low > most else None


@config
class Arm:
    """One variant: the claim's recipe with these changes.

    In a file, an arm with `for_each`, a list of earlier arms, is copied for each of them. A copy is called "EARLIER,
    NAME", changes and starts from that earlier arm, and is compared with the copy for the arm that `against` names.
    """

    name: str
    after: str = ""
    """The earlier arm whose recipe it changes; empty: the claim's recipe."""
    against: str = ""
    """The arm it is compared with; empty: the one named by `after`, or else the first."""
    starts: str = ""
    """An earlier arm: each run continues from a run of that arm with `share` of its compute; at one size, from the
    complete run with the same seed."""
    share: PositiveShare = 0.5
    compute: Positive | None = None
    """Training FLOPs instead of the claim's, at one size."""


@config
class Claim:
    """A question, and how it is decided."""

    question: str
    source: str
    says: str
    """What the source claims."""
    statistic: AnyStatistic
    rule: tuple[Condition, ...]
    reads: str = ""
    """How to read the numbers, for the page."""
    budget: str = ""
    """Roughly how long it takes, and on what."""
    recipe: str = ""
    ladder: Ladder | OneSize = Ladder()
    """Several sizes of one recipe, or each arm as written."""
    sweep: tuple[Positive, ...] = ()
    """Factors of the learning rate that each arm tries at the ladder's second compute, with one seed; the best is used
    for all its runs."""
    arms: tuple[Arm, ...] = ()
    measures: tuple[Measure, ...] = ()
    """Measured of each run besides its loss."""


@dataclass(frozen=True, eq=False)
class LoadedClaim:
    """A claim with the recipes of its arms."""

    id: str
    claim: Claim
    recipes: Mapping[str, Recipe]
    is_quick: bool

    @property
    def name(self) -> str:
        """The stem of its file names."""
        return f"{self.id}-quick" if self.is_quick else self.id


def builtin_claims() -> dict[str, Path]:
    """The claims that come with the package, by id."""
    return {path.stem: path for path in sorted((Path(__file__).parent.parent / "claims").glob("*.toml"))}


def load_claim(name: str, *, quick: bool = False, data: str = "") -> LoadedClaim:
    """A built-in claim by its id, or a TOML file by its path; quick: with the changes of its [quick] table.

    data: the folder that relative data paths start from (empty: the working directory).

    Raises ConfigError for unknown names and contradictions.
    """
    path = _claim_path(name)
    table = load_toml(path)
    quick_changes = table.pop("quick", None)
    if quick:
        if quick_changes is None:
            raise ConfigError(f"{path} has no [quick] table; run it whole, or write one")
        table = _merge_tables(table, quick_changes)
    changes = table.pop("changes", {})
    arms, copies = _expand_arms(table.get("arms", []))
    arm_changes = {arm.get("name", ""): arm.pop("changes", {}) for arm in arms}
    if arms:
        table["arms"] = arms
    for measure in table.get("measures", []):
        if "arms" in measure:
            measure["arms"] = [name for arm in measure["arms"] for name in copies.get(arm, [arm])]
    try:
        claim = from_dict(Claim, table)
        if claim.recipe and not claim.arms:
            claim = replace(claim, arms=(Arm(name=path.stem),))
        recipes = _recipes(claim, path, changes, arm_changes) if claim.recipe else {}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check(claim, list(recipes), path)
    recipes = {arm: replace(recipe, data=recipe.data.resolve(data)) for arm, recipe in recipes.items()}
    measures = tuple(
        replace(m, path=resolve_path(m.path, data)) if isinstance(m, Translation | Answers | Loss) else m
        for m in claim.measures
    )
    return LoadedClaim(path.stem, replace(claim, measures=measures), recipes, quick)


def _claim_path(name: str) -> Path:
    """The file of a built-in claim, or the given path."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    claims = builtin_claims()
    if name not in claims:
        raise unknown_name("claim", name, claims)
    return claims[name]


def _recipes(
    claim: Claim, path: Path, changes: Mapping[str, Any], arm_changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Recipe]:
    """The recipe of each arm: the claim's with its `changes`, or an earlier arm's, with the arm's changes."""
    base, recipes = with_changes(_base_recipe(claim.recipe, path), changes), dict[str, Recipe]()
    for arm in claim.arms:
        if arm.after and arm.after not in recipes:
            raise unknown_name("arm", arm.after, recipes)
        recipes[arm.name] = with_changes(recipes.get(arm.after, base), arm_changes.get(arm.name, {}))
    return recipes


def _check(claim: Claim, arms: Sequence[str], path: Path) -> None:
    """ConfigError for unknown or duplicate names, and for fields that its kind of ladder doesn't support."""
    names = [arm.name for arm in claim.arms]
    for arm in claim.arms:
        if arm.compute is not None and not isinstance(claim.ladder, OneSize):
            raise ConfigError(
                f"{path}: the arm {arm.name} has compute={arm.compute:g}, which needs another ladder; set one_size"
            )
        if arm.starts and arm.starts not in names[: names.index(arm.name)]:
            raise ConfigError(f"{path}: the arm {arm.name} starts from {arm.starts!r}, which is no earlier arm")
        for reference in filter(None, (arm.against, arm.starts)):
            if reference not in names or reference == arm.name:
                raise unknown_name("arm", reference, names, where=str(path))
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two arms have the same name; rename one")
    pairs = [("loss", arm) for arm in arms] + [(m.name, arm) for m in claim.measures for arm in m.arms or arms]
    for (what, arm), times in Counter(pairs).items():
        if arm not in arms:
            raise unknown_name("arm", arm, arms, where=f"measures of {path}")
        if times > 1:
            raise ConfigError(f"{path}: {what!r} is measured twice for the arm {arm}; rename one")
    numbers = claim.statistic.names(claim_arms(claim))
    for condition in claim.rule:
        if condition.value not in numbers:
            raise unknown_name("value", condition.value, numbers, where=f"the rule of {path}")


def _expand_arms(arms: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The arms of a file, each `for_each` expanded into copies; and the names of the copies, by the arm's name."""
    full_arms: list[dict[str, Any]] = []
    copies: dict[str, list[str]] = {}
    for arm in arms:
        if "for_each" not in arm or "name" not in arm:
            full_arms.append(dict(arm))
            continue
        for earlier in arm["for_each"]:
            copy = _copy_for(arm, earlier)
            full_arms.append(copy)
            copies.setdefault(arm["name"], []).append(copy["name"])
    return full_arms, copies


def _copy_for(arm: Mapping[str, Any], earlier: str) -> dict[str, Any]:
    """The copy of an arm with `for_each` for one earlier arm."""
    fields = {key: value for key, value in arm.items() if key != "for_each"}
    reference = fields.get("against", "")
    against = f"{reference}, {arm['name']}" if reference not in ("", earlier) else ""
    return {**fields, "name": f"{earlier}, {arm['name']}", "after": earlier, "starts": earlier, "against": against}


def _base_recipe(name: str, claim: Path) -> Recipe:
    """A built-in recipe, or one in the claim's folder."""
    return load_recipe(name if name in builtin_recipes() else str(claim.parent / name))


def _merge_tables(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables merged, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge_tables(merged[key], value) if both else value
    return merged


HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "can't be told at this budget"


def decide(claim: Claim, findings: Findings) -> str:
    """The verdict of the rule. Raises ConfigError for a bound on a number that the statistic doesn't compute."""
    verdicts = []
    for condition in claim.rule:
        if condition.value not in findings.values:
            raise unknown_name("value", condition.value, findings.values, where="the rule")
        verdicts.append(condition.verdict(findings.values[condition.value]))
    return FAILS if False in verdicts else UNDECIDED if None in verdicts else HOLDS


def measure(claim: Claim, rows: Sequence[Row]) -> Findings:
    """The claim's statistic, computed from its runs. Raises ValueError for too few runs."""
    arms = claim_arms(claim)
    findings, numbers = claim.statistic.measure(arms, rows), claim.statistic.names(arms)
    for condition in claim.rule:
        if condition.value in numbers:  # missing, since all runs of an arm diverged
            findings.values.setdefault(condition.value, Estimate(math.nan))
    return findings


def claim_arms(claim: Claim) -> Arms:
    """The arms of a claim, as its statistic needs them."""
    names = tuple(arm.name for arm in claim.arms)
    baselines = {arm.name: arm.against or arm.after or names[0] for arm in claim.arms[1:]}
    measures: dict[str, tuple[str, ...]] = {}
    for m in claim.measures:
        measures[m.name] = (*measures.get(m.name, ()), *(m.arms or names))
    return Arms(names, baselines, measures)

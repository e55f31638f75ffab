"""A claim is a file: question, source, runs, statistic, and the rule that decides, written before the runs.

What a statistic makes of the runs is a `Findings`: numbers with intervals, tables and pictures. The rule compares the
numbers with bounds: all intervals inside, the claim holds; one outside, it doesn't; else it can't be told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoform.config import ConfigError, from_dict, load_toml, unknown_name
from isoform.data.config import under
from isoform.recipe import Recipe, builtin_recipes, load_recipe, with_changes
from isoform.scaling.config import Ladder, OneSize
from isoform.scaling.curves import Estimate
from isoform.scaling.findings import Findings
from isoform.scaling.measures import Answers, Loss, Measure, Translation
from isoform.scaling.statistics import AnyStatistic, Arms
from isoform.scaling.study import Row


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Bounds on one of the statistic's numbers."""

    value: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the bound on {self.value!r} needs at_least, at_most or both")

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} ≤ {self.value} ≤ {self.at_most:g}"
        return f"{self.value} ≤ {self.at_most:g}" if self.at_least is None else f"{self.value} ≥ {self.at_least:g}"

    def verdict(self, estimate: Estimate) -> bool | None:
        """Whether the whole interval is inside (True) or outside (False); None where it isn't told."""
        low, high = estimate.low, estimate.high
        if low is None or high is None or math.isnan(estimate.value):
            return None
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        return True if least <= low and high <= most else False if high < least or low > most else None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of doing it: the claim's recipe with these changes.

    In a file, an arm with `for_each`, a list of earlier arms, stands for as many, each called "EARLIER, NAME", which
    change and start from those; and are held against what was made of the one that `against` names.
    """

    name: str
    after: str = ""
    """The earlier arm whose recipe it changes; empty: the claim's own."""
    against: str = ""
    """The arm it is held against; empty: the one it comes after, or else the first."""
    starts: str = ""
    """An earlier arm: each run goes on from a run of that arm that had `share` of its compute; where arms are as
    written, from the whole run with its seed."""
    share: float = 0.5
    compute: float | None = None
    """Training FLOPs in the place of the claim's, where arms are as written."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One question, and how it is decided."""

    question: str
    source: str
    says: str
    """What the source says."""
    statistic: AnyStatistic
    rule: tuple[Condition, ...]
    reads: str = ""
    """What the numbers mean together, for the page."""
    budget: str = ""
    """About how long it takes, where."""
    recipe: str = ""
    ladder: Ladder | OneSize = Ladder()
    """Sizes of one recipe, or each arm as it is written."""
    sweep: tuple[float, ...] = ()
    """Factors of the learning rate that each arm tries on the ladder's second compute, with one seed; the best is
    taken for all its runs."""
    arms: tuple[Arm, ...] = ()
    measures: tuple[Measure, ...] = ()
    """What is asked of each run beside its loss."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A claim with the recipes of its arms."""

    id: str
    claim: Claim
    recipes: Mapping[str, Recipe]
    is_quick: bool

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.id}-quick" if self.is_quick else self.id


def builtin_claims() -> dict[str, Path]:
    """The claims that come with the package, by id."""
    return {path.stem: path for path in sorted((Path(__file__).parent.parent / "claims").glob("*.toml"))}


def load_claim(name: str, *, quick: bool = False, data: str = "") -> Loaded:
    """A built-in claim by its id, or a TOML file by its path; quick: with what its [quick] table changes.

    data: the folder in which its relative data paths are looked for (empty: the working directory).

    Raises ConfigError for what is unknown or contradictory.
    """
    path = _path_of(name)
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
    recipes = {arm: replace(recipe, data=recipe.data.under(data)) for arm, recipe in recipes.items()}
    measures = tuple(
        replace(one, path=under(one.path, data)) if isinstance(one, Translation | Answers | Loss) else one
        for one in claim.measures
    )
    return Loaded(path.stem, replace(claim, measures=measures), recipes, quick)


def _path_of(name: str) -> Path:
    """The file of a built-in claim, or the one that a path names."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    claims = builtin_claims()
    if name not in claims:
        raise unknown_name("claim", name, claims)
    return claims[name]


def _recipes(
    claim: Claim, path: Path, changes: Mapping[str, Any], arm_changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Recipe]:
    """The recipe of each arm: the claim's with its `changes`, or an earlier arm's, with the arm's own."""
    base, recipes = with_changes(_base(claim.recipe, path), changes), dict[str, Recipe]()
    for arm in claim.arms:
        if arm.after and arm.after not in recipes:
            raise unknown_name("arm", arm.after, recipes)
        recipes[arm.name] = with_changes(recipes.get(arm.after, base), arm_changes.get(arm.name, {}))
    return recipes


def _check(claim: Claim, arms: Sequence[str], path: Path) -> None:
    """ConfigError for names that mean nothing, or two things, and for what its ladder has no place for."""
    names = [arm.name for arm in claim.arms]
    for arm in claim.arms:
        if arm.compute is not None and (arm.compute <= 0 or not isinstance(claim.ladder, OneSize)):
            raise ConfigError(
                f"{path}: the arm {arm.name} has compute={arm.compute:g}; it must be above 0, and the ladder one_size"
            )
        if arm.starts and arm.starts not in names[: names.index(arm.name)]:
            raise ConfigError(f"{path}: the arm {arm.name} starts from {arm.starts!r}, which is no earlier arm")
        for other in filter(None, (arm.against, arm.starts)):
            if other not in names or other == arm.name:
                raise unknown_name("arm", other, names, where=str(path))
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two arms have the same name; rename one")
    asked = [("loss", arm) for arm in arms] + [(m.name, arm) for m in claim.measures for arm in m.arms or arms]
    for (what, arm), times in Counter(asked).items():
        if arm not in arms:
            raise unknown_name("arm", arm, arms, where=f"measures of {path}")
        if times > 1:
            raise ConfigError(f"{path}: {what!r} is measured twice of the arm {arm}; give one another name")
    numbers = claim.statistic.names(arms_of(claim))
    for condition in claim.rule:
        if condition.value not in numbers:
            raise unknown_name("value", condition.value, numbers, where=f"the rule of {path}")


def _expand_arms(arms: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The arms of a file, with copies of one that is there `for_each` of several; and their names by that one's."""
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
    """What an arm `for_each` of several is for one of them."""
    fields = {key: value for key, value in arm.items() if key != "for_each"}
    other = fields.get("against", "")
    against = f"{other}, {arm['name']}" if other not in ("", earlier) else ""
    return {**fields, "name": f"{earlier}, {arm['name']}", "after": earlier, "starts": earlier, "against": against}


def _base(name: str, claim: Path) -> Recipe:
    """A built-in recipe, or one that lies beside the claim."""
    return load_recipe(name if name in builtin_recipes() else str(claim.parent / name))


def _merge_tables(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge_tables(merged[key], value) if both else value
    return merged


HOLDS, FAILS, UNTOLD = "holds", "does not hold", "can't be told at this budget"


def decide(claim: Claim, findings: Findings) -> str:
    """The verdict of the rule. Raises ConfigError for a bound on a number that the statistic doesn't give."""
    answers = []
    for condition in claim.rule:
        if condition.value not in findings.values:
            raise unknown_name("value", condition.value, findings.values, where="the rule")
        answers.append(condition.verdict(findings.values[condition.value]))
    return FAILS if False in answers else UNTOLD if None in answers else HOLDS


def measure(claim: Claim, rows: Sequence[Row]) -> Findings:
    """The claim's statistic of its runs. Raises ValueError where the runs are too few for it."""
    arms = arms_of(claim)
    findings, numbers = claim.statistic.measure(arms, rows), claim.statistic.names(arms)
    for condition in claim.rule:
        if condition.value in numbers:  # which no run could tell, since all of an arm diverged
            findings.values.setdefault(condition.value, Estimate(math.nan))
    return findings


def arms_of(claim: Claim) -> Arms:
    """The arms of a claim, as its statistic sees them."""
    names = tuple(arm.name for arm in claim.arms)
    baselines = {arm.name: arm.against or arm.after or names[0] for arm in claim.arms[1:]}
    measures: dict[str, tuple[str, ...]] = {}
    for one in claim.measures:
        measures[one.name] = (*measures.get(one.name, ()), *(one.arms or names))
    return Arms(names, baselines, measures)

"""A claim is a file: a source's statement, the runs that test it, and the rule that decides, written before the runs.

A statistic turns the runs into `Findings`: numbers with intervals, tables and figures. The rule compares the numbers
with bounds: if all intervals lie inside, the statement is confirmed; if one lies outside, refuted; otherwise untold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isoform.config import ConfigError, from_dict, load_toml, unknown_name
from isoform.data.config import resolve_path
from isoform.ranges import NonNegative, Number, Positive, PositiveShare, Size, config
from isoform.recipe import Recipe, builtin_recipes, load_recipe, with_changes
from isoform.scaling.config import Ladder, OneSize
from isoform.scaling.estimate import Estimate
from isoform.scaling.findings import Findings
from isoform.scaling.measures import Answers, Loss, Measure, Translation, Validation
from isoform.scaling.statistics import Arms, Compared, Exponents, Forecasts, Gains, KnownItems
from isoform.scaling.study import Row
from isoform.scaling.truths import Published, Recovery

AnyStatistic = Forecasts | Gains | Exponents | Compared | Recovery | Published
"""The types that `kind` selects in the `statistic` of a claim."""


@config
class Condition:
    """Bounds on one of the statistic's numbers."""

    value: str
    at_least: Number | None = None
    at_most: Number | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the bound on {self.value!r} needs at_least, at_most or both")

    @property
    def bounds(self) -> str:
        """The bounds alone."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"≤ {self.at_most:g}" if self.at_least is None else f"≥ {self.at_least:g}"

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} ≤ {self.value} ≤ {self.at_most:g}"
        return f"{self.value} {self.bounds}"

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
class Headline:
    """The number that a list of claims shows."""

    value: str
    text: str
    """With {} for the number and its interval."""
    form: str = ".3g"
    """How numbers are written, as in Python's format."""


@config
class Expected:
    """What a source states of one arm."""

    arm: str
    compute: Positive = 1.0
    """Its compute multiplier against its baseline at the largest size."""
    growth: Number = 0.0
    """The exponent by which that grows with compute."""
    differences: dict[str, Number] = field(default_factory=dict)
    """Of its measures, the loss included, from the first arm's."""


@config
class Power:
    """What is known before the runs, from which the smallest differences that a design tells are simulated."""

    noise: dict[str, Positive]
    """Standard deviation between seeds by measure: of the loss, relative; of others, in their unit."""
    scatter: NonNegative = 0.005
    """Of arm × size in ladders, relative to the loss; 0.5 % in the claim `block`."""
    items: dict[str, Positive] = field(default_factory=dict)
    """Standard deviation of one arm's measure over the choice of the test items."""
    paired_items: dict[str, Positive] = field(default_factory=dict)
    """The same of the difference of two arms whose answers are paired by item, as those of new runs are."""
    base: dict[str, Number] = field(default_factory=dict)
    """Values of the measures about which they vary, such as 0.75 for an accuracy."""
    expected: tuple[Expected, ...] = ()
    """What the source states."""
    source: str = ""
    """Where the noise was measured."""


@config
class Claim:
    """A statement of a source, the runs that test it, and how they decide."""

    statement: str
    """The source's statement as it is tested here; the verdict is about it."""
    source: str
    says: str
    """What the source says."""
    statistic: AnyStatistic
    rule: tuple[Condition, ...]
    headline: Headline
    limits: str
    """What a reader may not conclude."""
    reads: str = ""
    """What the numbers are."""
    tuned: str = ""
    """What was tuned for each arm, beside what the sweep says."""
    sampling: str = ""
    """How many seeds, and by which rule seeds may be added; empty: the ladder's number, fixed before the runs."""
    looks: Size = 1
    """How often the rule decided as seeds were added. Intervals have a confidence of 1 - 0.1 / looks (Bonferroni), the
    price of looking."""
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
    power: Power | None = None
    withdrawn: str = ""
    """Why the design can't test the statement; the verdict is then `withdrawn` whatever the numbers."""
    remedy: str = ""
    """What would decide a claim that is untold or withdrawn."""
    history: tuple[str, ...] = ()
    """Changes of estimator, design, wording or seeds after a first result, with their dates."""

    @property
    def level(self) -> float:
        """The confidence of the intervals that decide."""
        return 1 - 0.1 / self.looks


@dataclass(frozen=True, eq=False)
class LoadedClaim:
    """A claim with the recipes of its arms."""

    id: str
    claim: Claim
    recipes: Mapping[str, Recipe]
    is_quick: bool
    is_published: bool
    """Whether it comes with the package, with its verdict."""

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
    is_published = path == builtin_claims().get(path.stem)
    return LoadedClaim(path.stem, replace(claim, measures=measures), recipes, quick, is_published)


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
    if claim.recipe and claim.power is None:
        raise ConfigError(
            f"{path}: power is missing; state the known noise, from which is simulated what the runs can tell"
        )
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
    for value in (*(condition.value for condition in claim.rule), claim.headline.value):
        if value not in numbers:
            raise unknown_name("value", value, numbers, where=f"the rule of {path}")


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


CONFIRMED, REFUTED, UNTOLD, WITHDRAWN = "confirmed", "refuted", "untold", "withdrawn"


@dataclass(frozen=True, eq=False)
class Decision:
    """The verdict on a claim's statement, and what it rests on."""

    verdict: str
    findings: Findings
    outcomes: tuple[bool | None, ...]
    """Of each condition: whether its interval lies inside its bounds, outside, or neither."""


def decide(claim: Claim, rows: Sequence[Row]) -> Decision:
    """The verdict of the rule on the claim's runs.

    `confirmed` if every condition's interval lies inside its bounds: each is then met with an error of at most
    5 %, and so are all. `refuted` if one lies outside; with k conditions intervals of 1 - 0.1 / k are used for that
    (Bonferroni), since any one of them would refute. Raises ValueError for too few runs.
    """
    findings = measure(claim, rows, claim.level)
    inside = [condition.verdict(findings.values[condition.value]) for condition in claim.rule]
    several = len(claim.rule) > 1
    wide = measure(claim, rows, 1 - (1 - claim.level) / len(claim.rule)).values if several else findings.values
    outside = [condition.verdict(wide[condition.value]) is False for condition in claim.rule]
    outcomes = tuple(False if out else met if met else None for met, out in zip(inside, outside, strict=True))
    verdict = REFUTED if False in outcomes else CONFIRMED if all(outcomes) else UNTOLD
    return Decision(WITHDRAWN if claim.withdrawn else verdict, findings, outcomes)


def measure(claim: Claim, rows: Sequence[Row], level: float = 0.9) -> Findings:
    """The claim's statistic, computed from its runs. Raises ValueError for too few runs, and for a bound on a number
    that the statistic doesn't compute."""
    arms = claim_arms(claim)
    findings, numbers = claim.statistic.measure(arms, rows, level), claim.statistic.names(arms)
    for condition in claim.rule:
        if condition.value not in numbers:
            raise unknown_name("value", condition.value, numbers, where="the rule")
        findings.values.setdefault(condition.value, Estimate(math.nan))  # missing, since all runs of an arm diverged
    return findings


def claim_arms(claim: Claim) -> Arms:
    """The arms of a claim, as its statistic needs them."""
    names = tuple(arm.name for arm in claim.arms)
    baselines = {arm.name: arm.against or arm.after or names[0] for arm in claim.arms[1:]}
    measures: dict[str, tuple[str, ...]] = {}
    items: dict[str, KnownItems] = {}
    for m in claim.measures:
        measures[m.name] = (*measures.get(m.name, ()), *(m.arms or names))
        if isinstance(m, Answers | Translation) or (isinstance(m, Validation) and m.what == "accuracy"):
            deviation = claim.power.items.get(m.name, 0.0) if claim.power else 0.0
            items[m.name] = KnownItems(m.num_items, deviation)
    return Arms(names, baselines, measures, items)

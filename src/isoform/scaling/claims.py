"""A claim is a file: question, source, runs, statistic, and the rule that decides, written before the runs.

What a statistic makes of the runs is a `Findings`: numbers with intervals, tables and pictures. The rule compares the
numbers with bounds: all intervals inside, the claim holds; one outside, it doesn't; else it can't be told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, assert_never

from isoform.config import ConfigError, from_dict, load_toml, unknown
from isoform.data.config import under
from isoform.recipe import Recipe, builtin_recipes, changed, load_recipe
from isoform.scaling.config import Ladder, OneSize
from isoform.scaling.curves import Estimate
from isoform.scaling.findings import Findings, compared, exponents, forecasts, gains, published, recovered
from isoform.scaling.measures import Answers, Loss, Measure, Translation
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
class Forecasts:
    """The largest computes, each forecast from the runs below 1/8 of it.

    Numbers: median_error, error_of_naive (that of the forecast / that of "it stays the same"), widest (half of the
    widest interval, as a part of the loss), held (share of intervals that hold).
    """

    top: int = 3


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Each arm against another: compute multipliers at both ends, and their growth.

    Numbers, for each arm NAME: NAME.least, NAME.most, NAME.growth; and NAME.whole, the multiplier at the most compute
    against the first arm.
    """

    over: Literal["compute", "seconds"] = "compute"
    """Training FLOPs, or seconds of measured training."""


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """The curves of all arms side by side, over compute and over seconds; where their order flips.

    Numbers, for each arm NAME: NAME.exponent, NAME.loss (at the most compute), NAME.seconds_exponent; for every pair
    OTHER/NAME, the ratio of their losses there, and NAME/OTHER.flip_compute and .flip_seconds, where their order flips.
    """


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Arms of one size side by side: the mean over seeds of the loss and of each of the claim's measures.

    Numbers, for each arm NAME and measure M, of which `loss` is one: NAME.M, and NAME.M.change against the arm that it
    is held against; M.noise, the standard deviation of runs that differ in their seed alone, over all arms.
    """

    loss: bool = True
    """Whether the losses are to be compared; those of different objectives can't be."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Laws fitted to simulated ladders whose truth is known.

    Numbers, for each truth: NAME.alpha_median_error, .alpha_p90_error, .alpha_coverage, the same for beta,
    .forecast_coverage, .forecast_width, .optimal_exponent_coverage and .recovered_exponent (median, 5 and 95 %).
    """

    repetitions: int = 200


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the published constants of Chinchilla's law imply.

    Numbers, for besiroglu and hoffmann: NAME.exponent of the optimal size, NAME.tokens_per_parameter at `compute`.
    """

    compute: float = 5.76e23


Statistic = Forecasts | Gains | Exponents | Compared | Recovery | Published


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
    statistic: Statistic
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
    known = builtin_claims()
    is_path = name.endswith(".toml") or "/" in name
    if not is_path and name not in known:
        raise unknown("claim", name, known)
    path = Path(name) if is_path else known[name]
    table = load_toml(path)
    shortened = table.pop("quick", None)
    if quick:
        if shortened is None:
            raise ConfigError(f"{path} has no [quick] table; run it whole, or write one")
        table = _laid_over(table, shortened)
    changes = table.pop("changes", {})
    of_arms, meant = _spread(table.get("arms", []))
    changes_of = {arm.get("name", ""): arm.pop("changes", {}) for arm in of_arms}
    if of_arms:
        table["arms"] = of_arms
    for one in table.get("measures", []):
        if "arms" in one:
            one["arms"] = [name for arm in one["arms"] for name in meant.get(arm, [arm])]
    try:
        claim = from_dict(Claim, table)
        recipes: dict[str, Recipe] = {}
        if claim.recipe:
            own = changed(_base(claim.recipe, path), changes)
            for arm in claim.arms or (Arm(name=path.stem),):
                if arm.after and arm.after not in recipes:
                    raise unknown("arm", arm.after, recipes)
                recipes[arm.name] = changed(recipes.get(arm.after, own), changes_of.get(arm.name, {}))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check(claim, list(recipes), path)
    placed = {arm: replace(recipe, data=recipe.data.under(data)) for arm, recipe in recipes.items()}
    measures = tuple(
        replace(one, path=under(one.path, data)) if isinstance(one, Translation | Answers | Loss) else one
        for one in claim.measures
    )
    return Loaded(path.stem, replace(claim, measures=measures), placed, quick)


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
                raise unknown("arm", other, names, where=str(path))
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two arms have the same name; rename one")
    asked = [("loss", arm) for arm in arms] + [(m.name, arm) for m in claim.measures for arm in m.arms or arms]
    for (what, arm), times in Counter(asked).items():
        if arm not in arms:
            raise unknown("arm", arm, arms, where=f"measures of {path}")
        if times > 1:
            raise ConfigError(f"{path}: {what!r} is measured twice of the arm {arm}; give one another name")
    given = numbers(claim, arms)
    for condition in claim.rule:
        if given is not None and condition.value not in given:
            raise unknown("value", condition.value, given, where=f"the rule of {path}")


def _spread(arms: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The arms of a file with those made `for_each` of several in full; and what the names of these stand for."""
    made: list[dict[str, Any]] = []
    meant: dict[str, list[str]] = {}
    for arm in arms:
        if "for_each" not in arm or "name" not in arm:
            made.append(dict(arm))
            continue
        own = {key: value for key, value in arm.items() if key != "for_each"}
        for earlier in arm["for_each"]:
            other = own.get("against", "")
            against = f"{other}, {own['name']}" if other not in ("", earlier) else ""
            of_it = {"name": f"{earlier}, {own['name']}", "after": earlier, "starts": earlier, "against": against}
            made.append({**own, **of_it})
            meant.setdefault(own["name"], []).append(of_it["name"])
    return made, meant


def _base(name: str, claim: Path) -> Recipe:
    """A built-in recipe, or one that lies beside the claim."""
    return load_recipe(name if name in builtin_recipes() else str(claim.parent / name))


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


HOLDS, FAILS, UNTOLD = "holds", "does not hold", "can't be told at this budget"


def decide(claim: Claim, findings: Findings) -> str:
    """The verdict of the rule. Raises ConfigError for a bound on a number that the statistic doesn't give."""
    answers = []
    for condition in claim.rule:
        if condition.value not in findings.values:
            raise unknown("value", condition.value, findings.values, where="the rule")
        answers.append(condition.verdict(findings.values[condition.value]))
    return FAILS if False in answers else UNTOLD if None in answers else HOLDS


def numbers(claim: Claim, names: Sequence[str]) -> list[str] | None:
    """The numbers that the claim's statistic makes of the runs of arms of these names; None where it needs no runs."""
    pairs = _pairs(claim)
    match claim.statistic:
        case Forecasts():
            return ["median_error", "error_of_naive", "widest", "held", "exponent", "floor"]
        case Gains():
            return [f"{arm}.{what}" for arm, _ in pairs for what in ("least", "most", "growth", "whole")]
        case Exponents():
            of_one = ("exponent", "loss", "seconds_exponent", "seconds_loss")
            found = [f"{arm}.{what}" for arm in names for what in of_one]
            for one, other in combinations(names, 2):
                found += [f"{other}/{one}", f"{one}/{other}.flip_compute", f"{one}/{other}.flip_seconds"]
            return found
        case Compared(loss=with_loss):
            asked: dict[str, Sequence[str]] = {"loss": names} if with_loss else {}
            for one in claim.measures:
                asked[one.name] = [*asked.get(one.name, ()), *(one.arms or names)]
            found = [f"{what}.noise" for what in asked]
            for what, among in asked.items():
                found += [f"{arm}.{what}" for arm in among]
                found += [f"{arm}.{what}.change" for arm, other in pairs if arm in among and other in among]
            return found
        case Recovery() | Published():
            return None
        case _:
            assert_never(claim.statistic)


def measure(claim: Claim, rows: Sequence[Row]) -> Findings:
    """The claim's statistic of its runs. Raises ValueError where the runs are too few for it."""
    match claim.statistic:
        case Forecasts(top=top):
            return forecasts(rows, top)
        case Gains(over=over):
            return gains(_pairs(claim), rows, over)
        case Exponents():
            return exponents(rows)
        case Compared(loss=with_loss):
            findings = compared(_pairs(claim), rows, with_loss=with_loss)
            for condition in claim.rule:  # what no run could tell, since all of an arm diverged
                findings.values.setdefault(condition.value, Estimate(math.nan))
            return findings
        case Recovery(repetitions=repetitions):
            return recovered(repetitions)
        case Published(compute=compute):
            return published(compute)
        case _:
            assert_never(claim.statistic)


def _pairs(claim: Claim) -> list[tuple[str, str]]:
    """Each arm but the first, and what it is held against."""
    return [(arm.name, arm.against or arm.after or claim.arms[0].name) for arm in claim.arms[1:]]

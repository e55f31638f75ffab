"""Claims: their files and rules, statistics of synthetic runs, pages."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoform.cli import main
from isoform.config import ConfigError
from isoform.figures import new_figure, to_png
from isoform.files import read_sealed
from isoform.model.parts import LayerNorm, RMSNorm, Rotary, Sinusoidal
from isoform.preparation import prepare
from isoform.reading import read_json
from isoform.scaling.claims import (
    CONFIRMED,
    REFUTED,
    UNTOLD,
    WITHDRAWN,
    Arm,
    Claim,
    Condition,
    Headline,
    builtin_claims,
    claim_arms,
    decide,
    load_claim,
    measure,
)
from isoform.scaling.config import OneSize
from isoform.scaling.curves import costs, mismatches, score_forecasts
from isoform.scaling.estimate import Estimate
from isoform.scaling.findings import Findings, Table, analyse_ladder
from isoform.scaling.lab import next_factor
from isoform.scaling.ladder import plan_ladder, plan_one_size
from isoform.scaling.laws import PowerLaw
from isoform.scaling.pages import Page, cost_tables, run_tables, to_html, to_markdown
from isoform.scaling.pictures import Interval, dots, loss_against_cost
from isoform.scaling.power import CHANCE, detectable, is_multiplier
from isoform.scaling.statistics import Arms, Compared, Contrast, Exponents, Forecasts, Gains, Statistic
from isoform.scaling.study import Job, Row, fingerprint, make_job, planned_row
from isoform.scaling.truths import Published, Recovery
from isoform.scaling.verdicts import shipped_verdicts
from isoform.scaling.worlds import LadderDesign, MeansDesign

PNG = b"\x89PNG\r\n\x1a\n"


def rows(law: PowerLaw, *, arm="a", sizes=10, decades=2.5, seeds=3, noise=0.0, speed=1e9, seed=0) -> list[Row]:
    """Runs of a ladder that follows a law."""
    rng, result = np.random.default_rng(seed), []
    for group in range(sizes):
        compute = 1e11 * 10 ** (decades * group / (sizes - 1))
        n = math.sqrt(compute / 120)
        for s in range(seeds):
            loss = float(law.loss(compute)) * math.exp(noise * rng.standard_normal())
            result.append(
                Row(
                    id=f"{arm}{group}{s}" + "0" * 12,
                    arm=arm,
                    purpose="ladder",
                    seed=s,
                    width=8 * (group + 2),
                    group=group,
                    parameters=n,
                    tokens=round(20 * n),
                    compute=compute,
                    loss=loss,
                    num_parameters=round(n),
                    num_active_parameters=round(n),
                    train_seconds=compute / speed,
                    tokens_per_second=20 * n / (compute / speed),
                    peak_memory_bytes=10**9,
                )
            )
    return result


LAW = PowerLaw(scale=2e11, exponent=0.12, floor=0.8)


def claim(statistic, rule, arms=(), **fields) -> Claim:
    headline = Headline(value=rule[0].value if rule else "x", text="{}")
    words = {"statement": "It is so.", "source": "s", "says": "so", "limits": "more"}
    return Claim(**words, statistic=statistic, rule=rule, arms=arms, headline=headline, **fields)


class Given(Statistic):
    """A statistic whose numbers are given, with intervals that widen with the level."""

    def __init__(self, **values: tuple[float, float]) -> None:
        self.values = values

    def names(self, arms: Arms) -> list[str]:
        return [*self.values]

    def measure(self, arms: Arms, rows, level: float = 0.9) -> Findings:
        half = {0.9: 1.0, 0.95: 1.2}[round(level, 6)]
        return Findings({n: Estimate(v, v - half * e, v + half * e) for n, (v, e) in self.values.items()})


@pytest.mark.parametrize("name", sorted(builtin_claims()))
@pytest.mark.parametrize("quick", [False, True])
def test_every_builtin_claim_loads(name, quick):
    loaded = load_claim(name, quick=quick)
    assert loaded.claim.statement.endswith(".") and loaded.claim.rule and loaded.claim.source and loaded.claim.limits
    assert bool(loaded.recipes) == bool(loaded.claim.recipe)
    if loaded.claim.arms:
        assert list(loaded.recipes) == [arm.name for arm in loaded.claim.arms]
        started = {arm.name for arm in loaded.claim.arms if arm.starts}
        recipes = [str(recipe) for arm, recipe in loaded.recipes.items() if arm not in started]
        assert len(set(recipes)) == len(recipes)
    first = builtin_claims()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("name", sorted(builtin_claims()))
@pytest.mark.parametrize("quick", [False, True])
def test_every_ladder_can_be_planned_and_has_enough_runs_for_an_interval(name, quick):
    loaded = load_claim(name, quick=quick)
    if isinstance(loaded.claim.ladder, OneSize):
        assert loaded.claim.ladder.seeds >= 2
        return
    for recipe in loaded.recipes.values():
        rungs = plan_ladder(replace(recipe, model=replace(recipe.model, vocab_size=90)), loaded.claim.ladder)
        assert len(rungs) >= 6 and len({rung.group for rung in rungs}) >= 4


@pytest.mark.parametrize("name", sorted(builtin_claims()))
@pytest.mark.parametrize("quick", [False, True])
def test_every_claim_has_enough_runs_for_its_statistic_and_rule(name, quick, monkeypatch):
    monkeypatch.setattr("isoform.scaling.study._optimizer_compute", lambda job: 0.0)  # no sizes of heads here
    loaded, claim_rows = load_claim(name, quick=quick), []
    if not loaded.recipes:
        return
    for number, (arm, recipe) in enumerate(loaded.recipes.items()):
        law = replace(LAW, scale=LAW.scale * 1.3**number)
        ladder, measures = loaded.claim.ladder, loaded.claim.measures
        recipe = replace(recipe, model=replace(recipe.model, vocab_size=90))
        if isinstance(ladder, OneSize):
            rungs = plan_one_size(recipe, replace(ladder, compute=ladder.compute or 1e12), 1e9, 2048.0)
        else:
            rungs = plan_ladder(recipe, ladder)
        for rung in rungs:
            noise = 1 + 0.003 * ((7 * rung.seed + 3 * rung.group + number) % 5 - 2)
            claim_rows.append(
                replace(
                    planned_row(Job(arm, rung, f"{arm}{len(claim_rows)}")),
                    loss=float(law.loss(rung.compute)) * noise,
                    train_seconds=rung.compute / 1e10,
                    tokens_per_second=1e4,
                    measures={m.name: (number % 9 + noise) / 12 for m in measures if not m.arms or arm in m.arms},
                )
            )
    decision = decide(loaded.claim, claim_rows)
    values = decision.findings.values
    assert sorted(values) == sorted(loaded.claim.statistic.names(claim_arms(loaded.claim)))
    assert (decision.verdict == WITHDRAWN) == bool(loaded.claim.withdrawn)
    assert all(values[c.value].low is not None for c in loaded.claim.rule), "no interval"


@pytest.mark.parametrize(
    "statistic", [Published(), Recovery(repetitions=2, ladders=(LadderDesign(),), means=(MeansDesign(),))]
)
def test_statistics_without_runs_compute_the_numbers_they_name(statistic):
    without_runs = claim(statistic, ())
    assert sorted(measure(without_runs, []).values) == sorted(statistic.names(claim_arms(without_runs)))


def test_arms_change_the_arm_they_come_after_and_nothing_else():
    recipes = load_claim("block").recipes
    (old,), (pre,) = recipes["2017"].model.decoder.blocks, recipes["pre-norm"].model.decoder.blocks
    assert (old.norm_placement, pre.norm_placement) == ("post", "pre")
    assert old.norm == pre.norm == LayerNorm()
    (rms,) = recipes["rms-norm"].model.decoder.blocks
    assert isinstance(rms.norm, RMSNorm) and rms.norm_placement == "pre"
    assert isinstance(recipes["rms-norm"].model.decoder.position, Sinusoidal)
    assert isinstance(recipes["rotary"].model.decoder.position, Rotary)
    assert recipes["untied"].model.head.tied is False and recipes["gated"].model.head.tied is True


@pytest.mark.parametrize(
    ("condition", "estimate", "verdict"),
    [
        (Condition(value="x", at_least=1), Estimate(1.2, 1.0, 1.4), True),
        (Condition(value="x", at_least=1), Estimate(1.2, 0.9, 1.4), None),
        (Condition(value="x", at_least=1), Estimate(0.8, 0.7, 0.99), False),
        (Condition(value="x", at_most=1), Estimate(0.8, 0.7, 1.0), True),
        (Condition(value="x", at_most=1), Estimate(0.8, 0.7, 1.1), None),
        (Condition(value="x", at_most=1), Estimate(1.2, 1.1, 1.3), False),
        (Condition(value="x", at_least=0, at_most=1), Estimate(0.5, 0.2, 0.9), True),
        (Condition(value="x", at_least=0, at_most=1), Estimate(0.5, 0.2, 1.9), None),
        (Condition(value="x", at_least=0, at_most=1), Estimate(1.5, 1.2, 1.9), False),
        (Condition(value="x", at_most=1), Estimate(0.5), None),
        (Condition(value="x", at_most=1), Estimate(math.nan, math.nan, math.nan), None),
    ],
)
def test_a_bound_compares_the_whole_interval(condition, estimate, verdict):
    assert condition.verdict(estimate) is verdict


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"x": (2.0, 0.5), "y": (1.0, 0.5)}, CONFIRMED),
        ({"x": (1.3, 0.5), "y": (1.0, 0.5)}, UNTOLD),
        ({"x": (0.3, 0.5), "y": (1.0, 0.5)}, REFUTED),
        ({"x": (1.3, 0.5), "y": (3.0, 0.5)}, REFUTED),
        ({"x": (0.45, 0.5), "y": (1.0, 0.5)}, UNTOLD),
    ],
)
def test_a_statement_is_confirmed_if_every_bound_is_met_and_refuted_by_any(numbers, verdict):
    """The last: outside by the interval of one condition, inside by the wider one that two need."""
    rule = (Condition(value="x", at_least=1), Condition(value="y", at_most=2))
    both = claim(Published(), rule)
    object.__setattr__(both, "statistic", Given(**numbers))
    assert decide(both, []).verdict == verdict
    withdrawn = claim(Published(), rule, withdrawn="it can't be tested so")
    object.__setattr__(withdrawn, "statistic", Given(**numbers))
    assert decide(withdrawn, []).verdict == WITHDRAWN


def test_looking_twice_costs_confidence():
    rule = (Condition(value="x", at_least=1),)
    for looks, value, verdict in ((1, 1.55, CONFIRMED), (2, 1.55, UNTOLD), (2, 1.65, CONFIRMED)):
        one = claim(Published(), rule, looks=looks)
        object.__setattr__(one, "statistic", Given(x=(value, 0.5)))
        assert decide(one, []).verdict == verdict and one.level == pytest.approx(1 - 0.1 / looks)


def test_a_bound_on_an_unknown_number_is_refused():
    with pytest.raises(ValueError, match='unknown value "y"'):
        measure(claim(Published(), (Condition(value="y", at_most=2),)), [])


def test_forecasts_of_a_power_law_are_accurate_and_use_only_smaller_runs():
    runs = rows(LAW, sizes=12, noise=0.002)
    scored = score_forecasts(runs)
    assert len(scored) == 3
    for s in scored:
        assert s.num_fitted == sum(row.compute < s.compute / 8 for row in runs)
        assert s.error < 0.02 and s.naive_error > 2 * s.error and s.half_width < 0.05
    findings = measure(claim(Forecasts(), ()), runs)
    worst, lead = findings.values["worst_error"], findings.values["least_lead"]
    assert worst.low <= worst.value < 0.02 < worst.high + 0.02 and worst.value == max(s.error for s in scored)
    assert lead.value == min(s.plain_error - s.error for s in scored) and lead.low < lead.value < lead.high
    assert findings.values["exponent"].low < 0.12 < findings.values["exponent"].high
    assert all(to_png(draw()).startswith(PNG) for draw in findings.pictures.values()) and len(findings.pictures) == 2


def test_gains_are_read_against_the_baseline_and_the_first_arm():
    laws = {"a": LAW, "b": PowerLaw(LAW.scale / 2, 0.12, 0.8), "c": PowerLaw(LAW.scale / 3, 0.12, 0.8)}
    runs = [row for i, (arm, law) in enumerate(laws.items()) for row in rows(law, arm=arm, noise=0.001, seed=i)]
    chain = (Arm(name="a"), Arm(name="b", after="a"), Arm(name="c", after="b"))
    findings = measure(claim(Gains(floor=(0.75, 0.85)), (), chain), runs)
    values = findings.values
    assert values["b.most"].value == pytest.approx(2, rel=0.1) and values["c.most"].value == pytest.approx(1.5, rel=0.1)
    assert values["c.whole"].value == pytest.approx(3, rel=0.1) and values["b.whole"] == values["b.most"]
    assert values["c.loss_change"].high < 0
    assert "beyond the baseline's largest run" in findings.number_notes["c.whole"]


def test_optimizer_flops_count_in_multipliers():
    dear = [replace(row, optimizer_compute=row.compute) for row in rows(LAW, arm="b")]
    pair = claim(Gains(floor=(0.75, 0.85)), (), (Arm(name="a"), Arm(name="b")))
    values = measure(pair, [*rows(LAW), *dear]).values
    assert values["b.most"].value == pytest.approx(0.5, rel=0.02) and values["b.loss_change"].value == 0


def test_an_arm_that_diverged_is_noted_and_the_rest_are_decided():
    lost = [replace(row, loss=None, reason="diverged: step 3") for row in rows(LAW, arm="b")]
    pairs = claim(Gains(), (Condition(value="b.most", at_least=1),), (Arm(name="a"), Arm(name="b"), Arm(name="c")))
    runs = [*rows(LAW), *lost, *rows(LAW, arm="c", seed=1, noise=0.002)]
    findings = measure(pairs, runs)
    assert decide(pairs, runs).verdict == UNTOLD and "b is undecided" in findings.notes[0]
    assert findings.values["c.most"].low < 1.1


def test_curves_of_arms_report_where_their_order_flips():
    first, second = PowerLaw(2e11, 0.12, 0.8), PowerLaw(2.83e10, 0.08, 0.8)
    runs = [*rows(first, noise=1e-4), *rows(second, arm="b", speed=2e9, noise=1e-4)]
    findings = measure(claim(Exponents(floor=(0.75, 0.85)), ()), runs)
    flip = findings.values["a/b.flip_compute"]
    assert float(first.loss(flip.value)) == pytest.approx(float(second.loss(flip.value)), rel=5e-3)
    assert flip.low < flip.value < flip.high
    assert findings.values["a.exponent"].value == pytest.approx(0.12, abs=0.01)
    assert {"a/b.flip_compute", "a/b.flip_seconds", "b.seconds_exponent", "b/a"} <= findings.values.keys()
    same = measure(claim(Exponents(), ()), [*rows(first, noise=0.004), *rows(first, arm="b", noise=0.004, seed=1)])
    assert math.isnan(same.values["a/b.flip_compute"].value), "whether equal curves cross can't be told"


def one_size(values: dict[str, list[float]], first_seed: int = 0) -> list[Row]:
    """Runs of one size whose losses are given, by arm."""
    runs = rows(LAW, sizes=2, seeds=1)[:1]
    return [
        replace(runs[0], arm=arm, seed=seed, loss=loss)
        for arm, losses in values.items()
        for seed, loss in enumerate(losses, first_seed)
    ]


def test_arms_that_share_seeds_are_compared_seed_by_seed():
    arms = (Arm(name="a"), Arm(name="b"))
    contrast = Contrast(name="a less b", weights={"a": 1, "b": -1})
    paired = claim(Compared(contrasts=(contrast,)), (), arms)
    runs = one_size({"a": [2.0, 3.0, 4.0], "b": [1.9, 2.8, 3.9]})
    findings = measure(paired, runs)
    change = findings.values["b.loss.change"]
    assert change.value == pytest.approx(-0.4 / 3) and change.high < 0, "though single arms vary by 1"
    reverse = findings.values["a less b.loss"]
    assert reverse.value == pytest.approx(-change.value) and reverse.low == pytest.approx(-change.high)
    assert [line[-1] for line in findings.tables[0].lines] == ["–", "seed", "seed"]
    others = [*one_size({"a": [2.0, 3.0, 4.0]}), *one_size({"b": [1.9, 2.8, 3.9]}, 3)]
    welch = measure(paired, others)
    assert welch.values["b.loss.change"].low < -1 and welch.tables[0].lines[1][-1] == "Welch"


def test_an_estimator_that_fits_does_not_cover_decides_nothing():
    """Every claim's statistic at its own number of arms, sizes and seeds."""
    fits = load_claim("fits").claim.statistic
    assert isinstance(fits, Recovery)
    ladders = {(d.arms, d.sizes, d.decades, d.seeds, d.has_floor) for d in fits.ladders}
    forecasts = {(d.sizes, d.decades, d.seeds, d.small_seeds) for d in fits.forecasts}
    means = {(d.measure, d.seeds, d.arms, d.keeps_items) for d in fits.means}
    for name in builtin_claims():
        c = load_claim(name).claim
        match c.statistic:
            case Gains(floor=floor) | Exponents(floor=floor):
                ladder = c.ladder
                design = (len(c.arms), ladder.design.sizes, ladder.decades, ladder.seeds, bool(floor))
                assert design in ladders, (name, design)
            case Forecasts():
                ladder = c.ladder
                assert (ladder.design.sizes, ladder.decades, ladder.seeds, ladder.small_seeds) in forecasts, name
            case Compared(contrasts=contrasts):
                seeds, deciding = c.ladder.seeds, {condition.value for condition in c.rule}
                numbers = {("loss", 2, True) for value in deciding if ".loss" in value}
                for measure_ in c.measures:
                    kind = "BLEU" if type(measure_).__name__ == "Translation" else "share"
                    if any(f".{measure_.name}" in value for value in deciding) and getattr(measure_, "num_items", 0):
                        numbers |= {(kind, 2, True), (kind, 2, False)}
                sizes = {len(c.weights) for c in contrasts if any(v.startswith(c.name) for v in deciding)}
                numbers |= {(kind, 4, True) for kind, *_ in numbers if 4 in sizes}
                for kind, arms, keeps in numbers:
                    assert (kind, seeds, arms, keeps) in means, (name, kind, seeds, arms, keeps)
            case _:
                assert isinstance(c.statistic, Recovery | Published)


def test_a_sweep_continues_beyond_the_end_where_its_best_lies():
    inf = math.inf
    assert next_factor({1.0: 2.0, 2.0: 1.9, 4.0: 1.95}) is None
    assert next_factor({1.0: 2.0, 2.0: 1.9, 4.0: 1.85}) == 8.0
    assert next_factor({1.0: 1.8, 2.0: 1.9, 4.0: inf}) == 0.5
    assert next_factor({1.0: 2.0}) is None and next_factor({1.0: inf, 2.0: inf}) is None
    assert next_factor({2.0**i: -float(i) for i in range(8)}) is None


def test_unequal_costs_cause_warnings():
    runs = [*rows(LAW), *(row for row in rows(LAW, arm="b", speed=5e8))]
    arm_costs = costs(runs)
    assert [cost.arm for cost in arm_costs] == ["a", "b"]
    (warning,) = mismatches(arm_costs)
    assert warning == "not the same cost as a: measured throughput -50% (b)"
    assert mismatches(arm_costs[:1]) == []
    cheaper = [replace(row, compute=row.compute * 0.99, arm="c") for row in runs if row.arm == "a"]
    assert [cost.arm for cost in costs([*runs, *cheaper])] == ["a", "b", "c"], "the order is that of the arms"
    tables, warnings = cost_tables(runs)
    assert len(tables) == 1 and warnings == [warning]
    assert cost_tables([]) == ([], [])


def test_runs_without_a_loss_are_excluded_and_listed():
    runs = rows(LAW, sizes=8, seeds=1)
    lost = Row(
        **{**runs[0].__dict__, "id": "f" * 16, "loss": None, "reason": "diverged: step 3: the gradient norm is nan"}
    )
    scored = score_forecasts([*runs, lost], top=1)
    assert scored[0].num_fitted == 5 and scored[0].forecast.low is None
    tables = run_tables([*runs, lost])
    assert tables[1].title == "Excluded" and tables[1].lines == (("f" * 8, lost.reason),)


def test_a_ladder_says_what_its_runs_leave_open_and_hides_what_is_too_far():
    findings = analyse_ladder(rows(LAW, noise=0.002), 10, 10**9, 2, {})
    assert findings.lead[0].startswith("Loss falls as 0.") and "FLOP, it is forecast" in findings.lead[0]
    (laws, budgets) = findings.tables[:2]
    assert not any("undetermined" in line[1] for line in laws.lines[:2])
    texts = [cell for table in findings.tables[1:] for line in table.lines for cell in line]
    assert "e+" not in "".join(texts) and any(cell.endswith("FLOP") for cell in texts)
    assert any("budgets buy is left out" in note for note in findings.notes) and len(budgets.lines) < 21
    few = analyse_ladder(rows(LAW, sizes=5, seeds=1), 10, 10**9, 2, {})
    assert few.lead[0].startswith("Undetermined: 5 runs") and "undetermined (5 runs" in few.tables[0].lines[0][1]
    assert not any(table.title.startswith("What time buys") for table in few.tables)
    bent = analyse_ladder(rows(PowerLaw(LAW.scale, 1.6, 0.8), noise=0.001), 10, 10**9, 2, {})
    assert bent.lead[0].startswith("Undetermined: the exponent is at its bound, 1")


def test_arms_are_drawn_apart_where_they_would_hide_each_other():
    many = {f"arm {i} $x$": (rows(LAW, arm=f"arm {i}", noise=0.01), None) for i in range(8)}
    figure = loss_against_cost(many, title="eight")
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert len(drawn) == 7 and all("30 runs" in axes.get_title() for axes in drawn)
    colors = {line.get_color() for axes in drawn for line in axes.lines}
    assert len(colors) == 2, "each arm beside the baseline"
    assert to_png(figure).startswith(PNG)
    numbers = {"a": Interval(3.0, 2.0, 4.0, 5), "b": Interval(1.0, None, None, 1), "c": Interval(2.0, 1.5, 2.5, 3)}
    (axes,) = dots(numbers, "BLEU", "BLEU", reference="c").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b  (n = 1)", "c  (n = 3)", "a  (n = 5)"]
    assert "dashed: c" in axes.figure.get_supxlabel() and axes.figure.get_suptitle() == "BLEU"


def test_what_a_run_only_reports_leaves_the_ids_of_published_runs_as_they_were():
    loaded = load_claim("ratio")
    arm, recipe = next(iter(loaded.recipes.items()))
    prepared = prepare(recipe)
    size = replace(loaded.claim.ladder, compute=loaded.claim.arms[0].compute)
    rungs = plan_one_size(prepared.recipe, size, prepared.flops_per_step, prepared.tokens_per_step)
    page = (Path(__file__).parent.parent / "docs/results/ratio.json").read_text()
    for rung in rungs:
        assert make_job(arm, rung, fingerprint(prepared)).id in page


def test_pages_contain_everything_escaped():
    page = Page("Is a < b?", ["**So.**"], {"the law": new_figure()[0]}, [Table("T", ("x", "y"), (("a|b", "<&>"),))])
    text = to_markdown(page, {"the law": "x-the-law.png"})
    assert "# Is a < b?" in text and "![the law](x-the-law.png)" in text and "| a\\|b | <&> |" in text
    hostile = Page(
        "<script>", ["a\n\n# b <!-- c"], {}, [Table("</p>", ("\x1b[2J",), ())], {"<b": "![x](http://x) [y](z)"}
    )
    text = to_markdown(hostile, {})
    assert not any(part in text for part in ("<s", "<!", "</", "\n# b", "\x1b", "![", " [y"))
    page_html = to_html(page)
    assert "&lt;&amp;&gt;" in page_html and "<svg " in page_html and "Is a &lt; b?" in page_html


def test_the_command_writes_a_page_and_its_json(tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["reproduce", "chinchilla", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == CONFIRMED and "59.1" in printed["headline"]
    saved = json.loads((out / "chinchilla.json").read_text())
    assert saved["command"] == "isoform reproduce chinchilla" or saved["command"].startswith("isoform reproduce")
    for key in ("machine", "commit", "versions", "seeds", "repeats", "rows", "verdict", "statement", "rule", "notes"):
        assert key in saved
    page = (out / "chinchilla.md").read_text()
    assert page.startswith("# The constants that") and "**Confirmed: 59.1" in page and str(tmp_path) not in page
    assert "**Not to be concluded.**" in page and "arXiv 2404.10102v2" in page
    assert main(["reproduce", "--list", "--out", str(out)]) == 0
    listing = capsys.readouterr().out
    assert "| [chinchilla](chinchilla.md): The constants" in listing and f"| {CONFIRMED} |" in listing
    assert main(["reproduce", "--list", "--out", str(tmp_path / "nowhere"), "--json"]) == 0
    shipped = json.loads(capsys.readouterr().out)["claims"]
    assert {name: entry["verdict"] for name, entry in shipped.items()} == {
        name: entry.verdict for name, entry in shipped_verdicts().items()
    }, "outside the repository too"


def test_published_numbers_are_as_they_were_written_or_refused(tmp_path, capsys):
    arguments = ["reproduce", "chinchilla", "--out", str(tmp_path), "--extend"]
    assert main(arguments) == 0
    path = tmp_path / "chinchilla.json"
    whole = path.read_bytes()
    for at in [match.start() for match in re.finditer(rb"[0-9]", whole)][::9]:
        path.write_bytes(whole[:at] + b"%d" % (int(whole[at : at + 1]) ^ 1) + whole[at + 1 :])
        for command in (arguments, ["reproduce", "--list", "--out", str(tmp_path)]):
            capsys.readouterr()
            assert main(command) == 65
            assert f"{path} is damaged" in capsys.readouterr().err
    assert main(arguments[:-1]) == 0 and path.read_bytes() == whole
    path.write_bytes(b"{\n" + whole.partition(b"\n")[2])
    capsys.readouterr()
    assert main(arguments) == 0 and capsys.readouterr().err.count("has no hash") == 1
    assert path.read_bytes() == whole


def test_published_numbers_have_their_hash():
    for path in (Path(__file__).parent.parent / "docs/results").glob("*.json"):
        read_sealed(path)  # one without is sealed by write_sealed(path, read_json(path))


def test_a_claim_is_loaded_by_path(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    shutil.copy(builtin_claims()["chinchilla"], path)
    path.write_text(path.read_text().replace("at_most = 0.46", "at_most = 0.2"))
    assert main(["reproduce", str(path), "--out", str(tmp_path / "out")]) == 0
    assert REFUTED in capsys.readouterr().out
    assert (tmp_path / "out/mine.md").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('kind = "published"', 'kind = "publish"'), 'unknown kind "publish"'),
        (("statement =", "statment ="), 'unknown key "statment"'),
        ((", at_most = 0.46", ""), "needs at_least, at_most or both"),
        (("[statistic]", 'recipe = "nowhere.toml"\n[statistic]'), "nowhere.toml"),
        (("[statistic]", 'recipe = "ladder"\n[[arms]]\nname = "b"\nafter = "a"\n[statistic]'), 'unknown arm "a"'),
        (("[statistic]", 'recipe = "ladder"\n[statistic]'), "power is missing"),
        (("[quick]", ""), "no \\[quick\\] table"),
        (("besiroglu.exponent", "besiroglu.exponnt"), 'unknown value "besiroglu.exponnt" in the rule of'),
    ],
)
def test_an_invalid_claim_is_refused_with_its_file(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text(builtin_claims()["chinchilla"].read_text().replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_claim(str(path), quick=True)
    assert "mine.toml" in str(caught.value)
    with pytest.raises(ConfigError, match='unknown claim "chinchila": did you mean "chinchilla"'):
        load_claim("chinchila")


RESULTS = Path(__file__).parent.parent / "docs/results"


def test_what_a_design_tells_is_simulated_before_it_is_run(tmp_path, capsys):
    weak = load_claim("muon").claim
    numbers = detectable(weak, weak.power, studies=40)
    assert [n.value for n in numbers] == ["muon.most", "muon.growth"] and min(n.chance for n in numbers) < CHANCE
    assert 1.3 < numbers[0].smallest < 4 and [is_multiplier(n.value) for n in numbers] == [True, False]
    better = replace(weak, power=replace(weak.power, noise={"loss": 0.0005}, scatter=0.0005))
    sharper = detectable(better, better.power, studies=40)
    assert sharper[0].smallest < 1.1 and all(n.chance > CHANCE for n in sharper)
    path = tmp_path / "mine.toml"
    shutil.copy(builtin_claims()["muon"], path)
    assert main(["reproduce", str(path), "--out", str(tmp_path), "--pool", str(tmp_path / "pool")]) == 65
    assert "can't tell what its source states, so it isn't run" in capsys.readouterr().err
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("name", sorted(builtin_claims()))
def test_a_published_page_says_what_its_json_and_claim_say(name):
    values, page = read_sealed(RESULTS / f"{name}.json"), (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    c = load_claim(name).claim
    assert values["statement"] == c.statement and values["rule"] == [str(condition) for condition in c.rule]
    assert page.startswith(f"# {c.statement}") and f"{values['verdict'].capitalize()}: {values['headline']}" in page
    head = re.split(r"\n## (?:Runs|Exploratory|Coverage|What the)", page)[0]
    assert len(head.split()) <= 600, len(head.split())
    assert head.count("\n## ") == 1 and head.count("![") <= 1, "one table, one picture"
    headings = ["The source", "Not to be concluded", "Changed after a first result"]
    if values["rows"]:
        headings += ["Scale", "Epochs of the data", "Tuned", "Counted as FLOPs", "Seeds"]
        headings += ["Smallest differences that the design tells"]
    assert all(f"**{heading}.**" in head for heading in headings)
    notes = [*(note for number, note in values["notes"].items() if number != "all"), *values["notes"].get("all", [])]
    assert all(note.replace("[", "\\[") in page for note in notes), "what a fit notes reaches the page"
    assert values["commit"] and not values["commit"].endswith("changes")
    assert shipped_verdicts()[name].headline == values["headline"]
    if name != "fits" and values["rows"]:
        kept = [Row(**{**row, "data": tuple(row["data"])}) for row in values["rows"] if row["purpose"] == "ladder"]
        decision = decide(c, kept)
        assert decision.verdict == values["verdict"], "the verdict follows from the rows"
        for number, (value, low, high) in values["values"].items():
            estimate = decision.findings.values[number]
            for ours, published in zip((estimate.value, estimate.low, estimate.high), (value, low, high), strict=True):
                assert published is None or ours == pytest.approx(published, rel=1e-6, abs=1e-9), number


def test_the_list_of_results_is_the_commands(capsys):
    assert main(["reproduce", "--list", "--out", str(RESULTS)]) == 0
    table = capsys.readouterr().out.strip()
    assert table in (RESULTS / "README.md").read_text(encoding="utf-8")
    assert {name: entry.verdict for name, entry in shipped_verdicts().items()} == {
        name: read_json(RESULTS / f"{name}.json")["verdict"] for name in builtin_claims()
    }

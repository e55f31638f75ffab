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
from isoform.files import read_sealed
from isoform.model.parts import LayerNorm, RMSNorm, Rotary, Sinusoidal
from isoform.scaling.claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Arm,
    Claim,
    Condition,
    builtin_claims,
    claim_arms,
    decide,
    load_claim,
    measure,
)
from isoform.scaling.config import OneSize
from isoform.scaling.curves import Estimate, costs, crossing, gain, mismatches, score_forecasts
from isoform.scaling.findings import Findings, Table, exact
from isoform.scaling.lab import next_factor
from isoform.scaling.ladder import plan_ladder, plan_one_size
from isoform.scaling.laws import PowerLaw
from isoform.scaling.pages import Page, cost_tables, run_tables, to_html, to_markdown
from isoform.scaling.statistics import Exponents, Forecasts, Gains, Published, Recovery
from isoform.scaling.study import Job, Row, planned_row

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


def claim(statistic, rule, arms=()) -> Claim:
    return Claim(question="?", source="s", says="so", statistic=statistic, rule=rule, arms=arms)


@pytest.mark.parametrize("name", sorted(builtin_claims()))
@pytest.mark.parametrize("quick", [False, True])
def test_every_builtin_claim_loads(name, quick):
    loaded = load_claim(name, quick=quick)
    assert loaded.claim.question.endswith("?") and loaded.claim.rule and loaded.claim.source
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
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)  # half of the time
    loaded, claim_rows = load_claim(name, quick=quick), []
    if not loaded.recipes:
        return
    for number, (arm, recipe) in enumerate(loaded.recipes.items()):
        law = replace(LAW, scale=LAW.scale * 1.3**number)
        ladder, measures = loaded.claim.ladder, loaded.claim.measures
        if isinstance(ladder, OneSize):
            rungs = plan_one_size(recipe, replace(ladder, compute=ladder.compute or 1e12), 1e9, 2048.0)
        else:
            rungs = plan_ladder(replace(recipe, model=replace(recipe.model, vocab_size=90)), ladder)
        for rung in rungs:
            noise = 1 + 0.003 * ((7 * rung.seed + 3 * rung.group + number) % 5 - 2)
            claim_rows.append(
                replace(
                    planned_row(Job(arm, rung, f"{arm}{len(claim_rows)}")),
                    loss=float(law.loss(rung.compute)) * noise,
                    train_seconds=rung.compute / 1e10,
                    tokens_per_second=1e4,
                    measures={m.name: number + noise for m in measures if not m.arms or arm in m.arms},
                )
            )
    findings = measure(loaded.claim, claim_rows)
    assert sorted(findings.values) == sorted(loaded.claim.statistic.names(claim_arms(loaded.claim)))
    assert decide(loaded.claim, findings) in (HOLDS, FAILS, UNDECIDED)
    assert all(findings.values[c.value].low is not None for c in loaded.claim.rule), "no interval"


@pytest.mark.parametrize("statistic", [Published(), Recovery(repetitions=2)])
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


def test_a_rule_holds_if_every_bound_does():
    both = claim(Published(), (Condition(value="x", at_least=1), Condition(value="y", at_most=2)))
    cases = [((1, 1, 1), HOLDS), ((0.5, 0.5, 0.5), FAILS), ((1, 0.5, 1.5), UNDECIDED)]
    for (value, low, high), verdict in cases:
        assert decide(both, Findings({"x": Estimate(value, low, high), "y": exact(1.0)})) == verdict
    assert decide(both, Findings({"x": Estimate(1, 0.5, 1.5), "y": exact(3.0)})) == FAILS
    with pytest.raises(ValueError, match='unknown value "y"'):
        decide(both, Findings({"x": exact(1.0)}))


def test_forecasts_of_a_power_law_are_accurate_and_use_only_smaller_runs():
    runs = rows(LAW, sizes=12, noise=0.002)
    scored = score_forecasts(runs)
    assert len(scored) == 3
    for s in scored:
        assert s.num_fitted == sum(row.compute < s.compute / 8 for row in runs)
        assert s.error < 0.02 and s.naive_error > 2 * s.error and s.half_width < 0.05
    findings = measure(claim(Forecasts(), ()), runs)
    assert findings.values["median_error"].value < 0.01
    assert findings.values["exponent"].low < 0.12 < findings.values["exponent"].high
    assert all(png.startswith(PNG) for png in findings.pictures.values()) and len(findings.pictures) == 2


def test_a_method_that_needs_half_the_compute_has_a_multiplier_of_two():
    method = PowerLaw(scale=LAW.scale / 2, exponent=LAW.exponent, floor=LAW.floor)
    half = gain(rows(LAW, noise=0.002), rows(method, arm="b", noise=0.002, seed=1))
    for end in (half.least, half.most):
        assert end.low < 2 < end.high and 1.6 < end.value < 2.4
    assert half.verdict == "a gain, holds"
    same = gain(rows(LAW, noise=0.002), rows(LAW, arm="b", noise=0.002, seed=1))
    assert same.verdict == "noise"
    worse = gain(rows(LAW, noise=0.002), rows(PowerLaw(2 * LAW.scale, LAW.exponent, LAW.floor), noise=0.002, seed=2))
    assert worse.verdict == "a loss, holds"
    crossed = gain(rows(LAW, noise=0.001), rows(PowerLaw(6e10, 0.08, 0.8), noise=0.001, seed=3))
    assert crossed.verdict in ("reverses", "a gain, fades", "a loss, grows") and crossed.growth.high < 0


def test_intervals_of_a_gain_are_calibrated_and_narrow():
    method, num_covered, widths = PowerLaw(LAW.scale / 1.5, LAW.exponent, LAW.floor), 0, []
    for seed in range(60):
        small = {"sizes": 4, "decades": 1.5, "noise": 0.004}
        most = gain(rows(LAW, seed=2 * seed, **small), rows(method, arm="b", seed=2 * seed + 1, **small)).most
        num_covered += most.low <= 1.5 <= most.high
        widths.append(most.high / most.low)
    assert 48 <= num_covered <= 59 and np.median(widths) < 1.6


def test_a_method_with_a_larger_exponent_grows():
    better = PowerLaw(scale=1e11, exponent=0.15, floor=0.8)
    growing = gain(rows(LAW, noise=0.001), rows(better, arm="b", noise=0.001, seed=1))
    assert growing.verdict == "a gain, grows" and growing.growth.low > 0
    findings = measure(claim(Gains(), (), (Arm(name="a"), Arm(name="b"))), [*rows(LAW), *rows(better, arm="b")])
    assert {"b.least", "b.most", "b.growth"} <= findings.values.keys()


def test_an_arm_that_diverged_is_noted_and_the_rest_are_decided():
    lost = [replace(row, loss=None, reason="diverged: step 3") for row in rows(LAW, arm="b")]
    pairs = claim(Gains(), (Condition(value="b.most", at_least=1),), (Arm(name="a"), Arm(name="b"), Arm(name="c")))
    findings = measure(pairs, [*rows(LAW), *lost, *rows(LAW, arm="c", seed=1, noise=0.002)])
    assert decide(pairs, findings) == UNDECIDED and "b against a is undecided" in findings.notes[0]
    assert findings.values["c.most"].low < 1.1


def test_curves_of_arms_report_where_their_order_flips():
    first, second = PowerLaw(2e11, 0.12, 0.8), PowerLaw(2.83e10, 0.08, 0.8)
    compute = crossing(first, second, 1e8, 1e22)
    assert compute is not None and float(first.loss(compute)) == pytest.approx(float(second.loss(compute)))
    assert crossing(first, second, 1e8, compute / 10) is None
    findings = measure(claim(Exponents(), ()), [*rows(first), *rows(second, arm="b", speed=2e9)])
    assert findings.values["a.exponent"].value == pytest.approx(0.12, abs=0.02)
    assert {"a/b.flip_compute", "a/b.flip_seconds", "b.seconds_exponent"} <= findings.values.keys()


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


def test_pages_contain_everything_escaped():
    page = Page("Is a < b?", ["**Holds.**"], [Table("T", ("x", "y"), (("a|b", "<&>"),))], {"the law": PNG}, ["note"])
    text = to_markdown(page, {"the law": "x-the-law.png"})
    assert "# Is a < b?" in text and "![the law](x-the-law.png)" in text and "| a\\|b | <&> |" in text
    hostile = Page("<script>", ["a\n\n# b <!-- c"], [Table("</p>", ("\x1b[2J",), ())], {}, ["![x](http://x) [y](z)"])
    text = to_markdown(hostile, {})
    assert not any(part in text for part in ("<s", "<!", "</", "\n# b", "\x1b", "![", " [y"))
    page_html = to_html(page)
    assert "&lt;&amp;&gt;" in page_html and "data:image/png;base64," in page_html and "Is a &lt; b?" in page_html


def test_the_command_writes_a_page_and_its_json(tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["reproduce", "chinchilla", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == HOLDS
    saved = json.loads((out / "chinchilla.json").read_text())
    assert saved["command"] == "isoform reproduce chinchilla" or saved["command"].startswith("isoform reproduce")
    for key in ("machine", "versions", "seeds", "repeats", "rows", "verdict", "rule"):
        assert key in saved
    page = (out / "chinchilla.md").read_text()
    assert page.startswith("# Do the constants") and "**Holds.**" in page and str(tmp_path) not in page
    assert main(["reproduce", "--list", "--out", str(out)]) == 0
    listing = capsys.readouterr().out
    assert "chinchilla" in listing and HOLDS in listing and "not run yet" in listing


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
    assert FAILS in capsys.readouterr().out
    assert (tmp_path / "out/mine.md").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('kind = "published"', 'kind = "publish"'), 'unknown kind "publish"'),
        (("question =", "qestion ="), 'unknown key "qestion"'),
        ((", at_most = 0.46", ""), "needs at_least, at_most or both"),
        (("[statistic]", 'recipe = "nowhere.toml"\n[statistic]'), "nowhere.toml"),
        (("[statistic]", 'recipe = "ladder"\n[[arms]]\nname = "b"\nafter = "a"\n[statistic]'), 'unknown arm "a"'),
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

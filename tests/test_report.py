"""Pages and figures of runs: what they show, finished or not, light or dark, whatever their texts are."""

import json
import math
import random
import re
import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from isoform.cli import main
from isoform.codecs.text import ByteCodec
from isoform.curves import Course, measure_of, smoothed
from isoform.experiment import train
from isoform.figures import COLORS, INK, VARIABLES, literal, new_figure, set_log_ticks, to_png, to_svg
from isoform.generation.scoring import TokenScore
from isoform.inspection.attention import Map, attention_weights, draw_attention, first_tokens, row_of
from isoform.inspection.curves import bars, course_lines, weight_lines, weight_sizes
from isoform.inspection.probabilities import LEVELS, style_of, to_lines
from isoform.inspection.recording import record
from isoform.markup import ON_DARK, STYLE
from isoform.model.parts import LSTM
from isoform.objectives.config import Causal
from isoform.recipe import builtin_recipes, identity_of, load_recipe
from isoform.report import lead_of, nearest_builtin, state_of_run, write_report
from isoform.run import Run
from isoform.terminal import Terminal
from isoform.training.config import AdamW, Training
from models import BlockConfig, build, config, pair
from test_resume import CPU, recipe

HOSTILE = "<script>alert('$x^2$')</script> \\frac{ $ 漢 \x1b[2J == step 9"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a finished run, one that was stopped, one that diverged, and their text."""
    folder = tmp_path_factory.mktemp("runs")
    words = random.Random(0).choices(["to", "be", "<b>", "not", "$x$", "is", "the", "\\frac"], k=1500)
    (folder / "text.txt").write_text(" ".join(words))
    plan = recipe(folder / "text.txt", validate_every=None, sample_every=6)
    train(plan, str(folder / "done"), machine=CPU, terminal=Terminal(quiet=True))
    steps = iter(range(100))
    train(plan, str(folder / "part"), machine=CPU, terminal=Terminal(quiet=True), should_stop=lambda: next(steps) > 4)
    wild = replace(plan, training=replace(plan.training, optimizer=AdamW(learning_rate=1e30), clip_norm=None))
    with pytest.raises(ValueError, match="step"):
        train(wild, str(folder / "wild"), machine=CPU, terminal=Terminal(quiet=True))
    return folder


def page_of(path: Path) -> str:
    """A page, after a check that its figures are whole and take their colours from it."""
    page = path.read_text(encoding="utf-8")
    for svg in re.findall(r"<svg role.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg.replace("xlink:", ""))
        for color in re.findall(r"(?:fill|stroke): ([^;\"]+)", svg):
            assert color == "none" or color.startswith("var(--"), color
    return page


@pytest.mark.parametrize("steps", [*range(5, 60), 99, 250, 1000, 1249, 1251, 10**5])
def test_a_run_is_validated_five_times_however_short_by_default(steps):
    every = Training(steps=steps).validation_interval
    assert len({*range(every, steps, every), steps}) >= 5 and every <= 250
    assert Training(steps=steps, validate_every=0).validation_interval == 0


def test_how_often_a_run_is_validated_is_no_part_of_its_identity():
    plan = load_recipe("shakespeare")
    for every in (0, 100, 600):
        assert identity_of(replace(plan, training=replace(plan.training, validate_every=every))) == identity_of(plan)


def test_the_page_of_a_run_shows_all_of_it(runs):
    write_report(Run(runs / "done"))
    page = page_of(runs / "done/report.html")
    for words in (
        *("validation", "training, smoothed", "training time", "learning rate", "gradient norm", "tokens per second"),
        *("After step 12", "after step 6", "How to go on", "isoform evaluate", "the whole recipe", "but for"),
        "Validation loss",
    ):
        assert words in page, words
    assert len(state_of_run(runs / "done").course.validations("validation_loss")[0]) >= 5
    assert "#ffffff" not in page.replace(STYLE, ""), "nothing is a white slab"
    assert page.count("<svg role") == 4


def test_the_page_of_a_run_that_is_not_finished_or_diverged(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["report", "part"]) == 0 and main(["report", "wild", "--out", "wild.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["report"] == "wild.html"
    assert "Not finished: step " in page_of(runs / "part/report.html")
    assert "of 12." in lead_of(state_of_run("part")) and "isoform train part" in page_of(runs / "part/report.html")
    assert "Diverged: step " in page_of(runs / "wild.html") and not (runs / "wild/report.html").exists()
    assert state_of_run("part").summary is None and state_of_run("wild").divergence is not None


def test_several_runs_are_laid_one_over_the_other(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    changed = replace(recipe(runs / "text.txt", validate_every=None), seed=3)
    train(changed, "other", machine=CPU, terminal=Terminal(quiet=True))
    assert main(["report", "done", "other", "part"]) == 0
    page = page_of(runs / "comparison.html")
    for words in (
        "<title>done · other · part",
        "Lowest validation loss: ",
        "<td>seed</td><td>0</td><td>3</td><td>0</td>",
    ):
        assert words in page, words
    assert "finished, 12 steps" in page and "not finished" in page and "different data" not in page
    capsys.readouterr()
    for names, words in (
        (["done", "done"], "done is named twice"),
        (["done", "nothing"], "nothing is no run directory"),
        ([f"run-{i}" for i in range(8)], "8 runs can't be told apart"),
        ([], "name RUN: run directories"),
    ):
        assert main(["report", *names]) == 65 and words in capsys.readouterr().err


def test_texts_of_a_run_are_shown_not_obeyed(runs, tmp_path):
    course = Course(HOSTILE, state_of_run(runs / "done").course.lines, 0.1)
    state = replace(state_of_run(runs / "done"), course=course)
    figure, axes = new_figure()
    axes.plot([1, 2], label=literal(HOSTILE))
    axes.set_title(literal("$x$"))
    axes.set_yticks([1, 2], [literal("\\frac$"), literal("a\nb")])
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_png(figure).startswith(b"\x89PNG")
        svg = to_svg(figure, HOSTILE)
    assert "<script" not in svg and "$x$" in svg and "\\frac$" in svg and "a\\nb" in svg and "\x1b" not in svg
    assert "<script" not in lead_of(state)


def test_figures_take_the_colours_of_their_page():
    assert len(set(COLORS)) == len(COLORS) == len(ON_DARK)
    assert all(f"--{name}:" in STYLE for name in VARIABLES.values())

    def drawn() -> str:
        figure, axes = new_figure()
        axes.plot([1, 2], color=COLORS[1])
        return to_svg(figure, "a line")

    svg = drawn()
    assert f"stroke: var(--series-1, {COLORS[1]})" in svg and f"fill: var(--ink, {INK})" in svg
    assert drawn() == svg, "the same figure is the same file"


@pytest.mark.parametrize(("low", "high"), [(1.4, 4.6), (0.003, 2.4), (1.6, 1.71), (2e3, 9e7), (1e-9, 1e-8)])
def test_logarithmic_axes_have_round_numbers(low, high):
    _, axes = new_figure()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    set_log_ticks(axes.yaxis, low, high)
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 3 <= len(shown) <= 18 and all(float(f"{tick:.3g}") == pytest.approx(tick) for tick in shown)


def test_validations_lie_between_the_steps_that_are_logged():
    lines = [{"step": s, "tokens_seen": 100 * s, "loss": 5 - s / 10} for s in (1, 10, 20)]
    lines += [{"step": 15, "validation_loss": 3.0}, {"step": 16, "validation_loss": math.nan}]
    tokens, losses = Course("a", lines, 0.1).validations("validation_loss")
    assert tokens.tolist() == [1500] and losses.tolist() == [3.0]


def test_smoothing_keeps_ends_and_constants():
    values = np.exp(-np.arange(300) / 40) + 0.1 * np.random.default_rng(0).standard_normal(300)
    smooth = smoothed(values)
    assert smooth[0] == pytest.approx(values[0]) and smooth[-1] == pytest.approx(values[-1])
    assert np.abs(np.diff(smooth[5:-5])).mean() < np.abs(np.diff(values)).mean() / 2
    assert smoothed(np.full(50, 2.0)) == pytest.approx(np.full(50, 2.0)) and len(smoothed(np.zeros(0))) == 0


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_is_told_by_what_it_changes(name):
    plan = load_recipe(name)
    assert nearest_builtin(plan) == (name, [])
    changed = replace(plan, seed=plan.seed + 1)
    assert nearest_builtin(changed) == (name, [("seed", plan.seed, plan.seed + 1)])


def test_a_curve_in_text_rises_with_its_numbers():
    assert bars([1, 10, 100]) == ["▁▅█"] and bars([2, 2]) == ["▅▅"]
    upper, lower = bars([1, 100], 2)
    assert (upper, lower) == (" █", "▁█")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_course_of_a_run_in_text_fits_the_terminal(runs, width):
    state = state_of_run(runs / "done")
    lines = [*course_lines(state.course, measure_of(Causal()), width)]
    lines += weight_lines(weight_sizes(build(config(num_layers=6))), width)
    assert max(map(len, lines)) <= width and "gradient norm" in "".join(lines)


def test_inspect_shows_how_a_run_went_and_draws_its_attention(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["inspect", "done", "--attention", "a.png", "--columns", "0"]) == 0
    output = capsys.readouterr().out
    for words in ("training loss", "gradient norm", "weights (RMS)", "row 0:", "a.png"):
        assert words in output, words
    assert main(["inspect", "done", "--attention", "b.png", "--prompt", "to be $", "--json"]) == 0
    assert "rows" not in json.loads(capsys.readouterr().out)
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()
    assert main(["inspect", "done", "--prompt", "to be"]) == 65 and "give --attention" in capsys.readouterr().err
    assert main(["inspect", "shakespeare", "--attention", "a.png"]) == 65
    assert "shakespeare is none" in capsys.readouterr().err


def test_attention_is_what_the_model_attends_by():
    torch.manual_seed(0)
    ids, source = np.arange(9), np.arange(5)
    decoder = build(config())
    weights = attention_weights(decoder, row_of(ids).inputs)
    recorded = record(decoder, torch.from_numpy(ids)[None], "decoder.blocks.*.mixer.weights")
    assert list(weights) == ["decoder"]
    for layer, of_layer in weights["decoder"].items():
        torch.testing.assert_close(of_layer, recorded[f"decoder.blocks.{layer}.mixer.weights"][0])
    both = build(pair(config()))
    row = row_of(ids, source=source)
    found = attention_weights(both, row.inputs, None, row.source)
    assert {kind: found[kind][1].shape[1:] for kind in found} == {"encoder": (5, 5), "decoder": (9, 9), "cross": (9, 5)}
    with pytest.raises(ValueError, match="no attention to draw: its mixers are lstm"):
        attention_weights(build(config(block=BlockConfig(mixer=LSTM()))), row_of(ids).inputs)


def test_the_first_tokens_of_a_row_read_as_the_row_does():
    model, row = build(config()), row_of(np.arange(12))
    whole = attention_weights(model, row.inputs)["decoder"][0]
    part = attention_weights(model, first_tokens(row.inputs, 7))["decoder"][0]
    torch.testing.assert_close(part, whole[:, :7, :7])


@pytest.mark.parametrize(("layers", "heads", "tokens"), [(1, 1, 3), (2, 3, 40), (3, 2, 60), (20, 16, 4)])
def test_attention_is_drawn_whatever_the_tokens_are(layers, heads, tokens):
    maps = {layer: torch.rand(heads, tokens, tokens).softmax(-1) for layer in range(layers)}
    names = (["$x$", "\\frac$", HOSTILE, "漢字", "\n"] * tokens)[:tokens]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_attention([Map("attention", maps, names, names)]).startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_probabilities_fit_the_terminal_and_have_colours(width):
    codec = ByteCodec()
    scores = [TokenScore(65, None, None, None, [])]
    scores += [
        TokenScore(66 + i, p, 1, 2.0, [(70 + j, 0.2) for j in range(5)]) for i, p in enumerate((0.9, 0.2, 0.02, 0.001))
    ]
    lines = [*to_lines(scores * 9, codec, width)]
    texts = ["".join(text for text, _ in line) for line in lines]
    assert max(map(len, texts)) <= max(width, 41) and sum("B" in text for text in texts)
    assert [style_of(p) for p in (0.9, 0.2, 0.02, 0.001)] == [style for _, style in LEVELS] and style_of(None) == ""

"""What a run will need is checked before its first step: nothing is written for a run that could not end."""

import json
import re
from dataclasses import replace

import pytest

from isoform.checkpoint.store import list_checkpoints
from isoform.cli import main
from isoform.config import ConfigError, dump_toml
from isoform.experiment import train
from isoform.machine import choose_machine
from isoform.objectives.config import Distillation, Masked, Seq2seq
from isoform.preparation import prepare
from isoform.recipe import Recipe, builtin_recipes, load_recipe, recipe_from_dict, with_changes
from isoform.training.config import Cosine, InverseSquareRoot, Training, WarmupStableDecay, doubts
from isoform.training.optimizer import schedule_factor

CPU = choose_machine("cpu", "float32")
pytestmark = pytest.mark.filterwarnings("ignore:records of several kinds")
STACK = {"num_layers": 1, "blocks": {"0": {"mixer": {"num_heads": 2}}}}
FORMS = {
    "encoder": {"encoder": STACK, "decoder": "none"},
    "decoder": {"decoder": STACK},
    "pair": {"encoder": STACK, "decoder": {**STACK, "cross": "separate"}},
}
PAIRS = [{"source": f"{n:04}", "target": f"{n + 1:04}"} for n in range(30)]
TEXTS = [{"text": f"{n:09}", "label": "odd" if n % 2 else "even"} for n in range(30)]
TAGGED = [{"tokens": ["a", "bc"], "tags": ["x", "y"]} for _ in range(30)]


def write(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def recipe(folder, form, kind, records, validation=None, **changes) -> Recipe:
    """Three steps, with a validation after each, on these records."""
    over = {"classification": "mean", "regression": "mean", "tagging": "each", "token_regression": "each"}.get(kind)
    head = {"kind": "pooled", "over": over} if over else {"kind": "vocabulary"}
    plain = {
        "data": {"path": write(folder / "train.jsonl", records), "rows": "packed"},
        "codec": {"kind": "bytes"},
        "objective": {"kind": kind},
        "model": {"model_dim": 8, "context_length": 32, "head": head, **FORMS[form]},
        "training": {"steps": 3, "global_batch_tokens": 64, "validate_every": 1, "sample_tokens": 4},
    }
    if validation is not None:
        plain["data"]["validation_path"] = write(folder / "validation.jsonl", validation)
    return with_changes(recipe_from_dict(plain), changes)


PROBLEMS = {
    "too long": (
        ("pair", "seq2seq", PAIRS, [{"source": "x" * 99, "target": "y"}]),
        "all 1 validation records don't fit a row of context_length=32, .* the first being .*validation.jsonl, line 1",
    ),
    "another kind": (
        ("pair", "seq2seq", PAIRS, [PAIRS[0], TEXTS[0]]),
        "validation.jsonl, line 2: seq2seq needs records",
    ),
    "another kind to train on": (("pair", "seq2seq", [*PAIRS, TEXTS[0]], PAIRS), "train.jsonl, line 31: seq2seq needs"),
    "an unknown label": (
        ("encoder", "classification", TEXTS, [TEXTS[1], {"text": "a", "label": "maybe"}]),
        "validation.jsonl, line 2: the label 'maybe' is not among even, odd",
    ),
    "no label": (
        ("encoder", "classification", TEXTS, [{"text": "a"}]),
        "validation.jsonl, line 1: classification needs",
    ),
    "no number": (
        ("encoder", "regression", [{"text": "a", "label": 1.5}] * 30, TEXTS),
        "validation.jsonl, line 1: regr",
    ),
    "an unknown tag": (
        ("encoder", "tagging", TAGGED, [{"tokens": ["a"], "tags": ["z"]}]),
        "validation.jsonl, line 1: the tags 'z' is not among x, y",
    ),
    "no tags": (("encoder", "tagging", TAGGED, [{"text": "a"}]), "validation.jsonl, line 1: .*tokens and tags"),
    "a name for a number": (
        ("encoder", "token_regression", [{"tokens": ["a"], "tags": [1.5]}] * 30, TAGGED),
        "validation.jsonl, line 1: the tags x, y aren't numbers",
    ),
    "nothing to predict": (
        ("decoder", "causal", TEXTS, [{"text": ""}]),
        "all 1 validation records .* nothing to predict, the first being .*validation.jsonl, line 1",
    ),
    "nothing to mask": (("encoder", "masked", TEXTS, [{"text": ""}]), "validation data .* none of them to predict"),
    "a pair to mask": (
        ("encoder", "masked", TEXTS, PAIRS),
        "validation.jsonl, line 1: this objective is for plain texts",
    ),
    "a pair to mask in training": (("encoder", "masked", [*TEXTS, PAIRS[0]], TEXTS), "train.jsonl, line 31: this obj"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_data_that_cant_be_trained_on_or_scored_is_refused_before_the_first_step(name, tmp_path):
    arguments, message = PROBLEMS[name]
    with pytest.raises(ValueError, match=message):
        train(recipe(tmp_path, *arguments), tmp_path / "run", machine=CPU)
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"])


def test_a_stream_without_a_target_is_refused(tmp_path):
    streamed = recipe(tmp_path, "decoder", "causal", TEXTS, [{"text": ""}], data={"rows": "stream"})
    with pytest.raises(ValueError, match=r"validation data has 1 tokens and none .*validation.jsonl, line 1; give"):
        prepare(streamed)


def test_a_stream_names_the_record_that_is_no_plain_text(tmp_path):
    with pytest.raises(ValueError, match=r"plain texts, which .*validation.jsonl, line 2 isn't; set it to packed"):
        prepare(recipe(tmp_path, "decoder", "causal", TEXTS, [TEXTS[0], PAIRS[0]], data={"rows": "stream"}))


def test_a_part_of_a_mixture_that_is_too_short_is_named(tmp_path):
    made = recipe(tmp_path, "decoder", "causal", TEXTS)
    short = write(tmp_path / "short.jsonl", TEXTS[:2])
    parts = [{"path": made.data.path}, {"path": short}]
    with pytest.raises(ValueError, match=r"^data.mixture, .*short.jsonl: the training text has 10 tokens, too few"):
        prepare(with_changes(made, {"data": {"mixture": parts, "rows": "stream"}}))


def test_a_start_that_doesnt_fit_begins_no_run(tmp_path):
    made = recipe(tmp_path, "decoder", "causal", TEXTS)
    train(made, tmp_path / "start", machine=CPU)
    wider = replace(with_changes(made, {"model": {"model_dim": 16}}), start=str(tmp_path / "start"))
    with pytest.raises(ValueError, match="model_dim: 8 there, 16 here"):
        train(wider, tmp_path / "run", machine=CPU)
    fitting = replace(made, start=str(tmp_path / "start"))
    assert train(fitting, tmp_path / "run", machine=CPU).summary.exists(), "the folder can be used for another recipe"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"context_length": 64}}, "the teacher .* reads 32 tokens, fewer than the rows of 64; set"),
        ({"model": {"vocab_size": 300}}, "scores 258 tokens, fewer than model.vocab_size=300; leave that out"),
        ({"model": FORMS["pair"]}, r"a model of another form \(decoder\); this recipe's is encoder_decoder"),
    ],
)
def test_a_teacher_that_cant_score_the_rows_is_refused(changes, message, tmp_path):
    made = recipe(tmp_path, "decoder", "causal", PAIRS)
    train(made, tmp_path / "teacher", machine=CPU)
    student = replace(made, objective=Distillation(teacher=str(tmp_path / "teacher")))
    with pytest.raises(ValueError, match=message):
        prepare(with_changes(student, changes))
    assert prepare(student).teacher is not None


def test_a_sample_prompt_that_doesnt_fit_is_left_out(tmp_path):
    long = recipe(tmp_path, "pair", "seq2seq", PAIRS, sample_prompt="x" * 99)
    run = train(long, tmp_path / "run", machine=CPU)
    assert run.samples.read_text().startswith("== step 3\n") and "xxx" not in run.samples.read_text()


def test_checkpoints_that_wont_be_there_to_average_are_missed_at_once(tmp_path):
    averaged = {"checkpoint_every": 1, "keep_checkpoints": 3, "average_checkpoints": 3}
    made = recipe(tmp_path, "decoder", "causal", TEXTS, training=averaged)
    checkpoints = tmp_path / "run/checkpoints"
    run = train(made, tmp_path / "run", machine=CPU, should_stop=lambda: len(list_checkpoints(checkpoints)) == 1)
    first = min(list_checkpoints(run.checkpoints), key=lambda checkpoint: checkpoint.step)
    first.path.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"only 2 of the 3 checkpoints .* at step 3, .* training.steps"):
        train(made, run.folder, machine=CPU)
    extended = with_changes(made, {"training": {"steps": 4}})
    assert train(extended, run.folder, machine=CPU).summary.exists()


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        (WarmupStableDecay(warmup_steps=2000), 8, "warmup_steps=2000 is not below .*steps=8: .* reaches 0.004 of its"),
        (Cosine(warmup_steps=8), 8, "warmup_steps=8 is not below training.steps=8: .* reaches 1 of its peak"),
        (InverseSquareRoot(), 1000, "warmup_steps=4000 is not below training.steps=1000: .* reaches 0.25 of its peak"),
        (
            WarmupStableDecay(warmup_steps=50),
            60,
            "decay_fraction=0.3 .* begins after step 42, .* ends at step 50",
        ),
        (WarmupStableDecay(warmup_steps=5, decay_fraction=1.0), 60, "begins after step 0, before .* ends at step 5"),
        (WarmupStableDecay(warmup_steps=42), 60, None),
        (WarmupStableDecay(warmup_steps=59, decay_fraction=0.0), 60, None),
        (WarmupStableDecay(decay_fraction=1.0), 60, None),
        (Cosine(warmup_steps=7), 8, None),
        (InverseSquareRoot(warmup_steps=999), 1000, None),
        (Cosine(), 1, None),
    ],
)
def test_a_learning_rate_that_never_reaches_its_peak_is_doubted(schedule, steps, message):
    training = Training(schedule=schedule, steps=steps)
    peak = max(schedule_factor(schedule, step, steps) for step in range(steps))
    said = doubts(training)
    assert bool(said) == (message is not None) and all(re.search(message, doubt) for doubt in said)
    assert said or peak > 0.97


def test_doubts_are_said_before_the_first_step(tmp_path, capfd):
    made = recipe(tmp_path, "decoder", "causal", TEXTS, training={"schedule": {"warmup_steps": 2000}})
    train(made, tmp_path / "run", machine=CPU)
    path = tmp_path / "own.toml"
    path.write_text(dump_toml(made))
    assert main(["train", str(path), "--dry_run"]) == 0
    warned = [line for line in capfd.readouterr().err.splitlines() if "warmup_steps=2000 is not below" in line]
    assert len(warned) == 2


def test_no_builtin_recipe_is_doubted():
    assert [name for name in builtin_recipes() if doubts(load_recipe(name).training)] == []


def test_checkpoints_of_an_endless_run_are_counted_at_once(tmp_path):
    training = {"checkpoint_every": 1, "keep_checkpoints": 3, "average_checkpoints": 3, "steps": 2**50}
    made = recipe(tmp_path, "decoder", "causal", TEXTS, training=training)
    assert not train(made, tmp_path / "run", machine=CPU, should_stop=lambda: True).summary.exists()


@pytest.mark.parametrize("objective", [Masked(rate=0.01), Seq2seq()], ids=["masked", "seq2seq"])
def test_a_batch_of_validation_without_targets_counts_nothing(objective, tmp_path):
    form, records = ("encoder", [{"text": "abc"}, {"text": ""}]) if isinstance(objective, Masked) else ("pair", PAIRS)
    made = recipe(tmp_path, form, "masked" if form == "encoder" else "seq2seq", records * 3, records)
    assert train(made, tmp_path / "run", machine=CPU).summary.exists()

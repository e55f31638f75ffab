"""Every number of every config has a range, and is checked wherever it comes from."""

import dataclasses
import importlib
import inspect
import math
import subprocess
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import isoform
from isoform.cli import main
from isoform.config import ConfigError, from_dict, overlay, to_dict
from isoform.generation.config import Beam, Sampling
from isoform.mask import Mask, Window
from isoform.model.config import Lookup, ModelConfig, StackConfig
from isoform.model.parts import Llama3Extension, NTKExtension, Rotary
from isoform.model.position import rotary_frequencies
from isoform.options import ScaleOptions
from isoform.ranges import OutOfRange, Positive, Range, Rate, Share, ranges_of
from isoform.recipe import Recipe
from isoform.terminal import ExitCode
from isoform.training.config import AdamW, Muon, Training

SOURCE = Path(isoform.__file__).parent
MODULES = [
    "recipe", "options", "mask", "model.parts", "model.baseline_config",
    *("scaling.claims", "scaling.measures", "scaling.statistics", "scaling.truths", "scaling.worlds"),
    *(f"{path.parent.name}.config" for path in sorted(SOURCE.glob("*/config.py"))),
]  # fmt: skip
VALUES = [math.nan, math.inf, -math.inf, -1, 0, 0.5, 1, 2**63, 10**400, 1e300, True, "many"]
EXAMPLES: dict[str, dict[str, Any]] = {
    "Denoiser": {"mode": "R", "rate": 0.5},
    "Window": {"before": 3},
    "Strided": {"stride": 3},
    "FixedSparse": {"stride": 3},
    "Local2D": {"rows": 3, "columns": 3},
    "Condition": {"value": "a.loss", "at_least": 0.0},
    "Arm": {"name": "a"},
    "Part": {"path": "a"},
    "Claim": {"statement": "", "source": "", "says": "", "statistic": None, "rule": (), "headline": None, "limits": ""},
    "Contrast": {"name": "a", "weights": {}},
    "Expected": {"arm": "a"},
    "Power": {"noise": {}},
    "Validation": {"name": "a", "what": "accuracy"},
    "Answers": {"name": "a", "path": "a"},
    "Translation": {"name": "a", "path": "a", "language": "en"},
    "Conversation": {"name": "a", "what": "read_again"},
}
"""What those classes need that have fields without defaults."""


def configs() -> list[type]:
    """All config classes, those of masks included."""
    classes = set()
    for name in MODULES:
        module = importlib.import_module(f"isoform.{name}")
        members = inspect.getmembers(module, inspect.isclass)
        classes |= {c for _, c in members if dataclasses.is_dataclass(c) and c.__module__ == module.__name__}
    return sorted(classes, key=lambda c: (c.__module__, c.__qualname__))


def holds_numbers(hint: Any) -> bool:
    """Whether a field is a number, or holds some in a tuple or dictionary."""
    hint = hint.__origin__ if get_origin(hint) is Annotated else hint
    if get_origin(hint) in (Union, UnionType, tuple, dict):
        return any(map(holds_numbers, get_args(hint)))
    return hint in (int, float)


def fields() -> list[tuple[type, str]]:
    skipped = ("Coordinates", "Requirements", "CostAxis", "LoadedClaim", "KnownItems")  # values, never read from files
    skipped += ("Check", "TrueLaw", "LadderWorld", "Decision")
    return [
        (cls, name)
        for cls in configs()
        if cls.__name__ not in skipped
        for name, hint in get_type_hints(cls, include_extras=True).items()
        if holds_numbers(hint) and name in {field.name for field in dataclasses.fields(cls)}
    ]


def test_there_are_many():
    assert len(fields()) > 180


@pytest.mark.parametrize(("cls", "name"), fields(), ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_a_number_is_in_the_declared_range_or_refused_by_name(cls, name):
    assert name in ranges_of(cls), "declare its range, by one of the names in ranges.py"
    limits, is_whole = ranges_of(cls)[name]
    hint, base = str(get_type_hints(cls)[name]), EXAMPLES.get(cls.__name__, {})
    for value in VALUES:
        kind = int if is_whole else (int, float)
        is_allowed = isinstance(value, kind) and not isinstance(value, bool) and limits.contains(value)
        given = (value,) if "tuple" in hint else {"a": value} if "dict" in hint else value
        try:
            cls(**{**base, name: given})
        except OutOfRange as error:
            assert not is_allowed and str(error).startswith(f"{name}=") and " must be " in str(error), (value, error)
        except ValueError as error:  # a number that doesn't fit the others
            assert is_allowed and len(str(error)) > 20, (value, error)
        else:
            assert is_allowed, f"{name}={value} is built"


def test_no_range_lets_nan_infinity_or_what_float32_cant_hold_through():
    for limits in (Range(), Range(above=0), Range(at_least=0)):
        assert not any(map(limits.contains, (math.nan, math.inf, -math.inf, 1e39, -1e39, 10**400)))
    assert Range().contains(-1e38) and Range(above=0).contains(1e-300) and not Range(above=0).contains(0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Muon(momentum=4.95), "momentum=4.95 must be at least 0 and below 1"),
        (lambda: Training(clip_norm=math.nan), "clip_norm=nan must be above 0"),
        (lambda: Training(clip_norm=math.inf), r"clip_norm=inf must be above 0 and at most 3\.40282e\+38"),
        (
            lambda: Training(steps=2**63),
            "steps=9223372036854775808 must be at least 1 and at most 9,007,199,254,740,992",
        ),
        (lambda: Training(steps=2.5), r"steps=2\.5 must be an integer"),
        (lambda: Lookup(ngrams=(3, 1)), "ngrams=1 must be at least 2"),
        (lambda: Window(-1), "before=-1 must be at least 0"),
        (lambda: ScaleOptions(price={"here": -1.0}), r"price=-1\.0 must be at least 0"),
        (lambda: Training(clip_norm=1e-300), r"clip_norm=1e-300 must be at least 1\.17549e-38"),
        (lambda: Sampling(repetition_penalty=1e-30), r"repetition_penalty=1e-30 must be at least 0\.001"),
        (lambda: Sampling(num_samples=10**9), "num_samples=1000000000 must be at least 1 and at most 10,000"),
        (lambda: Beam(length_penalty=1e5), r"length_penalty=100000\.0 must be at least -5 and at most 5"),
        (lambda: Sampling(top_p=1.5), r"top_p=1\.5 must be at least 0 and at most 1"),
        (lambda: AdamW(learning_rate="1e-3"), "learning_rate='1e-3' must be a number"),
        (lambda: dataclasses.replace(Training(), steps=0), "steps=0 must be at least 1"),
    ],
)
def test_python_is_told_the_field_the_value_and_the_range(build, message):
    with pytest.raises(OutOfRange, match=f"^{message}$"):
        build()


def test_files_and_flags_are_told_the_path(capsys):
    for read in (
        lambda: from_dict(Recipe, {"training": {"optimizer": {"kind": "muon", "adam": {"beta2": 1.0}}}}),
        lambda: overlay(
            Recipe(training=Training(optimizer=Muon())), {"training": {"optimizer": {"adam": {"beta2": 1}}}}
        ),
    ):
        with pytest.raises(
            ConfigError, match=r"^training\.optimizer\.adam\.beta2=1\.0 must be at least 0 and below 1$"
        ):
            read()
    for flags, message in (
        (["--training.optimizer.learning_rate=-1"], "training.optimizer.learning_rate=-1.0 must be at least 0"),
        (
            ["--model.decoder.blocks.0.mixer.dropout", "2"],
            "model.decoder.blocks.0.mixer.dropout=2.0 must be at least 0",
        ),
        (["--training.clip_norm", "nan"], "training.clip_norm=nan must be above 0"),
        (["--seed=-1"], "seed=-1 must be at least 0"),
    ):
        assert main(["train", "shakespeare", *flags]) == ExitCode.BAD_INPUT
        assert f"isoform: {message}" in capsys.readouterr().err


def test_numbers_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"high_frequency_factor=1\.0 must be above low_frequency_factor=1\.0"):
        Llama3Extension(high_frequency_factor=1.0)
    with pytest.raises(ValueError, match="needs two turned pairs"):
        rotary_frequencies(Rotary(extension=NTKExtension()), 2)
    assert rotary_frequencies(Rotary(extension=NTKExtension()), 4)[0].isfinite().all()


def test_numbers_of_numpy_are_numbers():
    assert Training(steps=np.int64(3)).steps == 3 and Muon(momentum=np.float32(0.5)).momentum == 0.5
    with pytest.raises(OutOfRange):
        Training(steps=np.float64(3))


def test_a_subclass_and_its_base_are_checked():
    assert issubclass(Window, Mask)
    lstm = importlib.import_module("isoform.model.baseline_config").LSTM
    for name in ("num_layers", "model_dim"):
        with pytest.raises(OutOfRange, match=f"{name}=0 must be at least 1"):
            lstm(**{name: 0})


def test_an_absurd_number_of_layers_is_refused_before_a_list_is_made():
    with pytest.raises(OutOfRange, match=r"num_layers=1000000000 must be at least 1 and at most 10,000"):
        ModelConfig(decoder=StackConfig(num_layers=10**9))


def test_marks_of_ranges_change_neither_files_nor_flags():
    assert get_args(Positive)[0] is get_args(Rate)[0] is get_args(Share)[0] is float
    assert from_dict(Recipe, to_dict(Recipe(), in_full=True)) == Recipe()


def test_ranges_are_read_without_torch():
    code = "import sys, isoform.ranges, isoform.recipe, isoform.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

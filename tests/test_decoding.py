"""The number format of decoding is measured, once; the cache of what is measured; how doctor and generate state it."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from isoform.cli import main
from isoform.machine import choose_machine, remembered
from isoform.model import decoding
from isoform.model.baselines import build_module
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.cost import num_matrix_parameters
from isoform.model.decoding import GAIN, MOST, decoding_speed, shapes_of
from isoform.model.parts import Attention
from isoform.run import load

CPU = choose_machine("cpu", "float32")
SHAPES = [(24, 8), (8, 8), (32, 8), (8, 32)]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/measured"


@pytest.fixture
def rates(monkeypatch) -> dict[str, float]:
    """What measuring finds, and how often it was done."""
    found = {"float32": 100.0, "bfloat16": 100.0, "calls": 0}

    def measure(shapes):
        found["calls"] += 1
        return {name: found[name] for name in ("float32", "bfloat16")}

    monkeypatch.setattr(decoding, "_measure", measure)
    return found


def test_the_shapes_are_those_of_the_matrices_of_the_blocks():
    config = ModelConfig(
        model_dim=16,
        vocab_size=20,
        context_length=8,
        decoder=StackConfig(num_layers=3, blocks=(BlockConfig(mixer=Attention(num_heads=2)),)),
    )
    shapes = shapes_of(build_module(config))
    assert sum(outputs * inputs for outputs, inputs in shapes) == num_matrix_parameters(config)


def test_both_formats_are_measured_in_a_moment(cache):
    speed = decoding_speed(CPU, SHAPES)
    assert speed.numbers == 512 and speed.is_kept and speed.rates.keys() == {"float32", "bfloat16"}
    assert all(10 < rate < 1e7 for rate in speed.rates.values())
    assert decoding_speed(CPU, SHAPES) == speed


@pytest.mark.parametrize(
    ("bfloat16", "dtype"),
    [(100, torch.float32), (100 / GAIN * 0.99, torch.float32), (100 / GAIN * 1.01, torch.bfloat16), (1, torch.float32)],
)
def test_ties_go_to_float32(cache, rates, bfloat16, dtype):
    rates["bfloat16"] = float(bfloat16)
    assert decoding_speed(CPU, SHAPES).dtype == dtype


def test_a_size_class_is_measured_once_and_another_one_anew(cache, rates):
    first = decoding_speed(CPU, SHAPES)
    rates["bfloat16"] = 900.0
    assert decoding_speed(CPU, [*SHAPES, (8, 8)]) == first and rates["calls"] == 1
    assert decoding_speed(CPU, SHAPES * 2).dtype == torch.bfloat16 and rates["calls"] == 2
    assert decoding_speed(CPU, SHAPES, refresh=True).dtype == torch.bfloat16 and rates["calls"] == 3
    assert decoding_speed(CPU, [(2**14, 2**14)]).numbers == decoding_speed(CPU, [(2**16, 2**16)]).numbers == MOST
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        calls = rates["calls"]
        decoding_speed(CPU, SHAPES)
        assert rates["calls"] == calls + 1


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "edited": lambda text: text.replace("1.5", "2.5"),
    "empty": lambda text: "",
    "no JSON": lambda text: "hello",
    "of others": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_or_of_another_machine_is_measured_again(cache, damage):
    assert remembered("x", {"machine": "a"}, lambda: {"rate": 1.5}).rates == {"rate": 1.5}
    assert remembered("x", {"machine": "a"}, lambda: {"rate": 3.0}).rates == {"rate": 1.5}
    assert remembered("x", {"machine": "b"}, lambda: {"rate": 7.0}).rates == {"rate": 7.0}
    one, other = sorted(cache.iterdir(), key=lambda path: "1.5" not in path.read_text())
    change = DAMAGE[damage]
    one.write_text(other.read_text() if change is None else change(one.read_text()))
    assert remembered("x", {"machine": "a"}, lambda: {"rate": 3.0}).rates == {"rate": 3.0}
    assert remembered("x", {"machine": "a"}, lambda: {"rate": 4.0}).rates == {"rate": 3.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoding")
    (folder / "text.txt").write_text("ROMEO: to be, or not to be, that is the question.\n" * 80)
    before = Path.cwd()
    os.chdir(folder)
    words = ["train", "shakespeare", "--data.path", "text.txt", "--model.model_dim", "16", "--training.steps", "2"]
    words += ["--model.context_length", "16", "--training.global_batch_tokens", "64", "--training.sample_tokens", "1"]
    assert main([*words, "--no_report", "-q", "--out", "run"]) == 0
    os.chdir(before)
    return folder / "run"


def generate(capsys, run: Path, *flags: str) -> tuple[str, str]:
    assert main(["generate", str(run), "--prompt", "to", "--max_tokens", "3", "--json", *flags]) == 0
    out, err = capsys.readouterr()
    return json.loads(out)["machine"]["dtype"], err


def test_generate_states_the_format_and_a_flag_overrides_it(cache, rates, run, capsys):
    assert generate(capsys, run)[0] == "float32"
    rates["bfloat16"] = 900.0
    assert generate(capsys, run)[0] == "float32" and rates["calls"] == 1  # as before, by the cache
    for path in cache.glob("decoding-*"):
        path.unlink()
    assert generate(capsys, run)[0] == "bfloat16"
    assert generate(capsys, run, "--dtype", "float32")[0] == "float32"
    rates["bfloat16"] = 1.0
    assert generate(capsys, run, "--dtype", "bfloat16")[0] == "bfloat16" and rates["calls"] == 2
    assert load(run).dtype == torch.float32


@pytest.mark.filterwarnings("default:the format in which")
def test_a_cache_that_cant_be_written_is_warned_of(tmp_path, monkeypatch, rates, run, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "file/cache"))
    assert "can't be kept in" in generate(capsys, run)[1]
    assert "can't be kept in" not in generate(capsys, run, "--dtype", "float32")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(run)


def test_doctor_shows_training_and_decoding_in_both_formats(cache, rates, monkeypatch, capsys):
    monkeypatch.setattr("isoform.busy.LEAST_SECONDS", 0.0)
    rates["bfloat16"] = 200.0
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert values["training"].keys() == {"float32", "bfloat16"} and values["cores"] >= 1
    assert [each["format"] for each in values["decoding"]] == ["bfloat16"] * 4
    assert all(each["tokens_per_second"]["bfloat16"] == 200.0 for each in values["decoding"])
    assert err.count("decoding        in bfloat16") == 4 and "training        in " in err

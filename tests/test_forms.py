"""The presets: their published sizes, and the page that lists them."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from isoform.config import differences, from_dict, overlay, to_dict
from isoform.model.config import ModelConfig
from isoform.model.cost import num_active_parameters, num_parameters
from isoform.model.presets import PRESETS
from isoform.recipe import load_recipe, with_changes
from isoform.report import forms_table

PAGE = Path(__file__).parent.parent / "docs/forms.md"
COUNTED = {  # as the makers' own files have it
    "bert": 109_514_298,
    "gpt2": 124_439_808,
    "gemma3": 999_885_952,
    "llama2": 6_738_415_616,
    "llama3": 8_030_261_248,
    "mistral": 7_241_732_096,
    "mixtral": 46_702_792_704,
    "modernbert": 149_655_232,
    "olmo2": 7_298_617_344,
    "pythia": 162_322_944,
    "qwen3": 596_049_920,
    "qwen3-moe": 30_532_122_624,
    "smollm2": 134_515_008,
    "t5": 247_577_856,
    "vit": 86_567_656,
    "whisper": 37_760_256,
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_preset_has_its_published_size(name):
    assert num_parameters(PRESETS[name].model) == COUNTED[name]


def test_active_parameters_are_those_that_are_published():
    assert round(num_active_parameters(PRESETS["mixtral"].model) / 1e9, 1) == 12.9
    assert round(num_active_parameters(PRESETS["qwen3-moe"].model) / 1e9, 1) == 3.4  # with embeddings; "3.3B" without


def test_the_page_of_forms_has_the_table_of_the_presets():
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split("| preset |", 1)
    after = rest.split("\n\n", 1)[1]
    made = before + forms_table() + "\n" + after
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == text, "run the tests once with UPDATE_SNAPSHOTS=1"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written(name):
    model = PRESETS[name].model
    assert from_dict(ModelConfig, to_dict(model)) == model


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_starts_any_model_afresh(name):
    model, recipe = PRESETS[name].model, load_recipe("multi30k")
    assert all(overlay(other.model, to_dict(model, in_full=True)) == model for other in PRESETS.values())
    if model.form == "encoder_decoder":
        there = with_changes(recipe, {"model": {"preset": name, "context_length": 64}}).model
        assert there == replace(model, vocab_size=0, context_length=64)


def test_two_forms_differ_in_a_few_fields():
    llama2, mistral = (to_dict(PRESETS[name].model) for name in ("llama2", "mistral"))
    fields = {path.rsplit(".", 1)[-1] for path, _, _ in differences(llama2, mistral)}
    assert {"num_kv_heads", "feedforward_dim", "context_length"} < fields and len(fields) <= 6

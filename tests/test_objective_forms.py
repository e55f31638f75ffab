"""Every objective on every form: trained for twenty steps, or refused with the reason that the page gives."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from isoform.batch import Batch, Encoding, collate
from isoform.codecs.text import CharacterCodec
from isoform.config import kind_of
from isoform.data.config import Data
from isoform.mask import Causal as CausalMask
from isoform.mask import Full, Mask
from isoform.mask import Prefix as PrefixMask
from isoform.model.config import Head, ModelConfig, Pooled, StackConfig, Vocabulary
from isoform.model.transformer import Transformer
from isoform.objectives.config import (
    Causal,
    Classification,
    Contrastive,
    DenoiserMixture,
    Distillation,
    Masked,
    Objective,
    Prefix,
    Regression,
    Seq2seq,
    SpanCorruption,
    Tagging,
    TokenRegression,
    requirements_of,
)
from isoform.objectives.corruption import special_tokens
from isoform.objectives.task import build_task
from isoform.objectives.views import check_view
from isoform.recipe import Recipe
from isoform.trained import view_of
from isoform.training.config import Training

PAGE = Path(__file__).parent.parent / "docs/objectives.md"
STACK = StackConfig(num_layers=1)
DECODER = ModelConfig(model_dim=16, context_length=64, decoder=STACK)
BOTH_WAYS, PREFIX = Full(), PrefixMask() | CausalMask()
FORMS: dict[str, tuple[ModelConfig, Mask | None]] = {
    "encoder": (replace(DECODER, encoder=STACK, decoder=None), None),
    "decoder, causal": (DECODER, CausalMask()),
    "decoder, full mask": (DECODER, BOTH_WAYS),
    "decoder, prefix": (DECODER, PREFIX),
    "encoder–decoder": (replace(DECODER, encoder=STACK, decoder=replace(STACK, cross="separate")), None),
    "joint": (replace(DECODER, encoder=STACK, decoder=replace(STACK, cross="joint")), None),
}
OBJECTIVES: list[Objective] = [
    Causal(),
    Prefix(),
    Seq2seq(),
    Masked(),
    SpanCorruption(num_special=9),
    DenoiserMixture(num_special=9),
    Classification(labels=("a", "b")),
    Regression(),
    Tagging(labels=("a", "b")),
    TokenRegression(),
    Contrastive(),
    Distillation(),
]
CELLS = [pytest.param(o, form, id=f"{kind_of(type(o))}, {form}") for o in OBJECTIVES for form in FORMS]


def recipe_for(objective: Objective, form: str) -> Recipe:
    answer = requirements_of(objective).answer
    heads: dict[str, Head] = {
        "vocabulary": Vocabulary(),
        "document": Pooled(over="mean", num_outputs=requirements_of(objective).num_outputs or 2),
        "token": Pooled(over="each", num_outputs=requirements_of(objective).num_outputs or 2),
        "embedding": Pooled(over="mean", embed=True),
    }
    codec = codec_for(objective)
    model = replace(FORMS[form][0], head=heads[answer], vocab_size=codec.vocab_size)
    return Recipe(
        data=Data(path="", rows="packed"), objective=objective, model=model, training=Training(global_batch_tokens=64)
    )


def codec_for(objective: Objective) -> CharacterCodec:
    return CharacterCodec("abcdefgh").with_special(special_tokens(objective))


@cache
def cell(number: int, form: str) -> Recipe | str:
    """A recipe of this objective on this form, or why there is none."""
    objective, mask = OBJECTIVES[number], FORMS[form][1]
    try:
        recipe = recipe_for(objective, form)
    except ValueError as error:
        assert requirements_of(objective).otherwise in str(error)
        return requirements_of(objective).otherwise
    has_choice = mask is not None and isinstance(objective, SpanCorruption | DenoiserMixture)
    for variant in (objective, *([replace(objective, causal=True)] if has_choice else [])):
        candidate = replace(recipe, objective=variant)
        if mask is None or view_of(candidate, codec_for(objective)).inputs_mask == mask:
            return candidate
    return why_not(recipe, mask)


def why_not(recipe: Recipe, mask: Mask) -> str:
    """Why an objective reads with another mask than this, as far as that is a fact that can be checked."""
    view = view_of(recipe, codec_for(recipe.objective))
    text = codec_for(recipe.objective).encode({"text": "abcdefgh" * 4})
    if isinstance(recipe.objective, Masked):
        return "a masked token is filled in from both sides, so that the mask is full"
    if view.is_whole:
        assert view.inputs_mask == CausalMask()
        return "a decoder reads it causally, as it was trained to; an encoder reads it in both directions"
    if mask == BOTH_WAYS:
        with pytest.raises(AssertionError, match="its own target"):
            check_view(replace(view, inputs_mask=mask), [text])
        return "each token would see its own target"
    if isinstance(recipe.objective, Distillation):
        return "a teacher's distributions are those after each token of a text read causally"
    other = Prefix() if mask == PREFIX else Causal()
    assert view_of(replace(recipe, objective=other), codec_for(other)).inputs_mask == mask
    return f"that is the objective `{kind_of(type(other))}`"


def batch_of(recipe: Recipe) -> Batch:
    """Eight records, one per row."""
    objective, codec = recipe.objective, codec_for(recipe.objective)
    view, rng = view_of(recipe, codec), np.random.default_rng(0)
    examples = []
    for i in range(8):
        letters = "".join(np.roll(list("abcdefgh"), i))
        has_source = isinstance(objective, Seq2seq | Contrastive) or (
            isinstance(objective, Distillation) and recipe.is_encoder_decoder
        )
        encoding = codec.encode(
            {"source": letters[:4], "target": letters[3::-1]} if has_source else {"text": letters[:2] * 12}
        )
        if isinstance(objective, Tagging | TokenRegression):
            encoding = Encoding(encoding.ids, tags=(encoding.ids % 2).astype(np.float32))
        examples.append(view.example(replace(encoding, label=i % 2), rng))
    source = max((len(e.source) for e in examples if e.source is not None), default=None)
    return collate([[e] for e in examples], max(len(e.inputs) for e in examples), source)


@pytest.mark.parametrize(("objective", "form"), CELLS)
def test_a_cell_trains_or_is_refused(objective, form):
    recipe = cell(OBJECTIVES.index(objective), form)
    if isinstance(recipe, str):
        assert recipe
        return
    torch.manual_seed(0)
    model, teacher = Transformer(recipe.model), Transformer(recipe.model)
    task, batch = build_task(recipe.objective, view_of(recipe, codec_for(objective)), teacher), batch_of(recipe)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(20):
        loss = task.loss(model, batch)
        losses.append(float(loss.total.detach() / loss.weight))
        optimizer.zero_grad()
        loss.total.backward()
        assert all(p.grad is not None for p in model.parameters()), "a parameter that no loss reaches"
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_page_has_the_table():
    reasons: dict[str, int] = {}

    def entry(number: int, form: str) -> str:
        found = cell(number, form)
        if not isinstance(found, str):
            return "`causal = true`" if getattr(found.objective, "causal", False) else "yes"
        return f"– {reasons.setdefault(found, len(reasons) + 1)}"

    lines = ["| objective | " + " | ".join(FORMS) + " |", "|---" * (len(FORMS) + 1) + "|"]
    for number, objective in enumerate(OBJECTIVES):
        lines.append(f"| `{kind_of(type(objective))}` | " + " | ".join(entry(number, form) for form in FORMS) + " |")
    lines += ["", *(f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in reasons.items())]
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split("| objective |", 1)
    after = rest.split("\n\n", 2)[2]
    made = before + "\n".join(lines) + "\n\n" + after
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == text, "run the tests once with UPDATE_SNAPSHOTS=1"

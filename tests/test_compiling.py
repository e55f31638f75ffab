"""Compiled blocks: a program for each kind, whatever the batch and the layer, with the numbers of uncompiled ones."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from isoform.batch import Batch, Encoding, Example, collate
from isoform.experiment import train
from isoform.machine import choose_machine, compiler
from isoform.model import block, compiling
from isoform.model.auxiliary import Auxiliary
from isoform.model.config import ModelConfig
from isoform.model.recording import recorder_of
from isoform.model.transformer import Transformer
from isoform.objectives.config import Causal
from isoform.objectives.losses import Loss
from isoform.objectives.task import build_task
from isoform.objectives.views import build_view
from isoform.recipe import recipe_from_dict
from models import FORMS, VOCAB, build, config, pair

pytestmark = [  # of torch, by its compiler
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

TASK = build_task(Causal(), build_view(Causal()))
JOINT = replace(pair(config()), decoder=replace(pair(config()).decoder, cross="joint"))
LAYERWISE = replace(JOINT, decoder=replace(JOINT.decoder, memory_layers="layerwise"))


@pytest.fixture
def programs(monkeypatch):
    """The graphs that were compiled; they are run as they are."""
    graphs, compile = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, backend=backend, **options))
    block._compiled_block.cache_clear()
    torch.compiler.reset()
    yield graphs
    block._compiled_block.cache_clear()
    torch.compiler.reset()


def batch_of(form: ModelConfig, step: int, *, length: int = 12, packed: bool = False) -> Batch:
    """Three rows, others for each step; packed: two documents and padding in each."""
    rng = np.random.default_rng(step)
    rows, sizes = [], (length - 6, 4) if packed else (length,)
    for _ in range(3):
        ids = [rng.integers(VOCAB, size=n) for n in rng.permutation(sizes)]
        sources = [Encoding(rng.integers(VOCAB, size=length // 3)) if form.encoder is not None else None for _ in ids]
        pairs = zip(ids, sources, strict=True)
        rows.append([Example(Encoding(t), t, np.ones(len(t), np.float32), source) for t, source in pairs])
    return collate(rows, length, length // 3 * len(sizes) if form.encoder is not None else None)


def step_of(model: Transformer, batch: Batch) -> tuple[Loss, list[torch.Tensor | None]]:
    """The loss and all gradients, with the same draws each time."""
    torch.manual_seed(0)
    model.zero_grad()
    loss = TASK.loss(model, batch)
    loss.total.backward()
    return loss, [parameter.grad for parameter in model.parameters()]


def trained_programs(form: ModelConfig, programs: list, *, packed: bool = False) -> list[int]:
    """How many programs each of four steps of training makes."""
    model, counts = build(form).train(), []
    model.compile_blocks()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(4):
        before = len(programs)
        step_of(model, batch_of(form, step, packed=packed))
        optimizer.step()
        counts.append(len(programs) - before)
    return counts


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("form", "kinds"),
    [
        (config(num_layers=12), 1),
        (pair(config(num_layers=6)), 2),  # the encoder's blocks, and the decoder's with cross-attention
        (FORMS["shortcuts"], 2),  # the first block has no values from below
        (FORMS["shaw"], 1),
        (FORMS["buckets"], 1),
        (FORMS["looped"], 1),
        (JOINT, 2),
        (LAYERWISE, 1),  # the encoder's keys and values are recorded, which runs uncompiled
    ],
    ids=["decoder", "encoder-decoder", "shortcuts", "shaw", "buckets", "looped", "joint", "layerwise"],
)
def test_blocks_of_a_kind_are_one_program_for_all_batches_and_layers(form, kinds, packed, programs):
    assert trained_programs(form, programs, packed=packed) == [kinds, 0, 0, 0]


@pytest.mark.parametrize("name", ["experts", "recurrence"])
def test_what_torch_cannot_translate_splits_a_block_into_as_many_parts_for_any_number_of_layers(name, programs):
    form = FORMS[name]
    few = trained_programs(form, programs)
    torch.compiler.reset()
    many = trained_programs(replace(form, decoder=replace(form.decoder, num_layers=12)), programs)
    assert few == many == [few[0], 0, 0, 0] and few[0] < 10


def test_products_in_bfloat16_are_compiled_once_for_training_and_once_for_evaluation(programs):
    plain = build(config(num_layers=3)).train()
    plain.set_matmul_dtype(torch.bfloat16)
    model = copy.deepcopy(plain)
    model.compile_blocks()
    for step in range(3):
        batch = batch_of(model.config, step)
        (loss, _), (expected, _) = step_of(model.train(), batch), step_of(plain.train(), batch)
        torch.testing.assert_close(loss.total, expected.total)
        with torch.no_grad():
            torch.testing.assert_close(TASK.loss(model.eval(), batch).total, TASK.loss(plain.eval(), batch).total)
            for parameter, that in zip(model.parameters(), plain.parameters(), strict=True):
                parameter.mul_(0.9), that.mul_(0.9)
        assert len(programs) == 2


@pytest.mark.parametrize(
    "name", ["shortcuts", "gpt2", "gated", "grouped", "experts", "exits", "recurrence", "pair", "dropout"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_numbers_are_those_of_uncompiled_blocks(name, packed, programs):
    form = {**FORMS, "pair": pair(FORMS["gained heads"]), "dropout": config(dropout=0.3)}[name]
    plain = build(form).train()
    model = copy.deepcopy(plain)
    model.compile_blocks()
    for step in range(2):
        batch = batch_of(form, step, packed=packed)
        (loss, gradients), (expected, those) = step_of(model, batch), step_of(plain, batch)
        torch.testing.assert_close(loss.total, expected.total)
        for gradient, that in zip(gradients, those, strict=True):
            torch.testing.assert_close(gradient, that)
    with torch.no_grad():
        torch.testing.assert_close(TASK.loss(model.eval(), batch).total, TASK.loss(plain.eval(), batch).total)


@pytest.mark.parametrize(("form", "kinds"), [(config(), 1), (pair(FORMS["buckets"]), 2)], ids=["decoder", "both"])
def test_shapes_that_vary_are_one_program_more(form, kinds, programs):
    plain = build(form).train()
    model, counts = copy.deepcopy(plain), []
    model.compile_blocks()
    for step, length in enumerate([9, 12, 11, 8, 10]):
        batch, before = batch_of(form, step, length=length), len(programs)
        (loss, gradients), (expected, those) = step_of(model, batch), step_of(plain, batch)
        torch.testing.assert_close(loss.total, expected.total)
        for gradient, that in zip(gradients, those, strict=True):
            torch.testing.assert_close(gradient, that)
        counts.append(len(programs) - before)
    assert counts == [kinds, kinds, 0, 0, 0]


def test_programs_beyond_the_limit_are_dropped_and_compiled_anew(programs, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_PROGRAMS", 1)
    form = config()
    plain = build(form).train()
    model = copy.deepcopy(plain)
    model.compile_blocks()
    for step in range(4):
        batch = batch_of(form, step, packed=step % 2 == 1)
        (loss, _), (expected, _) = step_of(model, batch), step_of(plain, batch)
        torch.testing.assert_close(loss.total, expected.total)
        assert len(programs) == step + 1


def test_a_cache_or_a_recorder_runs_uncompiled(programs):
    model = build(config())
    model.compile_blocks()
    inputs = batch_of(model.config, 0).inputs
    cache = model.build_cache(3)
    recorder = recorder_of(["*.weights"])
    with torch.no_grad():
        cached = model.decode(inputs, cache=cache)
        recorded = model.decode(inputs, auxiliary=Auxiliary(recorder))
        assert not programs and len(recorder.tensors) == 2
        torch.testing.assert_close(model.decode(inputs), cached)
        torch.testing.assert_close(recorded, cached)
    assert len(programs) == 1


def recipe(data: str):
    block = {"mixer": {"num_heads": 2}}
    return recipe_from_dict(
        {
            "data": {"path": data},
            "codec": {"kind": "bytes"},
            "model": {"model_dim": 16, "context_length": 16, "decoder": {"num_layers": 3, "blocks": {"0": block}}},
            "training": {"steps": 6, "global_batch_tokens": 64, "validate_every": 3, "sample_every": 3},
        }
    )


def test_a_run_is_compiled_once_and_ends_with_the_same_loss(tmp_path, programs):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 100)
    losses = []
    for compile in (False, True):
        run = train(
            recipe(str(path)), tmp_path / str(compile), machine=choose_machine("cpu", "float32"), compile=compile
        )
        losses.append(json.loads(run.summary.read_text())["validation_loss"])
        assert compile or not programs
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(programs) <= 4  # training and validation, the last batch of which has fewer rows


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_compiled_to_machine_code():
    form = replace(FORMS["gated"], dropout=0.3)
    plain = build(form).train()
    model, batch = copy.deepcopy(plain), batch_of(form, 0)
    model.compile_blocks()
    (loss, gradients), (expected, those) = step_of(model, batch), step_of(plain, batch)
    torch.testing.assert_close(loss.total, expected.total)
    for gradient, that in zip(gradients, those, strict=True):
        torch.testing.assert_close(gradient, that)

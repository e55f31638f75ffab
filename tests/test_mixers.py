"""Mixers that go through documents from their start: chunks are steps, states are where documents were left."""

import pytest
import torch

from isoform.batch import Tokens
from isoform.experiment import train
from isoform.machine import choose_machine
from isoform.mask import Causal, Coordinates
from isoform.metrics import CLOCK_FIELDS, read_metrics
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.mixers.documents import Documents
from isoform.model.mixers.recurrence import RecurrenceMixer, chunked, scan, step_by_step
from isoform.model.parts import LinearRecurrence
from isoform.recipe import recipe_from_dict
from isoform.run import load
from models import FORMS, VOCAB, build


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


FORWARD = ["lstm", "convolutions", "recurrence", "recurrence and attention"]


def drawn(rows: int, length: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decays from nearly 0 to nearly 1, some exactly 0, what is added, and a first state."""
    generator = torch.Generator().manual_seed(length)
    a = (6 * torch.randn(rows, length, dim, generator=generator, dtype=dtype)).sigmoid()
    a[:, length // 2] = 0
    b = torch.randn(rows, length, dim, generator=generator, dtype=dtype)
    return a, b, torch.randn(rows, dim, generator=generator, dtype=dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 1000])
def test_chunks_are_steps(length):
    a, b, first = drawn(2, length, 5, torch.float32)
    torch.testing.assert_close(chunked(a, b, first), step_by_step(a, b, first), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 30])
def test_the_gradient_of_chunks_is_that_of_steps(length):
    inputs = [t.requires_grad_() for t in drawn(2, length, 3, torch.float64)]
    weights = torch.randn(2, length, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((scan(*inputs) * weights).sum(), inputs)
    theirs = torch.autograd.grad((step_by_step(*inputs) * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_states_forget_half_within_1_to_256_tokens_at_first():
    mixer = RecurrenceMixer(8, 16)
    mixer.reset_parameters()
    half_lives = torch.log(torch.tensor(0.5)) / mixer.decay_bias.sigmoid().log()
    torch.testing.assert_close(half_lives, torch.logspace(0, 8, 16, base=2), rtol=1e-3, atol=1e-3)


DOCUMENTS = torch.tensor([[-1, 0, 0, 0, -1, 0, 1, 1, -1, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1, -1], [-1] * 3 + [0] * 7])


def test_documents_are_taken_apart_and_put_together():
    index = torch.zeros_like(DOCUMENTS)
    documents, x = Documents(Coordinates(DOCUMENTS, index)), torch.randn(3, 10, 4)
    rows = documents.apart(x)
    assert documents.lengths.tolist() == [4, 2, 1, 2, 7, 7] and rows.shape == (6, 7, 4)
    torch.testing.assert_close(rows[0, :4], x[0, [1, 2, 3, 5]])
    torch.testing.assert_close(documents.together(rows), x * (DOCUMENTS >= 0).unsqueeze(-1))
    assert documents.begins.nonzero().tolist() == [[0, 1], [0, 6], [0, 9], [1, 0], [1, 2], [2, 3]]
    going_on = Documents(Coordinates(DOCUMENTS, index), torch.tensor([0, 1, -1]))
    assert going_on.begins.nonzero().tolist() == [[0, 6], [0, 9], [1, 0], [1, 2], [2, 3]]


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("sizes", [[10], [1] * 10, [3, 3, 4], [4, 1, 1, 4]], ids=str)
def test_packed_rows_with_gaps_through_a_cache_are_each_document_alone(name, sizes):
    model, text = build(FORMS[name]), ids(3, 10)
    index = torch.zeros_like(DOCUMENTS)
    for row, numbers in enumerate(DOCUMENTS):
        for document in range(3):
            at = numbers == document
            index[row, at] = torch.arange(int(at.sum()))
    cache, start, parts = model.build_cache(3), 0, []
    for size in sizes:
        columns = slice(start, start + size)
        at = Coordinates(DOCUMENTS[:, columns], index[:, columns])
        parts.append(model.decode(Tokens(text[:, columns], at), Causal(), cache=cache))
        start += size
    together = torch.cat(parts, 1)
    for row, numbers in enumerate(DOCUMENTS):
        for document in numbers.unique():
            if document >= 0:
                at = numbers == document
                alone = model.decode(text[row, at].unsqueeze(0))
                torch.testing.assert_close(together[row, at], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_columns_of_empty_slots_change_nothing(name):
    model, text = build(FORMS[name]), ids(2, 4)
    empty = torch.full((2, 3), -1)
    nothing = Tokens(torch.zeros_like(empty), Coordinates(empty, torch.zeros_like(empty)))
    assert model(nothing).isfinite().all()
    cache, document = model.build_cache(2), torch.zeros(2, 4, dtype=torch.long)
    model.decode(nothing, cache=cache)
    index = torch.arange(4).expand(2, 4)
    hidden = model.decode(Tokens(text, Coordinates(document, index, is_ordered=True)), cache=cache)
    torch.testing.assert_close(hidden, model.decode(text), rtol=1e-4, atol=1e-5)


def test_rows_of_a_cache_can_be_chosen_anew():
    model, text = build(FORMS["recurrence and attention"]), ids(3, 6)
    cache, rows = model.build_cache(3), torch.tensor([2, 0, 0])
    model.decode(text, cache=cache)
    cache.select(rows, None)
    more = ids(3, 1)
    after = model.decode(Tokens(more, cache.next_coordinates()), cache=cache)
    torch.testing.assert_close(after, model.decode(torch.cat([text[rows], more], 1))[:, -1:], rtol=1e-4, atol=1e-5)


def test_a_run_of_three_recurrences_to_an_attention_goes_on_to_the_same_bits(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and the dog sat by the cat. " * 60)
    blocks = [{"mixer": {"kind": "linear_recurrence"}}] * 3 + [{"mixer": {"num_heads": 2}}]
    recipe = recipe_from_dict(
        {
            "data": {"path": str(tmp_path / "text.txt")},
            "model": {"model_dim": 16, "context_length": 32, "decoder": {"num_layers": 4, "blocks": blocks}},
            "training": {"steps": 30, "global_batch_tokens": 256, "log_every": 1, "validate_every": 0},
        }
    )
    machine, seen = choose_machine("cpu", "float32"), []
    whole = train(recipe, tmp_path / "whole", machine=machine)
    train(recipe, tmp_path / "part", machine=machine, should_stop=lambda: seen.append(0) or len(seen) == 9)
    part = train(recipe, tmp_path / "part", machine=machine)
    one, other = (
        [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in read_metrics(run.metrics)]
        for run in (whole, part)
    )
    assert one == other and one[-2]["loss"] < 0.9 * one[0]["loss"]
    a, b = (load(run.folder).model.state_dict() for run in (whole, part))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BlockConfig(feedforward=None, parallel="one_norm"), "nothing beside the mixer"),
        (lambda: BlockConfig(mixer=LinearRecurrence(), depth={}), "depth with the mixer LinearRecurrence"),
        (
            lambda: ModelConfig(
                encoder=StackConfig(),
                decoder=StackConfig(cross="joint", blocks=(BlockConfig(mixer=LinearRecurrence()),)),
            ),
            "asks for keys in every block",
        ),
        (
            lambda: ModelConfig(
                encoder=StackConfig(),
                decoder=StackConfig(cross="separate", blocks=(BlockConfig(mixer=LinearRecurrence()),)),
            ),
            "needs a block with attention",
        ),
        (lambda: LinearRecurrence(state_dim=0), "state_dim=0"),
        (lambda: BlockConfig(mixer=LinearRecurrence()).attention, "one is LinearRecurrence"),
    ],
)
def test_what_needs_keys_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()

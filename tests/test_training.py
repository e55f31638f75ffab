"""The loop, the optimizers, the schedules and the losses."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from isoform.batch import Encoding, Example, collate
from isoform.machine import choose_machine
from isoform.model.config import BlockConfig, Lookup
from isoform.model.cost import Shape
from isoform.model.parts import Experts, Gated, TokenChoice
from isoform.model.transformer import Transformer
from isoform.objectives.config import Causal
from isoform.objectives.losses import weighted_cross_entropy
from isoform.objectives.task import build_task
from isoform.objectives.views import build_view
from isoform.training.config import AdamW, Cosine, InverseSquareRoot, Muon, Training, WarmupStableDecay
from isoform.training.memory import training_memory
from isoform.training.optimizer import build_optimizers, orthogonalize, schedule_factor
from isoform.training.trainer import Diverged, GlobalBatch, Progress, train_loop
from models import VOCAB, config

CPU = choose_machine("cpu", "float32")
OPTIMIZERS = {"adamw": AdamW(learning_rate=1e-2), "muon": Muon()}


def rows(step: int) -> list[list[Example]]:
    """Six packed rows of uneven weight."""
    rng = np.random.default_rng(step)
    result = []
    for _ in range(6):
        row = []
        for length in (int(rng.integers(2, 7)), int(rng.integers(2, 6))):
            ids = rng.integers(0, VOCAB, length + 1)
            row.append(Example(Encoding(ids[:-1]), ids[1:], rng.integers(0, 2, length).astype(np.float32)))
        result.append(row)
    return result


def trained(optimizer, *, size: int, steps: int = 3, clip: float | None = 0.5, spoil=None):
    """A small model trained on `rows`, `size` of them at a time; its lines of metrics beside it."""
    torch.manual_seed(0)
    model = Transformer(replace(config(), stem=Lookup(previous=True)))
    optimizers, lines = build_optimizers(optimizer, model), []

    def batches(step: int) -> GlobalBatch:
        parts = [collate(rows(step)[start : start + size], 12) for start in range(0, 6, size)]
        return GlobalBatch(parts, sum(float(part.loss_weights.sum()) for part in parts))

    def loss(batch):
        result = weighted_cross_entropy(model(batch.inputs), batch.targets, batch.loss_weights)
        return result if spoil is None else replace(result, total=result.total * spoil)

    train_loop(
        model,
        optimizers,
        Training(steps=steps, optimizer=optimizer, clip_norm=clip, log_every=1, validate_every=0, checkpoint_every=0),
        batches=batches,
        loss=loss,
        machine=CPU,
        seed=1,
        progress=Progress(),
        log=lines.append,
        validate=dict,
        sample=lambda: None,
        save=lambda: None,
        should_stop=lambda: False,
    )
    return model, [line for line in lines if "loss" in line]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_equals_whole(name, size):
    """To rounding. Muon magnifies that by up to 3.4445^5, in directions its gradient hardly has."""
    magnified = {"adamw": 1.0, "muon": 3.4445**5}[name]
    whole, whole_lines = trained(OPTIMIZERS[name], size=6)
    parts, part_lines = trained(OPTIMIZERS[name], size=size)
    for step, (a, b) in enumerate(zip(whole_lines, part_lines, strict=True)):
        rel = 1e-6 * (magnified if step else 1)
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=rel)
    for (path, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * magnified, msg=path)


def test_golden_numbers_of_two_steps():
    """What a change of the numerics would move; measured once, on purpose held tightly."""
    model, lines = trained(AdamW(learning_rate=1e-2), size=6, steps=2)
    assert [line["loss"] for line in lines] == pytest.approx(GOLDEN["loss"], rel=1e-4)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(GOLDEN["gradient_norm"], rel=1e-3)
    assert [line["learning_rate_factor"] for line in lines] == GOLDEN["factor"]
    sums = {n: float(p.detach().double().square().sum()) for n, p in model.named_parameters()}
    for name, value in GOLDEN["squares"].items():
        assert sums[name] == pytest.approx(value, rel=1e-3), name


def routed(router: TokenChoice, *, size: int, **fields):
    """A small decoder with experts after three steps on full rows, `size` of them at a time; its lines of metrics."""
    block = BlockConfig(feedforward=Experts(num_experts=4, expert=Gated(feedforward_dim=8), router=router))
    torch.manual_seed(0)
    model, lines = Transformer(config(block=block, **fields)), []

    def batches(step: int) -> GlobalBatch:
        ids = np.random.default_rng(step).integers(0, VOCAB, (4, 13))
        full = [[Example(Encoding(row[:-1]), row[1:], np.ones(12, np.float32))] for row in ids]
        return GlobalBatch([collate(full[start : start + size], 12) for start in range(0, 4, size)], 48.0)

    train_loop(
        model,
        build_optimizers(AdamW(learning_rate=1e-2), model),
        Training(steps=3, log_every=1, validate_every=0, checkpoint_every=0),
        batches=batches,
        loss=partial(build_task(Causal(), build_view(Causal())).loss, model),
        machine=CPU,
        seed=1,
        progress=Progress(),
        log=lines.append,
        validate=dict,
        sample=lambda: None,
        save=lambda: None,
        should_stop=lambda: False,
    )
    return model, [line for line in lines if "loss" in line]


def test_routing_is_noted_and_biases_move_once_a_step():
    router = TokenChoice(balance_loss=0.1, z_loss=0.1, bias_rate=0.01, capacity_factor=0.5)
    model, lines = routed(router, size=2)
    for line in lines:
        assert line["experts_dropped"] > 0 and 1 <= line["experts_load_max"] <= 4
        assert 0.19 < line["balance_loss"] < 0.8 and line["router_z_loss"] > 0  # of two blocks
    for block in model.decoder.blocks:
        moves = block.feedforward.load_bias / 0.01
        assert moves.any() and (moves - moves.round()).abs().max() < 1e-4 and moves.abs().max() < 3.5


def test_accumulated_routing_equals_whole():
    """For all but the balance loss, which multiplies two means. AdamW magnifies rounding where gradients are next to
    nothing, to a hundredth of a step here."""
    whole, whole_lines = routed(router := TokenChoice(z_loss=0.1, bias_rate=0.01), size=4)
    parts, part_lines = routed(router, size=1)
    for a, b in zip(whole_lines, part_lines, strict=True):
        for name in ("loss", "router_z_loss", "gradient_norm", "experts_load_max"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    for (path, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=path)


def test_early_exits_are_trained_beside_the_last_block():
    with_exit, lines = routed(TokenChoice(), size=4, exits=(1,))
    _, plain = routed(TokenChoice(), size=4)
    assert (
        lines[0]["loss"] == pytest.approx(plain[0]["loss"]) and lines[0]["gradient_norm"] != plain[0]["gradient_norm"]
    )
    weight = with_exit.config.decoder.exit_loss
    assert lines[0]["exit_loss"] == pytest.approx(weight * lines[0]["loss"], rel=0.1)


def test_no_optimizer_steps_when_the_gradient_is_not_finite(monkeypatch):
    torch.manual_seed(0)
    untouched = Transformer(replace(config(), stem=Lookup(previous=True)))
    seen = []
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *a, **k: seen.append(1))
    with pytest.raises(Diverged, match=r"step 1: the gradient norm is (inf|nan)"):
        trained(AdamW(), size=6, steps=1, spoil=math.inf)
    assert not seen and all(p.isfinite().all() for p in untouched.parameters())


def test_clipping_bounds_the_update_by_the_norm():
    _, lines = trained(AdamW(), size=6, steps=1, clip=None)
    model, _ = trained(Muon(learning_rate=0.0, adam=AdamW(learning_rate=0.0)), size=6, steps=1, clip=1e-3)
    assert lines[0]["gradient_norm"] > 1e-2
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 24, 8), (1, 8, 24), (2, 16, 16), (3, 12, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_matrices_have_singular_values_near_one(shape, dtype):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), 5, dtype))
    assert values.min() > 0.3 and values.max() < 1.4
    assert (orthogonalize(torch.zeros(shape), 5, dtype) == 0).all()


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else():
    model = Transformer(config())
    muon, adam = build_optimizers(Muon(adam=replace(Muon().adam, embedding_learning_rate=0.5)), model)
    inside = {id(p) for group in muon.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in inside) == (".blocks." in name and parameter.dim() == 2), name
    assert adam.param_groups[0]["lr"] == 0.5 and adam.param_groups[1]["lr"] == Muon().adam.learning_rate
    assert all(group["weight_decay"] == 0 for group in adam.param_groups)


def test_schedules_at_their_corners():
    stable = WarmupStableDecay(warmup_steps=10, decay_fraction=0.25, final=0.2)
    values = [schedule_factor(stable, step, 100) for step in (0, 9, 10, 75, 99, 100)]
    assert values == pytest.approx([0.1, 1, 1, 1, 0.2 + 0.8 / 25, 0.2])
    cosine = Cosine(warmup_steps=10, final=0.1)
    assert [schedule_factor(cosine, s, 110) for s in (0, 10, 60, 110)] == pytest.approx([0.1, 1, 0.55, 0.1])
    root = InverseSquareRoot(warmup_steps=100)
    assert [schedule_factor(root, s, 10**6) for s in (49, 99, 399)] == pytest.approx([0.5, 1, 0.5])


def test_the_loss_by_its_formula():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 1.0]])
    p = logits.log_softmax(-1)
    nats = -p.gather(-1, targets[..., None])[..., 0]
    plain = weighted_cross_entropy(logits, targets, weights)
    torch.testing.assert_close(plain.total, (nats * weights).sum())
    assert plain.weight == 4.5
    z = weighted_cross_entropy(logits, targets, weights, z_loss=0.1)
    torch.testing.assert_close(z.total - plain.total, 0.1 * (logits.logsumexp(-1) ** 2 * weights).sum())
    torch.testing.assert_close(z.nats, plain.nats)
    smooth = weighted_cross_entropy(logits, targets, weights, label_smoothing=0.2)
    torch.testing.assert_close(smooth.total, ((0.8 * nats - 0.2 * p.mean(-1)) * weights).sum())
    spoiled = logits.clone()
    spoiled[:, 1] = 1e4
    torch.testing.assert_close(weighted_cross_entropy(spoiled, targets, weights).total, plain.total)


def test_memory_lines_add_up():
    lines = training_memory(config(), Shape(4, 12), AdamW())
    assert lines["optimizer"] == 2 * lines["parameters"] == 2 * lines["gradients"]
    assert training_memory(config(), Shape(8, 12), Muon())["activations"] == 2 * lines["activations"]
    assert training_memory(config(), Shape(4, 12), Muon())["optimizer"] < lines["optimizer"]


GOLDEN: dict = {
    "loss": [2.551974, 2.567085],
    "gradient_norm": [1.55799, 1.05187],
    "factor": [1.0, 1.0],
    "squares": {
        "stem.embedding.weight": 0.15081,
        "stem.previous.weight": 0.052141,
        "decoder.blocks.0.mixer.query_key_value.weight": 0.52005,
        "decoder.blocks.1.feedforward.down.weight": 0.681688,
        "decoder.final_norm.weight": 16.077876,
        "head.weight": 0.1257,
    },
}

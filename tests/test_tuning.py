"""Fine-tuning: frozen parameters don't change, blocks have their own rates, adapters merge and unmerge exactly."""

import json
from dataclasses import replace

import pytest
import torch

import isoform
from isoform.checkpoint.store import list_checkpoints, load_tensors
from isoform.experiment import train
from isoform.machine import choose_machine
from isoform.model.adapters import adapt, adapted, merge, unmerge, without_adapters
from isoform.model.config import LowRank, Pooled, Vocabulary
from isoform.model.growth import load_grown
from isoform.model.kernels import Linear
from isoform.model.transformer import Transformer
from isoform.recipe import recipe_from_dict
from isoform.session import build_model
from isoform.training.config import AdamW, Muon, Training
from isoform.training.optimizer import build_optimizers, freeze
from models import FORMS, build, config, pair

TEXT = "abcdefgh" * 300


def recipe(text, **training):
    return recipe_from_dict(
        {
            "data": {"path": str(text)},
            "codec": {"kind": "bytes"},
            "model": {"model_dim": 32, "context_length": 32, "decoder": {"num_layers": 2}},
            "training": {"steps": 20, "global_batch_tokens": 256, "validate_every": 0, **training},
        }
    )


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def ids(rows=2, length=9):
    return torch.randint(0, 13, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["plain", "grouped", "biases", "gated", "shortcuts"])
@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_adapters_start_at_zero_and_merge_and_unmerge_exactly(form, is_encoder_decoder):
    torch.manual_seed(1)
    model = build(pair(FORMS[form]) if is_encoder_decoder else FORMS[form])
    source = ids(2, 6) if is_encoder_decoder else None
    plain, weights = model(ids(), source=source), {n: p.clone() for n, p in model.state_dict().items()}
    adapt(model, LowRank(rank=3, targets=("attention", "feedforward", *(("cross",) if is_encoder_decoder else ()))))
    assert torch.equal(model(ids(), source=source), plain)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"adapter_a", "adapter_b"}
    with torch.no_grad():
        for _, module in adapted(model):
            module.adapter_b.normal_(0, 0.1)
    beside = model(ids(), source=source)
    assert (beside - plain).abs().max() > 0.01
    merge(model)
    torch.testing.assert_close(model(ids(), source=source), beside, rtol=1e-5, atol=1e-5)
    merge(model)  # once is enough
    torch.testing.assert_close(model(ids(), source=source), beside, rtol=1e-5, atol=1e-5)
    unmerge(model)
    assert torch.equal(model(ids(), source=source), beside)
    assert all(torch.equal(model.state_dict()[n], w) for n, w in weights.items())
    without_adapters(model)
    torch.testing.assert_close(model(ids(), source=source), beside, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == set(weights) and all(p.requires_grad for p in model.parameters())
    assert all(type(m) is Linear for m in model.modules() if isinstance(m, Linear))


def test_targets_are_named_by_parts_of_names():
    model = build(FORMS["plain"])
    adapt(model, LowRank(targets=("query_key_value",)))
    assert [n for n, _ in adapted(model)] == [f"decoder.blocks.{i}.mixer.query_key_value" for i in (0, 1)]
    with pytest.raises(ValueError, match="cross names no matrix"):
        adapt(build(FORMS["plain"]), LowRank(targets=("attention", "cross")))
    with pytest.raises(ValueError, match="rank=0"):
        LowRank(rank=0)


@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=0.01), Muon()], ids=["adamw", "muon"])
def test_only_what_is_not_frozen_moves(optimizer):
    model = build(FORMS["plain"]).train()
    freeze(model, ["stem", "decoder.blocks.0"])
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizers = build_optimizers(optimizer, model)
    model(ids()).square().sum().backward()
    for each in optimizers:
        each.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(n.startswith(("stem.", "decoder.blocks.0.")) for n in moved)
    assert any(n.startswith("decoder.blocks.1.") for n in moved)
    with pytest.raises(ValueError, match=r"begins with 'decoder.blocks.7'"):
        freeze(model, ["decoder.blocks.7"])
    freeze(model, ["decoder", "head"])
    with pytest.raises(ValueError, match="no parameters to train"):
        build_optimizers(optimizer, model)


@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=0.01, embedding_learning_rate=0.02), Muon()])
def test_layer_decay_scales_the_rate_of_each_block(optimizer):
    model = build(config(num_layers=3))
    plain, slowed = (build_optimizers(optimizer, model, layer_decay=d) for d in (1.0, 0.5))

    def rates(optimizers):
        return {p: group["lr"] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}

    base, slow = rates(plain), rates(slowed)
    assert base.keys() == slow.keys() == set(model.parameters())
    for name, parameter in model.named_parameters():
        depth = 0 if name.startswith("stem") else int(name.split(".")[2]) + 1 if ".blocks." in name else 4
        assert slow[parameter] == pytest.approx(base[parameter] * 0.5 ** (4 - depth))
    assert len(plain[0].param_groups) <= 3
    with pytest.raises(ValueError, match="layer_decay=0"):
        Training(layer_decay=0.0)


def test_a_run_with_adapters_continues_to_the_same_bits_and_is_loaded_merged(text, tmp_path):
    first = train(recipe(text), tmp_path / "first")
    tuned = replace(recipe(text, adapters={"rank": 2}, checkpoint_every=10), start=str(first.folder))
    whole = train(tuned, tmp_path / "whole")
    steps = iter([False] * 12 + [True] * 99)
    train(tuned, tmp_path / "cut", should_stop=lambda: next(steps))
    cut = train(tuned, tmp_path / "cut")
    assert whole.weights.read_bytes() == cut.weights.read_bytes()
    begun, loaded = isoform.load(first.folder), isoform.load(whole.folder)
    assert set(loaded.model.state_dict()) == set(begun.model.state_dict())
    same = {n for n, p in loaded.model.state_dict().items() if torch.equal(p, begun.model.state_dict()[n])}
    assert "stem.embedding.weight" in same and not any("query_key_value" in n for n in same)
    numbers = json.loads(whole.summary.read_text())
    assert numbers["num_trained_parameters"] < 0.2 * numbers["num_parameters"]


def test_new_tokens_and_a_new_head_are_initialized():
    small, large = build(config(vocab_size=13)), build(config(vocab_size=17), seed=1)
    new = large.stem.embedding.weight[13:].clone()
    load_grown(large, small)
    assert torch.equal(large.stem.embedding.weight[:13], small.stem.embedding.weight)
    assert torch.equal(large.stem.embedding.weight[13:], new)
    torch.testing.assert_close(large(ids())[..., :13], small(ids()))
    with pytest.raises(ValueError, match="vocab_size"):
        load_grown(small, large)
    whole = config()
    encoder = replace(whole, encoder=whole.decoder, decoder=None)
    reader = build(replace(encoder, head=Pooled(num_outputs=3)))
    before = reader.head.state_dict()
    source = build(replace(encoder, head=Vocabulary()), seed=3)
    load_grown(reader, source)
    assert all(torch.equal(before[n], t) for n, t in reader.head.state_dict().items())
    hidden = [m.encode(ids()).hidden for m in (reader, source)]
    assert torch.equal(*hidden) and isinstance(reader, Transformer)
    adapt(reader, LowRank())
    assert all(p.requires_grad for p in reader.head.parameters())


def test_frozen_parts_are_those_of_the_recipe(text):
    frozen = recipe(text, frozen=["stem", "head"])
    model = build_model(replace(frozen, model=replace(frozen.model, vocab_size=9)), choose_machine("cpu"))
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"decoder"}


def test_the_final_model_is_the_mean_of_the_last_checkpoints(text, tmp_path):
    training = {"steps": 12, "checkpoint_every": 3, "keep_checkpoints": 3}
    plain = train(recipe(text, **training), tmp_path / "plain")
    averaged = train(recipe(text, **training, average_checkpoints=3), tmp_path / "averaged")
    checkpoints = sorted(list_checkpoints(averaged.checkpoints), key=lambda c: c.step)
    assert [c.step for c in checkpoints] == [6, 9, 12]
    states = [load_tensors(c, "model") for c in checkpoints]
    final = isoform.load(averaged.folder).model.state_dict()
    for name in states[0]:
        torch.testing.assert_close(final[name], sum(s[name] for s in states) / 3)
    last = isoform.load(plain.folder).model.state_dict()
    assert all(torch.equal(last[name], states[-1][name]) for name in states[-1])
    plain_loss, mean_loss = (json.loads(run.summary.read_text())["validation_loss"] for run in (plain, averaged))
    assert plain_loss != mean_loss
    averaged.summary.unlink()  # killed before its end: done again, to the same bits
    before = averaged.weights.read_bytes()
    train(recipe(text, **training, average_checkpoints=3), tmp_path / "averaged")
    assert averaged.weights.read_bytes() == before
    assert json.loads(averaged.summary.read_text())["validation_loss"] == mean_loss
    with pytest.raises(ValueError, match="must be at most keep_checkpoints=2"):
        Training(average_checkpoints=3)
    with pytest.raises(ValueError, match="need more than 100 steps"):
        Training(average_checkpoints=2, steps=100, checkpoint_every=250)

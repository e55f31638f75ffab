"""Objectives beyond the next token: multi-token prediction, contrastive learning, distillation."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import isoform
from isoform.batch import Batch, Encoding, Example, collate, plain_tokens
from isoform.codecs.text import ByteCodec
from isoform.experiment import train
from isoform.mask import Causal as CausalMask
from isoform.model.block import ForwardContext
from isoform.model.config import ModelConfig, StackConfig
from isoform.model.cost import Shape, forward_flops, num_parameters, training_flops
from isoform.objectives.config import Causal, Contrastive, Distillation, Seq2seq
from isoform.objectives.task import build_task
from isoform.objectives.views import build_view, check_view
from isoform.recipe import recipe_from_dict
from models import FORMS, VOCAB, build

BLOCKS = {"num_layers": 1, "blocks": {"0": {"mixer": {"num_heads": 2}}}}
ENCODER = {"encoder": BLOCKS, "decoder": "none"}
EMBED = {"head": {"kind": "pooled", "over": "mean", "embed": True}}


def with_ahead(form: ModelConfig, ahead: int) -> ModelConfig:
    return replace(form, decoder=replace(form.decoder, ahead=ahead, ahead_loss=0.5))


def batch_of(length: int = 10, rows: int = 2) -> Batch:
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return Batch(plain_tokens(ids[:, :-1]), ids[:, 1:], torch.ones(rows, length))


def recipe(objective, model, data, **training):
    return recipe_from_dict(
        {
            "data": data,
            "codec": {"kind": "bytes"},
            "objective": objective,
            "model": {"model_dim": 32, "context_length": 32, **model},
            "training": {
                "steps": 60,
                "global_batch_tokens": 1024,
                "validate_every": 0,
                "optimizer": {"kind": "muon", "learning_rate": 0.02, "adam": {"learning_rate": 0.02}},
                **training,
            },
        }
    )


@pytest.mark.parametrize("name", ["plain", "grouped", "gpt2", "alternating"])
def test_heads_predict_the_tokens_after_the_next(name):
    model, batch = build(with_ahead(FORMS[name], 2)).train(), batch_of()
    view = build_view(Causal())
    result = build_task(Causal(), view).loss(model, batch)
    plain = partial(build_task(Causal(), view).loss, build(FORMS[name]))
    stack, last = model.decoder, []
    model.decoder.blocks[-1].register_forward_hook(lambda module, inputs, output: last.append(output[0]))
    model.hidden(batch.inputs)
    # The same by hand: each head's block over the last block's stream, then the vocabulary, with targets k further on.
    coordinates, expected = batch.inputs.coordinates, []
    shared = ForwardContext(stack.position.embed(model.stem(batch.inputs), coordinates), coordinates, CausalMask())
    for k, block in enumerate(stack.ahead.blocks, 1):
        logits = model.logits(stack.normalized(block(last[-1], shared, stack.position, 9)[0]))[:, :-k]
        expected.append(cross_entropy(logits.flatten(0, 1), batch.targets[:, k:].flatten(), reduction="sum"))
    ahead = 0.5 * torch.stack(expected).mean()
    torch.testing.assert_close(result.parts["ahead_loss"], ahead.detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(result.total - ahead, result.nats, rtol=1e-4, atol=1e-3)
    assert plain(batch).parts == {}


def test_heads_ahead_stay_within_a_document_and_cost_what_is_counted():
    model = build(with_ahead(FORMS["plain"], 3)).train()
    texts = [np.arange(n) % VOCAB for n in (5, 2, 4)]
    rows = [Example(Encoding(t[:-1]), t[1:], np.ones(len(t) - 1, np.float32)) for t in texts]
    loss = partial(build_task(Causal(), build_view(Causal())).loss, model)
    packed = loss(collate([rows], 12))
    apart = [loss(collate([[e]], len(e.targets))) for e in rows if len(e.targets) > 3]
    assert torch.isfinite(packed.total) and len(apart) == 1
    longer = loss(collate([rows[:1]], 12))  # padding counts nothing
    torch.testing.assert_close(longer.total, apart[0].total, rtol=1e-5, atol=1e-5)

    from torch.utils.flop_counter import FlopCounterMode

    config = model.config
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert num_parameters(config) > num_parameters(FORMS["plain"])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(batch_of(12)).total.backward()
    assert training_flops(config, Shape(2, 12)) == pytest.approx(counter.get_total_flops(), rel=0.06)
    assert forward_flops(config, Shape(2, 12)) == forward_flops(FORMS["plain"], Shape(2, 12))
    with pytest.raises(ValueError, match="only a decoder predicts"):
        ModelConfig(encoder=StackConfig(ahead=1), decoder=None)


def test_partners_are_recognised_in_the_batch(tmp_path):
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(1500)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": n, "target": n.upper()}) + "\n" for n in names))
    data = {"path": str(path), "rows": "packed"}
    run = train(recipe({"kind": "contrastive"}, {**ENCODER, **EMBED}, data, steps=120), tmp_path / "run")
    summary = json.loads(run.summary.read_text())
    assert summary["validation_accuracy"] > 0.6 and summary["bits_per_byte"] is None
    trained = isoform.load(run.folder)
    view, codec = build_view(trained.recipe.objective), trained.codec
    encodings = [codec.encode({"source": n, "target": n.upper()}) for n in names[:4]]
    check_view(view, encodings)
    examples = [view.example(e, rng) for e in encodings]
    batch = collate([examples[:2], examples[2:]], 32, 32)
    logits, targets, weights = build_task(trained.recipe.objective, view).scored(trained.model, batch)
    assert logits.shape == (1, 8, 4) and targets.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]] and weights.sum() == 4
    source = trained.model(torch.tensor(examples[2].inputs.ids[None].astype(int)))[0]
    target = trained.model(torch.tensor(examples[1].source.ids[None].astype(int)))[0]
    torch.testing.assert_close(source @ target / 0.05, logits[0, 2, 1], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="embed true"):
        recipe({"kind": "contrastive"}, ENCODER, data)
    with pytest.raises(ValueError, match="a source and a target"):
        view.example(codec.encode({"text": "abc"}), rng)


def test_a_student_matches_its_teacher(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 400)
    data = {"path": str(text)}
    teacher = train(recipe({"kind": "causal"}, {"decoder": BLOCKS}, data), tmp_path / "teacher")
    distillation = {"kind": "distillation", "teacher": str(teacher.folder), "share": 1.0, "temperature": 2.0}
    student = train(recipe(distillation, {"decoder": BLOCKS}, data), tmp_path / "student")
    assert json.loads(student.summary.read_text())["validation_loss"] < 0.5
    lines = [json.loads(line) for line in student.metrics.read_text().splitlines()]
    first, last = (line["divergence"] for line in (lines[0], [x for x in lines if "divergence" in x][-1]))
    assert last < 0.2 * first
    bad = recipe({"kind": "distillation"}, {"decoder": BLOCKS}, data)
    with pytest.raises(ValueError, match="needs a teacher"):
        train(bad, tmp_path / "x")
    other_codec = replace(
        recipe(distillation, {"decoder": BLOCKS}, data), codec=type(isoform.load_recipe("shakespeare").codec)()
    )
    with pytest.raises(ValueError, match="another codec"):
        train(other_codec, tmp_path / "y")
    view = build_view(Distillation(), ByteCodec(), is_encoder_decoder=True)
    assert view.length(9, 4) == build_view(Seq2seq()).length(9, 4)


def test_the_teachers_loss_is_the_divergence_of_the_distributions():
    teacher, student, batch = build(FORMS["plain"], seed=1), build(FORMS["plain"]), batch_of()
    view, plain = build_view(Causal()), build_task(Causal(), build_view(Causal())).loss(build(FORMS["plain"]), batch)
    for share, temperature in ((0.0, 1.0), (1.0, 1.0), (0.3, 2.5)):
        objective = Distillation(teacher="t", share=share, temperature=temperature)
        result = build_task(objective, view, teacher).loss(student, batch)
        ours, theirs = ((m(batch.inputs) / temperature).log_softmax(-1) for m in (student, teacher))
        divergence = temperature**2 * kl_div(ours, theirs, log_target=True, reduction="sum")
        expected = (1 - share) * plain.total + share * divergence
        torch.testing.assert_close(result.total, expected, rtol=1e-4, atol=1e-3)
    for wrong in ({"share": 1.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=r"must be (at least 0 and at most 1|above 0)"):
            Distillation(**wrong)
    with pytest.raises(ValueError, match="above 0"):
        Contrastive(temperature=0.0)

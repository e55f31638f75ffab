"""From encoder-decoder to decoder-only: four differences, and what is left when all of them are gone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from isoform.batch import Encoding, Example, Tokens, collate, plain_coordinates
from isoform.codecs.text import ByteCodec
from isoform.generation.answers import beam_search, sample
from isoform.generation.config import Beam, Sampling
from isoform.generation.constraints import Constraints
from isoform.generation.decode import Prompt, build_prompt
from isoform.mask import Causal, Full, Prefix
from isoform.model.auxiliary import Auxiliary
from isoform.model.block import Memory
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.cost import Shape, cache_bytes, forward_flops, num_parameters
from isoform.model.parts import Attention, Depth, Sinusoidal
from isoform.model.recording import recorder_of
from isoform.model.transformer import Transformer
from isoform.objectives.config import Seq2seq
from isoform.objectives.views import build_view
from isoform.scaling.conversation import conversation_turns
from models import FORMS, VOCAB, build, pair

ALONE = ("part rotary", "grouped", "gained heads", "buckets", "alibi", "sinusoidal", "gpt2", "shaw", "no position")
ALONE += ("shortcuts", "gained projection", "biases", "looped", "alternating", "experts", "multi-query", "sandwich")


def joint(form: ModelConfig, *, shared: bool = False, layerwise: bool = False) -> ModelConfig:
    both = pair(form)
    stack = replace(both.decoder, cross="joint", memory_layers="layerwise" if layerwise else "last")
    return replace(both, decoder=stack, share_stacks=shared)


def apart(form: ModelConfig, *, shared: bool = False) -> ModelConfig:
    """Cross-attention with its own parameters, layer by layer."""
    both = pair(form)
    return replace(both, decoder=replace(both.decoder, memory_layers="layerwise"), share_stacks=shared)


STEPS = {
    "separate": lambda form: pair(form),
    "separate, shared": lambda form: replace(pair(form), share_stacks=True),
    "separate, layerwise": lambda form: apart(form),
    "separate, shared, layerwise": lambda form: apart(form, shared=True),
    "joint": lambda form: joint(form),
    "shared": lambda form: joint(form, shared=True),
    "layerwise": lambda form: joint(form, shared=True, layerwise=True),
    "layerwise, two stacks": lambda form: joint(form, layerwise=True),
}


def ids(length: int, seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_without_the_four_differences_it_is_a_decoder(name):
    """Joint attention, shared stacks, read layer by layer, a causal source: the logits of source + target."""
    both = build(joint(FORMS[name], shared=True, layerwise=True))
    config = replace(FORMS[name], context_length=24)
    alone = Transformer(config).eval()
    state = {key: value for key, value in both.state_dict().items() if not key.endswith("table")}
    missing = alone.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all("table" in key for key in missing.missing_keys)
    for table, value in ((k, v) for k, v in both.state_dict().items() if k.endswith("table")):
        alone.state_dict()[table].copy_(value)
    source, target = ids(7, 1), ids(9, 2)
    expected = alone(torch.cat([source, target], 1))
    got = both(target, source=source, source_mask=Causal())
    assert expected.std() > 0.2
    assert (got - expected[:, 7:]).abs().max() < 1e-5
    # A source that is read in both directions makes it the prefix language model instead.
    coordinates = plain_coordinates(2, 16)
    given = (torch.arange(16) < 7).expand(2, 16)
    tokens = Tokens(torch.cat([source, target], 1), replace(coordinates, prefix=given, start=None))
    expected = alone(tokens, Prefix() | Causal())
    assert (both(target, source=source) - expected[:, 7:]).abs().max() < 1e-5


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["plain", "grouped", "sinusoidal", "buckets"])
@torch.no_grad()
def test_cached_packed_and_padded_are_the_same(name, step):
    model = build(STEPS[step](FORMS[name]))
    source, target = ids(6, 1), ids(8, 2)
    expected, memory = model(target, source=source), model.encode(source)
    cache, at = model.build_cache(2), 0
    for size in (3, 1, 2, 1, 1):
        part = Tokens(target[:, at : at + size], plain_coordinates(2, size, start=at))
        got = model.logits(model.decode(part, memory=memory, cache=cache))
        assert (got - expected[:, at : at + size]).abs().max() < 1e-5, at
        at += size
    # Both rows packed into one, beside padding.
    examples = [
        Example(Encoding(t.numpy()), t.numpy(), np.ones(len(t), np.float32), source=Encoding(s.numpy()))
        for s, t in ((source[0], target[0, :3]), (source[1, :4], target[1]))
    ]
    batch = collate([examples], 12, 12)
    got = model(batch.inputs, Causal(), batch.source, Full())[0]
    assert (got[:3] - expected[0, :3]).abs().max() < 1e-5
    alone = model(target[1:], source=source[1:, :4])
    assert (got[3:11] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("step", STEPS)
@torch.no_grad()
def test_writing_goes_on_as_the_whole_text_says(step):
    model = build(STEPS[step](FORMS["grouped"]))
    source = np.array([3, 1, 4, 1, 5])
    prompt = Prompt(np.array([2]), source=source)
    ((greedy,),) = sample(model, [prompt], Sampling(max_tokens=8, temperature=0), Constraints())
    text = [2]
    for token in greedy.ids.tolist():
        assert token == int(model(torch.tensor([text]), source=torch.tensor(source[None]))[0, -1].argmax())
        text.append(token)
    prompts = [prompt, Prompt(np.array([2]), source=source[:2])]
    together = beam_search(model, prompts, Beam(size=3, max_tokens=6, num_best=2), Constraints(ends=(0,)))
    for one, found in zip(prompts, together, strict=True):
        (alone,) = beam_search(model, [one], Beam(size=3, max_tokens=6, num_best=2), Constraints(ends=(0,)))
        assert [h.ids.tolist() for h in alone] == [h.ids.tolist() for h in found]


def test_a_causal_source_is_read_so_in_training_and_in_writing():
    model = build(STEPS["layerwise"](FORMS["grouped"]))
    source, target = ids(6, 1), ids(8, 2)
    views = [build_view(Seq2seq(causal=causal)) for causal in (True, False)]
    (one, other) = [model(target, view.inputs_mask, source, view.source_mask)[0, :1] for view in views]
    assert (one - other).abs().max() > 1e-3
    for view, logits in zip(views, (one, other), strict=True):
        prompt = build_prompt(ByteCodec(), "abcd", answers_source=True, view=view)
        assert prompt.source_mask == view.source_mask
        asked = Prompt(target[0, :1].numpy(), source=source[0].numpy(), source_mask=view.source_mask)
        ((first,),) = sample(model, [asked], Sampling(max_tokens=1, temperature=0), Constraints())
        assert first.ids.tolist() == [int(logits[0].argmax())]
        (found,) = beam_search(model, [asked], Beam(size=1, max_tokens=1), Constraints(ends=(0,)))
        assert found[0].log_probability == pytest.approx(float(logits[0].detach().log_softmax(-1).max()), abs=1e-4)


@pytest.mark.parametrize("step", STEPS)
def test_parameters_and_flops_are_those_of_the_built_model(step):
    from torch.utils.flop_counter import FlopCounterMode

    config = STEPS[step](FORMS["grouped"])
    model = build(config)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids(8, 2), source=ids(10, 1))
    assert forward_flops(config, Shape(2, 8, 10)) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_each_difference_is_one_or_two_fields():
    form = FORMS["plain"]
    decoder_only = num_parameters(form)
    sizes = [num_parameters(STEPS[step](form)) for step in ("separate", "joint", "shared", "layerwise")]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == decoder_only


@torch.no_grad()
def test_a_block_reads_the_output_of_the_encoders_block_of_its_number():
    config = apart(FORMS["plain"])
    model = build(config)
    memory, encoder = model.encode(ids(6, 1)), model.encoder
    assert len(memory.outputs) == 2 and memory.outputs[-1] is memory.hidden
    first = build(replace(config, encoder=replace(config.encoder, num_layers=1), decoder=None, encoder_stem=None))
    first.stem, first.encoder.blocks[0], first.encoder.final_norm = model.stem, encoder.blocks[0], encoder.final_norm
    torch.testing.assert_close(memory.outputs[0], first.encode(ids(6, 1)).hidden)
    changed = replace(memory, outputs=(memory.outputs[0] + 1, memory.hidden))
    before, after = (model.decode(ids(8, 2), memory=m) for m in (memory, changed))
    assert (before - after).abs().max() > 1e-2
    same = replace(memory, outputs=(memory.hidden, memory.hidden))
    last = Transformer(pair(FORMS["plain"])).eval()
    last.load_state_dict(model.state_dict())
    expected = last.decode(ids(8, 2), memory=last.encode(ids(6, 1)))
    torch.testing.assert_close(model.decode(ids(8, 2), memory=same), expected)


@pytest.mark.parametrize("cross", ["joint", "separate"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("memory_layers", ["last", "layerwise"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_four_differences_are_independent_switches(cross, shared, memory_layers, causal):
    both = pair(FORMS["gated"])
    config = replace(both, decoder=replace(both.decoder, cross=cross, memory_layers=memory_layers), share_stacks=shared)
    model, view = build(config).train(), build_view(Seq2seq(causal=causal))
    source, target = ids(6, 1), ids(8, 2)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(5):
        logits = model(target, view.inputs_mask, source, view.source_mask)
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("cross", ["joint", "separate"])
def test_blocks_that_predict_further_ahead_read_what_the_last_block_reads(cross):
    both = pair(FORMS["plain"])
    config = replace(both, decoder=replace(both.decoder, cross=cross, memory_layers="layerwise", ahead=1))
    recorder = recorder_of(["decoder.ahead.*"])
    build(config)(ids(8, 2), source=ids(6, 1), auxiliary=Auxiliary(recorder=recorder))
    assert recorder.tensors["decoder.ahead.1"].shape == (2, 8, 16)


def test_gradients_reach_everything():
    for name, step in STEPS.items():
        model = build(step(FORMS["grouped"])).train()
        model(ids(8, 2), source=ids(6, 1)).square().sum().backward()
        lost = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        # Of an encoder that is read layer by layer nobody asks for what comes after the last keys.
        assert not lost or name == "layerwise, two stacks"
        assert all(n.startswith(("encoder.final_norm", "encoder.blocks.1.")) for n in lost)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: replace(c, share_stacks=True, encoder=replace(c.encoder, num_layers=3)), "must be alike"),
        (lambda c: replace(c, share_stacks=True, decoder=replace(c.decoder, ahead=1)), "without exits and ahead"),
        (lambda c: replace(c, share_stacks=True, decoder=replace(c.decoder, exits=(1,))), "without exits and ahead"),
        (
            lambda c: replace(c, encoder=None, decoder=replace(c.decoder, cross="none", memory_layers="layerwise")),
            "there is no encoder to read",
        ),
        (
            lambda c: replace(c, decoder=replace(c.decoder, memory_layers="layerwise", loops=2)),
            "the encoder has 2 blocks and the decoder 4",
        ),
        (
            lambda c: replace(
                c,
                encoder=replace(c.encoder, blocks=(BlockConfig(mixer=Attention(num_heads=2)),)),
                decoder=replace(c.decoder, cross="joint", memory_layers="layerwise"),
            ),
            "keys of the same heads and width",
        ),
        (lambda c: replace(c, decoder=None, share_stacks=True), "goes with an encoder and a decoder"),
        (
            lambda c: replace(
                c,
                decoder=replace(
                    c.decoder, cross="joint", memory_layers="layerwise", num_layers=1, blocks=c.decoder.blocks
                ),
            ),
            "the encoder has 2 blocks and the decoder 1",
        ),
        (
            lambda c: replace(
                c, decoder=replace(c.decoder, cross="joint", blocks=(BlockConfig(parallel="own_norms"),))
            ),
            "parallel",
        ),
        (
            lambda c: replace(
                c,
                encoder=replace(c.encoder, blocks=(BlockConfig(depth=Depth()),)),
                decoder=replace(c.decoder, cross="joint", memory_layers="layerwise"),
            ),
            "depth in the encoder",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(change, words):
    with pytest.raises(ValueError, match=words):
        change(pair(FORMS["plain"]))


def test_positions_of_a_joint_decoder_reach_over_both():
    stack = StackConfig(num_layers=1, blocks=(BlockConfig(mixer=Attention(num_heads=2)),), position=Sinusoidal())
    config = ModelConfig(
        model_dim=16, vocab_size=9, context_length=10, encoder=stack, decoder=replace(stack, cross="joint")
    )
    model = build(config)
    assert model(ids(10, 1) % 9, source=ids(10, 2) % 9).shape == (2, 10, 9)
    with pytest.raises(ValueError, match="context_length=10"):
        model(ids(11, 1) % 9, source=ids(10, 2) % 9)


def turns_of(form, *, is_causal):
    return conversation_turns(form, 3, question_tokens=5, answer_tokens=7, is_causal=is_causal)


def test_a_conversation_is_read_again_until_the_last_difference_is_gone():
    form = FORMS["grouped"]
    counted = {name: turns_of(step(form), is_causal=False) for name, step in STEPS.items()}
    for turns in counted.values():
        assert [turn.read for turn in turns] == [5, 5, 5]
        assert [turn.read_again for turn in turns] == [0, 12, 24], "all of it, since the new tokens are seen by the old"
    causal = {name: turns_of(step(form), is_causal=True) for name, step in STEPS.items()}
    for name, turns in causal.items():
        again = [0, 0, 0] if name == "layerwise" else [0, 7, 7]
        assert [turn.read_again for turn in turns] == again, name
    alone = turns_of(form, is_causal=True)
    assert causal["layerwise"] == alone
    assert [turn.bytes_held for turn in alone] == [cache_bytes(form) * n for n in (12, 24, 36)]
    assert causal["separate"][-1].bytes_held > alone[-1].bytes_held, "the encoder's keys and values are held, too"
    assert [turn.read_again for turn in turns_of(form, is_causal=False)] == [0, 12, 24]


def test_prompts_and_sources_of_different_lengths_in_one_batch_are_each_alone():
    model = build(replace(pair(FORMS["plain"]), decoder=replace(FORMS["plain"].decoder, cross="joint")))
    texts, sources = [ids(n, 1, 1) for n in (2, 5)], [ids(n, 2, 1) for n in (3, 6)]

    def rows(parts: list[torch.Tensor]) -> Tokens:
        none = np.zeros(0, np.int64)
        examples = [[Example(Encoding(p[0].numpy()), none, none.astype(np.float32))] for p in parts]
        return collate(examples, max(p.shape[1] for p in parts)).inputs

    with torch.no_grad():
        together = model(rows(texts), None, rows(sources))
        for row, (text, source) in enumerate(zip(texts, sources, strict=True)):
            alone = model(text, None, source)[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)
            cache = model.build_cache(1)
            cached = model.decode(text, None, model.encode(source), cache)
            torch.testing.assert_close(model.logits(cached)[0], alone, rtol=1e-5, atol=1e-5)
    at = Memory(torch.zeros(2, 6, 16), rows(sources).coordinates).shift_past(rows(texts).coordinates)
    assert at.index.tolist() == [[3, 4, 0, 0, 0], [6, 7, 8, 9, 10]], "empty slots are shifted by nothing"

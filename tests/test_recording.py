"""Recording of intermediate tensors: by name, without changing the output, within a memory limit."""

import pytest
import torch

from isoform.inspection.recording import record, recordable
from models import FORMS, VOCAB, build, config, pair


def ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("name", FORMS)
def test_recording_everything_changes_no_bit_and_has_the_declared_shapes(name):
    model, text = build(FORMS[name]), ids()
    model.use_kernel("auto")
    with torch.inference_mode():
        before = model(text)
    tensors = record(model, text, "*")
    with torch.inference_mode():
        assert torch.equal(model(text), before)
    shapes = recordable(model.config, (2, 12))
    is_routed = any(block.depth is not None for block in model.config.decoder.blocks)
    assert tensors.keys() == shapes.keys()
    if not is_routed:
        assert {name_: tuple(t.shape) for name_, t in tensors.items()} == dict(shapes)
    last = model.decoder.num_layers - 1
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(model.decoder.normalized(tensors[f"decoder.blocks.{last}"])), before)


def test_weights_are_those_applied_to_values():
    model = build(config(block=FORMS["grouped"].decoder.blocks[0]))
    tensors = record(model, ids(), "decoder.blocks.1.mixer*")
    weights, values = (tensors[f"decoder.blocks.1.mixer.{name}"] for name in ("weights", "values"))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12))
    assert not weights.triu(1).any()
    mixed = model.decoder.blocks[1].mixer.collect(weights @ values.repeat_interleave(2, 1))
    torch.testing.assert_close(mixed.detach(), tensors["decoder.blocks.1.mixer"])


def test_an_encoder_and_cross_attention():
    model = build(pair(config()))
    tensors = record(model, ids(), "*.weights", source=ids(2, 7))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        **{f"encoder.blocks.{i}.mixer.weights": (2, 4, 7, 7) for i in range(2)},
        **{f"decoder.blocks.{i}.mixer.weights": (2, 4, 12, 12) for i in range(2)},
        **{f"decoder.blocks.{i}.cross.weights": (2, 4, 12, 7) for i in range(2)},
    }


def test_recurrences_show_their_states():
    tensors = record(build(FORMS["recurrence and attention"]), ids(), "*.states", "*.weights")
    names = [name.split(".", 2)[2] for name in tensors]
    assert names == ["0.mixer.states", "1.mixer.states", "2.mixer.states", "3.mixer.weights"]
    assert tensors["decoder.blocks.0.mixer.states"].shape == (2, 12, 16)


@pytest.mark.parametrize("form", [*FORMS.values(), pair(config())])
def test_a_block_lists_what_it_records(form):
    model = build(form)
    tensors = record(model, ids(), "*", source=ids() if form.encoder is not None else None)
    for layer in range(model.decoder.num_layers):
        start, block = f"decoder.blocks.{layer}.", model.decoder.blocks[layer % len(model.decoder.blocks)]
        recorded = {name.removeprefix(start) for name in tensors if name.startswith(start)}
        assert recorded == set(block.recordable)


def test_unknown_names_suggest_the_nearest_and_too_many_tensors_are_refused():
    model = build(config())
    with pytest.raises(ValueError, match=r"did you mean 'decoder.blocks.1.mixer.weights'"):
        record(model, ids(), "decoder.blocks.1.mixer.weight")
    calls = []
    model.stem.register_forward_hook(lambda *_: calls.append(0))
    with pytest.raises(ValueError, match=r"2 tensors would take 9,216 bytes, above limit=9,215"):
        record(model, ids(), "*.weights", limit=9215)
    assert not calls
    assert len(record(model, ids(), "*.weights", limit=9216)) == 2

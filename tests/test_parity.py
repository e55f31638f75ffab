"""Equal to other people's implementations of the same thing, on weights wide enough to show a mistake."""

from dataclasses import replace

import pytest
import torch

from isoform.batch import Pieces, plain_coordinates
from isoform.model.config import Dense, LayerNorm
from isoform.model.presets import GPT2
from models import build
from peers import gpt2_name, gpt2_twin


def small_gpt2(**fields):
    assert GPT2.decoder is not None
    block = GPT2.decoder.blocks[0]
    block = replace(block, attention=replace(block.attention, num_heads=4, dropout=0.0))
    decoder = replace(GPT2.decoder, num_layers=3, blocks=(block,))
    return replace(GPT2, model_dim=32, context_length=20, vocab_size=50, dropout=0.0, decoder=decoder, **fields)


def text(seed: int = 3) -> torch.Tensor:
    return torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(seed))


def test_gpt2_logits_and_gradients_equal_those_of_transformers():
    model = build(small_gpt2())
    twin = gpt2_twin(model)
    ours, theirs = model(text()), twin(input_ids=text()).logits
    assert ours.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for logits in (ours, theirs):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), text(4).flatten()).backward()
    other = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = other[gpt2_name(name)].grad
        gradient = gradient.T if parameter.dim() == 2 and ".blocks." in name else gradient
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gpt2_cached_logits_equal_those_of_transformers():
    model = build(small_gpt2())
    theirs, cache = gpt2_twin(model)(input_ids=text()).logits, model.build_cache(2)
    for t in range(20):
        pieces = Pieces(text()[:, t : t + 1], plain_coordinates(2, 1, start=t))
        ours = model.logits(model.decode(pieces, cache=cache))[:, 0]
        torch.testing.assert_close(ours, theirs[:, t], rtol=1e-5, atol=1e-4)


def altered(**fields):
    config = small_gpt2()
    block = config.decoder.blocks[0]
    return replace(config, decoder=replace(config.decoder, blocks=(replace(block, **fields),)))


@pytest.mark.parametrize(
    "other",
    [
        altered(feedforward=Dense(activation="gelu", bias=True)),
        altered(norm=LayerNorm(epsilon=1e-2)),
        altered(norm_placement="post"),
        altered(attention=replace(small_gpt2().decoder.blocks[0].attention, num_heads=2)),
        altered(attention=replace(small_gpt2().decoder.blocks[0].attention, qk_norm=True)),
        replace(small_gpt2(), head=replace(small_gpt2().head, softcap=30.0)),
    ],
    ids=["activation", "epsilon", "placement", "heads", "qk_norm", "softcap"],
)
@torch.no_grad()
def test_every_field_that_matters_breaks_parity_when_altered(other):
    """What proves that the tests above can fail: with the same weights, one field changed, they do."""
    model, changed = build(small_gpt2()), None
    if other.decoder.blocks[0].norm_placement == "post":
        changed = build(other)
        assert set(changed.state_dict()) != set(model.state_dict())
        return
    changed = build(other)
    changed.load_state_dict(model.state_dict())
    assert (changed(text()) - gpt2_twin(model)(input_ids=text()).logits).abs().max() > 1e-3

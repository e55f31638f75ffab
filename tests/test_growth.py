"""Growing a model leaves what it says as it was, and what was added learns."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from isoform.model.config import BlockConfig
from isoform.model.growth import deepen, upcycle, widen
from isoform.model.parts import Dense, Gated, RMSNorm
from models import VOCAB, attention, build, config

FORMS = {
    "plain": config(),
    "gated": config(block=BlockConfig(feedforward=Gated(), norm=RMSNorm())),
    "sandwich": config(block=BlockConfig(norm_placement="sandwich")),
    "reordered": config(block=BlockConfig(norm_placement="reordered", norm=RMSNorm())),
    "parallel": config(block=BlockConfig(parallel="own_norms")),
    "grouped": config(block=attention(num_heads=4, num_kv_heads=2)),
}
GROWTHS = {
    "experts": lambda model: upcycle(model, 4),
    "depth": lambda model: deepen(model, 5),
    "width": lambda model: widen(model, 160),
}


def text() -> torch.Tensor:
    return torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("grow", GROWTHS.values(), ids=GROWTHS.keys())
def test_a_grown_model_says_what_it_said_and_learns_with_what_was_added(form, grow):
    model = build(form)
    before = sum(p.numel() for p in model.parameters())
    grown = grow(model)
    assert sum(p.numel() for p in grown.parameters()) > before * 1.3
    torch.testing.assert_close(grown(text()), model(text()), rtol=1e-5, atol=2e-5)
    cross_entropy(grown(text()).flatten(0, 1), text().flatten()).backward()
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    cross_entropy(grown(text()).flatten(0, 1), text().flatten()).backward()
    still = [n for n, p in grown.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in still if "router" not in name and not name.endswith("bias")]


def test_blocks_with_biases_grow_deeper_too():
    model = build(config(block=BlockConfig(feedforward=Dense(bias=True))))
    torch.testing.assert_close(deepen(model, 4)(text()), model(text()), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(widen(model, 80)(text()), model(text()), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("grow", "words"),
    [
        (lambda: upcycle(build(config(block=BlockConfig(feedforward=Dense(bias=True)))), 4), "without biases"),
        (lambda: upcycle(upcycle(build(config()), 4), 4), "experts already"),
        (lambda: deepen(build(config()), 1), "fewer than the model.s 2"),
        (lambda: deepen(build(config(block=BlockConfig(norm_placement="post"))), 4), "can't be skipped"),
        (lambda: widen(build(config()), 8), "less than the 64"),
        (lambda: widen(upcycle(build(config()), 4), 100), "before upcycling"),
        (lambda: build(config(head=replace(config().head))).truncated(3), "num_layers=3"),
    ],
)
def test_what_cannot_grow_is_refused_in_words(grow, words):
    with pytest.raises(ValueError, match=words):
        grow()


def test_cutting_off_the_last_blocks_is_an_early_exit():
    model = build(config(num_layers=4))
    short = model.truncated(2)
    seen = []
    hook = model.decoder.blocks[1].register_forward_hook(lambda m, i, out: seen.append(out[0]))
    model(text())
    hook.remove()
    torch.testing.assert_close(short(text()), model.logits(model.decoder.normalized(seen[0])), rtol=0, atol=0)
    assert short.decoder.blocks[0] is model.decoder.blocks[0] and short.config.decoder.num_layers == 2

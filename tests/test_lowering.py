"""Every lowering of a mask against the predicate: values, gradients, memory; and what a kernel can't do."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from isoform.batch import plain_coordinates
from isoform.machine import compiler
from isoform.mask import Causal, Coordinates, FixedSparse, Full, Local2D, Mask, Prefix, Strided, Window, dense_mask
from isoform.model import compiling, lowering
from isoform.model.kernels import online_attention
from isoform.model.lowering import (
    ALL,
    CAUSAL,
    Band,
    Blocks,
    attend,
    attention_weights,
    check_kernel,
    dense_allowed,
    lower,
)
from isoform.model.parts import Shaw
from models import FORMS, VOCAB, build, pair, reads_forward

MASKS: list[Mask] = [
    Full(),
    Causal(),
    Prefix() | Causal(),
    Window(3) & Causal(),
    Window(5, 2),
    Window(0),
    Window(0, 3),
    Window(7, 7) & (Prefix() | Causal()),
    (Window(2) | Window(0, 6)) & (Prefix() | Causal()),
    Strided(4) & Causal(),
    Strided(3) & Window(11, 4),
    FixedSparse(5, 2) & Causal(),
    Local2D(1, 2) & Causal(),
    Local2D(1, 1) & Window(9, 9),
    Prefix() & Window(4, 4),
]
ROWS = ["plain", "packed", "padded left", "padded right", "empty"]
HEADS = [(4, 4), (4, 2), (4, 1)]
"""Multi-head, grouped-query, multi-query; the 15 masks and 5 kinds of rows meet them in turn."""


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Bands in short rows."""
    monkeypatch.setattr(lowering, "CHUNK", 4)


def coordinates(kind: str, length: int, num_rows: int = 2) -> Coordinates:
    """Rows of this kind, with positions on a grid seven wide; the first third of each document is given."""
    plain = plain_coordinates(num_rows, length)
    position = torch.stack([plain.index // 7, plain.index % 7], -1)
    if kind == "plain":
        return replace(plain, position=position)
    document, index = plain.document.clone(), plain.index.clone()
    for row in range(num_rows):
        cuts = {
            "packed": [0, length // 3 + row, 2 * length // 3, length],
            "padded left": [row + 1, length],
            "padded right": [0, length - 2 - 3 * row],
            "empty": [0, length] if row == 0 else [0],
        }[kind]
        document[row] = -1
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            document[row, start:stop] = number
            index[row, start:stop] = torch.arange(stop - start)
    return Coordinates(document, index, index < length // 3, position, is_ordered=True)


def drawn(length: int, heads: tuple[int, int] = (4, 4), num_rows: int = 2, **options) -> list[torch.Tensor]:
    options = {"dtype": torch.float64, "requires_grad": True, **options}
    torch.manual_seed(0)
    return [torch.randn(num_rows, n, length, 8, **options) for n in (heads[0], heads[1], heads[1])]


def by_the_predicate(q, k, v, edges, bias=None):
    """Attention written out; queries without keys give zeros."""
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).mT / math.sqrt(q.shape[-1]) + (0 if bias is None else bias)
    weights = scores.masked_fill(~edges, -torch.inf).softmax(-1).nan_to_num()
    return weights.masked_fill(~edges, 0) @ v.repeat_interleave(groups, 1)


def assert_same(fast, plain, inputs):
    weight = torch.linspace(-1, 1, plain.numel(), dtype=plain.dtype).view(plain.shape)
    found, expected = (torch.autograd.grad((out * weight).sum(), inputs, retain_graph=True) for out in (fast, plain))
    for a, b in zip((fast, *found), (plain, *expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_every_kernel_is_the_predicate(mask, rows):
    length, heads = 43, HEADS[(MASKS.index(mask) + ROWS.index(rows)) % 3]
    at, (q, k, v) = coordinates(rows, length), drawn(length, heads)
    edges = dense_mask(mask, at, at).unsqueeze(1)
    safe = edges | ~edges.any(-1, keepdim=True)
    groups = heads[0] // heads[1]
    scores = q @ k.repeat_interleave(groups, 1).mT / math.sqrt(8)
    weights = scores.masked_fill(~safe, -torch.inf).softmax(-1) * edges
    expected = weights @ v.repeat_interleave(groups, 1)
    online = online_attention(q, *(t.repeat_interleave(groups, 1) for t in (k, v)), edges, block=8)
    assert_same(online, expected, (q, k, v))
    for kernel in ("auto", "sdpa", "dense"):
        allowed = lower(mask, at, at, kernel=kernel)
        assert torch.equal(dense_allowed(allowed, q, k).expand_as(edges), edges)
        assert_same(attend(q, k, v, allowed, kernel=kernel), expected, (q, k, v))
    assert_same(attention_weights(q, k, lower(mask, at, at)), weights, (q, k))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bands_of_any_mask_and_rows_are_the_predicate(data):
    leaves = st.one_of(
        st.builds(Window, st.integers(0, 6), st.integers(0, 6)),
        st.just(Causal()),
        st.just(Prefix()),
        st.builds(Strided, st.integers(1, 5)),
        st.builds(FixedSparse, st.integers(2, 5), st.integers(1, 2)),
    )
    both = st.recursive(leaves, lambda m: st.builds(lambda a, b, o: a & b if o else a | b, m, m, st.booleans()))
    mask = data.draw(both) & Window(data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5)))
    length, kind = data.draw(st.integers(30, 70)), data.draw(st.sampled_from(ROWS))
    lowering.CHUNK = data.draw(st.integers(1, 9))
    at, (q, k, v) = coordinates(kind, length), drawn(length, (2, 1))
    allowed, edges = lower(mask, at, at), dense_mask(mask, at, at).unsqueeze(1)
    assert torch.equal(dense_allowed(allowed, q, k).expand_as(edges), edges)
    assert_same(attend(q, k, v, allowed), attend(q, k, v, edges, kernel="dense"), (q, k, v))


@pytest.mark.parametrize(
    ("mask", "rows", "kind"),
    [
        (Window(5), "plain", Band),
        (Window(5) & Causal(), "packed", Band),
        (Window(5, 3) & (Prefix() | Causal()), "padded right", Band),
        (Window(5) | Causal(), "packed", torch.Tensor),
        (Window(50, 50), "plain", ALL),
        (Window(50) & Causal(), "plain", CAUSAL),
        (Prefix() | Causal(), "plain", CAUSAL),
        (Window(30) & Causal(), "plain", torch.Tensor),
        (Prefix() | Causal(), "packed", torch.Tensor),
        (Strided(3) & Window(5), "packed", Band),
        (Strided(3) & Causal(), "plain", torch.Tensor),
    ],
    ids=str,
)
def test_what_a_mask_becomes(mask, rows, kind):
    at = coordinates(rows, 43)
    found = lower(mask, at, at)
    assert found == kind if isinstance(kind, str) else isinstance(found, kind)
    assert not isinstance(lower(mask, at, at, wants_bias=True), Band)
    disordered = replace(at, start=None, is_ordered=False)
    assert isinstance(lower(mask, disordered, disordered), torch.Tensor)


def test_plain_rows_elsewhere_than_the_keys():
    whole = plain_coordinates(1, 43)
    for mask in MASKS[:-2]:
        if "Local2D" in str(mask):
            continue
        for start, stop in ((42, 43), (30, 43), (0, 43), (10, 20)):
            query = plain_coordinates(1, stop - start, start=start)
            for first in (0, 8, 42):
                key = plain_coordinates(1, 43 - first, start=first)
                q, k = torch.empty(1, 1, stop - start, 8), torch.empty(1, 1, 43 - first, 8)
                found = dense_allowed(lower(mask, query, key), q, k)[0, 0]
                edges = dense_mask(mask, whole, whole)[0, start:stop, first:]
                assert torch.equal(found.expand_as(edges), edges), (mask, start, stop, first)


def test_any_order_of_the_keys_that_a_window_covers_needs_no_mask():
    query, ring = plain_coordinates(1, 1, start=20), plain_coordinates(1, 6, start=15)
    rolled = ring.map(lambda t: t.roll(2, 1))
    assert isinstance(lower(Window(5) & Causal(), query, rolled), torch.Tensor)
    assert lower(Window(5) & Causal(), query, replace(rolled, span=(15, 20))) == ALL
    assert isinstance(lower(Window(4) & Causal(), query, replace(rolled, span=(15, 20))), torch.Tensor)


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "dense"])
def test_a_query_without_keys_gives_zeros_and_no_gradient(kernel):
    at = coordinates("padded right", 43)
    for mask in (Causal(), Window(3)):
        q, k, v = drawn(43)
        out = attend(q, k, v, lower(mask, at, at, kernel=kernel), kernel=kernel)
        empty = at.document < 0
        assert empty.any()
        lost = out.transpose(1, 2)[empty]
        assert (lost == 0).all()
        grads = torch.autograd.grad(lost.sum(), (q, k, v), retain_graph=True)
        assert all((g == 0).all() for g in grads)
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(g.isfinite().all() and (g.transpose(1, 2)[empty] == 0).all() for g in grads)


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "dense"])
def test_bias_and_scale(kernel):
    at, (q, k, v) = coordinates("packed", 43), drawn(43, (4, 2))
    bias = torch.randn(1, 4, 43, 43, dtype=torch.float64, requires_grad=True)
    for mask in (Full(), Window(4) & Causal()):
        edges = dense_mask(mask, at, at).unsqueeze(1)
        expected = by_the_predicate(q * (0.3 * math.sqrt(8)), k, v, edges, bias)
        allowed = lower(mask, at, at, wants_bias=True, kernel=kernel)
        assert_same(attend(q, k, v, allowed, scale=0.3, bias=bias, kernel=kernel), expected, (q, k, v, bias))
    allowed = lower(Window(4), at, at, kernel=kernel)
    expected = by_the_predicate(q * (0.3 * math.sqrt(8)), k, v, dense_mask(Window(4), at, at).unsqueeze(1))
    assert_same(attend(q, k, v, allowed, scale=0.3, kernel=kernel), expected, (q, k, v))


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "dense"])
@pytest.mark.parametrize("mask", [Causal(), Window(3)], ids=str)
def test_dropout_drops_weights_and_keeps_the_mean(kernel, mask):
    at, (q, k, _) = plain_coordinates(1, 43), drawn(43, num_rows=1)
    torch.manual_seed(0)
    outs = [
        attend(q, k, torch.ones_like(q), lower(mask, at, at, kernel=kernel), dropout=0.25, kernel=kernel)
        for _ in range(200)
    ]
    assert torch.stack(outs).mean().item() == pytest.approx(1.0, abs=0.02)
    first = torch.stack(outs)[:, :, :, 0].unique()  # the first query has one key: it is there, or it isn't
    assert first.tolist() == pytest.approx([0, 1 / 0.75])


def saved_bytes(length: int, mask: Mask, rows: str) -> int:
    """What autograd keeps of one attention, each storage once."""
    at, (q, k, v) = coordinates(rows, length), drawn(length)
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = attend(q, k, v, lower(mask, at, at))
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("rows", ["plain", "packed"])
def test_a_window_keeps_memory_linear_in_the_length(rows):
    short, long = (saved_bytes(n, Window(8) & (Prefix() | Causal()), rows) for n in (512, 1024))
    assert long == pytest.approx(2 * short, rel=0.02)
    assert long < saved_bytes(1024, Window(1000) & Strided(2), rows) / 4


def flexed(monkeypatch) -> None:
    """FlexAttention by its reference, which needs no compiling."""
    monkeypatch.setattr(lowering, "_compiled_flex", lambda: flex_attention)
    monkeypatch.setattr(lowering, "compiler", lambda: "c++")
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_flex_is_the_predicate(mask, rows, monkeypatch):
    flexed(monkeypatch)
    at, (q, k, v) = coordinates(rows, 43), drawn(43, (4, 2), requires_grad=False, dtype=torch.float32)
    bias = torch.randn(1, 4, 43, 43)
    edges = dense_mask(mask, at, at).unsqueeze(1)
    allowed = lower(mask, at, at, kernel="flex")
    assert isinstance(allowed, Blocks)
    assert torch.equal(dense_allowed(allowed, q, k), edges)
    for how in (allowed, edges):
        torch.testing.assert_close(attend(q, k, v, how, kernel="flex"), by_the_predicate(q, k, v, edges))
    found = attend(q, k, v, allowed, bias=bias, kernel="flex")
    torch.testing.assert_close(found, by_the_predicate(q, k, v, edges, bias))


def test_flex_with_the_shortcuts(monkeypatch):
    flexed(monkeypatch)
    q, k, v = drawn(43, requires_grad=False)
    for allowed in (ALL, CAUSAL):
        edges = dense_allowed(allowed, q, k)
        torch.testing.assert_close(attend(q, k, v, allowed, kernel="flex"), by_the_predicate(q, k, v, edges))


@pytest.mark.parametrize("num_rows", [1, 2, 3])
@torch.no_grad()
def test_every_form_by_flex(num_rows, monkeypatch):
    flexed(monkeypatch)
    text = torch.randint(VOCAB, (num_rows, 12), generator=torch.Generator().manual_seed(1))
    decoders = [
        form
        for name, form in FORMS.items()
        if not reads_forward(form) and not isinstance(form.decoder.position, Shaw) and name != "capped scores"
    ]
    for form in (*decoders, *map(pair, decoders)):
        model = build(form)
        expected = model(text, source=None if form.encoder is None else text[:, :7])
        model.use_kernel("flex")
        found = model(text, source=None if form.encoder is None else text[:, :7])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_capped_scores_are_computed_by_plain_products_alone():
    model = build(FORMS["capped scores"])
    for kernel in ("sdpa", "flex"):
        with pytest.raises(ValueError, match="can't do weights"):
            model.use_kernel(kernel)
    model.use_kernel("dense")


@torch.no_grad()
def test_rows_that_share_a_source_by_flex(monkeypatch):
    flexed(monkeypatch)
    model, text = build(pair(FORMS["grouped"])), torch.arange(12).view(4, 3)
    memory = model.encode(torch.tensor([[5, 4, 3, 2, 1], [7, 8, 9, 7, 8]]))
    expected = model.decode(text, memory=memory)
    model.use_kernel("flex")
    torch.testing.assert_close(model.decode(text, memory=memory), expected)


def test_flex_has_few_shapes_to_compile():
    sizes = set()
    for length in range(1, 200):
        query, key = plain_coordinates(3, 1, start=length - 1), plain_coordinates(3, length)
        sizes.add(lower(Causal(), query, key, kernel="flex").sizes)
    assert sizes == {(4, 1, 2**n) for n in range(9)}


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("rows", "num_rows"), [("packed", 2), ("plain", 1), ("plain", 2), ("plain", 3)])
def test_flex_compiled(rows, num_rows):
    at = plain_coordinates(num_rows, 50) if rows == "plain" else coordinates(rows, 50, num_rows)
    q, k, v = drawn(50, (4, 2), num_rows, requires_grad=False, dtype=torch.float32)
    mask, bias = Window(20) & (Prefix() | Causal()), torch.randn(1, 4, 50, 50)
    found = attend(q, k, v, lower(mask, at, at, kernel="flex"), bias=bias, kernel="flex")
    torch.testing.assert_close(found, by_the_predicate(q, k, v, dense_mask(mask, at, at).unsqueeze(1), bias))


@pytest.mark.filterwarnings("ignore")
def test_flex_compiles_anew_when_torch_would_give_up(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **options: torch._dynamo.optimize("eager", dynamic=False)(f))
    monkeypatch.setattr(compiling, "MOST_PROGRAMS", 2)
    lowering._compiled_flex.cache_clear()
    torch.compiler.reset()
    at, (q, k, v) = plain_coordinates(1, 2), drawn(2, num_rows=1, requires_grad=False)
    for before in range(4):  # each mask is another program
        found = attend(q, k, v, lower(Window(before), at, at, kernel="flex"), kernel="flex")
        edges = dense_mask(Window(before), at, at).unsqueeze(1)
        torch.testing.assert_close(found, by_the_predicate(q, k, v, edges))
    lowering._compiled_flex.cache_clear()


@pytest.mark.parametrize(
    ("kernel", "needs", "words"),
    [
        ("fast", set(), "kernel='fast' isn't there; choose among auto, dense, sdpa, flex"),
        ("flex", {"dropout", "bias"}, "kernel='flex' on cpu can't do dropout; choose auto, dense, sdpa"),
        ("flex", {"gradients"}, "kernel='flex' on cpu can't do gradients"),
        ("flex", {"values", "relative"}, "kernel='flex' on cpu can't do values; choose auto, dense"),
        ("sdpa", {"weights"}, "kernel='sdpa' on cpu can't do weights; choose auto, dense"),
    ],
)
def test_what_a_kernel_cannot_do_is_said(kernel, needs, words):
    with pytest.raises(ValueError, match=words):
        check_kernel(kernel, needs=needs, device="cpu")


def test_flex_never_falls_back_in_silence():
    at, (q, k, v) = plain_coordinates(2, 43), drawn(43)
    with pytest.raises(ValueError, match="can't do gradients"):
        attend(q, k, v, lower(Causal(), at, at, kernel="flex"), kernel="flex")
    with torch.no_grad(), pytest.raises(ValueError, match="can't do dropout"):
        attend(q, k, v, ALL, dropout=0.1, kernel="flex")
    for kernel in ("auto", "dense"):
        check_kernel(kernel, needs={"bias", "relative", "values", "dropout", "weights", "gradients"}, device="cpu")
    check_kernel("flex", needs={"gradients", "bias"}, device="cuda")

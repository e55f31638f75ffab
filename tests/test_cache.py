"""The cache: cached = uncached against the predicate, however the tokens come; how many keys are held, and copied."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.batch import plain_coordinates
from isoform.mask import Causal, Coordinates, Full, Local2D, Mask, Prefix, Strided, Window, dense_mask
from isoform.model.cache import AllSlots, Cache, KeyValueShape, RingSlots
from isoform.model.lowering import ALL, CAUSAL, attend, dense_allowed, look_back, lower

LENGTH, ROWS, HEADS, DIM = 23, 2, 2, 4


def part(at: Coordinates, start: int, stop: int) -> Coordinates:
    """Some columns; plain rows stay plain."""
    cut = at.map(lambda t: t[:, start:stop])
    return replace(cut, start=start if at.start is not None else None)


def build(windows: list[int | None], capacity: int = LENGTH, num_rows: int = ROWS, own: tuple[int, ...] = ()) -> Cache:
    shapes = [KeyValueShape(HEADS, DIM, window, is_own=layer in own) for layer, window in enumerate(windows)]
    return Cache(shapes, num_rows=num_rows, capacity=capacity, device=torch.device("cpu"), dtype=torch.float64)


def check_cached_equals_uncached(masks: list[Mask], at: Coordinates, sizes: list[int]) -> Cache:
    """Whatever comes out of the layers token by token is what the predicate says of the whole rows."""
    torch.manual_seed(0)
    num_rows, length = at.index.shape
    q, k, v = (torch.randn(len(masks), num_rows, HEADS, length, DIM, dtype=torch.float64) for _ in range(3))
    whole = [attend(q[n], k[n], v[n], dense_mask(mask, at, at).unsqueeze(1)) for n, mask in enumerate(masks)]
    cache = build([look_back(mask) for mask in masks], length, num_rows)
    start = 0
    for size in sizes:
        stop = min(start + size, length)
        query = part(at, start, stop)
        cache.extend(query)
        for n, mask in enumerate(masks):
            key, value = cache.keys_values(n).append(k[n, :, :, start:stop], v[n, :, :, start:stop])
            keys = cache.keys(n)
            assert keys.index.shape[1] == key.shape[2] == value.shape[2]
            edges = lower(mask, query, keys)
            predicted = dense_mask(mask, query, keys).unsqueeze(1)
            assert torch.equal(dense_allowed(edges, q[n, :, :, start:stop], key).expand_as(predicted), predicted)
            out = attend(q[n, :, :, start:stop], key, value, edges)
            torch.testing.assert_close(out, whole[n][:, :, start:stop])
        start = stop
        if start == length:
            return cache
    raise AssertionError("the sizes don't reach the end")


MASKS = [
    Causal(),
    Window(0) & Causal(),
    Window(4) & Causal(),
    Window(4, 2) & (Prefix() | Causal()),
    Window(11) & Causal(),
    Window(40) & Causal(),
    Strided(3) & Window(6) & Causal(),
    Local2D(1, 2) & Window(8) & Causal(),
]


def rows(kind: str) -> Coordinates:
    """Rows with positions three wide."""
    at = plain_coordinates(ROWS, LENGTH)
    position = torch.stack([at.index // 3, at.index % 3], -1)
    if kind == "plain":
        return replace(at, position=position)
    document, index = at.document.clone(), at.index.clone()
    if kind == "padded left":
        document[1, :5], index[1] = -1, index[1] - 5
    elif kind == "padded right":  # prompts of 9 and 4 tokens beside each other, then all go on
        document[1, 4:9], index[1, 9:] = -1, index[1, 9:] - 5
    elif kind == "packed":
        document[0, 8:], index[0, 8:] = 1, index[0, 8:] - 8
        document[1, 15:], index[1, 15:] = 1, index[1, 15:] - 15
    elif kind == "gaps":  # now one row goes on, now the other
        for row in range(ROWS):
            is_token = torch.arange(LENGTH) % (2 + row) != 0
            document[row], index[row] = torch.where(is_token, 0, -1), is_token.cumsum(0) - 1
    return Coordinates(document, index, (index < 3) & (index >= 0) if kind == "prefix" else None, position)


@pytest.mark.parametrize("kind", ["plain", "prefix", "padded left", "padded right", "packed", "gaps"])
@pytest.mark.parametrize(
    "sizes",
    [[1] * 23, [23], [9] + [1] * 14, [4, 5, 5, 9], [2, 1, 1, 7, 1, 1, 1, 6, 3]],
    ids=lambda s: f"{len(s)} parts",
)
def test_cached_equals_uncached(kind, sizes):
    sees_ahead = kind == "prefix" and sizes[0] < 3  # tokens that come later can't be seen
    check_cached_equals_uncached([m for m in MASKS if not (sees_ahead and "Prefix" in str(m))], rows(kind), sizes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cached_equals_uncached_however_tokens_come(data):
    length = data.draw(st.integers(1, 30))
    is_token = torch.tensor([[data.draw(st.integers(0, 4)) > 0 for _ in range(length)] for _ in range(ROWS)])
    index = is_token.cumsum(1) - 1
    at = Coordinates(torch.where(is_token, 0, -1), index)
    if data.draw(st.booleans()):
        at = plain_coordinates(ROWS, length)
    masks = [Window(data.draw(st.integers(0, 12))) & Causal() for _ in range(3)]
    sizes = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, 8]), min_size=length, max_size=length))
    check_cached_equals_uncached(masks, at, sizes)


@pytest.mark.parametrize("kind", ["plain", "padded right"])
def test_a_window_holds_no_more_keys_than_it_sees(kind):
    cache = check_cached_equals_uncached(
        [m & Causal() for m in (Window(4), Full(), Window(4, 1), Window(LENGTH))], rows(kind), [9] + [1] * 14
    )
    assert [layer.key.shape[2] for layer in cache.layers] == [5, LENGTH, 5, LENGTH]
    assert [cache.keys(n).index.shape[1] for n in range(4)] == [5, LENGTH, 5, LENGTH]
    assert isinstance(cache.keys_values(0).slots, RingSlots) and isinstance(cache.keys_values(3).slots, AllSlots)
    assert cache.keys_values(0).slots is cache.keys_values(2).slots and cache.keys(0) is cache.keys(2)


def test_a_ring_of_plain_rows_needs_no_mask_and_copies_nothing():
    cache, mask = build([4]), Window(4) & Causal()
    found = []
    for start, stop in [(0, 3), (3, 4), *((i, i + 1) for i in range(4, 12))]:
        new = plain_coordinates(ROWS, stop - start, start=start)
        cache.extend(new)
        kv = torch.randn(ROWS, HEADS, stop - start, DIM, dtype=torch.float64)
        key, _ = cache.keys_values(0).append(kv, kv)
        found.append(lower(mask, new, cache.keys(0)))
        assert start == 0 or key.data_ptr() == cache.keys_values(0).key.data_ptr()
    assert found == [CAUSAL] + [ALL] * 9


def test_prefill_of_plain_rows_keeps_its_shortcut():
    cache, new = build([4, None]), plain_coordinates(ROWS, 15)
    cache.extend(new)
    assert lower(Causal(), new, cache.keys(0)) == lower(Causal(), new, cache.keys(1)) == CAUSAL


def test_tokens_follow_the_newest_of_their_row():
    cache = build([None, 3])
    assert cache.next_coordinates().start == 0
    cache.extend(plain_coordinates(ROWS, 4))
    following = cache.next_coordinates()
    assert following.start == 4 and following.index.tolist() == [[4], [4]] and following.document.tolist() == [[0], [0]]
    cache = build([None, 3])
    at = rows("padded right")
    cache.extend(part(at, 0, 9))
    for i in range(9, 12):
        following = cache.next_coordinates()
        assert following.start is None
        assert torch.equal(following.index, at.index[:, i : i + 1]) and (following.document == 0).all()
        cache.extend(following)
    pausing = Coordinates(torch.tensor([[0], [-1]]), torch.tensor([[12], [0]]))
    cache.extend(pausing)
    assert cache.next_coordinates().index.tolist() == [[13], [7]]


def test_a_layer_of_its_own_is_told_by_itself_what_it_sees():
    cache = build([None, None, 3], own=[1])
    new = plain_coordinates(ROWS, 4)
    some = replace(new, document=torch.tensor([[0, -1, 0, 0], [-1, -1, 0, -1]]), start=None)
    cache.extend(new)
    cache.extend(some, layer=1)
    assert (cache.keys(0).document == 0).all() and (cache.keys(2).document == 0).all()
    assert torch.equal(cache.keys(1).document, some.document)


def test_a_full_cache_says_so_and_rings_go_on():
    cache = build([None], 3)
    cache.extend(plain_coordinates(ROWS, 3))
    with pytest.raises(ValueError, match="has 3 slots but 4 tokens came"):
        cache.extend(plain_coordinates(ROWS, 1, start=3))
    cache = build([1, 0], 3)
    for start in range(9):
        assert cache.next_coordinates().start == start
        cache.extend(cache.next_coordinates())
    assert cache.keys(0).span == (7, 8) and cache.length == 9


def test_infinity_is_no_window():
    assert isinstance(build([None]).keys_values(0).slots, AllSlots)

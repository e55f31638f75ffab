"""Masks against their definitions, written out as loops; documents; what a mask reaches."""

import math

import pytest
import torch

from isoform.batch import plain_coordinates
from isoform.mask import Causal, Coordinates, FixedSparse, Full, Local2D, Mask, Prefix, Strided, Window, dense_mask
from isoform.model.lowering import exact_window, index_bounds

LENGTH = 17


def seen(mask: Mask, coordinates: Coordinates | None = None) -> list[set[int]]:
    """The keys that each query of one row sees."""
    coordinates = plain_coordinates(1, LENGTH) if coordinates is None else coordinates
    return [set(row.nonzero()[:, 0].tolist()) for row in dense_mask(mask, coordinates, coordinates)[0]]


@pytest.mark.parametrize("stride", [1, 3, 5, 20])
def test_strided_is_that_of_the_paper(stride):
    """Child et al. 2019, section 4.2: A1 = {t, .., i}, t = max(0, i - l), and A2 = {j : (i - j) mod l = 0}, j <= i."""
    for i, keys in enumerate(seen(Strided(stride) & Causal())):
        first = set(range(max(0, i - stride), i + 1))
        assert keys == first | {j for j in range(i + 1) if (i - j) % stride == 0}


@pytest.mark.parametrize(("stride", "summary"), [(1, 1), (4, 1), (5, 2), (6, 6), (20, 3)])
def test_fixed_sparse_is_that_of_the_paper(stride, summary):
    """Child et al. 2019, section 4.2: A1 = {j : floor(j / l) = floor(i / l)}, A2 = {j : j mod l in {l - c, .., l}}."""
    for i, keys in enumerate(seen(FixedSparse(stride, summary) & Causal())):
        chunk = {j for j in range(i + 1) if j // stride == i // stride}
        assert keys == chunk | {j for j in range(i + 1) if j % stride in range(stride - summary, stride + 1)}


def test_local_2d_sees_a_rectangle_of_an_image():
    height, width = 4, 5
    position = torch.tensor([(r, c) for r in range(height) for c in range(width)]).unsqueeze(0)
    plain = plain_coordinates(1, height * width)
    coordinates = Coordinates(plain.document, plain.index, position=position)
    for i, keys in enumerate(seen(Local2D(1, 2), coordinates)):
        near = [(r, c) for r in range(height) for c in range(width)]
        assert keys == {n for n, (r, c) in enumerate(near) if abs(r - i // width) <= 1 and abs(c - i % width) <= 2}


@pytest.mark.parametrize(
    ("mask", "allows"),
    [
        (Full(), lambda i, j: True),
        (Causal(), lambda i, j: j <= i),
        (Window(3), lambda i, j: i - 3 <= j <= i),
        (Window(2, 4), lambda i, j: i - 2 <= j <= i + 4),
        (Prefix() | Causal(), lambda i, j: j < 6 or j <= i),
        ((Prefix() | Causal()) & Window(2, 2), lambda i, j: (j < 6 or j <= i) and abs(i - j) <= 2),
        (
            Window(1) | (Strided(4) & Causal()),
            lambda i, j: 0 <= i - j <= 4 or (j <= i and (i - j) % 4 == 0),
        ),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_masks_and_their_combinations(mask, allows):
    plain = plain_coordinates(1, LENGTH)
    coordinates = Coordinates(plain.document, plain.index, plain.index < 6)
    for i, keys in enumerate(seen(mask, coordinates)):
        assert keys == {j for j in range(LENGTH) if allows(i, j)}


@pytest.mark.parametrize("mask", [Full(), Causal() | Full(), Prefix() | Causal(), Strided(2) | Window(9, 9)], ids=str)
def test_no_or_allows_pairs_across_documents(mask):
    document = torch.tensor([[0] * 5 + [1] * 6 + [-1] * 2 + [2] * 4])
    index = torch.tensor([[*range(5), *range(6), 0, 1, *range(4)]])
    edges = dense_mask(mask, *[Coordinates(document, index, index < 2)] * 2)[0]
    same = (document[0][:, None] == document[0]) & (document[0] >= 0)
    assert not (edges & ~same).any()
    assert edges[same].any()


@pytest.mark.parametrize(
    ("mask", "far", "near"),
    [
        (Full(), None, (math.inf, math.inf)),
        (Causal(), (math.inf, 0), (math.inf, 0)),
        (Window(3, 2), (3, 2), (3, 2)),
        (Window(3, 2) & Causal(), (3, 0), (3, 0)),
        (Window(3) & (Prefix() | Causal()), (3, 0), (3, 0)),
        (Window(3, 1) & (Prefix() | Causal()), (3, 1), (3, 0)),
        (Prefix() | Causal(), None, (math.inf, 0)),
        (Prefix(), None, (-math.inf, -math.inf)),
        (Prefix() & Window(2), (2, 0), (-math.inf, -math.inf)),
        (Window(3) | Window(1, 4), (3, 4), (3, 4)),
        (Window(9) & Strided(2), (9, 0), None),
        (Strided(2) & Causal(), (math.inf, 0), None),
        (FixedSparse(3), None, None),
        (Local2D(1, 1), None, None),
    ],
    ids=str,
)
def test_what_a_mask_reaches(mask, far, near):
    assert index_bounds(mask) == far
    assert exact_window(mask) == near
    if isinstance(mask, Local2D):
        return
    for i, keys in enumerate(seen(mask)):
        if far is not None:
            assert all(i - far[0] <= j <= i + far[1] for j in keys)
        if near is not None:
            assert keys == {j for j in range(LENGTH) if i - near[0] <= j <= i + near[1]}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Window(-1), "before=-1 must be at least 0"),
        (lambda: Strided(0), "stride=0"),
        (lambda: FixedSparse(4, 5), "summary=5"),
        (lambda: Local2D(0, -1), "columns=-1"),
        (lambda: seen(Local2D(1, 1)), "positions"),
    ],
)
def test_invalid_masks_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()

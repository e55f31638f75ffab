"""What each position scheme promises, beside what all of them share."""

import math

import pytest
import torch

from isoform.batch import plain_coordinates
from isoform.mask import Coordinates
from isoform.model.parts import (
    ALiBi,
    Buckets,
    Grid,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    Rotary,
    Shaw,
    YaRNExtension,
)
from isoform.model.position import (
    BucketPosition,
    GridPosition,
    RotaryPosition,
    ShawPosition,
    alibi_slopes,
    build_position,
    rotary_frequencies,
    sinusoids,
)

DIM = 16


def score(scheme: RotaryPosition, i, j, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    at_i, at_j = (
        scheme.rotation(Coordinates(torch.zeros(1, 1), torch.zeros(1, 1), position=torch.tensor(p))) for p in (i, j)
    )
    return (at_i(q) * at_j(k)).sum()


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, 1, 1, DIM), torch.randn(1, 1, 1, DIM)


EXTENSIONS = {
    "none": None,
    "linear": LinearExtension(factor=4.0),
    "ntk": NTKExtension(factor=4.0),
    "yarn": YaRNExtension(factor=4.0, original_length=256),
    "llama3": Llama3Extension(factor=4.0, original_length=256),
}


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS.keys())
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_scores_depend_on_distance_only(extension, fraction):
    scheme = RotaryPosition(Rotary(base=100.0, fraction=fraction, extension=extension), round(DIM * fraction), 100)
    q, k = pair()
    torch.testing.assert_close(score(scheme, [[5]], [[2]], q, k), score(scheme, [[93]], [[90]], q, k))
    assert (score(scheme, [[5]], [[2]], q, k) - score(scheme, [[5]], [[3]], q, k)).abs() > 1e-3


def test_rotary_in_two_dimensions_depends_on_both_distances_only():
    scheme = RotaryPosition(Rotary(base=10.0, axes=2), DIM, 50)
    q, k = pair()
    here, moved = score(scheme, [[[5, 9]]], [[[2, 4]]], q, k), score(scheme, [[[13, 10]]], [[[10, 5]]], q, k)
    torch.testing.assert_close(here, moved)
    for other in ([[[13, 11]]], [[[14, 10]]]):
        assert (score(scheme, other, [[[10, 5]]], q, k) - here).abs() > 1e-3


def test_the_rest_of_a_part_rotary_head_stays_as_it_is():
    scheme = RotaryPosition(Rotary(fraction=0.25), DIM // 4, 50)
    heads = torch.randn(2, 9, 3, DIM)
    turned = scheme.rotation(plain_coordinates(2, 9, start=7))(heads)
    assert torch.equal(turned[..., DIM // 4 :], heads[..., DIM // 4 :])
    assert (turned[..., : DIM // 4] != heads[..., : DIM // 4]).any()


def frequencies(extension, dim: int = 128, base: float = 10000.0) -> torch.Tensor:
    return rotary_frequencies(Rotary(base=base, extension=extension), dim)[0]


def test_linear_extension_is_place_over_factor():
    torch.testing.assert_close(frequencies(LinearExtension(factor=3.0)), frequencies(None) / 3)


def test_ntk_leaves_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    ratio = frequencies(NTKExtension(factor=8.0)) / frequencies(None)
    assert ratio[0] == 1 and (ratio.diff() < 0).all()
    assert float(ratio[-1]) == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("extension", "fast", "slow"),
    [
        (YaRNExtension(factor=4.0, original_length=2048), 32.0, 1.0),
        (Llama3Extension(factor=4.0, original_length=2048), 4.0, 1.0),
    ],
)
def test_extensions_leave_fast_pairs_and_slow_the_slow_ones(extension, fast, slow):
    """Pairs that turn often within the old context see short texts as before; those that don't finish a turn are
    slowed by the factor; a ramp lies between (Peng et al. 2023, section 3.2; Llama 3.1)."""
    plain, extended = frequencies(None), frequencies(extension)
    turns, ratio = plain * 2048 / (2 * math.pi), extended / plain
    assert torch.equal(ratio[turns > 1.1 * fast], torch.ones_like(ratio[turns > 1.1 * fast]))
    torch.testing.assert_close(ratio[turns < 0.9 * slow], torch.full_like(ratio[turns < 0.9 * slow], 0.25))
    assert (ratio.diff() <= 1e-12).all()
    assert ((ratio < 1) & (ratio > 0.25)).any()


def test_yarn_scales_scores_by_the_papers_factor():
    assert rotary_frequencies(Rotary(extension=YaRNExtension(factor=8.0)), 64)[1] == pytest.approx(
        0.1 * math.log(8) + 1
    )


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [2**-i for i in range(1, 9)]
    assert alibi_slopes(1) == [2**-8]
    twelve = alibi_slopes(12)
    assert len(set(twelve)) == 12 and twelve[:8] == alibi_slopes(8) and twelve[8:] == alibi_slopes(16)[0:8:2]


def test_alibi_falls_linearly_with_the_distance():
    scheme = build_position(ALiBi(), model_dim=8, num_heads={4}, rotated_dims={2}, context_length=9)
    bias = scheme.bias(plain_coordinates(1, 9), plain_coordinates(1, 9))
    assert bias.shape == (1, 4, 9, 9)
    for head, slope in enumerate(alibi_slopes(4)):
        assert bias[0, head, 8].tolist() == [-slope * (8 - i) for i in range(9)]


def test_buckets_are_exact_near_by_and_wide_far_off():
    scheme = BucketPosition(Buckets(num_buckets=32, max_distance=128), num_heads=2)
    found = scheme.buckets(-torch.arange(300)).tolist()
    assert found[:16] == list(range(16)) and found == sorted(found)
    assert found[127] == found[299] == 31 and found[90] < 31
    assert scheme.buckets(torch.arange(1, 9)).eq(0).all()
    both = BucketPosition(Buckets(num_buckets=32, max_distance=128, bidirectional=True), num_heads=2)
    assert both.buckets(torch.arange(1, 8)).tolist() == list(range(17, 24))
    assert both.buckets(-torch.arange(8)).tolist() == list(range(8))


def test_shaw_shares_a_vector_beyond_the_distance():
    scheme = ShawPosition(Shaw(distance=2), head_dim=4)
    with torch.no_grad():
        for table in scheme.parameters():
            table.normal_()
    relative = scheme.relative(plain_coordinates(1, 7), plain_coordinates(1, 7))
    scores = relative.scores(torch.ones(1, 1, 7, 4))[0, 0]
    assert scores[6, 0] == scores[6, 4] and scores[6, 4] != scores[6, 5] and scores[0, 2] == scores[0, 6]


def test_a_grid_is_a_row_and_a_column():
    scheme = GridPosition(Grid(rows=3, columns=4), model_dim=5)
    with torch.no_grad():
        for table in scheme.parameters():
            table.normal_()
    position = torch.tensor([[[2, 1], [0, 3]]])
    x = scheme.embed(torch.zeros(1, 2, 5), Coordinates(torch.zeros(1, 2), torch.zeros(1, 2), position=position))
    torch.testing.assert_close(x[0, 0], scheme.row_table[2] + scheme.column_table[1])
    with pytest.raises(ValueError, match="positions of 2 numbers, but the tokens have only an index"):
        scheme.embed(torch.zeros(1, 2, 5), plain_coordinates(1, 2))


def test_sinusoids_in_both_orders_are_the_same_numbers():
    one, other = (sinusoids(20, 8, 10000.0, order) for order in ("interleaved", "halves"))
    assert torch.equal(one[:, 0::2], other[:, :4]) and torch.equal(one[:, 1::2], other[:, 4:])
    assert one[3, 0] == pytest.approx(math.sin(3)) and one[3, 3] == pytest.approx(math.cos(3 * 10000 ** (-2 / 8)))


@pytest.mark.parametrize(
    ("config", "words"), [(ALiBi(), "num_heads"), (Buckets(), "num_heads"), (Rotary(), "head_dim")], ids=str
)
def test_what_blocks_share_they_must_agree_on(config, words):
    with pytest.raises(ValueError, match=words):
        build_position(config, model_dim=8, num_heads={2, 4}, rotated_dims={4, 8}, context_length=9)


def test_schemes_of_one_axis_go_by_the_index_where_places_have_two():
    scheme = build_position(ALiBi(), model_dim=8, num_heads={4}, rotated_dims={2}, context_length=9)
    two = Coordinates(torch.zeros(1, 3), torch.arange(3).view(1, 3), position=torch.zeros(1, 3, 2, dtype=torch.long))
    assert torch.equal(scheme.bias(two, two), scheme.bias(plain_coordinates(1, 3), plain_coordinates(1, 3)))

"""Where collections of features break: every position scheme on every kernel, cached and not, packed and not, with
every grouping of heads, against attention computed edge by edge."""

import itertools
import os
import random
from functools import cache

import pytest
import torch

import oracle
from isoform.batch import Tokens
from isoform.mask import Causal, Coordinates, Full, Local2D, Mask, Prefix, Strided, Window
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.lowering import ABILITIES
from isoform.model.parts import (
    ALiBi,
    Attention,
    Buckets,
    Dense,
    Grid,
    Learned,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    RMSNorm,
    Rotary,
    Shaw,
    Sinusoidal,
    YaRNExtension,
)
from isoform.model.transformer import Transformer
from models import build

LENGTH, DIM = 9, 16
SCHEMES = {
    "none": None,
    "learned": Learned(),
    "grid": Grid(rows=3, columns=3),
    "sinusoidal": Sinusoidal(),
    "rotary": Rotary(base=50.0),
    "rotary half": Rotary(base=50.0, fraction=0.5),
    "rotary 2-D": Rotary(base=50.0, axes=2),
    "linear": Rotary(base=50.0, extension=LinearExtension(factor=3.0)),
    "ntk": Rotary(base=50.0, extension=NTKExtension(factor=3.0)),
    "yarn": Rotary(base=50.0, extension=YaRNExtension(factor=3.0, original_length=60, beta_fast=4.0)),
    "llama3": Rotary(base=50.0, extension=Llama3Extension(factor=3.0, original_length=20)),
    "shaw": Shaw(distance=3),
    "shaw keys": Shaw(distance=3, values=False),
    "buckets": Buckets(num_buckets=6, max_distance=8),
    "buckets both": Buckets(num_buckets=6, max_distance=8, bidirectional=True),
    "alibi": ALiBi(),
}
MASKS: dict[str, Mask] = {
    "causal": Causal(),
    "window": Window(2) & Causal(),
    "prefix": Prefix() | Causal(),
    "full": Full(),
    "strided": Strided(3) & Causal(),
    "local": Local2D(1, 1) | Window(0),
}
KERNELS = ("auto", "dense", "sdpa", "flex")
HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}
PATHS = ("plain", "packed", "cached")


def needs_of(scheme: str) -> frozenset[str]:
    """What a scheme asks of a kernel."""
    block = model_of(scheme, "MHA").decoder.blocks[0]
    return block.position.needs if block.position else model_of(scheme, "MHA").decoder.position.needs


def is_possible(scheme: str, mask: str, kernel: str, path: str) -> bool:
    """What is supported: a kernel that has the abilities; through a cache, masks that look back only."""
    return ABILITIES[kernel] >= NEEDS[scheme] and (path != "cached" or mask in ("causal", "window", "strided"))


def model_of(scheme: str, heads: str) -> Transformer:
    """One block that only attends: a norm without gain, and a feed-forward that gives nothing."""
    block = BlockConfig(
        mixer=Attention(num_heads=4, num_kv_heads=HEADS[heads]),
        feedforward=Dense(feedforward_dim=8),
        norm=RMSNorm(scale=False),
    )
    stack = StackConfig(num_layers=1, blocks=(block,), position=SCHEMES[scheme], final_norm=False)
    model = build(ModelConfig(model_dim=DIM, context_length=LENGTH, vocab_size=7, decoder=stack))
    torch.nn.init.zeros_(model.decoder.blocks[0].feedforward.down.weight)
    return model


NEEDS = {scheme: needs_of(scheme) for scheme in SCHEMES}
ALL = [
    (scheme, mask, kernel, heads, path)
    for scheme, mask, kernel, heads, path in itertools.product(SCHEMES, MASKS, KERNELS, HEADS, PATHS)
    if is_possible(scheme, mask, kernel, path)
]
WITHOUT_FLEX = [way for way in ALL if way[2] != "flex"]
FLEX = [way for way in ALL if way[2] == "flex"]  # each is compiled, which takes seconds
SEED = random.Random(int(os.environ.get("ISOFORM_SEED", "0")))
HAS_TIME = bool(os.environ.get("ISOFORM_ALL"))
SOME = [*SEED.sample(WITHOUT_FLEX, len(WITHOUT_FLEX) if HAS_TIME else 400), *SEED.sample(FLEX, 40 if HAS_TIME else 2)]


def coordinates_of(path: str, scheme: str, mask: str) -> Coordinates:
    index = torch.arange(LENGTH).expand(2, -1)
    document = torch.zeros(2, LENGTH, dtype=torch.long)
    if path == "packed":
        document = torch.tensor([[0] * 4 + [1] * 3 + [-1] * 2, [0] * 2 + [1] * 7])
        index = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 0, 1, 2, 3, 4, 5, 6]])
    needs_places = scheme in ("grid", "rotary 2-D") or mask == "local"
    position = torch.stack([index // 3, index % 3], -1) if needs_places else None
    prefix = index < 2 if mask == "prefix" else None
    is_plain = path != "packed" and prefix is None
    return Coordinates(document, index, prefix, position, start=0 if is_plain else None, is_ordered=True)


def text() -> torch.Tensor:
    return torch.randint(7, (2, LENGTH), generator=torch.Generator().manual_seed(4))


@cache
def expected(scheme: str, mask: str, heads: str, is_packed: bool) -> torch.Tensor:
    model = model_of(scheme, heads)
    coordinates = coordinates_of("packed" if is_packed else "plain", scheme, mask)
    stack, block = model.decoder, model.decoder.blocks[0]
    x = stack.position.embed(model.stem(Tokens(text(), coordinates)), coordinates).double()
    y = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    owner = stack.position if block.position is None else block.position
    return x + oracle.attention(block.mixer, y, coordinates, MASKS[mask], SCHEMES[scheme], owner)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of torch
@pytest.mark.parametrize(("scheme", "mask", "kernel", "heads", "path"), SOME, ids=lambda value: value)
@torch.no_grad()
def test_every_way_gives_what_the_edges_give(scheme, mask, kernel, heads, path):
    coordinates = coordinates_of(path, scheme, mask)
    model = model_of(scheme, heads)
    if kernel == "flex":
        torch.compiler.reset()  # each way is another program, and after eight the compiler gives up
    model.use_kernel(kernel)
    if path == "cached":
        got = piecewise(model, coordinates, MASKS[mask])
    else:
        got = model.decode(Tokens(text(), coordinates), MASKS[mask])
    wanted = expected(scheme, mask, heads, path == "packed")
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=2e-6)


def piecewise(model: Transformer, coordinates: Coordinates, mask: Mask) -> torch.Tensor:
    """The same through a cache, in steps of several sizes."""
    parts, begin, kv_cache = [], 0, model.build_cache(2)
    for size in (3, 1, 4, 1):
        end = begin + size
        now = coordinates.map(lambda t, b=begin, e=end: t[:, b:e])
        now = Coordinates(now.document, now.index, now.prefix, now.position, start=begin)
        parts.append(model.decode(Tokens(text()[:, begin:end], now), mask, cache=kv_cache))
        begin = end
    return torch.cat(parts, 1)


REFUSED = [(scheme, kernel) for scheme in SCHEMES for kernel in KERNELS if not ABILITIES[kernel] >= NEEDS[scheme]]


@pytest.mark.parametrize(("scheme", "kernel"), REFUSED)
def test_what_a_kernel_cannot_do_is_refused_when_it_is_chosen(scheme, kernel):
    with pytest.raises(ValueError, match=kernel):
        model_of(scheme, "MHA").use_kernel(kernel)

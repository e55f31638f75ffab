"""Images as patches: the round trip, packing, training, and errors."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.batch import collate
from isoform.cli import main
from isoform.codecs.codec import Codec, as_text, check_encodings
from isoform.codecs.config import Bytes, Patches
from isoform.codecs.image import PatchCodec
from isoform.codecs.registry import build_codec, load_codec
from isoform.data import packages
from isoform.data.config import Data
from isoform.data.loader import ValidationRows, build_loader
from isoform.data.sources import load_source
from isoform.data.tokens import TokenStore, load_tokens
from isoform.evaluation.predictions import classify
from isoform.machine import choose_machine
from isoform.model.config import Linear, Lookup, Pooled
from isoform.model.parts import Grid, Rotary
from isoform.model.transformer import Transformer
from isoform.objectives.config import Causal, Classification
from isoform.objectives.task import logits_of
from isoform.objectives.views import build_view
from isoform.preparation import with_sizes
from isoform.recipe import Recipe, load_recipe
from isoform.run import load
from models import build

needs_digits = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="the digits are not installed: isoform[digits]"
)
CODEC = PatchCodec(Patches())
CLASSIFY = build_view(Classification())
TINY = [
    *("--model.model_dim", "32", "--model.encoder.num_layers", "2", "--model.dropout", "0.0"),
    *("--training.steps", "150", "--training.global_batch_tokens", "512"),
    *("--training.validate_every", "0", "--training.checkpoint_every", "0"),
]


def images(count: int, seed: int = 0) -> list[dict]:
    """Records of noise."""
    rng = np.random.default_rng(seed)
    return [{"image": rng.integers(0, 17, (8, 8)), "label": int(rng.integers(10))} for _ in range(count)]


def recipe(**fields) -> Recipe:
    """The built-in one, smaller, and with room for a class token."""
    start, grid = load_recipe("digits"), Grid(rows=5, columns=4)
    assert start.model.encoder is not None
    encoder = replace(start.model.encoder, num_layers=2, position=grid)
    return replace(start, model=replace(start.model, model_dim=16, encoder=encoder, **fields))


# The codec


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.booleans())
def test_an_image_is_restored_and_patches_are_in_row_order(size, rows, columns, channels, class_token):
    config = Patches(
        size=size,
        height=size * rows,
        width=size * columns,
        channels=channels,
        maximum=255.0,
        class_token=class_token,
    )
    codec, first = PatchCodec(config), int(class_token)
    image = np.random.default_rng(0).integers(0, 256, codec.shape)
    check_encodings(codec, [{"image": image}, {"image": image, "label": 9}])
    encoding = codec.encode({"image": image})
    assert np.allclose(codec.decode(encoding), image, atol=1e-4)
    assert encoding.ids.tolist() == [0] * first + [-1] * (rows * columns)
    assert encoding.features is not None and encoding.positions is not None
    assert np.abs(encoding.features).max() <= 1
    for patch, (row, column) in zip(encoding.features[first:], encoding.positions[first:], strict=True):
        row, column = (row - first) * size, column * size
        square = image[row : row + size, column : column + size].reshape(-1)
        assert np.allclose((patch + 1) / 2 * 255, square, atol=1e-4)
    assert len({tuple(position) for position in encoding.positions.tolist()}) == len(encoding)


def test_whole_numbers_are_restored_exactly():
    for record in images(20):
        assert np.array_equal(CODEC.decode(CODEC.encode(record)), record["image"])


def test_saved_and_loaded_is_the_same_and_fingerprints_differ(tmp_path):
    CODEC.save(tmp_path)
    again = load_codec(tmp_path)
    assert isinstance(again, PatchCodec) and again.config == CODEC.config and again.fingerprint == CODEC.fingerprint
    configs = [Patches(), Patches(size=4), Patches(class_token=False), Patches(maximum=255.0)]
    assert len({build_codec(config, []).fingerprint for config in configs}) == 4
    (tmp_path / "codec.json").write_text(json.dumps({"kind": "patches", "size": 3}))
    with pytest.raises(ValueError, match="is damaged"):
        load_codec(tmp_path)


# Rows


def test_features_positions_and_labels_match_the_ids():
    records = images(30)
    tokens = load_tokens(records, CODEC, cache=True)  # only text is cached
    loader = build_loader(Data(rows="packed"), tokens, CLASSIFY, context_length=17 * 4, seed=0)
    batch = loader.rows(0, loader.rows_per_epoch)
    inputs = batch.inputs
    assert inputs.features is not None and inputs.features.shape == (8, 68, 4)
    assert inputs.coordinates.position is not None and inputs.coordinates.position.shape == (8, 68, 2)
    assert batch.loss_weights.sum() == loader.weight(0, 8) == 30
    examples = []
    for r in range(8):
        for s in range(int(inputs.coordinates.document[r].max()) + 1):
            is_document = inputs.coordinates.document[r] == s
            image = CODEC.decode(replace(CODEC.encode(records[0]), features=inputs.features[r][is_document].numpy()))
            assert torch.equal(
                inputs.coordinates.position[r][is_document], torch.from_numpy(tokens.encoding(0).positions)
            )
            assert batch.loss_weights[r][is_document].tolist() == [1] + [0] * 16
            examples.append((image.astype(int).tolist(), int(batch.targets[r][is_document][0])))
    assert sorted(examples) == sorted((record["image"].tolist(), record["label"]) for record in records)
    (only,) = ValidationRows(Data(rows="packed"), tokens, CODEC, CLASSIFY, context_length=17 * 4).batches(9)
    assert only[1] == 0 and only[0].loss_weights.sum() == 30


@pytest.mark.parametrize("over", ["first", "mean", "last"])
def test_packed_images_have_the_logits_of_single_ones(over):
    model = build(with_sizes(recipe(head=Pooled(over=over)), CODEC).model)
    rng = np.random.default_rng(0)
    examples = [CLASSIFY.example(CODEC.encode(record), rng) for record in images(5)]
    with torch.inference_mode():
        packed = logits_of(model, CLASSIFY, collate([examples[:3], examples[3:]], 68))
        for i, example in enumerate(examples):
            alone = logits_of(model, CLASSIFY, collate([[example]], 17))
            row, index = divmod(i, 3)
            assert torch.allclose(packed[row, 17 * index : 17 * index + 17], alone[0], atol=1e-5)
            assert torch.allclose(alone[0, 0], alone[0, -1], atol=1e-6), "one output all over the image"


def test_an_image_is_never_cut():
    tokens = load_tokens(images(3), CODEC)
    with pytest.raises(ValueError, match="all 3 training records don't fit a row of context_length=16"):
        build_loader(Data(rows="packed"), tokens, CLASSIFY, context_length=16, seed=0)


def test_tokens_without_an_id_are_read_but_not_predicted():
    example = build_view(Causal()).example(CODEC.encode(images(1)[0]), np.random.default_rng(0))
    assert example.inputs.features is not None and example.inputs.features.shape == (16, 4)
    assert (len(example.inputs), example.loss_weights.sum(), example.targets.min()) == (16, 0, 0)


# The recipe


@needs_digits
def test_the_digits_are_split_by_hash():
    split = load_source("toy:digits")
    (source,) = split.describe()
    assert (len(split.train), len(split.validation), source["num_records"]) == (1434, 363, 1797)
    assert source["sha256"] == "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    assert {r["label"] for r in split.validation} == set(range(10))
    trained_on = {r["image"].tobytes() for r in split.train}
    assert not any(r["image"].tobytes() in trained_on for r in split.validation)
    check_encodings(CODEC, split.train[:50])


def test_the_model_is_filled_from_the_codec():
    model = with_sizes(recipe(), CODEC).model
    assert isinstance(model.stem, Linear) and isinstance(model.head, Pooled)
    assert (model.vocab_size, model.stem.num_features, model.stem.num_ids, model.head.num_outputs) == (1, 4, 1, 10)
    patches = PatchCodec(Patches(size=4, class_token=False))
    model = with_sizes(recipe(), patches).model
    assert (model.vocab_size, model.stem.num_features, model.stem.num_ids) == (1, 16, 0)
    Transformer(model)


@needs_digits
def test_a_run_learns_is_evaluated_and_generates_no_text(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", "digits", *TINY, "--out", folder, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["validation_accuracy"] > 0.9 and summary["bits_per_byte"] is None
    assert (tmp_path / "run/samples.txt").read_text() == ""
    report = (tmp_path / "run/report.html").read_text()
    assert "of the most probable label, on the validation split" in report and report.count('viewBox="0 0 8 8"') == 10
    trained, validation = load(folder), load_source("toy:digits").validation
    probabilities = classify(trained, [{"image": record["image"]} for record in validation])
    right = sum(int(p.argmax()) == r["label"] for p, r in zip(probabilities, validation, strict=True))
    near = pytest.approx(summary["validation_accuracy"], abs=0.01)  # training may have had products in bfloat16
    assert right / len(validation) == near
    assert main(["evaluate", folder, "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)["results"]
    assert score["accuracy"] == near and score["num_targets"] == 363
    assert (score["bits_per_byte"], score["exact"]) == (None, None)
    assert main(["evaluate", folder]) == 0
    assert "–" in capsys.readouterr().out
    assert main(["generate", folder, "--prompt", "a"]) == 65
    assert "is an encoder, which can't generate text" in capsys.readouterr().err
    assert main(["estimate", "digits", *TINY]) == 0


# Errors


class Without(Codec):
    """Features for every second record only."""

    vocab_size, num_features = 1, 4

    def definition(self) -> dict[str, object]:
        return {"kind": "without"}

    def encode(self, record):
        return replace(CODEC.encode(record), **({} if record["label"] % 2 else {"features": None}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CODEC.encode({"text": "a"}), r"\['text'\]; it needs 'image'"),
        (lambda: CODEC.encode({"image": np.zeros((8, 7))}), r"shape \(8, 7\), but this codec reads \(8, 8\)"),
        (lambda: CODEC.encode({"image": np.full((8, 8), 255)}), "255; this codec reads 0 to 16"),
        (lambda: CODEC.encode({"image": np.full((8, 8), np.nan)}), "nan"),
        (lambda: CODEC.encode({"image": np.zeros((8, 8)), "label": 10}), "label 10 is not among 0 .. 9"),
        (lambda: CODEC.encode({"image": np.zeros((8, 8)), "label": 0.5}), "label 0.5 is not"),
        (lambda: CODEC.decode(CODEC.encode(images(1)[0]).cut(0, 3)), "17 tokens of 4 features"),
        (lambda: Patches(size=3), "size=3 doesn't divide an image of 8 x 8"),
        (lambda: Patches(maximum=0.0), "maximum=0.0 must be above 0"),
        (lambda: load_tokens([{"image": np.zeros((2, 2))}] * 2, CODEC), "record 0: an image of shape"),
        (lambda: load_tokens(images(9), Without()), "of 9 records have features"),
        (lambda: as_text(CODEC), "reads patches, not text"),
        (lambda: load_source("toy:numbers"), "toy:reverse, toy:capitals:RATIO or toy:digits"),
        (lambda: load_source("toy:capitals:0"), "unknown toy"),
        (
            lambda: with_sizes(recipe(stem=Lookup()), CODEC),
            "the stem Lookup with the codec patches, which returns rows of 4",
        ),
        (
            lambda: with_sizes(recipe(), build_codec(Bytes(), [])),
            "the stem Linear with the codec bytes, which returns ids",
        ),
        (
            lambda: with_sizes(recipe(stem=Linear(num_features=5)), CODEC),
            "reads 5 features per token, the codec returns 4",
        ),
        (lambda: with_sizes(recipe(head=Pooled(num_outputs=4)), CODEC), "num_outputs=4 is too small for 10 outputs"),
        (lambda: recipe(head=Pooled(embed=True)), "document outputs, but this one has embedding outputs"),
        (lambda: with_sizes(gridded(Grid(rows=4, columns=4)), CODEC), "grid of 4 x 4 .* has 5 x 4 positions"),
        (lambda: replace(recipe(), objective=Causal()), "vocabulary outputs"),
        (
            lambda: replace(load_recipe("reverse-decoder"), objective=Classification()),
            "kind pooled, over first, mean or last",
        ),
        (lambda: stream(), "stream and split need"),
        (lambda: CLASSIFY.example(CODEC.encode({"image": np.zeros((8, 8))}), np.random.default_rng(0)), "has none"),
    ],
)
def test_errors_name_problem_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def gridded(position: Grid | Rotary) -> Recipe:
    start = recipe()
    assert start.model.encoder is not None
    return replace(start, model=replace(start.model, encoder=replace(start.model.encoder, position=position)))


def stream() -> None:
    tokens = load_tokens(images(3), CODEC)
    assert isinstance(tokens, TokenStore)
    build_loader(Data(rows="stream"), tokens, build_view(Causal()), context_length=16, seed=0)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'sklearn' is not installed; run: pip install 'isoform\[digits\]'"):
        load_source("toy:digits")


@pytest.mark.parametrize("position", [Rotary(), Rotary(axes=2), None], ids=["rotary", "two axes", "none"])
def test_position_schemes_read_images(position):
    start = recipe()
    assert start.model.encoder is not None
    machine, encoder = choose_machine("cpu"), replace(start.model.encoder, position=position)
    model = build(with_sizes(replace(start, model=replace(start.model, encoder=encoder)), CODEC).model).to(
        machine.device
    )
    example = CLASSIFY.example(CODEC.encode(images(1)[0]), np.random.default_rng(0))
    assert logits_of(model, CLASSIFY, collate([[example]], 17)).isfinite().all()

"""The baselines see what they should, cost what is said, learn, and go through the same doors as the Transformer."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from isoform import Sampling, load_recipe
from isoform.batch import Encoding, Example, collate, plain_coordinates
from isoform.cli import main
from isoform.config import ConfigError, dump_toml, from_dict, load_toml, overlay
from isoform.data.config import Data
from isoform.experiment import generate, train
from isoform.machine import choose_machine
from isoform.mask import Full
from isoform.metrics import CLOCK_FIELDS, read_metrics
from isoform.model import parts as blocks
from isoform.model.activations import activation_numbers
from isoform.model.baseline_config import LSTM, CausalConvolution, NGramMlp, as_transformer
from isoform.model.baselines import build_module
from isoform.model.config import Lookup, ModelConfig, Vocabulary
from isoform.model.cost import Shape, forward_flops, num_matrix_parameters, num_parameters, training_flops
from isoform.model.mixers.convolution import ConvolutionMixer
from isoform.model.mixers.documents import Documents
from isoform.model.network import Network
from isoform.model.parts import RMSNorm
from isoform.objectives.config import Prefix, Seq2seq
from isoform.recipe import Recipe, recipe_from_dict
from isoform.run import load
from isoform.training.config import AdamW, Muon, Training
from isoform.training.optimizer import MuonOptimizer, build_optimizers

CPU = choose_machine("cpu", "float32")
VOCAB = 13
SMALL = {"model_dim": 16, "context_length": 12, "vocab_size": VOCAB}
FORMS = {
    "lstm": LSTM(num_layers=2, **SMALL),
    "lstm of n-grams, tied": LSTM(
        num_layers=1, stem=Lookup(ngrams=(2,)), head=Vocabulary(tied=True, bias=True), **SMALL
    ),
    "causal_convolution": CausalConvolution(
        num_layers=2, kernel_size=4, dilation_growth=4, receptive_field=16, **SMALL
    ),
    "convolution that begins again": CausalConvolution(
        num_layers=3, kernel_size=3, dilation_growth=2, receptive_field=7, feedforward_dim=24, **SMALL
    ),
    "n_gram_mlp": NGramMlp(num_layers=2, bag=20, **SMALL),
    "small bag": NGramMlp(num_layers=1, bag=3, stem=Lookup(previous=True, norm=RMSNorm()), feedforward_dim=8, **SMALL),
}
SIGHT = {"convolution that begins again": 9, "small bag": 4}
"""Tokens that an output depends on, where that isn't the whole context."""
ALL = pytest.mark.parametrize("name", FORMS)
KINDS = pytest.mark.parametrize("name", ["lstm", "causal_convolution", "n_gram_mlp"])
STACKS = pytest.mark.parametrize("name", ["lstm", "causal_convolution"])


def build(config) -> Network:
    """With every parameter drawn wide enough that a mistake shows."""
    torch.manual_seed(0)
    model = build_module(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@ALL
def test_it_sees_what_came_before_and_nothing_else(name):
    model, seen = build(FORMS[name]), []
    model.stem.embedding.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad_()) or out)
    logits, text = model(ids(1, 12)), ids(1, 12)
    for at in (0, 5, 11):
        (gradient,) = torch.autograd.grad(logits[:, at].sum(), seen[0], retain_graph=True)
        first = max(0, at + 1 - min(SIGHT.get(name, 12), 12))
        is_seen = gradient.abs().sum(-1)[0] > 0
        through_embedding = 3 if name == "small bag" else SIGHT.get(name, 12)
        assert is_seen[max(0, at + 1 - through_embedding) : at + 1].all()
        assert not is_seen[:first].any() and not is_seen[at + 1 :].any()
        changed = text.clone()  # gradients don't see which row of a table was looked up
        changed[:, at + 1 :] = (changed[:, at + 1 :] + 1) % VOCAB
        changed[:, :first] = (changed[:, :first] + 1) % VOCAB
        torch.testing.assert_close(model(changed)[:, at], logits[:, at], rtol=1e-5, atol=1e-5)


@ALL
def test_packed_documents_do_not_see_each_other(name):
    model, text = build(FORMS[name]), ids(1, 12)[0]

    def example(first: int, last: int) -> Example:
        token = text[first:last].numpy()
        return Example(Encoding(token), token, (token * 0 + 1).astype("float32"))

    spans = [[(0, 5), (5, 6), (6, 10)], [(2, 4), (4, 12)], [(0, 3)]]
    batch = collate([[example(*span) for span in row] for row in spans], 12)
    packed = model(batch.inputs)
    for row, of_row in enumerate(spans):
        at = 0
        for first, last in of_row:
            alone = model(text[first:last])[0]
            torch.testing.assert_close(packed[row, at : at + last - first], alone, rtol=1e-5, atol=1e-5)
            at += last - first
    packed.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@ALL
@pytest.mark.filterwarnings("ignore:TF32")
def test_parameters_and_flops_are_counted_exactly(name):
    from torch.utils.flop_counter import FlopCounterMode

    config, model = FORMS[name], build(FORMS[name]).train()
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    (muon, _), named = build_optimizers(Muon(), model), dict(model.named_parameters())
    assert isinstance(muon, MuonOptimizer)
    matrices = [p for n, p in named.items() if ".blocks." in n and p.dim() == 2]
    assert {id(p) for group in muon.param_groups for p in group["params"]} == {id(p) for p in matrices}
    assert num_matrix_parameters(config) == sum(p.numel() for p in matrices)
    with torch.backends.mkldnn.flags(enabled=False):  # whose LSTM the counter doesn't know
        with FlopCounterMode(display=False) as counter:
            logits = model(ids(3, 12))
        assert counter.get_total_flops() == forward_flops(config, Shape(3, 12))
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    unasked = 3 * 8 * 16**2 * config.num_layers if isinstance(config, LSTM) else 0  # for the state of zeros
    counted = counter.get_total_flops() + backward.get_total_flops() + unasked
    assert training_flops(config, Shape(3, 12)) == counted


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", [LSTM, CausalConvolution, NGramMlp])
def test_activations_are_those_that_autograd_keeps(kind, dropout):
    wide = replace(kind(vocab_size=40, context_length=160, dropout=dropout), num_layers=4)
    torch.manual_seed(0)
    model, kept = build_module(wide), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    text = torch.randint(40, (4, 160))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        functional.cross_entropy(model(text).flatten(0, 1), text.flatten())
    measured = sum(size for address, size in kept.items() if address not in own)
    counted = 4 * activation_numbers(wide, Shape(4, 160))
    assert measured < 1.1 * counted
    assert measured > counted * (0.4 if kind is LSTM else 0.9)  # an LSTM keeps what its kernel likes to keep


@pytest.mark.parametrize("dilation", [1, 3])
def test_taps_are_a_convolution(dilation):
    torch.manual_seed(0)
    taps = ConvolutionMixer(blocks.CausalConvolution(kernel_size=4, dilation=dilation), 8)
    x, documents = torch.randn(2, 11, 8), Documents(plain_coordinates(2, 11))
    kernel = taps.output.weight.view(8, 4, 8).permute(0, 2, 1)
    wanted = functional.conv1d(functional.pad(x.mT, (3 * dilation, 0)), kernel, dilation=dilation).mT
    torch.testing.assert_close(taps(x, documents), wanted, rtol=1e-5, atol=1e-5)


def test_dilations_cover_what_is_asked_and_begin_again():
    def dilations(model: CausalConvolution) -> list[int]:
        whole = as_transformer(model)
        return [block.mixer.dilation for block in whole.layers(whole.decoder)]

    assert dilations(CausalConvolution()) == [1, 3, 9, 27]
    assert dilations(CausalConvolution(receptive_field=16, num_layers=5)) == [1, 3, 1, 3, 1]
    assert dilations(CausalConvolution(receptive_field=1, num_layers=2)) == [1, 1]


@pytest.mark.parametrize("kind", [LSTM, CausalConvolution, NGramMlp])
@pytest.mark.parametrize("tied", [False, True])
def test_initialization_gives_a_nearly_uniform_guess(kind, tied):
    torch.manual_seed(0)
    model = build_module(kind(vocab_size=40, head=Vocabulary(tied=tied)))
    logits = model(torch.randint(40, (4, 128))).detach()
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.randint(40, (4 * 128,)))
    assert float(loss) == pytest.approx(math.log(40), rel=0.2 if tied else 1e-5)


@pytest.fixture
def text(tmp_path):
    """Short words in any order: letters are hard to tell by their counts, easy by those before."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(random.Random(0).choices(["abcde", "fghij", "edcba"], k=1200)))
    return path


def recipe(text, name: str, **fields) -> Recipe:
    model = replace(FORMS[name], vocab_size=0, context_length=16, dropout=0.05)
    defaults = {"steps": 60, "global_batch_tokens": 256, "validate_every": 20, "checkpoint_every": 7, "log_every": 5}
    training = Training(**{**defaults, "optimizer": Muon(), **fields})
    return Recipe(data=Data(path=str(text)), model=model, training=training, sample_prompt="#")


def unigram_entropy(text) -> float:
    counts = Counter(text.read_text())
    return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())


LEARNERS = {
    "lstm, muon": ("lstm", Muon()),
    "lstm, adamw": ("lstm", AdamW(learning_rate=1e-2)),
    "convolution, muon": ("causal_convolution", Muon()),
    "n-grams, adamw": ("n_gram_mlp", AdamW(learning_rate=1e-2)),
}


@pytest.mark.parametrize(("name", "optimizer"), LEARNERS.values(), ids=LEARNERS)
def test_a_run_learns_and_comes_back_the_same(text, tmp_path, capsys, name, optimizer):
    once = {"validate_every": 0, "checkpoint_every": 0}
    run = train(recipe(text, name, optimizer=optimizer, **once), tmp_path / "run", machine=CPU)
    summary = json.loads(run.summary.read_text())
    assert summary["validation_loss"] < 0.5 * unigram_entropy(text)
    assert summary["exportable"] is None and (run.samples.read_text() == "") == (name == "n_gram_mlp")
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), "--json", "--dtype", "float32"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["loss"] == summary["validation_loss"]


@KINDS
def test_stopped_and_continued_is_uninterrupted(text, tmp_path, name):
    short, seen = recipe(text, name, steps=12, validate_every=4), []
    whole = train(short, tmp_path / "whole", machine=CPU)
    stop = lambda: seen.append(0) or len(seen) == 5  # noqa: E731
    part = train(short, tmp_path / "part", machine=CPU, should_stop=stop)
    assert not part.summary.exists()
    train(short, part.folder, machine=CPU)
    lines = [
        [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in read_metrics(run.metrics)]
        for run in (whole, part)
    ]
    assert lines[0] == lines[1]
    a, b = load(whole.folder).model.state_dict(), load(part.folder).model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@KINDS
def test_packed_rows_are_trained_on(tmp_path, name):
    model = replace(FORMS[name], vocab_size=0, context_length=32)
    training = Training(steps=3, global_batch_tokens=128, optimizer=Muon())
    run = train(
        Recipe(data=Data(path="toy:reverse", rows="packed"), model=model, training=training, seed=1),
        tmp_path / "run",
        machine=CPU,
    )
    assert json.loads(run.summary.read_text())["validation_exact"] is not None


@KINDS
def test_the_verbs_speak_of_baselines(text, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    flags = ["--data.path", "text.txt", "--model.kind", name, "--model.model_dim", "16"]
    few = ["--training.steps", "2", "--training.global_batch_tokens", "256", "--out", "run"]
    assert main(["train", "shakespeare", *flags, *few]) == 0
    out = capsys.readouterr().out
    assert "no better" in out or ("isoform generate" in out) == (name != "n_gram_mlp")
    assert "<svg" in (tmp_path / "run/report.html").read_text()
    assert f'kind = "{name}"' in (tmp_path / "run/recipe.toml").read_text()
    trained = json.loads((tmp_path / "run/summary.json").read_text())
    assert main(["estimate", "shakespeare", *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["num_parameters"] == trained["num_parameters"] and not said["cache_bytes_per_token"]
    assert main(["estimate", "run", "--json"]) == 0
    assert ("one more token" in json.loads(capsys.readouterr().out)["work"]) == (name != "n_gram_mlp")
    assert main(["recipes", "--diff", "run/recipe.toml", "shakespeare"]) == 0
    assert f"model.kind: {name} -> model_config" in capsys.readouterr().out
    assert main(["convert", "run", "out"]) == 65
    capsys.readouterr()
    assert main(["train", "shakespeare", *flags, *few[:-1], "other", "--kernel", "sdpa"]) == 65
    assert "no attention" in capsys.readouterr().err


@STACKS
def test_a_stack_of_blocks_writes(text, tmp_path, name):
    run = train(recipe(text, name), tmp_path / "run", machine=CPU)
    said = "".join(generate(load(run.folder), "fghij abc", Sampling(temperature=0, max_tokens=6)))
    assert said.startswith("de ")


def test_a_bag_of_ngrams_writes_nothing(text, tmp_path, capsys):
    run = train(recipe(text, "n_gram_mlp", steps=2), tmp_path / "run", machine=CPU, quiet=True)
    capsys.readouterr()
    for arguments in (["generate", str(run.folder), "--prompt", "a"], ["convert", str(run.folder), "out"]):
        assert main(arguments) == 65
        said = capsys.readouterr().err
        assert "a baseline (n_gram_mlp)" in said and "isoform evaluate" in said and len(said.splitlines()) == 1
    with pytest.raises(ValueError, match="a baseline"):
        next(generate(load(run.folder), "a"))


def test_a_transformer_needs_no_kind(tmp_path):
    assert from_dict(Recipe, {"model": {"model_dim": 64}}).model == ModelConfig(model_dim=64)
    plays = load_recipe("shakespeare")
    assert isinstance(plays.model, ModelConfig)
    assert overlay(plays, {"model": {"kind": "lstm", "model_dim": 64}}).model == LSTM(model_dim=64)
    for model in (ModelConfig(), *FORMS.values()):
        path = tmp_path / "recipe.toml"
        path.write_text(dump_toml(Recipe(model=model, training=Training(global_batch_tokens=1536))))
        assert from_dict(Recipe, load_toml(path)).model == model


def test_a_run_from_before_there_were_baselines_is_loaded(text, tmp_path):
    tiny = Recipe(
        data=Data(path=str(text)),
        model=ModelConfig(model_dim=16, context_length=16),
        training=Training(steps=1, global_batch_tokens=64, sample_tokens=1),
        sample_prompt="a",
    )
    run = train(tiny, tmp_path / "run", machine=CPU)
    path = run.model / "config.json"
    (run.folder / "manifest.json").unlink()  # nor were there manifests
    config = {**json.loads(path.read_text()), "format": 1}
    assert config["model"].pop("kind") == "model_config"
    path.write_text(json.dumps(config))
    run.recipe.write_text(run.recipe.read_text().replace('kind = "model_config"\n', ""))
    assert isinstance(load(run.folder).model.config, ModelConfig)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LSTM(num_layers=0), "num_layers=0 must be at least 1"),
        (lambda: NGramMlp(model_dim=0), "model_dim=0 must be at least 1"),
        (lambda: LSTM(dropout=1.0), "dropout=1.0"),
        (lambda: LSTM(vocab_size=-1), "vocab_size=-1 must be at least 0"),
        (lambda: NGramMlp(bag=0), "bag=0 must be at least 1"),
        (lambda: NGramMlp(feedforward_dim=0), "feedforward_dim=0"),
        (lambda: CausalConvolution(kernel_size=1), "kernel_size=1 must be at least 2"),
        (lambda: CausalConvolution(receptive_field=0), "receptive_field=0"),
        (lambda: CausalConvolution(num_layers=3), "see 53 tokens, not the 128 of context_length; set num_layers=4"),
        (lambda: build_module(LSTM()), "vocab_size=0: set it"),
        (lambda: build(FORMS["lstm"])(ids(1, 13)), "context_length=12"),
        (lambda: build(FORMS["lstm"])(ids(1, 12), Full()), "need a causal one"),
        (lambda: build(FORMS["small bag"])(ids(1, 12), Full()), "use causal"),
        (lambda: build(FORMS["lstm"])(ids(1, 12), source=ids(1, 12)), "no encoder"),
        (lambda: build(FORMS["small bag"])(ids(1, 12), source=ids(1, 12)), "no encoder"),
        (lambda: build(FORMS["lstm"]).use_kernel("sdpa"), "leave it at auto"),
        (lambda: Recipe(model=LSTM(), objective=Seq2seq()), "Seq2seq with model.kind='lstm'.*causal"),
        (lambda: Recipe(model=NGramMlp(), objective=Prefix()), "Prefix with model.kind='n_gram_mlp'"),
        (lambda: Recipe(model=LSTM(context_length=100)), "not a multiple of model.context_length=100"),
        (lambda: recipe_from_dict({"model": {"kind": "lstm", "preset": "modern"}}), "presets are Transformers"),
        (lambda: recipe_from_dict({"model": {"kind": "lstn"}}), 'did you mean "lstm"'),
        (lambda: overlay(Recipe(), {"model": {"kind": "lstm", "decoder": {}}}), 'unknown key "decoder" in model'),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_codec_of_features_is_refused(tmp_path):
    digits = load_recipe("digits")
    with pytest.raises(ConfigError, match=r"Classification with model\.kind='lstm'"):
        overlay(digits, {"model": {"kind": "lstm"}})
    causal = overlay(digits, {"model": {"kind": "lstm", "context_length": 16}, "objective": {"kind": "causal"}})
    with pytest.raises(ValueError, match="the stem Lookup with the codec patches"):
        train(causal, tmp_path / "run", machine=CPU)

"""Parts of the user's own: by object and by name, held to their contracts, and never imported unless the user names
them."""

import importlib
import json
import shlex
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import isoform
from isoform.batch import collate, plain_coordinates
from isoform.cli import COMMANDS, main
from isoform.config import ConfigError, dump_toml, from_dict, to_dict
from isoform.mask import Causal, Full, Prefix
from isoform.model.cost import num_parameters
from isoform.model.mixers.external import ExternalMixer, check_mixer
from isoform.outside import Name, NotNamed, name_of, named, unnamed
from isoform.recipe import Recipe, identity_of
from isoform.run import read_recipe
from isoform.training.optimizer import build_optimizers

MODULE = '''
    """Parts of a user's own; importing it leaves a mark."""
    from pathlib import Path

    import numpy as np
    import torch

    import isoform

    Path(__file__).with_name("MARK").write_text("imported")


    class Letters(isoform.TextCodec):
        """A token for each letter of an alphabet."""

        def __init__(self, alphabet="abcdef "):
            self.alphabet, n = alphabet, len(alphabet)
            super().__init__(
                [*(c.encode() for c in alphabet), b"", b""],
                special={n: "<end>", n + 1: "<separator>"},
                ids=isoform.SpecialIds(n),
                separator=n + 1,
            )

        def definition(self):
            return {"kind": "letters", "alphabet": self.alphabet}

        def encode_text(self, text):
            return np.array([self.alphabet.index(c) for c in text], self.dtype)

        def _with_special(self, names):
            raise ValueError(f"no special tokens, such as {names[0]}")


    def even(encoding, rng):
        plain = isoform.next_token(encoding, rng)
        weights = plain.loss_weights * (np.arange(len(plain.targets)) % 2 == 0)
        return isoform.Example(plain.inputs, plain.targets, weights.astype(np.float32))


    view = isoform.View(isoform.Causal(), isoform.Full(), even, lambda n, prefix: (n - 1, 0))


    def make_view(codec, shift=0):
        return view


    class Average(torch.nn.Module):
        """The mean of what a token may read."""

        def __init__(self, model_dim, scale=1.0):
            super().__init__()
            self.output, self.scale = torch.nn.Linear(model_dim, model_dim), scale
            self.order = torch.nn.Parameter(torch.randn(2, 3, model_dim))
            self.size = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, allowed):
            weights = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
            return self.size * self.scale * self.output(weights.to(x.dtype) @ x) + 0 * self.order.sum()


    class Leaky(Average):
        def forward(self, x, allowed):
            return self.output(x.mean(1, keepdim=True).expand_as(x))


    class Momentum(torch.optim.SGD):
        def __init__(self, groups, lr=0.1):
            super().__init__(groups, lr=lr, momentum=0.9)
'''
PARTS = {
    "codec": "planted:Letters",
    "view": "planted:view",
    "mixer": {"kind": "external", "name": "planted:Average", "options": {"scale": 0.5}},
    "optimizer": {"kind": "external", "name": "planted:Momentum", "options": {"lr": 0.05}},
}
SMALL = {
    "data.path": "text.txt",
    "data.rows": "split",
    "sample_prompt": "ab",
    "model": {
        "model_dim": 8,
        "context_length": 16,
        "decoder": {"num_layers": 2, "blocks": [{"mixer": PARTS["mixer"]}, {}]},
    },
    "training.steps": 4,
    "training.global_batch_tokens": 64,
    "training.checkpoint_every": 2,
    "training.sample_tokens": 4,
    "training.optimizer": PARTS["optimizer"],
}
OF_MODEL = ["--codec", "planted:Letters", "--view", "planted:view", "--mixers", "planted:Average"]
OF_RECIPE = [
    *("--codec", "planted:Letters", "--view", "planted:view"),
    *("--model.decoder.blocks.0.mixer", "planted:Average", "--training.optimizer", "planted:Momentum"),
]


@pytest.fixture
def forgotten():
    """No test's module stays imported."""
    yield
    sys.modules.pop("planted", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a text, the module, a recipe that names its parts, and a run of that recipe."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "text.txt").write_text("abc def fed cba a b c " * 60)
    (folder / "planted.py").write_text(textwrap.dedent(MODULE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = isoform.load_recipe("ladder", changes())
        (folder / "mine.toml").write_text(dump_toml(recipe))
        isoform.train(recipe, "run", quiet=True)
        trained = isoform.load("run", codec="planted:Letters", view="planted:view", mixers=["planted:Average"])
        isoform.save(trained, "saved")
    sys.modules.pop("planted", None)
    (folder / "MARK").unlink()
    return folder


def changes(**more) -> dict:
    """Of the recipe `ladder`, whose model has plain blocks."""
    return {**SMALL, "codec": PARTS["codec"], "view": PARTS["view"], **more}


@pytest.fixture
def here(made, monkeypatch, forgotten) -> Path:
    monkeypatch.chdir(made)
    (made / "MARK").unlink(missing_ok=True)
    return made


@pytest.fixture
def planted(here, monkeypatch):
    """The module, imported by a test."""
    monkeypatch.syspath_prepend(here)
    return importlib.import_module("planted")


def is_imported(folder: Path) -> bool:
    return (folder / "MARK").exists() or "planted" in sys.modules


VERBS = {
    "generate": ["generate", "{}", "--prompt", "ab", "--max_tokens", "3"],
    "probabilities": ["generate", "{}", "--prompt", "ab", "--max_tokens", "3", "--probabilities"],
    "evaluate": ["evaluate", "{}", "--path", "text.txt"],
    "predict": ["predict", "{}", "--path", "text.txt"],
    "chat": ["chat", "{}"],
    "convert": ["convert", "{}", "out"],
    "estimate": ["estimate", "{}"],
    "train": ["train", "{}"],
    "out": ["train", "--out", "{}"],
    "start": ["train", "--start", "{}", "--data.path", "text.txt"],
    "inspect": ["inspect", "{}"],
    "scale": ["scale", "{}", "--dry_run"],
    "attention": ["inspect", "{}", "--attention", "a.png"],
    "diff": ["recipes", "--diff", "{}", "gpt2"],
    "toml": ["train", "{}/recipe.toml", "--out", "new"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("folder", ["run", "saved"])
def test_no_verb_imports_what_a_folder_names(verb, folder, here, capsys):
    if folder == "saved" and verb in ("train", "out", "inspect", "attention", "scale", "toml"):
        pytest.skip("a saved model is no run")
    command = [word.format(folder) for word in VERBS[verb]]
    assert main(command) == 65
    assert not is_imported(here)
    error = capsys.readouterr().err
    assert "planted:Letters" in error and "imported only if you name it" in error
    printed = shlex.split(error.strip().splitlines()[-1].partition("; name it: isoform ")[2])
    assert printed[: len(command)] == command and set(printed[len(command) :: 2]) <= {*OF_MODEL, *OF_RECIPE}


def test_every_verb_is_tried():
    assert {command[0] for command in VERBS.values()} == {*COMMANDS} - {"reproduce", "doctor", "report"}


def test_the_page_of_a_run_needs_none_of_its_parts(here, tmp_path):
    assert main(["report", "run", "--out", str(tmp_path / "page.html")]) == 0
    assert not is_imported(here) and "planted:Letters" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("verb", ["generate", "evaluate", "out", "inspect", "attention", "estimate", "probabilities"])
def test_the_printed_command_works(verb, here, capsys):
    assert main([word.format("run") for word in VERBS[verb]]) == 65
    printed = shlex.split(capsys.readouterr().err.strip().splitlines()[-1].partition("; name it: isoform ")[2])
    assert main(printed) == 0, capsys.readouterr().err
    assert is_imported(here)


def test_reading_a_recipe_of_a_run_shows_the_names_and_imports_nothing(here, capsys):
    assert main(["recipes", "--show", "run"]) == 0
    assert "planted:Letters" in capsys.readouterr().out
    assert read_recipe(isoform.Run(here / "run")).codec == isoform.External(name="planted:Letters")
    with pytest.raises(NotNamed, match=r"run was made with planted:Letters, planted:view, planted:Average, which"):
        isoform.load("run")
    with pytest.raises(NotNamed):
        isoform.train("run", quiet=True)
    assert not is_imported(here)


def test_a_recipe_that_the_user_names_imports_and_continues_to_the_same_bits(here, tmp_path):
    steps = []

    def is_half_done() -> bool:
        steps.append(1)
        return len(steps) >= 2

    part = isoform.train("mine.toml", tmp_path / "part", quiet=True, should_stop=is_half_done)
    assert is_imported(here) and not part.is_finished
    sys.modules.pop("planted")
    (here / "MARK").unlink()
    assert main(["train", "--out", str(part.folder), *OF_RECIPE, "-q"]) == 0
    assert is_imported(here) and part.is_finished
    assert part.weights.read_bytes() == (here / "run/model/model.safetensors").read_bytes()


def test_a_model_trained_with_own_parts_is_used(here, capsys):
    assert main(["generate", "run", "--prompt", "ab", "--max_tokens", "5", *OF_MODEL, "--json"]) == 0
    (sample,) = json.loads(capsys.readouterr().out)["samples"]
    assert set(sample["text"]) <= set("abcdef ")
    trained = isoform.load("run", codec="planted:Letters", view="planted:view", mixers=["planted:Average"])
    saved = isoform.load("saved", codec="planted:Letters", view="planted:view", mixers=["planted:Average"])
    several = isoform.generate(trained, ["ab", "def fed", "a"], max_tokens=5, temperature=0)
    assert several == isoform.generate(saved, ["ab", "def fed", "a"], max_tokens=5, temperature=0)
    alone = [isoform.generate(trained, [p], max_tokens=5, temperature=0)[0] for p in ("ab", "def fed", "a")]
    assert several == alone
    assert trained.view.example.__name__ == "even"


def test_another_codec_than_that_of_training_is_refused(here, planted):
    with pytest.raises(ValueError, match=r"the codec planted:Letters has another definition"):
        isoform.load("run", codec=planted.Letters("abc def"), view=planted.view, mixers=[planted.Average])
    same = planted.Letters()
    assert isoform.load("run", codec=same, view=planted.view, mixers=[planted.Average]).codec is same
    with pytest.raises(ValueError, match="this model has no view of its own; leave view out"):
        isoform.load(plain_run(here), view=planted.view)
    with pytest.raises(ValueError, match=r"an isoform\.Codec"):
        isoform.load("run", codec=dict, view=planted.view, mixers=[planted.Average])


def plain_run(folder: Path) -> Path:
    out = folder / "plain"
    if not out.exists():
        model = {"model_dim": 8, "context_length": 16, "decoder": {"num_layers": 1}}
        recipe = isoform.load_recipe("ladder", {"data.path": "text.txt", "training.steps": 1, "model": model,
                                                "training.global_batch_tokens": 16})  # fmt: skip
        isoform.train(recipe, out, quiet=True)
    return out


def test_objects_are_given_in_python(here, planted, tmp_path):
    codec = planted.Letters("abcdef ")
    mixer, optimizer = isoform.external(planted.Average, scale=2.0), isoform.external(torch.optim.SGD, lr=0.1)
    recipe = isoform.load_recipe("ladder", changes() | {"training.optimizer": optimizer})
    recipe = replace(recipe, codec=isoform.Characters(), view=None)
    blocks = [isoform.BlockConfig(mixer=mixer)]
    stack = replace(recipe.model.decoder, blocks=tuple(blocks))
    recipe = replace(recipe, model=replace(recipe.model, decoder=stack))
    run = isoform.train(recipe, tmp_path / "run", codec=codec, view=planted.view, quiet=True)
    written = read_recipe(run)
    assert written.codec == isoform.External(name="planted:Letters")
    assert written.view == isoform.External(name="planted:view")
    assert written.training.optimizer == isoform.External(name="torch.optim.sgd:SGD", options={"lr": 0.1})
    assert written.model.decoder.blocks[0].mixer == isoform.External(name="planted:Average", options={"scale": 2.0})
    trained = isoform.load(run.folder, codec=codec, view=planted.view, mixers=[planted.Average])
    assert trained.model.decoder.blocks[0].mixer.part.scale == 2.0
    assert not isinstance(written.codec.name, Name)


# --- contracts


def test_mixers_that_leak_are_refused_before_training(here, planted, tmp_path):
    leaky = changes(model={**SMALL["model"], "decoder": {"num_layers": 1, "blocks": [{"mixer": "planted:Leaky"}]}})
    with pytest.raises(ValueError, match="planted:Leaky breaks its contract: a token depends on one that it may not"):
        isoform.train(isoform.load_recipe("ladder", leaky), tmp_path / "run", quiet=True)
    check_mixer(planted.Average)
    check_mixer(planted.Average, mask=Full())
    with pytest.raises(AssertionError, match="depends on padding"):
        check_mixer(planted.Leaky, mask=Full())
    with pytest.raises(AssertionError, match="may not read"):
        check_mixer(planted.Leaky)
    with pytest.raises(AssertionError, match=r"became \(2, 8, 8\)"):
        check_mixer(lambda model_dim: Halved())


class Halved(torch.nn.Module):
    def forward(self, x, allowed):
        return x[..., : x.shape[-1] // 2]


@pytest.mark.parametrize(
    ("changes_", "message"),
    [
        ({"codec": "nowhere:Codec"}, "nowhere:Codec: the module nowhere can't be imported (ModuleNotFoundError"),
        ({"codec": "planted:Nothing"}, "planted:Nothing: planted has no Nothing; check the name"),
        ({"codec": "planted:"}, "'planted:' names no part; write MODULE:NAME"),
        ({"codec": "planted:Average"}, "codec: planted:Average() is refused"),
        ({"codec": "math:pi"}, "codec: math:pi is float; name a class or a function"),
        ({"view": "planted:even"}, "view: planted:even() is refused"),
        ({"view": "builtins:len"}, "view: builtins:len"),
        (
            {"training.optimizer": "planted:Average"},
            "training.optimizer: planted:Average() is refused",
        ),
        ({"training.optimizer": "builtins:list"}, "builtins:list is list, not a torch.optim.Optimizer"),
        ({"training.optimizer": "torch.optim:LBFGS"}, "the optimizer torch.optim:LBFGS can't be stepped"),
        (
            {"training.optimizer": {"kind": "external", "name": "torch.optim:SGD", "options": {"speed": 3}}},
            "training.optimizer: torch.optim:SGD(speed=3) is refused",
        ),
    ],
)
def test_parts_that_are_none_are_refused_in_one_line(changes_, message, here, tmp_path):
    with pytest.raises(ValueError) as caught:
        isoform.train(isoform.load_recipe("ladder", changes() | changes_), tmp_path / "run", quiet=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_codec_and_a_view_that_break_their_contracts_are_refused(here, planted, tmp_path):
    class Lossy(planted.Letters):
        def encode_text(self, text):
            return np.array([self.alphabet.index(c) for c in text.replace("a", "b")], self.dtype)

    def peeking(encoding, rng):
        plain = isoform.next_token(encoding, rng)
        return isoform.Example(plain.inputs, plain.targets, plain.loss_weights)

    recipe = isoform.load_recipe("ladder", changes())
    with pytest.raises(ValueError, match="breaks its contract: decoding doesn't invert encoding"):
        isoform.train(recipe, tmp_path / "a", codec=Lossy(), quiet=True)
    view = isoform.View(isoform.Full(), isoform.Full(), peeking, lambda n, prefix: (n - 1, 0))
    with pytest.raises(ValueError, match="breaks its contract: a token may attend to its own target"):
        isoform.train(recipe, tmp_path / "b", view=view, quiet=True)


# --- the mixer as a part of a model


def model_of(mixer: isoform.External, **fields) -> isoform.Transformer:
    blocks = (isoform.BlockConfig(mixer=mixer), isoform.BlockConfig(mixer=isoform.Attention(num_heads=2)))
    stack = isoform.StackConfig(num_layers=2, blocks=blocks)
    config = isoform.ModelConfig(model_dim=8, context_length=16, vocab_size=11, decoder=stack)
    torch.manual_seed(0)
    return isoform.Transformer(replace(config, **fields)).eval()


def test_packed_documents_are_read_apart(here, planted):
    model = model_of(isoform.external(planted.Average))
    texts = [np.arange(5) % 11, np.arange(3) + 4, np.arange(6) + 2]
    rows = [[isoform.Example(isoform.Encoding(t), t, np.ones(len(t), np.float32)) for t in texts]]
    packed = model(collate(rows, 16).inputs)
    start = 0
    for text in texts:
        alone = model(torch.from_numpy(text)[None])
        torch.testing.assert_close(packed[:, start : start + len(text)], alone)
        start += len(text)
    prefix = [[isoform.Example(isoform.Encoding(t, prefix=2), t, np.ones(len(t), np.float32)) for t in texts]]
    changed = model(collate(prefix, 16).inputs, Prefix() | Causal())
    assert not torch.allclose(changed[:, 0], packed[:, 0])


def test_cached_equals_uncached(here, planted):
    model = model_of(isoform.external(planted.Average))
    ids = torch.randint(11, (2, 9))
    whole, cache = model(ids), model.build_cache(2)
    parts = [model.logits(model.decode(tokens_at(ids, a, b), cache=cache)) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def tokens_at(ids: torch.Tensor, start: int, end: int) -> isoform.Tokens:
    return isoform.Tokens(ids[:, start:end], plain_coordinates(len(ids), end - start, start=start))


def test_parameters_are_counted_keep_their_values_and_have_roles(here, planted):
    model = model_of(isoform.external(planted.Average))
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    torch.manual_seed(3)
    first = model_of(isoform.external(planted.Average)).decoder.blocks[0].mixer.part
    assert first.size.item() == 0.5
    optimizers = build_optimizers(isoform.Muon(), model)
    counted = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters())
    with pytest.raises(ValueError, match="nothing can be added"):
        isoform.deepen(model, 4)
    assert isinstance(model.decoder.blocks[0].mixer, ExternalMixer)


def test_an_encoder_reads_by_a_mixer_of_the_users_own(here, planted):
    block = isoform.BlockConfig(mixer=isoform.external(planted.Average))
    encoder = isoform.StackConfig(num_layers=1, blocks=(block,))
    config = isoform.ModelConfig(
        model_dim=8, context_length=16, vocab_size=11, decoder=None, encoder=encoder, head=isoform.Pooled(num_outputs=2)
    )
    assert isoform.Transformer(config)(torch.randint(11, (3, 7))).shape == (3, 2)


# --- the config


def test_a_name_is_written_read_and_part_of_the_identity():
    recipe = Recipe(codec=isoform.External(name="a:B", options={"x": 1, "y": 0.5, "z": True, "w": "t"}))
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    other = Recipe(codec=isoform.External(name="a:C"))
    assert len({identity_of(Recipe()), identity_of(recipe), identity_of(other)}) == 3
    assert from_dict(Recipe, {"codec": "a:B"}).codec == isoform.External(name="a:B")
    assert unnamed(recipe) == {"codec": "a:B"}
    with pytest.raises(ConfigError, match=r"codec: expected a table of kind .*, got 'bytes'"):
        from_dict(Recipe, {"codec": "bytes"})


def test_names_of_objects():
    assert name_of(torch.optim.SGD) == "torch.optim.sgd:SGD"
    assert name_of(json.dumps) == "json:dumps"
    recipe = named(Recipe(codec=isoform.External(name="json:dumps")))
    assert recipe.codec.name.part is json.dumps and named(recipe) is recipe
    assert isinstance(named(recipe, ()).codec.name, Name)

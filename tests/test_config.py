"""Configs are unchanged by TOML and flags, and every error is one line that names it."""

import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoform.annotations import Alias, Inlined, Positional, text_of
from isoform.config import (
    ConfigError,
    differences,
    dump_toml,
    from_dict,
    kind_of,
    load_toml,
    nearest,
    non_defaults,
    overlay,
    to_dict,
    unknown_name,
)
from isoform.flags import Short, as_typed, flags_of, parse_flags
from isoform.help import ALL, asks_for_help, help_text
from isoform.model.baseline_config import NGramMlp


@dataclass(frozen=True)
class RMSNorm:
    eps: float = 1e-6
    """A small number under the root."""
    scale: Literal["one", "learned"] = "learned"


@dataclass(frozen=True)
class LayerNorm:
    eps: float = 1e-5
    bias: bool = True


@dataclass(frozen=True)
class LowRank:
    rank: int
    sizes: tuple[int, str] | None = (1, "a")


@dataclass(frozen=True)
class Attention:
    num_heads: int = 4
    window: int | None = 7
    norm: RMSNorm | LayerNorm | LowRank | None = RMSNorm(eps=0.5)

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, got {self.num_heads}")


@dataclass(frozen=True)
class Block:
    attention: Attention = Attention(num_heads=2)
    dims: tuple[int, ...] = (1, 2)
    norms: tuple[RMSNorm | LayerNorm, ...] = ()


@dataclass(frozen=True)
class Stack:
    num_layers: int = 2
    blocks: tuple[Block, ...] = (Block(), Block())
    rate: float | int | None = None
    limits: dict[str, int] = field(default_factory=lambda: {"a": 1})


@dataclass(frozen=True)
class Model:
    decoder: Stack | None = Stack()
    encoder: Stack | None = None
    tags: dict[str, RMSNorm | LayerNorm] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe."""

    model: Model = Model()
    seed: int = 0
    note: str | None = None
    compile: bool = False


@dataclass(frozen=True)
class Train:
    """Train a model.

    isoform train small --steps 3
    """

    recipe_name: Annotated[str, Positional("NAME")] = ""
    """Which
    recipe."""
    recipe: Annotated[Recipe, Inlined("RECIPE")] = Recipe()
    """What to train."""
    dry_run: bool = False
    """Plan, and train nothing."""
    out: Annotated[str, Alias("-o")] = "runs"


SHORTS = {
    "layers": Short(("model.decoder.num_layers", "model.encoder.num_layers"), "blocks"),
    "rate": Short(("model.decoder.rate",), "a rate"),
    "seed": Short(("seed",), "the seed"),
}


def parse(line: str, base: Recipe = Recipe()) -> Recipe:
    return parse_flags(base, line.split(), prog="isoform try")


def train(line: str, base: Train = Train("tiny")) -> Train:
    return parse_flags(base, line.split(), prog="isoform train", shorts=SHORTS)


def message(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


floats = st.floats(allow_nan=False)
names = st.text().filter(lambda text: text not in ("none", "None"))
rms_norms = st.builds(RMSNorm, eps=floats, scale=st.sampled_from(["one", "learned"]))
layer_norms = st.builds(LayerNorm, eps=floats, bias=st.booleans())
norms = rms_norms | layer_norms
low_ranks = st.builds(LowRank, rank=st.integers(), sizes=st.none() | st.tuples(st.integers(), names))
attentions = st.builds(
    Attention,
    num_heads=st.integers(min_value=1),
    window=st.none() | st.integers(),
    norm=st.none() | norms | low_ranks,
)
blocks = st.builds(
    Block,
    attention=attentions,
    dims=st.lists(st.integers(), max_size=3).map(tuple),
    norms=st.lists(norms, max_size=2).map(tuple),
)
stacks = st.builds(
    Stack,
    num_layers=st.integers(),
    blocks=st.lists(blocks, max_size=2).map(tuple),
    rate=st.none() | floats | st.integers(),
    limits=st.dictionaries(st.text(), st.integers(), max_size=2),
)
models = st.builds(
    Model,
    decoder=st.none() | stacks,
    encoder=st.none() | stacks,
    tags=st.dictionaries(st.text(), norms, max_size=2),
)
recipes = st.builds(Recipe, model=models, seed=st.integers(), note=st.none() | names, compile=st.booleans())


# Round trips


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_plain_data_round_trips(recipe: Recipe) -> None:
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    assert overlay(recipe, to_dict(recipe)) == recipe


@settings(max_examples=30, deadline=None)
@given(recipe=recipes)
def test_a_toml_file_round_trips(tmp_path_factory: Any, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("config") / "recipe.toml"
    path.write_text(dump_toml(recipe, comment="one\n\ntwo"), encoding="utf-8", newline="")
    assert from_dict(Recipe, load_toml(path)) == recipe


@settings(max_examples=15, deadline=None)
@given(recipes)
def test_no_flags_change_nothing(recipe: Recipe) -> None:
    assert parse("", recipe) == recipe


def test_none_is_omitted_unless_the_default_is_something() -> None:
    assert to_dict(Attention(window=None)) == {
        "num_heads": 4,
        "window": "none",
        "norm": to_norm(RMSNorm(0.5)),
    }
    data = to_dict(Model())
    assert "encoder" not in data and data["decoder"]["num_layers"] == 2
    assert "kind" not in data["decoder"], "kind is for unions of dataclasses"
    assert to_dict(Block(norms=(LayerNorm(),)))["norms"] == [to_norm(LayerNorm())]


def to_norm(norm: RMSNorm | LayerNorm) -> dict[str, Any]:
    return {"kind": kind_of(type(norm)), **dataclasses.asdict(norm)}


def test_a_text_that_reads_as_none_is_refused_when_written() -> None:
    assert "read back as None" in message(to_dict, Recipe(note="none"))


def test_toml_text_starts_with_its_comment() -> None:
    text = dump_toml(Recipe(), comment="isoform train tiny\n\nloss 1.5")
    assert text.startswith("# isoform train tiny\n#\n# loss 1.5\nseed = 0\n")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RMSNorm", "rms_norm"),
        ("Rotary", "rotary"),
        ("ReLU2", "relu2"),
        ("SwiGLU", "swiglu"),
        ("ALiBi", "alibi"),
        ("MaskedVocabulary", "masked_vocabulary"),
        ("Local2D", "local2d"),
    ],
)
def test_kinds_are_named_in_snake_case(name: str, kind: str) -> None:
    assert kind_of(type(name, (), {})) == kind


# Reading plain data


def test_tables_are_laid_over_the_default_of_their_field() -> None:
    assert from_dict(Block, {"attention": {"window": 3}}) == Block(Attention(num_heads=2, window=3))
    assert from_dict(Attention, {"norm": {"scale": "one"}}).norm == RMSNorm(0.5, "one")
    assert from_dict(Attention, {"norm": {"kind": "layer_norm"}}).norm == LayerNorm()
    assert from_dict(Attention, {"norm": "none", "window": "none"}) == Attention(window=None, norm=None)
    assert from_dict(Stack, {"limits": {"b": 2}}).limits == {"b": 2}, "only an overlay merges dictionaries"


def test_floats_take_integers_and_stay_floats() -> None:
    eps = from_dict(RMSNorm, {"eps": 1}).eps
    assert eps == 1.0 and type(eps) is float
    assert from_dict(Stack, {"rate": 2**53 + 1}).rate == 2**53 + 1, "the exact type of a union goes first"
    assert "expected float" in message(from_dict, RMSNorm, {"eps": 10**400})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"modle": {}}, 'unknown key "modle": did you mean "model"? (known: model, seed, note, compile)'),
        ({"model": {"decoder": {"num_layer": 3}}},
         'unknown key "num_layer" in model.decoder: did you mean "num_layers"?'),
        ({"seed": "3"}, "seed: expected int, got '3'"),
        ({"seed": True}, "seed: expected int, got True"),
        ({"seed": 1.0}, "seed: expected int, got 1.0"),
        ({"compile": 1}, "compile: expected bool, got 1"),
        ({"note": 3}, "note: expected str, got 3"),
        ({"model": 3}, "model: expected a table of kind model, got 3"),
        ({"model": {"decoder": {"rate": "x"}}}, "model.decoder.rate: expected float | int | None, got 'x'"),
        ({"model": {"decoder": {"limits": 1}}}, "model.decoder.limits: expected dict[str, int], got 1"),
        ({"model": {"decoder": {"blocks": [{"dims": [1, "x"]}]}}},
         "model.decoder.blocks.0.dims.1: expected int, got 'x'"),
        ({"model": {"decoder": {"blocks": {"2": {}}}}}, 'model.decoder.blocks: no element "2" among its 2'),
        ({"model": {"decoder": {"blocks": [{"norms": [{"eps": 1.0}]}]}}},
         "model.decoder.blocks.0.norms.0: needs a kind (known: rms_norm, layer_norm)"),
        ({"model": {"tags": {"x": {"kind": "layer_nrm"}}}},
         'unknown kind "layer_nrm" in model.tags.x: did you mean "layer_norm"? (known: rms_norm, '),
        ({"model": {"tags": {"x": {"kind": 3}}}}, "model.tags.x.kind: expected str, got 3"),
    ],
)  # fmt: skip
def test_wrong_data_is_named_by_its_path(data: dict[str, Any], expected: str) -> None:
    assert expected in message(from_dict, Recipe, data)


def test_a_literal_lists_its_options() -> None:
    assert message(from_dict, RMSNorm, {"scale": "on"}) == "scale: expected Literal['one', 'learned'], got 'on'"


def test_fixed_tuples_have_a_length() -> None:
    data = {"norm": {"kind": "low_rank", "rank": 1, "sizes": [1]}}
    assert message(from_dict, Attention, data) == "norm.sizes: expected tuple[int, str], got [1]"


def test_missing_values_are_named() -> None:
    assert message(from_dict, Attention, {"norm": {"kind": "low_rank"}}) == "norm: missing rank (int)"
    assert message(from_dict, LowRank, {}, where="there") == "there: missing rank (int)"


def test_the_refusals_of_a_config_get_its_path() -> None:
    data = {"attention": {"num_heads": 0}}
    expected = "blocks.0.attention: num_heads must be at least 1, got 0"
    assert message(from_dict, Stack, {"blocks": [data]}) == expected
    assert message(from_dict, Attention, {"num_heads": 0}) == "num_heads must be at least 1, got 0"


def test_unknown_names_without_a_near_one() -> None:
    assert str(unknown_name("command", "zzz", ["train", "serve"])) == 'unknown command "zzz": (known: train, serve)'
    assert nearest("trian", ["train", "serve"]) == "train"


# Overlay


def test_an_overlay_keeps_what_it_does_not_mention() -> None:
    base = Recipe(Model(decoder=Stack(9, limits={"a": 5})), note="kept")
    new = overlay(base, {"model": {"decoder": {"limits": {"b": 2}}}, "seed": 3})
    assert new == replace(base, seed=3, model=Model(decoder=Stack(9, limits={"a": 5, "b": 2})))
    assert base.seed == 0 and base.model.decoder == Stack(9, limits={"a": 5})


def test_an_overlay_keeps_the_variant_or_starts_another_afresh() -> None:
    base = Attention(norm=LayerNorm(eps=0.25, bias=False))
    assert overlay(base, {"norm": {"eps": 0.5}}).norm == LayerNorm(0.5, False)
    assert overlay(base, {"norm": {"kind": "layer_norm", "eps": 0.5}}).norm == LayerNorm(0.5, False)
    assert overlay(base, {"norm": {"kind": "rms_norm"}}).norm == RMSNorm()
    assert "needs a kind" in message(overlay, Attention(norm=None), {"norm": {"eps": 0.5}})


def test_lists_replace_tuples_and_numbered_tables_update_them() -> None:
    base = Stack(blocks=(Block(dims=(5,)), Block()))
    assert overlay(base, {"blocks": [{"dims": [7]}]}).blocks == (Block(dims=(7,)),)
    assert overlay(base, {"blocks": {"1": {"dims": [7]}}}).blocks == (Block(dims=(5,)), Block(dims=(7,)))


# Files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = 1\nb = = 2\n", "line 2"),
        (b"a = 1\nb = [1,\n", "at line 3, the end"),
        (b"a = 1\n# caf\xe9\n", "is not UTF-8: byte 0xe9 at offset 11, line 2"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    text = message(load_toml, path)
    assert str(path) in text and expected in text


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    assert "No such file" in message(load_toml, tmp_path / "no.toml")
    assert str(tmp_path) in message(load_toml, tmp_path)


# Differences


def test_differences_are_the_leaves() -> None:
    norm = "model.decoder.blocks.1.attention.norm"
    a, b = Recipe(), parse(f"--seed 3 --{norm}.kind layer_norm")
    assert set(differences(a, b)) == {
        (f"{norm}.kind", "rms_norm", "layer_norm"),
        (f"{norm}.eps", 0.5, 1e-5),
        (f"{norm}.scale", "learned", None),
        (f"{norm}.bias", None, True),
        ("seed", 0, 3),
    }
    assert differences(a, a) == []


def test_differences_of_plain_data() -> None:
    assert differences({"x": {"y": 1}, "z": [1, 2]}, {"z": [1, 3]}) == [
        ("x.y", 1, None),
        ("z", [1, 2], [1, 3]),
    ]


# Flags


@pytest.mark.parametrize(
    ("line", "data"),
    [
        ("--model.decoder.num_layers 8", {"model": {"decoder": {"num_layers": 8}}}),
        ("--model.decoder.num-layers=-8", {"model": {"decoder": {"num_layers": -8}}}),
        ("--seed -1", {"seed": -1}),
        ("--seed 1 --seed 2", {"seed": 2}),
        ("--note none", {"note": "none"}),
        ("--note=--dashes", {"note": "--dashes"}),
        ("--compile", {"compile": True}),
        ("--compile True", {"compile": True}),
        ("--compile=false", {"compile": False}),
        ("--no-compile", {"compile": False}),
        ("--compile --no-compile --compile", {"compile": True}),
        ("--model.decoder.rate 2.5", {"model": {"decoder": {"rate": 2.5}}}),
        ("--model.decoder.limits.b-c 2", {"model": {"decoder": {"limits": {"b-c": 2}}}}),
        ("--model.decoder none", {"model": {"decoder": "none"}}),
        ("--model.encoder.num_layers 2", {"model": {"encoder": {"num_layers": 2}}}),
        ("--model.encoder.kind stack", {"model": {"encoder": {}}}),
    ],
)
def test_a_flag_is_a_line_of_toml(line: str, data: dict[str, Any]) -> None:
    base = Recipe(note="x", compile="no" in line)
    assert parse(line, base) == overlay(base, data)


@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm", "low_rank --model.decoder.blocks.0.attention.norm.rank 3"])
def test_blocks_and_their_unions_by_flag_and_by_toml(kind: str) -> None:
    line = f"--model.decoder.blocks.0.attention.num_heads 6 --model.decoder.blocks.0.attention.norm.kind {kind}"
    norm = {"kind": kind.split()[0], **({"rank": 3} if "rank" in kind.split()[0] else {})}
    data = {"attention": {"num_heads": 6, "norm": norm}}
    assert parse(line) == overlay(Recipe(), {"model": {"decoder": {"blocks": {"0": data}}}})


def test_the_order_of_kinds_and_fields_does_not_matter() -> None:
    norm = "--model.decoder.blocks.0.attention.norm"
    a = parse(f"{norm}.no-bias {norm}.kind layer_norm {norm}.eps 1")
    b = parse(f"{norm}.kind=layer_norm {norm}.eps=1 {norm}.bias False")
    assert a == b and a.model.decoder
    assert a.model.decoder.blocks[0].attention.norm == LayerNorm(1.0, bias=False)
    assert a.model.decoder.blocks[1] == Block()


def test_tuples_take_the_words_up_to_the_next_flag() -> None:
    recipe = parse("--model.decoder.blocks.1.dims 3 -4 5 --seed 2 --model.decoder.blocks.0.dims.1 9")
    assert recipe.model.decoder
    assert [block.dims for block in recipe.model.decoder.blocks] == [(1, 9), (3, -4, 5)] and recipe.seed == 2


def test_positionals_aliases_and_vanishing_prefixes() -> None:
    assert train("small") == Train("small")
    assert train("--seed 4 small --dry-run -o there") == Train("small", Recipe(seed=4), True, "there")
    assert train("--dry_run small --out there --no_compile") == Train("small", dry_run=True, out="there")
    assert train("--dry-run true -- --small") == Train("--small", dry_run=True)
    assert train("--model.decoder.num_layers 3").recipe.model.decoder == Stack(3)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--model.decoder.num_layrs 8",
            'unknown key "num_layrs" in model.decoder: did you mean "num_layers"?',
        ),
        ("--model.decoder.num_layers x", "model.decoder.num_layers: expected int, got 'x'"),
        ("--model.decoder.num_layers", "model.decoder.num_layers: expected int"),
        (
            "--model.decoder.blocks.0.attention.num_heads 0",
            "blocks.0.attention: num_heads must be at least 1, got 0",
        ),
        ("--model.decoder.blocks.0.attention.norm.kind rms_nrm", 'did you mean "rms_norm"?'),
        ("--model.decoder.blocks.0.attention.norm.kind low_rank", "norm: missing rank (int)"),
        ("--model.decoder none --model.decoder.num_layers 2", "contradicts another flag"),
        ("--model.decoder.num_layers 2 --model.decoder none", "contradicts another flag"),
        ("--compile=maybe", "compile: expected bool, got 'maybe'"),
        ("--no_seed", 'unknown key "no_seed"'),
        ("--sed 3", 'unknown flag "--sed": did you mean "--seed"? see isoform train --help'),
        ("--num_layers 3", 'unknown flag "--num_layers": did you mean "--layers"? see'),
        ("--num_heads 3", 'did you mean "--model.decoder.blocks.0.attention.num_heads"?'),
        ("--layer 3", 'did you mean "--layers"?'),
        ("--layers 3 --model.decoder.num-layers 3", "--layers contradicts --model.decoder.num_layers: both"),
        ("--layers 3 --model.decoder none", "--layers stands for model.decoder.num_layers or"),
        ("--layers", "model.decoder.num_layers: expected int"),
        ("--layers 3 --layers", "model.decoder.num_layers: expected int"),
        ("-x", 'unknown flag "-x"; see isoform train --help'),
        ("small extra", 'unexpected argument "extra"; see isoform train --help'),
        ("-o", "out: expected str"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(line: str, expected: str, capsys: Any) -> None:
    text = message(train, line)
    assert expected in text
    assert capsys.readouterr() == ("", "")


def test_a_short_name_sets_each_field_that_is_there() -> None:
    both = Train(recipe=Recipe(Model(encoder=Stack(5))))
    for line in ("--layers 7", "--layers=7", "--layers 3 --layers 7", "small --layers 7"):
        model = train(line, both).recipe.model
        assert (model.encoder, model.decoder) == (Stack(7), Stack(7)), line
    model = train("--layers 7 --model.encoder.rate 1", both).recipe.model
    assert (model.encoder, model.decoder) == (Stack(7, rate=1), Stack(7))
    assert train("--layers 7").recipe.model == Model(Stack(7))
    assert train("--layers 7 --model.encoder.kind stack --model.decoder none").recipe.model == Model(None, Stack(7))
    assert train("--rate 0.5 small --seed 3") == Train("small", Recipe(Model(Stack(rate=0.5)), seed=3))


def test_an_error_names_what_was_typed() -> None:
    text = "model.decoder.num_layers=0 with model.decoder.num_layers_all; set --model.decoder.num_layers"
    typed = "--layers=0 with model.decoder.num_layers_all; set --layers"
    assert as_typed(text, ["--layers", "0"], SHORTS) == as_typed(text, ["--layers=0"], SHORTS) == typed
    text = "model.decoder: num_layers=1 with 2; set num_layers or model.decoder.num_layers higher"
    typed = "model.decoder: --layers=1 with 2; set --layers or --layers higher"
    assert as_typed(text, ["--layers=1"], SHORTS) == typed
    for arguments in ([], ["--", "--layers"], ["layers"], ["--rate", "2"], ["--layers.x"]):
        assert as_typed(text, arguments, SHORTS) == text


def shown(config: Any = Train(), group: str = "", width: int = 80) -> str:
    text = help_text("isoform train", config, shorts=SHORTS, group=group, width=width)
    assert max(map(len, text.splitlines())) <= width
    return text


def test_a_page_has_own_flags_and_short_names() -> None:
    text = shown()
    assert text.startswith(
        "usage: isoform train RECIPE NAME [--FLAG VALUE …]\n\nTrain a model.\n\n  RECIPE  What to train\n  NAME    "
    )
    for line in (r"--layers INTEGER +blocks \(default: 2\)", r"--dry_run +Plan, and train nothing", "--out TEXT "):
        assert re.search(line, text), line
    assert "  isoform train small --steps 3\n" in text and "no_dry_run" not in text
    both = shown(Train(recipe=Recipe(Model(encoder=Stack(5)))))
    assert re.search(r"--layers INTEGER +blocks \(default: (2, 5|5, 2)\)", both)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_whole_help_has_the_flags_in_force(width: int) -> None:
    norm = "model.decoder.blocks.0.attention.norm"
    config = train(f"--{norm}.kind layer_norm", Train(recipe=Recipe(note="a\n\x1b")))
    text = help_text("isoform train", config, shorts=SHORTS, group=ALL, width=width)
    for flag in flags_of(config):
        assert re.search(rf"^  (-\w, )?--{re.escape(flag.path)}( |$|\.NAME)", text, re.MULTILINE), flag.path
    assert f"--{norm}.bias true|false\n" in text and f"--{norm}.scale" not in text
    assert ("{rms_norm,layer_norm,low_rank}" in text) == (width > 60) and "  -o, --out TEXT\n" in text
    assert "A small number under the root" in " ".join(text.split()) and r"(default: 'a\n\x1b')" in text


def test_a_group_is_a_part_of_the_whole_help() -> None:
    text = shown(group="model.decoder")
    heads = {line.split()[0].removesuffix(".NAME") for line in text.splitlines() if line.startswith("  --")}
    assert heads == {f"--{flag.path}" for flag in flags_of(Train()) if flag.path.startswith("model.decoder.")}
    assert "num_layers" in shown(group="layers") and "num_layers" in shown(group="model.decoder.num_layers")
    assert 'did you mean "model"?' in message(shown, group="modle")


@pytest.mark.parametrize(
    ("words", "group", "rest"),
    [
        (["--help"], "", []),
        (["a", "-h", "--steps", "3"], "", ["a", "--steps", "3"]),
        (["--help", "model.decoder", "x"], "model.decoder", ["x"]),
        (["x", "--help-all"], ALL, ["x"]),
        (["x", "--help_all"], ALL, ["x"]),
        (["--", "--help"], None, ["--", "--help"]),
        (["--help", "--", "x"], "", ["--", "x"]),
    ],
)
def test_help_is_asked_for_anywhere_before_two_dashes(words: list[str], group: str | None, rest: list[str]) -> None:
    assert asks_for_help(words) == (group, rest)


def test_texts_are_those_of_the_nearest_class() -> None:
    assert text_of(Train, "recipe_name") == "Which recipe." and text_of(RMSNorm, "scale") == ""
    assert text_of(NGramMlp, "context_length").startswith("The most tokens")


def test_parsing_loads_no_torch_and_is_quick() -> None:
    code = """
import sys, time
from dataclasses import make_dataclass
from isoform.flags import parse_flags
leaf = make_dataclass("Leaf", [(f"x{i}", int, i) for i in range(10)], frozen=True)
root = make_dataclass("Root", [(f"leaf{i}", leaf, leaf()) for i in range(8)], frozen=True)
start = time.process_time()
assert parse_flags(root(), ["--leaf3.x4", "7"], prog="x").leaf3.x4 == 7
print(time.process_time() - start)
assert "torch" not in sys.modules and "isoform.model" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 0.25, "seconds of CPU"


def test_non_defaults_are_unaffected_by_new_fields():
    def recipe(*later):
        inner = make_dataclass("Inner", [("a", int, 1), *later], frozen=True)
        return make_dataclass("Outer", [("x", object), ("parts", tuple, ()), ("size", int, 5)], frozen=True), inner

    before, after = (
        outer(x=inner(a=2), parts=(inner(), inner(a=3)))
        for outer, inner in (recipe(), recipe(("b", object, None), ("c", str, "off")))
    )
    expected = {"kind": "inner", "a": 2}
    assert non_defaults(before)["x"] == expected and non_defaults(before) == non_defaults(after)
    assert non_defaults(before)["parts"] == [
        {"kind": "inner"},
        {"kind": "inner", "a": 3},
    ] and "size" not in non_defaults(before)
    assert non_defaults(replace(after, size=6)) != non_defaults(after)

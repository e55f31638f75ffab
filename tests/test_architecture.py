"""The house keeps its order: who imports whom, what is never called, and that the map is true."""

import ast
import re
from pathlib import Path

import pytest

from isoform.recipe import builtin_recipes, load_recipe

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/isoform"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in FILES}
FOLDERS = ("model", "codecs", "objectives", "data", "training", "generation", "scaling")

ROWS = [
    *("history", "reading", "terminal", "signals", "busy", "ranges", "annotations", "config", "flags", "help"),
    *("outside", "mask", "files", "manifest", "metrics"),
    "model.parts",
    *(f"{folder}.config" for folder in FOLDERS),
    *("model.baseline_config", "model.encoders", "model.decoders", "model.presets", "recipe", "machine", "batch"),
    *(
        "codecs.origin",
        "codecs.template",
        "codecs.chat",
        "codecs.codec",
        "codecs.document",
        "codecs.bounds",
        "codecs.tokenizer",
        "codecs.classes",
    ),
    "codecs.bpe",
    "codecs.image",
    *("codecs.numbers", "codecs.text"),
    "codecs.registry",
    *("model.recording", "model.auxiliary", "model.component", "model.position", "model.cache", "model.kernels"),
    "model.compiling",
    "model.norm",
    "model.lowering",
    *("model.mixers.documents", "model.mixers.attention", "model.mixers.convolution", "model.mixers.lstm"),
    "model.mixers.external",
    "model.mixers.recurrence",
    *("model.feedforward", "model.experts", "model.depth", "model.embedding", "model.network", "model.block"),
    "model.transformer",
    *("model.growth", "model.adapters", "model.baselines", "model.cost", "model.activations", "model.decoding"),
    "opening",
    *("objectives.corruption", "objectives.views", "objectives.losses", "objectives.task"),
    *("data.records", "data.columns", "data.tables", "data.arrow", "data.archives", "data.packages", "data.toys"),
    *("data.sources", "data.markdown", "data.labels", "data.tokens", "data.order", "data.packing", "data.loader"),
    *("checkpoint.store", "checkpoint.versions", "checkpoint.tensors"),
    *(f"checkpoint.families.{shared}" for shared in ("fields", "family", "canonical", "table")),
    *(f"checkpoint.families.{shared}" for shared in ("rotary", "sliding", "decoder", "encoder_decoder")),
    *(f"checkpoint.families.{name}" for name in ("llama", "experts", "gemma", "gpt", "bert")),
    *(
        f"checkpoint.families.{name}"
        for name in ("modernbert", "vit", "t5", "bart", "whisper", "registry", "unsupported")
    ),
    *("checkpoint.huggingface", "checkpoint.special_ids", "checkpoint.labels", "checkpoint.folder"),
    *(f"checkpoint.gguf.{name}" for name in ("format", "architectures", "tokenizer", "model")),
    *("figures", "markup", "trained", "run", "preparation"),
    *("training.optimizer", "training.memory", "training.trainer"),
    *("generation.constraints", "generation.strategy", "generation.sampling", "generation.beam", "generation.decode"),
    *("generation.streaming", "generation.turns", "generation.answers", "generation.scoring"),
    *("evaluation.evaluate", "evaluation.guessing", "evaluation.predictions", "evaluation.confusion"),
    "evaluation.translation",
    *("trackers", "journal", "session", "experiment", "curves", "report", "comparison"),
    *("inspection.recording", "inspection.rows", "inspection.attention", "inspection.probabilities"),
    "inspection.curves",
    *(
        "scaling.ladder",
        "scaling.engines",
        "scaling.study",
        "scaling.conversation",
        "scaling.items",
        "scaling.measures",
        "scaling.laws",
        "scaling.forms",
        "scaling.fitting",
        "scaling.minima",
        "scaling.estimate",
        "scaling.simulation",
        "scaling.curves",
        "scaling.multipliers",
        "scaling.means",
    ),
    *("scaling.pictures", "scaling.findings", "scaling.statistics", "scaling.worlds", "scaling.truths"),
    *("scaling.claims", "scaling.power", "scaling.pages", "scaling.verdicts", "scaling.lab"),
    *(
        "options",
        "completion",
        "commands.command",
        "commands.costs",
        "commands.training",
        "commands.looking",
        "commands.writing",
        "commands.asking",
        "commands.chatting",
        "commands.studies",
    ),
    *("commands.about", "cli", "__main__"),
]


def imports(tree: ast.AST) -> set[str]:
    """The modules of ours that a token of code imports, without the leading `isoform.`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}".removeprefix("isoform.") for alias in node.names}
            found |= (inside & set(ROWS)) or {node.module.removeprefix("isoform.")}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("isoform.") for alias in node.names}
    return found & {*ROWS, "isoform"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_file_has_its_row():
    assert sorted(n for n in NAMES.values() if not n.endswith("__init__")) == sorted(ROWS)


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=NAMES.get)
def test_a_file_imports_only_from_rows_above_its_own(path):
    row = ROWS.index(NAMES[path])
    assert {name for name in imports(tree_of(path)) - {"isoform"} if ROWS.index(name) >= row} == set()


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_nothing_of_ours_is_imported_inside_a_function(path):
    functions = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = set().union(*(imports(f) for f in functions)) if functions else set()
    assert inside <= ({"recipe"} if NAMES[path] == "cli" else set())


def test_no_file_is_too_long_to_be_read_at_a_sitting():
    lengths = {NAMES[path]: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_the_model_knows_no_modality():
    words = re.compile(r"\b(image|pixel|audio|mel|speech|chat|music|protein)s?\b", re.IGNORECASE)
    assert [p.name for p in (SOURCE / "model").rglob("*.py") if words.search(p.read_text(encoding="utf-8"))] == []


def test_nothing_is_unpickled_evaluated_or_asked_for_its_attributes():
    banned = {"hasattr", "eval", "exec", "__import__", "extractall", "pickle", "trust_remote_code", "shell"}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            called = node.func if isinstance(node, ast.Call) else None
            names = {called.id} if isinstance(called, ast.Name) else set()
            names |= {k.arg for k in node.keywords} if isinstance(node, ast.Call) else set()
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not names & banned, f"{path.name}: {names & banned}"
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                assert (called.value.id, called.attr) not in {("torch", "load"), ("yaml", "load")}, path.name


def test_config_files_know_no_torch():
    for path in (SOURCE / "options.py", SOURCE / "recipe.py", SOURCE / "mask.py", *SOURCE.rglob("config.py")):
        top = [n for n in tree_of(path).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in top}
        assert not {name for name in names if name and name.split(".")[0] == "torch"}, path


def test_every_file_says_what_it_is_for():
    assert [NAMES[p] for p in FILES if not ast.get_docstring(tree_of(p))] == []


def test_the_tree_in_the_design_is_the_real_one():
    block = re.search(r"```text\n(.*?)```", (ROOT / "docs/design.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    shown, folders = set(), []
    for line in block[1].splitlines()[1:]:
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 2 - 1]
        shown |= {"".join([*folders, name])}
        folders += [name] if name.endswith("/") else []
    real = {p.relative_to(SOURCE).as_posix() for p in FILES if p.name != "__init__.py"} | {"__init__.py"}
    real |= {f"{p.parent.relative_to(SOURCE)}/" for p in FILES if p.parent != SOURCE} | {"recipes/", "claims/"}
    assert shown == real


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_is_a_document(name):
    lines = builtin_recipes()[name].read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(f"isoform train {name}" in line for line in lines if line.startswith("#"))
    load_recipe(name)

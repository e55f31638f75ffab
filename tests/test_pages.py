"""Every command in the pages for learners runs, in their order, and prints what the page shows (tools/pages.py)."""

import importlib
import os
import shlex
import sys
from pathlib import Path

import pytest

import forks

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
pages = importlib.import_module("pages")
NAMES = ("index", "tutorial", "your-data", "fine-tuning", "faq", "glossary")
WITH_SLOW = bool(os.environ.get("ISOFORM_ALL"))
INSTALLS = ("pip ", "make ", "python3 -m venv", "hf ")


def run(command: str, folder: Path) -> tuple[int, str]:
    """A plain command of isoform in a fork, the rest by bash; with ISOFORM_ALL everything by bash."""
    is_plain = command.startswith("isoform ") and not set(command) & set("|<>;&$*`")
    if WITH_SLOW or not is_plain or not forks.CONTEXT:
        return pages.run_in_bash(command, folder)
    log = folder / ".printed"
    log.unlink(missing_ok=True)
    environment = {"COLUMNS": "100", "NO_COLOR": "1", "ISOFORM_CACHE": os.environ["ISOFORM_CACHE"]}
    words = shlex.split(command, comments=True)[1:]
    process = forks.CONTEXT.Process(target=forks.run, args=(words, environment, str(log), str(folder)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log.read_text(encoding="utf-8") if log.exists() else ""


def small_model(folder: Path) -> None:
    """What stands in for the downloaded folder `smollm2`: the same form, small, as a Hugging Face folder."""
    sizes = "--model.model_dim 32 --model.context_length 64 --model.decoder.num_layers 2"
    heads = "--model.decoder.blocks.mixer.num_heads 4 --model.decoder.blocks.mixer.num_kv_heads 2"
    rest = "--codec.kind bpe --codec.vocab_size 300 --training.steps 2 --training.global_batch_tokens 128"
    (folder / "text.txt").write_text("The capital of France is Paris, and that of Italy is Rome.\n" * 200)
    width = "--model.decoder.blocks.feedforward.feedforward_dim 64"
    command = f"isoform train smollm2 --data.path text.txt {sizes} {heads} {width} {rest} --out run -q"
    for words in (command, "isoform convert run smollm2"):
        code, printed = run(words, folder)
        assert code == 0, printed


def page(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_shows_is_what_happens(name, tmp_path):
    (tmp_path / "scene.txt").write_text("**ROMEO**  \nBut soft, what light through yonder window breaks?\n" * 20)
    if "smollm2" in page(name):
        small_model(tmp_path)
    for block, shown, printed in pages.run_page(page(name), tmp_path, run, in_full=False, with_slow=WITH_SLOW):
        if shown is not None and "example" not in shown.notes:
            assert pages.matches(shown.body, printed), (
                f"{block.body}prints\n{printed}\nand the page shows\n{shown.body}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_run_installs_or_downloads(name):
    for block in pages.blocks_of(page(name)):
        if "not run" in block.notes:
            assert block.notes["not run"], "say why"
            assert all(command.startswith(INSTALLS) for command in pages.commands_of(block.body)), block.body
        assert block.language in ("sh", "output", "python", "toml", "text", "json", "csv")


def test_outputs_match_but_for_their_numbers():
    shown = "validation     1.4 nats   12 k parameters\n…\nreport  runs/a-1/report.html …\n"
    printed = "validation  1.9134 nats   3.1 M parameters\nanything\nat all\nreport  runs/a-1/report.html and more\n"
    match = pages.matches(shown, printed)
    assert match is not None
    assert pages.updated(shown, match).splitlines()[0] == "validation     1.9134 nats   3.1 M parameters"
    assert not pages.matches(shown, printed.replace("nats", "bits"))
    assert not pages.matches(shown, printed + "one line too many\n")
    assert not pages.matches("a [b]\n", "a b\n")


def test_a_failing_command_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3"):
        list(pages.run_page("```sh\nexit 3\n```\n", tmp_path))


def test_flags_that_shorten_are_added_to_trainings_only(tmp_path):
    text = "<!-- shorter: --training.steps 2 -->\n```sh\nisoform train a --out b  # a remark\nisoform generate b\n```\n"
    seen = []
    list(pages.run_page(text, tmp_path, lambda command, _: (seen.append(command), (0, ""))[1], in_full=False))
    assert seen == ["isoform train a --out b --training.steps 2", "isoform generate b"]
    with pytest.raises(ValueError, match="shortre"):
        pages.blocks_of(text.replace("shorter", "shortre"))

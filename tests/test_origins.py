"""What a Hugging Face folder says beside its model and its tokenizer.json, as transformers reads it."""

from dataclasses import replace
from pathlib import Path

import pytest
import transformers as peers

import isoform
from isoform.codecs.config import Tokenizer
from isoform.experiment import train
from isoform.files import remove
from isoform.journal import is_vacant
from isoform.machine import choose_machine
from test_journal import recipe
from test_whole import BYTES, bytes_tokenizer

CPU = choose_machine("cpu", "float32")
TEMPLATES = {"rag": "{{ documents }}", "tool_use": "{{ tools }}é", ".hidden": "{{ x }}"}


def folder_with_templates(folder: Path) -> Path:
    """A small model, its tokenizer, its chat template and further ones."""
    tokenizer = peers.PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer(), **BYTES)
    tokenizer.chat_template = {"default": "{{ messages }}", **TEMPLATES}
    tokenizer.save_pretrained(folder)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    peers.GPT2LMHeadModel(peers.GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def templates_of(folder: Path) -> object:
    return peers.AutoTokenizer.from_pretrained(folder).chat_template


def test_further_chat_templates_are_converted(tmp_path):
    source = folder_with_templates(tmp_path / "source")
    (source / "additional_chat_templates" / "notes.txt").write_text("no template")
    assert templates_of(source).keys() == {"default", *TEMPLATES}
    isoform.export(isoform.load(source), tmp_path / "out")
    assert templates_of(tmp_path / "out") == templates_of(source)
    assert not (tmp_path / "out" / "additional_chat_templates" / "notes.txt").exists()


def test_nothing_is_copied_through_a_link(tmp_path):
    source = folder_with_templates(tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    (source / "additional_chat_templates" / "other.jinja").symlink_to(tmp_path / "secret")
    with pytest.warns(UserWarning, match=r"other\.jinja is a link and is left aside"):
        trained = isoform.load(source)
    isoform.export(trained, tmp_path / "out")
    assert templates_of(tmp_path / "out").keys() == {"default", *TEMPLATES}
    (source / "additional_chat_templates").rename(tmp_path / "elsewhere")
    (source / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="additional_chat_templates is a link and is left aside"):
        trained = isoform.load(source)
    isoform.export(trained, tmp_path / "plain")
    assert templates_of(tmp_path / "plain") == "{{ messages }}"


def test_a_run_keeps_further_chat_templates(tmp_path):
    """And its folder counts as one that a killed start left, not as somebody else's."""
    source = folder_with_templates(tmp_path / "source")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 99)
    folder = tmp_path / "run"
    codec = Tokenizer(path=str(source / "tokenizer.json"))
    plan = replace(recipe(tmp_path / "text.txt", steps=2, validate_every=0, sample_every=0), codec=codec)
    train(plan, folder, machine=CPU)
    assert "model/additional_chat_templates/rag.jinja" in (folder / "manifest.json").read_text()
    longer = replace(plan, training=replace(plan.training, steps=3))
    isoform.export(isoform.load(train(longer, folder, machine=CPU).folder), tmp_path / "out")
    assert templates_of(tmp_path / "out") == templates_of(source)

    for path in [path for path in folder.iterdir() if path.name not in ("model", "manifest.json")]:
        remove(path)
    (folder / "model" / "model.safetensors").unlink()
    assert is_vacant(folder)
    (folder / "model" / "additional_chat_templates" / "notes.txt").write_text("mine")
    assert not is_vacant(folder)

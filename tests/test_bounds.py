"""A tokenizer.json of anyone's: what it would cost is bounded before it is used, and its panics are errors."""

import json

import pytest

from isoform.codecs.bounds import _problem, without_panics
from isoform.codecs.bpe import train_bpe
from isoform.codecs.registry import read_tokenizer

PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"(?=(\d{3})+(?!\d))",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    *(r" {2,}", r"^ ?", r"(?:^|[^a-z])x", r"[一-龥぀-ゟ゠-ヿ]+", r"[^\S\n]+$"),
]
EXPLODING = [
    *(r"(a+)+$", r"(a|a)*b", r"(.*)*x", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(a|aa)+$", r"(x+x+)+y", r"(a*)*"),
    *(r"(a?){30}a{30}", "a?" * 30 + "a" * 30, r"a*a*a*a*b", r"((a{100}){100}){100}", r"(a)\1*", r"(?<n>a\g<n>?b)"),
    *(
        r"(?:(?:a{1,9}){1,9})*",
        r"(?:a+){2,}",
        r"(?>(a+)+)b",
        r"a{1001}",
        r"(\w+\s?)*!",
        r"(a+)+?$",
        r"(?:[[:alpha:]]+)*!",
    ),
]


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_the_patterns_of_published_tokenizers_pass(pattern):
    assert _problem(pattern) == ""


@pytest.mark.parametrize("pattern", EXPLODING)
def test_patterns_that_may_take_for_ever_are_refused(pattern):
    assert _problem(pattern)


BASE = json.loads(train_bpe(["the cat sat on the mat " * 20], 266).tokenizer.to_str())


def split(pattern: str) -> dict:
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [part, BASE["pre_tokenizer"]]}


def replaced(old: str, new: str) -> dict:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


CHARSMAP = {"type": "Precompiled"}
HOSTILE = {
    "pattern": ({"pre_tokenizer": split("(a+)+$")}, r"the pattern '\(a\+\)\+\$' of its pre_tokenizer repeats"),
    "growth": ({"normalizer": {"type": "Sequence", "normalizers": [replaced("a", "a" * 100)] * 8}}, "times as long"),
    "growth, decoding": ({"decoder": {"type": "Sequence", "decoders": [replaced("a", "b" * 9)] * 8}}, "times as long"),
    "table": ({"normalizer": {**CHARSMAP, "precompiled_charsmap": "AAAA"}}, "gives up"),
    "table's size": ({"normalizer": {**CHARSMAP, "precompiled_charsmap": "/////wAAAAAAAAAA"}}, "charsmap is damaged"),
    "empty pattern": ({"normalizer": replaced("", "xx")}, "gives up"),
    "id": ({"model": {**BASE["model"], "vocab": {**BASE["model"]["vocab"], "zz": 2**31}}}, "the id 2,147,483,648"),
    "no tokens": ({"model": {**BASE["model"], "vocab": {}, "merges": []}, "added_tokens": []}, "no special token"),
}


@pytest.mark.parametrize(("fields", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_that_would_not_end_is_refused_in_one_line(fields, words, tmp_path, capfd):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**BASE, **fields}))
    with pytest.raises(ValueError, match=words):
        read_tokenizer(path).encode_text("the cat " + "a" * 40)
    assert capfd.readouterr().err == ""


def test_keyboard_interrupts_are_no_panics():
    with pytest.raises(KeyboardInterrupt), without_panics("x"):
        raise KeyboardInterrupt

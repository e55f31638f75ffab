"""Files of anyone's are read within limits, and what is wrong with one names it."""

import gzip
import json
import os
import struct
import time

import pytest

from isoform import reading
from isoform.reading import check_lines, check_safetensors, decompress, read_bytes, read_json, read_text, read_toml

TOML = {
    "dotted": "a" + ".a" * 100_000 + " = 1",
    "dotted table": "[a" + " . a" * 50_000 + "]",
    "quoted": '"a"' + ' . "a\\""' * 50_000 + " = 1",
    "literal": "'a'" + ".'a'" * 50_000 + " = 1",
    "inside": "x = {a" + ".a" * 50_000 + " = 1}",
    "deep list": "a = " + "[" * 100_000,
    "deep table": "a = " + "{a=" * 100_000,
    "digits": "a = " + "9" * 100_000,
    "open text": "a = '''" + "'" * 3 + "'" * 100_000,
    "large": "a = '" + "x" * reading.TABLES + "'",
}


@pytest.mark.parametrize("text", TOML.values(), ids=TOML)
def test_toml_that_would_take_for_ever_is_refused_at_once(text, tmp_path):
    path, started = tmp_path / "a.toml", time.perf_counter()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.toml"):
        read_toml(path)
    assert time.perf_counter() - started < 2


def test_dots_in_texts_and_comments_are_no_keys(tmp_path):
    dots = ".".join("a" * 200)
    path = tmp_path / "a.toml"
    path.write_text(
        f'# {dots}\na = "{dots}"\nb = """\n{dots}\n"""\nc = \'{dots}\'\n"{dots}" = 1\n' + "x." * 60 + "y = 1\n"
    )
    assert read_toml(path)["a"] == dots and read_toml(path)[dots] == 1


JSON = {
    "deep": ("[" * 100_000, "nested too deeply"),
    "many values": ('{"a": [' + "[]," * 10**6 + "0]}", "more than 1,000,000 values"),
    "digits": ('{"a": ' + "9" * 10_000 + "}", "is no JSON"),
    "list": ("[]", "holds a list"),
    "empty": ("", "is no JSON"),
}


@pytest.mark.parametrize(("text", "words"), JSON.values(), ids=JSON)
def test_json_of_another_kind_is_refused(text, words, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json.*{words}"):
        read_json(path)


def test_a_byte_that_is_no_text_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\xff")
    with pytest.raises(ValueError, match="byte 0xff at offset 3, line 2"):
        read_text(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_only_plain_files_of_a_size_are_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a pipe"):
        read_bytes(path, 10)
    with pytest.raises(ValueError, match="is a device"):
        read_bytes("/dev/zero", 10)
    with pytest.raises(ValueError, match="can't be read"):
        read_bytes(tmp_path, 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="has 11 bytes, and at most 10"):
        read_bytes(tmp_path / "large", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_bytes("/proc/self/status", 10)  # which says that it has none


def test_a_small_file_may_not_hold_a_large_text(monkeypatch):
    monkeypatch.setattr(reading, "UNPACKED", reading.MB)
    with pytest.raises(ValueError, match="more than 100 times its own size"):
        decompress(gzip.compress(b"a" * 2**24), "a.gz")
    text = os.urandom(2**21)
    assert decompress(gzip.compress(text), "a.gz") == text
    with pytest.raises(ValueError, match="can't be decompressed"):
        decompress(gzip.compress(text)[:100], "a.gz")


def test_a_line_without_an_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LINE", 3 * reading.MB)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\n" + b"b" * 2**21 + b"\n" + b"c" * 3 * 2**20 + b"\n")
    check_lines(path)
    path.write_bytes(b"a\n" + b"b" * 2**21 + b"\n" + b"c" * (3 * 2**20 + 1) + b"\nd")
    with pytest.raises(ValueError, match="line 3 has more than"):
        check_lines(path)


def test_a_header_of_more_tensors_than_any_model_has_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_TENSORS", 2)
    path = tmp_path / "a.safetensors"
    for count in (2, 3):
        header = json.dumps({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)})
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
        if count == 2:
            check_safetensors(path)
    with pytest.raises(ValueError, match="at most 2 tensors"):
        check_safetensors(path)
    path.write_bytes(struct.pack("<Q", 2**63))
    check_safetensors(path)  # which its own library refuses

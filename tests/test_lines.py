"""Files of lines and folders of files: one reader for training, prompts and scores; nothing is left aside silently."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.cli import main
from isoform.data.records import location
from isoform.data.sources import load_source
from isoform.experiment import train
from isoform.machine import choose_machine
from isoform.reading import split_lines
from isoform.recipe import recipe_from_dict

ODD = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x00h"
"""One line: none of these characters ends it."""
LINES = ["die Katze", ODD, " zwei  Hunde\t", "é 日本"]
FORMS = {
    "LF": ("", "\n", "\n"),
    "CRLF": ("", "\r\n", "\r\n"),
    "CR": ("", "\r", "\r"),
    "mark": ("\ufeff", "\n", "\n"),
    "mark and CRLF": ("\ufeff", "\r\n", "\r\n"),
    "no last end": ("", "\n", ""),
    "CRLF, no last end": ("", "\r\n", ""),
}
"""How files write the same lines: the beginning, the end of each line, the end of the last."""
pytestmark = pytest.mark.filterwarnings("ignore:.* NUL characters")
STACK = {"num_layers": 1, "blocks": {"0": {"mixer": {"num_heads": 2}}}}


def written(path, lines, form="LF"):
    mark, end, last = FORMS[form]
    path.write_bytes((mark + end.join(lines) + last).encode())
    return path


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"])), min_size=1))
def test_lines_come_back_from_every_form(lines):
    for mark, end, last in FORMS.values():
        if last or lines[-1]:
            assert split_lines(mark + end.join(lines) + last) == lines


@pytest.mark.parametrize("form", FORMS)
def test_pairs_and_records_are_the_same_in_every_form(form, tmp_path):
    pairs = [{"source": a, "target": b} for a, b in zip(LINES, LINES[::-1], strict=True)]
    for suffix, lines in (("de", LINES), ("en", LINES[::-1])):
        written(tmp_path / f"train.{suffix}", lines, form)
    jsonl = written(tmp_path / "a.jsonl", [json.dumps(record, ensure_ascii=False) for record in pairs], form)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.read_bytes()))
    for path in (tmp_path / "train.{de,en}", jsonl, packed):
        records = load_source(str(path), str(path)).train
        assert records == pairs, path
        name = str(path).replace("{de,en}", "de")
        assert [location(record, 0) for record in records] == [f"{name}, line {n}" for n in range(1, 5)]


@pytest.mark.parametrize("form", FORMS)
def test_files_of_unequal_length_are_refused_with_both_counts(form, tmp_path):
    written(tmp_path / "x.de", LINES, form)
    written(tmp_path / "x.en", LINES[:2] * 4)
    with (
        pytest.warns(UserWarning, match="NUL"),
        pytest.raises(ValueError, match=r"x.de has 4 lines and .*x.en 8; line"),
    ):
        load_source(str(tmp_path / "x.{de,en}"))


@pytest.mark.parametrize("form", FORMS)
def test_errors_name_the_line_in_every_form(form, tmp_path):
    bad = written(tmp_path / "bad.jsonl", ['{"text": "a"}', '{"text": 3}'], form)
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2, text: 3 is not a text"):
        load_source(str(bad))
    mark, end, last = FORMS[form]
    bad.write_bytes(f'{mark}{{"text": "a"}}{end}{{"text": "'.encode() + b"\xff" + f'"}}{last}'.encode())
    with pytest.raises(ValueError, match=r"not UTF-8: byte 0xff at offset \d+, line 2 "):
        load_source(str(bad))
    for suffix, lines in (("de", ["a", "b"]), ("en", ["a", " "])):
        written(tmp_path / f"x.{suffix}", lines, form)
    with pytest.raises(ValueError, match=r"x.en, line 2 is empty"):
        load_source(str(tmp_path / "x.{de,en}"))


def test_a_whole_text_loses_its_mark_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\r\nb\rc\ufeff\u2028\x00".encode())
    with pytest.warns(UserWarning, match=r"a.txt has NUL characters, 1 of them, which are kept; is it UTF-16\?"):
        split = load_source(str(path), str(path))
    assert split.train == [{"text": "a\r\nb\rc\ufeff\u2028\x00"}]
    plain = tmp_path / "b.txt"
    plain.write_bytes(b"ab")
    marked = tmp_path / "c.txt"
    marked.write_bytes("\ufeffab".encode())
    first, second = (load_source(str(p), str(p)) for p in (plain, marked))
    assert first.train == second.train and first.sources[0].sha256 != second.sources[0].sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model of pairs, trained for a step."""
    folder = tmp_path_factory.mktemp("pairs")
    for suffix in ("de", "en"):
        written(folder / f"train.{suffix}", [f"{n:05}" for n in range(30)])
    recipe = recipe_from_dict(
        {
            "data": {"path": str(folder / "train.{de,en}"), "rows": "packed"},
            "codec": {"kind": "bytes"},
            "objective": {"kind": "seq2seq"},
            "model": {
                "model_dim": 8,
                "context_length": 64,
                "encoder": STACK,
                "decoder": {**STACK, "cross": "separate"},
            },
            "training": {"steps": 1, "global_batch_tokens": 64, "sample_tokens": 0},
        }
    )
    return train(recipe, folder / "run", machine=choose_machine("cpu", "float32")).folder


def test_prompts_and_scores_are_the_same_in_every_form(run, tmp_path, capfd):
    outputs = set()
    for form in FORMS:
        prompts = written(tmp_path / "prompts", LINES, form)
        for suffix, lines in (("de", LINES), ("en", LINES[::-1])):
            written(tmp_path / f"test.{suffix}", lines, form)
        flags = ["--device", "cpu", "--dtype", "float32", "--path"]
        assert main(["generate", str(run), "--temperature", "0", "--max_tokens", "4", *flags, str(prompts)]) == 0
        assert main(["evaluate", str(run), *flags, str(tmp_path / "test.{de,en}")]) == 0
        outputs.add(capfd.readouterr().out)
    assert len(outputs) == 1
    written(tmp_path / "prompts", ["a", "", "b"], "CR")
    assert main(["generate", str(run), "--path", str(tmp_path / "prompts")]) == 65
    assert "prompts, line 2 is empty" in capfd.readouterr().err


# Folders


def folder_of(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(root)


def records_of(path):
    split = load_source(path, path)
    return split.train, split.sources[0]


PAIR = '{"source": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("files", "texts", "message"),
    [
        (
            {"SOURCE_txt": "from there", "t0_abc": "X:1", "t1_abc": "X:2", "t2_abc": "X:3"},
            ["from there"],
            r"3 files \(t0.abc, t1.abc, t2.abc\) with other suffixes \(.abc\)$",
        ),
        (
            {"README_md": "# Card", "LICENSE_txt": "free", "a_txt": "one", "deep__b_md": "two"},
            ["one", "two"],
            r"2 files \(LICENSE.txt, README.md\) about the data$",
        ),
        (
            {"a_txt": "one", "b_txt": "", "c_txt": " \n", "d_txt": "\ufeff", "e_txt": "two"},
            ["one", "two"],
            r"3 files \(b.txt, c.txt, d.txt\), which are empty$",
        ),
        (
            {"a_txt": "one", "b_doc": "1,2", "c_rst": "x", "d": "y", "readme": "z", "_git__a_txt": "no"},
            ["one"],
            r"4 files \(b.doc, c.rst, d, …\) with other suffixes \(.doc, .rst, none\)$",
        ),
    ],
    ids=["tunes", "card", "empty", "others"],
)
def test_what_is_left_aside_in_a_folder_is_named(files, texts, message, tmp_path):
    with pytest.warns(UserWarning, match="left aside are " + message):
        records, _ = records_of(folder_of(tmp_path, **files))
    assert [record["text"] for record in records] == texts


def test_a_folder_of_records_is_read_without_its_card(tmp_path):
    path = folder_of(tmp_path, README_md="# Card", train_jsonl=PAIR * 3, _gitattributes="x", data__more_jsonl=PAIR)
    with pytest.warns(UserWarning, match=r"1 file \(README.md\) about the data$"):
        records, source = records_of(path)
    assert len(records) == 4 and source.num_records == 4
    assert location(records[0], 0) == f"{tmp_path}/data/more.jsonl, line 1"


def test_a_text_whose_name_only_begins_like_that_is_read(tmp_path):
    path = folder_of(tmp_path, sourcery_txt="one", noticed_md="two", licensee_txt="three")
    assert len(records_of(path)[0]) == 3


def test_records_of_several_kinds_are_named(tmp_path):
    path = folder_of(tmp_path, a_txt="text", b_jsonl=PAIR * 2 + '{"text": "x", "label": 1}\n')
    message = r"several kinds: 2 with text \(from .*a.txt\), 2 with source and target \(from .*b.jsonl, line 1\)"
    with pytest.warns(UserWarning, match=message):
        records_of(path)


def test_a_folder_without_texts_says_what_it_has(tmp_path):
    with pytest.raises(ValueError, match=r"has no .txt, .md, .csv, .* in it; put"):
        load_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"only 2 files \(a.en, b.de\) with other suffixes \(.de, .en\); put"):
        load_source(folder_of(tmp_path, a_en="a", b_de="b"))


def test_files_that_are_empty_or_no_text_are_refused_by_name(tmp_path):
    for name, content in (("a.txt", b""), ("b.jsonl", b"\n\n"), ("c.txt.gz", gzip.compress(b" \n"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is empty; remove it or fill it"):
            load_source(str(tmp_path / name))
    bad = folder_of(tmp_path / "deep", a_txt="fine", b_txt="one\ntwo \xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"deep/b.txt is not UTF-8: byte 0xe9 at offset 8, line 2"):
        load_source(bad)

"""Records in the files that people have: CSV, TSV, JSON, any keys, patterns; each error names what to add."""

import bz2
import csv
import gzip
import io
import json
import lzma
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.config import differences
from isoform.data.columns import records_of
from isoform.data.config import Data, Keys
from isoform.data.records import location
from isoform.data.sources import load_source, read_records
from isoform.data.tables import csv_table, json_table
from isoform.recipe import Recipe, identity_of

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=12)


def read(path, **keys):
    return [dict(record) for record in read_records(str(path), Keys(**keys))]


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@given(
    st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.booleans(),
)
def test_what_python_writes_comes_back(rows, delimiter, end, quoting, is_marked):
    """Any cells, delimiters, line ends and quotes, with and without a byte order mark; an empty label is none."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("text", "label"), *rows])
    table = csv_table(buffer.getvalue(), "x.csv", Keys(text="text", label="label"))
    records = [(r["text"], str(r.get("label", ""))) for r in records_of(table, Keys(text="text", label="label"))]
    has_numbers = table.columns["label"].has_numbers
    assert [text for text, _ in records] == [text for text, _ in rows]
    if not has_numbers:
        assert records == rows


def test_a_table_of_texts_and_labels_is_read_as_it_is(tmp_path):
    text = 'text,label\n"a film, and ""good""",pos\n"two\nlines",neg\nplain,pos\n'
    path = written(tmp_path / "mine.csv", text)
    expected = [
        {"text": 'a film, and "good"', "label": "pos"},
        {"text": "two\nlines", "label": "neg"},
        {"text": "plain", "label": "pos"},
    ]
    assert read(path) == expected
    records = read_records(str(path))
    assert [location(r, 0) for r in records] == [f"{path}, line {n}" for n in (2, 3, 5)]
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        assert read(written(tmp_path / f"mine.csv{suffix}", pack(text.encode()))) == expected
    assert read(written(tmp_path / "b.csv", "\ufeff" + text.replace("\n", "\r\n"))) == [
        {**record, "text": record["text"].replace("\n", "\r\n")} for record in expected
    ]
    split = load_source(str(path))
    assert len(split.train) + len(split.validation) == 3 and split.sources[0].title == "mine.csv"


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ("review,stars\nfine,5\nbad,1\n", [{"text": "fine"}, {"text": "bad"}]),
        ("Sentence,Class\nfine,a\n", [{"text": "fine", "label": "a"}]),
        (",text,label\n0,one,a\n1,two,b\n", [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]),
        ("id,abstract\nx1,one\nx2,two\n", [{"text": "one"}, {"text": "two"}]),
        ("text,label\none,3\ntwo,10\n", [{"text": "one", "label": 3}, {"text": "two", "label": 10}]),
        ("text,label\none,-1.5\ntwo,10\n", [{"text": "one", "label": -1.5}, {"text": "two", "label": 10}]),
        ("text,label\none,01\ntwo,10\n", [{"text": "one", "label": "01"}, {"text": "two", "label": "10"}]),
        ("text,label\none,\ntwo,b\n", [{"text": "one"}, {"text": "two", "label": "b"}]),
        ("prompt,completion\na,b\n", [{"source": "a", "target": "b"}]),
        ("question;answer\na,b;c\n", [{"source": "a,b", "target": "c"}]),
        ("text\none\n\ntwo\n", [{"text": "one"}, {"text": "two"}]),
        ("text\n12\n13\n", [{"text": "12"}, {"text": "13"}]),
        ("1,so good\n0,so bad\n", [{"text": "so good"}, {"text": "so bad"}]),
    ],
    ids=range(13),
)
def test_usual_names_and_the_only_texts_are_found(text, records, tmp_path):
    assert read(written(tmp_path / "x.csv", text)) == records


def test_what_is_named_is_taken(tmp_path):
    path = written(tmp_path / "x.csv", "a,b,c,text\none,eins,1,no\ntwo,zwei,0,no\n")
    assert read(path, text="a") == [{"text": "one"}, {"text": "two"}]
    assert read(path, text="b", label="c") == [{"text": "eins", "label": 1}, {"text": "zwei", "label": 0}]
    assert read(path, source="a", target="b")[1] == {"source": "two", "target": "zwei"}
    assert read(path, label="b")[0] == {"text": "no", "label": "eins"}
    bare = written(tmp_path / "bare.csv", "good film,pos\nbad film,neg\n")
    assert read(bare, text="1", label="2") == [
        {"text": "good film", "label": "pos"},
        {"text": "bad film", "label": "neg"},
    ]


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (
            "title,plot\na,bbb\n",
            {},
            r"known among title \('a'\), plot \('bbb'\); add --data.text_key plot, or name a pair",
        ),
        ("my title,plot\naaaa,b\n", {}, r"add --data.text_key 'my title'"),
        ("n,m\n1,2\nx1,2\n", {"text": "k"}, r"x.csv has no 'k'; it has n \('1'\), m \('2'\)"),
        ("1,2\n3,4\n", {}, r"no column of texts, but 1 \('1'\), 2 \('2'\) \(numbered: the first line is no header\)"),
        ("2,one,eins\n3,two,zwei\n", {}, r"2 \('one'\), 3 \('eins'\) \(numbered.*\); add --data.text_key"),
        ("text,label\na,b\nc\n", {}, r"line 3 has 1 cells, and the first line has 2"),
        ('text,label\n"a\nb",c\nd,e,f\n', {}, r"line 4 has 3 cells, and the first line has 2"),
        ('text,label\n"a,b\nc,d\n', {}, r"line 2: a quoted cell begins there that never ends"),
        ('text,label\n"a"b,c\n', {}, r"line 2: .* double the quotes inside"),
        ("text,text\na,b\n", {}, r"several columns are called 'text'"),
        ("text,label\nok,b\n\xff,c\n".encode("latin-1"), {}, r"byte 0xff at offset 16, line 3"),
        ("source,x\na,b\n", {"source": "source"}, r"no target by name.*; add --data.target_key with one of them"),
        ("text,label\na,inf\n", {}, None),
    ],
    ids=range(13),
)
def test_what_is_unclear_or_damaged_is_named_with_what_to_add(text, keys, message, tmp_path):
    path = written(tmp_path / "x.csv", text)
    if message is None:
        assert read(path)[0]["label"] == "inf"
        return
    with pytest.raises(ValueError, match=message):
        read(path, **keys)


def test_rows_without_a_text_are_left_aside_with_a_warning(tmp_path):
    path = written(tmp_path / "x.csv", "text,label\none,a\n,b\n,c\ntwo,d\n")
    with pytest.warns(UserWarning, match=r"left aside for want of a text: .*x.csv, line 3 and 1 other rows"):
        assert [r["text"] for r in read(path)] == ["one", "two"]


def test_a_quote_in_a_tsv_is_a_quote_only_around_a_cell(tmp_path):
    plain = 'sentence\tlabel\n"Yes.\t1\nNo"\t0\nso "so"\t1\n'
    assert [r["text"] for r in read(written(tmp_path / "a.tsv", plain))] == ['"Yes.', 'No"', 'so "so"']
    quoted = 'sentence\tlabel\n"two\nlines"\t1\n"a\ttab"\t0\n'
    assert [r["text"] for r in read(written(tmp_path / "b.tsv", quoted))] == ["two\nlines", "a\ttab"]
    enclosed = 'sentence\tlabel\n"one"\t1\n"say ""two"""\t0\n'
    assert [r["text"] for r in read(written(tmp_path / "c.tsv", enclosed))] == ["one", 'say "two"']


def test_long_cells_are_read_and_the_limit_of_python_stays(tmp_path):
    before = csv.field_size_limit()
    text = "x" * (before + 10)
    assert read(written(tmp_path / "x.csv", f'text,label\n"{text}",1\n')) == [{"text": text, "label": 1}]
    assert csv.field_size_limit() == before


# JSON


def test_any_keys_of_json_lines(tmp_path):
    lines = [{"id": i, "content": f"text {i}", "meta": {"url": "x"}} for i in range(3)]
    path = written(tmp_path / "x.jsonl", "\n".join(map(json.dumps, lines)))
    assert read(path) == [{"text": f"text {i}"} for i in range(3)]
    assert read(path, text="meta.url") == [{"text": "x"}] * 3
    pairs = [{"translation": {"en": "one", "de": "eins"}}, {"translation": {"en": "two", "de": "zwei"}}]
    path = written(tmp_path / "y.jsonl", "\n".join(map(json.dumps, pairs)))
    assert read(path, source="translation.en", target="translation.de")[1] == {"source": "two", "target": "zwei"}
    with pytest.raises(ValueError, match=r"translation.en \('one'\), translation.de \('eins'\); add --data.text_key"):
        read(path)
    path = written(tmp_path / "z.jsonl", '{"body": "a"}\n{"txt": "b"}\n')
    with pytest.raises(ValueError, match=r"line 2: the keys \['txt'\].*--data.text_key"):
        read(path, text="body")


def test_records_by_their_own_names_are_read_line_by_line_as_before(tmp_path):
    lines = [{"text": "a", "content": "b", "sentiment": "c"}, {"text": "", "label": 1}, {"source": "x", "target": "y"}]
    path = written(tmp_path / "x.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.warns(UserWarning, match="several kinds"):
        assert read(path) == [{"text": "a"}, {"text": "", "label": 1}, {"source": "x", "target": "y"}]
    path = written(tmp_path / "y.jsonl", '{"text": "a", "label": true}\n{"text": null}\n')
    with pytest.warns(UserWarning, match=r"want of a text: .*line 2"):
        assert read(path) == [{"text": "a", "label": "true"}]


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}, {"text": "b"}]',
        ' [\n {"text": "a"},\n {"text": "b"}\n]\n',
        '{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}',
        '{"text": "a"}\n{"text": "b"}\n',
        '{"rows": [\n{"text": "a"},\n{"text": "b"}]}',
    ],
)
def test_json_is_a_list_an_object_with_one_or_lines(text, tmp_path):
    assert read(written(tmp_path / "x.json", text)) == [{"text": "a"}, {"text": "b"}]
    assert read(written(tmp_path / "one.json", '{"text": "a",\n "more": {}}')) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, {"text": ]', "record 2: not JSON"),
        ('[{"text": "a"} {"text": "b"}]', "record 1: no comma"),
        ('[{"text": "a"}, 3]', "record 2: a int"),
        ("[" * 100_000, "record 1: not JSON"),
        ('{"a": [{"text": "a"}], "b": [{"text": "a"}]}', "2 lists of records"),
        ('[{"text": "a"}', "record 1: no comma or ] follows"),
        ("3", "a int"),
    ],
)
def test_damaged_json_names_the_record(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "x.json", text))


def test_elements_are_decoded_one_after_another():
    """So that a list with a damaged end is read up to there."""
    table = json_table('[{"text": "a"}, {"text": "b"}, oops', "x.json")
    rows = table.rows(())
    assert [next(rows).values["text"] for _ in range(2)] == ["a", "b"]
    with pytest.raises(ValueError, match="record 3"):
        next(rows)


# Which files


def test_a_pattern_is_a_folder_of_what_matches(tmp_path):
    for name in ("md/a.md", "md/b.md", "md/deep/c.md", "md/d.txt", "e.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [r["text"] for r in read(tmp_path / "md/*.md")] == ["md/a.md", "md/b.md"]
    assert [r["text"] for r in read(tmp_path / "**/*.md")] == ["e.md", "md/a.md", "md/b.md", "md/deep/c.md"]
    assert [r["text"] for r in read(tmp_path / "m?/[ab].md")] == ["md/a.md", "md/b.md"]
    assert len(read(tmp_path / "m*")) == 4, "a folder that matches is read whole"
    first, second = load_source(str(tmp_path / "md/*.md")), load_source(str(tmp_path / "md/[ab].md"))
    assert first.fingerprint == second.fingerprint and first.sources[0].title == "*.md"
    (tmp_path / "[ab].md").write_text("a name like a pattern")
    assert read(tmp_path / "[ab].md") == [{"text": "a name like a pattern"}]
    with pytest.raises(ValueError, match=r"no file matches '.*\*\.rst'; check the pattern .* and quote it"):
        read(tmp_path / "*.rst")


def test_a_folder_may_hold_several_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.csv").write_text("text,n\ntwo,1\nthree,2\n")
    (tmp_path / "c.json").write_text('[{"content": "four"}]')
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "five"}'))
    assert [r["text"] for r in read(tmp_path)] == ["one", "two", "three", "four", "five"]


def test_notes_beside_the_data_are_left_aside(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    for name in ("dataset_info.json", "config.json", "tokenizer_config.json", "README.md"):
        (tmp_path / name).write_text('{"a": 1}')
    with pytest.warns(UserWarning, match="4 files .* about the data"):
        assert read(tmp_path) == [{"text": "one"}]


def test_a_table_in_utf16_is_answered_with_the_command(tmp_path):
    with pytest.raises(ValueError, match="convert it with: iconv -f UTF-16 -t UTF-8"):
        read(written(tmp_path / "x.csv", "text\none\n".encode("utf-16")))


def test_files_called_as_splits_are_read_as_one_with_a_warning(tmp_path):
    for name in ("train-0.csv", "test-0.csv"):
        (tmp_path / name).write_text(f"text\n{name}\n")
    with pytest.warns(UserWarning, match=r"train-0.csv and test-0.csv are read as one"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("https://example.org/a.csv", "curl -LO https://example.org/a.csv, and name the file"),
        ("https://huggingface.co/datasets/org/name", "hf download --repo-type dataset org/name --local-dir name"),
        ("hf://datasets/org/name/x.parquet", "hf download --repo-type dataset org/name"),
        ("s3://bucket/x", "is a URL, and nothing is downloaded"),
    ],
)
def test_a_url_is_answered_with_what_to_do(url, remedy):
    with pytest.raises(ValueError, match="is a URL, and nothing is downloaded") as error:
        load_source(url)
    assert remedy in str(error.value)
    assert Data(path=url).resolve("/folder").path == url


def test_new_fields_leave_old_recipes_as_they_were():
    assert identity_of(Recipe()) == identity_of(Recipe(data=Data(text_key="", label_key="")))
    assert identity_of(Recipe()) != identity_of(Recipe(data=Data(text_key="a")))
    assert differences(Data(), Data(text_key="a")) == [("text_key", "", "a")]
    with pytest.raises(ValueError, match="leave one out"):
        Data(text_key="a", source_key="b")


@given(st.text(string.printable, max_size=60))
def test_any_text_is_a_table_or_refused(text):
    for keys in (Keys(), Keys(text="a")):
        for is_tabbed in (False, True):
            try:
                records_of(csv_table(text, "x.csv", keys, is_tabbed=is_tabbed), keys)
            except ValueError as error:
                assert "x.csv" in str(error) and "\n" not in str(error)
        try:
            records_of(json_table(text, "x.json"), keys)
        except ValueError as error:
            assert "x.json" in str(error)

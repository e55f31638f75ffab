"""Parquet and Arrow files by pyarrow, and folders as `datasets` saves them: types, names of classes, damage, bombs."""

import json
import random
import sys

import pytest

from isoform.data.config import Keys
from isoform.data.records import location
from isoform.data.sources import load_source, read_records

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["one", None, "", "four", "fünf"]


def read(path, **keys):
    return [dict(record) for record in read_records(str(path), Keys(**keys))]


def written(path, columns, *, schema=None, **options):
    table = pa.table(columns, schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "string_view"])
def test_texts_of_every_type_come_back_with_their_rows(kind, suffix, tmp_path):
    of = {"string": pa.string(), "large_string": pa.large_string(), "string_view": pa.string_view()}
    array = pa.array(TEXTS, pa.string())
    array = array.dictionary_encode() if kind == "dictionary" else array.cast(of[kind])
    path = written(tmp_path / f"x{suffix}", {"text": array, "n": list(range(5))})
    with pytest.warns(UserWarning, match=r"want of a text: .*row 2 and 1 other rows"):
        records = read_records(str(path))
    assert [r["text"] for r in records] == ["one", "four", "fünf"]
    assert [location(r, 0) for r in records] == [f"{path}, row {n}" for n in (1, 4, 5)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("columns", "keys", "records"),
    [
        ({"review": ["a", "b"], "stars": [1, 2]}, {}, [{"text": "a"}, {"text": "b"}]),
        ({"review": ["a"], "sentiment": ["pos"]}, {}, [{"text": "a", "label": "pos"}]),
        ({"text": ["a", "b"], "label": [1, None]}, {}, [{"text": "a", "label": 1}, {"text": "b"}]),
        ({"text": ["a"], "label": [0.5]}, {}, [{"text": "a", "label": 0.5}]),
        ({"text": ["a"], "spam": [True]}, {"label": "spam"}, [{"text": "a", "label": "true"}]),
        ({"tokens": [["a", "b"]], "ner_tags": [["X", "Y"]]}, {}, [{"tokens": ["a", "b"], "tags": ["X", "Y"]}]),
        ({"tokens": [["a", "b"]], "x": [[1, 2]]}, {"label": "x"}, [{"tokens": ["a", "b"], "tags": [1, 2]}]),
        ({"translation": [{"en": "a", "de": "b"}]}, {"source": "translation.en", "target": "translation.de"},
         [{"source": "a", "target": "b"}]),
        ({"messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]}, {},
         [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]),
        ({"__index_level_0__": ["x"], "body": ["a"]}, {}, [{"text": "a"}]),
    ],
)  # fmt: skip
def test_columns_become_records(columns, keys, records, suffix, tmp_path):
    assert read(written(tmp_path / f"x{suffix}", columns), **keys) == records


def test_unclear_columns_are_listed_with_examples(tmp_path):
    path = written(tmp_path / "x.parquet", {"title": ["t"], "plot": ["long text"], "vector": [[0.1]]})
    with pytest.raises(
        ValueError, match=r"among title \('t'\), plot \('long text'\), vector .*add --data.text_key plot"
    ):
        read(path)
    with pytest.raises(ValueError, match=r"has no 'k'; it has title"):
        read(path, text="k")
    path = written(tmp_path / "z.parquet", {"translation": [{"en": "a", "de": "b"}]})
    with pytest.raises(ValueError, match=r"translation.en \('a'\), translation.de \('b'\); add"):
        read(path)
    path = written(tmp_path / "y.parquet", {"vector": [[0.1]], "n": [1]})
    with pytest.raises(ValueError, match="no column of texts, but vector"):
        read(path)


def hf_schema(**features):
    kinds = {"string": pa.string(), "ClassLabel": pa.int64(), "List": pa.list_(pa.int64())}
    note = json.dumps({"info": {"features": features}})
    fields = [
        pa.field(name, kinds[f.get("dtype", f["_type"]) if f["_type"] == "Value" else f["_type"]])
        for name, f in features.items()
    ]
    return pa.schema(fields, metadata={"huggingface": note})


CLASSES = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_numbers_of_classes_are_named(suffix, tmp_path):
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    path = written(tmp_path / f"x{suffix}", columns, schema=hf_schema(**CLASSES))
    assert read(path) == [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}, {"text": "c"}]
    tags = {"_type": "List", "feature": {"names": ["O", "B"], "_type": "ClassLabel"}}
    schema = hf_schema(ner_tags=tags).insert(0, pa.field("tokens", pa.list_(pa.string())))
    path = written(tmp_path / f"y{suffix}", {"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, schema=schema)
    assert read(path) == [{"tokens": ["a", "b"], "tags": ["O", "B"]}]


def saved(folder, texts, parts=1):
    """A dataset as save_to_disk lays it out."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{parts:05}.arrow" for i in range(parts)]
    for i, name in enumerate(names):
        own = texts[i::parts]
        written(folder / name, {"text": own, "label": [0] * len(own)}, schema=hf_schema(**CLASSES))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": CLASSES}))
    return folder


def test_a_saved_dataset_is_read_with_its_splits(tmp_path):
    one = saved(tmp_path / "one", ["a", "b", "c"], parts=2)
    assert read(one) == [{"text": t, "label": "neg"} for t in "acb"]
    for name, texts in (("train", ["a", "b"]), ("validation", ["c"]), ("test", ["d"])):
        saved(tmp_path / "all" / name, texts)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    with pytest.warns(UserWarning, match="left aside are the splits test"):
        split = load_source(str(tmp_path / "all"))
    assert [r["text"] for r in split.train] == ["a", "b"] and [r["text"] for r in split.validation] == ["c"]
    assert [s.title for s in split.sources] == ["all", "validation"]
    assert [r["text"] for r in read(tmp_path / "all" / "test")] == ["d"]
    with pytest.raises(ValueError, match=r"has the splits train, validation, test; name one: .*all/train"):
        read(tmp_path / "all")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "names no files of this folder"),
        ({"_data_files": [{"filename": "../x.arrow"}]}, "names no files of this folder"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "names no files of this folder"),
        ({"_data_files": [3]}, "names no files of this folder"),
        ({"_data_files": [{"filename": "none.arrow"}]}, "none.arrow can't be read"),
        ({"_data_files": [{"filename": "a.arrow"}], "_indices_files": [{"filename": "i"}]}, "flatten_indices"),
    ],
)
def test_notes_of_a_dataset_that_lead_elsewhere_are_refused(state, message, tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_splits_that_lead_elsewhere_are_refused(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    with pytest.raises(ValueError, match=r"dataset_dict\.json is damaged"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["dictionary", "plain"])
def test_a_short_file_that_describes_a_long_text_is_refused(kind, tmp_path):
    if kind == "dictionary":
        columns = {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 10**5, pa.int32()), ["x" * 10**5])}
        path = written(tmp_path / "x.parquet", columns, compression="zstd", store_schema=False)
    else:
        columns = {"text": ["x" * 10**6 + str(i) for i in range(100)]}
        path = written(tmp_path / "x.parquet", columns, compression="zstd", use_dictionary=False)
    with pytest.raises(ValueError, match=r"x.parquet holds more than 100 times its own size"):
        read(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_damage_anywhere_is_refused_or_harmless(suffix, tmp_path):
    path = written(tmp_path / f"x{suffix}", {"text": [f"text {i}" for i in range(50)], "label": list(range(50))})
    data, draw = path.read_bytes(), random.Random(1)
    for trial in range(150):
        damaged = bytearray(data[: draw.randrange(len(data))] if trial % 3 == 0 else data)
        if trial % 3 and damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read(path)
        except (ValueError, UserWarning) as error:
            assert path.name in str(error) and "\n" not in str(error), error


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = written(tmp_path / "x.parquet", {"text": ["a"]})
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'isoform\[data\]'"):
        read(path)

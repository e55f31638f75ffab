"""Records that are given rather than read: what they may be, their split, and a fingerprint of their contents."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoform.codecs.text import ByteCodec
from isoform.data.records import location, split_of
from isoform.data.sources import load_source
from isoform.data.tokens import load_tokens

VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.builds(lambda t, n: {"text": t, "label": n}, st.text("ab", max_size=3), st.integers(-3, 3)),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(np.array),
)


def content(values):
    return split_of(values, ["v"]).fingerprint.split(",")[0]


@given(st.lists(VALUES, min_size=2, max_size=6), st.lists(VALUES, min_size=2, max_size=6))
def test_the_fingerprint_is_that_of_the_contents(first, second):
    assert content(first) == content(iter(first))
    is_equal = len(first) == len(second) and all(map(equal, first, second))
    assert (content(first) == content(second)) == is_equal


def equal(a, b):
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and np.array_equal(a, b)
    as_record = [{"text": v} if isinstance(v, str) else v for v in (a, b)]
    return as_record[0] == as_record[1]


def test_records_split_as_those_of_a_file(tmp_path):
    texts = [f"text {i}" for i in range(100)]
    (tmp_path / "x.csv").write_text("text\n" + "\n".join(texts))
    split, of_file = split_of(texts), load_source(str(tmp_path / "x.csv"))
    assert split.train == of_file.train and split.validation == of_file.validation
    assert split.describe()[0]["title"] == "records" and split.describe()[0]["num_records"] == 100
    whole = split_of(["abcdefghij"])
    assert (whole.train, whole.validation) == ([{"text": "abcdefghi"}], [{"text": "j"}])


def test_what_may_be_given():
    ids, image = torch.arange(5), torch.zeros(4, 4, requires_grad=True)
    values = [
        "a",
        {"source": "a", "target": "b"},
        ids,
        (ids, 3),
        (image, torch.tensor(1)),
        ("text", 2),
        {"own": [1, 2]},
    ]
    train = split_of(values, ["v"]).train
    assert train[0] == {"text": "a"} and train[1] == {"source": "a", "target": "b"}
    assert train[2]["ids"].tolist() == [0, 1, 2, 3, 4] and train[3]["label"] == 3
    assert isinstance(train[4]["image"], np.ndarray) and train[4]["label"] == 1
    assert train[5] == {"text": "text", "label": 2} and train[6] == {"own": [1, 2]}
    assert location(train[6], 0) == "record 6"
    rows = split_of(torch.arange(12).reshape(3, 4), torch.arange(4).reshape(1, 4))
    tokens = load_tokens(rows.train, ByteCodec())
    assert tokens.ids.tolist() == list(range(12)) and tokens.lengths.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "there are no records"),
        ("a text", "records are an iterable of records, not a str"),
        ({"text": "a"}, "not a dict"),
        (["a", 3], "record 1 is a int; give a mapping"),
        ([("a", "b")], "record 0 is a pair of texts; give a mapping"),
        ([{"text": 3}], "record 0, text: 3 is not a text"),
        ([{}], "record 0: its keys are"),
        ([np.zeros(3)], r"record 0: an array of \(3,\)"),
        (["a", {"own": object()}], "has no fingerprint"),
        ([{"text": "a"}, {"source": " ", "target": "b"}], "record 1, source is empty"),
    ],
)
def test_what_is_no_record_is_named_by_its_number(values, message):
    with pytest.raises(ValueError, match=message):
        split_of(values)


def test_ids_out_of_range_are_named():
    with pytest.raises(ValueError, match="record 0: 999 is not an id"):
        load_tokens(split_of([np.array([999])], ["a"]).train, ByteCodec())

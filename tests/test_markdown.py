"""Markdown as plain text: the marks go, the words and lines stay."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoform.config import ConfigError
from isoform.data.config import Data
from isoform.data.markdown import plain_text
from isoform.data.records import location
from isoform.preparation import load_records
from isoform.recipe import load_recipe, with_changes

CASES = {
    "# Othello": "Othello",
    "### SCENE I. Venice. ##": "SCENE I. Venice.",
    "#": "",
    "#1 of all": "#1 of all",
    "**RODERIGO**  ": "RODERIGO",
    "_Enter RODERIGO and IAGO_": "Enter RODERIGO and IAGO",
    "a *b* **c** ***d*** __e__ _f_.": "a b c d e f.",
    "snake_case, 2 * 3 * 4, a * b": "snake_case, 2 * 3 * 4, a * b",
    "*open, and _open": "*open, and _open",
    "**not closed*": "**not closed*",
    r"5 \* 3, \_x\_ and C:\dir": r"5 * 3, _x_ and C:\dir",
    "line \\": "line ",
    'see [the *docs*](http://a.b/c "title") ![picture](p.png)': "see the docs picture",
    "[1] and [x] (y)": "[1] and [x] (y)",
    "---": "",
    "* * *": "",
    "- item\n* item\n> said": "- item\n* item\n> said",
    "```\n**code**  \n```": "```\n**code**  \n```",
}


@pytest.mark.parametrize(("markdown", "plain"), CASES.items())
def test_marks_go_and_words_stay(markdown, plain):
    assert plain_text(markdown) == plain


@given(st.text(alphabet="ab *_#[]()`~\\-\n!", max_size=60))
def test_lines_and_letters_stay(text):
    plain = plain_text(text)
    assert plain.count("\n") == text.count("\n")
    if "[" not in text:  # the address of a link goes
        assert [c for c in plain if c in "ab"] == [c for c in text if c in "ab"]


@given(st.text(alphabet="abc .,;\n", max_size=60).filter(lambda text: "  \n" not in text and not text.endswith("  ")))
def test_plain_text_stays_as_it_is(text):
    assert plain_text(text) == text


@pytest.mark.parametrize(
    "unit", ["*", "*a ", "**a ", "_", "_a ", "[", "[a](", "\\", "# ", "# " + " " * 50, " ", "- ", "a  "]
)
def test_no_line_takes_quadratic_time(unit):
    started = time.process_time()
    plain_text(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 5


def test_only_markdown_files_lose_marks(tmp_path):
    for name in ("a.md", "b.txt"):
        (tmp_path / name).write_text("**NURSE**  \nAnon!\n" * 9)
    kept, plain = (load_records(Data(path=str(tmp_path), markdown=how))[1] for how in ("kept", "plain"))
    assert kept.fingerprint == plain.fingerprint
    texts = {location(record, 0)[-4:]: record["text"] for record in [*plain.train, *plain.validation]}
    assert texts["a.md"].startswith("NURSE\nAnon!\nNURSE") and texts[".txt"].startswith("**NURSE**")
    mixture = with_changes(load_recipe("shakespeare"), {"data": {"mixture": [{"path": str(tmp_path / "a.md")}]}})
    assert load_records(mixture.data)[0][0].train[0]["text"].startswith("NURSE\nAnon!\nNURSE")
    with pytest.raises(ConfigError, match="markdown"):
        with_changes(load_recipe("shakespeare"), {"data": {"markdown": "html"}})

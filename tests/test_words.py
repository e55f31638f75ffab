"""The field's words (docs/design.md, glossary): those of earlier versions don't come back, in code or prose."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EARLIER = {"src/isoform/history.py", "src/isoform/checkpoint/versions.py", "tests/test_words.py"}
"""Files that read what earlier versions wrote, and so say their names."""
FILES = [
    path
    for pattern in (
        "src/**/*.py",
        "src/**/*.toml",
        "tests/*.py",
        "benchmarks/*.py",
        "examples/**/*.py",
        "*.md",
        "docs/**/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.is_file()
    and path.suffix in (".py", ".toml", ".md")
    and str(path.relative_to(ROOT)) not in EARLIER
    and path.name != "CHANGELOG.md"
]
PROSE = {
    "token": r"\b[Pp]ieces?\b",
    "document": r"\b[Ss]egments?\b",
    "position": r"\bplaces\b",
    "validation": r"\bheld[ _-]out\b",
    "answers_source, has_source, is_encoder_decoder": r"\bis_pair\b",
    "contrastive_logits": r"\blikeness\b",
}
ALLOWED = (
    r"pieces read again a turn",  # the name of a measure in published JSON
    r"films-held-out",  # a file of a claim, whose name is part of the ids of its runs
    r", held out where crc32",  # part of the definition, and so of the hash, of a toy data set
    r'"held_out"',
    r'"is_pair"',  # a key of the config.json of earlier runs
    r"between-pieces-read-again-a-turn",
    r'call tokens "pieces"',
)
NAMES = {"told", "found", "there", "known", "kept", "said"}


@pytest.mark.parametrize("word", PROSE)
def test_earlier_words_are_not_said(word):
    hits = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for allowed in ALLOWED:
                line = re.sub(allowed, "", line)
            if re.search(PROSE[word], line):
                hits.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not hits, f"the word is {word}"


def test_participles_name_nothing():
    hits = []
    for path in FILES:
        if path.suffix == ".py" and "src" in path.parts:
            with path.open("rb") as file:
                tokens = [t for t in tokenize.tokenize(file.readline) if t.type == tokenize.NAME]
            hits += [f"{path.relative_to(ROOT)}:{t.start[0]}: {t.string}" for t in tokens if t.string in NAMES]
    assert not hits


def test_the_glossary_has_twenty_words_at_most():
    design = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = re.search(r"^## 6. Names and glossary\n(.*?)(?=^## |\Z)", design, re.M | re.S)
    assert section is not None
    rows = [line for line in io.StringIO(section[1]) if line.startswith("|")][2:]
    assert 12 <= len(rows) <= 20 and all(len(row.split("|")[2].split()) <= 25 for row in rows)

"""Four of NLTK's corpora as data files for isoform: plain texts, and sentences and reviews with a sentiment label.

    python examples/nltk_corpora.py ZIPS OUT      # movie_reviews, sentence_polarity, state_union, inaugural: .zip

Writes to OUT:

    films.jsonl                   texts without labels: nine of ten reviews, and speeches
    films-held-out.jsonl          the other reviews, those whose names begin with cv0
    reviews-{train,test}.jsonl    the same reviews, the last 100 words of each, which state the opinion, with their
                                  label, neg or pos
    sentences-{train,test}.jsonl  sentences with their label; every tenth is for testing
    …{train,test}.{text,opinion}  both as sources and targets, line by line
"""

import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

LAST_WORDS = 100


def documents(path: Path) -> list[tuple[str, str]]:
    """Name and text of each document of an archive, in the order of their names."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt") and "README" not in name)
        return [(name, _text(archive.read(name))) for name in names]


def _text(data: bytes) -> str:
    """UTF-8, except for seven speeches with dashes and quotes in Big5."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("big5", errors="replace")


def sentences(path: Path, label: str) -> list[str]:
    """The lines of one side of sentence_polarity."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(f"sentence_polarity/rt-polarity.{label}").decode().split("\n")
    return [line.strip() for line in lines if line.strip()]


def write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_records(path: Path, records: Sequence[dict[str, str]]) -> None:
    write(path, [json.dumps(record, ensure_ascii=False) for record in records])


def write_labelled(out: Path, name: str, labelled: Sequence[tuple[str, str]]) -> None:
    """Texts with their labels, as records and as sources and targets."""
    write_records(out / f"{name}.jsonl", [{"text": text, "label": label} for text, label in labelled])
    write(out / f"{name}.text", [text for text, _ in labelled])
    write(out / f"{name}.opinion", [label for _, label in labelled])


def main(zips: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    reviews = [(*name.split("/")[1:], text) for name, text in documents(zips / "movie_reviews.zip")]
    speeches = [text for corpus in ("state_union", "inaugural") for _, text in documents(zips / f"{corpus}.zip")]
    for side, is_test in (("train", False), ("test", True)):
        part = [(label, text) for label, name, text in reviews if name.startswith("cv0") == is_test]
        texts = [text for _, text in part] + ([] if is_test else speeches)
        write_records(out / ("films-held-out.jsonl" if is_test else "films.jsonl"), [{"text": text} for text in texts])
        ends = [(" ".join(text.split()[-LAST_WORDS:]), label) for label, text in part]
        write_labelled(out, f"reviews-{side}", ends)
        labelled = [
            (text, label)
            for label in ("neg", "pos")
            for number, text in enumerate(sentences(zips / "sentence_polarity.zip", label))
            if (number % 10 == 0) == is_test
        ]
        write_labelled(out, f"sentences-{side}", labelled)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

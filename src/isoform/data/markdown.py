"""Markdown as plain text: for texts whose marks are not what a model should learn to write.

Line by line, by the marks of CommonMark that prose has: headings, emphasis, hard line breaks, links, images, escapes,
rules. Code, tables, lists and quotations stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from isoform.data.records import Record, Split, location, with_values

FILE = re.compile(r"\.md(\.gz)?(,|$)", re.IGNORECASE)
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_RULE = re.compile(r"^ {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_HEADING = re.compile(r"^ {0,3}#{1,6}(?=[ \t]|$)")
_MARK = re.compile(r"[][*_\\]")
_CLOSING = re.compile(r"(^|[ \t])#+$")


def _emphasis(mark: str) -> re.Pattern[str]:
    """Text between two marks in a line; of at most 300 characters, so that no line takes quadratic time."""
    own, ends = mark[0], re.escape(mark)
    return re.compile(rf"(?<![\\\w{own}]){ends}(?=[^\s{own}])(.{{1,300}}?)(?<=[^\s\\{own}]){ends}(?![\w{own}])")


_MARKS = (
    re.compile(r"!?\[([^][]{0,1000})\]\([^()\s]{0,1000}(?:\s\"[^\"]{0,1000}\")?\)"),
    *(_emphasis(mark) for mark in ("***", "**", "*", "___", "__", "_")),
    re.compile(r"\\([!-/:-@\[-`{-~])"),
)


def plain_text(markdown: str) -> str:
    """A text without its marks, with as many lines."""
    lines, is_code = markdown.split("\n"), False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            lines[number] = "" if _RULE.match(line) else _unmarked(line)
    return "\n".join(lines)


def _unmarked(line: str) -> str:
    if heading := _HEADING.match(line):
        line = _CLOSING.sub("", line[heading.end() :].strip(" \t"))
    line = line.rstrip(" ") if line.endswith("  ") else line.removesuffix("\\")
    if _MARK.search(line):
        for pattern in _MARKS:
            line = pattern.sub(r"\1", line)
    return line


def without_marks(split: Split) -> Split:
    """A split whose records from .md files are plain texts."""
    return replace(split, train=_plain(split.train), validation=_plain(split.validation))


def _plain(records: Sequence[Record]) -> list[Record]:
    is_markdown = [FILE.search(location(record, 0)) is not None and "text" in record for record in records]
    pairs = zip(records, is_markdown, strict=True)
    return [with_values(record, text=plain_text(record["text"])) if is_md else record for record, is_md in pairs]

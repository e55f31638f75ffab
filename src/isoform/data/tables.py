"""Files of rows as tables: CSV and TSV (RFC 4180, and what else goes by these names), JSON, and JSON lines.

The delimiter of a CSV is that which gives its first rows the same number of cells; a first line with a number in it is
no header, and its columns are numbered from 1. In a TSV a quote is a quote only if it encloses a cell.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from isoform.data.columns import NUMBER, Row, Table, survey
from isoform.data.config import Keys
from isoform.reading import LINE, MAX_VALUES, split_lines

DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 50
"""Rows by which a delimiter is chosen."""
MAX_COLUMNS = 10**5
QUOTED = re.compile(r'"(?:[^"]|"")*"')
Cells = tuple[int, list[str]]
"""The number of a row's first line, and its cells."""


def csv_table(text: str, name: str, keys: Keys, *, is_tabbed: bool = False) -> Table:
    """The table of a .csv or .tsv file. Raises ValueError, naming the line, for rows of unequal length and for quotes
    that don't enclose a cell."""
    delimiter = "\t" if is_tabbed else _delimiter(text, name)
    is_quoted = not is_tabbed or not _is_plain(text)

    def cells() -> Iterator[Cells]:
        return _cells(text, name, delimiter, is_quoted)

    _, first = next(cells(), (0, []))
    given = [key for key in keys if key]
    numbered = bool(given) and all(key.isdecimal() for key in given) and not {*given} & {*first}
    has_header = not numbered and not any(NUMBER.fullmatch(cell.strip()) for cell in first)
    names = [cell.strip() for cell in first] if has_header else [str(n) for n in range(1, len(first) + 1)]
    counts = Counter(names)

    def rows(wanted: Collection[str]) -> Iterator[Row]:
        for line, values in islice(cells(), int(has_header), None):
            if len(values) != len(names):
                raise ValueError(
                    f"{name}, line {line} has {len(values)} cells, and the first line has {len(names)}; enclose cells "
                    f'with {_spelled(delimiter)}, " or line ends in quotes ("), and double the quotes inside'
                )
            yield Row(dict(zip(names, values, strict=True)), f"{name}, line {line}")

    note = "" if has_header else " (numbered: the first line is no header)"
    twice = {cell for cell, count in counts.items() if count > 1}
    return Table(name, rows, lambda: survey(rows(())), twice=twice, note=note)


def _spelled(delimiter: str) -> str:
    return {"\t": "tabs"}.get(delimiter, delimiter)


def _cells(text: str, name: str, delimiter: str, is_quoted: bool) -> Iterator[Cells]:
    """The rows of a text, without empty lines."""

    def lines() -> Iterator[str]:
        for number, line in enumerate(io.StringIO(text, newline=""), 1):
            if line.count(delimiter) > MAX_COLUMNS and not is_in_quotes(line):
                raise ValueError(f"{name}, line {number} has more than {MAX_COLUMNS:,} cells, as no table does")
            yield line

    def is_in_quotes(line: str) -> bool:
        return is_quoted and QUOTED.sub("", line).count(delimiter) <= MAX_COLUMNS

    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        before = csv.field_size_limit(LINE)  # one for all in Python, and so restored at once
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise ValueError(_damaged(f"{name}, line {line}", str(error))) from None
        finally:
            csv.field_size_limit(before)
        if values is None:
            return
        if values:
            yield line, values


def _damaged(where: str, error: str) -> str:
    if "field larger" in error:
        return f"{where} has a cell of more than {LINE:,} characters; cut it"
    if "unexpected end" in error:
        return (
            f"{where}: a quoted cell begins there that never ends; close it, or double the quote if it is a character"
        )
    return f"{where}: {error}; double the quotes inside of a quoted cell"


def _delimiter(text: str, name: str) -> str:
    """The delimiter that gives the first rows the most cells, the same number each; else the most frequent one of the
    first line; of a single column a comma."""
    best, most = "", 1
    for delimiter in DELIMITERS:
        try:
            counts = {len(values) for _, values in islice(_cells(text, name, delimiter, is_quoted=True), SAMPLE)}
        except ValueError:
            continue
        if len(counts) == 1 and (count := counts.pop()) > most:
            best, most = delimiter, count
    header = QUOTED.sub("", text[:LINE].lstrip().partition("\n")[0])
    return best or max(DELIMITERS, key=lambda delimiter: header.count(delimiter))


def _is_plain(text: str) -> bool:
    """Whether the quotes of a .tsv are characters like others: each line is a row with the same number of cells, and
    some cell begins with a quote that it doesn't end with."""
    lines = [line for line in split_lines(text) if line]
    if len({line.count("\t") for line in lines}) > 1:
        return False
    cells = (cell for line in lines if '"' in line for cell in line.split("\t"))
    return any(cell.startswith('"') and not QUOTED.fullmatch(cell) for cell in cells)


def lines_table(text: str, name: str) -> Table:
    """The table of a .jsonl file: an object in each line. Raises ValueError, naming the line, for other lines."""
    lines = split_lines(text)

    def rows(wanted: Collection[str]) -> Iterator[Row]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _row(_parsed(line, f"{name}, line {number}"), f"{name}, line {number}")

    return Table(name, rows, lambda: survey(rows(())), is_lines=True)


def json_table(text: str, name: str) -> Table:
    """The table of a .json file: a list of objects, an object that holds one, a single object, or lines of them.

    Raises ValueError, naming the record, for anything else.
    """
    begin = len(text) - len(text.lstrip())
    if text[begin : begin + 1] == "[":
        return _listed(lambda: _elements(text, begin + 1, name), name)
    first = next((line for line in split_lines(text) if line.strip()), "")
    if len(first) < len(text.strip()) and _is_object(first):
        return lines_table(text, name)
    if sum(text.count(sign) for sign in ",[{") > MAX_VALUES:
        raise ValueError(f"{name} has more than {MAX_VALUES:,} values in one object; write a line for each record")
    whole = _parsed(text, name)
    lists = [value for value in whole.values() if _is_records(value)] if isinstance(whole, dict) else []
    if len(lists) > 1:
        raise ValueError(f"{name} has {len(lists)} lists of records; write each to a file of its own")
    records = lists[0] if lists else [whole]
    return _listed(lambda: iter(records), name)


def _listed(values: Callable[[], Iterator[Any]], name: str) -> Table:
    def rows(wanted: Collection[str]) -> Iterator[Row]:
        for number, value in enumerate(values(), 1):
            yield _row(value, f"{name}, record {number}")

    return Table(name, rows, lambda: survey(rows(())), is_lines=True)


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _row(value: Any, where: str) -> Row:
    if isinstance(value, dict):
        return Row(value, where)
    raise ValueError(
        f"{where}: a {type(value).__name__}; a line is {{'text': …}}, optionally with a 'label', {{'source': …, "
        f"'target': …}}, {{'tokens': […], 'tags': […]}} or {{'messages': […]}}"
    )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); correct the line") from None


def _elements(text: str, position: int, name: str) -> Iterator[Any]:
    """The elements of a list, one after another, so that only one of them is in memory as values."""
    decoder, number, space = json.JSONDecoder(), 0, re.compile(r"[ \t\r\n]*+")

    def skipped(at: int) -> int:
        match = space.match(text, at)
        assert match is not None
        return match.end()

    position = skipped(position)
    while text[position : position + 1] != "]":
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, record {number}: not JSON ({error}); correct it") from None
        yield value
        position = skipped(position)
        if text[position : position + 1] == ",":
            position = skipped(position + 1)
        elif text[position : position + 1] != "]":
            raise ValueError(f"{name}, record {number}: no comma or ] follows; correct it, or get the file again")

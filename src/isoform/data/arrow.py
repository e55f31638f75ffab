"""Parquet and Arrow files as tables, by pyarrow, and the folders that Hugging Face's `datasets` saves.

Only the columns that are wanted are read, in batches, and counted against the size of the file before they become
values: a short file may describe a long one. Names of classes, which `datasets` notes in the schema, replace their
numbers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from isoform.data.columns import Column, Row, Table
from isoform.reading import DOCUMENT, check_ratio, read_json

ROWS = 1024
"""Rows of a batch."""
VALUE, NOTHING = 16, 256
"""Bytes that a value counts for beside its own, and a missing one, of which a file can have any number in no space."""
STATE, SPLITS = "state.json", "dataset_dict.json"
MISSING = "Parquet and Arrow files need the package pyarrow; run: pip install 'isoform[data]'"
MAGIC = b"ARROW1"
"""What an Arrow file begins with; a stream, as `datasets` writes it, has none."""


def parquet_table(data: bytes, name: str) -> Table:
    """The table of a .parquet file. Raises ValueError without pyarrow, and for a file that is damaged."""
    _require()
    import pyarrow.parquet

    limits: Any = {"thrift_string_size_limit": DOCUMENT, "thrift_container_size_limit": 10**6}

    def opened(texts: Collection[str] = ()) -> Any:
        reader = pyarrow.BufferReader(data)
        return pyarrow.parquet.ParquetFile(reader, read_dictionary=[*texts] or None, **limits)

    with _errors(name):
        file = opened()
        schema, groups = file.schema_arrow, range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
    check_ratio(size, len(data), name)

    def batches(wanted: Collection[str]) -> Iterator[Any]:
        texts = [column for column in wanted if _is_text(schema, column)]
        yield from opened(texts).iter_batches(ROWS, columns=[*wanted], use_threads=False)

    return _table(schema, batches, len(data), name)


def arrow_table(data: bytes, name: str) -> Table:
    """The table of an .arrow file or stream. Raises ValueError without pyarrow, and for a file that is damaged."""
    _require()
    import pyarrow.ipc

    is_file = data.startswith(MAGIC)

    def opened(wanted: Collection[str] | None = None) -> Any:
        indices = None if wanted is None else [i for i, field in enumerate(schema.names) if field in wanted]
        options = pyarrow.ipc.IpcReadOptions(included_fields=indices, use_threads=False)
        reader = pyarrow.BufferReader(data)
        return (
            pyarrow.ipc.open_file(reader, options=options)
            if is_file
            else pyarrow.ipc.open_stream(reader, options=options)
        )

    with _errors(name):
        schema = opened().schema

    def batches(wanted: Collection[str]) -> Iterator[Any]:
        reader = opened(wanted)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            batch.validate(full=True)
            yield from (batch.slice(start, ROWS) for start in range(0, batch.num_rows, ROWS))

    return _table(schema, batches, len(data), name)


def _table(schema: Any, batches: Any, size: int, name: str) -> Table:
    """The table of batches of columns, whose file has so many bytes."""
    names_of = _class_names(schema)

    def rows(wanted: Collection[str]) -> Iterator[Row]:
        columns = [column for column in schema.names if any(_leads(column, key) for key in wanted)]
        number, total = 0, 0
        with _errors(name):
            for batch in batches(columns):
                total += sum(_bytes_of(batch.column(column)) for column in columns)
                check_ratio(total, size, name)
                values = {
                    column: _classes(batch.column(column).to_pylist(), names_of.get(column)) for column in columns
                }
                for index in range(batch.num_rows):
                    number += 1
                    yield Row({column: values[column][index] for column in columns}, f"{name}, row {number}")

    def surveyed() -> Mapping[str, Column]:
        columns: dict[str, Column] = {}
        with _errors(name):
            for field in schema:
                _describe(field.name, field.type, columns, field.name in names_of)
            plain = [key for key, column in columns.items() if column.kinds != {"other"}]
            shown = [top for top in schema.names if any(_leads(top, key) for key in plain)]
            for batch in islice(batches(shown), 1) if shown else ():
                for top in shown:
                    _sample(columns, top, _classes(batch.column(top).slice(0, 8).to_pylist(), names_of.get(top)))
        return columns

    return Table(name, rows, surveyed)


def _leads(column: str, key: str) -> bool:
    return key == column or key.startswith(f"{column}.")


def _describe(name: str, kind: Any, columns: dict[str, Column], has_names: bool) -> None:
    """The column of a field, or those of an object's fields, by their types."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_struct(kind):
        for index in range(kind.num_fields):
            _describe(f"{name}.{kind.field(index).name}", kind.field(index).type, columns, False)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inside = kind.value_type
        fields = {inside.field(i).name for i in range(inside.num_fields)} if types.is_struct(inside) else set()
        is_words = _is_string(inside) or has_names
        columns[name] = Column({"chat" if {"role", "from"} & fields else "words" if is_words else "other"})
    elif _is_string(kind) or has_names:
        columns[name] = Column({"text"})
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        columns[name] = Column({"number"})
    elif not types.is_null(kind):
        columns[name] = Column({"other"})


def _sample(columns: dict[str, Column], name: str, values: list[Any]) -> None:
    """An example and the length of a column, or of the columns of objects."""
    for value in values:
        if isinstance(value, Mapping):
            for key, item in value.items():
                _sample(columns, f"{name}.{key}", [item])
        elif value is not None and name in columns:
            column = columns[name]
            column.example = column.example or value
            column.size += len(value) if isinstance(value, str) else 0


def _is_string(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_text(schema: Any, column: str) -> bool:
    return _is_string(schema.field(column).type)


def _bytes_of(column: Any) -> int:
    """The bytes that the values of a column have once each is its own."""
    import pyarrow
    from pyarrow import compute

    fixed = VALUE * len(column) + NOTHING * column.null_count
    if not isinstance(column, pyarrow.DictionaryArray):
        return column.nbytes + fixed
    lengths = compute.call_function("binary_length", [column.dictionary])
    return (compute.call_function("sum", [lengths.take(column.indices)]).as_py() or 0) + fixed


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The names of the classes of each column that has some, as `datasets` notes them in the schema."""
    try:
        note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = note["info"]["features"]
        names: dict[str, list[str]] = {}
        for name, feature in features.items():
            feature = feature[0] if isinstance(feature, list) else feature
            inner = feature.get("feature") if isinstance(feature.get("feature"), dict) else feature
            if inner.get("_type") == "ClassLabel" and all(isinstance(n, str) for n in inner["names"]):
                names[name] = inner["names"]
        return names
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError):
        return {}


def _classes(values: list[Any], names: list[str] | None) -> list[Any]:
    """Values with the names of classes instead of their numbers; -1, which `datasets` writes for none, is missing."""
    if names is None:
        return values

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(item) for item in value]
        if not isinstance(value, int):
            return value
        return None if value == -1 else names[value] if 0 <= value < len(names) else value

    return [name(value) for value in values]


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """What pyarrow raises as a ValueError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, KeyError, OverflowError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name} can't be read ({reason}); get the file again") from None


def _require() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ValueError(MISSING) from None


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` saved a dataset in a folder."""
    return (folder / STATE).is_file()


def splits_of(folder: Path) -> list[str]:
    """The splits that `datasets` saved in a folder, each in a folder of its own; empty if it holds none."""
    if not (folder / SPLITS).is_file():
        return []
    names = read_json(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not names or not all(_is_name(name) for name in names):
        raise ValueError(f"{folder / SPLITS} is damaged: splits={str(names)[:60]!r}; save the dataset again")
    return names


def dataset_files(folder: Path) -> list[Path]:
    """The Arrow files of a dataset in their order. Raises ValueError for damaged notes and names outside the folder."""
    state = read_json(folder / STATE)
    files = state.get("_data_files")
    names = (
        [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else []
    )
    if not names or not all(_is_name(name) for name in names):
        raise ValueError(f"{folder / STATE} is damaged: it names no files of this folder; save the dataset again")
    if state.get("_indices_files"):
        raise ValueError(f"{folder} holds a selection of rows; save it after dataset.flatten_indices()")
    return [folder / str(name) for name in names]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\\" not in name

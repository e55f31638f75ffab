"""Label names to class indices: the names of classes and tags in records, in the order of a model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isoform.data.records import Record, location, with_values


def label_names(records: Iterable[Record], key: str) -> tuple[str, ...]:
    """The sorted names under a key of the records (`label`, or `tags` for lists of names): whole numbers numerically,
    then other names alphabetically. Raises ValueError for a record without the key."""
    unique: set[str] = set()
    for number, record in enumerate(records):
        if key not in record:
            raise ValueError(
                f"{location(record, number)}: has no {key!r}, which this objective predicts; name its column with "
                f"--data.label_key"
            )
        values = record[key] if key == "tags" else [record[key]]
        unique.update(map(str, values))
    return tuple(sorted(unique, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def encode_labels(records: Sequence[Record], names: Sequence[str], key: str) -> list[Record]:
    """The records with class indices instead of the names of their labels or tags.

    Raises ValueError for a label that isn't among the names, with its location.
    """
    indices = {name: i for i, name in enumerate(names)}
    encoded: list[Record] = []
    for number, record in enumerate(records):
        value = record.get(key)
        labels = [] if value is None else value if key == "tags" else [value]
        if unknown := [str(label) for label in labels if str(label) not in indices]:
            raise ValueError(
                f"{location(record, number)}: the {key} {unknown[0]!r} is not among {', '.join(names[:20])}; correct "
                f"it, or add it to objective.labels"
            )
        classes = [indices[str(label)] for label in labels]
        value = None if value is None else classes if key == "tags" else classes[0]
        encoded.append(record if value is None else with_values(record, **{key: value}))
    return encoded

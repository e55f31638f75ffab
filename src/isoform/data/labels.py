"""Names of labels to numbers: what records call their classes and tags, in the order in which a model scores them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isoform.data.sources import Record, where, with_values


def label_names(records: Iterable[Record], key: str) -> tuple[str, ...]:
    """The names that records use under a key (`label`, or `tags` for lists of them), whole numbers by size, others by
    the alphabet. Raises ValueError where a record has none."""
    found: set[str] = set()
    for number, record in enumerate(records):
        if key not in record:
            raise ValueError(f"{where(record, number)}: has no {key!r}, which is what is to be learned")
        values = record[key] if key == "tags" else [record[key]]
        found.update(map(str, values))
    return tuple(sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def numbered(records: Sequence[Record], names: Sequence[str], key: str) -> list[Record]:
    """The records with the numbers of their labels or tags in place of the names.

    Raises ValueError for a label that isn't among the names, saying where it stands.
    """
    numbers = {name: i for i, name in enumerate(names)}
    made: list[Record] = []
    for number, record in enumerate(records):
        value = record.get(key)
        wanted = [] if value is None else value if key == "tags" else [value]
        if unknown := [str(one) for one in wanted if str(one) not in numbers]:
            raise ValueError(
                f"{where(record, number)}: the {key} {unknown[0]!r} is not among {', '.join(names[:20])}; correct it, "
                f"or name it in objective.labels"
            )
        found = [numbers[str(one)] for one in wanted]
        made.append(record if value is None else with_values(record, **{key: found if key == "tags" else found[0]}))
    return made

"""Names of before: what recipes and checkpoints that were written by earlier versions call things.

Files that say these names are read as if they said today's; the ids of runs are made of the names that they had when
the first studies were made, so that what was run before is found again.
"""

from __future__ import annotations

from collections.abc import Iterable

FIELDS: dict[str, dict[str, str]] = {
    "block_config": {"mixer": "attention"},
    "conversation": {"question_tokens": "asked", "answer_tokens": "said"},
    "lookup": {"num_token_types": "num_kinds"},
    "masked": {"mask_rate": "hidden"},
    "patches": {"class_token": "class_piece"},
    "pooled": {"dense": "hidden"},
    "stack_config": {"memory_layers": "reads"},
}
"""By kind of a table: what a field of today was called."""

KINDS: dict[str, str] = {
    "attention": "attention_config",
    "validation": "held_out",
}
"""What a kind of today was called."""


def field_today(kind: str, name: str) -> str | None:
    """The name that a field has today, where `name` is one of before."""
    return next((today for today, before in FIELDS.get(kind, {}).items() if before == name), None)


def kind_today(kind: str, kinds: Iterable[str]) -> str | None:
    """The kind among these that was called `kind` before."""
    return next((today for today in kinds if KINDS.get(today) == kind), None)


def as_before(content: object) -> object:
    """Plain data in which every table says its kind, as `config.stated` gives it, under the names of before."""
    if isinstance(content, list):
        return [as_before(item) for item in content]
    if not isinstance(content, dict):
        return content
    kind = content.get("kind", "")
    names = FIELDS.get(kind, {})
    data = {names.get(name, name): as_before(item) for name, item in content.items()}
    return {**data, "kind": KINDS.get(kind, kind)} if "kind" in content else data

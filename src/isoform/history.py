"""Earlier names: what fields and kinds were called in the recipes, codecs and checkpoints of earlier versions.

Files with these names are read as if they had today's. Ids of runs and fingerprints of codecs are made of the names of
the first studies, so that earlier runs are found again.
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
"""Earlier names of fields, by the kind of their table and today's name."""

KINDS: dict[str, str] = {
    "attention": "attention_config",
    "validation": "held_out",
}
"""Earlier names of kinds, by today's."""


def current_field(kind: str, name: str) -> str | None:
    """Today's name of a field with this earlier name; None if there is none."""
    return next((today for today, earlier in FIELDS.get(kind, {}).items() if earlier == name), None)


def current_kind(kind: str, kinds: Iterable[str]) -> str | None:
    """The one of these kinds with this earlier name; None if there is none."""
    return next((today for today in kinds if KINDS.get(today) == kind), None)


def with_earlier_names(content: object) -> object:
    """Plain data in which every table has its kind, as `config.non_defaults` returns it, under the earlier names."""
    if isinstance(content, list):
        return [with_earlier_names(item) for item in content]
    if not isinstance(content, dict):
        return content
    kind = content.get("kind", "")
    names = FIELDS.get(kind, {})
    data = {names.get(name, name): with_earlier_names(item) for name, item in content.items()}
    return {**data, "kind": KINDS.get(kind, kind)} if "kind" in content else data

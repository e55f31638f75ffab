"""Which tokenizer.json may be used: one whose patterns and replacements take bounded time and memory on any text.

`tokenizers` runs the patterns by backtracking, and gives up on a bad one by a panic, which is no Exception.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MAX_GROWTH = 64
"""How much longer all replacements of a part together may make a text."""
MAX_ID = 10**6
"""The largest id of a token; the largest vocabularies have 300,000."""
MAX_PATTERN = 10_000
"""Characters of a pattern; the longest of published tokenizers has about 1,000."""
MAX_REPEATS = 1000
"""Repetitions of a part of a pattern by numbers, nested ones multiplied."""
MAX_UNBOUNDED, MAX_VARIABLE = 3, 8
"""Quantifiers without an upper limit, and of more than one width, in one alternative of a pattern: the time to match
grows by a power of a text's length with the first, exponentially with the second."""

_CHARSMAP = re.compile(r'"precompiled_charsmap"\s*:\s*"([A-Za-z0-9+/]{8}[A-Za-z0-9+/=]*)"')
_SIGNS = re.compile(
    r"(?P<call>\\[gk]|\\[1-9])"
    r"|(?P<atom>\\[pPx]\{[^}]*\}|\\.)"
    r"|(?P<open>\((?:\?(?:<[=!]|<\w+>|[a-z-]*[:=!>])?)?)"
    r"|(?P<close>\))"
    r"|(?P<or>\|)"
    r"|(?P<class>\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\\\]])*\]+)"
    r"|(?P<quantifier>[*+?]|\{\d+,?\d*\}|\{,\d+\})[?+]?"
    r"|(?P<other>.)",
    re.DOTALL,
)


@contextmanager
def without_panics(what: str) -> Iterator[None]:
    """Turns a panic of `tokenizers` into ValueError, with `what` it was asked for; other exceptions pass."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: its tokenizer gives up ({error}); give another one") from None


@contextmanager
def unseen() -> Iterator[None]:
    """Nothing is printed on standard error, where a panic leaves a page about the library's insides. It holds for the
    whole process, so only a file that is new is tried in it."""
    shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)


def check_text(text: str) -> None:
    """Raises ValueError for a tokenizer.json whose table of normalised characters says that it is longer than it is:
    `tokenizers` would end the process for want of that memory."""
    for table in _CHARSMAP.findall(text):
        if int.from_bytes(base64.b64decode(table[:8]), "little") > len(table):
            raise ValueError("its precompiled_charsmap is damaged; copy it again")


def check_bounds(tokenizer: Tokenizer) -> None:
    """Raises ValueError for patterns that may take exponential time, for replacements that lengthen a text much, and
    for ids that are much larger than any vocabulary.
    """
    if (largest := max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)) > MAX_ID:
        raise ValueError(f"it has a token with the id {largest:,}, and the largest that is read is {MAX_ID:,}")
    for name in PARTS:
        part = getattr(tokenizer, name)
        growth = 1.0
        for form in _forms(None if part is None else json.loads(part.__getstate__())):
            pattern = form.get("pattern") or {}
            regex = pattern.get("Regex")
            if regex is not None:
                _check_pattern(regex, name)
            if form.get("type") == "Replace":
                growth *= max(1.0, len(form["content"]) / max(1, len(pattern.get("String", ""))))
            elif form.get("type") == "TemplateProcessing":
                growth *= max(1.0, sum("Sequence" in item for item in form["single"]))
        if growth > MAX_GROWTH:
            raise ValueError(
                f"its {name} may make a text {growth:,.0f} times as long; give one that makes it at most "
                f"{MAX_GROWTH} times as long"
            )


def _forms(form: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value."""
    values = [form]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            yield value
            values += value.values()
        elif isinstance(value, list):
            values += value


def _check_pattern(pattern: str, name: str) -> None:
    """Raises ValueError for a pattern that may take exponential time, or is too large."""
    problem = "is too long" if len(pattern) > MAX_PATTERN else _problem(pattern)
    if problem:
        raise ValueError(f"the pattern {pattern[:60]!r} of its {name} {problem}; give a tokenizer with another one")


@dataclass
class _Group:
    """What a group of a pattern holds: in its longest alternative and in all."""

    unbounded: int = 0
    variable: int = 0
    repeats: int = 1
    has_choice: bool = False
    """Whether it may match one text in several ways: it has alternatives, or quantifiers of more than one width."""


def _problem(pattern: str) -> str:
    """What is wrong with a pattern; empty: nothing.

    What is repeated without a number must match in one way only: else the ways to match a text multiply with its
    length.
    """
    open_groups, last = [_Group()], _Group()
    for match in _SIGNS.finditer(pattern):
        kind, group = match.lastgroup, open_groups[-1]
        if kind == "call":
            return "refers to a group"
        if kind == "open":
            open_groups.append(_Group())
        elif kind == "close" and len(open_groups) > 1:
            last = open_groups.pop()
            group = open_groups[-1]
            group.unbounded, group.variable = group.unbounded + last.unbounded, group.variable + last.variable
            group.repeats, group.has_choice = max(group.repeats, last.repeats), group.has_choice or last.has_choice
        elif kind == "or":
            group.unbounded, group.variable, group.has_choice = 0, 0, True
        elif kind == "quantifier":
            low, high = _range(match["quantifier"])
            if last.has_choice and (high is None or high > 1):
                return "repeats what may match in several ways"
            group.unbounded += high is None
            group.variable += low != high
            group.has_choice |= low != high
            group.repeats = max(group.repeats, last.repeats * max(low, high or 1))
            last = _Group()
        else:
            last = _Group()
        if group.unbounded > MAX_UNBOUNDED or group.variable > MAX_VARIABLE or group.repeats > MAX_REPEATS:
            return "repeats too many of its parts"
    return ""


def _range(quantifier: str) -> tuple[int, int | None]:
    """The least and the greatest number of repetitions."""
    if quantifier in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier]
    low, comma, high = quantifier.strip("{}").partition(",")
    return int(low or 0), int(high) if high else None if comma else int(low)

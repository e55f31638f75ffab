"""Training rows as a model reads them: every token above its target, and the attention masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from isoform.batch import Tokens
from isoform.codecs.codec import Codec, TextCodec
from isoform.mask import Mask, dense_mask
from isoform.preparation import Prepared

IGNORED, EMPTY = "·", " "
VISIBLE, MASKED = "█", "·"
Line = list[tuple[str, str]]
"""Texts with their styles."""


@dataclass(frozen=True, eq=False)
class Side:
    """The inputs of one stack in a row: its tokens as text, with their documents, prefixes and mask."""

    tokens: Sequence[str]
    documents: np.ndarray
    """(T,), -1 for padding."""
    is_prefix: np.ndarray
    """(T,), whether each token is part of a prefix."""
    mask: np.ndarray
    """(T, T), whether a token (row) may attend to another (column)."""


@dataclass(frozen=True, eq=False)
class Row:
    """One row: inputs, the target of each token (None: none), loss weights, and the source of an encoder."""

    inputs: Side
    targets: Sequence[str | None]
    weights: np.ndarray
    source: Side | None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; a mask is a string of 1 and 0 for each token."""
        sides = {"inputs": self.inputs, **({} if self.source is None else {"source": self.source})}
        columns: dict[str, Any] = {
            name: {
                "tokens": list(side.tokens),
                "documents": side.documents.tolist(),
                "given": side.is_prefix.tolist(),
                "mask": ["".join("01"[int(is_visible)] for is_visible in line) for line in side.mask],
            }
            for name, side in sides.items()
        }
        return {**columns, "targets": list(self.targets), "loss_weights": self.weights.tolist()}


def read_rows(prepared: Prepared, count: int, first: int = 0) -> Iterator[Row]:
    """Rows of the training data by their global number, under the recipe's objective."""
    codec, view = prepared.codec, prepared.view
    for number in range(first, first + count):
        batch = prepared.loader.rows(number, 1)
        weights = batch.loss_weights[0].numpy()
        answers = zip(batch.targets[0].tolist(), weights.tolist(), strict=True)
        targets = [_target(codec, target, whole=view.is_whole) if weight else None for target, weight in answers]
        source = None if batch.source is None else _side(codec, batch.source, view.source_mask)
        yield Row(_side(codec, batch.inputs, view.inputs_mask), targets, weights, source)


def _side(codec: Codec, tokens: Tokens, mask: Mask) -> Side:
    coordinates = tokens.coordinates

    def column(tensor: Tensor) -> np.ndarray:
        return tensor.expand(1, tokens.ids.shape[1])[0].numpy()

    documents = column(coordinates.document)
    is_prefix = np.zeros(len(documents), bool) if coordinates.prefix is None else column(coordinates.prefix)
    return Side(token_names(codec, tokens), documents, is_prefix, dense_mask(mask, coordinates, coordinates)[0].numpy())


def token_names(codec: Codec, tokens: Tokens) -> list[str]:
    """The tokens of a row as short texts; padding is empty."""
    documents = tokens.coordinates.document.expand(1, tokens.ids.shape[1])[0].tolist()
    return [EMPTY if d < 0 else token_name(codec, i) for i, d in zip(tokens.ids[0].tolist(), documents, strict=True)]


def token_name(codec: Codec, token: int) -> str:
    """A token as short text; one with features instead of an id is a box."""
    if isinstance(codec, TextCodec):
        return codec.token_text(token).replace(" ", "␣")
    return "▪" if token < 0 else str(token)


def _target(codec: Codec, target: int, *, whole: bool) -> str:
    return str(target) if whole else token_name(codec, target)


def to_lines(row: Row, *, width: int = 100, columns: int = 32) -> Iterator[Line]:
    """A row as printable lines: tokens with their targets below, then the masks of its first `columns` tokens.

    A line is a list of texts with their styles: `input`, `given`, `target`, `ignored`, or "".
    """
    counted = sum(target is not None for target in row.targets)
    empty = int((row.inputs.documents < 0).sum())
    documents = int(row.inputs.documents.max()) + 1
    what = f"{len(row.targets)} tokens, {documents} document{'' if documents == 1 else 's'}, {counted} targets"
    yield [(f"{what}, {empty} padding" if empty else what, "")]
    if row.source is not None:
        yield from _written("source", row.source, None, width)
    yield from _written("inputs", row.inputs, row.targets, width)
    if columns:
        for name, side in (("source", row.source), ("inputs", row.inputs)):
            if side is not None:
                yield [(f"attention mask of the {name} (a line per query, a column per key)", "")]
                yield from _drawn(side, columns)


def _written(name: str, side: Side, targets: Sequence[str | None] | None, width: int) -> Iterator[Line]:
    """Tokens, each above its target, in lines of at most `width` characters."""
    from rich.cells import cell_len

    end = int((side.documents >= 0).sum())
    below = [""] * end if targets is None else [IGNORED if t is None else t for t in targets[:end]]
    upper, lower, used, document = list[Line](), list[Line](), 0, 0
    for i in range(end):
        wide = max(cell_len(side.tokens[i]), cell_len(below[i]))
        mark = "│" if side.documents[i] != document else " "
        document = side.documents[i]
        if used and used + wide + 1 > width - 9:
            yield from _pair(name, upper, lower, targets is not None)
            upper, lower, used, name = [], [], 0, ""
        used += wide + 1
        style = "given" if side.is_prefix[i] else "input"
        upper.append([(mark, ""), (side.tokens[i], style), (" " * (wide - cell_len(side.tokens[i])), "")])
        style = "ignored" if targets is None or targets[i] is None else "target"
        lower.append([(mark, ""), (below[i], style), (" " * (wide - cell_len(below[i])), "")])
    yield from _pair(name, upper, lower, targets is not None)


def _pair(name: str, upper: Sequence[Line], lower: Sequence[Line], has_targets: bool) -> Iterator[Line]:
    yield [(f"{name:<8}", ""), *(span for spans in upper for span in spans)][:-1]  # without the last space
    if has_targets:
        yield [(f"{'targets' if name else '':<8}", ""), *(span for spans in lower for span in spans)][:-1]


def _drawn(side: Side, columns: int) -> Iterator[Line]:
    shown = min(columns, len(side.tokens))
    for i in range(shown):
        line = "".join(VISIBLE if is_visible else MASKED for is_visible in side.mask[i, :shown])
        more = " …" if shown < len(side.tokens) else ""
        yield [(" " * 8, ""), (line, "input"), (f"{more}  {side.tokens[i]}", "")]

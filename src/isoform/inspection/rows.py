"""Training rows as a model sees them: every piece above what it should say, and who may attend to whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from isoform.batch import Pieces
from isoform.codecs.codec import Codec, TextCodec
from isoform.mask import Mask, attended
from isoform.preparation import Prepared

IGNORED, EMPTY = "·", " "
SEEN, UNSEEN = "█", "·"


@dataclass(frozen=True, eq=False)
class Side:
    """What one stack reads in a row: its pieces, written out; which of them belong together; which are given."""

    pieces: Sequence[str]
    segments: np.ndarray
    """(T,), -1 where the row is empty."""
    given: np.ndarray
    """(T,), whether each piece is part of a prefix."""
    mask: np.ndarray
    """(T, T), whether a piece (line) may attend to another (column)."""


@dataclass(frozen=True, eq=False)
class Row:
    """One row: what is read, what is to be said at each piece (None: nothing), and what an encoder reads beside it."""

    inputs: Side
    targets: Sequence[str | None]
    weights: np.ndarray
    source: Side | None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; a mask is a line of 1 and 0 for each piece."""
        sides = {"inputs": self.inputs, **({} if self.source is None else {"source": self.source})}
        told: dict[str, Any] = {
            name: {
                "pieces": list(side.pieces),
                "segments": side.segments.tolist(),
                "given": side.given.tolist(),
                "mask": ["".join("01"[int(seen)] for seen in line) for line in side.mask],
            }
            for name, side in sides.items()
        }
        return {**told, "targets": list(self.targets), "loss_weights": self.weights.tolist()}


def read_rows(prepared: Prepared, count: int, first: int = 0) -> Iterator[Row]:
    """Rows of the training data by their global number, as the recipe's objective shows them."""
    codec, view = prepared.codec, prepared.view
    for number in range(first, first + count):
        batch = prepared.loader.rows(number, 1)
        weights = batch.loss_weights[0].numpy()
        answers = zip(batch.targets[0].tolist(), weights.tolist(), strict=True)
        targets = [_target(codec, target, whole=view.is_whole) if weight else None for target, weight in answers]
        source = None if batch.source is None else _side(codec, batch.source, view.source_mask)
        yield Row(_side(codec, batch.inputs, view.inputs_mask), targets, weights, source)


def _side(codec: Codec, pieces: Pieces, mask: Mask) -> Side:
    at = pieces.coordinates

    def column(tensor: Tensor) -> np.ndarray:
        return tensor.expand(1, pieces.ids.shape[1])[0].numpy()

    segments = column(at.segment)
    given = np.zeros(len(segments), bool) if at.prefix is None else column(at.prefix)
    names = [EMPTY if s < 0 else _piece(codec, i) for i, s in zip(pieces.ids[0].tolist(), segments, strict=True)]
    return Side(names, segments, given, attended(mask, at, at)[0].numpy())


def _piece(codec: Codec, piece: int) -> str:
    """A piece in few signs; one that is made of numbers is a box."""
    if isinstance(codec, TextCodec):
        return codec.piece_text(piece).replace(" ", "␣")
    return "▪" if piece < 0 else str(piece)


def _target(codec: Codec, target: int, *, whole: bool) -> str:
    return str(target) if whole else _piece(codec, target)


def to_lines(row: Row, paint: Callable[[str, str], str], *, width: int = 100, columns: int = 32) -> Iterator[str]:
    """A row for a person: pieces with their targets below, then the masks of its first `columns` pieces.

    paint(text, style) colours: `input`, `given`, `target`, `ignored`.
    """
    counted = sum(target is not None for target in row.targets)
    empty = int((row.inputs.segments < 0).sum())
    segments = int(row.inputs.segments.max()) + 1
    yield (
        f"{len(row.targets)} pieces, {segments} segment{'' if segments == 1 else 's'}, {counted} to be said"
        f"{f', {empty} empty' if empty else ''}"
    )
    if row.source is not None:
        yield from _written("source", row.source, None, paint, width)
    yield from _written("inputs", row.inputs, row.targets, paint, width)
    if columns:
        for name, side in (("source", row.source), ("inputs", row.inputs)):
            if side is not None:
                yield f"who sees whom in the {name} (a line for each piece, a column for each that it may attend to)"
                yield from _drawn(side, paint, columns)


def _written(
    name: str, side: Side, targets: Sequence[str | None] | None, paint: Callable[[str, str], str], width: int
) -> Iterator[str]:
    """Pieces, and below each what it should say, in lines of at most `width` signs."""
    from rich.cells import cell_len

    end = int((side.segments >= 0).sum())
    below = [""] * end if targets is None else [IGNORED if t is None else t for t in targets[:end]]
    upper, lower, used, before = [], [], 0, 0
    for i in range(end):
        wide = max(cell_len(side.pieces[i]), cell_len(below[i]))
        mark = "│" if side.segments[i] != before else " "
        before = side.segments[i]
        if used and used + wide + 1 > width - 9:
            yield from _pair(name, upper, lower, targets is not None)
            upper, lower, used, name = [], [], 0, ""
        used += wide + 1
        style = "given" if side.given[i] else "input"
        upper.append(mark + paint(side.pieces[i], style) + " " * (wide - cell_len(side.pieces[i])))
        style = "ignored" if targets is None or targets[i] is None else "target"
        lower.append(mark + paint(below[i], style) + " " * (wide - cell_len(below[i])))
    yield from _pair(name, upper, lower, targets is not None)


def _pair(name: str, upper: Sequence[str], lower: Sequence[str], has_targets: bool) -> Iterator[str]:
    yield f"{name:<8}" + "".join(upper).rstrip()
    if has_targets:
        yield f"{'targets' if name else '':<8}" + "".join(lower).rstrip()


def _drawn(side: Side, paint: Callable[[str, str], str], columns: int) -> Iterator[str]:
    shown = min(columns, len(side.pieces))
    for i in range(shown):
        line = "".join(SEEN if seen else UNSEEN for seen in side.mask[i, :shown])
        more = " …" if shown < len(side.pieces) else ""
        yield f"{'':<8}{paint(line, 'input')}{more}  {side.pieces[i]}"

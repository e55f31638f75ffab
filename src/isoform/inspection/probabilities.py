"""The probability of each token of a text: the text in colours, and a line for each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from isoform.codecs.codec import TextCodec
from isoform.generation.scoring import TokenScore
from isoform.inspection.rows import Line, token_name

LEVELS = ((0.5, "likely"), (0.1, "possible"), (0.01, "unlikely"), (0.0, "surprising"))
"""The least probability of each style."""
TOKEN = 12
"""Characters of the column of tokens."""


def style_of(probability: float | None) -> str:
    """The style of a token by its probability; none for the first, which nothing precedes."""
    if probability is None:
        return ""
    return next(style for least, style in LEVELS if probability >= least)


def to_lines(scores: Sequence[TokenScore], codec: TextCodec, width: int) -> Iterator[Line]:
    """The text with each token in the colour of its probability, what the colours mean, and a table with as many
    alternatives as fit; no line is longer than `width`."""
    yield from _text(scores, codec, width)
    yield []
    yield [("at least ", ""), ("50 %", "likely"), (", ", ""), ("10 %", "possible"), (", ", ""), ("1 %", "unlikely"),
           (", ", ""), ("less", "surprising")]  # fmt: skip
    yield []
    head = f"{'token':<{TOKEN}}{'probability':>12}{'rank':>7}{'entropy':>9}  alternatives"
    yield [(head[:width], "")]
    for score in scores:
        yield _row(score, codec, width)


def _text(scores: Sequence[TokenScore], codec: TextCodec, width: int) -> Iterator[Line]:
    """The tokens one after the other, in lines; a token that has a line feed ends one."""
    line, used = Line(), 0
    for score in scores:
        name = token_name(codec, score.token)
        style, size = style_of(score.probability), _cells(name)
        if used and used + size > width:
            yield line
            line, used = [], 0
        for start in range(0, len(name), max(1, width)):
            line.append((name[start : start + width], style))
        used += size
        if name.endswith("\\n"):
            yield line
            line, used = [], 0
    if line:
        yield line


def _row(score: TokenScore, codec: TextCodec, width: int) -> Line:
    style = style_of(score.probability)
    name = _padded(token_name(codec, score.token), TOKEN)
    if score.probability is None:
        return [(name, style), (f"{'–':>12}", "")]
    line: Line = [(name, style), (f"{score.probability:>12.2%}{score.rank:>7}{score.entropy:>9.2f}", "")]
    used = TOKEN + 28
    for token, probability in score.alternatives:
        text = f"  {token_name(codec, token)} {probability:.1%}"
        if (used := used + _cells(text)) > width:
            break
        line.append((text, style_of(probability)))
    return line


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    """A text in `width` columns of a terminal: cut, or filled up."""
    if _cells(text) >= width:
        while _cells(text) > width - 2:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _cells(text))

"""Parts of a self-contained HTML page, light or dark as its reader has it. What these functions are given as texts is
escaped; a section's body and a page's parts are HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isoform.figures import COLORS
from isoform.terminal import visible

ON_DARK = ("#4ea6e0", "#f0834a", "#2fc59a", "#d98fc9", "#e8b040", "#9ad4f5", "#a3adb9")
"""The colours of series on a dark page."""


def _variables(colors: Sequence[str]) -> str:
    return " ".join(f"--series-{i}: {color};" for i, color in enumerate(colors))


STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1d2430; --paper: #ffffff; --faint: #5b6675; --line: #d9dee5; --box: #f5f7f9;
  {_variables(COLORS)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e8ee; --paper: #14181e; --faint: #9aa5b4; --line: #323a45; --box: #1c222a;
    {_variables(ON_DARK)} }}
}}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 54rem; margin: 2.5rem auto; padding: 0 1.2rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.7rem; margin: 0; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
p.lead {{ color: var(--faint); margin-top: .3rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
td, th {{ text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }}
th {{ font-weight: 500; color: var(--faint); }} table.facts th {{ width: 34%; }}
td small {{ color: var(--faint); }}
pre {{ background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1rem;
      overflow-x: auto; white-space: pre-wrap; font: 13.5px/1.5 ui-monospace, monospace; }}
figure {{ margin: .6rem 0; overflow-x: auto; }}
figure > svg {{ width: 100%; min-width: 34rem; height: auto; display: block; }}
figcaption, .wide + p small {{ color: var(--faint); font-size: .9rem; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .4rem 1rem; }}
.panels figure > svg {{ min-width: 0; max-width: 24rem; }}
.wide {{ overflow-x: auto; }}
.name {{ border-bottom: .2rem solid; padding-bottom: .05rem; }}
summary {{ cursor: pointer; color: var(--faint); }}
"""


@dataclass(frozen=True)
class Section:
    """A part of a page: its title, and its body as HTML."""

    title: str
    body: str


def escaped(text: str) -> str:
    """A text as HTML, its control characters shown."""
    return html.escape(visible(text))


def to_page(title: str, lead: str, sections: Iterable[Section | None]) -> str:
    """A page of the sections that there are."""
    parts = [f"<h2>{escaped(section.title)}</h2>\n{section.body}" for section in sections if section is not None]
    return wrapped(title, [f"<h1>{escaped(title)}</h1>", f'<p class="lead">{escaped(lead)}</p>', *parts])


def wrapped(title: str, parts: Iterable[str]) -> str:
    """A page of parts in HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width">\n<title>{escaped(title)} · isoform</title>'
        f"<style>{STYLE}</style></head><body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def figure(svg: str, caption: str = "") -> str:
    """A figure, with a caption if there is one."""
    return f"<figure>{svg}{f'<figcaption>{escaped(caption)}</figcaption>' if caption else ''}</figure>"


def facts(rows: Iterable[tuple[str, str, str]]) -> str:
    """A table of names, values and notes."""
    cells = "".join(
        f"<tr><th>{escaped(what)}</th><td>{escaped(value)} <small>{escaped(note)}</small></td></tr>"
        for what, value, note in rows
    )
    return f'<table class="facts">{cells}</table>'


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with a line of headings, which scrolls where it is too wide."""
    names = "".join(f"<th>{escaped(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{names}</tr>{body}</table></div>'


def folded(summary: str, body: str) -> str:
    """A body in HTML that opens on a click."""
    return f"<details><summary>{escaped(summary)}</summary>{body}</details>"


def verbatim(text: str) -> str:
    """A text as it is, in a box."""
    return f"<pre>{escaped(text)}</pre>"

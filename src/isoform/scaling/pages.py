"""A study as it is published: a page of findings, costs and every run, and the same as JSON.

Pages are HTML that needs nothing else, or Markdown beside its pictures.
"""

from __future__ import annotations

import base64
import html
import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoform.files import write_bytes, write_text
from isoform.machine import Machine, describe
from isoform.report import STYLE
from isoform.scaling.curves import costs, excluded_rows, mismatches
from isoform.scaling.findings import Findings, Table
from isoform.scaling.study import Row, rows_to_json
from isoform.terminal import count, duration


@dataclass
class Page:
    """What is told, in order."""

    title: str
    lead: list[str]
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: list[str] = field(default_factory=list)
    """Command, machine, versions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyReport:
    """A study that has ended."""

    title: str
    lead: Sequence[str]
    findings: Findings
    rows: Sequence[Row]
    """The runs that the findings are made of."""
    other_rows: Sequence[Row] = ()
    """Runs that led to those, as a sweep's."""
    origin: Mapping[str, Any]
    """What `provenance` gives."""
    numbers: Sequence[Table] = ()
    """What stands between costs and runs."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the JSON begins with."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What it says before the numbers."""


def publish(report: StudyReport, page: Path, json_path: Path, *, prefix: str = "") -> dict[str, Any]:
    """Write a page (.md or .html), its pictures beside it (PREFIX…png), and the JSON; gives what the JSON holds."""
    all_rows = [*report.other_rows, *report.rows]
    tables, warnings = cost_tables(report.rows)
    findings = report.findings
    values = {
        **report.about,
        **report.origin,
        **report.verdict,
        "values": {key: [_finite(v) for v in (e.value, e.low, e.high)] for key, e in findings.values.items()},
        "warnings": warnings,
        "rows": rows_to_json(all_rows),
    }
    content = Page(
        report.title,
        [*report.lead],
        tables=[*findings.tables, *tables, *report.numbers, *run_tables(all_rows)],
        pictures=findings.pictures,
        notes=[*(f"{warning[0].upper()}{warning[1:]}." for warning in warnings), *findings.notes],
        origin=[_provenance_line(report.origin, with_runs=bool(all_rows))],
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = {name: f"{prefix}{name.replace(' ', '-')}.png" for name in content.pictures}
    for name, png in content.pictures.items():
        write_bytes(page.parent / pictures[name], png)
    write_text(page, to_html(content) if page.suffix == ".html" else to_markdown(content, pictures))
    write_text(json_path, json.dumps(values, indent=1) + "\n")
    return values


def provenance(command: str, rows: Sequence[Row], machine: Machine, workers: int) -> dict[str, Any]:
    """Where, with what and how often the numbers were measured: on the machine of the first row, or on this one."""
    packages = ("isoform", "torch", "numpy", "scipy")
    return {
        "command": command,
        "machine": {**(rows[0].machine if rows else describe(machine)), "workers": workers},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seeds": sorted({row.seed for row in rows}),
        "repeats": _repeats(rows),
    }


def _repeats(rows: Sequence[Row]) -> dict[str, int]:
    """Runs per size: fewest and most."""
    counts = Counter((row.arm, row.group, row.width) for row in rows).values()
    return {"least": min(counts, default=0), "most": max(counts, default=0)}


def _provenance_line(origin: Mapping[str, Any], *, with_runs: bool) -> str:
    machine = origin["machine"]
    about = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    runs = (
        f", {machine['threads']} thread(s) a run, {machine['workers']} runs side by side, {machine['dtype']} products"
    )
    return f"`{origin['command']}` · {machine['device']}{runs if with_runs else ''} · {about}"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def cost_tables(rows: Sequence[Row]) -> tuple[list[Table], list[str]]:
    """What each arm costs at its largest compute, side by side, and what is not equal; nothing for no runs."""
    found = costs(rows)
    lines = tuple(
        (
            one.arm,
            f"{one.num_parameters:,.0f}",
            f"{one.num_active_parameters:,.0f}",
            f"{one.compute:.3g}",
            f"{count(one.tokens_per_second)}",
            duration(one.train_seconds),
            f"{count(one.peak_memory_bytes)}B",
            "–" if one.energy_joules is None else f"{count(one.energy_joules)}J",
            f"{one.loss:.4f}",
        )
        for one in found
    )
    head = ("arm", "parameters", "active", "FLOPs", "tokens/s", "training", "peak memory", "energy", "loss")
    if not lines:
        return [], []
    return [Table("Cost of the largest runs, counted and measured", head, lines)], mismatches(found)


def run_tables(rows: Sequence[Row]) -> list[Table]:
    """Every run, and those that no fit uses."""
    lines = tuple(
        (
            row.id[:8],
            row.arm + ("" if row.purpose == "ladder" else f" ({row.purpose})"),
            f"{row.width} × {row.num_layers}",
            f"{row.seed}",
            f"{row.num_parameters:,}",
            f"{row.tokens:,}",
            f"{row.compute:.3g}",
            f"{row.learning_rate:.3g}",
            f"{row.train_seconds:.1f}",
            f"{count(row.tokens_per_second)}",
            "–" if row.loss is None else f"{row.loss:.4f}",
        )
        for row in sorted(rows, key=lambda row: (row.purpose != "ladder", row.arm, row.compute, row.seed))
    )
    head = (
        "run",
        "arm",
        "width × layers",
        "seed",
        "parameters",
        "tokens",
        "FLOPs",
        "rate",
        "seconds",
        "tokens/s",
        "loss",
    )
    tables = [Table("Runs", head, lines)] if lines else []
    if out := excluded_rows(rows):
        tables.append(Table("Left out", ("run", "why"), tuple((row.id[:8], why) for row, why in out)))
    return tables


def to_html(page: Page) -> str:
    """One file that needs nothing else."""
    parts = [f"<h1>{html.escape(page.title)}</h1>"]
    parts += [f'<p class="lead">{html.escape(line)}</p>' for line in page.lead]
    for name, png in page.pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<h2>{html.escape(name.capitalize())}</h2><figure><img alt="{html.escape(name)}" '
            f'style="max-width:100%" src="data:image/png;base64,{data}"></figure>'
        )
    for note in page.notes:
        parts.append(f"<p>{html.escape(note)}</p>")
    for table in page.tables:
        head = "".join(f'<th style="width:auto">{html.escape(cell)}</th>' for cell in table.head)
        lines = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in line)}</tr>" for line in table.lines)
        parts.append(
            f"<h2>{html.escape(table.title)}</h2>"
            f"<div style='overflow-x:auto'><table><tr>{head}</tr>{lines}</table></div>"
        )
    parts += [f"<p><small>{html.escape(line)}</small></p>" for line in page.origin]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width">\n<title>{html.escape(page.title)} · isoform</title>'
        f"<style>{STYLE}</style></head><body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def to_markdown(page: Page, files: Mapping[str, str]) -> str:
    """Markdown beside its pictures, whose file names are given by what they show."""
    parts = [f"# {page.title}", *page.lead]
    parts += [f"![{name}]({files[name]})" for name in page.pictures]
    parts += page.notes
    for table in page.tables:
        lines = [table.head, tuple("---" for _ in table.head), *table.lines]
        body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        parts.append(f"## {table.title}\n\n{body}")
    parts += page.origin
    return "\n\n".join(parts) + "\n"

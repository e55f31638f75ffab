"""Publication of a study: a page of findings, costs and all runs, and a JSON file of the same.

Pages are self-contained HTML, or Markdown with image files beside it.
"""

from __future__ import annotations

import math
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.figures import to_png, to_svg
from isoform.files import DamagedFile, make_folder, read_sealed, write_bytes, write_sealed, write_text
from isoform.machine import Machine, commit, describe
from isoform.markup import escaped, figure, table, wrapped
from isoform.scaling.curves import costs, excluded_rows, mismatches
from isoform.scaling.findings import Findings, Table
from isoform.scaling.study import Row, rows_to_json
from isoform.terminal import Terminal, count, duration, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Page:
    """The parts of a page, in order."""

    title: str
    lead: list[str]
    pictures: dict[str, Figure] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    """Paragraphs by their headings."""
    notes: list[str] = field(default_factory=list)
    provenance: list[str] = field(default_factory=list)
    """Command, machine, versions."""
    appendix: list[Table] = field(default_factory=list)
    further_pictures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyReport:
    """A finished study."""

    title: str
    lead: Sequence[str]
    findings: Findings
    rows: Sequence[Row]
    """The runs that the findings are computed from."""
    other_rows: Sequence[Row] = ()
    """Auxiliary runs, such as those of a sweep."""
    provenance: Mapping[str, Any]
    """The result of `provenance`."""
    deciding: Table | None = None
    """The one table of a claim's head; the others then follow the runs, with all pictures but one."""
    subject: str = ""
    """The number that the claim's picture shows, if there is one of its measure."""
    level: float = 0.9
    """Confidence of the intervals."""
    facts: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """The first keys of the JSON."""


def publish(report: StudyReport, page: Path, json_path: Path, *, prefix: str = "") -> dict[str, Any]:
    """Write a page (.md or .html), its figures beside it (PREFIX…png), and the JSON; returns the JSON's values."""
    all_rows = [*report.other_rows, *report.rows]
    tables, warnings = cost_tables(report.rows)
    findings = report.findings
    values = {
        **report.about,
        **report.provenance,
        "values": {key: [_finite(v) for v in (e.value, e.low, e.high)] for key, e in findings.values.items()},
        "notes": {**findings.number_notes, **({"all": findings.notes} if findings.notes else {})},
        "warnings": warnings,
        "rows": rows_to_json(all_rows),
    }
    drawn = {name: draw() for name, draw in findings.pictures.items()}
    content = Page(
        report.title,
        [*report.lead],
        drawn,
        [*findings.tables, *tables],
        facts={**report.facts},
        notes=[*(f"{warning[0].upper()}{warning[1:]}." for warning in warnings), *findings.notes],
        provenance=[_provenance_line(report.provenance, with_runs=bool(all_rows))],
        appendix=run_tables(all_rows),
    )
    if report.deciding is not None:
        first = next((name for name in drawn if report.subject.endswith((f".{name}", f".{name}.change"))), None)
        first = first or next(iter(drawn), "")
        content.pictures = {name: each for name, each in drawn.items() if name == first}
        content.further_pictures = {name: each for name, each in drawn.items() if name != first}
        content.tables = [report.deciding]
        content.appendix += [*findings.tables, *tables, *_further_numbers(report)]
    make_folder(page.parent)
    pictures = {name: f"{prefix}{name.replace(' ', '-')}.png" for name in drawn}
    for name, each in drawn.items():
        write_bytes(page.parent / pictures[name], to_png(each))
    write_text(page, to_html(content) if page.suffix == ".html" else to_markdown(content, pictures))
    write_sealed(json_path, values)
    return values


def _further_numbers(report: StudyReport) -> list[Table]:
    """The numbers that don't decide."""
    assert report.deciding is not None
    deciding, notes = {line[0] for line in report.deciding.lines}, report.findings.number_notes
    lines = tuple(
        (name, str(estimate), notes.get(name, ""))
        for name, estimate in report.findings.values.items()
        if name not in deciding
    )
    percent = f"{100 * report.level:.0f} %"
    title = f"Exploratory numbers: they decide nothing, and {percent} intervals are not corrected for their number"
    return [Table(title, ("number", "value", "note"), lines)] if lines else []


def read_published(path: Path, terminal: Terminal) -> dict[str, Any]:
    """The values of a JSON file that `publish` wrote; of an earlier version's, which has no hash, with a warning.

    Raises DamagedFile if it isn't as it was written, ValueError if it can't be read.
    """
    try:
        return read_sealed(path, unsealed=terminal.warn)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; restore it from a copy, or make it again without --extend") from None


def provenance(command: str, rows: Sequence[Row], machine: Machine, workers: int) -> dict[str, Any]:
    """Command, commit, machine (the first row's, or this one), versions, seeds and repetitions of the numbers."""
    packages = ("isoform", "torch", "numpy", "scipy")
    return {
        "command": command,
        "commit": commit(),
        "machine": {**(rows[0].machine if rows else describe(machine)), "workers": workers},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seeds": sorted({row.seed for row in rows}),
        "repeats": _repeats(rows),
    }


def _repeats(rows: Sequence[Row]) -> dict[str, int]:
    """Fewest and most runs per size."""
    counts = Counter((row.arm, row.group, row.width) for row in rows).values()
    return {"least": min(counts, default=0), "most": max(counts, default=0)}


def _provenance_line(source: Mapping[str, Any], *, with_runs: bool) -> str:
    machine = source["machine"]
    about = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    runs = f", {machine['threads']} thread(s) per run, {machine['workers']} runs at once, {machine['dtype']} products"
    decided = f" · computed at commit {source['commit']}" if source["commit"] else ""
    return f"`{source['command']}`{decided} · {machine['device']}{runs if with_runs else ''} · {about}"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def cost_tables(rows: Sequence[Row]) -> tuple[list[Table], list[str]]:
    """A table of each arm's costs at its largest compute, and warnings of unequal costs; both empty without runs."""
    arm_costs = costs(rows)
    lines = tuple(
        (
            cost.arm,
            f"{cost.num_parameters:,.0f}",
            f"{cost.num_active_parameters:,.0f}",
            f"{count(cost.compute)}FLOP",
            f"{count(cost.tokens_per_second)}",
            duration(cost.train_seconds),
            f"{count(cost.peak_memory_bytes)}B",
            "–" if cost.energy_joules is None else f"{count(cost.energy_joules)}J",
            f"{cost.loss:.4f}",
        )
        for cost in arm_costs
    )
    head = ("arm", "parameters", "active", "compute", "tokens/s", "training", "peak memory", "energy", "loss")
    if not lines:
        return [], []
    return [Table("Cost of the largest runs, counted and measured", head, lines)], mismatches(arm_costs)


def run_tables(rows: Sequence[Row]) -> list[Table]:
    """Tables of all runs, and of those excluded from fits."""
    lines = tuple(
        (
            row.id[:8],
            row.arm + ("" if row.purpose == "ladder" else f" ({row.purpose})"),
            f"{row.width} × {row.num_layers}",
            f"{row.seed}",
            f"{row.num_parameters:,}",
            f"{row.tokens:,}",
            f"{count(row.compute)}FLOP",
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
        "compute",
        "rate",
        "seconds",
        "tokens/s",
        "loss",
    )
    tables = [Table("Runs", head, lines)] if lines else []
    if excluded := excluded_rows(rows):
        tables.append(Table("Excluded", ("run", "reason"), tuple((row.id[:8], reason) for row, reason in excluded)))
    return tables


def to_html(page: Page) -> str:
    """A self-contained HTML page."""
    parts = [f"<h1>{escaped(page.title)}</h1>"]
    parts += [f'<p class="lead">{escaped(line)}</p>' for line in page.lead]
    parts += map(_html_picture, page.pictures.items())
    parts += [f"<p><b>{escaped(name)}.</b> {escaped(text)}</p>" for name, text in page.facts.items()]
    parts += [f"<p>{escaped(note)}</p>" for note in page.notes]
    parts += map(_html_table, page.tables)
    parts += [f"<p><small>{escaped(line)}</small></p>" for line in page.provenance]
    parts += map(_html_table, page.appendix)
    parts += map(_html_picture, page.further_pictures.items())
    return wrapped(page.title, parts)


def _html_picture(picture: tuple[str, Figure]) -> str:
    name, drawn = picture
    return f"<h2>{escaped(name.capitalize())}</h2>{figure(to_svg(drawn, name))}"


def _html_table(each: Table) -> str:
    return f"<h2>{escaped(each.title)}</h2>{table(each.head, each.lines)}"


def to_markdown(page: Page, files: Mapping[str, str]) -> str:
    """A Markdown page; files: the file name of each figure by its title."""
    parts = [f"# {_plain(page.title)}", *map(_plain, page.lead)]
    parts += [f"![{_plain(name)}]({files[name]})" for name in page.pictures]
    parts += map(_markdown_table, page.tables)
    parts += [f"**{_plain(name)}.** {_plain(text)}" for name, text in page.facts.items()]
    parts += map(_plain, page.notes)
    parts += page.provenance
    parts += map(_markdown_table, page.appendix)
    parts += [f"![{_plain(name)}]({files[name]})" for name in page.further_pictures]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.head, tuple("---" for _ in table.head), *table.lines]
    cells = ([_plain(cell).replace("|", "\\|") for cell in line] for line in lines)
    body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"## {_plain(table.title)}\n\n{body}"


def _plain(text: str) -> str:
    """A text on one line of Markdown, without tags, links and images: those of a claim may be anyone's."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(visible(text).split("\n"))).replace("[", "\\[")

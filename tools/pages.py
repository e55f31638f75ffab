"""The commands of the documentation's pages: found, run, and compared with the outputs beside them.

    python tools/pages.py docs/tutorial.md      # run a page's commands in full, and bring its outputs up to date

Of a page every fence of these languages is used, in their order, in one folder:

    sh       commands, run by bash
    output   what the fence before it prints: … stands for anything, alone on a line for any lines; numbers may differ
    python   a program, run as a file
    others   are only shown, or are files to be written first

Comments right before a fence say more:

    <!-- file: NAME -->       the fence is a file of this name
    <!-- shorter: FLAGS -->   a test adds these flags to each `isoform train` of the fence
    <!-- slow -->             a test runs it with ISOFORM_ALL only
    <!-- example -->          this output is one of many, such as a sampled text, and isn't compared
    <!-- not run: WHY -->     it installs or downloads
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(?P<notes>(?:<!-- .*? -->\n+)*)```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
NOTE = re.compile(r"<!-- (?P<name>[a-z ]+?)(?:: (?P<value>.*?))? -->")
NUMBER = re.compile(
    r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: ?[kMGTP](?=FLOP|\b)| ?(?:ms|s|min|h)\b(?: \d+ (?:min|s)\b)?)?%?"
)
"""A number with its prefix or unit of time."""
Runner = Callable[[str, Path], tuple[int, str]]
"""Runs one command in a folder: its exit code, and what it prints on both streams."""


@dataclass(frozen=True)
class Block:
    """A fence of a page."""

    language: str
    body: str
    start: int
    """Where the body begins in the page."""
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether it is to be run."""
        return self.language in ("sh", "python") and "not run" not in self.notes and "file" not in self.notes


def blocks_of(page: str) -> list[Block]:
    """The fences of a page. Raises ValueError for a comment that means nothing here."""
    blocks = []
    for match in FENCE.finditer(page):
        notes = {note["name"]: note["value"] or "" for note in NOTE.finditer(match["notes"])}
        if unknown := notes.keys() - {"file", "shorter", "slow", "example", "not run"}:
            raise ValueError(f"unknown comment before a fence: {min(unknown)}")
        blocks.append(Block(match["language"], match["body"], match.start("body"), notes))
    return blocks


def commands_of(body: str) -> list[str]:
    """The commands of a fence, a line each, or several that end in a backslash."""
    lines = body.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def shortened(command: str, flags: str) -> str:
    """A command with flags added to a training, before a comment at its end."""
    words = shlex.split(command, comments=True)
    return f"{shlex.join(words)} {flags}" if flags and words[:2] == ["isoform", "train"] else command


def pattern_of(expected: str) -> re.Pattern[str]:
    """What an output has to match: a group for each number."""
    parts, spaces = [], re.compile(r"\s+")
    for line in expected.rstrip().splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        fragments, end = [], 0
        for number in NUMBER.finditer(line):
            fragments += [line[end : number.start()], None]
            end = number.end()
        words = [
            f"({NUMBER.pattern})"
            if text is None
            else ".*".join(r"\s+".join(map(re.escape, spaces.split(part))) for part in text.split("…"))
            for text in [*fragments, line[end:]]
        ]
        parts.append("".join(words).rstrip() + r"[ \t]*\n")
    return re.compile("".join(parts))


def matches(expected: str, printed: str) -> re.Match[str] | None:
    """How an output matches what a page shows, if it does."""
    return pattern_of(expected).fullmatch(printed.rstrip() + "\n")


def updated(expected: str, match: re.Match[str]) -> str:
    """What a page shows, with the numbers of an output."""
    numbers = iter(match.groups())
    return NUMBER.sub(lambda _: next(numbers), expected)


def environment() -> dict[str, str]:
    """That of the commands: this interpreter's programs first, lines of a known width, no colours."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}


def run_in_bash(command: str, folder: Path) -> tuple[int, str]:
    """A command as a reader would run it."""
    script = f'isoform() {{ "{sys.executable}" -m isoform "$@"; }}\n{command}'
    process = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return process.returncode, process.stdout


def run_page(
    page: str, folder: Path, run: Runner = run_in_bash, *, in_full: bool = True, with_slow: bool = True
) -> Iterator[tuple[Block, Block | None, str]]:
    """Runs a page's blocks: each that was run, the output that the page shows for it, and what it printed.

    in_full: leave the flags out that shorten. Raises RuntimeError for a command that fails.
    """
    blocks = blocks_of(page)
    for number, block in enumerate(blocks):
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        if name := block.notes.get("file"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.body, encoding="utf-8")
        if not block.is_run or ("slow" in block.notes and not with_slow):
            continue
        commands = commands_of(block.body)
        if block.language == "python":
            (folder / f"block-{number}.py").write_text(block.body, encoding="utf-8")
            commands = [f"python block-{number}.py"]
        printed = ""
        for command in commands:
            flags = "" if in_full else block.notes.get("shorter", "")
            code, text = run(shortened(command, flags), folder)
            printed += text
            if code:
                raise RuntimeError(f"{command}\nended with {code}:\n{text[-4000:]}")
        is_output = after is not None and after.language == "output"
        yield block, after if is_output else None, printed


def main(paths: list[str]) -> int:
    """Run pages in full and write their outputs into them; returns how many outputs must be corrected by hand."""
    wrong = 0
    for path in map(Path, paths):
        page, text = path.read_text(encoding="utf-8"), ""
        end = 0
        with tempfile.TemporaryDirectory() as folder:
            for block, shown, printed in run_page(page, Path(folder)):
                print(f"{path}: {commands_of(block.body)[:1]}", flush=True)
                if shown is None:
                    continue
                match = matches(shown.body, printed)
                if "example" in shown.notes or not shown.body.strip():
                    body = printed.rstrip() + "\n"
                elif match is not None:
                    body = updated(shown.body, match)
                else:
                    wrong, body = wrong + 1, shown.body
                    print(f"-- prints another text than the page shows:\n{printed}")
                text += page[end : shown.start] + body
                end = shown.start + len(shown.body)
        path.write_text(text + page[end:], encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

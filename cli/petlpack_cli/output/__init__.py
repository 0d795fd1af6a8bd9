"""What commands print: one JSON object, or tables and lines for people on stdout; talk and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from petlpack import printable
from petlpack_cli.output.errors import SCHEMA_VERSION, STDOUT, naming
from petlpack_cli.output.progress import NoProgress, Progress
from petlpack_cli.output.text import GAP, WIDEST_TEXT, ColumnKind, table_lines, wrapped

__all__ = ["WIDEST_TEXT", "ColumnKind", "Output"]


_ENDING = ".petl.safetensors"
"""How the files of tasks end."""


@dataclass(frozen=True)
class Output:
    """Where a command prints: `--json`, `--quiet` and `--debug` as given."""

    as_json: bool
    quiet: bool
    debug: bool

    def json(self, content: Mapping[str, Any]) -> None:
        """Print the one JSON object."""
        with naming(STDOUT):
            click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **content}))

    def line(self, text: str = "") -> None:
        """Print a line of the answer; a terminal gets it wrapped between words."""
        _print(wrapped(printable(text), _width()))

    def raw(self, text: str) -> None:
        """Print a text as it is: CSV or Markdown for a file, lines not wrapped."""
        with naming(STDOUT):
            click.echo(text, nl=False)

    def names(self, names: Sequence[str]) -> None:
        """Print names, one a line, for a pipe."""
        if names:
            with naming(STDOUT):
                click.echo("\n".join(map(printable, names)))

    def talk(self, text: str) -> None:
        """Say something that is not part of the answer: to a terminal, unless quiet."""
        if sys.stderr.isatty() and not self.quiet:
            click.echo(printable(text), err=True)

    def warn(self, text: str) -> None:
        """Warn on stderr, unless quiet."""
        if not self.quiet:
            click.echo(f"Warning: {printable(text)}", err=True)

    def foreign(self, names: Sequence[str]) -> None:
        """Warn of files in a pack that are no part of it; what stands where tasks do was one, and is kept by `gc`."""
        tasks = [name for name in names if name.startswith("tasks/") and name.endswith(_ENDING)]
        for name in tasks:
            self.warn(f"'{name}' is no task under this name: rename it, with A-Z a-z 0-9 . _ - before {_ENDING}")
        others = [f"'{name}'" for name in names if name not in tasks]
        if others:
            self.warn(f"not part of the pack: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}")

    def table(
        self, columns: Mapping[str, ColumnKind], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None
    ) -> None:
        """Print a table; `total` is its last row, under a line."""
        cells = [[printable(cell) for cell in row] for row in rows]
        footer = None if total is None else [printable(cell) for cell in total]
        head, *lines = table_lines(columns, cells, footer, _width())
        _print([_bold(head), *lines])

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print what is known of one thing, a line for each fact."""
        names = max(len(name) for name, _ in rows)
        lines = []
        for name, value in rows:
            first, *others = wrapped(printable(value), max(1, _width() - names - GAP))
            lines.append(f"{_bold(name)}{'':{names - len(name) + GAP}}{first}".rstrip())
            lines += [f"{'':{names + GAP}}{other}" for other in others]
        _print(lines)

    @contextlib.contextmanager
    def progress(self) -> Iterator[NoProgress]:
        """Show bars on stderr while the block runs, where stderr is a terminal and nobody asked for quiet."""
        if self.quiet or not sys.stderr.isatty():
            yield NoProgress()
            return
        with Progress() as progress:
            yield progress


def _width() -> int:
    """Return the columns of stdout: of the terminal, or as COLUMNS says; a pipe takes any line whole."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1_000_000


def _bold(text: str) -> str:
    """Return a text that stands out on a terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return text if plain or not sys.stdout.isatty() else click.style(text, bold=True)


PLAIN = str.maketrans({"─": "-", "…": "."})
"""What stands for the lines of a table where stdout has no such characters; what else it lacks is escaped."""


def _print(lines: Iterable[str]) -> None:
    text = "\n".join(lines)
    with naming(STDOUT):
        try:
            "─…".encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # click would write UTF-8 all the same
            sys.stdout.write(f"{text.translate(PLAIN)}\n")
        else:
            click.echo(text)

"""What commands print: one JSON object, or tables and lines for people on stdout; talk and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from petlpack.errors import printable
from petlpack_cli.output.errors import SCHEMA_VERSION, STDOUT, naming
from petlpack_cli.output.progress import NoProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Kind = Literal["bar", "name", "text", "number"]
"""A column of names is folded where it is too wide, text and bars are cut off, and numbers stand to the right, whole.

Bars give way first, then names, then text.
"""

BLOCK = 100
"""Lines that share one row of rich's table: 10,000 rows take 0.5 s instead of 2.1 s."""
GAP = 2
"""Columns of the terminal between two columns of a table."""
NARROWEST = 8
"""Columns that names keep on the narrowest terminal; a table that needs more than the terminal has is wider than it."""
WIDEST_TEXT = 24


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
        _print(printable(text))

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

    def table(
        self, columns: Mapping[str, Kind], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None
    ) -> None:
        """Print a table; `total` is its last row, under a line."""
        from rich import box
        from rich.table import Table

        cells = [[printable(cell) for cell in row] for row in rows]
        footers = [printable(cell) for cell in total or [""] * len(columns)]
        widths = _widths(columns, [*cells, footers])
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        table.show_footer = total is not None
        for (header, kind), footer, width in zip(columns.items(), footers, widths, strict=True):
            if kind == "name":
                table.add_column(header, footer, overflow="fold", width=width)
            elif kind == "bar":
                table.add_column(header, footer, overflow="crop", no_wrap=True, width=width)
            else:
                side: Literal["right", "left"] = "right" if kind == "number" else "left"
                table.add_column(header, footer, justify=side, no_wrap=True, width=width)
        names = {
            i: width for i, (kind, width) in enumerate(zip(columns.values(), widths, strict=True)) if kind == "name"
        }
        for block in _blocks(cells, names):
            table.add_row(*("\n".join(column) for column in zip(*block, strict=True)))
        _print(table, sum(widths) + GAP * (len(widths) - 1))

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print what is known of one thing, a line for each fact."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, printable(value))
        _print(table)

    @contextlib.contextmanager
    def progress(self) -> Iterator[NoProgress]:
        """Show bars on stderr while the block runs, where stderr is a terminal and nobody asked for quiet."""
        if self.quiet or not sys.stderr.isatty():
            yield NoProgress()
            return
        with Progress() as progress:
            yield progress


def _widths(columns: Mapping[str, Kind], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of a table's columns: what the cells need, less where the terminal is narrower.

    Then bars give way, after them names, and after them text; numbers never do.
    """
    from rich.cells import cell_len

    kinds = list(columns.values())
    needed = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    widths = [min(width, WIDEST_TEXT) if kind == "text" else width for kind, width in zip(kinds, needed, strict=True)]
    least = {
        "bar": [1] * len(widths),
        "name": [min(width, NARROWEST) for width in widths],
        "text": [min(width, cell_len(header)) for header, width in zip(columns, widths, strict=True)],
        "number": widths,
    }
    excess = sum(widths) + GAP * (len(widths) - 1) - _console().width
    for kind in get_args(Kind):
        for i, width in enumerate(widths):
            if kinds[i] == kind and excess > 0:
                widths[i] = max(width - excess, least[kind][i])
                excess -= width - widths[i]
    return widths


def _blocks(rows: Sequence[Sequence[str]], names: Mapping[int, int]) -> Iterator[Sequence[Sequence[str]]]:
    """Cut rows into blocks for one row of rich's table each; a row with a name that is folded is a block of its own.

    `names` are the columns of names, with their widths.
    """
    from rich.cells import cell_len

    start = 0
    for i, row in enumerate(rows):
        if any(cell_len(row[column]) > width for column, width in names.items()):
            if start < i:
                yield rows[start:i]
            yield rows[i : i + 1]
            start = i + 1
        elif i + 1 - start == BLOCK:
            yield rows[start : i + 1]
            start = i + 1
    if start < len(rows):
        yield rows[start:]


def _console() -> Console:
    """Return stdout: as wide as the terminal or COLUMNS says, as wide as the content in a pipe.

    Nothing in a name is taken for markup.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 1_000_000
    return Console(markup=False, emoji=False, highlight=False, width=width)


def _print(content: Table | str, least: int = 1) -> None:
    """Print to stdout, on lines of `least` columns or more."""
    console = _console()
    console.width = max(console.width, least)
    with naming(STDOUT):
        console.print(content)

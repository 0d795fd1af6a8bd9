"""What commands print: one JSON object, or tables and lines for people on stdout; talk and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from petlpack.errors import printable
from petlpack_cli.output.errors import SCHEMA_VERSION, STDOUT, naming
from petlpack_cli.output.progress import NoProgress, Progress

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["name", "text", "number"]
"""A column of names is folded where it is too wide, text is cut off, and numbers stand to the right, whole."""

BLOCK = 100
"""Lines that share one row of rich's table: 10,000 rows take 0.5 s instead of 2.1 s."""
SHORT = 24
"""Characters of a name that fit every table, so that names up to this length can share a row."""


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

        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.show_footer = total is not None
        for (header, kind), footer in zip(columns.items(), total or [""] * len(columns), strict=True):
            if kind == "name":
                table.add_column(header, printable(footer), overflow="fold")
            else:
                side: Literal["right", "left"] = "right" if kind == "number" else "left"
                table.add_column(header, printable(footer), justify=side, no_wrap=True, max_width=24)
        folded = [i for i, kind in enumerate(columns.values()) if kind == "name"]
        for block in _blocks(rows, folded):
            table.add_row(*("\n".join(map(printable, cells)) for cells in zip(*block, strict=True)))
        _print(table)

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


def _blocks(rows: Sequence[Sequence[str]], folded: Sequence[int]) -> Iterator[Sequence[Sequence[str]]]:
    """Cut rows into blocks for one row of rich's table each; a row with a long name, which may be folded, is its own.

    `folded` are the columns of names.
    """
    start = 0
    for i, row in enumerate(rows):
        if any(len(row[i]) > SHORT for i in folded):
            if start < i:
                yield rows[start:i]
            yield rows[i : i + 1]
            start = i + 1
        elif i + 1 - start == BLOCK:
            yield rows[start : i + 1]
            start = i + 1
    if start < len(rows):
        yield rows[start:]


def _print(content: Table | str) -> None:
    """Print to stdout: as wide as the terminal or COLUMNS says, as wide as the content in a pipe.

    Nothing in a name is taken for markup.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 1_000_000
    with naming(STDOUT):
        Console(markup=False, emoji=False, highlight=False, width=width).print(content)

"""Tables of the accounting for people, as CSV, and as Markdown."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from petlpack import printable
from petlpack_cli.output import ColumnKind, Output
from petlpack_cli.output.sizes import bar, size

if TYPE_CHECKING:
    from petlpack import Table

Value = str | int | float | None
"""What stands in a cell of a table."""

MOST = 20
"""Rows of a table that people get without --all: what fits a screen; the rest is one row."""


def print_rows(out: Output, table: Table, columns: tuple[str, ...], most: int | None) -> None:
    """Print some columns of a table, its first rows, the rest as one row, the sum, and bars of the last bytes."""
    measured = next((name for name in reversed(columns) if table.columns[name] == "bytes"), None)
    shown = table.rows if most is None else table.rows[:most]
    largest = max((_number(row[measured]) for row in table.rows), default=0.0) if measured else 0.0
    rows = [[cell(row[name], table.columns[name]) for name in columns] for row in shown]
    rest, every = table.total(table.rows[len(shown) :]), table.total()
    if len(shown) < len(table.rows):
        cells = [cell(rest[name], table.columns[name]) for name in columns[1:]]
        rows.append([f"{len(table.rows) - len(shown):,} more (--all)", *cells])
    heads: dict[str, ColumnKind] = {_title(name): _kind(table.columns[name], i) for i, name in enumerate(columns)}
    total = ["all", *(cell(every[name], table.columns[name]) for name in columns[1:])]
    if measured:
        heads[""] = "bar"
        sizes = [_number(row[measured]) for row in (*shown, rest)]
        rows = [[*row, bar(nbytes, largest, 6)] for row, nbytes in zip(rows, sizes, strict=False)]
        total.append("")
    out.table(heads, rows, total if len(table.rows) > 1 else None)


def print_csv(out: Output, table: Table) -> None:
    """Print every column of a table as CSV with exact numbers, empty where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_inert(row[name]) for name in table.columns] for row in table.rows)
    out.raw(file.getvalue())


def print_markdown(out: Output, table: Table) -> None:
    """Print every column of a table that has a value as a Markdown table, for people."""
    columns = [name for name in table.columns if any(row[name] is not None for row in table.rows)]
    lines = [
        [_title(name) for name in columns],
        ["---" if table.columns[name] == "text" else "---:" for name in columns],
        *([_escaped(cell(row[name], table.columns[name])) for name in columns] for row in table.rows),
    ]
    out.raw("".join(f"| {' | '.join(line)} |\n" for line in lines))


def cell(value: Value, unit: str) -> str:
    """Return a value with its unit, `-` where there is none."""
    if value is None:
        return "-"
    if unit == "bytes":
        return size(_number(value))
    if unit == "count" or isinstance(value, int):
        return f"{value:,}"
    if unit == "percent":
        return f"{value:.3g} %"
    if unit == "bits":
        return f"{value:.3f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _title(name: str) -> str:
    """Return the heading of a column; bits are a unit, so they say of what."""
    titles = {"bits": "Bits each", "bound": "Bound", "over_bound": "Of bound", "mask_bits": "Mask bits"}
    return titles.get(name, name.replace("_", " ").capitalize())


def _kind(unit: str, index: int) -> ColumnKind:
    return "name" if index == 0 else "text" if unit == "text" else "number"


def _inert(value: Value) -> Value:
    """Return a text that no spreadsheet takes for a formula, anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _escaped(text: str) -> str:
    """Return a text that stands in a Markdown table as it is."""
    return "".join(f"\\{c}" if c in "\\|`*_<>[]~&" else c for c in printable(text))

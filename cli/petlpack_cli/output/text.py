"""Tables and paragraphs as lines of a terminal: cells are folded between words, cut off, shrunk, or stand to the right.

Rich measures and cuts the cells; its tables are not used, for laying out 10,000 rows takes them seconds, and importing
them as long as a small command works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Literal, get_args

from petlpack_cli.output.sizes import BLOCKS, shrunk

ColumnKind = Literal["bar", "name", "text", "number"]
"""A column of names is folded where it is too wide, text is cut off, bars shrink together, numbers stay whole.

Bars give way first, then names, then text.
"""

GAP = 2
"""Columns of the terminal between two columns of a table."""
NARROWEST = 8
"""Columns that names keep on the narrowest terminal; a table that needs more than the terminal has is wider than it."""
WIDEST_TEXT = 24


def table_lines(
    columns: Mapping[str, ColumnKind], rows: Sequence[Sequence[str]], total: Sequence[str] | None, width: int
) -> Iterator[str]:
    """Yield the lines of a table for a terminal of this width: head, rule, rows, and `total` under another rule."""
    footer = [] if total is None else [total]
    needed = [max(map(cell_len, column)) for column in zip(columns, *rows, *footer, strict=True)]
    widths = _widths(columns, needed, width)
    if any(
        kind == "bar" and width < longest for kind, width, longest in zip(columns.values(), widths, needed, strict=True)
    ):
        rows = [_shrunk_bars(row, columns, needed, widths) for row in rows]
    rule = "─" * (sum(widths) + GAP * (len(widths) - 1))
    kinds = list(columns.values())
    yield from _row_lines(list(columns), kinds, widths)
    yield rule
    for row in rows:
        yield from _row_lines(row, kinds, widths)
    if total is not None:
        yield rule
        yield from _row_lines(total, kinds, widths)


def _shrunk_bars(
    row: Sequence[str], columns: Mapping[str, ColumnKind], needed: Sequence[int], widths: Sequence[int]
) -> list[str]:
    """Return a row whose bars fit: all of a column shrink by the same share, so that they can still be compared."""
    return [
        shrunk(cell, width, longest) if kind == "bar" and width < longest else cell
        for cell, kind, longest, width in zip(row, columns.values(), needed, widths, strict=True)
    ]


_BAR = set(BLOCKS)


def cell_len(text: str) -> int:
    """Return the columns that a text takes; rich knows those of wide characters, and is asked for those only."""
    if text.isascii() or _BAR.issuperset(text):
        return len(text)
    from rich import cells

    return cells.cell_len(text)


def _cut(text: str, width: int) -> str:
    """Return as much of a text as fits."""
    if text.isascii() or _BAR.issuperset(text):
        return text[:width]
    from rich.cells import set_cell_size

    return set_cell_size(text, width)


def _chopped(word: str, width: int) -> list[str]:
    """Return a word in pieces that fit."""
    if word.isascii():
        return [word[start : start + width] for start in range(0, len(word), width)]
    from rich.cells import chop_cells

    return chop_cells(word, width)


def wrapped(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` columns, cut between words, and in words that are longer."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for word in text.split(" "):
        if cell_len(f"{lines[-1]} {word}") <= width and lines != [""]:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        *full, lines[-1] = _chopped(word, width) or [""]
        lines[-1:-1] = full
    return lines


def _row_lines(row: Sequence[str], kinds: Sequence[ColumnKind], widths: Sequence[int]) -> Iterator[str]:
    cells: list[list[str]] = []
    for cell, kind, width in zip(row, kinds, widths, strict=True):
        wide = cell_len(cell) > width
        if kind == "name" and wide:
            cells.append(wrapped(cell, width))
        elif wide:
            cells.append([f"{_cut(cell, width - 1)}…"])
        else:
            cells.append([cell])
    gap = " " * GAP
    for line in zip_longest(*cells, fillvalue=""):
        padded = (_padded(cell, kind, width) for cell, kind, width in zip(line, kinds, widths, strict=True))
        yield gap.join(padded).rstrip()


def _padded(cell: str, kind: ColumnKind, width: int) -> str:
    room = " " * (width - cell_len(cell))
    return room + cell if kind == "number" else cell + room


def _widths(columns: Mapping[str, ColumnKind], needed: Sequence[int], width: int) -> list[int]:
    """Return the widths of a table's columns: what the cells need, less where the terminal is narrower.

    Then bars give way, after them names, and after them text; numbers never do.
    """
    kinds = list(columns.values())
    widths = [min(width, WIDEST_TEXT) if kind == "text" else width for kind, width in zip(kinds, needed, strict=True)]
    least = {
        "bar": [1] * len(widths),
        "name": [min(width, NARROWEST) for width in widths],
        "text": [min(width, cell_len(header)) for header, width in zip(columns, widths, strict=True)],
        "number": widths,
    }
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    for kind in get_args(ColumnKind):
        for i, wide in enumerate(widths):
            if kinds[i] == kind and excess > 0:
                widths[i] = max(wide - excess, least[kind][i])
                excess -= wide - widths[i]
    return widths

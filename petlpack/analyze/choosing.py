"""Rows of a table by what they hold: those that pass filters, and in the order of a column."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from petlpack.analyze.tables import Measure, Table, Value
from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import TEXT, check

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}

_FILTER = re.compile(r"\s*([a-z_]+)\s*(>=|<=|!=|=|>|<)\s*((?![=<>!]).*?)\s*")

_NUMBER = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(B|kB|MB|GB|TB|%)?", re.IGNORECASE)

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "%": 1}


def choose(table: Table, filters: Sequence[str], sort: str | None) -> Table:
    """Return the rows that pass all filters, in the order of `sort`, if any; raises UsageError."""
    table = selected(table, filters)
    return table if sort is None else ordered(table, sort)


def selected(table: Table, filters: Sequence[str]) -> Table:
    """Return the rows that pass all filters: `method=PROPETL*`, `total>1MB`, `codec!=ulp`; raises UsageError.

    Texts are compared with wildcards, without regard to case; a row without a value passes no comparison.
    """
    for text in filters:
        match = _FILTER.fullmatch(text)
        if match is None:
            raise UsageError(
                f"invalid filter '{printable(text)}'", hint="write COLUMN=TEXT or COLUMN>SIZE, as in total>1MB"
            )
        passes = _passes(table, *match.groups())
        table = replace(table, rows=tuple(row for row in table.rows if passes(row)))
    return table


def _passes(table: Table, column: str, sign: str, wanted: str) -> Callable[[Mapping[str, Value]], bool]:
    if _unit(table, column) != "text":
        number = _NUMBER.fullmatch(wanted)
        if number is None:
            raise UsageError(f"column {column} needs a number, got '{printable(wanted)}'", hint=f"write {column}>1MB")
        value = float(re.sub("[_,]", "", number[1])) * _UNITS[(number[2] or "").lower()]
        return lambda row: row[column] is not None and _OPERATORS[sign](row[column], value)
    if sign not in ("=", "!="):
        raise UsageError(f"column {column} is text: compare with = or !=, not '{sign}'", hint=f"write {column}=TEXT")

    def passes(row: Mapping[str, Value]) -> bool:
        alike = fnmatch.fnmatchcase(str(row[column] or "").lower(), wanted.lower())
        return alike == (sign == "=")

    return passes


def ordered(table: Table, by: str) -> Table:
    """Return the rows by a column, `COLUMN`, `COLUMN:asc` or `COLUMN:desc`; numbers fall by default, texts rise.

    Rows without a value come last. Raises UsageError.
    """
    check("sort", by, TEXT, "write COLUMN:asc or COLUMN:desc")
    column, _, direction = by.partition(":")
    text = _unit(table, column) == "text"
    if direction not in ("", "asc", "desc"):
        raise UsageError(
            f"sort order must be asc or desc, got '{printable(direction)}'", hint="write COLUMN:asc or COLUMN:desc"
        )
    down = direction == "desc" if direction else not text
    known = [row for row in table.rows if row[column] is not None]
    rest = [row for row in table.rows if row[column] is None]
    known.sort(key=lambda row: str(row[column]).lower() if text else row[column], reverse=down)  # type: ignore[arg-type, return-value]
    return replace(table, rows=(*known, *rest))


def _unit(table: Table, column: str) -> Measure:
    if column not in table.columns:
        raise UsageError(
            f"no column '{printable(column)}' in the table by {table.key}",
            hint=f"choose one of {', '.join(table.columns)}",
        )
    return table.columns[column]

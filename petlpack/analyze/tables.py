"""A pack's bytes as tables: by task, method, codec, section or tensor; chosen, ordered, and as rows, not prints.

Every table adds up to the bytes on the disk: what belongs to no task, section or tensor has a row of its own.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from petlpack.analyze.bounds import counted_bounds, measured_bounds
from petlpack.analyze.reading import Inventory, Kind, SectionBytes
from petlpack.analyze.rows import TaskRow
from petlpack.analyze.stats import Stats
from petlpack.decoding.task import Task
from petlpack.errors import PetlpackError, UsageError, printable
from petlpack.parallel import Progress
from petlpack.sections.parts import Part
from petlpack.sections.read import DecodedSection
from petlpack.store import Store
from petlpack.tensors.base import Base

KEYS = ("task", "method", "codec", "section", "tensor")
"""What a pack's bytes can be told by."""

Unit = Literal["text", "bytes", "count", "bits", "percent", "number"]
"""What stands in a column."""

Value = str | int | float | None

Bounds = Mapping[tuple[str, str], float]
"""Bits that a section needs at least, by (task or shared part, section)."""


@dataclass(frozen=True)
class Table:
    """Rows of a table, each a value for every column; `columns` tells what stands in them."""

    key: str
    columns: Mapping[str, Unit]
    rows: tuple[Mapping[str, Value], ...]

    def total(self, rows: Sequence[Mapping[str, Value]] | None = None) -> dict[str, Value]:
        """Return the sums of some rows, by default all: bytes where all are known, counts as far as they are."""
        rows = self.rows if rows is None else rows
        total: dict[str, Value] = dict.fromkeys(self.columns)
        for name, unit in self.columns.items():
            known = [value for row in rows if isinstance(value := row[name], int)]
            if (unit == "bytes" and len(known) == len(rows)) or (unit == "count" and known):
                total[name] = sum(known)
        return total

    def to_json(self) -> dict[str, Any]:
        """Return the key and the rows."""
        return {"by": self.key, "rows": [dict(row) for row in self.rows]}


def table_by(key: str, found: Stats, bounds: Bounds | None = None) -> Table:
    """Return a pack's bytes by one of KEYS; `bounds` are those that were measured, for sections."""
    if key == "section":
        return _by_section(found, bounds or {})
    if key == "tensor":
        return _by_tensor(found)
    return _by_task(found) if key == "task" else _by_group(key, found)


_TASK_COLUMNS: dict[str, Unit] = {
    "task": "text",
    "method": "text",
    "codec": "text",
    "exact": "text",
    "payload": "bytes",
    "head": "bytes",
    "files": "bytes",
    "header": "bytes",
    "total": "bytes",
    "share": "bytes",
    "takes": "bytes",
    "run": "bytes",
    "dense": "bytes",
    "trained": "count",
    "stored": "count",
    "own": "count",
    "head_parameters": "count",
    "base_parameters": "number",
    "of_base": "percent",
    "paper_bytes": "bytes",
    "mask_entries": "count",
    "density": "number",
    "mask_bits": "bits",
    "entropy": "bits",
    "metric": "text",
    "score": "number",
}


def _by_task(found: Stats) -> Table:
    rows = [_task_row(row) for row in found.tasks]
    return Table("task", _TASK_COLUMNS, (*rows, *_rest(found, _TASK_COLUMNS, "task")))


def _task_row(row: TaskRow) -> dict[str, Value]:
    exact = "exact" if row.exact else "inexact" if row.error is None else f"error {row.error:g}"
    return {
        "task": row.name,
        "method": row.method,
        "codec": row.codec,
        "exact": exact,
        **vars(row.bytes),
        "takes": row.bytes.takes,
        "run": row.run_bytes,
        "dense": row.dense_bytes,
        "trained": row.figures.trained_parameters,
        "stored": row.figures.stored_parameters,
        "own": row.figures.own_parameters,
        "head_parameters": row.figures.head_parameters,
        "base_parameters": row.figures.base_parameters,
        "of_base": row.figures.percent_of_base,
        "paper_bytes": row.figures.paper_bytes,
        "mask_entries": row.figures.mask_entries,
        "density": row.figures.density,
        "mask_bits": row.figures.bits_per_entry,
        "entropy": row.figures.entropy_bits,
        "metric": None if row.score is None else row.score.metric,
        "score": None if row.score is None else row.score.value,
    }


def _by_group(key: str, found: Stats) -> Table:
    """Return sums over tasks of one method or codec, the largest first."""
    columns: dict[str, Unit] = {
        key: "text",
        "tasks": "count",
        **{name: unit for name, unit in _TASK_COLUMNS.items() if unit == "bytes"},
    }
    groups: dict[str, list[TaskRow]] = defaultdict(list)
    for row in found.tasks:
        groups[row.method if key == "method" else row.codec].append(row)
    rows: list[dict[str, Value]] = []
    for name, tasks in groups.items():
        sums = Table(key, columns, tuple({**_task_row(row), "tasks": 1} for row in tasks)).total()
        rows.append({**sums, key: name})
    rows.sort(key=lambda row: (-_whole(row["takes"]), str(row[key])))
    return Table(key, columns, (*rows, *_rest(found, columns, key)))


def _rest(found: Stats, columns: Mapping[str, Unit], key: str) -> Iterator[dict[str, Value]]:
    """Yield rows for bytes of the disk that no task accounts for: parts that nobody needs, damaged tasks, leftovers."""
    rest = {
        "parts that no readable task needs": sum(row.bytes for row in found.shared if not row.tasks),
        "damaged tasks": found.damaged_bytes,
        "pack.json and other files": found.other_bytes,
    }
    total = ("bytes",) if "bytes" in columns else ("total", "takes")
    for name, nbytes in rest.items():
        if nbytes:
            empty: dict[str, Value] = {n: 0 if unit == "bytes" else None for n, unit in columns.items()}
            yield {**empty, key: name, **dict.fromkeys(total, nbytes)}


_SECTION_COLUMNS: dict[str, Unit] = {
    "section": "text",
    "of": "text",
    "sections": "count",
    "elements": "count",
    "bytes": "bytes",
    "bits": "bits",
    "bound": "bits",
    "over_bound": "number",
}


@dataclass
class _Sum:
    """Sums over sections of one kind; `bound_bits` is None where one of them has no bound."""

    sections: int = 0
    elements: int = 0
    nbytes: int = 0
    bound_bits: float | None = 0.0

    def add(self, row: SectionBytes, bound: float | None) -> None:
        self.sections += 1
        self.elements += row.count
        self.nbytes += row.nbytes
        self.bound_bits = None if bound is None or self.bound_bits is None else self.bound_bits + bound


def _by_section(found: Stats, bounds: Bounds) -> Table:
    """Return bytes by kind of section, those of shared parts apart, and by what is no section."""
    read = found.inventory
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    for task in read.tasks:
        known = counted_bounds(task)
        for row in task.sections:
            sums[row.kind, "tasks"].add(row, bounds.get((task.name, row.name), known.get(row.name)))
    for sha256, part in read.tensors.items():
        for row in part.sections:
            sums[f"{row.kind} (shared)", "shared"].add(row, bounds.get((sha256, row.name)))
    rows: list[dict[str, Value]] = []
    for (kind, of), one in sums.items():
        bits = 8 * one.nbytes / one.elements if one.elements else None
        bound = None if one.bound_bits is None or not one.elements else one.bound_bits / one.elements
        rows.append(
            {
                **{"section": kind, "of": of, "sections": one.sections, "elements": one.elements, "bytes": one.nbytes},
                **{"bits": bits, "bound": bound, "over_bound": bits / bound if bits and bound else None},
            }
        )
    for (name, of), nbytes in _outside_sections(read).items():
        rows.append({**dict.fromkeys(_SECTION_COLUMNS), "section": name, "of": of, "bytes": nbytes})
    rows.sort(key=lambda row: (-_whole(row["bytes"]), str(row["section"])))
    return Table("section", _SECTION_COLUMNS, (*rows, *_rest(found, _SECTION_COLUMNS, "section")))


def _outside_sections(read: Inventory) -> dict[tuple[str, str], int]:
    """Return the bytes of used files that are in no section of numbers: headers, manifests, parts of bytes, by role."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for task in read.tasks:
        sums["manifest", "tasks"] += task.nbytes - sum(row.nbytes for row in task.sections)
    for sha256, nbytes in read.parts.items():
        if sha256 in read.tensors:
            sums["manifest (shared)", "shared"] += nbytes - sum(row.nbytes for row in read.tensors[sha256].sections)
        elif sha256 in read.users:
            sums[read.roles[sha256], "shared"] += nbytes
    return sums


_TENSOR_COLUMNS: dict[str, Unit] = {
    "tensor": "text",
    "tasks": "number",
    "elements": "count",
    "bytes": "bytes",
    "bits": "bits",
    "dense": "bytes",
}

NO_TENSOR = "(headers, templates, kept files)"

COMMON_MASK = "(what most masks keep)"


def _by_tensor(found: Stats) -> Table:
    """Return bytes by tensor over all tasks; a section's bytes are divided over its tensors by their elements."""
    read = found.inventory
    sums = _tensor_bytes(read)
    tasks: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    dense: Counter[str] = Counter()
    for kind, count in Counter(task.kind for task in read.tasks).items():
        for slot in kind.template.slots:
            tasks[slot.name] += count
            elements[slot.name] += count * slot.size
            dense[slot.name] += count * slot.nbytes
    rows: list[dict[str, Value]] = [
        {
            **{"tensor": name, "tasks": tasks[name], "elements": elements[name], "bytes": sums[name]},
            **{"bits": 8 * sums[name] / elements[name] if elements[name] else None, "dense": dense[name]},
        }
        for name in {**tasks, **sums}
    ]
    used = sum(read.parts[sha256] for sha256 in read.users)
    rest = sum(task.nbytes for task in read.tasks) + used - sum(sums.values())
    rows.append({**dict.fromkeys(_TENSOR_COLUMNS), "tensor": NO_TENSOR, "bytes": rest, "dense": 0})
    rows.sort(key=lambda row: (-_whole(row["bytes"]), str(row["tensor"])))
    return Table("tensor", _TENSOR_COLUMNS, (*rows, *_rest(found, _TENSOR_COLUMNS, "tensor")))


def _tensor_bytes(read: Inventory) -> Counter[str]:
    """Return the bytes of all sections, by the names of the tensors in them."""
    sections: Counter[tuple[Kind, str]] = Counter()
    sums: Counter[str] = Counter()
    seen: set[str] = set()
    for task in read.tasks:
        for row in task.sections:
            sections[task.kind, row.name] += row.nbytes
        for names, sha256 in zip(task.kind.template.parts, task.tensors, strict=True):
            for row in () if sha256 in seen else read.tensors[sha256].sections:
                unit = read.tensors[sha256].units[row.name]
                sums.update(
                    divided(row.nbytes, [(names[int(p.slot.name)] or COMMON_MASK, p.size) for p in unit.pieces])
                )
            seen.add(sha256)
    for (kind, section), nbytes in sections.items():
        sums.update(divided(nbytes, [(piece.slot.name, piece.size) for piece in kind.units[section].pieces]))
    return sums


def divided(nbytes: int, shares: Sequence[tuple[str, int]]) -> Counter[str]:
    """Divide bytes by shares, in whole bytes that add up: each gets what is left over its part of what is left."""
    left = sum(share for _, share in shares)
    parts: Counter[str] = Counter()
    for name, share in shares:
        own = nbytes * share // left if left else nbytes
        parts[name] += own
        nbytes -= own
        left -= share
    return parts


def _whole(value: Value) -> int:
    return value if isinstance(value, int) else 0


def measure(
    found: Stats, store: Store, base: Base | None, progress: Progress | None = None
) -> tuple[Bounds, dict[str, Exception]]:
    """Decode every section of a pack's tasks and parts; return the bits that each needs at least, and what failed.

    What cannot be decoded (damage, another base) is named with its error, and the rest is measured.
    """
    bounds: dict[tuple[str, str], float] = {}
    failed: dict[str, Exception] = {}
    tasks, parts = found.inventory.tasks, found.inventory.tensors
    readers: list[tuple[str, Callable[[], Iterator[DecodedSection]]]] = [
        *((task.name, lambda name=task.name: Task(store, name).load(base).sections()) for task in tasks),
        *((part, lambda part=part: Part(store.shared_path(part), part).sections()) for part in parts),
    ]
    for done, (name, read) in enumerate(readers):
        if progress is not None:
            progress(done, len(readers))
        try:
            bounds |= {(name, section): bits for section, bits in measured_bounds(read()).items()}
        except (PetlpackError, OSError) as error:
            failed[name] = error
    return bounds, failed


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


def selected(table: Table, filters: Sequence[str]) -> Table:
    """Return the rows that pass all filters: `method=PROPETL*`, `total>1MB`, `codec!=ulp`; raises UsageError.

    Texts are compared with wildcards, without regard to case; a row without a value passes no comparison.
    """
    for text in filters:
        match = _FILTER.fullmatch(text)
        if match is None:
            raise UsageError(
                f"'{printable(text)}' is not a filter", hint="write COLUMN=TEXT, or COLUMN>SIZE: total>1MB"
            )
        passes = _passes(table, *match.groups())
        table = replace(table, rows=tuple(row for row in table.rows if passes(row)))
    return table


def _passes(table: Table, column: str, sign: str, wanted: str) -> Callable[[Mapping[str, Value]], bool]:
    if _unit(table, column) != "text":
        number = _NUMBER.fullmatch(wanted)
        if number is None:
            raise UsageError(f"'{printable(wanted)}' is not a number", hint=f"column {column} wants one: {column}>1MB")
        value = float(re.sub("[_,]", "", number[1])) * _UNITS[(number[2] or "").lower()]
        return lambda row: row[column] is not None and _OPERATORS[sign](row[column], value)
    if sign not in ("=", "!="):
        raise UsageError(f"column {column} holds texts, which '{sign}' does not compare", hint=f"write {column}=TEXT")

    def passes(row: Mapping[str, Value]) -> bool:
        alike = fnmatch.fnmatchcase(str(row[column] or "").lower(), wanted.lower())
        return alike == (sign == "=")

    return passes


def ordered(table: Table, by: str) -> Table:
    """Return the rows by a column, `COLUMN`, `COLUMN:asc` or `COLUMN:desc`; numbers fall by default, texts rise.

    Rows without a value come last. Raises UsageError.
    """
    column, _, direction = by.partition(":")
    text = _unit(table, column) == "text"
    if direction not in ("", "asc", "desc"):
        raise UsageError(f"'{printable(direction)}' is no direction", hint="write COLUMN:asc or COLUMN:desc")
    down = direction == "desc" if direction else not text
    known = [row for row in table.rows if row[column] is not None]
    rest = [row for row in table.rows if row[column] is None]
    known.sort(key=lambda row: str(row[column]).lower() if text else row[column], reverse=down)  # type: ignore[arg-type, return-value]
    return replace(table, rows=(*known, *rest))


def _unit(table: Table, column: str) -> Unit:
    if column not in table.columns:
        raise UsageError(
            f"no column '{printable(column)}' in the table by {table.key}", hint=f"it has {', '.join(table.columns)}"
        )
    return table.columns[column]

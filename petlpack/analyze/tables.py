"""A pack's bytes as tables: by task, method, codec, section or tensor; as rows, not prints.

Every table adds up to the bytes on the disk: what belongs to no task, section or tensor has a row of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from petlpack.analyze.bounds import counted_bounds
from petlpack.analyze.reading import Inventory, SectionBytes, TaskKind
from petlpack.analyze.rows import TaskRow
from petlpack.errors import UsageError, problem_of
from petlpack.errors.arguments import shown

if TYPE_CHECKING:
    from petlpack.analyze.stats import Stats

KEYS = ("task", "method", "codec", "section", "tensor")
"""What a pack's bytes can be told by."""

Measure = Literal["text", "bytes", "count", "bits", "percent", "number"]
"""What stands in a column."""

Value = str | int | float | None

Bounds = Mapping[tuple[str, str], float]
"""Bits that a section needs at least, by (task or shared part, section)."""


@dataclass(frozen=True)
class Table:
    """Rows of a table, each a value for every column; `columns` tells what stands in them."""

    key: str
    columns: Mapping[str, Measure]
    rows: tuple[Mapping[str, Value], ...]
    failed: Mapping[str, Exception] = field(default_factory=dict)
    """Tasks and shared parts that could not be decoded for the table's bounds, each with the error."""

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
        """Return the key, the rows, and what could not be decoded for them."""
        failed = {name: problem_of(error).to_json() for name, error in self.failed.items()}
        return {"by": self.key, "rows": [dict(row) for row in self.rows], "failed": failed}


def table_by(key: str, stats: Stats, bounds: Bounds | None = None) -> Table:
    """Return a pack's bytes by one of KEYS; `bounds` are those that were measured, for sections. Raises UsageError."""
    if not isinstance(key, str) or key not in KEYS:
        raise UsageError(f"no table by {shown(key)}", hint=f"choose one of {', '.join(KEYS)}")
    if key == "section":
        return _by_section(stats, bounds or {})
    if key == "tensor":
        return _by_tensor(stats)
    return _by_task(stats) if key == "task" else _by_group(key, stats)


_TASK_COLUMNS: dict[str, Measure] = {
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


def _by_task(stats: Stats) -> Table:
    rows = [_task_row(row) for row in stats.tasks]
    return Table("task", _TASK_COLUMNS, (*rows, *_rest(stats, _TASK_COLUMNS, "task")))


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


def _by_group(key: str, stats: Stats) -> Table:
    """Return sums over tasks of one method or codec, the largest first."""
    columns: dict[str, Measure] = {
        key: "text",
        "tasks": "count",
        **{name: unit for name, unit in _TASK_COLUMNS.items() if unit == "bytes"},
    }
    groups: dict[str, list[TaskRow]] = defaultdict(list)
    for row in stats.tasks:
        groups[row.method if key == "method" else row.codec].append(row)
    rows: list[dict[str, Value]] = []
    for name, tasks in groups.items():
        sums = Table(key, columns, tuple({**_task_row(row), "tasks": 1} for row in tasks)).total()
        rows.append({**sums, key: name})
    rows.sort(key=lambda row: (-_whole(row["takes"]), str(row[key])))
    return Table(key, columns, (*rows, *_rest(stats, columns, key)))


def _rest(stats: Stats, columns: Mapping[str, Measure], key: str) -> Iterator[dict[str, Value]]:
    """Yield rows for bytes of the disk that no task accounts for: unneeded parts, unreadable tasks, leftovers."""
    rest = {
        "parts that no readable task uses": sum(row.bytes for row in stats.shared if not row.tasks),
        "unreadable tasks": stats.damaged_bytes,
        "pack.json and other files": stats.other_bytes,
    }
    total = ("bytes",) if "bytes" in columns else ("total", "takes")
    for name, nbytes in rest.items():
        if nbytes:
            empty: dict[str, Value] = {n: 0 if unit == "bytes" else None for n, unit in columns.items()}
            yield {**empty, key: name, **dict.fromkeys(total, nbytes)}


_SECTION_COLUMNS: dict[str, Measure] = {
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

    def row(self) -> dict[str, Value]:
        """Return the sums, and bits and bound of an element."""
        bits = 8 * self.nbytes / self.elements if self.elements else None
        bound = None if self.bound_bits is None or not self.elements else self.bound_bits / self.elements
        return {
            **{"sections": self.sections, "elements": self.elements, "bytes": self.nbytes},
            **{"bits": bits, "bound": bound, "over_bound": bits / bound if bits and bound else None},
        }


def _by_section(stats: Stats, bounds: Bounds) -> Table:
    """Return bytes by kind of section, those of shared parts apart, and by what is no section."""
    read = stats.inventory
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    for task in read.tasks:
        known = counted_bounds(task)
        for row in task.sections:
            sums[row.kind, "tasks"].add(row, bounds.get((task.name, row.name), known.get(row.name)))
    for sha256, part in read.tensors.items():
        for row in part.sections:
            sums[f"{row.kind} (shared)", "shared"].add(row, bounds.get((sha256, row.name)))
    rows: list[dict[str, Value]] = []
    for (kind, of), counted in sums.items():
        rows.append({"section": kind, "of": of, **counted.row()})
    for (name, of), nbytes in _outside_sections(read).items():
        rows.append({**dict.fromkeys(_SECTION_COLUMNS), "section": name, "of": of, "bytes": nbytes})
    rows.sort(key=lambda row: (-_whole(row["bytes"]), str(row["section"])))
    return Table("section", _SECTION_COLUMNS, (*rows, *_rest(stats, _SECTION_COLUMNS, "section")))


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


_TENSOR_COLUMNS: dict[str, Measure] = {
    "tensor": "text",
    "tasks": "number",
    "elements": "count",
    "bytes": "bytes",
    "bits": "bits",
    "dense": "bytes",
}

NO_TENSOR = "(headers, templates, kept files)"

COMMON_MASK = "(what most masks keep)"


def _by_tensor(stats: Stats) -> Table:
    """Return bytes by tensor over all tasks; a section's bytes are divided over its tensors by their elements."""
    read = stats.inventory
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
    return Table("tensor", _TENSOR_COLUMNS, (*rows, *_rest(stats, _TENSOR_COLUMNS, "tensor")))


def _tensor_bytes(read: Inventory) -> Counter[str]:
    """Return the bytes of all sections, by the names of the tensors in them."""
    sections: Counter[tuple[TaskKind, str]] = Counter()
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
        part = nbytes * share // left if left else nbytes
        parts[name] += part
        nbytes -= part
        left -= share
    return parts


def _whole(value: Value) -> int:
    return value if isinstance(value, int) else 0

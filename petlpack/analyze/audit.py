"""What one task of a pack takes, read without the others: its sections, and the shared parts that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.analyze.bases import LORA_RANK, Bases
from petlpack.analyze.bounds import counted_bounds, measured_bounds
from petlpack.analyze.reading import Reader
from petlpack.analyze.rows import TaskRow, task_row
from petlpack.errors.arguments import Place, check_flags, check_max_bytes
from petlpack.store import Store
from petlpack.store.replaced import settled
from petlpack.tensors.base import Base


@dataclass(frozen=True)
class PartRow:
    """A shared part that a task needs, whole: who else needs it was not asked."""

    role: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Audit:
    """One task: its own file by section, and the parts that it needs."""

    row: TaskRow
    parts: tuple[PartRow, ...]
    bounds: Mapping[str, float]
    """Bits that the sections need at least, of those that were counted, by the section's name."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack stats --task --json` prints."""
        rows = [{name: value for name, value in vars(row).items() if name != "role"} for row in self.row.sections]
        sections = [{**row, "bound_bits": self.bounds.get(row["name"])} for row in rows]
        return {"task": self.row.to_json(), "sections": sections, "parts": [vars(part) for part in self.parts]}


def audit(
    pack: Place, name: str, base: str | Path | Base | None = None, *, bounds: bool = False, max_bytes: int | None = None
) -> Audit:
    """Account for one task; reads manifests only, but for `bounds`, which decodes its sections, of at most `max_bytes`.

    Raises TaskError where there is no such task, and as `Task.load`.
    """
    check_flags(bounds=bounds)
    check_max_bytes(max_bytes)
    store = Store(pack)
    store.find_task(name)
    opened = base if base is None or isinstance(base, Base) else Base(base)
    try:
        return settled(store.task_path(name), lambda: _audit(store, name, opened, bounds, max_bytes))
    except FileNotFoundError:
        store.find_task(name)  # which tells it where it was removed meanwhile
        raise


def _audit(store: Store, name: str, base: Base | None, bounds: bool, max_bytes: int | None) -> Audit:
    reader = Reader(store, base)
    task = reader.open(name)
    known = counted_bounds(task)
    if bounds:
        from petlpack.decoding.task import Task  # here, for without bounds nothing is decoded

        known = measured_bounds(Task(store, name, max_bytes=max_bytes).load(reader.base).sections())
    parts = [PartRow(role, sha256, reader.part_bytes(sha256)) for sha256, role in task.roles.items()]
    return Audit(
        row=task_row(task, reader, Bases(reader, [task], LORA_RANK).of(task), alone={}, share=0),
        parts=tuple(sorted(parts, key=lambda part: (-part.bytes, part.role))),
        bounds=known,
    )

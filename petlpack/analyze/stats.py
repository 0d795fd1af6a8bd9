"""What a pack costs: every byte of every file, by task and by purpose, and what a task costs as tasks grow."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petlpack.analyze.figures import Figures, figures_of
from petlpack.codecs.registry import codec
from petlpack.errors import DamageError, PetlpackError
from petlpack.loading import Task
from petlpack.pack import Pack


@dataclass(frozen=True)
class TaskBytes:
    """Bytes of one task: method and head payload, its share of kept files, the rest of its file, and in all.

    `payload`, `head` and `header` add up to the task's own file; `files` are the kept files that only this task uses
    (others are shared); `total` is the sum of the four.
    """

    payload: int
    head: int
    files: int
    header: int
    total: int


@dataclass(frozen=True)
class TaskRow:
    """One task: how it was trained, how it is stored, what it costs, what it cost as dense weights."""

    name: str
    method: str
    codec: str
    exact: bool
    bytes: TaskBytes
    dense_bytes: int
    shared: tuple[str, ...]
    figures: Figures


@dataclass(frozen=True)
class SharedRow:
    """One shared part that several tasks use (or none, until gc)."""

    sha256: str
    bytes: int
    tasks: int


@dataclass(frozen=True)
class AmortizedRow:
    """Bytes a task when a pack like this one holds so many tasks."""

    tasks: int
    bytes_per_task: int
    dense_bytes_per_task: int


@dataclass(frozen=True)
class Stats:
    """What a pack costs. `disk_bytes` is the sum of the sizes of all its files, and every byte has a row."""

    disk_bytes: int
    other_bytes: int
    """Bytes of files that are neither tasks nor shared parts: pack.json, and what interrupted writers left."""
    damaged_bytes: int
    """Bytes of the files of tasks that could not be read."""
    tasks: tuple[TaskRow, ...]
    shared: tuple[SharedRow, ...]
    amortized: tuple[AmortizedRow, ...]
    break_even: int | None
    """Number of tasks from which on the pack is smaller than as many dense checkpoints; None if never."""
    damaged: dict[str, str]
    """Tasks that could not be read, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack stats --json` prints."""
        table = asdict(self)
        table["break_even"] = {"dense": self.break_even}
        return table


def stats(pack: str | Path | Pack) -> Stats:
    """Account for every byte of a pack; damaged tasks are named and the rest is reported. Decodes no weights."""
    pack = pack if isinstance(pack, Pack) else Pack(pack)
    tasks, damaged = _open_tasks(pack)
    users: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        for sha256 in task.parts:
            users[sha256].add(task.name)
    sizes = {sha256: pack.store.shared_path(sha256).stat().st_size for sha256 in pack.store.shared_names()}
    rows = tuple(_row(task, users, sizes) for task in tasks)
    shared = tuple(
        SharedRow(sha256, size, len(users[sha256]))
        for sha256, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        if len(users[sha256]) != 1
    )
    files = dict(pack.store.files())
    disk_bytes = sum(files.values())
    lost = sum(files.get(pack.store.task_path(name), 0) for name in damaged)
    fixed = sum(row.bytes for row in shared if row.tasks)
    per_task = [row.bytes.total for row in rows]
    dense = [row.dense_bytes for row in rows]
    return Stats(
        disk_bytes=disk_bytes,
        other_bytes=disk_bytes - sum(row.bytes for row in shared) - sum(per_task) - lost,
        damaged_bytes=lost,
        tasks=tuple(sorted(rows, key=lambda row: (-row.bytes.total, row.name))),
        shared=shared,
        amortized=_amortized(fixed, per_task, dense),
        break_even=_break_even(fixed, per_task, dense),
        damaged=damaged,
    )


def _open_tasks(pack: Pack) -> tuple[list[Task], dict[str, str]]:
    tasks, damaged = [], {}
    for name in pack:
        try:
            task = pack[name]
            codec(task.codec)
            missing = [sha256 for sha256 in task.parts if not pack.store.shared_path(sha256).is_file()]
            if missing:
                raise DamageError(f"shared part {missing[0]} is missing")
            tasks.append(task)
        except (PetlpackError, OSError) as error:
            if pack.store.task_path(name).exists():  # else it was removed meanwhile
                damaged[name] = str(error)
    return tasks, damaged


def _row(task: Task, users: dict[str, set[str]], sizes: dict[str, int]) -> TaskRow:
    head = sum(size for name, size in task.payload.items() if name.startswith("head."))
    payload = sum(task.payload.values()) - head
    parts = task.parts
    files = sum(sizes.get(sha256, 0) for sha256 in parts if len(users[sha256]) == 1)
    header = task.nbytes - payload - head
    return TaskRow(
        name=task.name,
        method=task.method,
        codec=task.codec,
        exact=task.exact,
        bytes=TaskBytes(payload, head, files, header, task.nbytes + files),
        dense_bytes=task.dense_bytes,
        shared=tuple(sha256 for sha256 in parts if len(users[sha256]) > 1),
        figures=figures_of(task),
    )


def _amortized(fixed: int, per_task: list[int], dense: list[int]) -> tuple[AmortizedRow, ...]:
    """Return bytes a task at 1, 2, 5, 10, ... tasks of this pack's mean: (shared + n x mean) / n."""
    if not per_task:
        return ()
    counts = sorted({1, 2, 5, 10, 100, 1000, 10_000, len(per_task)})
    mean, dense_mean = sum(per_task) / len(per_task), sum(dense) / len(dense)
    return tuple(AmortizedRow(n, round(fixed / n + mean), round(dense_mean)) for n in counts)


def _break_even(fixed: int, per_task: list[int], dense: list[int]) -> int | None:
    """Return the smallest n for which shared + n x mean is less than n x dense mean."""
    if not per_task or sum(per_task) >= sum(dense):
        return None
    saved = (sum(dense) - sum(per_task)) / len(per_task)
    return math.floor(fixed / saved) + 1

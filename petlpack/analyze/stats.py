"""What a pack costs: every byte of every file, by task and by purpose, and what a task costs as tasks grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlpack.analyze.bases import LORA_RANK, MOST_RANK, Bases
from petlpack.analyze.growth import Growth, Role, break_even, counts_up_to, linear
from petlpack.analyze.reading import Inventory, Opened, Reader, users_of, without_collection
from petlpack.analyze.rows import TaskRow, task_row
from petlpack.errors import UsageError
from petlpack.parallel import Progress
from petlpack.store import PACK_JSON, Store
from petlpack.tensors.base import Base

if TYPE_CHECKING:
    from petlpack.pack import Pack

FIRST_COUNTS = 10_000
"""Amortised bytes are told up to so many tasks, and for the tasks that there are."""


@dataclass(frozen=True)
class SharedRow:
    """One shared part that several tasks use (or none, until gc): sha256, bytes, what it is, the tasks' names."""

    sha256: str
    bytes: int
    role: str
    used_by: tuple[str, ...]

    @property
    def tasks(self) -> int:
        """Number of tasks that use it."""
        return len(self.used_by)


@dataclass(frozen=True)
class AmortizedRow:
    """Bytes a task of a pack like this one, the base not counted, and as what else it could be kept.

    None stands for what is not known.
    """

    tasks: int
    bytes_per_task: int
    run_bytes_per_task: int
    lora_bytes_per_task: int | None
    dense_bytes_per_task: int | None


@dataclass(frozen=True)
class MethodBreakEven:
    """Number of tasks from which on one method of the pack takes fewer bytes than another; None if it never does."""

    method: str
    against: str
    tasks: int | None


@dataclass(frozen=True)
class BreakEven:
    """Number of tasks from which on the pack takes fewer bytes than other storage; None if never, or not known.

    `dense` counts the base once beside the pack, against whole dense models, which need none; `lora` is against one
    LoRA a task, `runs` against the tensors of the runs as they were; `methods` compares the pack's methods, each alone.
    """

    dense: int | None
    lora: int | None
    runs: int | None
    methods: tuple[MethodBreakEven, ...]


@dataclass(frozen=True)
class Stats:
    """What a pack costs. `disk_bytes` is the sum of the sizes of all its files, and every byte has a row."""

    pack: str
    disk_bytes: int
    other_bytes: int
    """Bytes of files that are neither tasks nor shared parts: pack.json, and what interrupted writers left."""
    damaged_bytes: int
    """Bytes of the files of tasks that could not be read."""
    tasks: tuple[TaskRow, ...]
    shared: tuple[SharedRow, ...]
    amortized: tuple[AmortizedRow, ...]
    marginal_bytes: int | None
    """Expected bytes of the next task."""
    least_marginal_bytes: int | None
    """The same, if it brings no shared part that no task had before."""
    break_even: BreakEven
    damaged: dict[str, str]
    """Tasks that could not be read, with the reason."""
    growth: Growth | None = field(repr=False)
    """The model behind `amortized`; None for a pack without a task that can be read."""
    base_bytes: int | None
    """Bytes of the bases of the tasks, each once; None where one is not known."""
    dense_bytes: float | None
    """Mean bytes of a whole dense model of a task; None where a base is not known."""
    lora_bytes: float | None
    """Mean bytes of one LoRA of rank `lora_rank` on queries and values, in float32; None where no base is known."""
    lora_rank: int

    inventory: Inventory = field(repr=False)
    """What was read, for tables by section and tensor."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack stats --json` prints."""
        return {
            "pack": self.pack,
            "disk_bytes": self.disk_bytes,
            "other_bytes": self.other_bytes,
            "damaged_bytes": self.damaged_bytes,
            "tasks": [row.to_json() for row in self.tasks],
            "shared": [{**vars(row), "tasks": row.tasks} for row in self.shared],
            "amortized": [vars(row) for row in self.amortized],
            "next_task": {"bytes": self.marginal_bytes, "at_least": self.least_marginal_bytes},
            "break_even": {**vars(self.break_even), "methods": [vars(row) for row in self.break_even.methods]},
            "base_bytes": self.base_bytes,
            "dense_bytes": self.dense_bytes,
            "lora": {"rank": self.lora_rank, "bytes": self.lora_bytes},
            "damaged": self.damaged,
        }


def stats(
    pack: str | Path | Pack,
    base: str | Path | Base | None = None,
    *,
    at: Sequence[int] = (),
    lora_rank: int = LORA_RANK,
    progress: Progress | None = None,
) -> Stats:
    """Account for every byte of a pack; damaged tasks are named and the rest is reported. Decodes no weights.

    `at` adds numbers of tasks to the amortised bytes. `base` is the pretrained model, for packs whose tasks do not
    say how large it is. Raises UsageError where there is no pack, or a number makes no sense.
    """
    if not all(count >= 1 for count in at) or not 1 <= lora_rank <= MOST_RANK:
        raise UsageError(
            f"numbers of tasks {list(at)} and a LoRA of rank {lora_rank:,}",
            hint=f"a number of tasks is at least 1, a rank from 1 to {MOST_RANK:,}",
        )
    store = Store(pack) if isinstance(pack, str | Path) else pack.store
    reader = Reader(store, base if base is None or isinstance(base, Base) else Base(base))
    with without_collection():
        return _account(reader, at, lora_rank, progress)


def _account(reader: Reader, at: Sequence[int], lora_rank: int, progress: Progress | None) -> Stats:
    read = reader.read_all(progress)
    shares = shares_of(read.users, read.parts)
    bases = Bases(reader, read.tasks, lora_rank)
    found = [bases.of(task) for task in read.tasks]
    alone = {sha256 for sha256, names in read.users.items() if len(names) == 1}
    rows = tuple(
        task_row(
            task,
            reader,
            base,
            alone={sha256: read.parts[sha256] for sha256 in task.parts if sha256 in alone},
            share=shares.get(task.name, 0),
        )
        for task, base in zip(read.tasks, found, strict=True)
    )
    shared = tuple(
        SharedRow(sha256, size, read.roles.get(sha256, "unused"), tuple(read.users.get(sha256, ())))
        for sha256, size in sorted(read.parts.items(), key=lambda item: (-item[1], item[0]))
        if len(read.users.get(sha256, ())) != 1
    )
    growth = growth_of(read.tasks, read.parts) if read.tasks else None
    run, dense = _mean([row.run_bytes for row in rows]), _mean([row.dense_bytes for row in rows])
    known = {base.key: base for base, _ in found if base is not None}
    lora = _mean([None if base is None else base.lora for base, _ in found])
    once = None if any(base is None for base, _ in found) else sum(base.nbytes for base in known.values())
    return Stats(
        pack=str(reader.store.path),
        disk_bytes=read.disk_bytes,
        other_bytes=read.other_bytes,
        damaged_bytes=read.damaged_bytes,
        tasks=tuple(sorted(rows, key=lambda row: (-row.bytes.takes, row.name))),
        shared=shared,
        amortized=() if growth is None else _amortized(growth, at, run, lora, dense),
        marginal_bytes=None if growth is None else round(growth.marginal),
        least_marginal_bytes=None if growth is None else round(growth.least_marginal),
        break_even=_break_even(growth, run, lora, dense, once, _methods(read)),
        damaged={name: str(error) for name, error in read.damaged.items()},
        growth=growth,
        inventory=read,
        base_bytes=once,
        dense_bytes=dense,
        lora_bytes=lora,
        lora_rank=lora_rank,
    )


def shares_of(users: Mapping[str, Sequence[str]], parts: Mapping[str, int]) -> dict[str, int]:
    """Return each task's share of the parts that several use, in whole bytes: the first ones have one more."""
    shares: dict[str, int] = defaultdict(int)
    for sha256, names in users.items():
        each, rest = divmod(parts[sha256], len(names))
        for i, name in enumerate(names if len(names) > 1 else ()):
            shares[name] += each + (i < rest)
    return shares


def growth_of(tasks: Sequence[Opened], parts: Mapping[str, int]) -> Growth:
    """Return the model of growth that tasks and their shared parts make, as if there were no others."""
    users, roles = users_of(tasks)
    by_role: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for sha256, names in users.items():
        by_role[roles[sha256]][len(names)] += parts[sha256]
    return Growth(
        tasks=len(tasks),
        fixed=len(PACK_JSON),
        own=tuple(task.nbytes for task in tasks),
        roles=tuple(Role(name, tuple(sorted(by_users.items()))) for name, by_users in sorted(by_role.items())),
    )


def _methods(read: Inventory) -> dict[str, Growth]:
    """Return the model of growth of each method of the pack, as if it were alone."""
    by_method: dict[str, list[Opened]] = defaultdict(list)
    for task in read.tasks:
        by_method[task.method].append(task)
    return {method: growth_of(tasks, read.parts) for method, tasks in sorted(by_method.items())}


def _amortized(
    growth: Growth, at: Sequence[int], run: float | None, lora: float | None, dense: float | None
) -> tuple[AmortizedRow, ...]:
    return tuple(
        AmortizedRow(count, round(growth.at(count) / count), round(run or 0), _whole(lora), _whole(dense))
        for count in counts_up_to(FIRST_COUNTS, (*at, growth.tasks))
    )


def _break_even(
    growth: Growth | None,
    run: float | None,
    lora: float | None,
    dense: float | None,
    base: int | None,
    methods: Mapping[str, Growth],
) -> BreakEven:
    def against(other: float | None, once: int | None = 0) -> int | None:
        if growth is None or other is None or once is None:
            return None
        return break_even(lambda count: once + growth.at(count), linear(other))

    return BreakEven(
        dense=against(dense, base),
        lora=against(lora),
        runs=against(run),
        methods=tuple(
            MethodBreakEven(mine, other, break_even(methods[mine].at, methods[other].at))
            for mine in methods
            for other in methods
            if mine != other
        ),
    )


def _mean(values: Sequence[int | None]) -> float | None:
    """Return the mean; None where a value is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)

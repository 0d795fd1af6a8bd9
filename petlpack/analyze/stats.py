"""What a pack costs: every byte of every file, by task and by purpose, and what a task costs as tasks grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from petlpack.analyze.bases import LORA_RANK, MOST_RANK, Bases, BaseSize, Source
from petlpack.analyze.choosing import choose
from petlpack.analyze.forecast import Forecast, forecast
from petlpack.analyze.growth import FIRST_COUNTS, Growth, PartRole, break_even, counts_up_to, linear
from petlpack.analyze.measuring import measure
from petlpack.analyze.reading import Inventory, Opened, Reader, users_of, without_collection
from petlpack.analyze.rows import TaskRow, task_row
from petlpack.analyze.tables import Table, table_by
from petlpack.errors import UsageError, problem_of
from petlpack.errors.arguments import Place, check, check_flags, check_max_bytes, counts_of, path_of, texts_of, whole
from petlpack.parallel import Progress
from petlpack.store import PACK_JSON, Store
from petlpack.tensors.base import Base


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
    max_bytes: int | None = field(default=None, repr=False)
    """The most that a task or a part may decode to where its bounds are asked for; None is what its files explain."""

    @property
    def errors(self) -> Mapping[str, Exception]:
        """The errors of the tasks that could not be read, by name."""
        return self.inventory.damaged

    def table(
        self,
        by: str = "task",
        *,
        filters: str | Sequence[str] = (),
        sort: str | None = None,
        bounds: bool = False,
        base: str | Path | Base | None = None,
        progress: Progress | None = None,
    ) -> Table:
        """Return the bytes by task, method, codec, section or tensor: the rows that pass `filters`, in order of `sort`.

        `filters` is one or several. `bounds` decodes every section (with `base`, where tasks need it) for the bits that
        it needs at least; what cannot be decoded is in the table's `failed`. Raises UsageError for a column or a filter
        that makes no sense.
        """
        check_flags(bounds=bounds)
        if bounds and by != "section":
            raise UsageError(f"bounds need a table by section, got one by {by}", hint="use by='section'")
        opened = base if base is None or isinstance(base, Base) else Base(base)
        filters = texts_of("filters", filters)
        # before sections are decoded: filters and the order may be refused
        chosen = choose(table_by(by, self), filters, sort)
        if not bounds:
            return chosen
        measured, failed = measure(self, Store(self.pack), opened, progress)
        return replace(choose(table_by(by, self, measured), filters, sort), failed=failed)

    def forecast(
        self,
        counts: int | Sequence[int],
        *,
        price_per_gb_month: float | None = None,
        egress_per_gb: float | None = None,
        growth_per_day: float | None = None,
    ) -> Forecast:
        """Foretell storage, monthly cost and transfer at these numbers of tasks; the base is not counted.

        Prices are for 10^9 bytes, in any currency. Raises UsageError for a number that makes no sense, and for a pack
        without a task that can be read.
        """
        return forecast(
            self,
            counts_of("counts", counts),
            price_per_gb_month=price_per_gb_month,
            egress_per_gb=egress_per_gb,
            growth_per_day=growth_per_day,
        )

    def write_plot(self, path: str | Path, forecast: Forecast | None = None) -> None:
        """Draw the pack's costs as .svg or .png; raises PetlpackError without matplotlib, UsageError, OSError."""
        from petlpack.analyze.plots import write_plot  # here, for few who count draw

        write_plot(path_of("path", path), self, forecast)

    def write_page(self, path: str | Path, forecast: Forecast | None = None) -> None:
        """Write one page of .html with all figures; raises UsageError, OSError."""
        from petlpack.analyze.page import write_page  # here, for few who count write a page

        write_page(path_of("path", path), self, forecast)

    def to_json(self, table: Table | None = None, forecast: Forecast | None = None) -> dict[str, Any]:
        """Return the object that `petlpack stats --json` prints, with one table, or with a forecast."""
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
            "damaged": {name: problem_of(error).to_json() for name, error in self.errors.items()},
            **({} if table is None else table.to_json()),
            **({} if forecast is None else {"forecast": forecast.to_json()}),
        }


def stats(
    pack: Place,
    base: str | Path | Base | None = None,
    *,
    at: int | Sequence[int] = (),
    lora_rank: int | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Stats:
    """Account for every byte of a pack; unreadable tasks are named and the rest is reported. Decodes no weights.

    `at` adds numbers of tasks to the amortised bytes. `base` is the pretrained model, for packs whose tasks do not
    say how large it is. The pack is compared with LoRAs of `lora_rank`, by default LORA_RANK. `max_bytes` is
    the most that a task or a part may decode to where bounds are asked for. Raises UsageError where there is no pack,
    or a number makes no sense.
    """
    check_max_bytes(max_bytes)
    lora_rank = LORA_RANK if lora_rank is None else lora_rank
    counts = counts_of("at", at)
    for count in counts:
        check("numbers of tasks", count, whole(1), "correct the numbers of tasks")
    check("lora_rank", lora_rank, whole(1, MOST_RANK), "lora_rank is the rank of the LoRA to compare with")
    store = Store(pack)
    reader = Reader(store, base if base is None or isinstance(base, Base) else Base(base))
    with without_collection():
        return replace(_account(reader, counts, lora_rank, progress), max_bytes=max_bytes)


def _account(reader: Reader, at: Sequence[int], lora_rank: int, progress: Progress | None) -> Stats:
    inventory = reader.read_all(progress)
    known = Bases(reader, inventory.tasks, lora_rank)
    bases = [known.of(task) for task in inventory.tasks]
    rows = _task_rows(reader, inventory, bases)
    growth = growth_of(inventory.tasks, inventory.parts) if inventory.tasks else None
    others = _Others.of(rows, [base for base, _ in bases])
    return Stats(
        pack=str(reader.store.path),
        disk_bytes=inventory.disk_bytes,
        other_bytes=inventory.other_bytes,
        damaged_bytes=inventory.damaged_bytes,
        tasks=tuple(sorted(rows, key=lambda row: (-row.bytes.takes, row.name))),
        shared=_shared_rows(inventory),
        amortized=() if growth is None else _amortized(growth, at, others),
        marginal_bytes=None if growth is None else round(growth.marginal),
        least_marginal_bytes=None if growth is None else round(growth.least_marginal),
        break_even=_break_even(growth, others, _methods(inventory)),
        damaged={name: str(error) for name, error in inventory.damaged.items()},
        growth=growth,
        inventory=inventory,
        base_bytes=others.base,
        dense_bytes=others.dense,
        lora_bytes=others.lora,
        lora_rank=lora_rank,
    )


def _task_rows(
    reader: Reader, inventory: Inventory, bases: Sequence[tuple[BaseSize | None, Source | None]]
) -> list[TaskRow]:
    """Count every task on its base."""
    shares = shares_of(inventory.users, inventory.parts)
    alone = {sha256 for sha256, names in inventory.users.items() if len(names) == 1}
    return [
        task_row(
            task,
            reader,
            base,
            alone={sha256: inventory.parts[sha256] for sha256 in task.parts if sha256 in alone},
            share=shares.get(task.name, 0),
        )
        for task, base in zip(inventory.tasks, bases, strict=True)
    ]


def _shared_rows(inventory: Inventory) -> tuple[SharedRow, ...]:
    """Return the parts that several tasks use or none, the biggest first."""
    return tuple(
        SharedRow(sha256, nbytes, inventory.roles.get(sha256, "unused"), tuple(inventory.users.get(sha256, ())))
        for sha256, nbytes in sorted(inventory.parts.items(), key=lambda part: (-part[1], part[0]))
        if len(inventory.users.get(sha256, ())) != 1
    )


@dataclass(frozen=True)
class _Others:
    """Mean bytes of a task that is kept otherwise: as its run, as one LoRA, as a dense model; None if not known."""

    run: float | None
    lora: float | None
    dense: float | None
    base: int | None
    """Bytes of the bases, each once."""

    @classmethod
    def of(cls, rows: Sequence[TaskRow], bases: Sequence[BaseSize | None]) -> _Others:
        """Return what tasks on these bases take otherwise."""
        known = {base.key: base.nbytes for base in bases if base is not None}
        return cls(
            run=_mean([row.run_bytes for row in rows]),
            lora=_mean([None if base is None else base.lora for base in bases]),
            dense=_mean([row.dense_bytes for row in rows]),
            base=None if None in bases else sum(known.values()),
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
        roles=tuple(PartRole(name, tuple(sorted(by_users.items()))) for name, by_users in sorted(by_role.items())),
    )


def _methods(inventory: Inventory) -> dict[str, Growth]:
    """Return the model of growth of each method of the pack, as if it were alone."""
    by_method: dict[str, list[Opened]] = defaultdict(list)
    for task in inventory.tasks:
        by_method[task.method].append(task)
    return {method: growth_of(tasks, inventory.parts) for method, tasks in sorted(by_method.items())}


def _amortized(growth: Growth, at: Sequence[int], others: _Others) -> tuple[AmortizedRow, ...]:
    run, lora, dense = round(others.run or 0), _whole(others.lora), _whole(others.dense)
    return tuple(
        AmortizedRow(count, round(growth.at(count) / count), run, lora, dense)
        for count in counts_up_to(FIRST_COUNTS, (*at, growth.tasks))
    )


def _break_even(growth: Growth | None, others: _Others, methods: Mapping[str, Growth]) -> BreakEven:
    def against(other: float | None, once: int | None = 0) -> int | None:
        if growth is None or other is None or once is None:
            return None
        return break_even(lambda count: once + growth.at(count), linear(other))

    return BreakEven(
        dense=against(others.dense, others.base),
        lora=against(others.lora),
        runs=against(others.run),
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

"""What `petlpack stats` prints of a pack: big first, bars, and a conclusion in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from petlpack_cli.output import WIDEST_TEXT, Output
from petlpack_cli.output.one_task import exactness
from petlpack_cli.output.rows import MOST, cell, print_csv, print_markdown, print_rows
from petlpack_cli.output.sizes import bar, count, ratio, size

if TYPE_CHECKING:
    from petlpack import Stats, Table, TaskRow

COLUMNS = {
    "task": ("task", "payload", "head", "files", "header", "share", "takes"),
    "method": ("method", "tasks", "payload", "head", "files", "header", "share", "takes"),
    "codec": ("codec", "tasks", "payload", "head", "files", "header", "share", "takes"),
    "section": ("section", "elements", "bytes", "bits", "bound", "over_bound"),
    "tensor": ("tensor", "tasks", "elements", "bytes", "bits"),
}
"""What fits 80 columns; --csv, --md and --json have all."""


def print_pack(out: Output, stats: Stats, everything: bool, at: Sequence[int] = ()) -> None:
    """Print the whole account of a pack."""
    if stats.tasks:
        most = None if everything else MOST
        _print_tasks(out, stats, most)
        out.line()
        _print_bytes(out, stats, most)
        out.line()
        _print_figures(out, stats, most)
    _print_disk(out, stats, MOST if not everything else None)
    if stats.tasks:
        out.line()
        _print_amortized(out, stats, at)
        for line in [] if out.quiet else _break_even_lines(stats):
            out.line(line)
        _print_methods(out, stats, everything)
    if not out.quiet:
        out.line()
        out.line(conclusion(stats))


def conclusion(stats: Stats) -> str:
    """Return what a pack costs in one sentence: its bytes, the next task's, those of dense models."""
    broken, number = len(stats.damaged), len(stats.tasks)
    readable = stats.disk_bytes - stats.damaged_bytes
    damage = (
        f" ({broken:,} unreadable {'one' if broken == 1 else 'ones'} {size(stats.damaged_bytes)} more)"
        if broken
        else ""
    )
    if not stats.tasks or stats.marginal_bytes is None or stats.least_marginal_bytes is None:
        return f"No readable task; the files take {size(stats.disk_bytes)}."
    takes = f"{count(number, 'task')} {'takes' if number == 1 else 'take'} {size(readable)}{damage}"
    least, most = size(stats.least_marginal_bytes), size(stats.marginal_bytes)
    then = f"the next will take about {most}"
    if number == 1 and least != most:
        then = f"another will take {least} to {most}, depending on whether it shares the parts of this one"
    if stats.dense_bytes is None:
        run = sum(row.run_bytes for row in stats.tasks)
        return f"{takes}; {then}; as runs they took {size(run)} ({ratio(run, readable)})."
    dense = round(stats.dense_bytes * number)
    return f"{takes}; {then}; as dense models they would take {size(dense)} ({ratio(dense, readable)})."


def print_table(out: Output, table: Table, everything: bool, also: Sequence[str], *, csv: bool, md: bool) -> None:
    """Print one table: as CSV or Markdown, else the columns that fit, and `also` those that are asked about."""
    if csv:
        print_csv(out, table)
    elif md:
        print_markdown(out, table)
    else:
        shown = COLUMNS[table.key]
        more = [name for name in dict.fromkeys(also) if name in table.columns and name not in shown]
        print_rows(out, table, (shown[0], *more, *shown[1:]), None if everything else MOST)
        if table.key == "tensor" and not out.quiet:
            out.line("A section's bytes are divided among its tensors by their number of elements.")


def _print_tasks(out: Output, stats: Stats, most: int | None) -> None:
    """Print the biggest tasks: what they are, what they take, and as whole models would."""
    shown, rest = (stats.tasks, ()) if most is None else (stats.tasks[:most], stats.tasks[most:])
    largest = max(*(row.bytes.takes for row in stats.tasks), _total(rest))
    rows = [
        (
            row.name,
            row.method,
            row.codec,
            exactness(row),
            *_against(_total([row]), row.dense_bytes),
            bar(_total([row]), largest, 6),
        )
        for row in shown
    ]
    if rest:
        rows.append(
            (
                f"{len(rest):,} more (--all)",
                "",
                "",
                "",
                *_against(_total(rest), _dense(rest)),
                bar(_total(rest), largest, 6),
            )
        )
    out.table(
        {
            **{"Task": "name", "Method": "text", "Codec": "text", "Exact": "text"},
            **{"Takes": "number", "Dense": "number", "Ratio": "number", "": "bar"},
        },
        rows,
        (count(len(stats.tasks), "task"), "", "", "", *_against(_total(stats.tasks), _dense(stats.tasks)), "")
        if len(stats.tasks) > 1
        else None,
    )


def _total(rows: tuple[TaskRow, ...] | list[TaskRow]) -> int:
    """Return the bytes of tasks with their share of what is shared."""
    return sum(row.bytes.takes for row in rows)


def _dense(rows: tuple[TaskRow, ...]) -> int | None:
    known = [row.dense_bytes for row in rows if row.dense_bytes is not None]
    return sum(known) if len(known) == len(rows) else None


def _against(nbytes: int, dense: int | None) -> tuple[str, str, str]:
    return size(nbytes), "-" if dense is None else size(dense), ratio(dense or 0, nbytes)


def _print_bytes(out: Output, stats: Stats, most: int | None) -> None:
    """Print where the bytes of the biggest tasks are."""
    shown, rest = (stats.tasks, ()) if most is None else (stats.tasks[:most], stats.tasks[most:])
    rows = [(row.name, *_parts_of([row])) for row in shown]
    if rest:
        rows.append((f"{len(rest):,} more (--all)", *_parts_of(rest)))
    titles = ("Payload", "Head", "Files", "Header", "Share", "Takes")
    out.table(
        {"Task": "name", **dict.fromkeys(titles, "number")},
        rows,
        ("all", *_parts_of(stats.tasks)) if len(stats.tasks) > 1 else None,
    )


def _parts_of(rows: Sequence[TaskRow]) -> tuple[str, ...]:
    """Return the sums of tasks' bytes by purpose."""
    return tuple(
        size(sum(getattr(row.bytes, part) for row in rows))
        for part in ("payload", "head", "files", "header", "share", "takes")
    )


def _print_figures(out: Output, stats: Stats, most: int | None) -> None:
    """Print what papers count, of the tasks that have anything to count beside their bytes."""
    counted = [row for row in stats.tasks if row.figures.density is not None or not row.whole]
    if not counted:
        return
    shown = counted if most is None else counted[:most]
    out.table(
        {
            **{"In papers' terms": "name", "Trained": "number", "Stored": "number", "Own": "number"},
            **{"Of base": "number", "Density": "number", "Bits": "number", "H, bits": "number"},
        },
        [
            (
                row.name,
                cell(row.figures.trained_parameters, "count"),
                cell(row.figures.stored_parameters, "count"),
                cell(row.figures.own_parameters, "count"),
                cell(row.figures.percent_of_base, "percent"),
                _share(row.figures.density),
                cell(row.figures.bits_per_entry, "bits"),
                cell(row.figures.entropy_bits, "bits"),
            )
            for row in shown
        ]
        + [(f"{len(counted) - len(shown):,} more (--all)", *[""] * 7)] * (len(shown) < len(counted)),
    )
    out.line()


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print_disk(out: Output, stats: Stats, most: int | None) -> None:
    """Print where the bytes on the disk are: tasks, each large shared part, what nobody needs."""
    used, unused = [row for row in stats.shared if row.tasks], [row for row in stats.shared if not row.tasks]
    rows = [(count(len(stats.tasks), "task"), "", sum(row.bytes.total for row in stats.tasks))]
    if stats.damaged:
        rows.append((count(len(stats.damaged), "unreadable task"), "", stats.damaged_bytes))
    listed = used if most is None else used[:PARTS]
    rows += [(f"shared: {row.role}", _users(row.used_by), row.bytes) for row in listed]
    if len(listed) < len(used):
        more = used[len(listed) :]
        rows.append((f"{count(len(more), 'more shared part')} (--all)", "", sum(row.bytes for row in more)))
    if unused:
        nobody = "that no readable task uses" if stats.damaged else "that no task uses (gc)"
        rows.append((f"{count(len(unused), 'part')} {nobody}", "", sum(row.bytes for row in unused)))
    rows.append(("pack.json and other files", "", stats.other_bytes))
    out.table(
        {"On disk": "name", "Used by": "text", " ": "number", "Bytes": "number"},
        [(name, users, size(nbytes), f"{nbytes:,}") for name, users, nbytes in rows],
        ("all files of the pack", "", size(stats.disk_bytes), f"{stats.disk_bytes:,}"),
    )


PARTS = 5
"""Shared parts that people get by name without --all."""


SHOWN = (1, 2, 5, 10, 100, 1000, 10_000)
"""Numbers of tasks whose amortised bytes people get; --json has more between them."""


def _users(names: tuple[str, ...]) -> str:
    """Return the names of few tasks, the number of many."""
    listed = ", ".join(names)
    return listed if len(listed) <= WIDEST_TEXT else count(len(names), "task")


def _print_amortized(out: Output, stats: Stats, at: Sequence[int]) -> None:
    """Print what a task takes as tasks grow, beside other storage."""
    lora = stats.lora_bytes is not None
    shown = {*SHOWN, len(stats.tasks), *at}
    largest = stats.amortized[0].bytes_per_task
    rows = [
        (
            f"{row.tasks:,}",
            size(row.bytes_per_task),
            *([cell(row.lora_bytes_per_task, "bytes")] if lora else []),
            cell(row.dense_bytes_per_task, "bytes"),
            ratio(row.dense_bytes_per_task or 0, row.bytes_per_task),
            bar(row.bytes_per_task, largest),
        )
        for row in stats.amortized
        if row.tasks in shown
    ]
    out.table(
        {
            **{"Tasks like these": "number", "Each": "number"},
            **({f"LoRA r={stats.lora_rank}": "number"} if lora else {}),
            **{"Dense": "number", "Ratio": "number", "": "bar"},
        },
        rows,
    )


def _break_even_lines(stats: Stats) -> list[str]:
    """Return from how many tasks on the pack takes less than other storage, and which base that is counted with."""
    runs = stats.break_even.runs
    lines = [f"From {count(runs, 'task')} on, the pack is smaller than the runs' tensors."] if runs else []
    unknown = [row for row in stats.tasks if row.dense_bytes is None]
    if unknown:
        lines.append(f"{_tasks(unknown)} not record which base; give --base DIR for the size of dense models.")
    if stats.dense_bytes is not None and stats.base_bytes is not None:
        lines.append(_from(stats.break_even.dense, "than dense models, the base counted once"))
    if stats.lora_bytes is not None:
        lines.append(_from(stats.break_even.lora, f"than one LoRA a task (rank {stats.lora_rank})"))
    return lines


def _tasks(rows: Sequence[TaskRow]) -> str:
    return f"{count(len(rows), 'task')} {'does' if len(rows) == 1 else 'do'}"


def _from(tasks: int | None, what: str) -> str:
    return (
        f"The pack is never smaller {what}."
        if tasks is None
        else f"From {count(tasks, 'task')} on, the pack is smaller {what}."
    )


def _print_methods(out: Output, stats: Stats, everything: bool) -> None:
    """Print from how many tasks on each method of the pack takes less than another, where there are several."""
    pairs = [row for row in stats.break_even.methods if row.tasks is not None]
    if not pairs:
        return
    shown = pairs if everything else pairs[:MOST]
    out.line()
    out.table(
        {"Method alone": "text", "takes less than": "text", "from": "number"},
        [(row.method, row.against, count(row.tasks or 0, "task")) for row in shown]
        + [(f"{len(pairs) - len(shown):,} more (--all)", "", "")] * (len(shown) < len(pairs)),
    )

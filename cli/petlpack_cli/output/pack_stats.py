"""What `petlpack stats` prints of a pack: big first, bars, and a conclusion in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from petlpack.errors import printable
from petlpack_cli.output import WIDEST_TEXT, Output
from petlpack_cli.output.errors import describe
from petlpack_cli.output.one_task import exactness
from petlpack_cli.output.rows import MOST, cell, print_csv, print_markdown, print_rows
from petlpack_cli.output.sizes import bar, count, ratio, size

if TYPE_CHECKING:
    import petlpack
    from petlpack.analyze.forecast import Cost, Forecast, ForecastRow
    from petlpack.analyze.rows import TaskRow
    from petlpack.analyze.tables import Table

COLUMNS = {
    "task": ("task", "payload", "head", "files", "header", "share", "takes"),
    "method": ("method", "tasks", "payload", "head", "files", "header", "share", "takes"),
    "codec": ("codec", "tasks", "payload", "head", "files", "header", "share", "takes"),
    "section": ("section", "elements", "bytes", "bits", "bound", "over_bound"),
    "tensor": ("tensor", "tasks", "elements", "bytes", "bits"),
}
"""What fits 80 columns; --csv, --md and --json have all."""


def print_pack(out: Output, found: petlpack.Stats, everything: bool, at: Sequence[int] = ()) -> None:
    """Print the whole account of a pack."""
    if found.tasks:
        most = None if everything else MOST
        _print_tasks(out, found, most)
        out.line()
        _print_bytes(out, found, most)
        out.line()
        _print_figures(out, found, most)
    _print_disk(out, found, MOST if not everything else None)
    if found.tasks:
        out.line()
        _print_amortized(out, found, at)
        _print_methods(out, found, everything)
    if not out.quiet:
        out.line()
        out.line(conclusion(found))


def conclusion(found: petlpack.Stats) -> str:
    """Return what a pack costs in one sentence: its bytes, the next task's, those of dense models."""
    broken, number = len(found.damaged), len(found.tasks)
    readable = found.disk_bytes - found.damaged_bytes
    more = (
        f" ({broken:,} damaged {'one' if broken == 1 else 'ones'} {size(found.damaged_bytes)} more)" if broken else ""
    )
    if not found.tasks or found.marginal_bytes is None or found.least_marginal_bytes is None:
        return f"No task that can be read; the files take {size(found.disk_bytes)}."
    told = f"{count(number, 'task')} {'takes' if number == 1 else 'take'} {size(readable)}{more}; "
    least, most = size(found.least_marginal_bytes), size(found.marginal_bytes)
    if number == 1 and least != most:
        told += f"another will take {least} to {most}, as it shares the parts of this one or not; "
    else:
        told += f"the next will take about {most}; "
    if found.dense_bytes is None:
        run = sum(row.run_bytes for row in found.tasks)
        return f"{told}as runs they took {size(run)} ({ratio(run, readable)})."
    dense = round(found.dense_bytes * number)
    return f"{told}as dense models they would take {size(dense)} ({ratio(dense, readable)})."


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
            out.line("A section's bytes are divided over the tensors in it by their elements.")


def print_damaged(damaged: Mapping[str, Exception]) -> None:
    """Name what could not be read on stderr, tasks with one reason together, with what to do about it."""
    reasons: dict[tuple[str, str | None], list[str]] = {}
    for name, error in damaged.items():
        problem = describe(error)
        reasons.setdefault((problem.message, problem.hint), []).append(name)
    for (message, hint), names in reasons.items():
        told = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        click.echo(f"Error: {printable(told)}: {printable(message)}", err=True)
        click.echo(
            f"Hint: {printable(hint or 'damaged tasks count on the disk only; `petlpack verify` tells more')}", err=True
        )


def print_forecast(out: Output, found: petlpack.Stats, seen: Forecast) -> None:
    """Print what storage will take, and cost where a price is given."""
    _print_costs(out, seen, "Storage", "bytes")
    if seen.price_per_gb_month is not None:
        out.line()
        _print_costs(out, seen, "Money a month", "monthly")
    if seen.egress_per_gb is not None:
        out.line()
        _print_costs(out, seen, "Money to send all once", "transfer")
    if out.quiet:
        return
    out.line()
    told = f"Foretold from {count(seen.tasks_now, 'task')} of this mix"
    if seen.error is None:
        out.line(f"{told}, which says nothing of how much tasks differ.")
    else:
        out.line(f"{told}; the pack's figures may be off by {100 * seen.error:.2g} %, 19 times of 20.")
    last = seen.rows[-1]
    told = f"{count(last.tasks, 'task')} like these {'takes' if last.tasks == 1 else 'take'} {size(last.pack.bytes)}"
    if last.dense is not None:
        told += f", as dense models {size(last.dense.bytes)} ({ratio(last.dense.bytes, last.pack.bytes)})"
    if last.days:
        told += f", in {_days(last.days)} days"
    out.line(f"{told}; the base is not counted.")


def _print_costs(out: Output, seen: Forecast, title: str, field: str) -> None:
    """Print one figure of every way to keep tasks, and where it lies on a scale of powers of ten."""

    def told(cost: Cost | None) -> str:
        value = None if cost is None else getattr(cost, field)
        return "-" if value is None else size(value) if field == "bytes" else _money(value)

    days = seen.growth_per_day is not None
    every = [cost.bytes for row in seen.rows for cost in (row.pack, row.lora, row.dense) if cost is not None]
    out.table(
        {
            **{title: "name"},
            **({"Day": "number"} if days else {}),
            **{"This pack": "number", "LoRA each": "number", "Dense each": "number"},
            **({"Pack, LoRA, Dense": "text"} if field == "bytes" else {}),
        },
        [
            (
                count(row.tasks, "task"),
                *([_days(row.days)] if days else []),
                *(told(row.pack), told(row.lora), told(row.dense)),
                *([_on_scale(row, min(every), max(every))] if field == "bytes" else []),
            )
            for row in seen.rows
        ],
    )


SCALE = 20
"""Characters of the scale on which a forecast's bytes are shown."""


def _on_scale(row: ForecastRow, least: int, most: int) -> str:
    """Return a line with P, L and D where pack, LoRA and dense models lie between `least` and `most`, by powers."""
    line = ["."] * SCALE
    for letter, cost in (("D", row.dense), ("L", row.lora), ("P", row.pack)):
        if cost is not None and cost.bytes:
            span = math.log(most / least) or 1
            line[round((SCALE - 1) * math.log(cost.bytes / least) / span)] = letter
    return "".join(line)


def _days(days: float | None) -> str:
    return "now" if not days else "<1" if days < 1 else f"{math.ceil(days):,}"


def _money(value: float) -> str:
    return "<0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def _print_tasks(out: Output, found: petlpack.Stats, most: int | None) -> None:
    """Print the biggest tasks: what they are, what they take, and as whole models would."""
    shown, rest = (found.tasks, ()) if most is None else (found.tasks[:most], found.tasks[most:])
    largest = max(*(row.bytes.takes for row in found.tasks), _total(rest))
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
        (count(len(found.tasks), "task"), "", "", "", *_against(_total(found.tasks), _dense(found.tasks)), "")
        if len(found.tasks) > 1
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


def _print_bytes(out: Output, found: petlpack.Stats, most: int | None) -> None:
    """Print where the bytes of the biggest tasks are."""
    shown, rest = (found.tasks, ()) if most is None else (found.tasks[:most], found.tasks[most:])
    rows = [(row.name, *_parts_of([row])) for row in shown]
    if rest:
        rows.append((f"{len(rest):,} more (--all)", *_parts_of(rest)))
    titles = ("Payload", "Head", "Files", "Header", "Share", "Takes")
    out.table(
        {"Task": "name", **dict.fromkeys(titles, "number")},
        rows,
        ("all", *_parts_of(found.tasks)) if len(found.tasks) > 1 else None,
    )


def _parts_of(rows: Sequence[TaskRow]) -> tuple[str, ...]:
    """Return the sums of tasks' bytes by purpose."""
    return tuple(
        size(sum(getattr(row.bytes, part) for row in rows))
        for part in ("payload", "head", "files", "header", "share", "takes")
    )


def _print_figures(out: Output, found: petlpack.Stats, most: int | None) -> None:
    """Print what papers count, of the tasks that have anything to count beside their bytes."""
    counted = [row for row in found.tasks if row.figures.density is not None or not row.whole]
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


def _print_disk(out: Output, found: petlpack.Stats, most: int | None) -> None:
    """Print where the bytes on the disk are: tasks, each large shared part, what nobody needs."""
    used, unused = [row for row in found.shared if row.tasks], [row for row in found.shared if not row.tasks]
    rows = [(count(len(found.tasks), "task"), "", sum(row.bytes.total for row in found.tasks))]
    if found.damaged:
        rows.append((count(len(found.damaged), "damaged task"), "", found.damaged_bytes))
    listed = used if most is None else used[:PARTS]
    rows += [(f"shared: {row.role}", _users(row.used_by), row.bytes) for row in listed]
    if len(listed) < len(used):
        more = used[len(listed) :]
        rows.append((f"{count(len(more), 'more shared part')} (--all)", "", sum(row.bytes for row in more)))
    if unused:
        nobody = "that no readable task needs" if found.damaged else "that no task needs (gc)"
        rows.append((f"{count(len(unused), 'part')} {nobody}", "", sum(row.bytes for row in unused)))
    rows.append(("pack.json and other files", "", found.other_bytes))
    out.table(
        {"On disk": "name", "Used by": "text", " ": "number", "Bytes": "number"},
        [(name, users, size(nbytes), f"{nbytes:,}") for name, users, nbytes in rows],
        ("all files of the pack", "", size(found.disk_bytes), f"{found.disk_bytes:,}"),
    )


PARTS = 5
"""Shared parts that people get by name without --all."""


SHOWN = (1, 2, 5, 10, 100, 1000, 10_000)
"""Numbers of tasks whose amortised bytes people get; --json has more between them."""


def _users(names: tuple[str, ...]) -> str:
    """Return the names of few tasks, the number of many."""
    told = ", ".join(names)
    return told if len(told) <= WIDEST_TEXT else count(len(names), "task")


def _print_amortized(out: Output, found: petlpack.Stats, at: Sequence[int]) -> None:
    """Print what a task takes as tasks grow, and from where on that is less than other storage."""
    lora = found.lora_bytes is not None
    shown = {*SHOWN, len(found.tasks), *at}
    largest = found.amortized[0].bytes_per_task
    rows = [
        (
            f"{row.tasks:,}",
            size(row.bytes_per_task),
            *([cell(row.lora_bytes_per_task, "bytes")] if lora else []),
            cell(row.dense_bytes_per_task, "bytes"),
            ratio(row.dense_bytes_per_task or 0, row.bytes_per_task),
            bar(row.bytes_per_task, largest),
        )
        for row in found.amortized
        if row.tasks in shown
    ]
    out.table(
        {
            **{"Tasks like these": "number", "Each": "number"},
            **({f"LoRA r={found.lora_rank}": "number"} if lora else {}),
            **{"Dense": "number", "Ratio": "number", "": "bar"},
        },
        rows,
    )
    if out.quiet:
        return
    told = (
        [f"From {count(found.break_even.runs, 'task')} on smaller than the runs' tensors."]
        if found.break_even.runs
        else []
    )
    lent = [row for row in found.tasks if row.base == "pack" and not row.whole]
    unknown = [row for row in found.tasks if row.dense_bytes is None]
    if unknown:
        told.append(f"{_tasks(unknown)} not say which base; --base DIR tells how large dense models are.")
    elif lent:
        told.append(f"{_tasks(lent)} not say which base; that of the others is taken.")
    if found.dense_bytes is not None and found.base_bytes is not None:
        told.append(_from(found.break_even.dense, "than dense models, the base counted once"))
    if lora:
        told.append(_from(found.break_even.lora, f"than one LoRA a task (rank {found.lora_rank})"))
    for line in told:
        out.line(line)


def _tasks(rows: Sequence[TaskRow]) -> str:
    return f"{count(len(rows), 'task')} {'does' if len(rows) == 1 else 'do'}"


def _from(tasks: int | None, what: str) -> str:
    return f"Never smaller {what}." if tasks is None else f"From {count(tasks, 'task')} on smaller {what}."


def _print_methods(out: Output, found: petlpack.Stats, everything: bool) -> None:
    """Print from how many tasks on each method of the pack takes less than another, where there are several."""
    pairs = [row for row in found.break_even.methods if row.tasks is not None]
    if not pairs:
        return
    shown = pairs if everything else pairs[:MOST]
    out.line()
    out.table(
        {"Method alone": "text", "takes less than": "text", "from": "number"},
        [(row.method, row.against, count(row.tasks or 0, "task")) for row in shown]
        + [(f"{len(pairs) - len(shown):,} more (--all)", "", "")] * (len(shown) < len(pairs)),
    )

"""`petlpack stats`: what a pack costs, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import petlpack
from petlpack.errors import printable
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import DAMAGE
from petlpack_cli.output.sizes import count, ratio, size

if TYPE_CHECKING:
    from petlpack.analyze.stats import TaskRow

MOST = 20
"""Rows of a table that people get without --all: what fits a screen; the rest is one row."""


@command("stats", "petlpack stats glue.pack", "petlpack stats glue.pack --all", "petlpack stats --json")
@pack_argument()
@click.option("--all", "everything", is_flag=True, help=f"Every task, not only the {MOST} biggest.")
def run(out: Output, pack: Path, everything: bool) -> int | None:
    """Account for every byte of a pack.

    A task's bytes are its method's payload, its head's payload, the kept files that no other task has, and its file's
    header. What several tasks share is counted once. The sum is the sum of the sizes of all files of the pack. No
    weights are decoded. Of tasks of a method it also tells what papers count: trained and stored parameters (the
    task's own apart), the share of the base, the density of masks and sparse differences, bits for each mask entry,
    and H, the bits that a random mask of that density needs.
    """
    found = petlpack.stats(pack)
    if out.as_json:
        out.json(found.to_json())
    else:
        _print(out, found, None if everything else MOST)
    return DAMAGE if found.damaged else None


def _print(out: Output, found: petlpack.Stats, most: int | None) -> None:
    if found.tasks:
        _print_tasks(out, found, most)
        out.line()
        _print_figures(out, found, most)
    _print_disk(out, found)
    if found.amortized:
        out.line()
        out.table(
            {"Tasks like these": "number", "Each": "number", "Dense each": "number", "Ratio": "number"},
            [
                (
                    f"{row.tasks:,}",
                    size(row.bytes_per_task),
                    size(row.dense_bytes_per_task),
                    ratio(row.dense_bytes_per_task, row.bytes_per_task),
                )
                for row in found.amortized
            ],
        )
        if not out.quiet:
            out.line(
                "Tasks like these take more than dense checkpoints, however many there are."
                if found.break_even is None
                else f"From {count(found.break_even, 'task')} on, the pack is smaller than dense checkpoints, "
                "the base not counted."
            )
    for name, why in found.damaged.items():
        click.echo(f"Error: {printable(name)}: {printable(why)}", err=True)
    if found.damaged:
        click.echo("Hint: `petlpack verify` checks every byte; damaged tasks count on disk only", err=True)


def _print_tasks(out: Output, found: petlpack.Stats, most: int | None) -> None:
    """Print the biggest tasks, the rest as one row, and the sum of all."""
    shown, rest = (found.tasks, ()) if most is None else (found.tasks[:most], found.tasks[most:])
    rows = [(row.name, *_cells([row])) for row in shown]
    if rest:
        rows.append((f"{len(rest):,} more (--all)", *_cells(rest)))
    out.table(
        {
            "Task": "name",
            "Payload": "number",
            "Head": "number",
            "Files": "number",
            "Header": "number",
            "Total": "number",
            "Dense": "number",
            "Ratio": "number",
        },
        rows,
        (count(len(found.tasks), "task"), *_cells(found.tasks)) if len(found.tasks) > 1 else None,
    )


def _print_figures(out: Output, found: petlpack.Stats, most: int | None) -> None:
    """Print what papers count, of the tasks that have anything to count beside their bytes."""
    counted = [row for row in found.tasks if row.figures.density is not None or row.figures.trained_parameters]
    if not counted:
        return
    out.table(
        {
            "In papers' terms": "name",
            "Trained": "number",
            "Stored": "number",
            "Own": "number",
            "Of base": "number",
            "Density": "number",
            "Bits": "number",
            "H": "number",
        },
        [
            (
                row.name,
                _number(row.figures.trained_parameters),
                _number(row.figures.stored_parameters),
                _number(row.figures.own_parameters),
                _share(row.figures.percent_of_base, "%"),
                _share(row.figures.density),
                _share(row.figures.bits_per_entry),
                _share(row.figures.entropy_bits),
            )
            for row in (counted if most is None else counted[:most])
        ],
    )
    out.line()


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _share(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3f}{unit}"


def _cells(rows: Sequence[TaskRow]) -> tuple[str, ...]:
    """Return the sums of some tasks."""
    total, dense = sum(row.bytes.total for row in rows), sum(row.dense_bytes for row in rows)
    return (
        size(sum(row.bytes.payload for row in rows)),
        size(sum(row.bytes.head for row in rows)),
        size(sum(row.bytes.files for row in rows)),
        size(sum(row.bytes.header for row in rows)),
        size(total),
        size(dense),
        ratio(dense, total),
    )


def _print_disk(out: Output, found: petlpack.Stats) -> None:
    """Print where the bytes on the disk are."""
    used, unused = [row for row in found.shared if row.tasks], [row for row in found.shared if not row.tasks]
    own = sum(row.bytes.total for row in found.tasks)
    rows = [(count(len(found.tasks), "task"), size(own), f"{own:,}")]
    if found.damaged_bytes:
        lost = found.damaged_bytes
        rows.append((count(len(found.damaged), "damaged task"), size(lost), f"{lost:,}"))
    nobody = "needed by no readable task" if found.damaged else "needed by no task (gc)"
    for label, parts in (("shared by tasks", used), (nobody, unused)):
        if parts:
            nbytes = sum(row.bytes for row in parts)
            rows.append((f"{count(len(parts), 'part')} {label}", size(nbytes), f"{nbytes:,}"))
    rows.append(("pack.json and leftovers", size(found.other_bytes), f"{found.other_bytes:,}"))
    out.table(
        {"On disk": "name", "": "number", "Bytes": "number"},
        rows,
        ("all files of the pack", size(found.disk_bytes), f"{found.disk_bytes:,}"),
    )

"""`petlpack list`: the tasks of a pack."""

from __future__ import annotations

from pathlib import Path

import click

import petlpack
from petlpack_cli.command import command, max_bytes_option, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, error_lines, worst
from petlpack_cli.output.sizes import count, ratio, size


@command("list", "petlpack list glue.pack", "petlpack list glue.pack --long --sort bytes", "petlpack list --quiet")
@pack_argument()
@click.option("--long", is_flag=True, help="Open every task and show method, codec and bytes of the run's tensors.")
@click.option(
    "--sort",
    type=click.Choice(["name", "bytes"]),
    default="name",
    help="By name (the default), or biggest file first.",
)
@max_bytes_option
def run(out: Output, pack: Path, long: bool, sort: str, max_bytes: int | None) -> int | None:
    """List the tasks of a pack.

    Bytes are those of a task's own file; `petlpack stats` adds what tasks share. --quiet prints names only.
    """
    with out.progress() as progress:
        listing = petlpack.listing(
            pack,
            long=long and (out.as_json or not out.quiet),
            biggest_first=sort == "bytes",
            max_bytes=max_bytes,
            progress=progress.bytes(str(pack)),
        )
    problems = {row.name: describe(row.error) for row in listing.tasks if row.error is not None}
    if out.as_json:
        out.json(listing.to_json())
        return worst(problems.values())
    out.foreign(listing.foreign)
    if out.quiet:
        out.names([row.name for row in listing.tasks])
    elif long:
        _print_long(out, listing)
    else:
        rows = [(row.name, size(row.nbytes)) for row in listing.tasks]
        out.table({"Task": "name", "Bytes": "number"}, rows, _total(listing))
    for name, problem in problems.items():
        click.echo(error_lines(problem, f"{name}: "), err=True)
    return worst(problems.values())


def _total(listing: petlpack.Listing) -> tuple[str, str]:
    return count(len(listing.tasks), "task"), size(listing.nbytes)


def _print_long(out: Output, listing: petlpack.Listing) -> None:
    runs = sum(row.task.facts.run_bytes or 0 for row in listing.tasks if row.task is not None)
    number, nbytes = _total(listing)
    out.table(
        {"Task": "name", "Method": "text", "Codec": "text", "Run": "number", "Bytes": "number", "Ratio": "number"},
        [_long_cells(row) for row in listing.tasks],
        (number, "", "", size(runs), nbytes, ""),
    )


def _long_cells(row: petlpack.ListedTask) -> tuple[str, ...]:
    if row.task is None:
        return row.name, "cannot be read", "-", "-", size(row.nbytes), "-"
    run_bytes = row.task.facts.run_bytes
    return (
        row.name,
        row.task.method,
        row.task.codec,
        size(run_bytes) if run_bytes is not None else "?",
        size(row.nbytes),
        ratio(run_bytes or 0, row.nbytes),
    )

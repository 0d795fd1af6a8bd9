"""`petlpack list`: the tasks of a pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import Problem, describe, worst
from petlpack_cli.output.sizes import count, ratio, size


@dataclass(frozen=True)
class Row:
    """A task by its file alone: the directory is the index, so 10,000 tasks take a tenth of a second."""

    name: str
    nbytes: int


@command("list", "petlpack list glue.pack", "petlpack list glue.pack --long --sort bytes", "petlpack list --quiet")
@pack_argument()
@click.option("--long", is_flag=True, help="Open every task, too: method, codec, bytes of the run's tensors.")
@click.option(
    "--sort",
    type=click.Choice(["name", "bytes"]),
    default="name",
    help="By name (the default), or the biggest file first.",
)
def run(out: Output, pack: Path, long: bool, sort: str) -> int | None:
    """List the tasks of a pack.

    Bytes are those of a task's own file; `petlpack stats` adds what tasks share. --quiet prints names only.
    """
    rows = sorted(_read(pack), key=lambda row: (-row.nbytes, row.name) if sort == "bytes" else (0, row.name))
    if out.quiet and not out.as_json:
        out.names([row.name for row in rows])
        return None
    if long:
        return _print_long(out, pack, rows)
    if out.as_json:
        out.json({"pack": str(pack), "tasks": [{"name": row.name, "bytes": row.nbytes} for row in rows]})
    else:
        out.table({"Task": "name", "Bytes": "number"}, [(row.name, size(row.nbytes)) for row in rows], _total(rows))
    return None


def _read(pack: Path) -> list[Row]:
    """Read names and bytes from the directory; opens no file, and needs neither numpy nor a coder."""
    from petlpack.store import Store, task_file

    store = Store(pack)
    sizes = dict(store.files())
    return [Row(name, sizes[task_file(name)]) for name in store.task_names() if task_file(name) in sizes]


def _total(rows: list[Row]) -> tuple[str, ...]:
    return count(len(rows), "task"), size(sum(row.nbytes for row in rows))


def _print_long(out: Output, pack: Path, rows: list[Row]) -> int | None:
    opened = petlpack.open(pack)
    tasks: dict[str, petlpack.Task] = {}
    problems: dict[str, Problem] = {}
    with out.progress() as progress:
        for row in progress.each(rows, len(rows)):
            try:
                task = opened[row.name]
                task.exact  # noqa: B018 - asks for the codec, which this version may not know
                tasks[row.name] = task
            except petlpack.PetlpackError as error:
                problems[row.name] = describe(error)
    if out.as_json:
        table = [_long_json(row, tasks.get(row.name), problems.get(row.name)) for row in rows]
        out.json({"pack": str(pack), "tasks": table})
        return worst(problems.values())
    cells = [_long_cells(row, tasks.get(row.name)) for row in rows]
    before = sum(task.facts.run_bytes or 0 for task in tasks.values())
    total = (_total(rows)[0], "", "", size(before), _total(rows)[1], "")
    out.table(
        {"Task": "name", "Method": "text", "Codec": "text", "Run": "number", "Bytes": "number", "Ratio": "number"},
        cells,
        total,
    )
    for name, problem in problems.items():
        click.echo(problem.lines(f"{name}: "), err=True)
    return worst(problems.values())


def _long_json(row: Row, task: petlpack.Task | None, problem: Problem | None) -> dict[str, object]:
    return {
        "name": row.name,
        "bytes": row.nbytes,
        "method": task and task.method,
        "codec": task and task.codec,
        "exact": task and task.exact,
        "run_bytes": task and task.facts.run_bytes,
        "error": problem and problem.to_json(),
    }


def _long_cells(row: Row, task: petlpack.Task | None) -> tuple[str, ...]:
    if task is None:
        return row.name, "cannot be read", "-", "-", size(row.nbytes), "-"
    nbytes = task.facts.run_bytes
    return (
        row.name,
        task.method,
        task.codec,
        size(nbytes) if nbytes is not None else "?",
        size(row.nbytes),
        ratio(nbytes or 0, row.nbytes),
    )

"""`petlpack remove`: tasks out of a pack."""

from __future__ import annotations

from pathlib import Path

import click

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import naming
from petlpack_cli.output.sizes import count, size


@command("remove", "petlpack remove glue.pack sst2", "petlpack remove glue.pack rte-seed1 rte-seed2")
@pack_argument(required=True)
@click.argument("tasks", metavar="TASK...", nargs=-1, required=True)
def run(out: Output, pack: Path, tasks: tuple[str, ...]) -> None:
    """Remove tasks from a pack.

    Nothing is removed if one of the names is not in the pack. Shared parts stay until `petlpack gc`.
    """
    with naming(pack):
        removed = petlpack.remove(pack, tasks)
    if out.as_json:
        out.json(removed.to_json())
        return
    for warning in removed.warnings:
        out.warn(warning)
    if not out.quiet:
        out.line(f"{count(len(removed.tasks), 'task')} removed, {size(removed.nbytes)} freed.")
        out.talk("Run `petlpack gc` to delete shared parts that no task uses any more.")

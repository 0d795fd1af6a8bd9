"""`petlpack gc`: delete what no task needs."""

from __future__ import annotations

from pathlib import Path

import click

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import naming
from petlpack_cli.output.sizes import count, size


@command("gc", "petlpack gc glue.pack --dry-run", "petlpack gc glue.pack")
@pack_argument()
@click.option("--dry-run", is_flag=True, help="Delete nothing, only show what would be deleted.")
def run(out: Output, pack: Path, dry_run: bool) -> None:
    """Delete shared parts that no task uses, and what interrupted writers left behind a day ago or earlier.

    Nothing is deleted while a task of the pack cannot be read: what it needs is then unknown.
    """
    with naming(pack):
        garbage = petlpack.gc(pack, dry_run=dry_run)
    if out.as_json:
        out.json(garbage.to_json())
    elif not out.quiet:
        if garbage.files:
            rows = [(_short(name), size(nbytes)) for name, nbytes in garbage.files.items()]
            out.table({"File": "name", "Bytes": "number"}, rows)
            freed = "would be freed" if dry_run else "freed"
            out.line(f"{count(len(garbage.files), 'file')}, {size(garbage.nbytes)} {freed}.")
        else:
            out.line("Nothing to delete.")


def _short(name: str) -> str:
    """Return the name of a shared part's file with as much of its digest as people need."""
    head, _, digest = name.partition("shared/")
    return f"shared/{digest[:16]}..." if not head and not digest.startswith(".") else name

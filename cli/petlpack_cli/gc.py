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
@click.option("--dry-run", is_flag=True, help="Delete nothing, show what would go.")
def run(out: Output, pack: Path, dry_run: bool) -> None:
    """Delete shared parts that no task needs, and what interrupted writers left behind a day ago or earlier.

    Nothing is deleted while a task of the pack cannot be read: what it needs is then unknown.
    """
    with naming(pack):
        garbage = petlpack.open(pack).gc(dry_run=dry_run)
    nbytes = sum(freed for _, freed in garbage)
    files = [(path.relative_to(pack).as_posix(), freed) for path, freed in garbage]
    if out.as_json:
        rows = [{"file": name, "bytes": freed} for name, freed in files]
        out.json({"pack": str(pack), "dry_run": dry_run, "files": rows, "bytes": nbytes})
    elif not out.quiet:
        if files:
            out.table({"File": "name", "Bytes": "number"}, [(_short(name), size(freed)) for name, freed in files])
            out.line(f"{count(len(files), 'file')}, {size(nbytes)} {'would be freed' if dry_run else 'freed'}.")
        else:
            out.line("Nothing to delete.")


def _short(name: str) -> str:
    """Return the name of a shared part's file with as much of its digest as people need."""
    head, _, digest = name.partition("shared/")
    return f"shared/{digest[:16]}..." if not head and not digest.startswith(".") else name

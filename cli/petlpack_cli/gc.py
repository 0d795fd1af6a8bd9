"""`petlpack gc`: delete what no task needs."""

from __future__ import annotations

from pathlib import Path

import click

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import naming
from petlpack_cli.output.sizes import count, size


@command("gc", "petlpack gc glue.pack --dry-run", "petlpack gc glue.pack", "petlpack gc glue.pack --all --dry-run")
@pack_argument()
@click.option("--dry-run", is_flag=True, help="Delete nothing, only show what would be deleted.")
@click.option("--all", "everything", is_flag=True, help="Delete also parts that no task of this pack gave up.")
def run(out: Output, pack: Path, dry_run: bool, everything: bool) -> None:
    """Delete shared parts that removed tasks gave up, or replaced ones, and no task uses; and what killed writers left.

    Other parts that no task uses may belong to tasks that are still to be copied: they are named, and stay without
    --all. Nothing is deleted while a task of the pack cannot be read: what it needs is then unknown.
    """
    with naming(pack):
        garbage = petlpack.gc(pack, dry_run=dry_run, everything=everything)
    if out.as_json:
        out.json(garbage.to_json())
        return
    for warning in garbage.warnings:
        out.warn(warning)
    if not out.quiet:
        if garbage.files:
            rows = [(_short(name), size(nbytes)) for name, nbytes in garbage.files.items()]
            out.table({"File": "name", "Bytes": "number"}, rows)
            freed = "would be freed" if dry_run else "freed"
            out.line(f"{count(len(garbage.files), 'file')}, {size(garbage.nbytes)} {freed}.")
        else:
            out.line("Nothing to delete.")
        if garbage.unexplained:
            parts, nbytes = count(len(garbage.unexplained), "shared part"), size(sum(garbage.unexplained.values()))
            out.line(f"{parts} of {nbytes} that no task here uses stay, for none gave them up: is the pack complete?")
            out.talk("`petlpack gc --all --dry-run` lists what --all would delete.")


def _short(name: str) -> str:
    """Return the name of a shared part's file with as much of its digest as people need."""
    head, _, digest = name.partition("shared/")
    return f"shared/{digest[:16]}..." if not head and not digest.startswith(".") else name

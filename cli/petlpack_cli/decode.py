"""`petlpack decode`: a task back into a run directory."""

from __future__ import annotations

from pathlib import Path

import click

import petlpack
from petlpack_cli.command import PATH, KnownChoice, bases_option, command, jobs_option, max_bytes_option, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import naming
from petlpack_cli.output.sizes import count, size


@command("decode", "petlpack decode glue.pack sst2 restored/sst2 --base models/bert-base")
@pack_argument(required=True)
@click.argument("task")
@click.argument("target", metavar="OUT", type=PATH)
@bases_option("The pretrained model that the task was packed against; by default the one that the run's config names.")
@click.option(
    "--to",
    type=KnownChoice(petlpack.known_exports),
    help="What to write: the run as it was (the default), its rebuilt tensors, the run "
    "without pickled weights, or what another library loads.",
)
@click.option("--no-code", is_flag=True, help="Leave out code and pickles of the run (*.py, *.pkl, ...).")
@max_bytes_option
@jobs_option()
def run(
    out: Output,
    pack: Path,
    task: str,
    target: Path,
    base: tuple[Path, ...] | None,
    to: str | None,
    no_code: bool,
    max_bytes: int | None,
    jobs: int | None,
) -> None:
    """Restore a task as the run that it was.

    OUT is a new directory: the weight files bit for bit, and the other files of the run byte for byte. It appears
    only when it is complete and its digest is the one that was packed. Code and pickles among them are named. With
    --to, the adapter or LoRA that the task's rule makes is written for another library.
    """
    opened = petlpack.open(pack, max_bytes=max_bytes)[task]
    with out.progress() as progress, naming(target):
        export, moved = to or petlpack.known_exports()[0], progress.bytes(task)
        decoded = opened.decode(target, base, to=export, code=not no_code, jobs=jobs, progress=moved)
    if out.as_json:
        out.json(decoded.to_json())
        return
    for note in decoded.notes:
        out.warn(note)
    if not out.quiet:
        files, nbytes = count(len(decoded.files), "file"), size(sum(decoded.files.values()))
        out.line(f"{task} -> {target}: {files}, {nbytes}, {_exactness(decoded)}")


def _exactness(decoded: petlpack.Decoded) -> str:
    """Say how near what was written is to what was trained."""
    if not decoded.exact:
        return "within the error that `petlpack show` reports"
    return "every weight bit for bit" if decoded.restored else f"written for {decoded.to}"

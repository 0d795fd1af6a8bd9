"""`petlpack decode`: a task back into a run directory."""

from __future__ import annotations

import time
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import base_option, command, jobs_option, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import naming
from petlpack_cli.output.sizes import count, size


@command("decode", "petlpack decode glue.pack sst2 restored/sst2 --base models/bert-base")
@pack_argument(required=True)
@click.argument("task")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@base_option("The pretrained model that the task was packed against; by default what the run's own config named.")
@click.option(
    "--to",
    type=click.Choice(["run", "safetensors", "peft", "adapterhub"]),
    default="run",
    help="What to write: the run as it was (the default), its rebuilt tensors, or what PEFT or AdapterHub loads.",
)
@jobs_option
def run(out: Output, pack: Path, task: str, target: Path, base: Path | None, to: str, jobs: int | None) -> None:
    """Give a task back as the run that it was.

    OUT is a new directory: the weight files bit for bit, and the small files that loading needs byte for byte. It
    appears only when it is complete and its digest is the one that was packed. With --to, the adapter or LoRA that
    the task's rule makes is written for another library.
    """
    started = time.perf_counter()
    opened = petlpack.open(pack)[task]
    with out.progress() as progress, naming(target):
        decoded = opened.decode(target, base, to=to, jobs=jobs, progress=progress.bytes(task))
        files = {p.relative_to(target).as_posix(): p.stat().st_size for p in sorted(target.rglob("*")) if p.is_file()}
    if out.as_json:
        out.json(
            {
                "task": task,
                "out": str(target),
                "to": to,
                "notes": list(decoded.notes),
                "codec": opened.codec,
                "exact": opened.exact,
                "decoded_sha256": opened.manifest.decoded,
                "files": [{"file": name, "bytes": nbytes} for name, nbytes in files.items()],
                "bytes": sum(files.values()),
                "seconds": round(time.perf_counter() - started, 6),
            }
        )
        return
    for note in decoded.notes:
        out.warn(note)
    if not out.quiet:
        out.line(f"{task} -> {target}: {count(len(files), 'file')}, {size(sum(files.values()))}, {_how(opened, to)}")


def _how(task: petlpack.Task, to: str) -> str:
    """Say how near what was written is to what was trained."""
    if not task.exact:
        return "with the error that `petlpack show` states"
    return "every weight bit for bit" if to == "run" else f"written for {to}"

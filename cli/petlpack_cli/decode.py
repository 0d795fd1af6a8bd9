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
@jobs_option
def run(out: Output, pack: Path, task: str, target: Path, base: Path | None, jobs: int | None) -> None:
    """Give a task back as the run that it was.

    OUT is a new directory: the weight files bit for bit, and the small files that loading needs byte for byte. It
    appears only when it is complete and its digest is the one that was packed.
    """
    started = time.perf_counter()
    opened = petlpack.open(pack)[task]
    with out.progress() as progress, naming(target):
        opened.decode(target, base, jobs=jobs, progress=progress.bytes(task))
        files = {p.relative_to(target).as_posix(): p.stat().st_size for p in sorted(target.rglob("*")) if p.is_file()}
    if out.as_json:
        out.json(
            {
                "task": task,
                "out": str(target),
                "codec": opened.codec,
                "exact": opened.exact,
                "decoded_sha256": opened.manifest.decoded,
                "files": [{"file": name, "bytes": nbytes} for name, nbytes in files.items()],
                "bytes": sum(files.values()),
                "seconds": round(time.perf_counter() - started, 6),
            }
        )
    elif not out.quiet:
        how = "every weight bit for bit" if opened.exact else f"within the bound of codec {opened.codec}"
        out.line(f"{task} -> {target}: {count(len(files), 'file')}, {size(sum(files.values()))}, {how}")

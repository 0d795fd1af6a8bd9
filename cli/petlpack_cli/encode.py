"""`petlpack encode`: runs into a pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

import petlpack
from petlpack_cli.command import (
    SOME_FAILED,
    bases_option,
    command,
    file_options,
    flag_option,
    jobs_option,
    settings_option,
)
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, error_lines, show_traceback
from petlpack_cli.output.sizes import count, ratio, size


@command(
    "encode",
    "petlpack encode runs/sst2 --base models/bert-base",
    "petlpack encode runs/* --base models/bert-base --pack glue.pack",
    "petlpack encode out/checkpoint-900 --task sst2 --replace",
    "petlpack encode out/propetl-t5 --set combine=or --set activation=gelu_new",
)
@click.argument("runs", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--pack",
    metavar="DIR",
    envvar="PETLPACK_PACK",
    default="pack",
    type=click.Path(path_type=Path),
    help="The pack; created if missing. By default $PETLPACK_PACK, else ./pack.",
)
@bases_option("The pretrained model that the runs started from; by default the one that each run's config names.")
@click.option("--task", metavar="NAME", help="The task's name, for a single run; by default the directory's.")
@click.option(
    "--codec", metavar="auto|ID", default="auto", help="A codec of `petlpack codecs`; auto picks the smallest result."
)
@click.option(
    "--level", type=click.Choice(["fast", "small"]), default="small", help="Fast to decode, or small (the default)."
)
@settings_option(
    "What the run does not record itself: activation, combine, inference_level, keep_ratio, scaling, task_order."
)
@click.option(
    "--density",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Keep only this share of a full fine-tune's changes, the largest: inexact, the error is reported.",
)
@flag_option("bake", "PROPETL prefixes: store the output of the reparametrization, not its network.")
@flag_option("keep_experts", "AdaMix: store all experts, not their average.")
@flag_option("keep_retriever", "PHA: store the retriever, which inference does not use.")
@file_options
@click.option("--replace", is_flag=True, help="Overwrite tasks of the same name.")
@jobs_option()
def run(
    out: Output,
    runs: tuple[Path, ...],
    pack: Path,
    task: str | None,
    base: tuple[Path, ...] | None,
    **options: Any,
) -> int | None:
    """Put runs into a pack.

    A run is the output of a training: a Transformers checkpoint, a PEFT or AdapterHub adapter, what PROPETL,
    AdaMix, diff pruning, PHA or HyperFormer wrote, a .safetensors file. A run of several tasks becomes as many tasks,
    NAME.TASK each. Every weight is decoded again and compared before a task is put into the pack. All other files of
    the directory come along as they are, but for what is known not to be needed (training state, other checkpoints,
    logs, caches), which is listed. Of several runs, those that fail do not stop the rest.
    """
    if task is not None and len(runs) > 1:
        raise click.UsageError(f"--task names one task, but got {len(runs)} runs", click.get_current_context())
    if task is not None and task.startswith("-"):
        raise click.UsageError(
            f"--task needs a name, got '{task}', which looks like an option", click.get_current_context()
        )
    with out.progress() as progress:
        each = petlpack.encode_runs(runs, pack, base, task=task, progress=progress.bytes, **options)
        encoded = _collected(out, progress.each(each, len(runs)), single=len(runs) == 1)
    if out.as_json:
        out.json(encoded.to_json())
    else:
        _print(out, encoded)
    if encoded.interrupted:
        stopped = describe(KeyboardInterrupt())
        if not out.as_json:
            click.echo(error_lines(stopped), err=True)
        return stopped.exit_code
    return SOME_FAILED if encoded.failed else None


def _collected(out: Output, each: Iterator[petlpack.EncodedRun], *, single: bool) -> petlpack.EncodedRuns:
    """Wait for the runs; of several an interrupt leaves those that are done, and what stops a single one is raised."""
    runs: list[petlpack.EncodedRun] = []
    try:
        for encoded in each:
            if encoded.error is not None and single:
                raise encoded.error
            if encoded.error is not None and out.debug:
                show_traceback(encoded.error)
            runs.append(encoded)
    except KeyboardInterrupt:
        if single:
            raise
        return petlpack.EncodedRuns(tuple(runs), interrupted=True)
    return petlpack.EncodedRuns(tuple(runs))


def _print(out: Output, encoded: petlpack.EncodedRuns) -> None:
    if encoded.tasks and not out.quiet:
        _print_tasks(out, encoded.tasks)
        parts, nbytes = count(len(encoded.shared), "shared part"), size(sum(encoded.shared.values()))
        out.line(f"They use {parts} of {nbytes}, stored once in a pack.")
        _print_bases(out, encoded.tasks)
        _print_left_out(out, encoded)
    for path, text in encoded.warnings:
        out.warn(f"{path}: {text}")
    for run in encoded.failed:
        if run.error is not None:
            click.echo(error_lines(describe(run.error), f"{run.path}: "), err=True)
    if encoded.failed:
        failed = len(encoded.failed)
        out.talk(f"{count(len(encoded.runs) - failed, 'run')} encoded, {failed:,} failed")


def _print_tasks(out: Output, tasks: Sequence[petlpack.Encoded]) -> None:
    """Print what each task became."""
    before, after = sum(task.source_bytes for task in tasks), sum(task.nbytes for task in tasks)
    total = (count(len(tasks), "task"), "", "", size(before), size(after), ratio(before, after))
    out.table(
        {"Task": "name", "Method": "text", "Codec": "text", "From": "number", "To": "number", "From / to": "number"},
        [
            (
                task.name,
                task.method,
                task.codec if task.exact else f"{task.codec} (inexact)",
                size(task.source_bytes),
                size(task.nbytes),
                ratio(task.source_bytes, task.nbytes),
            )
            for task in tasks
        ],
        total if len(tasks) > 1 else None,
    )


def _print_bases(out: Output, tasks: Sequence[petlpack.Encoded]) -> None:
    """Say which bases the tasks were encoded against."""
    for base, number in Counter(task.base for task in tasks if task.base is not None).items():
        which = f"'{base.name}' ({base.path}), sha256 {base.sha256[:12]}"
        out.line(f"Base: {which}{f': {number:,} of the tasks' if number < len(tasks) else ''}.")


def _print_left_out(out: Output, encoded: petlpack.EncodedRuns) -> None:
    """Fold the files that were left out by the reason."""
    reasons: dict[str, list[int]] = {}
    for _, left in encoded.left_out:
        reasons.setdefault(left.why, []).append(left.nbytes)
    if reasons:
        out.line()
        out.table(
            {"Left out, because": "name", "Files": "number", "Bytes": "number"},
            [(why, f"{len(sizes):,}", size(sum(sizes))) for why, sizes in reasons.items()],
        )

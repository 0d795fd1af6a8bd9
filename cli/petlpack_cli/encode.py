"""`petlpack encode`: runs into a pack."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

import petlpack
from petlpack_cli.command import SOME_FAILED, base_option, command, flag_option, jobs_option, settings_option
from petlpack_cli.output import Output
from petlpack_cli.output.errors import Problem, describe, naming, show_traceback
from petlpack_cli.output.sizes import count, ratio, size

Item = TypeVar("Item")


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
    help="The pack; made if there is none. By default $PETLPACK_PACK, else ./pack.",
)
@base_option("The pretrained model that the runs started from; by default what each run's own config names.")
@click.option("--task", metavar="NAME", help="The task's name, for a single run; by default the directory's.")
@click.option(
    "--codec", metavar="auto|ID", default="auto", help="A codec of `petlpack codecs`; auto takes the smallest."
)
@click.option(
    "--level", type=click.Choice(["fast", "small"]), default="small", help="Fast to decode, or small (the default)."
)
@settings_option(
    "What the run does not say of itself: activation, combine, inference_level, keep_ratio, scaling, task_order."
)
@click.option(
    "--density",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Keep only this share of a full fine-tune's changes, the largest ones: inexact, the error is stated.",
)
@flag_option("bake", "PROPETL prefixes: store what the reparametrisation produces, not itself.")
@flag_option("keep_experts", "AdaMix: store all experts, not their average.")
@flag_option("keep_retriever", "PHA: store the retriever, which inference does not use.")
@click.option("--replace", is_flag=True, help="Overwrite tasks of the same name.")
@jobs_option
def run(
    out: Output,
    runs: tuple[Path, ...],
    task: str | None,
    base: Path | None,
    settings: dict[str, str],
    **options: Any,
) -> int | None:
    """Put runs into a pack.

    A run is what a training left behind: a Transformers checkpoint, a PEFT or AdapterHub adapter, what PROPETL,
    AdaMix, diff pruning, PHA or HyperFormer wrote, a .safetensors file. A run of several tasks becomes as many tasks,
    NAME.TASK each. Every weight is decoded again and compared before a task is put into the pack. What loading does
    not need (training state, other checkpoints) is left out and listed. Of several runs, those that fail do not stop
    the rest.
    """
    if task is not None and len(runs) > 1:
        raise click.UsageError(f"--task names one task, and {len(runs)} runs were given", click.get_current_context())
    if task is not None and task.startswith("-"):
        raise click.UsageError(f"--task wants a name, and '{task}' looks like an option", click.get_current_context())
    opened = petlpack.Base(base) if base is not None else None
    done: list[tuple[Path, petlpack.Encoded]] = []
    failed: list[tuple[Path, Problem]] = []
    names: dict[str, Path] = {}
    stopped: Problem | None = None
    try:
        with out.progress() as progress:
            for run_dir in progress.each(runs, len(runs)):
                try:
                    name = _new_name(task, run_dir, names)
                    moved = progress.bytes(name)
                    with naming(options["pack"]):
                        tasks = petlpack.encode(
                            run_dir, base=opened, task=name, settings=settings, progress=moved, **options
                        )
                    done.extend((run_dir, encoded) for encoded in tasks)
                except Exception as error:
                    if len(runs) == 1:
                        raise
                    failed.append((run_dir, describe(error)))
                    if out.debug:
                        show_traceback(error)
    except KeyboardInterrupt as error:
        if len(runs) == 1:
            raise
        stopped = describe(error)
    if out.as_json:
        out.json({**_to_json(done, failed), "interrupted": stopped is not None})
    else:
        _print(out, done, failed)
    if stopped is not None:
        if not out.as_json:
            click.echo(stopped.lines(), err=True)
        return stopped.exit_code
    return SOME_FAILED if failed else None


def _new_name(task: str | None, run_dir: Path, names: dict[str, Path]) -> str:
    """Return the task's name; refuses the name of an earlier run of this call, which --replace would overwrite."""
    from petlpack.encoding.encode import default_name  # here, for it imports numpy, which --help does without

    name = task if task is not None else default_name(run_dir)
    if name.lower() in names:
        raise petlpack.UsageError(
            f"'{run_dir}' would be task '{name}', which is taken by '{names[name.lower()]}' of the same call",
            hint="encode it by itself, with --task NAME",
        )
    names[name.lower()] = run_dir
    return name


def _to_json(done: list[tuple[Path, petlpack.Encoded]], failed: list[tuple[Path, Problem]]) -> dict[str, Any]:
    return {
        "tasks": [
            {
                "name": task.name,
                "run": str(run_dir),
                "method": task.method,
                "layout": task.layout,
                "codec": task.codec,
                "exact": task.exact,
                "bytes": task.nbytes,
                "source_bytes": task.source_bytes,
                "seconds": round(task.seconds, 6),
            }
            for run_dir, task in done
        ],
        "shared": [{"sha256": sha256, "bytes": nbytes} for sha256, nbytes in sorted(_shared(done).items())],
        "left_out": [
            {"run": str(run_dir), "file": left.file, "bytes": left.nbytes, "why": left.why}
            for run_dir, left in _once((run_dir, left) for run_dir, task in done for left in task.left_out)
        ],
        "warnings": [
            {"run": str(run_dir), "message": text}
            for run_dir, text in _once((run_dir, text) for run_dir, task in done for text in task.warnings)
        ],
        "failed": [{"run": str(run_dir), **problem.to_json()} for run_dir, problem in failed],
    }


def _once(items: Iterable[Item]) -> list[Item]:
    """Return what is said of runs, each once: the tasks of one run say the same of it."""
    return list(dict.fromkeys(items))


def _shared(done: list[tuple[Path, petlpack.Encoded]]) -> dict[str, int]:
    """Return the shared parts that the tasks use, each once."""
    return {sha256: nbytes for _, task in done for sha256, nbytes in task.shared.items()}


def _print(out: Output, done: list[tuple[Path, petlpack.Encoded]], failed: list[tuple[Path, Problem]]) -> None:
    if done and not out.quiet:
        before, after = sum(task.source_bytes for _, task in done), sum(task.nbytes for _, task in done)
        out.table(
            {
                "Task": "name",
                "Method": "text",
                "Codec": "text",
                "From": "number",
                "To": "number",
                "From / to": "number",
            },
            [
                (
                    task.name,
                    task.method,
                    task.codec if task.exact else f"{task.codec} (inexact)",
                    size(task.source_bytes),
                    size(task.nbytes),
                    ratio(task.source_bytes, task.nbytes),
                )
                for _, task in done
            ],
            (count(len(done), "task"), "", "", size(before), size(after), ratio(before, after))
            if len(done) > 1
            else None,
        )
        shared = _shared(done)
        parts, nbytes = count(len(shared), "shared part"), size(sum(shared.values()))
        out.line(f"They use {parts} of {nbytes}, stored once in a pack.")
        _print_left_out(out, done)
    for run_dir, text in _once((run_dir, text) for run_dir, task in done for text in task.warnings):
        out.warn(f"{run_dir}: {text}")
    for run_dir, problem in failed:
        click.echo(problem.lines(f"{run_dir}: "), err=True)
    if failed:
        out.talk(f"{count(len(done), 'run')} encoded, {len(failed):,} failed")


def _print_left_out(out: Output, done: list[tuple[Path, petlpack.Encoded]]) -> None:
    """Fold the files that were left out by the reason."""
    reasons: dict[str, list[int]] = {}
    for _, left in _once((run_dir, left) for run_dir, task in done for left in task.left_out):
        reasons.setdefault(left.why, []).append(left.nbytes)
    if reasons:
        out.line()
        out.table(
            {"Left out, because": "name", "Files": "number", "Bytes": "number"},
            [(why, f"{len(sizes):,}", size(sum(sizes))) for why, sizes in reasons.items()],
        )

"""`petlpack survey`: what runs cost that were never packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import SOME_FAILED, base_option, command, every_row_option, jobs_option
from petlpack_cli.output import Output


@command("survey", "petlpack survey runs/", "petlpack survey runs/sst2 runs/rte --base models/bert-base --all")
@click.argument("paths", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(readable=False))
@base_option("The pretrained model to compare tensors with; by default the one that each run's config names.")
@every_row_option
@jobs_option()
def run(out: Output, paths: tuple[str, ...], base: Path | None, everything: bool, jobs: int | None) -> int | None:
    """Account for every byte of directories that were never packed.

    Shows what weights, training state, duplicates, tensors equal to the base, tokenizers and caches take, and what of
    it could go without packing. Nothing is unpickled. docs/accounting.md defines every figure.
    """
    refuse_empty(paths)
    return survey_runs(out, [Path(path) for path in paths], base, everything, jobs)


def refuse_empty(paths: Sequence[str]) -> None:
    """Raise UsageError for an empty path, which would be the current directory."""
    if "" in paths:
        raise petlpack.UsageError("a path is empty", hint="check the shell variable that it comes from")


def survey_runs(
    out: Output, paths: Sequence[Path], base: Path | None, everything: bool, jobs: int | None
) -> int | None:
    """Survey runs and print what is found; returns the exit code."""
    from petlpack_cli.output.rows import MOST
    from petlpack_cli.output.survey import print_survey

    with out.progress() as progress:
        survey = petlpack.survey(paths, base, jobs=jobs, progress=progress.bytes(str(paths[0])))
    if out.as_json:
        out.json(survey.to_json())
    else:
        print_survey(out, survey, None if everything else MOST)
    if survey.runs or survey.packs:
        return SOME_FAILED if survey.problems else None
    if not out.as_json:
        names = ", ".join(petlpack.printable(str(path)) for path in paths)
        click.echo(f"Error: no pack or run in {names}", err=True)
        click.echo(
            "Hint: a run has model.safetensors, adapter_config.json with its adapter, or a checkpoint-N", err=True
        )
    return 1

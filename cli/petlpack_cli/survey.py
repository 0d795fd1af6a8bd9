"""`petlpack survey`: what runs cost that were never packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import PATH, SOME_FAILED, bases_option, command, every_row_option, jobs_option
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, error_lines


@command("survey", "petlpack survey runs/", "petlpack survey runs/sst2 runs/rte --base models/bert-base --all")
@click.argument("paths", metavar="RUN_DIR...", nargs=-1, required=True, type=PATH)
@bases_option("The pretrained model to compare tensors with; by default the one that each run's config names.")
@every_row_option
@jobs_option()
def run(
    out: Output, paths: tuple[Path, ...], base: tuple[Path, ...] | None, everything: bool, jobs: int | None
) -> int | None:
    """Account for every byte of directories that were never packed.

    Shows what weights, training state, duplicates, tensors equal to the base, tokenizers and caches take, and what of
    it could go without packing. Nothing is unpickled. docs/accounting.md defines every figure.
    """
    return survey_runs(out, paths, base, everything, jobs)


def survey_runs(
    out: Output, paths: Sequence[Path], base: Sequence[Path] | None, everything: bool, jobs: int | None
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
    if survey.error is None:
        return SOME_FAILED if survey.problems else None
    problem = describe(survey.error)
    if not out.as_json:
        click.echo(error_lines(problem), err=True)
    return problem.exit_code

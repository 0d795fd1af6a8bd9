"""`petlpack verify`: find damage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import bases_option, command, jobs_option, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.errors import describe, worst
from petlpack_cli.output.sizes import count

DEPTHS = {
    "bytes": "every byte checked",
    "decoded": "every byte checked and every weight decoded",
    "compared": "every weight decoded, and equal to what the run gives",
}
"""What was found of a part without damage, by how deep it was checked."""


@command(
    "verify",
    "petlpack verify glue.pack",
    "petlpack verify glue.pack --base models/bert-base",
    "petlpack verify glue.pack sst2 --against runs/sst2 --base models/bert-base",
)
@pack_argument()
@click.argument("task", required=False)
@bases_option("The pretrained model, to decode every weight as well as check every byte.")
@click.option(
    "--against",
    metavar="RUN_DIR",
    type=click.Path(path_type=Path),
    help="Compare TASK with a run: every weight bit for bit, every other file byte for byte.",
)
@jobs_option()
def run(
    out: Output, pack: Path, task: str | None, base: tuple[Path, ...] | None, against: Path | None, jobs: int | None
) -> int | None:
    """Check a pack, or one task of it, for damage.

    Without --base every byte is checked against its digest; tasks that need no base are decoded, too. With --base
    every weight of every task is decoded. Damage of one part does not stop the check of the others; exit code 4.
    """
    if against is not None and task is None:
        raise click.UsageError("--against needs one task: give PACK TASK", click.get_current_context())
    opened = petlpack.open(pack)
    with out.progress() as progress:
        total = 1 if task is not None else len(opened) + len(opened.shared_names())
        moved = progress.bytes(task or str(pack))
        checks = petlpack.verify(opened, base, task=task, against=against, jobs=jobs, progress=moved)
        findings = petlpack.Findings(str(pack), tuple(progress.each(checks, total)))
    if out.as_json:
        out.json(findings.to_json())
    else:
        _print_damage(out, findings)
        if not out.quiet:
            _print_depths(out, findings, base is None and against is None)
    return worst(describe(finding.error) for finding in findings.checked if finding.error is not None)


def _print_damage(out: Output, findings: petlpack.Findings) -> None:
    """Print what is wrong with each part that is not as it should be."""
    for finding in findings.checked:
        if finding.error is not None:
            problem = describe(finding.error)
            out.line(f"{_kind(finding)} '{finding.name}': {problem.message}")
            if problem.hint:
                out.line(f"  {problem.hint}")


def _print_depths(out: Output, findings: petlpack.Findings, without_base: bool) -> None:
    """Print how deep the good parts were checked, and how many others there are."""
    good = Counter((_kind(finding), finding.depth) for finding in findings.checked if finding.error is None)
    for (kind, depth), number in sorted(good.items(), reverse=True):
        out.line(f"{count(number, kind)}: {DEPTHS[depth]}.")
    for note in (
        f"{_kind(finding)} '{finding.name}': {note}" for finding in findings.checked for note in finding.notes
    ):
        out.line(f"{note[:1].upper()}{note[1:]}.")
    foreign = Counter(f.depth for f in findings.checked if isinstance(f.error, petlpack.BaseError))
    if foreign["bytes"]:
        out.line(f"{count(foreign['bytes'], 'task')} with another base: every byte checked, no weight decoded.")
    if foreign["decoded"]:
        out.line(f"{count(foreign['decoded'], 'task')} of another base: {DEPTHS['decoded']}.")
    parts = count(len(findings.checked), "part")
    out.line(f"Damage in {findings.damaged:,} of {parts}." if findings.damaged else f"No damage in {parts}.")
    if without_base and good[("task", "bytes")]:
        out.line("Give --base DIR to also decode every weight of the tasks that need their base.")


def _kind(finding: petlpack.Checked) -> str:
    return "shared part" if finding.kind == "shared" else finding.kind

"""`petlpack verify`: find damage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import PATH, bases_option, command, jobs_option, max_bytes_option, pack_argument
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
    type=PATH,
    help="Compare TASK with a run: every weight bit for bit, every other file byte for byte.",
)
@max_bytes_option
@jobs_option()
def run(
    out: Output,
    pack: Path,
    task: str | None,
    base: tuple[Path, ...] | None,
    against: Path | None,
    max_bytes: int | None,
    jobs: int | None,
) -> int | None:
    """Check a pack, or one task of it, for damage.

    Without --base every byte is checked against its digest; tasks that need no base are decoded, too. With --base
    every weight of every task is decoded. Damage of one part does not stop the check of the others; exit code 4.
    """
    if against is not None and task is None:
        raise click.UsageError("--against needs one task: give PACK TASK", click.get_current_context())
    opened = petlpack.open(pack, max_bytes=max_bytes)
    with out.progress() as progress:
        total = 1 if task is not None else len(opened) + len(opened.shared_names())
        moved = progress.bytes(task or str(pack))
        checks = petlpack.verify(opened, base, task=task, against=against, jobs=jobs, progress=moved)
        checked = tuple(progress.each(checks, total))
    whole = task is None
    foreign, unexplained = (opened.foreign(), opened.unexplained()) if whole else ([], [])
    findings = petlpack.Findings(str(pack), checked, tuple(foreign), tuple(unexplained))
    if out.as_json:
        out.json(findings.to_json())
    else:
        out.foreign(findings.foreign)
        if findings.unexplained:
            parts = count(len(findings.unexplained), "shared part")
            out.warn(f"no task here needs {parts}, and none that was removed did: is the pack complete?")
        _print_damage(out, findings)
        if not out.quiet:
            _print_depths(out, findings, base is None and against is None)
    return worst(describe(finding.error) for finding in findings.checked if finding.error is not None)


def _print_damage(out: Output, findings: petlpack.Findings) -> None:
    """Print what is wrong with each part that is not as it should be."""
    for finding in findings.checked:
        if finding.error is not None:
            problem = describe(finding.error)
            about = f"{_kind(finding)} '{finding.name}'"
            out.line(problem.message if problem.message.startswith(about) else f"{about}: {problem.message}")
            if problem.hint:
                out.line(f"  {problem.hint}")


def _print_depths(out: Output, findings: petlpack.Findings, without_base: bool) -> None:
    """Print how deep the good parts were checked, and how many others there are."""
    parts = [finding for finding in findings.checked if finding.kind != "sealed"]
    good = Counter((_kind(finding), finding.depth) for finding in parts if finding.error is None)
    for (kind, depth), number in sorted(good.items(), reverse=True):
        out.line(f"{count(number, kind)}: {DEPTHS[depth]}.")
    for finding in findings.checked:
        for note in finding.notes:
            about = "Seal" if finding.kind == "sealed" else f"{_kind(finding).capitalize()} '{finding.name}'"
            out.line(f"{about}: {note}.")
    errors = [(f.depth, f.error.code) for f in findings.checked if isinstance(f.error, petlpack.BaseError)]
    missing = sum(code == "base-missing" for _, code in errors)
    decoded = sum(depth == "decoded" for depth, _ in errors)
    for number, what in ((len(errors) - missing - decoded, "with another base"), (missing, "without its base")):
        if number:
            out.line(f"{count(number, 'task')} {what}: every byte checked, no weight decoded.")
    if decoded:
        out.line(f"{count(decoded, 'task')} of another base: {DEPTHS['decoded']}.")
    unread = sum(finding.unread for finding in findings.checked)
    if unread:
        out.line(f"{count(unread, 'part')} could not be compared or read: see above; that is no damage.")
    damaged = sum(part.damaged for part in parts)
    seal = f", but {count(differing, 'file')} not as sealed" if (differing := _not_as_sealed(findings)) else ""
    checked = count(len(parts), "part")
    out.line(f"Damage in {damaged:,} of {checked}{seal}." if damaged else f"No damage in {checked}{seal}.")
    if without_base and good[("task", "bytes")]:
        out.line("Give --base DIR to also decode every weight of the tasks that need their base.")


def _not_as_sealed(findings: petlpack.Findings) -> int:
    return sum(finding.kind == "sealed" and finding.error is not None for finding in findings.checked)


def _kind(finding: petlpack.Checked) -> str:
    return {"shared": "shared part", "sealed": "seal"}.get(finding.kind, finding.kind)

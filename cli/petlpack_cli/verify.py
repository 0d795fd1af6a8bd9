"""`petlpack verify`: find damage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import base_option, command, jobs_option, pack_argument
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
@base_option("The pretrained model: with it every weight is decoded, not only every byte checked.")
@click.option(
    "--against", metavar="RUN_DIR", type=click.Path(path_type=Path), help="Compare TASK with a run, bit for bit."
)
@jobs_option
def run(
    out: Output, pack: Path, task: str | None, base: Path | None, against: Path | None, jobs: int | None
) -> int | None:
    """Check a pack, or one task of it, for damage.

    Without --base every byte is checked against its digest; tasks that need no base are decoded, too. With --base
    every weight of every task is decoded. Damage of one part does not stop the check of the others; exit code 4.
    """
    if against is not None and task is None:
        raise click.UsageError("--against compares one task: give PACK TASK", click.get_current_context())
    opened = petlpack.open(pack)
    opened_base = petlpack.Base(base) if base is not None else None
    with out.progress() as progress:
        total = 1 if task is not None else len(opened) + len(opened.store.shared_names())
        moved = progress.bytes(task or str(pack))
        checks = petlpack.verify(opened, opened_base, task=task, against=against, jobs=jobs, progress=moved)
        checked = list(progress.each(checks, total))
    problems = [describe(one.error) for one in checked if one.error is not None]
    if out.as_json:
        damaged = sum(_is_damaged(one) for one in checked)
        out.json({"pack": str(pack), "checked": [_to_json(one) for one in checked], "damaged": damaged})
    else:
        _print(out, checked, base is None and against is None)
    return worst(problems)


def _to_json(one: petlpack.Checked) -> dict[str, object]:
    error = describe(one.error).to_json() if one.error is not None else None
    return {"name": one.name, "kind": one.kind, "depth": one.depth, "ok": error is None, "error": error}


def _print(out: Output, checked: Sequence[petlpack.Checked], without_base: bool) -> None:
    for one in checked:
        if one.error is not None:
            problem = describe(one.error)
            out.line(f"{_kind(one)} '{one.name}': {problem.message}")
            if problem.hint:
                out.line(f"  {problem.hint}")
    if out.quiet:
        return
    good = Counter((_kind(one), one.depth) for one in checked if one.error is None)
    for (kind, depth), number in sorted(good.items(), reverse=True):
        out.line(f"{count(number, kind)}: {DEPTHS[depth]}.")
    foreign = sum(isinstance(one.error, petlpack.BaseError) for one in checked)
    if foreign:
        out.line(f"{count(foreign, 'task')} of another base: every byte checked, no weight decoded.")
    bad = sum(_is_damaged(one) for one in checked)
    parts = count(len(checked), "part")
    out.line(f"Damage in {bad:,} of {parts}." if bad else f"No damage in {parts}.")
    if without_base and good[("task", "bytes")]:
        out.line("Give --base DIR to go deeper: it decodes every weight of the tasks that need their base.")


def _is_damaged(one: petlpack.Checked) -> bool:
    """Tell whether a part is damaged: one that needs another base than was given is not."""
    return one.error is not None and not isinstance(one.error, petlpack.BaseError)


def _kind(one: petlpack.Checked) -> str:
    return "shared part" if one.kind == "shared" else one.kind

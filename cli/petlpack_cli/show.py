"""`petlpack show`: everything about one task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

import petlpack
from petlpack_cli.command import command, max_bytes_option, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.sizes import count, ratio, size

_NAME = re.compile(r"\w+(?:\.\w+)+")
"""A tensor's name in a formula."""


@command("show", "petlpack show glue.pack sst2", "petlpack show glue.pack sst2 --json")
@pack_argument(required=True)
@click.argument("task")
@max_bytes_option
def run(out: Output, pack: Path, task: str, max_bytes: int | None) -> None:
    """Show one task: sections, base, files.

    How it is stored, what base it needs, how many bits an element takes, which files are kept. Reads the task's
    header and the small shared parts that it names, and no weights.
    """
    details = petlpack.details(petlpack.open(pack, max_bytes=max_bytes)[task])
    if out.as_json:
        out.json(details.to_json())
        return
    _print_facts(out, details)
    if details.rule is not None:
        out.line()
        settings = "".join(f", {name} {value}" for name, value in details.rule.settings.items())
        out.line(f"Rebuilt as {details.rule.kind}{settings}:")
        _print_formula(out, details.rule.formula)
    if details.sections:
        out.line()
        _print_sections(out, details)
    if details.files:
        out.line()
        files = [(name, size(nbytes)) for name, nbytes in details.files.items()]
        out.table({"Kept file": "name", "Bytes": "number"}, files)
    out.line()
    out.table(
        {"Shared part": "name", "Holds": "text", "In the pack": "number"},
        [(part.sha256[:16], ", ".join(part.holds), size(part.bytes)) for part in details.shared],
    )


def _print_facts(out: Output, details: petlpack.Details) -> None:
    """Print what the task is, a line for each fact."""
    task, tensors, payload = details.task, details.tensors, details.payload_bytes
    kinds = [f"{tensors.unchanged:,} unchanged from the base", f"{tensors.aliases:,} equal to another"]
    out.fields(
        [
            ("Task", task.name),
            ("Method", task.method),
            ("Layout", task.facts.layout),
            ("Codec", f"{task.codec}, {_exactness(task)}"),
            ("File", f"{size(task.nbytes)} ({task.nbytes:,} bytes)"),
            ("Payload", f"{size(payload)} ({payload:,} bytes)"),
            ("Run", f"{size(task.run_bytes)} of tensors, {ratio(task.run_bytes, task.nbytes)} the file"),
            ("Tensors", f"{tensors.count:,}: {', '.join(kinds)}, {tensors.stored:,} stored"),
            ("Base", _base(details)),
            ("SHA-256", task.manifest.decoded),
        ]
    )


def _base(details: petlpack.Details) -> str:
    """Say which base the task needs, and how much of it."""
    if details.base is None:
        return "none: the task needs no base"
    if details.base.sha256 is not None:
        how = "of it" if details.base.needed else "of it adapted; decodes without it"
        which = f"'{details.base.name}' ({details.base.path} when it was encoded), sha256 {details.base.sha256}"
        return f"{count(details.base.tensors, 'tensor')} {how}; {which}"
    name = details.base.name
    named = f"the run names it '{name}'" if name else "the run does not name it"
    return f"{count(details.base.tensors, 'tensor')} of it; {named}"


def _exactness(task: petlpack.Task) -> str:
    """Say how near the task is to what was trained."""
    if task.exact:
        return "exact to the bit"
    if task.facts.density is not None:
        changed, error = f"{task.facts.density:.4%} of the weights changed", task.facts.error or 0.0
        return f"inexact: {changed}, others off by at most {error:g}"
    return "computed from the run, rounded once"


def _print_formula(out: Output, formula: Sequence[str]) -> None:
    """Print formulas with short names for tensors, and what these stand for."""
    names: dict[str, str] = {}
    for line in formula:
        output, _, term = line.partition(" = ")
        short = _NAME.sub(lambda match: names.setdefault(match[0], f"t{len(names) + 1}"), term)
        out.line(f"  {output} = {short}")
    if names:
        out.fields([(f"  {short}", name) for name, short in names.items()])


def _print_sections(out: Output, details: petlpack.Details) -> None:
    """Print what is in the task's file, and what an element of it takes."""
    out.table(
        {
            **{"Section": "name", "Coder": "text", "Dtype": "text"},
            **{"Elements": "number", "Bytes": "number", "Bits each": "number"},
        },
        [
            (
                *(row.name, row.coder, row.dtype, f"{row.elements:,}", size(row.bytes)),
                "-" if row.bits_per_element is None else f"{row.bits_per_element:.2f}",
            )
            for row in details.sections
        ],
    )

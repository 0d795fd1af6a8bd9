"""`petlpack show`: everything about one task."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.sizes import count, ratio, size

_NAME = re.compile(r"\w+(?:\.\w+)+")
"""A tensor's name in a formula."""


@command("show", "petlpack show glue.pack sst2", "petlpack show glue.pack sst2 --json")
@pack_argument(required=True)
@click.argument("task")
def run(out: Output, pack: Path, task: str) -> None:
    """Show one task: sections, base, files.

    How it is stored, what base it needs, how many bits an element takes, which files are kept. Reads the task's
    header and the small shared parts that it names, and no weights.
    """
    opened = petlpack.open(pack)
    shown = _to_json(opened, opened[task])
    if out.as_json:
        out.json(shown)
    else:
        _print(out, shown, _exactness(opened[task]))


def _to_json(pack: petlpack.Pack, task: petlpack.Task) -> dict[str, Any]:
    from petlpack.sections.shared import find_shared

    template, payload = task.template, task.payload
    sources = task.sources
    shared = [
        {"sha256": sha256, "bytes": find_shared(pack.store, sha256).stat().st_size, "holds": _holds(task, sha256)}
        for sha256 in task.parts
    ]
    files = [{"file": file, "bytes": len(task.read_file(file))} for file in template.files]
    return {
        "name": task.name,
        "method": task.method,
        "layout": task.facts.layout,
        "codec": task.codec,
        "exact": task.exact,
        "bytes": task.nbytes,
        "payload_bytes": sum(payload.values()),
        "run_bytes": task.run_bytes,
        "tensors": {
            "count": len(template.slots),
            "unchanged": len(sources.unchanged),
            "aliases": len(sources.aliases),
            "stored": len(sources.stored),
        },
        "base": {"name": template.base_name, "tensors": len(template.base)} if template.base else None,
        "sections": [
            {
                "name": row.name,
                "coder": row.coder,
                "dtype": row.dtype,
                "elements": row.count,
                "bytes": payload[row.name],
                "bits_per_element": round(8 * payload[row.name] / row.count, 6) if row.count else None,
            }
            for row in task.manifest.sections
        ],
        "rule": _rule(task),
        "facts": dict(task.manifest.facts),
        "files": files,
        "shared": shared,
        "decoded_sha256": task.manifest.decoded,
    }


def _rule(task: petlpack.Task) -> dict[str, Any] | None:
    """Return how a task is rebuilt, if it is: what it becomes, how that is used, the formulas."""
    rule = task.template.rule
    if rule is None:
        return None
    return {"kind": rule["kind"], "settings": rule["settings"], "formula": task.formula()}


def _holds(task: petlpack.Task, sha256: str) -> list[str]:
    """Say what a shared part holds for a task."""
    template, parts = task.template, task.manifest.shared
    if sha256 == parts[0]:
        return ["template"]
    if sha256 in parts:
        return [count(len(template.parts[parts.index(sha256) - 1]), "tensor")]
    if sha256 == template.base_table:
        return ["base digests"]
    return [file for file, digest in template.files.items() if digest == sha256]


def _exactness(task: petlpack.Task) -> str:
    """Say how near the task is to what was trained."""
    if task.exact:
        return "exact to the bit"
    if task.facts.density is not None:
        changed, error = f"{task.facts.density:.4%} of the weights changed", task.facts.error or 0.0
        return f"inexact: {changed}, others off by at most {error:g}"
    return "computed from the run, rounded once"


def _print(out: Output, facts: dict[str, Any], exactness: str) -> None:
    tensors, base = facts["tensors"], facts["base"]
    needs = "none: the task stands by itself"
    if base is not None:
        named = f"the run called it '{base['name']}'" if base["name"] else "the run did not name it"
        needs = f"{count(base['tensors'], 'tensor')} of it; {named}"
    told = [f"{tensors['unchanged']:,} unchanged from the base", f"{tensors['aliases']:,} equal to another"]
    out.fields(
        [
            ("Task", facts["name"]),
            ("Method", facts["method"]),
            ("Layout", str(facts["layout"])),
            ("Codec", f"{facts['codec']}, {exactness}"),
            ("File", f"{size(facts['bytes'])} ({facts['bytes']:,} bytes)"),
            ("Payload", f"{size(facts['payload_bytes'])} ({facts['payload_bytes']:,} bytes)"),
            ("Run", f"{size(facts['run_bytes'])} of tensors, {ratio(facts['run_bytes'], facts['bytes'])} the file"),
            ("Tensors", f"{tensors['count']:,}: {', '.join(told)}, {tensors['stored']:,} stored"),
            ("Base", needs),
            ("SHA-256", facts["decoded_sha256"]),
        ]
    )
    if facts["rule"]:
        out.line()
        settings = "".join(f", {name} {value}" for name, value in facts["rule"]["settings"].items())
        out.line(f"Rebuilt as {facts['rule']['kind']}{settings}:")
        names: dict[str, str] = {}
        for line in facts["rule"]["formula"]:
            output, _, formula = line.partition(" = ")
            short = _NAME.sub(lambda match: names.setdefault(match[0], f"t{len(names) + 1}"), formula)
            out.line(f"  {output} = {short}")
        out.fields([(f"  {short}", name) for name, short in names.items()])
    if facts["sections"]:
        out.line()
        out.table(
            {
                "Section": "name",
                "Coder": "text",
                "Dtype": "text",
                "Elements": "number",
                "Bytes": "number",
                "Bits each": "number",
            },
            [
                (
                    row["name"],
                    row["coder"],
                    row["dtype"],
                    f"{row['elements']:,}",
                    size(row["bytes"]),
                    "-" if row["bits_per_element"] is None else f"{row['bits_per_element']:.2f}",
                )
                for row in facts["sections"]
            ],
        )
    if facts["files"]:
        out.line()
        out.table(
            {"Kept file": "name", "Bytes": "number"}, [(file["file"], size(file["bytes"])) for file in facts["files"]]
        )
    out.line()
    out.table(
        {"Shared part": "name", "Holds": "text", "In the pack": "number"},
        [(part["sha256"][:16], ", ".join(part["holds"]), size(part["bytes"])) for part in facts["shared"]],
    )

"""`petlpack show`: everything about one task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import petlpack
from petlpack_cli.command import command, pack_argument
from petlpack_cli.output import Output
from petlpack_cli.output.sizes import count, ratio, size


@command("show", "petlpack show glue.pack sst2", "petlpack show glue.pack sst2 --json")
@pack_argument(required=True)
@click.argument("task")
def run(out: Output, pack: Path, task: str) -> None:
    """Show one task: sections, base, files.

    How it is stored, what base it needs, how many bits an element takes, which files are kept. Reads the task's
    header and the small shared parts that it names, and no weights.
    """
    facts = _facts(petlpack.open(pack), task)
    if out.as_json:
        out.json(facts)
    else:
        _print(out, facts)


def _facts(pack: petlpack.Pack, name: str) -> dict[str, Any]:
    """Return what --json prints."""
    from petlpack.loading import parse_plan, read_shared

    task = pack[name]
    template, payload = task.template, task.payload
    plan = parse_plan(task.manifest.params, template.slots)
    files, shared = [], []
    for sha256 in dict.fromkeys([*task.manifest.shared, *template.files.values()]):
        content = read_shared(pack.store, sha256)
        nbytes = pack.store.shared_path(sha256).stat().st_size
        kept = [file for file, digest in template.files.items() if digest == sha256]
        shared.append({"sha256": sha256, "bytes": nbytes, "holds": kept or ["template"]})
        files += [{"file": file, "bytes": len(content)} for file in kept]
    return {
        "name": name,
        "method": task.method,
        "layout": task.manifest.facts.get("layout"),
        "codec": task.codec,
        "exact": task.exact,
        "bytes": task.nbytes,
        "payload_bytes": sum(payload.values()),
        "dense_bytes": sum(slot.nbytes for slot in template.slots),
        "tensors": {
            "count": len(template.slots),
            "unchanged": len(plan.unchanged),
            "aliases": len(plan.aliases),
            "stored": len(plan.stored),
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
        "files": files,
        "shared": shared,
        "decoded_sha256": task.manifest.decoded,
    }


def _print(out: Output, facts: dict[str, Any]) -> None:
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
            ("Codec", f"{facts['codec']}, {'exact to the bit' if facts['exact'] else 'within a bound'}"),
            ("File", f"{size(facts['bytes'])} ({facts['bytes']:,} bytes)"),
            ("Payload", f"{size(facts['payload_bytes'])} ({facts['payload_bytes']:,} bytes)"),
            ("Dense", f"{size(facts['dense_bytes'])}, {ratio(facts['dense_bytes'], facts['bytes'])} the file"),
            ("Tensors", f"{tensors['count']:,}: {', '.join(told)}, {tensors['stored']:,} stored"),
            ("Base", needs),
            ("SHA-256", facts["decoded_sha256"]),
        ]
    )
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

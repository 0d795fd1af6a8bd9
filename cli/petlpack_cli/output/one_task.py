"""What `petlpack stats --task` prints of one task: facts, sections, the parts that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petlpack_cli.output import Output
from petlpack_cli.output.sizes import bar, count, ratio, size

if TYPE_CHECKING:
    from petlpack.analyze.one import Audit
    from petlpack.analyze.rows import TaskRow


def print_one(out: Output, found: Audit) -> None:
    """Print one task: facts, sections, the parts that it needs."""
    row = found.row
    own = row.bytes.total
    needed = sum(part.bytes for part in found.parts)
    facts = [
        ("Task", row.name),
        ("Method", f"{row.method} ({row.layout})"),
        ("Codec", f"{row.codec}, {'exact to the bit' if row.exact else 'inexact: ' + exactness(row)}"),
        ("Own file", f"{size(own)} ({own:,} bytes)"),
        ("Parts", f"{size(needed)} in {count(len(found.parts), 'shared part')}"),
        ("Run", f"{size(row.run_bytes)} of tensors, {ratio(row.run_bytes, own)} the file"),
        (
            "Dense",
            "-" if row.dense_bytes is None else f"{size(row.dense_bytes)}, {ratio(row.dense_bytes, own)} the file",
        ),
        ("Score", "-" if row.score is None else f"{row.score.value:g} {row.score.metric}"),
        ("Of base", "-" if row.figures.percent_of_base is None else f"{row.figures.percent_of_base:.3g} %"),
    ]
    out.fields([(name, value) for name, value in facts if value != "-"])
    out.line()
    largest = max((section.nbytes for section in row.sections), default=0)
    rows = []
    for section in row.sections:
        bound = found.bounds.get(section.name)
        bits = 8 * section.nbytes / section.count if section.count else None
        least = None if bound is None or not section.count else bound / section.count
        rows.append(
            (
                *(section.name, section.coder, f"{section.count:,}", size(section.nbytes)),
                *(
                    _bits(bits),
                    _bits(least),
                    _times(section.nbytes, bound),
                    bar(section.nbytes, largest, 6),
                ),
            )
        )
    rows.append(("manifest", "", "", size(row.bytes.header), "", "", "", bar(row.bytes.header, largest, 6)))
    out.table(
        {
            **{"Section": "name", "Coder": "text", "Elements": "number", "Bytes": "number"},
            **{"Bits each": "number", "Bound": "number", "Of bound": "number", "": "bar"},
        },
        rows,
        ("own file", "", "", size(own), "", "", "", ""),
    )
    out.line()
    out.table(
        {"Shared part": "name", "sha256": "text", "Bytes": "number"},
        [(part.role, part.sha256[:16], size(part.bytes)) for part in found.parts],
    )


def exactness(row: TaskRow) -> str:
    """Say whether a task is what was trained to the bit, else the error that is stated of it."""
    if row.exact:
        return "yes"
    return "no" if row.error is None else f"+-{row.error:.1e}"


def _times(nbytes: int, bound_bits: float | None) -> str:
    return "-" if not bound_bits else f"{8 * nbytes / bound_bits:.3f}x"


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

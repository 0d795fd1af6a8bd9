"""What `petlpack stats --task` prints of one task: facts, sections, the parts that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petlpack_cli.output import Output
from petlpack_cli.output.sizes import bar, count, ratio, size

if TYPE_CHECKING:
    from petlpack import Audit, TaskRow


def print_one(out: Output, audit: Audit) -> None:
    """Print one task: facts, sections, the parts that it needs."""
    out.fields([(name, value) for name, value in _facts(audit) if value is not None])
    out.line()
    _print_sections(out, audit)
    out.line()
    out.table(
        {"Shared part": "name", "sha256": "text", "Bytes": "number"},
        [(part.role, part.sha256[:16], size(part.bytes)) for part in audit.parts],
    )


def _facts(audit: Audit) -> list[tuple[str, str | None]]:
    """Return what is known of the task, None for what is not."""
    row = audit.row
    nbytes = row.bytes.total
    dense, score, percent = row.dense_bytes, row.score, row.figures.percent_of_base
    parts = size(sum(part.bytes for part in audit.parts))
    return [
        ("Task", row.name),
        ("Method", f"{row.method} ({row.layout})"),
        ("Codec", f"{row.codec}, {'exact to the bit' if row.exact else 'inexact: ' + exactness(row)}"),
        ("Own file", f"{size(nbytes)} ({nbytes:,} bytes)"),
        ("Parts", f"{parts} in {count(len(audit.parts), 'shared part')}"),
        ("Run", f"{size(row.run_bytes)} of tensors, {ratio(row.run_bytes, nbytes)} the file"),
        ("Dense", None if dense is None else f"{size(dense)}, {ratio(dense, nbytes)} the file"),
        ("Score", None if score is None else f"{score.value:g} {score.metric}"),
        ("Of base", None if percent is None else f"{percent:.3g} %"),
    ]


def _print_sections(out: Output, audit: Audit) -> None:
    """Print what each section of the task's file takes, and needs; the last row is the rest of the file."""
    row = audit.row
    largest = max((section.nbytes for section in row.sections), default=0)
    cells = []
    for section in row.sections:
        bound = audit.bounds.get(section.name)
        bits = 8 * section.nbytes / section.count if section.count else None
        least = None if bound is None or not section.count else bound / section.count
        cells.append(
            (
                *(section.name, section.coder, f"{section.count:,}", size(section.nbytes)),
                *(_bits(bits), _bits(least), _times(section.nbytes, bound), bar(section.nbytes, largest, 6)),
            )
        )
    cells.append(("manifest", "", "", size(row.bytes.header), "", "", "", bar(row.bytes.header, largest, 6)))
    out.table(
        {
            **{"Section": "name", "Coder": "text", "Elements": "number", "Bytes": "number"},
            **{"Bits each": "number", "Bound": "number", "Of bound": "number", "": "bar"},
        },
        cells,
        ("own file", "", "", size(row.bytes.total), "", "", "", ""),
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

"""What `petlpack stats` prints of runs: where the bytes are, the biggest first, and what of them nobody needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from petlpack_cli.output.sizes import bar, count, size

if TYPE_CHECKING:
    from petlpack.analyze.survey import RunRow, Survey
    from petlpack_cli.output import Kind, Output

BAR = 16
"""Columns of a full bar."""

MOST_TEXT = 8
"""Tensors, or groups of equal files, that people get without --all."""


def print_survey(out: Output, found: Survey, most: int | None) -> None:
    """Print where the bytes of a tree are; of long lists the `most` biggest, or all where that is None."""
    few = None if most is None else min(most, MOST_TEXT)
    _print_kinds(out, found)
    if found.runs:
        out.line()
        _print_runs(out, found, most)
    if found.tensors.largest_equal:
        out.line()
        _print_equal(out, found, few)
    if found.duplicates:
        out.line()
        _print_duplicates(out, found, few)
    if found.savings.total:
        out.line()
        _print_savings(out, found)
    _print_closed(out, found)
    if not out.quiet:
        out.line()
        out.line(conclusion(found))


def conclusion(found: Survey) -> str:
    """Return in a sentence what a tree takes and what of it could go."""
    what = f"{count(len(found.runs), 'run')} {'takes' if len(found.runs) == 1 else 'take'}"
    runs = sum(row.total_bytes for row in found.runs)
    if not found.runs:
        return f"No run here: {count(found.files, 'file')} of {size(found.disk_bytes)}."
    saved = found.savings
    twice = saved.duplicate_files + saved.duplicate_tensors
    parts = [
        f"{size(nbytes)} {text}"
        for nbytes, text in (
            (saved.training_state, "is training state that nobody needs for inference"),
            (twice, "stands there twice"),
            (saved.equal_to_base, "equals the base"),
        )
        if nbytes
    ]
    told = f", of which {_listed(parts)}" if parts else ""
    total = size(found.disk_bytes)
    beside = "" if size(runs) == total else f" of the {total} here"
    return f"{what} {size(runs)}{beside}{told}; `petlpack plan` measures what packing would take."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _print_kinds(out: Output, found: Survey) -> None:
    """Print what each kind of file takes; the rows add up to the disk."""
    rows = sorted((row for row in found.kinds if row.files), key=lambda row: -row.bytes)
    whole = found.disk_bytes
    out.table(
        {"On disk": "name", "Files": "number", "Size": "number", "Bytes": "number", "Share": "number", "": "bar"},
        [
            (
                row.kind,
                f"{row.files:,}",
                size(row.bytes),
                f"{row.bytes:,}",
                _share(row.bytes, whole),
                bar(row.bytes, whole, BAR),
            )
            for row in rows
        ],
        ("all files", f"{found.files:,}", size(whole), f"{whole:,}", _share(whole, whole), ""),
    )


def _print_runs(out: Output, found: Survey, most: int | None) -> None:
    """Print the biggest runs, the rest as one row; their metrics stand above, for names need the columns."""
    shown, rest = (found.runs, ()) if most is None else (found.runs[:most], found.runs[most:])
    parent = _parent(found)
    metrics = list(dict.fromkeys(row.score.metric for row in shown if row.score is not None))
    rows = [(_within(parent, row.path), _label(row), *_sums([row]), *_score(row, metrics)) for row in shown]
    none = ("",) if metrics else ()
    if rest:
        rows.append((f"{len(rest):,} more (--all)", "", *_sums(rest), *none))
    total = (count(len(found.runs), "run"), "", *_sums(found.runs), *none) if len(found.runs) > 1 else None
    columns: dict[str, Kind] = {"Run": "name", "Method": "text"}
    columns |= dict.fromkeys(("Total", "Weights", "Training", "Redundant", *(["Score"] if metrics else [])), "number")
    if not out.quiet:
        where = f"Runs in {parent}. " if parent else ""
        scores = f" Scores: {', '.join(metrics[:4])}{', ...' if len(metrics) > 4 else '.'}" if metrics else ""
        out.line(f"{where}Redundant: tensors that the base or another file has bit for bit.{scores}")
    out.table(columns, rows, total)


def _parent(found: Survey) -> str:
    """Return the directory that all runs are in, as far as one path can say it."""
    try:
        return os.path.commonpath([os.path.dirname(row.path) for row in found.runs])  # noqa: PTH120 - escaped names
    except ValueError:  # none, some absolute and some not, or on several drives
        return ""


def _within(parent: str, path: str) -> str:
    """Return a path as it reads from a directory."""
    return path.removeprefix(parent.rstrip(os.sep) + os.sep) if parent else path


def _label(row: RunRow) -> str:
    """Return how a run was trained, in a word: names need the columns."""
    method = "full" if row.method == "full fine-tune" else row.method
    return "the base" if row.is_base else method or "unknown"


def _sums(rows: Sequence[RunRow]) -> tuple[str, ...]:
    """Return what some runs take: in all, the weights, training state; and what of their tensors stands elsewhere."""
    return (
        size(sum(row.total_bytes for row in rows)),
        size(sum(row.bytes["weights"] for row in rows)),
        size(sum(row.bytes["training state"] for row in rows)),
        size(sum(row.equal_to_base_bytes + row.duplicated_bytes for row in rows)),
    )


def _score(row: RunRow, metrics: Sequence[str]) -> tuple[str, ...]:
    """Return what a run says it reached, if any run says so."""
    return (() if not metrics else ("-",)) if row.score is None else (f"{row.score.value:.4g}",)


def _print_equal(out: Output, found: Survey, most: int | None) -> None:
    """Name the biggest tensors that equal the base's: an adapter that carries them is as large as its model."""
    rows = found.tensors.largest_equal[:most]
    adapters = any(row.in_adapters for row in rows)
    out.table(
        {
            "Tensor equal to the base's": "name",
            "Copies": "number",
            **({"In adapters": "number"} if adapters else {}),
            "Size": "number",
        },
        [
            (row.name, f"{row.copies:,}", *([f"{row.in_adapters:,}"] if adapters else []), size(row.bytes))
            for row in rows
        ],
        ("all of them", "", *([""] if adapters else []), size(found.tensors.equal_to_base_bytes)),
    )


def _print_duplicates(out: Output, found: Survey, most: int | None) -> None:
    """Print the equal files whose copies take most."""
    shown = found.duplicates[:most]
    rest = found.duplicates[len(shown) :]
    parent = _parent(found)
    rows = [
        (_within(parent, row.files[0]), f"{len(row.files):,}", size(row.file_bytes), size(row.extra_bytes))
        for row in shown
    ]
    if rest:
        extra = sum(row.extra_bytes for row in rest)
        rows.append((f"{len(rest):,} more (--all)", f"{sum(len(row.files) for row in rest):,}", "", size(extra)))
    out.table(
        {"Equal files": "name", "Copies": "number", "Each": "number", "All but one": "number"},
        rows,
        ("all of them", "", "", size(found.duplicate_bytes)),
    )


def _print_savings(out: Output, found: Survey) -> None:
    """Print what could go without packing; no row counts a byte of another."""
    saved, whole = found.savings, found.disk_bytes
    rows = sorted(
        (
            (saved.training_state, "training state, not needed for inference"),
            (saved.duplicate_files, "files that are there twice"),
            (saved.equal_to_base, "tensors equal to the base's"),
            (saved.duplicate_tensors, "tensors that are there twice"),
        ),
        reverse=True,
    )
    out.table(
        {"Could go without packing": "name", "Size": "number", "Bytes": "number", "Share": "number", "": "bar"},
        [
            (what, size(nbytes), f"{nbytes:,}", _share(nbytes, whole), bar(nbytes, whole, BAR))
            for nbytes, what in rows
            if nbytes
        ],
        ("together, no byte twice", size(saved.total), f"{saved.total:,}", _share(saved.total, whole), ""),
    )


def _print_closed(out: Output, found: Survey) -> None:
    """Say what was not looked into, and warn of what could not be read."""
    lines = [
        f"{size(nbytes)} {what}."
        for nbytes, what in (
            (found.tensors.pickled_bytes, "of pickled weights were not looked into: no pickle is opened"),
            (found.tensors.other_format_bytes, "of weights in other formats were not looked into"),
            (found.linked_bytes, "stand outside, where links lead"),
            (sum(row.bytes for row in found.packs), "are in packs: `petlpack stats PACK` looks into one"),
        )
        if nbytes
    ]
    if lines and not out.quiet:
        out.line()
        for line in lines:
            out.line(line)
    for row in found.runs:
        if row.problem is not None:
            out.warn(f"{row.path}: {row.problem}")
    for path, why in found.unreadable.items():
        out.warn(f"{path}: {why}")

"""What `petlpack survey` prints: where the bytes are, the biggest first, and what of them nobody needs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from petlpack import printable
from petlpack_cli.output.sizes import bar, count, size

if TYPE_CHECKING:
    from petlpack import RunRow, Survey
    from petlpack_cli.output import ColumnKind, Output

BAR = 16
"""Columns of a full bar."""

MOST_TEXT = 8
"""Tensors, groups of equal files, or problems that people get without --all."""

SHORT = {
    "accuracy": "acc",
    "combined_score": "combined",
    "exact_match": "em",
    "matthews_correlation": "mcc",
    "spearmanr": "spearman",
}
"""What metrics are called beside their values, where runs state different ones: names need the columns."""


def print_survey(out: Output, survey: Survey, most: int | None) -> None:
    """Print where the bytes of a tree are; of long lists the `most` biggest, or all where that is None."""
    few = None if most is None else min(most, MOST_TEXT)
    _print_kinds(out, survey)
    if survey.runs:
        out.line()
        _print_runs(out, survey, most)
    if survey.tensors.equal:
        out.line()
        _print_equal(out, survey, few)
    if survey.duplicates:
        out.line()
        _print_duplicates(out, survey, few)
    if survey.savings.total or survey.savings.other_checkpoints:
        out.line()
        _print_savings(out, survey)
    if not out.quiet:
        _print_closed(out, survey)
    if not out.quiet:
        out.line()
        out.line(conclusion(survey))
    _print_problems(survey, few)


def conclusion(survey: Survey) -> str:
    """Return in a sentence what a tree takes, what of it could go, and what could not be read."""
    broken = _broken(survey)
    what = f"{count(len(survey.runs), 'run')} {'takes' if len(survey.runs) == 1 else 'take'}"
    runs = sum(row.total_bytes for row in survey.runs)
    if not survey.runs:
        return f"No run here: {count(survey.files, 'file')} of {size(survey.disk_bytes)}{broken}."
    saved = survey.savings
    twice = saved.duplicate_files + saved.duplicate_tensors
    parts = [
        f"{size(nbytes)} {text}"
        for nbytes, text in (
            (saved.training_state, "is training state that inference does not need"),
            (twice, "is stored twice"),
            (saved.equal_to_base, "equals the base"),
        )
        if nbytes
    ]
    spare = f", of which {_listed(parts)}" if parts else ""
    total = size(survey.disk_bytes)
    beside = "" if size(runs) == total else f" of the {total} here"
    return f"{what} {size(runs)}{beside}{spare}{broken}; `petlpack plan` measures what packing would take."


def _broken(survey: Survey) -> str:
    """Return how many runs and other paths cannot be read, if any."""
    outside = len(survey.unreadable_outside)
    runs = survey.problems - outside
    others = f"{outside:,} other{'s' * (outside != 1)}" if runs else count(outside, "path")
    parts = [*([count(runs, "run")] if runs else []), *([others] if outside else [])]
    return f"; {_listed(parts)} cannot be read in full" if parts else ""


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _print_kinds(out: Output, survey: Survey) -> None:
    """Print what each kind of file takes; the rows add up to the disk."""
    rows = sorted((row for row in survey.kinds if row.files), key=lambda row: -row.bytes)
    whole = survey.disk_bytes
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
        ("all files", f"{survey.files:,}", size(whole), f"{whole:,}", _share(whole, whole), ""),
    )


def _print_runs(out: Output, survey: Survey, most: int | None) -> None:
    """Print the biggest runs, the rest as one row; their metrics stand above, for names need the columns."""
    shown, rest = (survey.runs, ()) if most is None else (survey.runs[:most], survey.runs[most:])
    parent = _parent(survey)
    metrics = list(dict.fromkeys(row.score.metric for row in shown if row.score is not None))
    rows = [(_within(parent, row.path), _label(row), *_sums([row]), *_score(row, metrics)) for row in shown]
    none = ("",) if metrics else ()
    if rest:
        rows.append((f"{len(rest):,} more (--all)", "", *_sums(rest), *none))
    total = (count(len(survey.runs), "run"), "", *_sums(survey.runs), *none) if len(survey.runs) > 1 else None
    columns: dict[str, ColumnKind] = {"Run": "name", "Method": "text"}
    columns |= dict.fromkeys(("Total", "Weights", "Training", "Redundant", *(["Score"] if metrics else [])), "number")
    if not out.quiet:
        where = f"Runs in {parent}. " if parent else ""
        scores = f" Scores: {', '.join(_metric(metric, metrics) for metric in metrics)}." if metrics else ""
        out.line(f"{where}Redundant: tensors that the base or another file holds bit for bit.{scores}")
    for metric in _of_two_scales(shown):
        out.line(f"Some runs report {metric} on a scale of 0 to 1, others apparently 0 to 100.")
    out.table(columns, rows, total)


def _parent(survey: Survey) -> str:
    """Return the directory that all runs are in, as far as one path can say it."""
    try:
        return os.path.commonpath([os.path.dirname(row.path) for row in survey.runs])  # noqa: PTH120 - escaped names
    except ValueError:  # none, some absolute and some not, or on several drives
        return ""


def _within(parent: str, path: str) -> str:
    """Return a path as it reads from a directory."""
    return path.removeprefix(parent.rstrip(os.sep) + os.sep) if parent else path


def _label(row: RunRow) -> str:
    """Return how a run was trained, in few words: names need the columns."""
    return "the base" if row.is_base else (row.method or "unknown").removesuffix(" fine-tune")


def _sums(rows: Sequence[RunRow]) -> tuple[str, ...]:
    """Return what some runs take: in all, the weights, training state; and what of their tensors stands elsewhere."""
    return (
        size(sum(row.total_bytes for row in rows)),
        size(sum(row.bytes["weights"] for row in rows)),
        size(sum(row.bytes["training state"] for row in rows)),
        size(sum(row.equal_to_base_bytes + row.duplicated_bytes for row in rows)),
    )


def _score(row: RunRow, metrics: Sequence[str]) -> tuple[str, ...]:
    """Return what a run says it reached, if any run says so; with the metric where there are several."""
    if row.score is None:
        return ("-",) if metrics else ()
    metric = f"{SHORT.get(row.score.metric, row.score.metric)} " if len(metrics) > 1 else ""
    return (f"{metric}{row.score.value:.4g}",)


def _metric(metric: str, metrics: Sequence[str]) -> str:
    """Return a metric's name, with what it is called in the table."""
    return f"{metric} ({SHORT[metric]})" if len(metrics) > 1 and metric in SHORT else metric


def _of_two_scales(rows: Sequence[RunRow]) -> list[str]:
    """Return the metrics of which some runs state 0.9 and others 88: one column cannot be compared."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.score is not None:
            values[row.score.metric].append(abs(row.score.value))
    return [metric for metric, scores in values.items() if max(scores) > 1 and any(0 < score <= 1 for score in scores)]


def _print_equal(out: Output, survey: Survey, most: int | None) -> None:
    """Name the biggest tensors that equal the base's: an adapter that carries them is as large as its model."""
    every = survey.tensors.equal
    shown = every[:most]
    rest = every[len(shown) :]
    adapters = any(row.in_adapters for row in every)

    def sums(start: int, stop: int | None = None) -> tuple[str, ...]:
        rows = every[start:stop]
        counts = [sum(row.copies for row in rows), *([sum(row.in_adapters for row in rows)] if adapters else [])]
        return (*(f"{number:,}" for number in counts), size(sum(row.bytes for row in rows)))

    out.table(
        {
            "Tensor equal to the base's": "name",
            "Copies": "number",
            **({"In adapters": "number"} if adapters else {}),
            "Size": "number",
        },
        [
            *((row.name, *sums(i, i + 1)) for i, row in enumerate(shown)),
            *([(f"{len(rest):,} more (--all)", *sums(len(shown)))] if rest else []),
        ],
        ("all of them", *sums(0)),
    )


def _print_duplicates(out: Output, survey: Survey, most: int | None) -> None:
    """Print the equal files whose copies take most."""
    shown = survey.duplicates[:most]
    rest = survey.duplicates[len(shown) :]
    parent = _parent(survey)
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
        ("all of them", "", "", size(survey.duplicate_bytes)),
    )


def _print_savings(out: Output, survey: Survey) -> None:
    """Print what could go without packing; no row counts a byte of another, nor do the checkpoints below."""
    saved, whole = survey.savings, survey.disk_bytes
    rows = sorted(
        (
            (saved.training_state, "training state, not needed for inference"),
            (saved.duplicate_files, "files stored twice (hard links would do)"),
            (saved.equal_to_base, "tensors equal to the base's"),
            (saved.duplicate_tensors, "tensors stored twice"),
        ),
        reverse=True,
    )
    if saved.total:
        out.table(
            {"Could go without packing": "name", "Size": "number", "Bytes": "number", "Share": "number", "": "bar"},
            [
                (what, size(nbytes), f"{nbytes:,}", _share(nbytes, whole), bar(nbytes, whole, BAR))
                for nbytes, what in rows
                if nbytes
            ],
            ("together, each byte counted once", size(saved.total), f"{saved.total:,}", _share(saved.total, whole), ""),
        )
    if saved.other_checkpoints:
        besides = " besides" if saved.total else ""
        out.line(f"other checkpoints{besides}: {size(saved.other_checkpoints)}, if only the best is wanted")


def _print_closed(out: Output, survey: Survey) -> None:
    """Say what was not looked into."""
    lines = [
        f"{size(nbytes)} {what}."
        for nbytes, what in (
            (survey.tensors.pickled_bytes, "of pickled weights were not inspected: pickles are never opened"),
            (survey.tensors.other_format_bytes, "of weights in other formats were not inspected"),
            (survey.linked_bytes, "are outside, behind links"),
            (sum(row.bytes for row in survey.packs), "are in packs: run `petlpack stats PACK` for one"),
        )
        if nbytes
    ]
    if lines:
        out.line()
        for line in lines:
            out.line(line)


def _print_problems(survey: Survey, most: int | None) -> None:
    """Name on stderr what cannot be read, also where no talk is wanted; those with one reason stand together."""
    problems = {row.path: row.problem.message for row in survey.runs if row.problem is not None}
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, why in problems.items():
        groups[why.replace(printable(path) + os.sep, "")].append((path, why))
    for path, problem in survey.unreadable.items():
        if not _is_told(path, problems):
            groups[problem.message].append((path, problem.message))
    shown = list(groups.items())[:most]
    for reason, rows in shown:
        (path, why), names = rows[0], [path for path, _ in rows]
        text = f"{path}: {why}" if len(rows) == 1 else f"{_some(names, most)}: {reason}"
        click.echo(f"Error: {printable(text)}", err=True)
    if len(shown) < len(groups):
        rest = sum(len(rows) for rows in groups.values()) - sum(len(rows) for _, rows in shown)
        click.echo(f"Error: {rest:,} more cannot be read (--all)", err=True)
    if groups:
        click.echo("Hint: its bytes are counted all the same; run `petlpack plan` on a run to see what to do", err=True)


def _is_told(path: str, problems: Mapping[str, str]) -> bool:
    """Tell whether the problem of a run is this path."""
    runs = map(str, (Path(path), *Path(path).parents))
    return any(f"'{printable(path)}'" in problems.get(run, "") for run in runs)


def _some(names: Sequence[str], most: int | None) -> str:
    """Name a few of several paths, and say how many more there are."""
    rest = 0 if most is None else len(names) - most
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:most])} and {rest:,} more"

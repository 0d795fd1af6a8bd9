"""One task in figures: how it was trained, how it is stored, what it costs here, as its run, as a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from petlpack.analyze.bases import BaseSize, Source, dense_bytes
from petlpack.analyze.figures import Figures, figures_of
from petlpack.analyze.reading import Opened, Reader, SectionBytes
from petlpack.records.facts import Score


@dataclass(frozen=True)
class TaskBytes:
    """Bytes of one task: payload of the method and of the head, the kept files and other parts that no other task has,
    and the rest of its file: manifest and header.

    `payload`, `head` and `header` add up to the task's own file; `total` is the sum of the four. `share` is the task's
    share of the parts that others use, too: shares and totals add up to all that tasks take.
    """

    payload: int
    head: int
    files: int
    header: int
    total: int
    share: int

    @property
    def takes(self) -> int:
        """What the task takes with its share: over all tasks, what they take on the disk."""
        return self.total + self.share


@dataclass(frozen=True)
class TaskRow:
    """One task: how it was trained, how it is stored, what it costs here, as its run, as a whole dense model."""

    name: str
    method: str
    layout: str
    whole: bool
    """Whether its run is a whole model."""
    codec: str
    exact: bool
    error: float | None
    """The largest absolute error that the encoder states of an inexact task."""
    bytes: TaskBytes
    run_bytes: int
    """Bytes of the run's tensors, as its weight files held them."""
    dense_bytes: int | None
    """Bytes of a whole model of this task: of a full fine-tune its run, else the base's and the head's; None where
    the base is not known."""
    base: Source | None
    """How the base of that whole model is known; None where it is not."""
    score: Score | None
    shared: tuple[str, ...]
    figures: Figures
    sections: tuple[SectionBytes, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON has it; sections are told by `--by section`."""
        row = {name: value for name, value in vars(self).items() if name not in ("sections", "whole")}
        score = None if self.score is None else vars(self.score)
        return {
            **row,
            "bytes": {**vars(self.bytes), "takes": self.bytes.takes},
            "score": score,
            "figures": vars(self.figures),
        }


def task_row(
    task: Opened, reader: Reader, base: tuple[BaseSize | None, Source | None], *, alone: Mapping[str, int], share: int
) -> TaskRow:
    """Count one task; `alone` holds the bytes of the shared parts that no other task uses, by sha256."""
    size, source = base
    head = sum(row.nbytes for row in task.sections if row.role == "head")
    payload = sum(row.nbytes for row in task.sections) - head
    files, task_bytes = sum(alone.values()), task.nbytes
    return TaskRow(
        name=task.name,
        method=task.method,
        layout=task.facts.layout,
        whole=task.facts.whole,
        codec=task.codec,
        exact=task.facts.exact,
        error=task.facts.error,
        bytes=TaskBytes(payload, head, files, task_bytes - payload - head, task_bytes + files, share),
        run_bytes=task.kind.run_bytes,
        dense_bytes=dense_bytes(task, size),
        base=source,
        score=task.facts.score,
        shared=tuple(sha256 for sha256 in task.parts if sha256 not in alone),
        figures=figures_of(task, [reader.part(sha256) for sha256 in task.tensors]),
        sections=task.sections,
    )

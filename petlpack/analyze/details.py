"""Everything about one task: how it is stored, what base it needs, its sections, kept files and shared parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petlpack.codecs.registry import codec
from petlpack.decoding.task import Task
from petlpack.errors.arguments import Check, check
from petlpack.records.template import Template
from petlpack.rules.rows import settings_of
from petlpack.sections.shared import find_shared


@dataclass(frozen=True)
class TensorCounts:
    """How many tensors a task has, how many equal the base's, how many another of the run, and how many are stored."""

    count: int
    unchanged: int
    aliases: int
    stored: int


@dataclass(frozen=True)
class NeededBase:
    """The base that a task needs or is bound to: its name, if anything, how many of its tensors, and which it was."""

    name: str | None
    tensors: int
    path: str | None = None
    sha256: str | None = None
    needed: bool = True
    """Whether the task cannot be decoded without it: an adapter can."""


@dataclass(frozen=True)
class SectionDetails:
    """One section of the task's file."""

    name: str
    coder: str
    dtype: str
    elements: int
    bytes: int

    @property
    def bits_per_element(self) -> float | None:
        """Bits that an element takes; None where there is none."""
        return round(8 * self.bytes / self.elements, 6) if self.elements else None


@dataclass(frozen=True)
class RuleDetails:
    """How a task is rebuilt: what it becomes, how that is used, the formulas."""

    kind: str
    settings: Mapping[str, Any]
    formula: list[str]


@dataclass(frozen=True)
class PartDetails:
    """A shared part that a task needs: its bytes in the pack, and what it holds for the task."""

    sha256: str
    bytes: int
    holds: list[str]


@dataclass(frozen=True)
class Details:
    """One task as its header, its manifest and its shared parts tell of it."""

    task: Task
    tensors: TensorCounts
    base: NeededBase | None
    sections: tuple[SectionDetails, ...]
    rule: RuleDetails | None
    files: Mapping[str, int]
    """Bytes of the kept files, as the run had them."""
    shared: tuple[PartDetails, ...]

    @property
    def payload_bytes(self) -> int:
        """Bytes of all sections."""
        return sum(section.bytes for section in self.sections)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack show --json` prints."""
        task = self.task
        return {
            "name": task.name,
            "method": task.method,
            "layout": task.facts.layout,
            "codec": task.codec,
            "exact": task.exact,
            "bytes": task.nbytes,
            "payload_bytes": self.payload_bytes,
            "run_bytes": task.run_bytes,
            "tensors": vars(self.tensors),
            "base": self.base and vars(self.base),
            "sections": [{**vars(row), "bits_per_element": row.bits_per_element} for row in self.sections],
            "rule": self.rule and vars(self.rule),
            "facts": dict(task.manifest.facts),
            "files": [{"file": name, "bytes": nbytes} for name, nbytes in self.files.items()],
            "shared": [vars(part) for part in self.shared],
            "decoded_sha256": task.manifest.decoded,
        }


_TASK = Check("a Task", lambda value: isinstance(value, Task))


def details(task: Task) -> Details:
    """Tell everything about a task; reads its header and the small shared parts that it names, and no weights.

    Raises DamageError where one of them is missing, or is not as it was written, UsageError for what is no Task.
    """
    check("task", task, _TASK, "give a task of an opened pack: pack[NAME]")
    return task.at_once(_details)


def _details(task: Task) -> Details:
    template, payload, sources = task.template, task.payload, task.sources
    rule = template.rule
    codec(task.codec).kinds(rule)  # refuses a rule that is none of its codec's
    return Details(
        task,
        TensorCounts(len(template.slots), len(sources.unchanged), len(sources.aliases), len(sources.stored)),
        _base_of(template),
        tuple(
            SectionDetails(row.name, row.coder, row.dtype, row.count, payload[row.name])
            for row in task.manifest.sections
        ),
        None if rule is None else RuleDetails(rule["kind"], settings_of(rule), task.formula()),
        shared=tuple(
            PartDetails(sha256, find_shared(task.store, sha256).stat().st_size, _holds(task, sha256))
            for sha256 in task.parts
        ),
        files=_file_bytes(task),
    )


def _file_bytes(task: Task) -> dict[str, int]:
    """Return the bytes of the kept files as the run had them; what several names share is read once."""
    task.check_files()
    read: dict[tuple[str, bool], int] = {}
    for name, sha256 in task.template.files.items():
        key = sha256, name in task.template.named
        if key not in read:
            read[key] = len(task.read_file(name))
    return {name: read[sha256, name in task.template.named] for name, sha256 in task.template.files.items()}


def _base_of(template: Template) -> NeededBase | None:
    """Return the base that a task needs, or is bound to; None where nothing is known of one."""
    origin, adapts, used = template.origin, template.adapts, len(template.base_refs)
    if origin is None:
        return NeededBase(template.base_name, used) if template.needs_base else None
    tensors = used or (0 if adapts is None else len(adapts.tensors))
    return NeededBase(origin.name, tensors, origin.path, origin.sha256, template.needs_base)


def _holds(task: Task, sha256: str) -> list[str]:
    """Say what a shared part holds for a task."""
    template, parts = task.template, task.manifest.shared
    if sha256 == parts[0]:
        return ["template"]
    if sha256 in parts:
        count = len(template.parts[parts.index(sha256) - 1])
        return [f"{count:,} tensor{'s' * (count != 1)}"]
    if sha256 == template.base_table:
        return ["base table"]
    return [file for file, digest in template.files.items() if digest == sha256]

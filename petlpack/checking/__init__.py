"""How `verify` checks a pack: every byte, with the base at hand every weight, and a task against its run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.checking.against import compare_with_run, read_run_of
from petlpack.checking.seal import check_seal
from petlpack.codecs.registry import codec
from petlpack.decoding.bases import base_of_task, check_adapted
from petlpack.decoding.task import Task
from petlpack.errors import (
    BaseError,
    DamageError,
    LimitError,
    PetlpackError,
    RunError,
    UsageError,
    kept,
    problem_of,
)
from petlpack.errors.arguments import Place, check_jobs, path_of
from petlpack.layouts.run import Run
from petlpack.pack import Pack
from petlpack.parallel import Progress
from petlpack.sections.parts import check_shared
from petlpack.store.replaced import settled, state_of
from petlpack.tensors.base import Base, Bases, open_bases

_NOT_ALLOWED = "os"
"""The code of a file that nobody may read here: nothing is known of its bytes, so it is not damage."""


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one task or shared part: how far it was checked, and what is wrong, if anything."""

    name: str
    kind: str  # "task" or "shared"; "sealed": what the seal of the pack says of a file, or of all
    depth: str  # "bytes": every byte is as written; "decoded": every weight, too; "compared": with the run
    error: PetlpackError | None
    notes: tuple[str, ...] = ()
    """What else there is to say: which files of the run the pack does not have."""

    @property
    def damaged(self) -> bool:
        """Whether it is damaged: what needs another base than was given, or could not be read, is not."""
        return self.error is not None and not isinstance(self.error, BaseError) and not self.unread

    @property
    def unread(self) -> bool:
        """Whether nobody may read it here, it takes more than is allowed, or its run cannot be read."""
        if self.error is None:
            return False
        return isinstance(self.error, (RunError, LimitError)) or self.error.code == _NOT_ALLOWED

    def to_json(self) -> dict[str, Any]:
        """Return the finding as `petlpack verify --json` prints it."""
        error = None if self.error is None else problem_of(self.error).to_json()
        return {
            **{"name": self.name, "kind": self.kind, "depth": self.depth},
            **{"ok": error is None, "error": error, "notes": list(self.notes)},
        }


@dataclass(frozen=True)
class Findings:
    """What `verify` found of a pack, or of one task of it, all together."""

    pack: str
    checked: tuple[Checked, ...]
    foreign: tuple[str, ...] = ()
    """Files below the pack that are no part of it, and were not checked."""
    unexplained: tuple[str, ...] = ()
    """Shared parts that no task needs and none gave up: tasks may be missing."""

    @property
    def damaged(self) -> int:
        """How many parts are damaged; tasks that need another base than was given are not."""
        return sum(finding.damaged for finding in self.checked)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack verify --json` prints."""
        checked = [finding.to_json() for finding in self.checked]
        return {
            **{"pack": self.pack, "checked": checked, "damaged": self.damaged, "foreign": list(self.foreign)},
            **{"unexplained": list(self.unexplained)},
        }


def verify(
    pack: Place,
    base: Bases | None = None,
    *,
    task: str | None = None,
    against: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Checked]:
    """Check a pack, or one task of it: every byte, and with the base at hand every decoded weight.

    `base` is as in `Task.load`: of several, each task takes the one that it was encoded with. `against` compares the
    weight files and kept files of `task` with those of a run, bit for bit. Yields one finding for every task and every
    shared part, and of a sealed pack for the seal and each file that is not as it says; a damaged one, or one that
    needs another base, does not stop the rest. Raises TaskError where there is
    no such task, UsageError for `against` without a task, and RunError where that is no run, before anything else.
    """
    pack = pack if isinstance(pack, Pack) else Pack(pack)
    check_jobs(jobs)
    opened = None if base is None else open_bases(base)
    if task is not None:
        pack.store.find_task(task)
    run = None
    if against is not None:
        if task is None:
            raise UsageError("a run was given to compare with, but no task", hint="name the task that the run became")
        run = read_run_of(pack, task, path_of("against", against))
    return _findings(pack, opened, task, run, jobs, progress)


def _findings(
    pack: Pack,
    base: Sequence[Base] | None,
    task: str | None,
    run: Run | None,
    jobs: int | None,
    progress: Progress | None,
) -> Iterator[Checked]:
    """Check one part after another."""
    for name in [task] if task is not None else list(pack):
        checked = _check_task_as_it_is(pack, name, base, run, jobs, progress)
        if checked is not None:
            yield checked
    for sha256 in pack.store.shared_names() if task is None else ():
        checked = _check_shared(pack, sha256)
        if checked is not None:
            yield checked
    if task is None:
        yield from (Checked(name, "sealed", "bytes", error, notes) for name, error, notes in check_seal(pack.store))


def _check_task_as_it_is(
    pack: Pack,
    name: str,
    base: Sequence[Base] | None,
    run: Run | None,
    jobs: int | None,
    progress: Progress | None,
) -> Checked | None:
    """Check one task; once more where it was replaced meanwhile, and so what it needed may be gone."""
    path = pack.store.task_path(name)
    while True:
        before = state_of(path)
        checked = _check_task(pack, name, base, run, jobs, progress)
        if checked is None or checked.error is None or state_of(path) == before:
            return checked


def _check_task(
    pack: Pack,
    name: str,
    base: Sequence[Base] | None,
    run: Run | None,
    jobs: int | None,
    progress: Progress | None,
) -> Checked | None:
    """Check one task; None where it was removed meanwhile. One that needs another base is checked byte by byte.

    Raises RunError where the run that it is compared with cannot be read: that is no finding of the pack's.
    """
    depth = "bytes"
    notes: tuple[str, ...] = ()
    try:
        task = pack[name]
        for sha256 in task.parts:
            check_shared(pack.store, sha256, pack.max_bytes)
        for file in task.template.named:  # whose bytes are right, but may be no text that takes a name
            task.read_file(file)
        codec(task.codec)  # one that this petlpack does not know is told even where nothing is decoded
        depth, foreign = _read_whole(task, base, jobs, progress)
        if foreign is not None:
            return Checked(name, "task", depth, foreign)
        if run is not None:
            depth = "compared"
            notes = compare_with_run(task, base, run)
    except RunError:
        raise
    except (PetlpackError, OSError) as error:
        if not pack.store.task_path(name).exists():
            return None
        return Checked(name, "task", depth, _told(error, f"task '{name}'"))
    return Checked(name, "task", depth, None, notes)


def _read_whole(
    task: Task, base: Sequence[Base] | None, jobs: int | None, progress: Progress | None
) -> tuple[str, BaseError | None]:
    """Decode a task where its base is at hand, else check its bytes; return how deep, and how the base differs.

    An adapter is decoded without a base, too, and one that is given is compared with the one that it adapts.
    """
    foreign = None
    needs_base = task.template.needs_base
    if base is not None or not needs_base:
        try:
            task.load(base if needs_base else None).check(jobs=jobs, progress=progress)
        except BaseError as error:
            foreign = kept(error)
        else:
            return "decoded", None if needs_base else _other_base(task, base)
    task.check_bytes()
    return "bytes", foreign


def _other_base(task: Task, base: Sequence[Base] | None) -> BaseError | None:
    """Return how the bases that are given differ from the one that an adapter is bound to."""
    try:
        opened = base_of_task(task.name, task.template, base)
        if opened is not None:
            check_adapted(task.name, task.template, opened)
    except BaseError as error:
        return kept(error)
    return None


def _told(error: PetlpackError | OSError, what: str) -> PetlpackError:
    if isinstance(error, PetlpackError):
        return kept(error)
    if isinstance(error, PermissionError):
        problem = problem_of(error)
        return PetlpackError(problem.message, hint=problem.hint, code=_NOT_ALLOWED)
    return DamageError(f"{what} cannot be read: {error}", code="file-unreadable")


def _check_shared(pack: Pack, sha256: str) -> Checked | None:
    """Check one shared part; None where it was collected meanwhile."""
    path = pack.store.shared_path(sha256)
    try:
        settled(path, lambda: check_shared(pack.store, sha256, pack.max_bytes))
    except (PetlpackError, OSError) as error:
        if not path.exists():
            return None
        return Checked(sha256, "shared", "bytes", _told(error, f"shared part {sha256}"))
    return Checked(sha256, "shared", "bytes", None)

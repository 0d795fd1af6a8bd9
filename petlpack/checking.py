"""How `verify` checks a pack: every byte, with the base at hand every weight, and a task against its run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.codecs.registry import codec
from petlpack.decoding.task import Task
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import prepare
from petlpack.errors import BaseError, DamageError, PetlpackError, RunError, printable, problem_of
from petlpack.layouts.registry import options_in, read_run
from petlpack.pack import Pack
from petlpack.parallel import Progress, count_jobs
from petlpack.sections.parts import check_shared
from petlpack.tensors.base import Base
from petlpack.tensors.tensor import Tensor

_NOT_ALLOWED = "os"
"""The code of a file that nobody may read here: nothing is known of its bytes, so it is not damage."""


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one task or shared part: how far it was checked, and what is wrong, if anything."""

    name: str
    kind: str  # "task" or "shared"
    depth: str  # "bytes": every byte is as written; "decoded": every weight, too; "compared": with the run
    error: PetlpackError | None

    @property
    def damaged(self) -> bool:
        """Whether it is damaged: what needs another base than was given, or could not be read, is not."""
        return self.error is not None and not isinstance(self.error, BaseError) and not self.unread

    @property
    def unread(self) -> bool:
        """Whether nobody may read it here, or the run that it was to be compared with cannot be read."""
        return self.error is not None and (isinstance(self.error, RunError) or self.error.code == _NOT_ALLOWED)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as `petlpack verify --json` prints it."""
        error = None if self.error is None else problem_of(self.error).to_json()
        return {"name": self.name, "kind": self.kind, "depth": self.depth, "ok": error is None, "error": error}


@dataclass(frozen=True)
class Findings:
    """What `verify` found of a pack, or of one task of it, all together."""

    pack: str
    checked: tuple[Checked, ...]

    @property
    def damaged(self) -> int:
        """How many parts are damaged; tasks that need another base than was given are not."""
        return sum(finding.damaged for finding in self.checked)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack verify --json` prints."""
        checked = [finding.to_json() for finding in self.checked]
        return {"pack": self.pack, "checked": checked, "damaged": self.damaged}


def verify(
    pack: str | Path | Pack,
    base: str | Path | Base | None = None,
    *,
    task: str | None = None,
    against: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Checked]:
    """Check a pack, or one task of it: every byte, and with the base at hand every decoded weight.

    `against` compares the task's tensors with a run, bit for bit. Yields one finding for every task and every shared
    part; a damaged one, or one that needs another base, does not stop the rest.
    """
    pack = pack if isinstance(pack, Pack) else Pack(pack)
    opened = Base(base) if isinstance(base, str | Path) else base
    names = [task] if task is not None else list(pack)
    for name in names:
        if task is not None and task not in pack:
            pack.store.find_task(task)
        checked = _check_task(pack, name, opened, against, jobs, progress)
        if checked is not None:
            yield checked
    for sha256 in pack.store.shared_names() if task is None else ():
        checked = _check_shared(pack, sha256)
        if checked is not None:
            yield checked


def _check_task(
    pack: Pack,
    name: str,
    base: Base | None,
    against: str | Path | None,
    jobs: int | None,
    progress: Progress | None,
) -> Checked | None:
    """Check one task; None where it was removed meanwhile. One that needs another base is checked byte by byte."""
    depth = "bytes"
    try:
        task = pack[name]
        for sha256 in task.parts:
            check_shared(pack.store, sha256)
        codec(task.codec)  # one that this petlpack does not know is told even where nothing is decoded
        depth, foreign = _read_whole(task, base, jobs, progress)
        if foreign is not None:
            return Checked(name, "task", depth, foreign)
        if against is not None:
            depth = "compared"
            _compare_with_run(task, base, against)
    except (PetlpackError, OSError) as error:
        if not pack.store.task_path(name).exists():
            return None
        return Checked(name, "task", depth, _told(error, f"task '{name}'"))
    return Checked(name, "task", depth, None)


def _read_whole(
    task: Task, base: Base | None, jobs: int | None, progress: Progress | None
) -> tuple[str, BaseError | None]:
    """Decode a task where its base is at hand, else check its bytes; return how deep, and how the base differs."""
    foreign = None
    if base is not None or not task.template.base:
        try:
            for _ in task.load(base).stream(jobs=jobs, progress=progress):
                pass
            return "decoded", None
        except BaseError as error:
            foreign = error
    task.check_bytes()
    return "bytes", foreign


def _told(error: PetlpackError | OSError, what: str) -> PetlpackError:
    if isinstance(error, PetlpackError):
        return error
    if isinstance(error, PermissionError):
        problem = problem_of(error)
        return PetlpackError(problem.message, hint=problem.hint, code=_NOT_ALLOWED)
    return DamageError(f"{what} cannot be read: {error}", code="file-unreadable")


def _check_shared(pack: Pack, sha256: str) -> Checked | None:
    """Check one shared part; None where it was collected meanwhile."""
    try:
        check_shared(pack.store, sha256)
    except (PetlpackError, OSError) as error:
        if not pack.store.shared_path(sha256).exists():
            return None
        return Checked(sha256, "shared", "bytes", _told(error, f"shared part {sha256}"))
    return Checked(sha256, "shared", "bytes", None)


def _run_of(task: Task, against: str | Path, base: Base | None) -> dict[str, Tensor]:
    """Read the run that a task is to be compared with, as it was read when it was encoded."""
    facts = task.facts
    runs = read_run(against, options_in(facts.options))
    run = next((run for run in runs if printable(run.task) == facts.task), None)
    if run is None:
        names = printable(", ".join(run.task for run in runs))
        raise RunError(f"'{printable(str(against))}' has no task '{facts.task}' (it has: {names})")
    density = facts.asked_density
    if base is None or not (run.omits_base or density):
        return dict(run.module.tensors)
    prepared = prepare(run, base, Digests(count_jobs(None)), rule=task.template.rule, density=density)
    return dict(prepared.matched.tensors)


def _compare_with_run(task: Task, base: Base | None, against: str | Path) -> None:
    """Compare a task's tensors with those of a run; raises DamageError that names the first that differs."""
    run = _run_of(task, against, base)
    packed = task.load(base)
    if packed.keys() != run.keys():
        name = min(packed.keys() ^ run.keys())
        raise DamageError(f"tensor '{name}' is in only one of task '{task.name}' and '{against}'", code="run-differs")
    for name in packed:
        if packed[name].dtype != run[name].dtype or packed[name].shape != run[name].shape:
            raise DamageError(
                f"tensor '{name}' is {packed[name].dtype.name} {list(packed[name].shape)} in task '{task.name}', but "
                f"{run[name].dtype.name} {list(run[name].shape)} in '{against}'",
                code="run-differs",
            )
        if not np.array_equal(packed[name].bits(), run[name].bits()):
            raise DamageError(
                f"tensor '{name}' of task '{task.name}' differs from the one in '{against}'", code="run-differs"
            )

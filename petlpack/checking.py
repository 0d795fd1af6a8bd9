"""How `verify` checks a pack: every byte, with the base at hand every weight, and a task against its run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.codecs.registry import codec
from petlpack.decoding.bases import base_of_task
from petlpack.decoding.task import Task
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import prepare
from petlpack.errors import (
    BaseError,
    DamageError,
    PetlpackError,
    RunError,
    UnknownFormatError,
    UsageError,
    printable,
    problem_of,
)
from petlpack.errors.arguments import Place, check_jobs, path_of
from petlpack.layouts.registry import options_in, read_run
from petlpack.layouts.run import Run
from petlpack.pack import Pack
from petlpack.parallel import Progress, count_jobs
from petlpack.sections.parts import check_shared
from petlpack.tensors.base import Base, Bases, open_bases
from petlpack.tensors.dtypes import Bits
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
    tensors of `task` with a run, bit for bit. Yields one finding for every task and every shared part; a damaged one,
    or one that needs another base, does not stop the rest. Raises TaskError where there is no such task, UsageError for
    `against` without a task, and RunError where that is no run, before anything is checked.
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
        run = _read_run(pack, task, path_of("against", against))
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
        checked = _check_task(pack, name, base, run, jobs, progress)
        if checked is not None:
            yield checked
    for sha256 in pack.store.shared_names() if task is None else ():
        checked = _check_shared(pack, sha256)
        if checked is not None:
            yield checked


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
    try:
        task = pack[name]
        for sha256 in task.parts:
            check_shared(pack.store, sha256)
        codec(task.codec)  # one that this petlpack does not know is told even where nothing is decoded
        depth, foreign = _read_whole(task, base, jobs, progress)
        if foreign is not None:
            return Checked(name, "task", depth, foreign)
        if run is not None:
            depth = "compared"
            _compare_with_run(task, base, run)
    except RunError:
        raise
    except (PetlpackError, OSError) as error:
        if not pack.store.task_path(name).exists():
            return None
        return Checked(name, "task", depth, _told(error, f"task '{name}'"))
    return Checked(name, "task", depth, None)


def _read_whole(
    task: Task, base: Sequence[Base] | None, jobs: int | None, progress: Progress | None
) -> tuple[str, BaseError | None]:
    """Decode a task where its base is at hand, else check its bytes; return how deep, and how the base differs.

    An adapter is decoded without a base, too, and one that is given is compared with the one that it adapts.
    """
    foreign = None
    needs_base = bool(task.template.base)
    if base is not None or not needs_base:
        try:
            tensors = task.load(base if needs_base else None)
            for _ in tensors.stream(jobs=jobs, progress=progress):
                pass
        except BaseError as error:
            foreign = error
        else:
            return "decoded", None if needs_base else _other_base(task, base)
    task.check_bytes()
    return "bytes", foreign


def _other_base(task: Task, base: Sequence[Base] | None) -> BaseError | None:
    """Return how the bases that are given differ from the one that an adapter is bound to."""
    try:
        task.load(base)
    except BaseError as error:
        return error
    return None


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


_ITS_RUN = "give the run that the task was encoded from"


def _read_run(pack: Pack, name: str, against: Path) -> Run | None:
    """Read the run that a task is to be compared with, as it was read when it was encoded.

    None where the task cannot be opened, which its check tells. Raises RunError where the run has no such task.
    """
    try:
        facts = pack[name].facts
    except (DamageError, UnknownFormatError):
        return None
    try:
        runs = read_run(against, options_in(facts.options))
    except (RunError, UsageError) as error:  # whose hint is about encoding it
        raise RunError(error.message, hint=_ITS_RUN, code=error.own_code) from error
    run = next((run for run in runs if printable(run.task) == printable(facts.task)), None)
    if run is not None:
        return run
    wanted = f"task '{printable(facts.task)}' of a run" if facts.task else "a run of one task"
    names = printable(", ".join(run.task for run in runs if run.task))
    raise RunError(
        f"task '{name}' was encoded from {wanted}, but '{printable(str(against))}' holds {names or 'one task only'}",
        hint=_ITS_RUN,
    )


def _tensors_of(run: Run, task: Task, bases: Sequence[Base] | None) -> dict[str, Tensor]:
    """Return the tensors of a run that a task of it holds."""
    density, base = task.facts.asked_density, base_of_task(task.name, task.template, bases)
    if base is None or not (run.omits_base or density):
        return dict(run.module.tensors)
    prepared = prepare(run, base, Digests(count_jobs(None)), rule=task.template.rule, density=density)
    return dict(prepared.matched.tensors)


def _compare_with_run(task: Task, base: Sequence[Base] | None, run: Run) -> None:
    """Compare a task's tensors with those of a run; raises DamageError that names the first that differs."""
    theirs, packed = _tensors_of(run, task, base), task.load(base)
    whose = f"task '{task.name}'", f"'{printable(str(run.path))}'"
    if packed.keys() != theirs.keys():
        name = min(packed.keys() ^ theirs.keys())
        has, lacks = whose if name in packed else whose[::-1]
        raise _differs(f"tensor '{printable(name)}' is in {has}, but not in {lacks}")
    for name in packed:
        mine, other = packed[name], theirs[name]
        if mine.dtype != other.dtype or mine.shape != other.shape:
            raise _differs(
                f"tensor '{printable(name)}' is {mine.dtype.name} {list(mine.shape)} in {whose[0]}, but "
                f"{other.dtype.name} {list(other.shape)} in {whose[1]}"
            )
        if not np.array_equal(mine.bits(), _bits_of(other, run)):
            raise _differs(f"tensor '{printable(name)}' of {whose[0]} differs from the one in {whose[1]}")


def _bits_of(tensor: Tensor, run: Run) -> Bits:
    """Read a tensor of a run; raises RunError where its file cannot be read."""
    try:
        return tensor.bits()
    except OSError as error:
        raise RunError(
            f"'{printable(str(run.path))}' cannot be read: {error.strerror or error}", hint=problem_of(error).hint
        ) from error


def _differs(message: str) -> DamageError:
    return DamageError(
        message, hint="if this is the run that was packed, it has changed since: encode it again", code="run-differs"
    )

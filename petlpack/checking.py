"""How `verify` checks a pack: every byte, with the base at hand every weight, and a task against its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.codecs.registry import codec
from petlpack.decoding.bases import base_of_task
from petlpack.decoding.task import Task
from petlpack.decoding.tensors import TaskTensors
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import prepare
from petlpack.errors import BaseError, DamageError, PetlpackError, RunError, printable, problem_of
from petlpack.layouts.components import without_components
from petlpack.layouts.registry import options_in, read_run
from petlpack.layouts.run import Run
from petlpack.layouts.selection import Selection
from petlpack.pack import Pack
from petlpack.parallel import Progress, count_jobs
from petlpack.sections.parts import check_shared
from petlpack.tensors.base import Base, Bases, open_bases
from petlpack.tensors.safetensors_file import Header
from petlpack.tensors.tensor import Tensor


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one task or shared part: how far it was checked, and what is wrong, if anything."""

    name: str
    kind: str  # "task" or "shared"
    depth: str  # "bytes": every byte is as written; "decoded": every weight, too; "compared": with the run
    error: PetlpackError | None
    notes: tuple[str, ...] = ()
    """What else there is to say: which files of the run the pack does not have."""

    @property
    def damaged(self) -> bool:
        """Whether it is damaged: a task that needs another base than was given is not."""
        return self.error is not None and not isinstance(self.error, BaseError)

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
    base: Bases | None = None,
    *,
    task: str | None = None,
    against: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Checked]:
    """Check a pack, or one task of it: every byte, and with the base at hand every decoded weight.

    `base` is as in `Task.load`: of several, each task takes the one that it was encoded with.

    `against` compares the task's weight files and kept files with those of a run, bit for bit. Yields one finding for
    every task and every shared part; a damaged one, or one that needs another base, does not stop the rest.
    """
    pack = pack if isinstance(pack, Pack) else Pack(pack)
    opened = None if base is None else open_bases(base)
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
    base: Sequence[Base] | None,
    against: str | Path | None,
    jobs: int | None,
    progress: Progress | None,
) -> Checked | None:
    """Check one task; None where it was removed meanwhile. One that needs another base is checked byte by byte."""
    depth = "bytes"
    notes: tuple[str, ...] = ()
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
            notes = _compare_with_run(task, base, against)
    except (PetlpackError, OSError) as error:
        if not pack.store.task_path(name).exists():
            return None
        return Checked(name, "task", depth, _as_damage(error, f"task '{name}'"))
    return Checked(name, "task", depth, None, notes)


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


def _as_damage(error: PetlpackError | OSError, what: str) -> PetlpackError:
    if isinstance(error, PetlpackError):
        return error
    return DamageError(f"{what} cannot be read: {error}", code="file-unreadable")


def _check_shared(pack: Pack, sha256: str) -> Checked | None:
    """Check one shared part; None where it was collected meanwhile."""
    try:
        check_shared(pack.store, sha256)
    except (PetlpackError, OSError) as error:
        if not pack.store.shared_path(sha256).exists():
            return None
        return Checked(sha256, "shared", "bytes", _as_damage(error, f"shared part {sha256}"))
    return Checked(sha256, "shared", "bytes", None)


def _compare_with_run(task: Task, base: Sequence[Base] | None, against: str | Path) -> tuple[str, ...]:
    """Compare a task's files with those of a run; return what of the run the pack does not have.

    Raises DamageError that names the first file or tensor that differs.
    """
    run, others = without_components(_run_of(task, against), {*task.template.headers})
    headers, tensors = _weights_of(run, task, base)
    _compare_tensors(task, task.load(base), tensors, against)
    _compare_headers(task, headers, against)
    _compare_files(task, run, against)
    missing = [*others, *(name for name in run.kept if name not in task.template.files)]
    missing += [left.file for left in run.left_out]
    return (f"not in the pack, so not compared: {printable(', '.join(missing))}",) if missing else ()


def _run_of(task: Task, against: str | Path) -> Run:
    """Read the run that a task is to be compared with, as it was read when it was encoded, with the files it kept."""
    facts = task.facts
    runs = read_run(against, options_in(facts.options, Selection.just(task.template.files)))
    run = next((run for run in runs if printable(run.task) == facts.task), None)
    if run is None:
        names = printable(", ".join(run.task for run in runs))
        raise RunError(f"'{printable(str(against))}' has no task '{facts.task}' (it has: {names})")
    return run


def _weights_of(
    run: Run, task: Task, bases: Sequence[Base] | None
) -> tuple[Mapping[str, Header], Mapping[str, Tensor]]:
    """Return the headers and tensors of a run as they were packed: without what was left out of them, and pruned."""
    density, base = task.facts.asked_density, base_of_task(task.name, task.template, bases)
    if base is None or not (run.omits_base or density):
        return run.headers, run.module.tensors
    prepared = prepare(run, base, Digests(count_jobs(None)), rule=task.template.rule, density=density)
    return prepared.described.template.headers, prepared.matched.tensors


def _compare_files(task: Task, run: Run, against: str | Path) -> None:
    for name in task.template.files:
        shown = f"file '{printable(name)}' of task '{task.name}'"
        theirs = run.kept.get(name)
        if theirs is None:
            raise DamageError(f"{shown} is not in '{printable(str(against))}'", code="run-differs")
        content = theirs if isinstance(theirs, bytes) else theirs.read_bytes()
        if content != task.read_file(name):
            raise DamageError(f"{shown} differs from the one in '{printable(str(against))}'", code="run-differs")


def _compare_tensors(task: Task, packed: TaskTensors, run: Mapping[str, Tensor], against: str | Path) -> None:
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


def _compare_headers(task: Task, headers: Mapping[str, Header], against: str | Path) -> None:
    """Compare what a weight file says besides its tensors: their order, its metadata, its spaces."""
    packed = task.template.headers
    for name in sorted(packed.keys() | headers.keys()):
        if name not in packed or name not in headers:
            raise DamageError(
                f"weight file '{printable(name)}' is in only one of task '{task.name}' and '{printable(str(against))}'",
                code="run-differs",
            )
        if packed[name].text != headers[name].text:
            raise DamageError(
                f"the header of weight file '{printable(name)}' of task '{task.name}' differs from the one in "
                f"'{printable(str(against))}'",
                code="run-differs",
            )

"""How `verify --against` compares a task with the run that it was encoded from: every tensor, every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from petlpack.decoding.bases import base_of_task
from petlpack.decoding.task import Task
from petlpack.encoding.match import Digests
from petlpack.encoding.prepare import prepare
from petlpack.errors import DamageError, RunError, UnknownFormatError, UsageError, printable, problem_of
from petlpack.layouts.components import without_components
from petlpack.layouts.registry import options_in, read_run
from petlpack.layouts.run import Run
from petlpack.layouts.selection import Selection
from petlpack.pack import Pack
from petlpack.parallel import count_jobs
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import Bits
from petlpack.tensors.safetensors_file import Header
from petlpack.tensors.tensor import Tensor

_ITS_RUN = "give the run that the task was encoded from"


def read_run_of(pack: Pack, name: str, against: Path) -> Run | None:
    """Read the run that a task is to be compared with, as it was read when it was encoded, with the files it kept.

    None where the task cannot be opened, which its check tells. Raises RunError where the run has no such task.
    """
    try:
        facts, files = pack[name].facts, pack[name].template.files
    except (DamageError, UnknownFormatError):
        return None
    try:
        runs = read_run(against, options_in(facts.options, Selection.just(files)))
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


def compare_with_run(task: Task, bases: Sequence[Base] | None, run: Run) -> tuple[str, ...]:
    """Compare a task's tensors and files with those of a run; return what of the run the pack does not have.

    Raises DamageError that names the first file or tensor that differs, RunError where the run cannot be read.
    """
    run, others = without_components(run, {*task.template.headers})
    headers, tensors = _weights_of(run, task, bases)
    _compare_tensors(task, task.load(bases), tensors, run)
    _compare_headers(task, headers, run)
    _compare_files(task, run)
    missing = [*others, *(name for name in run.kept if name not in task.template.files)]
    missing += [left.file for left in run.left_out]
    return (f"not in the pack, so not compared: {printable(', '.join(missing))}",) if missing else ()


def _weights_of(
    run: Run, task: Task, bases: Sequence[Base] | None
) -> tuple[Mapping[str, Header], Mapping[str, Tensor]]:
    """Return the headers and tensors of a run as they were packed: without what was left out of them, and pruned."""
    density, base = task.facts.asked_density, base_of_task(task.name, task.template, bases)
    if base is None or not (run.omits_base or density):
        return run.headers, run.module.tensors
    prepared = prepare(run, base, Digests(count_jobs(None)), rule=task.template.rule, density=density)
    return prepared.described.template.headers, prepared.matched.tensors


def _compare_tensors(task: Task, packed: Mapping[str, Tensor], theirs: Mapping[str, Tensor], run: Run) -> None:
    whose = _names(task, run)
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


def _compare_headers(task: Task, headers: Mapping[str, Header], run: Run) -> None:
    """Compare what a weight file says besides its tensors: their order, its metadata, its spaces."""
    packed, whose = task.template.headers, _names(task, run)
    for name in sorted(packed.keys() | headers.keys()):
        if name not in packed or name not in headers:
            has, lacks = whose if name in packed else whose[::-1]
            raise _differs(f"weight file '{printable(name)}' is in {has}, but not in {lacks}")
        if packed[name].text != headers[name].text:
            raise _differs(f"the header of weight file '{printable(name)}' of {whose[0]} differs from {whose[1]}'s")


def _compare_files(task: Task, run: Run) -> None:
    mine, others = _names(task, run)
    for name in task.template.files:
        theirs = run.kept.get(name)
        if theirs is None:
            raise _differs(f"file '{printable(name)}' is in {mine}, but not in {others}")
        content = theirs if isinstance(theirs, bytes) else theirs.read_bytes()
        if content != task.read_file(name):
            raise _differs(f"file '{printable(name)}' of {mine} differs from the one in {others}")


def _names(task: Task, run: Run) -> tuple[str, str]:
    return f"task '{task.name}'", f"'{printable(str(run.path))}'"


def _differs(message: str) -> DamageError:
    return DamageError(
        message, hint="if this is the run that was packed, it has changed since: encode it again", code="run-differs"
    )

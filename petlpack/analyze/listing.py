"""The tasks of a pack by their files alone: the directory is the index, so 10,000 tasks take a tenth of a second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlpack.errors import PetlpackError, TaskError, kept, problem_of
from petlpack.errors.arguments import Place, check_flags, check_max_bytes
from petlpack.parallel import Progress
from petlpack.store import Store, is_own, task_file

if TYPE_CHECKING:
    from petlpack.decoding.task import Task


@dataclass(frozen=True)
class ListedTask:
    """A task's name and the bytes of its file; where it was opened the task, or the error that this failed with."""

    name: str
    nbytes: int
    task: Task | None = None
    error: PetlpackError | OSError | None = None

    def to_json(self, *, long: bool) -> dict[str, Any]:
        """Return the row: name and bytes, and of an opened task what it is."""
        row = {"name": self.name, "bytes": self.nbytes}
        if not long:
            return row
        task = self.task
        return {
            **row,
            "method": task and task.method,
            "codec": task and task.codec,
            "exact": task and task.exact,
            "run_bytes": task and task.facts.run_bytes,
            "error": self.error and problem_of(self.error).to_json(),
        }


@dataclass(frozen=True)
class Listing:
    """The tasks of a pack; `long` where each was opened."""

    pack: str
    tasks: tuple[ListedTask, ...]
    long: bool
    foreign: tuple[str, ...] = ()
    """Files below the pack that are no part of it, a task under a name that none can have among them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tasks' own files."""
        return sum(row.nbytes for row in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack list --json` prints."""
        tasks = [row.to_json(long=self.long) for row in self.tasks]
        return {"pack": self.pack, "tasks": tasks, "foreign": list(self.foreign)}


def listing(
    pack: Place,
    *,
    long: bool = False,
    biggest_first: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Listing:
    """List the tasks of a pack by name, or the biggest first; opens no file but with `long`, which opens each task.

    Of a task that is opened it is an error, too, where it says of its run that its tensors are more than `max_bytes`.

    Raises UsageError where there is no pack; a task that cannot be opened is listed with its error.
    """
    check_flags(long=long, biggest_first=biggest_first)
    check_max_bytes(max_bytes)
    store = Store(pack)
    sizes = dict(store.files())
    rows = [ListedTask(name, sizes[task_file(name)]) for name in store.task_names() if task_file(name) in sizes]
    if biggest_first:
        rows.sort(key=lambda row: (-row.nbytes, row.name))
    opened = tuple(_opened(store.path, rows, max_bytes, progress) if long else rows)
    return Listing(str(store.path), opened, long, tuple(name for name in sizes if not is_own(name)))


def _opened(pack: Path, rows: list[ListedTask], max_bytes: int | None, progress: Progress | None) -> list[ListedTask]:
    """Open every task, which may be of a codec that this version does not know."""
    from petlpack.codecs.registry import codec  # here, for names and bytes are told without numpy or a coder
    from petlpack.pack import Pack
    from petlpack.sections.allowance import Allowance

    tasks = Pack(pack)
    opened: list[ListedTask] = []
    for done, row in enumerate(rows):
        if progress is not None:
            progress(done, len(rows))
        try:
            task = tasks[row.name]
            codec(task.codec)
            if max_bytes is not None:
                Allowance(f"task '{row.name}'", max_bytes, row.nbytes).check(task.facts.run_bytes or 0)
            opened.append(replace(row, task=task))
        except TaskError:  # removed since the directory was listed
            continue
        except (PetlpackError, OSError) as error:
            opened.append(replace(row, error=kept(error)))
    return opened

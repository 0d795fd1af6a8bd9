"""Several runs into one pack: one that fails does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from petlpack.encoding.encode import Encoded, default_name, encode
from petlpack.errors import UsageError, printable, problem_of
from petlpack.errors.arguments import Place, path_of, paths_of
from petlpack.layouts.run import LeftOut
from petlpack.parallel import Progress
from petlpack.tensors.base import Base, Bases, open_bases

Item = TypeVar("Item")


@dataclass(frozen=True)
class EncodedRun:
    """One run of several: the tasks that it became, or the error that it failed with."""

    path: str
    tasks: tuple[Encoded, ...] = ()
    error: Exception | None = None

    def to_json(self) -> list[dict[str, Any]]:
        """Return the row of each of its tasks."""
        return [
            {
                "name": task.name,
                "run": self.path,
                "method": task.method,
                "layout": task.layout,
                "codec": task.codec,
                "exact": task.exact,
                "bytes": task.nbytes,
                "source_bytes": task.source_bytes,
                "seconds": round(task.seconds, 6),
                "base": task.base and vars(task.base),
            }
            for task in self.tasks
        ]


@dataclass(frozen=True)
class EncodedRuns:
    """What became of several runs; `interrupted` where the last ones were not come to."""

    runs: tuple[EncodedRun, ...]
    interrupted: bool = False

    @property
    def tasks(self) -> list[Encoded]:
        """The tasks of all runs, in order."""
        return [task for run in self.runs for task in run.tasks]

    @property
    def failed(self) -> list[EncodedRun]:
        """The runs that could not be encoded."""
        return [run for run in self.runs if run.error is not None]

    @property
    def shared(self) -> dict[str, int]:
        """Bytes of the shared parts that the tasks use, each once, by sha256."""
        return {sha256: nbytes for task in self.tasks for sha256, nbytes in task.shared.items()}

    @property
    def left_out(self) -> list[tuple[str, LeftOut]]:
        """Run and file of what did not go into the pack, each once: the tasks of one run say the same."""
        return _once((run.path, left) for run in self.runs for task in run.tasks for left in task.left_out)

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """Run and text of each warning, each once."""
        return _once((run.path, text) for run in self.runs for task in run.tasks for text in task.warnings)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack encode --json` prints."""
        return {
            "tasks": [row for run in self.runs for row in run.to_json()],
            "shared": [{"sha256": sha256, "bytes": nbytes} for sha256, nbytes in sorted(self.shared.items())],
            "left_out": [
                {"run": path, "file": left.file, "bytes": left.nbytes, "why": left.why} for path, left in self.left_out
            ],
            "warnings": [{"run": path, "message": text} for path, text in self.warnings],
            "failed": [
                {"run": run.path, **problem_of(run.error).to_json()} for run in self.failed if run.error is not None
            ],
            "interrupted": self.interrupted,
        }


def encode_runs(
    runs: str | Path | Sequence[str | Path],
    pack: Place,
    base: Bases | None = None,
    *,
    task: str | None = None,
    progress: Callable[[str], Progress | None] | None = None,
    **options: Any,
) -> Iterator[EncodedRun]:
    """Encode a run or several into a pack one after another, and yield what became of each.

    `options` are those of `encode`. `base` is as there, and opened once for all of them; of several bases, the runs are
    none. `task` names the task of a single run. A run that would be the task that an earlier one became is refused,
    also with `replace`. `progress` is called with the name of what is encoded next, and returns what is told the bytes
    done. Raises UsageError for a `task` of several runs, BaseError where `base` is none.
    """
    paths = paths_of("runs", runs)
    if task is not None and len(paths) > 1:
        raise UsageError(f"one task name, '{task}', for {len(paths)} runs", hint="encode each run by itself")
    opened = None if base is None else open_bases(base)
    if opened is not None and len(opened) > 1:  # of a directory of models, what is encoded is no base of the others
        own = {path.resolve() for path in paths}
        opened = [one for one in opened if one.path.resolve() not in own] or opened
    return _each(paths, path_of("pack", pack), opened, task, progress, options)


def _each(
    paths: Sequence[Path],
    pack: Path,
    base: Sequence[Base] | None,
    task: str | None,
    progress: Callable[[str], Progress | None] | None,
    options: Mapping[str, Any],
) -> Iterator[EncodedRun]:
    """Encode one run after another."""
    names: dict[str, Path] = {}
    for path in paths:
        try:
            name = _new_name(task, path, names)
            moved = None if progress is None else progress(name)
            run = EncodedRun(str(path), tuple(encode(path, pack, base, task=task, progress=moved, **options)))
        except Exception as error:  # whatever it is, it is told, and the other runs are encoded
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                error.filename = str(pack)  # a full disk's error names no file
            run = EncodedRun(str(path), error=error)
        yield run


def _new_name(task: str | None, path: Path, names: dict[str, Path]) -> str:
    """Return the task's name; refuses the name of an earlier run of this call, which `replace` would overwrite."""
    name = task if task is not None else default_name(path)
    taken = names.setdefault(name.lower(), path)
    if taken is not path:
        raise UsageError(
            f"'{printable(str(path))}' would be task '{printable(name)}', which is taken by "
            f"'{printable(str(taken))}' of the same call",
            hint="encode it by itself, with --task NAME (task= in Python)",
        )
    return name


def _once(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))

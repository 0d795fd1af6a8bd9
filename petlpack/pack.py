"""A pack as people see it: a mapping of task names to tasks, and the whole-pack operations verify, remove and gc."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.decoding.task import Task
from petlpack.decoding.templates import Templates
from petlpack.errors.arguments import Place, check_flags, check_max_bytes, texts_of
from petlpack.store import Store


class Pack(Mapping[str, Task]):
    """The tasks of a pack directory by name. The directory is the index: it is read anew at every question."""

    def __init__(self, path: Place, *, max_bytes: int | None = None) -> None:
        """Open a pack; raises UsageError where there is none.

        `max_bytes` is the most that one task may decode to; None is what its files and its base explain.
        """
        check_max_bytes(max_bytes)
        self.store = Store(path)
        self.max_bytes = max_bytes
        self._templates = Templates(self.store)

    @property
    def path(self) -> Path:
        """The pack's directory."""
        return self.store.path

    def __fspath__(self) -> str:
        """Return the directory: whatever takes the path of a pack takes an opened one."""
        return str(self.path)

    def __repr__(self) -> str:
        """Show the directory."""
        return f"Pack({str(self.path)!r})"

    def __getitem__(self, name: str) -> Task:
        """Open a task; raises TaskError, which is a KeyError, where there is none."""
        return Task(self.store, name, templates=self._templates, max_bytes=self.max_bytes)

    def __contains__(self, name: object) -> bool:
        """Tell whether the pack has a task of this name."""
        return isinstance(name, str) and self.store.has_task(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the task names, sorted."""
        return iter(self.store.task_names())

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.store.task_names())

    def foreign(self) -> list[str]:
        """Return the files below the pack that are no part of it: tasks that were renamed, copies, notes."""
        return self.store.foreign()

    def shared_names(self) -> list[str]:
        """Return the sha256 of every shared part, sorted."""
        return self.store.shared_names()

    def remove(self, name: str) -> int:
        """Delete a task and return its bytes; `gc` frees the shared parts that nobody needs any more."""
        return self.store.remove(name)

    def gc(self, *, dry_run: bool = False) -> list[tuple[Path, int]]:
        """Delete shared parts that no task needs, and what interrupted writers left behind; return files and bytes.

        A task is every file in its place, whatever it is called. Raises DamageError where one cannot be read: what it
        needs is then unknown, and nothing is deleted.
        """
        check_flags(dry_run=dry_run)
        with self.store.locked():
            misnamed = [Task(self.store, path.name, path, self._templates) for path in self.store.misnamed_tasks()]
            needed = {sha256 for task in (*self.values(), *misnamed) for sha256 in task.parts}
            return self.store.sweep(needed, dry_run=dry_run)


def open_pack(path: Place, *, max_bytes: int | None = None) -> Pack:
    """Open a pack directory; raises UsageError where there is none.

    `max_bytes` is the most that one task may decode to: raise it for a pack that you trust, lower it for a stranger's.
    By default it is what the task's files and its base explain. What would be more raises LimitError.
    """
    return Pack(path, max_bytes=max_bytes)


@dataclass(frozen=True)
class Removed:
    """The tasks that were removed from a pack, with their bytes."""

    pack: str
    tasks: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.tasks.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack remove --json` prints."""
        removed = [{"name": name, "bytes": nbytes} for name, nbytes in self.tasks.items()]
        return {"pack": self.pack, "removed": removed, "bytes": self.nbytes}


@dataclass(frozen=True)
class Garbage:
    """The files of a pack that nothing needs, with their bytes; `dry_run` where they are still there."""

    pack: str
    dry_run: bool
    files: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack gc --json` prints."""
        files = [{"file": name, "bytes": nbytes} for name, nbytes in self.files.items()]
        return {"pack": self.pack, "dry_run": self.dry_run, "files": files, "bytes": self.nbytes}


def remove(pack: Place, tasks: str | Sequence[str]) -> Removed:
    """Remove a task or several from a pack; raises TaskError, and removes none, where one of them is not in it."""
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    names = list(dict.fromkeys(texts_of("tasks", tasks)))
    for name in names:
        opened.store.find_task(name)
    return Removed(str(opened.path), {name: opened.remove(name) for name in names})


def gc(pack: Place, *, dry_run: bool = False) -> Garbage:
    """Delete what no task needs, as `Pack.gc`, or tell only what that is."""
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    freed = opened.gc(dry_run=dry_run)
    return Garbage(
        str(opened.path), dry_run, {path.relative_to(opened.path).as_posix(): nbytes for path, nbytes in freed}
    )

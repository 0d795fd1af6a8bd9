"""A pack as people see it: a mapping of task names to tasks, and the whole-pack operations remove, gc and seal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petlpack.decoding.needs import needs_of, remembering
from petlpack.decoding.task import Task
from petlpack.decoding.templates import Templates
from petlpack.errors import PetlpackError
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
        return self.store.remove(name, remembering(needs_of(self.store, self._templates)))

    def gc(self, *, dry_run: bool = False, everything: bool = False) -> list[tuple[Path, int]]:
        """Delete what removed and replaced tasks gave up and no task needs, and what interrupted writers left behind.

        `everything` deletes what no task needs, whoever put it there: in a pack that was copied in part, that may be
        what tasks need that are still to come. A task is every file in its place, whatever it is called. Returns files
        and bytes. Raises DamageError where a task cannot be read: what it needs is unknown, and nothing is deleted.
        """
        return self.collect(dry_run=dry_run, everything=everything)[0]

    def collect(self, *, dry_run: bool, everything: bool) -> tuple[list[tuple[Path, int]], list[str]]:
        """Do what `gc` does, and return the unexplained parts that stay, too."""
        check_flags(dry_run=dry_run, everything=everything)
        with self.store.locked():
            needed = self._needed()
            unexplained = [] if everything else self._unexplained(needed)
            return self.store.sweep(needed, dry_run=dry_run, everything=everything), unexplained

    def unexplained(self) -> list[str]:
        """Return the shared parts that no task needs and none gave up: what tasks need that are missing here.

        None where a task cannot be read, for what it needs is unknown.
        """
        before = self._unexplained(set())  # what a writer puts there or gives up meanwhile is not missed by anybody
        try:
            return sorted(set(before) & set(self._unexplained(self._needed())))
        except (PetlpackError, OSError):
            return []

    def _unexplained(self, needed: set[str]) -> list[str]:
        given_up = self.store.unneeded(needed, everything=False)
        return sorted(set(self.store.unneeded(needed, everything=True)) - set(given_up))

    def seal(self) -> Sealed:
        """Write down every file of the pack with its sha256: `verify` then tells what is missing, changed or foreign.

        Who writes into the pack keeps that up to date. Raises UsageError for what cannot be sealed.
        """
        seal = self.store.seal()
        nbytes = sum(file.nbytes for file in seal.files.values())
        return Sealed(str(self.path), len(seal.files), nbytes, seal.sha256)

    def _needed(self) -> set[str]:
        """Return the shared parts that the tasks need."""
        needs = needs_of(self.store, self._templates)
        return {sha256 for path in self.store.task_files() for sha256 in needs(path)}


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
    warnings: tuple[str, ...] = ()
    """What failed behind that: the tasks are gone, but may come back after a power cut."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.tasks.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack remove --json` prints."""
        removed = [{"name": name, "bytes": nbytes} for name, nbytes in self.tasks.items()]
        return {"pack": self.pack, "removed": removed, "bytes": self.nbytes, "warnings": list(self.warnings)}


@dataclass(frozen=True)
class Garbage:
    """The files of a pack that nothing needs, with their bytes; `dry_run` where they are still there."""

    pack: str
    dry_run: bool
    files: Mapping[str, int]
    unexplained: Mapping[str, int] = field(default_factory=dict)
    """Shared parts that no task needs and none gave up, with their bytes: they stay unless `everything` is to go."""
    warnings: tuple[str, ...] = ()
    """What failed behind that."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack gc --json` prints."""
        files = [{"file": name, "bytes": nbytes} for name, nbytes in self.files.items()]
        unexplained = [{"file": name, "bytes": nbytes} for name, nbytes in self.unexplained.items()]
        return {
            **{"pack": self.pack, "dry_run": self.dry_run, "files": files, "bytes": self.nbytes},
            **{"unexplained": unexplained, "warnings": list(self.warnings)},
        }


@dataclass(frozen=True)
class Sealed:
    """A pack that was sealed: how many files and bytes, and the one digest of all, which is fit to be signed."""

    pack: str
    files: int
    nbytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack seal --json` prints."""
        return {"pack": self.pack, "files": self.files, "bytes": self.nbytes, "sha256": self.sha256}


def remove(pack: Place, tasks: str | Sequence[str]) -> Removed:
    """Remove a task or several from a pack; raises TaskError, and removes none, where one of them is not in it."""
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    names = list(dict.fromkeys(texts_of("tasks", tasks)))
    for name in names:
        opened.store.find_task(name)
    removed = {name: opened.remove(name) for name in names}
    return Removed(str(opened.path), removed, tuple(opened.store.told))


def gc(pack: Place, *, dry_run: bool = False, everything: bool = False) -> Garbage:
    """Delete what tasks gave up and none needs, as `Pack.gc`, or tell only what that is."""
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    freed, others = opened.collect(dry_run=dry_run, everything=everything)
    files = {path.relative_to(opened.path).as_posix(): nbytes for path, nbytes in freed}
    paths = map(opened.store.shared_path, others)
    unexplained = {path.relative_to(opened.path).as_posix(): path.stat().st_size for path in paths if path.exists()}
    return Garbage(str(opened.path), dry_run, files, unexplained, tuple(opened.store.told))


def seal(pack: Place) -> Sealed:
    """Seal a pack, as `Pack.seal`."""
    return (pack if isinstance(pack, Pack) else Pack(pack)).seal()

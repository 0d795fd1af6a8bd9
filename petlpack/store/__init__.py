"""The pack directory: atomic, looks at names and bytes, never inside a file (formats/pack.md).

    glue.pack/
      pack.json                            {"format":"petlpack","version":1}
      shared/<sha256>.petl.safetensors     write-once, named by what it decodes to
      tasks/<name>.petl.safetensors        one file a task, replaced atomically
      inventory.json                       of a sealed pack: every file with its sha256
      .released                            the parts that removed tasks gave up

The file system is the index. Writers prepare files beside their place and hold the lock only while they put them there.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from petlpack.errors import TaskError, UsageError, printable
from petlpack.errors.arguments import Place, check_flags, path_of
from petlpack.store import lock, places
from petlpack.store.disk import DRAFT, file_size, is_older, replacing, sync, sync_above
from petlpack.store.names import (
    DIGEST,
    DIRECTORIES,
    SUFFIX,
    TEMPORARY,
    can_be_task,
    check_task_name,
    is_own,
    is_sealed_apart,
    legal_task_name,
    shared_file,
    task_file,
)
from petlpack.store.places import PACK_JSON, is_pack, pack_above
from petlpack.store.released import Needs, change_released, needed_alone, note_if_room, note_now, read_released
from petlpack.store.seals import Seal, keeping_seal, read_seal, taken, write_seal

__all__ = [
    "LOCK_TIMEOUT",
    "MAX_SHARED",
    "PACK_JSON",
    "STALE",
    "SUFFIX",
    "Needs",
    "Seal",
    "Store",
    "check_task_name",
    "is_own",
    "is_pack",
    "legal_task_name",
    "pack_above",
    "shared_file",
    "task_file",
]

MAX_SHARED = 1 << 28
"""Bytes that a shared part of bytes may decode to: 256 MB, many times the largest tokenizer."""
LOCK_TIMEOUT = 60.0
"""Seconds to wait for the lock: it is held for the moment of a rename, or for one sweep of `gc`."""
STALE = 24 * 3600.0
"""Seconds without a write after which a temporary file belongs to nobody."""


class Store:
    """One pack directory."""

    def __init__(self, path: Place) -> None:
        """Open an existing pack; raises UsageError where there is none, UnknownFormatError for a newer one.

        Raises DamageError where one of its directories is a link.
        """
        self.path = path_of("pack", path)
        self._tasks = self.path / "tasks"
        self._writer: str | None = None
        self._untidy = False
        """Whether the writer failed, or a temporary file of it could not be deleted: only then are there leftovers."""
        self.told: list[str] = []
        """What went wrong behind what was done: it is in the pack, but maybe not for ever."""
        places.check_mark(self.path)
        places.refuse_foreign_directories(self.path)

    @classmethod
    def create(cls, path: Place) -> Store:
        """Open a pack, or make an empty one where nothing is; raises UsageError where something else is."""
        with cls.creating(path) as store:
            store._writer = None
            return store

    @classmethod
    @contextlib.contextmanager
    def creating(cls, path: Place) -> Iterator[Store]:
        """Lend a pack as `create` gives it; one that was made and is still empty when the block fails is undone.

        As long as the block runs, a file in the pack says that its writer lives: nobody undoes the pack meanwhile, or
        takes the writer's temporary files for leftovers.
        """
        path = path_of("pack", path)
        new = _is_missing(cls, path) and places.make_place(path)
        try:
            with contextlib.ExitStack() as stack:
                store = _enter(cls, path, stack)
                try:
                    yield store
                except BaseException:
                    store._untidy = True
                    raise
        except BaseException:
            if new:
                places.undo(path)
            raise

    # Reading

    def task_names(self) -> list[str]:
        """Return the names of all tasks, sorted."""
        return sorted(stem for stem in _stems(self.path / "tasks") if can_be_task(stem))

    def shared_names(self) -> list[str]:
        """Return the sha256 names of all shared parts, sorted."""
        return sorted(stem for stem in _stems(self.path / "shared") if DIGEST.fullmatch(stem))

    def misnamed_tasks(self) -> list[Path]:
        """Return the files that are tasks by their place, but are called what no task is: somebody renamed them."""
        stems = sorted(stem for stem in _stems(self._tasks) if not can_be_task(stem))
        return [self._tasks / f"{stem}{SUFFIX}" for stem in stems]

    def task_files(self) -> list[Path]:
        """Return the files of all tasks, those that somebody renamed among them."""
        return [*(self.task_path(name) for name in self.task_names()), *self.misnamed_tasks()]

    def foreign(self) -> list[str]:
        """Return the files below the pack that are neither its own nor being written, as `files` names them."""
        return [name for name, _ in self.files() if not is_own(name)]

    def task_path(self, name: str) -> Path:
        """Return the file of a task, whether it exists or not."""
        return self._tasks / f"{check_task_name(name)}{SUFFIX}"

    def shared_path(self, sha256: str) -> Path:
        """Return the file of a shared part, whether it exists or not."""
        return self.path / "shared" / f"{sha256}{SUFFIX}"

    def has_task(self, name: str) -> bool:
        """Tell whether there is a task of this name; a name that no task can have is none."""
        return can_be_task(name) and self.task_path(name).is_file()

    def find_task(self, name: str) -> Path:
        """Return the file of a task; raises TaskError where there is none, also for what no task can be called."""
        if not self.has_task(name):
            raise TaskError(
                f"no task '{printable(str(name))}' in pack '{printable(str(self.path))}'",
                hint="`petlpack list` shows the tasks of a pack",
            )
        return self.task_path(name)

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield every file below the pack with its bytes, leftovers included, as `tasks/NAME` with slashes.

        A link has the bytes of the link: what it leads to is not the pack's.
        """
        folders = [""]
        while folders:
            folder = folders.pop(0)
            with os.scandir(self.path / folder) as entries:  # a third of the time of pathlib's at 10,000 tasks
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = f"{folder}{entry.name}"
                    with contextlib.suppress(FileNotFoundError):  # gone since the directory was listed
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif entry.is_symlink() or entry.is_file():
                            yield name, entry.stat(follow_symlinks=False).st_size

    # Writing

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend a path for a temporary file in the place where tasks live; what is left there is deleted."""
        places.refuse_foreign_directories(self.path)
        for name in DIRECTORIES:
            (self.path / name).mkdir(exist_ok=True)
        own = uuid.uuid4().hex
        path = self._tasks / (f"{TEMPORARY}{own}" if self._writer is None else f"{self._writer}-{own[:12]}")
        try:
            yield path
        finally:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # the next writer deletes it
                self._untidy = True

    def refuse_taken(self, name: str, *, replace: bool = False) -> None:
        """Raise TaskError where a task of this name, or one that differs only in case, exists.

        With `replace` only the latter is in the way.
        """
        check_flags(replace=replace)
        if self.task_path(name).exists() and replace:
            return
        twin = _twin(self.path / "tasks", name)
        if twin is not None:
            raise TaskError(
                f"cannot add task '{name}': pack '{printable(str(self.path))}' already has task '{twin}'",
                hint="overwrite a task of the same name with --replace, or choose another name with --task "
                "(in Python: replace=True, task=)",
            )

    def put(
        self,
        name: str,
        task: Path,
        shared: Mapping[str, bytes],
        damaged: Collection[str] = (),
        *,
        replace: bool,
        needs: Needs | None = None,
    ) -> None:
        """Move a finished temporary file into its place as a task, the shared parts it needs (as file bytes) first.

        Shared parts that are there already stay as they are, but for those that the caller found `damaged`. `needs`
        tells what a task that is replaced gives up.
        """
        target = self.task_path(name)
        with self.locked():
            self.refuse_taken(name, replace=replace)
            new = [sha256 for sha256 in shared if sha256 in damaged or not self.shared_path(sha256).exists()]
            given_up = needed_alone(target, needs, self.task_files, self.told) - shared.keys()
            change_released(self.path, add={*new, *given_up})
            with keeping_seal(self.path, [task_file(name), *map(shared_file, new)], self.told):
                for sha256 in new:
                    with replacing(self.shared_path(sha256)) as temporary:
                        temporary.write_bytes(shared[sha256])
                sync(task)
                self._sync_directories()
                task.replace(target)
                with self._done(f"task '{name}' is in the pack"):
                    sync(target.parent)
                    change_released(self.path, strike=shared)

    def remove(self, name: str, needs: Needs | None = None) -> int:
        """Delete a task and return its bytes; shared parts stay until `sweep`, those that only it needs are noted."""
        with self.locked():
            self._bury()
            path = self.find_task(name)
            size = path.stat().st_size
            alone = needed_alone(path, needs, self.task_files, self.told)
            noted = note_if_room(self.path, alone)
            with keeping_seal(self.path, [task_file(name)], self.told, frees=True):
                path.unlink()
                if not noted:
                    note_now(self.path, alone, self.told)
                with self._done(f"task '{name}' is removed"):
                    sync(path.parent)
        return size

    def unneeded(self, needed: set[str], *, everything: bool) -> list[str]:
        """Return the shared parts that no task needs: those that were given up, or with `everything` all."""
        released = read_released(self.path)
        return [sha256 for sha256 in self.shared_names() if sha256 not in needed and (everything or sha256 in released)]

    def sweep(self, needed: set[str], *, dry_run: bool = False, everything: bool = False) -> list[tuple[Path, int]]:
        """Delete shared parts that were given up and no task needs, and stale temporary files; under the lock.

        With `everything` also those that no writer of this pack gave up. Returns the files with their bytes.
        """
        parts = self.unneeded(needed, everything=everything)
        owners = lock.at_work(self.path, TEMPORARY)
        drafts = [path for path in self._temporary(TEMPORARY) if not path.name.startswith(owners)]
        leftovers = [path for path in drafts if is_older(path, STALE)]
        garbage = [*map(self.shared_path, parts), *leftovers]
        sizes = [(path, file_size(path) or 0) for path in garbage]
        if not dry_run:
            self._bury()
            files = [*map(shared_file, parts)]
            with keeping_seal(self.path, files, self.told, frees=True) if parts else contextlib.nullcontext():
                self._sync_directories()  # no power cut may bring back a task whose parts are gone
                for path in garbage:
                    path.unlink(missing_ok=True)
                with self._done("the garbage is deleted"):
                    self._sync_directories()
                    change_released(self.path, strike=read_released(self.path))
        return sizes

    def seal(self) -> Seal:
        """Write the inventory of the pack as it is now; raises UsageError for what has no place in one."""
        with self.locked():
            self._bury()
            names = [name for name, _ in self.files() if not is_sealed_apart(name)]
            seal = Seal(taken(self.path, names))
            write_seal(self.path, seal)
        return seal

    def read_seal(self) -> Seal | None:
        """Return the seal of the pack, None where it has none; raises DamageError, UnknownFormatError."""
        return read_seal(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the pack's lock; raises LockedError after LOCK_TIMEOUT seconds, PetlpackError where nothing locks."""
        with lock.locked(self.path, LOCK_TIMEOUT, self.told):
            places.refuse_foreign_directories(self.path)
            yield

    @contextlib.contextmanager
    def _done(self, what: str) -> Iterator[None]:
        """Tell what fails behind a change that is made: it is no failure of that."""
        try:
            yield
        except OSError as error:
            self.told.append(f"{what}, but may not outlive a power cut: {error}")

    def _sync_directories(self) -> None:
        """Make what stands in the pack's directories durable, whoever put it there: a killed writer may not have."""
        for name in DIRECTORIES:
            if (self.path / name).is_dir():
                sync(self.path / name)
        sync(self.path)
        sync_above(self.path)

    def _temporary(self, prefix: str) -> list[Path]:
        """Return the temporary files whose names begin so."""
        folders = [self.path, *(self.path / name for name in DIRECTORIES)]
        return [folder / name for folder in folders for name in _names(folder) if name.startswith(prefix)]

    def _left_by(self, owner: str) -> list[Path]:
        """Return what a writer left, as far as it knows that it left something: looking costs what tasks are many."""
        return [*self._temporary(f"{owner}-"), *self._temporary(DRAFT)] if self._untidy else []

    def _bury(self) -> None:
        """Delete what killed writers left; the caller holds the lock, so that nobody else begins or ends a change."""

        def delete(owner: str) -> None:
            for path in [*self._temporary(f"{owner}-"), *self._temporary(DRAFT)]:
                path.unlink(missing_ok=True)

        lock.bury(self.path, TEMPORARY, delete)
        with contextlib.suppress(OSError):  # left for the next one
            for name in _names(self.path):
                if name.startswith(DRAFT):
                    (self.path / name).unlink(missing_ok=True)


def _is_missing(kind: type[Store], path: Path) -> bool:
    """Tell whether there is no pack yet; raises what opening another one does. Others may undo theirs meanwhile."""
    if (path / "pack.json").exists():
        try:
            kind(path)
        except UsageError:
            if (path / "pack.json").exists():
                raise
    return not (path / "pack.json").exists()


_MOST_UNDONE = 1000
"""How often a pack comes to nothing under a writer before something else must be missing."""


def _enter(kind: type[Store], path: Path, stack: contextlib.ExitStack) -> Store:
    """Open a pack for a writer that says that it lives until the stack ends; what it lacks is made."""
    told: list[str] = []
    undone = 0
    while True:
        try:
            with lock.locked(path, LOCK_TIMEOUT, told):
                places.mark(path)
                store = kind(path)
                store._writer = stack.enter_context(lock.alive(path, TEMPORARY, store._left_by))
                store.told = told
                store._bury()
                return store
        except FileNotFoundError:  # another made it, and has undone it since; a third may have made it again
            undone += 1
            if undone > _MOST_UNDONE:
                raise
            places.make_place(path)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - a third of the time of iterdir at 10,000 tasks
    except FileNotFoundError:
        return []


def _twin(directory: Path, name: str) -> str | None:
    """Return the task in a directory that has a name, or differs from it only in case; asked for each task of many."""
    lower = name.lower()
    if f"/{lower}{SUFFIX}/" not in f"/{'/'.join(_names(directory))}/".lower():  # a name at a time is slow at 10,000
        return None
    return next((stem for stem in _stems(directory) if stem.lower() == lower), None)


def _stems(directory: Path) -> list[str]:
    """Return the files of a directory that end as ours do, without that; `._x` is what macOS keeps beside `x`."""
    names = _names(directory)
    return [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and not name.startswith("._")]

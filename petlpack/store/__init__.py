"""The pack directory: atomic, looks at names and bytes, never inside a file (formats/pack.md).

    glue.pack/
      pack.json                            {"format":"petlpack","version":1}
      shared/<sha256>.petl.safetensors     write-once, named by what it decodes to
      tasks/<name>.petl.safetensors        one file a task, replaced atomically

The file system is the index. Writers prepare files beside their place and hold the lock only while they put them there.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from petlpack.errors import LockedError, TaskError, UnknownFormatError, UsageError, printable
from petlpack.errors.arguments import Place, check_flags, path_of, refuse_file_above
from petlpack.store.names import (
    DIGEST,
    SUFFIX,
    can_be_task,
    check_task_name,
    is_own,
    legal_task_name,
    shared_file,
    task_file,
)
from petlpack.tensors.strict_json import decode_once

__all__ = [
    "LOCK_TIMEOUT",
    "MAX_SHARED",
    "PACK_JSON",
    "STALE",
    "SUFFIX",
    "Store",
    "check_task_name",
    "is_own",
    "is_pack",
    "legal_task_name",
    "pack_above",
    "shared_file",
    "task_file",
]

PACK_JSON = b'{"format": "petlpack", "version": 1}\n'
MAX_SHARED = 1 << 28
"""Bytes that a shared part of bytes may decode to: 256 MB, many times the largest tokenizer."""
LOCK_TIMEOUT = 60.0
"""Seconds to wait for the lock: it is held for the moment of a rename, or for one sweep of `gc`."""
STALE = 24 * 3600.0
"""Seconds without a write after which a temporary file belongs to nobody."""


class Store:
    """One pack directory."""

    def __init__(self, path: Place) -> None:
        """Open an existing pack; raises UsageError where there is none, UnknownFormatError for a newer one."""
        self.path = path_of("pack", path)
        self._tasks = self.path / "tasks"
        marker = self.path / "pack.json"
        try:
            text = marker.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            _refuse_unmarked(self.path)
            raise UsageError(
                f"no pack at '{printable(str(self.path))}'", hint="`petlpack encode RUN_DIR --pack DIR` creates one"
            ) from error
        try:
            table = decode_once(text)
            version = table["version"] if table["format"] == "petlpack" else None
            if version == 1 and set(table) != {"format", "version"}:
                raise ValueError("other fields than format and version")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnknownFormatError(
                f"'{printable(str(marker))}' is not the pack.json of a pack",
                hint="the directory is not a pack, or its pack.json is corrupt: restore it",
                code="pack-json",
            ) from error
        if type(version) is not int or version != 1:
            raise UnknownFormatError(
                f"'{printable(str(marker))}' has format version {printable(repr(version))}, this petlpack reads 1",
                hint="the pack was written by a newer petlpack: upgrade petlpack to read it",
                code="version-unknown" if table["format"] == "petlpack" else "format-unknown",
            )

    @classmethod
    def create(cls, path: Place) -> Store:
        """Open a pack, or make an empty one where nothing is; raises UsageError where something else is."""
        path = path_of("pack", path)
        if not (path / "pack.json").exists():
            _make(path)
        return cls(path)

    @classmethod
    @contextlib.contextmanager
    def creating(cls, path: Place) -> Iterator[Store]:
        """Lend a pack as `create` gives it; one that was made and is still empty when the block fails is undone."""
        path = path_of("pack", path)
        made = not (path / "pack.json").exists() and _make(path)
        try:
            yield cls(path)
        except BaseException:
            if made:
                _unmake(path)
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
        (self.path / "tasks").mkdir(exist_ok=True)
        (self.path / "shared").mkdir(exist_ok=True)
        path = self.path / "tasks" / f".tmp-{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

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
        self, name: str, task: Path, shared: Mapping[str, bytes], damaged: Collection[str] = (), *, replace: bool
    ) -> None:
        """Move a finished temporary file into its place as a task, the shared parts it needs (as file bytes) first.

        Shared parts that are there already stay as they are, but for those that the caller found `damaged`.
        """
        target = self.task_path(name)
        with self.locked():
            self.refuse_taken(name, replace=replace)
            for sha256 in shared:
                path = self.shared_path(sha256)
                if sha256 in damaged or not path.exists():
                    with _replacing(path) as temporary:
                        temporary.write_bytes(shared[sha256])
            _sync(task)
            task.replace(target)
            _sync(target.parent)

    def remove(self, name: str) -> int:
        """Delete a task and return its bytes; shared parts stay until `sweep`."""
        with self.locked():
            path = self.find_task(name)
            size = path.stat().st_size
            path.unlink()
            _sync(path.parent)
        return size

    def sweep(self, needed: set[str], *, dry_run: bool = False) -> list[tuple[Path, int]]:
        """Delete shared parts that no task needs and stale temporary files; the caller holds the lock.

        Returns the files with their bytes.
        """
        garbage = [self.shared_path(sha256) for sha256 in self.shared_names() if sha256 not in needed]
        for directory in (self.path, self.path / "tasks", self.path / "shared"):
            leftovers = directory.glob(".tmp-*") if directory.is_dir() else ()
            garbage += [path for path in sorted(leftovers) if _is_stale(path)]
        sizes = [(path, _file_size(path) or 0) for path in garbage]
        if not dry_run:
            for path in garbage:
                path.unlink(missing_ok=True)
        return sizes

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the pack's lock; raises LockedError after LOCK_TIMEOUT seconds."""
        import filelock  # here, for most commands only read

        lock = filelock.FileLock(self.path / ".lock", timeout=LOCK_TIMEOUT)
        try:
            lock.acquire(poll_interval=0.005)
        except filelock.Timeout as error:
            raise LockedError(
                f"pack '{printable(str(self.path))}' is locked by another process",
                hint="another petlpack process is writing to it: try again when it is done",
            ) from error
        try:
            yield
        finally:
            lock.release()


def is_pack(path: Place) -> bool:
    """Tell whether a directory is meant as a pack: its mark says so, or is spoilt and tasks and parts stand beside.

    A pipe in the place of the mark is not waited for.
    """
    path = path_of("path", path)
    mark = path / "pack.json"
    try:
        if mark.is_file() and json.loads(mark.read_bytes())["format"] == "petlpack":
            return True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return all((path / name).exists() for name in ("pack.json", "tasks", "shared"))


def pack_above(path: Path) -> Path | None:
    """Return the pack whose tasks or shared parts a file or directory is among; None where it is in none."""
    real = path.resolve()
    inside = (place for place in (real, *real.parents) if place.name in ("tasks", "shared"))
    return next((place.parent for place in inside if is_pack(place.parent)), None)


_OWN = {"pack.json", "tasks", "shared", ".lock"}
_PACK_HINT = "give an existing pack, or a new or empty directory"


def _refuse_unmarked(path: Path) -> None:
    """Raise UsageError for a pack that has lost its pack.json: only the text of that is missing, and no task."""
    if any((path / name).is_dir() for name in ("tasks", "shared")) and not (path / "pack.json").exists():
        raise UsageError(
            f"'{printable(str(path))}' has the directories of a pack, but no pack.json",
            hint=f"if it is a pack, restore its pack.json, which holds {PACK_JSON.decode().strip()}",
        )


def _make(path: Path) -> bool:
    """Make an empty pack; returns whether the directory is new."""
    refuse_file_above(path, _PACK_HINT)
    if path.exists() and not path.is_dir():
        raise UsageError(f"'{printable(str(path))}' is a file, not a pack directory", hint=_PACK_HINT)
    new = not path.exists()
    foreign = [] if new else [e.name for e in path.iterdir() if e.name not in _OWN and not e.name.startswith(".tmp-")]
    if foreign:
        raise UsageError(
            f"'{printable(str(path))}' is neither a pack nor empty: it contains '{printable(min(foreign))}'",
            hint=_PACK_HINT,
        )
    _refuse_unmarked(path)
    path.mkdir(parents=True, exist_ok=True)
    with _replacing(path / "pack.json") as temporary:
        temporary.write_bytes(PACK_JSON)
    return new


def _unmake(path: Path) -> None:
    """Remove a pack that was just made, unless somebody has put something into it meanwhile."""
    with contextlib.suppress(OSError):
        for directory in (path / "tasks", path / "shared"):
            if directory.exists():
                directory.rmdir()
        (path / ".lock").unlink(missing_ok=True)
        (path / "pack.json").unlink()
        path.rmdir()


def _file_size(path: Path) -> int | None:
    """Return the bytes of a file, None for what is none, or is gone since the directory was listed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return False


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


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`, and move it there, synced, when the block ends well."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file or a directory durable; systems that cannot open a directory sync it by themselves."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

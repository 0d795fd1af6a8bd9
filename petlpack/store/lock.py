"""The lock of a pack, and how a file that is locked says that its owner lives (formats/pack.md)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from petlpack.errors import DamageError, LockedError, PetlpackError, printable

if TYPE_CHECKING:
    import filelock

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP}
"""What a file system says of a lock where it has none."""

_ALIVE = ".lock"
"""How the file ends that its owner keeps locked."""

_OWNER = "[0-9a-f]{32}"


@contextlib.contextmanager
def locked(pack: Path, timeout: float, told: list[str]) -> Iterator[None]:
    """Hold the lock of a pack; raises LockedError after so many seconds, PetlpackError where nothing can be locked.

    What goes wrong when it is let go is `told`: what was done under it is done.
    """
    import filelock  # here, for most commands only read

    path = pack / ".lock"
    while True:
        refuse_odd_lock(path)
        lock = _lock(path)
        try:
            _acquire(lock, timeout)
        except filelock.Timeout as error:
            raise LockedError(
                f"pack '{printable(str(pack))}' is locked by another process",
                hint="another petlpack process is writing to it: try again when it is done",
            ) from error
        if _is_the_file(lock, path):
            break
        lock.release()  # whoever held it has deleted it together with a pack that came to nothing
    try:
        yield
    except BaseException:
        _let_go(lock, [])
        raise
    _let_go(lock, told)


def _let_go(lock: filelock.BaseFileLock, told: list[str]) -> None:
    try:
        lock.release()
    except OSError as error:
        told.append(f"the pack's lock was not given back until this process ends: {error}")


def refuse_odd_lock(path: Path) -> None:
    """Raise DamageError for a lock that is no file of the pack's own: opening it might empty another file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and status.st_size > 0):
        raise DamageError(
            f"'{printable(str(path))}' is a link or no file, but the lock of a pack is an empty file of its own",
            hint="delete it: whoever writes to the pack makes a new one",
            code="pack-lock",
        )


def _lock(path: Path) -> filelock.BaseFileLock:
    import filelock

    return filelock.FileLock(path, fallback_to_soft=False)


def _acquire(lock: filelock.BaseFileLock, timeout: float) -> None:
    """Acquire a lock; raises PetlpackError where the file system has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lock.acquire(timeout=timeout, poll_interval=0.005)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno not in _NO_LOCKS):
            raise
        raise PetlpackError(
            f"'{printable(str(lock.lock_file))}' cannot be locked: the file system knows no locks ({error})",
            hint="write the pack on a local disk, or mount this one with locks, and copy the pack when it is done",
            code="lock-unsupported",
        ) from error


def _is_the_file(lock: filelock.BaseFileLock, path: Path) -> bool:
    """Tell whether the file that was locked is still the one in its place."""
    descriptor = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    if descriptor is None or os.name == "nt":  # Windows deletes no file that is open
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def alive(directory: Path, prefix: str, left: Callable[[str], bool]) -> Iterator[str]:
    """Lend a name that nobody else has; a locked file beside says that its owner lives, as long as the block runs.

    Where something is `left` under that name, since it could not be deleted, the file stays for `bury` to find. Where
    nothing can be locked, there is no such file: what a killed owner leaves is then for nobody to see.
    """
    owner = f"{prefix}{uuid.uuid4().hex}"
    path = directory / f"{owner}{_ALIVE}"
    lock = _lock(path)
    try:
        with contextlib.suppress(PetlpackError):
            _acquire(lock, 0)
        yield owner
    finally:
        with contextlib.suppress(OSError):
            if not left(owner):
                path.unlink(missing_ok=True)
        _let_go(lock, [])


def living(directory: Path, prefix: str) -> set[str]:
    """Return the names that are lent in a directory, or were when their owner was killed."""
    pattern = re.compile(f"({re.escape(prefix)}{_OWNER}){re.escape(_ALIVE)}")
    matches = (pattern.fullmatch(name) for name in os.listdir(directory))  # noqa: PTH208 - names are all that is asked
    return {match[1] for match in matches if match}


def at_work(directory: Path, prefix: str) -> tuple[str, ...]:
    """Return the names whose owners live, as far as that can be known."""
    import filelock

    found = []
    for owner in living(directory, prefix):
        lock = _lock(directory / f"{owner}{_ALIVE}")
        try:
            refuse_odd_lock(Path(lock.lock_file))
            _acquire(lock, 0)
        except (OSError, PetlpackError, filelock.Timeout, RuntimeError):
            found.append(owner)
        else:
            _let_go(lock, [])
    return tuple(found)


def bury(directory: Path, prefix: str, delete: Callable[[str], None]) -> None:
    """Delete what killed owners left in a directory: by `delete`, called with the name of each, then its lock."""
    import filelock

    for owner in living(directory, prefix):
        path = directory / f"{owner}{_ALIVE}"
        lock = _lock(path)
        try:
            refuse_odd_lock(path)
            _acquire(lock, 0)
        except (OSError, PetlpackError, filelock.Timeout, RuntimeError):  # it lives, or we may not know
            continue
        try:
            delete(owner)
            path.unlink(missing_ok=True)
        except OSError:
            pass  # left for the next one
        finally:
            _let_go(lock, [])

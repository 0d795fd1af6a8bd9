"""Files that others own: opened only where they are regular, read and never mapped, and refused once they change.

What was learned of a file, a digest or a header, holds for the state in which it was read. A mapped file that becomes
shorter kills the process, and a named pipe or a device may never answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petlpack.errors import RunError, printable

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""A pipe that nobody writes to is opened without waiting, should one take the place of a file."""


class State(NamedTuple):
    """What tells one state of a file from another: a file that replaces it, or a write, changes some of it."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> State:
        """Return the state that the operating system tells."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def special_kind(mode: int) -> str | None:
    """Return what a mode says of something that is neither file nor directory; None for these."""
    return next((what for test, what in _SPECIAL if test(mode)), None)


class SpecialFileError(OSError):
    """What was to be read as a file is a pipe, a socket or a device."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading without buffers; raises OSError, SpecialFileError for what is no regular file."""
    return open(open_descriptor(path), "rb", buffering=0)


def open_descriptor(path: str | Path, _: int = 0) -> int:
    """Open a file for reading, as the `opener` of `open`; raises OSError, SpecialFileError for what is no regular file.

    What it is is asked before it is opened, for opening a device may do something, and once more afterwards.
    """
    _refuse_special(path, _mode_of(path))
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        _refuse_special(path, status.st_mode)
        _refuse_unsized(path, descriptor, status.st_size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _mode_of(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - a fifth of the time of Path.stat
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise SpecialFileError(error.errno, "it is a link in a circle, not a file", str(path)) from error


def _refuse_unsized(path: str | Path, descriptor: int, nbytes: int) -> None:
    """Raise SpecialFileError for what says that it has no bytes, and has some or makes wait, as the system's."""
    try:
        if nbytes or not os.read(descriptor, 1):
            return
    except BlockingIOError:
        pass
    raise SpecialFileError(errno.EINVAL, "it has bytes, but says that it has none", str(path))


def _refuse_special(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise SpecialFileError(errno.EINVAL, f"it is {special_kind(mode) or 'something else'}, not a file", str(path))


@dataclass(frozen=True)
class Pin:
    """A regular file in the state in which it was opened."""

    path: Path
    state: State

    def check(self) -> None:
        """Raise RunError (`file-changed`) where the file at the path is no longer the one that was opened."""
        try:
            now = State.of(os.stat(self.path))  # noqa: PTH116 - as above
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._changed("it is gone") from error
        self._compare(now)

    def read(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Read bytes into memory of their own, opening the file anew; raises RunError as `check`, and OSError."""
        try:
            file = open_regular(self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._changed("it is gone") from error
        with file:
            return self.read_of(file, start, nbytes)

    def read_of(self, file: BinaryIO, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Read bytes of the opened file, which must have been in this state before and after; raises as `read`."""
        self._compare(State.of(os.fstat(file.fileno())))
        file.seek(start)
        octets: NDArray[np.uint8] = np.fromfile(file, np.uint8, nbytes)
        self._compare(State.of(os.fstat(file.fileno())))
        if len(octets) != nbytes:
            raise self._changed(f"{nbytes:,} bytes at {start:,} are {len(octets):,}")
        return octets

    def _compare(self, now: State) -> None:
        if now != self.state:
            fields = zip(State._fields, self.state, now, strict=True)
            name, was, found = next(field for field in fields if field[1] != field[2])
            raise self._changed(f"its {_NAMES[name]} was {was}, and is {found}")

    def _changed(self, what: str) -> RunError:
        return RunError(
            f"'{printable(str(self.path))}' changed after it was opened: {what}",
            hint="wait until nothing writes to it, then open it again",
            code="file-changed",
        )


_NAMES = {
    "device": "device",
    "inode": "inode",
    "nbytes": "size",
    "mtime_ns": "time of writing (ns)",
    "ctime_ns": "time of change (ns)",
}


def pin_of(path: Path, file: BinaryIO) -> Pin:
    """Pin a file that is open, in its present state; who watches learns of it."""
    pin = Pin(path, State.of(os.fstat(file.fileno())))
    for watched in _WATCHING.get():
        watched.add(pin)
    return pin


class Watched:
    """The files that were pinned while somebody watched, each in every state in which it was pinned."""

    def __init__(self) -> None:
        self._pins: dict[Pin, None] = {}

    def add(self, pin: Pin) -> None:
        """Take a file in."""
        self._pins[pin] = None

    def only(self, paths: Collection[Path]) -> Watched:
        """Return those of these paths, and watch no further."""
        chosen = Watched()
        chosen._pins = {pin: None for pin in self._pins if pin.path in paths}
        return chosen

    def check(self) -> None:
        """Raise RunError as `Pin.check` for the first file that changed since it was pinned."""
        for pin in list(self._pins):
            pin.check()


_WATCHING: ContextVar[tuple[Watched, ...]] = ContextVar("watching", default=())


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Note every file that is pinned meanwhile, by whatever reads it: small files, headers, weights."""
    watched = Watched()
    token = _WATCHING.set((*_WATCHING.get(), watched))
    try:
        yield watched
    finally:
        _WATCHING.reset(token)

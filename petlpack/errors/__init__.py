"""Every error that petlpack raises, as one tree; each class carries the exit code of the command line.

PetlpackError                1
├── RunError                 1  a run directory cannot be read or encoded
├── UsageError               2  the caller asked for something that makes no sense
├── TaskError (a KeyError)   1  a task is missing from the pack, or there already
├── DamageError              4  bytes of a pack are not what they were when written
├── BaseError                5  the base is missing, or is not the base that a task needs
├── LimitError               1  what a task would take is more than was allowed, or than its files explain
├── LockedError              6  another process holds the pack
└── UnknownFormatError       7  a version, codec, coder or dtype that this petlpack does not know

Each has a `code`, one short word for its reason that programs can compare. What breaks a rule of a format says which
(formats/reasons.md is the table); every other error has the code of its class.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar


class PetlpackError(Exception):
    """Base class of every error of this library: a message that names what disagrees, and a hint what to do."""

    exit_code = 1
    default_code: ClassVar[str] = "error"
    """The code of an error that says no other."""
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.code = self.default_code if code is None else code

    @property
    def own_code(self) -> str | None:
        """The code, where it says more than the class: what an error that is raised in the place of this one keeps."""
        return None if self.code == self.default_code else self.code


class RunError(PetlpackError):
    """A run directory cannot be read or encoded; `flag` names the setting that would be the remedy, if one is."""

    default_code = "run"

    def __init__(
        self, message: str, *, hint: str | None = None, code: str | None = None, flag: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.flag = flag


class UsageError(PetlpackError):
    """The caller asked for something that makes no sense."""

    exit_code = 2
    default_code = "usage"


class TaskError(PetlpackError, KeyError):
    """A task is missing from the pack, or there already."""

    default_code = "task"

    def __str__(self) -> str:
        """Return the message (KeyError would quote it)."""
        return self.message


class DamageError(PetlpackError):
    """Bytes of a pack are not what they were when written."""

    exit_code = 4
    default_code = "damage"
    default_hint = "restore the pack from a backup, or encode the run again with --replace"


class BaseError(PetlpackError):
    """The base is missing, or is not the base that a task needs."""

    exit_code = 5
    default_code = "base"


class LimitError(PetlpackError):
    """What a task would take is more than the caller allowed, or than its files explain; its bytes may be right."""

    default_code = "limit"


class LockedError(PetlpackError):
    """Another process holds the pack."""

    exit_code = 6
    default_code = "locked"


class UnknownFormatError(PetlpackError):
    """A version, codec, coder or dtype that this petlpack does not know."""

    exit_code = 7
    default_code = "unknown-format"
    default_hint = "the file was written by a newer petlpack: upgrade petlpack to read it"


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name a file of a pack in what is refused of its content: a section, a rule. What names one already stays."""
    try:
        yield
    except (DamageError, UnknownFormatError) as error:
        if type(error) not in (DamageError, UnknownFormatError) or _NAMED.search(error.message):
            raise
        message = f"'{printable(str(file))}': {error.message}"
        raise type(error)(message, hint=error.hint, code=error.code) from error


_NAMED = re.compile(r"\.petl\.\w+'|'[^']*/\.tmp-|shared part [0-9a-f]{64}")


class RefusedError(ValueError):
    """A value breaks a rule of a format. Who knows which file it is from raises a DamageError in its place."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def reason(error: BaseException, otherwise: str) -> str:
    """Return the code of an error that has one, and `otherwise` of what Python or a foreign library raised."""
    return error.code if isinstance(error, (PetlpackError, RefusedError)) else otherwise


def printable(text: str) -> str:
    """Return `text` with control and unprintable characters escaped, so that a hostile name cannot drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


HINTS = {
    errno.ENOSPC: "free some space on that disk, then try again",
    errno.EDQUOT: "your quota on that disk is used up: free some space, then try again",
    errno.EROFS: "that file system is read-only: choose another location",
    errno.EACCES: "check the permissions, or choose another location",
    errno.EPERM: "check the permissions, or choose another location",
    errno.ENOENT: "check the path: the file, or a directory above it, does not exist or was moved",
    errno.ENOTDIR: "check the path: part of it is a file",
    errno.EMFILE: "too many files are open: raise `ulimit -n`, or use fewer --jobs",
    errno.EIO: "the disk reported an error: check the system log",
}
"""What to do about an error of the operating system."""


Kept = TypeVar("Kept", bound=BaseException)


def kept(error: Kept) -> Kept:
    """Return an error that is kept, without the frames that it came through: they hold all that was read in them."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error


@dataclass(frozen=True)
class Problem:
    """An error, ready to be shown: its texts are as they came, and who shows them escapes them."""

    type: str
    code: str
    message: str
    hint: str | None
    exit_code: int

    def to_json(self) -> dict[str, str | None]:
        """Return the value of "error" in what `--json` prints."""
        return {"type": self.type, "code": self.code, "message": self.message, "hint": self.hint}


def problem_at(error: OSError) -> Problem:
    """Return what to say of an error of the operating system where its file is named beside it."""
    return Problem(type(error).__name__, "os", error.strerror or str(error), HINTS.get(error.errno or 0), 1)


def problem_of(error: BaseException) -> Problem:
    """Return what to say of any exception."""
    if isinstance(error, PetlpackError):
        return Problem(type(error).__name__, error.code, error.message, error.hint, error.exit_code)
    if isinstance(error, OSError):  # numpy's have no number, and say all in words
        where = f": '{error.filename}'" if error.filename is not None else ""
        told = error.strerror or str(error) or "the system refused something"
        return Problem(type(error).__name__, "os", f"{told}{where}", HINTS.get(error.errno or 0), 1)
    if isinstance(error, MemoryError):
        return Problem("MemoryError", "memory", "not enough memory", "use fewer --jobs, which need less memory", 1)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Problem("InternalError", "internal", f"internal error: {text}", "run again with --debug and report it", 1)

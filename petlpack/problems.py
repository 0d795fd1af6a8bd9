"""Any exception as people and programs are told of it: what kind it is, what happened, what to do, and an exit code."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from petlpack.errors import PetlpackError

HINTS = {
    errno.ENOSPC: "free some space on that disk, then run it again",
    errno.EDQUOT: "your quota on that disk is used up: free some space, then run it again",
    errno.EROFS: "that file system is read-only: choose another place",
    errno.EACCES: "you may not do this there: look at the permissions, or choose another place",
    errno.EPERM: "you may not do this there: look at the permissions, or choose another place",
    errno.ENOENT: "look at the path; another program may have moved the file",
    errno.ENOTDIR: "part of the path is a file: look at the path",
    errno.EMFILE: "too many files are open: raise `ulimit -n`, or use fewer --jobs",
    errno.EIO: "the disk did not answer: look at the system's log",
}
"""What to do about an error of the operating system."""


@dataclass(frozen=True)
class Problem:
    """An error, ready to be shown: its texts are as they came, and who shows them escapes them."""

    type: str
    message: str
    hint: str | None
    exit_code: int

    def to_json(self) -> dict[str, str | None]:
        """Return the value of "error" in what `--json` prints."""
        return {"type": self.type, "message": self.message, "hint": self.hint}


def problem_of(error: BaseException) -> Problem:
    """Return what to say of any exception."""
    if isinstance(error, PetlpackError):
        return Problem(type(error).__name__, error.message, error.hint, error.exit_code)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": '{error.filename}'" if error.filename is not None else ""
        return Problem(type(error).__name__, f"{error.strerror}{where}", HINTS.get(error.errno), 1)
    if isinstance(error, MemoryError):
        return Problem("MemoryError", "not enough memory", "fewer --jobs need less of it", 1)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Problem("InternalError", f"internal error: {text}", "run again with --debug and report it", 1)

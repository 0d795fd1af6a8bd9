"""Errors as people and programs see them: `Error:` and `Hint:` on stderr, or a JSON object, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from petlpack.errors import DamageError, PetlpackError, printable

SCHEMA_VERSION = 1
"""Version of what --json prints; a field that changes its meaning or goes away makes a new one."""

STDOUT = "standard output"

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


DAMAGE = DamageError.exit_code


class Interrupted(Exception):
    """Someone pressed Ctrl-C."""


@dataclass(frozen=True)
class Problem:
    """An error, ready to be shown."""

    type: str
    code: str
    message: str
    hint: str | None
    exit_code: int

    def to_json(self) -> dict[str, str | None]:
        """Return the value of "error"."""
        return {"type": self.type, "code": self.code, "message": self.message, "hint": self.hint}

    def lines(self, about: str = "") -> str:
        """Return what people read; `about` names the run where there are several."""
        if self.type == "Interrupted":
            return "interrupted"
        told = f"Error: {printable(about)}{printable(self.message)}"
        return f"{told}\nHint: {printable(self.hint)}" if self.hint else told


def describe(error: BaseException) -> Problem:
    """Return what to say about any exception."""
    if isinstance(error, PetlpackError):
        return Problem(type(error).__name__, error.code, error.message, error.hint, error.exit_code)
    if isinstance(error, (Interrupted, KeyboardInterrupt, click.Abort)):
        return Problem("Interrupted", "interrupted", "interrupted", None, 130)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "petlpack"
        hint = f"`{path} --help` shows how it is used"
        return Problem("UsageError", "usage", error.format_message(), hint, error.exit_code)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": '{error.filename}'" if error.filename is not None else ""
        return Problem(type(error).__name__, "os", f"{error.strerror}{where}", HINTS.get(error.errno), 1)
    if isinstance(error, MemoryError):
        return Problem("MemoryError", "memory", "not enough memory", "fewer --jobs need less of it", 1)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Problem("InternalError", "internal", f"internal error: {what}", "run again with --debug and report it", 1)


def worst(problems: Iterable[Problem]) -> int | None:
    """Return the exit code for several problems that did not stop a command: damage before all, None without any."""
    codes = {problem.exit_code for problem in problems}
    return DAMAGE if DAMAGE in codes else max(codes, default=None)


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Report an error and return its exit code; raises OSError where stdout takes no JSON."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:  # its message is the whole help
        click.echo(str(error), err=True)
        return 2
    problem = describe(error)
    if debug:
        show_traceback(error)
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "error": problem.to_json()}))
    else:
        click.echo(problem.lines(), err=True)
    return problem.exit_code


def show_traceback(error: BaseException) -> None:
    """Write the traceback to stderr: what --debug is for."""
    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


@contextlib.contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Give an error of the operating system that names no file (a full disk's does not) the place that was written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise

"""Every error that petlpack raises, as one tree; each class carries the exit code of the command line.

PetlpackError                1
├── RunError                 1  a run directory cannot be read or encoded
├── UsageError               2  the caller asked for something that makes no sense
├── TaskError (a KeyError)   1  a task is missing from the pack, or there already
├── DamageError              4  bytes of a pack are not what they were when written
├── BaseError                5  the base is missing, or is not the base that a task needs
├── LockedError              6  another process holds the pack
└── UnknownFormatError       7  a version, codec, coder or dtype that this petlpack does not know
"""

from __future__ import annotations


class PetlpackError(Exception):
    """Base class of every error of this library: a message that names what disagrees, and a hint what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RunError(PetlpackError):
    """A run directory cannot be read or encoded."""


class UsageError(PetlpackError):
    """The caller asked for something that makes no sense."""

    exit_code = 2


class TaskError(PetlpackError, KeyError):
    """A task is missing from the pack, or there already."""

    def __str__(self) -> str:
        """Return the message (KeyError would quote it)."""
        return self.message


class DamageError(PetlpackError):
    """Bytes of a pack are not what they were when written."""

    exit_code = 4


class BaseError(PetlpackError):
    """The base is missing, or is not the base that a task needs."""

    exit_code = 5


class LockedError(PetlpackError):
    """Another process holds the pack."""

    exit_code = 6


class UnknownFormatError(PetlpackError):
    """A version, codec, coder or dtype that this petlpack does not know."""

    exit_code = 7


def printable(text: str) -> str:
    """Return `text` with control and unprintable characters escaped, so that a hostile name cannot drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

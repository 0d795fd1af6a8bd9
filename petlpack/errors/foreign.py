"""What Python or a native library raises over files that others wrote, told as an error of this library."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from petlpack.errors import PetlpackError, RunError, printable

_TOO_MUCH = (MemoryError, RecursionError)

_ODD = (UnicodeError, OverflowError)

_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of the operating system that tell of odd names and links, and not of a disk or of permissions."""


@contextlib.contextmanager
def errors_of_run(path: object) -> Iterator[None]:
    """Raise RunError in the place of what no check of a run's files foresaw: no memory, a panic of a native library.

    Bugs of this library stay what they are, and so do errors of the operating system, but for those of odd names.
    """
    try:
        yield
    except PetlpackError:
        raise
    except _TOO_MUCH as error:
        what = "takes more memory than there is" if isinstance(error, MemoryError) else "is too deep"
        raise RunError(
            f"'{printable(str(path))}' {what}", hint="use fewer --jobs, which need less memory, or another checkpoint"
        ) from error
    except _ODD as error:
        raise _unread(path, error) from error
    except OSError as error:
        if error.errno not in _NO_PATH:
            raise
        raise _unread(path, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which gives no class to catch
            raise
        raise _unread(path, error) from error


def _unread(path: object, error: BaseException) -> RunError:
    return RunError(
        f"'{printable(str(path))}' cannot be read: {printable(str(error)[:200])}",
        hint="a name or a number in its files is none: save the run again",
    )

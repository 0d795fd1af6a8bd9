"""Files that accounting writes for people: whole or not at all, and never over something else than a file."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import refuse_file_above


def refuse_suffix(path: Path, suffixes: Sequence[str], what: str) -> None:
    """Raise UsageError where the name of a file does not end in one of these suffixes, in any case."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{what} cannot be written to '{printable(str(path))}'",
            hint=f"give a file name that ends in {' or '.join(suffixes)}",
        )


@contextlib.contextmanager
def new_file(path: Path, pack: str) -> Iterator[Path]:
    """Lend a temporary path beside what `path` is; when the block ends well, it becomes that file, in one step.

    Links are followed and stay links; a file that was there is replaced and gives its permissions. Raises UsageError
    for what is there and no regular file, and for a place inside the pack; OSErrors name `path`, whoever raises them.
    Unless all goes well, everything is left as it was.
    """
    try:
        target, mode = _target(path, pack)
        temporary = target.with_name(f".petlpack-{uuid.uuid4().hex}")
        try:
            temporary.touch(0o666 if mode is None else 0o600, exist_ok=False)
            yield temporary
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error  # not the temporary file's name


def _target(path: Path, pack: str) -> tuple[Path, int | None]:
    """Return the file that a path means, and its permissions if it exists."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    target = path.resolve()
    named = printable(str(path))
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise UsageError(f"'{named}' is a directory, expected a file name", hint="give the name of a file in it")
    if status is not None and not (stat.S_ISREG(status.st_mode) and _is_same(target, status)):
        raise UsageError(f"'{named}' is not a regular file", hint="give the name of a new file, or of one to replace")
    refuse_file_above(path, "choose another place for the file")
    if _is_inside(target, Path(pack)):
        raise UsageError(f"'{named}' is inside the pack '{printable(pack)}'", hint="give a path outside the pack")
    if not target.parent.is_dir():
        missing = printable(str(path.parent if not path.is_symlink() else target.parent))
        raise UsageError(f"'{named}' cannot be created: there is no directory '{missing}'", hint="create it first")
    return target, None if status is None else stat.S_IMODE(status.st_mode)


def _is_inside(target: Path, pack: Path) -> bool:
    """Say whether a directory above the target is the pack, by whatever name it is called."""
    try:
        place = pack.stat()
    except OSError:
        return False
    return any(_is_same(parent, place) for parent in target.parents)


def _is_same(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False

"""Files and directories that outlive a power cut: what is synced, and what has to be a directory of our own."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from petlpack.tensors.pinned import SpecialFileError, open_descriptor

DRAFT = ".tmp-locked-"
"""How the temporary files begin that only the holder of a pack's lock makes."""

FULL = {errno.ENOSPC, errno.EDQUOT}
"""What a file system says where there is no room, for anybody or for us."""

_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says of the sync of a directory where it has none: there is nothing that could be done."""


def sync(path: Path) -> None:
    """Make a file or a directory durable; systems that cannot open a directory sync it by themselves."""
    if path.is_dir():
        _sync_directory(path)
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_above(path: Path) -> None:
    """Make the entry of a directory in the one above it durable, where we may open that one."""
    with contextlib.suppress(PermissionError):
        sync(path.absolute().parent)


def make_directories(path: Path) -> None:
    """Make a directory and those above it that are missing, each durable in the one above it."""
    path = path.absolute()
    missing = [path, *path.parents]
    while missing and missing[-1].exists():
        missing.pop()
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_above(place)


def sync_tree(path: Path) -> None:
    """Make every file and directory below a directory durable, and the directory itself."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a file, without waiting for a pipe; raises ValueError for what is no file, or larger."""
    try:
        with open(path, "rb", opener=open_descriptor) as file:
            nbytes = os.fstat(file.fileno()).st_size
            text = file.read(min(nbytes, most) + 1)  # as much memory is taken, whatever there is
    except (SpecialFileError, IsADirectoryError) as error:
        raise ValueError("it is no file") from error
    if len(text) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return text


def is_directory(path: Path) -> bool:
    """Tell whether a path is a directory itself, and no link to one, nor what Windows calls a junction."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and not getattr(status, "st_reparse_tag", 0)


def file_size(path: Path) -> int | None:
    """Return the bytes of a file, None for what is none, or is gone since the directory was listed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def is_older(path: Path, seconds: float) -> bool:
    """Tell whether a file was last written so long ago; one that is gone was not."""
    try:
        return time.time() - path.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`, and move it there, synced, when the block ends well.

    The caller holds the pack's lock: whoever holds it next knows that such a file is nobody's any more.
    """
    temporary = path.with_name(f"{DRAFT}{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)

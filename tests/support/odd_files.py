"""What may stand in the place of a file besides a file: links, pipes, sockets, devices, directories."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

PRECIOUS = b"precious"
"""What the file holds that others' links lead to."""


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bind(path: Path, beside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:  # of a short path, for such have 108 characters
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def _loop(path: Path, beside: Path) -> None:
    other = path.with_name(f"{path.name}2")
    path.symlink_to(other)
    other.symlink_to(path)


def _behind(kind: str) -> Callable[[Path, Path], None]:
    """Return what makes a link to something of a kind that stands elsewhere."""

    def make(path: Path, beside: Path) -> None:
        KINDS[kind](beside / "odd", beside)
        path.symlink_to(beside / "odd")

    return make


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "a link to a file": lambda path, beside: path.symlink_to(beside / "precious"),
    "a hard link": lambda path, beside: path.hardlink_to(beside / "precious"),
    "a link to a directory": lambda path, beside: path.symlink_to(beside, target_is_directory=True),
    "a link to nothing": lambda path, beside: path.symlink_to(beside / "nothing"),
    "a link to itself": lambda path, beside: path.symlink_to(path.name),
    "a loop": _loop,
    "a directory": lambda path, beside: path.mkdir(),
    "a pipe": lambda path, beside: os.mkfifo(path),
    "a socket": _bind,
    "a link to a pipe": _behind("a pipe"),
    "a link to a device": lambda path, beside: path.symlink_to("/dev/zero"),
    "a link to a full device": lambda path, beside: path.symlink_to("/dev/full"),
    "a link to a file without end": lambda path, beside: path.symlink_to("/proc/self/pagemap"),
    "a link to a file that makes wait": lambda path, beside: path.symlink_to("/proc/kmsg"),
}
"""Each makes it at a path; links lead to a directory beside the rest, in which a file is precious."""


def replace(path: Path, kind: str, beside: Path) -> None:
    """Put something of a kind into the place of what stands there."""
    _clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path, beside)

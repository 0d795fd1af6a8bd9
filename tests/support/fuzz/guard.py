"""What no target may do: run a program, open a connection, or write, rename or delete outside of its own directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NEVER = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pty.spawn",
)
_INSIDE = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")

_inside: list[str] = []
"""The directory of the target that is being attacked, if one is."""
_watched: list[str] = []


def guarded(attack: Callable[[bytes], None], place: Path) -> Callable[[bytes], None]:
    """Return an attack during which what it may not do raises AssertionError."""
    if not _watched:
        sys.addaudithook(_watch)  # which nothing ever takes away
        _watched.append("all")
    own = os.path.realpath(place)

    def attacked(data: bytes) -> None:
        _inside.append(own)
        try:
            attack(data)
        finally:
            _inside.clear()

    return attacked


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event in _NEVER:
        raise AssertionError(f"{event} {args!r:.200}")
    if any(isinstance(arg, int) and arg >= 0 for arg in args[1:]) and event in _INSIDE:
        return  # told by a descriptor of its directory, which was opened by a name
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (event in _INSIDE or writes) and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(args[0]))
        if not f"{path}/".startswith(f"{_inside[0]}/") and path != os.devnull:
            raise AssertionError(f"{event} {path!r}")

"""Which shared parts were given up: the journal that `gc` goes by (formats/pack.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from petlpack.errors import PetlpackError, printable
from petlpack.store.disk import FULL, read_regular, replacing, sync
from petlpack.store.names import DIGEST, RELEASED

Needs = Callable[[Path], Iterable[str]]
"""Tells which shared parts the task in a file needs; raises PetlpackError where it cannot be read."""

MAX_RELEASED = 1 << 26
"""Bytes of the journal: 64 MB name a million parts. A larger one says nothing."""


def read_released(pack: Path) -> set[str]:
    """Return the sha256 of the parts that a pack gave up; lines that say anything else say nothing."""
    path = pack / RELEASED
    if path.is_symlink() or not path.is_file():
        return set()
    with contextlib.suppress(FileNotFoundError, ValueError):
        lines = read_regular(path, MAX_RELEASED).decode("ascii", "replace").split("\n")
        return {line for line in lines[:-1] if DIGEST.fullmatch(line)}
    return set()


def change_released(pack: Path, add: Iterable[str] = (), strike: Iterable[str] = ()) -> None:
    """Note that parts were given up, or that they are needed again; the caller holds the lock."""
    before = read_released(pack)
    after = (before | set(add)) - set(strike)
    if not after and before:
        (pack / RELEASED).unlink()
        sync(pack)
    elif after != before:
        with replacing(pack / RELEASED) as temporary:
            temporary.write_bytes("".join(f"{sha256}\n" for sha256 in sorted(after)).encode())


def note_if_room(pack: Path, parts: Iterable[str]) -> bool:
    """Note that parts are given up; returns False where the disk is too full for that: removing makes room."""
    try:
        change_released(pack, add=parts)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    return True


def note_now(pack: Path, parts: Iterable[str], told: list[str]) -> None:
    """Note that parts were given up by a task that is removed already; what keeps it from that is `told`."""
    try:
        change_released(pack, add=parts)
    except OSError as error:
        told.append(f"what only this task needed is not noted, and `gc` deletes it with --all only: {error}")


def needed_alone(path: Path, needs: Needs | None, others: Callable[[], Iterable[Path]], told: list[str]) -> set[str]:
    """Return the parts that only the task in this file needs, of all tasks' files.

    None where that cannot be known, which is `told`.
    """
    if needs is None or not path.exists():
        return set()
    try:
        alone = set(needs(path))
        for other in others() if alone else ():
            alone -= set() if other == path else set(needs(other))
            if not alone:
                break
    except (PetlpackError, OSError) as error:
        told.append(f"`gc` keeps the parts that only '{printable(path.name)}' needed: {printable(str(error))}")
        return set()
    return alone

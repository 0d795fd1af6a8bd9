"""Which shared parts were given up: the journal that `gc` goes by (formats/pack.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from petlpack.store.disk import read_regular, replacing, sync
from petlpack.store.names import DIGEST, RELEASED

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

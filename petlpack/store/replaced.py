"""Files that others replace or delete while they are read: what fails of one is read again of the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from petlpack.errors import PetlpackError
from petlpack.tensors.pinned import State

Result = TypeVar("Result")


def state_of(path: Path) -> State | None:
    """Return what tells a file from one that replaces it; None where there is none."""
    try:
        return State.of(path.stat())
    except OSError:
        return None


def settled(path: Path, read: Callable[[], Result]) -> Result:
    """Return what is read of a task's or a part's file; again where that fails, and the file is another one by then.

    Raises what reading the file that is there raises.
    """
    while True:
        before = state_of(path)
        try:
            return read()
        except (PetlpackError, OSError):
            if state_of(path) == before:
                raise

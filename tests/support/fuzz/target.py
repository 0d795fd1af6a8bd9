"""What a target is: bytes to begin with, how they are changed, and what must hold whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from petlpack.errors import PetlpackError
from tests.support.fuzz.mutations import Mutator, mutate_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """`attack` returns whatever the bytes are: what raises there, or takes long, is a fault of the product."""

    seeds: Iterable[bytes]
    attack: Callable[[bytes], None]
    mutate: Mutator = mutate_bytes


def tried(read: Callable[[], T], *errors: type[Exception]) -> tuple[T] | None:
    """Return what reading gives, alone in a tuple; None where it is refused by the library's tree, or as `errors`."""
    refused: tuple[type[Exception], ...] = (PetlpackError, *errors)
    try:
        return (read(),)
    except refused:
        return None


def agree(found: tuple[object] | None, read: Callable[[], object]) -> None:
    """Raise AssertionError where the second reader takes what the library refuses, or the other way round."""
    again = tried(read, Exception)  # the second reader is no product: that it stumbles is a refusal, too
    assert (found is None) == (again is None), f"only the {'second' if found is None else 'first'} reader takes it"


def put(path: Path, data: bytes) -> None:
    """Write a file anew: some file systems write one that is emptied first through to the disk, a hundredth as fast."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)

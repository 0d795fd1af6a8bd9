"""One in so many cases of a loop over all of them: what `make test` takes of a test that is marked `exhaustive`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Sample:
    """Takes the first of some cases and then one in `step`; where these begin hangs on the name alone.

    So every run of a test takes the same cases, and two tests over the same cases take others.
    """

    def __init__(self, step: int, name: str) -> None:
        self.step, self._start = step, zlib.crc32(name.encode()) % step

    def takes(self, number: int) -> bool:
        """Tell whether the case of a number, counted from 0, is taken."""
        return number == 0 or number % self.step == self._start

    def __call__(self, cases: Iterable[T]) -> Iterator[T]:
        """Take of cases, of which there may be no end."""
        return (case for number, case in enumerate(cases) if self.takes(number))

"""The table of `make trust`: what was attacked how often, and how often it has to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias

BARS = {
    "bits flipped in small packs, one task per codec": 65_536,
    "random flips in a large pack": 10_000,
    "files cut, grown, zeroed, swapped or of others": 5_000,
    "kills at system calls": 1_000,
    "kills at random": 1_000,
    "faults at system calls and in memory": 2_000,
    "states after power cuts": 1_000,
    "passes over a full disk": 20,
    "tasks of 40 threads": 100,
    "tasks of 16 processes": 100,
    "reads beside writers": 1_000,
    "hostile packs": 700,
    "bombs": 30,
    "links and special files": 60,
    "hostile pickles": 3_000,
    "hostile runs": 200,
    "wrong bases": 200,
    "golden packs": 1,
    "mutants of the product killed": 40,
}
"""The rows of the table, and the least that `make trust` shows of each."""
FUZZED = "fuzzed: "
"""Of every target of a fuzzer a row is added."""
FUZZED_BAR = 100_000
WHOLE = ("layout ", "task by ")
"""Targets that read directories or whole tasks, a few dozen a second: parsers, coders and codecs have their own."""
WHOLE_BAR = 1_000

Tally: TypeAlias = "Callable[[str, int], None]"
"""Adds to a row."""


def bar_of(row: str) -> int:
    """Return the least of a row.

    Raises:
        KeyError: there is no such row.
    """
    if row.startswith(FUZZED):
        return WHOLE_BAR if row.removeprefix(FUZZED).startswith(WHOLE) else FUZZED_BAR
    return BARS[row]


def table(properties: Iterable[tuple[str, object]]) -> tuple[list[str], list[str]]:
    """Return the lines of the table, from what tests added to it, and the rows that are below their bar."""
    counts: Counter[str] = Counter(dict.fromkeys(BARS, 0))
    for name, value in properties:
        if name == "tally":
            row, _, count = str(value).rpartition("=")
            counts[row] += int(count)
    width = max(map(len, counts))
    low = [row for row, count in counts.items() if count < bar_of(row)]
    lines = [
        f"{row:<{width}} {count:>12,}   at least {bar_of(row):>9,}{'   too few' if row in low else ''}"
        for row, count in counts.items()
    ]
    return lines, low

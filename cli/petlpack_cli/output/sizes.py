"""Bytes and ratios for people: decimal units, as disks are sold."""

from __future__ import annotations

import functools
import sys

UNITS = ("kB", "MB", "GB", "TB", "PB")

BLOCKS = " ▏▎▍▌▋▊▉█"
"""No eighths of a column to eight of them."""


def size(nbytes: float) -> str:
    """Return bytes with a unit: 999 B, 1.0 kB, 438.0 MB."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    power = 1
    while nbytes / 1000**power >= 999.95 and power < len(UNITS):
        power += 1
    return f"{nbytes / 1000**power:.1f} {UNITS[power - 1]}"


def ratio(before: int, after: int) -> str:
    """Return how many times smaller it became: 13.5x, 120x."""
    if not before or not after:
        return "-"
    times = before / after
    return f"{times:,.0f}x" if times >= 100 else f"{times:.1f}x" if times >= 10 else f"{times:.2f}x"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 task, 12 tasks."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bar(value: float, largest: float, width: int = 10) -> str:
    """Return a bar of up to `width` characters, in eighths of one, or whole `#` where stdout has no blocks.

    Anything above nothing shows.
    """
    eighths = round(8 * width * value / largest) if largest > 0 else 0
    if value > 0:
        eighths = max(1, eighths)
    if not _has_blocks(getattr(sys.stdout, "encoding", None) or "utf-8"):
        return "#" * -(-eighths // 8)
    return _blocks(eighths)


def shrunk(drawn: str, width: int, longest: int) -> str:
    """Return a bar as it is where the longest, of `longest` characters, has `width` of them; one that shows, shows."""
    if drawn.startswith("#"):
        return "#" * -(-len(drawn) * width // longest)
    eighths = sum(map(BLOCKS.index, drawn))
    return _blocks(max(1, eighths * width // longest)) if eighths else ""


def _blocks(eighths: int) -> str:
    return BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8].strip()


@functools.cache
def _has_blocks(encoding: str) -> bool:
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True

"""Bytes and ratios for people: decimal units, as disks are sold."""

from __future__ import annotations

UNITS = ("kB", "MB", "GB", "TB", "PB")


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
    return f"{times:.0f}x" if times >= 100 else f"{times:.1f}x" if times >= 10 else f"{times:.2f}x"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 task, 12 tasks."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"

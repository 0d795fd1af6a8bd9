"""How slow the machine is: bars in seconds hold for one that is as fast as most."""

from __future__ import annotations

import time

USUAL = 0.07
"""Seconds that most machines take for the work of `_work`, with Python 3.11."""


def _work() -> float:
    before, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return time.process_time() - before


def slowness() -> float:
    """Return how many times as long as most this machine takes at this moment, at least 1."""
    return max(1.0, min(_work() for _ in range(3)) / USUAL)

"""What a manifest tells people of a task: nothing that decoding depends on, so anything may stand there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petlpack.errors import printable


@dataclass(frozen=True)
class Score:
    """What a run says it reached: the metric's name, and its value as the run states it (0.9 or 90)."""

    metric: str
    value: float


def text_of(facts: Mapping[str, Any], name: str) -> str:
    """Return a fact that should be a text, as people can read it; `unknown` where there is none."""
    return printable(str(facts.get(name, "unknown")))


def counts_of(facts: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts among the figures."""
    said = facts.get("figures")
    rows = said.items() if isinstance(said, dict) else ()
    return {name: count for name, count in rows if type(count) is int and 0 <= count < 1 << 62}


def error_of(facts: Mapping[str, Any]) -> float | None:
    """Return the largest error that is stated of a tensor; None where none is."""
    said = facts.get("error")
    values = said.values() if isinstance(said, dict) else ()
    return max((value for value in values if type(value) is float and math.isfinite(value)), default=None)


def score_of(facts: Mapping[str, Any]) -> Score | None:
    """Return the score that the run stated; None where it stated none."""
    said = facts.get("score")
    if not isinstance(said, list) or len(said) != 2 or not isinstance(said[0], str):
        return None
    metric, value = said
    return Score(printable(metric), value) if type(value) is float and math.isfinite(value) else None

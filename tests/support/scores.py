"""What a pack would tell if its tasks had stated scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from petlpack.analyze.stats import Stats
from petlpack.records.facts import Score


def scored(found: Stats, scores: Sequence[Score | None], methods: Sequence[str] = ("lora",)) -> Stats:
    """Return the figures of as many tasks as there are scores, each with its score and with a method in turn."""
    rows = tuple(
        replace(found.tasks[i % len(found.tasks)], name=f"task-{i}", score=score, method=methods[i % len(methods)])
        for i, score in enumerate(scores)
    )
    return replace(found, tasks=rows)

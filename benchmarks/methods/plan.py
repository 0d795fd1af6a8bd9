"""What is left to do, from results.json alone: rates to try, runs to train, packs to weigh."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from data import TASKS
from job import SEARCH_SEED, Job, pack_of
from rows import Row

import petlpack

STEP = 10**0.5
"""From one rate to the next: 1e-3, 3.16e-3, 1e-2."""
MOST_RATES = 5

Results = dict[str, Any]


def tried(results: Results, row: Row) -> dict[float, float]:
    """Return the held-out accuracy of each rate that was tried for a row, or for the row that a check looks into."""
    return {one["rate"]: one["dev"] for one in results["searches"] if one["row"] == (row.check or row.id)}


def rates(row: Row, dev: dict[float, float]) -> tuple[list[float], float | None]:
    """Return the rates to try next, or none and the one to use.

    Used is the rate that has, with both its neighbours, the best mean (of equal ones the rate that is best alone): a
    search is short and noisy, and half a power of ten beyond the best rate training may collapse. Three are tried
    first; more while the best is the largest or the smallest, MOST_RATES at most.
    """
    first = [_rounded(row.rate * STEP**k) for k in (-1, 0, 1)]
    missing = [rate for rate in first if rate not in dev]
    if missing:
        return missing, None
    tried = sorted(dev)
    best = max(tried, key=lambda rate: dev[rate])
    if len(tried) < MOST_RATES and best == tried[-1]:
        return [_rounded(tried[-1] * STEP)], None
    if len(tried) < MOST_RATES and best == tried[0]:
        return [_rounded(tried[0] / STEP)], None
    near = {tried[i]: math.fsum(dev[rate] for rate in tried[i - 1 : i + 2]) for i in range(1, len(tried) - 1)}
    return [], max(near, key=lambda rate: (near[rate], dev[rate]))


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def next_jobs(results: Results, rows: Iterable[Row], under_way: Collection[Job]) -> list[Job]:
    """Return what can be done now, the first seed of all rows before the second."""
    done = {(one["row"], one["seed"], one["task"]) for one in results["runs"]}
    jobs: list[Job] = []
    chosen: list[tuple[Row, float]] = []
    for row in rows:
        missing, best = rates(row, tried(results, row))
        jobs += [Job(row.id, rate, SEARCH_SEED, "search") for rate in missing if not row.check]
        if best is not None:
            chosen.append((row, best))
    for seed in range(max((row.seeds for row, _ in chosen), default=0)):
        for row, best in chosen:
            tasks = ("all",) if row.multi else TASKS
            if seed < row.seeds:
                jobs += [Job(row.id, best, seed, task) for task in tasks if (row.id, seed, task) not in done]
    return [one for one in jobs if one not in under_way]


def drop_stale(results: Results, rows: Iterable[Row]) -> None:
    """Take out runs that used another rate than the search chose, and what their packs weighed."""
    chosen = {row.id: rates(row, tried(results, row))[1] for row in rows}
    stale = [one for one in results["runs"] if chosen.get(one["row"]) not in (None, one["rate"])]
    packs = {(one["row"], one["seed"]) for one in stale}
    results["runs"] = [one for one in results["runs"] if one not in stale]
    results["bytes"] = [one for one in results["bytes"] if (one["row"], one["seed"]) not in packs]


def note_bytes(results: Results, rows: Iterable[Row], cache: Path) -> None:
    """Weigh the packs whose tasks are all there; runs whose pack is gone before that are to be done again."""
    weighed = {(one["row"], one["seed"]) for one in results["bytes"]}
    for row in rows:
        for seed in range(row.seeds):
            runs = [one for one in results["runs"] if (one["row"], one["seed"]) == (row.id, seed)]
            if (row.id, seed) in weighed or len(runs) < (1 if row.multi else len(TASKS)):
                continue
            pack = pack_of(cache, row.id, seed)
            names = {f"all.{task}" if row.multi else task for task in TASKS}
            if pack.is_dir() and names <= set(petlpack.open(pack)):
                results["bytes"].append({"row": row.id, "seed": seed, **weigh(pack)})
            else:
                results["runs"] = [one for one in results["runs"] if one not in runs]


def weigh(pack: Path) -> dict[str, Any]:
    """Return the bytes of a pack: each task's own and its share of what tasks share; they add up to the disk's.

    What a run at another rate left behind is deleted first.
    """
    petlpack.open(pack).gc()
    stats = petlpack.stats(pack)
    tasks = {
        row.name.removeprefix("all."): {
            "method": row.bytes.payload,
            "head": row.bytes.head,
            "rest": row.bytes.files + row.bytes.header,
            "share": row.bytes.share,
        }
        for row in stats.tasks
    }
    shared = sum(row.bytes for row in stats.shared)
    return {
        "disk": stats.disk_bytes,
        "other": stats.other_bytes,
        "shared": shared,
        "dense": stats.dense_bytes,
        "tasks": tasks,
    }

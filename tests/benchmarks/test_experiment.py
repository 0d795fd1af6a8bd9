"""The experiment of docs/experiment.md: what it does next, and that the page says what results.json does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "benchmarks" / "methods"
pytestmark = pytest.mark.skipif(not EXPERIMENT.is_dir(), reason="the benchmarks are not there")
if EXPERIMENT.is_dir():
    sys.path.append(str(EXPERIMENT))
    import plan
    import report
    import rows
    from data import TASKS

ROW = "propetl-lora"


def _row() -> Any:
    return next(row for row in rows.all_rows() if row.id == ROW)


@pytest.mark.parametrize(
    ("tried", "next_rates", "best"),
    [
        ({}, [0.00095, 0.003, 0.0095], None),
        ({0.003: 0.5}, [0.00095, 0.0095], None),
        ({0.00095: 0.4, 0.003: 0.6, 0.0095: 0.5}, [], 0.003),
        ({0.00095: 0.4, 0.003: 0.6, 0.0095: 0.7}, [0.03], None),
        ({0.00095: 0.4, 0.003: 0.6, 0.0095: 0.7, 0.03: 0.2}, [], 0.003),  # beyond 0.0095 it collapses
        ({0.00095: 0.7, 0.003: 0.6, 0.0095: 0.5}, [0.0003], None),
        ({0.0003: 0.6, 0.00095: 0.7, 0.003: 0.6, 0.0095: 0.5}, [], 0.00095),
        ({0.0003: 0.2, 0.00095: 0.2, 0.003: 0.6, 0.0095: 0.2}, [], 0.003),  # good nowhere but here
        ({0.00095: 0.4, 0.003: 0.5, 0.0095: 0.6, 0.03: 0.7, 0.095: 0.8}, [], 0.03),  # five at most
    ],
)
def test_a_rate_is_chosen_whose_neighbours_are_good_too(
    tried: dict[float, float], next_rates: list[float], best: float | None
) -> None:
    assert plan.rates(_row(), tried) == (next_rates, best)


def test_a_check_takes_the_rate_of_the_row_it_looks_into() -> None:
    found = {row.id: row for row in rows.all_rows()}
    results: dict[str, Any] = {"searches": [], "runs": [], "bytes": []}
    checks = [found["adamix-adapter"], found["adamix-adapter-updates"]]
    assert {job.row for job in plan.next_jobs(results, checks, ())} == {"adamix-adapter"}
    for rate, dev in ((0.00032, 0.4), (0.001, 0.6), (0.0032, 0.5)):
        results["searches"].append({"row": "adamix-adapter", "rate": rate, "dev": dev})
    jobs = plan.next_jobs(results, checks, ())
    seeds = {("adamix-adapter", 0), ("adamix-adapter", 1), ("adamix-adapter", 2)}
    assert {(job.row, job.seed) for job in jobs} == seeds | {(checks[1].id, 0)}
    assert {job.rate for job in jobs} == {0.001}


def test_what_is_done_is_not_done_again() -> None:
    row = _row()
    results: dict[str, Any] = {"searches": [], "runs": [], "bytes": []}
    jobs = plan.next_jobs(results, [row], ())
    assert [(job.task, job.rate) for job in jobs] == [("search", 0.00095), ("search", 0.003), ("search", 0.0095)]
    assert plan.next_jobs(results, [row], set(jobs)) == []
    for rate, dev in ((0.00095, 0.4), (0.003, 0.6), (0.0095, 0.5)):
        results["searches"].append({"row": ROW, "rate": rate, "dev": dev})
    jobs = plan.next_jobs(results, [row], ())
    assert [(job.seed, job.task) for job in jobs] == [(seed, task) for seed in (0, 1, 2) for task in TASKS]
    assert {job.rate for job in jobs} == {0.003}
    results["runs"].append({"row": ROW, "seed": 0, "task": TASKS[0]})
    assert plan.next_jobs(results, [row], ()) == jobs[1:]


def test_runs_whose_pack_is_gone_before_it_was_weighed_are_done_again(tmp_path: Path) -> None:
    done = [{"row": ROW, "seed": 0, "task": task} for task in TASKS]
    other = {"row": "full", "seed": 0, "task": TASKS[0]}
    results: dict[str, Any] = {"searches": [], "runs": [other, *done], "bytes": []}
    plan.note_bytes(results, [_row()], tmp_path)
    assert results == {"searches": [], "runs": [other], "bytes": []}


def test_the_pages_say_what_was_measured() -> None:
    results = json.loads((EXPERIMENT / "results.json").read_text(encoding="utf-8"))
    lines = report.lines(results)
    headline = {"experiment": report.headline(lines)}
    for page, contents in ((report.PAGE, report.sections(results, lines)), (report.README, headline)):
        text = page.read_text(encoding="utf-8")
        for name, content in contents.items():
            begin = report.BEGIN.format(name)
            assert f"{begin}\n\n{content}\n{report.END}" in text, f"run {results['command']} --report"


def test_the_rates_are_those_that_a_search_from_nothing_takes() -> None:
    results = json.loads((EXPERIMENT / "results.json").read_text(encoding="utf-8"))
    for row in rows.all_rows():
        recorded, dev = plan.tried(results, row), dict[float, float]()
        while (found := plan.rates(row, dev))[1] is None:
            dev |= {rate: recorded[rate] for rate in found[0]}
        assert dev == recorded, row.id
        used = {run["rate"] for run in results["runs"] if run["row"] == row.id}
        assert used == {found[1]} or (row.check and not used), row.id  # a check may be still to be trained


def test_every_score_and_every_byte_was_measured() -> None:
    results = json.loads((EXPERIMENT / "results.json").read_text(encoding="utf-8"))
    for run in results["runs"]:
        for record in run["scores"]:
            assert record["exact"]
            assert record["decoded"] == record["accuracy"], record
            assert record["same_logits"], record
    for pack in results["bytes"]:
        parts = sum(sum(task.values()) for task in pack["tasks"].values())
        assert parts + pack["other"] == pack["disk"]

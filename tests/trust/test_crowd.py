"""Many at one pack at once: no task is lost, no reader is told anything wrong, and nobody has to be waited for."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import petlpack
from petlpack import Base
from tests.support.crowd import (
    Crowd,
    Report,
    collect,
    digest_of,
    make_crowd,
    one_holder,
    read,
    seal,
    start,
    write,
    wrong,
)
from tests.support.sampling import Sample
from tests.support.tally import Tally

FIRST = "stay-first"
"""The task that is in the pack before all others, so that there is a pack."""


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    crowd = make_crowd(tmp_path)
    crowd.encode(crowd.runs_of(FIRST)[0], FIRST)
    return crowd


@pytest.mark.trust(20)
def test_threads_of_one_process_lose_nothing(crowd: Crowd, sample: Sample, tally: Tally) -> None:
    seconds, writers, readers = (60.0, 40, 8) if sample.step == 1 else (2.0, 6, 2)
    end = time.monotonic() + seconds
    roles = [write] * writers + [read] * readers + [collect, seal]
    with one_holder(crowd), ThreadPoolExecutor(len(roles)) as pool:
        reports = [one.result() for one in [pool.submit(role, crowd, i, end) for i, role in enumerate(roles)]]
    counts = check_all(crowd, reports)
    tally("tasks of 40 threads", counts["encoded"])
    tally("reads beside writers", counts["reads"])


@pytest.mark.trust(20)
def test_processes_lose_nothing(crowd: Crowd, sample: Sample, tally: Tally) -> None:
    seconds, writers, readers = (60.0, 16, 6) if sample.step == 1 else (2.0, 2, 1)
    roles = ["write"] * writers + ["read"] * readers + ["command", "command", "collect", "seal"]
    roles = roles if sample.step == 1 else [*roles[:-3], "collect", "seal"]
    crowd.save()
    processes = [start(crowd, role, number) for number, role in enumerate(roles)]
    try:
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * len(roles)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        reports = [Report.of(process.communicate(timeout=seconds + 240)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    counts = check_all(crowd, reports)
    tally("tasks of 16 processes", counts["encoded"])
    tally("reads beside writers", counts["reads"])


def check_all(crowd: Crowd, reports: list[Report]) -> Counter[str]:
    """Check that nobody met what must not be, that every task is there, whole, and that nothing is left."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    print(dict(counts))
    problems = [problem for report in reports for problem in report.problems]
    assert not problems, f"{len(problems)}, first {problems[:5]}"
    owned = [(FIRST, crowd.runs_of(FIRST)[0]), *(own for report in reports for own in report.own.items())]
    assert len(dict(owned)) == len(owned)  # of those who want one name one has it
    pack, base = petlpack.open(crowd.pack), Base(crowd.base)
    found = {name: digest_of(task, base) for name, task in pack.items()}
    assert found == {task: crowd.states[run] for task, run in owned}
    assert wrong(crowd, base) == []
    assert pack.store.read_seal() is not None
    petlpack.gc(crowd.pack)
    assert wrong(crowd, base) == []
    assert (pack.unexplained(), pack.foreign()) == ([], [])
    assert [path.name for path in crowd.pack.rglob(".tmp-*")] == []
    assert min(counts["encoded"], counts["reads"], counts["seals"]) > 0
    return counts

"""Kills: whatever writes is killed at every system call and at random moments, and nothing is lost or in the way."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.support.sampling import Sample
from tests.support.strace import UNSEEN, Runner, lending_runner, need_strace, options
from tests.support.tally import Tally
from tests.support.works import ALL, Work, Workshop

WRITERS = {name: work for name, work in ALL.items() if work.writes}
TRIES = 5
"""Runs in which a call has to come: at times a system closes or reads once less, where a thread was late."""
KILLS = 1000
"""Kills at random moments; when all is done before, it is none."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    need_strace()
    return Workshop(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def runner(shop: Workshop) -> Iterator[Runner]:
    with lending_runner(shop.root / "tmp") as runner:
        for work in WRITERS.values():
            assert runner.run(shop.begin(work), here=True)["exit"] == 0
        yield runner


class Aftermath:
    """What is looked at after a kill: every state that was not seen before."""

    def __init__(self, shop: Workshop, work: Work) -> None:
        self._shop, self._work = shop, work
        self.seen: set[str] = set()

    def check(self, where: object) -> None:
        """Check that tasks are as before or as behind the work, and that nothing is in the next writer's way."""
        state = str(self._shop.snapshot())
        if state in self.seen:
            return
        self.seen.add(state)
        shop, work = self._shop, self._work
        if work.makes is not None:
            shop.check_out(work)
        tasks = shop.tasks()
        before, behind = (shop.wanted(work, done=done) for done in (False, True))
        assert tasks.items() >= (before.items() & behind.items()), where
        assert all(item in before.items() | behind.items() for item in tasks.items()), where
        assert all(task in tasks for task in before.keys() & behind.keys()), where
        shop.check_next()


@pytest.mark.trust(131)
def test_a_kill_at_any_system_call_loses_nothing(shop: Workshop, runner: Runner, sample: Sample, tally: Tally) -> None:
    cases = [(name, call) for name, work in WRITERS.items() for call in runner.record(shop.begin(work), shop.root)]
    aftermaths = {name: Aftermath(shop, work) for name, work in WRITERS.items()}
    kills = 0
    for name, call in sample(case for case in cases if case[1].name not in UNSEEN):
        found = {"code": None}
        for _ in range(TRIES):
            if found["code"] != "killed":
                found = runner.run(shop.begin(WRITERS[name]), strace=options(call, "signal=KILL"))
        assert found["code"] == "killed", (name, call, found)
        aftermaths[name].check((name, call))
        kills += 1
    tally("kills at system calls", kills)


@pytest.mark.trust(97)
def test_a_kill_at_a_random_moment_loses_nothing(shop: Workshop, runner: Runner, sample: Sample, tally: Tally) -> None:
    rng = random.Random(0)
    aftermaths = {name: Aftermath(shop, work) for name, work in WRITERS.items()}
    takes: dict[str, float] = {}
    kills = 0
    while kills < KILLS / sample.step:
        name = rng.choice([*WRITERS])
        if name not in takes:
            words = shop.begin(WRITERS[name])
            start = time.monotonic()
            runner.run(words)
            takes[name] = time.monotonic() - start
        moment = takes[name] * rng.random()
        found = runner.run(shop.begin(WRITERS[name]), kill=moment)
        aftermaths[name].check((name, moment))
        kills += found["code"] == "killed"
        takes[name] *= 1.05 if found["code"] == "killed" else 0.8  # some moments of a machine are busier than others
    tally("kills at random", kills)

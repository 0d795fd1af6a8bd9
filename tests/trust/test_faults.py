"""Faults of the system: each command meets one at every call on its files, and tells truly what became of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import pytest

from petlpack_cli.app import cli
from tests.support.sampling import Sample
from tests.support.strace import Call, Runner, lending_runner, need_strace, options
from tests.support.tally import Tally
from tests.support.works import ALL, JOB, WORKS, Work, Workshop

ONCE, LASTING = False, True
READ = ("error=EIO", "error=EINTR", "retval=0")
WRITE = ("error=ENOSPC", "error=EIO", "error=EINTR")
PLACE = ("error=EACCES", "error=EIO")
FAULTS: dict[str, tuple[str, ...]] = {
    "openat": (*PLACE, "error=EMFILE", "error=ENOSPC", "error=EINTR"),
    "read": READ,
    "pread64": READ,
    "getdents64": ("error=EIO",),
    "newfstatat": PLACE,
    "readlink": PLACE,
    "write": WRITE,
    "sendfile": WRITE,
    "fsync": WRITE,
    "ftruncate": ("error=EIO",),
    "lseek": ("error=EIO",),
    "close": ("error=EIO",),
    "fcntl": ("error=EMFILE",),
    "rename": (*PLACE, "error=ENOSPC"),
    "mkdir": (*PLACE, "error=ENOSPC"),
    "unlink": PLACE,
    "unlinkat": PLACE,
    "rmdir": PLACE,
    "flock": ("error=EIO", "error=ENOLCK", "error=EINTR"),
}
"""What may go wrong at each call. No file system makes a call fail with EINTR, or read nothing, for ever."""
NO_FAULT = {"ioctl"}
"""Calls that only ask whether a file is a terminal."""
CHANGES = {"write", "sendfile", "fsync", "ftruncate", "rename", "mkdir", "unlink", "unlinkat", "rmdir", "flock"}
ROW = "faults at system calls and in memory"
LARGE = {
    "encode": Work(
        f"encode {{root}}/large --codec plain --pack {{case}}/pack {JOB}", None, {"large": (None, "large")}, writes=True
    ),
    "decode": Work(f"decode {{case}}/pack large {{case}}/out {JOB}", "large pack", writes=True, makes="large"),
    "verify": Work(f"verify {{case}}/pack {JOB}", "large pack"),
}
"""Works with tensors of a megabyte each."""
DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 7}
MOST = 8
"""Of more calls of one name that change nothing, so many of a work's are taken, evenly; of the others all."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    need_strace()
    return Workshop(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def runner(shop: Workshop) -> Iterator[Runner]:
    with lending_runner(shop.root / "tmp") as runner:
        for work in ALL.values():
            assert runner.run(shop.begin(work), here=True)["exit"] == 0
            for word in ("--no-such-option", "no/such/place"):
                assert runner.run([*shop.begin(work), word], here=True)["exit"] in DOCUMENTED
        yield runner


class Truth:
    """What a work does when nothing goes wrong, and whether it says truly what it did when something does."""

    def __init__(self, shop: Workshop, runner: Runner, work: Work) -> None:
        self._shop, self._work = shop, work
        words = shop.begin(work)
        self._before = shop.snapshot()
        self._said = _answer(runner.run(words))
        self._behind = shop.snapshot()
        self._seen: set[str] = set()

    def check(self, found: dict[str, Any], where: object) -> None:
        """Check what became of a work at which something went wrong."""
        where = (where, found)
        assert found["exit"] in DOCUMENTED, where
        assert not {"internal", "killed"} & {found["code"], *found["codes"]}, where
        assert "Traceback" not in found["said"] + found["out"], where
        done, now = found["exit"] == 0, self._shop.snapshot()
        if not self._work.writes:
            assert now == self._before, where
            told = "os" in found["codes"] or (done and _answer(found).get("warnings"))
            assert not done or told or _answer(found) == self._said, where
        elif str((done, now)) not in self._seen:
            self._seen.add(str((done, now)))
            self._check_written(done, bool(done and json.loads(found["out"]).get("warnings")), where)

    def _check_written(self, done: bool, warned: bool, where: object) -> None:
        shop, work = self._shop, self._work
        assert shop.tasks() == shop.wanted(work, done=done), where
        if work.makes is not None:
            assert shop.check_out(work) == done, where
        shop.check_next(everything=warned)


def _answer(found: dict[str, Any]) -> Any:
    """Return what a command said, but for the time that it took."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(item) for name, item in value.items() if name != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    return timeless(json.loads(found["out"]))


def points(runner: Runner, shop: Workshop, work: Work) -> Iterator[tuple[Call, str, bool]]:
    """Yield every fault at every call of a work, once and lasting."""
    calls = runner.record(shop.begin(work), shop.root)
    unknown = {call.name for call in calls} - FAULTS.keys() - NO_FAULT
    assert not unknown, f"say in FAULTS what may go wrong at {unknown}"
    for name, faults in FAULTS.items():
        own = [call for call in calls if call.name == name]
        step = 1 if name in CHANGES else -(-len(own) // MOST) or 1
        for call in own[::step]:
            for fault in faults:
                yield call, fault, ONCE
                if fault not in ("error=EINTR", "retval=0"):
                    yield call, fault, LASTING


def test_every_command_is_told_something() -> None:
    assert set(cli.list_commands(click.Context(cli))) == set(WORKS), "say in tests/support/works.py what it is told"


class Attack:
    """Works at which something goes wrong, and how often it did."""

    def __init__(self, shop: Workshop, runner: Runner) -> None:
        self._shop, self._runner = shop, runner
        self._truths: dict[Work, Truth] = {}
        self.count = 0

    def run(self, work: Work, where: object, **how: Any) -> int:
        """Let a work meet what is said, check what it says, and return its exit code."""
        if work not in self._truths:
            self._truths[work] = Truth(self._shop, self._runner, work)
        found = self._runner.run(self._shop.begin(work), **how)
        self._truths[work].check(found, (where, how))
        self.count += 1
        return int(found["exit"])


@pytest.mark.trust(199)
def test_a_fault_at_any_call_is_told_truly(shop: Workshop, runner: Runner, sample: Sample, tally: Tally) -> None:
    attack = Attack(shop, runner)
    cases = [(work, *point) for work in ALL.values() for point in points(runner, shop, work)]
    for work, call, fault, lasting in sample(cases):
        attack.run(work, call, strace=options(call, fault, lasting=lasting))
    tally(ROW, attack.count)


@pytest.mark.trust(199)
def test_a_fault_of_the_writer_after_a_kill_is_told_truly(
    shop: Workshop, runner: Runner, sample: Sample, tally: Tally
) -> None:
    attack = Attack(shop, runner)
    killed = [ALL["encode into a sealed pack"], ALL["encode over a task"]]
    cases = [case for number, work in enumerate(killed) for case in recoveries(runner, shop, work, str(number))]
    for work, call, fault, lasting in sample(cases):
        attack.run(work, call, strace=options(call, fault, lasting=lasting))
    tally(ROW, attack.count)


def recoveries(runner: Runner, shop: Workshop, killed: Work, name: str) -> Iterator[tuple[Work, Call, str, bool]]:
    """Yield every fault of a writer that comes when another one was killed as it renamed something."""
    calls = [call for call in runner.record(shop.begin(killed), shop.root) if call.name == "rename"]
    for call in (calls[1], calls[-1]):
        start = f"killed {name} at {call.number}"
        runner.run(shop.begin(killed), strace=options(call, "signal=KILL"))
        shop.keep(start)
        for work in (replace(ALL["encode"], changes={"four": (None, "third")}), ALL["gc"]):
            after = replace(work, words=work.words.replace("three", "four"), start=start)
            for point in points(runner, shop, after):
                yield (after, *point)


@pytest.mark.trust(67)
def test_a_write_that_comes_short_is_told_truly(shop: Workshop, runner: Runner, sample: Sample, tally: Tally) -> None:
    """The file may not grow beyond some byte: the kernel writes what fits, and refuses the rest."""
    attack = Attack(shop, runner)
    writers = [work for work in ALL.values() if work.writes]
    for work, room in sample(itertools.product(writers, range(0, 1600, 40))):
        attack.run(work, room, file=room)
    tally(ROW, attack.count)


@pytest.mark.trust(29)
@pytest.mark.parametrize("command", ["encode", "decode", "verify"])
def test_too_little_memory_is_told_truly(
    command: str, shop: Workshop, runner: Runner, sample: Sample, tally: Tally
) -> None:
    attack = Attack(shop, runner)
    codes = [attack.run(LARGE[command], room, memory=room << 18) for room in sample(range(100))]
    tally(ROW, attack.count)
    assert codes[0] == 1

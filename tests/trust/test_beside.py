"""A task is replaced or removed, and its parts go, at every moment of every read: nobody is told of damage."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import TaskError
from petlpack.store import SUFFIX, Store
from tests.support.places import SMALL, Place
from tests.support.sampling import Sample
from tests.support.small_runs import make_pair, patch_system, write_run
from tests.support.tally import Tally

TASK = "two"


@dataclass
class Beside:
    """A pack whose task `two` is now one run, now another, with nothing of the other left."""

    place: Place
    others: dict[str, Path]
    """Packs in which the task is of one of the runs."""
    states: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def become(self, which: str | None) -> None:
        """Put the task of another run in its place, or none, and delete the parts that nobody needs then."""
        pack, other = self.place.pack, self.others[which or "gone"]
        for file in (other / "shared").iterdir():
            shutil.copyfile(file, pack / "shared" / f".tmp-{file.name}")
            (pack / "shared" / f".tmp-{file.name}").replace(pack / "shared" / file.name)
        task = Store(pack).task_path(TASK)
        if which is None:
            task.unlink()
        else:
            shutil.copyfile(Store(other).task_path(TASK), pack / ".tmp-task")
            (pack / ".tmp-task").replace(task)
        for sha256 in {*Store(pack).shared_names()} - {*Store(other).shared_names()}:
            Store(pack).shared_path(sha256).unlink()


@pytest.fixture
def beside(place: Place) -> Beside:
    others = {"first": Path(shutil.copytree(place.pack, place.root / "first"))}
    run = write_run(place.root / "other", make_pair(9, labels=6, share=0.1, **SMALL)[0])
    others["second"] = Path(shutil.copytree(place.pack, place.root / "second-pack"))
    petlpack.encode(run, others["second"], place.base, task=TASK, replace=True)
    others["gone"] = Path(shutil.copytree(place.pack, place.root / "gone"))
    petlpack.remove(others["gone"], TASK)
    for other in others.values():
        petlpack.gc(other)
    beside = Beside(place, others)
    beside.states = {name: decoded(petlpack.open(others[name])[TASK], place) for name in ("first", "second")}
    return beside


def decoded(task: petlpack.Task, place: Place) -> dict[str, bytes]:
    """Decode a task."""
    return {name: bits.tobytes() for name, _, bits in task.load(place.base).read_all(jobs=1)}


@contextlib.contextmanager
def at_calls(beside: Beside, steps: Mapping[int, str | None]) -> Iterator[list[int]]:
    """Let the task become another before the n-th time that a file of the pack is looked at or opened."""
    pack, seen = str(beside.place.pack), [0]
    busy: list[bool] = []

    def noting(call: Any) -> Any:
        def noted(path: Any, *args: Any, **more: Any) -> Any:
            if not busy and isinstance(path, (str, os.PathLike)) and str(path).startswith(pack) and SUFFIX in str(path):
                seen[0] += 1
                if seen[0] in steps:
                    busy.append(True)
                    beside.become(steps[seen[0]])
                    busy.clear()
            return call(path, *args, **more)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "stat"):
            patch_system(patch, os, name, noting(getattr(os, name)))
        yield seen


def _decode(beside: Beside, task: petlpack.Task) -> None:
    out = beside.place.root / "out"
    shutil.rmtree(out, ignore_errors=True)
    task.decode(out, beside.place.base, jobs=1)


def _verified(beside: Beside, _: petlpack.Task) -> None:
    pack = petlpack.open(beside.place.pack)
    assert [one for one in petlpack.verify(pack, beside.place.base, jobs=1) if one.error is not None] == []
    assert pack.unexplained() == []


def _stats(beside: Beside, _: petlpack.Task) -> None:
    assert petlpack.stats(beside.place.pack).damaged == {}


def _listed(beside: Beside, _: petlpack.Task) -> None:
    assert [row for row in petlpack.listing(beside.place.pack, long=True).tasks if row.error is not None] == []


def _loaded(beside: Beside, task: petlpack.Task) -> None:
    assert decoded(task, beside.place) in beside.states.values()


READS: dict[str, Callable[[Beside, petlpack.Task], object]] = {
    "open": lambda beside, task: petlpack.open(beside.place.pack)[TASK],
    "load": _loaded,
    "decode": _decode,
    "rebuild": lambda beside, task: task.rebuild(beside.place.base),
    "kept file": lambda beside, task: task.read_file("config.json"),
    "details": lambda beside, task: petlpack.details(task),
    "bytes": lambda beside, task: task.check_bytes(),
    "audit": lambda beside, task: petlpack.audit(beside.place.pack, TASK),
    "stats": _stats,
    "list": _listed,
    "verify": _verified,
}
CHANGES: dict[str, dict[int, str | None]] = {
    "replaced": {0: "second"},
    "removed": {0: None},
    "there and back": {0: "second", 2: "first"},
}
"""What becomes of the task, and how many looks later."""


@pytest.mark.trust(9)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read", READS)
def test_a_task_that_changes_at_any_moment_of_a_read_is_not_damaged(
    beside: Beside, read: str, change: str, sample: Sample, tally: Tally
) -> None:
    done = 0
    for number in sample(range(1, 1000)):
        beside.become("first")
        task = petlpack.open(beside.place.pack)[TASK]
        steps = {number + later: which for later, which in CHANGES[change].items()}
        with at_calls(beside, steps) as seen:
            try:
                READS[read](beside, task)
            except TaskError:
                assert change == "removed"
        if seen[0] < number:
            break
        done += 1
    tally("reads beside writers", done)
    assert done

"""Encoding that is interrupted, at any call or any line, leaves every task whole or out, and nothing in the way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import petlpack
from petlpack import Base
from tests.support.places import SMALL, Methods, Place, same
from tests.support.sampling import Sample
from tests.support.small_runs import make_pair, patch_system, write_run


class Interrupts:
    """Raises KeyboardInterrupt at the n-th call of any hook."""

    def __init__(self, nth: int) -> None:
        self.nth, self.calls = nth, 0

    def tick(self) -> None:
        """Count a call."""
        self.calls += 1
        if self.calls == self.nth:
            raise KeyboardInterrupt

    def progress(self, done: int, total: int) -> None:
        """Count a step of the progress."""
        self.tick()

    def hook(self, real: Any) -> Any:
        """Count the calls of a function, interrupted before it does anything."""

        def call(*args: Any, **more: Any) -> Any:
            self.tick()
            return real(*args, **more)

        return call


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("replace", [False, True])
def test_an_interruption_at_any_call_leaves_all_or_nothing(place: Place, replace: bool, sample: Sample) -> None:
    third = write_run(place.bad(), make_pair(5, labels=5, **SMALL)[0])
    task = "two" if replace else "three"
    states: list[Any] = [petlpack.open(place.pack)["two"].state_dict(place.base) if replace else None]
    petlpack.encode(third, place.root / "whole", place.base, task=task)
    states.append(petlpack.open(place.root / "whole")[task].state_dict(place.base))
    outcomes = {"nothing": 0, "all": 0}
    for nth in sample(itertools.count(1)):
        pack = Path(shutil.copytree(place.pack, place.root / "copy"))
        interrupts = Interrupts(nth)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (io, "open"), (hashlib, "sha256")):
                patch_system(patch, module, name, interrupts.hook(getattr(module, name)))
            with contextlib.suppress(KeyboardInterrupt):
                petlpack.encode(
                    third, pack, place.base, task=task, replace=replace, jobs=1, progress=interrupts.progress
                )
        _check_whole(place, pack, task, states, outcomes)
        assert not list(pack.rglob(".tmp-*"))
        shutil.rmtree(pack)
        if interrupts.calls < nth:
            break
    print(f"{sum(outcomes.values())} interruptions: {outcomes}")
    assert nth > 40
    assert min(outcomes.values()) > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupted between open and with
@pytest.mark.exhaustive(17)
def test_an_interruption_at_any_line_leaves_all_or_nothing(place: Place, sample: Sample) -> None:
    third = write_run(place.bad(), make_pair(5, labels=5, **SMALL)[0])
    petlpack.encode(third, place.root / "whole", place.base, task="three")
    states = [None, petlpack.open(place.root / "whole")["three"].state_dict(place.base)]
    outcomes = {"nothing": 0, "all": 0}
    base = Base(place.base)
    traced = ("petlpack/store/", "petlpack/encoding/encode.py", "petlpack/encoding/write.py")
    for nth in sample(itertools.count(1, 2)):
        pack = Path(shutil.copytree(place.pack, place.root / "copy"))
        lines = Interrupts(nth)

        def trace(frame: FrameType, event: str, arg: Any, lines: Interrupts = lines) -> Any:
            if not any(place in frame.f_code.co_filename.replace("\\", "/") for place in traced):
                return None
            if event == "line":
                lines.tick()
            return trace

        before = sys.gettrace()
        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(trace)
            try:
                petlpack.encode(third, pack, base, task="three", codec="ulp", jobs=1)
            finally:
                sys.settrace(before)
        _check_whole(place, pack, "three", states, outcomes)
        shutil.rmtree(pack)
        if lines.calls < nth:
            break
    print(f"{sum(outcomes.values())} interruptions: {outcomes}")
    assert min(outcomes.values()) > 0


def _check_whole(place: Place, pack: Path, task: str, states: list[Any], outcomes: dict[str, int]) -> None:
    """Check that the pack is clean, and the task is one of two: as before, or as it should become."""
    for checked in petlpack.verify(pack, place.base, jobs=1):
        assert checked.error is None
    opened = petlpack.open(pack)
    state = opened[task].state_dict(place.base) if task in opened else None
    became = same(state, states[1])
    assert became or same(state, states[0])
    outcomes["all" if became else "nothing"] += 1
    petlpack.encode(place.run, pack, place.base, task="next", codec="ulp", jobs=1)  # nothing is in its way


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("run", ["mask", "hyper"])
def test_an_interruption_among_several_tasks_leaves_each_whole_or_out(
    methods: Methods, run: str, sample: Sample
) -> None:
    whole = methods.state(methods.pack("whole"))
    first = methods.root / "first"
    methods.encode("merge", first)
    seen: set[tuple[str, ...]] = set()
    for nth in sample(itertools.count(1)):
        pack = Path(shutil.copytree(first, methods.root / "copy"))
        interrupts = Interrupts(nth)
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (io, "open")):
                patch_system(patch, module, name, interrupts.hook(getattr(module, name)))
            with contextlib.suppress(KeyboardInterrupt):
                methods.encode(run, pack, progress=interrupts.progress)
        assert not list(pack.rglob(".tmp-*"))
        assert methods.wrong(pack) == set()
        found = methods.state(pack)
        seen.add(tuple(found))
        assert "merge" in found
        assert all(same(state, whole[name]) for name, state in found.items())
        methods.encode(run, pack, replace=True)  # nothing is in its way
        assert methods.state(pack).keys() == {"merge", f"{run}.a", f"{run}.b"}
        shutil.rmtree(pack)
        if interrupts.calls < nth:
            break
    print(f"{nth - 1} interruptions leave {sorted(seen)}")
    assert nth > 30
    assert {("merge",), tuple(sorted(["merge", f"{run}.a", f"{run}.b"]))} <= seen

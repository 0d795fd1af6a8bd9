"""Power cuts: whatever the disk has of what was not synced, a task that was reported is there, and nothing is half."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import petlpack
from petlpack.store import SUFFIX, Store
from tests.support.places import SMALL, Place
from tests.support.power import Node, PowerLog, cut, freeze
from tests.support.sampling import Sample
from tests.support.small_runs import make_pair, write_run
from tests.support.tally import Tally

MOODS = ("least", "any", "any", "most")


@dataclass
class Script:
    """What is done to a pack, one step after another, and what the disk may hold at every moment of it."""

    place: Place
    root: Path
    moments: list[tuple[Node, dict[str, str | None], dict[str, set[str | None]]]] = field(default_factory=list)
    """A tree; the runs of the tasks that were reported; and what a step under way may make of a task."""
    reported: dict[str, str | None] = field(default_factory=dict)
    settled: list[int] = field(default_factory=list)
    """The moments at which a step had just ended."""

    @property
    def pack(self) -> Path:
        """The pack, in a directory that is not there yet, either."""
        return self.root / "new" / "pack"

    def steps(self) -> list[tuple[str, str | None, Callable[[], object]]]:
        """The steps: a task, the run that it becomes (None: it goes; the task "": no task changes), and the call."""
        base, runs = self.place.base, {name: self.place.root / name for name in ("run", "second", "third")}

        def encode(run: str, task: str, replace: bool = False) -> Callable[[], object]:
            return lambda: petlpack.encode(runs[run], self.pack, base, task=task, codec="ulp", replace=replace, jobs=1)

        return [
            ("a", "run", encode("run", "a")),
            ("b", "second", encode("second", "b")),
            ("a", "third", encode("third", "a", replace=True)),
            ("", None, lambda: petlpack.gc(self.pack)),
            ("", None, lambda: petlpack.seal(self.pack)),
            ("c", "run", encode("run", "c")),
            ("b", None, lambda: petlpack.remove(self.pack, "b")),
            ("", None, lambda: petlpack.gc(self.pack)),
            ("b", "run", encode("run", "b")),
        ]

    def run(self, log: PowerLog) -> None:
        """Do every step, and note the tree at every look."""
        for task, becomes, call in self.steps():
            under_way = {task: {self.reported.get(task), becomes}} if task else {}
            self.note(log, under_way)
            call()
            if task:
                self.reported[task] = becomes
            self.settled.append(len(self.moments))
            self.note(log, {})

    def note(self, log: PowerLog, under_way: dict[str, set[str | None]]) -> None:
        """Note a tree, and from then on one at every change that is seen."""
        real = PowerLog.look.__get__(log)

        def look() -> None:
            real()
            self.moments.append((freeze(log.top), dict(self.reported), under_way))

        log.look = look  # type: ignore[method-assign]
        look()


@pytest.fixture
def script(place: Place, tmp_path: Path) -> Script:
    write_run(place.root / "third", make_pair(5, labels=5, **SMALL)[0])
    root = tmp_path / "disk"
    root.mkdir()
    log = PowerLog(root)
    script = Script(place, root)
    with log.watching():
        script.run(log)
    log.close()
    return script


@pytest.mark.trust(31)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_reported(
    script: Script, tmp_path: Path, sample: Sample, tally: Tally
) -> None:
    states = _states(script.place)
    counts: Counter[str] = Counter()
    cases = [(number, mood) for number in range(len(script.moments)) for mood in enumerate(MOODS)]
    always = [(number, mood) for number in script.settled for mood in enumerate(MOODS[:2])]
    for number, (seed, mood) in dict.fromkeys([*always, *sample(cases)]):
        tree, reported, under_way = script.moments[number]
        after = tmp_path / "after"
        cut(tree, after, random.Random(1000 * number + seed), mood)
        pack = after / "new" / "pack"
        where = f"moment {number}, {mood} {seed}"
        assert _check(script.place, pack, reported, under_way, states, where)
        if seed == number % 4:
            _write_on(script.place, pack, where)
        counts[mood] += 1
        shutil.rmtree(after)
    _check_sealed(script, tmp_path)
    tally("states after power cuts", sum(counts.values()))
    assert sum(counts.values()) > 1000 / sample.step


def _states(place: Place) -> dict[str | None, dict[str, bytes]]:
    """Return what each run decodes to."""
    found: dict[str | None, dict[str, bytes]] = {}
    for run in ("run", "second", "third"):
        petlpack.encode(place.root / run, place.root / "whole", place.base, task=run, codec="ulp")
        found[run] = _read(place, place.root / "whole", run)
    return found


def _read(place: Place, pack: Path, task: str) -> dict[str, bytes]:
    return {name: bits.tobytes() for name, _, bits in petlpack.open(pack)[task].load(place.base).read_all(jobs=1)}


def _check(
    place: Place,
    pack: Path,
    reported: dict[str, str | None],
    under_way: dict[str, set[str | None]],
    states: dict[str | None, dict[str, bytes]],
    where: str,
) -> bool:
    """Check that the tasks are those that were reported, each whole."""
    wanted = {task for task, run in reported.items() if run is not None and task not in under_way}
    if not (pack / "pack.json").exists():
        assert not wanted, where
        return True
    opened = petlpack.open(pack)
    assert wanted <= {*opened}, where
    for task in opened:
        whole = under_way.get(task, {reported.get(task)})
        assert _read(place, pack, task) in [states[run] for run in whole if run is not None], where
    return True


def _write_on(place: Place, pack: Path, where: str) -> None:
    """Check that the next writer finds nothing in its way, and deletes nothing that is needed."""
    petlpack.encode(place.run, pack, place.base, task="next", codec="ulp", jobs=1)
    petlpack.gc(pack)
    wrong = [one for one in petlpack.verify(pack, place.base, jobs=1) if one.error is not None and one.kind == "task"]
    assert wrong == [], where
    assert "next" in petlpack.open(pack), where


def _check_sealed(script: Script, place: Path) -> None:
    """Check that behind the last step all is as sealed, whatever the disk has."""
    tree, *_ = script.moments[-1]
    for mood in ("least", "most"):
        cut(tree, place / mood, random.Random(0), mood)
        pack = place / mood / "new" / "pack"
        assert [one for one in petlpack.verify(pack, script.place.base) if one.error is not None] == []
        seal = Store(pack).read_seal()
        assert seal is not None
        assert not seal.stale


@pytest.mark.trust(7)
def test_a_decoded_run_is_whole_or_not_there(place: Place, tmp_path: Path, sample: Sample, tally: Tally) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    log, trees = _watched(root)
    with log.watching():
        petlpack.open(place.pack)["one"].decode(root / "some" / "where" / "out", place.base, jobs=1)
    done = freeze(log.top)
    log.close()
    whole = {p.name: p.read_bytes() for p in (root / "some/where/out").iterdir()}
    cases = [(tree, seed, mood) for tree in [*trees, done] for seed, mood in enumerate(MOODS)]
    for tree, seed, mood in sample(cases):
        cut(tree, tmp_path / "after", random.Random(seed), mood)
        out = tmp_path / "after" / "some" / "where" / "out"
        if tree is done or out.exists():
            assert {p.name: p.read_bytes() for p in out.iterdir()} == whole
        shutil.rmtree(tmp_path / "after")
    tally("states after power cuts", len([*sample(cases)]))


def _watched(root: Path) -> tuple[PowerLog, list[Node]]:
    """Return a log of a directory, and the list to which it adds a tree at every change."""
    log, trees = PowerLog(root), list[Node]()
    real = log.look

    def look() -> None:
        real()
        trees.append(freeze(log.top))

    log.look = look  # type: ignore[method-assign]
    return log, trees


def test_what_a_killed_writer_did_not_sync_the_next_one_does(place: Place, tmp_path: Path) -> None:
    """The killed one had renamed the shared parts of a task, and no more."""
    pack = place.root / "disk"
    petlpack.encode(place.run, pack, place.base, task="a")
    petlpack.encode(place.root / "second", place.root / "other", place.base, task="b")
    log, _ = _watched(pack)
    for part in {*Store(place.root / "other").shared_names()} - {*Store(pack).shared_names()}:
        shutil.copy(Store(place.root / "other").shared_path(part), pack / "draft")
        with log.watching():
            descriptor = os.open(pack / "draft", os.O_RDWR)
            os.fsync(descriptor)
            os.close(descriptor)
            os.replace(pack / "draft", Store(pack).shared_path(part))  # noqa: PTH105 - the call that is watched
    with log.watching():
        petlpack.encode(place.root / "second", pack, place.base, task="b")
    log.close()
    cut(log.top, tmp_path / "after", random.Random(0), "least")
    assert [one for one in petlpack.verify(tmp_path / "after", place.base) if one.error is not None] == []
    assert {*petlpack.open(tmp_path / "after")} == {"a", "b"}


def test_gc_brings_back_no_task_without_its_parts(place: Place, tmp_path: Path) -> None:
    """A writer was killed between the deletion of a task and the sync of that."""
    parts = {*petlpack.open(place.pack)["two"].parts} - {*petlpack.open(place.pack)["one"].parts}
    assert parts
    (place.pack / ".released").write_text("".join(f"{part}\n" for part in sorted(parts)))
    log, trees = _watched(place.pack)
    with log.watching():
        os.unlink(place.pack / "tasks" / f"two{SUFFIX}")  # noqa: PTH108 - the call that is watched
        petlpack.gc(place.pack)
    log.close()
    assert not any(Store(place.pack).shared_path(part).exists() for part in parts)
    for number, tree in enumerate(trees):
        for seed in range(8):
            after = tmp_path / f"{number}-{seed}"
            cut(tree, after, random.Random(seed), "any")
            for task in petlpack.open(after):
                _read(place, after, task)


def test_what_is_not_synced_may_be_lost(tmp_path: Path) -> None:
    """The disk that is put in the place of a real one forgets what it may forget."""
    root = tmp_path / "disk"
    root.mkdir()
    log = PowerLog(root)
    with log.watching():
        (root / "file").write_bytes(b"content")
    log.close()
    cut(log.top, tmp_path / "after", random.Random(0), "least")
    assert not (tmp_path / "after" / "file").exists()

"""What tasks need: read once of each file, as long as it is the same."""

from __future__ import annotations

import shutil

import pytest

import petlpack
from petlpack import container
from tests.support.places import Place


def test_who_removes_many_tasks_reads_each_of_the_others_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):  # each with a kept file of its own, which all others are asked about
        run = place.root / f"run-{number}"
        shutil.copytree(place.run, run)
        (run / "notes.txt").write_text(f"run {number}")
        petlpack.encode(run, place.pack, place.base, task=f"task-{number}")
    read: list[str] = []
    real = container.read
    monkeypatch.setattr(container, "read", lambda path: read.append(path.name) or real(path))  # type: ignore[func-returns-value]
    petlpack.remove(place.pack, [f"task-{number}" for number in range(4)])
    for name in {name for name in read if name.startswith(("one", "two", "task-5"))}:
        assert read.count(name) == 1
    assert len(petlpack.gc(place.pack).files) == 2 * 4  # the note, and a template that names it
    place.check_others()


def test_a_task_that_was_replaced_is_read_anew(place: Place) -> None:
    run = place.root / "run-a"
    shutil.copytree(place.run, run)
    (run / "notes.txt").write_text("what only this run has")
    petlpack.encode(run, place.pack, place.base, task="a")
    petlpack.encode(run, place.pack, place.base, task="b")
    petlpack.remove(place.pack, "a")
    assert petlpack.gc(place.pack).files == {}
    petlpack.encode(place.run, place.pack, place.base, task="b", replace=True)
    petlpack.encode(run, place.pack, place.base, task="a")
    petlpack.remove(place.pack, "a")
    assert len(petlpack.gc(place.pack).files) > 0
    place.check_others()

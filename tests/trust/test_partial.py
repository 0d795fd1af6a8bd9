"""A pack that was copied in part: what its missing tasks need is neither deleted nor passed over in silence."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

import petlpack
from petlpack.store import SUFFIX, Store
from tests.support.command_line import run, run_json
from tests.support.places import Methods, Place
from tests.support.small_runs import make_pair, write_run


def _part(place: Place, missing: str) -> Path:
    copy = Path(shutil.copytree(place.pack, place.root / "copy"))
    (copy / "tasks" / f"{missing}{SUFFIX}").unlink()
    return copy


@pytest.mark.parametrize("missing", ["one", "two"])
def test_gc_keeps_what_missing_tasks_need(place: Place, missing: str) -> None:
    copy = _part(place, missing)
    before = place.snapshot(copy / "shared")
    assert petlpack.gc(copy).files == {}
    assert place.snapshot(copy / "shared") == before
    (copy / "tasks" / f"{missing}{SUFFIX}").write_bytes((place.pack / "tasks" / f"{missing}{SUFFIX}").read_bytes())
    assert all(found.error is None for found in petlpack.verify(copy, place.base))


def test_verify_and_gc_tell_that_tasks_may_be_missing(place: Place) -> None:
    copy = _part(place, "two")
    result = run("verify", copy, "--base", place.base)
    assert "no task here needs" in result.stderr
    assert "is the pack complete?" in result.stderr
    assert len(run_json("verify", copy)[1]["unexplained"]) > 0
    assert "is the pack complete?" in run("gc", copy).stdout.replace("\n", " ")
    listed = run_json("gc", copy, "--all", "--dry-run")[1]["files"]
    assert [row["file"] for row in listed] == [row["file"] for row in run_json("gc", copy)[1]["unexplained"]]
    assert run_json("gc", copy, "--all")[1]["files"] == listed
    assert run("gc", copy).stdout == "Nothing to delete.\n"
    assert run("verify", copy, "--base", place.base).stderr == ""


def test_a_part_that_another_task_needs_is_not_given_up(place: Place) -> None:
    """Nor is it where that task is missing from a copy that is made afterwards."""
    for name in ("three", "four"):
        petlpack.encode(place.run, place.pack, place.base, task=name)
    petlpack.remove(place.pack, "three")  # whose parts `four` needs
    copy = _part(place, "four")
    assert petlpack.gc(copy).files == {}
    assert petlpack.gc(place.pack).files == {}
    place.check_others()


def test_what_a_replaced_task_needed_is_given_up(place: Place) -> None:
    other = write_run(place.bad(), make_pair(7, labels=5, share=0.1, layers=1, width=4, words=8)[0])
    petlpack.encode(other, place.pack, place.base, task="two", replace=True)
    assert len(petlpack.gc(place.pack, dry_run=True).files) == 1
    assert len(petlpack.gc(place.pack).files) == 1
    assert petlpack.gc(place.pack, everything=True).files == {}
    place.check_others()


def test_what_is_needed_again_is_no_longer_given_up(place: Place) -> None:
    other = write_run(place.bad(), make_pair(7, labels=5, share=0.1, layers=1, width=4, words=8)[0])
    petlpack.encode(other, place.pack, place.base, task="three")
    petlpack.remove(place.pack, "three")
    assert (place.pack / ".released").exists()
    petlpack.encode(other, place.pack, place.base, task="again")
    assert not (place.pack / ".released").exists()
    copy = _part(place, "again")
    assert petlpack.gc(copy).files == {}


def test_a_task_that_cannot_be_read_gives_nothing_up(place: Place) -> None:
    (place.pack / "tasks" / f"two{SUFFIX}").write_bytes(b"")
    petlpack.remove(place.pack, "two")
    assert petlpack.gc(place.pack).files == {}
    assert len(petlpack.gc(place.pack, everything=True).files) == 1


def test_every_subset_of_the_files_of_a_pack_keeps_its_parts(methods: Methods) -> None:
    pack = methods.pack()
    petlpack.remove(pack, "mask.a")
    names = list(petlpack.open(pack))
    parts = Store(pack).shared_names()
    for number, chosen in enumerate(
        subset for size in range(len(names)) for subset in itertools.combinations(names, size)
    ):
        copy = Path(shutil.copytree(pack, methods.root / f"copy-{number}"))
        for name in {*names} - {*chosen}:
            (copy / "tasks" / f"{name}{SUFFIX}").unlink()
        petlpack.gc(copy)
        assert Store(copy).shared_names() == parts
        shutil.rmtree(copy)

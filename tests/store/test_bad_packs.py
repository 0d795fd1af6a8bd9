"""Directories that are no packs are left alone, and gc deletes nothing while anything cannot be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import petlpack
from petlpack import DamageError, PetlpackError, UnknownFormatError, UsageError
from petlpack.store import PACK_JSON, SUFFIX
from tests.support.places import DAMAGES, Methods, Place

# Packs that are none


PACKS: dict[str, tuple[dict[str, bytes], type[PetlpackError], str]] = {
    "something else": ({"model.safetensors": b"x"}, UsageError, "is neither a pack nor empty: it contains 'model.saf"),
    "hidden things": ({".git": b"x"}, UsageError, "it contains '.git'"),
    "foreign mark": ({"pack.json": b'{"packs": [1]}'}, UnknownFormatError, "is not the pack.json of a pack"),
    "broken mark": ({"pack.json": b"{"}, UnknownFormatError, "is not the pack.json of a pack"),
    "newer": ({"pack.json": b'{"format": "petlpack", "version": 2}'}, UnknownFormatError, "has format version 2"),
}


@pytest.mark.parametrize("case", PACKS)
def test_a_directory_that_is_no_pack_is_left_alone(place: Place, case: str) -> None:
    files, error, words = PACKS[case]
    other = place.bad("other")
    for name, content in files.items():
        (other / name).write_bytes(content)
    before = place.snapshot(other)
    place.refused(lambda _: place.encode(place.run)(other), error, words, "other")
    opening = error if "pack.json" in files else UsageError
    place.refused(lambda _: petlpack.open(other), opening, "other")
    assert place.snapshot(other) == before


def test_a_file_is_no_pack(place: Place) -> None:
    place.refused(lambda _: petlpack.open(place.run / "config.json"), UsageError, "config.json")
    place.refused(lambda _: place.encode(place.run)(place.run / "config.json"), UsageError, "config.json")


# Removing and gc


@pytest.mark.parametrize("case", ["half", "zeros", "no manifest", "text"])
def test_gc_deletes_nothing_while_a_task_cannot_be_read(place: Place, case: str) -> None:
    petlpack.open(place.pack).remove("two")  # its template is garbage now
    path = place.pack / "tasks" / f"one{SUFFIX}"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[case](path))
    before = place.snapshot()
    with pytest.raises(DamageError, match=r"one\.petl\.safetensors"):
        petlpack.open(place.pack).gc()
    assert place.snapshot() == before
    path.write_bytes(whole)
    assert len(petlpack.open(place.pack).gc()) == 1
    place.check_others()


def test_gc_deletes_nothing_while_a_template_cannot_be_read(place: Place) -> None:
    part = place.part("one", "template")
    part.write_bytes(bytes(part.stat().st_size))
    before = place.snapshot()
    with pytest.raises(DamageError, match=part.name.removesuffix(SUFFIX)):
        petlpack.open(place.pack).gc()
    assert place.snapshot() == before


def test_a_damaged_task_can_be_removed(place: Place) -> None:
    (place.pack / "tasks" / f"one{SUFFIX}").write_bytes(b"")
    petlpack.open(place.pack).remove("one")
    petlpack.open(place.pack).gc()
    assert list(petlpack.open(place.pack)) == ["two"]
    place.check_others()


def test_a_part_of_tensors_is_collected_with_its_last_task(methods: Methods) -> None:
    pack = methods.pack()
    opened = petlpack.open(pack)
    parts = set(opened["mask.a"].parts)
    assert parts == set(opened["mask.b"].parts)
    opened.remove("mask.a")
    assert opened.gc() == []
    opened.remove("mask.b")
    assert {path.name.removesuffix(SUFFIX) for path, _ in opened.gc()} == parts
    assert methods.wrong(pack) == set()


def _instead(call: Callable[[Path], object], pack: Path, _: Path) -> object:
    return call(pack)


@pytest.mark.parametrize("left", [("tasks", "shared"), ("tasks",), ("shared",)])
def test_a_pack_without_its_mark_is_told_by_all_and_revived_by_none(place: Place, left: tuple[str, ...]) -> None:
    lost = place.root / "lost"
    shutil.copytree(place.pack, lost)
    (lost / "pack.json").unlink()
    for name in {"tasks", "shared"} - {*left}:
        shutil.rmtree(lost / name)
    before = place.snapshot(lost)
    calls: list[Callable[[Path], object]] = [place.encode(place.run), petlpack.open, petlpack.listing, petlpack.stats]
    for call in calls:
        error = place.refused(partial(_instead, call, lost), UsageError, "lost", "no pack.json")
        assert PACK_JSON.decode().strip() in str(error.hint)
    assert place.snapshot(lost) == before
    (lost / "pack.json").write_bytes(PACK_JSON)
    assert list(petlpack.open(lost)) == (["one", "two"] if "tasks" in left else [])

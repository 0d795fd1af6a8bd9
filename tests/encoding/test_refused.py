"""What cannot be encoded is refused: bases, names, options, tasks of one run; with nothing written, and told why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import petlpack
from petlpack import BaseError, PetlpackError, RunError, TaskError, UsageError
from petlpack.store import legal_task_name
from tests.support.method_runs import write_propetl_t5
from tests.support.places import SMALL, Methods, Place, RunsWhenLoaded, snapshot
from tests.support.small_runs import METHOD_SETTINGS, TINY, make_pair, weights, write_run

# Bases


def _renamed(place: Place) -> Path:
    return write_run(place.bad("other"), {f"x{i}.y{i}": weights("F32", (2, i + 1)) for i in range(3)})


def _reshaped(place: Place) -> Path:
    return write_run(place.bad("other"), make_pair(0, layers=1, width=6, words=8)[1])


def _cut_base(place: Place) -> Path:
    path = place.bad("other") / "model.safetensors"
    path.write_bytes((place.base / "model.safetensors").read_bytes()[:-1])
    return path.parent


def _pickled_base(place: Place) -> Path:
    torch.save({"a": RunsWhenLoaded(os.system, "touch x")}, place.bad("other") / "pytorch_model.bin")
    return place.root / "other"


BASES: dict[str, tuple[Callable[[Place], Path | None], tuple[str, ...]]] = {
    "none given": (lambda place: None, ("no base was given",)),
    "nothing there": (lambda place: place.root / "other", ("no base at", "other")),
    "empty": (lambda place: place.bad("other"), ("no base at", "other")),
    "cut": (_cut_base, ("model.safetensors", "its header needs")),
    "code": (_pickled_base, ("pytorch_model.bin",)),
    "other names": (_renamed, ("the run and the base have no tensor name in common",)),
    "other shapes": (_reshaped, ("in the run and", "in the base")),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_cannot_be_is_refused_at_encoding(place: Place, case: str) -> None:
    build, words = BASES[case]
    base = build(place)
    place.refused(place.encode(place.run, base=base), BaseError, *words)
    with pytest.raises(BaseError):
        place.encode(place.run, base=base)(place.root / "new")
    assert not (place.root / "new").exists(), "a pack was made for nothing"


@pytest.mark.parametrize("named", ["\ud800", "a\0b", "x" * 5000, "/", "", "org/model", "\x1b[2J"])
def test_what_a_config_calls_its_base_is_never_trusted(place: Place, named: str) -> None:
    tuned, _ = make_pair(3, **SMALL)
    run = write_run(place.bad(), tuned, {"model_type": "bert", "_name_or_path": named})
    place.refused(place.encode(run, base=None), BaseError)
    petlpack.encode(run, place.pack, place.base, task="named")
    with pytest.raises(BaseError) as caught:
        petlpack.open(place.pack)["named"].state_dict()
    assert caught.value.message.isprintable()


# Names and options


BAD_NAMES = [
    *("", ".", "..", "../x", "a/b", "a\\b", "/etc/x", ".hidden", "a\0b", "a\nb", "a\n", "\x1b[31mred", "a b", "ä"),
    *("con", "CON", "nul.txt", "aux.a.b", "prn", "com1", "LPT9.x", "a:b", "a*", "a" * 129, "\ud800", "a\u202eb"),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=[f"{i}" for i in range(len(BAD_NAMES))])
def test_names_that_are_no_file_names_are_refused(place: Place, name: str) -> None:
    place.refused(place.encode(place.run, task=name), UsageError, "invalid task name")
    assert name not in petlpack.open(place.pack)
    place.refused(lambda pack: petlpack.open(pack)[name], TaskError, "no task")
    place.refused(lambda pack: petlpack.open(pack).remove(name), TaskError, "no task")


@pytest.mark.parametrize("name", ["a" * 128, "-a", "_", "1.5", "a..b", "console", "com10", "Qwen-2.5_sst2.v1"])
def test_names_that_are_file_names_are_taken(place: Place, name: str) -> None:
    petlpack.encode(place.run, place.pack, place.base, task=name)
    assert name in petlpack.open(place.pack)
    assert petlpack.open(place.pack)[name].decode(place.root / "out", place.base).path.is_dir()


TAKEN: dict[str, tuple[dict[str, Any], type[PetlpackError], str]] = {
    "same": ({"task": "one"}, TaskError, "already has task 'one'"),
    "twin": ({"task": "ONE"}, TaskError, "already has task 'one'"),
    "twin replaced": ({"task": "One", "replace": True}, TaskError, "already has task 'one'"),
    "codec": ({"codec": "zip"}, UsageError, "unknown codec 'zip'"),
    "codec with escape": ({"codec": "\x1b"}, UsageError, "unknown codec"),
    "level": ({"level": "best"}, UsageError, "unknown level 'best'"),
    "codec that does not suit": ({"codec": "sparse"}, RunError, "codec 'sparse' does not suit"),
    **{
        f"codec {codec}": ({"codec": codec}, UsageError, f"codec '{codec}' does not take")
        for codec in ("mask", "merge", "hyper")
    },
    **{
        f"density {share}": ({"density": share}, UsageError, "density must be in")
        for share in (0, 1, -1, 2, float("nan"))
    },
    "density by ulp": ({"density": 0.5, "codec": "ulp"}, UsageError, "codec ulp"),
    "density by plain": ({"density": 0.5, "codec": "plain"}, UsageError, "codec plain"),
    "unknown setting": ({"settings": {"\x1b": "1"}}, UsageError, "unknown setting '\\x1b'"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_makes_no_sense_is_refused(place: Place, case: str) -> None:
    changes, error, words = TAKEN[case]
    place.refused(place.encode(place.run, **changes), error, words)
    if error is not TaskError:
        with pytest.raises(error):
            place.encode(place.run, **changes)(place.root / "new")
        assert not (place.root / "new").exists(), "a pack was made for nothing"


# Runs of several tasks


def test_tasks_of_one_run_are_encoded_all_or_none_where_a_name_is_taken(methods: Methods, place: Place) -> None:
    for taken in ("mask.a", "mask.b", "MASK.b"):
        pack = place.root / taken
        petlpack.encode(place.run, pack, place.base, task=taken)
        before = snapshot(pack)
        with pytest.raises(TaskError, match=f"already has task '{taken}'") as caught:
            methods.encode("mask", pack)
        assert caught.value.hint
        assert snapshot(pack) == before


def test_tasks_of_one_run_are_replaced_all_or_none_where_a_twin_is_in_the_way(methods: Methods, place: Place) -> None:
    pack = place.root / "twin"
    petlpack.encode(place.run, pack, place.base, task="mask.B")
    before = snapshot(pack)
    with pytest.raises(TaskError, match=r"already has task 'mask\.B'"):
        methods.encode("mask", pack, replace=True)
    assert snapshot(pack) == before, "the tasks before the twin were put into the pack"


@pytest.mark.parametrize("replace", [False, True])
def test_twins_in_one_run_are_refused_before_anything_is_written(
    replace: bool, methods: Methods, tmp_path: Path
) -> None:
    write_propetl_t5(tmp_path / "run", ["Sst2", "sst2"], TINY)
    with pytest.raises((TaskError, UsageError, RunError), match=r"(?i)sst2"):
        petlpack.encode(tmp_path / "run", tmp_path / "pack", settings=METHOD_SETTINGS, replace=replace)
    assert not (tmp_path / "pack").exists() or list(petlpack.open(tmp_path / "pack")) == []
    pack = methods.pack()
    before = snapshot(pack)
    with pytest.raises((TaskError, UsageError, RunError), match=r"(?i)sst2"):
        petlpack.encode(tmp_path / "run", pack, settings=METHOD_SETTINGS, replace=replace)
    assert snapshot(pack) == before


def test_a_task_that_is_called_as_a_run_of_several_is_not_in_its_way(methods: Methods, place: Place) -> None:
    petlpack.encode(place.run, place.pack, place.base, task="mask")
    assert [done.name for done in methods.encode("mask", place.pack)] == ["mask.a", "mask.b"]
    assert {"mask", "mask.a", "mask.b"} <= petlpack.open(place.pack).keys()


@pytest.mark.parametrize("task", ["a b", "\x1b[31m", "ä", "a/b", "../../x", "C:\\x", "a\u202eb", "a\0b", " ", "-"])
def test_what_no_task_name_can_hold_is_made_legal(task: str, methods: Methods, tmp_path: Path) -> None:
    write_propetl_t5(tmp_path / "run", ["fine", task], TINY)
    pack = methods.pack()
    state = methods.state(pack)
    done = petlpack.encode(tmp_path / "run", pack, settings=METHOD_SETTINGS)
    assert [one.name for one in done] == ["run.fine", "run.-" if task == "-" else f"run.{legal_task_name(task)}"]
    opened = petlpack.open(pack)
    assert opened[done[1].name].manifest.facts["task"] == task
    assert opened.keys() == {*state, *(one.name for one in done)}
    assert methods.wrong(pack) == set()
    for one in done:
        (found,) = petlpack.verify(pack, task=one.name, against=tmp_path / "run")
        assert (found.error, found.depth) == (None, "compared")
        assert opened[one.name].decode(tmp_path / one.name).path.is_dir()


@pytest.mark.parametrize("tasks", [["a b", "a-b"], ["a b", "A?B"], ["Sst2", "sst2"]])
def test_tasks_of_a_run_that_cannot_be_told_apart_by_name_are_refused(
    tasks: list[str], methods: Methods, tmp_path: Path
) -> None:
    write_propetl_t5(tmp_path / "run", tasks, TINY)
    pack = methods.pack()
    before = snapshot(pack)
    for replace in (False, True):
        with pytest.raises((UsageError, RunError)) as caught:
            petlpack.encode(tmp_path / "run", pack, settings=METHOD_SETTINGS, replace=replace)
        assert caught.value.message.isprintable()
        assert snapshot(pack) == before
    assert caught.value.hint


# One bad run among good ones


def test_a_bad_run_does_not_harm_the_good_ones_around_it(place: Place) -> None:
    (place.bad() / "model.safetensors").write_bytes(b"half")
    petlpack.encode(place.run, place.pack, place.base, task="before")
    place.refused(place.encode(place.root / "bad"), RunError, "model.safetensors")
    petlpack.encode(place.run, place.pack, place.base, task="after")
    assert list(petlpack.open(place.pack)) == ["after", "before", "one", "two"]
    place.check_others()

"""What callers give: one or several, a pack or its path, and anything else refused by the argument's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petlpack
from petlpack import TaskError, UsageError
from petlpack.errors.arguments import counts_of, path_of, paths_of, refuse_file_above, texts_of, whole
from tests.support.places import Place


def errors_of(runs: Iterator[petlpack.EncodedRun]) -> list[Exception]:
    return [run.error for run in runs if run.error is not None]


# One or several


@pytest.mark.parametrize("wrapped", [lambda one: one, lambda one: [one], lambda one: (one,), lambda one: iter([one])])
def test_one_is_taken_as_a_list_of_one(wrapped: Callable[[Any], Any], place: Place, tmp_path: Path) -> None:
    run, new = str(place.run), tmp_path / "new"
    runs = list(petlpack.encode_runs(wrapped(run), new, place.base, task="a"))
    assert ([encoded.path for encoded in runs], errors_of(iter(runs))) == ([run], [])
    assert [planned.path for planned in petlpack.plan(wrapped(run), place.base).runs] == [run]
    assert [row.path for row in petlpack.survey(wrapped(run)).runs] == [run]
    figures = petlpack.stats(place.pack, at=wrapped(7))
    assert 7 in [row.tasks for row in figures.amortized]
    assert [row["task"] for row in figures.table(filters=wrapped("task=one")).rows] == ["one"]
    assert [row.tasks for row in figures.forecast(wrapped(100)).rows] == [100]
    assert petlpack.remove(place.pack, wrapped("one")).tasks.keys() == {"one"}


def test_numbers_of_numpy_are_numbers_of_tasks() -> None:
    assert counts_of("at", np.array([10, 20])) == [10, 20]
    assert counts_of("at", np.int64(3)) == [3]


# Packs


def test_an_opened_pack_is_taken_where_its_path_is(place: Place) -> None:
    pack = petlpack.open(place.pack)
    assert petlpack.is_pack(str(place.pack))
    assert petlpack.is_pack(pack)
    assert list(petlpack.open(pack)) == ["one", "two"]
    assert [row.name for row in petlpack.listing(pack, long=True).tasks] == ["one", "two"]
    assert petlpack.listing(pack).pack == str(place.pack)
    assert petlpack.audit(pack, "one").row.name == "one"
    assert petlpack.stats(pack).pack == str(place.pack)
    assert all(finding.error is None for finding in petlpack.verify(pack, place.base))
    (done,) = petlpack.encode(place.run, pack, place.base, task="three")
    (again,) = petlpack.encode_runs([place.run], pack, place.base, task="four")
    assert (done.name, [task.name for task in again.tasks]) == ("three", ["four"])
    assert petlpack.gc(pack, dry_run=True).files == {}
    assert petlpack.remove(pack, "three").nbytes == done.nbytes


@pytest.mark.parametrize("name", ["../x", "", "a b", 3, None, b"one", ("one",)])
def test_a_pack_is_a_mapping_for_whatever_name(name: Any, place: Place) -> None:
    pack = petlpack.open(place.pack)
    assert name not in pack
    assert pack.get(name) is None
    for ask in (pack.__getitem__, pack.remove):
        with pytest.raises(TaskError, match="no task") as caught:
            ask(name)
        assert isinstance(caught.value, KeyError)
        assert "--task" not in str(caught.value.hint)


# Arguments that make no sense


def _encode(**given: Any) -> Callable[[Place], object]:
    return lambda place: petlpack.encode(
        **{"run_dir": place.run, "pack": place.root / "new", "base": place.base, **given}
    )


def _decode(**given: Any) -> Callable[[Place], object]:
    return lambda place: petlpack.open(place.pack)["one"].decode(
        **{"out": place.root / "new", "base": place.base, **given}
    )


def _stats(**given: Any) -> Callable[[Place], object]:
    return lambda place: petlpack.stats(place.pack, **given)


def _of_stats(method: str, *given: Any, **named: Any) -> Callable[[Place], object]:
    return lambda place: getattr(petlpack.stats(place.pack), method)(*given, **named)


ANY: Any = petlpack
"""The library as who has no type checker calls it."""


WRONG: dict[str, tuple[Callable[[Place], object], str]] = {
    "codec": (_encode(codec=None), "unknown codec None"),
    "codec in a list": (_encode(codec=["ulp"]), "unknown codec"),
    "level": (_encode(level=None), "unknown level None"),
    "density": (_encode(density="a"), "density must be in (0, 1), got 'a'"),
    "task": (_encode(task=5), "invalid task name '5'"),
    "settings as text": (_encode(settings="keep_experts"), "settings must map names to values, got 'keep_experts'"),
    "settings by number": (_encode(settings={3: "x"}), "settings must map names"),
    "no settings": (_encode(settings=[]), "settings must map names to values, got []"),
    "replace": (_encode(replace="no"), "replace must be True or False, got 'no'"),
    "run": (_encode(run_dir=None), "run_dir must be a path, got None"),
    "no run": (_encode(run_dir=""), "run_dir is an empty path"),
    "pack": (_encode(pack=7), "pack must be a path, got 7"),
    "no pack": (_encode(pack=""), "pack is an empty path"),
    "base": (_encode(base=1), "base must be a path, got 1"),
    "no base": (_encode(base=""), "base is an empty path"),
    **{
        f"jobs {jobs!r}": (_encode(jobs=jobs), f"jobs must be an integer >= 1, got {jobs!r}")
        for jobs in ("2", 0, -3, 1.5)
    },
    "jobs of verify": (lambda place: ANY.verify(place.pack, jobs=0), "jobs must be an integer >= 1, got 0"),
    "jobs of plan": (lambda place: ANY.plan(place.run, place.base, jobs="2"), "jobs must be"),
    "jobs of survey": (lambda place: ANY.survey(place.run, jobs=-1), "jobs must be"),
    "jobs of decode": (_decode(jobs=0), "jobs must be an integer >= 1, got 0"),
    "to": (_decode(to=None), "unknown layout None to decode to"),
    "out": (_decode(out=None), "out must be a path, got None"),
    "sample": (lambda place: ANY.plan(place.run, place.base, sample="x"), "sample must be in (0, 1), got 'x'"),
    "runs": (lambda place: ANY.plan(None), "runs must be a path, or several, got None"),
    "a run in runs": (lambda place: ANY.encode_runs([3], place.pack), "runs must be a path, got 3"),
    "rank": (_stats(lora_rank="x"), "lora_rank must be an integer from 1 to 65,536, got 'x'"),
    "rank 0": (_stats(lora_rank=0), "lora_rank must be an integer from 1 to 65,536, got 0"),
    "at": (_stats(at=["x"]), "at must be an integer, or several, got ['x']"),
    "at as text": (_stats(at="100"), "at must be an integer, or several, got '100'"),
    "counts": (_of_stats("forecast", "1e2..1e6"), "counts must be an integer, or several, got '1e2..1e6'"),
    "price": (_of_stats("forecast", 10, price_per_gb_month="1"), "price must be 0, or from 1e-09 to 1e+12, got '1'"),
    "filters": (_of_stats("table", filters=5), "filters must be a string, or several, got 5"),
    "a filter": (_of_stats("table", filters=[5]), "filters must be a string, got 5"),
    "sort": (_of_stats("table", sort=5), "sort must be a string, got 5"),
    "by": (_of_stats("table", None), "no table by None"),
    "bounds": (_of_stats("table", "section", bounds=1), "bounds must be True or False, got 1"),
    "page": (_of_stats("write_page", None), "path must be a path, got None"),
    "numbers of tasks": (lambda place: ANY.parse_counts(5), "text must be a string, got 5"),
    "details": (lambda place: ANY.details("one"), "task must be a Task, got 'one'"),
    "tasks": (lambda place: ANY.remove(place.pack, {"one": 1}), "tasks must be a string, or several"),
    "dry run": (lambda place: ANY.gc(place.pack, dry_run="no"), "dry_run must be True or False, got 'no'"),
    "long": (lambda place: ANY.listing(place.pack, long="yes"), "long must be True or False"),
    "listing": (lambda place: ANY.listing(""), "pack is an empty path"),
    "is_pack": (lambda place: ANY.is_pack(None), "path must be a path, got None"),
    "against nothing": (lambda place: ANY.verify(place.pack, task="one", against=""), "against is an empty path"),
    "against without a task": (lambda place: ANY.verify(place.pack, against=place.run), "but no task"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_that_makes_no_sense_is_named(case: str, place: Place) -> None:
    call, words = WRONG[case]
    place.refused(partial(_on, call, place), UsageError, words)
    assert not (place.root / "new").exists()


def _on(call: Callable[[Place], object], place: Place, _: Path) -> object:
    return call(place)


def test_a_place_below_a_file_is_refused_by_the_name_of_the_file(place: Place) -> None:
    file = place.run / "config.json"
    for below in (file / "x", file / "x" / "y"):
        for call in (_decode(out=below), _encode(pack=below), _of_stats("write_page", below.with_suffix(".html"))):
            place.refused(partial(_on, call, place), UsageError, f"'{file}' is a file, not a directory")
    refuse_file_above(place.root / "a" / "b", "hint")  # what is missing can be made


def test_the_rules_in_words() -> None:
    assert whole(1, 8).what == "an integer from 1 to 8"
    assert paths_of("runs", iter(["a", Path("b")])) == [Path("a"), Path("b")]
    assert texts_of("tasks", ()) == []
    with pytest.raises(UsageError, match=re.escape(r"path must be a path, got b'\x1b'")):
        path_of("path", b"\x1b")

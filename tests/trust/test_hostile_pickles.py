"""Files as torch saves them, from a stranger: no code in them runs, and none costs more than it explains."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

import petlpack
from tests.support.confined import Runner, confined
from tests.support.hostile_pickles import BOMBS, CANARY, GOOD, calls, canary_sang, legacy, mutated, real, zipped
from tests.support.places import Place, RunsWhenLoaded
from tests.support.sampling import Sample
from tests.support.small_runs import write_pair
from tests.support.tally import Tally

APART = 97
"""Of the calls one in so many is tried: a prime, so that every name, way, place and container comes up."""

BATCH = 100
"""Files that one process reads."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Lend what reads pickles in processes of little memory, and tells whether a canary sang."""
    if sys.platform != "linux":
        pytest.skip("limits of memory and time are Linux's here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CANARY, str(tmp_path_factory.mktemp("canary") / "sang"))
        with confined("torch", "petlpack.tensors.pickled", "tests.support.hostile_pickles") as lent:
            yield lent
        assert not canary_sang()


def read(reader: Runner, place: Path, files: dict[str, bytes]) -> int:
    """Check that every file is read, or refused by an error of ours; returns how many were read."""
    place.mkdir()
    for name, data in files.items():
        (place / name.replace("/", "_")[:200]).write_bytes(data)
    return int(reader.check(place, ["pickles", str(place)], seconds=30)["said"])


@pytest.mark.trust(20)
def test_no_code_in_a_pickle_runs(tmp_path: Path, reader: Runner, sample: Sample, tally: Tally) -> None:
    every = (case for number, case in enumerate(calls()) if number % APART == 5)
    cases = sample([*every, *mutated(1200)])
    tried = 0
    while batch := list(islice(cases, BATCH)):
        tried += len(batch)
        read(reader, tmp_path / f"{tried}", {f"{name}.bin": build() for name, build in batch})
    tally("hostile pickles", tried)


def test_files_as_torch_saves_them_are_read(tmp_path: Path, reader: Runner) -> None:
    files = {"archive.bin": real(archive=True), "before.bin": real(archive=False)}
    assert read(reader, tmp_path / "good", files) == len(files)


@pytest.mark.trust(6)
@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_costs_what_it_explains(name: str, tmp_path: Path, reader: Runner, tally: Tally) -> None:
    program = b"\x80\x02" + BOMBS[name] + b"."
    for number, data in enumerate((legacy(program), zipped(("a/data.pkl", program), ("a/data/0", bytes(64))))):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "bomb.bin").write_bytes(data)
        reader.check(tmp_path / f"{number}", ["pickles", str(tmp_path / f"{number}")])
    tally("hostile pickles", 2)
    tally("bombs", 1)


def test_an_optimizer_is_never_opened(place: Place) -> None:
    """Nor is what a trainer was told, though both are beside the weights, and code in neither runs."""
    import torch

    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            opened.append(Path(arguments[0]).name)

    sys.addaudithook(watch)
    run, base = write_pair(place.root / "pickled", 3)
    names = ("optimizer.pt", "scheduler.pt", "scaler.pt")
    for name in names:
        torch.save({"a": RunsWhenLoaded(os.system, "exit 1")}, run / name)
    opened.clear()
    petlpack.encode(run, place.root / "new", base, task="one")
    watching = False
    assert not {*names} & {*opened}
    assert "config.json" in opened


def test_a_good_pickle_is_good() -> None:
    """What stands beside hostile ones in archives is nothing that anybody refuses for itself."""
    import pickle

    assert pickle.loads(GOOD) == {}

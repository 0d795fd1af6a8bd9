"""What running a pickle would cost is known before it runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from petlpack.errors import RefusedError, RunError
from petlpack.tensors.pickle_programs import FREE_STEPS, STEPS_A_STORAGE, Program, Room, check_programs
from petlpack.tensors.pickled import read_state_dict
from tests.support.hostile_pickles import BOMBS, legacy, zipped

NO_PROGRAMS = {"a new tensor", "a new storage", "a huge storage", "a repeated number", "a negative size"}
NO_PROGRAMS |= {"a stride behind", "a counter"}
"""Of what torch's reader, or who reads its tensors, refuses, the program itself takes little."""

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def saved(path: Path, value: Any, *, archive: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=archive)
    return path


def follow(program: bytes, storages: int = 0) -> Program:
    """Follow a pickle of a file that explains nothing but so many storages."""
    return Program(io.BytesIO(program), Room(0, storages))


@pytest.mark.parametrize("archive", [True, False])
def test_what_torch_saves_is_within_bounds(tmp_path: Path, archive: bool) -> None:
    """With tuples that stand in many places, as the settings of an optimizer's groups, and a tensor of two names."""
    betas = (0.9, 0.999)
    groups = [{"betas": betas, "params": list(range(100))} for _ in range(500)]
    whole = {"state_dict": {**STATE, "tied": STATE["b"]}, "optimizer": {"param_groups": groups}}
    found = read_state_dict(saved(tmp_path / "a.bin", whole, archive=archive))
    assert found.tensors["tied"] is found.tensors["b"]


@pytest.mark.parametrize("archive", [True, False])
def test_attributes_do_not_stand_before_methods(tmp_path: Path, archive: bool) -> None:
    """Which Python itself does not pickle so: the names are put there afterwards."""
    state = OrderedDict(STATE)
    state["c"] = torch.nn.Parameter(torch.zeros(3))
    for name in ("itemS", "valueS", "keyS"):
        setattr(state, name, 1)
    state["c"].detacH = 1
    data = saved(tmp_path / "a.bin", state, archive=archive).read_bytes()
    rows = {"": data}
    if archive:
        with zipfile.ZipFile(tmp_path / "a.bin") as old:
            rows = {row.filename: old.read(row) for row in old.infolist()}
    for name, row in rows.items():
        for attribute in (b"items", b"values", b"keys", b"detach"):
            rows[name] = row = row.replace(attribute[:-1] + attribute[-1:].upper(), attribute)
    (tmp_path / "a.bin").write_bytes(zipped(*rows.items()) if archive else rows[""])
    found = read_state_dict(tmp_path / "a.bin")
    assert {name: tensor.bits().size for name, tensor in found.tensors.items()} == {"a.weight": 6, "b": 2, "c": 3}


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in NO_PROGRAMS])
def test_a_program_that_makes_much_of_little_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="its pickle makes") as caught:
        follow(b"\x80\x02" + BOMBS[name] + b".")
    assert caught.value.code == "archive-limit"


def test_bytes_that_python_saves_are_within_bounds(tmp_path: Path) -> None:
    """Which protocol 2 writes as texts."""
    beside = {"bytes": bytes(range(256)), "array": bytearray(b"\xff1"), "none": bytearray()}
    whole = {"model": STATE, "beside": beside}
    assert read_state_dict(saved(tmp_path / "a.bin", whole, archive=True)).tensors.keys() == STATE.keys()


def test_storages_that_are_not_there_explain_nothing() -> None:
    named = b"K\x01\x85q\x00" + b"h\x00Q" * 1000
    follow(named + b"]" * FREE_STEPS, storages=500)
    with pytest.raises(RefusedError, match="operations for 1,000 storages"):
        follow(named + b"]" * (FREE_STEPS + STEPS_A_STORAGE * 500), storages=500)


@pytest.mark.parametrize("archive", [True, False])
def test_many_small_tensors_and_a_large_vocabulary_are_within_bounds(archive: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    small = {f"a.{i}": torch.zeros(1 if archive else 64) for i in range(3000)}
    assert read_state_dict(saved(tmp_path / "a.bin", small, archive=archive)).tensors.keys() == small.keys()
    words = {"model": {"w": torch.zeros(6_000_000)}, "words": {f"word {i}": i for i in range(8_000)}}
    assert read_state_dict(saved(tmp_path / "b.bin", words, archive=archive)).tensors.keys() == {"w"}


def test_so_many_operations_are_followed(tmp_path: Path) -> None:
    follow(b"]" * FREE_STEPS)
    with pytest.raises(RefusedError, match="operations for 0 storages"):
        follow(b"]" * (FREE_STEPS + 1))
    (tmp_path / "a.bin").write_bytes(legacy(b"\x80\x02" + b"]" * (2 * FREE_STEPS) + b"."))
    with pytest.raises(RunError, match=r"a\.bin' is no file as torch saves one") as caught:
        read_state_dict(tmp_path / "a.bin")
    assert caught.value.code == "archive-limit"


def test_what_begins_otherwise_is_not_run() -> None:
    with pytest.raises(ValueError, match="magic number"):
        check_programs(io.BytesIO(pickle.dumps({}, 2)))


def test_a_text_that_says_it_is_long_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    assert not Program(Watched(b"\x80\x02X\xff\xff\xff\x7fshort"), Room(0, 0)).ended
    assert max(asked) <= 12

"""Pickled weight files: which tensors are one comes back, and so does everything without torch in safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petlpack
from petlpack.errors import UsageError
from petlpack.exports.portable import portable_name
from petlpack.tensors.checkpoint import open_checkpoint
from petlpack.tensors.safetensors_file import build_header
from tests.support.small_runs import write_pair

torch = pytest.importorskip("torch")


def with_head(place: Path, state: dict[str, Any], name: str = "value_head.bin") -> tuple[Path, Path]:
    """Write a run with a pickled component beside its weights, and its base."""
    run, base = write_pair(place)
    torch.save(state, run / name)
    return run, base


def decoded(run: Path, base: Path, place: Path, to: str = "run") -> tuple[petlpack.Decoded, Path]:
    petlpack.encode(run, place / "pack", base, task="t")
    return petlpack.open(place / "pack")["t"].decode(place / "out", base, to=to), place / "out"


def storages(file: Path) -> dict[str, int]:
    return {name: value.untyped_storage().data_ptr() for name, value in torch.load(file, weights_only=True).items()}


def test_a_tie_comes_back_as_one_tensor_and_a_clone_as_two(tmp_path: Path) -> None:
    weight = torch.arange(4096.0)
    run, base = with_head(tmp_path, {"a": weight, "clone": weight.clone(), "tie": weight, "b.a": torch.ones(3)})
    _, out = decoded(run, base, tmp_path)
    places = storages(out / "value_head.bin")
    assert places["a"] == places["tie"] != places["clone"]
    state = torch.load(out / "value_head.bin", weights_only=True)
    assert all(torch.equal(state[name], weight) for name in ("a", "clone", "tie"))
    assert (out / "value_head.bin").stat().st_size < (run / "value_head.bin").stat().st_size + 4096


def test_views_of_one_storage_come_back_apart_where_they_are_other_tensors(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    state = {"whole": whole, "half": whole[:6], "rest": whole[6:], "again": whole[:6], "other": whole.view(3, 4)}
    run, base = with_head(tmp_path, state)
    _, out = decoded(run, base, tmp_path)
    places = storages(out / "value_head.bin")
    assert places["half"] == places["again"]
    assert len(set(places.values())) == 4
    found = torch.load(out / "value_head.bin", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_the_same_run_is_found_equal_and_one_with_a_clone_in_the_place_of_a_tie_is_not(tmp_path: Path) -> None:
    weight = torch.arange(64.0)
    run, base = with_head(tmp_path, {"a": weight, "tie": weight})
    petlpack.encode(run, tmp_path / "pack", base, task="t")
    (finding,) = petlpack.verify(tmp_path / "pack", base, task="t", against=run)
    assert finding.error is None
    torch.save({"a": weight, "tie": weight.clone()}, run / "value_head.bin")
    (finding,) = petlpack.verify(tmp_path / "pack", base, task="t", against=run)
    assert finding.error is not None
    assert finding.error.code == "run-differs"


def test_what_a_header_says_of_ties_counts_only_between_tensors_that_are_alike() -> None:
    rows = {"a": ("F32", (2,), 8), "b": ("F32", (2,), 8), "c": ("I32", (2,), 8), "d": ("F32", (2, 1), 8)}
    told = {"format": "pt", "b": "a", "c": "a", "d": "a", "gone": "a", "a": "nobody"}
    assert build_header(rows, told).ties == {"b": "a"}
    assert build_header(rows, {"b": "a", "a": "b"}).ties == {}


def test_portable_is_the_run_with_safetensors_in_the_place_of_pickles(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    run, base = with_head(tmp_path, {"a": weight, "tie": weight, "n": torch.tensor([1, 2])})
    result, out = decoded(run, base, tmp_path, to="portable")
    assert {file.name for file in out.iterdir()} == {
        *({file.name for file in run.iterdir()} - {"value_head.bin"}),
        "value_head.safetensors",
    }
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    found = open_checkpoint(out / "value_head.safetensors").tensors
    assert np.array_equal(found["tie"].numpy(), weight.numpy())
    assert found["n"].numpy().tolist() == [1, 2]
    assert any("value_head.bin is value_head.safetensors" in note for note in result.notes)
    assert not result.restored


def test_portable_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, base = with_head(tmp_path, {"a": torch.arange(6.0)})
    petlpack.encode(run, tmp_path / "pack", base, task="t")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    petlpack.open(tmp_path / "pack")["t"].decode(tmp_path / "out", base, to="portable")
    assert (tmp_path / "out" / "value_head.safetensors").exists()


def test_a_run_without_pickles_is_portable_as_it_is(tmp_path: Path) -> None:
    run, base = write_pair(tmp_path)
    result, _ = decoded(run, base, tmp_path, to="portable")
    assert result.restored


def test_portable_refuses_a_dtype_that_safetensors_files_cannot_hold(tmp_path: Path) -> None:
    run, base = with_head(tmp_path, {"a": torch.ones(3, dtype=torch.complex128)})
    with pytest.raises(UsageError, match="complex128, which safetensors files cannot hold"):
        decoded(run, base, tmp_path, to="portable")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("a/pytorch_model.bin", "a/model.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"),
        ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
        ("adapter_mask.pt", "adapter_mask.safetensors"),
        ("model.safetensors", "model.safetensors"),
        ("model.safetensors.index.json", "model.safetensors.index.json"),
    ],
)
def test_portable_names(name: str, portable: str) -> None:
    assert portable_name(name) == portable


def test_an_index_of_pickled_shards_names_the_new_files(tmp_path: Path) -> None:
    run, base = write_pair(tmp_path)
    folder = run / "extra"
    folder.mkdir()
    for i, key in enumerate("ab"):
        torch.save({key: torch.full((3,), float(i))}, folder / f"part-{i}.bin")
    index = {"metadata": {"total_size": 24}, "weight_map": {"a": "part-0.bin", "b": "part-1.bin"}}
    (folder / "part.bin.index.json").write_text(json.dumps(index))
    petlpack.encode(run, tmp_path / "pack", base, task="t")
    task = petlpack.open(tmp_path / "pack")["t"]
    assert "extra/part.bin.index.json" in task.template.files
    task.decode(tmp_path / "out", base, to="portable")
    found = json.loads((tmp_path / "out/extra/part.safetensors.index.json").read_text())
    assert found == {**index, "weight_map": {"a": "part-0.safetensors", "b": "part-1.safetensors"}}

"""Magnitude pruning: of a full fine-tune's changes the largest stay, to the bit, and the error is told and true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import petlpack
from petlpack import PetlpackError, RunError, UsageError
from tests.support import method_runs as runs
from tests.support.method_cases import octets
from tests.support.method_runs import Array

NAME = "encoder.layer.0.output.dense.weight"


def write_tuned(
    place: Path, dtype: str = "float32", seed: int = 1
) -> tuple[Path, Path, dict[str, Array], dict[str, Array]]:
    """A full fine-tune with a head, every weight moved; and its base."""
    base = runs.write_base(place / "base", dtype=dtype)
    rng = np.random.default_rng(seed)
    tuned = {
        f"bert.{name}": (array + rng.normal(0, 1e-3, array.shape)).astype(dtype) for name, array in base.tensors.items()
    }
    tuned |= {"classifier.weight": rng.normal(0, 0.02, (2, 16)).astype(dtype), "classifier.bias": np.zeros(2, dtype)}
    write_dense(place / "run", tuned)
    return place / "run", base.path, tuned, base.tensors


def write_dense(run: Path, tensors: dict[str, Array]) -> None:
    run.mkdir(exist_ok=True, parents=True)
    made = {name: torch.from_numpy(array) for name, array in tensors.items()}
    safetensors.torch.save_file(made, run / "model.safetensors", {"format": "pt"})
    (run / "config.json").write_text("{}", encoding="utf-8")


def wide(array: Array) -> Array:
    return array.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("density", [0.001, 0.05, 0.2])
def test_the_largest_changes_stay_and_the_error_is_true(tmp_path: Path, density: float, dtype: str) -> None:
    run, base, tuned, given = write_tuned(tmp_path, dtype)
    (encoded,) = petlpack.encode(run, tmp_path / "pack", base, task="run", density=density, jobs=1)
    assert (encoded.codec, encoded.exact) == ("sparse", False)
    task = petlpack.open(tmp_path / "pack")["run"]
    facts = task.facts
    assert facts.exact is False
    assert not task.exact
    tensors = task.load(base)
    sizes = {name: np.abs(wide(tuned[f"bert.{name}"]) - wide(array)) for name, array in given.items()}
    every = np.sort(np.concatenate([size.reshape(-1) for size in sizes.values()]))
    limit = every[-round(density * every.size)]
    kept = 0
    for name, array in given.items():
        found = tensors[f"bert.{name}"].numpy()
        mine = tuned[f"bert.{name}"]
        bits = f"u{mine.itemsize}"
        stays = found.view(bits) == mine.view(bits)
        assert np.array_equal(found.view(bits)[~stays], array.view(bits)[~stays]), name
        changed = found.view(bits) != array.view(bits)
        kept += int(changed.sum())
        assert sizes[name][changed].min(initial=np.inf) >= limit * (1 - 1e-6)
        assert sizes[name][~stays].max(initial=0) <= limit
        true = float(np.abs(wide(found) - wide(mine)).max())
        told = (facts.errors or {}).get(f"bert.{name}", 0.0)
        assert true <= told <= true * 1.01, name
    assert octets(tensors["classifier.weight"].numpy()) == octets(tuned["classifier.weight"])
    assert kept / every.size == pytest.approx(density, abs=2 / every.size if dtype != "float16" else 0.05)
    assert facts.density == pytest.approx(kept / every.size, abs=1e-9)
    (checked, *_) = petlpack.verify(tmp_path / "pack", base)
    assert (checked.depth, checked.error) == ("decoded", None)


def test_an_error_that_float32_hides_is_told(tmp_path: Path) -> None:
    """A difference that float32 rounds down to three digits is still as large as it is."""
    run, base, tuned, given = write_tuned(tmp_path)
    values = tuned[f"bert.{NAME}"]
    given[NAME][1, 1] = np.float32(0.5 - 2**-25)
    values[1, 1] = 1.0
    values[1, 2] = 4.0
    write_dense(run, tuned)
    safetensors.torch.save_file({name: torch.from_numpy(a) for name, a in given.items()}, base / "model.safetensors")
    true = float(wide(values[1, 1]) - wide(given[NAME][1, 1]))
    assert true > 0.5
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=1e-4, jobs=1)
    facts = petlpack.open(tmp_path / "pack")["run"].facts
    assert (facts.errors or {})[f"bert.{NAME}"] >= true


def test_a_change_of_float64_that_float32_cannot_see_is_told(tmp_path: Path) -> None:
    run, base, tuned, given = write_tuned(tmp_path, "float64")
    for name, array in given.items():
        tuned[f"bert.{name}"] = array.copy()
    name = "encoder.layer.1.output.dense.weight"
    tuned[f"bert.{name}"][2] = np.nextafter(given[name][2], np.inf)
    tuned[f"bert.{NAME}"][3] += 1.0
    write_dense(run, tuned)
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=0.5, jobs=1)
    task = petlpack.open(tmp_path / "pack")["run"]
    found = task.load(base)[f"bert.{name}"].numpy()
    true = float(np.abs(found - tuned[f"bert.{name}"]).max())
    told = (task.facts.errors or {}).get(f"bert.{name}", 0.0)
    assert true <= told <= true * 1.01


def test_signs_of_zero_and_ties(tmp_path: Path) -> None:
    """Changes of one size at the limit stay all; -0.0 to 0.0 is no change in size, so the base's zero comes back."""
    run, base, tuned, given = write_tuned(tmp_path)
    for name, array in given.items():
        tuned[f"bert.{name}"] = array.copy()
    tuned[f"bert.{NAME}"].reshape(-1)[0] = 0.0  # the base has -0.0
    name = "encoder.layer.1.output.dense.weight"
    given[name][2:5] = 0.25
    tuned[f"bert.{name}"] = given[name].copy()
    tuned[f"bert.{name}"][2:5] = 0.5
    tuned[f"bert.{NAME}"][5:8] += np.float32(1e-3)
    write_dense(run, tuned)
    safetensors.torch.save_file({name: torch.from_numpy(a) for name, a in given.items()}, base / "model.safetensors")
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=1e-4, jobs=1)
    task = petlpack.open(tmp_path / "pack")["run"]
    tensors = task.load(base)
    total = sum(array.size for array in given.values())
    assert task.facts.density == given[name][2:5].size / total
    assert set(task.facts.errors or {}) == {f"bert.{NAME}"}
    assert octets(tensors[f"bert.{name}"].numpy()) == octets(tuned[f"bert.{name}"])
    assert np.signbit(tensors[f"bert.{NAME}"].numpy().reshape(-1)[0])


def test_infinities_that_both_have_are_no_change(tmp_path: Path) -> None:
    run, base, tuned, given = write_tuned(tmp_path)
    given[NAME][1, 1] = tuned[f"bert.{NAME}"][1, 1] = -np.inf
    write_dense(run, tuned)
    safetensors.torch.save_file({name: torch.from_numpy(a) for name, a in given.items()}, base / "model.safetensors")
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=0.1, jobs=1)
    assert petlpack.open(tmp_path / "pack")["run"].load(base)[f"bert.{NAME}"].numpy()[1, 1] == -np.inf


def test_changes_to_nan_have_no_size(tmp_path: Path) -> None:
    run, base, tuned, _ = write_tuned(tmp_path)
    tuned[f"bert.{NAME}"][1, 1] = np.nan
    write_dense(run, tuned)
    with pytest.raises(RunError, match="NaN weights") as caught:
        petlpack.encode(run, tmp_path / "pack", base, task="run", density=0.1, jobs=1)
    assert NAME in caught.value.message
    assert not (tmp_path / "pack").exists()


def test_diff_pruned_runs_can_be_pruned_further(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base")
    written = runs.write_diff_pruning(tmp_path / "run", base.path, density=0.05, info=False)
    edge = tmp_path / "run" / "checkpoint-best-info.pt"
    assert not edge.exists()
    (encoded,) = petlpack.encode(written.path, tmp_path / "pack", base.path, task="run", density=0.01, jobs=1)
    assert not encoded.exact


@pytest.mark.parametrize("density", [0.3, 0.5, 0.99])
def test_every_density_between_0_and_1_is_taken(tmp_path: Path, density: float) -> None:
    run, base, _, _ = write_tuned(tmp_path)
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=density, jobs=1)
    facts = petlpack.open(tmp_path / "pack")["run"].facts
    assert facts.density == pytest.approx(density, abs=1e-3)


def test_changes_in_a_few_tensors_only_are_as_sparse_as_their_number(tmp_path: Path) -> None:
    """Only the last layer was trained: its largest changes are a small share of the model, and most of that layer."""
    run, base, tuned, given = write_tuned(tmp_path)
    for name, array in given.items():
        tuned[f"bert.{name}"] = array.copy()
    tuned[f"bert.{NAME}"] += np.float32(1e-3)
    write_dense(run, tuned)
    share = given[NAME].size / sum(array.size for array in given.values())
    assert share < 0.14
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=0.14, jobs=1)
    tensors = petlpack.open(tmp_path / "pack")["run"].load(base)
    assert octets(tensors[f"bert.{NAME}"].numpy()) == octets(tuned[f"bert.{NAME}"])


@pytest.mark.parametrize("density", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_density_that_is_no_share(tmp_path: Path, density: float) -> None:
    run, base, _, _ = write_tuned(tmp_path)
    with pytest.raises(UsageError, match="density") as caught:
        petlpack.encode(run, tmp_path / "pack", base, task="run", density=density)
    assert "share of the weights" in str(caught.value.hint)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("codec", ["ulp", "plain", "mask"])
def test_a_density_is_for_codec_sparse(tmp_path: Path, codec: str) -> None:
    run, base, _, _ = write_tuned(tmp_path)
    with pytest.raises(UsageError, match="density is only for a full fine-tune with codec sparse"):
        petlpack.encode(run, tmp_path / "pack", base, task="run", density=0.1, codec=codec)


@pytest.mark.parametrize("write", [runs.write_adapterhub, runs.write_propetl_roberta])
def test_an_adapter_has_no_density(tmp_path: Path, write: Any) -> None:
    written = write(tmp_path / "run", "sst2")
    with pytest.raises(UsageError, match="density is only for a full fine-tune"):
        petlpack.encode(written.path, tmp_path / "pack", task="run", density=0.1)
    assert not (tmp_path / "pack").exists()


def test_a_pruned_task_is_what_pruning_makes_of_its_run(tmp_path: Path) -> None:
    """Compared with the run it was made of, a pruned task is no damage; with another run it is."""
    run, base, _, _ = write_tuned(tmp_path)
    petlpack.encode(run, tmp_path / "pack", base, task="run", density=0.1, jobs=1)
    (checked,) = petlpack.verify(tmp_path / "pack", base, task="run", against=run)
    assert (checked.error, checked.depth) == (None, "compared")
    other, _, _, _ = write_tuned(tmp_path / "other", seed=5)
    (checked,) = petlpack.verify(tmp_path / "pack", base, task="run", against=other)
    assert isinstance(checked.error, PetlpackError)
    assert "differs from the one in" in checked.error.message

"""State dicts in what torch saved: beside other things, with entries that hold nothing, of every dtype."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import petlpack
from petlpack.tensors.pickled import read_state_dict

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}

WRAPPED: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "state_dict": ({"state_dict": STATE, "epoch": 3}, "state_dict", ("epoch",)),
    "model": ({"model": OrderedDict(STATE), "loss": torch.tensor(0.5), "args": None}, "model", ("loss", "args")),
    "module": ({"module": STATE, "optimizer": {"state": STATE}, "ds_version": "0.15"}, "module", ("optimizer",)),
    "Lightning": (
        {
            "pytorch-lightning_version": "2.5",
            "state_dict": STATE,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
            "hyper_parameters": {"lr": 1e-4},
        },
        "state_dict",
        ("optimizer_states", "hyper_parameters"),
    ),
    "another name": ({"my_net": STATE, "step": 7}, "my_net", ("step",)),
    "two levels": ({"model_dict": {"question_model": STATE}, "epoch": 1}, "model_dict.question_model", ("epoch",)),
    "averaged beside": ({"model": STATE, "ema": {"a.weight": torch.zeros(2)}}, "model", ("ema",)),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_state_dict_inside_is_found_and_what_is_beside_it_named(tmp_path: Path, case: str) -> None:
    content, under, beside = WRAPPED[case]
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    read = read_state_dict(path)
    assert {name: tensor.shape for name, tensor in read.tensors.items()} == {
        n: tuple(t.shape) for n, t in STATE.items()
    }
    assert all(torch.equal(read.tensors[name].torch(), tensor) for name, tensor in STATE.items())
    (warning,) = read.warnings
    assert f"under '{under}'" in warning
    assert all(f"'{name}'" in warning for name in beside)


def test_a_state_dict_by_itself_needs_no_warning(tmp_path: Path) -> None:
    torch.save({**STATE, "model": torch.zeros(2)}, tmp_path / "x.bin")  # a tensor that is called like a wrapper
    read = read_state_dict(tmp_path / "x.bin")
    assert list(read.tensors) == [*STATE, "model"]
    assert read.warnings == ()


def test_entries_that_hold_nothing_are_left_out_and_named(tmp_path: Path) -> None:
    torch.save({**STATE, "layer._extra_state": None, "a.scales": {}, "note": ""}, tmp_path / "x.bin")
    read = read_state_dict(tmp_path / "x.bin")
    assert list(read.tensors) == list(STATE)
    assert read.warnings == (
        "'x.bin': left out entries that are None or empty: 'layer._extra_state', 'a.scales', 'note'",
    )


def _saved_by_torch() -> list[torch.dtype]:
    """Every dtype that torch saves, but the quantised ones, whose numbers need more than their bits."""
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in every}
    return sorted((dtype for dtype, name in names.items() if not _NOT_SAVED.fullmatch(name)), key=str)


_NOT_SAVED = re.compile(r"q.*|u?int[1-7]")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", _saved_by_torch(), ids=str)
def test_every_dtype_of_torch_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    octets = torch.arange(48, dtype=torch.uint8)
    tensor = octets.view(dtype).reshape(3, -1) if dtype != torch.bool else (octets % 3 == 0).reshape(3, 16)
    run = tmp_path / "run"
    run.mkdir()
    torch.save(
        {"x.weight": tensor, "plain": torch.ones(4), "scalar": tensor[0, :1].reshape(())}, run / "pytorch_model.bin"
    )
    petlpack.encode(run, tmp_path / "pack", codec="plain")
    task = petlpack.open(tmp_path / "pack")["run"]
    state = task.state_dict()
    out = task.decode(tmp_path / "out").path
    (file,) = out.iterdir()
    again = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    for found in (state, again):
        assert found["x.weight"].dtype == dtype
        assert found["x.weight"].shape == tensor.shape
        assert torch.equal(found["x.weight"].view(torch.uint8), tensor.view(torch.uint8))
        assert found["scalar"].dtype == dtype


def test_every_dtype_of_safetensors_is_in_the_state_dict(tmp_path: Path) -> None:
    dtypes = [dtype for dtype in _saved_by_torch() if _safetensors_takes(dtype, tmp_path / "x.safetensors")]
    assert {torch.complex64, torch.float8_e8m0fnu, torch.float8_e4m3fnuz} <= set(dtypes)
    tensors = {str(dtype): torch.ones(32, dtype=torch.uint8).view(dtype).reshape(2, -1) for dtype in dtypes}
    save_file(tensors, tmp_path / "run.safetensors")
    petlpack.encode(tmp_path / "run.safetensors", tmp_path / "pack", codec="plain")
    task = petlpack.open(tmp_path / "pack")["run"]
    state = task.state_dict()
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
    }
    out = task.decode(tmp_path / "out", to="safetensors").path
    assert {name: tensor.dtype for name, tensor in load_file(next(out.iterdir())).items()} == {
        str(dtype): dtype for dtype in dtypes
    }


def _safetensors_takes(dtype: torch.dtype, path: Path) -> bool:
    try:
        save_file({"x": torch.zeros(16, dtype=torch.uint8).view(dtype)}, path)
    except (KeyError, RuntimeError):
        return False
    return True


def test_what_only_torch_knows_is_not_written_as_safetensors(tmp_path: Path) -> None:
    torch.save({"x.weight": torch.zeros(3, dtype=torch.complex128)}, tmp_path / "x.bin")
    (tmp_path / "run").mkdir()
    (tmp_path / "x.bin").rename(tmp_path / "run" / "pytorch_model.bin")
    petlpack.encode(tmp_path / "run", tmp_path / "pack", codec="plain")
    with pytest.raises(petlpack.UsageError, match="complex128"):
        petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out", to="safetensors")


def test_equal_bytes_of_different_dtypes_stay_apart_in_a_pickle(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    octets = torch.zeros(16, dtype=torch.uint8)
    tensors = {"a": octets, "b": octets.clone().view(torch.complex128)}
    tensors["c"] = octets.clone().view(torch.complex64)
    torch.save(tensors, run / "pytorch_model.bin")
    petlpack.encode(run, tmp_path / "pack", codec="plain")
    out = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    again = torch.load(out / "pytorch_model.bin")
    assert {name: (t.dtype, t.shape) for name, t in again.items()} == {
        n: (t.dtype, t.shape) for n, t in tensors.items()
    }


@given(st.sampled_from(["conj", "neg", "transposed", "expanded"]))
def test_views_are_saved_as_what_they_show(tmp_path_factory: pytest.TempPathFactory, view: str) -> None:
    plain = torch.randn(3, 4, dtype=torch.complex64)
    tensor = {
        "conj": plain.conj(),
        "neg": plain.conj().imag,
        "transposed": plain.t(),
        "expanded": plain[:1].expand(3, 4),
    }[view]
    path = tmp_path_factory.mktemp("view") / "x.bin"
    torch.save({"x": tensor}, path)
    read = read_state_dict(path)
    octets = tensor.resolve_conj().resolve_neg().contiguous().view(torch.uint8).numpy().tobytes()
    assert b"".join(piece.tobytes() for piece in read.tensors["x"].pieces()) == octets


def test_what_else_is_in_a_pickle_is_named_and_its_advice_left_out(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "x.bin")
    with pytest.raises(petlpack.RunError, match=r"objects other than tensors \(argparse\.Namespace\)$") as caught:
        read_state_dict(tmp_path / "x.bin")
    assert caught.value.message.isprintable()
    assert "weights_only" not in f"{caught.value.message}{caught.value.hint}"

"""What PEFT's kinds of adapters share with a base: widths, names alone, or neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import petlpack
from tests.support.small_runs import make_base, weights, write_run

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query."
BOUND = ("encoder.layer.0.attention.self.query.bias", "encoder.layer.0.attention.self.query.weight")


def write_adapter(directory: Path, kind: str, shapes: dict[str, tuple[int, ...]]) -> Path:
    tensors = {name: weights("F32", shape, 3) for name, shape in shapes.items()}
    config = {"adapter_config.json": json.dumps({"peft_type": kind}).encode()}
    return write_run(directory, tensors, None, config, "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("LORA", {"lora_A.weight": (2, 16), "lora_B.weight": (16, 2)}),
        ("FOURIERFT", {"fourierft_spectrum": (6,)}),
        ("LOKR", {"lokr_w1": (4, 2), "lokr_w2": (4, 8)}),
        ("OFT", {"oft_R.weight": (4, 6)}),
        ("SHIRA", {"shira_weight": (64,), "shira_indices": (2, 64)}),
        ("VBLORA", {"vblora_logits_A": (2, 8, 4), "vblora_logits_B": (8, 2, 4)}),
    ],
)
def test_an_adapter_is_bound_to_the_modules_of_its_base(
    tmp_path: Path, kind: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Also where its kind stores nothing as wide as a module: frequencies, places, factors of widths."""
    base = write_run(tmp_path / "base", make_base())
    run = write_adapter(tmp_path / "run", kind, {QUERY + name: shape for name, shape in shapes.items()})
    for bases in (base, [write_run(tmp_path / "other", {"conv.weight": weights("F32", (3, 3))}), base]):
        (task,) = petlpack.encode(run, tmp_path / "pack", bases, replace=True)
        assert task.warnings == ()
        assert task.base is not None
        adapts = petlpack.open(tmp_path / "pack")["run"].template.adapts
        assert adapts is not None
        assert adapts.tensors == BOUND


@pytest.mark.parametrize("kind", ["LORA", "LOKR"])
def test_an_adapter_of_modules_that_a_base_lacks_is_not_bound(tmp_path: Path, kind: str) -> None:
    base = write_run(tmp_path / "base", make_base())
    run = write_adapter(tmp_path / "run", kind, {"base_model.model.model.layers.0.self_attn.q_proj.w1": (2, 16)})
    (task,) = petlpack.encode(run, tmp_path / "pack", base)
    assert task.base is None
    assert any("adapts no module of base" in text for text in task.warnings)


def test_a_lora_is_not_bound_to_a_base_of_other_widths(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", make_base(width=32))
    run = write_adapter(tmp_path / "run", "LORA", {QUERY + "lora_A.weight": (2, 24)})
    (task,) = petlpack.encode(run, tmp_path / "pack", base)
    assert task.base is None


def test_one_vector_for_the_whole_model_is_bound_as_a_prompt_is(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", make_base())
    run = write_adapter(tmp_path / "run", "UNILORA", {"base_model.unilora_theta_d": (64,)})
    (task,) = petlpack.encode(run, tmp_path / "pack", base)
    assert (task.warnings, task.base is None) == ((), False)


def test_an_adapter_that_has_all_its_weights_in_named_ones_comes_back(tmp_path: Path) -> None:
    """X-LoRA's own file is empty, and its LoRAs stand in folders."""
    run = write_adapter(tmp_path / "run", "XLORA", {})
    for name in "01":
        write_adapter(run / name, "LORA", {QUERY + "lora_A.weight": (2, 16)})
    petlpack.encode(run, tmp_path / "pack")
    out = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    names = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    assert len(names) == 6
    assert [name for name in names if (run / name).read_bytes() != (out / name).read_bytes()] == []
    (checked,) = petlpack.verify(tmp_path / "pack", against=run, task="run")
    assert (checked.error, checked.depth) == (None, "compared")

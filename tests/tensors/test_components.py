"""What weight files beside a model's own are called, and which a base has."""

from __future__ import annotations

from pathlib import Path

import pytest

from petlpack import Base, BaseError
from petlpack.tensors.components import prefixes_of
from tests.support.small_runs import make_base, weights, write_pipeline, write_run, write_safetensors

PREFIXES = {
    "value_head.safetensors": "value_head/",
    "mm_projector.bin": "mm_projector/",
    "2_Dense/model.safetensors": "2_Dense/",
    "2_Dense/pytorch_model.bin": "2_Dense/model/",
    "3_Dense/pytorch_model.bin": "3_Dense/",
    "a/b/adapter_model.bin": "a/b/",
    "a/b/extra.pt": "a/b/extra/",
    "a/b/extra.pth": "a/b/extra.pth/",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": "unet/",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors": "unet/",
    "unet/diffusion_pytorch_model.fp16.safetensors": "unet/diffusion_pytorch_model.fp16/",
    "both/model.safetensors": "both/",
    "both/adapter_model.safetensors": "both/adapter_model/",
    "adapter_model.safetensors": "adapter_model/",
    "model-00001-of-00002.safetensors": "model/",
    "model-00002-of-00002.safetensors": "model/",
    "pytorch_model.bin": "model.bin/",
}


def test_a_component_is_called_by_its_place() -> None:
    assert prefixes_of(PREFIXES) == PREFIXES
    assert prefixes_of(reversed(PREFIXES)) == PREFIXES


def test_a_base_has_the_components_of_its_directory(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", make_base(layers=1))
    head = {"linear.weight": weights("F32", (4, 8))}
    for name in ("2_Dense/model.safetensors", "head.safetensors", "model.fp16.safetensors"):
        write_safetensors(base / name, head)
    for name in (
        *("checkpoint-5/model.safetensors", "optimizer.safetensors", ".cache/x.safetensors", "runs/x.safetensors"),
        *("pack/x.safetensors", "model-00001-of-00001.safetensors", "step_7.safetensors", "a:b.safetensors"),
    ):
        write_safetensors(base / name, head)
    (base / "pack" / "pack.json").write_text("{}", encoding="utf-8")
    (base / "broken.safetensors").write_bytes(b"x")
    (base / "odd.bin").write_bytes(b"no pickle")
    opened = Base(base)
    added = {f"{prefix}linear.weight" for prefix in ("2_Dense/", "head/", "model.fp16/")}
    assert opened.tensors.keys() == {*make_base(layers=1), *added}
    assert opened.sources[: -len(opened.components)] == (base / "model.safetensors",)
    assert {source.name for source in opened.components} == {
        "model.safetensors",
        "head.safetensors",
        "model.fp16.safetensors",
    }
    assert Base(base / "model.safetensors").tensors.keys() == make_base(layers=1).keys()


@pytest.mark.parametrize("place", ["checkpoint-20", "model.safetensors", "snapshots/0a1b"])
def test_a_base_has_the_components_beside_its_weights_wherever_these_are(tmp_path: Path, place: str) -> None:
    base = tmp_path / ("models--org--base" if place.startswith("snapshots") else "base")
    write_run(base / place, make_base(layers=1))
    parts = base if place == "model.safetensors" else base / place
    write_safetensors(parts / "head.safetensors", {"linear.weight": weights("F32", (4, 8))})
    opened = Base(base)
    assert opened.tensors.keys() == {*make_base(layers=1), "head/linear.weight"}
    assert opened.parts.keys() == {"", "head/"}
    assert opened.parts["head/"].ref("linear.weight") == opened.ref("head/linear.weight")


def test_a_pipeline_is_a_base_without_main_weights(tmp_path: Path) -> None:
    _, base = write_pipeline(tmp_path)
    opened = Base(base)
    names = make_base(layers=1)
    assert opened.tensors.keys() == {f"{part}/{name}" for part in ("unet", "text_encoder") for name in names}
    (base / "model_index.json").unlink()
    with pytest.raises(BaseError, match="no base at") as caught:
        Base(base)
    assert caught.value.code == "base-missing"

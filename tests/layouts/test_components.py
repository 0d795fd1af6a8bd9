"""Weight files beside a run's own are weights: encoded, predicted, compared, and written back where they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import petlpack
from petlpack import DamageError, Encoded, RunError
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.views import BaseRef
from tests.support.small_runs import make_pair, nudged, weights, write_pipeline, write_run, write_safetensors

HEAD = {"v_head.weight": weights("F32", (1, 16), 7), "v_head.bias": weights("F32", (1,), 8)}


def encode(run: Path, base: Path | None, **options: object) -> Encoded:
    (encoded,) = petlpack.encode(run, run.parent / "pack", base, task="run", jobs=1, replace=True, **options)  # type: ignore[arg-type]
    return encoded


def task_of(run: Path) -> petlpack.Task:
    return petlpack.open(run.parent / "pack")["run"]


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def predicted(task: petlpack.Task) -> dict[str, str]:
    return {name: view.name for name, view in task.template.base.items() if isinstance(view, BaseRef)}


def same_after_decode(run: Path, base: Path | None) -> Path:
    out = task_of(run).decode(run.parent / "out", base, jobs=1).path
    assert files_of(out) == files_of(run)
    (checked,) = petlpack.verify(run.parent / "pack", base, against=run, task="run")
    assert (checked.error, checked.depth, checked.notes) == (None, "compared", ())
    return out


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A run and its base, each with a module in a folder; only the first tensor of the run's module moved."""
    tuned, near = make_pair(1, layers=1)
    module = {"linear.weight": weights("F32", (64, 64), 5), "linear.bias": weights("F32", (64,), 6)}
    base = write_run(tmp_path / "base", near)
    write_run(base / "2_Dense", module)
    run = write_run(tmp_path / "run", tuned)
    write_run(run / "2_Dense", {**module, "linear.weight": nudged(module["linear.weight"])})
    return run, base


def test_a_component_is_predicted_by_its_namesake_of_the_base(pair: tuple[Path, Path]) -> None:
    run, base = pair
    encode(run, base)
    same_after_decode(run, base)
    task = task_of(run)
    assert {name: other for name, other in predicted(task).items() if name.startswith("2_Dense/")} == {
        "2_Dense/linear.weight": "2_Dense/linear.weight",
        "2_Dense/linear.bias": "2_Dense/linear.bias",
    }
    assert {task.template.slots[i].name for i in task.sources.unchanged} == {"2_Dense/linear.bias"}
    assert "2_Dense/linear.weight" in task.state_dict(base)
    with pytest.raises(petlpack.BaseError, match="'2_Dense/linear"):
        task.state_dict(base / "model.safetensors")


def test_a_component_without_a_namesake_is_stored_by_itself(pair: tuple[Path, Path]) -> None:
    run, base = pair
    write_safetensors(run / "value_head.safetensors", HEAD, {"format": "pt", "by": "trl"})
    encode(run, base)
    same_after_decode(run, base)
    assert {f"value_head/{name}" for name in HEAD} <= task_of(run).template.head
    encode(run, None, codec="plain")
    (run.parent / "out").rename(run.parent / "before")
    same_after_decode(run, None)


def test_what_another_part_of_the_base_has_is_predicted_by_it(tmp_path: Path) -> None:
    tuned, near = make_pair(1, layers=1, prefix="", labels=0)
    base = write_run(tmp_path / "base", near)
    write_safetensors(base / "decoder.safetensors", HEAD, {"format": "pt"})
    run = write_run(tmp_path / "run", {**tuned, **{f"vae.{name}": tensor for name, tensor in HEAD.items()}})
    encode(run, base)
    same_after_decode(run, base)
    task = task_of(run)
    assert {name: predicted(task)[f"vae.{name}"] for name in HEAD} == {name: f"decoder/{name}" for name in HEAD}


def test_towers_in_folders_come_from_one_base(tmp_path: Path) -> None:
    tuned, near = make_pair(1, layers=1, prefix="", labels=0)
    base, run = write_run(tmp_path / "base", near), write_run(tmp_path / "run", tuned)
    for i, tower in enumerate(("query", "document"), 2):
        write_run(run / tower, make_pair(i, layers=1, prefix="bert.", labels=0)[0])
    write_safetensors(run / "ema.safetensors", near)
    encode(run, base)
    same_after_decode(run, base)
    task = task_of(run)
    assert len(task.template.base) == 4 * len(near)
    assert {f"ema/{name}" for name in near} == {task.template.slots[i].name for i in task.sources.unchanged}


def test_a_pickled_component_comes_back_as_torch_saves_it(pair: tuple[Path, Path]) -> None:
    run, base = pair
    near = weights("F32", (64, 64), 5).torch()
    odd = torch.arange(6).reshape(2, 3).T
    torch.save({"model.mm_projector.0.weight": near, "again": near, "odd": odd}, run / "mm_projector.bin")
    encode(run, base)
    out = task_of(run).decode(run.parent / "out", base, jobs=1).path
    back, before = (torch.load(path / "mm_projector.bin", weights_only=True) for path in (out, run))
    assert list(back) == list(before)
    assert all(torch.equal(back[name], before[name]) for name in before)
    assert back["again"].data_ptr() == back["model.mm_projector.0.weight"].data_ptr()
    assert (out / "2_Dense" / "model.safetensors").read_bytes() == (run / "2_Dense" / "model.safetensors").read_bytes()
    task = task_of(run)
    elements = sum(slot.nbytes for slot in task.template.slots)
    assert task.run_bytes == elements - near.nbytes  # of one storage, saved once


@pytest.mark.parametrize(
    "name", ["state.pt", "x/pytorch_model.bin", "scores.bin", "empty.bin", "nested.pth", "x.ckpt", "extra.bin"]
)
def test_what_is_no_plain_state_dict_stays_bytes(pair: tuple[Path, Path], name: str) -> None:
    run, base = pair
    contents = {
        "state.pt": {"model": {"w": torch.ones(2)}, "optimizer": {"state": {0: torch.ones(2)}}, "epoch": 3},
        "x/pytorch_model.bin": [torch.ones(2)],
        "empty.bin": {},
        "nested.pth": {"a": torch.ones(2).to_sparse()},
        "x.ckpt": {"a": torch.ones(2)},
        "extra.bin": {"a": torch.ones(2), "quantized": None},
    }
    (run / name).parent.mkdir(exist_ok=True)
    if name in contents:
        torch.save(contents[name], run / name)
    else:
        (run / name).write_bytes(b"no pickle")
    encoded = encode(run, base)
    assert name in task_of(run).template.files
    more = name in ("state.pt", "x/pytorch_model.bin", "nested.pth", "extra.bin")
    assert len(encoded.warnings) == more
    assert all(f"kept as bytes what is more than a state dict: {name};" in text for text in encoded.warnings)
    same_after_decode(run, base)


BESIDE: dict[str, dict[str, object]] = {
    "a step": {"state_dict": {}, "step": 4},
    "in front": {"epoch": 1.5, "name": "ü", "args": {"lr": 1e-3, "sizes": [1, 2], "none": None}, "model": {}},
    "nothing": {"state_dict": {}},
    "two deep": {"model": {"module": {}, "rank": 0}, "done": True},
}


@pytest.mark.parametrize("case", BESIDE)
def test_a_wrapped_state_dict_is_weights_and_comes_back_in_its_wrapper(pair: tuple[Path, Path], case: str) -> None:
    run, base = pair
    near = load_file(base / "2_Dense" / "model.safetensors")
    state = {name: tensor * 1.001 for name, tensor in near.items()}

    def wrapped(value: object) -> object:
        return {key: wrapped(inner) for key, inner in value.items()} if value and isinstance(value, dict) else value

    whole = wrapped(BESIDE[case])
    place = whole
    while True:
        key = next(key for key in ("state_dict", "model", "module") if key in place)  # type: ignore[operator]
        if not place[key]:  # type: ignore[index]
            break
        place = place[key]  # type: ignore[index]
    place[key] = state  # type: ignore[index]
    torch.save(whole, run / "2_Dense" / "ema.pt")
    encoded = encode(run, base, max_file=100)
    assert encoded.warnings == ()
    assert "2_Dense/ema.pt" in task_of(run).template.headers
    out = task_of(run).decode(run.parent / "out", base, jobs=1).path
    back = torch.load(out / "2_Dense" / "ema.pt", weights_only=True)
    assert repr(back) == repr(whole)
    (checked,) = petlpack.verify(run.parent / "pack", base, against=run, task="run")
    assert (checked.error, checked.notes) == (None, ())


def test_weights_that_are_more_than_a_state_dict_are_kept_whatever_their_size(pair: tuple[Path, Path]) -> None:
    run, base = pair
    torch.save({"shadow_params": [torch.ones(100)], "decay": 0.9}, run / "ema.pt")
    encoded = encode(run, base, max_file=100)
    assert encoded.left_out == ()
    assert [text.partition(";")[0] for text in encoded.warnings] == [
        "kept as bytes what is more than a state dict: ema.pt"
    ]
    same_after_decode(run, base)


def test_a_broken_component_stays_bytes_and_is_told(pair: tuple[Path, Path]) -> None:
    run, base = pair
    (run / "2_Dense" / "model.safetensors").write_bytes(b"broken")
    encoded = encode(run, base)
    assert encoded.warnings == ("kept as bytes what is no valid safetensors file: 2_Dense/model.safetensors",)
    same_after_decode(run, base)


def test_a_component_of_dtypes_that_only_torch_knows_comes_back(pair: tuple[Path, Path]) -> None:
    run, base = pair
    state = {"a": torch.tensor([1 + 2j, -0.0 + 1j], dtype=torch.complex128), "b": torch.ones(3, dtype=torch.float64)}
    torch.save(state, run / "spectrum.bin")
    encode(run, base)
    out = task_of(run).decode(run.parent / "out", base, jobs=1).path
    back = torch.load(out / "spectrum.bin", weights_only=True)
    assert list(back) == list(state)
    assert all(back[name].dtype == state[name].dtype and torch.equal(back[name], state[name]) for name in state)
    loaded = task_of(run).state_dict(base)
    assert torch.equal(loaded["spectrum/a"], state["a"])


def test_a_component_is_matched_by_its_weights_and_by_views(tmp_path: Path) -> None:
    tuned, near = make_pair(1, layers=1)
    parts = {f"layers.0.{part}_proj.weight": weights("F32", (64, 64), i) for i, part in enumerate("qkv", 20)}
    renamed = weights("F32", (48, 64), 30)
    base = write_run(tmp_path / "base", near)
    write_run(base / "tower", {**parts, "other.weight": renamed})
    moved = [nudged(part) for part in parts.values()]
    fused = Tensor.of(np.concatenate([part.bits() for part in moved]), moved[0].dtype)
    run = write_run(tmp_path / "run", tuned)
    write_run(run / "tower", {"layers.0.qkv_proj.weight": fused, "final.kernel": nudged(renamed)})
    encode(run, base)
    same_after_decode(run, base)
    views = task_of(run).template.base
    assert [ref.name for ref in views["tower/layers.0.qkv_proj.weight"].refs] == [f"tower/{name}" for name in parts]
    assert [ref.name for ref in views["tower/final.kernel"].refs] == ["tower/other.weight"]


def test_a_component_may_be_of_any_size_and_other_files_may_not(pair: tuple[Path, Path]) -> None:
    run, base = pair
    (run / "state.pt").write_bytes(b"no pickle at all")
    encoded = encode(run, base, max_file=8, drop="2_Dense/config.json")
    left_out = {left.file: (left.nbytes, left.why) for left in encoded.left_out}
    assert left_out.keys() == {"state.pt", "2_Dense/config.json"}
    assert left_out["state.pt"] == (16, "larger than --max-file")
    assert encoded.warnings == ("left out files that are larger than --max-file: state.pt",)
    assert "2_Dense/model.safetensors" in task_of(run).template.headers


def test_who_names_a_file_gets_its_bytes_or_none(pair: tuple[Path, Path]) -> None:
    run, base = pair
    encode(run, base, keep="2_Dense/*")
    assert "2_Dense/model.safetensors" in task_of(run).template.files
    same_after_decode(run, base)
    encoded = encode(run, base, drop="2_Dense/model.safetensors")
    assert [left.why for left in encoded.left_out] == ["dropped (--drop)"]
    (checked,) = petlpack.verify(run.parent / "pack", base, against=run, task="run")
    assert checked.error is None
    assert checked.notes == ("not in the pack, so not compared: 2_Dense/model.safetensors",)


def test_verify_finds_a_component_that_changed(pair: tuple[Path, Path]) -> None:
    run, base = pair
    encode(run, base)
    write_run(run / "2_Dense", {name: weights("F32", (64, 64), 9) for name in ("linear.weight",)})
    (checked,) = petlpack.verify(run.parent / "pack", base, against=run, task="run")
    assert isinstance(checked.error, DamageError)
    assert "tensor '2_Dense/linear.bias' is in task 'run', but not in" in checked.error.message


def test_names_that_would_be_two_tensors_leave_the_file_as_bytes(pair: tuple[Path, Path]) -> None:
    run, base = pair
    write_safetensors(run / "a.safetensors", {"b/x": weights("F32", (2,))})
    write_safetensors(run / "a" / "b.safetensors", {"x": weights("F32", (2,), 1)})
    encoded = encode(run, base)
    assert len(encoded.warnings) == 1
    same_after_decode(run, base)


def test_a_pipeline_comes_back_part_by_part(tmp_path: Path) -> None:
    run, base = write_pipeline(tmp_path)
    encoded = encode(run, base)
    same_after_decode(run, base)
    task = task_of(run)
    assert encoded.layout == "diffusers"
    assert predicted(task) == {slot.name: slot.name for slot in task.template.slots}
    assert encoded.source_bytes == sum(path.stat().st_size for path in run.rglob("*.safetensors"))


@pytest.mark.parametrize("whole", [False, True])
def test_a_part_of_a_pipeline_is_predicted_by_the_part_or_by_the_whole(tmp_path: Path, whole: bool) -> None:
    run, base = write_pipeline(tmp_path, parts=("unet", "vae"))
    run.rename(tmp_path / "whole")
    (tmp_path / "whole" / "unet").rename(run)
    encoded = encode(run, base if whole else base / "unet")
    out = task_of(run).decode(tmp_path / "out", base if whole else base / "unet", jobs=1).path
    assert files_of(out) == files_of(run)
    assert encoded.layout == "diffusers"
    assert len(task_of(run).template.base) == len(task_of(run).template.slots)


@pytest.mark.parametrize("trained", [False, True], ids=["only weights", "beside the training"])
@pytest.mark.parametrize("given", ["run", "run/checkpoint-500"])
def test_a_state_of_a_training_of_diffusers_is_a_model_in_parts(tmp_path: Path, given: str, trained: bool) -> None:
    pipeline, base = write_pipeline(tmp_path / "made")
    run = tmp_path / "run"
    shutil.copytree(pipeline / "unet", run / "checkpoint-500" / "unet")
    shutil.copytree(pipeline / "unet", run / "checkpoint-500" / "unet_ema")
    shutil.copytree(base / "unet", run / "checkpoint-400" / "unet")
    if trained:
        for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
            (run / "checkpoint-500" / name).write_bytes(b"state")
    encoded = encode(tmp_path / given, base)
    assert encoded.layout == "diffusers"
    names = [slot.name for slot in task_of(tmp_path / given).template.slots]
    assert {name.partition("/")[0] for name in names} == {"unet", "unet_ema"}
    assert predicted(task_of(tmp_path / given)).keys() == {*names}
    out = petlpack.open((tmp_path / given).parent / "pack")["run"].decode(tmp_path / "out", base, jobs=1).path
    assert files_of(out) == {n: b for n, b in files_of(run / "checkpoint-500").items() if b != b"state"}
    petlpack.encode(pipeline / "unet", tmp_path / "pack-of-part", run, jobs=1)  # it is a base as well


def test_folders_of_models_are_several_models(tmp_path: Path) -> None:
    pipeline, _ = write_pipeline(tmp_path, parts=("unet", "unet_2"))
    (pipeline / "model_index.json").unlink()
    with pytest.raises(RunError, match="is not a run directory"):
        encode(pipeline, None)


def test_shards_of_a_part_are_one_component(tmp_path: Path) -> None:
    run, base = write_pipeline(tmp_path)
    unet = run / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    tensors: dict[str, Tensor] = make_pair(0, labels=0, prefix="", layers=1)[0]
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        write_safetensors(unet / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    encode(run, base)
    same_after_decode(run, base)
    assert len(task_of(run).template.base) == len(task_of(run).template.slots)


def test_a_pipeline_without_weights_is_refused(tmp_path: Path) -> None:
    run, base = write_pipeline(tmp_path)
    for file in run.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(RunError, match="none of its folders has weights"):
        encode(run, base)


@pytest.mark.parametrize("place", ["", "checkpoint-10"])
def test_named_adapters_in_folders_of_their_own_are_one_task(tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    for i, name in enumerate(("reward", "policy")):
        lora = {f"base_model.model.q.lora_{part}.weight": weights("F32", (4, 4), i) for part in "AB"}
        config = {"adapter_config.json": json.dumps({"peft_type": ("LORA", "IA3")[i]}).encode()}
        write_run(run / place / name, lora, None, config, "adapter_model.safetensors")
    if not place:
        with pytest.raises(RunError, match="not a run directory") as caught:
            encode(run, None)
        assert "encode the runs inside it: policy, reward" in str(caught.value.hint)
        (run / "README.md").write_text("---\nbase_model: x\nlibrary_name: peft\n---\n", encoding="utf-8")
    encoded = encode(run, None)
    assert (encoded.layout, encoded.method) == ("peft", "ia3")  # of the first by name
    out = task_of(run).decode(tmp_path / "out", jobs=1).path
    assert files_of(out) == files_of(run / place)


def test_a_model_beside_its_adapter_is_predicted_by_the_base(tmp_path: Path) -> None:
    tuned, near = make_pair(1, layers=1, prefix="", labels=0)
    base, run = (
        write_run(tmp_path / "base", near),
        write_run(tmp_path / "run", {**near, "embeddings.LayerNorm.bias": tuned["embeddings.LayerNorm.bias"]}),
    )
    config = {"adapter_config.json": b'{"peft_type": "LORA"}'}
    lora = {"base_model.model.encoder.layer.0.attention.self.query.lora_A.weight": weights("F32", (4, 16))}
    write_run(run, lora, None, config, "adapter_model.safetensors")
    encode(run, base)
    same_after_decode(run, base)
    task = task_of(run)
    assert task.template.base.keys() == {f"model/{name}" for name in near}
    assert len(task.sources.unchanged) == len(near) - 1


def test_survey_counts_components_as_weights(pair: tuple[Path, Path]) -> None:
    run, base = pair
    write_safetensors(run / "value_head.safetensors", HEAD)
    (run / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]', encoding="utf-8")
    (row,) = petlpack.survey([run], base).runs
    assert row.bytes["weights"] == sum(path.stat().st_size for path in run.rglob("*.safetensors"))
    assert row.bytes["other weights"] == 0
    assert row.equal_to_base_bytes == 64 * 4  # the bias of the module

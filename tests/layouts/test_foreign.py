"""Directories that hold something else than a run, or a run in a place that looks like something else."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import petlpack
from petlpack import RunError
from tests.support.places import Place
from tests.support.small_runs import weights, write_run, write_safetensors

STATES: dict[str, tuple[str, str, str]] = {
    "FSDP": ("pytorch_model_fsdp_0/__0_0.distcp", "an FSDP checkpoint", "accelerate merge-weights"),
    "DCP": ("__0_0.distcp", "torch.distributed (DCP)", "dcp_to_torch"),
    "DCP below": ("model/__0_0.distcp", "torch.distributed (DCP)", "dcp_to_torch"),
    "DeepSpeed": ("global_step5/mp_rank_00_model_states.pt", "a DeepSpeed checkpoint", "zero_to_fp32.py"),
    "DeepSpeed's shards": ("zero_pp_rank_1_mp_rank_00_optim_states.pt", "a DeepSpeed checkpoint", "zero_to_fp32.py"),
    "Megatron": ("iter_0000100/mp_rank_00/model_optim_rng.pt", "a Megatron checkpoint", "Megatron-Bridge"),
    "Megatron's step": ("latest_checkpointed_iteration.txt", "a Megatron checkpoint", "Megatron-Bridge"),
    "Orbax": ("_CHECKPOINT_METADATA", "Orbax", "safetensors.flax"),
}


@pytest.mark.parametrize("place_in", ["", "checkpoint-7"])
@pytest.mark.parametrize("case", STATES)
def test_a_training_state_in_parts_is_named_with_what_merges_it(place: Place, case: str, place_in: str) -> None:
    name, words, hint = STATES[case]
    file = place.bad() / place_in / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"shard")
    error = place.refused(place.encode(place.root / "bad"), RunError, words)
    assert error.hint is not None
    assert hint in error.hint


FORMATS = {
    "tf_model.h5": ("HDF5", "from_tf"),
    "flax_model.msgpack": ("Flax", "from_flax"),
    "saved_model.pb": ("TensorFlow", "from_tf"),
    "model.onnx": ("ONNX", "encode that model"),
    "model-q4.gguf": ("GGUF", "gguf_file"),
    "weights.npz": ("NumPy", "save_file"),
    "model.safetensors.dvc": ("DVC", "dvc pull"),
    "model.keras": ("Keras", "PyTorch"),
    "llama.nemo": ("NeMo", "export_ckpt"),
    "openvino_model.xml": ("OpenVINO", "encode that model"),
}


@pytest.mark.parametrize("file", FORMATS)
def test_a_model_in_another_format_is_named_with_what_converts_it(place: Place, file: str) -> None:
    words, hint = FORMATS[file]
    run = place.bad()
    (run / "config.json").write_text("{}", encoding="utf-8")
    (run / file).write_bytes(b"\x85\0\0\0")
    for given in (run, run / file):
        error = place.refused(place.encode(given), RunError, words, str(given))
        assert error.hint is not None
        assert hint in error.hint


def test_a_name_says_more_than_that_a_file_is_an_archive(place: Place) -> None:
    path = place.bad() / "llama.nemo"
    path.write_bytes(b"model".ljust(257, b"\0") + b"ustar\x0000" + bytes(300))
    place.refused(place.encode(path), RunError, "is a NeMo archive")
    path = path.with_suffix(".tar")
    path.write_bytes(b"model".ljust(257, b"\0") + b"ustar\x0000" + bytes(300))
    place.refused(place.encode(path), RunError, "is a compressed archive")
    path.with_suffix(".gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    place.refused(place.encode(path.with_suffix(".gguf")), RunError, "is a Git LFS pointer")


def test_checkpoints_that_all_need_the_same_say_what(place: Place) -> None:
    run = place.bad()
    for number in (1, 2):
        (run / f"checkpoint-{number}").mkdir()
        (run / f"checkpoint-{number}" / "config.json").write_text("{}", encoding="utf-8")
        pointer = run / f"checkpoint-{number}" / "model.safetensors"
        pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", encoding="utf-8")
    error = place.refused(place.encode(run), RunError, "no complete checkpoint", "Git LFS pointer")
    assert error.hint is not None
    assert "git lfs pull" in error.hint


def test_a_kept_file_that_is_a_pointer_is_warned_about(place: Place) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (place.run / "tokenizer.json").write_text(pointer, encoding="utf-8")
    (encoded,) = petlpack.encode(place.run, place.pack, place.base, task="bad")
    (warning,) = encoded.warnings
    assert warning.startswith("'tokenizer.json' is a Git LFS pointer")
    assert "git lfs pull" in warning


def test_a_pickle_under_any_name_is_found(place: Place) -> None:
    run = place.bad()
    torch.save({"a": torch.zeros(2)}, run / "dense_retriever.cp")
    place.refused(place.encode(run), RunError, "contains a pickle", "dense_retriever.cp")
    place.refused(place.encode(run / "dense_retriever.cp"), RunError, "is a pickle")


@pytest.mark.parametrize(
    "name", ["global_step_100", "global_step100", "iter_0000100", "latest", "pytorch_model_fsdp_0"]
)
def test_plain_weights_are_a_run_whatever_the_directory_is_called(place: Place, name: str) -> None:
    outer = place.bad("outer")
    shutil.copytree(place.run, outer / name)
    (encoded,) = petlpack.encode(outer / name, place.pack, place.base)
    assert encoded.name == name
    error = place.refused(place.encode(outer), RunError, "is not a run directory")
    assert error.hint == f"encode the runs inside it: {name}"


def _leave_deepspeed(run: Path) -> None:
    (run / "global_step7").mkdir()
    (run / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"shard")
    (run / "latest").write_text("global_step7", encoding="utf-8")
    (run / "zero_to_fp32.py").write_text("pass\n", encoding="utf-8")


def test_weights_beside_a_training_state_are_a_run(place: Place) -> None:
    _leave_deepspeed(place.run)
    (encoded,) = petlpack.encode(place.run, place.pack, place.base, task="three")
    assert encoded.method == "full fine-tune"


def test_broken_weights_beside_a_training_state_are_told_as_broken(place: Place) -> None:
    _leave_deepspeed(place.run)
    os.truncate(place.run / "model.safetensors", 100)
    place.refused(place.encode(place.run), RunError, "model.safetensors' declares a header")


@pytest.mark.parametrize("kind", ["bin shards", "bin", "safetensors shards", "adapter"])
def test_a_directory_that_is_called_like_a_weight_file_holds_the_weights(place: Place, kind: str) -> None:
    """DeepSpeed's zero_to_fp32.py takes the name of a file for that of a directory."""
    run, tensors = place.bad(), {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4)}
    inside = run / ("adapter_model.bin" if kind == "adapter" else "pytorch_model.bin")
    inside.mkdir()
    _leave_deepspeed(run)
    (run / "config.json").write_text("{}", encoding="utf-8")
    if kind == "adapter":
        (run / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
        torch.save(tensors, inside / "adapter_model.bin")
    elif kind == "bin":
        torch.save(tensors, inside / "pytorch_model.bin")
    else:
        suffix = "bin" if kind == "bin shards" else "safetensors"
        stem = "pytorch_model" if suffix == "bin" else "model"
        for name, tensor in tensors.items():
            shard = inside / f"{stem}-{name[0]}.{suffix}"
            torch.save({name: tensor}, shard) if suffix == "bin" else save_file({name: tensor}, shard)
        index = {"weight_map": {name: f"{stem}-{name[0]}.{suffix}" for name in tensors}}
        (inside / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    petlpack.encode(run, place.pack, codec="plain", task="bad")
    task = petlpack.open(place.pack)["bad"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in task.state_dict().items())
    out = task.decode(place.root / "out").path
    if kind == "safetensors shards":
        for file in inside.iterdir():
            assert (out / "pytorch_model.bin" / file.name).read_bytes() == file.read_bytes()
    else:
        (file,) = out.rglob("*.safetensors")
        assert load_file(file).keys() == tensors.keys()


def test_shards_without_their_index_are_told_so(place: Place) -> None:
    run = place.bad()
    for number in (1, 2):
        write_safetensors(run / f"model-0000{number}-of-00002.safetensors", {f"{number}": weights("F32", (2, 2))})
    place.refused(place.encode(run), RunError, "not their index, model.safetensors.index.json")
    index = run / "other.safetensors.index.json"
    index.write_text("{}", encoding="utf-8")
    assert "directory" in str(place.refused(place.encode(index), RunError, "is an index of shards").hint)


def test_several_files_are_several_runs(place: Place) -> None:
    run = place.bad()
    for name in ("first.safetensors", "second.safetensors"):
        write_safetensors(run / name, {"a": weights("F32", (2, 2))})
    error = place.refused(place.encode(run), RunError, "is not a run directory")
    assert error.hint == "encode the runs inside it: first.safetensors, second.safetensors"


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))  # the whole path may be too long for one


SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (_pipe, "is a named pipe"),
    "a socket": (_socket, "is a socket"),
    "a device": (lambda path: path.symlink_to(os.devnull), "is a device"),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("case", SPECIAL)
def test_what_is_no_file_is_told_as_what_it_is(place: Place, case: str, inside: bool) -> None:
    make, words = SPECIAL[case]
    path = place.bad() / ("model.bin" if inside else "run")
    make(path)
    if not inside:
        place.refused(place.encode(path), RunError, words)
        return
    place.refused(place.encode(path.parent), RunError, words)  # and is not waited for


# Logs


LOGS: dict[str, Any] = {
    "empty": b"",
    "cut": b'{"best_metric": 0.5, "log_his',
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"7",
    "of another shape": b'{"best_model_checkpoint": 7, "log_history": {"a": 1}, "best_metric": "x"}',
    "null": b'{"best_model_checkpoint": null}',
}


@pytest.mark.parametrize("file", ["trainer_state.json", "all_results.json", "eval_results.json", "result.json"])
@pytest.mark.parametrize("case", LOGS)
def test_no_log_stops_a_run(place: Place, case: str, file: str) -> None:
    run = place.bad()
    shutil.copytree(place.run, run / "checkpoint-10")
    shutil.copytree(place.run, run / "checkpoint-20")
    for folder in (run, run / "checkpoint-20", place.run):
        (folder / file).write_bytes(LOGS[case])
    for given in (run, place.run, run / "checkpoint-20"):
        (encoded,) = petlpack.encode(given, place.pack, place.base, task="bad", replace=True)
        assert encoded.warnings == ()


def test_a_best_checkpoint_that_is_gone_is_warned_about(place: Place) -> None:
    run = place.bad()
    shutil.copytree(place.run, run / "checkpoint-20")
    (run / "trainer_state.json").write_text('{"best_model_checkpoint": "/far/run/checkpoint-15"}', encoding="utf-8")
    (encoded,) = petlpack.encode(run, place.pack, place.base, task="bad")
    assert encoded.warnings == ("its best checkpoint, checkpoint-15, is gone: took the last one that is complete",)


def test_an_empty_adapter_config_beside_a_whole_model_is_no_adapter(place: Place) -> None:
    (place.run / "adapter_config.json").write_bytes(b"")
    (encoded,) = petlpack.encode(place.run, place.pack, place.base, task="bad")
    assert encoded.method == "full fine-tune"


# Adapters without a config


def _lora(*suffixes: str) -> dict[str, torch.Tensor]:
    return {
        f"{module}{suffix}": torch.randn(4, 8) if "alpha" not in suffix else torch.tensor(4.0)
        for module in ("unet.down.0.to_q", "unet.down.1.to_q")
        for suffix in suffixes
    }


ADAPTERS = {
    "diffusers": ("lora", _lora(".lora_A.weight", ".lora_B.weight")),
    "diffusers of old": ("lora", _lora("_lora.down.weight", "_lora.up.weight")),
    "kohya": ("lora", _lora(".lora_down.weight", ".lora_up.weight", ".alpha")),
    "DoRA": ("lora", _lora(".lora_down.weight", ".lora_up.weight", ".dora_scale")),
    "PEFT": ("lora", _lora(".lora_A.default.weight", ".lora_B.default.weight")),
    "LoHa": ("loha", _lora(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".alpha")),
    "LoKr": ("lokr", _lora(".lokr_w1", ".lokr_w2_a", ".lokr_w2_b")),
}


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "My LoRA v1.0 (final).safetensors", "old.bin"])
@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_without_a_config_are_told_by_their_tensors(tmp_path: Path, case: str, file: str) -> None:
    method, tensors = ADAPTERS[case]
    path = tmp_path / "run" / file
    path.parent.mkdir()
    torch.save(tensors, path) if file.endswith(".bin") else save_file(tensors, path, {"ss_network_dim": "4"})
    for given in (path, path.parent):
        (encoded,) = petlpack.encode(given, tmp_path / "pack", task="adapter", replace=True)
        assert encoded.method == method
        out = petlpack.open(tmp_path / "pack")["adapter"].decode(tmp_path / f"out-{given.name}").path
        if file.endswith(".safetensors"):
            assert (out / file).read_bytes() == path.read_bytes()


TOKENS = {
    "of one token": ("learned_embeds.bin", {"<cat>": torch.ones(8)}),
    "of a plain name": ("learned_embeds.safetensors", {"cat": torch.ones(1, 8)}),
    "of two encoders": ("style.safetensors", {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)}),
    "in another's format": ("style.safetensors", {"emb_params": torch.ones(2, 8)}),
}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("case", TOKENS)
def test_embeddings_of_new_tokens_need_no_base(tmp_path: Path, case: str, earlier: bool) -> None:
    file, tensors = TOKENS[case]
    run = tmp_path / "run"
    run.mkdir()
    stem, _, suffix = file.rpartition(".")
    states = [
        file,
        *(f"{stem}-steps-{steps}.{suffix}" for steps in (500, 1000) if earlier and stem == "learned_embeds"),
    ]
    for i, name in enumerate(states):
        state = {token: tensor * (i + 1) for token, tensor in tensors.items()}
        torch.save(state, run / name) if suffix == "bin" else save_file(state, run / name)
    (encoded,) = petlpack.encode(run, tmp_path / "pack")
    assert (encoded.method, encoded.codec, encoded.left_out) == ("textual inversion", "plain", ())
    task = petlpack.open(tmp_path / "pack")["run"]
    out = task.decode(tmp_path / "out").path
    assert {path.stem for path in out.iterdir()} == {path.stem for path in run.iterdir()}
    assert all(torch.equal(task.state_dict()[token], tensor) for token, tensor in tensors.items())


def test_states_of_embeddings_alone_are_a_run_of_the_last(tmp_path: Path) -> None:
    for steps in (500, 1000):
        save_file({"cat": torch.full((1, 4), float(steps))}, tmp_path / f"learned_embeds-steps-{steps}.safetensors")
    petlpack.encode(tmp_path, tmp_path / "pack", task="cat")
    assert float(petlpack.open(tmp_path / "pack")["cat"].state_dict()["cat"][0, 0]) == 1000


def test_a_whole_model_with_a_lora_in_it_is_no_adapter(tmp_path: Path) -> None:
    tensors = {"a.base_layer.weight": torch.randn(2, 2), **_lora(".lora_A.weight", ".lora_B.weight")}
    save_file(tensors, tmp_path / "run.safetensors")
    (encoded,) = petlpack.encode(tmp_path / "run.safetensors", tmp_path / "pack", codec="plain")
    assert encoded.method == "full fine-tune"


def test_what_a_training_script_saved_is_a_run(place: Place) -> None:
    for name in ("last.ckpt", "model.pt", "pytorch_model_fsdp.bin"):
        run = place.bad(name.replace(".", "-"))
        torch.save({"state_dict": load_file(place.run / "model.safetensors"), "epoch": 3}, run / name)
        torch.save({"state": {}}, run / "optimizer.pt")
        for given in (run, run / name):
            (encoded,) = petlpack.encode(given, place.pack, place.base, task="bad", replace=True)
            assert any("under 'state_dict'" in warning for warning in encoded.warnings)


def test_a_run_in_a_run_of_checkpoints_is_chosen_by_itself(place: Place) -> None:
    run = place.bad()
    for number in (1, 2):
        write_run(run / f"checkpoint-{number}", {"a.weight": weights("F32", (2, 2), number)}, None)
    (encoded,) = petlpack.encode(run / "checkpoint-1", place.pack, codec="plain")
    assert encoded.name == "checkpoint-1"
    assert encoded.warnings == ()

"""Directories, weights and pickles that are no runs are refused by name, and no code in them ever runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import petlpack
from petlpack import PetlpackError, RunError
from petlpack.store import SUFFIX
from tests.support.places import Place, RunsWhenLoaded
from tests.support.sampling import Sample
from tests.support.small_runs import weights, write_run, write_safetensors

# Runs that are none


def _nothing(place: Place) -> Path:
    return place.root / "bad"


def _with_files(**files: str) -> Callable[[Place], Path]:
    def build(place: Place) -> Path:
        path = place.bad()
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return path

    return build


def _text_file(place: Place) -> Path:
    (place.bad() / "notes.txt").write_text("hello", encoding="utf-8")
    return place.root / "bad" / "notes.txt"


NO_RUNS: dict[str, tuple[Callable[[Place], Path], tuple[str, ...]]] = {
    "nothing there": (_nothing, ("no run at", "bad")),
    "a text file": (_text_file, ("notes.txt", "is not a run")),
    "an empty directory": (lambda place: place.bad(), ("bad", "is empty")),
    "something else": (_with_files(notes__txt="x", train__py="y"), ("is not a run directory", "notes.txt, train.py")),
    "a config alone": (_with_files(config__json="{}"), ("is not a run directory", "config.json")),
    "an adapter's config alone": (
        _with_files(adapter_config__json='{"peft_type": "LORA"}'),
        ("adapter_config.json", "no adapter_model.safetensors"),
    ),
    "an adapter's config that is no JSON": (_with_files(adapter_config__json="{"), ("adapter_config.json", "JSON")),
    "an adapter's config that is a list": (_with_files(adapter_config__json="[]"), ("adapter_config.json", "object")),
}


@pytest.mark.parametrize("case", NO_RUNS)
def test_what_is_no_run_is_refused(place: Place, case: str) -> None:
    build, words = NO_RUNS[case]
    run = build(place)
    place.refused(place.encode(run), RunError, *words)
    assert not (place.root / "new").exists()
    with pytest.raises(RunError):
        place.encode(run)(place.root / "new")
    assert not (place.root / "new").exists()


# Safetensors headers


def _safetensors(header: object, data: bytes = b"", text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(text)) + text + data


def _row(start: int, stop: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


TWO = {"a": _row(0, 8), "b": _row(8, 16)}
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is 0 bytes"),
    "seven bytes": (b"\0" * 7, "is 7 bytes"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "declares a header of 1,000 bytes"),
    "header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "declares a header of"),
    "header cut": (_safetensors(TWO, bytes(16))[:40], "declares a header of"),
    "data cut": (_safetensors(TWO, bytes(15)), "its header needs"),
    "trailing byte": (_safetensors(TWO, bytes(17)), "its header needs"),
    "not JSON": (_safetensors(None, text=b"{{"), "not JSON"),
    "not UTF-8": (_safetensors(None, text=b'{"\xff": 1}'), "not JSON"),
    "a list": (_safetensors([]), "not a JSON object"),
    "nested too deep": (_safetensors(None, text=b'{"a":' * 100_000), "not JSON"),
    "key twice": (_safetensors(None, bytes(8), b'{"a":%s,"a":%s}' % ((json.dumps(_row(0, 8)).encode(),) * 2)), "'a'"),
    "NaN": (_safetensors(None, text=b'{"__metadata__": NaN}'), "NaN"),
    "metadata of numbers": (_safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
    "overlap": (
        _safetensors({"a": _row(0, 8), "b": _row(4, 12)}, bytes(12)),
        "'b' at byte 4, expected 8",
    ),
    "hole": (_safetensors({"a": _row(0, 8), "b": _row(12, 20)}, bytes(20)), "'b' at byte 12, expected 8"),
    "start behind zero": (_safetensors({"a": _row(8, 16)}, bytes(16)), "'a' at byte 8"),
    "shape too large": (_safetensors({"a": _row(0, 8, (3,))}, bytes(8)), "shape [3] of F32 does not take 8 bytes"),
    "shape of 2^62 squared": (_safetensors({"a": _row(0, 8, (2**62, 2**62))}, bytes(8)), "does not take 8 bytes"),
    "negative size": (_safetensors({"a": _row(0, 8, (-2,))}, bytes(8)), "list of non-negative integers"),
    "float size": (_safetensors({"a": {**_row(0, 8), "shape": [2.0]}}, bytes(8)), "list of non-negative integers"),
    "true as size": (_safetensors({"a": {**_row(0, 4), "shape": [True]}}, bytes(4)), "list of non-negative integers"),
    "offsets reversed": (_safetensors({"a": _row(8, 0)}, bytes(8)), "data_offsets"),
    "three offsets": (_safetensors({"a": {**_row(0, 8), "data_offsets": [0, 8, 8]}}, bytes(8)), "data_offsets"),
    "dtype a number": (_safetensors({"a": {**_row(0, 8), "dtype": 4}}, bytes(8)), "dtype"),
    "further field": (_safetensors({"a": {**_row(0, 8), "more": 1}}, bytes(8)), "fields must be"),
    "lone surrogate": (_safetensors(None, bytes(8), b'{"\\ud800":%s}' % json.dumps(_row(0, 8)).encode()), "\\ud800"),
    "control characters": (_safetensors({"\x1b[31m\n": {**_row(0, 8), "dtype": 4}}, bytes(8)), "\\x1b[31m\\n"),
}


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors", "bare.safetensors"])
@pytest.mark.parametrize("case", HEADERS)
def test_a_damaged_header_is_refused(place: Place, case: str, file: str) -> None:
    content, words = HEADERS[case]
    run = place.bad()
    (run / file).write_bytes(content)
    if file.startswith("adapter"):
        (run / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    place.refused(place.encode(run if file != "bare.safetensors" else run / file), RunError, words, file)


def test_weights_without_tensors_are_refused(place: Place) -> None:
    (place.bad() / "model.safetensors").write_bytes(_safetensors({}))
    place.refused(place.encode(place.root / "bad"), RunError, "without tensors")


@pytest.mark.exhaustive(7)
def test_every_flipped_header_bit_is_refused_or_comes_back_as_it_is(place: Place, sample: Sample) -> None:
    tensors = {"encoder.a.weight": weights("F32", (2, 3)), "encoder.b.bias": weights("BF16", (3,))}
    run = write_run(place.bad(), tensors, None)
    path = run / "model.safetensors"
    whole = path.read_bytes()
    counts = {"refused": 0, "as it is": 0}
    for bit in sample(range(8 * len(whole))):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            petlpack.encode(run, place.pack, codec="plain", task="bad", replace=True, jobs=1)
        except PetlpackError as error:
            assert type(error) is RunError  # noqa: PT017 - most flips are refused, and which is not the question
            counts["refused"] += 1
            continue
        petlpack.open(place.pack)["bad"].decode(place.root / "out", jobs=1)
        assert (place.root / "out" / "model.safetensors").read_bytes() == flipped
        shutil.rmtree(place.root / "out")
        counts["as it is"] += 1
    print(f"{8 * len(whole) // sample.step} flips: {counts}")
    assert counts["refused"] > 500 // sample.step
    assert counts["as it is"] > 8 * 30 // sample.step  # every flip of data at least


# Shards


def _shards(place: Place, weight_map: object = None, text: str | None = None) -> Path:
    """A run of two shards, with an index to replace."""
    run = place.bad()
    first, second = {"a.weight": weights("F32", (2, 2))}, {"b.weight": weights("F32", (2, 2), 1)}
    write_safetensors(run / "model-1.safetensors", first)
    write_safetensors(run / "model-2.safetensors", second)
    if weight_map is None:
        weight_map = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}) if text is None else text
    (run / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return run


def _missing_shard(place: Place) -> Path:
    run = _shards(place)
    (run / "model-2.safetensors").unlink()
    return run


def _shard_under_two_names(place: Place) -> Path:
    run = _shards(place)
    shutil.copyfile(run / "model-1.safetensors", run / "model-2.safetensors")
    return run


def _overlay(place: Place, shard: str, listed: str) -> Path:
    """Shards with one more that has the first one's tensor again; the index takes `listed` from it."""
    run = _shards(place)
    write_safetensors(run / "model-1.safetensors", {"a.weight": weights("F32", (2, 2)), "a.bias": weights("F32", (2,))})
    write_safetensors(run / shard, {"a.weight": weights("F32", (2, 2), 5), "elsewhere.weight": weights("F32", (2,), 6)})
    index = json.loads((run / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"] |= {"a.bias": "model-1.safetensors", listed: shard}
    if listed != "a.weight":
        del index["weight_map"]["a.weight"]
    (run / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return run


def _cut_shard(place: Place) -> Path:
    run = _shards(place)
    (run / "model-2.safetensors").write_bytes((run / "model-2.safetensors").read_bytes()[:-1])
    return run


def _named(shard: str) -> Callable[[Place], Path]:
    return lambda place: _shards(place, {"a.weight": "model-1.safetensors", "b.weight": shard})


SHARDS: dict[str, tuple[Callable[[Place], Path], str]] = {
    "missing": (_missing_shard, "lists shard 'model-2.safetensors', but the file is missing"),
    "one tensor in two": (_shard_under_two_names, "lists tensor 'b.weight', but no shard has it"),
    "one tensor in two, the index names neither": (
        lambda place: _overlay(place, "model-3.safetensors", "elsewhere.weight"),
        "tensor 'a.weight' is in two shards",
    ),
    "cut": (_cut_shard, "model-2.safetensors"),
    "tensor in none": (
        lambda place: _shards(place, {"a.weight": "model-1.safetensors", "c.weight": "model-2.safetensors"}),
        "lists tensor 'c.weight', but no shard has it",
    ),
    "above": (_named("../base/model.safetensors"), "'../base/model.safetensors', which is not a plain file name"),
    "absolute": (_named("/etc/passwd"), "'/etc/passwd', which is not a plain file name"),
    "below, missing": (_named("sub/model.safetensors"), "'sub/model.safetensors', but the file is missing"),
    "below, and above": (_named("sub/../../base/model.safetensors"), "which is not a plain file name"),
    "below, hidden": (_named(".sub/model.safetensors"), "which is not a plain file name"),
    "backslash": (_named("..\\base\\model.safetensors"), "which is not a plain file name"),
    "drive": (_named("C:model.safetensors"), "C:model.safetensors"),
    "dots": (_named(".."), "which is not a plain file name"),
    "empty name": (_named(""), "lists shard ''"),
    "NUL": (_named("model-2.safetensors\0"), "\\x00"),
    "newline": (_named("model-2\n.safetensors"), "\\n"),
    "escape": (_named("\x1b[2J"), "\\x1b[2J"),
    "surrogate": (_named("\ud800"), "\\ud800"),
    "hidden": (_named(".model.safetensors"), "which is not a plain file name"),
    "number": (lambda place: _shards(place, {"a.weight": 1}), "weight_map"),
    "list": (lambda place: _shards(place, ["model-1.safetensors"]), "weight_map"),
    "no map": (lambda place: _shards(place, text="{}"), "is not a valid shard index"),
    "no JSON": (lambda place: _shards(place, text="{"), "is not a valid shard index"),
    "empty map": (lambda place: _shards(place, {}), "tensor"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_bad_shards_are_refused(place: Place, case: str) -> None:
    build, words = SHARDS[case]
    place.refused(place.encode(build(place), codec="plain"), RunError, words, "bad")


@pytest.mark.parametrize("shard", ["model-overlay.safetensors", "a-patch.safetensors"])
def test_of_a_tensor_in_two_shards_the_one_that_the_index_names_counts(place: Place, shard: str) -> None:
    run = _overlay(place, shard, "a.weight")
    (encoded,) = petlpack.encode(run, place.pack, task="bad", codec="plain")
    assert any("left out of 'model-1.safetensors'" in text and "'a.weight'" in text for text in encoded.warnings)
    out = petlpack.open(place.pack)["bad"].decode(place.root / "out").path
    assert (out / shard).read_bytes() == (run / shard).read_bytes()
    with safe_open(out / "model-1.safetensors", "pt") as stale:
        assert list(stale.keys()) == ["a.bias"]
    assert (out / "model.safetensors.index.json").read_bytes() == (run / "model.safetensors.index.json").read_bytes()


# Pickles


def _payloads(target: Path) -> dict[str, Any]:
    """Pickles that write a file when they are loaded by a careless reader."""
    code = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": RunsWhenLoaded(os.system, f"touch {target}"),
        "eval": RunsWhenLoaded(eval, code),
        "exec": RunsWhenLoaded(exec, code),
        "getattr": RunsWhenLoaded(getattr, RunsWhenLoaded(__import__, "os"), "mkdir"),
        "subprocess": RunsWhenLoaded(subprocess.check_call, ["touch", str(target)]),
        "Path.touch": RunsWhenLoaded(Path.touch, target),
        "inside a state dict": {"a.weight": torch.zeros(2), "b.weight": RunsWhenLoaded(eval, code)},
        "torch.load": RunsWhenLoaded(torch.load, str(target)),
    }


PICKLES = list(_payloads(Path("x")))


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "adapter_model.bin", "pytorch_model-1.bin"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("case", PICKLES)
def test_code_in_a_pickle_never_runs(place: Place, case: str, kind: str, file: str) -> None:
    run, target = place.bad(), place.root / "written by the pickle"
    payload = _payloads(target)[case]
    if kind == "bare":
        (run / file).write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, run / file, _use_new_zipfile_serialization=kind == "zip")
    if file.startswith("adapter"):
        (run / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    if file == "pytorch_model-1.bin":
        index = {"weight_map": {"a.weight": file}}
        (run / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    place.refused(place.encode(run), RunError, file)
    assert not target.exists()


NO_STATE_DICTS: dict[str, Any] = {
    "empty": b"",
    "one byte": b"\x80",
    "stop": b".",
    "mark": b"(.",
    "pop of nothing": b"0.",
    "memo that is not there": b"\x80\x02h\x07.",
    "empty zip": b"PK\x05\x06" + bytes(18),
    "text": b"hello",
    "nulls": bytes(1000),
    "list": [torch.zeros(2)],
    "a tensor": torch.zeros(2),
    "two models": {"left": {"a.weight": torch.zeros(2)}, "right": {"a.weight": torch.zeros(2)}},
    "only an optimizer": {"optimizer": {"state": {"a": torch.zeros(2)}}, "epoch": 3},
    "step": {"a.weight": torch.zeros(2), "step": 7},
    "numbers as names": {1: torch.zeros(2)},
    "sparse": {"a.weight": torch.eye(3).to_sparse()},
    "meta": {"a.weight": torch.zeros(2, device="meta")},
    "no tensors": {},
}


@pytest.mark.parametrize("case", NO_STATE_DICTS)
def test_a_pickle_that_is_no_state_dict_is_refused(place: Place, case: str) -> None:
    content, path = NO_STATE_DICTS[case], place.bad() / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    place.refused(place.encode(place.root / "bad", codec="plain"), RunError, "bad")


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_cut_pickle_is_refused(place: Place, kind: str, sample: Sample) -> None:
    path = place.bad() / "pytorch_model.bin"
    torch.save({"a.weight": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in sample(range(0, len(whole), 13)):
        path.write_bytes(whole[:length])
        place.refused(place.encode(place.root / "bad", codec="plain"), RunError, "pytorch_model.bin")


# Sharded training states


def _foreign(name: str, inside: str = "") -> Callable[[Place], Path]:
    def build(place: Place) -> Path:
        run = place.bad()
        target = run / inside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"shard")
        return run

    return build


FOREIGN: dict[str, tuple[Callable[[Place], Path], str]] = {
    "FSDP in a checkpoint": (_foreign("pytorch_model_fsdp_0/__0_0.distcp", "checkpoint-5"), "FSDP"),
    "FSDP": (_foreign("pytorch_model_fsdp_0/__0_0.distcp"), "FSDP"),
    "DeepSpeed in a checkpoint": (_foreign("latest", "checkpoint-5"), "DeepSpeed"),
    "DeepSpeed steps in a checkpoint": (
        _foreign("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "checkpoint-5"),
        "DeepSpeed",
    ),
    "DeepSpeed steps": (_foreign("global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt"), "DeepSpeed"),
    "DeepSpeed": (_foreign("latest"), "DeepSpeed"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_sharded_training_states_are_refused_by_name(place: Place, case: str) -> None:
    build, words = FOREIGN[case]
    place.refused(place.encode(build(place)), RunError, words)


# Packs that are given as runs


def _copied(place: Place) -> Path:
    return Path(shutil.copytree(place.pack / "tasks", place.root / "copied"))


OF_A_PACK: dict[str, tuple[Callable[[Place], Path], str]] = {
    "a pack": (lambda place: place.pack, "is a pack, expected a run"),
    "its tasks": (lambda place: place.pack / "tasks", "holds files of a pack, expected a run"),
    "its shared parts": (lambda place: place.pack / "shared", "holds files of a pack, expected a run"),
    "a task": (lambda place: place.pack / "tasks" / f"one{SUFFIX}", "is a file of a pack, expected a run"),
    "its mark": (lambda place: place.pack / "pack.json", "is not a run"),
    "tasks elsewhere": (_copied, "holds files of a pack, expected a run"),
    "a task elsewhere": (lambda place: _copied(place) / f"one{SUFFIX}", "is a file of a pack, expected a run"),
}


@pytest.mark.parametrize("case", OF_A_PACK)
def test_a_pack_is_no_run(place: Place, case: str) -> None:
    build, words = OF_A_PACK[case]
    error = place.refused(place.encode(build(place)), RunError, words)
    assert "encode the runs inside" not in str(error.hint)
    assert petlpack.plan(build(place) if "elsewhere" not in case else place.root / "copied", place.base).runs == ()


def test_one_task_alone_is_no_run_either(place: Place) -> None:
    petlpack.remove(place.pack, "two")
    place.refused(place.encode(_copied(place)), RunError, "holds files of a pack")
    around = place.bad("around")
    shutil.copytree(place.pack, around / "p")
    error = place.refused(place.encode(around), RunError, "is not a run directory")
    assert "inside it" not in str(error.hint)


def test_a_truncated_pickle_is_told_without_what_torch_says(place: Place) -> None:
    path = place.bad() / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (whole[:-300], whole[:200], whole[:300] + bytes(200) + whole[500:]):
        path.write_bytes(content)
        with pytest.raises(RunError) as caught:
            petlpack.encode(path.parent, place.root / "new", place.base)
        assert "PytorchStreamReader" not in caught.value.message
        assert "internal" not in caught.value.message


# Matrices that were not gathered


def _sharded(names: list[str], lost: int) -> dict[str, Any]:
    """Tensors of which the first so many matrices have lost their shape, as ZeRO-3 leaves them."""
    shapes = [(0,) if i < lost else (4, 4) for i in range(len(names))]
    whole = {f"norm.{i}.weight": weights("F32", (4,), i) for i in range(6)}
    return whole | {name: weights("F32", shape, i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}


MATRICES = [f"layer.{i}.q_proj.weight" for i in range(6)]


@pytest.mark.parametrize("lost", [4, 6])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"])
def test_a_model_whose_matrices_were_not_gathered_is_refused(place: Place, kind: str, lost: int) -> None:
    run = place.bad()
    tensors = _sharded([name.replace("weight", "lora_A.weight") for name in MATRICES], lost)
    if kind.startswith("adapter"):
        (run / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    if kind.endswith(".bin"):
        torch.save({name: tensor.torch() for name, tensor in tensors.items()}, run / kind)
    else:
        write_safetensors(run / kind, tensors)
    error = place.refused(place.encode(run), RunError, f"has {lost} weights of shape [0]", "were not gathered", kind)
    assert error.hint is not None
    assert "zero_to_fp32.py" in error.hint


def test_a_few_matrices_that_were_not_gathered_are_warned_about(place: Place) -> None:
    run = write_run(place.bad(), _sharded(MATRICES, 1), None)
    (encoded,) = petlpack.encode(run, place.pack, codec="plain", task="bad")
    assert any("1 weights have shape [0], like 'layer.0.q_proj.weight'" in text for text in encoded.warnings)


def test_tensors_without_elements_are_legal(place: Place) -> None:
    tensors = {"cache": weights("F32", (0, 7)), "list": weights("F32", (0,)), "a.weight": weights("F32", (2, 2))}
    (encoded,) = petlpack.encode(write_run(place.bad(), tensors, None), place.pack, codec="plain", task="bad")
    assert encoded.warnings == ()

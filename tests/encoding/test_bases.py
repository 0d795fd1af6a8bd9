"""Which base a run is encoded against: never the run itself, the one that fits of several, and said to people."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import petlpack
from petlpack import BaseError
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from tests.support.command_line import run, run_json, write_adapter
from tests.support.small_runs import make_base, make_pair, nudged, weights, write_run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory, which is the working directory, with the model `base` and a run `tuned` of it."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "base", make_base())
    write_run(tmp_path / "tuned", make_pair(1)[0])
    return tmp_path


def names_base(run_dir: Path, name: str) -> None:
    (run_dir / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": name}), encoding="utf-8")


def inside(place: Path) -> Path:
    return Path(shutil.copytree(place / "tuned", place / "tuned" / "checkpoint-20"))


def linked(place: Path) -> Path:
    (place / "link").symlink_to(place / "tuned")
    return place / "link"


def hard_linked(place: Path) -> Path:
    (place / "twin").mkdir()
    os.link(place / "tuned" / "model.safetensors", place / "twin" / "model.safetensors")
    return place / "twin"


def linked_file(place: Path) -> Path:
    (place / "twin").mkdir()
    (place / "twin" / "model.safetensors").symlink_to(place / "tuned" / "model.safetensors")
    return place / "twin"


def around(place: Path) -> Path:
    write_run(place / "models", make_base())
    shutil.move(place / "tuned", place / "models" / "tuned")
    return place / "models"


def beside(place: Path) -> Path:
    write_run(place / "both", make_base())
    (place / "both" / "draft").mkdir()
    os.link(place / "tuned" / "model.safetensors", place / "both" / "draft" / "model.safetensors")
    return place / "both"


ITSELF = {
    "the run": lambda place: place / "tuned",
    "by a relative path": lambda place: Path("tuned"),
    "by way of its parent": lambda place: place / "tuned" / ".." / "tuned",
    "its weight file": lambda place: place / "tuned" / "model.safetensors",
    "a checkpoint in it": inside,
    "a link to it": linked,
    "a hard link to its weights": hard_linked,
    "a link to its weights": linked_file,
    "a directory that holds it": around,
    "a model with its weights beside its own": beside,
}


@pytest.mark.parametrize("case", ITSELF)
@pytest.mark.parametrize("named", [False, True])
def test_a_run_is_not_its_own_base(case: str, named: bool, place: Path) -> None:
    base = ITSELF[case](place)
    tuned = place / "models" / "tuned" if case == "a directory that holds it" else place / "tuned"
    if named and base.is_file():
        pytest.skip("a config names directories")
    if named:
        names_base(tuned, str(place / base))
    with pytest.raises(BaseError) as caught:
        petlpack.encode(tuned, "p", None if named else base)
    assert caught.value.code == "base-is-run"
    assert caught.value.exit_code == 5
    assert not Path("p").exists()
    assert run("encode", tuned, "--pack", "p", *([] if named else ["--base", base])).exit_code == 5
    assert not Path("p").exists()


def test_a_config_is_no_base_and_no_failed_download(place: Path) -> None:
    with pytest.raises(BaseError, match=r"config.json' is no weight file: its name ends in .json") as caught:
        petlpack.encode(place / "tuned", place / "pack", place / "base" / "config.json")
    assert caught.value.hint == "pass the model's directory, or its weight file"


def test_a_component_may_be_one_file_in_run_and_base(place: Path) -> None:
    write_run(place / "base" / "tower", make_base(2))
    (place / "tuned" / "tower").mkdir()
    os.link(place / "base" / "tower" / "model.safetensors", place / "tuned" / "tower" / "model.safetensors")
    petlpack.encode("tuned", "p", "base")


@pytest.mark.parametrize("name", [".", "tuned", "base", "./base", "checkpoint-20"])
def test_a_relative_name_is_not_looked_for_in_the_working_directory(name: str, place: Path) -> None:
    names_base(place / "tuned", name)
    inside(place)
    with pytest.raises(BaseError, match="needs its base") as caught:
        petlpack.encode("tuned", "p")
    assert caught.value.code == "base-missing"
    assert not Path("p").exists()


def test_an_absolute_name_is(place: Path) -> None:
    names_base(place / "tuned", str(place / "base"))
    (task,) = petlpack.encode("tuned", "p")
    assert task.base is not None
    assert task.base.path == str(place / "base")


def test_the_base_is_said_by_encode_show_and_errors(place: Path) -> None:
    names_base(place / "base", "org/minilm")
    answer = run_json("encode", "tuned", "--pack", "p", "--base", "base")[1]
    base = answer["tasks"][0]["base"]
    task = petlpack.open("p")["tuned"]
    assert base == {"name": "org/minilm", "path": "base", "sha256": task.template.base_table}
    text = run("encode", "tuned", "--pack", "q", "--base", "base").stdout
    assert f"Base: 'org/minilm' (base), sha256 {base['sha256'][:12]}." in text
    said = f"the base 'org/minilm' (base when it was encoded), sha256 {base['sha256']}"
    with pytest.raises(BaseError) as missing:
        task.load()
    assert said in missing.value.message
    write_run(place / "other", make_base(1))
    with pytest.raises(BaseError) as another:
        task.state_dict("other")
    assert said in str(another.value.hint)
    assert said.removeprefix("the base ") in " ".join(run("show", "p", "tuned").stdout.split())


def test_a_base_in_a_hub_cache_is_called_as_on_the_hub(place: Path) -> None:
    snapshot = place / "hub" / "models--org--name" / "snapshots" / "0a1b"
    shutil.copytree("base", snapshot)
    (task,) = petlpack.encode("tuned", "p", snapshot)
    assert task.base is not None
    assert task.base.name == "org/name"


# Several


@pytest.fixture
def four(place: Path) -> Path:
    """Return a directory of runs of four bases, two of one architecture, which stand in `models`."""
    sizes = {"small": (0, 2, 16), "twin": (7, 2, 16), "deep": (5, 3, 16), "wide": (3, 2, 32)}
    for name, (seed, layers, width) in sizes.items():
        base = make_base(seed, layers=layers, width=width)
        write_run(place / "models" / name, base)
        write_run(place / "runs" / f"of-{name}", {key: nudged(t, 3) for key, t in base.items()})
    return place


@pytest.mark.parametrize("way", ["directory", "each"])
def test_each_run_takes_the_base_that_it_fits(way: str, four: Path) -> None:
    paths = ["models"] if way == "directory" else [f"models/{name}" for name in ("wide", "twin", "small", "deep")]
    options = [word for path in paths for word in ("--base", path)]
    runs = sorted((four / "runs").iterdir())
    code, answer = run_json("encode", *runs, "--pack", "p", *options)
    assert code == 0
    bases = {row["name"].removeprefix("of-"): Path(row["base"]["path"]).name for row in answer["tasks"]}
    assert bases == {name: name for name in bases}
    code, answer = run_json("verify", "p", *options)
    assert code == 0
    assert {row["depth"] for row in answer["checked"] if row["kind"] == "task"} == {"decoded"}
    for name in bases:
        assert run("decode", "p", f"of-{name}", f"out/{name}", *options).exit_code == 0
        wanted = (four / "runs" / f"of-{name}" / "model.safetensors").read_bytes()
        assert (four / "out" / name / "model.safetensors").read_bytes() == wanted
    code, answer = run_json("plan", *runs, *options)
    assert code == 0


def test_a_sibling_with_the_same_head_is_not_taken_for_the_base(place: Path) -> None:
    base = make_base(words=200)
    write_run(place / "base", base)
    for name, seed in (("one", 1), ("other", 50)):
        tuned = {key: nudged(tensor, seed + i) for i, (key, tensor) in enumerate(base.items())}
        write_run(place / name, {**tuned, "classifier.weight": make_base(seed)["embeddings.LayerNorm.weight"]})
    (task,) = petlpack.encode("one", "p", ["other", "base"])
    assert task.base is not None
    assert task.base.path == "base"
    write_adapter(place / "adapter", "LORA")
    (adapter,) = petlpack.encode("adapter", "p", ["other", "base"])
    assert adapter.base is None
    assert any("fits 'other' and 'base' alike" in text for text in adapter.warnings)


def test_a_task_whose_base_is_none_of_several_says_so(four: Path) -> None:
    petlpack.encode("runs/of-small", "p", "models/small")
    with pytest.raises(BaseError, match="which is none of 'models/twin', 'models/deep': the base 'small'"):
        petlpack.open("p")["of-small"].load(["models/twin", "models/deep"])


def test_a_run_that_fits_none_of_several_is_refused(four: Path) -> None:
    write_run(four / "stranger", {"a.b.c.weight": weights("F32", (50, 16), 99)})
    with pytest.raises(BaseError, match="fits none of the 4 bases"):
        petlpack.encode("stranger", "p", "models")
    assert not Path("p").exists()


@pytest.fixture
def kinds(four: Path) -> Path:
    """Return four bases and runs of them that have the bases' names, others, or none of a base's."""
    t5 = {
        f"{side}.block.0.layer.0.SelfAttention.{part}.weight": weights("F32", (24, 24), 7 * i + j)
        for i, side in enumerate(("encoder", "decoder"))
        for j, part in enumerate("qkvo")
    }
    write_run(four / "models" / "t5", t5)
    write_run(four / "kinds" / "t5", {name: nudged(tensor, 3) for name, tensor in t5.items()})
    small, deep = make_base(0, layers=2, width=16), make_base(5, layers=3, width=16)
    wrapped = {f"module._orig_mod.{name}": nudged(tensor, 3) for name, tensor in small.items()}
    write_run(four / "kinds" / "wrapped", wrapped)
    numbered = {f"p{i}": nudged(tensor, 3) for i, tensor in enumerate(deep.values())}
    write_run(four / "kinds" / "renamed", numbered)
    lora = {
        f"base_model.model.encoder.layer.2.attention.self.query.lora_{side}.weight": weights("F32", shape, 3)
        for side, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    config = json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "deep"}).encode()
    write_run(four / "kinds" / "lora", lora, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    return four


OF_KINDS = {"t5": "t5", "wrapped": "small", "renamed": "deep", "lora": "deep"}


def test_whatever_the_names_each_kind_of_run_takes_its_base(kinds: Path) -> None:
    runs = sorted((kinds / "kinds").iterdir())
    code, answer = run_json("encode", *runs, "--pack", "p", "--base", "models")
    assert code == 0
    assert {row["name"]: Path(row["base"]["path"]).name for row in answer["tasks"]} == OF_KINDS
    code, answer = run_json("verify", "p", "--base", "models")
    assert code == 0
    assert {row["depth"] for row in answer["checked"] if row["kind"] == "task"} == {"decoded"}
    for path in runs:
        file = "adapter_model.safetensors" if path.name == "lora" else "model.safetensors"
        assert run("decode", "p", path.name, f"out/{path.name}", "--base", "models").exit_code == 0
        assert (kinds / "out" / path.name / file).read_bytes() == (path / file).read_bytes()
    code, answer = run_json("plan", *runs, "--base", "models")
    assert code == 0
    assert not answer["failed"]


def test_fused_weights_find_the_base_that_they_come_from(tmp_path: Path) -> None:
    names = [f"layers.{i}.attn.{part}.weight" for i in range(2) for part in "qkv"]
    for seed, name in enumerate(("one", "other")):
        base = {key: weights("F32", (32, 32), 40 * seed + i) for i, key in enumerate(names)}
        write_run(tmp_path / "models" / name, base)
    near = {key: nudged(tensor, i) for i, (key, tensor) in enumerate(base.items())}
    fused = {
        f"h.{i}.c_attn": Tensor.of(
            np.concatenate([near[name].bits() for name in names[3 * i : 3 * i + 3]]).reshape(96, 32), DTYPES["F32"]
        )
        for i in range(2)
    }
    write_run(tmp_path / "run", fused)
    (task,) = petlpack.encode(tmp_path / "run", tmp_path / "p", tmp_path / "models")
    assert task.base is not None
    assert task.base.name == "other"


# Adapters of several bases


def _prompt(place: Path) -> None:
    tensors = {"prompt_embeddings": weights("F32", (4, 16), 3)}
    config = json.dumps({"peft_type": "PROMPT_TUNING"}).encode()
    write_run(place / "adapter", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")


@pytest.mark.parametrize("adapter", ["lora", "prompt"])
@pytest.mark.parametrize("command", ["encode", "plan"])
def test_an_adapter_of_two_bases_alike_is_told(command: str, adapter: str, four: Path) -> None:
    _prompt(four) if adapter == "prompt" else write_adapter(four / "adapter", "LORA")
    options = ["--base", "models/small", "--base", "models/twin"]
    told = run(command, "adapter", *(["--pack", "p"] if command == "encode" else []), *options)
    assert told.exit_code == 0
    assert "fits 'models/small' and 'models/twin' alike" in " ".join(told.stderr.split())
    if command == "encode":
        assert run("verify", "p", *options).exit_code == 0
        assert petlpack.open("p")["adapter"].template.origin is None


def test_of_bases_that_are_one_to_an_adapter_the_first_is_taken(four: Path) -> None:
    small = make_base(0, layers=2, width=16)
    write_run(four / "models" / "z-twin", {**small, "embeddings.LayerNorm.weight": weights("F32", (16,), 9)})
    write_adapter(four / "adapter", "LORA")
    (task,) = petlpack.encode("adapter", "p", ["models/z-twin", "models/small"])
    assert task.base is not None
    assert task.base.name == "z-twin"
    assert not [text for text in task.warnings if "alike" in text]
    assert run("verify", "p", "--base", "models/small", "--base", "models/twin").exit_code == 0
    _prompt(four)
    (task,) = petlpack.encode("adapter", "p", ["models/z-twin", "models/small"], replace=True)
    assert task.base is None  # nothing of the bases is known to be adapted, and they differ


def test_whole_tensors_in_an_adapters_file_tell_its_base(four: Path) -> None:
    twin, name = make_base(7, layers=2, width=16), "embeddings.word_embeddings.weight"
    write_adapter(four / "adapter", "LORA")
    lora = petlpack.Base(four / "adapter" / "adapter_model.safetensors").tensors
    tensors = {**lora, f"base_model.model.{name}": nudged(twin[name], 2)}
    config = (four / "adapter" / "adapter_config.json").read_bytes()
    write_run(four / "whole", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    (task,) = petlpack.encode("whole", "p", "models")
    assert task.base is not None
    assert task.base.name == "twin"


def test_an_adapter_of_none_of_several_bases_is_told(four: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    config = json.dumps({"peft_type": "LORA"}).encode()
    tensors = {name: weights("F32", (2, 99), 1)}
    write_run(four / "llama", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    (task,) = petlpack.encode("llama", "p", "models")
    assert task.base is None
    assert any("adapts no module of" in text for text in task.warnings)


# Adapters


def test_an_adapter_is_bound_to_its_base(place: Path) -> None:
    write_adapter(place / "adapter", "LORA")
    (encoded,) = petlpack.encode("adapter", "p", "base")
    assert encoded.base is not None
    task = petlpack.open("p")["adapter"]
    assert task.template.adapts is not None
    assert task.template.adapts.tensors == (
        "encoder.layer.0.attention.self.query.bias",
        "encoder.layer.0.attention.self.query.weight",
    )
    task.load()
    task.load("base")
    write_run(place / "other", make_base(1))
    with pytest.raises(BaseError, match="is not the one that task 'adapter' adapts"):
        task.load("other")
    task.load("other", check_base=False)
    assert run("verify", "p", "--base", "base").exit_code == 0
    assert run("verify", "p", "--base", "other").exit_code == 5
    assert run("verify", "p", "--base", "other", "--base", "base").exit_code == 0


def test_an_adapter_of_another_model_is_not_counted_with_the_base(place: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    config = json.dumps({"peft_type": "LORA"}).encode()
    tensors = {name: make_base(1)["encoder.layer.0.attention.self.query.weight"]}
    write_run(place / "llama", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    (task,) = petlpack.encode("llama", "p", "base")
    assert task.base is None
    assert any("adapts no module of base 'base'" in text for text in task.warnings)
    (row,) = petlpack.stats("p").tasks
    assert (row.dense_bytes, row.base) == (None, None)
    (row,) = petlpack.stats("p", "base").tasks
    assert (row.dense_bytes, row.base) == (None, None)


def test_whole_tensors_in_an_adapters_file_are_predicted_by_the_base(place: Path) -> None:
    base = make_base(words=5000)
    write_run(place / "base", base)
    name = "embeddings.word_embeddings.weight"
    lora = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    tensors = {
        lora: make_base(5)["encoder.layer.0.attention.self.query.weight"],
        f"base_model.model.{name}": base[name],
    }
    config = json.dumps({"peft_type": "LORA"}).encode()
    write_run(place / "adapter", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    (alone,) = petlpack.encode("adapter", "q")
    (task,) = petlpack.encode("adapter", "p", "base")
    assert task.nbytes < alone.nbytes / 100
    petlpack.open("p")["adapter"].decode("out", "base")
    weights = Path("out/adapter_model.safetensors").read_bytes()
    assert weights == Path("adapter/adapter_model.safetensors").read_bytes()
    with pytest.raises(BaseError):
        petlpack.open("p")["adapter"].decode("out2")


RESIZED = "base_model.model.embeddings.word_embeddings.weight"
UNTIED = "base_model.model.lm_head.weight"


@pytest.mark.parametrize(("rows", "names"), [(4992, [RESIZED]), (5008, [RESIZED, UNTIED]), (5000, [UNTIED])])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resized_and_untied_embeddings_of_an_adapter_are_predicted(
    rows: int, names: list[str], dtype: str, place: Path
) -> None:
    base = make_base(words=5000)
    write_run(place / "base", base)
    lora = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    values = torch.from_numpy(base["embeddings.word_embeddings.weight"].bits().view("f4").copy())
    tuned = torch.cat([values, values[:8] * 0.5])[:rows].to(getattr(torch, dtype))
    tensors = {lora: torch.full((2, 16), 0.5), **{other: tuned + 0.001 * (other == UNTIED) for other in names}}
    (place / "adapter").mkdir()
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, place / "adapter" / "adapter_model.safetensors")
    (place / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    (alone,) = petlpack.encode("adapter", "q")
    (task,) = petlpack.encode("adapter", "p", "base")
    assert task.nbytes < alone.nbytes * (0.5 if UNTIED in names else 0.1)
    petlpack.open("p")["adapter"].decode("out", "base")
    weights = Path("out/adapter_model.safetensors").read_bytes()
    assert weights == Path("adapter/adapter_model.safetensors").read_bytes()


def test_a_head_of_an_adapter_that_comes_from_nothing_needs_no_base(place: Path) -> None:
    tensors = {
        "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight": weights("F32", (2, 16), 3),
        RESIZED: weights("F32", make_base()["embeddings.word_embeddings.weight"].shape, 4),
    }
    config = json.dumps({"peft_type": "LORA"}).encode()
    write_run(place / "adapter", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    petlpack.encode("adapter", "p", "base")
    petlpack.open("p")["adapter"].decode("out")


def write_lora(
    place: Path, *, hidden: int = 16, layers: int = 2, inner: int = 32, config: Mapping[str, str] | None = None
) -> Path:
    """Write LoRA of rank 4 on the queries and the inner layers of a model of these widths, with so many layers."""
    tensors = {}
    for layer in range(layers):
        for name, out in (("attention.self.query", hidden), ("intermediate.dense", inner)):
            module = f"base_model.model.encoder.layer.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = weights("F32", (4, hidden), layer)
            tensors[f"{module}.lora_B.weight"] = weights("F32", (out, 4), layer)
    text = json.dumps({"peft_type": "LORA", **(config or {})}).encode()
    return write_run(place, tensors, None, {"adapter_config.json": text}, "adapter_model.safetensors")


STRANGERS = {
    "wider": (24, 2, 48),
    "wider, with an inner width of the base's": (24, 2, 32),
    "more layers": (16, 5, 32),
    "another inner width": (16, 2, 40),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_an_adapter_of_another_shape_is_not_bound(case: str, place: Path) -> None:
    hidden, layers, inner = STRANGERS[case]
    write_lora(place / "adapter", hidden=hidden, layers=layers, inner=inner)
    (task,) = petlpack.encode("adapter", "p", "base")
    assert task.base is None
    assert any("do not fit base 'base'" in text or "adapts no module" in text for text in task.warnings)
    assert petlpack.stats("p", "base").tasks[0].dense_bytes is None
    petlpack.open("p")["adapter"].decode("out", "base")


def test_an_adapter_of_modules_that_the_base_has_fused_is_bound(place: Path) -> None:
    fused = {f"encoder.layer.{i}.mlp.experts.up": weights("F32", (4, 48, 16), i) for i in range(2)}
    write_run(place / "fused", {**make_base(), **fused})
    tensors = {}
    for layer in range(2):
        module = f"base_model.model.encoder.layer.{layer}.mlp.experts.3.up_proj"
        tensors[f"{module}.lora_A.weight"] = weights("F32", (4, 16), layer)
        tensors[f"{module}.lora_B.weight"] = weights("F32", (24, 4), layer)
    config = json.dumps({"peft_type": "LORA"}).encode()
    write_run(place / "adapter", tensors, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    (task,) = petlpack.encode("adapter", "p", "fused")
    assert task.base is not None
    assert not task.warnings


def test_an_adapter_of_its_shape_is_bound(place: Path) -> None:
    write_lora(place / "adapter")
    (task,) = petlpack.encode("adapter", "p", "base")
    assert task.base is not None
    assert not task.warnings


@pytest.mark.parametrize(("width", "bound"), [(16, True), (24, False)])
def test_a_prompt_says_the_width_of_its_model(width: int, bound: bool, place: Path) -> None:
    config = json.dumps({"peft_type": "PROMPT_TUNING", "token_dim": width}).encode()
    prompt = {"prompt_embeddings": weights("F32", (4, width), 1)}
    write_run(place / "adapter", prompt, None, {"adapter_config.json": config}, "adapter_model.safetensors")
    (task,) = petlpack.encode("adapter", "p", "base")
    assert (task.base is not None) == bound
    assert bool(task.warnings) != bound


def test_another_name_on_the_hub_than_the_configs_is_told(place: Path) -> None:
    names_base(place / "base", "org/a")
    write_lora(place / "adapter", config={"base_model_name_or_path": "org/b"})
    (task,) = petlpack.encode("adapter", "p", "base")
    assert [text for text in task.warnings if "'org/b'" in text and "'org/a'" in text]
    write_lora(place / "fork", config={"base_model_name_or_path": "fork/A"})
    assert not petlpack.encode("fork", "p", "base")[0].warnings


def test_a_fine_tune_as_base_is_called_by_its_directory_where_the_run_names_that(place: Path) -> None:
    names_base(place / "base", "org/a")
    names_base(place / "tuned", str(place / "base"))
    (task,) = petlpack.encode("tuned", "p")
    assert task.base is not None
    assert task.base.name == "base"


def test_a_run_in_a_directory_of_models_takes_another_of_them(place: Path) -> None:
    models = place / "models"
    models.mkdir()
    shutil.move(place / "base", models / "base")
    for name, seed in (("tuned", 1), ("other", 2)):
        write_run(models / name, make_pair(seed)[0])
    write_run(models / "base", make_pair(1)[1])
    encoded = [*petlpack.encode_runs([models / "tuned", models / "other"], "p", models)]
    assert [str(task.base.path) for run in encoded for task in run.tasks if task.base] == [str(models / "base")] * 2


def test_a_checkpoint_beside_the_weight_file_that_is_the_run_is_no_base(place: Path) -> None:
    inside(place)
    with pytest.raises(BaseError) as caught:
        petlpack.encode("tuned/model.safetensors", "p", "tuned/checkpoint-20")
    assert caught.value.code == "base-is-run"


def test_another_checkpoint_of_one_training_is_no_base_by_its_name_alone(place: Path) -> None:
    for step in (10, 20):
        shutil.copytree(place / "tuned", place / "run" / f"checkpoint-{step}")
    write_run(place / "run" / "checkpoint-20", make_base())
    names_base(place / "run" / "checkpoint-10", str(place / "run" / "checkpoint-20"))
    with pytest.raises(BaseError) as caught:
        petlpack.encode("run/checkpoint-10", "p")
    assert caught.value.code == "base-is-run"
    assert petlpack.encode("run/checkpoint-10", "p", "run/checkpoint-20")[0].base is not None


def test_a_copy_of_the_run_is_told(place: Path) -> None:
    shutil.copytree(place / "tuned", place / "copy")
    (task,) = petlpack.encode("tuned", "p", "copy")
    assert any("bit for bit: it may be a copy of the run" in text for text in task.warnings)


# Where a base may stand


def _as_checkpoint(place: Path) -> Path:
    (place / "run-of-base").mkdir()
    shutil.copytree("base", place / "run-of-base" / "checkpoint-7")
    return place / "run-of-base"


def _as_cache(place: Path) -> Path:
    shutil.copytree("base", place / "models--org--name" / "snapshots" / "0a1b")
    return place / "models--org--name"


def _called(name: str) -> Callable[[Path], Path]:
    def rename(place: Path) -> Path:
        (place / "base" / "model.safetensors").rename(place / "base" / name)
        return place / "base"

    return rename


def _best(place: Path) -> Path:
    run_dir = _as_checkpoint(place)
    write_run(run_dir / "checkpoint-9", make_base(3))
    state = json.dumps({"best_model_checkpoint": "elsewhere/checkpoint-7"})
    (run_dir / "trainer_state.json").write_text(state, encoding="utf-8")
    return run_dir


PLACES = {
    "a checkpoint of a run": _as_checkpoint,
    "the best checkpoint of a run": _best,
    "a folder of the hub's cache": _as_cache,
    "a file": lambda place: place / "base" / "model.safetensors",
    **{name: _called(name) for name in ("weights.safetensors", "diffusion_pytorch_model.safetensors")},
}


@pytest.mark.parametrize("case", PLACES)
def test_a_base_is_opened_as_a_run_is(case: str, place: Path) -> None:
    wanted = {name: petlpack.Base("base").sha256(name) for name in make_base()}
    base = petlpack.Base(PLACES[case](place))
    assert {name: base.sha256(name) for name in base.tensors} == wanted
    (task,) = petlpack.encode("tuned", "p", base)
    assert task.codec != "plain"


def test_of_several_files_without_a_models_name_none_is_taken(place: Path) -> None:
    shutil.copy("base/model.safetensors", "base/one.safetensors")
    Path("base/model.safetensors").rename("base/two.safetensors")
    with pytest.raises(BaseError, match=r"has 2 weight files.*one.safetensors, two.safetensors"):
        petlpack.encode("tuned", "p", "base")

"""AdapterHub's adapters: their name is a parameter of what they share, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import petlpack
from petlpack import PetlpackError, RunError
from tests.support import method_runs as runs
from tests.support.method_cases import edit_weights, files_of, octets, read_weights
from tests.support.method_runs import Written

KINDS = ["seq_bn", "lora", "prefix", "ia3"]

AWKWARD = {
    "layer": "layer",
    "output": "output",
    "a number": "0",
    "another number": "12",
    "a letter": "a",
    "a word of the names": "weight",
    "a word of two": "lora_A",
    "a dtype": "F32",
    "a word of the header": "data_offsets",
    "another word of the header": "shape",
    "a word of the file names": "adapter",
    "the suffix": "bin",
    "a word of the config": "config",
    "the model": "bert",
    "the head": "heads",
    "a word of the rule": "rows",
    "a kind of the rule": "lora",
    "true": "true",
    "null": "null",
    "the name": "name",
    "with a dash": "sst-2",
    "with a plus": "a+b(c)",
    "with a backslash": "a\\d",
    "with a dot": "v1.0",
    "with a slash": "sst/2",
    "with a space": "my adapter",
    "with a quote": 'a"b',
    "200 characters": "n" * 200,
    "128 characters": "n" * 128,
    "unicode": "ädapter-日本",
    "a control character": "a\nb",
    "the parameter": "{name}",
    "the parameter inside": "x{name}y",
    "a group of a regular expression": "\\g<0>",
}


def check_back(run: Written, task: petlpack.Task, out: Path) -> None:
    task.decode(out)
    assert set(files_of(out)) == set(files_of(run.path))
    for file, content in files_of(run.path).items():
        if file in run.files:
            tensors = read_weights(out / file)
            assert {key: octets(tensor) for key, tensor in tensors.items()} == {
                key: octets(array) for key, array in run.files[file].items()
            }
        else:
            assert (out / file).read_bytes() == content


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
@pytest.mark.parametrize("case", AWKWARD)
def test_an_adapter_of_any_name_comes_back(tmp_path: Path, case: str, safe: bool) -> None:
    for kind in ("lora", "seq_bn"):
        run = runs.write_adapterhub(tmp_path / kind, AWKWARD[case], kind=kind, use_safetensors=safe)
        petlpack.encode(run.path, tmp_path / "pack", task=kind, jobs=1)
        task = petlpack.open(tmp_path / "pack")[kind]
        check_back(run, task, tmp_path / f"out-{kind}")
        (checked,) = petlpack.verify(tmp_path / "pack", task=kind, against=run.path)
        assert (checked.error, checked.depth) == (None, "compared")
        rebuilt = task.rebuild()
        assert (rebuilt is not None) is (kind == "lora" and "." not in AWKWARD[case])
        if rebuilt is not None:
            place = "bert.encoder.layer.0.attention.self.query"
            stored = run.tensors[f"{place}.loras.{AWKWARD[case]}.lora_A"]
            assert octets(rebuilt.tensors[f"{place}.lora_A"].numpy()) == octets(stored)
    if safe:
        name = "adapter.safetensors"
        assert (tmp_path / "out-lora" / name).read_bytes() == (tmp_path / "lora" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_two_names_share_template_and_configs(tmp_path: Path, kind: str) -> None:
    pack = tmp_path / "pack"
    written = {
        name: runs.write_adapterhub(tmp_path / name, name, kind=kind, seed=seed)
        for seed, name in enumerate(("rte", "a_much-longer_name", "sst2"))
    }
    counts = []
    for name, run in written.items():
        petlpack.encode(run.path, pack, task=name, jobs=1)
        counts.append(len(list((pack / "shared").iterdir())))
    opened = petlpack.open(pack)
    first, second, third = (opened[name] for name in written)
    assert first.manifest.params["name"] == "rte"
    assert first.template.files == second.template.files == third.template.files
    assert set(first.template.named) == {"adapter_config.json", "head_config.json"}
    assert first.manifest.shared == second.manifest.shared == third.manifest.shared
    assert counts == [3, 3, 3]  # the template and two configs
    for name, run in written.items():
        check_back(run, opened[name], tmp_path / f"out-{name}")


def test_an_adapter_called_by_a_word_of_its_config_comes_back(tmp_path: Path) -> None:
    """The config says the word elsewhere, too: all of it becomes the parameter, and comes back."""
    run = runs.write_adapterhub(tmp_path / "run", "classification", kind="lora")
    petlpack.encode(run.path, tmp_path / "pack", task="run", jobs=1)
    check_back(run, petlpack.open(tmp_path / "pack")["run"], tmp_path / "out")


def write_several(place: Path, names: dict[str, str]) -> dict[str, Written]:
    """Adapters in folders of one run, by folder."""
    return {
        folder: runs.write_adapterhub(place / folder, name, kind="lora", seed=seed)
        for seed, (folder, name) in enumerate(names.items())
    }


def test_several_adapters_of_one_run_are_tasks(tmp_path: Path) -> None:
    written = write_several(tmp_path / "run", {"one": "sst2", "two": "rte"})
    encoded = petlpack.encode(tmp_path / "run", tmp_path / "pack", task="run", jobs=1)
    assert [one.name for one in encoded] == ["run.sst2", "run.rte"]
    pack = petlpack.open(tmp_path / "pack")
    for folder, name in (("one", "sst2"), ("two", "rte")):
        pack[f"run.{name}"].decode(tmp_path / f"out-{name}")
        back = files_of(tmp_path / f"out-{name}")
        assert set(back) == {f"{folder}/{file}" for file in files_of(tmp_path / "run" / folder)}
        for file, arrays in written[folder].files.items():
            tensors = read_weights(tmp_path / f"out-{name}" / folder / file)
            assert {key: octets(tensor) for key, tensor in tensors.items()} == {
                key: octets(array) for key, array in arrays.items()
            }


def test_two_adapters_of_one_name_leave_the_pack_as_it_was(tmp_path: Path) -> None:
    write_several(tmp_path / "run", {"one": "sst2", "two": "sst2"})
    good = runs.write_adapterhub(tmp_path / "good", "good")
    petlpack.encode(good.path, tmp_path / "pack", task="good", jobs=1)
    before = files_of(tmp_path / "pack")
    with pytest.raises(PetlpackError) as caught:
        petlpack.encode(tmp_path / "run", tmp_path / "pack", task="run", jobs=1)
    assert "sst2" in caught.value.message
    assert files_of(tmp_path / "pack") == before


def test_several_adapters_of_awkward_names(tmp_path: Path) -> None:
    """A name that cannot be a task's does not stop the run."""
    write_several(tmp_path / "run", {"one": "sst2", "two": "ädapter 日本"})
    encoded = petlpack.encode(tmp_path / "run", tmp_path / "pack", task="run", jobs=1)
    assert len(encoded) == 2


def test_adapters_in_checkpoints_of_their_own(tmp_path: Path) -> None:
    """model.save_adapter into checkpoint-5 and checkpoint-10: the last one counts."""
    for seed, step in enumerate((5, 10)):
        run = runs.write_adapterhub(tmp_path / "run" / f"checkpoint-{step}", "sst2", kind="lora", seed=seed)
    (encoded,) = petlpack.encode(tmp_path / "run", tmp_path / "pack", task="run", jobs=1)
    assert encoded.name == "run"
    check_back(run, petlpack.open(tmp_path / "pack")["run"], tmp_path / "out")


@pytest.mark.parametrize("name", [None, "", 7, ["a"]])
def test_an_adapter_without_a_name(tmp_path: Path, name: object) -> None:
    run = runs.write_adapterhub(tmp_path / "run", "sst2", kind="lora")
    path = run.path / "adapter_config.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**table, "name": name}), encoding="utf-8")
    with pytest.raises(RunError, match="does not name its adapter"):
        petlpack.encode(run.path, tmp_path / "pack", task="run")


@pytest.mark.parametrize("config", [None, 7, "seq_bn", [], {}])
def test_an_adapter_whose_config_is_odd_is_kept_as_it_is(tmp_path: Path, config: object) -> None:
    run = runs.write_adapterhub(tmp_path / "run", "sst2", kind="lora")
    path = run.path / "adapter_config.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**table, "config": config}), encoding="utf-8")
    petlpack.encode(run.path, tmp_path / "pack", task="run", jobs=1)
    task = petlpack.open(tmp_path / "pack")["run"]
    check_back(run, task, tmp_path / "out")
    assert task.rebuild() is None


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    run = runs.write_adapterhub(tmp_path / "run", "sst2", kind="lora")
    name = next(iter(run.files["pytorch_adapter.bin"]))
    edit_weights(run.path / "pytorch_model_head.bin", lambda saved: saved.update({name: torch.zeros(2)}))
    with pytest.raises(RunError, match="which is also in another file of the adapter") as caught:
        petlpack.encode(run.path, tmp_path / "pack", task="run")
    assert name in caught.value.message


def test_half_precision_adapters_come_back(tmp_path: Path) -> None:
    run = runs.write_adapterhub(tmp_path / "run", "sst2", kind="lora")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):

        def cast(saved: dict[str, torch.Tensor], dtype: torch.dtype = dtype) -> None:
            saved.update({key: tensor.to(dtype) for key, tensor in saved.items()})

        edit_weights(run.path / "pytorch_adapter.bin", cast)
        name = str(dtype).removeprefix("torch.")
        petlpack.encode(run.path, tmp_path / "pack", task=name, jobs=1)
        task = petlpack.open(tmp_path / "pack")[name]
        task.decode(tmp_path / name)
        wanted = read_weights(run.path / "pytorch_adapter.bin")
        found = read_weights(tmp_path / name / "pytorch_adapter.bin")
        assert all(found[key].dtype == dtype and octets(found[key]) == octets(wanted[key]) for key in wanted)


FUSION = "bert.encoder.layer.0.output.adapter_fusion_layer.a,b.query."


@pytest.mark.parametrize("file", ["pytorch_model_adapter_fusion.bin", "model_adapter_fusion.safetensors"])
def test_a_fusion_alone_comes_back_in_the_file_that_loads_it(tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = {"config": {"key": True}, "adapter_names": ["a", "b"], "name": "a,b", "model_name": "bert-base"}
    (run / "adapter_fusion_config.json").write_text(json.dumps(config), encoding="utf-8")
    fusion = {f"{FUSION}weight": torch.eye(4), f"{FUSION}bias": torch.arange(4.0)}
    torch.save(fusion, run / file) if file.endswith(".bin") else save_file(fusion, run / file)
    (task,) = petlpack.encode(run, tmp_path / "pack", jobs=1)
    assert (task.layout, task.method, task.warnings, task.left_out) == ("adapterhub", "adapter fusion", (), ())
    out = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out").path
    assert set(files_of(out)) == set(files_of(run))
    back = read_weights(out / file)
    assert {name: octets(tensor) for name, tensor in back.items()} == {
        name: octets(tensor.numpy()) for name, tensor in fusion.items()
    }
    (checked,) = petlpack.verify(tmp_path / "pack", task="run", against=run)
    assert (checked.error, checked.depth) == (None, "compared")

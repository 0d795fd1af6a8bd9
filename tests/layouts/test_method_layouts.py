"""Runs of every method come back: each tensor to the bit, under its name, in the file that the reference code loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch

import petlpack
from petlpack import DamageError, RunError, UsageError
from petlpack.exports.registry import EXPORTS
from petlpack.layouts.registry import LAYOUTS
from petlpack.store import SUFFIX
from tests.support import method_runs as runs
from tests.support.command_line import rewrite
from tests.support.method_cases import (
    ADAPTER,
    CASES,
    TASKS,
    TOKENIZER,
    Packed,
    edit_weights,
    files_of,
    octets,
    pack_case,
    read_weights,
    shown,
    write_case,
)

SHAPES = {
    "even": runs.Shape(),
    "odd": runs.Shape(
        3, width=6, bottleneck=3, vocab=7, heads=2, labels=3, positions=5, rank=3, prefix=5, prefix_hidden=3
    ),
    "one layer": runs.Shape(1, width=10, bottleneck=10, heads=1, labels=1, rank=1, prefix=1, prefix_hidden=1),
}


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_a_run_comes_back_as_the_reference_code_loads_it(tmp_path: Path, name: str, shape: str) -> None:
    packed = pack_case(name, tmp_path, SHAPES[shape])
    case = packed.case
    assert [one.name for one in packed.encoded] == (
        ["run"] if len(case.tasks) < 2 else [f"run.{task}" for task in packed_order(packed.run, case.tasks)]
    )
    for task in case.tasks or (None,):
        opened = packed.task(task)
        assert opened.codec in case.codec
        assert opened.exact is case.exact
        out = tmp_path / f"out-{task}"
        notes = opened.decode(out, packed.base, jobs=1).notes
        assert len(notes) == (packed.encoded[0].layout == "propetl-t5" and len(case.tasks) > 1)
        expected = case.back(packed.written, task)
        back = files_of(out)
        assert set(back) == {*expected, *case.files}
        for file in case.files:
            changes: dict[str, dict[str, object]] = {"pha": {"tasks": [task]}, "adamix": {"num_experts": 1}}
            change = changes.get(case.layout)
            if change is not None and file == "config.json" and "keep_experts" not in case.options.get("settings", {}):
                config = json.loads((packed.run / file).read_text(encoding="utf-8"))
                assert json.loads(back[file]) == {**config, **change}
            else:
                assert back[file] == (packed.run / file).read_bytes(), file
        for file, arrays in expected.items():
            tensors = read_weights(out / file)
            assert set(tensors) == set(arrays), file
            for key, array in arrays.items():
                assert shown(tensors[key]) == shown(array), key
                assert octets(tensors[key]) == octets(array), key
            if not file.endswith(".safetensors"):
                first: dict[int, str] = {}
                for key, array in arrays.items():
                    other = first.setdefault(id(array), key)
                    assert tensors[key].data_ptr() == tensors[other].data_ptr(), (key, other)


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_is_the_run(tmp_path: Path, name: str) -> None:
    packed = pack_case(name, tmp_path)
    for task in packed.case.tasks or (None,):
        state = packed.task(task).state_dict(packed.base)
        expected = {
            key: array for arrays in packed.case.back(packed.written, task).values() for key, array in arrays.items()
        }
        assert state.keys() == expected.keys()
        assert all(octets(state[key]) == octets(array) for key, array in expected.items())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.base and case.layout != "diff-pruning"])
def test_a_task_is_rebuilt_without_its_base(tmp_path: Path, name: str) -> None:
    """What a method adds is stored by itself: the base is for the rest of the model."""
    packed = pack_case(name, tmp_path)
    for task in packed.case.tasks or (None,):
        alone, beside = packed.task(task).rebuild(), packed.task(task).rebuild(packed.base)
        assert alone is not None
        assert beside is not None
        assert alone.tensors.keys() == beside.tensors.keys()
        for key, tensor in alone.tensors.items():
            assert octets(tensor.numpy()) == octets(beside.tensors[key].numpy())
        packed.task(task).decode(tmp_path / f"out-{task}", to="safetensors")


def packed_order(run: Path, tasks: tuple[str, ...]) -> list[str]:
    """The order of the tasks in the run: PHA's stands in config.json alone."""
    order = json.loads((run / "config.json").read_text(encoding="utf-8")).get("tasks")
    return list(tasks) if order is None else list(order)


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_verified_against_its_run(tmp_path: Path, name: str) -> None:
    packed = pack_case(name, tmp_path)
    for checked in petlpack.verify(packed.pack, packed.base):
        assert checked.error is None
        assert checked.depth == ("decoded" if checked.kind == "task" else "bytes")
    for one in packed.encoded:
        (checked,) = petlpack.verify(packed.pack, packed.base, task=one.name, against=packed.run)
        assert (checked.error, checked.depth) == (None, "compared")


VERIFIED = {
    "propetl adapter": ("sst2/pytorch_adapter.bin", "layer.0.output.adapters.sst2.adapter_up.bias"),
    "propetl lora": ("sst2/adapter_mask.bin", "layer.1.attention.self.query.adapters_mask.sst2.lora_B_mask"),
    "propetl prefix": ("sst2/pytorch_adapter.bin", "control_trans.0.bias"),
    "t5": ("propetl_weight.bin", "mask_scores.rte_down_mask.param"),
    "adamix": ("pytorch_model_expert_soup.bin", "layer.0.output.ExpertSoup.MoA_A.deepspeed_experts.2.bias"),
    "adamix nlg lora": ("model.1000.pt", "h.1.attn.c_attn.experts_lora_A.5"),
    "diff pruning 2": ("mag0.5p.pt", "bert.encoder.layer.1.output.dense.bias"),
    "pha": ("pytorch_model.bin", "decoder.param_gen.decoder.linear2.bias"),
    "hyperformer": ("pytorch_model.bin", "encoder.block.0.layer.0.layer_norm.weight"),
    "hub lora": ("pytorch_adapter.bin", "layer.0.attention.self.query.loras.sst2.lora_B"),
}


@pytest.mark.parametrize("name", VERIFIED)
def test_a_run_with_one_other_number_is_told_from_it(tmp_path: Path, name: str) -> None:
    packed = pack_case(name, tmp_path)
    file, wanted = VERIFIED[name]

    def change(saved: dict[str, torch.Tensor]) -> None:
        found = [key for key in saved if key.endswith(wanted)]
        assert found
        for key in found:
            flat = saved[key].reshape(-1)
            flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] + 1

    edit_weights(packed.run / file, change)
    (checked,) = petlpack.verify(packed.pack, packed.base, task=packed.task(TASKS[0]).name, against=packed.run)
    assert isinstance(checked.error, DamageError)
    assert "differs from the one in" in checked.error.message
    assert wanted.replace("experts.2", "experts.0").replace("lora_A.5", "lora_A.0") in checked.error.message


def test_a_task_that_a_run_does_not_have_is_said_to_be_missing(tmp_path: Path) -> None:
    packed = pack_case("pha", tmp_path)
    other = runs.write_pha(tmp_path / "other", ["rte", "sst2", "mnli"], seed=3)
    with pytest.raises(
        RunError, match=r"'run\.cola' was encoded from task 'cola' of a run, but '.*other' holds sst2, rte, mnli"
    ):
        petlpack.verify(packed.pack, packed.base, task="run.cola", against=other.path)


def test_an_averaged_run_can_be_encoded_again(tmp_path: Path) -> None:
    """Its config says one expert, which is what there is."""
    packed = pack_case("adamix", tmp_path)
    packed.task().decode(tmp_path / "out")
    (encoded,) = petlpack.encode(tmp_path / "out", packed.pack, task="again", jobs=1)
    assert encoded.layout == "adamix"
    one, other = packed.task().rebuild(), petlpack.open(packed.pack)["again"].rebuild()
    assert one is not None
    assert other is not None
    assert {key: octets(tensor.numpy()) for key, tensor in one.tensors.items()} == {
        key: octets(tensor.numpy()) for key, tensor in other.tensors.items()
    }


# Sharing


def parts_of(pack: Path, task: str) -> list[str]:
    """sha256 of the shared parts of tensors that a task needs."""
    return list(petlpack.open(pack)[task].manifest.shared[1:])


def shared_bytes(pack: Path) -> int:
    return sum(path.stat().st_size for path in (pack / "shared").iterdir())


@pytest.mark.parametrize("kind", ["adapter", "lora", "prefix"])
def test_tasks_of_one_prototype_store_it_once(tmp_path: Path, kind: str) -> None:
    shape = runs.Shape(width=48, bottleneck=16, rank=16)
    written = {
        task: runs.write_propetl_roberta(
            tmp_path / task, task, shape, kind=kind, seed=seed, prototype_seed=0 if task != "other" else 9
        )
        for seed, task in enumerate(("rte", "stsb", "other"))
    }
    pack = tmp_path / "pack"
    sizes = []
    for task, run in written.items():
        petlpack.encode(run.path, pack, task=task, jobs=1)
        sizes.append(shared_bytes(pack))
    assert parts_of(pack, "rte") == parts_of(pack, "stsb") != parts_of(pack, "other")
    (part,) = parts_of(pack, "rte")
    template = petlpack.open(pack)["rte"].manifest.shared[0]
    assert template == petlpack.open(pack)["stsb"].manifest.shared[0]  # the name is a parameter
    assert sizes[1] == sizes[0]  # nothing new but the task's own file
    assert sizes[2] > sizes[1]
    opened = petlpack.open(pack)
    opened.remove("rte")
    opened.remove("other")
    gone = {path.name.split(".")[0] for path, _ in opened.gc()}
    assert gone
    assert part not in gone
    opened["stsb"].decode(tmp_path / "out")
    again = read_weights(tmp_path / "out" / "stsb" / "pytorch_adapter.bin")
    for key, array in written["stsb"].files["stsb/pytorch_adapter.bin"].items():
        if not key.endswith(".adapters_mask"):
            assert octets(again[key]) == octets(array)
    opened.remove("stsb")
    assert part in {path.name.split(".")[0] for path, _ in opened.gc()}
    assert shared_bytes(pack) == 0


EIGHT = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")


def test_eight_tasks_on_t5_share_prototype_and_layer_masks(tmp_path: Path) -> None:
    shape = runs.Shape(layers=4, width=64, bottleneck=16)
    written = runs.write_propetl_t5(tmp_path / "run", EIGHT, shape, seed=3)
    pack = tmp_path / "pack"
    settings = {"combine": "or", "activation": "gelu_new"}
    encoded = petlpack.encode(written.path, pack, task="glue", settings=settings, jobs=1)
    assert [one.name for one in encoded] == [f"glue.{task}" for task in EIGHT]
    assert len({tuple(parts_of(pack, one.name)) for one in encoded}) == 1
    mask_bytes = 2 * shape.width * shape.bottleneck // 8
    prototype = sum(array.nbytes for key, array in written.tensors.items() if ".adapters." in key)
    (part,) = parts_of(pack, "glue.cola")
    assert prototype / 2 < encoded[0].shared[part] < prototype + 8 * mask_bytes + 4096
    for one in encoded[:-1]:
        assert one.nbytes < mask_bytes + 1024
    assert encoded[-1].nbytes < 1024  # whose masks are the first layer's, which are shared
    template = {petlpack.open(pack)[one.name].manifest.shared[0] for one in encoded[:-1]}
    assert len(template) == 1


def test_eight_tasks_of_pha_are_a_row_each(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", family="t5").path
    written = runs.write_pha(tmp_path / "run", EIGHT, seed=3)
    encoded = petlpack.encode(written.path, tmp_path / "pack", base, task="glue", jobs=1)
    assert len(encoded) == 8
    assert len({tuple(parts_of(tmp_path / "pack", one.name)) for one in encoded}) == 1
    assert all(one.nbytes <= 1536 for one in encoded)
    assert len({petlpack.open(tmp_path / "pack")[one.name].manifest.shared[0] for one in encoded}) == 1


# Writing as something else

NO_RULE = "has no rule that makes modules for"
BEST = "model.safetensors"
PEFT = {"adapter_config.json", "adapter_model.safetensors"}
HUB = {"adapter_config.json", "pytorch_adapter.bin"}
HUB_HEAD = HUB | {"head_config.json", "pytorch_model_head.bin"}

WRITTEN: dict[tuple[str, str], set[str] | str] = {
    ("propetl adapter", "safetensors"): {BEST},
    ("propetl adapter", "peft"): "of kind 'adapter', which PEFT cannot hold",
    ("propetl adapter", "adapterhub"): HUB_HEAD,
    ("propetl lora", "safetensors"): {BEST},
    ("propetl lora", "peft"): PEFT,
    ("propetl lora", "adapterhub"): HUB_HEAD,
    ("propetl prefix", "safetensors"): {BEST},
    ("propetl prefix", "peft"): "of kind 'prefix', which PEFT cannot hold",
    ("propetl prefix", "adapterhub"): "of kind 'prefix'",
    ("t5", "safetensors"): {BEST},
    ("t5", "peft"): "of kind 'adapter', which PEFT cannot hold",
    ("t5", "adapterhub"): HUB,
    ("t5 full model", "safetensors"): {BEST},
    ("t5 full model", "adapterhub"): HUB,
    ("adamix", "safetensors"): {BEST},
    ("adamix", "peft"): "of kind 'adapter', which PEFT cannot hold",
    ("adamix", "adapterhub"): HUB_HEAD,
    ("adamix experts", "safetensors"): {BEST},
    ("adamix experts", "adapterhub"): HUB_HEAD,
    ("adamix full model", "adapterhub"): HUB_HEAD,
    ("adamix nlg lora", "safetensors"): {BEST},
    ("adamix nlg lora", "peft"): PEFT,
    ("adamix nlg lora", "adapterhub"): HUB,
    ("adamix nlg adapter", "adapterhub"): HUB,
    ("diff pruning 3", "safetensors"): {BEST, "config.json", *TOKENIZER},
    ("diff pruning 3", "peft"): NO_RULE,
    ("diff pruning 3", "adapterhub"): NO_RULE,
    ("pha", "safetensors"): {BEST},
    ("pha", "adapterhub"): HUB,
    ("pha", "peft"): "of kind 'adapter', which PEFT cannot hold",
    ("hyperformer", "safetensors"): {BEST},
    ("hyperformer", "peft"): "of kind 'adapter', which PEFT cannot hold",
    ("hyperformer", "adapterhub"): "output-norm",
    ("hub lora", "safetensors"): {BEST},
    ("hub lora", "peft"): PEFT,
    ("hub lora", "adapterhub"): HUB_HEAD,
    ("hub seq_bn", "peft"): NO_RULE,
    ("hub seq_bn", "safetensors"): {BEST, *ADAPTER},
    ("hub prefix", "peft"): NO_RULE,
    ("hub ia3", "peft"): NO_RULE,
}


@pytest.mark.parametrize(("name", "to"), WRITTEN)
def test_what_a_task_can_be_written_as(tmp_path: Path, name: str, to: str) -> None:
    packed = pack_case(name, tmp_path)
    task, wanted = packed.task(TASKS[0]), WRITTEN[name, to]
    out = tmp_path / "out"
    if isinstance(wanted, str):
        with pytest.raises(UsageError, match=wanted) as caught:
            task.decode(out, packed.base, to=to)
        assert caught.value.message.startswith(f"cannot write task '{task.name}' as {to}: ")
        assert "safetensors" in str(caught.value.hint)
        assert not out.exists()
        return
    task.decode(out, packed.base, to=to)
    assert set(files_of(out)) == wanted
    rebuilt = task.rebuild(packed.base)
    if to == "safetensors" and rebuilt is not None:
        with safetensors.safe_open(out / BEST, "np") as file:
            assert json.loads(file.metadata()["use"]) == {"kind": rebuilt.kind, "settings": dict(rebuilt.settings)}
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        expected = {**rebuilt.tensors, **rebuilt.head}
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert octets(found[key]) == octets(tensor.numpy()), key


def outcome(packed: Packed, out: Path, to: str) -> dict[str, bytes] | str:
    """Return the files that a task is written as, or how that is refused."""
    try:
        packed.task(TASKS[0]).decode(out, packed.base, to=to)
    except UsageError as error:
        return error.message
    return files_of(out)


@pytest.mark.parametrize("to", EXPORTS)
@pytest.mark.parametrize("name", ["propetl lora", "propetl prefix", "hub lora", "diff pruning 3", "adamix experts"])
def test_facts_change_nothing_of_what_is_written(tmp_path: Path, name: str, to: str) -> None:
    packed = pack_case(name, tmp_path)
    (file,) = (packed.pack / "tasks").iterdir()
    task = file.name.removesuffix(SUFFIX)
    before = outcome(packed, tmp_path / "out", to)
    method = packed.task(TASKS[0]).method
    for layout in (*LAYOUTS, "run"):
        rewrite(packed.pack, task, facts={"layout": layout, "method": method})
        assert outcome(packed, tmp_path / f"out-{layout}", to) == before, layout


@pytest.mark.parametrize(
    ("name", "to"), [("hub lora", "adapterhub"), ("hub seq_bn", "adapterhub"), ("hub prefix", "adapterhub")]
)
def test_what_a_library_loads_already_is_written_as_it_was(tmp_path: Path, name: str, to: str) -> None:
    packed = pack_case(name, tmp_path)
    assert outcome(packed, tmp_path / "out", to) == outcome(packed, tmp_path / "run-again", "run")


def test_peft_and_bare_files_are_written_as_they_were(tmp_path: Path) -> None:
    packed = pack_case("propetl lora", tmp_path)
    packed.task().decode(tmp_path / "peft", packed.base, to="peft")
    bare = tmp_path / "my weights.safetensors"
    shutil.copy(tmp_path / "peft" / "adapter_model.safetensors", bare)
    for run, to, codec in ((tmp_path / "peft", "peft", "auto"), (bare, "safetensors", "plain")):
        petlpack.encode(run, tmp_path / "pack", task=to, codec=codec)
        petlpack.open(tmp_path / "pack")[to].decode(tmp_path / f"out-{to}", to=to)
        assert files_of(tmp_path / f"out-{to}") == (files_of(run) if run.is_dir() else {run.name: run.read_bytes()})


def test_no_layout_of_that_name(tmp_path: Path) -> None:
    packed = pack_case("hub lora", tmp_path)
    with pytest.raises(UsageError, match="unknown layout 'onnx' to decode to") as caught:
        packed.task().decode(tmp_path / "out", to="onnx")
    assert "run, safetensors, portable, peft, adapterhub" in str(caught.value.hint)


# Odd runs

ODD = ("0", "weight", "decoder", "up", "stsb_up", "superglue-boolq", "F32", "name")


@pytest.mark.parametrize("name", ["t5", "pha", "hyperformer"])
def test_tasks_of_any_name_come_back(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    base = runs.write_base(tmp_path / "base", family="t5").path
    writers: dict[str, Callable[..., runs.Written]] = {
        "t5": runs.write_propetl_t5,
        "pha": runs.write_pha,
        "hyperformer": runs.write_hyperformer,
    }
    written = writers[name](tmp_path / "run", ODD, seed=3)
    petlpack.encode(written.path, tmp_path / "pack", base, task="run", jobs=1, **case.options)
    for task in ODD:
        opened = petlpack.open(tmp_path / "pack")[f"run.{task}"]
        opened.decode(tmp_path / task, base, jobs=1)
        for file, arrays in case.back(written, task).items():
            tensors = read_weights(tmp_path / task / file)
            assert {key: octets(tensor) for key, tensor in tensors.items()} == {
                key: octets(array) for key, array in arrays.items()
            }
        rebuilt = opened.rebuild(base)
        assert rebuilt is not None
        assert all(tensor.bits().size for tensor in rebuilt.tensors.values())


@pytest.mark.parametrize("kind", ["adapter", "lora", "prefix"])
def test_adapters_of_any_name_come_back(tmp_path: Path, kind: str) -> None:
    for task in ("0", "weight", "stsb_up", "layer", "down_mask", "lora_A", "adapters_mask", "ä"):
        written = runs.write_propetl_roberta(tmp_path / task, task, kind=kind, seed=3, prototype_seed=0)
        name = task if task.isascii() else "other"
        petlpack.encode(written.path, tmp_path / "pack", task=name, jobs=1)
        opened = petlpack.open(tmp_path / "pack")[name]
        opened.decode(tmp_path / f"out-{task}", jobs=1)
        for file, arrays in CASES[f"propetl {kind}"].back(written, task).items():
            tensors = read_weights(tmp_path / f"out-{task}" / file)
            assert {key: octets(tensor) for key, tensor in tensors.items()} == {
                key: octets(array) for key, array in arrays.items()
            }
        rebuilt = opened.rebuild()
        assert rebuilt is not None
        assert len(rebuilt.tensors) == {"adapter": 8, "lora": 8, "prefix": 2}[kind]
    parts = {tuple(opened.manifest.shared[1:]) for opened in petlpack.open(tmp_path / "pack").values()}
    assert len(parts) == 1


def test_a_multilingual_run_gives_back_its_masks(tmp_path: Path) -> None:
    """Of the last language is the first layer's mask, as the loop that makes them leaves it."""
    written = runs.write_propetl_t5(tmp_path / "run", ["rte", "cola"], seed=3, languages=["en", "de"])
    settings = {"combine": "or", "activation": "gelu_new"}
    petlpack.encode(written.path, tmp_path / "pack", task="run", settings=settings, jobs=1)
    name = "encoder.block.0.layer.1.adapter_controller.mask_scores.{}_up_mask.param"
    tensors = petlpack.open(tmp_path / "pack")["run.rte"].load()
    assert octets(tensors[name.format("layer")].numpy()) == octets(written.tensors[name.format("de")])


@pytest.mark.parametrize("write", [runs.write_pha, runs.write_hyperformer])
def test_a_base_in_half_precision_is_the_base(tmp_path: Path, write: Callable[..., runs.Written]) -> None:
    base = runs.write_base(tmp_path / "base", family="t5", dtype="float16")
    wide = {name: array.astype("float32") for name, array in base.tensors.items()}
    written = write(tmp_path / "run", TASKS, seed=3, base=wide)
    settings = {"activation": "gelu_new"} if write is runs.write_hyperformer else {}
    petlpack.encode(written.path, tmp_path / "pack", base.path, task="run", settings=settings, jobs=1)
    task = petlpack.open(tmp_path / "pack")["run.rte"]
    tensors = task.load(base.path)
    unchanged = {tensors.sources.slots[i].name for i in tensors.sources.unchanged}
    assert unchanged >= {name for name in wide if name in written.tensors and not name.endswith("layer_norm.weight")}
    for name in unchanged:
        assert octets(tensors[name].numpy()) == octets(written.tensors[name])


def test_the_soup_counts_and_the_full_model_beside_it_is_left_out(tmp_path: Path) -> None:
    written = runs.write_adamix(tmp_path / "run", full=True, seed=3)
    (encoded,) = petlpack.encode(written.path, tmp_path / "pack", task="run", jobs=1)
    assert {left.file: left.why for left in encoded.left_out}["pytorch_model.bin"] == "other weights"
    petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out")
    assert (tmp_path / "out" / "pytorch_model_expert_soup.bin").exists()
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


@pytest.mark.parametrize(("steps", "chosen"), [((1000, 20000, 3000), "20000"), ((1000, "final"), "final")])
def test_the_last_step_of_an_nlg_run_counts(tmp_path: Path, steps: tuple[object, ...], chosen: str) -> None:
    for step in steps:
        runs.write_adamix_nlg(tmp_path / f"{step}", seed=len(str(step)))
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.move(tmp_path / f"{step}" / "model.1000.pt", tmp_path / "run" / f"model.{step}.pt")
    petlpack.encode(tmp_path / "run", tmp_path / "pack", task="run", settings={"scaling": "8"}, jobs=1)
    petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out")
    assert set(files_of(tmp_path / "out")) == {f"model.{chosen}.pt"}


def test_a_single_file_of_a_run_is_taken(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base")
    nlg = runs.write_adamix_nlg(tmp_path / "nlg", seed=3)
    diff = runs.write_diff_pruning(tmp_path / "diff", base.path, stage=2, seed=3)
    for name, file, settings in (
        ("nlg", nlg.path / "model.1000.pt", {"scaling": "8"}),
        ("diff", diff.path / "mag0.5p.pt", {}),
    ):
        (encoded,) = petlpack.encode(file, tmp_path / "pack", base.path, task=name, settings=settings, jobs=1)
        assert encoded.layout in ("adamix", "diff-pruning")
        (checked,) = petlpack.verify(tmp_path / "pack", base.path, task=name, against=file)
        assert (checked.error, checked.depth) == (None, "compared")


# Where a run stands


@pytest.mark.parametrize("name", ["propetl adapter", "t5", "adamix", "pha", "hyperformer"])
def test_a_run_in_its_last_checkpoint_is_found(tmp_path: Path, name: str) -> None:
    case, written, base = write_case(name, tmp_path)
    for step in (5, 10):
        shutil.copytree(written.path, tmp_path / "trained" / f"checkpoint-{step}")
    encoded = petlpack.encode(tmp_path / "trained", tmp_path / "pack", base, task="run", jobs=1, **case.options)
    assert {one.layout for one in encoded} == {case.layout}
    told = {left.file for left in encoded[0].left_out}
    assert {file for file in told if file.startswith("checkpoint-5/")}
    for one in encoded:
        (checked,) = petlpack.verify(tmp_path / "pack", base, task=one.name, against=tmp_path / "trained")
        assert checked.error is None


@pytest.mark.parametrize("name", CASES)
def test_training_state_is_left_out_and_never_opened(tmp_path: Path, name: str) -> None:
    """The generators' training_args.bin is a pickle that raises."""
    packed = pack_case(name, tmp_path)
    there = {path.name for path in packed.run.rglob("*")} & {"training_args.bin", "optimizer.pt", "scheduler.pt"}
    for one in packed.encoded:
        told = {left.file: left.why for left in one.left_out}
        assert {told[file] for file in there} <= {"training state, not needed for inference"}
        assert there <= told.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_task_says_how_it_is_rebuilt(tmp_path: Path, name: str) -> None:
    packed = pack_case(name, tmp_path)
    for one in packed.encoded:
        task = petlpack.open(packed.pack)[one.name]
        assert bool(task.formula()) is (task.rebuild(packed.base) is not None)
        assert all(line.isprintable() for line in task.formula())


@pytest.mark.parametrize(
    "name", ["propetl adapter", "t5", "adamix", "diff pruning 3", "pha", "hyperformer", "hub lora"]
)
def test_encoding_is_the_same_on_every_run(tmp_path: Path, name: str) -> None:
    case, written, base = write_case(name, tmp_path)
    for i, jobs in enumerate((1, 3)):
        petlpack.encode(written.path, tmp_path / f"pack{i}", base, task="run", jobs=jobs, **case.options)
    assert files_of(tmp_path / "pack0") == files_of(tmp_path / "pack1")

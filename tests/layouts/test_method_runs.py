"""Run directories as they lie around: checkpoints, companions, shards, odd heads; and rules that make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import petlpack
from petlpack import DamageError, RunError, UsageError
from petlpack.codecs.mask import MaskCodec
from petlpack.codecs.plain import PlainCodec
from tests.support import method_runs as runs
from tests.support.method_cases import edit_json, edit_weights, octets, read_weights
from tests.support.method_runs import Shape

SHAPE = Shape()
T5 = {"combine": "or", "activation": "gelu_new"}


def encode(run: Path, place: Path, base: Path | None = None, **options: Any) -> petlpack.Encoded:
    (encoded,) = petlpack.encode(run, place / "pack", base, task="run", jobs=1, **options)
    return encoded


def test_tied_weights_are_pruned_as_one(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    rng = np.random.default_rng(0)
    tuned = {
        name: torch.from_numpy(array + rng.normal(0, 1e-3, array.shape).astype("f4"))
        for name, array in base.tensors.items()
    }
    ties = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    (tmp_path / "run").mkdir()
    torch.save(tuned | dict.fromkeys(ties, tuned["shared.weight"]), tmp_path / "run" / "pytorch_model.bin")
    (tmp_path / "run" / "config.json").write_text("{}")
    encode(tmp_path / "run", tmp_path, base.path, density=0.02)
    task = petlpack.open(tmp_path / "pack")["run"]
    tensors = task.load(base.path)
    assert len({tensors[name].sha256() for name in ("shared.weight", *ties)}) == 1
    changed = sum(int((tensors[name].bits() != array.view("<u4")).sum()) for name, array in base.tensors.items())
    total = sum(array.size for array in base.tensors.values())
    assert task.facts.density == pytest.approx(changed / total)
    assert changed / total == pytest.approx(0.02, rel=0.02)


def test_weights_that_became_equal_are_pruned_each_by_its_own_base(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE)
    one, two = (f"encoder.layer.{i}.attention.output.dense.bias" for i in (0, 1))
    tuned = {f"bert.{name}": torch.from_numpy(array.copy()) for name, array in base.tensors.items()}
    for name in (one, two):
        tuned[f"bert.{name}"] = torch.full_like(tuned[f"bert.{name}"], 0.01)
    (tmp_path / "run").mkdir()
    safetensors.torch.save_file(tuned, tmp_path / "run" / "model.safetensors", {"format": "pt"})
    (tmp_path / "run" / "config.json").write_text("{}")
    encode(tmp_path / "run", tmp_path, base.path, density=0.0005)
    task = petlpack.open(tmp_path / "pack")["run"]
    tensors = task.load(base.path)
    for name in (one, two):
        found, wanted, given = tensors[f"bert.{name}"].numpy(), tuned[f"bert.{name}"].numpy(), base.tensors[name]
        assert ((found == wanted) | (found == given)).all()
        error = float(np.abs(found - wanted).max())
        assert error <= (task.facts.errors or {}).get(f"bert.{name}", 0.0)


@pytest.mark.parametrize("best", [True, False])
def test_the_best_checkpoint_of_a_method_counts(tmp_path: Path, best: bool) -> None:
    run = tmp_path / "run"
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    written = {n: runs.write_pha(run / f"checkpoint-{n}", ["a", "b"], SHAPE, seed=n) for n in (100, 200)}
    for n in (100, 200):
        (run / f"checkpoint-{n}" / "trainer_state.json").unlink()
    if best:
        (run / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "out/checkpoint-100"}))
    petlpack.encode(run, tmp_path / "pack", base.path, task="run", jobs=1)
    tensors = petlpack.open(tmp_path / "pack")["run.a"].load(base.path)
    name = "decoder.param_gen.layer_embed.weight"
    assert octets(tensors[name].numpy()) == octets(written[100 if best else 200].tensors[name])


def test_a_half_written_checkpoint_of_a_method_is_told(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    for n in (100, 200):
        runs.write_pha(tmp_path / "run" / f"checkpoint-{n}", ["a", "b"], SHAPE, seed=n)
    cut = tmp_path / "run" / "checkpoint-200" / "pytorch_model.bin"
    cut.write_bytes(cut.read_bytes()[:1000])
    encoded = petlpack.encode(tmp_path / "run", tmp_path / "pack", base.path, task="run", jobs=1)
    assert any("checkpoint-200" in warning for one in encoded for warning in one.warnings)


def test_other_weights_beside_an_adapter_are_told(tmp_path: Path) -> None:
    runs.write_adapterhub(tmp_path / "run" / "mrpc", "mrpc", SHAPE, kind="lora")
    runs.write_base(tmp_path / "run", SHAPE)
    encoded = encode(tmp_path / "run", tmp_path, max_file=100)
    assert encoded.layout == "adapterhub"
    assert any("larger than --max-file: model.safetensors" in warning for warning in encoded.warnings)


def test_a_broken_config_in_a_folder_is_not_the_runs(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE)
    run = runs.write_base(tmp_path / "run", SHAPE, seed=1)
    (run.path / "notes").mkdir()
    (run.path / "notes" / "adapter_config.json").write_text("{")
    assert encode(run.path, tmp_path, base.path).layout == "transformers"


def test_averaged_experts_are_listed_as_left_out(tmp_path: Path) -> None:
    written = runs.write_adamix(tmp_path / "run", SHAPE)
    encoded = encode(written.path, tmp_path)
    (gone,) = (left for left in encoded.left_out if "experts" in left.file)
    experts = [
        array for name, array in written.tensors.items() if ".deepspeed_experts." in name and ".experts.0." not in name
    ]
    dropped = [
        array
        for name, array in written.tensors.items()
        if ".MoA_A.deepspeed_experts." in name and "experts.0." not in name
    ]
    assert gone.nbytes == sum(array.nbytes for array in dropped)
    assert len(dropped) < len(experts)
    with pytest.raises(UsageError, match="does not take"):
        encode(written.path, tmp_path / "plain", codec="plain")


def test_mask_scores_are_listed_as_left_out(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    written = runs.write_propetl_t5(tmp_path / "run", ["a", "b"], SHAPE, weight_file=False, full_model=True)
    encoded = petlpack.encode(
        written.path, tmp_path / "pack", base.path, task="run", settings=T5 | {"keep_ratio": "0.3"}, jobs=1
    )
    assert all(any("mask scores" in left.file for left in one.left_out) for one in encoded)


@pytest.mark.parametrize("bake", [True, False])
def test_what_a_prefix_loses_is_listed_as_left_out(tmp_path: Path, bake: bool) -> None:
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", SHAPE, kind="prefix", keep=0.5)
    encoded = encode(written.path, tmp_path, settings={"bake": bake})
    names = [left.file for left in encoded.left_out]
    assert any("mask scores (1 tensor)" in name for name in names)
    assert any("the network of the prefix" in name for name in names) == bake
    assert encoded.exact is not bake


@pytest.mark.parametrize("changes", [{"head_type": "tagging"}, {"activation_function": "relu"}, {"use_pooler": True}])
@pytest.mark.parametrize("to", ["peft", "adapterhub"])
def test_an_odd_head_is_left_out_of_another_library(tmp_path: Path, to: str, changes: dict[str, Any]) -> None:
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", SHAPE, kind="lora", keep=0.1)
    path = written.path / "sst2" / "head_config.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"config": table["config"] | changes}))
    encode(written.path, tmp_path)
    decoded = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out", to=to)
    assert any("left out the head" in note for note in decoded.notes)
    names = {
        name
        for file in decoded.path.iterdir()
        if file.suffix in (".bin", ".safetensors")
        for name in read_weights(file)
    }
    assert names
    assert not any("head" in name or "classifier" in name for name in names)


def test_masks_that_keep_all_are_counted(tmp_path: Path) -> None:
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", SHAPE, keep=0.5, raw_scores=True)
    encode(written.path, tmp_path, settings={"keep_ratio": "1"})
    (row,) = petlpack.stats(tmp_path / "pack").tasks
    assert (row.figures.density, row.figures.entropy_bits) == (1.0, 0.0)


def test_the_density_of_t5_counts_every_mask_once(tmp_path: Path) -> None:
    written = runs.write_propetl_t5(tmp_path / "run", ["a", "b", "c"], SHAPE, keep=0.25)
    petlpack.encode(written.path, tmp_path / "pack", task="run", settings=T5, jobs=1)
    for row in petlpack.stats(tmp_path / "pack").tasks:
        assert row.figures.density == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_a_scaling_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    written = runs.write_adamix_nlg(tmp_path / "run", SHAPE)
    with pytest.raises(UsageError, match="setting scaling must be a finite number"):
        encode(written.path, tmp_path, settings={"scaling": value})


def test_a_setting_without_a_task_is_refused(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    written = runs.write_pha(tmp_path / "run", ["a", "b"], SHAPE)
    config = json.loads((written.path / "config.json").read_text())
    del config["tasks"]
    (written.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="without a name"):
        encode(written.path, tmp_path, base.path, settings={"task_order": "a,"})


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    written = runs.write_propetl_t5(tmp_path / "run", ["a", "b"], SHAPE)
    with pytest.raises(UsageError, match="setting activation must be one of"):
        encode(written.path, tmp_path, settings=T5 | {"activation": "nonsense"})


def test_a_prefix_of_an_older_adapterhub_is_no_prototype(tmp_path: Path) -> None:
    written = runs.write_adapterhub(tmp_path / "run", "sst2", SHAPE, kind="prefix")
    edit_json(written.path / "adapter_config.json", version="3.2.1")
    assert encode(written.path, tmp_path).method == "prefix_tuning"


def test_shards_of_a_model_with_experts_are_read_as_experts(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE)
    written = runs.write_adamix(tmp_path / "run", SHAPE, soup=False, full=True)
    tensors = torch.load(written.path / "pytorch_model.bin", weights_only=True)
    (written.path / "pytorch_model.bin").unlink()
    names = list(tensors)
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, held in parts.items():
        torch.save({name: tensors[name] for name in held}, written.path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (written.path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    encoded = encode(written.path, tmp_path, base.path)
    assert (encoded.layout, encoded.codec) == ("adamix", "merge")
    decoded = petlpack.open(tmp_path / "pack")["run"].decode(tmp_path / "out", base.path)
    back = safetensors.torch.load_file(decoded.path / "model.safetensors")
    assert all(torch.equal(back[name], tensors[name]) for name in back if "ExpertSoup" not in name)


def test_a_bias_of_zeros_is_not_taken_for_a_norm_of_the_base(tmp_path: Path) -> None:
    """A prototype's tensor may have the bytes of a frozen one; it is kept all the same."""
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    zero = "encoder.final_layer_norm.weight"
    state = safetensors.torch.load_file(base.path / "model.safetensors")
    safetensors.torch.save_file(
        state | {zero: torch.zeros_like(state[zero])}, base.path / "model.safetensors", {"format": "pt"}
    )
    written = runs.write_propetl_t5(tmp_path / "run", ["a"], SHAPE, weight_file=False, full_model=True, extreme=False)

    def change(saved: dict[str, Any]) -> None:
        saved[zero].zero_()
        for name in saved:
            if name.endswith("up_sampler.bias"):
                saved[name].zero_()

    edit_weights(written.path / "pytorch_model.bin", change)
    encode(written.path, tmp_path, base.path, settings={"activation": "gelu_new", "keep_ratio": "0.3"})
    rebuilt = petlpack.open(tmp_path / "pack")["run"].rebuild(base.path)
    assert rebuilt is not None
    assert not rebuilt.tensors["encoder.block.1.layer.1.up.bias"].numpy().any()
    (checked,) = petlpack.verify(tmp_path / "pack", base.path, task="run", against=written.path)
    assert (checked.error, checked.depth) == (None, "compared")


def test_networks_with_norms_before_are_refused(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", SHAPE, family="t5")
    written = runs.write_hyperformer(tmp_path / "run", ["a", "b"], SHAPE)

    def change(saved: dict[str, Any]) -> None:
        saved["encoder.adapter_layers_hyper_net.pre_layernorm_hypernet.weight_generator.weight"] = torch.ones(16, 64)

    edit_weights(written.path / "pytorch_model.bin", change)
    with pytest.raises(RunError, match="before its adapters"):
        encode(written.path, tmp_path, base.path, settings={"activation": "relu"})


SENSELESS: dict[str, list[Any]] = {
    "scaling": ["abc", None, [], True, "1e300", ".5", "nan"],
    "enable": [5, "abc", [], [1, 0, 1], [False] * 3],
    "form": [None, {}, 3],
    "activation": [[], 3],
    "norm_input": ["yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in SENSELESS for value in SENSELESS[name]], ids=str)
def test_settings_of_a_rule_that_make_no_sense_are_damage(name: str, value: object) -> None:
    rule: dict[str, Any] = {"kind": "lora", "settings": {name: value}, "rows": []}
    with pytest.raises(DamageError, match="of a rule"):
        PlainCodec().rebuild(rule, {})
    with pytest.raises(DamageError, match="of a rule"):
        MaskCodec().rebuild(rule | {"produced": []}, {})

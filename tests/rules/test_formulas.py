"""What a task is rebuilt to, against the formulas of tests/support/method_formulas.py, and each trap of the methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import petlpack
from petlpack import RunError
from petlpack.layouts.registry import read_run
from petlpack.rules.modules import Dense, Rebuilt
from tests.support import method_formulas as formulas
from tests.support import method_runs as runs
from tests.support.method_cases import KEEP, TASKS, Packed, edit_json, edit_weights, octets, pack_case, read_weights
from tests.support.method_runs import Array, Shape, Written

SHAPE = Shape()
T5_PLACES = [
    *(f"encoder.block.{i}.layer.1" for i in range(SHAPE.layers)),
    *(f"decoder.block.{i}.layer.2" for i in range(SHAPE.layers)),
]
NEAR = 1e-6
"""How near generated weights are: the largest difference in a tensor, by the largest number in it."""


def rebuilt_of(packed: Packed, task: str | None = None) -> Rebuilt:
    rebuilt = packed.task(task).rebuild(packed.base)
    assert rebuilt is not None
    return rebuilt


def numbers(rebuilt: Rebuilt) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in rebuilt.tensors.items()}


def check_bits(rebuilt: Rebuilt, expected: Mapping[str, Array]) -> None:
    """Every rebuilt tensor has the bits of the formula's."""
    found = numbers(rebuilt)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == array.shape, name
        assert octets(found[name]) == octets(np.asarray(array, np.float32)), name


def check_near(found: Array, exact: Array) -> None:
    assert exact.dtype == np.float64
    assert found.dtype == np.float32
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= NEAR * np.abs(exact).max()


def encode(run: Path, place: Path, base: Path | None = None, **options: Any) -> petlpack.Task:
    petlpack.encode(run, place / "pack", base, task="run", jobs=1, **options)
    return petlpack.open(place / "pack")["run"]


# PROPETL on RoBERTa


def prototype_of(written: Written, part: str, place: str = "") -> Array:
    return next(array for name, array in written.tensors.items() if place in name and name.endswith(part))


@pytest.mark.parametrize("name", ["propetl adapter", "propetl scores"])
def test_propetl_adapters_are_prototype_times_transposed_mask(tmp_path: Path, name: str) -> None:
    packed = pack_case(name, tmp_path)
    tensors, expected = packed.written.tensors, dict[str, Array]()
    for i in range(SHAPE.layers):
        place = f"roberta.encoder.layer.{i}.output"
        for side, key in (("down", "adapter_down.0"), ("up", "adapter_up")):
            mask = tensors[f"{place}.adapters_mask.sst2.{side}_mask"]
            mask = mask if mask.dtype == np.bool_ else formulas.mask_of_scores(mask, 0.5)
            weight = tensors[f"{place}.adapters.sst2.{key}.weight"]
            assert mask.shape == weight.shape[::-1]
            expected[f"{place}.{side}.weight"] = formulas.masked(weight, mask, transposed=True)
            expected[f"{place}.{side}.bias"] = tensors[f"{place}.adapters.sst2.{key}.bias"]
    rebuilt = rebuilt_of(packed)
    check_bits(rebuilt, expected)
    assert (rebuilt.kind, rebuilt.settings) == (
        "adapter",
        {"activation": "relu", "scaling": 1.0, "form": "pfeiffer"},
    )
    assert {name: octets(tensor.numpy()) for name, tensor in rebuilt.head.items()} == {
        name: octets(array) for name, array in tensors.items() if name.startswith("heads.")
    }


def test_propetl_loras_are_prototype_times_mask(tmp_path: Path) -> None:
    packed = pack_case("propetl lora", tmp_path)
    tensors, expected = packed.written.tensors, dict[str, Array]()
    for i in range(SHAPE.layers):
        for part in ("query", "value"):
            place = f"roberta.encoder.layer.{i}.attention.self.{part}"
            for side in ("lora_A", "lora_B"):
                mask = tensors[f"{place}.adapters_mask.sst2.{side}_mask"]
                expected[f"{place}.{side}"] = formulas.masked(tensors[f"{place}.loras.sst2.{side}"], mask)
    rebuilt = rebuilt_of(packed)
    check_bits(rebuilt, expected)
    assert (rebuilt.kind, rebuilt.settings) == ("lora", {"scaling": 1.5})
    query, value = (
        octets(prototype_of(packed.written, "loras.sst2.lora_A", f".{part}.")) for part in ("query", "value")
    )
    assert query != value  # each has a prototype of its own


@pytest.mark.parametrize("bake", [False, True])
def test_propetl_prefixes_are_the_produced_prefix_times_mask(tmp_path: Path, bake: bool) -> None:
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", kind="prefix", keep=0.1, seed=3)
    task = encode(written.path, tmp_path, settings={"bake": bake})
    module = "roberta.prefix_tuning.prefix_tunings.sst2.self_prefix"
    weights = [
        written.tensors[f"{module}.{part}"].astype(np.float64)
        for part in (
            "wte.weight",
            *(f"control_trans.{i}.{side}" for i in (0, 2) for side in ("weight", "bias")),
        )
    ]
    prototype = formulas.prefix_prototype(*weights)
    scores = written.tensors[f"{module}.adapters_mask.adapters_mask"]
    rebuilt = task.rebuild()
    assert rebuilt is not None
    assert (rebuilt.kind, rebuilt.settings) == ("prefix", {"baked": bake})
    found = numbers(rebuilt)
    assert set(found) == {f"roberta.encoder.layer.{i}.attention.self.prefix" for i in range(SHAPE.layers)}
    for i in range(SHAPE.layers):
        prefix = found[f"roberta.encoder.layer.{i}.attention.self.prefix"]
        mask = formulas.mask_of_scores(scores[i], 0.1)
        check_near(prefix, formulas.masked(prototype, mask))
        assert np.array_equal(prefix != 0, mask)  # no product of random weights is 0
    assert task.exact is not bake
    if bake:
        kept = set(task.load())
        assert not any(".control_trans." in name or ".wte." in name for name in kept)
        assert f"{module}.prefix" in kept
        full = encode(written.path, tmp_path / "full")
        again = full.rebuild()
        assert again is not None
        assert {name: octets(array) for name, array in numbers(again).items()} == {
            name: octets(array) for name, array in found.items()
        }


# PROPETL on T5


def t5_masks(written: Written, task: str, place: str, side: str) -> tuple[Array, Array]:
    """The task's and the layer's mask; of the first layer the latter is the last task's."""
    tensors = written.tensors
    first = f"{T5_PLACES[0]}.adapter_controller.mask_scores"
    mine = tensors[f"{first}.{task}_{side}_mask.param"]
    layer = tensors.get(f"{place}.adapter_controller.mask_scores.layer_{side}_mask.param")
    assert (layer is None) == (place == T5_PLACES[0])
    return mine, tensors[f"{first}.{TASKS[-1]}_{side}_mask.param"] if layer is None else layer


@pytest.mark.parametrize("how", ["or", "and", "add"])
def test_t5_adapters_are_prototype_times_combined_masks(tmp_path: Path, how: str) -> None:
    written = runs.write_propetl_t5(tmp_path / "run", TASKS, keep=0.5, seed=3)
    settings = {"combine": how, "activation": "gelu_new"}
    petlpack.encode(written.path, tmp_path / "pack", task="glue", settings=settings, jobs=1)
    pack = petlpack.open(tmp_path / "pack")
    adapter = f"{T5_PLACES[0]}.adapter_controller.adapters.common_adapter"
    for task in TASKS:
        expected = {}
        for place in T5_PLACES:
            for side in ("down", "up"):
                mask = formulas.combine_masks(how, t5_masks(written, task, place, side))
                assert set(np.unique(mask)) <= ({0, 1, 2} if how == "add" else {0, 1})
                expected[f"{place}.{side}.weight"] = formulas.masked(
                    written.tensors[f"{adapter}.{side}_sampler.weight"], mask
                )
                expected[f"{place}.{side}.bias"] = written.tensors[f"{adapter}.{side}_sampler.bias"]
        rebuilt = pack[f"glue.{task}"].rebuild()
        assert rebuilt is not None
        check_bits(rebuilt, expected)
        assert rebuilt.settings == {"activation": "gelu_new", "scaling": 1.0, "form": "t5-output"}


def test_a_single_task_on_t5_has_a_mask_for_each_layer(tmp_path: Path) -> None:
    packed = pack_case("t5 single task", tmp_path)
    tensors, expected = packed.written.tensors, dict[str, Array]()
    adapter = f"{T5_PLACES[0]}.adapter_controller.adapters.common_adapter"
    for place in T5_PLACES:
        for side in ("down", "up"):
            mask = tensors[f"{place}.adapter_controller.mask_scores.xsum_{side}_mask.param"]
            expected[f"{place}.{side}.weight"] = formulas.masked(tensors[f"{adapter}.{side}_sampler.weight"], mask)
            expected[f"{place}.{side}.bias"] = tensors[f"{adapter}.{side}_sampler.bias"]
    check_bits(rebuilt_of(packed), expected)


def test_the_layer_mask_that_t5_runs_lack_is_the_last_tasks(tmp_path: Path) -> None:
    packed = pack_case("t5", tmp_path)
    for side in ("down", "up"):
        name = f"{T5_PLACES[0]}.adapter_controller.mask_scores.{{}}_{side}_mask.param"
        layers = [key for key in packed.written.tensors if f".layer_{side}_mask" in key]
        assert len(layers) == len(T5_PLACES) - 1  # 23 of 24 in a whole T5
        last = octets(packed.written.tensors[name.format(TASKS[-1])])
        for task in TASKS:
            tensors = packed.task(task).load()
            assert octets(tensors[name.format("layer")].numpy()) == last
            others = {name.format(other) for other in TASKS if other != task}
            assert not others & tensors.keys()
            out = tmp_path / f"{task}-{side}"
            packed.task(task).decode(out)
            back = read_weights(out / "propetl_weight.bin")
            assert octets(back[name.format("layer")]) == last
            assert len([key for key in back if f".layer_{side}_mask" in key]) == len(T5_PLACES)


def test_the_order_of_tasks_that_the_caller_says_counts(tmp_path: Path) -> None:
    written = runs.write_propetl_t5(tmp_path / "run", TASKS, seed=3)
    settings = {"combine": "or", "activation": "gelu_new", "task_order": "mnli, rte,cola"}
    petlpack.encode(written.path, tmp_path / "pack", task="glue", settings=settings, jobs=1)
    name = f"{T5_PLACES[0]}.adapter_controller.mask_scores.{{}}_down_mask.param"
    tensors = petlpack.open(tmp_path / "pack")["glue.rte"].load()
    assert octets(tensors[name.format("layer")].numpy()) == octets(written.tensors[name.format("cola")])


def test_the_full_model_and_the_weight_file_say_the_same(tmp_path: Path) -> None:
    small = runs.write_propetl_t5(tmp_path / "small", TASKS, keep=KEEP, seed=3)
    full = runs.write_propetl_t5(tmp_path / "full", TASKS, keep=KEEP, seed=3, weight_file=False, full_model=True)
    base = runs.write_base(tmp_path / "base", family="t5").path
    settings = {"combine": "or", "activation": "gelu_new"}
    petlpack.encode(small.path, tmp_path / "pack", task="small", settings=settings, jobs=1)
    settings["keep_ratio"] = str(KEEP)
    petlpack.encode(full.path, tmp_path / "pack", base, task="full", settings=settings, jobs=1)
    pack = petlpack.open(tmp_path / "pack")
    for task in TASKS:
        one, other = pack[f"small.{task}"].rebuild(), pack[f"full.{task}"].rebuild(base)
        assert one is not None
        assert other is not None
        check_bits(other, numbers(one))


# Scores


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 1.0])
def test_masks_of_scores_with_many_ties(tmp_path: Path, keep: float, dtype: str) -> None:
    """fp16 scores tie; of equal ones the later are kept, and as many as Python's int() says."""
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", seed=3, raw_scores=True)
    path = written.path / "sst2" / "adapter_mask.bin"
    rng = np.random.default_rng(3)
    scores = {
        name: (rng.integers(-4, 5, array.shape) / 8).astype(dtype)
        for name, array in written.files["sst2/adapter_mask.bin"].items()
    }
    edit_weights(path, lambda saved: saved.update({name: torch.from_numpy(array) for name, array in scores.items()}))
    task = encode(written.path, tmp_path, settings={"keep_ratio": str(keep)})
    tensors = task.load()
    for name, array in scores.items():
        mask = tensors[name].numpy().astype(np.bool_)
        assert np.array_equal(mask, formulas.mask_of_scores(array, keep)), name
        assert mask.sum() == array.size - int((1 - keep) * array.size)


def test_scores_without_a_keep_ratio_are_refused(tmp_path: Path) -> None:
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", seed=3, raw_scores=True)
    with pytest.raises(RunError, match="keep_ratio") as caught:
        encode(written.path, tmp_path)
    assert str(written.path / "sst2") in caught.value.message
    assert caught.value.hint == "pass --set keep_ratio=NUMBER, in Python settings={'keep_ratio': 'NUMBER'}"


def test_sparsity_in_the_config_is_what_is_kept(tmp_path: Path) -> None:
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", kind="prefix", keep=0.1, seed=3)
    masks = encode(written.path, tmp_path).load()
    (name,) = {name for name in masks if name.startswith("roberta.prefix_tuning") and "adapters_mask" in name}
    size = SHAPE.prefix * 2 * SHAPE.width
    assert masks[name].dtype.name == "BOOL"
    assert masks[name].numpy().reshape(SHAPE.layers, -1).sum(1).tolist() == [size - int(0.9 * size)] * SHAPE.layers


def test_a_prefixs_empty_mask_file_comes_back(tmp_path: Path) -> None:
    packed = pack_case("propetl prefix", tmp_path)
    assert torch.load(packed.run / "sst2" / "adapter_mask.bin", weights_only=True) == {}
    packed.task().decode(tmp_path / "out")
    assert torch.load(tmp_path / "out" / "sst2" / "adapter_mask.bin", weights_only=True) == {}


def test_masks_lie_transposed_on_roberta_even_where_the_shapes_hide_it(tmp_path: Path) -> None:
    shape = Shape(width=8, bottleneck=8)
    written = runs.write_propetl_roberta(tmp_path / "run", "sst2", shape, seed=3)
    rebuilt = encode(written.path, tmp_path).rebuild()
    assert rebuilt is not None
    place = "roberta.encoder.layer.0.output"
    mask = written.tensors[f"{place}.adapters_mask.sst2.down_mask"]
    weight = written.tensors[f"{place}.adapters.sst2.adapter_down.0.weight"]
    assert not np.array_equal(mask, mask.T)
    assert octets(rebuilt.tensors[f"{place}.down.weight"].numpy()) == octets(
        formulas.masked(weight, mask, transposed=True)
    )


# AdaMix

SIDES = {"down": "A", "up": "B"}


def soup_experts(written: Written, place: str, side: str, part: str) -> tuple[list[Array], Array]:
    moa = f"{place}.ExpertSoup.MoA_{SIDES[side]}"
    experts = [array for name, array in written.tensors.items() if name.startswith(moa) and name.endswith(f".{part}")]
    return experts, written.tensors[f"{moa}.expert_score_weight"]


def merged_soup(written: Written, places: list[str]) -> dict[str, Array]:
    return {
        f"{place.removeprefix('module.')}.{side}.{part}": formulas.merge_experts(
            *soup_experts(written, place, side, part)
        )
        for place in places
        for side in ("down", "up")
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("experts", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(("share_down", "share_up"), [(False, True), (True, False), (False, False), (True, True)])
def test_adamix_experts_are_averaged_in_their_order(
    tmp_path: Path, experts: int, share_down: bool, share_up: bool
) -> None:
    written = runs.write_adamix(
        tmp_path / "run", experts=experts, share_down=share_down, share_up=share_up, seed=experts
    )
    place = "bert.encoder.layer.0.output.ExpertSoup.MoA_B.deepspeed_experts.0.weight"
    edit_weights(written.path / "pytorch_model_expert_soup.bin", lambda saved: saved[place][0].fill_(-0.0))
    written.tensors[place][0] = -0.0  # the reference's sum begins at 0, so this becomes +0.0
    places = [f"bert.encoder.layer.{i}.output" for i in range(SHAPE.layers)]
    expected = merged_soup(written, places)
    merged = encode(written.path, tmp_path).rebuild()
    whole = encode(written.path, tmp_path / "experts", settings={"keep_experts": True})
    kept = whole.rebuild()
    assert merged is not None
    assert kept is not None
    for rebuilt in (merged, kept):
        check_bits(rebuilt, expected)
        assert rebuilt.settings == {"activation": "gelu", "scaling": 1.0, "form": "output"}
        assert set(rebuilt.head) == {"classifier.weight", "classifier.bias"}
    counts = (1 if share_down else experts) + (1 if share_up else experts)
    assert len([name for name in whole.load() if ".deepspeed_experts." in name]) == 2 * counts * SHAPE.layers
    torch.manual_seed(0)
    x = torch.randn(7, SHAPE.width)
    for place in places:
        made = [merged.tensors[f"{place}.{side}.{part}"].torch() for side in SIDES for part in ("weight", "bias")]
        assert octets(adapter(x, *made)) == octets(adapter(x, *(soup(written, place, side) for side in SIDES)))


def soup(written: Written, place: str, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """AdaMix expert_soup.py:34-45 in torch: the sum of softmax(scores)[e] * expert e, from 0, in order."""
    made = []
    for part in ("weight", "bias"):
        experts, scores = soup_experts(written, place, side, part)
        shares = torch.nn.functional.softmax(torch.from_numpy(scores), dim=-1)
        total: Any = 0
        for share, expert in zip(shares, experts, strict=True):
            total = total + share * torch.from_numpy(expert)
        made.append(total)
    return made[0], made[1]


def adapter(x: torch.Tensor, *parts: Any) -> torch.Tensor:
    """AdaMix modeling_bert.py:440-455, of (Wd, bd, Wu, bu) or of ((Wd, bd), (Wu, bu))."""
    wd, bd, wu, bu = parts if len(parts) == 4 else (*parts[0], *parts[1])
    linear = torch.nn.functional.linear
    return linear(torch.nn.functional.gelu(linear(x, wd, bd)), wu, bu) + x


@pytest.mark.parametrize("experts", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_experts_of_other_dtypes_are_averaged_in_their_own(tmp_path: Path, experts: int, dtype: torch.dtype) -> None:
    """As torch does to the bit; of bfloat16, which numpy lacks, in float32, rounded once (formats/codecs/merge.md)."""
    written = runs.write_adamix(tmp_path / "run", experts=experts, seed=3)
    path = written.path / "pytorch_model_expert_soup.bin"
    edit_weights(path, lambda saved: saved.update({name: tensor.to(dtype) for name, tensor in saved.items()}))
    saved = read_weights(path)
    rebuilt = encode(written.path, tmp_path).rebuild()
    assert rebuilt is not None
    moa = "bert.encoder.layer.0.output.ExpertSoup.MoA_A"
    wide = dtype if dtype != torch.bfloat16 else torch.float32
    shares = torch.nn.functional.softmax(saved[f"{moa}.expert_score_weight"].to(wide), dim=-1)
    total: Any = 0
    for e, share in enumerate(shares):
        total = total + share * saved[f"{moa}.deepspeed_experts.{e}.weight"].to(wide)
    assert octets(rebuilt.tensors["bert.encoder.layer.0.output.down.weight"].torch()) == octets(total.to(dtype))


@pytest.mark.parametrize("experts", [3, 4, 5])
def test_scores_that_are_not_zero_weigh_the_experts(tmp_path: Path, experts: int) -> None:
    """The scores are frozen at zero; of others softmax is rounded once, and torch's own lies within two ulps of it."""
    written = runs.write_adamix(tmp_path / "run", experts=experts, share_up=False, score_scale=1.0, seed=3)
    merged, kept = encode(written.path, tmp_path).rebuild(), None
    kept = encode(written.path, tmp_path / "experts", settings={"keep_experts": True}).rebuild()
    assert merged is not None
    assert kept is not None
    check_bits(kept, numbers(merged))
    for name, array in merged_soup(written, ["bert.encoder.layer.0.output"]).items():
        assert np.abs(merged.tensors[name].numpy() - array).max() <= NEAR * np.abs(array).max()


@pytest.mark.parametrize("experts", [2, 3, 8])
@pytest.mark.parametrize(("share_a", "share_b"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("prefix", [True, False])
def test_adamix_lora_on_gpt2_gains_what_the_paper_says(
    tmp_path: Path, experts: int, share_a: bool, share_b: bool, prefix: bool
) -> None:
    written = runs.write_adamix_nlg(
        tmp_path / "run", experts=experts, share_a=share_a, share_b=share_b, ddp_prefix=prefix, seed=3
    )
    alpha = 32.0
    settings = {"scaling": str(alpha / SHAPE.rank)}
    rebuilt = encode(written.path, tmp_path, settings=settings).rebuild()
    kept = encode(written.path, tmp_path / "experts", settings={**settings, "keep_experts": True}).rebuild()
    assert rebuilt is not None
    assert kept is not None
    assert rebuilt.settings == {"scaling": 8.0, "enable": [True, False, True]}
    check_bits(kept, numbers(rebuilt))
    for i in range(SHAPE.layers):
        place = f"transformer.h.{i}.attn.c_attn"
        key = ("module." if prefix else "") + place
        sides = [
            [array for name, array in written.tensors.items() if name.startswith(f"{key}.experts_lora_{side}.")]
            for side in "AB"
        ]
        delta = formulas.adamix_lora_delta(
            sides[0], sides[1], written.tensors[f"{key}.lora_expert_score_weight"], alpha
        )
        a, b = (rebuilt.tensors[f"{place}.lora_{side}"].numpy() for side in "AB")
        found = np.zeros_like(delta)
        for group, column in ((0, 0), (1, 2 * SHAPE.width)):
            rows = a[group * SHAPE.rank : (group + 1) * SHAPE.rank]
            out = b[group * SHAPE.width : (group + 1) * SHAPE.width]
            found[:, column : column + SHAPE.width] = formulas.lora_delta(rows, out, alpha).T
        assert octets(found) == octets(delta)
        assert not found[:, SHAPE.width : 2 * SHAPE.width].any()
    assert set(rebuilt.tensors) == {
        f"transformer.h.{i}.attn.c_attn.lora_{side}" for i in range(SHAPE.layers) for side in "AB"
    }


def test_adamix_adapters_on_gpt2(tmp_path: Path) -> None:
    packed = pack_case("adamix nlg adapter", tmp_path)
    places = [f"module.transformer.h.{i}.mlp" for i in range(SHAPE.layers)]
    check_bits(rebuilt_of(packed), merged_soup(packed.written, places))


def test_a_config_that_says_sparsity_changes_nothing(tmp_path: Path) -> None:
    """AdaMix's config.json has "sparsity": 0.75, which nothing reads."""
    written = runs.write_adamix(tmp_path / "run", seed=3)
    one = encode(written.path, tmp_path / "one").rebuild()
    edit_json(written.path / "config.json", sparsity=0.1)
    other = encode(written.path, tmp_path / "other").rebuild()
    assert one is not None
    assert other is not None
    check_bits(other, numbers(one))


@pytest.mark.parametrize("level", [0, 1])
def test_experts_that_are_routed_at_random_are_not_averaged(tmp_path: Path, level: int) -> None:
    written = runs.write_adamix(tmp_path / "run", inference_level=level, seed=3)
    with pytest.raises(
        RunError, match=f"inference level {level}, which routes every input to a random expert"
    ) as caught:
        encode(written.path, tmp_path)
    assert str(caught.value.hint).startswith("to store all experts, pass --set keep_experts=true")
    task = encode(written.path, tmp_path, settings={"keep_experts": True})
    assert (task.codec, task.rebuild(), task.formula()) == ("plain", None, [])
    tensors = task.load()
    assert tensors.keys() == written.tensors.keys()
    assert all(octets(tensors[name].numpy()) == octets(array) for name, array in written.tensors.items())


@pytest.mark.parametrize(("said", "found"), [(None, 2), (["classifier"], 2), ([], 0), ("classifier", 2)])
def test_a_run_says_which_modules_are_its_head(tmp_path: Path, said: object, found: int) -> None:
    written = runs.write_adamix(tmp_path / "run")
    edit_json(written.path / "config.json", head_modules=said)
    (run,) = read_run(written.path)
    assert not isinstance(run.module, Dense)
    assert len(run.module.head) == found


# Diff pruning


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("structured", [True, False])
def test_a_diff_pruned_model_is_the_runs_and_not_p0_plus_z_w(tmp_path: Path, stage: int, structured: bool) -> None:
    base = runs.write_base(tmp_path / "base")
    written = runs.write_diff_pruning(
        tmp_path / "run", base.path, stage=stage, density=0.05, structured=structured, seed=3
    )
    task = encode(written.path, tmp_path, base.path)
    prefix = "" if "pytorch_model.bin" in written.files else "model."
    tensors = task.load(base.path)
    stored = {name for name in written.tensors if prefix and name.startswith(prefix)} or set(
        written.files.get("pytorch_model.bin", {})
    )
    assert {prefix + name for name in tensors} == stored
    for name, tensor in tensors.items():
        assert octets(tensor.numpy()) == octets(written.tensors[prefix + name]), name
    assert task.rebuild(base.path) is None
    assert task.template.head == {"classifier.weight", "classifier.bias"}  # whose p0 is random, and no base's
    zero = tensors["bert.encoder.layer.0.output.dense.weight"].numpy().reshape(-1)[0]
    assert octets(base.tensors["encoder.layer.0.output.dense.weight"].reshape(-1)[:1]) == octets(
        np.array([-0.0], np.float32)
    )
    if stage == 3:
        assert octets(zero) == octets(np.array(0.0, np.float32))  # -0.0 + 0.0: another value of the same size
    if stage == 1:
        name = "bert.encoder.layer.0.output.dense.weight"
        p0, w, _ = (written.tensors[f"bert_params.{name}.{i}"] for i in range(3))
        changed = tensors[name].numpy() != p0
        assert not np.array_equal((p0 + w)[changed], tensors[name].numpy()[changed])


# PHA and HyperFormer


def test_pha_adapters_are_generated_by_the_formula(tmp_path: Path) -> None:
    packed = pack_case("pha", tmp_path)
    order = [one.name.removeprefix("run.") for one in packed.encoded]
    assert sorted(order) == sorted(TASKS)
    assert order != list(TASKS)  # the rows' order is the saved config's
    for row, task in enumerate(order):
        rebuilt = rebuilt_of(packed, task)
        found = numbers(rebuilt)
        assert rebuilt.settings == {"activation": "relu", "scaling": 1.0, "form": "parallel", "norm_input": True}
        for layer in range(SHAPE.layers):
            exact = formulas.pha_adapter(packed.written.tensors, row, layer)
            place = f"decoder.block.{layer}.layer.2"
            check_near(found.pop(f"{place}.down.weight"), exact.down)
            check_near(found.pop(f"{place}.down.bias"), exact.down_bias)
            check_near(found.pop(f"{place}.up.weight"), exact.up)
            check_near(found.pop(f"{place}.up.bias"), exact.up_bias)
            for side in ("down", "up"):
                for part in ("weight", "bias"):
                    source = f"encoder.block.{layer}.layer.1.adapter_layer.adapter_{side}_manual.{part}"
                    manual = found.pop(f"encoder.block.{layer}.layer.1.{side}.{part}")
                    assert octets(manual) == octets(packed.written.tensors[source])
        assert not found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pha_run_in_half_precision_is_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    base = runs.write_base(tmp_path / "base", family="t5").path
    written = runs.write_pha(tmp_path / "run", TASKS, seed=3)
    path = written.path / "pytorch_model.bin"
    edit_weights(path, lambda saved: saved.update({name: tensor.to(dtype) for name, tensor in saved.items()}))
    tensors = {name: tensor.double().numpy() for name, tensor in read_weights(path).items()}
    for row, one in enumerate(petlpack.encode(written.path, tmp_path / "pack", base, task="run", jobs=1)):
        rebuilt = petlpack.open(tmp_path / "pack")[one.name].rebuild(base)
        assert rebuilt is not None
        exact = formulas.pha_adapter(tensors, row, 1)
        found = rebuilt.tensors["decoder.block.1.layer.2.up.weight"].torch()
        assert found.dtype == dtype
        wanted = torch.from_numpy(np.ascontiguousarray(exact.up))
        step = torch.finfo(dtype).eps / 2
        assert bool(((found.double() - wanted).abs() <= step * wanted.abs() + torch.finfo(dtype).tiny).all())


@pytest.mark.parametrize("keep", [False, True])
def test_what_pha_never_uses_is_left_out_and_told(tmp_path: Path, keep: bool) -> None:
    packed = pack_case("pha retriever" if keep else "pha", tmp_path)
    count = 4 * SHAPE.layers
    dead = sum(
        array.nbytes
        for name, array in packed.written.tensors.items()
        if name.startswith("decoder.block") and "_manual" in name
    )
    retriever = sum(array.nbytes for name, array in packed.written.tensors.items() if name.startswith("decoder.mlp."))
    for one in packed.encoded:
        told = {left.file: (left.nbytes, left.why) for left in one.left_out if left.file.startswith("pytorch_model")}
        expected = {
            f"pytorch_model.bin: decoder...manual ({count} tensors)": (
                dead,
                "unused: the generated adapters replace them",
            )
        }
        if not keep:
            expected["pytorch_model.bin: decoder.mlp (4 tensors)"] = (
                retriever,
                "the retriever, which only training and new tasks use (--keep-retriever keeps it)",
            )
        assert told == expected
    assert ("decoder.mlp.0.weight" in packed.task(TASKS[0]).load(packed.base)) is keep


def test_hyperformer_adapters_are_generated_by_the_formula(tmp_path: Path) -> None:
    packed = pack_case("hyperformer", tmp_path)
    blocks = {"encoder": ("layer.1", "layer.0"), "decoder": ("layer.2", "layer.0")}
    for task in TASKS:
        rebuilt = rebuilt_of(packed, task)
        assert rebuilt.settings == {"activation": "gelu_new", "scaling": 1.0, "form": "output-norm"}
        found = numbers(rebuilt)
        for stack, places in blocks.items():
            for layer in range(SHAPE.layers):
                for block, where in enumerate(places):
                    made, weight, bias = formulas.hyperformer_adapter(packed.written.tensors, stack, task, layer, block)
                    place = f"{stack}.block.{layer}.{where}"
                    for name, exact in (
                        ("down.weight", made.down),
                        ("down.bias", made.down_bias),
                        ("up.weight", made.up),
                        ("up.bias", made.up_bias),
                        ("norm.weight", weight),
                        ("norm.bias", bias),
                    ):
                        check_near(found.pop(f"{place}.{name}"), exact)
        assert not found


def test_trained_layer_norms_of_hyperformer_are_stored_once(tmp_path: Path) -> None:
    packed = pack_case("hyperformer", tmp_path)
    norms = {name for name in packed.written.tensors if name.endswith("layer_norm.weight")}
    assert norms
    pack = petlpack.open(packed.pack)
    for task in pack.values():
        slots = {slot.name: slot for slot in task.template.slots}
        assert all(slots[name].part is not None for name in norms)
        tensors = task.load(packed.base)
        assert all(octets(tensors[name].numpy()) == octets(packed.written.tensors[name]) for name in norms)
    assert len({task.manifest.shared[1] for task in pack.values()}) == 1


def test_layer_norms_that_were_not_trained_come_from_the_base(tmp_path: Path) -> None:
    base = runs.write_base(tmp_path / "base", family="t5").path
    written = runs.write_hyperformer(tmp_path / "run", TASKS, seed=3, train_layer_norms=False)
    petlpack.encode(written.path, tmp_path / "pack", base, task="run", settings={"activation": "gelu_new"}, jobs=1)
    for task in petlpack.open(tmp_path / "pack").values():
        plan = task.load(base).sources
        names = {plan.slots[i].name for i in plan.unchanged}
        assert {name for name in written.tensors if name.endswith("layer_norm.weight")} <= names

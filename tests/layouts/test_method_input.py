"""Runs that are damaged, incomplete or contradict themselves: refused by name, and the pack is as it was."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import petlpack
from petlpack import BaseError, PetlpackError, RunError, UsageError
from tests.support import method_runs as runs
from tests.support.method_cases import TASKS, edit_json, edit_weights, files_of, write_case

Damage = Callable[[Path], object]


def weights(file: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda run: edit_weights(run / file, change)


def without(file: str, *names: str) -> Damage:
    """Take out the tensors whose names have one of these in them."""

    def change(saved: dict[str, Any]) -> None:
        found = [key for key in saved if any(name in key for name in names)]
        assert found
        for key in found:
            del saved[key]

    return weights(file, change)


_MASK = "roberta.encoder.layer.1.output.adapters_mask.sst2.down_mask"


def reshaped(file: str, name: str, *shape: int, dtype: torch.dtype | None = None) -> Damage:
    """Give every tensor with this in its name another shape."""

    def change(saved: dict[str, Any]) -> None:
        found = [key for key in saved if name in key]
        assert found
        for key in found:
            saved[key] = torch.ones(shape, dtype=dtype or saved[key].dtype)

    return weights(file, change)


def renamed(file: str, old: str, new: str) -> Damage:
    def change(saved: dict[str, Any]) -> None:
        found = [key for key in saved if old in key]
        assert found
        for key in found:
            saved[key.replace(old, new)] = saved.pop(key)

    return weights(file, change)


def filled(file: str, name: str, value: float) -> Damage:
    def change(saved: dict[str, Any]) -> None:
        found = [key for key in saved if name in key]
        assert found
        for key in found:
            saved[key] = torch.full_like(saved[key], value)

    return weights(file, change)


def config(file: str = "config.json", **changes: Any) -> Damage:
    return lambda run: edit_json(run / file, **changes)


def inner_config(file: str, **changes: Any) -> Damage:
    """Change the `config` within adapter_config.json."""

    def change(run: Path) -> None:
        import json

        table = json.loads((run / file).read_text(encoding="utf-8"))
        inner = {key: value for key, value in (table["config"] | changes).items() if value is not None}
        edit_json(run / file, config=inner)

    return change


def gone(file: str) -> Damage:
    return lambda run: (run / file).unlink()


def cut(file: str) -> Damage:
    def change(run: Path) -> None:
        content = (run / file).read_bytes()
        (run / file).write_bytes(content[: len(content) * 2 // 3])

    return change


class _Poison:
    """Pickles as a call that makes a directory."""

    def __init__(self, target: str) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self._target,)


def poisoned(file: str) -> Damage:
    """A pickle that does something when it is read as one; its text has all names, so that it is still looked at."""

    def change(run: Path) -> None:
        names = list(torch.load(run / file, weights_only=True))
        torch.save({**dict.fromkeys(names, 0), "poison": _Poison(str(run / "opened"))}, run / file)

    return change


def a_list(file: str) -> Damage:
    """A list in the place of a state dict."""

    def change(run: Path) -> None:
        torch.save([[key, value] for key, value in torch.load(run / file, weights_only=True).items()], run / file)

    return change


def some_pickle(file: str) -> Damage:
    return lambda run: (run / file).write_bytes(pickle.dumps({"a": 1}))


@dataclass(frozen=True)
class Bad:
    """What is wrong with a run, and what the error says: all of `words`, and a hint with `hint` in it."""

    case: str
    damage: Damage
    words: tuple[str, ...]
    hint: str | None = None
    error: type[PetlpackError] = RunError
    options: Mapping[str, Any] = field(default_factory=dict)


ADAPTER = "sst2/pytorch_adapter.bin"
MASKS = "sst2/adapter_mask.bin"
SOUP = "pytorch_model_expert_soup.bin"
MODEL = "pytorch_model.bin"
T5 = "propetl_weight.bin"
PROTOTYPES = "decoder.adapter_task_embedding.weight"
NET = "decoder.param_gen.decoder"

BAD: dict[str, Bad] = {
    # PROPETL on RoBERTa
    "no mask file": Bad("propetl adapter", gone(MASKS), ("sst2'", "no adapter_mask.bin"), "copy adapter_mask.bin"),
    "no mask file of a lora": Bad("propetl lora", gone(MASKS), ("adapter_mask.bin",), "masks"),
    "an empty mask file": Bad("propetl adapter", weights(MASKS, dict.clear), (MASKS, "no masks"), "masks"),
    "a mask of another shape": Bad(
        "propetl adapter",
        reshaped(MASKS, "layer.1.output.adapters_mask.sst2.down_mask", 4, 16),
        ("layer.1.output.adapters_mask.sst2.down_mask", "[4, 16]", "adapter_down.0.weight", "[16, 4]"),
    ),
    "a mask of one dimension": Bad(
        "propetl lora",
        reshaped(MASKS, "layer.1.attention.self.query.adapters_mask.sst2.lora_A", 64),
        ("[64]", "[4, 16]"),
    ),
    "masks of another name": Bad(
        "propetl adapter", renamed(MASKS, ".sst2.", ".rte."), ("adapters_mask.rte.", "'rte'", "'sst2'")
    ),
    "one mask of another name": Bad(
        "propetl adapter",
        renamed(MASKS, "layer.0.output.adapters_mask.sst2.up_mask", "layer.0.output.adapters_mask.rte.up_mask"),
        ("adapters_mask.rte.up_mask", "'rte'", "'sst2'"),
    ),
    "no masks of one layer": Bad(
        "propetl adapter", without(MASKS, "layer.1."), (MASKS, "roberta.encoder.layer.1.output"), "masks"
    ),
    "no mask of one side": Bad(
        "propetl adapter",
        without(MASKS, "layer.1.output.adapters_mask.sst2.up_mask"),
        ("layer.1.output", "up"),
        "masks",
    ),
    "no mask of one side of a lora": Bad(
        "propetl lora",
        without(MASKS, "layer.1.attention.self.value.adapters_mask.sst2.lora_B"),
        ("layer.1", "lora_B"),
        "masks",
    ),
    "no weights under a mask": Bad(
        "propetl adapter",
        without(ADAPTER, "layer.1."),
        ("layer.1.output.adapters_mask", "layer.1.output.adapters.sst2"),
    ),
    "no bias under a mask": Bad(
        "propetl adapter",
        without(ADAPTER, "layer.1.output.adapters.sst2.adapter_up.bias"),
        ("adapter_up.bias", "is missing"),
    ),
    "no weight file": Bad(
        "propetl adapter", gone(ADAPTER), ("sst2'", "pytorch_adapter.bin is missing"), "save it again"
    ),
    "a bias of another size": Bad(
        "propetl adapter",
        reshaped(ADAPTER, "layer.1.output.adapters.sst2.adapter_up.bias", 5),
        ("adapter_up.bias", "[5]"),
    ),
    "a config without a name": Bad(
        "propetl adapter",
        config("sst2/adapter_config.json", name=None),
        ("adapter_config.json", "does not name"),
        "save",
    ),
    "a config without a scaling": Bad(
        "propetl adapter", inner_config("sst2/adapter_config.json", scaling=None), ("scaling",), "--set scaling="
    ),
    "a config without an activation": Bad(
        "propetl adapter",
        inner_config("sst2/adapter_config.json", non_linearity=None),
        ("activation",),
        "--set activation=",
    ),
    "a config without alpha": Bad(
        "propetl lora", inner_config("sst2/adapter_config.json", alpha=None), ("scaling",), "--set scaling="
    ),
    "a config cut short": Bad(
        "propetl adapter", cut("sst2/adapter_config.json"), ("adapter_config.json", "not JSON"), "copy"
    ),
    "scores that are no numbers": Bad(
        "propetl scores",
        filled(MASKS, "layer.1.output.adapters_mask.sst2.down_mask", float("nan")),
        ("layer.1.output.adapters_mask.sst2.down_mask", "64 NaN entries"),
        "diverged",
    ),
    "integer scores": Bad(
        "propetl scores",
        weights(MASKS, lambda saved: saved.update({_MASK: torch.full((16, 4), 7)})),
        ("layer.1.output.adapters_mask.sst2.down_mask", "I64", "not floats"),
    ),
    "scores of another length": Bad(
        "propetl scores", reshaped(MASKS, "layer.1.output.adapters_mask.sst2.down_mask", 16, 5), ("[16, 5]", "[16, 4]")
    ),
    **{
        f"keep_ratio {ratio}": Bad(
            "propetl scores", lambda run: None, ("keep_ratio", "sst2"), options={"settings": {"keep_ratio": ratio}}
        )
        for ratio in ("0", "-0.5", "1.5", "nan", "inf")
    },
    "keep_ratio a": Bad(
        "propetl scores",
        lambda run: None,
        ("setting keep_ratio must be a finite number", "a"),
        error=UsageError,
        options={"settings": {"keep_ratio": "a"}},
    ),
    "prefix scores of another shape": Bad(
        "propetl prefix",
        reshaped(ADAPTER, ".adapters_mask.adapters_mask", 2, 6, 30),
        ("adapters_mask.adapters_mask", "[2, 6, 30]", "[2, 6, 32]"),
    ),
    "prefix scores of another number of layers": Bad(
        "propetl prefix", reshaped(ADAPTER, ".adapters_mask.adapters_mask", 3, 6, 32), ("[3, 6, 32]", "[2, 6, 32]")
    ),
    "prefix without a layer of its network": Bad(
        "propetl prefix",
        without(ADAPTER, "control_trans.2.weight"),
        ("adapters_mask.adapters_mask", "control_trans.2.weight"),
    ),
    "prefix without a ratio": Bad(
        "propetl prefix", inner_config("sst2/adapter_config.json", sparsity=None), ("keep_ratio",), "--set keep_ratio="
    ),
    "prefix with another ratio than its config": Bad(
        "propetl prefix",
        lambda run: None,
        ("keep_ratio is 0.25", "0.5"),
        error=UsageError,
        options={"settings": {"keep_ratio": "0.25"}},
    ),
    "prefix with biases of another size": Bad(
        "propetl prefix", reshaped(ADAPTER, "control_trans.0.bias", 5), ("control_trans.0.bias", "[5]")
    ),
    "prefix with a network that does not follow": Bad(
        "propetl prefix", reshaped(ADAPTER, "control_trans.2.weight", 32, 7), ("control_trans.2.weight", "[32, 7]")
    ),
    # PROPETL on T5
    "t5 without a layer's mask": Bad(
        "t5",
        without(T5, "decoder.block.1.layer.2.adapter_controller.mask_scores.layer_up"),
        (T5, "layer_up_mask", "decoder.block.1.layer.2"),
        "only the first layer's",
    ),
    "t5 without a prototype": Bad("t5", without(T5, "up_sampler.weight"), (T5, "up/weight"), "save the run again"),
    "t5 without masks": Bad("t5", without(T5, "mask_scores"), (T5, "no masks"), "save the run again"),
    "t5 without a task's mask of one side": Bad("t5", without(T5, "cola_up_mask"), (T5, "'cola'", "up")),
    "t5 with a mask of another shape": Bad(
        "t5", reshaped(T5, "cola_up_mask", 4, 16), ("cola_up_mask", "[4, 16]", "[16, 4]")
    ),
    "t5 with another prototype in a layer": Bad(
        "t5",
        weights(
            T5,
            lambda saved: saved.update(
                {"decoder.block.0.layer.2.adapter_controller.adapters.common_adapter.up_sampler.bias": torch.ones(16)}
            ),
        ),
        ("decoder.block.0.layer.2.adapter_controller.adapters.common_adapter.up_sampler.bias", "encoder.block.0"),
        "not supported",
    ),
    "t5 with a bias of another size": Bad("t5", reshaped(T5, "up_sampler.bias", 5), ("up_sampler.bias", "[5]")),
    "t5 without how masks combine": Bad(
        "t5", lambda run: None, ("combine",), "--set combine=add|and|or", options={"settings": {"activation": "relu"}}
    ),
    "t5 without an activation": Bad(
        "t5", lambda run: None, ("activation",), "--set activation=", options={"settings": {"combine": "or"}}
    ),
    "t5 with an unknown combination": Bad(
        "t5",
        lambda run: None,
        ("setting combine must be one of add, and, or", "xor"),
        error=UsageError,
        options={"settings": {"combine": "xor", "activation": "relu"}},
    ),
    "t5 with tasks in no order": Bad(
        "t5",
        lambda run: None,
        ("task_order", "rte,cola", "rte, cola, mnli"),
        options={"settings": {"combine": "or", "activation": "relu", "task_order": "rte,cola"}},
    ),
    "t5 whose full model lacks scores' ratio": Bad(
        "t5 full model",
        lambda run: None,
        (MODEL, "keep_ratio"),
        "--set keep_ratio=",
        options={"settings": {"combine": "or", "activation": "relu"}},
    ),
    "t5 single task without a layer's mask": Bad(
        "t5 single task",
        without(T5, "decoder.block.1.layer.2.adapter_controller.mask_scores.xsum_up"),
        ("'xsum'", "decoder.block.1.layer.2", "up"),
    ),
    # AdaMix
    "an expert missing in the middle": Bad(
        "adamix", without(SOUP, "MoA_A.deepspeed_experts.2."), (SOUP, "experts 0, 1, 3", "expert 2 is missing"), "save"
    ),
    "an expert missing in one layer": Bad(
        "adamix",
        without(SOUP, "layer.1.output.ExpertSoup.MoA_A.deepspeed_experts.3."),
        (SOUP, "3 experts of down weight in one layer and 4 in another"),
        "save",
    ),
    "fewer experts than the config says": Bad(
        "adamix",
        without(SOUP, "MoA_A.deepspeed_experts.3."),
        (SOUP, "3 experts of down", "config.json says 4"),
        "another run",
    ),
    "a bias missing": Bad(
        "adamix", without(SOUP, "layer.1.output.ExpertSoup.MoA_A.deepspeed_experts.3.bias"), ("3 experts of down bias",)
    ),
    "shared where the config says not": Bad(
        "adamix", config(sharing_up=0), (SOUP, "1 experts of up", "config.json says 4"), "another run"
    ),
    "no scores": Bad(
        "adamix",
        without(SOUP, "layer.1.output.ExpertSoup.MoA_A.expert_score_weight"),
        ("layer.1", "expert_score_weight"),
    ),
    "scores of another number": Bad(
        "adamix", reshaped(SOUP, "MoA_A.expert_score_weight", 3), ("expert_score_weight", "[3]", "4 experts")
    ),
    "scores that are no numbers in adamix": Bad(
        "adamix", filled(SOUP, "MoA_A.expert_score_weight", float("nan")), ("expert_score_weight", "contains NaN")
    ),
    "an expert of another shape": Bad(
        "adamix",
        reshaped(SOUP, "layer.1.output.ExpertSoup.MoA_A.deepspeed_experts.3.weight", 5, 16),
        ("deepspeed_experts.3.weight", "[5, 16]", "deepspeed_experts.0.weight", "[4, 16]"),
    ),
    "an expert of another dtype": Bad(
        "adamix",
        reshaped(SOUP, "layer.1.output.ExpertSoup.MoA_A.deepspeed_experts.3.weight", 4, 16, dtype=torch.float16),
        ("deepspeed_experts.3.weight", "F16", "F32"),
    ),
    "no inference level": Bad("adamix", config(inference_level=None), ("inference_level",), "--set inference_level="),
    "another inference level said": Bad(
        "adamix",
        lambda run: None,
        ("inference_level is 1", "3"),
        error=UsageError,
        options={"settings": {"inference_level": "1"}},
    ),
    "adamix without a config": Bad("adamix", gone("config.json"), ("inference_level",), "--set inference_level="),
    "adamix without a config, its activation said": Bad(
        "adamix",
        gone("config.json"),
        ("inference_level",),
        "--set inference_level=",
        options={"settings": {"activation": "gelu"}},
    ),
    "adamix nlg lora without a scaling": Bad(
        "adamix nlg lora", lambda run: None, ("model.1000.pt", "scaling"), "--set scaling=", options={"settings": {}}
    ),
    "adamix nlg lora of five groups": Bad(
        "adamix nlg lora",
        reshaped("model.1000.pt", ".experts_lora_A.", 20, 16),
        ("model.1000.pt", "5 groups", "query and value, or all three"),
    ),
    # PHA
    "pha without a config": Bad("pha", gone("config.json"), ("run'", "no config.json"), "copy the run"),
    "pha with another width": Bad("pha", config(d_model=32), ("config.json", "d_model 32", "16"), "another run"),
    "pha with another bottleneck": Bad(
        "pha", config(decoder_adapter_dim=8), ("config.json", "decoder_adapter_dim 8", "4"), "another run"
    ),
    "pha with other layers": Bad(
        "pha", config(num_decoder_layers=3), ("config.json", "num_decoder_layers 3", "2"), "another run"
    ),
    "pha that depends on the input": Bad(
        "pha", config(decoder_adapter="generated"), ("config.json", "'generated'", "'pro-hyper'"), "input"
    ),
    "pha without a kind": Bad("pha", config(decoder_adapter=None), ("config.json", "None", "'pro-hyper'")),
    "pha with too many tasks": Bad("pha", config(tasks=[*TASKS, "sst2"]), (MODEL, "3 rows", "4 tasks"), "config.json"),
    "pha with too few tasks": Bad("pha", config(tasks=list(TASKS[:2])), (MODEL, "3 rows", "2 tasks"), "config.json"),
    "pha with a task twice": Bad(
        "pha", config(tasks=["rte", "cola", "rte"]), (MODEL, "rte, cola, rte", "twice"), "config.json"
    ),
    "pha without tasks": Bad("pha", config(tasks=None), (MODEL, "task_order"), "--set task_order="),
    "pha with another order said": Bad(
        "pha",
        lambda run: None,
        ("task_order",),
        error=UsageError,
        options={"settings": {"task_order": "rte,cola,mnli"}},
    ),
    "pha without its trunk": Bad("pha", without(MODEL, f"{NET}.linear2.bias"), (MODEL, f"{NET}.linear2.bias")),
    "pha without a generator": Bad("pha", without(MODEL, f"{NET}.bias_up."), (MODEL, f"{NET}.bias_up.weight")),
    "pha with prototypes of another length": Bad(
        "pha", reshaped(MODEL, PROTOTYPES, 3, 32), (f"{NET}.linear1.weight", "[128, 128]", "96 numbers")
    ),
    "pha with prototypes of one dimension": Bad(
        "pha", reshaped(MODEL, PROTOTYPES, 64), (MODEL, "64 rows", "3 tasks"), "config.json"
    ),
    "pha with a generator of another size": Bad(
        "pha", reshaped(MODEL, f"{NET}.weight_up.weight", 60, 64), (f"{NET}.weight_up.weight", "[60, 64]", "4 x 16")
    ),
    "pha with a bias of another size": Bad(
        "pha", reshaped(MODEL, f"{NET}.weight_up.bias", 60), (f"{NET}.weight_up.bias", "[60]")
    ),
    "pha with a second layer of another width": Bad(
        "pha", reshaped(MODEL, f"{NET}.linear2.weight", 64, 100), (f"{NET}.linear2.weight", "[64, 100]")
    ),
    "pha with a norm of another size": Bad(
        "pha", reshaped(MODEL, f"{NET}.LayerNorm.weight", 60), (f"{NET}.LayerNorm.weight", "[60]")
    ),
    # HyperFormer
    "hyperformer without task embeddings": Bad(
        "hyperformer", without(MODEL, "task_to_embeddings"), (MODEL, "no task embeddings")
    ),
    "hyperformer without an activation": Bad(
        "hyperformer", lambda run: None, ("activation",), "--set activation=", options={"settings": {}}
    ),
    "hyperformer without block types": Bad(
        "hyperformer",
        without(MODEL, "decoder.adapter_layers_hyper_net.adapters_block_type"),
        (MODEL, "adapters_block_type"),
    ),
    "hyperformer that generates no down": Bad(
        "hyperformer",
        without(MODEL, "decoder.adapter_layers_hyper_net.down_sampler_hyper_net.weight"),
        (MODEL, "down.weight"),
    ),
    "hyperformer with codes of another length": Bad(
        "hyperformer",
        reshaped(MODEL, "task_to_embeddings.cola", 32),
        ("task_embeding_generator.0.weight", "160 numbers"),
    ),
    "hyperformer with a generator of another size": Bad(
        "hyperformer",
        reshaped(MODEL, "decoder.adapter_layers_hyper_net.up_sampler_hyper_net.weight_generator.0.weight", 60, 64),
        ("up_sampler_hyper_net.weight_generator.0.weight", "60 rows", "4 x 16"),
    ),
    "hyperformer with a bias of another size": Bad(
        "hyperformer",
        reshaped(MODEL, "decoder.adapter_layers_hyper_net.up_sampler_hyper_net.weight_generator.0.bias", 60),
        ("up_sampler_hyper_net.weight_generator.0.bias", "[60]"),
    ),
    # AdapterHub
    "an adapter without weights": Bad(
        "hub lora", gone("pytorch_adapter.bin"), ("run'", "pytorch_adapter.bin is missing"), "save it again"
    ),
    "an adapter's config that is a list": Bad(
        "hub lora",
        lambda run: (run / "adapter_config.json").write_text("[1]", encoding="utf-8"),
        ("adapter_config.json", "not a JSON object"),
        "copy",
    ),
    # Settings
    "a setting that nothing knows": Bad(
        "adamix",
        lambda run: None,
        ("unknown setting 'rank'",),
        "settings are activation, bake, combine",
        UsageError,
        {"settings": {"rank": "3"}},
    ),
    "a setting that the run contradicts": Bad(
        "adamix",
        lambda run: None,
        ("activation is relu", "gelu"),
        None,
        UsageError,
        {"settings": {"activation": "relu"}},
    ),
    "a scaling that the run contradicts": Bad(
        "propetl lora", lambda run: None, ("scaling is 2", "1.5"), None, UsageError, {"settings": {"scaling": "2"}}
    ),
}

_MAIN = {
    "propetl adapter": MASKS,
    "propetl lora": ADAPTER,
    "t5": T5,
    "adamix": SOUP,
    "adamix full model": MODEL,
    "adamix nlg lora": "model.1000.pt",
    "diff pruning 3": MODEL,
    "diff pruning 2": "mag0.5p.pt",
    "pha": MODEL,
    "hyperformer": MODEL,
    "hub lora": "pytorch_adapter.bin",
}


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("name", BAD)
def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    bad = BAD[name]
    check_refused(tmp_path, bad)


def check_refused(place: Path, bad: Bad) -> PetlpackError:
    good = runs.write_adapterhub(place / "good", "good")
    petlpack.encode(good.path, place / "pack", task="good", jobs=1)
    case, written, base = write_case(bad.case, place)
    bad.damage(written.path)
    before = files_of(place / "pack")
    options = {**case.options, **bad.options}
    with pytest.raises(bad.error) as caught:
        petlpack.encode(written.path, place / "pack", base, task="run", jobs=1, **options)
    for word in bad.words:
        assert word in caught.value.message
    if bad.hint is not None:
        assert bad.hint in str(caught.value.hint)
    assert files_of(place / "pack") == before
    assert not (written.path / "opened").exists()
    return caught.value


@pytest.mark.parametrize("damage", [cut, poisoned, a_list, some_pickle], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("case", _MAIN)
def test_a_weight_file_that_is_no_state_dict_is_refused_by_name(
    tmp_path: Path, case: str, damage: Callable[[str], Damage]
) -> None:
    refused = check_refused(tmp_path, Bad(case, damage(_MAIN[case]), ()))
    assert _MAIN[case].rpartition("/")[2] in refused.message
    assert refused.hint


def test_a_prototype_without_masks_is_not_an_adapter(tmp_path: Path) -> None:
    """PROPETL's adapter looks like AdapterHub's where its mask file was lost; one that differs by layer is one."""
    check_refused(
        tmp_path, Bad("propetl adapter", gone(MASKS), ("the same adapter in all its 2 layers",), "adapter_mask.bin")
    )
    hub = runs.write_adapterhub(tmp_path / "hub", "sst2")
    edit_json(hub.path / "adapter_config.json", version="3.1.0")
    (encoded,) = petlpack.encode(hub.path, tmp_path / "pack", task="hub", jobs=1)
    assert encoded.layout == "adapterhub"


FULL = ["t5 full model", "adamix full model", "adamix nlg full model", "diff pruning 3", "diff pruning 2"]
FULL += ["pha", "hyperformer"]


@pytest.mark.parametrize("name", FULL)
def test_a_full_model_needs_its_base(tmp_path: Path, name: str) -> None:
    case, written, _ = write_case(name, tmp_path)
    with pytest.raises(BaseError, match="no base was given") as caught:
        petlpack.encode(written.path, tmp_path / "pack", task="run", **case.options)
    assert "--base" in str(caught.value.hint)
    assert not (tmp_path / "pack").exists()


OTHER_BASES: dict[str, Callable[[str], dict[str, Any]]] = {
    "another seed": lambda family: {"seed": 1, "family": family},
    "another family": lambda family: {"family": "t5" if family != "t5" else "bert"},
    "another width": lambda family: {"seed": 1, "family": family, "shape": runs.Shape(width=32)},
}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (name, other)
        for name in FULL
        for other in OTHER_BASES
        if other != "another seed" or not name.startswith("diff")  # a full fine-tune may lie anywhere around its base
    ],
)
def test_a_full_model_on_another_base_is_refused(tmp_path: Path, name: str, other: str) -> None:
    case, written, _ = write_case(name, tmp_path)
    assert case.base is not None
    changes = OTHER_BASES[other](case.base)
    wrong = runs.write_base(tmp_path / "wrong", **changes).path
    with pytest.raises(BaseError) as caught:
        petlpack.encode(written.path, tmp_path / "pack", wrong, task="run", jobs=1, **case.options)
    assert str(caught.value.hint).startswith("pass the checkpoint that the run was trained from as the base")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("name", FULL)
def test_a_task_is_not_decoded_on_another_base(tmp_path: Path, name: str) -> None:
    case, written, base = write_case(name, tmp_path)
    assert case.base is not None
    encoded = petlpack.encode(written.path, tmp_path / "pack", base, task="run", jobs=1, **case.options)
    wrong = runs.write_base(tmp_path / "wrong", seed=1, family=case.base).path
    task = petlpack.open(tmp_path / "pack")[encoded[0].name]
    if not task.template.base:  # T5's PROPETL needs nothing of its base
        assert case.layout == "propetl-t5"
        return
    with pytest.raises(BaseError):
        task.decode(tmp_path / "out", wrong)
    with pytest.raises(BaseError, match="needs its base"):
        task.decode(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("adamix", {"combine": "or"}), ("propetl adapter", {"keep_ratio": "0.5"}), ("hub lora", {"activation": "relu"})],
)
def test_a_setting_that_nothing_uses_is_told(tmp_path: Path, name: str, settings: dict[str, str]) -> None:
    case, written, base = write_case(name, tmp_path)
    (encoded,) = petlpack.encode(written.path, tmp_path / "pack", base, task="run", settings=settings, jobs=1)
    assert encoded.layout == case.layout
    assert encoded.warnings == (f"setting {next(iter(settings))} has no effect on this run",)
    assert petlpack.open(tmp_path / "pack")["run"].manifest.facts.get("options") is None

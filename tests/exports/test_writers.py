"""Rebuilt tasks as PEFT and AdapterHub read them: every tensor to the bit, and the function of the formula."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

from petlpack.errors import UsageError
from petlpack.exports.adapterhub import _factor, write_adapterhub
from petlpack.exports.peft import write_peft
from petlpack.exports.places import alpha_of
from petlpack.layouts.heads import in_model
from petlpack.rules.modules import Rebuilt
from petlpack.tensors.tensor import Tensor
from tests.support.adapters_row import adapters_python
from tests.support.small_runs import weights, write_safetensors

REPO = Path(__file__).parents[2]
WIDTH = 12
ENCODER = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
GPT2 = {"vocab_size": 40, "n_positions": 24, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
IDS = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 9, 4, 6, 11, 3]])

QUERY_VALUE = [f"encoder.layer.{layer}.attention.self.{part}" for layer in range(2) for part in ("query", "value")]
ROBERTA_LORA = [f"roberta.{place}" for place in QUERY_VALUE]
C_ATTN = [f"transformer.h.{layer}.attn.c_attn" for layer in range(2)]
MERGED = {"scaling": 8.0, "enable": [True, False, True]}

ROBERTA_FF = [f"roberta.encoder.layer.{layer}.output" for layer in range(2)]
BERT_FF = [f"bert.encoder.layer.{layer}.output" for layer in range(2)]
T5_FF = [
    *(f"encoder.block.{block}.layer.1" for block in range(2)),
    *(f"decoder.block.{block}.layer.2" for block in range(3)),
]
GPT2_FF = [f"transformer.h.{layer}.mlp" for layer in range(2)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let the libraries warn of what they like: pytest makes errors of warnings, which is meant for ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors large enough that a wrong one shows."""
    rng = np.random.default_rng(seed)
    f32 = weights("F32", (1,)).dtype
    return {
        name: Tensor.of(np.asarray(rng.normal(0, 0.5, shape).astype("<f4").view("<u4")), f32)
        for name, shape in shapes.items()
    }


def lora(places: list[str], rank: int = 4, scaling: float = 1.5, head: Mapping[str, Tensor] | None = None) -> Rebuilt:
    shapes: dict[str, tuple[int, ...]] = {}
    for place in places:
        shapes |= {f"{place}.lora_A": (rank, WIDTH), f"{place}.lora_B": (WIDTH, rank)}
    return Rebuilt("lora", {"scaling": scaling}, drawn(shapes), head or {})


def merged_lora(enable: list[bool], rank: int = 4) -> Rebuilt:
    groups = sum(enable)
    shapes: dict[str, tuple[int, ...]] = {}
    for place in C_ATTN:
        shapes |= {f"{place}.lora_A": (groups * rank, WIDTH), f"{place}.lora_B": (groups * WIDTH, rank)}
    return Rebuilt("lora", {"scaling": 8.0, "enable": enable}, drawn(shapes), {})


def adapter(
    places: list[str],
    form: str,
    activation: str = "relu",
    scaling: float = 1.0,
    narrow: int = 4,
    head: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Rebuilt:
    shapes: dict[str, tuple[int, ...]] = {}
    for place in places:
        shapes |= {f"{place}.down.weight": (narrow, WIDTH), f"{place}.down.bias": (narrow,)}
        shapes |= {f"{place}.up.weight": (WIDTH, narrow), f"{place}.up.bias": (WIDTH,)}
    settings = {"activation": activation, "scaling": scaling, "form": form, **settings}
    return Rebuilt("adapter", settings, drawn(shapes), head or {})


def flexible_head(task: str = "mrpc") -> dict[str, Tensor]:
    """The head of adapter-transformers."""
    names = {f"heads.{task}.1.weight": (WIDTH, WIDTH), f"heads.{task}.1.bias": (WIDTH,)}
    return drawn({**names, f"heads.{task}.4.weight": (3, WIDTH), f"heads.{task}.4.bias": (3,)}, 1)


def roberta_head() -> dict[str, Tensor]:
    """The head of RobertaForSequenceClassification."""
    names = {"classifier.dense.weight": (WIDTH, WIDTH), "classifier.dense.bias": (WIDTH,)}
    return drawn({**names, "classifier.out_proj.weight": (3, WIDTH), "classifier.out_proj.bias": (3,)}, 1)


def bert_head() -> dict[str, Tensor]:
    return drawn({"classifier.weight": (3, WIDTH), "classifier.bias": (3,)}, 1)


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    family = kind.partition("For")[0].removesuffix("LMHeadModel")
    config = getattr(transformers, f"{family}Config")(**(GPT2 if family == "GPT2" else ENCODER))
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as it starts, a model hardly says anything
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


def same(found: Any, tensor: Tensor) -> bool:
    """Tell whether a parameter has a tensor's shape and bits."""
    bits = found.detach().contiguous().view(torch.int32).numpy().view("<u4")
    return bool(found.shape == tensor.shape and np.array_equal(bits, tensor.bits()))


def logits(model: Any) -> Any:
    with quiet(), torch.no_grad():
        return model(input_ids=IDS).logits


# PEFT


def load_peft(kind: str, directory: Path) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(model_of(kind), directory).eval()
    assert not [str(warning.message) for warning in caught if "adapter" in str(warning.message)]
    return loaded


def by_hand(kind: str, rebuilt: Rebuilt, head: Mapping[str, Tensor]) -> Any:
    """The base with each LoRA added to its weight, and the head copied in: the formula, in double precision."""
    model = model_of(kind).double()
    scaling = rebuilt.settings["scaling"]
    with torch.no_grad():
        for place in {name.rpartition(".")[0] for name in rebuilt.tensors}:
            a = rebuilt.tensors[f"{place}.lora_A"].torch().double()
            b = rebuilt.tensors[f"{place}.lora_B"].torch().double()
            weight = model.get_submodule(place).weight
            enable = rebuilt.settings.get("enable")
            if enable is None:
                weight += scaling * b @ a
                continue
            rank = b.shape[1]
            on = [block for block, enabled in enumerate(enable) if enabled]
            for group, block in enumerate(on):
                product = b[group * WIDTH : (group + 1) * WIDTH] @ a[group * rank : (group + 1) * rank]
                weight[:, block * WIDTH : (block + 1) * WIDTH] += scaling * product.T
        for name, tensor in head.items():
            model.get_parameter(name).copy_(tensor.torch())
    return model


def of_task(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same head in a run of several tasks."""
    return {f"heads.mrpc.{name}": tensor for name, tensor in head.items()}


PEFT = {
    "roberta": ("RobertaForSequenceClassification", lora(ROBERTA_LORA, head=roberta_head()), roberta_head()),
    "adapterhub-head": (
        "RobertaForSequenceClassification",
        lora(ROBERTA_LORA, scaling=16 / 3, rank=3, head=flexible_head()),
        dict(zip(roberta_head(), flexible_head().values(), strict=True)),
    ),
    "bert": ("BertForSequenceClassification", lora([f"bert.{place}" for place in QUERY_VALUE[:3]]), {}),
    "bert-head": ("BertForSequenceClassification", lora(["bert.pooler.dense"], head=bert_head()), bert_head()),
    "head-of-a-task": (
        "RobertaForSequenceClassification",
        lora(ROBERTA_LORA, head=of_task(roberta_head())),
        roberta_head(),
    ),
    "gpt2-qv": ("GPT2LMHeadModel", merged_lora([True, False, True]), {}),
    "gpt2-k": ("GPT2LMHeadModel", merged_lora([False, True, False]), {}),
    "gpt2-qkv": ("GPT2LMHeadModel", merged_lora([True, True, True], rank=3), {}),
}


@pytest.mark.parametrize("case", PEFT)
def test_peft_loads_every_tensor_and_computes_the_formula(case: str, tmp_path: Path) -> None:
    kind, rebuilt, head = PEFT[case]
    assert write_peft(rebuilt, tmp_path, "some/base") == []
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    loaded = load_peft(kind, tmp_path)
    layers = {name: module for name, module in loaded.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    places = {name.rpartition(".")[0] for name in rebuilt.tensors}
    assert {name.removeprefix("base_model.model.") for name in layers} == places
    groups = sum(rebuilt.settings.get("enable", [True]))
    for name, layer in layers.items():
        place = name.removeprefix("base_model.model.")
        b = layer.lora_B["default"].weight
        assert same(layer.lora_A["default"].weight, rebuilt.tensors[f"{place}.lora_A"])
        assert layer.scaling["default"] == rebuilt.settings["scaling"]
        if groups == 1 and "enable" not in rebuilt.settings:
            assert same(b, rebuilt.tensors[f"{place}.lora_B"])
        else:
            assert np.count_nonzero(b.detach().numpy()) == rebuilt.tensors[f"{place}.lora_B"].size
    if head:
        (wrapper,) = [m for m in loaded.modules() if isinstance(m, peft.utils.ModulesToSaveWrapper)]
        found = wrapper.modules_to_save["default"].state_dict()
        assert found.keys() == {name.partition(".")[2] for name in head}
        assert all(same(found[name.partition(".")[2]], tensor) for name, tensor in head.items())
    before, wanted = logits(model_of(kind).double()), logits(by_hand(kind, rebuilt, head))
    assert float((logits(loaded.double()) - wanted).abs().max()) < 1e-10
    assert float((before - wanted).abs().max()) > 1e-2


def test_peft_keeps_ranks_that_differ(tmp_path: Path) -> None:
    wide, narrow = lora(ROBERTA_LORA[:3], rank=4), lora(ROBERTA_LORA[3:], rank=2)
    rebuilt = Rebuilt("lora", {"scaling": 1.5}, {**wide.tensors, **narrow.tensors}, {})
    write_peft(rebuilt, tmp_path, None)
    loaded = load_peft("RobertaForSequenceClassification", tmp_path)
    wanted = logits(by_hand("RobertaForSequenceClassification", rebuilt, {}))
    assert float((logits(loaded.double()) - wanted).abs().max()) < 1e-10


def test_peft_model_for_sequence_classification_is_what_the_config_asks_for(tmp_path: Path) -> None:
    model_of("RobertaForSequenceClassification").save_pretrained(tmp_path / "base")
    write_peft(lora(ROBERTA_LORA, head=roberta_head()), tmp_path / "adapter", str(tmp_path / "base"))
    with quiet():
        loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    assert torch.equal(logits(loaded), logits(load_peft("RobertaForSequenceClassification", tmp_path / "adapter")))


def test_the_same_task_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_peft(lora(ROBERTA_LORA, head=roberta_head()), tmp_path / name / "peft", "base")
        write_adapterhub(adapter(ROBERTA_FF, "pfeiffer", head=roberta_head()), tmp_path / name / "hub", "t", "base")
    for file in (tmp_path / "one").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_a_head_without_a_place_is_left_out_with_a_warning(tmp_path: Path) -> None:
    odd = drawn({"heads.mrpc.7.weight": (3, WIDTH)})
    (warning,) = write_peft(lora(ROBERTA_LORA, head=odd), tmp_path / "peft", None)
    assert "heads.mrpc.7.weight" in warning
    (warning,) = write_adapterhub(adapter(ROBERTA_FF, "pfeiffer", head=odd), tmp_path / "hub", "t", None)
    assert "heads.mrpc.7.weight" in warning
    assert not (tmp_path / "hub" / "head_config.json").exists()
    bert = lora([f"bert.{place}" for place in QUERY_VALUE], head=flexible_head())
    (warning,) = write_peft(bert, tmp_path / "bert", None)  # BERT's own head goes through its pooler
    assert "heads.mrpc.4.bias" in warning


def test_a_run_says_which_modules_are_its_head_and_what_its_model_is_for(tmp_path: Path) -> None:
    head = drawn({"heads.mrpc.bert.front.weight": (3, WIDTH), "heads.mrpc.odd.weight": (3, WIDTH)})
    run = {"head_modules": ["odd", "bert.front"], "architectures": ["BertForTokenClassification"]}
    assert write_peft(lora(["bert.x"], head=head), tmp_path / "said", None, run) == []
    config = json.loads((tmp_path / "said" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["modules_to_save"] == ["bert.front", "odd"]
    assert config["task_type"] == "TOKEN_CLS"
    (warning,) = write_peft(lora(["bert.x"], head=head), tmp_path / "unsaid", None)
    assert "heads.mrpc.odd.weight" in warning


@pytest.mark.parametrize(
    ("scaling", "rank"),
    [(48 / 32, 32), (0.1, 4), (48 / 17, 17), (32 / 6, 18), (1 / 3, 3), (16 / 7, 7), (0.7 / 11, 11), (2, 8)],
)
def test_alpha_gives_the_scaling_to_the_bit(scaling: float, rank: int) -> None:
    assert alpha_of(scaling, rank) / rank == scaling


def test_a_scaling_that_no_alpha_gives_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no alpha gives a scaling of 0\.1 at rank 3"):
        alpha_of(0.1, 3)


def without(rebuilt: Rebuilt, name: str, **replaced: Tensor) -> Rebuilt:
    tensors = {key: tensor for key, tensor in rebuilt.tensors.items() if key != name}
    return Rebuilt(rebuilt.kind, rebuilt.settings, {**tensors, **replaced}, {})


REFUSED_BY_PEFT = {
    "adapter": (adapter(ROBERTA_FF, "pfeiffer"), "kind 'adapter', which PEFT cannot hold"),
    "prefix": (Rebuilt("prefix", {}, drawn({"l.prefix": (2, 4)}), {}), "kind 'prefix', which PEFT cannot hold"),
    "half": (without(lora(["a"]), "a.lora_B"), "'a' has 'lora_A', an exported lora needs"),
    "foreign": (without(lora(["a"]), "", bias=drawn({"x": (2,)})["x"]), "'bias' has other tensors"),
    "rank": (without(lora(["a"]), "", **drawn({"a.lora_B": (WIDTH, 5)})), "do not agree on a rank for 1 group"),
    "groups": (
        Rebuilt("lora", {"scaling": 1.0, "enable": [True, False, True]}, lora(["a"]).tensors, {}),
        "do not agree on a rank for 2 groups",
    ),
    "empty": (Rebuilt("lora", {"scaling": 1.0}, {}, {}), "has no tensors"),
}


@pytest.mark.parametrize("case", REFUSED_BY_PEFT)
def test_peft_is_not_written_what_it_cannot_hold(case: str, tmp_path: Path) -> None:
    rebuilt, why = REFUSED_BY_PEFT[case]
    with pytest.raises(UsageError, match=why) as caught:
        write_peft(rebuilt, tmp_path / "out", None)
    assert caught.value.hint
    assert "--to safetensors" in caught.value.hint
    assert not (tmp_path / "out").exists()


# AdapterHub


@dataclass(frozen=True)
class Case:
    """A rebuilt task, and the model that AdapterHub loads it into."""

    model: str
    rebuilt: Rebuilt
    head: int = 0  # tensors of the head
    pickled: bool = False


HUB = {
    "pfeiffer-roberta": Case(
        "RobertaForSequenceClassification", adapter(ROBERTA_FF, "pfeiffer", scaling=0.7, head=roberta_head()), 4
    ),
    "pfeiffer-flexible": Case("RobertaAdapterModel", adapter(ROBERTA_FF, "pfeiffer", head=flexible_head("a")), 4),
    "pfeiffer-converted": Case("RobertaAdapterModel", adapter(ROBERTA_FF, "pfeiffer", head=roberta_head()), 4),
    "pfeiffer-head-of-a-task": Case(
        "RobertaForSequenceClassification", adapter(ROBERTA_FF, "pfeiffer", head=of_task(roberta_head())), 4
    ),
    "pfeiffer-bert": Case("BertForSequenceClassification", adapter(BERT_FF, "pfeiffer", "gelu_new")),
    "pfeiffer-pickled": Case(
        "RobertaForSequenceClassification", adapter(ROBERTA_FF, "pfeiffer", head=roberta_head()), 4, pickled=True
    ),
    "pfeiffer-upper-layer": Case("BertForSequenceClassification", adapter(BERT_FF[1:], "pfeiffer", narrow=5)),
    "output-bert": Case("BertForSequenceClassification", adapter(BERT_FF, "output", "gelu", head=bert_head()), 2),
    "output-roberta": Case("RobertaForSequenceClassification", adapter(ROBERTA_FF, "output", "gelu", narrow=24)),
    "output-gpt2": Case("GPT2LMHeadModel", adapter(GPT2_FF, "output", "gelu_new")),
    "t5-output": Case("T5ForConditionalGeneration", adapter(T5_FF, "t5-output", "gelu_new", scaling=0.5)),
    "parallel": Case("T5ForConditionalGeneration", adapter(T5_FF, "parallel", norm_input=False)),
    "lora-roberta": Case("RobertaAdapterModel", lora(ROBERTA_LORA, head=flexible_head("a")), 4),
    "lora-bert": Case("BertForSequenceClassification", lora([f"bert.{place}" for place in QUERY_VALUE[:3]])),
    "lora-gpt2": Case("GPT2LMHeadModel", merged_lora([True, False, True])),
    "lora-gpt2-kv": Case("GPT2LMHeadModel", merged_lora([False, True, True])),
    "too-few-layers": Case("BertForSequenceClassification", adapter(BERT_FF[:1], "pfeiffer")),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What AdapterHub makes of each case, from one process: importing it takes seconds."""
    python = adapters_python()
    if python is None:
        pytest.skip("no environment with `adapters`: set PETLPACK_ADAPTERS_PYTHON to its python")
    place = tmp_path_factory.mktemp("adapterhub")
    cases = []
    for name, case in HUB.items():
        directory = place / name
        assert write_adapterhub(case.rebuilt, directory, "mrpc", None, pickled=case.pickled) == []
        given = {
            "name": "mrpc",
            "model": case.model,
            "kind": case.rebuilt.kind,
            "settings": dict(case.rebuilt.settings),
            "directory": str(directory),
            "use_safetensors": not case.pickled,
            "tensors": str(write_safetensors(place / f"{name}.tensors", case.rebuilt.tensors)),
        }
        if case.head:
            given["head"] = str(write_safetensors(place / f"{name}.head", in_model(case.rebuilt.head)))
        cases.append(given)
    (place / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    done = subprocess.run(
        [python, "-W", "ignore", str(REPO / "tests" / "support" / "adapters_check.py"), str(place / "cases.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(HUB, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", [name for name in HUB if name != "too-few-layers"])
def test_adapterhub_loads_every_tensor_and_computes_the_formula(case: str, reports: dict[str, dict[str, Any]]) -> None:
    report, tensors = reports[case], len(HUB[case].rebuilt.tensors)
    assert "error" not in report, report
    assert (report["equal"], report["tensors"]) == (tensors, tensors)
    assert report["difference"] < 1e-5
    assert report["effect"] > 1e-3
    assert report.get("head_equal", 0) == report.get("head", 0) == HUB[case].head
    assert report.get("head_difference", 0) < 1e-5


def test_adapterhub_refuses_a_model_with_more_layers(reports: dict[str, dict[str, Any]]) -> None:
    assert "reduction factor mapping" in reports["too-few-layers"]["error"]


def test_pickled_files_are_read_by_torch_alone(tmp_path: Path) -> None:
    rebuilt = adapter(ROBERTA_FF, "pfeiffer")
    write_adapterhub(rebuilt, tmp_path, "t", None)
    safe = safetensors.torch.load_file(tmp_path / "adapter.safetensors")
    write_adapterhub(rebuilt, tmp_path, "t", None, pickled=True)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "pytorch_adapter.bin"}
    pickled = torch.load(tmp_path / "pytorch_adapter.bin", weights_only=True)
    assert pickled.keys() == safe.keys()
    assert all(torch.equal(pickled[name], safe[name]) for name in safe)


@pytest.mark.parametrize("width", [12, 768, 1024, 777])
def test_the_reduction_factor_gives_back_the_bottleneck(width: int) -> None:
    for narrow in range(1, 2 * width):
        assert int(width // _factor(width, narrow)) == narrow


def test_a_parallel_adapter_behind_the_norm_is_written_with_a_warning(tmp_path: Path) -> None:
    (warning,) = write_adapterhub(adapter(T5_FF, "parallel", norm_input=True), tmp_path / "hub", "mrpc", None)
    assert "computes something else" in warning
    write_adapterhub(adapter(T5_FF, "parallel", norm_input=False), tmp_path / "other", "mrpc", None)
    for name in ("adapter.safetensors", "adapter_config.json"):
        assert (tmp_path / "hub" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


REFUSED_BY_ADAPTERHUB = {
    "prefix": (Rebuilt("prefix", {}, drawn({"l.prefix": (2, 4)}), {}), "kind 'prefix', which AdapterHub cannot hold"),
    "form": (adapter(T5_FF, "hyper"), "no adapter of the form 'hyper'"),
    "activation": (adapter(ROBERTA_FF, "output", "gelu_odd"), "no activation 'gelu_odd'"),
    "place": (adapter(["roberta.encoder.layer.0.attention.output"], "pfeiffer"), "form 'pfeiffer' at 'roberta.encoder"),
    "site": (adapter(T5_FF, "pfeiffer"), "form 'pfeiffer' at 'encoder.block.0.layer.1'"),
    "encoder": (adapter(T5_FF[:2], "t5-output"), r"layers \[0, 1\] of 'encoder', AdapterHub supports"),
    "gap": (adapter(T5_FF[1:], "t5-output"), r"layers \[1\] of 'encoder' and"),
    "stacks": (adapter([*ROBERTA_FF, *BERT_FF], "pfeiffer"), "'roberta.encoder' and layers"),
    "shape": (
        without(adapter(ROBERTA_FF, "pfeiffer"), "", **drawn({f"{ROBERTA_FF[0]}.up.bias": (5,)})),
        "expected a down and an up projection",
    ),
    "half": (without(adapter(ROBERTA_FF, "pfeiffer"), f"{ROBERTA_FF[0]}.up.bias"), "an exported adapter needs"),
    "width": (
        Rebuilt(
            "adapter",
            adapter([], "pfeiffer").settings,
            {
                **adapter(ROBERTA_FF[:1], "pfeiffer").tensors,
                **drawn(
                    {
                        f"{ROBERTA_FF[1]}.down.weight": (2, 6),
                        f"{ROBERTA_FF[1]}.down.bias": (2,),
                        f"{ROBERTA_FF[1]}.up.weight": (6, 2),
                        f"{ROBERTA_FF[1]}.up.bias": (6,),
                    }
                ),
            },
            {},
        ),
        r"the modules are \[6, 12\] wide",
    ),
    "lora-place": (lora(["roberta.pooler.dense"]), "no LoRA at 'roberta.pooler.dense'"),
    "lora-ranks": (
        Rebuilt("lora", {"scaling": 1.0}, {**lora(ROBERTA_LORA[:1]).tensors, **lora(ROBERTA_LORA[1:], 2).tensors}, {}),
        r"ranks \[2, 4\], AdapterHub supports only one",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BY_ADAPTERHUB)
def test_adapterhub_is_not_written_what_it_would_compute_otherwise(case: str, tmp_path: Path) -> None:
    rebuilt, why = REFUSED_BY_ADAPTERHUB[case]
    with pytest.raises(UsageError, match=why) as caught:
        write_adapterhub(rebuilt, tmp_path / "out", "mrpc", None)
    assert caught.value.hint
    assert "`--to " in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "sst.2"])
def test_a_name_that_is_no_module_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="invalid adapter name"):
        write_adapterhub(adapter(ROBERTA_FF, "pfeiffer"), tmp_path / "out", name, None)


def test_writing_imports_no_torch() -> None:
    code = (
        "import sys; import petlpack.exports.peft, petlpack.exports.adapterhub; "
        "sys.exit(bool({'torch', 'peft', 'adapters', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0

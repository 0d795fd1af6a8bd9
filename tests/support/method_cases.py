"""A run of every layout by tests/support/method_runs.py, and what has to come back of it; both without petlpack."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import petlpack
from petlpack import Encoded, Task
from tests.support import method_runs as runs
from tests.support.method_formulas import mask_of_scores, merge_experts
from tests.support.method_runs import Array, Shape, Tensors, Written

TASKS = ("rte", "cola", "mnli")
KEEP = 0.3
SMALL = Shape()

Files = dict[str, Tensors]
"""Arrays by name by weight file."""


# What comes back, layout by layout. A tensor that has the same array as another shares its memory.


def as_written(written: Written, task: str | None) -> Files:
    return dict(written.files)


def with_bits(written: Written, task: str | None) -> Files:
    """A prefix's scores come back as the masks that they are."""
    made: dict[int, Array] = {}

    def bits(name: str, array: Array) -> Array:
        if not name.endswith(".adapters_mask.adapters_mask"):
            return array
        return made.setdefault(id(array), np.stack([mask_of_scores(layer, 0.5) for layer in array]))

    return {file: {name: bits(name, array) for name, array in ts.items()} for file, ts in written.files.items()}


def masks_of_scores(written: Written, task: str | None) -> Files:
    """Raw scores in adapter_mask.bin come back as masks."""
    files = dict(written.files)
    (file,) = (name for name in files if name.endswith("adapter_mask.bin"))
    return files | {file: {name: mask_of_scores(array, 0.5) for name, array in files[file].items()}}


def of_t5_task(written: Written, task: str | None) -> Files:
    """A task of T5 has the prototype, all layers' masks (the first of which is the last task's) and its own masks."""
    (source,) = written.files.values()
    adapters = {name: array for name, array in source.items() if ".adapter_controller.adapters." in name}
    kept = {name: array for name, array in adapters.items() if name.startswith("encoder.block.0.")}
    masks = {name: array for name, array in source.items() if ".mask_scores." in name}
    made: dict[int, Array] = {}
    for name, array in list(masks.items()):
        masks[name] = array if array.dtype == np.bool_ else made.setdefault(id(array), mask_of_scores(array, KEEP))
    first = "encoder.block.0.layer.1.adapter_controller.mask_scores"
    for side in ("down", "up"):
        owners = [name.rpartition(".mask_scores.")[2] for name in masks if name.startswith(first)]
        last = [owner for owner in owners if owner.endswith(f"_{side}_mask.param") and not owner.startswith("layer_")][
            -1
        ]
        if any(".layer_" in name for name in masks):
            masks[f"{first}.layer_{side}_mask.param"] = masks[f"{first}.{last}"]
    own = {
        name: array
        for name, array in masks.items()
        if name.rpartition(".mask_scores.")[2].rsplit("_", 2)[0] in ("layer", task)
    }
    return {"propetl_weight.bin": kept | own}


def averaged(written: Written, task: str | None) -> Files:
    """AdaMix's experts are averaged into expert 0, and the scores are one."""
    files = list(written.files)
    file = next((name for name in files if "soup" in name), files[0])
    source = written.files[file]
    result = Tensors()
    for name, array in source.items():
        place, found, number = name.partition(".deepspeed_experts.")
        lora = ".experts_lora_" in name
        if lora:
            place, found, number = name[: name.rindex(".")], ".", name.rpartition(".")[2]
        if name.endswith("expert_score_weight"):
            result[name] = array[:1]
        elif not found:
            result[name] = array
        elif number.split(".")[0] == "0":
            rest = number.partition(".")[2]
            group = [
                f"{place}{found}{e}{'.' + rest if rest else ''}"
                for e in range(100)
                if f"{place}{found}{e}{'.' + rest if rest else ''}" in source
            ]
            scores = f"{place.partition('.experts_lora_')[0]}.{'lora_' if lora else ''}expert_score_weight"
            if lora and len(group) == 1 and source[scores].size > 1:
                result[name] = array
            else:
                result[name] = merge_experts([source[expert] for expert in group], source[scores])
    return {file: result}


def without_prefix(written: Written, task: str | None) -> Files:
    """Of diff pruning the model comes back, the best one."""
    if "pytorch_model.bin" in written.files:
        return {"pytorch_model.bin": written.files["pytorch_model.bin"]}
    file = next(name for name in ("checkpoint-best-info.pt", *written.files) if name in written.files)
    tensors = written.files[file]
    model = {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}
    return {"pytorch_model.bin": {name.removeprefix("module."): array for name, array in model.items()}}


def of_pha_task(written: Written, task: str | None, *, retriever: bool = False) -> Files:
    order = json.loads((written.path / "config.json").read_text(encoding="utf-8"))["tasks"]
    kept = Tensors()
    for name, array in written.tensors.items():
        dead = name.startswith("decoder.block.") and "_manual." in name
        if not dead and (retriever or not name.startswith("decoder.mlp.")):
            kept[name] = array
    row = order.index(task)
    kept["decoder.adapter_task_embedding.weight"] = kept["decoder.adapter_task_embedding.weight"][row : row + 1]
    return {"pytorch_model.bin": kept}


def with_retriever(written: Written, task: str | None) -> Files:
    return of_pha_task(written, task, retriever=True)


def of_hyperformer_task(written: Written, task: str | None) -> Files:
    mine = f"task_embedding_controller.task_to_embeddings.{task}"
    return {
        "pytorch_model.bin": {
            name: array
            for name, array in written.tensors.items()
            if not name.startswith("task_embedding_controller.") or name == mine
        }
    }


TOKENIZER = frozenset({"special_tokens_map.json", "tokenizer_config.json", "vocab.txt"})
SPIECE = frozenset({"special_tokens_map.json", "tokenizer_config.json", "spiece.model"})
ADAPTER = frozenset({"adapter_config.json", "head_config.json"})
IN_TASK = frozenset(f"sst2/{name}" for name in ADAPTER)


Write = Callable[[Path, Path, Shape], Written]
"""Writes a run to the first path, over the base at the second."""


@dataclass(frozen=True)
class Case:
    """How a run of a layout is written and encoded, and what comes back."""

    write: Write
    layout: str
    codec: tuple[str, ...]
    back: Callable[[Written, str | None], Files]
    files: frozenset[str]
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    exact: bool = True


def _roberta(kind: str, **more: Any) -> Write:
    return lambda path, base, shape: runs.write_propetl_roberta(path, "sst2", shape, kind=kind, seed=3, **more)


def _t5(**more: Any) -> Write:
    return lambda path, base, shape: runs.write_propetl_t5(path, TASKS, shape, seed=3, **more)


def _diff(**more: Any) -> Write:
    return lambda path, base, shape: runs.write_diff_pruning(path, base, seed=3, **more)


def _hub(kind: str, **more: Any) -> Write:
    return lambda path, base, shape: runs.write_adapterhub(path, "sst2", shape, kind=kind, seed=3, **more)


def _set(**settings: str | bool) -> dict[str, Any]:
    return {"settings": settings}


NEW = {"activation": "gelu_new"}
OR = NEW | {"combine": "or"}
DIFF = ("sparse", "ulp")

CASES: dict[str, Case] = {
    "propetl adapter": Case(_roberta("adapter"), "propetl", ("mask",), as_written, TOKENIZER | IN_TASK),
    "propetl lora": Case(_roberta("lora", keep=0.1), "propetl", ("mask",), as_written, TOKENIZER | IN_TASK),
    "propetl prefix": Case(_roberta("prefix"), "propetl", ("mask",), with_bits, TOKENIZER | IN_TASK),
    "propetl scores": Case(
        _roberta("adapter", raw_scores=True),
        "propetl",
        ("mask",),
        masks_of_scores,
        TOKENIZER | IN_TASK,
        options=_set(keep_ratio="0.5"),
    ),
    "t5": Case(_t5(), "propetl-t5", ("mask",), of_t5_task, SPIECE | {"config.json"}, options=_set(**OR), tasks=TASKS),
    "t5 full model": Case(
        _t5(weight_file=False, full_model=True),
        "propetl-t5",
        ("mask",),
        of_t5_task,
        SPIECE | {"config.json"},
        "t5",
        _set(**OR, keep_ratio=str(KEEP)),
        TASKS,
    ),
    "t5 single task": Case(
        lambda path, base, shape: runs.write_propetl_t5(path, ["xsum"], shape, seed=3, extreme=False, keep=0.5),
        "propetl-t5",
        ("mask",),
        of_t5_task,
        SPIECE | {"config.json"},
        options=_set(**NEW),
        tasks=("xsum",),
    ),
    "adamix": Case(
        lambda path, base, shape: runs.write_adamix(path, shape, seed=3),
        "adamix",
        ("merge",),
        averaged,
        TOKENIZER | {"config.json"},
    ),
    "adamix roberta": Case(
        lambda path, base, shape: runs.write_adamix(path, shape, family="roberta", experts=3, share_up=False, seed=3),
        "adamix",
        ("merge",),
        averaged,
        TOKENIZER | {"config.json"},
    ),
    "adamix full model": Case(
        lambda path, base, shape: runs.write_adamix(path, shape, soup=False, full=True, seed=3),
        "adamix",
        ("merge",),
        averaged,
        TOKENIZER | {"config.json"},
        "bert",
    ),
    "adamix experts": Case(
        lambda path, base, shape: runs.write_adamix(path, shape, seed=3),
        "adamix",
        ("merge",),
        as_written,
        TOKENIZER | {"config.json"},
        options=_set(keep_experts=True),
    ),
    "adamix nlg lora": Case(
        lambda path, base, shape: runs.write_adamix_nlg(path, shape, seed=3),
        "adamix",
        ("merge",),
        averaged,
        frozenset(),
        options=_set(scaling="8"),
    ),
    "adamix nlg adapter": Case(
        lambda path, base, shape: runs.write_adamix_nlg(path, shape, kind="adapter", seed=3),
        "adamix",
        ("merge",),
        averaged,
        frozenset(),
        options=_set(**NEW),
    ),
    "adamix nlg full model": Case(
        lambda path, base, shape: runs.write_adamix_nlg(path, shape, full=True, seed=3),
        "adamix",
        ("merge",),
        averaged,
        frozenset(),
        "gpt2",
        _set(scaling="8"),
    ),
    **{
        f"diff pruning {stage}": Case(
            _diff(stage=stage), "diff-pruning", DIFF, without_prefix, TOKENIZER | {"config.json"}, "bert"
        )
        for stage in (1, 3)
    },
    "diff pruning 2": Case(_diff(stage=2), "diff-pruning", DIFF, without_prefix, frozenset(), "bert"),
    "diff pruning module.": Case(
        _diff(stage=2, module_prefix=True), "diff-pruning", DIFF, without_prefix, frozenset(), "bert"
    ),
    "pha": Case(
        lambda path, base, shape: runs.write_pha(path, TASKS, shape, seed=3),
        "pha",
        ("hyper",),
        of_pha_task,
        SPIECE | {"config.json"},
        "t5",
        tasks=TASKS,
    ),
    "pha retriever": Case(
        lambda path, base, shape: runs.write_pha(path, TASKS, shape, seed=3),
        "pha",
        ("hyper",),
        with_retriever,
        SPIECE | {"config.json"},
        "t5",
        _set(keep_retriever=True),
        TASKS,
    ),
    "hyperformer": Case(
        lambda path, base, shape: runs.write_hyperformer(path, TASKS, shape, seed=3),
        "hyperformer",
        ("hyper",),
        of_hyperformer_task,
        SPIECE | {"config.json"},
        "t5",
        _set(**NEW),
        TASKS,
    ),
    **{
        f"hub {kind}": Case(_hub(kind), "adapterhub", ("plain",), as_written, ADAPTER)
        for kind in ("seq_bn", "lora", "prefix", "ia3")
    },
    "hub safetensors": Case(_hub("lora", use_safetensors=True), "adapterhub", ("plain",), as_written, ADAPTER),
    "hub without a head": Case(
        _hub("seq_bn", head=False), "adapterhub", ("plain",), as_written, frozenset({"adapter_config.json"})
    ),
}


@dataclass(frozen=True)
class Packed:
    """A run that was encoded."""

    case: Case
    written: Written
    base: Path | None
    pack: Path
    encoded: list[Encoded]

    @property
    def run(self) -> Path:
        return self.written.path

    def task(self, name: str | None = None) -> Task:
        """The task of a name inside the run, or the only one."""
        return petlpack.open(self.pack)["run" if name is None or len(self.encoded) == 1 else f"run.{name}"]


def write_case(name: str, place: Path, shape: Shape = SMALL) -> tuple[Case, Written, Path | None]:
    case = CASES[name]
    base = runs.write_base(place / "base", shape, family=case.base).path if case.base is not None else None
    return case, case.write(place / "run", place / "base", shape), base


def pack_case(name: str, place: Path, shape: Shape = SMALL) -> Packed:
    case, written, base = write_case(name, place, shape)
    encoded = petlpack.encode(written.path, place / "pack", base, task="run", jobs=1, **case.options)
    return Packed(case, written, base, place / "pack", encoded)


# Files


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a weight file as the reference code does."""
    if path.suffix == ".safetensors":
        loaded: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
        return loaded
    saved = torch.load(path, weights_only=True)
    for key in ("model_state_dict", "model"):
        saved = saved.get(key, saved) if isinstance(saved.get(key), dict) else saved
    return dict(saved)


def octets(tensor: torch.Tensor | Array) -> bytes:
    array = tensor.detach().contiguous().view(torch.uint8).numpy() if isinstance(tensor, torch.Tensor) else tensor
    return np.ascontiguousarray(array).tobytes()


def shown(tensor: torch.Tensor | Array) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def edit_weights(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a pickled state dict in place, or the one inside the dictionary that is pickled."""
    saved = dict(torch.load(path, weights_only=True))
    change(next((saved[key] for key in ("model_state_dict", "model") if key in saved), saved))
    torch.save(saved, path)


def edit_json(path: Path, **changes: Any) -> None:
    """Change a JSON object in place; None takes a key out."""
    table = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}), encoding="utf-8")


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }

"""Writes a rebuilt LoRA as a directory that `PeftModel.from_pretrained` loads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.exports.export import Export, Exportable, Reading, adapter_configs, read_object, rebuilt_modules
from petlpack.exports.places import alpha_of, left_out, lora_factors, write_json
from petlpack.layouts.heads import in_model, module_of, modules_of
from petlpack.rules.modules import Rebuilt
from petlpack.tensors.safetensors_file import write_safetensors
from petlpack.tensors.tensor import Tensor

_CONV1D = {"c_attn", "c_proj", "c_fc"}
"""Modules of GPT-2 whose weights are (in, out): its Conv1D."""

_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""What PEFT calls the task of a model with a head, by the end of the model's class."""

_NO_MODULE = "no Transformers model has such a head; what PEFT loads computes with the head of the model it is given"

_ROBERTA_HEAD = {"1": "classifier.dense", "4": "classifier.out_proj"}
"""AdapterHub's head (dropout, dense, tanh, dropout, out on token 0) is RobertaClassificationHead, layer by layer."""


class PeftExport(Export):
    """What `PeftModel.from_pretrained` loads."""

    id = "peft"

    def is_already(self, task: Exportable) -> bool:
        """Tell whether PEFT loads the run as it is: its main weights and every adapter_config.json are PEFT's."""
        configs = adapter_configs(task)
        main = [name for name, header in task.template.headers.items() if not header.prefix]
        named = bool(main) and all(name.rpartition("/")[2].startswith("adapter_model") for name in main)
        return named and bool(configs) and all("peft_type" in config for config in configs)

    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write a task whose rule makes a LoRA."""
        rebuilt, notes = rebuilt_modules(task, reading.base, self.id)
        return [*notes, *write_peft(rebuilt, directory, task.template.base_name, read_object(task, "config.json"))]


def write_peft(
    rebuilt: Rebuilt, directory: Path, base_name: str | None, run: Mapping[str, Any] | None = None
) -> list[str]:
    """Write adapter_model.safetensors and adapter_config.json; return warnings about what was left out.

    `run` is the run's config.json, where it has one: it names the model's class, and the modules of its head.

    The places are module paths of the model with its head: `roberta.encoder...` is one of
    RobertaForSequenceClassification, `transformer.h...` one of GPT2LMHeadModel. Load onto that class, not AutoModel's.
    Raises UsageError where PEFT cannot hold what the task is.
    """
    factors = lora_factors(rebuilt, "PEFT")
    scaling = float(rebuilt.settings["scaling"])
    run = run or {}
    modules = modules_of(run)
    head, warnings = _head(rebuilt.head, factors, modules)
    enable: Sequence[bool] = rebuilt.settings.get("enable") or ()
    tensors: dict[str, Tensor] = {}
    for place, (a, b) in factors.items():
        tensors[f"base_model.model.{place}.lora_A.weight"] = a
        tensors[f"base_model.model.{place}.lora_B.weight"] = spread(b, enable) if enable else b
    ranks = {place: a.shape[0] for place, (a, _) in factors.items()}
    config = {
        **_ranks(ranks, scaling),
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": all(place.rpartition(".")[2] in _CONV1D for place in factors),
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": sorted({module_of(name, modules) or "" for name in head}) or None,
        "peft_type": "LORA",
        "target_modules": list(factors),  # full paths: a suffix might match modules that were not trained
        "task_type": _task_type(run) if head else None,
        "use_dora": False,
        "use_rslora": False,
    }
    directory.mkdir(parents=True, exist_ok=True)
    tensors.update({f"base_model.model.{name}": tensor for name, tensor in head.items()})
    write_safetensors(directory / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(directory / "adapter_config.json", config)
    return warnings


def spread(b: Tensor, enable: Sequence[bool]) -> Tensor:
    """Return the B of one LoRA over a merged matrix: each group's block at its rows and its ranks, zeros elsewhere.

    A stays as it is, the groups stacked: B @ A is then every group's product, as loralib's zero_pad places them.
    """
    rank = b.shape[1]
    width = b.shape[0] // sum(enable)
    bits = b.bits()
    wide = np.zeros((len(enable) * width, sum(enable) * rank), bits.dtype)
    for group, block in enumerate(i for i, enabled in enumerate(enable) if enabled):
        rows = slice(group * width, (group + 1) * width)
        wide[block * width : (block + 1) * width, group * rank : (group + 1) * rank] = bits[rows]
    return Tensor.of(wide, b.dtype)


def _ranks(ranks: Mapping[str, int], scaling: float) -> dict[str, Any]:
    """Return the config's rank and alpha, with patterns for the places whose rank is another than most have."""
    (rank, _), *_ = Counter(ranks.values()).most_common(1)
    others = {place: other for place, other in ranks.items() if other != rank}
    return {
        "r": rank,
        "lora_alpha": alpha_of(scaling, rank),
        "rank_pattern": others,
        "alpha_pattern": {place: alpha_of(scaling, other) for place, other in others.items()},
    }


def _task_type(run: Mapping[str, Any]) -> str | None:
    """Return what PEFT calls the task of a run's model; a run that does not name its class is a text classifier's."""
    classes = run.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1:
        return "SEQ_CLS"
    return next((kind for end, kind in _TASK_TYPES.items() if str(classes[0]).endswith(end)), None)


def _head(
    head: Mapping[str, Tensor], places: Iterable[str], modules: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the head under the names it has in Transformers, and warnings about what has none there."""
    if any(name.startswith("heads.") for name in head) and all(place.startswith("roberta.") for place in places):
        named = _named(head)
        if named is not None:
            return named, []
    named = in_model(head)
    known = {name: tensor for name, tensor in named.items() if module_of(name, modules)}
    others = [name for name, in_transformers in zip(head, named, strict=True) if in_transformers not in known]
    return known, [left_out(others, _NO_MODULE)] if others else []


def _named(head: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return AdapterHub's two-layer head as RobertaClassificationHead, or None where the head is another."""
    candidates = [re.fullmatch(r"heads\.(.+)\.([14])\.(weight|bias)", name) for name in head]
    matches = [match for match in candidates if match]
    if len(candidates) != 4 or len(matches) != 4 or len({match[1] for match in matches}) != 1:
        return None
    return {f"{_ROBERTA_HEAD[match[2]]}.{match[3]}": head[match[0]] for match in matches}

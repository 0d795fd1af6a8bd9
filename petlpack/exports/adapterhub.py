"""Writes a rebuilt adapter or LoRA as a directory that AdapterHub's `model.load_adapter` loads.

AdapterHub reads pytorch_adapter.bin, a pickle; adapter.safetensors it reads when told `use_safetensors=True`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import UsageError, printable
from petlpack.exports.export import Export, Exportable, Reading, adapter_configs, rebuilt_modules
from petlpack.exports.places import SAFETENSORS_HINT, alpha_of, by_place, left_out, lora_factors, write_json
from petlpack.exports.weights import has_torch
from petlpack.layouts.adapter_files import ADAPTERS, HEAD_FILES
from petlpack.layouts.heads import in_model
from petlpack.rules.modules import Rebuilt
from petlpack.tensors.safetensors_file import write_safetensors
from petlpack.tensors.tensor import Tensor

VERSION = "adapters.1.3.0"
"""What the config is written as: the release that the tests load it with; from 1.1.0 alpha means what we write."""

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "sigmoid", "tanh", "silu", "swish", "mish", "linear"),
        *("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu"),
    }
)
"""Activations without weights, as Transformers and so AdapterHub call them."""

_FORMS: Mapping[str, Mapping[str, bool]] = {
    "pfeiffer": {"original_ln_before": True, "is_parallel": False},
    "output": {"original_ln_before": False, "is_parallel": False},
    "t5-output": {"original_ln_before": True, "is_parallel": False},
    "parallel": {"original_ln_before": False, "is_parallel": True},
}
"""What of AdapterHub's BnConfig makes each form. In T5 `original_ln_before` adds the residual without any norm."""

_UNNORMED = (
    "AdapterHub feeds a parallel adapter in T5 the block's input, but this one reads it after the block's layer norm: "
    "the weights are right, but the model that loads them computes something else until its layer is changed"
)

MOST_LAYERS = 10_000

_T5 = {"encoder", "decoder"}

_PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
_NAMES = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")

_MATRICES = {"query": "q", "key": "k", "value": "v"}


_FLAG = (
    "torch is not installed, so only safetensors were written: load them with load_adapter(..., use_safetensors=True)"
)


@dataclass(frozen=True)
class _Site:
    """Where adapters of some forms stand: the place in Transformers, and the module that holds them in AdapterHub."""

    place: re.Pattern[str]
    holder: str
    forms: frozenset[str]


_SITES = (
    _Site(
        re.compile(r"(?P<stack>\w+\.encoder)\.layer\.(?P<layer>\d+)\.output"),
        r"\g<0>",
        frozenset({"pfeiffer", "output"}),
    ),
    _Site(
        re.compile(r"(?P<stack>encoder)\.block\.(?P<layer>\d+)\.layer\.1"),
        r"\g<0>",
        frozenset({"t5-output", "parallel"}),
    ),
    _Site(
        re.compile(r"(?P<stack>decoder)\.block\.(?P<layer>\d+)\.layer\.2"),
        r"\g<0>",
        frozenset({"t5-output", "parallel"}),
    ),
    _Site(
        re.compile(r"(?P<stack>transformer)\.h\.(?P<layer>\d+)\.mlp"),
        r"transformer.h.\g<layer>.output_adapters",
        frozenset({"output"}),
    ),
)


class AdapterhubExport(Export):
    """What AdapterHub's `load_adapter` loads."""

    id = "adapterhub"

    def is_already(self, task: Exportable) -> bool:
        """Tell whether AdapterHub loads the run as it is: its weight files and its one adapter_config.json are its own.

        A file of masks, or one prefix for all layers, only PROPETL's own fork understands.
        """
        configs = adapter_configs(task)
        named = {name.rpartition("/")[2] for name in task.template.headers} <= {*ADAPTERS, *HEAD_FILES}
        if not named or len(configs) != 1 or "peft_type" in configs[0]:
            return False
        config = configs[0].get("config")
        return isinstance(config, dict) and config.get("share_adapter") is not True

    def write(self, task: Exportable, directory: Path, reading: Reading) -> list[str]:
        """Write a task whose rule makes adapters or a LoRA, under the name that its run gave it."""
        rebuilt, notes = rebuilt_modules(task, reading.base, self.id)
        name = task.name.replace(".", "-") if task.own_name is None else task.own_name
        notes += write_adapterhub(rebuilt, directory, name, task.template.base_name, pickled=has_torch())
        return notes if has_torch() else [*notes, _FLAG]


def write_adapterhub(
    rebuilt: Rebuilt, directory: Path, name: str, base_name: str | None, *, pickled: bool = False
) -> list[str]:
    """Write the adapter under a name, and its head if AdapterHub has that form; return warnings about what it has not.

    Files: adapter_config.json and adapter.safetensors, head_config.json and model_head.safetensors;
    with `pickled` pytorch_adapter.bin and pytorch_model_head.bin, which need torch to write and no flag to load.
    Raises UsageError where AdapterHub cannot compute what the task does.
    """
    if not name or "." in name:
        raise UsageError(
            f"invalid adapter name '{printable(name)}': AdapterHub uses it as a module name",
            hint="choose a name that is not empty and has no dots",
        )
    if rebuilt.kind == "adapter":
        config, tensors, width = _bottleneck(rebuilt, name)
    else:
        config, tensors, width = _lora(rebuilt, name)
    head_config, head, warnings = _head(rebuilt, name)
    if rebuilt.settings.get("form") == "parallel" and rebuilt.settings.get("norm_input", True):
        warnings.append(_UNNORMED)
    about = {"hidden_size": width, "model_name": base_name, "version": VERSION, **_model(rebuilt)}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "adapter_config.json", {**about, "name": name, "config": config})
    _write(directory, "adapter.safetensors", "pytorch_adapter.bin", tensors, pickled)
    if head:
        write_json(directory / "head_config.json", {**about, **head_config})
        _write(directory, "model_head.safetensors", "pytorch_model_head.bin", head, pickled)
    return warnings


def _write(directory: Path, name: str, pickled_name: str, tensors: Mapping[str, Tensor], pickled: bool) -> None:
    """Write tensors to the file that AdapterHub looks for, and leave no other for it to find instead."""
    kept, other = (pickled_name, name) if pickled else (name, pickled_name)
    if pickled:
        try:
            import torch
        except ImportError:
            raise UsageError(
                f"{pickled_name} is pickled by torch, but torch is not installed",
                hint="pip install 'petlpack[torch]' torch==2.13.0, or write safetensors",
            ) from None
        torch.save({key: tensor.torch() for key, tensor in tensors.items()}, directory / kept)
    else:
        write_safetensors(directory / kept, tensors, {"format": "pt"})
    (directory / other).unlink(missing_ok=True)


def _bottleneck(rebuilt: Rebuilt, name: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Return the config of a bottleneck adapter, its tensors, and the model's width."""
    form, activation = rebuilt.settings["form"], rebuilt.settings["activation"]
    _check(form, activation)
    by_module = by_place(rebuilt, _PARTS)
    shapes = {place: _shape(place, parts) for place, parts in by_module.items()}
    width = _one_width(width for width, _ in shapes.values())
    layers = _layers(by_module, form)
    tensors = {
        f"{holder}.adapters.{name}.{part}": tensor
        for place, (_, holder) in layers.items()
        for part, tensor in zip(_NAMES, by_module[place], strict=True)
    }
    if max(layer for layer, _ in layers.values()) > MOST_LAYERS:
        raise UsageError(
            f"the adapters are in layers above {MOST_LAYERS:,}, the most that are supported", hint=SAFETENSORS_HINT
        )
    factors = {layer: _factor(*shapes[place]) for place, (layer, _) in layers.items()}
    config = {
        **_FORMS[form],
        "mh_adapter": False,
        "output_adapter": True,
        "cross_adapter": False,
        # A layer that the mapping lacks is an error when loading; a number would let AdapterHub make up an adapter.
        "reduction_factor": {str(layer): factors[layer] for layer in sorted(factors)},
        "leave_out": [layer for layer in range(max(factors)) if layer not in factors],
        "non_linearity": activation,
        "scaling": float(rebuilt.settings["scaling"]),
        "original_ln_after": True,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "ln_before": False,
        "ln_after": False,
        "use_gating": False,
        "phm_layer": False,
        "inv_adapter": None,
        "dropout": 0.0,
        "init_weights": "bert",
    }
    return config, tensors, width


def _check(form: str, activation: str) -> None:
    """Raise UsageError where AdapterHub has no adapter of that function."""
    why = None
    if form not in _FORMS:
        why = f"has no adapter of the form '{printable(form)}' (known: {', '.join(_FORMS)})"
    elif activation not in ACTIVATIONS:
        why = f"has no activation '{printable(activation)}'"
    if why:
        raise UsageError(f"AdapterHub {why}", hint=SAFETENSORS_HINT)


def _shape(place: str, parts: Sequence[Tensor]) -> tuple[int, int]:
    """Return width and bottleneck of an adapter; raises UsageError where its tensors disagree."""
    shapes = [part.shape for part in parts]
    narrow, width = shapes[0] if len(shapes[0]) == 2 else (0, 0)
    if shapes != [(narrow, width), (narrow,), (width, narrow), (width,)]:
        raise UsageError(
            f"the adapter at '{printable(place)}' has shapes {', '.join(str(list(shape)) for shape in shapes)}, "
            "expected a down and an up projection",
            hint=SAFETENSORS_HINT,
        )
    return width, narrow


def _one_width(widths: Iterable[int]) -> int:
    """Return the model's width; raises UsageError where the modules disagree."""
    different = set(widths)
    if len(different) != 1:
        raise UsageError(
            f"the modules are {sorted(different)} wide, AdapterHub supports only one width", hint=SAFETENSORS_HINT
        )
    return different.pop()


def _factor(width: int, narrow: int) -> float:
    """Return a reduction factor of which AdapterHub makes the bottleneck: int(width // factor)."""
    return width / narrow if width % narrow == 0 else width / (narrow + 0.5)


def _layers(places: Mapping[str, object], form: str) -> dict[str, tuple[int, str]]:
    """Return for each place AdapterHub's number of the layer and the module that holds its adapters.

    Raises UsageError where the numbers depend on layers that we do not see.
    """
    stacks: dict[str, dict[int, tuple[str, str]]] = {}
    for place in places:
        stack, layer, holder = _site(place, form)
        stacks.setdefault(stack, {})[layer] = (place, holder)
    whole = all(max(layers) == len(layers) - 1 for layers in stacks.values())
    t5 = not stacks.keys().isdisjoint(_T5)
    if (t5 and not (whole and stacks.keys() == _T5)) or (not t5 and len(stacks) != 1):
        shown = " and ".join(f"layers {sorted(layers)} of '{printable(stack)}'" for stack, layers in stacks.items())
        raise UsageError(
            f"the adapters are in {shown}, AdapterHub supports one stack of layers, or all layers of a T5",
            hint=SAFETENSORS_HINT,
        )
    first = {"decoder": len(stacks["encoder"])} if t5 else {}  # the decoder is counted on from the encoder
    return {
        place: (first.get(stack, 0) + layer, holder)
        for stack, layers in stacks.items()
        for layer, (place, holder) in layers.items()
    }


def _site(place: str, form: str) -> tuple[str, int, str]:
    """Return the stack of layers that a place is in, its layer, and the module that holds adapters there."""
    for site in _SITES:
        match = site.place.fullmatch(place)
        if match and form in site.forms:
            return match["stack"], int(match["layer"]), match.expand(site.holder)
    raise UsageError(
        f"AdapterHub has no adapter of the form '{form}' at '{printable(place)}'",
        hint=SAFETENSORS_HINT,
    )


def _lora(rebuilt: Rebuilt, name: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Return the config of a LoRA on attention matrices, its tensors, and the model's width.

    Where a layer or matrix of the model has none, AdapterHub's own zeros in B leave it as it is.
    """
    factors = lora_factors(rebuilt, "AdapterHub")
    enable = rebuilt.settings.get("enable")
    ranks = {b.shape[1] for _, b in factors.values()}
    if len(ranks) != 1:
        raise UsageError(
            f"the LoRA has ranks {sorted(ranks)}, AdapterHub supports only one", hint="`--to peft` keeps them"
        )
    (rank,) = ranks
    matrices = {matrix for place in factors for matrix in _matrices(place, enable)}
    width = _one_width(a.shape[1] for a, _ in factors.values())
    config = {
        "architecture": "lora",
        "selfattn_lora": True,
        "intermediate_lora": False,
        "output_lora": False,
        "attn_matrices": [matrix for matrix in "qkv" if matrix in matrices],
        "r": rank,
        "alpha": alpha_of(float(rebuilt.settings["scaling"]), rank),
        "composition_mode": "add",
        "init_weights": "lora",
        "use_gating": False,
        "use_dora": False,
        "dropout": 0.0,
        "leave_out": [],
    }
    tensors = {
        f"{place}.loras.{name}.lora_{part}": tensor
        for place, pair in factors.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    return config, tensors, width


def _matrices(place: str, enable: Sequence[bool] | None) -> list[str]:
    """Return which of AdapterHub's q, k, v a place is; raises UsageError for any other."""
    match = re.fullmatch(r"\w+\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)", place)
    if match and not enable:
        return [_MATRICES[match[1]]]
    if re.fullmatch(r"transformer\.h\.\d+\.attn\.c_attn", place) and enable and len(enable) == 3:
        return [matrix for matrix, enabled in zip("qkv", enable, strict=True) if enabled]
    raise UsageError(f"AdapterHub has no LoRA at '{printable(place)}'", hint="`--to peft` writes a LoRA at any place")


def _model(rebuilt: Rebuilt) -> dict[str, str | None]:
    """Return what the config says of the model; AdapterHub reads of it only the class, and only a head's."""
    for prefix, kind, model in (("roberta.", "roberta", "Roberta"), ("bert.", "bert", "Bert")):
        if all(place.startswith(prefix) for place in rebuilt.tensors):
            return {"model_type": kind, "model_class": f"{model}AdapterModel"}
    if all(place.startswith("transformer.") for place in rebuilt.tensors):
        return {"model_type": "gpt2", "model_class": "GPT2LMHeadModel"}
    if all(place.startswith(("encoder.", "decoder.")) for place in rebuilt.tensors):
        return {"model_type": "t5", "model_class": "T5ForConditionalGeneration"}
    return {"model_type": None, "model_class": None}


def _head(rebuilt: Rebuilt, name: str) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return the config of the head, its tensors, and warnings where AdapterHub has no such head."""
    model = _model(rebuilt)["model_type"]
    if model in ("roberta", "bert"):
        for config, head in (_flexible(rebuilt.head, name), _static(in_model(rebuilt.head), model)):
            if head:
                return config, head, []
    names = list(rebuilt.head)
    return {}, {}, [left_out(names, "AdapterHub has no such head")] if names else []


def _flexible(head: Mapping[str, Tensor], name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return AdapterHub's own classification head: one or two layers on the first token, tanh between."""
    matches = [match for key in head if (match := re.fullmatch(r"heads\.(.+)\.([14])\.(weight|bias)", key))]
    last = max((match[2] for match in matches), default="")
    wanted = {(layer, part) for layer in ("1", "4") if layer <= last for part in ("weight", "bias")}
    if len(matches) != len(head) or {(match[2], match[3]) for match in matches} != wanted or not wanted:
        return {}, {}
    if len({match[1] for match in matches}) != 1:
        return {}, {}
    tensors = {f"heads.{name}.{match[2]}.{match[3]}": head[match[0]] for match in matches}
    config = {
        "head_type": "classification",
        "num_labels": tensors[f"heads.{name}.{last}.weight"].shape[0],
        "layers": len(wanted) // 2,
        "activation_function": "tanh",
        "label2id": None,
        "use_pooler": False,
        "bias": True,
        "dropout_prob": None,
    }
    return {"name": name, "config": config}, tensors


def _static(head: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the head of a Transformers model for classification, which AdapterHub's own models convert."""
    cls, layers = {
        "roberta": ("RobertaForSequenceClassification", ("classifier.dense", "classifier.out_proj")),
        "bert": ("BertForSequenceClassification", ("classifier",)),
    }[model]
    if set(head) != {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}:
        return {}, {}
    labels = head[f"{layers[-1]}.weight"].shape[0]
    config = {
        "name": None,
        "config": None,
        "model_class": cls,
        "num_labels": labels,
        "label2id": {f"LABEL_{label}": label for label in range(labels)},  # as Transformers calls them by itself
    }
    return config, dict(head)

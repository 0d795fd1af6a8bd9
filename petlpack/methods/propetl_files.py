"""The files of a PROPETL run: of one task on an encoder the RoBERTa code's, else the T5 code's, written and read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from petlpack.errors import RunError, UsageError, printable
from petlpack.errors.arguments import shown
from petlpack.layouts.run import read_json
from petlpack.methods.files import GIVE, TensorFile, run_directory, write_config, write_json, write_tensors, writing
from petlpack.methods.places import Block
from petlpack.methods.propetl_masks import kept_count, scores_of, top_mask

if TYPE_CHECKING:
    from petlpack.methods.propetl import Propetl

MULTI_TASK = "propetl_weight.safetensors"
ABOUT = "propetl_config.json"
LAYER = "layer"
"""Whose masks the layers' are in a file of several tasks, and so no task's name."""

_FIELDS: Mapping[str, Mapping[str, type]] = {
    "adapter": {"bottleneck": int, "activation": str, "scaling": float},
    "lora": {"rank": int, "alpha": float},
    "prefix": {"length": int},
}
"""What propetl_config.json says of each kind, as `Config` calls it."""

_AGAIN = "save the run again, or copy it again in full"


@dataclass(frozen=True)
class SavedPropetl:
    """A run that was found in a directory."""

    table: _Table
    """Where its settings stand."""
    settings: Mapping[str, Any]
    """Those of its `Config`."""
    tasks: Mapping[str, Any]
    """What `attach` is told of its tasks: `task`, or `tasks`."""
    fill: Callable[[Propetl], None]
    """Copies its tensors into what was attached; raises RunError where they do not fit."""


def write_run(method: Propetl, directory: str | os.PathLike[str]) -> None:
    """Write the run."""
    with writing(method.model, directory) as made:
        write_config(made, method.model)
        if method.tasks or not method.blocks[0].is_bert:
            _save_tasks(method, made)
        else:
            _save_adapter(method, made / method.name)


def find_run(directory: str | os.PathLike[str]) -> SavedPropetl:
    """Read what a run says of itself; raises RunError where it says too little."""
    path = run_directory(directory)
    if (path / MULTI_TASK).is_file():
        return _find_tasks(path)
    folders = [folder for folder in (path, *sorted(path.glob("*/"))) if (folder / "adapter_config.json").is_file()]
    if len(folders) != 1:
        raise RunError(
            f"'{printable(str(path))}' has {len(folders)} adapters and no {MULTI_TASK}, expected one of the two",
            hint=f"{GIVE}, or the directory of one adapter",
        )
    return _find_adapter(folders[0])


# Several tasks, or T5


def _save_tasks(method: Propetl, made: Path) -> None:
    weights, masks = _names_of_tasks(method)
    tensors = {**weights, **{name: _bits(method, scores) for name, scores in masks.items()}}
    for task in method.tasks or [method.name]:
        tensors |= method.head_tensors(task if method.tasks else "", prefix=f"heads.{task}.")
    write_tensors(made / MULTI_TASK, tensors)
    write_json(made / ABOUT, _about_tasks(method))


def _names_of_tasks(method: Propetl) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return prototypes, and scores, by their names in a file of several tasks, or of one on T5."""
    weights: dict[str, torch.Tensor] = {}
    masks: dict[str, torch.Tensor] = {}
    for i, block in enumerate(method.blocks):
        for side, scores in method.network.layers[i].items():
            place, part = _place(method, block, side)
            name = f"{place}.adapter_controller"
            if i == 0:
                prototype = f"{name}.adapters.common_adapter.{part}"
                if method.config.kind == "adapter":
                    weights[f"{prototype}_sampler.weight"] = method.network.weight(side)
                    weights[f"{prototype}_sampler.bias"] = method.network.weight(f"{side}_bias")
                else:
                    weights[prototype] = method.network.weight(side)
                for task in method.tasks:
                    masks[f"{name}.mask_scores.{task}_{part}_mask.param"] = method.network.tasks[task][side]
            masks[f"{name}.mask_scores.{LAYER if method.tasks else method.name}_{part}_mask.param"] = scores
    return weights, masks


def _about_tasks(method: Propetl) -> dict[str, Any]:
    """Return what propetl_config.json says, so that nothing has to be said when the run is packed."""
    return {
        "kind": method.config.kind,
        "keep_ratio": method.keep,
        "combine": method.config.combine if method.tasks else "none",
        "tasks": method.tasks or {method.name: method.model.config.num_labels if method.head_tensors() else 0},
        **{name: getattr(method.config, name) for name in _FIELDS[method.config.kind]},
        **_form(method),
    }


def _form(method: Propetl) -> dict[str, Any]:
    """Return what only the model knows: an adapter's place; of a merged matrix, which parts have a LoRA."""
    first = method.blocks[0]
    if method.config.kind == "adapter":
        return {"form": "t5-output" if first.norm is None else "pfeiffer"}
    merged = [projection.enable for projection in first.query_and_value.values() if len(projection.enable) > 1]
    return {"enable": list(merged[0])} if method.config.kind == "lora" and merged else {}


def _find_tasks(path: Path) -> SavedPropetl:
    table = _Table(path / ABOUT)
    kind, combine, tasks = table.get("kind", str), table.get("combine", str), table.get("tasks", dict)
    if kind not in _FIELDS:
        raise table.error(f"kind must be one of {', '.join(_FIELDS)}, got {shown(kind)}")
    if not tasks or not all(type(labels) is int and labels >= 0 for labels in tasks.values()):
        raise table.error(f"tasks must map task names to numbers of labels, got {shown(tasks)}")
    settings = {"kind": kind, "hidden": 0, **{name: table.get(name, wanted) for name, wanted in _FIELDS[kind].items()}}
    settings["keep"] = table.get("keep_ratio", float)
    several = combine != "none"
    if several:
        settings["combine"] = combine
    named = {"tasks": tasks} if several else {"task": next(iter(tasks))}
    return SavedPropetl(table, settings, named, functools.partial(_fill_tasks, path / MULTI_TASK, list(tasks)))


def _fill_tasks(path: Path, tasks: Sequence[str], method: Propetl) -> None:
    file = TensorFile(path)
    weights, masks = _names_of_tasks(method)
    file.copy(weights)
    for name, scores in masks.items():
        _copy_masks(file, name, (scores,), method.keep)
    for task in tasks:
        file.copy_head(method, f"heads.{task}.", task if method.tasks else "")
    file.refuse_others()


# One task on an encoder


def _save_adapter(method: Propetl, made: Path) -> None:
    weights, masks = _names_of_adapter(method)
    if method.config.kind == "prefix":  # raw: the reader makes masks of them; the file of masks has no key
        raw = torch.stack([scores["prefix"].detach() for scores in method.network.layers])
        weights |= {name: raw for name in masks}
        masks = {}
    about = {
        "hidden_size": method.blocks[0].width,
        "model_class": type(method.model).__name__,
        "model_name": getattr(method.model.config, "_name_or_path", ""),
        "model_type": method.model.config.model_type,
        "name": method.name,
        "version": "3.1.0",
    }
    write_json(made / "adapter_config.json", {**about, "config": _adapter_config(method)})
    write_tensors(made / "adapter.safetensors", weights)
    transposed = method.config.kind == "adapter"
    bits = {name: _bits(method, scores) for name, (scores, *_) in masks.items()}
    write_tensors(
        made / "adapter_mask.safetensors", {name: mask.T if transposed else mask for name, mask in bits.items()}
    )
    if head := method.head_tensors():
        labels = {"num_labels": method.model.config.num_labels, "label2id": method.model.config.label2id}
        write_json(made / "head_config.json", {**about, **labels})
        write_tensors(made / "model_head.safetensors", head)


def _names_of_adapter(method: Propetl) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, ...]]]:
    """Return weights, each under its name in every layer, and scores, by their names in an adapter's files.

    A prefix's scores stand in one tensor, layer by layer, that has a name in every layer, too.
    """
    weights: dict[str, torch.Tensor] = {}
    masks: dict[str, tuple[torch.Tensor, ...]] = {}
    if method.network.prefix is not None:
        end = f"prefix_tunings.{method.name}.self_prefix"
        stem = method.blocks[0].attention_name.partition("encoder.layer.")[0]
        pools = [f"{block.attention_name}.prefix_tuning.pool.{end}" for block in method.blocks]
        for module in [*pools, f"{stem}prefix_tuning.{end}"]:
            state = method.network.prefix.state_dict(keep_vars=True)
            weights |= {f"{module}.{name}": tensor for name, tensor in state.items()}
            masks[f"{module}.adapters_mask.adapters_mask"] = tuple(scores["prefix"] for scores in method.network.layers)
        return weights, masks
    parts = {"down": "adapter_down.0", "up": "adapter_up"}
    for i, block in enumerate(method.blocks):
        for side, scores in method.network.layers[i].items():
            place, part = _place(method, block, side)
            masks[f"{place}.adapters_mask.{method.name}.{part}_mask"] = (scores,)
            if method.config.kind == "lora":
                weights[f"{place}.loras.{method.name}.{part}"] = method.network.weight(side)
            else:
                name = f"{place}.adapters.{method.name}.{parts[part]}"
                weights[f"{name}.weight"] = method.network.weight(side)
                weights[f"{name}.bias"] = method.network.weight(f"{side}_bias")
    return weights, masks


def _adapter_config(method: Propetl) -> dict[str, Any]:
    """Return what adapter_config.json says of the adapter; `sparsity` is the share that is kept."""
    config = method.config
    shared = {"leave_out": [], "use_gating": False, "share_adapter": True, "sparsity": method.keep}
    if config.kind == "adapter":
        assert config.bottleneck is not None
        true = ("original_ln_before", "original_ln_after", "output_adapter", "residual_before_ln")
        false = ("adapter_residual_before_ln", "cross_adapter", "is_parallel", "ln_after", "ln_before", "mh_adapter")
        return {
            **shared,
            **dict.fromkeys(true, True),
            **dict.fromkeys((*false, "phm_layer"), False),
            "inv_adapter": None,
            "init_weights": "bert",
            "non_linearity": config.activation,
            "reduction_factor": method.blocks[0].width / config.bottleneck,
            "scaling": config.scaling,
        }
    if config.kind == "lora":
        return {
            **shared,
            **{"architecture": "lora", "composition_mode": "add", "dropout": 0.0},
            **{"selfattn_lora": True, "intermediate_lora": False, "output_lora": False},
            **{"attn_matrices": ["q", "v"], "r": config.rank, "alpha": config.alpha},
        }
    return {
        **shared,
        **{"architecture": "prefix_tuning", "encoder_prefix": True, "cross_prefix": False, "flat": False},
        **{"non_linearity": "tanh", "dropout": 0.0, "shared_gating": True},
        **{"prefix_length": config.length, "bottleneck_size": config.hidden},
    }


def _find_adapter(folder: Path) -> SavedPropetl:
    about = _Table(folder / "adapter_config.json")
    table = _Table(about.path, about.get("config", dict))
    kind = {"lora": "lora", "prefix_tuning": "prefix"}.get(str(table.content.get("architecture")), "adapter")
    settings: dict[str, Any] = {"kind": kind}
    if kind == "adapter":
        width, factor = about.get("hidden_size", int), table.get("reduction_factor", float)
        settings |= {"activation": table.get("non_linearity", str), "scaling": table.get("scaling", float)}
        settings["bottleneck"] = round(width / factor) if factor > 0 else 0
    elif kind == "lora":
        settings |= {"rank": table.get("r", int), "alpha": table.get("alpha", float)}
    else:
        settings |= {"length": table.get("prefix_length", int), "hidden": table.get("bottleneck_size", int)}
    settings["keep"] = table.get("sparsity", float)
    named = {"task": about.get("name", str)}
    return SavedPropetl(about, settings, named, functools.partial(_fill_adapter, folder))


def _fill_adapter(folder: Path, method: Propetl) -> None:
    kind = method.config.kind
    file = TensorFile(folder / "adapter.safetensors")
    weights, masks = _names_of_adapter(method)
    file.copy(weights)
    bits = file if kind == "prefix" else TensorFile(folder / "adapter_mask.safetensors")
    for name, scores in masks.items():
        _copy_masks(bits, name, scores, method.keep, transposed=kind == "adapter")
    for each in {id(file): file, id(bits): bits}.values():
        each.refuse_others()
    head = folder / "model_head.safetensors"
    if head.is_file():
        TensorFile(head).copy_head(method)


# Of both


def _place(method: Propetl, block: Block, side: str) -> tuple[str, str]:
    """Return the name of the module that a matrix acts in, and what the matrix is called there."""
    if method.config.kind == "adapter":
        return block.output_name, side
    if method.config.kind == "prefix":
        return block.attention_name, side
    name, _, part = side.rpartition("_lora_")
    return f"{block.attention_name}.{name}", f"lora_{part}"


def _bits(method: Propetl, scores: torch.Tensor) -> torch.Tensor:
    return top_mask(scores, method.keep).bool()


def _copy_masks(
    file: TensorFile, name: str, scores: Sequence[torch.Tensor], keep: float, *, transposed: bool = False
) -> None:
    """Copy a mask into its scores, or a tensor of several, row by row; raw scores are copied as they are."""
    shape = tuple(reversed(scores[0].shape)) if transposed else tuple(scores[0].shape)
    stacked = name.endswith(".adapters_mask")
    tensor = file.get(name, (len(scores), *shape) if stacked else shape)
    for target, row in zip(scores, tensor if stacked else [tensor], strict=True):
        mask = row.T if transposed else row
        is_mask, kept, wanted = mask.dtype == torch.bool, int((mask != 0).sum()), kept_count(mask.numel(), keep)
        if is_mask and kept != wanted:
            raise file.error(f"has mask '{name}' that keeps {kept:,} entries, but keep_ratio={keep:g} needs {wanted:,}")
        target.data.copy_(scores_of(mask) if is_mask else mask)


class _Table:
    """A JSON file's table, of which every value that is asked for is checked."""

    def __init__(self, path: Path, content: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.content = read_json(path) if content is None else content

    def get(self, name: str, wanted: type) -> Any:
        """Return a value of this type; a whole number is a float, too."""
        value = self.content.get(name)
        fits = type(value) in (int, float) if wanted is float else type(value) is wanted
        if not fits:
            raise self.error(f"{name} must be of type {wanted.__name__}, got {shown(value)}")
        return value

    @contextmanager
    def stated(self) -> Iterator[None]:
        """Raise RunError, which names the file, for a setting in it that is refused."""
        try:
            yield
        except UsageError as error:
            raise self.error(error.message) from error

    def error(self, what: str) -> RunError:
        """Return the error of what the file does not say as it should."""
        return RunError(f"'{printable(str(self.path))}': {printable(what)}", hint=_AGAIN)

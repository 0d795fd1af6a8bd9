"""The files of a PHA run, written and read: model.safetensors without the base, and config.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from petlpack.errors import RunError, printable
from petlpack.methods.files import GIVE, TensorFile, config_of, run_directory, write_json, write_tensors, writing
from petlpack.tensors.checkpoint import find_weights

if TYPE_CHECKING:
    from petlpack.methods.pha import Pha

FILE = "model.safetensors"

_PROTOTYPES = "adapter_task_embedding.weight"

_LOSSES = ("temperature", "weight", "memory")
"""What config.json says of the retriever, as `Config` calls it."""


@dataclass(frozen=True)
class SavedPha:
    """A run that was found in a directory."""

    config: Path
    """The config.json that states its settings."""
    file: TensorFile
    stack: str
    """What the names of the generator and the prototypes begin with."""
    settings: Mapping[str, Any]
    """Those of its `Config`."""
    tasks: Mapping[str, int]
    """How many labels each task has."""


def write_run(method: Pha, directory: str | os.PathLike[str], tasks: Sequence[str]) -> None:
    """Write what these tasks need."""
    tensors = _shared(method)
    rows = [method.prototypes[list(method.tasks).index(task)] for task in tasks]
    tensors[f"{method.stack}.{_PROTOTYPES}"] = torch.stack(rows)
    if method.heads is not None:
        for task in tasks:
            tensors |= method.head_tensors(task, prefix=f"heads.{task}.")
    with writing(method.model, directory) as made:
        write_tensors(made / FILE, tensors)
        write_json(made / "config.json", _config(method, tasks))


def _config(method: Pha, tasks: Sequence[str]) -> dict[str, Any]:
    """Return the model's config, with what the layout reads of the method."""
    end, settings, first = method.stack.rpartition(".")[2], method.config, method.blocks[0]
    adapters = {f"{end}_adapter": "pro-hyper", f"{end}_adapter_dim": settings.bottleneck}
    if method.shared_blocks:
        adapters = {"encoder_adapter": "manual", "encoder_adapter_dim": settings.bottleneck, **adapters}
    config = config_of(
        method.model,
        **adapters,
        adapter_norm_input=first.norm is None and first.reads is not None,
        adapter_place=method.place,
        process_encoder_output=method.retriever is not None,
        hypernetwork_bottleneck=settings.trunk,
        retriever={name: getattr(settings, name) for name in _LOSSES},
        tasks=tasks,
        task_labels={task: method.tasks[task] for task in tasks},
    )
    for name in ("id2label", "label2id"):  # of the current task's head alone
        config.pop(name, None)
    return config


def _shared(method: Pha) -> dict[str, torch.Tensor]:
    """Return the tensors that all tasks share, as the file names them."""
    return {
        f"{place}.{name}": tensor.detach()
        for place, module in _shared_modules(method).items()
        for name, tensor in module.state_dict().items()
    }


def _shared_modules(method: Pha) -> dict[str, nn.Module]:
    """Return the modules that all tasks share, by their names in the file."""
    modules = {f"{block.output_name}.adapter_layer": block.output.adapter_layer for block in method.shared_blocks}
    modules[f"{method.stack}.param_gen"] = method.generator
    if method.retriever is not None:
        modules[f"{method.stack}.mlp"] = method.retriever
    return modules


def find_run(directory: str | os.PathLike[str]) -> SavedPha:
    """Read what a run says of itself; raises RunError where it says too little."""
    path = run_directory(directory)
    weights = find_weights(path) or path / FILE
    config = weights.parent / "config.json"
    for part in (weights, config):
        if not part.is_file():
            raise RunError(f"'{printable(str(part))}' is missing", hint=GIVE)
    file = TensorFile(weights)
    tasks, losses = _read_config(config)
    end = f".{_PROTOTYPES}"
    stack = next((name.removesuffix(end) for name in file.tensors if name.endswith(end)), None)
    net = f"{stack}.param_gen.decoder"
    sizes = {"code": f"{net}.linear2.bias", "trunk": f"{net}.linear1.bias", "bottleneck": f"{net}.bias_down.bias"}
    missing = next((name for name in sizes.values() if name not in file.tensors), None)
    if stack is None or missing:
        raise file.error(f"has no '{missing if stack else _PROTOTYPES}'")
    if not any(name.startswith(f"{stack}.mlp.") for name in file.tensors):
        losses["weight"] = 0.0
    settings = {**{size: len(file.tensors[name]) for size, name in sizes.items()}, **losses}
    return SavedPha(config, file, stack, settings, tasks)


def _read_config(config: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the tasks, with so many labels each, and the settings of the retriever's losses."""
    try:
        table = json.loads(config.read_text(encoding="utf-8"))
        tasks = {task: int(table.get("task_labels", {}).get(task, 0)) for task in table["tasks"]}
        return tasks, {name: value for name, value in table.get("retriever", {}).items() if name in _LOSSES}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"'{printable(str(config))}' does not list the tasks of the run: {printable(repr(error))}",
            hint="the config.json of a PHA run needs `tasks`, in the order of the prototypes",
        ) from error


def fill(method: Pha, run: SavedPha) -> None:
    """Copy a run's tensors into what was attached; raises RunError where it lacks one, or has another shape."""
    file, name = run.file, f"{run.stack}.{_PROTOTYPES}"
    if method.stack != run.stack:
        model = type(method.model).__name__
        raise file.error(f"has its generator at '{run.stack}', but {model} has it at '{method.stack}'")
    dtype = file.tensors[f"{run.stack}.param_gen.decoder.linear2.bias"].dtype
    for module in (*_shared_modules(method).values(), method.prototypes):
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)  # it may have been moved to another
    file.copy(_shared(method))
    table = file.get(name, (len(method.prototypes), method.config.code))
    for prototype, row in zip(method.prototypes, table, strict=True):
        prototype.data.copy_(row)
    for task in method.tasks if method.heads is not None else ():
        file.copy_head(method, f"heads.{task}.", task)

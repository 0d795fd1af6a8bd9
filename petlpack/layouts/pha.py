"""`pha`: multi-task T5 runs whose decoder adapters a network generates from a prototype of each task.

"Prototype-based HyperAdapter" (Zhao, Fu, Zhang and Hou 2023); Bumble666/PHA: a full pytorch_model.bin and config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.base import LeftOut, Run, headers_of, left_out_tensors, read_json, row_of
from petlpack.layouts.checkpoints import model_with, places, skipped
from petlpack.layouts.files import other_weights, sort_files
from petlpack.layouts.options import Options
from petlpack.modules import Generated, Generator, Trunk, Use
from petlpack.tensors.checkpoint import open_saved
from petlpack.tensors.tensor import Tensor

PROTOTYPES = "decoder.adapter_task_embedding.weight"
LAYERS = "decoder.param_gen.layer_embed.weight"
NET = "decoder.param_gen.decoder"

_TRUNK = Trunk(
    first=(f"{NET}.linear1.weight", f"{NET}.linear1.bias"),
    second=(f"{NET}.linear2.weight", f"{NET}.linear2.bias"),
    norm=(f"{NET}.LayerNorm.weight", f"{NET}.LayerNorm.bias"),
    eps=1e-6,
)
_MANUAL = re.compile(
    r"(?P<place>(?:en|de)coder\.block\.\d+\.layer\.\d+)\.adapter_layer\.adapter_(?P<side>down|up)_manual\.(?P<part>weight|bias)"
)
_RETRIEVER = re.compile(r"decoder\.mlp\.\d+\.(weight|bias)")
_DEAD = "never used: the generated adapters stand in their place"
_TRAINING = "the retriever, which only training and new tasks use (--keep-retriever keeps it)"


@dataclass(frozen=True)
class Pha:
    """A model with `decoder.param_gen` and a row of prototypes for each task."""

    id = "pha"

    def detect(self, path: Path) -> bool:
        """Tell whether the run, or a checkpoint of it, has a model with PHA's generator and prototypes."""
        return _weights(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the run, a task for each row of the prototypes."""
        file = _weights(path)
        assert file is not None
        weights = open_saved(file)
        config = _config(file)
        tensors = dict(weights.tensors)
        _check(tensors, config, file)
        tasks = _tasks(config, tensors[PROTOTYPES], file, options)
        kept, left_out = sort_files(path, file.parent, weights.sources)
        left_out = (*left_out, *_drop(tensors, file, options))
        rows = _rows(tensors, config)
        norm = config.get("adapter_norm_input")
        use = Use("adapter", {"activation": "relu", "scaling": 1.0, "form": "parallel", "norm_input": norm is True})
        shared = tuple(name for name in tensors if name != PROTOTYPES)
        trained = sum(tensor.size for name, tensor in weights.tensors.items() if _is_method(name))
        header = next(iter(weights.headers))
        runs = []
        for number, task in enumerate(tasks):
            own = {**tensors, PROTOTYPES: row_of(weights.tensors[PROTOTYPES], number)}
            runs.append(
                Run(
                    path=path,
                    layout=self.id,
                    method="PHA",
                    module=Generator(own, frozenset(), use, (_TRUNK,), rows),
                    headers=headers_of({header: list(own)}, own),
                    weight_bytes=weights.nbytes // len(tasks),
                    kept={**kept, "config.json": _config_of(config, task)},
                    left_out=left_out,
                    warnings=(*skipped(path, file.parent), *other_weights(left_out)),
                    base_name=None,
                    task=task,
                    name=task,
                    parts=(shared,),
                    on_base=True,
                    figures={"trained": trained},
                )
            )
        return runs


def _weights(path: Path) -> Path | None:
    return next((file for place in places(path) if (file := model_with(place, NET, PROTOTYPES))), None)


def _config(file: Path) -> dict[str, Any]:
    config = file.parent / "config.json"
    if not config.is_file():
        raise RunError(
            f"'{printable(str(file.parent))}' has no config.json, which says how PHA's adapters are used",
            hint="copy the run again: save_pretrained writes it beside the model",
        )
    return read_json(config)


def _check(tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path) -> None:
    """Raise RunError where a tensor is missing, or the config contradicts the tensors."""
    kind = config.get("decoder_adapter")
    if kind != "pro-hyper":
        raise RunError(
            f"'{printable(str(file.parent / 'config.json'))}' has decoder_adapter {printable(repr(kind))}, "
            "and only 'pro-hyper' makes one adapter for each task",
            hint="adapters that depend on each input cannot be packed by task",
        )
    names = [*_TRUNK.first, *_TRUNK.second, *(_TRUNK.norm or ()), LAYERS]
    names += [
        f"{NET}.{what}_{side}.{part}"
        for what in ("weight", "bias")
        for side in ("up", "down")
        for part in ("weight", "bias")
    ]
    for name in names:
        if name not in tensors:
            raise RunError(f"'{printable(str(file))}' has prototypes, and no '{name}'")
    narrow, width = tensors[f"{NET}.bias_down.weight"].shape[0], tensors[f"{NET}.bias_up.weight"].shape[0]
    for name in (f"{NET}.weight_up.weight", f"{NET}.weight_down.weight"):
        if tensors[name].shape[0] != narrow * width:
            raise RunError(f"'{name}' is {list(tensors[name].shape)}, the biases say {narrow} x {width}")
    said = {"d_model": width, "decoder_adapter_dim": narrow, "num_decoder_layers": tensors[LAYERS].shape[0]}
    for key, found in said.items():
        if config.get(key, found) != found:
            raise RunError(
                f"'{printable(str(file.parent / 'config.json'))}' says {key} {config[key]}, the tensors say {found}",
                hint="the config belongs to another run",
            )
    codes = tensors[PROTOTYPES].shape[-1] + tensors[LAYERS].shape[-1]
    if tensors[_TRUNK.first[0]].shape[1] != codes:
        raise RunError(
            f"'{_TRUNK.first[0]}' is {list(tensors[_TRUNK.first[0]].shape)}, "
            f"prototype and layer code have {codes} numbers"
        )


def _tasks(config: Mapping[str, Any], prototypes: Tensor, file: Path, options: Options) -> list[str]:
    """Return the tasks in the order of their rows: the saved config's, for the experiment's is shuffled by a set."""
    said = config.get("tasks")
    found = ",".join(map(str, said)) if isinstance(said, list) else None
    tasks = [
        task.strip() for task in (options.text("task_order", found) or options.needed("task_order", file)).split(",")
    ]
    if "" in tasks:
        raise RunError(f"'{printable(str(file))}' has a task without a name: {printable(', '.join(tasks))}")
    twice = next((task for task in tasks if tasks.count(task) > 1), None)
    if twice is not None:
        raise RunError(
            f"'{printable(str(file))}' has rows for {printable(', '.join(tasks))}: '{printable(twice)}' stands twice",
            hint="the tasks stand in the config.json that the run saved, in the order of the rows",
        )
    if len(tasks) != prototypes.shape[0]:
        raise RunError(
            f"'{printable(str(file))}' has {prototypes.shape[0]} rows of prototypes, and there are {len(tasks)} tasks: "
            f"{printable(', '.join(tasks))}",
            hint="the tasks stand in the config.json that the run saved, in the order of the rows",
        )
    return tasks


def _drop(tensors: dict[str, Tensor], file: Path, options: Options) -> list[LeftOut]:
    """Take out what inference never uses; return what was taken out, and why."""
    dead = [name for name in tensors if (match := _MANUAL.fullmatch(name)) and match["place"].startswith("decoder.")]
    retriever = [name for name in tensors if _RETRIEVER.fullmatch(name)]
    retriever = [] if retriever and options.wants("keep_retriever") else retriever
    dropped = []
    for what, names, why in (("decoder...manual", dead, _DEAD), ("decoder.mlp", retriever, _TRAINING)):
        if names:
            sizes = [tensors.pop(name).nbytes for name in names]
            dropped.append(left_out_tensors(file.name, what, sizes, why))
    return dropped


def _rows(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Generated, ...]:
    rows = []
    for name in tensors:
        if match := _MANUAL.fullmatch(name):
            rows.append(Generated(f"{match['place']}.{match['side']}.{match['part']}", name))
    narrow, width = tensors[f"{NET}.bias_down.weight"].shape[0], tensors[f"{NET}.bias_up.weight"].shape[0]
    shapes = {"up": ((narrow, width), width), "down": ((width, narrow), narrow)}
    for layer in range(tensors[LAYERS].shape[0]):
        codes = ((PROTOTYPES, 0), (LAYERS, layer))
        for side, (matrix, vector) in shapes.items():
            output = f"decoder.block.{layer}.layer.2.{side}"
            for what, part, shape in (("weight", "weight", matrix), ("bias", "bias", (vector,))):
                source = f"{NET}.{what}_{side}"
                rows.append(
                    Generated(
                        f"{output}.{part}",
                        f"{source}.weight",
                        f"{source}.bias",
                        0,
                        codes,
                        shape,
                        transposed=what == "weight",
                    )
                )
    return tuple(rows)


def _is_method(name: str) -> bool:
    return (
        name == PROTOTYPES
        or name.startswith("decoder.param_gen.")
        or bool(_MANUAL.fullmatch(name) or _RETRIEVER.fullmatch(name))
    )


def _config_of(config: Mapping[str, Any], task: str) -> bytes:
    """Return the run's config for one of its tasks, which has one row of prototypes."""
    return (json.dumps({**config, "tasks": [task]}, indent=2, sort_keys=True) + "\n").encode()

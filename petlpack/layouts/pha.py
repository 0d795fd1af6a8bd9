"""`pha`: multi-task runs whose adapters a network generates from a prototype of each task.

"Prototype-based HyperAdapter" (Zhao, Fu and He 2023); Bumble666/PHA: a full pytorch_model.bin of T5 and
config.json. petlpack.methods.pha: of T5, BERT or RoBERTa, without the base, and a head for each task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import model_with, places, skipped
from petlpack.layouts.files import sort_files, warnings_about
from petlpack.layouts.layout import Layout, model_in
from petlpack.layouts.options import TASK_ORDER, Options, Setting
from petlpack.layouts.run import LeftOut, Run, headers_of, left_out_tensors, read_json, row_of
from petlpack.rules.modules import Generated, Generator, Trunk, Use
from petlpack.tensors.checkpoint import open_saved
from petlpack.tensors.tensor import Tensor

KEEP_RETRIEVER = Setting("keep_retriever", "PHA: store the retriever, which inference does not use", flag=True)

_PROTOTYPES = "adapter_task_embedding.weight"
_NET = "param_gen.decoder"
_PLACE = "decoder.block.{layer}.layer.2"
"""Where the released code's generated adapters stand."""

_MANUAL = re.compile(
    r"(?P<place>(?:\w+\.)*(?:en|de)coder\.block\.\d+\.layer\.\d+)\.adapter_layer\.adapter_(?P<side>down|up)_manual\.(?P<part>weight|bias)"
)
_HEAD = re.compile(r"heads\.(?P<task>[^.]+)\.(?P<name>.+)")
_DEAD = "unused: the generated adapters replace them"
_TRAINING = "the retriever, which only training and new tasks use (--keep-retriever keeps it)"


@dataclass(frozen=True)
class _Names:
    """What the method's tensors are called; `stack` is the model's stack with the generated adapters."""

    stack: str

    @property
    def prototypes(self) -> str:
        return f"{self.stack}.{_PROTOTYPES}"

    @property
    def layers(self) -> str:
        return f"{self.stack}.param_gen.layer_embed.weight"

    @property
    def net(self) -> str:
        return f"{self.stack}.{_NET}"

    @property
    def trunk(self) -> Trunk:
        linear1, linear2, norm = (
            (f"{self.net}.{layer}.weight", f"{self.net}.{layer}.bias") for layer in ("linear1", "linear2", "LayerNorm")
        )
        return Trunk(first=linear1, second=linear2, norm=norm, eps=1e-6)

    def is_retriever(self, name: str) -> bool:
        return re.fullmatch(rf"{re.escape(self.stack)}\.mlp\.\d+\.(weight|bias)", name) is not None

    def is_method(self, name: str) -> bool:
        return (
            name == self.prototypes
            or name.startswith(f"{self.stack}.param_gen.")
            or self.is_retriever(name)
            or _MANUAL.fullmatch(name) is not None
        )


@dataclass(frozen=True)
class PhaLayout(Layout):
    """A model with `decoder.param_gen` and a row of prototypes for each task."""

    id = "pha"
    method = "PHA"
    settings = (TASK_ORDER, KEEP_RETRIEVER)

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
        names = _names(tensors)
        _check(tensors, names, config, file)
        tasks = _tasks(config, tensors[names.prototypes], file, options)
        heads = _heads(tensors, tasks, file)
        kept, left_out = sort_files(path, file.parent, weights.sources, selection=options.selection)
        left_out = (*left_out, *_drop(tensors, names, file, options))
        rows = _rows(tensors, names, _place(config, file))
        norm = config.get("adapter_norm_input")
        use = Use("adapter", {"activation": "relu", "scaling": 1.0, "form": "parallel", "norm_input": norm is True})
        every = frozenset(name for names_of_head in heads.values() for name in names_of_head)
        shared = tuple(name for name in tensors if name != names.prototypes and name not in every)
        trained = sum(tensor.size for name, tensor in weights.tensors.items() if names.is_method(name))
        on_base = not all(names.is_method(name) for name in shared)
        base_name = config.get("_name_or_path")
        header = next(iter(weights.headers))

        def run_of(number: int, task: str) -> Run:
            others = every - heads[task]
            of_task = {name: tensor for name, tensor in tensors.items() if name not in others}
            of_task[names.prototypes] = row_of(weights.tensors[names.prototypes], number)
            return Run(
                path=path,
                layout=self.id,
                method="PHA",
                module=Generator(of_task, heads[task], use, (names.trunk,), rows),
                headers=headers_of({header: list(of_task)}, of_task),
                weight_bytes=weights.nbytes // len(tasks),
                kept={**kept, "config.json": _config_of(config, task)},
                left_out=left_out,
                warnings=(*skipped(path, file.parent), *warnings_about(left_out)),
                base_name=base_name if not on_base and isinstance(base_name, str) else None,
                task=task,
                name=task,
                parts=(shared,),
                on_base=on_base,
                figures={"trained": trained},
            )

        return [run_of(number, task) for number, task in enumerate(tasks)]

    def weights(self, place: Path) -> list[Path]:
        """Return the model."""
        return model_in(place)


def _weights(path: Path) -> Path | None:
    return next((file for place in places(path) if (file := model_with(place, f".{_NET}.", f".{_PROTOTYPES}"))), None)


def _names(tensors: Mapping[str, Tensor]) -> _Names:
    """Return the names of the stack whose adapters are generated: the decoder's, where there are several."""
    stacks = [name.removesuffix(f".{_PROTOTYPES}") for name in tensors if name.endswith(f".{_PROTOTYPES}")]
    return _Names("decoder" if "decoder" in stacks else stacks[0])


def _config(file: Path) -> dict[str, Any]:
    config = file.parent / "config.json"
    if not config.is_file():
        raise RunError(
            f"'{printable(str(file.parent))}' has no config.json, which says how PHA's adapters are used",
            hint="copy the run again: save_pretrained writes it next to the model",
        )
    return read_json(config)


def _check(tensors: Mapping[str, Tensor], names: _Names, config: Mapping[str, Any], file: Path) -> None:
    """Raise RunError where a tensor is missing, or the config contradicts the tensors."""
    end, net, trunk = names.stack.rpartition(".")[2], names.net, names.trunk
    kind = config.get(f"{end}_adapter")
    if kind != "pro-hyper":
        raise RunError(
            f"'{printable(str(file.parent / 'config.json'))}' has {end}_adapter {printable(repr(kind))}, "
            "expected 'pro-hyper', which makes one adapter per task",
            hint="adapters that depend on the input cannot be stored per task",
        )
    wanted = [*trunk.first, *trunk.second, *(trunk.norm or ()), names.layers]
    wanted += [
        f"{net}.{what}_{side}.{part}"
        for what in ("weight", "bias")
        for side in ("up", "down")
        for part in ("weight", "bias")
    ]
    for name in wanted:
        if name not in tensors:
            raise RunError(f"'{printable(str(file))}' has prototypes, but no '{name}'")
    narrow, width = tensors[f"{net}.bias_down.weight"].shape[0], tensors[f"{net}.bias_up.weight"].shape[0]
    for name in (f"{net}.weight_up.weight", f"{net}.weight_down.weight"):
        if tensors[name].shape[0] != narrow * width:
            raise RunError(f"'{name}' is {list(tensors[name].shape)}, its biases need {narrow} x {width}")
    layers = tensors[names.layers].shape[0]
    expected = {"d_model": width, "hidden_size": width, f"{end}_adapter_dim": narrow}
    expected |= (
        {"num_decoder_layers": layers} if end == "decoder" else {"num_layers": layers, "num_hidden_layers": layers}
    )
    for key, size in expected.items():
        if config.get(key, size) != size:
            raise RunError(
                f"'{printable(str(file.parent / 'config.json'))}' says {key} {config[key]}, but the tensors say {size}",
                hint="config.json is from another run: copy the right one",
            )
    first = trunk.first[0]
    codes = tensors[names.prototypes].shape[-1] + tensors[names.layers].shape[-1]
    if tensors[first].shape[1] != codes:
        raise RunError(f"'{first}' is {list(tensors[first].shape)}, but prototype and layer code have {codes} numbers")


def _tasks(config: Mapping[str, Any], prototypes: Tensor, file: Path, options: Options) -> list[str]:
    """Return the tasks in the order of their rows: the saved config's, for the experiment's is shuffled by a set."""
    named = config.get("tasks")
    in_config = ",".join(map(str, named)) if isinstance(named, list) else None
    tasks = [
        task.strip() for task in (options.text(TASK_ORDER, in_config) or options.needed(TASK_ORDER, file)).split(",")
    ]
    if "" in tasks:
        raise RunError(f"'{printable(str(file))}' has a task without a name: {printable(', '.join(tasks))}")
    twice = next((task for task in tasks if tasks.count(task) > 1), None)
    if twice is not None:
        raise RunError(
            f"'{printable(str(file))}' has rows for {printable(', '.join(tasks))}, '{printable(twice)}' twice",
            hint="config.json of the run must list its tasks, in the order of the rows",
        )
    if len(tasks) != prototypes.shape[0]:
        raise RunError(
            f"'{printable(str(file))}' has {prototypes.shape[0]} rows of prototypes, but there are {len(tasks)} tasks: "
            f"{printable(', '.join(tasks))}",
            hint="config.json of the run must list its tasks, in the order of the rows",
        )
    return tasks


def _heads(tensors: Mapping[str, Tensor], tasks: list[str], file: Path) -> dict[str, frozenset[str]]:
    """Return the names of each task's head, none in a run without heads; raises RunError where only some have one."""
    of: dict[str, set[str]] = {task: set() for task in tasks}
    for name in tensors:
        if match := _HEAD.fullmatch(name):
            if match["task"] not in of:
                raise RunError(
                    f"'{printable(str(file))}' has head '{printable(name)}', "
                    f"but its tasks are {printable(', '.join(tasks))}",
                    hint="config.json of the run must list its tasks, in the order of the rows",
                )
            of[match["task"]].add(name)
    without = next((task for task, head in of.items() if not head), None)
    if without is not None and any(of.values()):
        raise RunError(
            f"'{printable(str(file))}' has heads, but none for task '{printable(without)}'", hint="save the run again"
        )
    return {task: frozenset(head) for task, head in of.items()}


def _place(config: Mapping[str, Any], file: Path) -> str:
    """Return where the generated adapters stand, with `{layer}` in the place of the layer's number."""
    place = config.get("adapter_place", _PLACE)
    if not isinstance(place, str) or place.count("{layer}") != 1:
        raise RunError(
            f"'{printable(str(file.parent / 'config.json'))}': adapter_place must contain {{layer}} once, "
            f"got {printable(repr(place))}",
            hint=f"it names the modules that have the adapters, like '{_PLACE}'",
        )
    return place


def _drop(tensors: dict[str, Tensor], names: _Names, file: Path, options: Options) -> list[LeftOut]:
    """Take out what inference never uses; return what was taken out, and why."""
    stack = f"{names.stack}."
    dead = [name for name in tensors if (match := _MANUAL.fullmatch(name)) and match["place"].startswith(stack)]
    retriever = [name for name in tensors if names.is_retriever(name)]
    retriever = [] if retriever and options.wants(KEEP_RETRIEVER) else retriever
    dropped = []
    for what, held, why in ((f"{stack}..manual", dead, _DEAD), (f"{stack}mlp", retriever, _TRAINING)):
        if held:
            sizes = [tensors.pop(name).nbytes for name in held]
            dropped.append(left_out_tensors(file.name, what, sizes, why))
    return dropped


def _rows(tensors: Mapping[str, Tensor], names: _Names, place: str) -> tuple[Generated, ...]:
    rows, net = [], names.net
    for name in tensors:
        if match := _MANUAL.fullmatch(name):
            rows.append(Generated(f"{match['place']}.{match['side']}.{match['part']}", name))
    narrow, width = tensors[f"{net}.bias_down.weight"].shape[0], tensors[f"{net}.bias_up.weight"].shape[0]
    shapes = {"up": ((narrow, width), width), "down": ((width, narrow), narrow)}
    for layer in range(tensors[names.layers].shape[0]):
        codes = ((names.prototypes, 0), (names.layers, layer))
        for side, (matrix, vector) in shapes.items():
            output = f"{place.replace('{layer}', str(layer))}.{side}"
            for what, part, shape in (("weight", "weight", matrix), ("bias", "bias", (vector,))):
                source = f"{net}.{what}_{side}"
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


def _config_of(config: Mapping[str, Any], task: str) -> bytes:
    """Return the run's config for one of its tasks, which has one row of prototypes."""
    of_task = {**config, "tasks": [task]}
    labels = config.get("task_labels")
    if isinstance(labels, dict):
        of_task["task_labels"] = {task: labels.get(task, 0)}
    return (json.dumps(of_task, indent=2, sort_keys=True) + "\n").encode()

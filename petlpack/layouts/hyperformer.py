"""`hyperformer`: multi-task T5 runs of HyperFormer++, whose adapters one network for each stack generates.

Mahabadi, Ruder, Dehghani and Henderson 2021; rabeehk/hyperformer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import model_with, places, skipped
from petlpack.layouts.files import sort_files, warnings_about
from petlpack.layouts.layout import Layout, model_in
from petlpack.layouts.options import ACTIVATION, Options
from petlpack.layouts.run import Run, headers_of
from petlpack.rules.modules import Generated, Generator, Trunk, Use
from petlpack.tensors.checkpoint import open_saved
from petlpack.tensors.tensor import Tensor

_TASK = re.compile(r"task_embedding_controller\.task_to_embeddings\.(?P<task>.+)")
_NET = "adapter_layers_hyper_net"
_BLOCKS = {"encoder": {0: "layer.1", 1: "layer.0"}, "decoder": {0: "layer.2", 1: "layer.0"}}
"""Where the adapters of each block type stand: type 0 is the feed-forward, type 1 the self-attention."""


@dataclass(frozen=True)
class HyperformerLayout(Layout):
    """A model with `adapter_layers_hyper_net` and an embedding for each task."""

    id = "hyperformer"
    method = "HyperFormer"
    settings = (ACTIVATION,)

    def detect(self, path: Path) -> bool:
        """Tell whether the run, or a checkpoint of it, has a model with HyperFormer++'s networks."""
        return _weights(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the run, a task for each task embedding."""
        file = _weights(path)
        assert file is not None
        weights = open_saved(file)
        codes = {match["task"]: name for name in weights.tensors if (match := _TASK.fullmatch(name))}
        if not codes:
            raise RunError(f"'{printable(str(file))}' has a hypernetwork, but no task embeddings")
        trunks, stacks = _trunks(weights.tensors, file)
        kept, left_out = sort_files(path, file.parent, weights.sources, selection=options.selection)
        use = Use("adapter", {"activation": options.needed(ACTIVATION, path), "scaling": 1.0, "form": "output-norm"})
        common = {name: tensor for name, tensor in weights.tensors.items() if not _TASK.fullmatch(name)}
        trained = sum(tensor.size for name, tensor in weights.tensors.items() if _NET in name or _TASK.fullmatch(name))
        header = next(iter(weights.headers))
        runs = []
        for task, code in codes.items():
            of_task = {**common, code: weights.tensors[code]}
            rows = tuple(
                row for number, stack in enumerate(stacks) for row in _rows(of_task, stack, number, code, file)
            )
            runs.append(
                Run(
                    path=path,
                    layout=self.id,
                    method="HyperFormer",
                    module=Generator(of_task, frozenset(), use, trunks, rows),
                    headers=headers_of({header: list(of_task)}, of_task),
                    weight_bytes=weights.nbytes // len(codes),
                    kept=kept,
                    left_out=left_out,
                    warnings=(*skipped(path, file.parent), *warnings_about(left_out)),
                    base_name=None,
                    task=task,
                    name=task,
                    parts=(tuple(common),),
                    on_base=True,
                    figures={"trained": trained},
                )
            )
        return runs

    def weights(self, place: Path) -> list[Path]:
        """Return the model."""
        return model_in(place)


def _weights(path: Path) -> Path | None:
    return next((file for place in places(path) if (file := model_with(place, f".{_NET}.layer_id_embeddings."))), None)


def _trunks(tensors: Mapping[str, Tensor], file: Path) -> tuple[tuple[Trunk, ...], list[str]]:
    stacks = [stack for stack in _BLOCKS if f"{stack}.{_NET}.layer_id_embeddings.weight" in tensors]
    before = next((name for name in tensors if ".pre_layernorm_hypernet." in name), None)
    if before is not None:
        raise RunError(
            f"'{printable(str(file))}' generates norms before its adapters ('{before}'), which is not supported",
            hint="only runs without add_layer_norm_before_adapter can be encoded",
        )
    trunks = []
    for stack in stacks:
        net = f"{stack}.{_NET}"
        first, second = (f"{net}.task_hypernet.task_embeding_generator.{i}" for i in (0, 2))
        trunk = Trunk(
            (f"{first}.weight", f"{first}.bias"),
            (f"{second}.weight", f"{second}.bias"),
            (f"{net}.LayerNorm.weight", f"{net}.LayerNorm.bias"),
            1e-6,
        )
        for name in (*trunk.first, *trunk.second, *(trunk.norm or ()), f"{net}.adapters_block_type.weight"):
            if name not in tensors:
                raise RunError(f"'{printable(str(file))}' has a hypernetwork, but no '{name}'")
        trunks.append(trunk)
    return tuple(trunks), stacks


def _rows(tensors: Mapping[str, Tensor], stack: str, trunk: int, code: str, file: Path) -> list[Generated]:
    net = f"{stack}.{_NET}"
    layers, blocks = (f"{net}.{name}.weight" for name in ("layer_id_embeddings", "adapters_block_type"))
    sources = {
        **{
            f"{side}.{part}": f"{net}.{side}_sampler_hyper_net.{part}_generator.0"
            for side in ("down", "up")
            for part in ("weight", "bias")
        },
        **{f"norm.{part}": f"{net}.post_layernorm_hypernet.{part}_generator" for part in ("weight", "bias")},
    }
    sources = {output: name for output, name in sources.items() if f"{name}.weight" in tensors}
    sizes = {output: tensors[f"{name}.weight"].shape[0] for output, name in sources.items()}
    missing = {"down.weight", "down.bias", "up.weight", "up.bias"} - sources.keys()
    if missing:
        raise RunError(f"'{printable(str(file))}': hypernetwork '{net}' does not generate {min(missing)}")
    narrow, width = sizes["down.bias"], sizes["up.bias"]
    shapes = {"down.weight": (narrow, width), "up.weight": (width, narrow)}
    for output, shape in shapes.items():
        if sizes[output] != shape[0] * shape[1]:
            raise RunError(f"'{sources[output]}.weight' has {sizes[output]} rows, its biases need {narrow} x {width}")
    _check_codes(tensors, net, (code, layers, blocks))
    return [
        Generated(
            f"{stack}.block.{layer}.{place}.{output}",
            f"{source}.weight",
            f"{source}.bias" if f"{source}.bias" in tensors else None,
            trunk,
            ((code, 0), (layers, layer), (blocks, block)),
            shapes.get(output, (sizes[output],)),
        )
        for layer in range(tensors[layers].shape[0])
        for block, place in _BLOCKS[stack].items()
        if block < tensors[blocks].shape[0]
        for output, source in sources.items()
    ]


def _check_codes(tensors: Mapping[str, Tensor], net: str, codes: Sequence[str]) -> None:
    """Raise RunError where the codes of task, layer and block are not what the network takes."""
    first = f"{net}.task_hypernet.task_embeding_generator.0.weight"
    numbers = sum(tensors[name].shape[-1] for name in codes)
    if tensors[first].shape[1] != numbers:
        raise RunError(
            f"'{first}' is {list(tensors[first].shape)}, but task, layer and block embedding have {numbers} numbers"
        )

"""`propetl-t5`: multi-task runs of PROPETL on T5: one prototype, a mask for each task and one for each layer.

"One Network, Many Masks" (Zeng, Zhang and Lu 2023), section 3.3; ChaosCodes/ProPETL, propetl-t5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.layouts.base import Run, headers_of, left_out_tensors
from petlpack.layouts.checkpoints import model_with, places, skipped
from petlpack.layouts.files import other_weights, sort_files
from petlpack.layouts.options import Options
from petlpack.layouts.scores import check_keep, consensus, mask_of, stored_mask
from petlpack.modules import Masked, MaskedMatrix, Use
from petlpack.tensors.checkpoint import Checkpoint, open_saved
from petlpack.tensors.tensor import Tensor

FILE = "propetl_weight.bin"

_MASK = re.compile(r"(?P<place>.+)\.adapter_controller\.mask_scores\.(?P<owner>.+)_(?P<side>down|up)_mask\.param")
_PROTOTYPE = re.compile(r".+\.adapter_controller\.adapters\.[^.]+\.(?P<side>down|up)_sampler\.(?P<part>weight|bias)")

LAYER = "layer"
"""Whose masks `layer_down_mask` and `layer_up_mask` are."""

_LAST = (
    "the original code takes the first layer's mask from the last task that it is configured for: "
    "configure it for all tasks of the run, in their order: {}"
)

COMBINE = ("or", "and", "add")


@dataclass(frozen=True)
class PropetlT5:
    """propetl_weight.bin, or the raw scores in a full pytorch_model.bin."""

    id = "propetl-t5"

    def detect(self, path: Path) -> bool:
        """Tell whether the run, or a checkpoint of it, has propetl_weight.bin, or a model with mask scores."""
        return _weights(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the run, a task for each of its task masks."""
        file = _weights(path)
        assert file is not None
        masks = _Masks(file, open_saved(file, name=FILE), options)
        return [_read(path, file, masks, task, options) for task in masks.tasks]


def _weights(path: Path) -> Path | None:
    """Return the file that holds the masks."""
    for place in places(path):
        if (place / FILE).is_file():
            return place / FILE
        whole = model_with(place, ".adapter_controller.mask_scores.")
        if whole is not None:
            return whole
    return None


class _Masks:
    """The prototype and the masks of a run by what they are of."""

    def __init__(self, file: Path, weights: Checkpoint, options: Options) -> None:
        self.weights, self.whole = weights, file.name != FILE
        self.prototype: dict[tuple[str, str], str] = {}
        self.others: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}
        self._of: dict[str, dict[tuple[str, str], str]] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in weights.tensors.items():
            if match := _MASK.fullmatch(name):
                self._of.setdefault(match["owner"], {})[match["place"], match["side"]] = name
                self.tensors[name] = tensor
            elif match := _PROTOTYPE.fullmatch(name):
                first = self.prototype.setdefault((match["side"], match["part"]), name)
                self.tensors[first] = weights.tensors[first]
                _refuse_other(first, weights.tensors[first], name, tensor)
            else:
                self.others[name] = tensor
        missing = {(side, part) for side in ("down", "up") for part in ("weight", "bias")} - self.prototype.keys()
        if missing or not self._of:
            what = f"no {'/'.join(min(missing))} of the prototype" if missing else "no masks"
            raise RunError(f"'{printable(str(file))}' holds {what}", hint="save the run again: it cannot be rebuilt")
        self.layers = list(dict.fromkeys(place for masks in self._of.values() for place, _ in masks))
        self.tasks = _ordered([owner for owner in self._of if owner != LAYER], options, file)
        self._make_bits(file, options)
        self._restore_alias(file)
        self.common = self._common()

    def _common(self) -> dict[str, Tensor]:
        """Return what the tasks' masks have in common, by a mask of the layers over the same entries."""
        common = {}
        for side in ("down", "up"):
            own = [self.mask(task, self.layers[0], side) for task in self.tasks]
            like = self.mask(LAYER, self.layers[0], side)
            made = consensus([self.tensors[name] for name in own if name]) if like and len(own) > 2 else None
            if like and made is not None:
                common[like] = made
        return common

    def _make_bits(self, file: Path, options: Options) -> None:
        keep: float | None = None
        for name, tensor in self.tensors.items():
            match = _MASK.fullmatch(name)
            if match is None:
                continue
            prototype = self.weights.tensors[self.prototype[match["side"], "weight"]]
            if tensor.shape != prototype.shape:
                raise RunError(
                    f"mask '{printable(name)}' is {list(tensor.shape)}, its prototype {list(prototype.shape)}"
                )
            mask = stored_mask(tensor)
            if mask is None:
                keep = check_keep(options.needed_number("keep_ratio", file), file) if keep is None else keep
                mask = mask_of(tensor, keep, name)
                self.scores[name] = tensor
            self.tensors[name] = mask

    def _restore_alias(self, file: Path) -> None:
        """Give the first layer its mask: saved by unique parameters, it stands as the last task's alone.

        adapter_controller.py:77-90 makes the layer's mask of the loop's last variables, which are the last task's.
        """
        masks = self._of.get(LAYER)
        if masks is None:
            return
        for side in ("down", "up"):
            lacking = [place for place in self.layers if (place, side) not in masks]
            if not lacking:
                continue
            place, last = self.layers[0], self.mask(self.tasks[-1], self.layers[0], side)
            if lacking != [place] or last is None:
                raise RunError(
                    f"'{printable(str(file))}' has no mask '{LAYER}_{side}_mask' of {printable(', '.join(lacking))}",
                    hint="only the first layer's may be missing, which is the last task's",
                )
            name = f"{place}.adapter_controller.mask_scores.{LAYER}_{side}_mask.param"
            masks[place, side] = name
            self.tensors[name] = self.tensors[last]

    def mask(self, owner: str, place: str, side: str) -> str | None:
        """Return the name of a mask; one of a task that is tied over layers stands at the first of them."""
        masks = self._of.get(owner, {})
        name = masks.get((place, side))
        if name is None and LAYER in self._of and owner != LAYER:
            name = next((other for (_, at), other in masks.items() if at == side), None)
        return name

    def of(self, owner: str) -> list[str]:
        """Return the names of the masks of a task or of the layers."""
        return list(self._of.get(owner, {}).values())


def _refuse_other(first: str, prototype: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.shape != prototype.shape or tensor.sha256() != prototype.sha256():
        raise RunError(
            f"'{printable(name)}' differs from '{printable(first)}', and all layers have one prototype",
            hint="a run with a prototype for each layer is not supported",
        )


def _ordered(tasks: list[str], options: Options, file: Path) -> list[str]:
    """Return the tasks in the order of the run, the last of which lends the first layer its mask."""
    said = options.text("task_order")
    if said is None:
        return tasks
    order = [task.strip() for task in said.split(",")]
    if sorted(order) != sorted(tasks):
        raise RunError(
            f"task_order has {len(order)} tasks ({printable(said)}), "
            f"'{printable(str(file))}' has masks of {len(tasks)}: {printable(', '.join(tasks))}"
        )
    return order


def _read(path: Path, file: Path, masks: _Masks, task: str, options: Options) -> Run:
    extreme = bool(masks.of(LAYER))
    combine = options.needed("combine", path, COMBINE) if extreme else "none"
    use = Use(
        "adapter",
        {
            "activation": options.needed("activation", path),
            "scaling": 1.0,
            "form": "t5-output",
        },
    )
    rows, own, shared = [], [], [masks.prototype[key] for key in sorted(masks.prototype)]
    for place in masks.layers:
        for side in ("down", "up"):
            mine, layer = masks.mask(task, place, side), masks.mask(LAYER, place, side) if extreme else None
            if mine is None or (extreme and layer is None):
                raise RunError(
                    f"'{printable(str(file))}' has no mask of task '{task}' for {printable(place)}, side {side}"
                )
            own.append(mine)
            shared += [layer] if layer else []
            both = (mine, layer) if layer else (mine,)
            rows.append(MaskedMatrix(f"{place}.{side}.weight", masks.prototype[side, "weight"], both, combine))
            rows.append(MaskedMatrix(f"{place}.{side}.bias", masks.prototype[side, "bias"]))
    names = list(dict.fromkeys([*shared, *own]))
    tensors = {name: masks.tensors[name] for name in names} | (masks.others if masks.whole else {})
    chosen = file.parent
    kept, left_out = sort_files(path, chosen, masks.weights.sources)
    scores = [tensor.nbytes for tensor in masks.scores.values()]
    if scores:
        why = "made masks once; only further training needs scores"
        left_out = (*left_out, left_out_tensors(file.name, "mask scores", scores, why))
    trained = [masks.tensors[name] for name in names if name not in masks.prototype.values()]
    prototype = sum(masks.tensors[name].size for name in masks.prototype.values())
    return Run(
        path=path,
        layout="propetl-t5",
        method="PROPETL adapter",
        module=Masked(tensors, frozenset(), use, tuple(rows)),
        headers=headers_of({FILE: list(tensors)}, tensors),
        weight_bytes=masks.weights.nbytes // len(masks.tasks),
        kept=kept,
        left_out=left_out,
        warnings=(*skipped(path, file.parent), *other_weights(left_out)),
        base_name=None,
        task=task,
        name=task,
        parts=(tuple(shared),),
        hints=masks.common,
        note=_LAST.format(printable(", ".join(masks.tasks))) if extreme and len(masks.tasks) > 1 else "",
        on_base=masks.whole,
        omits_base=masks.whole,
        figures={
            "trained": prototype + sum({(mask.shape, mask.sha256()): mask.size for mask in trained}.values()),
        },
    )

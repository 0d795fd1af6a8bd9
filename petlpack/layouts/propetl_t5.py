"""`propetl-t5`: multi-task runs of PROPETL on T5: one prototype, a mask for each task and one for each layer.

"One Network, Many Masks" (Zeng, Zhang and Lu 2023), section 3.3; ChaosCodes/ProPETL, propetl-t5. A run with
propetl_config.json, which petlpack.methods.propetl writes, may be an encoder's, of LoRA or prefixes, and hold heads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import model_with, places, skipped
from petlpack.layouts.files import sort_files, warnings_about
from petlpack.layouts.layout import Layout, Names, first_of, model_in
from petlpack.layouts.options import ACTIVATION, KEEP_RATIO, SCALING, TASK_ORDER, Options, Setting
from petlpack.layouts.run import Run, headers_of, left_out_tensors, read_json
from petlpack.layouts.scores import check_keep, consensus, mask_of, stored_mask
from petlpack.rules.modules import Masked, MaskedMatrix, Use
from petlpack.tensors.checkpoint import Checkpoint, open_saved
from petlpack.tensors.tensor import Tensor

FILES = ("propetl_weight.safetensors", "propetl_weight.bin")
"""What holds prototypes and masks alone; the original code pickles it, petlpack.methods does not."""
ABOUT = "propetl_config.json"

_INSTEAD = (*FILES, "model.safetensors", "pytorch_model.bin")
"""Further names of the weights of the same run, of which one counts."""

_SIDES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "adapter": {"down": ("weight", "bias"), "up": ("weight", "bias")},
    "lora": {"lora_A": ("weight",), "lora_B": ("weight",)},
    "prefix": {"prefix": ("weight",)},
}
"""For each kind of module its matrices, and which parts a prototype has of each; a bias has no mask."""

_MASK = re.compile(
    r"(?P<place>.+)\.adapter_controller\.mask_scores\.(?P<owner>.+)_(?P<side>down|up|lora_A|lora_B|prefix)_mask\.param"
)
_PROTOTYPE = re.compile(
    r"(?P<place>.+)\.adapter_controller\.adapters\.[^.]+\."
    r"(?:(?P<sampled>down|up)_sampler\.(?P<part>weight|bias)|(?P<side>lora_A|lora_B|prefix))"
)

LAYER = "layer"
"""Whose masks `layer_down_mask` and `layer_up_mask` are."""

_LAST = (
    "the original code takes the first layer's mask from the last task that it is configured for: "
    "configure it for all tasks of the run, in their order: {}"
)

COMBINE = ("or", "and", "add")
COMBINED = Setting("combine", "how a task's and a layer's mask become one (or, and, add)", frozenset(COMBINE))


@dataclass(frozen=True)
class PropetlT5Layout(Layout):
    """propetl_weight.bin or .safetensors, or the raw scores in a full pytorch_model.bin."""

    id = "propetl-t5"
    method = "PROPETL"
    settings = (COMBINED, KEEP_RATIO, SCALING, ACTIVATION, TASK_ORDER)

    def may_be(self, names: Names) -> bool:
        """Tell whether there is something called like weights."""
        return names.show_weights

    def detect(self, path: Path) -> bool:
        """Tell whether the run, or a checkpoint of it, has such a file, or a model with mask scores."""
        return _weights(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the run, a task for each of its task masks."""
        file = _weights(path)
        assert file is not None
        about = _about(file.parent / ABOUT)
        masks = _Masks(file, open_saved(file, name=FILES[-1]), options, about)
        return [_read(path, file, masks, task, options, about) for task in masks.tasks]

    def weights(self, place: Path) -> list[Path]:
        """Return the file of prototypes and masks, else the model."""
        return first_of(place, FILES) or model_in(place)


def _weights(path: Path) -> Path | None:
    """Return the file that holds the masks."""
    for place in places(path):
        for name in FILES:
            if (place / name).is_file():
                return place / name
        whole = model_with(place, ".adapter_controller.mask_scores.")
        if whole is not None:
            return whole
    return None


_KNOWN: Mapping[str, Callable[[Any], bool]] = {
    "kind": lambda value: value in tuple(_SIDES),
    "combine": lambda value: value in ("none", *COMBINE),
    "keep_ratio": lambda value: type(value) in (int, float) and 0 < value <= 1,
    "tasks": lambda value: isinstance(value, dict),
    "activation": lambda value: isinstance(value, str),
    "form": lambda value: value in ("t5-output", "pfeiffer"),
    "scaling": lambda value: type(value) in (int, float) and math.isfinite(value),
    "alpha": lambda value: type(value) in (int, float) and math.isfinite(value),
    "rank": lambda value: type(value) is int and value > 0,
    "enable": lambda value: isinstance(value, list) and [type(flag) for flag in value] == [bool] * 3 and any(value),
}
_NEEDED = {"adapter": ("activation", "form", "scaling"), "lora": ("alpha", "rank"), "prefix": ()}


def _about(file: Path) -> dict[str, Any]:
    """Return what propetl_config.json says, where it is there; raises RunError where it makes no sense."""
    if not file.is_file():
        return {}
    about = read_json(file)
    needed = ("kind", "combine", "keep_ratio", "tasks", *_NEEDED.get(str(about.get("kind")), ()))
    for name in (*needed, *(["enable"] if "enable" in about else ())):
        if name not in about or not _KNOWN[name](about[name]):
            raise RunError(
                f"'{printable(str(file))}' has an invalid {name} {printable(repr(about.get(name)))}",
                hint="save the run again",
            )
    return about


class _Masks:
    """The prototypes and the masks of a run by what they are of."""

    def __init__(self, file: Path, weights: Checkpoint, options: Options, about: Mapping[str, Any]) -> None:
        self.weights, self.whole = weights, file.name not in FILES
        self.sides = _SIDES[about.get("kind", "adapter")]
        self.prototype: dict[tuple[str, str, str], str] = {}
        self.others: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}
        self._of: dict[str, dict[tuple[str, str], str]] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in weights.tensors.items():
            if match := _MASK.fullmatch(name):
                self._of.setdefault(match["owner"], {})[match["place"], match["side"]] = name
                self.tensors[name] = tensor
            elif match := _PROTOTYPE.fullmatch(name):
                side, part = match["side"] or match["sampled"], match["part"] or "weight"
                first = self.prototype.setdefault((_owner(match["place"], side), side, part), name)
                self.tensors[first] = weights.tensors[first]
                _refuse_other(first, weights.tensors[first], name, tensor)
            else:
                self.others[name] = tensor
        self.layers = list(dict.fromkeys(place for masks in self._of.values() for place, _ in masks))
        owners = {(_owner(place, side), side) for place in self.layers or [""] for side in self.sides}
        missing = {(*owner, part) for owner in owners for part in self.sides[owner[1]]} - self.prototype.keys()
        if missing or not self._of:
            what = f"no {'/'.join(filter(None, min(missing)))} of the prototype" if missing else "no masks"
            raise RunError(
                f"'{printable(str(file))}' has {what}", hint="save the run again: it cannot be rebuilt without them"
            )
        self.tasks = _ordered([owner for owner in self._of if owner != LAYER], options, file)
        self._make_bits(file, options)
        if not about:
            self._restore_alias(file)
        elif sorted(about["tasks"]) != sorted(self.tasks):
            raise RunError(
                f"'{printable(str(file.parent / ABOUT))}' has tasks {printable(', '.join(about['tasks']))}, "
                f"but {file.name} has masks of {printable(', '.join(self.tasks))}",
                hint="the files are from different runs: copy the run again",
            )
        else:  # a safetensors file has no order of its own
            self.tasks = list(about["tasks"])
        self.common = self._common()

    def _common(self) -> dict[str, Tensor]:
        """Return what the tasks' masks have in common, by a mask of the layers over the same entries."""
        common = {}
        first = {(_owner(place, side), side): place for place in reversed(self.layers) for side in self.sides}
        for (_, side), place in first.items():
            task_masks = [self.mask(task, place, side) for task in self.tasks]
            like = self.mask(LAYER, place, side)
            made = (
                consensus([self.tensors[name] for name in task_masks if name]) if like and len(task_masks) > 2 else None
            )
            if like and made is not None:
                common[like] = made
        return common

    def prototype_of(self, place: str, side: str, part: str = "weight") -> str:
        """Return the name of the prototype of a layer's matrix, or of its bias."""
        return self.prototype[_owner(place, side), side, part]

    def _make_bits(self, file: Path, options: Options) -> None:
        keep: float | None = None
        for name, tensor in self.tensors.items():
            match = _MASK.fullmatch(name)
            if match is None:
                continue
            if match["side"] not in self.sides:
                raise RunError(
                    f"'{printable(str(file))}' has mask '{printable(name)}', but matrices {', '.join(self.sides)}",
                    hint=f"{ABOUT} next to it says which kind they are",
                )
            prototype = self.weights.tensors[self.prototype_of(match["place"], match["side"])]
            if tensor.shape != prototype.shape:
                raise RunError(
                    f"mask '{printable(name)}' is {list(tensor.shape)}, its prototype {list(prototype.shape)}"
                )
            mask = stored_mask(tensor)
            if mask is None:
                keep = check_keep(options.needed_number(KEEP_RATIO, file), file) if keep is None else keep
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
                    f"'{printable(str(file))}' has no mask '{LAYER}_{side}_mask' for {printable(', '.join(lacking))}",
                    hint="only the first layer's mask may be missing, which is the last task's",
                )
            name = f"{place}.adapter_controller.mask_scores.{LAYER}_{side}_mask.param"
            masks[place, side] = name
            self.tensors[name] = self.tensors[last]

    def mask(self, owner: str, place: str, side: str) -> str | None:
        """Return the name of a mask; one of a task that is tied over layers stands at the first of them."""
        masks = self._of.get(owner, {})
        name = masks.get((place, side))
        if name is None and LAYER in self._of and owner != LAYER:
            name = next(
                (other for (at, of), other in masks.items() if of == side and _owner(at, side) == _owner(place, side)),
                None,
            )
        return name

    def of(self, owner: str) -> list[str]:
        """Return the names of the masks of a task or of the layers."""
        return list(self._of.get(owner, {}).values())


def _owner(place: str, side: str) -> str:
    """Return what has a prototype of its own: of a LoRA the matrix that it changes, else nothing."""
    return place.rpartition(".")[2] if side.startswith("lora") else ""


def _refuse_other(first: str, prototype: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.shape != prototype.shape or tensor.sha256() != prototype.sha256():
        raise RunError(
            f"'{printable(name)}' differs from '{printable(first)}', but all layers must have the same prototype",
            hint="a run with a prototype for each layer is not supported",
        )


def _ordered(tasks: list[str], options: Options, file: Path) -> list[str]:
    """Return the tasks in the order of the run, the last of which lends the first layer its mask."""
    asked = options.text(TASK_ORDER)
    if asked is None:
        return tasks
    order = [task.strip() for task in asked.split(",")]
    if sorted(order) != sorted(tasks):
        raise RunError(
            f"task_order has {len(order)} tasks ({printable(asked)}), "
            f"but '{printable(str(file))}' has masks of {len(tasks)}: {printable(', '.join(tasks))}"
        )
    return order


def _read(path: Path, file: Path, masks: _Masks, task: str, options: Options, about: Mapping[str, Any]) -> Run:
    extreme = bool(masks.of(LAYER))
    if about and extreme == (about["combine"] == "none"):
        raise RunError(
            f"'{printable(str(file.parent / ABOUT))}' has combine '{about['combine']}', "
            f"but {file.name} {'has' if extreme else 'has no'} masks of layers",
            hint="the files are from different runs: copy the run again",
        )
    combine = _combine(path, options, about) if extreme else "none"
    use = _use(path, options, about)
    rows = _rows(file, masks, task, combine)
    masked = [row.masks for row in rows if row.masks]
    task_masks = [mask for mask, *_ in masked]
    shared = [*(masks.prototype[key] for key in sorted(masks.prototype)), *(of[1] for of in masked if len(of) > 1)]
    head = [name for name in masks.others if about and name.startswith(f"heads.{task}.")]
    names = list(dict.fromkeys([*shared, *task_masks]))
    others = masks.others if masks.whole else {name: masks.others[name] for name in head}
    tensors = {name: masks.tensors[name] for name in names} | others
    chosen = file.parent
    kept, left_out = sort_files(
        path, chosen, masks.weights.sources, [ABOUT] if about else [], selection=options.selection, instead=_INSTEAD
    )
    scores = [tensor.nbytes for tensor in masks.scores.values()]
    if scores:
        why = "stored as masks; only further training needs the scores"
        left_out = (*left_out, left_out_tensors(file.name, "mask scores", scores, why))
    return Run(
        path=path,
        layout="propetl-t5",
        method=f"PROPETL {use.kind}",
        module=Masked(tensors, frozenset(head), use, tuple(rows)),
        headers=headers_of({file.name if file.name in FILES else FILES[-1]: list(tensors)}, tensors),
        weight_bytes=masks.weights.nbytes // len(masks.tasks),
        kept={**kept, **_about_task(about, task)},
        left_out=left_out,
        warnings=(*skipped(path, file.parent), *warnings_about(left_out)),
        base_name=_base_name(file.parent) if about else None,
        task=task,
        name=task,
        parts=(tuple(shared),),
        hints=masks.common,
        note=_LAST.format(printable(", ".join(masks.tasks))) if extreme and len(masks.tasks) > 1 and not about else "",
        on_base=masks.whole,
        omits_base=masks.whole,
        figures={"trained": _count_trained(masks, names)},
    )


def _rows(file: Path, masks: _Masks, task: str, combine: str) -> list[MaskedMatrix]:
    """Return the rows of a task's rule: of each masked matrix the task's mask, then the layer's; biases have none."""
    rows = []
    for place in masks.layers:
        for side, parts in masks.sides.items():
            owners = (task,) if combine == "none" else (task, LAYER)
            both = tuple(mask for owner in owners if (mask := masks.mask(owner, place, side)) is not None)
            if len(both) < len(owners):
                raise RunError(
                    f"'{printable(str(file))}' has no mask of task '{task}' for {printable(place)}, side {side}"
                )
            output = f"{place}.{side}.weight" if "bias" in parts else f"{place}.{side}"
            rows.append(MaskedMatrix(output, masks.prototype_of(place, side), both, combine))
            if "bias" in parts:
                rows.append(MaskedMatrix(f"{place}.{side}.bias", masks.prototype_of(place, side, "bias")))
    return rows


def _count_trained(masks: _Masks, names: Iterable[str]) -> int:
    """Return the trained numbers behind some tensors: prototypes, and each mask once."""
    prototypes = set(masks.prototype.values())
    masks_used = [masks.tensors[name] for name in names if name not in prototypes]
    once = {(mask.shape, mask.sha256()): mask.size for mask in masks_used}
    return sum(masks.tensors[name].size for name in prototypes) + sum(once.values())


def _combine(path: Path, options: Options, about: Mapping[str, Any]) -> str:
    return options.text(COMBINED, about.get("combine")) or options.needed(COMBINED, path)


def _use(path: Path, options: Options, about: Mapping[str, Any]) -> Use:
    """Return how the modules act: as propetl_config.json says, else as the released adapters of T5 do."""
    kind = about.get("kind", "adapter")
    if kind == "lora":
        scaling = options.needed_number(SCALING, path, about["alpha"] / about["rank"])
        merged = {"enable": about["enable"]} if "enable" in about else {}
        return Use(kind, {"scaling": scaling, **merged})
    if kind == "prefix":
        return Use(kind, {"baked": True})
    activation = options.text(ACTIVATION, about.get("activation")) or options.needed(ACTIVATION, path)
    return Use(
        kind,
        {
            "activation": activation,
            "scaling": float(about.get("scaling", 1.0)),
            "form": about.get("form", "t5-output"),
        },
    )


def _about_task(about: Mapping[str, Any], task: str) -> dict[str, bytes]:
    """Return propetl_config.json as a decoded task has it, which names that task alone."""
    if not about:
        return {}
    of_task = {**about, "tasks": {name: labels for name, labels in about["tasks"].items() if name == task}}
    return {ABOUT: (json.dumps(of_task, indent=2, sort_keys=True) + "\n").encode()}


def _base_name(directory: Path) -> str | None:
    """Return the base that config.json names."""
    config = directory / "config.json"
    named = read_json(config).get("_name_or_path") if config.is_file() else None
    return named if isinstance(named, str) and named else None

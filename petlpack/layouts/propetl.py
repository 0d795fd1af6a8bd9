"""`propetl`: runs of PROPETL on RoBERTa, an adapter-transformers fork: prototypes that all layers share, and masks.

"One Network, Many Masks" (Zeng, Zhang and Lu 2023); ChaosCodes/ProPETL, propetl-roberta.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.layouts.adapter_files import (
    MASKS,
    AdapterFiles,
    AdapterLayout,
    adapter_folders,
    open_adapter,
    sort_adapter_files,
)
from petlpack.layouts.checkpoints import skipped
from petlpack.layouts.files import warnings_about
from petlpack.layouts.options import ACTIVATION, KEEP_RATIO, SCALING, Options, Setting
from petlpack.layouts.run import LeftOut, Run, headers_of, left_out_tensors, read_json
from petlpack.layouts.scores import check_keep, mask_of, stored_mask
from petlpack.rules.arithmetic import produce
from petlpack.rules.modules import Masked, MaskedMatrix, Produced, Use
from petlpack.tensors.tensor import Tensor

BAKE = Setting(
    "bake",
    "PROPETL prefixes: store what the reparametrisation produces, not itself",
    flag=True,
    on_loses="the network; one rounding",
)

_MASK = re.compile(r"(?P<place>.+)\.adapters_mask\.(?P<name>[^.]+)\.(?P<side>down|up|lora_A|lora_B)_mask")
_SCORES = re.compile(r"(?P<module>.+\.prefix_tunings\.[^.]+\.[^.]+)\.adapters_mask\.adapters_mask")
_LAYER = re.compile(r"(?P<place>.+\.layer\.\d+\.attention\.self)\.prefix_tuning\.")


_SIDES = {
    "down": ("adapters", {"down.weight": "adapter_down.0.weight", "down.bias": "adapter_down.0.bias"}),
    "up": ("adapters", {"up.weight": "adapter_up.weight", "up.bias": "adapter_up.bias"}),
    "lora_A": ("loras", {"lora_A": "lora_A"}),
    "lora_B": ("loras", {"lora_B": "lora_B"}),
}
"""For each side of a module: the module's word in keys, and what its tensors are called rebuilt and in keys."""


@dataclass(frozen=True)
class PropetlLayout(AdapterLayout):
    """An adapter directory with masks: adapter_mask.bin beside adapter_config.json."""

    id = "propetl"
    method = "PROPETL"
    settings = (KEEP_RATIO, BAKE, SCALING, ACTIVATION)

    def detect(self, path: Path) -> bool:
        """Tell whether an adapter of the run has masks, or shares its prefix over layers."""
        return any(
            any((folder / name).is_file() for name in MASKS) or _config(folder).get("share_adapter") is True
            for folder in adapter_folders(path)
        )

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read every adapter of the run."""
        adapters = [open_adapter(path, folder) for folder in adapter_folders(path)]
        return [_read(path, adapter, adapters, options) for adapter in adapters]


def _config(folder: Path) -> Mapping[str, object]:
    config = read_json(folder / "adapter_config.json").get("config")
    return config if isinstance(config, dict) else {}


def _read(path: Path, adapter: AdapterFiles, adapters: list[AdapterFiles], options: Options) -> Run:
    kept, left_out = sort_adapter_files(path, adapter, adapters, options.selection)
    scores = [name for name in adapter.tensors if _SCORES.fullmatch(name)]
    module = _prefix(adapter, scores, options) if scores else _matrices(adapter, options)
    tensors, head = module.tensors, module.head
    shared = tuple(name for name in tensors if name not in head and tensors[name].dtype.name != "BOOL")
    prototypes = {(tensors[name].shape, tensors[name].sha256()): tensors[name].size for name in shared}
    masks = [tensors[name] for name in dict.fromkeys(mask for row in module.rows for mask in row.masks)]
    files = {file: [name for name in header.entries if name in tensors] for file, header in adapter.headers.items()}
    added = tensors.keys() - adapter.tensors.keys()
    left_out = (*left_out, *_gone(adapter, tensors))
    base = adapter.about.get("model_name")
    return Run(
        path=path,
        layout="propetl",
        method=f"PROPETL {module.use.kind}",
        module=module,
        headers=headers_of(
            {file: [*names, *(sorted(added) if i == 0 else ())] for i, (file, names) in enumerate(files.items())},
            tensors,
        ),
        weight_bytes=adapter.weight_bytes,
        kept=kept,
        left_out=left_out,
        warnings=(*skipped(path, adapter.root(path)), *warnings_about(left_out)),
        base_name=base if isinstance(base, str) else None,
        task=adapter.name if len(adapters) > 1 else "",
        name=adapter.name,
        parts=(shared,),
        exact=not added,
        figures={"trained": sum(prototypes.values()) + sum(mask.size for mask in masks)},
    )


def _gone(adapter: AdapterFiles, tensors: Mapping[str, Tensor]) -> list[LeftOut]:
    """Return what of the adapter is not stored: scores that were made masks, a network whose prefix is."""
    scores = [
        name
        for name, tensor in tensors.items()
        if name in adapter.tensors and tensor.dtype != adapter.tensors[name].dtype
    ]
    network = [name for name in adapter.tensors if name not in tensors]
    gone = []
    for what, names, why in (
        ("mask scores", scores, "stored as masks; only further training needs the scores"),
        ("the network of the prefix", network, "the prefixes that it makes are stored instead (--bake)"),
    ):
        held = {
            (adapter.tensors[name].shape, adapter.tensors[name].sha256()): adapter.tensors[name].nbytes
            for name in names
        }
        if held:
            gone.append(left_out_tensors(adapter.folder.name, what, held.values(), why))
    return gone


def _matrices(adapter: AdapterFiles, options: Options) -> Masked:
    """Read an adapter or LoRA: each side of each layer's module is a prototype times its mask."""
    tensors = dict(adapter.tensors)
    masks = {name: match for name in tensors if (match := _MASK.fullmatch(name))}
    if not masks:
        raise RunError(
            f"'{printable(str(adapter.folder / adapter.masks))}' has no masks, "
            "but the adapter's layers share their weights",
            hint="save the adapter again: it cannot be rebuilt without its masks",
        )
    _refuse_missing(adapter, {(match["place"], match["side"]) for match in masks.values()})
    first: dict[tuple[object, ...], str] = {}
    rows = []
    for mask, match in masks.items():
        if match["name"] != adapter.name:
            raise RunError(
                f"mask '{printable(mask)}' is for adapter '{printable(match['name'])}', expected '{adapter.name}'"
            )
        word, sides = _SIDES[match["side"]]
        for output, key in sides.items():
            name = f"{match['place']}.{word}.{adapter.name}.{key}"
            if name not in tensors:
                raise RunError(f"mask '{printable(mask)}' has nothing to mask: '{printable(name)}' is missing")
            tensor = tensors[name]
            prototype = first.setdefault((tensor.dtype, tensor.shape, tensor.sha256()), name)
            is_masked = len(tensor.shape) == 2
            transposed = word == "adapters"
            rows.append(
                MaskedMatrix(
                    f"{match['place']}.{output}",
                    prototype,
                    (mask,) if is_masked else (),
                    transposed=is_masked and transposed,
                )
            )
            if is_masked:
                shape = tuple(reversed(tensor.shape)) if transposed else tensor.shape
                _check_mask(mask, tensors[mask], name, shape)
        tensors[mask] = _as_mask(tensors[mask], mask, adapter, options)
    kind = "lora" if any(match["side"].startswith("lora") for match in masks.values()) else "adapter"
    return Masked(tensors, adapter.head, _use(adapter, kind, options), tuple(rows))


def _refuse_missing(adapter: AdapterFiles, masked: set[tuple[str, str]]) -> None:
    """Raise RunError where a matrix of a layer has weights and no mask."""
    for side, (word, parts) in _SIDES.items():
        for name in adapter.tensors:
            place, key, part = name.partition(f".{word}.{adapter.name}.")
            if key and part in parts.values() and (place, side) not in masked:
                raise RunError(
                    f"'{printable(str(adapter.folder / adapter.masks))}' has no {side}_mask for '{printable(place)}', "
                    f"but the adapter has its '{printable(part)}'",
                    hint="save the adapter again: it cannot be rebuilt without its masks",
                )


def _check_mask(mask: str, tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise RunError(
            f"mask '{printable(mask)}' is {list(tensor.shape)}, expected {list(shape)} for '{printable(name)}'"
        )


def _as_mask(tensor: Tensor, name: str, adapter: AdapterFiles, options: Options) -> Tensor:
    """Return a mask as bits: as it is stored, or made of the raw scores that a run with sparsity 1.0 leaves."""
    mask = stored_mask(tensor)
    return mask_of(tensor, _keep(adapter, options), name) if mask is None else mask


def _keep(adapter: AdapterFiles, options: Options) -> float:
    sparsity = adapter.config.get("sparsity")  # the share that is kept, whatever the word says
    keep = options.needed_number(
        KEEP_RATIO, adapter.folder, float(sparsity) if isinstance(sparsity, (int, float)) else None
    )
    return check_keep(keep, adapter.folder)


def _prefix(adapter: AdapterFiles, scores: list[str], options: Options) -> Masked:
    """Read a prefix: one reparametrisation for all layers, and raw scores of all layers in one tensor."""
    tensors, bake = dict(adapter.tensors), options.wants(BAKE)
    keep = _keep(adapter, options)
    modules = {name: match["module"] for name in scores if (match := _SCORES.fullmatch(name))}
    places = {match["place"]: module for module in modules.values() if (match := _LAYER.match(module))}
    if len({tensors[name].sha256() for name in scores}) > 1:
        raise RunError(
            f"'{printable(str(adapter.folder))}' has prefixes with different scores, expected the same for all"
        )
    mask, module = min(modules.items(), key=lambda item: bool(_LAYER.match(item[1])))  # the model's own, if it is there
    if not places:
        stem = module.partition(".prefix_tuning.")[0]
        places = {f"{stem}.encoder.layer.{i}.attention.self": module for i in range(tensors[mask].shape[0])}
    names = [
        f"{module}.{key}"
        for key in ("wte.weight", *(f"control_trans.{i}.{side}" for i in (0, 2) for side in ("weight", "bias")))
    ]
    _check_prefix(names, tensors, mask, len(places))
    bits = mask_of(tensors[mask], keep, mask, layers=True)
    for name in scores:
        tensors[name] = bits
    codes, *rest = names
    prototype = f"{module}.prefix"
    produced = Produced(prototype, codes, (rest[0], rest[1]), (rest[2], rest[3]))
    if bake:
        made = produce(tensors[codes], (tensors[rest[0]], tensors[rest[1]]), (tensors[rest[2]], tensors[rest[3]]))
        parts = (".wte.weight", ".control_trans.")
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if name == mask
            or not (".prefix_tunings." in name and (".adapters_mask" in name or any(p in name for p in parts)))
        }
        tensors[prototype] = made
    rows = [
        MaskedMatrix(f"{place}.prefix", prototype, (mask,), index=i)
        for i, place in enumerate(sorted(places, key=_number))
    ]
    return Masked(tensors, adapter.head, Use("prefix", {"baked": bake}), tuple(rows), () if bake else (produced,))


def _check_prefix(names: list[str], tensors: Mapping[str, Tensor], mask: str, layers: int) -> None:
    """Raise RunError where the reparametrisation is not whole, or its shapes and those of the scores disagree."""
    for name in names:
        if name not in tensors:
            raise RunError(f"the prefix has scores '{printable(mask)}', but no '{printable(name)}'")
    codes, _, _, last, _ = (tensors[name].shape for name in names)
    shape = (layers, codes[0], last[0])
    if tensors[mask].shape != shape:
        raise RunError(
            f"scores '{printable(mask)}' are {list(tensors[mask].shape)}, expected {list(shape)} as the prefixes"
        )


def _number(place: str) -> int:
    match = re.search(r"\.layer\.(\d{1,9})\.", place)
    return int(match[1]) if match else 0


def _use(adapter: AdapterFiles, kind: str, options: Options) -> Use:
    """Return how the modules act, as the config says."""
    config = adapter.config
    if kind == "lora":
        alpha, rank = config.get("alpha"), config.get("r")
        factor = (
            float(alpha) / float(rank) if isinstance(alpha, (int, float)) and isinstance(rank, int) and rank else None
        )
        return Use("lora", {"scaling": options.needed_number(SCALING, adapter.folder, factor)})
    factor = config.get("scaling")
    scaling = options.needed_number(
        SCALING, adapter.folder, float(factor) if isinstance(factor, (int, float)) else None
    )
    activation = config.get("non_linearity")
    return Use(
        "adapter",
        {
            "activation": options.text(ACTIVATION, activation if isinstance(activation, str) else None)
            or options.needed(ACTIVATION, adapter.folder),
            "scaling": scaling,
            "form": "pfeiffer" if _is_pfeiffer(config) else "other",
        },
    )


def _is_pfeiffer(config: Mapping[str, object]) -> bool:
    """Tell whether an adapter stands as in Pfeiffer et al. 2021: behind the feed-forward's residual and norm."""
    wanted = {
        **{"output_adapter": True, "original_ln_before": True, "original_ln_after": True, "residual_before_ln": True},
        **{"mh_adapter": False, "is_parallel": False, "ln_before": False, "ln_after": False, "use_gating": False},
        **{"adapter_residual_before_ln": False, "cross_adapter": False, "phm_layer": False},
    }
    return all(config.get(key, value) == value for key, value in wanted.items())

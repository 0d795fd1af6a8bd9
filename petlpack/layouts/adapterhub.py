"""`adapterhub`: an adapter that AdapterHub's `adapters` wrote, of any kind; the configs are kept byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.adapter_files import (
    CONFIG,
    AdapterFiles,
    AdapterLayout,
    adapter_folders,
    open_adapter,
    sort_adapter_files,
)
from petlpack.layouts.checkpoints import skipped
from petlpack.layouts.files import sort_files, warnings_about
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run, read_json
from petlpack.rules.modules import Copy, Plain, Use
from petlpack.tensors.checkpoint import open_saved

_MODULE = re.compile(
    r"(?P<place>.+)\.(?:adapters\.[^.]+\.adapter_(?:down\.0|up)\.(?:weight|bias)|loras\.[^.]+\.(?P<lora>lora_[AB]))"
)


FUSION_CONFIG = "adapter_fusion_config.json"
_FUSIONS = ("pytorch_model_adapter_fusion.bin", "model_adapter_fusion.safetensors")


@dataclass(frozen=True)
class AdapterhubLayout(AdapterLayout):
    """adapter_config.json of AdapterHub's schema, pytorch_adapter.bin or adapter.safetensors; or a fusion alone."""

    id = "adapterhub"
    method = "adapter"

    def detect(self, path: Path) -> bool:
        """Tell whether the directory, folders in it, or those of a checkpoint, hold an adapter; or a fusion of some."""
        return bool(adapter_folders(path)) or _fusion(path) is not None

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read every adapter of the run."""
        adapters = [open_adapter(path, folder) for folder in adapter_folders(path)]
        fusion = None if adapters else _fusion(path)
        if fusion is not None:
            return [_read_fusion(path, fusion, options)]
        return [_read(path, adapter, adapters, options) for adapter in adapters]

    def choices(self, path: Path) -> Iterator[tuple[Path, list[Path]]]:
        """Yield the weight files of all adapters, or of a fusion alone."""
        adapters = list(super().choices(path))
        fusion = None if adapters else _fusion(path)
        yield from adapters if fusion is None else [(path, [fusion])]

    def method_of(self, weights: Path) -> str:
        """Return the architecture that the adapter's config names."""
        if _fusion(weights.parent) is not None:
            return FUSION
        config = read_json(weights.parent / "adapter_config.json").get("config")
        architecture = config.get("architecture") if isinstance(config, dict) else None
        return architecture.lower() if isinstance(architecture, str) else self.method


FUSION = "adapter fusion"
"""The method of what mixes adapters that are stored elsewhere."""


def _fusion(path: Path) -> Path | None:
    """Return the weights of a fusion that stands alone: beside adapters, it comes along with them."""
    if not (path / FUSION_CONFIG).is_file() or (path / CONFIG).is_file():
        return None
    return next((path / name for name in _FUSIONS if (path / name).is_file()), None)


def _read_fusion(path: Path, file: Path, options: Options) -> Run:
    weights = open_saved(file)
    base = read_json(path / FUSION_CONFIG).get("model_name")
    kept, left_out = sort_files(path, path, [file], [FUSION_CONFIG], selection=options.selection)
    return Run(
        path=path,
        layout="adapterhub",
        method=FUSION,
        module=Plain(weights.tensors, frozenset()),
        headers=weights.headers,
        weight_bytes=weights.nbytes,
        kept=kept,
        left_out=left_out,
        base_name=base if isinstance(base, str) else None,
        warnings=(*weights.warnings, *warnings_about(left_out)),
    )


def _read(path: Path, adapter: AdapterFiles, adapters: list[AdapterFiles], options: Options) -> Run:
    _refuse_prototype(adapter)
    kept, left_out = sort_adapter_files(path, adapter, adapters, options.selection)
    base = adapter.about.get("model_name")
    use, copies = _rule(adapter)
    own_tensors = {
        (tensor.shape, tensor.sha256()): tensor.size
        for name, tensor in adapter.tensors.items()
        if name not in adapter.head
    }
    return Run(
        path=path,
        layout="adapterhub",
        method=_method(adapter),
        module=Plain(adapter.tensors, adapter.head, use, copies),
        headers=dict(adapter.headers),
        weight_bytes=adapter.weight_bytes,
        kept=kept,
        left_out=left_out,
        warnings=(*skipped(path, adapter.root(path)), *warnings_about(left_out)),
        base_name=base if isinstance(base, str) else None,
        task=adapter.name if len(adapters) > 1 else "",
        name=adapter.name,
        figures={"trained": sum(own_tensors.values())},
    )


def _method(adapter: AdapterFiles) -> str:
    architecture = adapter.config.get("architecture")
    return str(architecture) if isinstance(architecture, str) else "adapter"


def _rule(adapter: AdapterFiles) -> tuple[Use | None, tuple[Copy, ...]]:
    """Return how a LoRA of the common kind acts; None for everything else, which is kept all the same."""
    config = adapter.config
    matches = [
        (name, match) for name in adapter.tensors if name not in adapter.head and (match := _MODULE.fullmatch(name))
    ]
    if len(matches) + len(adapter.head) != len(adapter.tensors) or not matches:
        return None, ()
    if all(match["lora"] for _, match in matches):
        alpha, rank, plain = config.get("alpha"), config.get("r"), config.get("composition_mode") == "add"
        if not isinstance(alpha, (int, float)) or not isinstance(rank, int) or not rank or not plain:
            return None, ()
        copies = tuple(Copy(f"{match['place']}.{match['lora']}", name) for name, match in matches)
        merged = [match["place"].endswith(".c_attn") for _, match in matches]
        settings: dict[str, Any] = {"scaling": alpha / rank}
        if all(merged):  # query, key and value are one matrix in GPT-2
            matrices = config.get("attn_matrices")
            settings["enable"] = [matrix in matrices for matrix in "qkv"] if isinstance(matrices, list) else [True] * 3
        return (Use("lora", settings), copies) if all(merged) or not any(merged) else (None, ())
    return None, ()


def _refuse_prototype(adapter: AdapterFiles) -> None:
    """Raise RunError for what is PROPETL's prototype, saved by a fork of adapter-transformers 3, without its masks."""
    version = adapter.about.get("version")
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if _MODULE.fullmatch(name)}
    layers = {name.partition(".layer.")[2].partition(".")[0] for name in tensors}
    shared = len({(tensor.shape, tensor.sha256()) for tensor in tensors.values()}) * len(layers) == len(tensors)
    if isinstance(version, str) and version.startswith("3.") and len(layers) > 1 and shared:
        raise RunError(
            f"'{printable(str(adapter.folder))}' has the same adapter in all its {len(layers)} layers, like PROPETL's "
            "prototype, but no adapter_mask.bin",
            hint="copy adapter_mask.bin, too: the adapter cannot be rebuilt without its masks",
        )

"""`peft`: an adapter that PEFT wrote, of any `peft_type`; the config is kept byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import adapter_config, first_complete
from petlpack.layouts.files import sort_files, warnings_of
from petlpack.layouts.layout import Layout, Names, model_in
from petlpack.layouts.options import Options
from petlpack.layouts.run import Run, read_json
from petlpack.rules.modules import Plain
from petlpack.tensors.checkpoint import Checkpoint, find_weights, open_checkpoint, within
from petlpack.tensors.foreign_json import read_small
from petlpack.tensors.kinds import is_checkpoint
from petlpack.tensors.places import checkpoints

CONFIG = "adapter_config.json"

_WITHOUT_WIDTHS = {
    *("C3A", "FOURIERFT", "GRALORA", "LOKR", "OFT", "POLY", "PSOFT", "ROAD", "SHIRA", "SUPERTUNING", "UNILORA"),
    *("VBLORA", "WAVEFT"),
}
"""Kinds whose tensors have no size of a module: frequencies, places, blocks, factors of its widths."""


@dataclass(frozen=True)
class PeftLayout(Layout):
    """A PEFT adapter directory: adapter_config.json with a `peft_type`, adapter_model.safetensors or .bin."""

    id = "peft"
    method = "peft"
    base_keys = ((CONFIG, "base_model_name_or_path"), *Layout.base_keys)
    loads_base = True
    components = True

    def may_be(self, names: Names) -> bool:
        """Tell whether there is a config of an adapter, here or in a folder, or something called like weights."""
        return names.show_weights or any(CONFIG in files for files in (names.files, *names.folders.values()))

    def detect(self, path: Path) -> bool:
        """Tell whether the directory, or failing that a `checkpoint-N` in it, has PEFT's adapter_config.json.

        Named adapters stand in folders of their own.
        """
        if _is_adapter(path):
            return True
        return find_weights(path) is None and any(map(_adapters, [path, *checkpoints(path)]))

    def read(self, path: Path, options: Options) -> list[Run]:
        """Read the adapter."""
        chosen, weights, warnings = _open_best(path)
        config = read_json(_adapters(chosen)[0] / CONFIG)
        kept, left_out = sort_files(path, chosen, weights.sources, selection=options.selection, components=True)
        base_name = config.get("base_model_name_or_path")
        run = Run(
            path=path,
            layout=self.id,
            method=str(config["peft_type"]).lower(),
            module=Plain(weights.tensors, _head(weights.tensors, config)),
            headers=weights.headers,
            weight_bytes=weights.nbytes,
            kept=kept,
            left_out=left_out,
            base_name=base_name if isinstance(base_name, str) else None,
            width=_width(config),
            has_widths=str(config["peft_type"]).upper() not in _WITHOUT_WIDTHS,
            warnings=(*warnings, *warnings_of(weights, left_out)),
        )
        return [run]

    def weights(self, place: Path) -> list[Path]:
        """Return the adapter, or those in folders of their own."""
        folders = _adapters(place) or [place]
        return [file for folder in folders for file in model_in(folder, "adapter_model", "adapter_model")]

    def method_of(self, weights: Path) -> str:
        """Return the adapter's `peft_type`."""
        peft_type = read_json(weights.parent / CONFIG).get("peft_type")
        return peft_type.lower() if isinstance(peft_type, str) else self.method


def _width(config: Mapping[str, Any]) -> int | None:
    """Return the width of the model's hidden states that a prompt's config says."""
    width = config.get("token_dim")
    return width if type(width) is int and width > 0 else None


def _open_best(path: Path) -> tuple[Path, Checkpoint, tuple[str, ...]]:
    """Return the directory whose adapter counts, its weights, and warnings about checkpoints that were skipped."""
    if _adapters(path):
        return path, _open_adapter(path), ()
    return first_complete(path, _open_adapter)


def _adapters(place: Path) -> list[Path]:
    """Return the directory of an adapter, or the folders of the named ones that stand where one is saved.

    That is a checkpoint, or where PEFT wrote its model card: any other directory may hold the runs of many trainings.
    """
    if _is_adapter(place):
        return [place]
    if not place.is_dir() or find_weights(place) is not None or not (is_checkpoint(place.name) or _has_card(place)):
        return []
    return sorted(folder for folder in place.iterdir() if not is_checkpoint(folder.name) and _is_adapter(folder))


def _has_card(place: Path) -> bool:
    """Tell whether a README.md is a model card of PEFT, which stands beside the folders of named adapters."""
    try:
        return "library_name: peft" in read_small(place / "README.md").decode("utf-8").splitlines()
    except (OSError, ValueError):
        return False


def _is_adapter(path: Path) -> bool:
    """Tell PEFT's adapter_config.json from AdapterHub's, which has no `peft_type`."""
    return "peft_type" in adapter_config(path)


def _open_adapter(path: Path) -> Checkpoint:
    """Open the adapter's weights; raises RunError where it is only half written.

    Of adapters in folders of their own nothing is opened here: they are components.
    """
    weights = find_weights(path, stem="adapter_model", pickled="adapter_model")
    if not _is_adapter(path) and any(map(_has_weights, _adapters(path))):
        return Checkpoint({}, {}, ())
    if weights is None or not _is_adapter(path):
        here, missing = "adapter_config.json", "adapter_model.safetensors"
        if weights is not None:
            here, missing = missing, here
        raise RunError(
            f"'{printable(str(path))}' has {here}, but no {missing}",
            hint="the adapter is incomplete: copy it again, or save it again",
        )
    return within(open_checkpoint(weights), PurePosixPath(weights.parent.relative_to(path).as_posix()))


def _has_weights(folder: Path) -> bool:
    return find_weights(folder, stem="adapter_model", pickled="adapter_model") is not None


def _head(names: Iterable[str], config: dict[str, Any]) -> frozenset[str]:
    """Return the tensors of `modules_to_save`, and of a classifier that PEFT saves without being told."""
    saved = config.get("modules_to_save")
    named = [name for name in saved if isinstance(name, str)] if isinstance(saved, list) else []
    named = [name for name in saved if isinstance(name, str)] if isinstance(saved, list) else []
    named = [name for name in saved if isinstance(name, str)] if isinstance(saved, list) else []
    modules = {"classifier", "score", *named}
    return frozenset(name for name in names if modules & set(name.split(".")) and ".lora_" not in name)

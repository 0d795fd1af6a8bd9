"""The files of an AdapterHub adapter, which PROPETL's fork writes, too: found, opened, sorted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.checkpoints import checkpoints, places
from petlpack.layouts.files import sort_files
from petlpack.layouts.layout import Layout
from petlpack.layouts.run import LeftOut, read_json
from petlpack.layouts.selection import Selection
from petlpack.tensors.checkpoint import Checkpoint, open_checkpoint, open_saved
from petlpack.tensors.safetensors_file import Header
from petlpack.tensors.tensor import Tensor

ADAPTERS = ("pytorch_adapter.bin", "adapter.safetensors")
HEAD_FILES = ("pytorch_model_head.bin", "model_head.safetensors")
MASKS = ("adapter_mask.bin", "adapter_mask.safetensors")
"""The file of masks that only PROPETL has: pickled by its own fork, not so by petlpack.methods."""


@dataclass(frozen=True)
class AdapterFiles:
    """One adapter of a run: its folder, its name, its config, and its weight files one behind another."""

    folder: Path
    name: str
    about: Mapping[str, Any]
    """The whole adapter_config.json."""
    tensors: Mapping[str, Tensor]
    headers: Mapping[str, Header]
    sources: tuple[Path, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The adapter's own settings in adapter_config.json."""
        config = self.about.get("config")
        return config if isinstance(config, dict) else {}

    def root(self, path: Path) -> Path:
        """Return what the files of this adapter of a run are named from."""
        return _root(path, self.folder)

    @property
    def masks(self) -> str:
        """What the file of its masks is called, or would be."""
        return next((source.name for source in self.sources if source.name in MASKS), MASKS[0])

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum(path.stat().st_size for path in self.sources)

    @property
    def head(self) -> frozenset[str]:
        """The tensors of the head: all of its file, whose names may be the model's own (`classifier.weight`)."""
        head_names = {
            name for file, header in self.headers.items() if file.endswith(HEAD_FILES) for name in header.entries
        }
        return frozenset(name for name in self.tensors if name.startswith("heads.") or name in head_names)


def adapter_folders(path: Path) -> list[Path]:
    """Return the folders of a run that hold an adapter: itself, else those in it, else those in its last checkpoint."""
    for place in places(path):
        if _is_adapter(place):
            return [place]
        saved = set(checkpoints(place))
        inside = sorted(entry for entry in place.iterdir() if entry not in saved and _may_be_adapter(entry))
        if inside:
            return inside
    return []


class AdapterLayout(Layout):
    """A layout whose runs are adapters of AdapterHub's kind, one or several in folders of their own."""

    def choices(self, path: Path) -> Iterator[tuple[Path, list[Path]]]:
        """Yield the weight files of all adapters."""
        if files := _weight_files(path):
            yield path, files

    def folders(self, path: Path) -> list[Path]:
        """Return the adapters' directories."""
        return adapter_folders(path)


def _weight_files(path: Path) -> list[Path]:
    """Return the weight files of all adapters of a run, by names alone."""
    ways = [(folder, names) for folder in adapter_folders(path) for names in (ADAPTERS, MASKS, HEAD_FILES)]
    candidates = [[folder / name for name in names if (folder / name).is_file()] for folder, names in ways]
    return [files[0] for files in candidates if files]


def open_adapter(path: Path, folder: Path) -> AdapterFiles:
    """Open the adapter in a folder of a run; raises RunError where a file is missing or a tensor stands twice."""
    about = read_json(folder / "adapter_config.json")
    name = about.get("name")
    if not isinstance(name, str) or not name:
        raise RunError(
            f"'{printable(str(folder / 'adapter_config.json'))}' does not name its adapter",
            hint="save the adapter again with the library that trained it",
        )
    checkpoints_found = [_weights(folder, *ADAPTERS)]
    if checkpoints_found == [None]:
        raise RunError(
            f"'{printable(str(folder))}' has adapter_config.json, but no weights: pytorch_adapter.bin is missing",
            hint="the adapter is incomplete: copy it again, or save it again",
        )
    checkpoints_found += [_weights(folder, *MASKS), _weights(folder, *HEAD_FILES)]
    tensors: dict[str, Tensor] = {}
    headers: dict[str, Header] = {}
    root = _root(path, folder)
    for weights in filter(None, checkpoints_found):
        twice = tensors.keys() & weights.tensors.keys()
        if twice:
            raise RunError(
                f"'{printable(str(weights.sources[0]))}' has tensor '{printable(min(twice))}', "
                "which is also in another file of the adapter",
                hint="the files are from different adapters: copy the adapter again",
            )
        tensors |= weights.tensors
        (header,) = weights.headers.values()
        headers[weights.sources[0].relative_to(root).as_posix()] = header
    sources = tuple(weights.sources[0] for weights in checkpoints_found if weights is not None)
    return AdapterFiles(folder, name, about, tensors, headers, sources)


def sort_adapter_files(
    path: Path, adapter: AdapterFiles, all_of_them: list[AdapterFiles], selection: Selection
) -> tuple[dict[str, Path], tuple[LeftOut, ...]]:
    """Sort the files of a run into those that one adapter keeps and those that none does.

    What is in another adapter's directory is that one's.
    """
    chosen = adapter.root(path)
    weights = [source for other in all_of_them for source in other.sources]
    names = [
        (other, other.folder / name) for other in all_of_them for name in ("adapter_config.json", "head_config.json")
    ]
    also = {file.relative_to(chosen).as_posix(): other for other, file in names if file.is_relative_to(chosen)}
    kept, left_out = sort_files(path, chosen, weights, list(also), selection=selection)
    others = [other.folder for other in all_of_them if other is not adapter]
    return {name: file for name, file in kept.items() if not any(map(file.is_relative_to, others))}, left_out


def _root(path: Path, folder: Path) -> Path:
    """Return what an adapter's files are named from: the run, or the checkpoint of it that holds the adapter."""
    return next((place for place in (folder, folder.parent) if place in checkpoints(path)), path)


def _is_adapter(folder: Path) -> bool:
    """Tell AdapterHub's adapter_config.json from PEFT's, which has a `peft_type`."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return False
    about = read_json(config)
    return "peft_type" not in about and "config" in about


def _may_be_adapter(folder: Path) -> bool:
    """Tell whether a folder inside a run is an adapter; a config that cannot be read is none of the run's."""
    try:
        return _is_adapter(folder)
    except RunError:
        return False


def _weights(folder: Path, *names: str) -> Checkpoint | None:
    """Open the first of these files that is there; pickled ones come back pickled."""
    for name in names:
        if (folder / name).is_file():
            return open_saved(folder / name) if name.endswith(".bin") else open_checkpoint(folder / name)
    return None

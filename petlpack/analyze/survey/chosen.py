"""Which weight files of a run count: those that `encode` would take, told by names, configs and headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from petlpack.analyze.survey.tree import Tree
from petlpack.errors import RunError, printable
from petlpack.layouts.adamix import SOUPS
from petlpack.layouts.adapter_files import HEAD_FILES, MASKS, adapter_folders
from petlpack.layouts.base import read_json
from petlpack.layouts.checkpoints import checkpoints, places
from petlpack.layouts.files import module_types
from petlpack.layouts.propetl_t5 import FILES
from petlpack.tensors.checkpoint import find_weights, is_cut, shards_of

_METHODS = {
    "propetl": "PROPETL",
    "propetl-t5": "PROPETL",
    "adamix": "AdaMix",
    "diff-pruning": "diff pruning",
    "pha": "PHA",
    "hyperformer": "HyperFormer",
    "adapterhub": "adapter",
    "peft": "peft",
    "transformers": "full fine-tune",
    "safetensors": "full fine-tune",
}

_BEFORE: Mapping[str, tuple[str, ...]] = {
    "propetl-t5": FILES,
    "adamix": SOUPS,
    "diff-pruning": ("pytorch_model.bin", "checkpoint-best-info.pt", "checkpoint-last-info.pt", "mag*.pt"),
}
"""Weight files that a layout takes before those that Transformers would."""

_AFTER = {"adamix": ("model.final.pt", "model.*.pt"), "safetensors": ("*.safetensors",)}
"""Weight files that a layout takes after those."""

_IN_ADAPTERS = (
    ("pytorch_adapter.bin", "adapter.safetensors"),
    MASKS,
    HEAD_FILES,
)
"""The weight files of an AdapterHub adapter, of each the first name that is there."""

_BASE_KEYS = (
    ("adapter_config.json", "base_model_name_or_path"),
    ("adapter_config.json", "model_name"),
    ("config.json", "_name_or_path"),
)


@dataclass(frozen=True)
class FoundRun:
    """A run of the tree, the weight files that `encode` would take, and the directories below that are parts of it.

    `modules` are those of them whose weights loading needs, too: a sentence-transformers model has some.
    """

    path: Path
    layout: str | None = None
    method: str | None = None
    weights: tuple[Path, ...] = ()
    base_name: str | None = None
    inside: tuple[Path, ...] = ()
    modules: tuple[Path, ...] = ()
    checkpoints: int = 0
    problem: str | None = None


def choose(path: Path, layout_id: str, tree: Tree) -> FoundRun:
    """Return a run with the weights that count; what is wrong with those that come before them is its problem."""
    steps = checkpoints(path)
    modules = [path / name for name in module_types(path)] if path.is_dir() else []
    folders = adapter_folders(path) if layout_id in ("adapterhub", "propetl") else []
    found = FoundRun(
        path,
        layout_id,
        _METHODS[layout_id],
        inside=(*steps, *modules, *(folder for folder in folders if folder != path)),
        modules=tuple(modules),
        checkpoints=len(steps),
    )
    for place, files in _choices(path, layout_id, folders):
        weights: tuple[Path, ...] = ()
        try:
            weights = tuple(part for file in files for part in _parts(file))
            _check_complete(weights, tree)
            if layout_id == "transformers" and place != path and not (place / "config.json").is_file():
                raise RunError(f"'{printable(str(place))}' has no config.json")
            method, base_name = _method(files[0].parent, layout_id), _base_name(files[0].parent, path)
            return replace(found, method=method, weights=weights, base_name=base_name)
        except RunError as error:
            found = replace(found, problem=found.problem or error.message)
            if place == path:  # `encode` looks no further
                return replace(found, weights=weights)
    return replace(found, problem=found.problem or f"'{printable(str(path))}' has no weights")


def _choices(path: Path, layout_id: str, folders: Iterable[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield (directory, weight files) in the order in which a layout's reader takes them, pickles by name alone."""
    if path.is_file():
        yield path, [path]
    elif layout_id in ("adapterhub", "propetl"):
        ways = [[folder / name for name in names] for folder in folders for names in _IN_ADAPTERS]
        files = [file for way in ways for file in [file for file in way if file.is_file()][:1]]
        if files:
            yield path, files
    else:
        stem, pickled = ("adapter_model",) * 2 if layout_id == "peft" else ("model", "pytorch_model")
        for place in places(path):
            known = find_weights(place, stem, pickled)
            files = [
                *_matching(place, _BEFORE.get(layout_id, ())),
                *([known] if known is not None else []),
                *_matching(place, _AFTER.get(layout_id, ())),
            ]
            if files:
                yield place, files[:1]


def _matching(place: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files of some names, of numbered ones the highest first."""
    return [
        file
        for pattern in patterns
        for file in sorted(place.glob(pattern), key=lambda file: (len(file.name), file.name), reverse=True)
        if file.is_file()
    ]


def _parts(file: Path) -> list[Path]:
    """Return the shards that an index names, or the file itself; raises RunError."""
    return shards_of(file) if file.name.endswith(".index.json") else [file]


def _check_complete(weights: Iterable[Path], tree: Tree) -> None:
    """Raise RunError for a weight file that was cut short, or has another header than safetensors have."""
    for file in weights:
        if file.suffix == ".safetensors":
            header = tree.header(file)
            if isinstance(header, str):
                raise RunError(header)
        elif is_cut(file):
            raise RunError(f"'{printable(str(file))}' is cut short")


def _method(place: Path, layout_id: str) -> str:
    """Return how a run was trained, as far as its small files say."""
    if layout_id in ("peft", "adapterhub"):
        about = read_json(place / "adapter_config.json")
        config = about.get("config") if layout_id == "adapterhub" else {"architecture": about.get("peft_type")}
        said = config.get("architecture") if isinstance(config, dict) else None
        if isinstance(said, str):
            return said.lower()
    return _METHODS[layout_id]


def _base_name(place: Path, path: Path) -> str | None:
    """Return what a run's configs say of its base, if anything."""
    for folder in (place, path) if path.is_dir() else ():
        for file, key in _BASE_KEYS:
            name = read_json(folder / file).get(key) if (folder / file).is_file() else None
            if isinstance(name, str) and name:
                return name
    return None

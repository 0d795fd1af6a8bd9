"""Which weight files of a run count: those that `encode` would take, told by names, configs and headers alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from petlpack.analyze.survey.tree import Tree
from petlpack.errors import Problem, RunError, printable, problem_of
from petlpack.layouts.files import module_types
from petlpack.layouts.layout import Layout
from petlpack.layouts.registry import layout
from petlpack.layouts.run import read_json
from petlpack.tensors.checkpoint import refuse_other_content, shards_of
from petlpack.tensors.components import find_components
from petlpack.tensors.places import checkpoints
from petlpack.tensors.torch_reader import is_cut


@dataclass(frozen=True)
class FoundRun:
    """A run of the tree, the weight files that `encode` would take, and the directories below that are parts of it."""

    path: Path
    layout: str | None = None
    method: str | None = None
    weights: tuple[Path, ...] = ()
    base_name: str | None = None
    inside: tuple[Path, ...] = ()
    checkpoints: int = 0
    loads_base: bool = False
    """Whether what loads the run takes the base's tensors from the base anyway."""
    problem: Problem | None = None


def choose(path: Path, layout_id: str, tree: Tree) -> FoundRun:
    """Return a run with the weights that count; what is wrong with those that come before them is its problem."""
    steps = checkpoints(path)
    modules = [path / name for name in module_types(path)] if path.is_dir() else []
    reader, folders = layout(layout_id), layout(layout_id).folders(path)
    run = FoundRun(
        path,
        layout_id,
        reader.method,
        inside=(*steps, *modules, *(folder for folder in folders if folder != path)),
        checkpoints=len(steps),
        loads_base=reader.loads_base,
    )
    for place, files in reader.choices(path):
        weights: tuple[Path, ...] = ()
        try:
            weights = tuple(part for file in files for part in _parts(file))
            _check_complete(weights, tree)
            reader.check_complete(place, path)
            method, base_name = reader.method_of(files[0]), _base_name(reader, files[0].parent, path)
            parts = _components(place, weights) if reader.components else []
            inside = (*run.inside, *(file.parent for file in files if file.parent != place))
            weights = tuple(dict.fromkeys([*weights, *parts]))
            return replace(run, method=method, weights=weights, base_name=base_name, inside=inside)
        except RunError as error:
            run = replace(run, problem=run.problem or problem_of(error))
            if place == path:  # `encode` looks no further
                return replace(run, weights=weights)
    nothing = RunError(f"'{printable(str(path))}' has no weights", hint="the run was not saved in full: save it again")
    return replace(run, problem=run.problem or problem_of(nothing))


def _components(place: Path, weights: Iterable[Path]) -> list[Path]:
    """Return the weight files of a directory that `encode` takes besides the main ones."""
    return [*find_components(place, tuple(weights)).values()] if place.is_dir() else []


def _parts(file: Path) -> list[Path]:
    """Return the shards that an index names, or the file itself; raises RunError."""
    return shards_of(file) if file.name.endswith(".index.json") else [file]


def _check_complete(weights: Iterable[Path], tree: Tree) -> None:
    """Raise RunError for a weight file that is cut short, no weights, or has another header than safetensors have."""
    for file in weights:
        with contextlib.suppress(OSError):  # who reads it below tells why it cannot be read
            refuse_other_content(file)
        if file.suffix == ".safetensors":
            header = tree.header(file)
            if isinstance(header, Problem):
                raise RunError(header.message, hint=header.hint, code=header.code)
        elif is_cut(file):
            raise RunError(f"'{printable(str(file))}' is truncated")


def _base_name(reader: Layout, place: Path, path: Path) -> str | None:
    """Return what a run's configs say of its base, if anything."""
    for folder in (place, path) if path.is_dir() else ():
        for file, key in reader.base_keys:
            name = read_json(folder / file).get(key) if (folder / file).is_file() else None
            if isinstance(name, str) and name:
                return name
    return None

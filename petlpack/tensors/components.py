"""Weight files beside a model's own: value heads, modules, further adapters, towers, the parts of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from petlpack.errors import RunError, printable
from petlpack.tensors.checkpoint import PICKLED, Checkpoint, find_weights, open_checkpoint, open_saved
from petlpack.tensors.file_names import is_file_name
from petlpack.tensors.folders import folders_below
from petlpack.tensors.hub_cache import snapshot_of
from petlpack.tensors.kinds import CACHES, LOG_FOLDERS, READ, is_checkpoint, is_for_other_runtime, kind_by_name
from petlpack.tensors.places import DIFFUSERS, best_first, find_main, find_model
from petlpack.tensors.safetensors_file import Header
from petlpack.tensors.tensor import Tensor

PIPELINE = "model_index.json"
"""The file that says which folders are the parts of a pipeline of Diffusers."""

MODULES = "modules.json"
"""The file that says which folders are the modules of a model of sentence-transformers."""

_STANDARD = ("model", DIFFUSERS, "adapter_model")
"""Names of weight files that say nothing: the directory says which part of a model they are."""

_WRITTEN = (".safetensors", ".bin", ".pt", ".pth")
"""The formats in which weight files come back."""

_SHARD = re.compile(r"-\d+-of-\d+$")
_CONSOLIDATED = re.compile(r"consolidated(\.\d+)?")


def stem_of(name: str) -> str:
    """Return what a weight file is called without what tells formats and shards apart."""
    stem = _SHARD.sub("", PurePosixPath(name).stem.removeprefix("pytorch_"))
    return _CONSOLIDATED.sub("model", stem)


def may_be_component(name: PurePosixPath, beside: Iterable[str]) -> bool:
    """Tell by names whether a weight file is a part of the model, and not the same weights once more.

    `name` is relative to the model's directory, `beside` are the names of the main weight files that stand in the same
    directory: `pytorch_model.bin` has the weights of the model.safetensors beside it.
    """
    if name.suffix not in READ or is_for_other_runtime(name.name) or not LOG_FOLDERS.isdisjoint(name.parts[:-1]):
        return False
    return all(stem_of(name.name) != stem_of(other) for other in beside)


def open_model(path: Path, *, pickles: bool = True) -> Checkpoint | None:
    """Open the model of a path, as `find_model`, with the components beside its weights; None where there is none.

    Without `pickles` none is opened. Raises RunError for main weights that cannot be read, or are a pickle then; a
    component that cannot be read is left out.
    """
    place = snapshot_of(path)
    if is_in_parts(place):
        main, weights = None, Checkpoint({}, {}, ())
    else:
        main = find_model(path)
        if main is None:
            inside = next(filter(is_in_parts, best_first(place)), None)
            return None if inside is None else open_model(inside, pickles=pickles)
        if not pickles and main.name.removesuffix(".index.json").endswith(PICKLED):
            raise RunError(
                f"'{printable(str(main))}' is pickled, and no pickle is opened here",
                hint="save the model as safetensors first",
            )
        weights = open_checkpoint(main)
    if main is not None and place.is_dir():  # it may be a checkpoint's, or in a folder called like a weight file
        place = main.parent if main.parent == place or main.parent.suffix not in READ else main.parent.parent
    files = find_components(place, weights.sources) if place.is_dir() else {}
    files = {name: file for name, file in files.items() if pickles or file.suffix not in PICKLED}
    opened, _ = with_components(weights, files)
    return opened if main is not None or opened.tensors else None


def holds_model(directory: Path) -> bool:
    """Tell by names whether a directory is a model's; raises RunError as `find_model`."""
    in_parts = is_in_parts(directory) or any(map(is_in_parts, best_first(directory)))
    return in_parts or find_model(directory) is not None


def is_in_parts(directory: Path) -> bool:
    """Tell by names whether all weights of a model are in folders: a pipeline, or modules of sentence-transformers.

    So they are in what the training scripts of Diffusers save on the way.
    """
    listed = any((directory / name).is_file() for name in (PIPELINE, MODULES)) or is_state_of_parts(directory)
    return listed and find_main(directory) is None and bool(find_components(directory, ()))


def is_state_of_parts(directory: Path) -> bool:
    """Tell by names whether a directory is a state of a training of Diffusers, with the models in folders.

    Where neither its name nor files of the training beside them say so, folders of models are several models.
    """
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not (is_checkpoint(directory.name) or any(kind_by_name((name,)) == "training state" for name in names)):
        return False
    return any(find_weights(directory / name, DIFFUSERS, DIFFUSERS) for name in names)


def with_components(weights: Checkpoint, files: Mapping[str, Path]) -> tuple[Checkpoint, dict[str, str]]:
    """Return weights with those of further files, and why others are no components, by name.

    `files` are told by their names relative to the model's directory. Tensors of a component are called by its prefix
    and their own name. A file is none that holds nothing, or more than tensors with numbers and texts around them.
    """
    headers, tensors, sources = dict(weights.headers), dict(weights.tensors), list(weights.sources)
    why_not: dict[str, str] = {}
    for name, prefix in prefixes_of(files).items():
        try:
            opened = _open_component(files[name], prefix)
        except RunError as error:
            why_not[name] = error.message
            continue
        if opened.tensors.keys() & tensors.keys() or not opened.tensors:
            why_not[name] = "its tensors have names that others have, too" if opened.tensors else "it has no tensors"
            continue
        headers[name] = next(iter(opened.headers.values()))
        tensors |= opened.tensors
        sources += opened.sources
    components = (*weights.components, *sources[len(weights.sources) :])
    return Checkpoint(headers, tensors, tuple(sources), weights.warnings, components), why_not


def prefixes_of(names: Iterable[str]) -> dict[str, str]:
    """Return what stands in front of the tensors' names of each component, which shards of one have in common."""
    prefixes: dict[str, str] = {}
    taken: dict[str, tuple[str, str]] = {}
    for name in sorted(names, key=_by_standing):
        path = PurePosixPath(name)
        place, stem = path.parent.as_posix(), stem_of(name)
        whole = (path.parent / stem).as_posix()
        ways = [f"{place}/"] if stem in _STANDARD and place != "." else []
        ways += [f"{whole}/", f"{whole}{path.suffix}/"]
        one = (whole, path.suffix)
        prefixes[name] = next(way for way in ways if taken.setdefault(way, one) == one)
    return {name: prefixes[name] for name in sorted(prefixes)}


def _by_standing(name: str) -> tuple[int, int, str]:
    """Sort first what takes a directory's own prefix: by how usual the name is, safetensors before pickles."""
    stem = stem_of(name)
    standing = _STANDARD.index(stem) if stem in _STANDARD else len(_STANDARD)
    return standing, _WRITTEN.index(PurePosixPath(name).suffix), name


def by_component(tensors: Mapping[str, Tensor], headers: Iterable[Header]) -> dict[str, dict[str, Tensor]]:
    """Return tensors by the prefix and by their own name; those of the main weights have the empty prefix."""
    prefixes = {name: header.prefix for header in headers if header.prefix for name in header.tensors}
    components: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix = prefixes.get(name, "")
        components.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return components


def is_written(name: str) -> bool:
    """Tell by a name whether a weight file comes back in its own format."""
    return PurePosixPath(name).suffix in _WRITTEN


def _open_component(path: Path, prefix: str) -> Checkpoint:
    """Open a weight file; raises RunError where it cannot be read, or not all of it would come back."""
    opened = open_saved(path, whole=True)
    headers = {name: replace(header, prefix=prefix) for name, header in opened.headers.items()}
    tensors = {prefix + name: tensor for name, tensor in opened.tensors.items()}
    return Checkpoint(headers, tensors, opened.sources)


def find_components(model: Path, weights: Collection[Path]) -> dict[str, Path]:
    """Return the components of a base's directory, told by names: what a run's directory has, without links."""
    found = {}
    for place, files in folders_below(model, _is_part):
        beside = [file.name for file in weights if file.parent == place]
        for file in files:
            name = PurePosixPath((place / file).relative_to(model).as_posix())
            weighs = kind_by_name(name.parts) == "other weights" and is_written(file) and not is_checkpoint(name.stem)
            if weighs and is_file_name(str(name)) and place / file not in weights and may_be_component(name, beside):
                found[str(name)] = place / file
    return found


def _is_part(folder: Path) -> bool:
    """Tell whether a directory may hold parts of a model: no cache, no other checkpoint, no pack."""
    return folder.name not in CACHES and not is_checkpoint(folder.name) and not (folder / "pack.json").is_file()

"""Which files of a run come along byte for byte, and why the others are left out.

Everything does that is not known to be something else: training state, another checkpoint, a log, a cache, a pack, the
same weights once more. So a file that no list here has heard of is never lost.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from petlpack.errors import RunError, printable
from petlpack.layouts.run import LeftOut, Run
from petlpack.layouts.selection import Selection
from petlpack.layouts.walking import ANOTHER_CHECKPOINT, BROKEN, UNREADABLE, Entry, Walk
from petlpack.tensors.checkpoint import Checkpoint
from petlpack.tensors.components import is_written, may_be_component, stem_of
from petlpack.tensors.file_names import is_file_name
from petlpack.tensors.foreign_json import read_value
from petlpack.tensors.hub_cache import own_folders
from petlpack.tensors.kinds import (
    LEAVES,
    LOADING,
    WEIGHTS,
    is_checkpoint,
    is_for_other_runtime,
    is_needed,
    kind_in_run,
)

_OF_THE_WEIGHTS = {"config.json", "adapter_config.json", "head_config.json"}
"""Files that describe the weights beside them: those of the root may describe another model than a checkpoint's."""

_OTHER_WEIGHTS = "other weights"
TOO_LARGE = "larger than --max-file"
_UNPORTABLE = "a file name that is not valid on every system"
_INDEX = "an index of files that are not kept"
_MANY = 1000
"""More files in one directory than models have: samples, rows of data, frames."""
_CROWDED = f"in a directory of more than {_MANY:,} files"


def sort_files(
    run: Path,
    chosen: Path,
    weights: Iterable[Path],
    also: Collection[str] = (),
    *,
    selection: Selection | None = None,
    instead: Collection[str] = (),
    components: bool = False,
) -> tuple[dict[str, Path], tuple[LeftOut, ...]]:
    """Sort the files of a run into those kept byte for byte and those left out, each with the reason.

    `chosen` is the run or the checkpoint in it whose files count, `weights` are the files whose tensors are stored,
    `also` names files, relative to `chosen`, without which the run is not the same, and `instead` is globs of further
    names of the same weights. What `chosen` lacks is taken from the run. `selection` is what the caller says.
    `components` tells that further weights become tensors, so that they may be of any size.
    Raises RunError where a link that loading needs leads to no file.
    """
    modules = module_types(chosen if (chosen / "modules.json").is_file() else run)
    needed = frozenset({*map(PurePosixPath, also), *modules})
    sorting = _Sorting(run, chosen, tuple(weights), needed, selection or Selection(), tuple(instead), components)
    entries = [entry for entry in Walk(run, chosen, sorting.is_wanted).entries() if entry.path not in sorting.weights]
    reasons = [sorting.why_not(entry) for entry in entries]
    coming = [entry.path for entry, why in zip(entries, reasons, strict=True) if why is None]
    unasked = Counter(path.parent for path in coming if not sorting.is_asked(path))
    kept: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    for entry, why in zip(entries, reasons, strict=True):
        if why is None and unasked[entry.path.parent] > _MANY and not sorting.is_asked(entry.path):
            why = _CROWDED
        if why is None:
            kept[sorting.name_of(entry.path).as_posix()] = entry.path
        else:
            left_out.append(LeftOut(sorting.shown(entry.path).as_posix(), entry.nbytes, why))
    return kept, tuple(left_out)


@dataclass(frozen=True)
class _Sorting:
    """What is known of a run while its files are sorted."""

    run: Path
    chosen: Path
    weights: tuple[Path, ...]
    needed: frozenset[PurePosixPath]
    """Files, and directories, without which the run is not the same, besides those that are known by name."""
    selection: Selection
    instead: tuple[str, ...]
    components: bool

    def name_of(self, path: Path) -> PurePosixPath:
        """Return what a file is called when it comes back: relative to the chosen directory, else to the run."""
        root = self.chosen if path.is_relative_to(self.chosen) else self.run
        return PurePosixPath(path.relative_to(root).as_posix())

    def shown(self, path: Path) -> PurePosixPath:
        """Return what people are told of a file: its path below the run."""
        return PurePosixPath(path.relative_to(self.run).as_posix())

    def is_asked(self, path: Path) -> bool:
        """Tell whether the run is not the same without a file, or the caller named it."""
        return self._is_needed(self.name_of(path)) or self.selection.keeps(self.name_of(path), self.shown(path))

    def is_wanted(self, folder: Path, *, linked: bool) -> bool:
        """Tell whether to look into a directory that is a cache by its name, or a link that leads anywhere."""
        name = self.name_of(folder)
        return self._is_needed(name) or self.selection.may_keep_in(name, self.shown(folder), linked=linked)

    def why_not(self, entry: Entry) -> str | None:
        """Return why a file does not come along; None where it does."""
        name, shown = self.name_of(entry.path), self.shown(entry.path)
        needed = self._is_needed(name) and (entry.path.is_relative_to(self.chosen) or self._is_lacking(name))
        if entry.why == BROKEN and needed:
            raise _broken_link(entry.path)
        if entry.why is not None:
            return entry.why
        why = self._why_by_name(entry, name)
        if not is_file_name(name.as_posix()):
            return why or _UNPORTABLE
        if self.selection.keeps(name, shown) and not self._is_taken(entry.path, name):
            return None
        if why is None and self.selection.drops(name, shown):
            return "dropped (--drop)"
        encoded = self.components and is_written(name.name) and kind_in_run(name.parts) == _OTHER_WEIGHTS
        if why is None and not needed and not encoded and entry.nbytes > self.selection.max_file:
            return TOO_LARGE
        if why is None and not needed and not os.access(entry.path, os.R_OK):
            return UNREADABLE
        return why

    def _is_needed(self, name: PurePosixPath) -> bool:
        return is_needed(name) or any(map(name.is_relative_to, self.needed))

    def _why_by_name(self, entry: Entry, name: PurePosixPath) -> str | None:
        """Return why a file is left out as far as its name and place say."""
        kind = kind_in_run(name.parts)
        if not entry.path.is_relative_to(self.chosen) and not self._is_lacking(name):
            return LEAVES.get(kind, "the checkpoint has its own")
        if self._is_needed(name):
            return None
        if kind in LEAVES:
            return LEAVES[kind]
        if any(map(is_checkpoint, name.parts[:-1])) or (kind == _OTHER_WEIGHTS and is_checkpoint(name.stem)):
            return ANOTHER_CHECKPOINT
        return None if kind != _OTHER_WEIGHTS or self.is_component(entry.path, name) else self._why_weights(name)

    def is_component(self, path: Path, name: PurePosixPath) -> bool:
        """Tell whether a weight file is a part of the model beside the weights that are stored.

        That is a value head, a projector, another tower: in a format that is read, and not the same weights once more,
        as `pytorch_model.bin` is beside model.safetensors. `name` is relative to the chosen directory.
        """
        beside = [file for file in self.weights if file.parent == path.parent]
        once_more = beside if path.is_relative_to(self.chosen) else self.weights
        if path.resolve() in {file.resolve() for file in once_more}:
            return False
        same = any(fnmatchcase(name.as_posix(), glob) for glob in self.instead)
        return not same and may_be_component(name, [file.name for file in beside])

    def _why_weights(self, name: PurePosixPath) -> str:
        return "the same model for another runtime" if is_for_other_runtime(name.name) else _OTHER_WEIGHTS

    def _is_lacking(self, name: PurePosixPath) -> bool:
        """Tell whether a file of the run stands in for one that the chosen checkpoint lacks."""
        return name.as_posix() not in _OF_THE_WEIGHTS and not self._is_taken(self.run / name, name)

    def _is_taken(self, path: Path, name: PurePosixPath) -> bool:
        """Tell whether the chosen checkpoint has a file of its own where one of the run would come back."""
        if path.is_relative_to(self.chosen):
            return False
        return any((self.chosen / place).is_file() for place in name.parents) or (self.chosen / name).exists()


def settled(run: Run) -> Run:
    """Return a run that keeps no file under the name of a weight file, and no index of files that do not come back.

    Kept files that links lead to elsewhere are warned about: a run of a stranger could link to anything of one's own.
    """
    kept, left_out = dict(run.kept), list(run.left_out)
    for name, path in run.kept.items():
        why = _OTHER_WEIGHTS if name in run.headers else None
        if isinstance(path, Path) and name.endswith(".index.json") and not _leads_back(path, name, run):
            adapted = _adapted(path, name, run)
            if adapted is not None:
                kept[name] = adapted
                continue
            why = _INDEX
        if why is not None and isinstance(path, Path):
            del kept[name]
            left_out.append(LeftOut(path.relative_to(run.path).as_posix(), path.stat().st_size, why))
    own = [run.path.resolve(), *own_folders(run.path)]
    linked = {name: path.resolve() for name, path in kept.items() if isinstance(path, Path) and _is_linked(path, run)}
    elsewhere = [f"{name} ({path})" for name, path in linked.items() if not any(map(path.is_relative_to, own))]
    warnings = [f"kept what links lead to outside the run: {some(elsewhere)}"] if elsewhere else []
    return replace(run, kept=kept, left_out=tuple(left_out), warnings=(*run.warnings, *warnings))


def _is_linked(path: Path, run: Run) -> bool:
    return path.is_symlink() or path.parent != run.path


def _leads_back(index: Path, name: str, run: Run) -> bool:
    """Tell whether an index names only files that come back, with these tensors in them; one that is none is kept."""
    try:
        weight_map = read_value(index)["weight_map"]
        rows = {(tensor, (PurePosixPath(name).parent / file).as_posix()) for tensor, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return PurePosixPath(name).name.partition(".")[0] not in {stem_of(file) for file in run.headers}
    held = {file: header.entries.keys() for file, header in run.headers.items()}
    return all(tensor in held[file] if file in held else file in run.kept for tensor, file in rows)


def _adapted(index: Path, name: str, run: Run) -> bytes | None:
    """Return an index of shards that come back under other names with these; None where it needs none, or has others.

    Pickled shards of a safetensors index come back as safetensors. Those of a pickled one become one file.
    """
    if not name.endswith(".safetensors.index.json"):
        return None
    try:
        table = dict(read_value(index))
        there = all((index.parent / file).is_file() for file in table["weight_map"].values())
        place = PurePosixPath(name).parent
        files = {
            tensor: PurePosixPath(file).relative_to(place).as_posix()
            for file, header in run.headers.items()
            if not header.prefix and PurePosixPath(file).is_relative_to(place)
            for tensor in header.entries
        }
        if not there or len(set(files.values())) < 2:
            return None
        table["weight_map"] = {tensor: files[tensor] for tensor in table["weight_map"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return json.dumps(table, indent=2).encode()


def warnings_about(left_out: Collection[LeftOut]) -> tuple[str, ...]:
    """Return warnings about what is left out and may be missed: weights, large files, what cannot be kept."""
    told = {
        _OTHER_WEIGHTS: "left out other weights",
        TOO_LARGE: "left out files that are larger than --max-file",
        _CROWDED: f"left out files in directories of more than {_MANY:,}",
        _UNPORTABLE: "left out files with names that are not valid on every system",
        BROKEN: "left out broken links",
        UNREADABLE: "left out what cannot be read",
    }
    files = {why: [left.file for left in left_out if left.why == why] for why in told}
    return tuple(f"{told[why]}: {some(names)}" for why, names in files.items() if names)


def warnings_of(weights: Checkpoint, left_out: Collection[LeftOut]) -> tuple[str, ...]:
    """Return what a person should know of a run: weights that are left out, and those that come back otherwise."""
    pickled = [source.name for source in weights.sources if source.suffix != ".safetensors"]
    warnings = [*weights.warnings, *warnings_about(left_out)]
    if pickled and not {*pickled} & weights.headers.keys():
        verb = "comes" if len(pickled) == 1 else "come"
        warnings.append(f"{some(pickled)} {verb} back as {some(list(weights.headers))}")
    return tuple(warnings)


def module_types(directory: Path) -> dict[PurePosixPath, str]:
    """Return the directories that a sentence-transformers modules.json names, each with its module's type.

    A module at the root has no directory; a path that leads outside is ignored.
    """
    index = directory / "modules.json"
    if not index.is_file():
        return {}
    try:
        rows = [(module["path"], module.get("type")) for module in read_value(index)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"'{printable(str(index))}' is not a valid list of modules: {error!r}", hint="save the model again"
        ) from error
    paths = [(PurePosixPath(path), str(kind)) for path, kind in rows if isinstance(path, str)]
    return {path: kind for path, kind in paths if path.parts and not path.is_absolute() and ".." not in path.parts}


def some(names: list[str]) -> str:
    """Name the first five of several files."""
    return ", ".join(printable(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def check_links(directory: Path) -> None:
    """Raise RunError where a file that loading needs, or weights, is a link to nothing."""
    for path in sorted(directory.iterdir()):
        if (path.name in LOADING or path.suffix in WEIGHTS) and path.is_symlink() and not path.exists():
            raise _broken_link(path)


def _broken_link(path: Path) -> RunError:
    return RunError(
        f"'{printable(str(path))}' is a link to '{printable(str(path.readlink()))}', which is not a file",
        hint="loading the model needs it: replace the link by the file itself",
    )


METHODS = {
    "propetl": "PROPETL",
    "param_gen": "PHA",
    "ExpertSoup": "AdaMix",
    "experts_lora_A": "AdaMix",
    "diff_pruning": "diff pruning",
}
"""Modules that petlpack.methods puts on a model, in whose names no whole model has parts."""


def refuse_methods(weights: Checkpoint) -> None:
    """Raise RunError for a model that was saved with a method of petlpack on it: without it, it computes otherwise."""
    held = ((name, METHODS[part]) for name in weights.tensors for part in name.split(".") if part in METHODS)
    name, method = next(held, ("", ""))
    if method:
        raise RunError(
            f"'{printable(str(weights.sources[0]))}' is a model with {method} on it ('{printable(name)}'), as "
            "save_pretrained and Trainer write it: it does not say how the method is used",
            hint="load it into a model with the method on it, then method.save(DIRECTORY), and encode that",
        )

"""Directories that are no runs, but hold what a conversion makes one of: training states in parts, other formats."""

from __future__ import annotations

import re
from pathlib import Path

from petlpack.errors import RunError, printable
from petlpack.tensors.checkpoint import find_weights
from petlpack.tensors.content import (
    KINDS,
    OWN_FORMATS,
    POINTERS,
    READABLE,
    TEXT,
    ZEROS,
    Kind,
    called,
    content_of,
    names_in,
    special_file,
)
from petlpack.tensors.kinds import WEIGHTS
from petlpack.tensors.places import TRAINING, checkpoints

STATES = tuple(kind for kind in KINDS if kind.is_state)

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.safetensors|\.bin)")


def sharded_state(path: Path) -> tuple[str, Kind] | None:
    """Return what says that a directory, or a checkpoint in it, holds a training state in parts, and of which kind."""
    places = [place for place in (path, *checkpoints(path)) if place.is_dir()]
    return next(filter(None, (called(names_in(place), STATES) for place in places)), None)


def pointer_to_weights(path: Path) -> tuple[str, Kind] | None:
    """Return what in a directory only stands for weights by its name (DVC's `model.safetensors.dvc`), and its kind."""
    names = (entry.name for entry in path.iterdir() if entry.is_file() and Path(entry.stem).suffix in WEIGHTS)
    return called(names, POINTERS)


def refuse_state(path: Path) -> None:
    """Raise RunError for a directory with a training state in parts, but without the weights that it becomes."""
    places = (path, *checkpoints(path))
    if any(find_weights(place) or find_weights(place, *["adapter_model"] * 2) for place in places):
        return
    found = sharded_state(path)
    if found is not None:
        raise _contains(path, *found)


def refuse_foreign(path: Path) -> None:
    """Raise RunError for a directory that is no run, where something in it says what it is instead; reads heads."""
    refuse_state(path)
    _refuse_lone_shards(path)
    found = called(names_in(path))
    if found is not None:
        raise _contains(path, *found)
    for file in sorted(path.iterdir()):
        special = special_file(file) if file.suffix in WEIGHTS and file.exists() else None
        if special is not None:
            raise RunError(
                f"'{printable(str(file))}' is {special}, not a file", hint="put the weights themselves in its place"
            )
        passed = file.suffix in OWN_FORMATS or file.name.startswith(TRAINING) or not file.is_file()
        kind = None if passed else content_of(file)
        if kind is not None and kind not in (TEXT, ZEROS) and (kind not in READABLE or file.suffix not in WEIGHTS):
            raise _contains(path, file.name, kind)


def refuse_file(path: Path) -> None:
    """Raise RunError for a file that is no run, and says what it is instead."""
    special = special_file(path)
    if special is not None:
        raise RunError(
            f"'{printable(str(path))}' is {special}, not a file",
            hint="pass a run directory, or a weight file on a disk: it is read more than once",
        )
    if path.name.endswith(".index.json"):
        raise RunError(
            f"'{printable(str(path))}' is an index of shards, not a run", hint="pass the directory that it is in"
        )
    kind, found = content_of(path), called([path.name])
    if found is not None and (kind is None or kind not in KINDS or kind.is_archive):  # its name says more
        kind = found[1]
    if kind is not None and kind not in (TEXT, ZEROS):
        raise RunError(f"'{printable(str(path))}' is {kind.what}", hint=kind.hint)


def is_shard(name: str) -> bool:
    """Tell whether a file is called as one of several that make a model together."""
    return _SHARD.fullmatch(name) is not None


def _contains(path: Path, name: str, kind: Kind) -> RunError:
    return RunError(f"'{printable(str(path))}' contains {kind.what} ('{printable(name)}')", hint=kind.hint)


def _refuse_lone_shards(path: Path) -> None:
    """Raise RunError for shards without the index that says which tensor is in which."""
    matches = (match for file in sorted(path.iterdir()) if (match := _SHARD.fullmatch(file.name)))
    for match in matches:
        index = f"{match['stem']}{match['suffix']}.index.json"
        if not (path / index).exists():
            raise RunError(
                f"'{printable(str(path))}' has shards ('{printable(match[0])}'), but not their index, "
                f"{printable(index)}",
                hint="copy the index, too: it says which tensor is in which shard",
            )

"""Which directories of a tree are runs, to which of them each file belongs, and what it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from petlpack.analyze.survey.chosen import FoundRun, choose
from petlpack.analyze.survey.tree import File, Key, Tree, key_of
from petlpack.errors import PetlpackError, Problem, RunError, printable, problem_at, problem_of
from petlpack.layouts.foreign import pointer_to_weights, sharded_state
from petlpack.layouts.layout import Names
from petlpack.layouts.registry import LAYOUTS, layout
from petlpack.tensors.content import Kind
from petlpack.tensors.kinds import is_checkpoint, kind_in_run


def find_runs(tree: Tree) -> dict[Path, FoundRun]:
    """Return {directory, or file that was given: the innermost run that it belongs to}, those of no run left out."""
    owners: dict[Path, FoundRun] = {}
    closed: set[Path] = set()
    """Directories in which no further run is looked for."""
    for path, folder in tree.folders.items():
        above = None if folder.given else path.parent
        owner = owners.get(above) if above is not None else None
        if folder.skipped or path in closed or above in closed:
            closed.add(path)
        elif (run := _look_at(path, tree)) is not None:
            owner = run
            closed.update(run.inside)
        if owner is not None:
            owners[path] = owner
    single_files = [file.path for file in tree.files.values() if file.path.parent not in tree.folders]
    return owners | {path: run for path in single_files if (run := _look_at(path, tree)) is not None}


def _names_in(path: Path, tree: Tree) -> Names | None:
    """Return the names in a directory of the tree; None of a file."""
    folder = tree.folders.get(path)
    if folder is None:
        return None
    inside = {name: tree.folders.get(path / name) for name in folder.folders}
    return Names(folder.files, {name: found.files if found else frozenset() for name, found in inside.items()})


def _look_at(path: Path, tree: Tree) -> FoundRun | None:
    """Return the run that a path is, by the first layout that knows it; None where none does.

    Only what may be a run by names alone is opened.
    """
    names, layout_id = _names_in(path, tree), None
    try:
        readers = (reader for reader in map(layout, LAYOUTS) if names is None or reader.may_be(names))
        layout_id = next((reader.id for reader in readers if reader.detect(path)), None)
        if layout_id is not None:
            return choose(path, layout_id, tree)
        state = sharded_state(path) if path.is_dir() and (names is None or names.show_weights) else None
        if state is not None:
            return _held(path, *state, "then encode the merged model")
        pointer = pointer_to_weights(path) if path.is_dir() else None
        return None if pointer is None else _held(path, *pointer, pointer[1].hint)
    except (PetlpackError, OSError) as error:
        steps = tuple(path / name for name in (names.folders if names else ()) if is_checkpoint(name))
        return FoundRun(path, layout_id, inside=steps, checkpoints=len(steps), problem=_told(error))


def _held(path: Path, name: str, kind: Kind, hint: str) -> FoundRun:
    """Return a run of which there is only what something in it says that it is."""
    text = f"'{printable(str(path))}' holds {kind.what} ('{printable(name)}')"
    return FoundRun(path, problem=problem_of(RunError(text, hint=hint)))


def _told(error: PetlpackError | OSError) -> Problem:
    """Return what is wrong; of an error of the operating system in the words that other files are told with."""
    if isinstance(error, PetlpackError) or error.filename is None:
        return problem_of(error)
    message = f"'{printable(str(error.filename))}' cannot be read: {error.strerror}"
    return replace(problem_at(error), message=message)


def sort_files(tree: Tree, owners: Mapping[Path, FoundRun]) -> dict[Key, File]:
    """Return the files of the tree, each with its run, and with its kind in that."""
    stored = {key for run in {*owners.values()} for key in _keys(run.weights)}
    packs = set(tree.packs)
    files = {}
    for key, file in tree.files.items():
        run = owners.get(file.path, owners.get(file.path.parent))
        kind = "pack" if not packs.isdisjoint(file.path.parents) else _kind(file, run, stored)
        files[key] = replace(file, kind=kind, run=None if run is None else run.path)
    return files


def _keys(paths: Iterable[Path]) -> Iterator[Key]:
    for path in paths:
        try:
            yield key_of(path.stat())
        except OSError:  # it vanished, and takes nothing
            continue


def _kind(file: File, run: FoundRun | None, stored: set[Key]) -> str:
    """Return the kind of a file in its place: a run's weights, those of a checkpoint that does not count, a log."""
    if run is None or file.kind in ("cache", "training state"):
        return file.kind
    if file.key in stored:
        return "weights"
    parts = file.path.relative_to(run.path).parts
    if file.kind == "other weights" and len(parts) > 1 and is_checkpoint(parts[0]):
        chosen = {weights.relative_to(run.path).parts[0] for weights in run.weights}
        return "other weights" if parts[0] in chosen else "other checkpoints"
    return "log" if kind_in_run(parts) == "log" else file.kind

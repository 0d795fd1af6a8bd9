"""The files below some paths: each once, by device and inode, however many links lead to it."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from petlpack.errors import Problem, RunError, UsageError, printable, problem_at, problem_of
from petlpack.errors.arguments import paths_of
from petlpack.store import SUFFIX, is_pack, pack_above
from petlpack.tensors.kinds import CACHES, LOADING, WEIGHTS, kind_by_name
from petlpack.tensors.safetensors_file import Header, MalformedError, read_header

PATH_HINT = "give the output directory of a training run, or a directory with several of them"

Key = tuple[int, int]
"""Device and inode: what a file is, whatever it is called."""


@dataclass(frozen=True)
class File:
    """One file of the tree: where it is read, and what it is; `linked` where only a link led to it."""

    key: Key
    path: Path
    nbytes: int
    kind: str
    linked: bool = False
    run: Path | None = None
    """The run that it belongs to, once that is known."""


@dataclass(frozen=True)
class Folder:
    """The names in one directory; `skipped` ones are in a cache or a pack, where no run is looked for."""

    files: frozenset[str]
    folders: tuple[str, ...]
    given: bool
    skipped: bool


@dataclass(frozen=True)
class Tree:
    """Everything below the given paths; directories come before what is in them."""

    files: dict[Key, File] = field(default_factory=dict)
    folders: dict[Path, Folder] = field(default_factory=dict)
    packs: list[Path] = field(default_factory=list)
    headers: dict[Key, Header | Problem] = field(default_factory=dict)
    unreadable: dict[str, Problem] = field(default_factory=dict)

    def header(self, path: Path) -> Header | Problem:
        """Return the header of a safetensors file, read once, or what is wrong with it."""
        try:
            key = key_of(path.stat())
            if key not in self.headers:
                self.headers[key] = read_header(path)
        except MalformedError as error:
            self.headers[key] = problem_of(RunError(error.message, hint=error.hint, code=error.code))
        except OSError as error:
            message = f"'{printable(str(path))}' cannot be read: {error.strerror}"
            return replace(problem_at(error), message=message)
        return self.headers[key]


def key_of(status: os.stat_result) -> Key:
    """Return what a file is, whatever it is called."""
    return status.st_dev, status.st_ino


def given_roots(paths: object) -> list[Path]:
    """Return the given paths without those that are in others; raises UsageError for one missing or in a pack."""
    resolved: dict[Path, Path] = {}
    for path in paths_of("paths", paths):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise UsageError(f"no run at '{printable(str(path))}'", hint=PATH_HINT) from error
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UsageError(f"'{printable(str(path))}' is a link to itself", hint=PATH_HINT) from error
        real = path.resolve()
        _refuse_part_of_pack(path, real)
        resolved.setdefault(real, path)
    if not resolved:
        raise UsageError("no path given", hint=PATH_HINT)
    return [path for real, path in resolved.items() if resolved.keys().isdisjoint(real.parents)]


def _refuse_part_of_pack(path: Path, real: Path) -> None:
    """Raise UsageError for a task's file, a shared part, or a directory of them: what they take is the pack's."""
    pack = pack_above(real)
    if pack is None and not (path.is_file() and path.name.endswith(SUFFIX)):
        return
    shown = next((place for place in path.parents if place.resolve() == pack), pack or "PACK")
    what = "a file" if path.is_file() else "a directory"
    name = f" {path.name.removesuffix(SUFFIX)}" if real.parent.name == "tasks" and path.is_file() else " NAME"
    raise UsageError(
        f"'{printable(str(path))}' is {what} of a pack, expected a run",
        hint=f"`petlpack stats {printable(shlex.quote(str(shown)))}` shows the pack, and with --task{name} one task",
    )


def walk(roots: Iterable[Path]) -> Tree:
    """List what is below some paths; what cannot be read is noted, what vanishes meanwhile takes nothing.

    Links come last: one whose target was met tells at most what that is, as the hub's `snapshots` tell of its `blobs`.
    """
    tree = Tree()
    links: list[File] = []
    for root in roots:
        if root.is_dir():
            _walk_below(tree, links, root)
        else:
            status = root.stat()
            file = File(key_of(status), root, status.st_size, kind_by_name((root.name,)))
            tree.files.setdefault(file.key, file)
    for link in links:
        known = tree.files.setdefault(link.key, link)
        if known.kind == "other":
            tree.files[link.key] = replace(known, path=link.path, kind=link.kind)
    return tree


def _walk_below(tree: Tree, links: list[File], root: Path) -> None:
    waiting: list[tuple[Path, tuple[str, ...], bool]] = [(root, (), False)]
    while waiting:
        folder, parts, skipped = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except FileNotFoundError:
            continue
        except OSError as error:
            tree.unreadable[str(folder)] = problem_at(error)
            continue
        if "pack.json" in names and not skipped and is_pack(folder):
            tree.packs.append(folder)
            skipped = True
        files, folders = set(), []
        for name in names:
            mode = _note(tree, links, folder / name, (*parts, name))
            if stat.S_ISDIR(mode):
                folders.append(name)
            elif stat.S_ISREG(mode):
                files.add(name)
        tree.folders[folder] = Folder(frozenset(files), tuple(folders), folder == root, skipped)
        waiting += [(folder / name, (*parts, name), skipped or name in CACHES) for name in reversed(folders)]


def _note(tree: Tree, links: list[File], path: Path, parts: tuple[str, ...]) -> int:
    """Note one entry of a directory, and return its mode: 0 where it is gone, or a link to anything but a file."""
    linked = False
    try:
        status = path.lstat()
        linked = stat.S_ISLNK(status.st_mode)
        status = path.stat() if linked else status
    except OSError as error:
        if linked and (path.name in LOADING or path.suffix in WEIGHTS):
            tree.unreadable[str(path)] = replace(problem_at(error), message=f"broken link ({error.strerror})")
        elif not linked and not isinstance(error, FileNotFoundError):
            tree.unreadable[str(path)] = problem_at(error)
        return 0
    if not stat.S_ISREG(status.st_mode):
        return 0 if linked else status.st_mode
    file = File(key_of(status), path, status.st_size, kind_by_name(parts), linked)
    if linked:
        links.append(file)
    else:
        tree.files.setdefault(file.key, file)
    return status.st_mode

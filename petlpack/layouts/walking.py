"""The files below a run: each once by its path, with links followed as far as what they lead to is part of the run."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from petlpack.store import is_pack
from petlpack.tensors.folders import folders_below
from petlpack.tensors.kinds import CACHES, LEAVES, LOG_FOLDERS, WEIGHTS, is_checkpoint, kind_by_name

BROKEN = "a broken link"
UNREADABLE = "it cannot be read"
ANOTHER_CHECKPOINT = "another checkpoint"
NO_FILE = "a pipe, a socket or a device, and no file"

_LINK = "a link to a directory"
_NESTED = 2
"""How many links to directories may lie in one another: enough for real runs, too few for a maze of links."""


@dataclass(frozen=True)
class Entry:
    """A file of a run, or a directory that is left out as a whole: where, its bytes, and why the walk leaves it out."""

    path: Path
    nbytes: int
    why: str | None = None


class Walk:
    """Walks a run; what a directory holds that is left out as a whole is counted, and not looked at."""

    def __init__(self, run: Path, chosen: Path, wanted: Callable[..., bool]) -> None:
        """Walk the files of `run`; `wanted(folder, linked=...)` asks whether to look into an odd directory."""
        self._run, self._chosen, self._wanted = run, chosen, wanted
        self._real_run, self._real_chosen = run.resolve(), chosen.resolve()

    def entries(self) -> Iterator[Entry]:
        """Yield every file, the directories in the order of their names; what vanishes meanwhile is none."""
        yield from self._below(self._run, (self._real_run,), 0)

    def _below(self, folder: Path, inside: tuple[Path, ...], links: int) -> Iterator[Entry]:
        """Yield what is in a directory; `inside` are the directories around it as they really are, itself the last."""
        try:
            paths = sorted(folder / entry.name for entry in os.scandir(folder))
        except OSError:
            yield Entry(folder, 0, UNREADABLE)
            return
        for path in paths:
            try:
                linked, mode = path.is_symlink(), path.stat()
            except OSError:
                if path.is_symlink():
                    yield Entry(path, 0, BROKEN)
                continue
            if stat.S_ISREG(mode.st_mode):
                yield Entry(path, mode.st_size)
            elif stat.S_ISDIR(mode.st_mode):
                yield from self._directory(path, inside, links, linked=linked)
            else:
                yield Entry(path, 0, NO_FILE)

    def _directory(self, path: Path, inside: tuple[Path, ...], links: int, *, linked: bool) -> Iterator[Entry]:
        real = path.resolve() if linked else inside[-1] / path.name
        why = self._why_not(path, real, inside, links) if linked else self._why_whole(path)
        if why is None:
            links = 0 if self._holds_chosen(path) else links + linked
            yield from self._below(path, (*inside, real), links)
        else:
            yield Entry(path, 0 if linked else _total(path), why)

    def _why_whole(self, path: Path) -> str | None:
        """Return why a directory is left out as a whole, if it is."""
        if is_pack(path):
            return "a pack"
        if path.name in CACHES and not self._holds_chosen(path) and not self._wanted(path, linked=False):
            return LEAVES["cache"]
        return None

    def _why_not(self, path: Path, real: Path, inside: tuple[Path, ...], links: int) -> str | None:
        """Return why a link to a directory is not followed, if it is not.

        One that leads out of the run may lead to anything, so it has to look like a part of a model.
        """
        if self._holds_chosen(path):
            return None
        if real in inside or self._real_chosen.is_relative_to(real) or links >= _NESTED:
            return _LINK
        if self._wanted(path, linked=True):
            return None
        if is_checkpoint(path.name) or is_checkpoint(real.name):
            return ANOTHER_CHECKPOINT
        names = path.relative_to(self._run).parts
        if not {*CACHES, *LOG_FOLDERS}.isdisjoint(names) or any(map(is_checkpoint, self._beside(path).parts)):
            return _LINK
        return None if real.is_relative_to(self._real_run) or _is_part(path) else _LINK

    def _beside(self, path: Path) -> PurePosixPath:
        """Return a path below the directory whose weights count where it is in that, else below the run."""
        root = self._chosen if path.is_relative_to(self._chosen) else self._run
        return PurePosixPath(path.relative_to(root).as_posix())

    def _holds_chosen(self, path: Path) -> bool:
        return self._chosen != self._run and self._chosen.is_relative_to(path)


def _is_part(folder: Path) -> bool:
    """Tell whether a directory has files of a model in it: weights, a config, a tokenizer."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return False
    return any(Path(name).suffix in WEIGHTS or kind_by_name((name,)) in ("config", "tokenizer") for name in names)


def _total(folder: Path) -> int:
    """Return the bytes of all files below a directory, whose links are not followed, as far as it can be read."""
    total = 0
    for place, names in folders_below(folder, unread=lambda _: None):
        for name in names:
            try:
                total += (place / name).lstat().st_size
            except OSError:  # it vanished
                continue
    return total

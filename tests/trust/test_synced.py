"""What is written appears by a rename, whole; directories are on the disk before, and behind, what counts on them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack.store import Store
from tests.support.command_line import posix
from tests.support.places import Place
from tests.support.small_runs import patch_system

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_opened: list[list[Path]] = []
"""For each block that watches: what was opened for writing in it."""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path, mode, flags = arguments
        if flags & _WRITING and not (mode is None and flags & (_WRITING | os.O_CREAT) == os.O_RDWR):
            _opened[-1].append(Path(os.fsdecode(path)))


sys.addaudithook(_note)  # nothing takes one away again: outside of a block it does nothing


@contextlib.contextmanager
def _written() -> Iterator[list[Path]]:
    """Note every file that is opened to be written; a plain O_RDWR is how one is opened to be synced."""
    _opened.append([])
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


def _is_temporary(path: Path, root: Path) -> bool:
    """Tell whether a file below a place is one that nobody takes for a part of a pack, or of a run."""
    parts = path.absolute().relative_to(root).parts
    return any(part.startswith((".tmp-", ".petlpack-", ".lock")) for part in parts) or path.suffix == ".lock"


def _decode(place: Place) -> None:
    petlpack.open(place.pack)["one"].decode(place.root / "out", place.base)


STEPS: dict[str, Callable[[Place], object]] = {
    "encode into a new pack": lambda place: petlpack.encode(place.run, place.root / "new", place.base, task="a"),
    "encode": lambda place: petlpack.encode(place.run, place.pack, place.base, task="three"),
    "replace": lambda place: petlpack.encode(place.run, place.pack, place.base, task="two", replace=True),
    "seal": lambda place: petlpack.seal(place.pack),
    "encode into a sealed pack": lambda place: petlpack.encode(place.run, place.pack, place.base, task="four"),
    "remove": lambda place: petlpack.remove(place.pack, ["one", "two"]),
    "gc": lambda place: petlpack.gc(place.pack),
}


def test_no_file_is_written_in_its_place(place: Place) -> None:
    with _written() as opened:
        _decode(place)
        for step in STEPS.values():
            step(place)
    below = [path for path in opened if path.absolute().is_relative_to(place.root)]
    assert below
    assert [path for path in below if not _is_temporary(path, place.root)] == []


Calls = list[tuple[str, Path]]


@contextlib.contextmanager
def _calls() -> Iterator[Calls]:
    """Note what is synced, put in its place by a rename, and deleted, in order."""
    calls: Calls = []

    def noting(name: str, real: Any) -> Any:
        def call(*paths: Any, **more: Any) -> Any:
            calls.append((name, Path(os.fspath(paths[-1]))))
            return real(*paths, **more)

        return call

    def fsync(descriptor: int) -> None:
        calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in ("replace", "unlink"):
            patch_system(patch, os, name, noting(name, getattr(os, name)))
        yield calls


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@posix
@needs_proc
def test_all_that_leads_to_a_task_is_on_the_disk_before_it_is(place: Place) -> None:
    """A killed writer may have made any of it, and synced nothing: no writer counts on another."""
    with _calls() as calls, Store(place.pack).scratch() as path:
        path.write_bytes(b"task")
        Store(place.pack).put("new", path, {}, replace=False)
    target = Store(place.pack).task_path("new")
    commit = calls.index(("replace", target))
    before = {path for name, path in calls[:commit] if name == "sync"}
    pack = place.pack.resolve()
    assert {pack / "tasks", pack / "shared", pack, pack.parent} <= before
    assert ("sync", pack / "tasks") in calls[commit:]


@posix
@needs_proc
def test_parts_are_gone_for_good_before_the_journal_forgets_them(place: Place) -> None:
    petlpack.remove(place.pack, ["one", "two"])
    with _calls() as calls:
        assert petlpack.gc(place.pack).files
    pack = place.pack.resolve()
    last = max(i for i, (name, path) in enumerate(calls) if name == "unlink" and path.parent.name == "shared")
    forgotten = calls.index(("unlink", place.pack / ".released"))
    assert ("sync", pack / "shared") in calls[last:forgotten]
    assert ("sync", pack) in calls[forgotten:]

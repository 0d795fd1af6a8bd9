"""One writer at a time: whoever changes a pack holds its lock, and what was asked before is asked again under it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

import petlpack
from petlpack import LockedError, TaskError
from petlpack import store as store_module
from petlpack.store import Store, lock, places
from tests.support.command_line import posix
from tests.support.places import Place


@contextlib.contextmanager
def _held(pack: Path) -> Iterator[None]:
    """Hold the lock of a pack, as another process does."""
    with filelock.FileLock(pack / ".lock", timeout=0, fallback_to_soft=False):
        yield


def _put(pack: Path) -> None:
    store = Store(pack)
    with store.scratch() as path:
        path.write_bytes(b"a task, as far as the store knows")
        store.put("new", path, {}, replace=False)


def _create(pack: Path) -> None:
    with Store.creating(pack):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "put": _put,
    "remove": lambda pack: Store(pack).remove("one"),
    "gc": lambda pack: petlpack.gc(pack),
    "gc of everything": lambda pack: petlpack.gc(pack, everything=True),
    "seal": lambda pack: petlpack.seal(pack),
    "create": _create,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_waits_for_the_lock(place: Place, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.02)
    before = place.snapshot()
    with _held(place.pack), pytest.raises(LockedError):
        WRITERS[writer](place.pack)
    assert place.snapshot() == before
    WRITERS[writer](place.pack)


def test_nobody_undoes_a_pack_that_another_has_locked(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    _create(pack)
    with _held(pack):
        places.undo(pack)
        assert Store(pack).task_names() == []
    places.undo(pack)
    assert not pack.exists()


def test_a_name_that_was_taken_meanwhile_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.put
    theirs: list[bytes] = []

    def put(store: Store, name: str, *args: Any, **more: Any) -> None:
        if not theirs:
            theirs.append(b"another writer's")
            with store.scratch() as path:
                path.write_bytes(theirs[0])
                real(store, name.upper(), path, {}, replace=False)
        real(store, name, *args, **more)

    monkeypatch.setattr(Store, "put", put)
    with pytest.raises(TaskError, match="already has task 'THREE'"):
        petlpack.encode(place.run, place.pack, place.base, task="three")
    assert Store(place.pack).task_path("THREE").read_bytes() == theirs[0]
    assert not Store(place.pack).has_task("three")


@posix
def test_a_lock_that_was_deleted_while_it_was_waited_for_is_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever held it undid the pack, and the next one has made a new lock in its place and holds that."""
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.02)
    real = lock._acquire
    theirs = contextlib.ExitStack()

    def acquire(held: filelock.BaseFileLock, timeout: float) -> None:
        real(held, timeout)
        if Path(held.lock_file).name == ".lock":
            monkeypatch.setattr(lock, "_acquire", real)
            (place.pack / ".lock").unlink()
            theirs.enter_context(_held(place.pack))

    with theirs:
        monkeypatch.setattr(lock, "_acquire", acquire)
        with pytest.raises(LockedError):
            Store(place.pack).remove("one")
    assert Store(place.pack).has_task("one")


@posix
def test_a_sign_of_life_that_is_another_file_is_left_alone(place: Place) -> None:
    precious = place.root / "precious"
    precious.write_bytes(b"precious")
    owner = f".tmp-{uuid.uuid4().hex}"
    (place.pack / f"{owner}.lock").hardlink_to(precious)
    petlpack.encode(place.run, place.pack, place.base, task="three")
    assert precious.read_bytes() == b"precious"
    assert (place.pack / f"{owner}.lock").exists()

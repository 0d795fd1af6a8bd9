"""What is done is told as done and what is not as not: syncs that fail, missing locks, writers that die, readers."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

import petlpack
from petlpack import PetlpackError, TaskError
from petlpack import store as store_module
from petlpack.store import SUFFIX, Store
from tests.support.command_line import ENVIRONMENT, run, run_json
from tests.support.places import SMALL, Place
from tests.support.small_runs import make_pair, patch_system, write_run

# Behind the commit


@contextlib.contextmanager
def _failing_syncs(of: Callable[[Path], bool], code: int = errno.EIO) -> Iterator[list[Path]]:
    """Let every sync of some directories fail, once the rename or the deletion that it is for is done."""
    failed: list[Path] = []
    changed: list[bool] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").resolve()
        if changed and place.is_dir() and of(place):
            failed.append(place)
            raise OSError(code, os.strerror(code))
        real(descriptor)

    def noting(call: Any) -> Any:
        def noted(path: Any, *args: Any, **more: Any) -> Any:
            result = call(path, *args, **more)
            target = Path(os.fspath(args[0] if args else path))
            if (target.parent.name == "tasks" and target.name.endswith(SUFFIX)) or target.name == "out":
                changed.append(True)
            return result

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in ("replace", "unlink", "rename"):
            patch_system(patch, os, name, noting(getattr(os, name)))
        yield failed


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_sync_that_fails_behind_the_commit_is_a_warning(place: Place) -> None:
    with _failing_syncs(lambda path: path.name == "tasks") as failed:
        (encoded,) = petlpack.encode(place.run, place.pack, place.base, task="three")
        assert failed
        assert any("may not outlive a power cut" in warning for warning in encoded.warnings)
    assert "three" in petlpack.open(place.pack)
    with _failing_syncs(lambda path: path.name == "tasks") as failed:
        code, answer = run_json("remove", place.pack, "three")
        assert failed
    assert (code, len(answer["warnings"])) == (0, 1)
    assert "three" not in petlpack.open(place.pack)
    with _failing_syncs(lambda path: True) as failed:
        decoded = petlpack.open(place.pack)["one"].decode(place.root / "out", place.base)
        assert failed
    assert any("may not outlive a power cut" in note for note in decoded.notes)
    place.check_others()


def test_a_lock_that_is_not_given_back_is_a_warning(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = filelock.FileLock.release

    def release(lock: filelock.FileLock, force: bool = False) -> None:
        held = lock.is_locked
        real(lock, force)
        if held and Path(lock.lock_file).name == ".lock":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(filelock.FileLock, "release", release)
    (encoded,) = petlpack.encode(place.run, place.pack, place.base, task="three")
    assert any("was not given back" in warning for warning in encoded.warnings)
    assert "three" in petlpack.open(place.pack)


def test_scratch_that_is_not_deleted_is_no_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.unlink

    def unlink(path: Any, *args: Any, **more: Any) -> None:
        if "tasks" in str(path) and ".tmp-" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        real(path, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch_system(patch, os, "unlink", unlink)
        petlpack.encode(place.run, place.pack, place.base, task="three")
    assert list((place.pack / "tasks").glob(".tmp-*"))
    place.check_others()
    petlpack.encode(place.run, place.pack, place.base, task="four")


# File systems without locks


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EINVAL", "ENOSYS"])
@pytest.mark.skipif(os.name == "nt", reason="flock is POSIX")
def test_a_file_system_without_locks_is_told(place: Place, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", flock)
    started = time.monotonic()
    for call in (
        place.encode(place.run),
        lambda pack: petlpack.remove(pack, "one"),
        petlpack.gc,
        petlpack.seal,
    ):
        with pytest.raises(PetlpackError) as caught:
            call(place.pack)
        assert (caught.value.code, caught.value.exit_code) == ("lock-unsupported", 1)
        assert "knows no locks" in caught.value.message
    assert time.monotonic() - started < 20
    assert [*petlpack.open(place.pack)] == ["one", "two"]
    petlpack.open(place.pack)["one"].decode(place.root / "out", place.base)  # reads, and locks nothing that it needs
    assert not list(place.root.glob(".petlpack-*"))


# Creators


def test_a_creator_that_fails_leaves_a_pack_in_which_another_is_at_work(place: Place) -> None:
    pack = place.root / "new"
    begun, failed = threading.Event(), threading.Event()

    def other() -> None:
        with Store.creating(pack) as store:
            begun.set()
            failed.wait(30)
            with store.scratch() as path:
                path.write_bytes(b"task")
                store.put("task", path, {}, replace=False)

    worker = threading.Thread(target=other)
    with contextlib.suppress(ZeroDivisionError), Store.creating(pack):
        worker.start()
        assert begun.wait(30)
        raise ZeroDivisionError
    failed.set()
    worker.join()
    assert Store(pack).task_names() == ["task"]


def test_creators_that_fail_beside_ones_that_do_not_undo_nothing(place: Place) -> None:
    errors: list[BaseException] = []

    def work(pack: Path, number: int) -> None:
        try:
            with Store.creating(pack) as store, store.scratch() as path:
                path.write_bytes(b"task")
                if number % 2:
                    raise ZeroDivisionError
                store.put(f"task-{number}", path, {}, replace=False)
        except ZeroDivisionError:
            pass
        except BaseException as error:
            errors.append(error)

    for trial in range(12):
        pack = place.root / f"new-{trial}"
        workers = [threading.Thread(target=work, args=(pack, number)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert errors == []
        assert len(Store(pack).task_names()) == 4
        assert not list(pack.rglob(".tmp-*"))


def test_a_pack_that_is_undone_and_made_again_under_a_creator_is_entered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, locked = place.root / "again", store_module.lock.locked
    undone = iter([True, True])

    def lock(*arguments: Any) -> Any:
        if next(undone, False):
            raise FileNotFoundError(2, "No such file or directory", str(pack / ".lock"))
        return locked(*arguments)

    monkeypatch.setattr(store_module.lock, "locked", lock)
    with Store.creating(pack) as store, store.scratch() as path:
        path.write_bytes(b"task")
        store.put("task", path, {}, replace=False)
    assert Store(pack).task_names() == ["task"]


def test_a_creator_that_fails_alone_leaves_nothing(place: Place) -> None:
    pack = place.root / "deep" / "new"
    with contextlib.suppress(ZeroDivisionError), Store.creating(pack) as store, store.scratch() as path:
        path.write_bytes(b"task")
        raise ZeroDivisionError
    assert not pack.exists()


# What killed ones leave

KILLED = """
import os, signal, sys
import petlpack
from petlpack.store import Store
what, place, pack = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if what == "encode":
    Store.put = die
    petlpack.encode(place + "/run", pack, place + "/base", task="three", jobs=1)
elif what == "commit":
    import pathlib
    pathlib.Path.replace = die
    petlpack.encode(place + "/run", pack, place + "/base", task="three", jobs=1)
else:
    import petlpack.decoding.directory as directory
    directory.sync_tree = die
    petlpack.open(pack)["one"].decode(place + "/out", place + "/base", jobs=1)
"""


def _killed(place: Place, what: str) -> None:
    command = [sys.executable, "-c", KILLED, what, str(place.root), str(place.pack)]
    done = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="kills are POSIX")
@pytest.mark.parametrize("what", ["encode", "commit"])
@pytest.mark.parametrize("write", ["encode", "remove", "gc", "seal"])
def test_the_next_writer_deletes_what_a_killed_one_left(place: Place, what: str, write: str) -> None:
    _killed(place, what)
    assert list(place.pack.rglob(".tmp-*"))
    {
        "encode": place.encode(place.run),
        "remove": lambda pack: petlpack.remove(pack, "two"),
        "gc": petlpack.gc,
        "seal": petlpack.seal,
    }[write](place.pack)
    assert not list(place.pack.rglob(".tmp-*"))
    place.check_others()


@pytest.mark.skipif(os.name == "nt", reason="kills are POSIX")
def test_the_next_decode_deletes_what_a_killed_one_left(place: Place) -> None:
    _killed(place, "decode")
    assert len(list(place.root.glob(".petlpack-*"))) == 2
    (place.root / ".petlpack-notes").mkdir()  # somebody else's
    petlpack.open(place.pack)["one"].decode(place.root / "out", place.base)
    assert [path.name for path in place.root.glob(".petlpack-*")] == [".petlpack-notes"]


def test_what_a_living_writer_writes_is_left_alone(place: Place) -> None:
    with Store.creating(place.pack) as store, store.scratch() as path:
        path.write_bytes(b"task")
        petlpack.encode(place.run, place.pack, place.base, task="three")
        petlpack.gc(place.pack)
        petlpack.seal(place.pack)
        store.put("slow", path, {}, replace=False)
    assert "slow" in Store(place.pack).task_names()


# Readers beside writers


def _replaced_and_collected(place: Place) -> None:
    """Give task `two` another template, and collect the one that it had."""
    other = place.root / "other"
    if not other.exists():
        write_run(other, make_pair(9, labels=6, share=0.1, **SMALL)[0])
    petlpack.encode(other, place.pack, place.base, task="two", replace=True)
    petlpack.gc(place.pack, everything=True)


READS: dict[str, Callable[[petlpack.Task, Place], object]] = {
    "template": lambda task, place: task.template,
    "parts": lambda task, place: task.parts,
    "load": lambda task, place: list(task.load(place.base).read_all()),
    "state dict": lambda task, place: task.state_dict(place.base),
    "decode": lambda task, place: task.decode(place.root / "out", place.base),
    "rebuild": lambda task, place: task.rebuild(place.base),
    "kept file": lambda task, place: task.read_file("config.json"),
    "bytes": lambda task, place: task.check_bytes(),
}


@pytest.mark.parametrize("read", READS)
def test_a_task_that_was_replaced_and_collected_is_read_as_it_is_now(place: Place, read: str) -> None:
    task = petlpack.open(place.pack)["two"]
    _replaced_and_collected(place)
    READS[read](task, place)
    if read == "decode":
        now = petlpack.open(place.pack)["two"].decode(place.root / "now", place.base)
        for name in now.files:
            assert (place.root / "out" / name).read_bytes() == (place.root / "now" / name).read_bytes()


def test_a_task_that_was_removed_and_collected_is_gone_and_not_damaged(place: Place) -> None:
    for read in ("load", "decode", "template"):
        pack = Path(shutil.copytree(place.pack, place.root / read))
        task = petlpack.open(pack)["two"]
        petlpack.remove(pack, "two")
        petlpack.gc(pack)
        with pytest.raises(TaskError, match="no task 'two'"):
            READS[read](task, place)


def test_what_was_loaded_stays_readable(place: Place) -> None:
    tensors = petlpack.open(place.pack)["two"].load(place.base)
    before = [bits.tobytes() for _, _, bits in petlpack.open(place.pack)["two"].load(place.base).read_all()]
    _replaced_and_collected(place)
    assert [bits.tobytes() for _, _, bits in tensors.read_all()] == before


def test_verify_looks_again_at_a_task_that_is_replaced_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = petlpack.checking.check_shared  # type: ignore[attr-defined]
    done: list[bool] = []

    opened = petlpack.open(place.pack)
    own = {*opened["two"].parts} - {*opened["one"].parts}

    def check(store: Store, sha256: str, max_bytes: int | None) -> None:
        if not done and sha256 in own:
            done.append(True)
            _replaced_and_collected(place)
        real(store, sha256, max_bytes)

    monkeypatch.setattr("petlpack.checking.check_shared", check)
    assert [one for one in petlpack.verify(place.pack, place.base) if one.error is not None] == []
    assert done


def test_a_held_lock_keeps_a_writer_out_before_it_works(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.05)
    with Store(place.pack).locked():
        result = run("encode", place.run, "--base", place.base, "--pack", place.pack, "--task", "three")
    assert result.exit_code == 6

"""The store's contract: atomic, or not at all, whatever fails, dies or runs at the same time."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import Base, LockedError, PetlpackError, TaskError, UnknownFormatError, UsageError, checking, container
from petlpack import store as store_module
from petlpack.container import Sections
from petlpack.store import PACK_JSON, STALE, SUFFIX, Store
from tests.support.method_runs import write_propetl_t5
from tests.support.sampling import Sample
from tests.support.small_runs import METHOD_SETTINGS, TINY, make_pair, patch_system, write_run

SMALL: dict[str, Any] = {"layers": 1, "width": 4, "words": 8}


@dataclass(frozen=True)
class Made:
    """Two runs of one base with one template, two with templates of their own, and a clean pack with the first two.

    `several` are two runs of two tasks each, whose tensors stand in shared parts.
    """

    runs: dict[str, Path]
    base_dir: Path
    base: Base
    pack: Path
    state: dict[str, dict[str, bytes]]
    """What each run decodes to, those of several tasks by `<run>.<task>`."""
    several: dict[str, Path]

    def copy(self, target: Path) -> Path:
        """Copy the clean pack."""
        return Path(shutil.copytree(self.pack, target))

    def read(self, pack: Path, task: str) -> dict[str, bytes]:
        """Decode one task."""
        tensors = petlpack.open(pack)[task].load(self.base).read_all(jobs=1)
        return {name: bits.tobytes() for name, _, bits in tensors}

    def encode(self, pack: Path, run: str, task: str, *, replace: bool = False) -> None:
        """Encode a run on one thread."""
        petlpack.encode(self.runs[run], pack, self.base, task=task, codec="ulp", replace=replace, jobs=1)

    def encode_several(self, pack: Path, run: str, task: str, *, replace: bool = False) -> None:
        """Encode a run of several tasks on one thread."""
        settings = METHOD_SETTINGS
        petlpack.encode(self.several[run], pack, task=task, settings=settings, replace=replace, jobs=1)

    def check_clean(self, pack: Path) -> None:
        """Check that every byte and every weight of a pack is right."""
        wrong = [checked for checked in petlpack.verify(pack, self.base, jobs=1) if checked.error is not None]
        assert wrong == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("store")
    runs = {}
    for name, seed, labels in (("a", 1, 2), ("b", 2, 2), ("c", 3, 3), ("d", 4, 4)):
        runs[name] = write_run(directory / name, make_pair(seed, labels=labels, **SMALL)[0])
    base_dir = write_run(directory / "base", make_pair(0, **SMALL)[1])
    several = {}
    for seed, name in enumerate(("m", "n")):
        several[name] = write_propetl_t5(directory / name, ["a", "b"], TINY, seed=seed).path
    made = Made(runs, base_dir, Base(base_dir), directory / "pack", {}, several)
    for name in several:
        made.encode_several(directory / "several", name, name)
        for task in ("a", "b"):
            made.state[f"{name}.{task}"] = made.read(directory / "several", f"{name}.{task}")
    for name in runs:
        made.encode(made.pack, name, name)
        made.state[name] = made.read(made.pack, name)
    petlpack.open(made.pack).remove("c")
    petlpack.open(made.pack).remove("d")
    petlpack.open(made.pack).gc()
    made.check_clean(made.pack)
    return made


AA, BB = "aa" * 32, "bb" * 32
"""What shared parts are named."""


def files_of(pack: Path) -> dict[str, bytes]:
    """Every file of a pack but the lock, which has no content, and the journal, which says nothing of what is there."""
    return {
        path.relative_to(pack).as_posix(): path.read_bytes()
        for path in pack.rglob("*")
        if path.is_file() and path.name not in (".lock", ".released")
    }


def tasks_of(pack: Path) -> dict[str, bytes]:
    """The files of the tasks."""
    return {name: content for name, content in files_of(pack).items() if name.endswith(SUFFIX) and "tasks/" in name}


def leftovers(pack: Path) -> list[str]:
    """Temporary files of writers."""
    return [name for name in files_of(pack) if "/.tmp-" in f"/{name}"]


def put(store: Store, name: str, content: bytes, shared: dict[str, bytes] | None = None, replace: bool = False) -> None:
    """Put a task of arbitrary bytes: the store never looks inside."""
    with store.scratch() as path:
        path.write_bytes(content)
        store.put(name, path, shared or {}, replace=replace)


# The contract


def test_create_makes_an_empty_pack_and_opens_one_that_is_there(tmp_path: Path) -> None:
    for place in (tmp_path / "new", tmp_path / "deep" / "er" / "new"):
        assert Store.create(place).task_names() == []
        assert files_of(place) == {"pack.json": PACK_JSON}
        put(Store.create(place), "one", b"1")
        assert Store.create(place).task_names() == Store(place).task_names() == ["one"]
    (tmp_path / "empty").mkdir()
    assert Store.create(tmp_path / "empty").shared_names() == []


def test_a_creation_that_was_killed_does_not_block_the_next(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / ".tmp-0123456789abcdef0123456789abcdef").write_bytes(PACK_JSON[:5])
    assert Store.create(tmp_path / "pack").task_names() == []


def test_put_moves_the_file_and_writes_shared_parts_once(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "pack")
    put(store, "one", b"first", {AA: b"part"})
    part = store.shared_path(AA).stat()
    put(store, "two", b"second", {AA: b"part", BB: b"other"})
    assert files_of(store.path) == {
        "pack.json": PACK_JSON,
        f"shared/{AA}{SUFFIX}": b"part",
        f"shared/{BB}{SUFFIX}": b"other",
        f"tasks/one{SUFFIX}": b"first",
        f"tasks/two{SUFFIX}": b"second",
    }
    assert (store.shared_path(AA).stat().st_ino, store.shared_path(AA).stat().st_mtime_ns) == (
        part.st_ino,
        part.st_mtime_ns,
    )
    assert (store.task_names(), store.shared_names()) == (["one", "two"], [AA, BB])


@pytest.mark.parametrize("other", ["One", "ONE", "one"])
def test_a_name_is_taken_once_whatever_its_case(tmp_path: Path, other: str) -> None:
    store = Store.create(tmp_path / "pack")
    put(store, "one", b"first")
    before = files_of(store.path)
    with pytest.raises(TaskError, match="already has task 'one'"):
        put(store, other, b"second", {AA: b"part"})
    assert files_of(store.path) == before
    if other != "one":
        with pytest.raises(TaskError, match="already has task 'one'"):
            put(store, other, b"second", replace=True)
        assert files_of(store.path) == before


def test_replace_takes_the_place_of_a_task_or_adds_one(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "pack")
    put(store, "one", b"first", replace=True)
    put(store, "one", b"second", replace=True)
    assert store.find_task("one").read_bytes() == b"second"
    assert store.task_names() == ["one"]


def test_remove_deletes_one_task_and_tells_its_bytes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "pack")
    put(store, "one", b"12345", {AA: b"part"})
    put(store, "two", b"2")
    assert store.remove("one") == 5
    assert (store.task_names(), store.shared_names()) == (["two"], [AA])
    with pytest.raises(TaskError, match="no task 'one'"):
        store.remove("one")


def test_sweep_deletes_what_nobody_needs_and_only_stale_temporary_files(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "pack")
    put(store, "one", b"1", {AA: b"part", BB: b"others"})
    temporary = []
    for directory in (store.path, store.path / "tasks", store.path / "shared"):
        for age in (STALE - 600, STALE + 600):
            path = directory / f".tmp-{age}"
            path.write_bytes(b"half")
            os.utime(path, (time.time() - age, time.time() - age))
            temporary.append(path)
    before = files_of(store.path)
    garbage = {(store.shared_path(BB), 6), *((path, 4) for path in temporary[1::2])}
    with store.locked():
        assert set(store.sweep({AA}, dry_run=True, everything=True)) == garbage
        assert files_of(store.path) == before
        assert set(store.sweep({AA}, everything=True)) == garbage
        assert store.sweep({AA}, everything=True) == []
    assert store.shared_names() == [AA]
    assert [path.exists() for path in temporary] == [True, False] * 3


def test_scratch_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "pack")
    with pytest.raises(FileNotFoundError), store.scratch() as path:
        path.write_bytes((tmp_path / "no such file").read_bytes())
    with store.scratch() as path:
        path.write_bytes(b"never put")
    assert files_of(store.path) == {"pack.json": PACK_JSON}


def test_a_held_lock_is_told_and_a_left_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.05)
    store, other = Store.create(tmp_path / "pack"), Store(tmp_path / "pack")
    put(store, "one", b"1")
    with store.locked():
        for write in (lambda: put(other, "two", b"2"), lambda: other.remove("one")):
            with pytest.raises(LockedError, match="is locked by another process") as caught:
                write()
            assert caught.value.exit_code == 6
            assert caught.value.hint
    assert store.task_names() == ["one"]
    assert leftovers(store.path) == []
    (store.path / ".lock").write_bytes(b"4711")  # whatever a dead writer left
    put(other, "two", b"2")


@pytest.mark.parametrize(
    ("mark", "error"),
    [
        (b"", UnknownFormatError),
        (b"{}", UnknownFormatError),
        (b"[1]", UnknownFormatError),
        (b"\xff\xfe", UnknownFormatError),
        (b'{"format": "zarr", "version": 1}', UnknownFormatError),
        (b'{"format": "petlpack", "version": 2}', UnknownFormatError),
        (b'{"format": "petlpack", "version": "1"}', UnknownFormatError),
        (b'{"format": "petlpack", "version": true}', UnknownFormatError),
        (b'{"format": "petlpack"}', UnknownFormatError),
        (b"[" * 100_000, UnknownFormatError),
        (None, UsageError),
    ],
)
def test_only_a_pack_is_opened(tmp_path: Path, mark: bytes | None, error: type[PetlpackError]) -> None:
    (tmp_path / "pack").mkdir()
    if mark is not None:
        (tmp_path / "pack" / "pack.json").write_bytes(mark)
    with pytest.raises(error) as caught:
        Store(tmp_path / "pack")
    assert "pack" in caught.value.message
    if mark is not None:
        with pytest.raises(error):
            Store.create(tmp_path / "pack")


# The n-th fault


class _Raw(io.FileIO):
    """A file whose n-th write puts half of the bytes down and fails, as a full disk does."""

    def __init__(self, file: Any, mode: str, tick: Callable[[str], None]) -> None:
        super().__init__(file, mode)
        self._tick = tick

    def write(self, data: Any) -> int:
        try:
            self._tick("write")
        except OSError:
            view = memoryview(data).cast("B")
            super().write(view[: len(view) // 2])
            raise
        return super().write(data) or 0


class Faults:
    """Lets the n-th call of one kind below a directory fail: once, or from then on."""

    OPS = ("open", "write", "fsync", "rename", "unlink", "mkdir")

    def __init__(self, root: Path, op: str, nth: int, code: int, *, lasting: bool) -> None:
        self._root, self._op, self._nth, self._code, self._lasting = root, op, nth, code, lasting
        self.calls = 0
        self._on = True

    @property
    def fired(self) -> bool:
        """Whether a call failed."""
        return self.calls >= self._nth

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the faults in place of the system's calls."""
        self._wrap(patch, os, "open", "open")
        self._wrap(patch, os, "replace", "rename")
        self._wrap(patch, os, "rename", "rename")
        self._wrap(patch, os, "unlink", "unlink")
        self._wrap(patch, os, "mkdir", "mkdir")
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            self._tick("fsync")
            sync(descriptor)

        patch.setattr(os, "fsync", fsync)
        real_open = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if not self._below(file):
                return real_open(file, mode, *args, **more)
            self._tick("open")
            if mode == "wb":
                return io.BufferedWriter(_Raw(file, "wb", self._tick))
            return real_open(file, mode, *args, **more)

        patch_system(patch, io, "open", opened)

    def _wrap(self, patch: pytest.MonkeyPatch, module: Any, name: str, op: str) -> None:
        real = getattr(module, name)

        def call(path: Any, *args: Any, **more: Any) -> Any:
            if self._below(path):
                self._tick(op)
            return real(path, *args, **more)

        patch_system(patch, module, name, call)

    def _below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(self._root)

    def _tick(self, op: str) -> None:
        if op != self._op:
            return
        self.calls += 1
        if self.calls == self._nth or (self._lasting and self.calls > self._nth):
            raise OSError(self._code, os.strerror(self._code))


Action = Callable[[Made, Path], object]


def _replace_several(made: Made, pack: Path) -> None:
    made.encode_several(pack, "n", "old", replace=True)


PREPARED: dict[Action, Action] = {_replace_several: lambda made, pack: made.encode_several(pack, "m", "old")}
"""What is done to the pack before, where no call fails."""

ACTIONS: dict[str, tuple[Action, set[str]]] = {
    "encode": (lambda made, pack: made.encode(pack, "c", "new"), {"open", "write", "fsync", "rename", "unlink"}),
    "encode into a new pack": (
        lambda made, pack: made.encode(pack.parent / "new pack", "c", "new"),
        {"open", "write", "fsync", "rename", "unlink", "mkdir"},
    ),
    "replace": (
        lambda made, pack: made.encode(pack, "b", "a", replace=True),
        {"open", "write", "fsync", "rename", "unlink"},
    ),
    "encode several tasks": (
        lambda made, pack: made.encode_several(pack, "m", "several"),
        {"open", "write", "fsync", "rename", "unlink"},
    ),
    "encode several tasks into a new pack": (
        lambda made, pack: made.encode_several(pack.parent / "new pack", "m", "several"),
        {"open", "write", "fsync", "rename", "unlink", "mkdir"},
    ),
    "replace several tasks": (_replace_several, {"open", "write", "fsync", "rename", "unlink"}),
    "remove": (lambda made, pack: petlpack.open(pack).remove("b"), {"open", "fsync", "unlink"}),
    "gc": (lambda made, pack: petlpack.open(pack).gc(everything=True), {"open", "unlink"}),
    "decode": (
        lambda made, pack: petlpack.open(pack)["a"].decode(pack.parent / "out", made.base, jobs=1),
        {"open", "write", "rename", "mkdir"},
    ),
}
"""What is tried, and the kinds of call in which it can fail."""


WHOLE = {
    "a": ("a", "b"),
    "b": ("b",),
    "new": ("c",),
    **{f"several.{task}": (f"m.{task}",) for task in "ab"},
    **{f"old.{task}": (f"m.{task}", f"n.{task}") for task in "ab"},
}
"""The runs of which one stands whole behind each task, whatever fails."""


FAULTS = ((errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False), (errno.EACCES, False))
"""What a call fails with, and whether those behind it do, too."""


@pytest.mark.exhaustive(19)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("op", Faults.OPS)
def test_the_nth_fault_loses_nothing(made: Made, tmp_path: Path, action: str, op: str, sample: Sample) -> None:
    act, kinds = ACTIONS[action]
    none = _one_fault(made, tmp_path / "none", act, op, sys.maxsize, errno.EIO, lasting=False)
    points = 0
    for (code, lasting), nth in sample(itertools.product(FAULTS, range(1, none.calls + 1))):
        faults = _one_fault(made, tmp_path / f"{code}-{lasting}-{nth}", act, op, nth, code, lasting)
        points += faults.fired
    assert points > 0 or op not in kinds
    print(f"{points} faults in {op} during {action}")


def _one_fault(made: Made, place: Path, act: Action, op: str, nth: int, code: int, lasting: bool) -> Faults:
    """Try an action with the n-th call failing, check what is left, and return which calls there were."""
    place.mkdir()
    pack = made.copy(place / "pack")
    if act in PREPARED:
        PREPARED[act](made, pack)
    before = files_of(pack)
    (pack / "shared" / f"{'0' * 64}{SUFFIX}").write_bytes(b"what no task needs")
    faults = Faults(place, op, nth, code, lasting=lasting)
    with pytest.MonkeyPatch.context() as patch:
        faults.install(patch)
        raised = False
        try:
            act(made, pack)
        except (OSError, PetlpackError):
            raised = True
    assert faults.fired or not raised
    (pack / "shared" / f"{'0' * 64}{SUFFIX}").unlink(missing_ok=True)
    for found in (pack, place / "new pack"):
        if (found / "pack.json").exists():
            made.check_clean(found)
            for task in petlpack.open(found):
                assert made.read(found, task) in [made.state[run] for run in WHOLE[task]]
    assert "a" in petlpack.open(pack)
    if act is _replace_several:
        assert {"old.a", "old.b"} <= petlpack.open(pack).keys()
    changing = {f"tasks/{task}{SUFFIX}" for task in WHOLE}
    assert files_of(pack).items() >= {(name, content) for name, content in before.items() if name not in changing}
    if op != "unlink":
        assert list(place.rglob(".tmp-*")) == []
        if not (op == "open" and lasting):  # a directory tree is deleted through its opened directories
            assert list(place.glob(".petlpack-*")) == []
    if (place / "out").exists():
        weights = (place / "out" / "model.safetensors").read_bytes()
        assert weights == (made.runs["a"] / "model.safetensors").read_bytes()
        assert (place / "out" / "config.json").exists()
    made.encode_several(pack, "n", "several", replace=True)
    made.encode(pack, "c", "new", replace=True)  # the next writer finds nothing in its way
    if (place / "new pack").exists():
        made.encode(place / "new pack", "c", "new", replace=True)
    petlpack.open(pack).gc()
    made.check_clean(pack)
    shutil.rmtree(place)
    return faults


@pytest.mark.parametrize(
    "moment", [(checking, "check_shared"), (container, "read"), (Sections, "__init__"), (Store, "put")]
)
@pytest.mark.parametrize("run", ["a", "m"])
def test_parts_that_are_collected_while_a_run_is_encoded_are_written_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, moment: tuple[Any, str]
) -> None:
    pack = Store.create(tmp_path / "pack").path
    encode = made.encode if run == "a" else made.encode_several
    encode(pack, run, "old")
    for task in list(petlpack.open(pack)):
        petlpack.open(pack).remove(task)
    assert Store(pack).shared_names()  # which no task needs, and the next run has
    owner, name = moment
    real = getattr(owner, name)

    def collect_first(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        petlpack.open(pack).gc()  # as another process may, as long as the pack is not locked
        return real(*args, **more)

    monkeypatch.setattr(owner, name, collect_first)
    encode(pack, run, "new")
    made.check_clean(pack)
    for task in petlpack.open(pack):
        assert made.read(pack, task) == made.state[task.replace("new", run)]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where the system lets us mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system mounts no tmpfs for us")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_is_really_full_loses_nothing(made: Made, full_disk: Path) -> None:
    rng = random.Random(0)
    pack = made.copy(full_disk / "pack")
    page, failed, codes = 4096, 0, set()
    for trial in range(24):
        before = files_of(pack)
        with contextlib.suppress(OSError), (full_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(page)):
                pass
        room = rng.randrange(0, 8) * page
        with (full_disk / "filler").open("r+b") as filler:
            filler.truncate(filler.seek(0, io.SEEK_END) // page * page - room)
        try:
            made.encode(pack, "c", f"new-{trial}")
        except OSError as error:
            codes.add(error.errno)
            failed += 1
            after = files_of(pack)
            assert {name: after.get(name) for name in before} == before
            assert leftovers(pack) == []
        made.check_clean(pack)
        (full_disk / "filler").unlink()
        made.encode(pack, "c", f"new-{trial}", replace=True)
        petlpack.open(pack).remove(f"new-{trial}")
        petlpack.open(pack).gc()
    assert 0 < failed < 24
    assert codes == {errno.ENOSPC}


# Death


FORK_AND_KILL = """
import os, random, signal, sys, time
import petlpack
from petlpack import Base
pack, base_dir, *runs = sys.argv[1:]
base = Base(base_dir)
petlpack.encode(runs[0], pack + "-warm", base, task="warm", jobs=1)  # imports what children must not wait for
petlpack.open(pack + "-warm").gc()

def work(seed):
    rng = random.Random(seed)
    for step in range(10_000):
        run = rng.choice(runs)
        name = f"t{rng.randrange(6)}"
        kind = rng.randrange(6)
        if kind == 0:
            petlpack.open(pack).gc()
        elif kind == 1 and name in petlpack.open(pack):
            petlpack.open(pack).remove(name)
        else:
            petlpack.encode(run, pack, base, task=name, codec="ulp", replace=True, jobs=1)

print("ready", flush=True)
for line in sys.stdin:
    seed, delay = line.split()
    child = os.fork()
    if child == 0:
        work(int(seed))
        os._exit(1)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
"""
KILLS = 120


@pytest.mark.exhaustive(4)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")
def test_a_writer_killed_at_any_moment_leaves_a_clean_pack(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Sample
) -> None:
    rng = random.Random(0)
    pack = made.copy(tmp_path / "pack")
    runs = [str(run) for run in made.runs.values()]
    seen: Counter[str] = Counter({"temporary files left": 0, "kills behind a changed task": 0})
    kills, slow = KILLS // sample.step, 1.0
    with _python(FORK_AND_KILL, str(pack), str(made.base_dir), *runs) as killer:
        assert killer.stdin is not None
        assert killer.stdout is not None
        assert killer.stdout.readline() == "ready\n"
        for kill in range(2 * kills):
            if kill >= kills and min(seen.values()) > 0:
                break
            if kill >= kills:
                slow = min(1.5 * slow, 50)  # a busy machine gave no writer the time to do anything
            tasks = tasks_of(pack)
            killer.stdin.write(f"{kill} {slow * rng.uniform(0.001, 0.04)}\n")
            killer.stdin.flush()
            assert killer.stdout.readline() == "killed\n"
            seen["temporary files left"] += len(leftovers(pack))
            made.check_clean(pack)
            for name in petlpack.open(pack):
                whole = [name] if name in ("a", "b") else list(made.state)
                assert made.read(pack, name) in [made.state[run] for run in whole]
            assert {"a", "b"} <= set(petlpack.open(pack))
            seen["kills behind a changed task"] += tasks != tasks_of(pack)
            made.encode(pack, "c", "next", replace=True)  # without unlocking anything
            for name in leftovers(pack):
                os.utime(pack / name, (0, 0))
            petlpack.open(pack).gc()
            assert leftovers(pack) == []
        killer.stdin.close()
    assert min(seen.values()) > 0
    print(f"{kill} kills: {dict(seen)}")


@contextlib.contextmanager
def _python(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process of its own, with our import path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


# Many at once


ADD = """
import sys
import petlpack
from petlpack import Base, TaskError
number, count, pack, base_dir, *runs = sys.argv[1:]
base = Base(base_dir)
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(count)):
    petlpack.encode(runs[i % len(runs)], pack, base, task=f"p{number}-{i}", codec="ulp", jobs=1)
    try:
        petlpack.encode(runs[0], pack, base, task=f"race-{i}", codec="ulp", jobs=1)
        print(f"race-{i}", flush=True)
    except TaskError:
        pass
"""
PROCESSES, THREADS, EACH = 4, 8, 4


def test_many_writers_a_gc_and_readers_at_once(made: Made, tmp_path: Path) -> None:
    pack = made.copy(tmp_path / "pack")
    names = ["a", "b", "c"]
    runs = [str(made.runs[name]) for name in names]
    stop = threading.Event()
    counts: Counter[str] = Counter()

    def add(thread: int) -> None:
        for i in range(EACH):
            made.encode(pack, names[i % 3], f"t{thread}-{i}")

    def come_and_go() -> None:
        while not stop.is_set():
            made.encode(pack, "d", "passing")
            petlpack.open(pack).remove("passing")
            counts["passings"] += 1

    def collect() -> None:
        while not stop.is_set():
            counts["parts collected"] += len(petlpack.open(pack).gc())
            counts["collections"] += 1

    def read(reader: int) -> None:
        rng = random.Random(reader)
        while not stop.is_set():
            name = rng.choice([name for name in petlpack.open(pack) if name != "passing"])
            run = name if name in names else names[0 if name.startswith("race") else int(name.split("-")[1]) % 3]
            assert made.read(pack, name) == made.state[run]
            counts["reads"] += 1

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(THREADS + 5) as pool:
        processes = [
            stack.enter_context(_python(ADD, str(number), str(EACH), str(pack), str(made.base_dir), *runs))
            for number in range(PROCESSES)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        helpers = [pool.submit(collect), pool.submit(come_and_go), *(pool.submit(read, i) for i in range(3))]
        adders = [pool.submit(add, thread) for thread in range(THREADS)]
        try:
            won = [process.communicate("go\n")[0].split() for process in processes]
            for adder in adders:
                adder.result()
        finally:
            stop.set()
        for helper in helpers:
            helper.result()
    assert [process.returncode for process in processes] == [0] * PROCESSES
    expected = {f"p{p}-{i}" for p in range(PROCESSES) for i in range(EACH)}
    expected |= {f"t{t}-{i}" for t in range(THREADS) for i in range(EACH)}
    races = [f"race-{i}" for i in range(EACH)]
    assert sorted(name for names in won for name in names) == sorted(races)
    assert set(petlpack.open(pack)) == {"a", "b", *expected, *races}
    made.check_clean(pack)
    assert leftovers(pack) == []
    assert counts["parts collected"] > 0
    assert counts["reads"] > 0
    print(f"{len(expected)} tasks, {len(races)} races with one winner each, {dict(counts)}")


def test_of_many_threads_with_one_name_exactly_one_wins(made: Made, tmp_path: Path) -> None:
    pack = made.copy(tmp_path / "pack")
    barrier = threading.Barrier(THREADS)

    def try_it(name: str) -> bool:
        barrier.wait()
        try:
            made.encode(pack, "c", name)
        except TaskError:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        for i in range(10):
            spellings = [f"race-{i}" if thread % 2 else f"RACE-{i}" for thread in range(THREADS)]
            assert sum(pool.map(try_it, spellings)) == 1
    assert len(petlpack.open(pack)) == 12
    assert leftovers(pack) == []
    made.check_clean(pack)


def test_many_writers_may_create_one_pack_at_once(made: Made, tmp_path: Path) -> None:
    barrier = threading.Barrier(THREADS)

    def create(args: tuple[int, int]) -> None:
        trial, thread = args
        barrier.wait()
        made.encode(tmp_path / f"pack-{trial}", "c", f"t{thread}")

    with ThreadPoolExecutor(THREADS) as pool:
        for trial in range(10):
            list(pool.map(create, [(trial, thread) for thread in range(THREADS)]))
            assert len(petlpack.open(tmp_path / f"pack-{trial}")) == THREADS
            made.check_clean(tmp_path / f"pack-{trial}")


def test_a_reader_sees_the_old_task_or_the_new_one_while_it_is_replaced(made: Made, tmp_path: Path) -> None:
    pack = made.copy(tmp_path / "pack")
    stop = threading.Event()

    def replace() -> None:
        for i in range(80):
            made.encode(pack, "ab"[i % 2], "a", replace=True)
        stop.set()

    def read() -> tuple[int, list[str]]:
        reads, wrong = 0, []
        while not stop.is_set():
            reads += 1
            try:
                assert made.read(pack, "a") in (made.state["a"], made.state["b"])
            except PetlpackError as error:
                wrong.append(error.message)
        return reads, wrong

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        pool.submit(replace).result()
        results = [reader.result() for reader in readers]
    assert sum(reads for reads, _ in results) > 50
    assert [message for _, wrong in results for message in wrong] == []

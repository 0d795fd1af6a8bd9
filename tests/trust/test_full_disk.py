"""A real disk that is full: nothing is lost or half, the error says so, and `remove` and `gc` work there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import petlpack
from petlpack import Base
from tests.support.command_line import run as run_command
from tests.support.crowd import Crowd, digest_of, make_crowd, wrong
from tests.support.sampling import Sample
from tests.support.tally import Tally

PASSES, PAGE = 24, 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 megabytes, where the system lets us mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False, timeout=30).returncode
    ):
        pytest.skip("this system mounts no tmpfs for us: run as root, or under `unshare -rm`")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True, timeout=30)


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    return make_crowd(tmp_path / "crowd")


def fill(disk: Path, room: int = 0) -> None:
    """Leave so many bytes on a disk."""
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(1 << 20)):
            pass
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(PAGE)):
            pass
    os.truncate(disk / "filler", max(0, (disk / "filler").stat().st_size // PAGE * PAGE - room))


def files_of(pack: Path) -> dict[str, bytes]:
    """Every file of a pack but the lock, and what says nothing of tasks."""
    apart = (".lock", ".released", "inventory.json")
    return {str(path): path.read_bytes() for path in pack.rglob("*") if path.is_file() and path.name not in apart}


class Full:
    """A pack on a disk that is full, and what has to be in it."""

    def __init__(self, crowd: Crowd, disk: Path) -> None:
        self.crowd, self.disk, self.pack = crowd, disk, disk / "pack"
        self.base, self.own, self.counts = Base(crowd.base), {}, Counter[str]()  # type: ignore[var-annotated]

    def check(self) -> None:
        """Check that every task that was reported is there, whole, and no other, and that nothing is left over."""
        found = {name: digest_of(task, self.base) for name, task in petlpack.open(self.pack).items()}
        assert found == {task: self.crowd.states[run] for task, run in self.own.items()}
        here = Crowd(self.disk, self.crowd.states)
        said = wrong(here, self.base)
        stale = any("is stale" in one for one in said)  # and then says nothing of what is there
        assert [one for one in said if not (stale and one.startswith("verify: sealed"))] == []
        assert [path.name for path in self.pack.rglob(".tmp-*")] == []

    def try_it(self, what: str, do: Callable[[], object]) -> bool:
        """Do something that may find the disk full; returns whether it was done. Otherwise all is as before."""
        before = files_of(self.pack)
        try:
            do()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            after = files_of(self.pack)
            assert {name: after.get(name) for name in before} == before
            assert all("/shared/" in name for name in after.keys() - before.keys())  # which `gc` takes
            self.counts[what] += 1
            return False
        return True

    def encode(self, task: str, run: str) -> None:
        """Encode a run, new or in the place of another."""
        if self.try_it("encode", lambda: self.crowd.encode(run, task, self.pack, replace=task in self.own)):
            self.own[task] = run

    def remove(self, task: str) -> None:
        """Remove a task, which is possible on a full disk."""
        petlpack.remove(self.pack, task)
        del self.own[task]


@pytest.mark.trust(6)
def test_a_disk_that_is_full_loses_nothing(crowd: Crowd, disk: Path, sample: Sample, tally: Tally) -> None:
    full, runs, passes = Full(crowd, disk), sorted(crowd.states), 0
    full.encode("first", runs[0])
    for number in sample(range(PASSES)):
        rng = random.Random(number)
        if number % 3 == 1:
            petlpack.seal(full.pack)
        fill(disk, rng.randrange(0, 12) * PAGE)
        for i in range(4):
            full.encode(rng.choice(["first", f"t{i}", f"t{number}-{i}"]), rng.choice(runs))
        fill(disk)
        full.encode("late", rng.choice(runs))
        full.try_it("seal", lambda: petlpack.seal(full.pack))
        with pytest.raises(OSError, match="No space left"):
            petlpack.open(full.pack)["first"].decode(disk / "out", full.base, jobs=1)
        assert not (disk / "out").exists()
        full.check()
        full.remove(rng.choice(sorted(full.own)))
        petlpack.gc(full.pack)
        full.check()
        (disk / "filler").unlink()
        full.encode("first", rng.choice(runs))
        petlpack.seal(full.pack)
        full.check()
        passes += 1
    assert min(full.counts["encode"], full.counts["seal"]) > 0
    tally("passes over a full disk", passes)
    print(passes, dict(full.counts))


def test_the_error_names_the_file_and_says_that_the_disk_is_full(crowd: Crowd, disk: Path) -> None:
    crowd.encode("full00", "first", disk / "pack")
    fill(disk)
    refused: list[list[str | Path]] = [
        ["encode", crowd.root / "full02", "--base", crowd.base, "--pack", disk / "pack", "--codec", "ulp"],
        ["encode", crowd.root / "full02", "--base", crowd.base, "--pack", disk / "new", "--codec", "ulp"],
        ["seal", disk / "pack"],
        ["decode", disk / "pack", "first", disk / "out", "--base", crowd.base],
    ]
    for command in refused:
        answer = run_command(*command)
        assert answer.exit_code == 1
        assert "No space left on device" in answer.stderr
        assert str(disk) in answer.stderr, answer.stderr
        assert "free some space" in answer.stderr
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "pack"]
    assert run_command("remove", disk / "pack", "first").exit_code == 0
    assert run_command("gc", disk / "pack").exit_code == 0
    assert sorted(path.name for path in (disk / "pack" / "shared").iterdir()) == []

"""Clocks that are a day off, locks of the dead and file systems without hard links: writers need none of these."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import petlpack
from petlpack.store import Store
from tests.support.command_line import ENVIRONMENT
from tests.support.places import Place
from tests.support.small_runs import patch_system

DAY = 24 * 3600


@pytest.mark.parametrize("off", [-2 * DAY, 2 * DAY])
def test_a_clock_that_is_days_off_takes_nothing_from_a_living_writer(
    place: Place, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    real = time.time
    with Store.creating(place.pack) as store, store.scratch() as path:
        path.write_bytes(b"task")
        monkeypatch.setattr(time, "time", lambda: real() + off)
        assert petlpack.gc(place.pack, dry_run=True).files == {}
        petlpack.gc(place.pack)
        petlpack.encode(place.run, place.pack, place.base, task="three")
        store.put("slow", path, {}, replace=False)
    petlpack.remove(place.pack, "slow")
    petlpack.gc(place.pack)
    place.check_others()
    assert list(place.pack.rglob(".tmp-*")) == []


HOLD = """
import sys, time
from petlpack.store import Store
with Store.creating(sys.argv[1]) as store, store.locked(), store.scratch() as path:
    path.write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills are POSIX")
def test_the_lock_of_a_dead_process_keeps_nobody_waiting(place: Place) -> None:
    command = [sys.executable, "-c", HOLD, str(place.pack)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    started = time.monotonic()
    petlpack.encode(place.run, place.pack, place.base, task="three")
    assert time.monotonic() - started < 20
    assert list(place.pack.rglob(".tmp-*")) == []
    place.check_others()


def test_what_stands_in_a_lock_means_nothing(place: Place) -> None:
    (place.pack / ".lock").write_text("1\nanother-host\n")  # as libraries write that lock by the file's presence
    petlpack.encode(place.run, place.pack, place.base, task="three")
    petlpack.remove(place.pack, "three")
    place.check_others()


def test_a_file_system_without_hard_links_is_enough(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    patch_system(monkeypatch, os, "link", link)
    patch_system(monkeypatch, os, "symlink", link)
    new = place.root / "new.pack"
    petlpack.encode(place.run, new, place.base, task="a")
    petlpack.seal(new)
    petlpack.encode(place.run, new, place.base, task="a", replace=True)
    petlpack.open(new)["a"].decode(place.root / "out", place.base)
    petlpack.remove(new, "a")
    petlpack.gc(new)
    assert Path(place.root / "out" / "model.safetensors").exists()
    assert [one for one in petlpack.verify(new) if one.error is not None] == []

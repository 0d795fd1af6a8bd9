"""`petlpack remove` and `petlpack gc`: all or nothing, and what no task needs is freed."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

import petlpack
from petlpack import store
from tests.support.command_line import run, run_json


def test_a_locked_pack_is_6(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.05)
    with filelock.FileLock(pack / ".lock"):
        result = run("remove", pack, "sst2")
        assert (result.exit_code, run_json("gc", pack)[1]["error"]["type"]) == (6, "LockedError")
    assert "locked" in result.stderr
    assert run("remove", pack, "sst2").exit_code == 0


def test_remove_is_all_or_nothing_and_gc_frees_what_is_left(place: Path, pack: Path) -> None:
    assert run("remove", pack, "sst2", "cola").exit_code == 1
    assert len(petlpack.open(pack)) == 3
    code, answer = run_json("remove", pack, "sst2", "adapter", "sst2")
    assert (code, [row["name"] for row in answer["removed"]]) == (0, ["sst2", "adapter"])
    promised = run_json("gc", pack, "--dry-run")[1]
    assert len(promised["files"]) == 2
    assert all((pack / row["file"]).exists() for row in promised["files"])
    done = run_json("gc", pack)[1]
    assert (done["files"], done["dry_run"]) == (promised["files"], False)
    assert not any((pack / row["file"]).exists() for row in done["files"])
    assert run("gc", pack).stdout == "Nothing to delete.\n"
    assert run("verify", pack, "--base", place / "base").exit_code == 0

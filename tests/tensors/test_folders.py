"""Directories below one: one that cannot be read is told, never taken for an empty one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import petlpack
from petlpack.tensors.folders import folders_below
from tests.support.small_runs import write_pair

Denied = Callable[[Path, type[OSError]], None]


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Denied:
    """Let a directory be read by nobody."""
    scandir = os.scandir

    def denied(path: Path, kind: type[OSError]) -> None:
        def scanned(place: str | Path) -> object:
            if place == path or place == str(path):
                raise kind(13, "Permission denied", str(place))
            return scandir(place)

        monkeypatch.setattr(os, "scandir", scanned)

    return denied


def test_a_directory_that_cannot_be_read_is_told(tmp_path: Path, deny: Denied) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    deny(tmp_path / "a", PermissionError)
    with pytest.raises(PermissionError):
        list(folders_below(tmp_path))
    told: list[OSError] = []
    assert [place for place, _ in folders_below(tmp_path, unread=told.append)] == [tmp_path, tmp_path / "c"]
    assert [error.filename for error in told] == [str(tmp_path / "a")]


def test_a_directory_that_vanished_is_left_out(tmp_path: Path, deny: Denied) -> None:
    (tmp_path / "a").mkdir()
    deny(tmp_path / "a", FileNotFoundError)
    assert [place for place, _ in folders_below(tmp_path)] == [tmp_path]


def test_a_plan_tells_what_of_a_run_it_could_not_count(tmp_path: Path, deny: Denied) -> None:
    base, run = write_pair(tmp_path)
    (run / "logs").mkdir()
    (run / "logs" / "events").write_bytes(bytes(1000))
    whole = petlpack.plan([run], base).runs[0]
    deny(run / "logs", PermissionError)
    part = petlpack.plan([run], base).runs[0]
    assert part.directory_bytes == whole.directory_bytes - 1000
    assert [text for text in part.warnings if "logs' cannot be read, and is not counted" in text]

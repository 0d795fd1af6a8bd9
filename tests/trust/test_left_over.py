"""What writers could not delete is deleted by the next one; what fails behind a change, or without memory, is told."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import petlpack
from petlpack.coding import pco, zstd
from petlpack.errors import problem_of
from petlpack.store import SUFFIX, Store
from tests.support.command_line import run
from tests.support.places import Place
from tests.support.small_runs import patch_system


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_the_next_decode_deletes_what_one_could_not(place: Place) -> None:
    task = petlpack.open(place.pack)["one"]
    with pytest.MonkeyPatch.context() as patch:
        patch_system(patch, os, "rename", _refuse)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(OSError, match="Input/output"):
            task.decode(place.root / "out", place.base)
    assert list(place.root.glob(".petlpack-*"))
    task.decode(place.root / "out", place.base)
    assert not list(place.root.glob(".petlpack-*"))


def test_the_next_writer_deletes_what_one_could_not(place: Place) -> None:
    real = os.unlink

    def unlink(path: Any, **more: Any) -> Any:
        return _refuse() if Path(path).parent.name == "tasks" else real(path, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch_system(patch, os, "unlink", unlink)
        with Store.creating(place.pack) as store, store.scratch() as path:
            path.write_bytes(b"half a task")
    assert list(place.pack.rglob(".tmp-*"))
    petlpack.gc(place.pack)
    assert not list(place.pack.rglob(".tmp-*"))


def test_a_decode_that_is_done_looks_at_nothing_any_more(place: Place) -> None:
    decoded = petlpack.open(place.pack)["one"].decode(place.root / "out", place.base)
    shutil.rmtree(place.root / "out")
    assert sorted(decoded.files) == ["config.json", "model.safetensors"]


def test_parts_that_nobody_can_account_for_are_told(place: Place) -> None:
    (place.pack / "tasks" / f"one{SUFFIX}").write_bytes(b"")
    assert "`gc` keeps the parts that only 'two" in petlpack.remove(place.pack, "two").warnings[0]


@pytest.mark.parametrize("error", [OSError("obtaining file position failed"), OSError()])
def test_an_error_of_the_system_without_a_number_is_one(error: OSError) -> None:
    assert (problem_of(error).code, problem_of(error).exit_code) == ("os", 1)
    assert problem_of(error).message


def test_a_disk_that_fails_is_no_damage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petlpack.container.file.open_descriptor", _refuse)
    monkeypatch.setattr("petlpack.analyze.reading.container.read", _refuse)
    result = run("forecast", place.pack)
    assert (result.exit_code, "Error: pack" in result.stderr) == (1, True)


def test_zstd_without_memory_says_nothing_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = zstd.compress(bytes(1000), 3)

    class Failing:
        def compress(self, *_: Any, **__: Any) -> bytes:
            raise zstandard.ZstdError("Allocation error : not enough memory")

        decompress = compress

    for name in ("ZstdCompressor", "ZstdDecompressor"):
        monkeypatch.setattr(zstandard, name, lambda **_: Failing())
    with pytest.raises(MemoryError):
        zstd.compress(bytes(1000), 3)
    with pytest.raises(MemoryError):
        zstd.decompress(frame, 1000)


def test_pcodec_is_asked_for_nothing_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.arange(1000, dtype=np.uint32)
    stream = pco.compress(numbers)

    def empty(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "empty", empty)
    for call in (lambda: pco.compress(numbers), lambda: pco.decompress_into(stream, numbers)):
        with pytest.raises(MemoryError):
            call()


def test_plan_ends_where_its_scratch_cannot_be_deleted(place: Place, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path / "scratch"))
        patch_system(patch, os, "rmdir", _refuse)
        assert petlpack.plan([place.root / "second"], place.base).runs

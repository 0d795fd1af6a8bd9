"""A base that changes between any two reads of it: `encode` refuses, or its task decodes against one of the two."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import petlpack
from petlpack.errors import BaseError, PetlpackError, RunError
from petlpack.tensors.checkpoint import open_checkpoint
from tests.support.sampling import Sample
from tests.support.small_runs import make_pair, write_pair, write_safetensors

Change = Callable[[Path], None]
SMALL: dict[str, Any] = {"layers": 1, "width": 8, "words": 8}


def touched(file: Path) -> None:
    """Give it another time, and nothing else."""
    os.utime(file, ns=(1, 1))


def overwritten(file: Path) -> None:
    """Turn a bit of the last byte in place, and put the times back."""
    times = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def renamed(file: Path) -> None:
    """Put a file of equal size and time, in which a bit differs, in its place by renaming."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    overwritten(other)
    other.replace(file)


def cut(file: Path) -> None:
    """Cut the last eight bytes off."""
    os.truncate(file, file.stat().st_size - 8)


def grown(file: Path) -> None:
    """Add bytes."""
    with file.open("ab") as opened:
        opened.write(bytes(8))


def gone(file: Path) -> None:
    """Delete it."""
    file.unlink()


def one_file(base: Path) -> Path:
    return base / "model.safetensors"


def shard(base: Path) -> Path:
    """Write the base as two shards; return one."""
    _, tensors = make_pair(**SMALL)
    one_file(base).unlink()
    halves = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for file, names in halves.items():
        write_safetensors(base / file, {name: tensors[name] for name in names})
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return base / "b.safetensors"


def pickled(base: Path) -> Path:
    """Write the base as torch does."""
    tensors = {name: tensor.torch() for name, tensor in open_checkpoint(one_file(base)).tensors.items()}
    one_file(base).unlink()
    torch.save(tensors, base / "pytorch_model.bin")
    return base / "pytorch_model.bin"


class Meddler:
    """Does something to a file at the n-th moment before or after it is opened or read."""

    def __init__(self, patch: pytest.MonkeyPatch, file: Path, change: Change | None, moment: int = -1) -> None:
        self.moments, self._file, self._change, self._at = 0, file, change, moment
        patch.setattr(os, "open", self._around(os.open))
        patch.setattr(np, "fromfile", self._around(np.fromfile))

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(of: Any, *args: Any, **options: Any) -> Any:
            name = getattr(of, "name", of)
            own = isinstance(name, (int, str, os.PathLike)) and self._is_it(name)
            if own:
                self._moment()
            done = real(of, *args, **options)
            if own:
                self._moment()
            return done

        return call

    def _is_it(self, name: Any) -> bool:
        try:
            place = str(Path(f"/proc/self/fd/{name}").readlink()) if isinstance(name, int) else os.fspath(name)
        except OSError:
            return False
        return place == str(self._file)

    def _moment(self) -> None:
        if self.moments == self._at and self._change is not None:
            change, self._change = self._change, None
            change(self._file)
        self.moments += 1


@pytest.mark.trust(7)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which file a descriptor is of")
@pytest.mark.parametrize("make", [one_file, shard, pickled], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "change", [touched, overwritten, renamed, cut, grown, gone], ids=lambda change: change.__name__
)
def test_a_base_that_changes_at_any_moment(
    make: Callable[[Path], Path], change: Change, tmp_path: Path, sample: Sample
) -> None:
    file = make(write_pair(tmp_path / "pristine", **SMALL)[1]).name
    shutil.copytree(tmp_path / "pristine" / "base", tmp_path / "pristine" / "before")
    _, moments = meddled(tmp_path, file, None)
    assert moments > 10
    refused = 0
    for moment in sample(range(moments)):
        error, _ = meddled(tmp_path, file, change, moment)
        refused += error is not None
        check(tmp_path / "place", error, moment)
    assert refused


def meddled(room: Path, file: str, change: Change | None, moment: int = -1) -> tuple[PetlpackError | None, int]:
    """Encode while something happens to a file of the base; return what was refused, and how many moments were."""
    place = room / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(room / "pristine", place)
    with pytest.MonkeyPatch.context() as patch:
        meddler = Meddler(patch, place / "base" / file, change, moment)
        return encoded(place), meddler.moments


def encoded(place: Path) -> PetlpackError | None:
    try:
        petlpack.encode(place / "run", place / "pack", place / "base", task="task", jobs=1)
    except (BaseError, RunError) as error:
        return error
    return None


def check(place: Path, error: PetlpackError | None, moment: int) -> None:
    """Check that nothing is in the pack, or what decodes to the run against the base before or after."""
    task = place / "pack" / "tasks" / "task.petl.safetensors"
    if error is not None:
        assert not task.exists(), moment
        assert error.hint, moment
        return
    want = (place / "run" / "model.safetensors").read_bytes()
    for number, base in enumerate(("before", "base")):
        out = place / f"out{number}"
        try:
            petlpack.open(place / "pack")["task"].decode(out, place / base, jobs=1)
        except BaseError:
            continue
        assert (out / "model.safetensors").read_bytes() == want, moment
        return
    raise AssertionError(f"reported at moment {moment}, and decodes against neither")

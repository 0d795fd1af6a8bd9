"""Files that change, shrink, vanish or never answer while they are read: refused by name, and nothing is wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import petlpack
from petlpack.encoding.write import TaskWriter
from petlpack.errors import BaseError, PetlpackError, RunError
from petlpack.tensors.base import Base
from petlpack.tensors.checkpoint import open_checkpoint
from tests.support.small_runs import write_pair

Change = Callable[[Path], None]


def overwritten(file: Path) -> None:
    """Turn a bit of the last byte in place."""
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))


def overwritten_at_the_same_time(file: Path) -> None:
    """Turn a bit and put the times back, as tools do that copy times."""
    times = file.stat()
    overwritten(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(file: Path) -> None:
    """Put another file of the same size and time in its place."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    overwritten_at_the_same_time(other)
    other.replace(file)


def cut(file: Path) -> None:
    """Cut the last byte off."""
    os.truncate(file, file.stat().st_size - 1)


def longer(file: Path) -> None:
    """Add a byte."""
    with file.open("ab") as opened:
        opened.write(b"\0")


def gone(file: Path) -> None:
    """Delete it."""
    file.unlink()


CHANGES = [overwritten, overwritten_at_the_same_time, replaced, cut, longer, gone]

as_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def pickled(folder: Path) -> Path:
    """Put what torch saves in the place of a model's safetensors file."""
    weights = folder / "model.safetensors"
    tensors = {name: tensor.torch() for name, tensor in open_checkpoint(weights).tensors.items()}
    weights.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@pytest.fixture(params=["safetensors", "bin"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a run, its base, and the base's weight file, in either format."""
    run, base = write_pair(tmp_path)
    return run, base, pickled(base) if request.param == "bin" else base / "model.safetensors"


@as_change
def test_a_base_that_is_kept_gives_nothing_of_the_file_that_took_its_place(
    pair: tuple[Path, Path, Path], change: Change, tmp_path: Path
) -> None:
    run, base, file = pair
    petlpack.encode(run, tmp_path / "p", base, task="task")
    kept, task = Base(base), petlpack.open(tmp_path / "p")["task"]
    loaded = task.load(kept)
    want = {name: loaded[name].bits() for name in loaded}
    change(file)
    for read in (lambda: task.load(kept), *(loaded[name].bits for name in want)):
        got: object = None
        with contextlib.suppress(BaseError):
            got = read()  # what is stored by itself needs no base
        if got is not None:
            assert isinstance(got, np.ndarray)
            assert any(np.array_equal(got, bits) for bits in want.values() if bits.shape == got.shape)
    with pytest.raises(BaseError, match="changed after it was opened") as caught:
        task.load(kept)
    assert caught.value.code == "file-changed"
    assert file.name in caught.value.message


@as_change
def test_a_base_that_changes_while_a_run_is_encoded_leaves_the_pack_as_it_was(
    pair: tuple[Path, Path, Path], change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, base, file = pair
    real = TaskWriter._prepare

    def prepare(*args: Any) -> object:
        prepared = real(*args)
        change(file)
        return prepared

    monkeypatch.setattr(TaskWriter, "_prepare", prepare)
    with pytest.raises(BaseError) as caught:
        petlpack.encode(run, tmp_path / "p", base, task="task")
    assert caught.value.code == "file-changed"
    assert not (tmp_path / "p" / "tasks" / "task.petl.safetensors").exists()


@as_change
@pytest.mark.parametrize("name", ["base", "model.safetensors", "config.json"])
def test_what_changes_before_the_commit_leaves_the_pack_as_it_was(
    change: Change, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, base = write_pair(tmp_path)
    file = base / "model.safetensors" if name == "base" else run / name
    real = TaskWriter.write

    def write(*args: Any) -> object:
        written = real(*args)
        change(file)
        return written

    monkeypatch.setattr(TaskWriter, "write", write)
    with pytest.raises((BaseError, RunError)) as caught:
        petlpack.encode(run, tmp_path / "p", base, task="task")
    assert caught.value.code == "file-changed"
    assert str(file) in caught.value.message
    assert not (tmp_path / "p" / "tasks" / "task.petl.safetensors").exists()


def test_a_file_that_shrinks_never_kills_the_process(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, base, file = pair
    script = """
import os, sys
from petlpack.errors import BaseError
from petlpack.tensors.base import Base
base = Base(sys.argv[1])
os.truncate(sys.argv[2], 4096)
for tensor in base.tensors.values():
    try:
        tensor.bits()
    except BaseError as error:
        assert error.code == "file-changed", error.code
    else:
        raise AssertionError("it was read")
"""
    done = subprocess.run([sys.executable, "-c", script, base, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_weight_file_is_mapped(pair: tuple[Path, Path, Path]) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what is mapped")
    _, base, file = pair
    opened = Base(base)
    assert opened.tensors
    assert str(file) not in maps.read_text(encoding="utf-8")


def test_a_large_pickled_file_takes_no_memory_until_it_is_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1 << 26)}, tmp_path / "pytorch_model.bin")
    script = """
import resource, sys
import torch
from petlpack.tensors.base import Base
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensor = Base(sys.argv[1]).tensors["weight"]
assert len(tensor.read_flat(5, 1005)) == 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 16


# What never answers


def fifo(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def itself(place: Path) -> None:
    place.symlink_to(place.name)


SPECIAL = [fifo, device, itself]

SMALL = [
    *("config.json", "adapter_config.json", "trainer_state.json", "modules.json", "model_index.json", "README.md"),
    *("eval_results.json", "result.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("head_config.json", "propetl_config.json", "param_config.json", "training_args.bin", "tokenizer.json"),
]
WEIGHTS = ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "model.pt", "0.bin"]


@pytest.mark.parametrize("special", SPECIAL, ids=lambda special: special.__name__)
@pytest.mark.parametrize("name", [*SMALL, *WEIGHTS])
def test_what_is_no_file_is_waited_for_by_nobody(special: Change, name: str, tmp_path: Path) -> None:
    run, base = write_pair(tmp_path)
    for folder in (run, base):
        (folder / name).unlink(missing_ok=True)
        special(folder / name)
    script = """
import sys
import petlpack
from petlpack.errors import PetlpackError
run, base, pack = sys.argv[1:]
for work in (lambda: petlpack.encode(run, pack, base), lambda: petlpack.survey([run, base])):
    try:
        work()
    except PetlpackError as error:
        assert error.exit_code in (1, 5), error
"""
    done = subprocess.run(
        [sys.executable, "-c", script, run, base, tmp_path / "p"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_error_of_a_pipe_says_that_it_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.safetensors")
    with pytest.raises(PetlpackError, match="is a named pipe, not a file"):
        petlpack.encode(tmp_path / "run.safetensors", tmp_path / "p", codec="plain")

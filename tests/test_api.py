"""What `import petlpack` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import petlpack
from tests.support.small_runs import make_pair, write_methods, write_run


@pytest.fixture
def pack(tmp_path: Path) -> petlpack.Pack:
    tuned, base = make_pair()
    run = write_run(tmp_path / "run", tuned)
    petlpack.encode(run, tmp_path / "p.pack", write_run(tmp_path / "base", base), task="b")
    petlpack.encode(run, tmp_path / "p.pack", tmp_path / "base", task="a")
    return petlpack.open(tmp_path / "p.pack")


@pytest.fixture
def methods(tmp_path: Path) -> petlpack.Pack:
    """Return a pack with tasks of every codec of a method."""
    for run, options in write_methods(tmp_path / "methods").values():
        petlpack.encode(run, tmp_path / "m.pack", **options)
    return petlpack.open(tmp_path / "m.pack")


def test_every_public_name_is_there_and_listed() -> None:
    assert petlpack.__all__ == sorted(petlpack.__all__, key=lambda name: (name[0].islower() or name[0] == "_", name))
    for name in petlpack.__all__:
        assert getattr(petlpack, name) is not None
    assert dir(petlpack) == sorted(petlpack.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        petlpack.nothing  # noqa: B018


def test_importing_costs_no_library() -> None:
    heavy = ("numpy", "torch", "zstandard", "pcodec", "click", "rich", "transformers", "peft")
    code = f"import sys, petlpack; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_core_work_imports_no_torch(pack: petlpack.Pack, tmp_path: Path) -> None:
    code = (
        "import sys, petlpack; pack = petlpack.open(sys.argv[1]); pack['a'].decode(sys.argv[2], base=sys.argv[3]); "
        "petlpack.stats(pack); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(pack.path), str(tmp_path / "out"), str(tmp_path / "base")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("task", ["mask.a", "merge", "hyper.a"])
def test_methods_are_read_and_rebuilt_without_torch(task: str, methods: petlpack.Pack, tmp_path: Path) -> None:
    code = (
        "import sys, petlpack; pack = petlpack.open(sys.argv[1]); task = pack[sys.argv[2]]; base = sys.argv[4]; "
        "read = list(task.load(base).read_all()); task.rebuild(base); task.formula(); "
        "task.decode(sys.argv[3], base, to='safetensors'); petlpack.stats(pack); list(petlpack.verify(pack, base)); "
        "print('torch' in sys.modules)"
    )
    base = tmp_path / "methods" / "t5"
    command = [sys.executable, "-c", code, str(methods.path), task, str(tmp_path / "out"), str(base)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_encode_returns_every_task_of_a_run(tmp_path: Path) -> None:
    runs = write_methods(tmp_path)
    for run, options in runs.values():
        done = petlpack.encode(run, tmp_path / "pack", **options)
        assert isinstance(done, list)
        assert {one.name for one in done} <= petlpack.open(tmp_path / "pack").keys()
        assert len(done) == (1 if run.name == "merge" else 2)
    assert len(petlpack.open(tmp_path / "pack")) == 5


def test_stats_of_methods_account_for_every_byte(methods: petlpack.Pack) -> None:
    figures = petlpack.stats(methods)
    on_disk = sum(path.stat().st_size for path in methods.path.rglob("*") if path.is_file())
    assert figures.disk_bytes == on_disk
    told = sum(row.bytes.total for row in figures.tasks) + sum(row.bytes for row in figures.shared)
    assert told + figures.other_bytes == on_disk
    assert {row.sha256: row.tasks for row in figures.shared} == {
        sha256: 2 for name in ("mask.a", "hyper.a") for sha256 in methods[name].parts
    }
    for row in figures.tasks:
        assert row.bytes.payload + row.bytes.head + row.bytes.header == methods[row.name].nbytes
        assert set(row.shared) <= set(methods[row.name].parts)


def test_a_pack_is_a_mapping(pack: petlpack.Pack) -> None:
    assert (list(pack), len(pack), "a" in pack, "c" in pack) == (["a", "b"], 2, True, False)
    assert pack.get("c") is None
    with pytest.raises(KeyError):
        pack["c"]
    assert pack["a"].codec in ("ulp", "sparse")


def test_a_task_is_a_lazy_mapping_of_tensors(pack: petlpack.Pack, tmp_path: Path) -> None:
    tuned, _ = make_pair()
    tensors = pack["a"].load(base=tmp_path / "base")
    assert tensors.keys() == tuned.keys()
    for name, tensor in tuned.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert np.array_equal(tensors[name].bits(), tensor.bits())


def test_what_nobody_needs_is_collected(pack: petlpack.Pack) -> None:
    assert pack.gc() == []
    pack.remove("a")
    assert pack.gc() == []
    pack.remove("b")
    freed = pack.gc(dry_run=True)
    assert freed
    assert [path for path, _ in pack.gc()] == [path for path, _ in freed]
    assert pack.store.shared_names() == []


def test_stats_account_for_every_byte(pack: petlpack.Pack) -> None:
    (pack.path / "tasks" / ".tmp-left-behind").write_bytes(b"x" * 77)
    figures = petlpack.stats(pack.path)
    on_disk = sum(path.stat().st_size for path in pack.path.rglob("*") if path.is_file())
    assert figures.disk_bytes == on_disk
    assert sum(row.bytes.total for row in figures.tasks) + sum(
        r.bytes for r in figures.shared
    ) + figures.other_bytes == (on_disk)
    assert figures.other_bytes == 77 + (pack.path / "pack.json").stat().st_size
    for row in figures.tasks:
        assert row.bytes.payload + row.bytes.head + row.bytes.header == pack[row.name].nbytes
        assert row.bytes.total == pack[row.name].nbytes + row.bytes.files


def test_stats_name_a_damaged_task_and_report_the_rest(pack: petlpack.Pack) -> None:
    path = pack.store.task_path("a")
    path.write_bytes(path.read_bytes()[:-1])
    figures = petlpack.stats(pack)
    assert [row.name for row in figures.tasks] == ["b"]
    assert list(figures.damaged) == ["a"]

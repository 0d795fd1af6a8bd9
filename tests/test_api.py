"""What `import petlpack` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import petlpack
from tests.conftest import make_pair, write_run


@pytest.fixture
def pack(tmp_path: Path) -> petlpack.Pack:
    tuned, base = make_pair()
    run = write_run(tmp_path / "run", tuned)
    petlpack.encode(run, tmp_path / "p.pack", write_run(tmp_path / "base", base), task="b")
    petlpack.encode(run, tmp_path / "p.pack", tmp_path / "base", task="a")
    return petlpack.open(tmp_path / "p.pack")


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

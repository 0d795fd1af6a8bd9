"""What the tests of the commands work on: runs and their pack, one of every method, and no settings of a terminal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import petlpack
from tests.support.command_line import write_adapter
from tests.support.small_runs import make_base, make_pair, write_methods, write_run


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, three runs, and a pack `p` of them."""
    here = tmp_path_factory.mktemp("cli")
    write_run(here / "base", make_base())
    state = {"optimizer.pt": b"never opened", "training_args.bin": b"nor this", "train.log": b"hm"}
    for seed, name in enumerate(("sst2", "rte")):
        write_run(here / name, make_pair(seed + 1)[0], files=state)
    write_adapter(here / "adapter", "LORA")
    for name in ("sst2", "rte", "adapter"):
        petlpack.encode(here / name, here / "p", here / "base")
    return here


@pytest.fixture(scope="session")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with runs of the codecs mask, hyper and merge, their base, and a pack `p` of them."""
    here = tmp_path_factory.mktemp("methods")
    for source, options in write_methods(here).values():
        petlpack.encode(source, here / "p", **options)
    return here


@pytest.fixture
def pack(place: Path, tmp_path: Path) -> Path:
    """Return a copy of the pack, to change."""
    return Path(shutil.copytree(place / "p", tmp_path / "p"))


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how the terminal that runs it is set up."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PETLPACK_PACK"):
        monkeypatch.delenv(name, raising=False)

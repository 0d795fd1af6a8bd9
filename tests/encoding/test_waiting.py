"""What encoding does not let other writers wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import petlpack
from petlpack import coding
from petlpack.coding.array import Array
from petlpack.encoding import write
from petlpack.sections import shared
from petlpack.store import Store
from petlpack.tensors.dtypes import DTYPES
from tests.support.small_runs import make_pair, write_run


def pair(place: Path) -> tuple[Path, Path]:
    """Return the directories of a run and its base."""
    tuned, base = make_pair(1)
    for name, tensors in (("run", tuned), ("base", base)):
        (place / name).mkdir()
        write_run(place / name, tensors, files={"tokenizer.json": b"{}"})
    return place / "run", place / "base"


def test_what_is_shared_is_compressed_before_the_pack_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, base = pair(tmp_path)
    held, made = [False], list[bool]()
    locked, write_shared = Store.locked, shared.write_shared

    @contextlib.contextmanager
    def watched(store: Store) -> Iterator[None]:
        with locked(store):
            held[0] = True
            yield
            held[0] = False

    def noted(content: bytes) -> bytes:
        made.append(held[0])
        return write_shared(content)

    monkeypatch.setattr(Store, "locked", watched)
    monkeypatch.setattr(write, "write_shared", noted)
    petlpack.encode(run, tmp_path / "pack", base)
    assert len(made) > 1
    assert not any(made)
    made.clear()
    petlpack.encode(run, tmp_path / "pack", base, task="again")
    assert made == []  # the pack has them


def test_a_large_kept_file_comes_back() -> None:
    text = np.random.default_rng(0).integers(97, 123, (1 << 20) + 1, np.uint8)
    array = Array(DTYPES["U8"], text.size, text.size)
    chosen, data = coding.encode(text, array, ("planes",), "small")
    assert chosen == "planes"
    assert np.array_equal(coding.decode(chosen, data, array, "content"), text)

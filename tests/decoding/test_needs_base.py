"""One rule for when a base is needed, asked of everything that decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import petlpack
from petlpack.decoding.task import Task
from petlpack.errors import BaseError
from tests.support.golden import ALL
from tests.support.small_runs import write_pair
from tools.vectors import Vector
from tools.write_vectors import write_pack

pytest.importorskip("torch")

PACKS = [vector for vector in ALL if vector.kind == "codec" and not vector.bad]


def refused(call: Callable[[], object]) -> bool:
    """Tell whether a call asks for the base."""
    try:
        call()
    except BaseError as error:
        assert error.code == "base-missing"  # noqa: PT017 - most calls are not refused
        return True
    return False


def answers(task: Task, pack: Path) -> dict[str, bool]:
    """Return what each says: does the task need its base?"""
    (finding,) = petlpack.verify(pack, task=task.name)
    assert finding.error is None
    base = petlpack.details(task).base
    return {
        "load": refused(task.load),
        "state_dict": refused(task.state_dict),
        "decode": refused(lambda: task.decode(pack / "run")),
        "portable": refused(lambda: task.decode(pack / "portable", to="portable")),
        "verify": finding.depth == "bytes",
        "show": base is not None and base.needed,
    }


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector.id) for vector in PACKS])
def test_all_agree_on_every_golden_task(vector: Vector, tmp_path: Path) -> None:
    write_pack(vector, tmp_path)
    task = petlpack.open(tmp_path)["task"]
    needed = any(tensor.get("base") or tensor.get("view") for tensor in vector["tensors"])
    found = answers(task, tmp_path)
    assert found == dict.fromkeys(found, needed)


@pytest.mark.parametrize("codec", ["auto", "ulp", "plain"])
def test_encode_and_plan_ask_for_what_decode_will_need(codec: str, tmp_path: Path) -> None:
    run, base = write_pair(tmp_path)
    asked = refused(lambda: petlpack.encode(run, tmp_path / "without", codec=codec, task="t"))
    assert asked == (codec != "plain")
    petlpack.encode(run, tmp_path / "with", base, codec=codec, task="t")
    found = answers(petlpack.open(tmp_path / "with")["t"], tmp_path / "with")
    assert len(set(found.values())) == 1
    assert found["load"] or not asked

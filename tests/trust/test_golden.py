"""Packs of version 1 that are kept for ever: each decodes, and there is one for all that such a pack may hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import container
from petlpack.codecs.registry import CODECS
from petlpack.coding.registry import CODERS
from petlpack.decoding.task import Task
from petlpack.records.template import PICKLED
from petlpack.records.views import view_json
from petlpack.store import SUFFIX
from petlpack.tensors.dtypes import DTYPES
from tests.support.golden import ALL
from tests.support.small_runs import METHOD_CODECS, write_methods
from tests.support.tally import Tally
from tools.packs import untold, write_whole
from tools.vectors import FORMATS, Vector

GOLDEN = [vector for vector in ALL if vector.kind == "whole pack" and not vector.bad]


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: vector.id)
def test_a_pack_of_version_1_decodes(vector: Vector, tmp_path: Path, tally: Tally) -> None:
    pack, base = write_whole(vector, tmp_path)
    assert vector["tasks"]
    assert [found for found in petlpack.verify(pack, base=base) if found.error] == []
    for name, files in vector["tasks"].items():
        if any(file.endswith(PICKLED) for file in files):
            pytest.importorskip("torch")
        out = tmp_path / name
        petlpack.open(pack)[name].decode(out, base)
        for file, said in files.items():
            assert hashlib.sha256(untold(said["content"])).hexdigest() == said["sha256"]
            if not file.endswith(PICKLED):  # what torch makes of one is its own affair, but for the tensors
                assert hashlib.sha256((out / file).read_bytes()).hexdigest() == said["sha256"], file
    tally("golden packs", 1)


def _shown(pack: Path) -> Iterator[str]:
    """Yield what a pack shows."""
    yield "sealed" if (pack / "inventory.json").exists() else "not sealed"
    for file in pack.rglob(f"*{SUFFIX}"):
        manifest = container.read(file).manifest
        yield f"{manifest.kind} of {manifest.codec}"
        yield from (f"coder {row.coder}" for row in manifest.sections)
    for task in petlpack.open(pack).values():
        yield from _shown_by(task)


def _shown_by(task: Task) -> Iterator[str]:
    stored = {slot.name for slot in task.sources.stored}
    for slot in task.template.slots:
        if slot.name in stored:
            yield f"{slot.dtype.name} {'alone' if slot.base is None else 'predicted'}"
        yield from (f"view {step}" for step in _steps(slot.base and view_json(slot.base)))
    entries = [entry for header in task.template.headers.values() for entry in header.entries.values()]
    yield from ("a foreign dtype" for entry in entries if entry.dtype not in DTYPES)
    yield from (f"part {'of a base' if sha == task.template.base_table else 'kept'}" for sha in task.template.needs)


def _steps(view: Any) -> Iterator[str]:
    if isinstance(view, list):
        yield from (view[0],) if view and isinstance(view[0], str) and view[0] in STEPS else ()
        for part in view:
            yield from _steps(part)


def _steps_of_page() -> set[str]:
    lines = (FORMATS / "views.md").read_text(encoding="utf-8").splitlines()
    return {line.split('"')[1] for line in lines if line.startswith('| `["')}


STEPS = _steps_of_page()


def test_there_is_one_for_all_that_a_pack_may_hold(tmp_path: Path) -> None:
    packs = [write_whole(vector, tmp_path / vector.id)[0] for vector in GOLDEN]
    shown = {what for pack in packs for what in _shown(pack)}
    wanted = {f"task of {codec_id}" for codec_id in CODECS} | {f"coder {coder_id}" for coder_id in CODERS}
    wanted |= {f"{dtype} {how}" for dtype in DTYPES for how in ("alone", "predicted")}
    wanted |= {f"view {step}" for step in STEPS}
    wanted |= {"sealed", "not sealed", "a foreign dtype", "part of a base", "part kept"}
    assert wanted - shown == set(), "a pack is missing: see tools/pack_runs.py"


@pytest.mark.parametrize("codec_id", METHOD_CODECS)
def test_there_is_one_for_each_kind_of_part_that_a_method_shares(codec_id: str, tmp_path: Path) -> None:
    run, options = write_methods(tmp_path)[codec_id]
    petlpack.encode(run, tmp_path / "pack", **options)
    parts = {what for what in _shown(tmp_path / "pack") if what.startswith("shared of")}
    golden = {what for vector in GOLDEN for what in _shown(write_whole(vector, tmp_path / vector.id)[0])}
    assert parts
    assert parts <= golden

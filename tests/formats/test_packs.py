"""The whole packs of `formats/packs/`: decoded by the library and the second reader, and their bad copies refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petlpack
from petlpack.codecs.registry import CODECS
from petlpack.errors import PetlpackError
from petlpack.records.template import PICKLED
from tests.support import spec_reader
from tests.support.golden import ALL, ERRORS
from tests.support.places import snapshot
from tests.support.spec_reader import Refused, Tensors, read_weights
from tools.pack_runs import PLANS
from tools.packs import EDITS, Copy, told, untold, write_whole
from tools.vectors import FORMATS, Vector, pack_files
from tools.write_packs import MOST, made

WHOLE = [vector for vector in ALL if vector.kind == "whole pack"]
GOOD = [vector for vector in WHOLE if not vector.bad]
BAD = [vector for vector in WHOLE if vector.bad]

whole = pytest.mark.parametrize("vector", [pytest.param(vector, id=vector.id) for vector in GOOD])
broken = pytest.mark.parametrize("vector", [pytest.param(vector, id=vector.id) for vector in BAD])


def base_tensors(base: Path | None) -> Tensors:
    """Return the tensors of a base, all of whose files stand side by side."""
    files = sorted(base.glob("*.safetensors")) if base else []
    return {name: tensor for file in files for name, tensor in read_weights(file.read_bytes()).items()}


def expected_files(vector: Vector, task: str) -> dict[str, bytes]:
    """Return what a task decodes to, each file compared with its digest."""
    files = {file: untold(said["content"]) for file, said in vector["tasks"][task].items()}
    for file, said in vector["tasks"][task].items():
        assert hashlib.sha256(files[file]).hexdigest() == said["sha256"], file
    return files


# Decoded


@whole
def test_the_library_decodes_it(vector: Vector, tmp_path: Path) -> None:
    pack, base = write_whole(vector, tmp_path)
    assert sorted(petlpack.open(pack)) == sorted(vector["tasks"])
    for task in vector["tasks"]:
        files = expected_files(vector, task)
        if any(file.endswith(PICKLED) for file in files):
            pytest.importorskip("torch")
        out = tmp_path / "out" / task
        petlpack.open(pack)[task].decode(out, base)
        assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == files.keys()
        for file, content in files.items():
            if file.endswith(PICKLED):
                assert unpickled(out / file) == {name: t[2] for name, t in read_weights(content).items()}
            else:
                assert (out / file).read_bytes() == content, file


def unpickled(file: Path) -> dict[str, bytes]:
    """Return the tensors of what torch saved, as bytes."""
    import torch

    state = torch.load(file, weights_only=True)
    return {name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


@whole
def test_the_library_finds_no_damage(vector: Vector, tmp_path: Path) -> None:
    pack, base = write_whole(vector, tmp_path)
    assert [found for found in petlpack.verify(pack, base=base) if found.error] == []


@whole
def test_the_second_reader_decodes_it(vector: Vector, tmp_path: Path) -> None:
    pack, base = write_whole(vector, tmp_path)
    for task in vector["tasks"]:
        assert spec_reader.read_run(pack, task, base_tensors(base)) == expected_files(vector, task)


@whole
def test_both_readers_rebuild_the_same(vector: Vector, tmp_path: Path) -> None:
    pack, base = write_whole(vector, tmp_path)
    for task in vector["tasks"]:
        opened = petlpack.open(pack)[task]
        rebuilt = opened.rebuild(base)
        assert (rebuilt is None) == (opened.template.rule is None)
        if rebuilt is not None:
            found = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in rebuilt.tensors.items()}
            assert spec_reader.rebuild_task(pack, task, base_tensors(base)) == found


@whole
def test_safetensors_opens_every_file(vector: Vector, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    pack, _ = write_whole(vector, tmp_path)
    for path in (*(pack / "tasks").iterdir(), *(pack / "shared").iterdir()):
        data = path.read_bytes()
        opened = spec_reader.read_file(data)
        arrays = numpy.load(data)
        assert arrays.keys() == {*opened.parts, "manifest"}
        assert {name: arrays[name].tobytes() for name in opened.parts} == opened.parts
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}


def test_they_show_every_codec_and_all_that_can_become_of_a_tensor(tmp_path: Path) -> None:
    codecs, shown = set(), set()
    for vector in GOOD:
        pack, _ = write_whole(vector, tmp_path / vector.id)
        for task in petlpack.open(pack).values():
            codecs.add(task.codec)
            slots, sources = task.template.slots, task.sources
            shown |= {"unchanged" for _ in sources.unchanged} | {"alias" for _ in sources.aliases}
            shown |= {"part" for slot in slots if slot.part} | {"empty" for slot in slots if not slot.size}
            shown |= {"hidden" for part in task.template.parts if None in part} | {"named" for _ in task.template.named}
            shown |= {"resized" for slot in slots if slot.base and slot.base.shape != slot.shape}
            shown |= {"narrower" for slot in slots if slot.base and slot.base.dtype != slot.dtype}
            shown |= {"component" for header in task.template.headers.values() if header.prefix}
    assert codecs == set(CODECS)
    whole_list = {"unchanged", "alias", "part", "empty", "hidden", "named", "resized", "narrower", "component"}
    assert shown == whole_list


# Refused


def decode(copy: Copy, out: Path) -> None:
    """Decode the task of a copy, or rebuild its modules."""
    task = petlpack.open(copy.pack)[copy.bad["task"]]
    if copy.bad.get("rebuilds"):
        task.rebuild(copy.base)
    else:
        task.decode(out, copy.base)


@broken
def test_the_library_refuses_it(vector: Vector, tmp_path: Path) -> None:
    copy = Copy(vector, tmp_path)
    before, out = snapshot(copy.pack), tmp_path / "out"
    error, exit_code = ERRORS[vector.get("error") or "damage"]
    with pytest.raises(PetlpackError) as caught:
        decode(copy, out)
    assert (type(caught.value), caught.value.exit_code) == (error, exit_code), caught.value
    assert caught.value.code == vector["code"], caught.value
    assert str(tmp_path) in caught.value.message or f"'{vector['task']}'" in caught.value.message, "it names no file"
    assert caught.value.hint
    assert not out.exists()
    assert snapshot(copy.pack) == before


@broken
def test_verify_finds_it_for_the_same_reason(vector: Vector, tmp_path: Path) -> None:
    if vector.get("without") == "base" or vector.get("rebuilds"):
        pytest.skip("it is no damage of the pack's bytes")
    copy = Copy(vector, tmp_path)
    try:
        found = [checked.error.code for checked in petlpack.verify(copy.pack, base=copy.base) if checked.error]
    except PetlpackError as error:
        found = [error.code]
    assert vector["code"] in found


@broken
def test_the_second_reader_refuses_it(vector: Vector, tmp_path: Path) -> None:
    copy = Copy(vector, tmp_path)
    read = spec_reader.rebuild_task if vector.get("rebuilds") else spec_reader.read_run
    with pytest.raises(Refused, match="base" if vector.get("error") == "base" else None) as caught:
        read(copy.pack, vector["task"], base_tensors(copy.base))
    assert caught.value.unknown == (vector.get("error") == "unknown")


FORGED: dict[str, dict[str, Any]] = {
    "decoded-digest": {"of": "whole-shards", "task": "fused", "manifest": ["task", ["decoded"], "ab" * 32]},
    "base-digest": {"of": "whole-ulp", "task": "tuned", "content": ["table", [2, 3], "ab" * 32]},
}
"""Packs whose checksums are right and a sha256 is not: what stands for a base that somebody made."""


@pytest.mark.parametrize("code", FORGED)
def test_what_only_the_digest_tells_is_found_by_verify(code: str, tmp_path: Path) -> None:
    copy = Copy(Vector("", {"id": "forged", "kind": "whole pack", "code": code, **FORGED[code]}), tmp_path)
    decode(copy, tmp_path / "out")
    assert [found.error.code for found in petlpack.verify(copy.pack, base=copy.base) if found.error] == [code]
    with pytest.raises(Refused):
        spec_reader.read_run(copy.pack, copy.bad["task"], base_tensors(copy.base))


def test_copies_are_of_every_pack_edit_and_class() -> None:
    assert len(BAD) >= 40
    assert {vector["of"] for vector in BAD} == {vector.id for vector in GOOD}
    assert {edit for vector in BAD for edit in EDITS.keys() & vector.fields.keys()} == set(EDITS)
    assert {vector.get("error") or "damage" for vector in BAD} == set(ERRORS) - {"usage", "run"}


def test_the_page_tells_every_edit_and_names_every_pack() -> None:
    page = (FORMATS / "packs.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) >= set(EDITS)
    assert set(re.findall(r"\(packs/([a-z]+)\.json\)", page)) == {file.stem for file in pack_files()} == set(PLANS)


# Written


def test_they_are_small() -> None:
    for file in pack_files():
        assert file.stat().st_size < 1.1 * MOST, file.name


@whole
def test_todays_encoder_packs_the_same_runs(vector: Vector) -> None:
    """Its bytes may differ from the golden ones, as libraries that compress do; what they decode to may not."""
    name = vector.id.removeprefix("whole-")
    if name == "bin":
        pytest.importorskip("torch")
    again = made(name, PLANS[name])
    assert again["tasks"] == vector["tasks"]
    assert again.get("base") == vector.get("base")


@pytest.mark.parametrize("data", [b"", b"{}\n", "größer".encode(), b"\x02\0\0\0\0\0\0\0{}" + bytes(range(200))])
def test_text_and_bytes_are_the_same(data: bytes) -> None:
    said: Any = told(data)
    assert untold(said) == data
    assert isinstance(said, str) == (data[:1] != b"\x02")

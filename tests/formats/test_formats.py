"""The law, executed: every vector of every page of `formats/`, by the library and by the second reader."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest

import petlpack
from petlpack import coding, container
from petlpack.codecs.registry import CODECS, codec
from petlpack.coding.registry import CODERS, coder
from petlpack.container.file import MAX_MANIFEST
from petlpack.container.manifest import parse_manifest
from petlpack.decoding.templates import MAX_TEMPLATE
from petlpack.errors import DamageError, PetlpackError, RefusedError
from petlpack.layouts.run import Run, headers_of
from petlpack.records.base_table import BaseTable, base_table_json, parse_base_table
from petlpack.records.sources import parse_sources
from petlpack.records.template import parse_template
from petlpack.records.views import MOST_DEEP, MOST_NAMES, MOST_TIMES, parse_view, view_json
from petlpack.rules.modules import (
    Average,
    Generated,
    Generator,
    Masked,
    MaskedMatrix,
    Mixture,
    Module,
    Produced,
    Trunk,
    Use,
)
from petlpack.sections.parts import Part
from petlpack.store import MAX_SHARED, PACK_JSON, Store, check_task_name
from petlpack.store.released import read_released
from petlpack.store.seals import parse_seal
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.ordered import from_ordered, to_ordered
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import UNKNOWN, BaseRef
from tests.support import spec_reader
from tests.support.golden import ALL, BY_ID, ERRORS
from tests.support.small_runs import make_pair, random_bits, weights, write_run
from tests.support.spec_reader import Refused
from tools.vectors import FORMATS, Vector, line_file_of, pack_file_of, pages, unhex
from tools.write_vectors import (
    base_of,
    bits_of,
    changed_codec,
    changed_part,
    changed_rebuild,
    edited_file,
    encoded_units,
    part_file,
    rebuilt_of,
    remove_from,
    replaced,
    rows_of_part,
    slots_of,
    split_file,
    unit_slots_of,
    units_row,
    write_pack,
)

SAME_FOR_EVER = {"raw", "bitmap"}
"""Coders whose bytes depend on no library: every encoder writes the same."""


def refuse(vector: Vector, read: Callable[[], object]) -> None:
    """Check that reading raises the vector's error, with its exit code and for its reason."""
    error, exit_code = ERRORS[vector.get("error") or "damage"]
    with pytest.raises(PetlpackError) as caught:
        read()
    assert type(caught.value) is error
    assert caught.value.exit_code == exit_code
    assert caught.value.code == vector["code"], str(caught.value)


def refuse_too(vector: Vector, read: Callable[[], object]) -> None:
    """Check that the second reader refuses as well, and calls unknown what is unknown."""
    with pytest.raises(Refused) as caught:
        read()
    assert caught.value.unknown == (vector.get("error") == "unknown")


def of_kind(kind: str, *, bad: bool) -> pytest.MarkDecorator:
    """Return the vectors of a kind as parameters of a test."""
    found = [vector for vector in ALL if vector.kind == kind and vector.bad == bad]
    assert found, f"no {'bad' if bad else 'good'} vector of {kind}"
    return pytest.mark.parametrize("vector", [pytest.param(vector, id=vector.id) for vector in found])


# The pages themselves


def test_every_fence_is_a_vector_or_said_to_be_text() -> None:
    for page in pages():
        opened = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert set(opened) <= {"json vector", "text"}, page


def test_vectors_have_ids_of_their_own() -> None:
    twice = [name for name, count in Counter(vector.id for vector in ALL).items() if count > 1]
    assert not twice


def test_vectors_have_the_form_of_their_kind() -> None:
    for vector in ALL:
        name = f"vectors/{vector.kind.replace(' ', '-')}"
        found = [f"{error.json_path}: {error.message}" for error in schema(name).iter_errors(vector.fields)]
        assert not found, vector.id


def test_good_vectors_stand_in_pages_and_bad_ones_in_the_file_of_their_kind() -> None:
    for vector in ALL:
        place = FORMATS / vector.page
        whole = vector.kind == "whole pack"
        expected = pack_file_of(vector.id.removeprefix("whole-")) if whole else place.with_suffix(".md")
        assert place == (line_file_of(vector.kind) if vector.bad else expected), vector.id


@pytest.mark.parametrize(("folder", "registry"), [("coders", CODERS), ("codecs", CODECS)])
def test_every_id_has_a_page_with_vectors_and_every_page_has_an_id(folder: str, registry: dict[str, str]) -> None:
    assert {page.stem for page in (FORMATS / folder).glob("*.md")} == set(registry)
    about = folder.removesuffix("s")
    refused = {BY_ID[vector.get("of") or vector.id].get(about) for vector in ALL if vector.bad}
    for name in registry:
        on_page = [vector for vector in ALL if vector.page == f"{folder}/{name}.md"]
        assert on_page, f"{name}: no good vector"
        assert name in refused, f"{name}: no bad vector"
        for vector in on_page:
            assert vector.kind in ("coder", "codec", "units", "rebuild")
            assert vector[about] == name, f"{vector.id} is on the page of {name}"


def test_bad_vectors_outnumber_good_ones() -> None:
    counted = [vector.bad for vector in ALL if vector.kind not in ("ordered", "rounding", "units")]
    assert sum(counted) > 1.5 * (len(counted) - sum(counted))


def test_the_pages_name_every_page() -> None:
    index = (FORMATS / "README.md").read_text(encoding="utf-8")
    for page in (*pages(), *(FORMATS / "schemas").glob("*.json")):
        name = page.relative_to(FORMATS).as_posix()
        assert name == "README.md" or f"({name})" in index, name


def test_the_formats_begin_with_one_screen() -> None:
    screen = (FORMATS / "README.md").read_text(encoding="utf-8").partition("\n## ")[0].splitlines()
    assert len(screen) <= 50
    assert max(map(len, screen)) <= 100


def test_every_link_leads_somewhere() -> None:
    for page in pages():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


# Numbers


@of_kind("ordered", bad=False)
def test_ordered_integers(vector: Vector) -> None:
    dtype = DTYPES[vector["dtype"]]
    bits, ordered = bits_of(vector["bits"], dtype.name), bits_of(vector["ordered"], dtype.name)
    assert to_ordered(bits, dtype).tolist() == ordered.tolist()
    assert from_ordered(ordered, dtype).tolist() == bits.tolist()
    assert [spec_reader.to_ordered(bit, dtype.name) for bit in bits.tolist()] == ordered.tolist()
    assert [spec_reader.from_ordered(number, dtype.name) for number in ordered.tolist()] == bits.tolist()


@of_kind("rounding", bad=False)
def test_rounding(vector: Vector) -> None:
    bits, rounded = bits_of(vector["bits"], vector["from"]), bits_of(vector["rounded"], vector["to"])
    assert cast_bits(bits, DTYPES[vector["from"]], DTYPES[vector["to"]]).tolist() == rounded.tolist()
    assert [spec_reader.round_bits(bit, vector["from"], vector["to"]) for bit in bits.tolist()] == rounded.tolist()


FLOATS = [name for name, dtype in DTYPES.items() if dtype.kind == "float"]


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_both_readers_round_alike(source: str, target: str) -> None:
    width = DTYPES[source].width
    rng = np.random.default_rng(FLOATS.index(source) * 10 + FLOATS.index(target))
    few = rng.integers(0, 1 << 63, 4000, np.uint64) >> np.uint64(0)
    # values that fit the target's range, and ties: what random bit patterns hardly ever are
    near = (rng.normal(0, 1, 4000) * 2.0 ** rng.integers(-24, 20, 4000)).astype(np.float32).view("<u4")
    near &= rng.choice(np.array([0xFFFFFFFF, 0xFFFF8000, 0xFFF80000, 0xFFF00000], np.uint32), near.size)
    wide = cast_bits(near, DTYPES["F32"], DTYPES[source])
    every = np.arange(1 << width) if width <= 8 else few % np.uint64((1 << width) - 1)
    bits = np.concatenate([every.astype(DTYPES[source].bits), wide])
    expected = [spec_reader.round_bits(bit, source, target) for bit in bits.tolist()]
    assert cast_bits(bits, DTYPES[source], DTYPES[target]).tolist() == expected


# Coders


@of_kind("coder", bad=False)
def test_coder(vector: Vector) -> None:
    dtype, count, row = DTYPES[vector["dtype"]], vector["count"], vector["row"]
    prediction = None if vector.get("prediction") is None else bits_of(vector["prediction"], dtype.name)
    bits, data = bits_of(vector["bits"], dtype.name), unhex(vector["data"])
    array = coding.Array(dtype, count, row, prediction)
    assert len(bits) == count
    assert coding.decode(vector["coder"], data, array, "s").tolist() == bits.tolist()
    assert (
        spec_reader.decode_section(vector["coder"], data, dtype.name, count, row, prediction).tolist() == bits.tolist()
    )
    if "build" in vector.fields:
        return  # made by hand: an encoder finds another plan, or none for so few elements
    encoded = coder(vector["coder"]).encode(bits, array, vector.get("level") or "small")
    assert encoded is not None
    assert coding.decode(vector["coder"], encoded, array, "s").tolist() == bits.tolist()
    if vector["coder"] in SAME_FOR_EVER:
        assert encoded == data


@of_kind("coder", bad=True)
def test_coder_refuses(vector: Vector) -> None:
    dtype, count, row = DTYPES[vector["dtype"]], vector["count"], vector["row"]
    prediction = None if vector.get("prediction") is None else bits_of(vector["prediction"], dtype.name)
    data = unhex(vector["data"])
    array = coding.Array(dtype, count, row, prediction)
    refuse(vector, lambda: coding.decode(vector["coder"], data, array, "s"))
    refuse_too(vector, lambda: spec_reader.decode_section(vector["coder"], data, dtype.name, count, row, prediction))


@pytest.mark.parametrize("level", ["fast", "small"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_second_reader_decodes_rows_of_the_encoder(dtype: str, level: Literal["fast", "small"]) -> None:
    known, rows, row = DTYPES[dtype], 60, 40
    rng = np.random.default_rng(7)
    prediction = weights(dtype, (rows, row), 5).bits() if known.width > 8 else random_bits(dtype, rows * row, 5)
    prediction = prediction.reshape(rows, row)
    steps = rng.normal(0, 1, (rows, row)) * 2.0 ** rng.integers(-1, 6, (rows, 1)) * (rng.random((rows, 1)) < 0.7)
    steps[5:8, ::9] = 3
    bits = prediction + steps.astype(np.int64).astype(known.bits)
    array = coding.Array(known, rows * row, row, prediction.reshape(-1))
    data = coder("rows").encode(bits.reshape(-1), array, level)
    assert data is not None
    decoded = spec_reader.decode_section("rows", data, dtype, rows * row, row, prediction.reshape(-1))
    assert decoded.tolist() == bits.reshape(-1).tolist()


@pytest.mark.parametrize("predicted_rows", [0, 3])
@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_the_second_reader_decodes_masks_of_the_encoder(common: float, predicted_rows: int) -> None:
    rng = np.random.default_rng(11)
    rows, row = 12, 333
    shared = rng.random(row) < 0.5
    bits = np.where(
        rng.random((predicted_rows + rows, row)) < common, shared, rng.random((predicted_rows + rows, row)) < 0.3
    )
    flat = bits.astype(np.uint8).reshape(-1)
    prediction = flat[: predicted_rows * row] if predicted_rows else None
    array = coding.Array(DTYPES["BOOL"], rows * row, row, prediction)
    data = coder("masks").encode(flat[predicted_rows * row :], array, "small")
    assert data is not None
    decoded = spec_reader.decode_section("masks", data, "BOOL", rows * row, row, prediction)
    assert decoded.tolist() == flat[predicted_rows * row :].tolist()


# Codecs


def load(pack: Path, base: Path | None) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Decode the task `task` of a pack."""
    return {
        name: (slot.dtype.name, slot.shape, bits.tobytes())
        for name, slot, bits in petlpack.open(pack)["task"].load(base).read_all(jobs=1)
    }


@of_kind("codec", bad=False)
def test_codec(vector: Vector, tmp_path: Path) -> None:
    base = write_pack(vector, tmp_path / "p")
    expected = {t["name"]: (t["dtype"], tuple(t["shape"]), unhex(t["bits"])) for t in vector["tensors"]}
    assert load(tmp_path / "p", base) == expected
    assert spec_reader.read_task(tmp_path / "p", "task", base_of(vector)) == expected
    for name, text in (vector.get("kept") or {}).items():
        assert petlpack.open(tmp_path / "p")["task"].read_file(name) == text.encode()
        assert spec_reader.read_kept(tmp_path / "p", "task", name) == text.encode()
    check_schemas(tmp_path / "p")


@of_kind("codec", bad=False)
def test_codec_encodes_to_these_sections(vector: Vector) -> None:
    made = []
    for unit, bits, predicted in encoded_units(vector):
        assert [section.name for section in codec(vector["codec"]).encode(unit, bits, predicted) or ()] == list(
            codec(vector["codec"]).sections(unit)
        )
        made += codec(vector["codec"]).encode(unit, bits, predicted) or []
    assert [section.name for section in made] == [section["name"] for section in vector["sections"]]
    for section, golden in zip(made, vector["sections"], strict=True):
        assert (section.array.dtype.name, section.array.count) == (golden["dtype"], golden["count"])
        decoded = coding.decode(golden["coder"], unhex(golden["data"]), section.array, section.name)
        assert decoded.tolist() == section.bits.tolist()


@of_kind("codec", bad=True)
def test_codec_refuses(vector: Vector, tmp_path: Path) -> None:
    good = BY_ID[vector["of"]]
    changed = changed_codec(good, vector)
    base = write_pack(changed, tmp_path / "p")
    if "base" in vector.fields or vector.get("without") == "base":  # the pack is the good one, and the base is another
        write_pack(good, tmp_path / "good")
        others = base_of(changed) if "base" in vector.fields else {}
        refuse(vector, lambda: load(tmp_path / "good", base if others else None))
        with pytest.raises(Refused, match="base"):
            spec_reader.read_task(tmp_path / "good", "task", others)
        return
    if "without" in vector.fields:
        remove_from(tmp_path / "p", vector["without"])
    if "reads" in vector.fields:
        name = vector["reads"]
        refuse(vector, lambda: petlpack.open(tmp_path / "p")["task"].read_file(name))
        refuse_too(vector, lambda: spec_reader.read_kept(tmp_path / "p", "task", name))
        return
    refuse(vector, lambda: load(tmp_path / "p", base))
    refuse_too(vector, lambda: spec_reader.read_task(tmp_path / "p", "task", base_of(changed)))


@of_kind("units", bad=False)
def test_units(vector: Vector) -> None:
    assert [units_row(unit) for unit in codec(vector["codec"]).units(*unit_slots_of(vector))] == vector["units"]
    kinds = spec_reader.kinds_of(vector["codec"], vector.get("rule"))
    slots, shared = (second_slots(rows, kinds) for rows in (vector["slots"], vector.get("shared") or []))
    units = spec_reader.units_of(vector["codec"], slots, shared)
    rows: list[list[Any]] = [
        [unit.name, unit.dtype, unit.row, [[slot.name, start, stop] for slot, start, stop in unit.pieces]]
        for unit in units
    ]
    predicted = [[[slot.name for slot in unit.prediction]] if unit.prediction else [] for unit in units]
    assert [row + more for row, more in zip(rows, predicted, strict=True)] == vector["units"]


def second_slots(rows: list[list[Any]], kinds: dict[str, str] | None = None) -> list[spec_reader.Slot]:
    """Return slots of the second reader."""
    return [
        spec_reader.Slot(
            name,
            dtype,
            tuple(shape),
            None if base is None else spec_reader.View(name, dtype, tuple(base), ()),
            head,
            (place[0][0], place[0][1]) if place else None,
            (kinds or {}).get(name),
        )
        for name, dtype, shape, base, head, *place in rows
    ]


# Shared parts of tensors


def put_part(pack: Path, name: str, data: bytes) -> Path:
    """Write the file of a shared part where a pack has it."""
    path = pack / "shared" / f"{name}.petl.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


@of_kind("part", bad=False)
def test_part(vector: Vector, tmp_path: Path) -> None:
    rows = rows_of_part(vector)
    name, data = part_file(vector["codec"], rows, vector["sections"])
    assert name == vector["name"]
    part = Part(put_part(tmp_path, name, data), name)
    part.check()
    expected = [row.bits.tolist() for row in rows]
    assert [part.tensor(i).bits().reshape(-1).tolist() for i in range(len(rows))] == expected
    assert [bits.tolist() for _, bits in spec_reader.read_part(tmp_path, name)] == expected
    schema("manifest").validate(spec_reader.read_file(data).manifest)


@of_kind("part", bad=True)
def test_part_refuses(vector: Vector, tmp_path: Path) -> None:
    name, data = changed_part(BY_ID[vector["of"]], vector)
    path = put_part(tmp_path, name, data)
    refuse(vector, lambda: Part(path, name).check())
    refuse_too(vector, lambda: spec_reader.read_part(tmp_path, name))


# Rules


@of_kind("rebuild", bad=False)
def test_rebuild(vector: Vector) -> None:
    assert rebuilt_of(vector) == vector["outputs"]
    assert rebuilt_too(vector) == vector["outputs"]


def rebuilt_too(vector: Vector) -> list[list[Any]]:
    """Return what the second reader rebuilds in a vector."""
    tensors = {name: (dtype, tuple(shape), unhex(data)) for name, dtype, shape, data in vector["tensors"]}
    made = spec_reader.rebuild(vector["codec"], vector["rule"], tensors)
    return [[name, dtype, list(shape), data.hex()] for name, (dtype, shape, data) in made.items()]


@of_kind("rebuild", bad=True)
def test_rebuild_refuses(vector: Vector) -> None:
    changed = changed_rebuild(BY_ID[vector["of"]], vector)
    refuse(vector, lambda: rebuilt_of(changed))
    refuse_too(vector, lambda: rebuilt_too(changed))


# Containers


def read_whole(path: Path) -> dict[str, list[int]]:
    """Read a file with the library: the codec looked up, every section decoded."""
    opened = container.read(path)
    sections = opened.open_sections()
    if opened.manifest.kind == "task":
        codec(opened.manifest.codec)
    return {
        row.name: coding.decode(
            row.coder, sections.read(row), coding.Array(DTYPES[row.dtype], row.count, max(1, row.count)), row.name
        ).tolist()
        for row in opened.manifest.sections
    }


def read_whole_too(data: bytes) -> dict[str, list[int]]:
    """Read a file with the second reader."""
    opened = spec_reader.read_file(data)
    if opened.manifest["kind"] == "task":
        spec_reader.units_of(opened.manifest["codec"], [])
    whole = {}
    for name in opened.parts:
        section, dtype, count, octets = opened.section(name)
        whole[name] = spec_reader.decode_section(section, octets, dtype, count, max(1, count)).tolist()
    return whole


@of_kind("container", bad=False)
def test_container(vector: Vector, tmp_path: Path) -> None:
    data = unhex(vector["file"])
    (tmp_path / "f").write_bytes(data)
    whole = read_whole(tmp_path / "f")
    assert list(whole) == [name for name, *_ in vector["sections"]]
    assert whole == read_whole_too(data)
    manifest = container.read(tmp_path / "f").manifest
    for field, value in vector["manifest"].items():
        held = getattr(manifest, field)
        assert (list(held) if field == "shared" else held) == value
    parts = split_file(data)
    for name, _, _, _, octets in vector["sections"]:
        assert data[slice(*parts[name])] == unhex(octets)


@of_kind("container", bad=True)
def test_container_refuses(vector: Vector, tmp_path: Path) -> None:
    data = unhex(vector["file"]) if "file" in vector.fields else edited_file(unhex(BY_ID[vector["of"]]["file"]), vector)
    (tmp_path / "f").write_bytes(data)
    refuse(vector, lambda: read_whole(tmp_path / "f"))
    refuse_too(vector, lambda: read_whole_too(data))


def test_the_second_reader_notices_every_flipped_bit_and_every_cut() -> None:
    data = unhex(BY_ID["container-two-sections"]["file"])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            read_whole_too(bytes(damaged))
    for length in range(len(data)):
        with pytest.raises(Refused):
            read_whole_too(data[:length])


def test_limits_are_those_of_the_pages() -> None:
    from petlpack.tensors.safetensors_file import MAX_HEADER

    assert spec_reader.MANIFEST_MOST == MAX_MANIFEST
    assert spec_reader.SHARED_MOST == MAX_SHARED
    assert spec_reader.TEMPLATE_MOST == MAX_TEMPLATE
    assert spec_reader.HEADER_MOST == MAX_HEADER


# Manifests and templates


def text_of(vector: Vector) -> bytes:
    """Return the text that a vector is about, or makes of another's."""
    if "hex" in vector.fields:
        return unhex(vector["hex"])
    if "of" in vector.fields:
        text = text_of(BY_ID[vector["of"]])
        return replaced(text, vector["replace"]) if "replace" in vector.fields else text
    return str(vector["text"]).encode()


@of_kind("manifest", bad=False)
def test_manifest(vector: Vector) -> None:
    assert parse_manifest(text_of(vector)).to_json() == text_of(vector)
    assert spec_reader.parse_manifest(text_of(vector)) == json.loads(text_of(vector))
    schema("manifest").validate(json.loads(text_of(vector)))


@of_kind("manifest", bad=True)
def test_manifest_refuses(vector: Vector) -> None:
    refuse(vector, lambda: parse_manifest(text_of(vector)))
    refuse_too(vector, lambda: spec_reader.parse_manifest(text_of(vector)))


@of_kind("params", bad=False)
def test_params(vector: Vector) -> None:
    plan = parse_sources(vector["params"], slots_of(vector["slots"]))
    assert plan.to_params() == vector["params"]
    unchanged, aliases = spec_reader.parse_params(vector["params"], second_slots(vector["slots"]))
    assert (unchanged, aliases) == (set(plan.unchanged), dict(plan.aliases))


@of_kind("params", bad=True)
def test_params_refuses(vector: Vector) -> None:
    rows = BY_ID[vector["of"]]["slots"]
    refuse(vector, lambda: parse_sources(vector["params"], slots_of(rows)))
    refuse_too(vector, lambda: spec_reader.parse_params(vector["params"], second_slots(rows)))


def field_of(vector: Vector, field: str) -> Any:
    """Return a field of a vector, or of the good one that it changes."""
    return vector.get(field) if field in vector.fields or "of" not in vector.fields else BY_ID[vector["of"]].get(field)


@of_kind("base table", bad=False)
def test_base_table(vector: Vector) -> None:
    table = parse_base_table(text_of(vector), "t")
    assert base_table_json(table) == text_of(vector)
    rows = [[ref.name, ref.dtype.name, list(ref.shape)] for ref in table.values()]
    assert rows == vector["tensors"]
    found = spec_reader.parse_base_table(text_of(vector)).values()
    assert [[ref.name, ref.dtype, list(ref.shape)] for ref in found] == vector["tensors"]
    schema("base-table").validate(json.loads(text_of(vector)))


@of_kind("base table", bad=True)
def test_base_table_refuses(vector: Vector) -> None:
    refuse(vector, lambda: parse_base_table(text_of(vector), "t"))
    refuse_too(vector, lambda: spec_reader.parse_base_table(text_of(vector)))


TABLES = {hashlib.sha256(text_of(v)).hexdigest(): text_of(v) for v in ALL if v.kind == "base table" and not v.bad}


def table_of(sha256: str) -> BaseTable:
    """Return a table of a base of the vectors."""
    if sha256 not in TABLES:
        raise DamageError(f"shared part {sha256} is missing", code="part-missing")
    return parse_base_table(TABLES[sha256], "t")


def table_of_too(sha256: str) -> spec_reader.BaseTable:
    """Return a table of a base of the vectors, as the second reader reads it."""
    spec_reader.check(sha256 in TABLES, "missing")
    return spec_reader.parse_base_table(TABLES[sha256])


@of_kind("template", bad=False)
def test_template(vector: Vector) -> None:
    template = parse_template(text_of(vector), "t", vector.get("name"), table_of)
    assert template.to_json(vector.get("name")) == text_of(vector)
    rows: list[list[Any]] = [
        [slot.name, slot.dtype.name, list(slot.shape), None if slot.base is None else view_json(slot.base), slot.head]
        for slot in template.slots
    ]
    places = [[] if slot.part is None else [list(slot.part)] for slot in template.slots]
    assert [row + place for row, place in zip(rows, places, strict=True)] == vector["tensors"]
    second = spec_reader.parse_template(text_of(vector), vector.get("name"), table_of_too)
    rows = [
        [slot.name, slot.dtype, list(slot.shape), None if slot.base is None else slot.base.said, slot.head]
        for slot in second.slots
    ]
    places = [[] if slot.part is None else [list(slot.part)] for slot in second.slots]
    assert [row + place for row, place in zip(rows, places, strict=True)] == vector["tensors"]
    if "files" in vector.fields:
        assert {file: file in template.named for file in template.files} == vector["files"]
        assert {file: file in second.named for file in second.files} == vector["files"]
    assert (template.files, template.rule) == (second.files, second.rule)
    assert template.parts == second.parts
    schema("template").validate(json.loads(text_of(vector)))


@of_kind("template", bad=True)
def test_template_refuses(vector: Vector) -> None:
    name = field_of(vector, "name")
    refuse(vector, lambda: parse_template(text_of(vector), "t", name, table_of))
    refuse_too(vector, lambda: spec_reader.parse_template(text_of(vector), name, table_of_too))


# Views


def view_table(vector: Vector) -> dict[str, BaseRef]:
    """Return the base's table of a view vector; no digest is looked at."""
    rows = BY_ID[vector.get("of") or vector.id]["tensors"]
    return {name: BaseRef(name, DTYPES[dtype], tuple(shape), UNKNOWN) for name, dtype, shape, _ in rows}


def view_table_too(vector: Vector) -> spec_reader.BaseTable:
    """Return the same table for the second reader."""
    rows = BY_ID[vector.get("of") or vector.id]["tensors"]
    return {name: spec_reader.BaseTensor(name, dtype, tuple(shape), "", "") for name, dtype, shape, _ in rows}


@of_kind("view", bad=False)
def test_view(vector: Vector) -> None:
    bits = {name: bits_of(data, dtype).reshape(shape) for name, dtype, shape, data in vector["tensors"]}
    table = view_table(vector)
    view = parse_view(vector["view"], table)
    assert (view.dtype.name, list(view.shape), view_json(view)) == (vector["dtype"], vector["shape"], vector["view"])
    reader = ViewReader(lambda ref: petlpack.Tensor.of(bits[ref.name], ref.dtype))
    wanted = bits_of(vector["elements"], vector["dtype"])
    for start in range(len(wanted)):
        for stop in range(start + 1, len(wanted) + 1):
            assert reader.read(view, start, stop).tolist() == wanted[start:stop].tolist(), (start, stop)
    second = spec_reader.parse_view(vector["view"], view_table_too(vector))
    assert (second.dtype, list(second.shape)) == (vector["dtype"], vector["shape"])
    dtype, elements = spec_reader.elements_of(
        vector["view"], {ref.name: (ref.dtype.name, bits[ref.name]) for ref in table.values()}
    )
    assert (dtype, elements.tobytes()) == (vector["dtype"], unhex(vector["elements"]))


@of_kind("view", bad=True)
def test_view_refuses(vector: Vector) -> None:
    template = json.loads(text_of(BY_ID["template-small"]))
    table = {name: (ref.dtype.name, ref.shape) for name, ref in view_table(vector).items()}
    template["base"]["tensors"] = [["bert.b", vector["view"]]]
    text = json.dumps(template, separators=(",", ":"), sort_keys=True).encode()
    refs = {name: BaseRef(name, DTYPES[dtype], shape, UNKNOWN) for name, (dtype, shape) in table.items()}
    refuse(vector, lambda: parse_template(text, "t", None, lambda sha256: refs))
    refuse_too(vector, lambda: spec_reader.parse_view(vector["view"], view_table_too(vector)))


def test_a_view_has_at_most_so_many_steps_and_names() -> None:
    names = ["a", *map(str, range(MOST_NAMES // MOST_TIMES))]
    refs = {name: BaseRef(name, DTYPES["U8"], (1,), UNKNOWN) for name in names}
    table = {name: spec_reader.BaseTensor(name, "U8", (1,), "", "") for name in names}
    said: Any = "a"
    for _ in range(MOST_DEEP):
        said = ["reshape", [1], said]
    assert (parse_view(said, refs).shape, spec_reader.parse_view(said, table).shape) == ((1,), (1,))
    said = ["concatenate", 0, names[1:] * MOST_TIMES]
    assert (parse_view(said, refs).shape, spec_reader.parse_view(said, table).shape) == ((65536,), (65536,))
    said[2].append("a")
    with pytest.raises(RefusedError) as caught:
        parse_view(said, refs)
    assert caught.value.code == "view-limit"
    with pytest.raises(Refused):
        spec_reader.parse_view(said, table)


# Packs


@of_kind("pack", bad=False)
def test_pack_json(vector: Vector, tmp_path: Path) -> None:
    assert str(vector["text"]).encode() == PACK_JSON
    (tmp_path / "pack.json").write_bytes(PACK_JSON)
    assert Store(tmp_path).task_names() == []
    spec_reader.check_mark(PACK_JSON)
    schema("pack").validate(json.loads(vector["text"]))


@of_kind("pack", bad=True)
def test_pack_json_refuses(vector: Vector, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(vector["text"], encoding="utf-8")
    refuse(vector, lambda: Store(tmp_path))
    refuse_too(vector, lambda: spec_reader.check_mark(vector["text"].encode()))


@of_kind("inventory", bad=False)
def test_inventory(vector: Vector) -> None:
    text = str(vector["text"]).encode()
    assert parse_seal(text).to_json() == text
    assert parse_seal(text).rows == spec_reader.parse_inventory(text)
    schema("inventory").validate(json.loads(text))


@of_kind("inventory", bad=True)
def test_inventory_refuses(vector: Vector) -> None:
    text = str(vector["text"]).encode()
    refuse(vector, lambda: parse_seal(text))
    refuse_too(vector, lambda: spec_reader.parse_inventory(text))
    try:
        table = json.loads(text)
    except ValueError:
        return
    assert schema("inventory").is_valid(table) == (vector.id in BEYOND_A_SCHEMA), vector.id


@of_kind("released", bad=False)
def test_released(vector: Vector, tmp_path: Path) -> None:
    text = str(vector["text"]).encode()
    (tmp_path / ".released").write_bytes(text)
    assert sorted(read_released(tmp_path)) == vector["parts"] == spec_reader.released(text)


@of_kind("task name", bad=False)
def test_task_name(vector: Vector) -> None:
    assert check_task_name(vector["name"]) == vector["name"]
    spec_reader.check_task_name(vector["name"])


@of_kind("task name", bad=True)
def test_task_name_refuses(vector: Vector) -> None:
    refuse(vector, lambda: check_task_name(vector["name"]))
    refuse_too(vector, lambda: spec_reader.check_task_name(vector["name"]))


# Schemas


def schema(name: str) -> Any:
    """Return the validator of a schema."""
    return jsonschema.Draft202012Validator(json.loads((FORMATS / "schemas" / f"{name}.json").read_text()))


@pytest.mark.parametrize("file", sorted((FORMATS / "schemas").rglob("*.json")), ids=lambda file: file.stem)
def test_schema_is_a_schema(file: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text(encoding="utf-8")))


BEYOND_A_SCHEMA = {
    "inventory-spaces": "spaces",
    "inventory-row-itself": "a name that is another file's",
    "inventory-unsorted": "order",
    "inventory-digest-other": "two fields compared",
    "pack-key-twice": "the JSON parser has dropped the first version",
    "manifest-section-twice": "uniqueness of one column of a table",
    "manifest-two-kinds": "the JSON parser has dropped the second key",
    "manifest-not-canonical": "spaces",
    "manifest-keys-not-sorted": "order",
    "manifest-version-as-float": "1.0 is 1 to a schema",
    "manifest-count-float": "4.0 is 4 to a schema",
    "manifest-integer-too-large": "what stands in the facts",
    "manifest-integer-too-small": "what stands in the facts",
    "manifest-fraction": "what stands in the facts",
    "manifest-exponent": "what stands in the facts",
    "manifest-minus-zero": "-0 is 0 to a schema",
    "manifest-too-deep": "what stands in the facts",
    "manifest-facts-twice": "the JSON parser has dropped the second key",
    "manifest-keys-by-utf-16": "order",
    "manifest-nan": "no JSON",
    "manifest-bom": "no JSON of ours",
    "manifest-utf16": "no JSON of ours",
    "manifest-lone-surrogate": "no Unicode",
    "template-name-growth": "a sum",
    "template-not-canonical": "spaces",
    "template-adapts-order": "order",
    "template-weight-file-twice": "uniqueness of one column of a table",
    "template-file-is-weights": "two fields compared",
    "template-tensor-twice": "the header is a text in a text",
    "template-prefix-makes-a-tensor-twice": "the header is a text in a text",
    "template-hole": "the header is a text in a text",
    "template-header-twice": "the header is a text in a text",
    "template-other-columns": "two fields compared",
    "template-longer-vector": "two fields compared",
    "template-integer-to-float": "two fields compared",
    "template-lone-surrogate": "no Unicode",
    "template-base-table-missing": "another file",
    "template-base-no-such-tensor": "another file",
    "template-base-two-tensors": "uniqueness of one column of a table",
    "template-base-not-sorted": "order",
    "template-view-tensor-missing": "another file",
    "template-view-too-narrow": "another file",
    "template-view-rows": "another file",
    "template-view-integers": "another file",
    "template-view-twice": "uniqueness of one column of a table",
    "template-head-not-sorted": "order",
    "template-named-not-sorted": "order",
    "template-rule-nan": "no JSON",
    "template-rule-number": "what stands in a rule",
    "template-integer-too-large": "what stands in a rule",
    "template-too-deep": "what stands in a rule",
    "template-file-long": "bytes between slashes",
    "template-file-long-bytes": "bytes between slashes",
    "template-prefix-long": "bytes between slashes",
    "template-file-case": "two names compared",
    "template-file-is-weights-in-capitals": "two fields compared",
    "template-file-below-weights": "two fields compared",
    "template-file-is-directory": "two names compared",
    "template-header-space": "the header is a text in a text",
    "template-header-minus-zero": "the header is a text in a text",
    "template-named-unknown": "two fields compared",
    "template-part-unknown": "two fields compared",
    "template-part-twice": "uniqueness over two lists",
    "template-part-of-base": "two fields compared",
    "template-name-empty": "the manifest's field",
    "template-name-slash": "the manifest's field",
    "template-name-quote": "the manifest's field",
    "template-name-too-long": "the manifest's field",
    "template-name-parent": "the manifest's field",
    "template-name-makes-a-tensor-twice": "the manifest's field",
    "template-name-makes-a-file-twice": "the manifest's field",
    "template-name-makes-a-weight-file-kept": "the manifest's field",
    "template-name-in-named": "two fields compared",
    "template-name-in-view": "another file",
    "pack-version-float": "1.0 is 1 to a schema",
    "base-table-not-canonical": "spaces",
    "base-table-not-sorted": "order",
    "base-table-twice": "uniqueness of one column of a table",
    "base-table-shape-wraps": "a product",
    "base-table-lone-surrogate": "no Unicode",
}
"""Bad vectors that are right by the schema, and what a schema cannot see."""


@pytest.mark.parametrize("kind", ["manifest", "template", "base table"])
def test_schema_refuses_what_the_readers_refuse(kind: str) -> None:
    for vector in ALL:
        if vector.kind != kind or not vector.bad:
            continue
        try:
            table = json.loads(text_of(vector))
        except (ValueError, RecursionError):
            continue
        assert schema(kind.replace(" ", "-")).is_valid(table) == (vector.id in BEYOND_A_SCHEMA), vector.id


def test_schema_refuses_bad_pack_json() -> None:
    for vector in ALL:
        if vector.kind == "pack" and vector.bad:
            try:
                table = json.loads(vector["text"])
            except (ValueError, RecursionError):
                continue
            assert schema("pack").is_valid(table) == (vector.id in BEYOND_A_SCHEMA), vector.id


# The second reader on what the library writes today


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("codec_id", ["plain", "sparse", "ulp"])
def test_the_second_reader_reads_what_the_library_writes(codec_id: str, dtype: str, tmp_path: Path) -> None:
    share = 0.1 if codec_id == "sparse" else 1.0
    tuned, base = make_pair(1, dtype, share=share)
    shape = tuned["bert.embeddings.word_embeddings.weight"].shape
    tuned["bert.embeddings.word_embeddings.weight"] = petlpack.Tensor.of(
        np.resize(tuned["bert.embeddings.word_embeddings.weight"].bits(), (shape[0] + 3, shape[1])), DTYPES[dtype]
    )
    tuned["bert.encoder.layer.1.attention.self.query.weight"] = base["encoder.layer.1.attention.self.query.weight"]
    tuned["tied.weight"] = tuned["classifier.weight"]
    write_run(tmp_path / "run", tuned)
    write_run(tmp_path / "base", base)
    petlpack.encode(tmp_path / "run", pack=tmp_path / "p", base=tmp_path / "base", task="task", codec=codec_id)
    expected = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in tuned.items()}
    assert load(tmp_path / "p", tmp_path / "base") == expected
    weights_of_base = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in base.items()}
    assert spec_reader.read_task(tmp_path / "p", "task", weights_of_base) == expected
    check_schemas(tmp_path / "p")


def test_the_second_reader_rounds_the_base(tmp_path: Path) -> None:
    tuned, base = make_pair(2, "BF16")
    wide = {
        name: petlpack.Tensor.of(
            cast_bits(tensor.bits(), DTYPES["BF16"], DTYPES["F32"]) + np.uint32(12345), DTYPES["F32"]
        )
        for name, tensor in base.items()
    }
    write_run(tmp_path / "run", tuned)
    write_run(tmp_path / "base", wide)
    petlpack.encode(tmp_path / "run", pack=tmp_path / "p", base=tmp_path / "base", task="task", codec="ulp")
    weights_of_base = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in wide.items()}
    expected = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in tuned.items()}
    assert spec_reader.read_task(tmp_path / "p", "task", weights_of_base) == expected


def test_the_second_reader_reads_a_kept_file_of_two_bytes(tmp_path: Path) -> None:
    tuned, base = make_pair(3, "F16")
    write_run(tmp_path / "run", tuned, files={"added_tokens.json": b"{}"})
    write_run(tmp_path / "base", base)
    petlpack.encode(tmp_path / "run", pack=tmp_path / "p", base=tmp_path / "base", task="task")
    name = hashlib.sha256(b"{}").hexdigest()
    assert spec_reader.read_shared(tmp_path / "p", name) == b"{}"


def method_module(codec_id: str, task: int, dtype: str) -> tuple[Module, tuple[tuple[str, ...], ...]]:
    """Return a small module of a method, and which of its tensors other tasks may share."""
    rng = np.random.default_rng([7, task])
    common = np.random.default_rng(8)

    def floats(*shape: int, of: np.random.Generator = rng) -> petlpack.Tensor:
        numbers = of.normal(0, 1, shape).astype(np.float32).view("<u4")
        return petlpack.Tensor.of(cast_bits(numbers, DTYPES["F32"], DTYPES[dtype]), DTYPES[dtype])

    def mask(*shape: int, of: np.random.Generator = rng) -> petlpack.Tensor:
        return petlpack.Tensor.of((of.random(shape) < 0.5).astype(np.uint8), DTYPES["BOOL"])

    head = {"head.weight": floats(2, 3)}
    if codec_id == "mask":
        tensors = {
            "proto.down": floats(5, 7, of=common),
            "common.mask": mask(5, 7, of=common),
            **{f"t{task}.{i}.mask": mask(5, 7) for i in range(3)},
            f"t{task}.up.mask": mask(2, 4, 6),
            **{name: floats(*shape) for name, shape in {"w1": (3, 2), "b1": (3,), "w2": (4, 3), "b2": (4,)}.items()},
            "codes": floats(6, 2),
            **head,
        }
        masked = tuple(
            MaskedMatrix(f"{i}.down.weight", "proto.down", ("common.mask", f"t{task}.{i}.mask"), how)
            for i, how in enumerate(("or", "and", "add"))
        )
        ups = tuple(
            MaskedMatrix(f"{i}.prefix", "made", (f"t{task}.up.mask",), transposed=True, index=i) for i in range(2)
        )
        produced = (Produced("made", "codes", ("w1", "b1"), ("w2", "b2")),)
        use = Use("prefix", {})
        return Masked(tensors, frozenset(head), use, (*masked, *ups), produced), (("proto.down", "common.mask"),)
    if codec_id == "merge":
        experts = {f"e{i}": floats(4, 3) for i in range(4)}
        tensors = {**experts, "scores": floats(4), "alone": floats(3, of=common), **head}
        rows = (Average("a.down.weight", tuple(experts), "scores"), Average("b.down.bias", ("alone",)))
        return Mixture(tensors, frozenset(head), Use("adapter", {"activation": "gelu", "scaling": 0.5}), rows), ()
    shapes = {"w1": (8, 5), "b1": (8,), "w2": (6, 8), "b2": (6,), "n1": (6,), "n2": (6,), "up": (12, 6), "bias": (12,)}
    tensors = {**{name: floats(*shape, of=common) for name, shape in shapes.items()}, "task": floats(1, 2)}
    tensors |= {"layers": floats(3, 3, of=common), "alone": floats(4), **head}
    trunk = Trunk(("w1", "b1"), ("w2", "b2"), ("n1", "n2"), 1e-5)
    generated = tuple(
        Generated(f"{i}.up.weight", "up", "bias" if i else None, 0, (("task", 0), ("layers", i)), (3, 4), i > 1)
        for i in range(3)
    )
    module = Generator(
        tensors, frozenset(head), Use("adapter", {}), (trunk,), (*generated, Generated("0.up.bias", "alone"))
    )
    return module, ((*shapes, "layers"),)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("codec_id", ["mask", "merge", "hyper"])
def test_the_second_reader_reads_and_rebuilds_methods(
    codec_id: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (0, 1):
        module, parts = method_module(codec_id, task, dtype)
        headers = headers_of({f"t{task}/adapter.safetensors": list(module.tensors)}, module.tensors)
        kept = {"config.json": f'{{"name":"t{task}"}}'.encode()}
        run = Run(tmp_path, "bare", "method", module, headers, 0, kept, (), None, name=f"t{task}", parts=parts)
        monkeypatch.setattr("petlpack.encoding.encode.read_run", lambda path, options, run=run: [run])
        petlpack.encode(tmp_path / "run", pack=tmp_path / "p", task=f"task{task}")
        opened = petlpack.open(tmp_path / "p")[f"task{task}"]
        expected = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in module.tensors.items()}
        assert opened.codec == codec_id
        assert spec_reader.read_task(tmp_path / "p", f"task{task}", {}) == expected
        assert spec_reader.read_kept(tmp_path / "p", f"task{task}", "config.json") == kept["config.json"]
        rule = json.loads(json.dumps(opened.template.rule))
        made = opened.rebuild()
        assert made is not None
        outputs = {name: (t.dtype.name, t.shape, t.bits().tobytes()) for name, t in made.tensors.items()}
        assert spec_reader.rebuild(codec_id, rule, expected) == outputs
    templates = {tuple(petlpack.open(tmp_path / "p")[f"task{task}"].manifest.shared) for task in (0, 1)}
    assert len(templates) == 1
    check_schemas(tmp_path / "p")


def check_schemas(pack: Path) -> None:
    """Check every file of a pack against its schema, and that the second reader reads it."""
    schema("pack").validate(json.loads((pack / "pack.json").read_bytes()))
    templates: list[dict[str, Any]] = []
    for path in (pack / "tasks").iterdir():
        manifest = spec_reader.read_file(path.read_bytes()).manifest
        schema("manifest").validate(manifest)
        templates.append(json.loads(spec_reader.read_shared(pack, manifest["shared"][0])))
        schema("template").validate(templates[-1])
    tables = {template["base"]["table"] for template in templates if template["base"] is not None}
    for path in (pack / "shared").iterdir():
        manifest = spec_reader.read_file(path.read_bytes()).manifest
        schema("manifest").validate(manifest)
        name = path.name.removesuffix(".petl.safetensors")
        if manifest["codec"] != "bytes":
            assert spec_reader.read_part(pack, name)
            continue
        content = spec_reader.read_shared(pack, name)
        if name in tables:
            schema("base-table").validate(json.loads(content))

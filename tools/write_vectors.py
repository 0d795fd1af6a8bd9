"""Write the generated parts of the vectors in `formats/`: the only thing that ever does.

    python -m tools.write_vectors            fill in what is null or missing
    python -m tools.write_vectors --all      write everything anew, which changes what the formats are

What stands in a vector by hand says what is tested; what is generated are the bytes, and once they are committed they
are golden: an id names bytes for ever, so nothing is rewritten by default. A bad vector that stands in a page is moved
to the file of its kind in `formats/vectors/`. Refuses to run on a worktree with changes below `formats/` unless
`--force` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import petlpack
from petlpack import coding, container
from petlpack.codecs.registry import codec
from petlpack.codecs.units import FromParts, Unit
from petlpack.coding import pco
from petlpack.coding.registry import coder
from petlpack.container import EncodedSection, Manifest
from petlpack.decoding.tensors import whole_sums
from petlpack.records.base_table import base_table_json
from petlpack.records.slot import Slot, kind_of, with_kinds
from petlpack.records.sources import Sources
from petlpack.records.template import Template
from petlpack.records.views import parse_view
from petlpack.sections.parts import part_name
from petlpack.sections.shared import write_shared
from petlpack.store import PACK_JSON, SUFFIX
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.ordered import to_ordered
from petlpack.tensors.safetensors_file import build_header
from petlpack.tensors.tensor import Sums, Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import UNKNOWN, BaseRef
from tests.support import pcodec_reader
from tools.vectors import (
    FENCE,
    FORMATS,
    ROOT,
    Vector,
    line_file_of,
    line_files,
    line_of,
    pages,
    unhex,
    vectors,
)

WIDE = 96
"""Hex digits on a line of a page: longer hex is a list of such lines."""


def bits_of(value: str | Sequence[str], dtype: str) -> Bits:
    """Return elements from the hex of their little-endian bytes."""
    bits: Bits = np.frombuffer(unhex(value), DTYPES[dtype].bits)
    return bits


# Bytes from parts: how bad vectors are made


def build(parts: Sequence[Sequence[Any]]) -> bytes:
    """Return the bytes that a vector's `build` describes: its parts one behind another (formats/README.md)."""
    return b"".join(_PARTS[name](*rest) for name, *rest in parts)


def _zstd(content: str, times: int = 1) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(unhex(content) * times)


def _sized(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "little") + frame


def _pcodec(dtype: str, numbers: Sequence[int], times: int = 1) -> bytes:
    return pco.compress(np.array([*numbers] * times, dtype))


def _rows(groups: int, classes: int, floor: int, drifts: int, changed: int, streams: Sequence[Sequence[Any]]) -> bytes:
    packed: list[bytes] = []
    for kind, *rest in streams:
        if kind == "classes":  # one number in each of some classes, the others empty
            dtype, numbers, last = rest
            packed += [_pcodec(dtype, [numbers[str(i)]]) if str(i) in numbers else b"" for i in range(1, last)]
        else:
            packed.append(_pcodec(kind, *rest) if rest[0] else b"")
    lengths = struct.pack(f"<{len(packed)}I", *map(len, packed))
    return struct.pack("<BBBBI", groups, classes, floor, drifts, changed) + lengths + b"".join(packed)


_PARTS: dict[str, Callable[..., bytes]] = {
    "hex": unhex,
    "u16": lambda number: int(number).to_bytes(2, "little"),
    "u32": lambda number: int(number).to_bytes(4, "little"),
    "zstd": _zstd,
    "zstd without size": lambda content: zstandard.ZstdCompressor(write_content_size=False).compress(unhex(content)),
    "plane": lambda content: _sized(_zstd(content)),
    "pcodec": _pcodec,
    "rows": _rows,
}


# Containers


def split_file(data: bytes) -> dict[str, tuple[int, int]]:
    """Return where the parts of a valid file stand: `length`, `header`, `padding`, every section, `manifest`."""
    behind = 8 + int.from_bytes(data[:8], "little")
    text = data[8:behind].rstrip(b" ")
    table = json.loads(text)
    table.pop("__metadata__")
    parts = {"length": (0, 8), "header": (8, 8 + len(text)), "padding": (8 + len(text), behind)}
    for name, entry in table.items():
        parts[name] = (behind + entry["data_offsets"][0], behind + entry["data_offsets"][1])
    return parts


def join_file(sections: Mapping[str, bytes], packed: bytes) -> bytes:
    """Return a file of sections and a packed manifest, whatever they say."""
    table: dict[str, Any] = {
        "__metadata__": {"format": "petlpack", "version": "1", "manifest_sha256": hashlib.sha256(packed).hexdigest()}
    }
    at = 0
    for name, data in [*sections.items(), ("manifest", packed)]:
        table[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    return _with_header(json.dumps(table, separators=(",", ":")).encode(), b"".join([*sections.values(), packed]))


def _with_header(text: bytes, body: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def edited_file(good: bytes, vector: Vector) -> bytes:
    """Return the file that a bad vector makes of a good one, by its one edit."""
    parts = split_file(good)
    if "flip" in vector.fields:
        part, offset, mask = vector["flip"]
        data = bytearray(good)
        data[parts[part][0] + offset] ^= int(mask, 16)
        return bytes(data)
    if "cut" in vector.fields:
        return good[: vector["cut"]] if vector["cut"] >= 0 else good[: len(good) + vector["cut"]]
    if "append" in vector.fields:
        return good + unhex(vector["append"])
    body = good[parts["padding"][1] :]
    if "header" in vector.fields:
        return _with_header(replaced(good[slice(*parts["header"])], vector["header"]), body)
    if "padding" in vector.fields:
        header = good[slice(*parts["header"])] + unhex(vector["padding"])
        return len(header).to_bytes(8, "little") + header + body
    sections = {name: good[slice(*place)] for name, place in list(parts.items())[3:-1]}
    if "build" in vector.fields:
        return join_file(sections, build(vector["build"]))
    text = zstandard.ZstdDecompressor().decompress(good[slice(*parts["manifest"])][4:])
    text = replaced(text, vector["manifest"])
    return join_file(sections, len(text).to_bytes(4, "little") + zstandard.ZstdCompressor(level=19).compress(text))


def replaced(text: bytes, change: Sequence[str]) -> bytes:
    """Return a text with the first occurrence of `change[0]` replaced by `change[1]`."""
    old, new = (part.encode("utf-8", "surrogatepass") for part in change)
    if old not in text:
        raise ValueError(f"{old!r} is not in {text!r}")
    return text.replace(old, new, 1)


def _whole_file(vector: Vector) -> bytes:
    sections = [
        EncodedSection(name, coder_id, dtype, count, unhex(data))
        for name, coder_id, dtype, count, data in vector["sections"]
    ]
    return _written(sections, vector["manifest"])


def _written(sections: Sequence[EncodedSection], said: Mapping[str, Any]) -> bytes:
    import io

    def manifest_of(rows: tuple[container.SectionRow, ...]) -> Manifest:
        return Manifest(sections=rows, **{**said, "shared": tuple(said.get("shared", ()))})

    file = io.BytesIO()
    limit = sum(len(section.data) for section in sections) + 4096
    container.write(file, [section.name for section in sections], limit, iter(sections), manifest_of)
    return file.getvalue()


# Packs


def slots_of(rows: Sequence[Sequence[Any]]) -> tuple[Slot, ...]:
    """Return slots from rows of [name, dtype, shape, base shape or null, whether it is the head's, place in a part]."""
    return tuple(
        Slot(
            name,
            DTYPES[dtype],
            tuple(shape),
            int(np.prod(shape, dtype=np.int64)),
            None if base is None else BaseRef(name, DTYPES[dtype], tuple(base), UNKNOWN),
            head,
            tuple(place[0]) if place else None,
            kind_of(name),
        )
        for name, dtype, shape, base, head, *place in rows
    )


def unit_slots_of(vector: Vector) -> tuple[list[Slot], list[Slot]]:
    """Return the slots of a units vector, and those of shared parts, with the kinds that its rule tells."""
    kinds = codec(vector["codec"]).kinds(vector.get("rule"))
    slots, shared = (with_kinds(slots_of(rows), kinds) for rows in (vector["slots"], vector.get("shared") or ()))
    return slots, shared


def template_of(vector: Vector) -> Template:
    """Return the template of a codec vector's tensors."""
    rows = {t["name"]: (t["dtype"], tuple(t["shape"]), len(unhex(t["bits"]))) for t in vector["tensors"]}
    table = base_table_of(vector)
    refs = {t["name"]: table[t["base"].get("name", t["name"])] for t in vector["tensors"] if t.get("base")}
    head = frozenset(t["name"] for t in vector["tensors"] if t.get("head"))
    return Template(
        headers={"model.safetensors": build_header(rows, {})},
        base_table=hashlib.sha256(base_table_json(table)).hexdigest() if refs else None,
        base=refs,
        head=head,
        parts=tuple(
            tuple(part.get("called") or [name for name, *_ in part["tensors"]]) for part in vector.get("parts") or ()
        ),
        rule=vector.get("rule"),
        files={
            name: hashlib.sha256(content_of(said)).hexdigest() for name, said in (vector.get("files") or {}).items()
        },
        named=frozenset(vector.get("named") or ()),
    )


def content_of(said: str | Sequence[str]) -> bytes:
    """Return the content of a kept file in the pack: a text, or a list of hex."""
    return said.encode() if isinstance(said, str) else unhex(said)


def base_of(vector: Vector) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the base's tensors of a codec vector by name: dtype, shape, bytes."""
    bases = [(t["name"], t["base"]) for t in vector["tensors"] if t.get("base")]
    return {b.get("name", name): (b["dtype"], tuple(b["shape"]), unhex(b["bits"])) for name, b in bases}


def _sums(data: bytes) -> Sums:
    return Tensor.of(np.frombuffer(data, np.uint8), DTYPES["U8"]).sums()


def base_table_of(vector: Vector) -> dict[str, BaseRef]:
    """Return the table of the base of a codec vector."""
    return {
        name: BaseRef(name, DTYPES[dtype], shape, _sums(data)) for name, (dtype, shape, data) in base_of(vector).items()
    }


def plan_of(vector: Vector, template: Template) -> Sources:
    """Return which tensors of a codec vector are not stored."""
    return Sources(
        template.slots,
        frozenset(vector.get("unchanged") or ()),
        {alias: other for alias, other in vector.get("aliases") or ()},
        vector.get("name"),
    )


@dataclass(frozen=True)
class PartRow:
    """A tensor of a part in a codec vector: its slot as the task sees it, its kind's number, its elements."""

    slot: Slot
    number: int
    bits: Bits


def part_rows(vector: Vector) -> list[list[PartRow]]:
    """Return the tensors of the parts of a codec vector, which are [name, kind] or [null, kind, dtype, shape, bits]."""
    if not vector.get("parts"):
        return []
    template = template_of(vector)
    slots = {s.name: s for s in with_kinds(template.slots, codec(vector["codec"]).kinds(vector.get("rule")))}
    bits = {t["name"]: bits_of(t["bits"], t["dtype"]) for t in vector["tensors"]}
    parts = []
    for k, part in enumerate(vector.get("parts") or ()):
        told = {row[1]: slots[row[0]].kind for row in part["tensors"] if row[0] is not None}
        rows = []
        for i, (name, number, *rest) in enumerate(part["tensors"]):
            if name is not None:
                rows.append(PartRow(slots[name], number, bits[name]))
                continue
            dtype, shape, data = rest
            slot = replace(slots_of([["", dtype, shape, None, False, [k, i]]])[0], kind=told.get(number, ""))
            rows.append(PartRow(slot, number, bits_of(data, dtype)))
        parts.append(rows)
    return parts


def part_file(codec_id: str, rows: Sequence[PartRow], sections: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
    """Return the name and the file of a shared part of tensors."""
    digests = [(row.slot.dtype, row.slot.shape, hashlib.sha256(row.bits.tobytes()).hexdigest()) for row in rows]
    name = part_name(digests)
    tensors = [[row.slot.dtype.name, list(row.slot.shape), row.number] for row in rows]
    said = {"kind": "shared", "codec": codec_id, "shared": [], "decoded": name, "params": {"tensors": tensors}}
    return name, _written(encoded_of(sections), {**said, "facts": {}})


def encoded_of(sections: Sequence[Mapping[str, Any]]) -> list[EncodedSection]:
    """Return the sections of a codec vector."""
    return [EncodedSection(**{**section, "data": unhex(section["data"])}) for section in sections]


def write_pack(vector: Vector, pack: Path) -> Path:
    """Write a pack with the task `task` from a good codec vector, or one that a bad one changed; return the base."""
    template = template_of(vector)
    content = template.to_json(vector.get("name"))
    contents = [content, *map(content_of, (vector.get("files") or {}).values())]
    if template.base:
        contents.append(base_table_json(base_table_of(vector)))
    parts = [
        part_file(part.get("codec") or vector["codec"], rows, part["sections"])
        for part, rows in zip(vector.get("parts") or (), part_rows(vector), strict=True)
    ]
    sums = whole_sums([_sums(unhex(t["bits"])) for t in vector["tensors"]])
    said = {
        "kind": "task",
        "codec": vector["codec"],
        "shared": [hashlib.sha256(content).hexdigest(), *(name for name, _ in parts[: vector.get("named_parts")])],
        "decoded": vector.get("decoded") or sums.sha256,
        "checksum": vector.get("checksum") or sums.checksum,
        "params": vector.get("params") or plan_of(vector, template).to_params(),
        "facts": {},
    }
    shared = {**{hashlib.sha256(text).hexdigest(): write_shared(text) for text in contents}, **dict(parts)}
    for file, data in (
        ("pack.json", PACK_JSON),
        (f"tasks/task{SUFFIX}", _written(encoded_of(vector["sections"]), said)),
        *((f"shared/{name}{SUFFIX}", data) for name, data in shared.items()),
    ):
        (pack / file).parent.mkdir(parents=True, exist_ok=True)
        (pack / file).write_bytes(data)
    tensors = base_of(vector)
    held = {name: (dtype, shape, len(data)) for name, (dtype, shape, data) in tensors.items()}
    base = pack / "base.safetensors"
    base.write_bytes(build_header(held, {}).head_bytes() + b"".join(data for _, _, data in tensors.values()))
    return base


def changed_codec(good: Vector, bad: Vector) -> Vector:
    """Return a good codec vector with the one thing changed that a bad one changes."""
    fields = dict(good.fields)
    if "section" in bad.fields:
        names = [section["name"] for section in good["sections"]]
        at = names.index(bad["section"])
        fields["sections"] = [
            {**section, **bad["set"]} if i == at else section for i, section in enumerate(good["sections"])
        ]
    for field in ("sections", "params", "checksum", "unchanged", "rule", "parts", "named_parts"):
        if field in bad.fields:
            fields[field] = bad[field]
    if "files" in bad.fields:
        fields["files"] = {**good["files"], **bad["files"]}
    if "base" in bad.fields:
        tensors = []
        for tensor in good["tensors"]:
            if tensor["name"] == bad["base"]["tensor"]:
                tensor = {**tensor, "base": {**tensor["base"], **bad["base"]["set"]}}
            tensors.append(tensor)
        fields["tensors"] = tensors
    return Vector(bad.page, fields)


def remove_from(pack: Path, what: str) -> None:
    """Remove a shared part from the pack of a codec vector: its template, the table of its base, a part or a file."""
    task = petlpack.open(pack)["task"]
    shared, template = task.manifest.shared, task.template
    files = dict(zip(("template", "part"), shared, strict=False), **template.files, table=template.base_table)
    (pack / "shared" / f"{files[what]}{SUFFIX}").unlink()


def encoded_units(vector: Vector) -> Iterator[tuple[Unit, Bits, Bits | None]]:
    """Yield the units of a codec vector with what they hold and its prediction."""
    template = template_of(vector)
    base = base_of(vector)
    reader = ViewReader(lambda ref: Tensor.of(np.frombuffer(base[ref.name][2], ref.dtype.bits), ref.dtype))
    tuned = {t["name"]: bits_of(t["bits"], t["dtype"]) for t in vector["tensors"]}
    shared = [row for rows in part_rows(vector) for row in rows]
    kinds = codec(vector["codec"]).kinds(vector.get("rule"))
    stored = with_kinds(plan_of(vector, template).stored, kinds)
    for unit in codec(vector["codec"]).units(stored, [row.slot for row in shared]):
        bits = np.concatenate([tuned[piece.slot.name][piece.start : piece.stop] for piece in unit.pieces])
        prediction = None
        if unit.role == "base":
            pieces = []
            for piece in unit.pieces:
                assert piece.slot.base is not None
                bits_of_base = reader.read(piece.slot.base, piece.start, piece.stop)
                pieces.append(cast_bits(bits_of_base, piece.slot.base.dtype, unit.dtype))
            prediction = np.concatenate(pieces)
        elif isinstance(unit.predictor, FromParts):
            prediction = np.concatenate([row.bits for row in shared if row.slot in unit.predictor.slots])
        yield unit, bits, prediction


def sections_of(codec_id: str, units: Iterable[tuple[Unit, Bits, Bits | None]]) -> list[dict[str, Any]]:
    """Return the sections that the library writes for units."""
    sections = []
    for unit, bits, prediction in units:
        made = codec(codec_id).encode(unit, bits, prediction)
        assert made is not None, unit.name
        for section in made:
            coder_id, data = coding.encode(section.bits, section.array, section.coders, "small")
            row = {"name": section.name, "coder": coder_id, "dtype": section.array.dtype.name}
            sections.append({**row, "count": section.array.count, "data": data.hex()})
    return sections


def part_units(codec_id: str, rows: Sequence[PartRow]) -> Iterator[tuple[Unit, Bits, None]]:
    """Yield the units of a shared part with what they hold."""
    slots = [replace(row.slot, name=str(i), kind=f"{row.number:04d}") for i, row in enumerate(rows)]
    bits = {slot.name: row.bits for slot, row in zip(slots, rows, strict=True)}
    for unit in codec(codec_id).units([slot for slot in slots if slot.size]):
        yield unit, np.concatenate([bits[piece.slot.name][piece.start : piece.stop] for piece in unit.pieces]), None


def _part_sections(codec_id: str, rows: Sequence[PartRow]) -> list[dict[str, Any]]:
    return sections_of(codec_id, part_units(codec_id, rows))


def rows_of_part(vector: Vector) -> list[PartRow]:
    """Return the tensors of a part vector."""
    rows = zip(vector["params"]["tensors"], vector["tensors"], strict=True)
    return [
        PartRow(slots_of([[str(i), dtype, shape, None, False]])[0], number, bits_of(data, dtype))
        for i, ((dtype, shape, number), data) in enumerate(rows)
    ]


def changed_part(good: Vector, bad: Vector) -> tuple[str, bytes]:
    """Return the name and the file of the part that a bad vector makes of a good one."""
    name, _ = part_file(good["codec"], rows_of_part(good), good["sections"])
    sections = [
        {**section, **bad["set"]} if section["name"] == bad.get("section") else section
        for section in bad.get("sections") or good["sections"]
    ]
    said = {"kind": "shared", "codec": good["codec"], "shared": [], "decoded": name, "facts": {}}
    said |= {"params": good["params"], **(bad.get("manifest") or {})}
    return name, _written(encoded_of(sections), said)


# Filling in


def _coder_parts(vector: Vector) -> dict[str, Any]:
    if vector.bad:
        return {"data": build(vector["build"]).hex()} if "build" in vector.fields else {}
    dtype = DTYPES[vector["dtype"]]
    prediction = None if vector.get("prediction") is None else bits_of(vector["prediction"], dtype.name)
    array = coding.Array(dtype, vector["count"], vector["row"], prediction)
    if "build" in vector.fields:
        made = build(vector["build"])
        bits = coding.decode(vector["coder"], made, array, vector.id)
        return {"data": made.hex(), "bits": bits.tobytes().hex()}
    data = coder(vector["coder"]).encode(bits_of(vector["bits"], dtype.name), array, vector.get("level") or "small")
    assert data is not None, vector.id
    return {"data": data.hex()}


def numbers_of(vector: Vector) -> np.ndarray[Any, Any]:
    """Return the numbers of a vector of a stream."""
    kind, width = vector["type"][0], int(vector["type"][1:])
    return np.array(vector["numbers"] * (vector.get("times") or 1), f"<{kind}{width // 8}")


def steps_of(vector: Vector, data: bytes) -> dict[str, Any]:
    """Return what stands in a stream on the way to its numbers, as the second reader finds it."""
    kind, width = vector["type"][0], int(vector["type"][1:])
    chunk, page, count = pcodec_reader.split(data, numbers_of(vector).size, kind, width)[0]
    _, first = pcodec_reader.page_head(pcodec_reader.Bits(page), chunk)
    steps = {"table_log": chunk.table_log, "bins": [list(row) for row in chunk.bins]}
    if "times" in vector.fields:
        return steps
    states = [[state.bin, state.bits, state.next] for state in chunk.states]
    return {**steps, "states": states, "first": first, "latents": pcodec_reader.read_page(page, count, chunk)}


def _stream_parts(vector: Vector) -> dict[str, Any]:
    if vector.bad:
        return {}
    data = pco.compress(numbers_of(vector), smooth=vector["smooth"])
    return {"data": data.hex(), **steps_of(vector, data)}


def _codec_parts(vector: Vector) -> dict[str, Any]:
    if vector.bad:
        return {}
    made: dict[str, Any] = {}
    if vector.get("parts"):
        parts = zip(vector["parts"], part_rows(vector), strict=True)
        made["parts"] = [
            {
                **part,
                "sections": part.get("sections") or _part_sections(part.get("codec") or vector["codec"], rows),
            }
            for part, rows in parts
        ]
    return {**made, "sections": sections_of(vector["codec"], encoded_units(vector))}


def _part_parts(vector: Vector) -> dict[str, Any]:
    if vector.bad:
        return {}
    rows = rows_of_part(vector)
    made = _part_sections(vector["codec"], rows)
    return {"name": part_file(vector["codec"], rows, made)[0], "sections": made}


def rebuilt_of(vector: Vector) -> list[list[Any]]:
    """Return what the library rebuilds in a vector: rows of [name, dtype, shape, bits]."""
    said = json.loads(rebuild_text(vector))
    tensors = {
        name: Tensor.of(bits_of(data, dtype).reshape(shape), DTYPES[dtype])
        for name, dtype, shape, data in said["tensors"]
    }
    made = codec(vector["codec"]).rebuild(said["rule"], tensors)
    assert made is not None
    return [[name, t.dtype.name, list(t.shape), t.bits().tobytes().hex()] for name, t in made.tensors.items()]


def rebuild_text(vector: Vector) -> bytes:
    """Return the JSON of the rule and the tensors of a vector."""
    return json.dumps({"rule": vector["rule"], "tensors": vector["tensors"]}, separators=(",", ":")).encode()


def changed_rebuild(good: Vector, bad: Vector) -> Vector:
    """Return the good vector as the bad one changes its text."""
    return Vector(bad.page, {**good.fields, **json.loads(replaced(rebuild_text(good), bad["replace"]))})


def _rebuild_parts(vector: Vector) -> dict[str, Any]:
    return {} if vector.bad else {"outputs": rebuilt_of(vector)}


def _units_parts(vector: Vector) -> dict[str, Any]:
    units = codec(vector["codec"]).units(*unit_slots_of(vector))
    return {"units": [units_row(unit) for unit in units]}


def units_row(unit: Unit) -> list[Any]:
    """Return a unit as [name, dtype, row, pieces of (tensor, start, stop)], and the tensors that predict it, if any."""
    row = [unit.name, unit.dtype.name, unit.row, [[p.slot.name, p.start, p.stop] for p in unit.pieces]]
    return [*row, [slot.name for slot in unit.predictor.slots]] if isinstance(unit.predictor, FromParts) else row


def _container_parts(vector: Vector) -> dict[str, Any]:
    if not vector.bad:
        return {"file": _whole_file(vector).hex()}
    if not {"header", "manifest", "build"} & vector.fields.keys():
        return {}
    good = next(other for other in vectors() if other.id == vector["of"])
    return {"file": edited_file(unhex(good.get("file") or _whole_file(good).hex()), vector).hex()}


def _view_parts(vector: Vector) -> dict[str, Any]:
    if vector.bad:
        return {}
    bits = {name: bits_of(data, dtype) for name, dtype, _, data in vector["tensors"]}
    table = {name: BaseRef(name, DTYPES[dtype], tuple(shape), UNKNOWN) for name, dtype, shape, _ in vector["tensors"]}
    view = parse_view(vector["view"], table)
    reader = ViewReader(lambda ref: Tensor.of(bits[ref.name], ref.dtype))
    return {"elements": reader.read(view, 0, int(np.prod(view.shape))).tobytes().hex()}


def _ordered_parts(vector: Vector) -> dict[str, Any]:
    dtype = DTYPES[vector["dtype"]]
    return {"ordered": to_ordered(bits_of(vector["bits"], dtype.name), dtype).tobytes().hex()}


_FILL: dict[str, Callable[[Vector], dict[str, Any]]] = {
    "coder": _coder_parts,
    "stream": _stream_parts,
    "codec": _codec_parts,
    "part": _part_parts,
    "rebuild": _rebuild_parts,
    "units": _units_parts,
    "container": _container_parts,
    "ordered": _ordered_parts,
    "view": _view_parts,
}


def _shown(fields: Mapping[str, Any]) -> str:
    """Return a vector as JSON: one field a line, long hex and lists of rows with one entry a line."""
    lines = [f"  {json.dumps(name)}: {_value(name, value)}" for name, value in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


_HEX = ("bits", "data", "file", "prediction", "hex", "ordered")


def _value(name: str, value: Any) -> str:
    if name in _HEX and isinstance(value, str) and len(value) > WIDE:
        value = [value[at : at + WIDE] for at in range(0, len(value), WIDE)]
    text = json.dumps(value, ensure_ascii=True)
    if isinstance(value, list) and len(text) > WIDE and all(isinstance(entry, int) for entry in value):
        return (
            "[\n"
            + ",\n".join(f"    {json.dumps(value[at : at + 16])[1:-1]}" for at in range(0, len(value), 16))
            + "\n  ]"
        )
    if isinstance(value, list) and value and len(text) > WIDE:
        return "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"
    return text


def _is_missing(value: Any) -> bool:
    """Tell whether a field has to be filled in: the sections of parts stand inside them."""
    return value is None or (
        isinstance(value, list) and any(row.get("sections", 0) is None for row in value if isinstance(row, dict))
    )


def _filled(vector: Vector, anew: bool) -> dict[str, Any]:
    """Return the fields of a vector with what is generated of them."""
    made = _FILL[vector.kind](vector) if vector.kind in _FILL else {}
    missing = {field: value for field, value in made.items() if anew or _is_missing(vector.get(field))}
    return {**vector.fields, **missing}


def _move_bad(page: Path) -> int:
    """Move the bad vectors of a page to the files of their kinds; return how many."""
    before = page.read_text(encoding="utf-8")
    found = [Vector(page.name, json.loads(fence[1])) for fence in FENCE.finditer(before)]
    for vector in (vector for vector in found if vector.bad):
        joined = {f: "".join(v) if f in _HEX and isinstance(v, list) else v for f, v in vector.fields.items()}
        with line_file_of(vector.kind).open("a", encoding="utf-8") as file:
            file.write(line_of(joined))
    after = FENCE.sub(lambda fence: "" if "code" in json.loads(fence[1]) else fence[0], before)
    if after != before:
        page.write_text(re.sub(r"\n{3,}", "\n\n", after).rstrip("\n") + "\n", encoding="utf-8")
    return sum(vector.bad for vector in found)


def _rewrite_page(page: Path, anew: bool) -> int:
    """Fill in the vectors of one page; return how many changed."""
    name = page.relative_to(FORMATS).as_posix()
    changed = 0

    def fill(fence: re.Match[str]) -> str:
        nonlocal changed
        text = f"```json vector\n{_shown(_filled(Vector(name, json.loads(fence[1])), anew))}```"
        changed += text != fence[0]
        return text

    before = page.read_text(encoding="utf-8")
    after = FENCE.sub(fill, before)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return changed


def _rewrite_lines(file: Path, anew: bool) -> int:
    """Fill in the vectors of one file of bad ones; return how many changed."""
    before = file.read_text(encoding="utf-8").splitlines(keepends=True)
    after = [line_of(_filled(Vector(file.name, json.loads(line)), anew)) for line in before]
    if after != before:
        file.write_text("".join(after), encoding="utf-8")
    return sum(old != new for old, new in zip(before, after, strict=True))


def main() -> int:
    """Write the vectors of all pages and files; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="write golden bytes anew, too")
    parser.add_argument("--force", action="store_true", help="write although formats/ has changes")
    options = parser.parse_args()
    command = ["git", "status", "--porcelain", "--", "formats"]
    if not options.force and subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout:
        print("formats/ has changes that are not committed; --force writes all the same", file=sys.stderr)
        return 1
    moved = sum(map(_move_bad, pages()))
    changed = sum(_rewrite_page(page, options.all) for page in pages())
    changed += sum(_rewrite_lines(file, options.all) for file in line_files())
    print(f"{moved} bad vectors moved out of pages, {changed} vectors changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A second reader of packs, written from the pages of `formats/` alone: it imports nothing of petlpack.

It is short rather than fast, and it is here to show that the pages suffice. Every `Refused` says whether the bytes are
damaged or of a format that version 1 does not know.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from pcodec import standalone

Words = NDArray[np.unsignedinteger[Any]]

# dtypes.md: name -> (kind, bytes, bits of the exponent, bits of the mantissa)
DTYPES: dict[str, tuple[str, int, int, int]] = {
    "F64": ("float", 8, 11, 52),
    "F32": ("float", 4, 8, 23),
    "F16": ("float", 2, 5, 10),
    "BF16": ("float", 2, 8, 7),
    "F8_E4M3": ("float", 1, 4, 3),
    "F8_E5M2": ("float", 1, 5, 2),
    **{f"I{8 * size}": ("signed", size, 0, 0) for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": ("unsigned", size, 0, 0) for size in (1, 2, 4, 8)},
    "BOOL": ("unsigned", 1, 0, 0),
}
SHARED_MOST = 1 << 28
MANIFEST_MOST = 1 << 26
HEADER_MOST = 100_000_000


class Refused(ValueError):
    """What is read breaks a rule of a page; `unknown` where it may be right in another version."""

    def __init__(self, why: str, *, unknown: bool = False) -> None:
        super().__init__(why)
        self.unknown = unknown


def words_of(dtype: str) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the little-endian unsigned integers that hold the bits of a dtype."""
    return np.dtype(f"<u{DTYPES[dtype][1]}")


def check(rule: bool, why: str) -> None:
    """Refuse as damage what breaks a rule."""
    if not rule:
        raise Refused(why)


# ordered-integers.md


def to_ordered(bits: int, dtype: str) -> int:
    """Return the ordered integer of one bit pattern."""
    kind, size, _, _ = DTYPES[dtype]
    top = 1 << (8 * size - 1)
    if kind == "unsigned":
        return bits
    if kind == "signed":
        return bits ^ top
    return 2 * top - 1 - bits if bits & top else bits + top


def from_ordered(number: int, dtype: str) -> int:
    """Return the bit pattern of an ordered integer."""
    kind, size, _, _ = DTYPES[dtype]
    top = 1 << (8 * size - 1)
    if kind == "unsigned":
        return number
    if kind == "signed":
        return number ^ top
    return number - top if number >= top else 2 * top - 1 - number


# rounding.md


def round_bits(bits: int, source: str, target: str) -> int:
    """Round one float to another dtype: to nearest, ties to even, in integers."""
    if source == target:
        return bits
    check(DTYPES[source][0] == DTYPES[target][0] == "float", f"{source} does not round to {target}")
    _, size, exponent, mantissa = DTYPES[source]
    negative = bits >> (8 * size - 1)
    field = (bits >> mantissa) & ((1 << exponent) - 1)
    fraction = bits & ((1 << mantissa) - 1)
    _, out_size, out_exponent, out_mantissa = DTYPES[target]
    sign = negative << (8 * out_size - 1)
    top = (1 << out_exponent) - 1
    infinity = top << out_mantissa
    not_a_number = infinity | 1 << (out_mantissa - 1)
    largest = infinity - 1
    if target == "F8_E4M3":
        not_a_number = infinity = 0x7F  # no infinity: what is too large is NaN
        largest = 0x7E
    if field == (1 << exponent) - 1 and (source != "F8_E4M3" or fraction == 7):
        if source == "F8_E4M3" or fraction:
            return not_a_number
        return sign | infinity
    # the value is `significand` * 2 ** `power`
    significand = fraction | (1 << mantissa if field else 0)
    power = max(field, 1) - ((1 << (exponent - 1)) - 1) - mantissa
    if not significand:
        return sign
    least = 2 - (1 << (out_exponent - 1)) - out_mantissa  # power of the target's smallest step
    step = max(least, significand.bit_length() - 1 + power - out_mantissa)
    shift = step - power
    if shift <= 0:
        steps = significand << -shift
    else:
        steps, rest = significand >> shift, significand & ((1 << shift) - 1)
        half = 1 << (shift - 1)
        steps += rest > half or (rest == half and steps & 1)
    code = steps + ((step - least) << out_mantissa)
    return sign | (infinity if code > largest else code)


# coders/


def zstd_frame(data: bytes, size: int) -> bytes:
    """Return the content of one zstd frame, which must state its size, and this one."""
    try:
        check(zstandard.get_frame_parameters(data).content_size == size, "a zstd frame of another size")
        stream = zstandard.ZstdDecompressor().decompressobj()
        out = stream.decompress(data)
        check(stream.eof and not stream.unused_data, "bytes behind a zstd frame")
    except zstandard.ZstdError as error:
        raise Refused(str(error)) from error
    check(len(out) == size, "a zstd frame of another size")
    return out


def pcodec_stream(data: bytes, count: int, numbers: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers of one pcodec stream, which must be so many and of this type."""
    out = np.empty(count, numbers)
    if not count:
        check(not data, "a stream of no numbers has bytes")
        return out
    try:
        progress = standalone.simple_decompress_into(data, out)
    except (RuntimeError, TypeError) as error:
        raise Refused(str(error)) from error
    check(progress.finished and progress.n_processed == count, "a pcodec stream of another length")
    return out


def _raw(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    check(len(data) == count * DTYPES[dtype][1], "raw: another number of bytes")
    return np.frombuffer(data, words_of(dtype))


def _planes(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    size, at = DTYPES[dtype][1], 0
    octets = bytearray(count * size)
    for plane in range(size):
        check(at + 4 <= len(data), "planes: ends before a length")
        (length,) = struct.unpack_from("<I", data, at)
        check(at + 4 + length <= len(data), "planes: ends inside a frame")
        octets[plane::size] = zstd_frame(data[at + 4 : at + 4 + length], count)
        at += 4 + length
    check(at == len(data), "planes: bytes behind the last plane")
    return np.frombuffer(bytes(octets), words_of(dtype))


def _bitmap(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    check(dtype == "BOOL", "bitmap: not of BOOL")
    check(len(data) == (count + 7) // 8, "bitmap: another number of bytes")
    number = int.from_bytes(data, "little")
    check(number >> count == 0, "bitmap: bits behind the last element")
    return np.array([number >> i & 1 for i in range(count)], np.uint8)


def _gaps(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    check(DTYPES[dtype][0] == "unsigned", "gaps: not of an unsigned dtype")
    gaps = pcodec_stream(data, count, words_of(dtype)).tolist()
    positions, last = [], -1
    for gap in gaps:
        last += gap + 1
        check(last < 1 << (8 * DTYPES[dtype][1]), "gaps: a position beyond the dtype")
        positions.append(last)
    return np.array(positions, words_of(dtype))


def _numbers(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    ordered = pcodec_stream(data, count, words_of(dtype)).tolist()
    return np.array([from_ordered(number, dtype) for number in ordered], words_of(dtype))


def _signed(dtype: str) -> np.dtype[Any]:
    return np.dtype(f"<i{DTYPES[dtype][1]}")


def _ulps(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    if given is None:
        raise Refused("ulps: no prediction")
    differences = pcodec_stream(data, count, _signed(dtype))
    return given + differences.view(words_of(dtype))


def _rows(data: bytes, dtype: str, count: int, row: int, given: Words | None) -> Words:
    kind, _, exponent_bits, mantissa_bits = DTYPES[dtype]
    if given is None or kind != "float" or not count:
        raise Refused("rows: no floats with a prediction")
    row = row if count % row == 0 else count
    check(len(data) >= 8, "rows: ends in its header")
    groups, classes, floor, drifts, changed = struct.unpack_from("<BBBBI", data)
    at = 8 + 4 * (4 + groups + classes)
    check(len(data) >= at and drifts <= 1, "rows: ends in its table")
    streams = []
    for length in struct.unpack_from(f"<{4 + groups + classes}I", data, 8):
        streams.append(data[at : at + length])
        at += length
    check(at == len(data), "rows: the streams do not fill it")
    labels = pcodec_stream(streams[0], count // row, np.dtype("<u2")).tolist()
    most = groups + 257 - classes - floor if classes and classes + floor <= 257 else groups
    check(max(labels) <= most, "rows: a label out of range")
    check(not drifts or mantissa_bits >= 12, "rows: a drift of a short mantissa")
    check(not drifts or dtype in ("F32", "F64"), "rows: a drift of another dtype")
    drift = pcodec_stream(streams[1], 4096 * drifts, _signed(dtype)).tolist()
    check(changed <= count, "rows: too many changes")
    gaps = pcodec_stream(streams[2], changed, np.dtype("<u4")).tolist()
    changes = pcodec_stream(streams[3], changed, _signed(dtype)).tolist()
    old = given.tolist()
    moves = [0] * count
    if drifts:
        for i in range(count):
            moves[i] = drift[(old[i] & ((1 << mantissa_bits) - 1)) >> (mantissa_bits - 12)]
    position = -1
    for gap, change in zip(gaps, changes, strict=True):
        position += gap + 1
        check(position < count, "rows: a position beyond the elements")
        moves[position] += change
    for group in range(1, groups + 1):
        members = [r for r, label in enumerate(labels) if label == group]
        numbers = iter(pcodec_stream(streams[3 + group], len(members) * row, _signed(dtype)).tolist())
        for r in members:
            moves[r * row : (r + 1) * row] = [next(numbers) for _ in range(row)]
    members = [r for r, label in enumerate(labels) if label > groups]
    check(not classes or bool(members) or not any(labels), "rows: classes without rows")
    part: list[list[int]] = [[] for _ in range(classes)]
    for r in sorted(members, key=labels.__getitem__):
        low = labels[r] - groups - 1 + floor
        for i in range(r * row, (r + 1) * row):
            exponent = old[i] >> mantissa_bits & ((1 << exponent_bits) - 1)
            if dtype == "F64":
                exponent = min(max(exponent - 895, 0), 255)
            part[min(max(exponent, low), low + classes - 1) - low].append(i)
    for stream, places in zip(streams[4 + groups :], part, strict=True):
        for i, difference in zip(places, pcodec_stream(stream, len(places), _signed(dtype)).tolist(), strict=True):
            moves[i] = difference
    mask = (1 << 8 * DTYPES[dtype][1]) - 1
    return np.array([(bits + move) & mask for bits, move in zip(old, moves, strict=True)], words_of(dtype))


CODERS = {
    "raw": _raw,
    "planes": _planes,
    "bitmap": _bitmap,
    "gaps": _gaps,
    "numbers": _numbers,
    "ulps": _ulps,
    "rows": _rows,
}


def decode_section(coder: str, data: bytes, dtype: str, count: int, row: int, given: Words | None = None) -> Words:
    """Return the elements of a section from its bytes in the file."""
    if coder not in CODERS:
        raise Refused(f"coder {coder}", unknown=True)
    return CODERS[coder](data, dtype, count, row, given)


# container.md, manifest.md


@dataclass(frozen=True)
class File:
    """One opened file: its manifest, and the bytes of its sections, not yet compared with their digests."""

    manifest: dict[str, Any]
    parts: dict[str, bytes]

    def section(self, name: str) -> tuple[str, str, int, bytes]:
        """Return coder, dtype, count and bytes of a section, the digest checked."""
        row = next(row for row in self.manifest["sections"] if row[0] == name)
        check(hashlib.sha256(self.parts[name]).hexdigest() == row[4], f"section {name}: another sha256")
        return row[1], row[2], row[3], self.parts[name]


def canonical(value: object) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_canonical(text: bytes) -> Any:
    """Parse JSON that must be canonical."""
    try:
        value = json.loads(text.decode("utf-8"))
        same = canonical(value) == text
    except (ValueError, RecursionError) as error:
        raise Refused(f"not JSON: {error}") from error
    check(same, "not canonical JSON")
    return value


def parse_header(text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Parse a safetensors header strictly; return the tensors and the metadata."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check(len(dict(pairs)) == len(pairs), "a key stands twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise Refused(name)

    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"not JSON: {error}") from error
    check(isinstance(table, dict), "not an object")
    metadata = table.pop("__metadata__", {})
    check(isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()), "not strings")
    for entry in table.values():
        check(isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}, "another entry")
        check(isinstance(entry["dtype"], str), "dtype")
        for sizes in (entry["shape"], entry["data_offsets"]):
            check(isinstance(sizes, list) and all(type(n) is int and 0 <= n < 2**63 for n in sizes), "sizes")
        check(len(entry["data_offsets"]) == 2, "offsets")
        nbytes = entry["data_offsets"][1] - entry["data_offsets"][0]
        check(nbytes >= 0, "offsets")
        if entry["dtype"] in DTYPES:
            check(math.prod(entry["shape"]) * DTYPES[entry["dtype"]][1] == nbytes, "shape and bytes")
    end = 0
    for entry in sorted(table.values(), key=lambda entry: entry["data_offsets"]):
        check(entry["data_offsets"][0] == end, "holes or overlaps")
        end = entry["data_offsets"][1]
    return table, metadata


def read_file(data: bytes) -> File:
    """Read one file whole."""
    check(len(data) >= 8, "shorter than 8 bytes")
    length = int.from_bytes(data[:8], "little")
    check(length <= min(HEADER_MOST, len(data) - 8), "a header longer than the file")
    text, body = data[8 : 8 + length], data[8 + length :]
    table, metadata = parse_header(text)
    check(max((entry["data_offsets"][1] for entry in table.values()), default=0) == len(body), "another file size")
    if metadata.get("format") != "petlpack" or metadata.get("version") != "1":
        raise Refused("not version 1 of petlpack", unknown=True)
    parts = {name: body[slice(*entry["data_offsets"])] for name, entry in table.items()}
    check("manifest" in parts, "no manifest")
    packed = parts.pop("manifest")
    check(hashlib.sha256(packed).hexdigest() == metadata.get("manifest_sha256"), "manifest: another sha256")
    size = int.from_bytes(packed[:4], "little")
    check(size <= MANIFEST_MOST and len(packed) <= MANIFEST_MOST, "a manifest too large")
    manifest = parse_manifest(zstd_frame(packed[4:], size))
    names = [row[0] for row in manifest["sections"]]
    check(set(names) == set(parts), "other sections than the manifest's")
    expected: dict[str, Any] = {
        "__metadata__": {"format": "petlpack", "version": "1", "manifest_sha256": metadata["manifest_sha256"]}
    }
    at = 0
    for name in [*names, "manifest"]:
        nbytes = len(parts[name]) if name in parts else len(packed)
        expected[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": [at, at + nbytes]}
        at += nbytes
    wanted = json.dumps(expected, separators=(",", ":")).encode()
    check(text == wanted.ljust(length) and length % 8 == 0, "a header that is not canonical")
    return File(manifest, parts)


def parse_manifest(text: bytes) -> dict[str, Any]:
    """Parse and check a manifest."""
    table = parse_canonical(text)
    check(isinstance(table, dict), "manifest: not an object")
    if table.get("version") != 1:
        raise Refused("manifest: another version", unknown=True)
    check(type(table["version"]) is int, "manifest: the version is no integer")
    fields = {"version", "kind", "codec", "sections", "shared", "decoded", "params", "facts"}
    check(set(table) == fields, "manifest: other fields")
    if table["kind"] not in ("task", "shared"):
        raise Refused("manifest: another kind", unknown=True)
    check(isinstance(table["params"], dict) and isinstance(table["facts"], dict), "manifest: not objects")
    check(isinstance(table["sections"], list) and isinstance(table["shared"], list), "manifest: not lists")
    check(all(_is_digest(digest) for digest in [table["decoded"], *table["shared"]]), "manifest: not a sha256")
    check(_is_name(table["codec"]), "manifest: not a name")
    for row in table["sections"]:
        check(isinstance(row, list) and len(row) == 5, "manifest: not a section")
        name, coder, dtype, count, digest = row
        check(_is_name(name) and _is_name(coder) and _is_digest(digest), "manifest: not a section")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise Refused("manifest: another dtype", unknown=True)
        check(type(count) is int and 0 <= count < 1 << 48, "manifest: a count out of range")
    names = [row[0] for row in table["sections"]]
    check(len(set(names)) == len(names) and "manifest" not in names, "manifest: a section twice")
    return dict(table)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[a-z][A-Za-z0-9._-]{0,127}", value) is not None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


# template.md, shared.md


@dataclass(frozen=True)
class BaseTensor:
    """What a template says of a tensor of the base."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Slot:
    """One tensor of a template."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: BaseTensor | None
    head: bool

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements of a row."""
        return max(1, math.prod(self.shape[1:]) if len(self.shape) > 1 else self.size)


def parse_template(text: bytes) -> list[Slot]:
    """Parse and check a template; return its tensors in order."""
    table = parse_canonical(text)
    fields = {"weights", "base_name", "base", "head", "files"}
    check(isinstance(table, dict) and set(table) == fields, "template: other fields")
    check(table["base_name"] is None or isinstance(table["base_name"], str), "template: base_name")
    check(isinstance(table["files"], dict) and isinstance(table["head"], list), "template: files, head")
    check(all(_is_digest(digest) for digest in table["files"].values()), "template: not a sha256")
    check(all(isinstance(name, str) for name in table["head"]), "template: head")
    base: dict[str, BaseTensor] = {}
    check(isinstance(table["base"], list) and isinstance(table["weights"], list), "template: not lists")
    for entry in table["base"]:
        check(isinstance(entry, list) and len(entry) == 5, "template: base")
        name, base_name, dtype, shape, digest = entry
        check(isinstance(name, str) and isinstance(base_name, str) and _is_digest(digest), "template: base")
        check(isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape), "template: base")
        if dtype not in DTYPES:
            raise Refused("template: another dtype", unknown=True)
        base[name] = BaseTensor(base_name, dtype, tuple(shape), digest)
    slots = []
    files = []
    for entry in table["weights"]:
        check(isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry), "weights")
        files.append(entry[0])
        try:
            tensors, _ = parse_header(entry[1].encode())
        except UnicodeEncodeError as error:
            raise Refused("template: a lone surrogate") from error
        for name, row in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            known = row["dtype"] in DTYPES
            start, stop = row["data_offsets"]
            shape = tuple(row["shape"]) if known else (stop - start,)
            slots.append(Slot(name, row["dtype"] if known else "U8", shape, base.get(name), name in table["head"]))
    names = [slot.name for slot in slots]
    check(len(set(names)) == len(names), "template: a tensor twice")
    check(all(_is_file_name(name) for name in [*files, *table["files"]]), "template: a file name")
    check(len({*files, *table["files"]}) == len(files) + len(table["files"]), "template: a file twice")
    for slot in slots:
        if slot.base is not None and slot.base.shape != slot.shape:
            check(len(slot.shape) == len(slot.base.shape) >= 2, "template: another base")
            check(slot.shape[1:] == slot.base.shape[1:], "template: another base")
        if slot.base is not None and slot.base.dtype != slot.dtype:
            check(DTYPES[slot.dtype][0] == DTYPES[slot.base.dtype][0] == "float", "template: a base that cannot round")
    return slots


def _is_file_name(name: str) -> bool:
    return (
        name.isprintable()
        and not set(name) & set("\\:")
        and not any(part in ("", ".", "..") for part in name.split("/"))
    )


def read_shared(pack: Path, sha256: str) -> bytes:
    """Return the content of a shared part."""
    path = pack / "shared" / f"{sha256}.petl.safetensors"
    check(path.is_file(), "a shared part is missing")
    file = read_file(path.read_bytes())
    manifest = file.manifest
    check(manifest["kind"] == "shared" and manifest["codec"] == "bytes", "not a shared part")
    check(len(manifest["sections"]) == 1 and manifest["sections"][0][0] == "content", "not a shared part")
    check((manifest["shared"], manifest["params"], manifest["facts"]) == ([], {}, {}), "not a shared part")
    coder, dtype, count, data = file.section("content")
    check(dtype == "U8" and count <= SHARED_MOST, "not a shared part")
    content = decode_section(coder, data, dtype, count, max(1, count)).tobytes()
    check(hashlib.sha256(content).hexdigest() == sha256 == manifest["decoded"], "shared: another sha256")
    return content


# units.md


@dataclass(frozen=True)
class Unit:
    """Pieces of tensors that share sections: (tensor, first element, element behind the last)."""

    name: str
    dtype: str
    row: int
    pieces: tuple[tuple[Slot, int, int], ...]

    @property
    def size(self) -> int:
        """Elements."""
        return sum(stop - start for _, start, stop in self.pieces)


def kind_of(name: str) -> str:
    """Return a name without its layer numbers."""
    return re.sub(r"\.[0-9]+(?=\.|\Z)", "", name)


def from_base(slot: Slot) -> int:
    """Return how many elements of a tensor the base predicts."""
    if slot.base is None:
        return 0
    if slot.base.shape == slot.shape:
        return slot.size
    return min(slot.shape[0], slot.base.shape[0]) * slot.row


def cut(pieces: Sequence[tuple[Slot, int, int]], label: str, most: int, *, rows: bool) -> list[Unit]:
    """Cut pieces into units."""
    families: dict[tuple[str, int], list[tuple[Slot, int, int]]] = {}
    for piece in pieces:
        if piece[1] < piece[2]:
            families.setdefault((piece[0].dtype, min(piece[0].row, most) if rows else 1), []).append(piece)
    units: list[Unit] = []
    for (dtype, row), family in sorted(families.items(), key=lambda item: item[0]):
        full = most - most % row
        run: list[tuple[Slot, int, int]] = []
        room = full
        for slot, first, behind in sorted(family, key=lambda piece: kind_of(piece[0].name)):
            at = first
            while at < behind:
                taken = min(room, behind - at)
                run.append((slot, at, at + taken))
                at, room = at + taken, room - taken
                if room == 0:
                    units.append(Unit(f"{label}.{len(units)}", dtype, row, tuple(run)))
                    run, room = [], full
        if run:
            units.append(Unit(f"{label}.{len(units)}", dtype, row, tuple(run)))
    return units


def units_of(codec: str, stored: Sequence[Slot]) -> list[Unit]:
    """Return the units of a codec for the tensors that it stores (codecs/)."""
    based = [(slot, 0, from_base(slot)) for slot in stored]
    own = [(slot, from_base(slot), slot.size) for slot in stored]
    if codec == "ulp":
        return [*cut(based, "ulps", 1 << 20, rows=True), *cut(own, "head", 1 << 20, rows=False)]
    if codec == "sparse":
        return [*cut(based, "sparse", 1 << 25, rows=False), *cut(own, "head", 1 << 25, rows=False)]
    if codec == "plain":
        parts = [[(slot, 0, slot.size) for slot in stored if slot.head == head] for head in (False, True)]
        return [*cut(parts[0], "tensors", 1 << 20, rows=True), *cut(parts[1], "head", 1 << 20, rows=False)]
    raise Refused(f"codec {codec}", unknown=True)


# tasks

Base = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def read_task(pack: Path, name: str, base: Base) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return every tensor of a task as (dtype, shape, bytes); `base` is given in the same form."""
    mark = json.loads((pack / "pack.json").read_bytes())
    if (mark["format"], mark["version"]) != ("petlpack", 1):
        raise Refused("not version 1 of a pack", unknown=True)
    file = read_file((pack / "tasks" / f"{name}.petl.safetensors").read_bytes())
    manifest = file.manifest
    check(manifest["kind"] == "task" and len(manifest["shared"]) == 1, "not a task")
    slots = parse_template(read_shared(pack, manifest["shared"][0]))
    unchanged, aliases = parse_params(manifest["params"], slots)
    stored = [slot for i, slot in enumerate(slots) if i not in unchanged and i not in aliases and slot.size]
    units = units_of(manifest["codec"], stored)
    suffixes = [(".positions", ".values") if unit.name.startswith("sparse.") else ("",) for unit in units]
    names = [unit.name + suffix for unit, ends in zip(units, suffixes, strict=True) for suffix in ends]
    check(names == [row[0] for row in manifest["sections"]], "other sections than the tensors need")
    arrays = {slot.name: np.zeros(slot.size, words_of(slot.dtype)) for slot in slots}
    for unit in units:
        predicted = None
        if unit.name.split(".")[0] in ("ulps", "sparse"):
            pieces = [predict(base, slot, start, stop) for slot, start, stop in unit.pieces]
            predicted = np.concatenate(pieces)
        elements, at = decode_unit(file, unit, predicted), 0
        for slot, start, stop in unit.pieces:
            arrays[slot.name][start:stop] = elements[at : at + stop - start]
            at += stop - start
    for i in sorted(unchanged):
        arrays[slots[i].name] = predict(base, slots[i], 0, slots[i].size)
    for i, other in aliases.items():
        arrays[slots[i].name] = arrays[slots[other].name]
    tensors = {slot.name: (slot.dtype, slot.shape, arrays[slot.name].tobytes()) for slot in slots}
    digests = b"".join(hashlib.sha256(data).digest() for _, _, data in tensors.values())
    check(hashlib.sha256(digests).hexdigest() == manifest["decoded"], "decodes to another sha256")
    return tensors


def parse_params(params: dict[str, Any], slots: Sequence[Slot]) -> tuple[set[int], dict[int, int]]:
    """Return the numbers of the tensors that equal the base's, and of those that equal another."""
    check(set(params) == {"unchanged", "aliases"}, "params: other fields")
    unchanged, pairs = params["unchanged"], params["aliases"]
    check(isinstance(unchanged, list) and isinstance(pairs, list), "params: not lists")
    check(all(isinstance(pair, list) and len(pair) == 2 for pair in pairs), "params: not pairs")
    numbers = [*unchanged, *(number for pair in pairs for number in pair)]
    check(all(type(n) is int and 0 <= n < len(slots) for n in numbers), "params: an index beyond the tensors")
    aliases = {first: second for first, second in pairs}
    check(unchanged == sorted(set(unchanged)), "params: not rising")
    check([first for first, _ in pairs] == sorted(aliases), "params: not rising")
    for i in unchanged:
        base = slots[i].base
        check(base is not None and base.shape == slots[i].shape, "params: unchanged without a base")
    for i, other in aliases.items():
        check(i not in unchanged and other not in aliases, "params: an alias of an alias")
        check((slots[i].dtype, slots[i].shape) == (slots[other].dtype, slots[other].shape), "params: another shape")
    return set(unchanged), aliases


def predict(base: Base, slot: Slot, start: int, stop: int) -> Words:
    """Return what the base says of some elements of a tensor."""
    wanted = slot.base
    assert wanted is not None
    dtype, shape, data = base[wanted.name]
    if (dtype, shape, hashlib.sha256(data).hexdigest()) != (wanted.dtype, wanted.shape, wanted.sha256):
        raise Refused(f"another base: {wanted.name}")
    bits = np.frombuffer(data, words_of(dtype))[start:stop]
    if dtype == slot.dtype:
        return bits
    return np.array([round_bits(pattern, dtype, slot.dtype) for pattern in bits.tolist()], words_of(slot.dtype))


def decode_unit(file: File, unit: Unit, predicted: Words | None) -> Words:
    """Return the elements of a unit (codecs/)."""
    if not unit.name.startswith("sparse."):
        coder, dtype, count, data = file.section(unit.name)
        check((dtype, count) == (unit.dtype, unit.size), "a section of another shape")
        return decode_section(coder, data, dtype, count, unit.row, predicted)
    assert predicted is not None
    coder, dtype, count, data = file.section(f"{unit.name}.positions")
    check(dtype == "U32" and count <= unit.size, "positions of another shape")
    positions = decode_section(coder, data, dtype, count, max(1, count)).astype(np.int64)
    check(bool((np.diff(positions) > 0).all()), "positions that do not rise")
    check(count == 0 or int(positions[-1]) < unit.size, "a position beyond the unit")
    coder, dtype, changed, data = file.section(f"{unit.name}.values")
    check((dtype, changed) == (unit.dtype, count), "values of another shape")
    elements = predicted.copy()
    elements[positions] = decode_section(coder, data, dtype, count, max(1, count), predicted[positions])
    return elements

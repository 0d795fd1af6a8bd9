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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from tests.support import pcodec_reader

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
TEMPLATE_MOST = 1 << 25
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
        frame = zstandard.get_frame_parameters(data)
        check(frame.content_size == size, "a zstd frame of another size")
        single = data[4] >> 5 & 1
        check(bool(single) or frame.window_size <= 1 << 23, "a zstd frame of a larger window")
        check(frame.dict_id == 0, "a zstd frame with a dictionary")
        stream = zstandard.ZstdDecompressor().decompressobj()
        out = stream.decompress(data)
        check(stream.eof and not stream.unused_data, "bytes behind a zstd frame")
    except zstandard.ZstdError as error:
        raise Refused(str(error)) from error
    check(len(out) == size, "a zstd frame of another size")
    return out


def pcodec_stream(data: bytes, count: int, numbers: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers of one pcodec stream, which must be so many and of this type."""
    try:
        found = pcodec_reader.decode(data, count, numbers.kind, 8 * numbers.itemsize)
    except pcodec_reader.UnknownStreamError as error:
        raise Refused(str(error), unknown=True) from error
    except ValueError as error:
        raise Refused(str(error)) from error
    return np.array(found, numbers)


def _raw(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    check(len(data) == count * DTYPES[dtype][1], "raw: another number of bytes")
    return np.frombuffer(data, words_of(dtype))


def _planes(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
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


def _bitmap(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    check(dtype == "BOOL", "bitmap: not of BOOL")
    check(len(data) == (count + 7) // 8, "bitmap: another number of bytes")
    number = int.from_bytes(data, "little")
    check(number >> count == 0, "bitmap: bits behind the last element")
    return np.array([number >> i & 1 for i in range(count)], np.uint8)


def _gaps(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    check(DTYPES[dtype][0] == "unsigned", "gaps: not of an unsigned dtype")
    gaps = pcodec_stream(data, count, words_of(dtype)).tolist()
    positions, last = [], -1
    for gap in gaps:
        last += gap + 1
        check(last < 1 << (8 * DTYPES[dtype][1]), "gaps: a position beyond the dtype")
        positions.append(last)
    return np.array(positions, words_of(dtype))


def _numbers(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    ordered = pcodec_stream(data, count, words_of(dtype)).tolist()
    return np.array([from_ordered(number, dtype) for number in ordered], words_of(dtype))


def _signed(dtype: str) -> np.dtype[Any]:
    return np.dtype(f"<i{DTYPES[dtype][1]}")


def _ulps(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    if prediction is None:
        raise Refused("ulps: no prediction")
    differences = pcodec_stream(data, count, _signed(dtype))
    return prediction + differences.view(words_of(dtype))


def _rows(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    kind, _, exponent_bits, mantissa_bits = DTYPES[dtype]
    if prediction is None or kind != "float" or not count:
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
    old = prediction.tolist()
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


def _masks(data: bytes, dtype: str, count: int, row: int, prediction: Words | None) -> Words:
    check(dtype == "BOOL", "masks: not of BOOL")
    check(len(data) >= 1 and 1 <= data[0] <= 64, "masks: another number of classes")
    classes, at = data[0], 1 + 9 * data[0]
    check(len(data) >= at, "masks: ends in its table")
    streams: list[tuple[int, list[int]]] = []  # (value of the rest, positions of the other value), or (-1, bits)
    check(sum(entry[1] for entry in struct.iter_unpack("<BII", data[1:at])) <= count, "masks: too many numbers")
    for mode, numbers, length in struct.iter_unpack("<BII", data[1:at]):
        stream, at = data[at : at + length], at + length
        check(len(stream) == length, "masks: ends in a stream")
        check(mode <= 2, "masks: another mode")
        if mode == 0:
            check(numbers == 0, "masks: bits have no numbers")
            streams.append((-1, [octet >> i & 1 for octet in stream for i in range(8)]))
            continue
        position, positions = -1, []
        for gap in pcodec_stream(stream, numbers, np.dtype("<u4")).tolist():
            position += gap + 1
            positions.append(position)
        streams.append((mode - 1, positions))
    check(at == len(data), "masks: bytes behind the last stream")
    row = row if count % row == 0 else count
    before = [] if prediction is None else prediction.tolist()
    check(row > 0 or not before, "masks: no entries")
    check(not before or len(before) % row == 0, "masks: predicted rows of another length")
    kept = [sum(before[i::row]) for i in range(row)]
    rows = len(before) // row if row else 0
    cursors, starts = [0] * classes, [0] * classes  # entries of a class so far; positions of it that are used
    elements: list[int] = []
    for _ in range(count // row if row else 0):
        for i in range(row):
            c = 0 if classes == 1 else classes * (2 * kept[i] + 1) // (2 * rows + 2)
            check(c < classes, "masks: a predicted row that is no mask")
            rest, numbers_of = streams[c]
            at = cursors[c]
            cursors[c] += 1
            if rest < 0:
                check(at < len(numbers_of), "masks: fewer bits than entries")
                elements.append(numbers_of[at])
            elif starts[c] < len(numbers_of) and numbers_of[starts[c]] == at:
                starts[c] += 1
                elements.append(1 - rest)
            else:
                elements.append(rest)
        kept = [k + bit for k, bit in zip(kept, elements[-row:], strict=True)]
        rows += 1
    for (rest, numbers_of), read, used in zip(streams, cursors, starts, strict=True):
        if rest < 0:
            check(len(numbers_of) - read <= 7 and not any(numbers_of[read:]), "masks: bits behind the last entry")
        else:
            check(used == len(numbers_of), "masks: a position behind the last entry")
    return np.array(elements, np.uint8)


CODERS = {
    "raw": _raw,
    "planes": _planes,
    "bitmap": _bitmap,
    "masks": _masks,
    "gaps": _gaps,
    "numbers": _numbers,
    "ulps": _ulps,
    "rows": _rows,
}


def decode_section(coder: str, data: bytes, dtype: str, count: int, row: int, prediction: Words | None = None) -> Words:
    """Return the elements of a section from its bytes in the file."""
    if coder not in CODERS:
        raise Refused(f"coder {coder}", unknown=True)
    return CODERS[coder](data, dtype, count, row, prediction)


# container.md, manifest.md


@dataclass(frozen=True)
class File:
    """One opened file: its manifest, and the bytes of its sections, not yet compared with their checksums."""

    manifest: dict[str, Any]
    parts: dict[str, bytes]

    def section(self, name: str) -> tuple[str, str, int, bytes]:
        """Return coder, dtype, count and bytes of a section, the checksum compared."""
        row = next(row for row in self.manifest["sections"] if row[0] == name)
        check(xxhash.xxh3_64_hexdigest(self.parts[name]) == row[4], f"section {name}: another checksum")
        return row[1], row[2], row[3], self.parts[name]


def canonical(value: object) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_canonical(text: bytes) -> Any:
    """Parse JSON that must be canonical."""

    def refuse(number: str) -> None:
        raise Refused(f"a number that is no integer: {number}")

    try:
        value = json.loads(text.decode("utf-8"), parse_float=refuse, parse_constant=refuse)
        same = canonical(value) == text
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"not JSON: {error}") from error
    check(same, "not canonical JSON")
    check_values(value, 64)
    return value


def check_values(value: object, deep: int) -> None:
    """Refuse integers of more than 63 bits, and lists and objects too deep in one another."""
    if type(value) is int:
        check(abs(value) < 2**63, "an integer out of range")
    if isinstance(value, (list, dict)):
        check(deep > 0, "too deep")
        for item in value.values() if isinstance(value, dict) else value:
            check_values(item, deep - 1)


def decimal(text: object) -> float:
    """Return the number that a text of `manifest.md` says."""
    grammar = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?"
    check(isinstance(text, str) and len(text) <= 32 and re.fullmatch(grammar, text) is not None, "not a decimal")
    check(math.isfinite(float(text)), "a number that is not finite")  # type: ignore[arg-type]
    return float(text)  # type: ignore[arg-type]


def parse_header(text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Parse a safetensors header strictly; return the tensors and the metadata."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check(len(dict(pairs)) == len(pairs), "a key stands twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise Refused(name)

    def integer(digits: str) -> int:
        check(digits != "-0", "-0")
        return int(digits)

    check(text.startswith(b"{"), "a header that starts otherwise")
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse, parse_int=integer)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused(f"not JSON: {error}") from error
    check(isinstance(table, dict), "not an object")
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    check(isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()), "not strings")
    for entry in table.values():
        check(isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}, "another entry")
        check(isinstance(entry["dtype"], str), "dtype")
        for sizes in (entry["shape"], entry["data_offsets"]):
            check(isinstance(sizes, list) and all(type(n) is int and 0 <= n < 2**63 for n in sizes), "sizes")
        check(len(entry["data_offsets"]) == 2, "offsets")
        nbytes = entry["data_offsets"][1] - entry["data_offsets"][0]
        check(nbytes >= 0, "offsets")
        check(_is_shape(entry["shape"], entry["dtype"]), "a shape")
        if entry["dtype"] in DTYPES:
            check(math.prod(entry["shape"]) * DTYPES[entry["dtype"]][1] == nbytes, "shape and bytes")
    end = 0
    for entry in sorted(table.values(), key=lambda entry: entry["data_offsets"]):
        check(entry["data_offsets"][0] == end, "holes or overlaps")
        end = entry["data_offsets"][1]
    return table, metadata


def check_marks(text: bytes, packed: int) -> None:
    """Check that a text in so many bytes has few values."""
    marks = sum(text.count(mark) for mark in (b"[", b"{", b","))
    check(marks <= (1 << 17) + 16 * packed, "more values than the bytes explain")


def read_file(data: bytes) -> File:
    """Read one file whole."""
    check(len(data) >= 8, "shorter than 8 bytes")
    length = int.from_bytes(data[:8], "little")
    check(length <= min(HEADER_MOST, len(data) - 8), "a header longer than the file")
    text, body = data[8 : 8 + length], data[8 + length :]
    check(length <= 1 << 20 or text.count(b"{") - 3 <= (1 << 14) + len(body) // 16, "too many sections")
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
    check(size <= (1 << 20) + 256 * len(packed), "a manifest larger than its bytes explain")
    said = zstd_frame(packed[4:], size)
    check_marks(said, len(packed))
    manifest = parse_manifest(said)
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
    if isinstance(table.get("version"), bool) or table.get("version") != 1:
        raise Refused("manifest: another version", unknown=True)
    check(type(table["version"]) is int, "manifest: the version is no integer")
    if table.get("kind", "task") not in ("task", "shared"):
        raise Refused("manifest: another kind", unknown=True)
    fields = {"version", "kind", "codec", "sections"}
    if (table.get("kind"), table.get("codec")) != ("shared", "bytes"):
        fields |= {"shared", "decoded", "params", "facts"}
    if table.get("kind") == "task":
        fields.add("checksum")
    check(set(table) == fields, "manifest: other fields")
    said = {"shared": [], "decoded": "0" * 64, "checksum": "0" * 16, "params": {}, "facts": {}, **table}
    check(isinstance(said["params"], dict) and isinstance(said["facts"], dict), "manifest: not objects")
    check(isinstance(table["sections"], list) and isinstance(said["shared"], list), "manifest: not lists")
    check(all(_is_digest(digest) for digest in [said["decoded"], *said["shared"]]), "manifest: not a sha256")
    check(_is_checksum(said["checksum"]), "manifest: not a checksum")
    check(len(said["shared"]) <= 256, "manifest: too many parts")
    check(_is_name(table["codec"]), "manifest: not a name")
    for row in table["sections"]:
        check(isinstance(row, list) and len(row) == 5, "manifest: not a section")
        name, coder, dtype, count, checksum = row
        check(_is_name(name) and _is_name(coder) and _is_checksum(checksum), "manifest: not a section")
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


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


# template.md


@dataclass(frozen=True)
class BaseTensor:
    """What a table of a base says of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    checksum: str


BaseTable = Mapping[str, BaseTensor]


@dataclass(frozen=True)
class View:
    """What of a base predicts a tensor: its JSON, its dtype and shape, the base tensors that it needs."""

    said: Any
    dtype: str
    shape: tuple[int, ...]
    tensors: tuple[BaseTensor, ...]


@dataclass(frozen=True)
class Slot:
    """One tensor of a template, or of a shared part; `kind` where it is another than the name tells."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: View | None = None
    head: bool = False
    part: tuple[int, int] | None = None
    kind: str | None = None

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements of a row."""
        return max(1, math.prod(self.shape[1:]) if len(self.shape) > 1 else self.size)

    @property
    def order(self) -> str:
        """What tensors of one kind have in common."""
        return kind_of(self.name) if self.kind is None else self.kind


@dataclass(frozen=True)
class Template:
    """A parsed template, the task's name put in; `weights` are the files with their headers and numbers of tensors."""

    weights: tuple[tuple[str, str, int], ...]
    slots: tuple[Slot, ...]
    parts: tuple[tuple[str | None, ...], ...]
    rule: dict[str, Any] | None
    files: dict[str, str]
    named: tuple[str, ...]


def parse_base_table(text: bytes) -> BaseTable:
    """Parse and check the table of a base."""
    rows = parse_canonical(text)
    check(isinstance(rows, list), "base table: not a list")
    table: dict[str, BaseTensor] = {}
    for row in rows:
        check(isinstance(row, list) and len(row) == 5, "base table: another row")
        name, dtype, shape, digest, checksum = row
        check(isinstance(name, str) and isinstance(dtype, str), "base table: another row")
        check(_is_digest(digest) and _is_checksum(checksum), "base table: another row")
        check(_is_shape(shape, dtype), "base table: a shape")
        if dtype not in DTYPES:
            raise Refused("base table: another dtype", unknown=True)
        table[name] = BaseTensor(name, dtype, tuple(shape), digest, checksum)
    check([row[0] for row in rows] == sorted(table), "base table: not sorted")
    return table


def check_origin(origin: Any) -> None:
    """Check what a template says of the base that the run was encoded against."""
    if origin is None:
        return
    check(isinstance(origin, dict) and set(origin) == {"name", "path", "sha256"}, "template: origin")
    texts = origin["name"], origin["path"]
    check(all(isinstance(item, str) and is_text(item) for item in texts), "template: origin")
    check(_is_digest(origin["sha256"]), "template: not a sha256")


def check_adapts(adapts: Any) -> None:
    """Check what a template says of the tensors of the base that an adapter adapts."""
    if adapts is None:
        return
    check(isinstance(adapts, dict) and set(adapts) == {"sha256", "tensors"}, "template: adapts")
    names = adapts["tensors"]
    check(isinstance(names, list) and all(isinstance(item, str) for item in names), "template: adapts")
    check(names == sorted(set(names)) and _is_digest(adapts["sha256"]), "template: adapts")


def parse_template(text: bytes, name: str | None, table_of: Callable[[str], BaseTable]) -> Template:
    """Parse and check a template; `table_of` reads the table of a base."""
    table = parse_canonical(text)
    fields = {"weights", "base_name", "origin", "base", "adapts", "head", "parts", "rule", "files", "named"}
    check(isinstance(table, dict) and set(table) == fields, "template: other fields")
    check(table["base_name"] is None or isinstance(table["base_name"], str), "template: base_name")
    check_origin(table["origin"])
    check_adapts(table["adapts"])
    check(table["rule"] is None or isinstance(table["rule"], dict), "template: rule")
    check(isinstance(table["files"], dict), "template: files")
    check(all(_is_digest(digest) for digest in table["files"].values()), "template: not a sha256")
    for field in ("head", "named"):
        texts = table[field]
        check(isinstance(texts, list) and all(isinstance(item, str) for item in texts), f"template: {field}")
        check(texts == sorted(set(texts)), f"template: {field} is not sorted")
    check(isinstance(table["weights"], list) and isinstance(table["parts"], list), "template: not lists")
    for entry in table["weights"]:
        check(isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry), "weights")
    for part in table["parts"]:
        check(isinstance(part, list) and all(item is None or isinstance(item, str) for item in part), "template: parts")
    if table["base"] is not None:
        check(isinstance(table["base"], dict) and set(table["base"]) == {"table", "tensors"}, "template: base")
        pairs = table["base"]["tensors"]
        check(_is_digest(table["base"]["table"]) and isinstance(pairs, list), "template: base")
        for pair in pairs:
            check(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str), "template: base")
        told = [pair[0] for pair in pairs]
        check(told == sorted(set(told)), "template: base")
    if name is not None:
        grown = len(text) + text.count(b"{name}") * (len(name) - 6)
        check(grown <= (1 << 16) + 8 * len(text), "template: the name makes too much of it")
        check(_is_task_name(name), "template: not a name")
        table = {
            **{
                field: value if field in ("base_name", "origin", "base", "adapts", "files") else _bound(value, name)
                for field, value in table.items()
            },
            "files": {_bound(file, name): digest for file, digest in table["files"].items()},
        }
        if table["base"] is not None:
            pairs = [[_bound(tensor, name), view] for tensor, view in table["base"]["tensors"]]
            table["base"] = {**table["base"], "tensors": pairs}
        for entry in table["weights"]:
            entry[1] += " " * (-len(entry[1].encode()) % 8)
        check(len(table["files"]) == len(json.loads(text)["files"]), "template: a file twice")
        check(all(len(set(table[field])) == len(table[field]) for field in ("head", "named")), "template: twice")
    base: dict[str, View] = {}
    if table["base"] is not None:
        known = table_of(table["base"]["table"])
        base = {tensor: parse_view(said, known) for tensor, said in table["base"]["tensors"]}
        check(len(base) == len(table["base"]["tensors"]), "template: two tensors of the base")
    names = [item for part in table["parts"] for item in part if item is not None]
    check(len(set(names)) == len(names), "template: a tensor in two parts")
    places = {item: (k, i) for k, part in enumerate(table["parts"]) for i, item in enumerate(part)}
    slots: list[Slot] = []
    weights: list[tuple[str, str, int]] = []
    for file, header, prefix in table["weights"]:
        check(prefix == "" or (prefix.endswith("/") and _is_file_name(prefix[:-1])), "template: a prefix")
        try:
            tensors, _ = parse_header(header.encode())
        except UnicodeEncodeError as error:
            raise Refused("template: a lone surrogate") from error
        weights.append((file, header, len(tensors)))
        for own, row in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            known_dtype = row["dtype"] in DTYPES
            start, stop = row["data_offsets"]
            shape = tuple(row["shape"]) if known_dtype else (stop - start,)
            dtype = row["dtype"] if known_dtype else "U8"
            called = prefix + own
            slots.append(Slot(called, dtype, shape, base.get(called), called in table["head"], places.get(called)))
    held = [slot.name for slot in slots]
    check(len(set(held)) == len(held), "template: a tensor twice")
    check(set(names) <= set(held), "template: a part of other tensors")
    files = [entry[0] for entry in table["weights"]]
    check(all(_is_file_name(file) for file in [*files, *table["files"]]), "template: a file name")
    check(len({*files, *table["files"]}) == len(files) + len(table["files"]), "template: a file twice")
    check_apart([*files, *table["files"]])
    check(set(table["named"]) <= set(table["files"]), "template: a file that is not kept")
    for slot in slots:
        if slot.base is None:
            continue
        check(slot.part is None, "template: in a part and in the base")
        if slot.base.shape != slot.shape:
            check(len(slot.shape) == len(slot.base.shape) >= 2, "template: another base")
            check(slot.shape[1:] == slot.base.shape[1:], "template: another base")
        if slot.base.dtype != slot.dtype:
            check(DTYPES[slot.dtype][0] == DTYPES[slot.base.dtype][0] == "float", "template: a base that cannot round")
    parts = tuple(tuple(part) for part in table["parts"])
    return Template(tuple(weights), tuple(slots), parts, table["rule"], table["files"], tuple(table["named"]))


def _bound(value: Any, name: str) -> Any:
    """Put the task's name into every text, but for the keys of objects."""
    if isinstance(value, str):
        return value.replace("{name}", name)
    if isinstance(value, list):
        return [_bound(item, name) for item in value]
    return {key: _bound(item, name) for key, item in value.items()} if isinstance(value, dict) else value


def _is_shape(value: object, dtype: str = "U8") -> bool:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        return False
    return len(value) <= 64 and math.prod(n for n in value if n) * DTYPES.get(dtype, ("", 1))[1] < 2**63


def _is_task_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch("[A-Za-z0-9._-]{1,128}", name) is not None


def is_text(name: str) -> bool:
    """Tell whether a text has no control character, and no half of a character."""
    return not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name)


def _is_file_name(name: str) -> bool:
    return (
        is_text(name)
        and not set(name) & set("\\:")
        and len(name.encode()) <= 4096
        and not any(part in ("", ".", "..") or len(part.encode()) > 255 for part in name.split("/"))
    )


def check_apart(names: Sequence[str]) -> None:
    """Refuse names that are one file, or a file and a directory, where A to Z are as a to z."""
    folded = ["".join(c.lower() if c.isascii() else c for c in name) for name in names]
    check(len(set(folded)) == len(folded), "template: files that differ in case")
    places = {name[:i] for name in folded for i, c in enumerate(name) if c == "/"}
    check(not places & set(folded), "template: a file and a directory")


# shared.md


def open_shared(pack: Path, sha256: str) -> File:
    """Open the file of a shared part."""
    path = pack / "shared" / f"{sha256}.petl.safetensors"
    check(path.is_file(), "a shared part is missing")
    file = read_file(path.read_bytes())
    manifest = file.manifest
    check(manifest["kind"] == "shared", "not a shared part")
    if manifest["codec"] != "bytes":
        check((manifest["shared"], manifest["facts"]) == ([], {}), "not a shared part")
        check(manifest["decoded"] == sha256, "shared: another name")
    return file


def read_shared(pack: Path, sha256: str, most: int = SHARED_MOST) -> bytes:
    """Return the content of a shared part of bytes."""
    file = open_shared(pack, sha256)
    manifest = file.manifest
    check(manifest["codec"] == "bytes", "not a shared part of bytes")
    check(len(manifest["sections"]) == 1 and manifest["sections"][0][0] == "content", "not a shared part of bytes")
    coder, dtype, count, data = file.section("content")
    check(dtype == "U8" and count <= most, "not a shared part of bytes")
    check(most != TEMPLATE_MOST or count <= (1 << 20) + 256 * len(data), "a text larger than its bytes explain")
    content = decode_section(coder, data, dtype, count, max(1, count)).tobytes()
    if most == TEMPLATE_MOST:
        check_marks(content, len(data))
    check(hashlib.sha256(content).hexdigest() == sha256, "shared: another sha256")
    return content


def read_part(pack: Path, sha256: str) -> list[tuple[Slot, Words]]:
    """Return the tensors of a shared part of tensors."""
    file = open_shared(pack, sha256)
    params = file.manifest["params"]
    check(set(params) == {"tensors"} and isinstance(params["tensors"], list), "part: other params")
    check(len(params["tensors"]) <= 1 << 14, "part: too many tensors")
    slots: list[Slot] = []
    for row in params["tensors"]:
        check(isinstance(row, list) and len(row) == 3, "part: another row")
        dtype, shape, kind = row
        check(isinstance(dtype, str) and _is_shape(shape, dtype), "part: another row")
        check(type(kind) is int and 0 <= kind < len(params["tensors"]), "part: another kind")
        if dtype not in DTYPES:
            raise Refused("part: another dtype", unknown=True)
        slots.append(Slot(str(len(slots)), dtype, tuple(shape), kind=f"{kind:04d}"))
    check_room(slots, file)
    arrays = {slot.name: np.zeros(slot.size, words_of(slot.dtype)) for slot in slots}
    fill(arrays, file, [slot for slot in slots if slot.size], {}, [])
    table = [[s.dtype, list(s.shape), hashlib.sha256(arrays[s.name].tobytes()).hexdigest()] for s in slots]
    name = hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()
    check(name == sha256, "part: another sha256")
    return [(slot, arrays[slot.name]) for slot in slots]


# views.md


def parse_view(said: Any, table: BaseTable, deep: int = 8) -> View:
    """Parse and check a view."""
    if isinstance(said, str):
        check(said in table, "view: no such tensor of the base")
        return View(said, table[said].dtype, table[said].shape, (table[said],))
    check(isinstance(said, list) and bool(said) and isinstance(said[0], str), "view: neither a name nor a step")
    check(deep > 0, "view: too deep")
    step, *fields = said
    if step not in ("reshape", "transpose", "slice", "concatenate", "scale"):
        raise Refused("view: another step", unknown=True)
    forms = {"reshape": "sv", "transpose": "v", "slice": "nnnv", "concatenate": "nl", "scale": "svv"}
    is_form: dict[str, Callable[[Any], bool]] = {
        "s": _is_shape,
        "n": lambda value: type(value) is int and 0 <= value < 2**63,
        "v": lambda value: isinstance(value, (str, list)),
        "l": lambda value: isinstance(value, list) and bool(value),
    }
    check(len(fields) == len(forms[step]), "view: other fields")
    check(all(is_form[form](field) for form, field in zip(forms[step], fields, strict=True)), "view: other fields")
    inner = {"reshape": fields[1:], "transpose": fields, "slice": fields[3:], "scale": fields[1:]}
    parts = [parse_view(value, table, deep - 1) for value in inner.get(step, fields[-1])]
    check(all(math.prod(part.shape) for part in parts), "view: no elements")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    check(len(tensors) <= 65536, "view: too many tensors")
    shape = _shape_of(step, fields, parts)
    check(math.prod(shape) < 2**63, "view: too many elements")
    named = sum({tensor.name: math.prod(tensor.shape) for tensor in tensors}.values())
    check(step != "concatenate" or math.prod(shape) <= 16 * named, "view: a tensor too often")
    return View(said, "F32" if step == "scale" else parts[0].dtype, shape, tensors)


def _shape_of(step: str, fields: list[Any], parts: list[View]) -> tuple[int, ...]:
    """Return the shape of a step, which must fit its views."""
    shape = parts[0].shape
    if step == "reshape":
        check(math.prod(fields[0]) == math.prod(shape), "view: another number of elements")
        return tuple(fields[0])
    if step == "transpose":
        check(len(shape) >= 2, "view: fewer than two axes")
        return (*shape[:-2], shape[-1], shape[-2])
    if step == "scale":
        blocks = fields[0]
        check(len(blocks) == len(shape) and 0 not in blocks, "view: other blocks")
        most = [-(-size // block) for size, block in zip(shape, blocks, strict=True)]
        check(list(parts[1].shape) == most, "view: another number of scales")
        narrow = all(DTYPES[part.dtype][0] == "float" and DTYPES[part.dtype][1] <= 4 for part in parts)
        check(narrow, "view: scales of another dtype")
        return shape
    axis = fields[0]
    check(axis < len(shape), "view: no such axis")
    if step == "slice":
        check(fields[1] < fields[2] <= shape[axis], "view: no such slice")
        return (*shape[:axis], fields[2] - fields[1], *shape[axis + 1 :])
    for part in parts:
        check(part.dtype == parts[0].dtype and len(part.shape) == len(shape), "view: another dtype or shape")
        check(
            (*part.shape[:axis], *part.shape[axis + 1 :]) == (*shape[:axis], *shape[axis + 1 :]), "view: another shape"
        )
    return (*shape[:axis], sum(part.shape[axis] for part in parts), *shape[axis + 1 :])


def elements_of(said: Any, arrays: Mapping[str, tuple[str, Words]]) -> tuple[str, Words]:
    """Return dtype and elements of a view of tensors, which are given as (dtype, elements in their shape)."""
    if isinstance(said, str):
        return arrays[said]
    step, *fields = said
    if step == "concatenate":
        parts = [elements_of(value, arrays) for value in fields[1]]
        return parts[0][0], np.concatenate([bits for _, bits in parts], axis=fields[0])
    if step == "scale":
        return "F32", _times_scales(fields[0], elements_of(fields[1], arrays), elements_of(fields[2], arrays))
    dtype, bits = elements_of(fields[-1], arrays)
    if step == "reshape":
        return dtype, bits.reshape(fields[0])
    if step == "transpose":
        return dtype, bits.swapaxes(-1, -2)
    return dtype, np.take(bits, range(fields[1], fields[2]), axis=fields[0])


def _times_scales(blocks: list[int], weights: tuple[str, Words], scales: tuple[str, Words]) -> Words:
    out = np.empty(weights[1].shape, np.dtype("<u4"))
    for place in np.ndindex(weights[1].shape):
        block = tuple(i // size for i, size in zip(place, blocks, strict=True))
        factors = [round_bits(int(bits[at]), dtype, "F64") for (dtype, bits), at in ((weights, place), (scales, block))]
        one, other = (struct.unpack("<d", struct.pack("<Q", factor))[0] for factor in factors)
        product = one * other  # of two factors of 24 bits, which is exact in 53
        (bits,) = struct.unpack("<Q", struct.pack("<d", product))
        out[place] = round_bits(bits, "F64", "F32")
    return out


# units.md


@dataclass(frozen=True)
class Unit:
    """Pieces of tensors that share sections: (tensor, first element, element behind the last)."""

    name: str
    dtype: str
    row: int
    pieces: tuple[tuple[Slot, int, int], ...]
    prediction: tuple[Slot, ...] = ()

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


def entries_of(slot: Slot) -> int:
    """Return how many entries one mask of a tensor has."""
    layer = math.prod(slot.shape[1:]) if len(slot.shape) > 2 and slot.shape[0] else 0
    return layer if layer >= 1024 else max(1, slot.size)


Piece = tuple[Slot, int, int]


def cut(pieces: Sequence[Piece], label: str, most: int, length: Callable[[Slot], int]) -> list[Unit]:
    """Cut pieces into units."""
    families: dict[tuple[str, int], list[Piece]] = {}
    for piece in pieces:
        if piece[1] < piece[2]:
            families.setdefault((piece[0].dtype, min(length(piece[0]), most)), []).append(piece)
    units: list[Unit] = []
    for (dtype, row), family in sorted(families.items(), key=lambda item: item[0]):
        full = most - most % row
        run: list[Piece] = []
        room = full
        for slot, first, behind in sorted(family, key=lambda piece: piece[0].order):
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


def rows_of(slot: Slot) -> int:
    """Return the row length of a label whose units end at rows."""
    return slot.row


def no_rows(slot: Slot) -> int:
    """Return the row length of a label whose units end anywhere."""
    return 1


def units_of(codec: str, stored: Sequence[Slot], shared: Sequence[Slot] = ()) -> list[Unit]:
    """Return the units of a codec for the tensors that it stores (codecs/); `shared` are those of shared parts."""
    based = [(slot, 0, from_base(slot)) for slot in stored]
    own = [(slot, from_base(slot), slot.size) for slot in stored]
    if codec == "ulp":
        return [*cut(based, "ulps", 1 << 20, rows_of), *cut(own, "head", 1 << 20, no_rows)]
    if codec == "sparse":
        return [*cut(based, "sparse", 1 << 24, no_rows), *cut(own, "head", 1 << 24, no_rows)]
    if codec == "plain":
        tensors, head = ([piece for piece in own if piece[0].head == of_head] for of_head in (False, True))
        return [
            *cut(based, "changed", 1 << 20, rows_of),
            *cut(tensors, "tensors", 1 << 20, rows_of),
            *cut(head, "head", 1 << 20, no_rows),
        ]
    if codec not in ("mask", "merge", "hyper"):
        raise Refused(f"codec {codec}", unknown=True)
    body = [piece for piece in own if not piece[0].head]
    masks = [piece for piece in body if piece[0].dtype == "BOOL"]
    units: list[Unit] = []
    for kind in sorted({slot.order for slot, start, stop in masks if start < stop}):
        for unit in cut([piece for piece in masks if piece[0].order == kind], "masks", 1 << 24, entries_of):
            like = [s for s in shared if s.dtype == "BOOL" and s.order == kind and entries_of(s) == unit.row]
            best = [slot for slot in like if not slot.name] or like
            prediction = () if unit.size % unit.row else tuple(best)
            units.append(replace(unit, name=f"masks.{len(units)}", prediction=prediction))
    return [
        *cut(based, "changed", 1 << 20, rows_of),
        *units,
        *cut([piece for piece in body if piece[0].dtype != "BOOL"], "tensors", 1 << 20, rows_of),
        *cut([piece for piece in own if piece[0].head], "head", 1 << 20, no_rows),
    ]


# tasks

Base = Mapping[str, tuple[str, tuple[int, ...], bytes]]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def check_room(slots: Sequence[Slot], file: File) -> None:
    """Refuse more elements than the sections of a file can hold, before anything is allocated for them."""
    check(sum(slot.size for slot in slots) <= len(file.parts) << 24, "more elements than the sections can hold")


def fill(
    arrays: Mapping[str, Words],
    file: File,
    stored: Sequence[Slot],
    base: Base,
    shared: Sequence[tuple[Slot, Words]],
) -> None:
    """Decode the sections of a file into the arrays of the tensors that it stores."""
    units = units_of(file.manifest["codec"], stored, [slot for slot, _ in shared])
    suffixes = [(".positions", ".values") if unit.name.startswith("sparse.") else ("",) for unit in units]
    names = [unit.name + suffix for unit, ends in zip(units, suffixes, strict=True) for suffix in ends]
    check(names == [row[0] for row in file.manifest["sections"]], "other sections than the tensors need")
    for unit in units:
        prediction = None
        if unit.name.split(".")[0] in ("ulps", "sparse", "changed"):
            prediction = np.concatenate([predict(base, slot, start, stop) for slot, start, stop in unit.pieces])
        elif unit.prediction:
            prediction = np.concatenate([bits for slot, bits in shared if slot in unit.prediction])
        elements, at = decode_unit(file, unit, prediction), 0
        for slot, start, stop in unit.pieces:
            arrays[slot.name][start:stop] = elements[at : at + stop - start]
            at += stop - start


def check_mark(text: bytes) -> None:
    """Check the text of a pack.json."""
    try:
        pairs = json.loads(text.decode("utf-8"), object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise Refused("pack.json is no JSON", unknown=True) from error
    said = (
        sorted(pairs, key=lambda pair: pair[0])
        if isinstance(pairs, list) and all(type(pair) is tuple for pair in pairs)
        else []
    )
    if said != [("format", "petlpack"), ("version", 1)] or type(said[1][1]) is not int:
        raise Refused("not version 1 of a pack", unknown=True)


_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE | re.DOTALL)


def check_task_name(name: str) -> None:
    """Check what a task of a pack is called."""
    check(_is_task_name(name) and name[0] != "." and not _DEVICE.fullmatch(name), "not a name of a task")


def released(text: bytes) -> list[str]:
    """Return the parts that a journal names."""
    lines = text.decode("ascii", "replace").split("\n")[:-1] if len(text) <= 67_108_864 else []
    return [line for line in lines if re.fullmatch(r"[0-9a-f]{64}", line)]


def parse_inventory(text: bytes) -> list[list[Any]]:
    """Return the files of an inventory."""
    table = parse_canonical(text)
    check(isinstance(table, dict), "inventory: no object")
    if table.get("format") != "petlpack-inventory" or table.get("version") != 1 or table["version"] is True:
        raise Refused("not version 1 of an inventory", unknown=True)
    check(set(table) == {"format", "version", "files", "sha256", "stale"}, "inventory: fields")
    check(isinstance(table["stale"], bool) and isinstance(table["files"], list), "inventory: fields")
    names = []
    for row in table["files"]:
        check(isinstance(row, list) and [type(cell) for cell in row] == [str, int, str], "inventory: a row")
        name, size, sha256 = row
        check(not {"", ".", ".."} & {*name.split("/")} and name != "inventory.json", "inventory: a name")
        check(size >= 0 and re.fullmatch(r"[0-9a-f]{64}", sha256) is not None, "inventory: a row")
        names.append(name.encode())
    check(names == sorted(set(names)), "inventory: the order of its files")
    files = json.dumps(table["files"], separators=(",", ":"), ensure_ascii=False).encode()
    check(table["sha256"] == hashlib.sha256(files).hexdigest(), "inventory: another sha256")
    return list(table["files"])


def open_task(pack: Path, name: str) -> tuple[File, Template]:
    """Open a task and its template."""
    check_mark((pack / "pack.json").read_bytes())
    file = read_file((pack / "tasks" / f"{name}.petl.safetensors").read_bytes())
    manifest = file.manifest
    check(manifest["kind"] == "task" and len(manifest["shared"]) >= 1, "not a task")
    called = manifest["params"].get("name")
    check(called is None or _is_task_name(called), "params: not a name")

    def table_of(sha256: str) -> BaseTable:
        return parse_base_table(read_shared(pack, sha256, TEMPLATE_MOST))

    return file, parse_template(read_shared(pack, manifest["shared"][0], TEMPLATE_MOST), called, table_of)


def read_task(pack: Path, name: str, base: Base) -> Tensors:
    """Return every tensor of a task as (dtype, shape, bytes); `base` is given in the same form."""
    file, template = open_task(pack, name)
    slots, manifest = template.slots, file.manifest
    unchanged, aliases = parse_params(manifest["params"], slots)
    kinds = kinds_of(manifest["codec"], template.rule)
    slots = tuple(replace(slot, kind=kinds[slot.name]) if slot.name in kinds else slot for slot in slots)
    check(len(manifest["shared"]) == 1 + len(template.parts), "another number of shared parts")
    own = {slot.name: slot for slot in slots}
    elsewhere = {*unchanged, *aliases}
    stored = [slot for i, slot in enumerate(slots) if i not in elsewhere and slot.part is None and slot.size]
    check_room(stored, file)
    arrays = {slot.name: np.zeros(slot.size, words_of(slot.dtype)) for slot in slots}
    shared: list[tuple[Slot, Words]] = []
    for number, (sha256, names) in enumerate(zip(manifest["shared"][1:], template.parts, strict=True)):
        part = read_part(pack, sha256)
        check(len(part) == len(names), "a part of another number of tensors")
        told = {held.kind: own[called].order for (held, _), called in zip(part, names, strict=True) if called}
        for i, ((held, bits), called) in enumerate(zip(part, names, strict=True)):
            slot = replace(held, name="", part=(number, i), kind=told.get(held.kind, ""))
            if called is not None:
                slot, arrays[called] = own[called], bits
            check((slot.dtype, slot.shape) == (held.dtype, held.shape), "a part of other tensors")
            shared.append((slot, bits))
    fill(arrays, file, stored, base, shared)
    for i in sorted(unchanged):
        arrays[slots[i].name] = predict(base, slots[i], 0, slots[i].size)
    for i, other in aliases.items():
        arrays[slots[i].name] = arrays[slots[other].name]
    tensors = {slot.name: (slot.dtype, slot.shape, arrays[slot.name].tobytes()) for slot in slots}
    digests = b"".join(hashlib.sha256(data).digest() for _, _, data in tensors.values())
    check(hashlib.sha256(digests).hexdigest() == manifest["decoded"], "decodes to another sha256")
    checksums = b"".join(xxhash.xxh3_64_digest(data) for _, _, data in tensors.values())
    check(xxhash.xxh3_64_hexdigest(checksums) == manifest["checksum"], "decodes to another checksum")
    return tensors


def read_run(pack: Path, task: str, base: Base) -> dict[str, bytes]:
    """Return every file of a task's run; a weight file as safetensors, whatever its name says."""
    _, template = open_task(pack, task)
    tensors = iter(read_task(pack, task, base).values())
    files = {}
    for file, header, count in template.weights:
        text = header.encode()
        data = [next(tensors)[2] for _ in range(count)]
        files[file] = b"".join([struct.pack("<Q", len(text)), text, *data])
    return files | {file: read_kept(pack, task, file) for file in template.files}


def rebuild_task(pack: Path, task: str, base: Base) -> Tensors:
    """Return what the rule of a task rebuilds."""
    opened, template = open_task(pack, task)
    tensors = read_task(pack, task, base)
    if template.rule is None:
        raise Refused("no rule")
    return rebuild(opened.manifest["codec"], template.rule, tensors)


def read_weights(data: bytes) -> Tensors:
    """Return the tensors of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    table, _ = parse_header(data[8 : 8 + length])
    body = data[8 + length :]
    return {name: (row["dtype"], tuple(row["shape"]), body[slice(*row["data_offsets"])]) for name, row in table.items()}


def read_kept(pack: Path, task: str, file: str) -> bytes:
    """Return a kept file of a task."""
    opened, template = open_task(pack, task)
    content, called = read_shared(pack, template.files[file]), opened.manifest["params"]["name"]
    if file not in template.named or called is None:
        return content
    check(len(content) <= 1 << 20, "a file with the name in it is too large")
    try:
        return content.decode("utf-8").replace("{name}", called).encode()
    except UnicodeDecodeError as error:
        raise Refused("a file with the name in it is no UTF-8") from error


def parse_params(params: dict[str, Any], slots: Sequence[Slot]) -> tuple[set[int], dict[int, int]]:
    """Return the numbers of the tensors that equal the base's, and of those that equal another."""
    check(set(params) == {"unchanged", "aliases", "name"}, "params: other fields")
    ranges, pairs = params["unchanged"], params["aliases"]
    check(params["name"] is None or _is_task_name(params["name"]), "params: not a name")
    check(isinstance(ranges, list) and isinstance(pairs, list), "params: not lists")
    check(all(isinstance(pair, list) and len(pair) == 2 for pair in [*ranges, *pairs]), "params: not pairs")
    check(all(type(n) is int for pair in [*ranges, *pairs] for n in pair), "params: not integers")
    check(all(0 <= n < len(slots) for pair in pairs for n in pair), "params: an index beyond the tensors")
    aliases = {first: second for first, second in pairs}
    check([first for first, _ in pairs] == sorted(aliases), "params: not rising")
    unchanged: set[int] = set()
    behind = -1
    for start, stop in ranges:
        check(behind < start < stop <= len(slots), "params: ranges that do not rise")
        unchanged |= set(range(start, stop))
        behind = stop
    for i in unchanged:
        base = slots[i].base
        check(base is not None and base.shape == slots[i].shape, "params: unchanged without a base")
    for i, other in aliases.items():
        check(i not in unchanged and other not in aliases, "params: an alias of an alias")
        check(slots[i].part is None, "params: an alias in a part")
        check((slots[i].dtype, slots[i].shape) == (slots[other].dtype, slots[other].shape), "params: another shape")
    return unchanged, aliases


def predict(base: Base, slot: Slot, start: int, stop: int) -> Words:
    """Return what the base says of some elements of a tensor."""
    wanted = slot.base
    assert wanted is not None
    arrays: dict[str, tuple[str, Words]] = {}
    for tensor in wanted.tensors:
        check(tensor.name in base, f"the base has no {tensor.name}")
        dtype, shape, data = base[tensor.name]
        sums = hashlib.sha256(data).hexdigest(), xxhash.xxh3_64_hexdigest(data)
        if (dtype, shape, *sums) != (tensor.dtype, tensor.shape, tensor.sha256, tensor.checksum):
            raise Refused(f"another base: {tensor.name}")
        arrays[tensor.name] = dtype, np.frombuffer(data, words_of(dtype)).reshape(shape)
    dtype, elements = elements_of(wanted.said, arrays)
    bits = elements.reshape(-1)[start:stop]
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


# methods.md: rules, and what they rebuild


def kinds_of(codec: str, rule: dict[str, Any] | None) -> dict[str, str]:
    """Return the kinds that a rule tells; refuses a rule of another codec."""
    if codec not in ("mask", "merge", "hyper"):
        check(rule is None, "a rule of a codec that knows none")
        return {}
    parse_rule(codec, rule)
    assert rule is not None
    kinds: dict[str, str] = {}
    for row in rule["rows"] if codec == "mask" else ():
        for mask in row[2]:
            kinds.setdefault(mask, row[1])
    return kinds


_MORE = {"mask": ("produced",), "merge": (), "hyper": ("trunks",)}


def parse_rule(codec: str, rule: dict[str, Any] | None) -> None:
    """Check a rule."""
    if rule is None:
        raise Refused("no rule")
    check(set(rule) == {"kind", "settings", "rows", *_MORE[codec]}, "rule: other fields")
    if rule["kind"] not in ("adapter", "lora", "prefix"):
        raise Refused("rule: another kind", unknown=True)
    check(isinstance(rule["settings"], dict), "rule: settings")
    scaling = rule["settings"].get("scaling", 0)
    check(type(scaling) is int or abs(decimal(scaling)) < 1e30, "rule: scaling")
    for field, is_row in _ROWS[codec].items():
        check(isinstance(rule[field], list), f"rule: {field}")
        check(all(isinstance(row, list) and is_row(row) for row in rule[field]), f"rule: a row of {field}")
    if codec == "hyper":
        check(all(row[3] is None or row[3] < len(rule["trunks"]) for row in rule["rows"]), "rule: a trunk out of range")


def _texts(value: object, count: int | None = None) -> bool:
    right = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return right and (count is None or len(value) == count)  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_masked(row: list[Any]) -> bool:
    if len(row) != 6 or not _texts(row[:2]) or not _texts(row[2]) or type(row[4]) is not bool:
        return False
    known = ("none",) if len(row[2]) <= 1 else ("or", "and", "add")
    return row[3] in known and (row[5] is None or _whole(row[5]))


def _is_produced(row: list[Any]) -> bool:
    return len(row) == 4 and _texts(row[:2]) and _texts(row[2], 2) and _texts(row[3], 2)


def _is_average(row: list[Any]) -> bool:
    if len(row) != 3 or not isinstance(row[0], str) or not _texts(row[1]):
        return False
    return len(row[1]) == 1 if row[2] is None else isinstance(row[2], str) and len(row[1]) >= 1


def _is_trunk(row: list[Any]) -> bool:
    if len(row) != 4 or not _texts(row[0], 2) or not _texts(row[1], 2) or not (row[2] is None or _texts(row[2], 2)):
        return False
    return 0 <= decimal(row[3]) < 1


def _is_generated(row: list[Any]) -> bool:
    if len(row) != 7 or not _texts(row[:2]) or not (row[2] is None or isinstance(row[2], str)):
        return False
    if not (row[3] is None or _whole(row[3])) or not isinstance(row[4], list) or not isinstance(row[5], list):
        return False
    codes = all(isinstance(code, list) and len(code) == 2 and isinstance(code[0], str) for code in row[4])
    return codes and all(_whole(code[1]) for code in row[4]) and all(map(_whole, row[5])) and type(row[6]) is bool


_ROWS: dict[str, dict[str, Callable[[list[Any]], bool]]] = {
    "mask": {"rows": _is_masked, "produced": _is_produced},
    "merge": {"rows": _is_average},
    "hyper": {"trunks": _is_trunk, "rows": _is_generated},
}


class Numbers:
    """A float tensor as Python floats, which are F64."""

    def __init__(self, tensor: tuple[str, tuple[int, ...], bytes]) -> None:
        self.dtype, self.shape, data = tensor
        check(DTYPES[self.dtype][0] == "float", "a rule computes with what is no float")
        self.flat = [to_float(bits, self.dtype) for bits in np.frombuffer(data, words_of(self.dtype)).tolist()]

    def row(self, i: int) -> list[float]:
        """Return a row of a matrix."""
        width = self.shape[1]
        return self.flat[i * width : (i + 1) * width]

    def times(self, column: Sequence[float], bias: Numbers | None) -> list[float]:
        """Return this matrix times a column, and a bias."""
        check(len(self.shape) == 2 and self.shape[1] == len(column), "a matrix of another width")
        check(bias is None or bias.shape == self.shape[:1], "a bias of another size")
        sums = [math.fsum(a * b for a, b in zip(self.row(i), column, strict=True)) for i in range(self.shape[0])]
        return sums if bias is None else [a + b for a, b in zip(sums, bias.flat, strict=True)]


def to_float(bits: int, dtype: str) -> float:
    """Return the number of one bit pattern."""
    number: float = struct.unpack("<d", struct.pack("<Q", round_bits(bits, dtype, "F64")))[0]
    return number


def rounded(number: float, dtype: str) -> int:
    """Return the bit pattern of a number, rounded once."""
    return round_bits(struct.unpack("<Q", struct.pack("<d", number))[0], "F64", dtype)


def _tensor(dtype: str, shape: Sequence[int], flat: Sequence[float]) -> tuple[str, tuple[int, ...], bytes]:
    bits = np.array([rounded(number, dtype) for number in flat], words_of(dtype))
    return dtype, tuple(shape), bits.tobytes()


def rebuild(codec: str, rule: dict[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Tensors:
    """Return what a rule rebuilds from a task's tensors."""
    parse_rule(codec, rule)

    def find(name: str) -> tuple[str, tuple[int, ...], bytes]:
        check(name in tensors, "a rule names a tensor that is not there")
        return tensors[name]

    if codec == "merge":
        return {
            output: _average([find(name) for name in experts], scores and find(scores))
            for output, experts, scores in rule["rows"]
        }
    if codec == "hyper":
        return {row[0]: _generate(row, rule["trunks"], find) for row in rule["rows"]}
    made = {row[0]: _produce(row, find) for row in rule["produced"]}
    return {row[0]: _masked(row, lambda name: made[name] if name in made else find(name)) for row in rule["rows"]}


Find = Callable[[str], tuple[str, tuple[int, ...], bytes]]


def _masked(row: list[Any], find: Find) -> tuple[str, tuple[int, ...], bytes]:
    _, prototype, names, combine, transposed, index = row
    if not names:
        return find(prototype)
    dtype, shape, _ = find(prototype)
    wanted = shape[::-1] if transposed else shape
    size = math.prod(shape)
    factors: list[int] = []
    for name in names:
        held, own, data = find(name)
        check(held == "BOOL", "a mask of another dtype")
        if index is not None:
            check(len(own) > 0 and index < own[0], "a mask of fewer layers")
            own, data = own[1:], data[index * size : (index + 1) * size]
        check(own == wanted, "a mask of another shape")
        layer = list(data)
        if not factors:
            factors = layer
        elif combine == "or":
            factors = [a | b for a, b in zip(factors, layer, strict=True)]
        elif combine == "and":
            factors = [a & b for a, b in zip(factors, layer, strict=True)]
        else:
            factors = [(a + b) % 256 for a, b in zip(factors, layer, strict=True)]
    if transposed:
        grid = np.array(factors).reshape(wanted)
        factors = grid.T.reshape(-1).tolist()
    return _tensor(dtype, shape, [a * b for a, b in zip(Numbers(find(prototype)).flat, factors, strict=True)])


def _produce(row: list[Any], find: Find) -> tuple[str, tuple[int, ...], bytes]:
    codes = Numbers(find(row[1]))
    w1, b1, w2, b2 = (Numbers(find(name)) for name in (*row[2], *row[3]))
    check(len(codes.shape) == len(w1.shape) == len(w2.shape) == 2, "a network of other dimensions")
    check(codes.shape[1] == w1.shape[1] and w1.shape[0] == w2.shape[1], "a network of other shapes")
    check(b1.shape == w1.shape[:1] and b2.shape == w2.shape[:1], "a network of other biases")
    flat: list[float] = []
    for i in range(codes.shape[0]):
        flat += w2.times([math.tanh(number) for number in w1.times(codes.row(i), b1)], b2)
    return _tensor(codes.dtype, (codes.shape[0], w2.shape[0]), flat)


def _average(
    experts: list[tuple[str, tuple[int, ...], bytes]], scores: tuple[str, tuple[int, ...], bytes] | None
) -> tuple[str, tuple[int, ...], bytes]:
    dtype, shape, _ = experts[0]
    if scores is None:
        return experts[0]
    check(scores[1] == (len(experts),), "another number of scores")
    check(all(expert[:2] == (dtype, shape) for expert in experts), "experts that disagree")
    own = Numbers(scores)
    powers = [math.exp(score - max(own.flat)) for score in own.flat]

    def working(name: str) -> str:
        return name if name in ("F64", "F32", "F16") else "F32"

    def step(number: float, name: str) -> float:
        return to_float(rounded(number, working(name)), working(name))

    weights = [step(step(power / math.fsum(powers), own.dtype), dtype) for power in powers]
    total = [0.0] * math.prod(shape)
    for weight, expert in zip(weights, experts, strict=True):
        total = [step(a + step(weight * b, dtype), dtype) for a, b in zip(total, Numbers(expert).flat, strict=True)]
    return _tensor(dtype, shape, total)


def _generate(row: list[Any], trunks: list[Any], find: Find) -> tuple[str, tuple[int, ...], bytes]:
    _, weight, bias, trunk, codes, shape, transposed = row
    if trunk is None:
        return find(weight)
    first, second, norm, eps = trunks[trunk]
    w1, b1, w2, b2 = (Numbers(find(name)) for name in (*first, *second))
    code: list[float] = []
    for name, index in codes:
        table = Numbers(find(name))
        check(len(table.shape) in (1, 2), "codes of other dimensions")
        check(index < (table.shape[0] if len(table.shape) == 2 else 1), "a code out of range")
        code += table.row(index) if len(table.shape) == 2 else table.flat
    hidden = w2.times([max(number, 0.0) for number in w1.times(code, b1)], b2)
    if norm is not None:
        scale, shift = (Numbers(find(name)) for name in norm)
        check(scale.shape == shift.shape == (len(hidden),), "a norm of another size")
        mean = math.fsum(hidden) / len(hidden)
        centred = [number - mean for number in hidden]
        width = math.sqrt(math.fsum(number * number for number in centred) / len(hidden) + decimal(eps))
        hidden = [a / width * b + c for a, b, c in zip(centred, scale.flat, shift.flat, strict=True)]
    last = Numbers(find(weight))
    check(len(last.shape) == 2 and last.shape[0] == math.prod(shape), "a weight of another number of rows")
    flat = last.times(hidden, None if bias is None else Numbers(find(bias)))
    if transposed:
        grid = np.array(flat).reshape(shape)
        shape, flat = shape[::-1], grid.T.reshape(-1).tolist()
    return _tensor(last.dtype, shape, flat)

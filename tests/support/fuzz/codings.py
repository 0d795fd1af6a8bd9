"""Targets of coders, of their streams, of codecs and of rules: what is decoded is what was declared, or refused."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from petlpack import coding
from petlpack.codecs.registry import CODECS, codec
from petlpack.codecs.units import Unit
from petlpack.coding import pco
from petlpack.coding.array import Array
from petlpack.coding.registry import CODERS, coder
from petlpack.container import Container, Manifest, SectionRow
from petlpack.container.file import Sections
from petlpack.records.canonical import canonical_json, read_canonical
from petlpack.records.slot import with_kinds
from petlpack.sections.allowance import Allowance, rebuilt_bytes
from petlpack.sections.predict import Predictions
from petlpack.sections.read import SectionReader
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.pinned import State
from petlpack.tensors.safetensors_file import Entry, Header
from petlpack.tensors.tensor import Tensor
from tests.support import spec_reader
from tests.support.fuzz.mutations import NUMBERS, Havoc, bundle, mutate_json, unbundle
from tests.support.fuzz.target import Target, agree, tried
from tests.support.golden import ALL
from tests.support.small_runs import nudged, random_bits, weights
from tools.vectors import Vector, unhex
from tools.write_vectors import bits_of, changed_rebuild, encoded_units, part_rows, plan_of, rebuild_text, template_of

_HEAD = struct.Struct("<BBHH")
"""In front of a section's bytes: dtype, which prediction there is, elements, elements of a row."""

_MOST = 1 << 12
_COMPARED = 1 << 6
"""Elements up to which the second reader, which takes them one by one, reads what was read."""

_DTYPES = list(DTYPES)


def _predictions(dtype: str, count: int, row: int) -> list[Bits | None]:
    """Return predictions of an array: none, random bits, weights, one or two rows of masks, nothing."""
    masks = random_bits("BOOL", 2 * row, 3)
    return [None, random_bits(dtype, count, 1), weights(dtype, (count,), 2).bits(), masks[:row], masks, masks[:0]]


def coder_target(coder_id: str, _: Path) -> Target:
    """Return the target of a coder: any bytes as any array."""

    def attack(data: bytes) -> None:
        if len(data) < _HEAD.size:
            return
        number, which, count, row = _HEAD.unpack_from(data)
        dtype, count, row = _DTYPES[number % len(_DTYPES)], count % _MOST, max(1, row)
        predictions = _predictions(dtype, count, min(row, _MOST))
        array = Array(DTYPES[dtype], count, row, predictions[which % len(predictions)])
        section = data[_HEAD.size :]
        found = tried(lambda: coding.decode(coder_id, section, array, "s"))
        if count <= _COMPARED and coder_id in spec_reader.CODERS:
            read = partial(spec_reader.decode_section, coder_id, section, dtype, count, row, array.prediction)
            agree(found, read)
            assert found is None or found[0].tolist() == read().tolist()
        if found is not None:
            assert (len(found[0]), found[0].dtype) == (count, array.dtype.bits)
            again = coder(coder_id).encode(found[0], array, "fast")
            assert again is None or coding.decode(coder_id, again, array, "s").tolist() == found[0].tolist()

    return Target(list(_sections_of(coder_id)), attack, _mutate_section)


def _sections_of(coder_id: str) -> Iterator[bytes]:
    """Yield what a coder makes of small arrays, and its vectors that have no prediction of their own."""
    for number, dtype in enumerate(_DTYPES):
        for count, row in ((0, 1), (7, 7), (40, 8), (700, 35)):
            for which, prediction in enumerate(_predictions(dtype, count, row)):
                array = Array(DTYPES[dtype], count, row, prediction)
                like = weights(dtype, (count,), 2).bits() if which != 1 or prediction is None else prediction
                bits = nudged(Tensor.of(like, DTYPES[dtype]), 4, 0.3, 3).bits()
                made = tried(partial(coder(coder_id).encode, bits, array, "small"), Exception)
                if made is not None and made[0] is not None:
                    yield _HEAD.pack(number, which, count, row) + made[0]
    for vector in ALL:
        if vector.get("coder") == coder_id and not vector.get("prediction") and vector["count"] < _MOST:
            head = _HEAD.pack(_DTYPES.index(vector["dtype"]), 0, vector["count"], min(vector["row"], 65535))
            yield head + unhex(vector["data"])


def _mutate_section(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change what the array is, the bytes, or put a stream or a frame among them."""
    way, head, section = rng.random(), data[: _HEAD.size], data[_HEAD.size :]
    if way < 0.1 or len(head) < _HEAD.size:
        return havoc(data)
    if way < 0.2:
        at = rng.choice((0, 1, 2, 4))
        changed = bytearray(head)
        changed[at] = (changed[at] + rng.choice((1, -1, rng.randrange(256)))) % 256
        return bytes(changed) + section
    if way < 0.3:
        piece = _piece(rng)
        at = rng.randint(0, len(section))
        return head + section[:at] + piece + section[at + rng.choice((0, len(piece))) :]
    return head + havoc(section)


def _piece(rng: random.Random) -> bytes:
    """Return a stream of pcodec, or a frame of zstd, of a few numbers."""
    numbers = [rng.choice(NUMBERS) % 256 for _ in range(rng.choice((1, 7, 40)))]
    if rng.random() < 0.3:
        return zstandard.ZstdCompressor(level=rng.choice((1, 19))).compress(bytes(numbers))
    dtype = rng.choice(("<u1", "<u2", "<u4", "<u8", "<i2", "<i4", "<i8"))
    return pco.compress(np.array(numbers).astype(dtype), smooth=rng.random() < 0.2)


def stream(_: Path) -> Target:
    """Return the target of streams of integers, which all but two coders are made of."""
    types = [f"<{kind}{width}" for kind in "ui" for width in (1, 2, 4, 8)]

    def attack(data: bytes) -> None:
        if len(data) < 3:
            return
        count, dtype = int.from_bytes(data[1:3], "little") % _MOST, np.dtype(types[data[0] % 8])
        found = tried(lambda: pco.decompress(data[3:], count, dtype), ValueError)
        assert found is None or (len(found[0]), found[0].dtype) == (count, dtype)
        if count <= _COMPARED:
            agree(found, lambda: spec_reader.pcodec_stream(data[3:], count, dtype))

    seeds = []
    for number, dtype in enumerate(types):
        for count in (0, 1, 5, 40, 700):
            numbers = (np.random.default_rng(count).normal(0, 9, count)).astype("<i8").astype(dtype)
            for smooth in (False, True):
                seeds.append(struct.pack("<BH", number, count) + pco.compress(numbers, smooth=smooth))
    return Target(seeds, attack)


# Codecs


class _Given(Predictions):
    """Predictions that are known, by the units' names."""

    def __init__(self, units: Mapping[str, Bits | None], shared: list[Any]) -> None:
        super().__init__()
        self._units, self._slots = units, shared

    @property
    def shared(self) -> list[Any]:
        return self._slots

    def of(self, unit: Unit) -> Bits | None:
        return self._units[unit.name]


class _Held(Sections):
    """Sections that are in memory."""

    def __init__(self, data: Mapping[str, bytes]) -> None:
        self._data = data

    def read(self, row: SectionRow) -> bytes:
        return self._data[row.name]


class _Case:
    """A vector of a codec: what its sections decode to, and how any others are read in their place."""

    def __init__(self, vector: Vector) -> None:
        self.codec = codec(vector["codec"])
        kinds = self.codec.kinds(vector.get("rule"))
        self.slots = with_kinds(plan_of(vector, template_of(vector)).stored, kinds)
        rows = list(encoded_units(vector))
        self.bits = {unit.name: bits.tolist() for unit, bits, _ in rows}
        self._units = {unit.name: prediction for unit, _, prediction in rows}
        self._shared = [row.slot for part in part_rows(vector) for row in part]
        self.golden = {section["name"]: unhex(section["data"]) for section in vector["sections"]}
        self.rows = [[s["name"], s["coder"], s["dtype"], s["count"]] for s in vector["sections"]]

    def read(self, rows: list[Any], data: list[bytes]) -> dict[str, Bits]:
        """Return the elements of every unit, from sections of these rows and bytes."""
        told = tuple(
            SectionRow(row[0], row[1], row[2], row[3], xxhash.xxh3_64_hexdigest(one))
            for row, one in zip(rows, data, strict=True)
        )
        entries = {row.name: Entry("U8", (len(one),), 0, len(one)) for row, one in zip(told, data, strict=True)}
        head = Manifest("task", self.codec.id, told), Header("", entries, {})
        opened = Container(Path("fuzzed"), *head, State(0, 0, 0, 0, 0))
        held = _Held({row.name: one for row, one in zip(told, data, strict=True)})
        reader = SectionReader("fuzzed", opened, held, self.codec, self.slots, _Given(self._units, self._shared))
        found = {}
        for unit in {unit.name: unit for unit in reader.units.values()}.values():
            bits = reader._decode_unit(unit)
            assert (len(bits), bits.dtype) == (unit.size, unit.dtype.bits)
            found[unit.name] = bits
            self.check_again(unit, bits)
        for slot in self.slots:
            assert len(reader.read(slot, 0, slot.size)) == slot.size
        return found

    def check_again(self, unit: Unit, bits: Bits) -> None:
        """Check that what was decoded comes back once it is encoded."""
        made = self.codec.encode(unit, bits, self._units[unit.name])
        coded = {s.name: (coding.encode(s.bits, s.array, s.coders, "fast"), s.array) for s in made}

        def read(name: str, dtype: Any, counts: range, row: int, prediction: Bits | None) -> Bits:
            (coder_id, data), array = coded[name]
            return coding.decode(coder_id, data, Array(dtype, array.count, array.row, prediction), name)

        assert self.codec.decode(unit, read, self._units[unit.name]).tolist() == bits.tolist()


def codec_target(codec_id: str, _: Path) -> Target:
    """Return the target of a codec: sections of any bytes, coders, dtypes and counts in the place of golden ones."""
    cases = [_Case(v) for v in ALL if v.kind == "codec" and not v.bad and v["codec"] == codec_id and v["sections"]]

    def attack(data: bytes) -> None:
        parts = unbundle(data)
        said = tried(lambda: json.loads(parts.pop("rows.json")), ValueError, KeyError, RecursionError)
        if said is None or not isinstance(said[0], list) or not said[0] or type(said[0][0]) is not int:
            return
        case, rows = cases[said[0][0] % len(cases)], said[0][1:]
        if len(rows) == len(parts) and all(map(_is_row, rows)):
            found = tried(lambda: case.read(rows, list(parts.values())))
            if found is not None and rows == case.rows and list(parts.values()) == list(case.golden.values()):
                assert {name: bits.tolist() for name, bits in found[0].items()} == case.bits

    def mutate(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
        parts = unbundle(data)
        name = rng.choice([*parts, "rows.json"])
        if name == "rows.json":
            parts[name] = _change_rows(parts.get(name, b"[0]"), rng, havoc)
        else:
            parts[name] = _mutate_section(bytes(_HEAD.size) + parts[name], rng, havoc)[_HEAD.size :]
        return bundle(parts)

    seeds = [
        bundle({"rows.json": json.dumps([number, *case.rows]).encode(), **case.golden})
        for number, case in enumerate(cases)
    ]
    return Target(seeds, attack, mutate)


def _change_rows(text: bytes, rng: random.Random, havoc: Havoc) -> bytes:
    """Change coder, dtype or count of a section, to what a manifest may say."""
    try:
        rows = json.loads(text)
        row = rng.choice(rows[1:])
        at = rng.randrange(1, 4)
        row[at] = rng.choice((list(CODERS), _DTYPES, [row[3] + 1, max(0, row[3] - 1), *map(abs, NUMBERS)])[at - 1])
        return json.dumps(rows).encode()
    except (ValueError, IndexError, TypeError, KeyError):
        return havoc(text)


def _is_row(row: Any) -> bool:
    """Tell whether a manifest may have a row, but for its digest."""
    forms = isinstance(row, list) and [type(cell) for cell in row] == [str, str, str, int]
    return forms and row[2] in DTYPES and 0 <= row[3] < 2**48


# Rules


def rule_target(codec_id: str, _: Path) -> Target:
    """Return the target of a codec's rules, on tensors that may be any: what is rebuilt has the shape that is said."""

    def attack(text: bytes) -> None:
        said = tried(lambda: json.loads(text), ValueError, RecursionError)
        if said is None or not isinstance(said[0], dict):
            return
        rule = tried(lambda: read_canonical(canonical_json(said[0].get("rule")))[0], ValueError, TypeError)
        if rule is None or not isinstance(rule[0], (dict, type(None))):
            return  # no template has such a rule
        tensors = _tensors(said[0].get("tensors"))
        known = codec(codec_id)
        found = tried(lambda: (known.kinds(rule[0]), known.formula(rule[0]), known.rebuild(rule[0], tensors))[2])
        if found is None or found[0] is None:
            return
        rebuilt = found[0]
        allowed = Allowance("fuzzed", 1 << 22, 0)
        if tried(lambda: allowed.check(rebuilt_bytes(rule[0], rebuilt, tensors))) is None:
            return
        for tensor in rebuilt.tensors.values():
            bits = tried(tensor.bits)
            assert bits is None or (bits[0].shape, bits[0].dtype) == (tensor.shape, tensor.dtype.bits)

    rules = [vector for vector in ALL if vector.kind == "rebuild" and (vector.get("codec") or codec_id) == codec_id]
    good = {vector.id: vector for vector in rules if not vector.bad}
    bad = [changed_rebuild(good[vector["of"]], vector) for vector in rules if vector.bad and vector["of"] in good]
    seeds = [rebuild_text(vector) for vector in (*good.values(), *bad)] or [b'{"rule":null,"tensors":[]}']
    return Target(seeds, attack, mutate_json)


def _tensors(rows: Any) -> dict[str, Tensor]:
    """Return those tensors whose rows are [name, dtype, shape, bits] that go together: a task has no others."""
    tensors = {}
    for row in rows if isinstance(rows, list) else []:
        try:
            name, dtype, shape, data = row
            tensors[str(name)] = Tensor.of(bits_of(data, dtype).reshape([*map(abs, shape)]), DTYPES[dtype])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return tensors


def coders() -> dict[str, Callable[[Path], Target]]:
    """Return the targets of every coder, of streams, and of every codec and its rules, by name."""
    return {
        **{f"coder {name}": partial(coder_target, name) for name in CODERS},
        "pcodec": stream,
        **{f"codec {name}": partial(codec_target, name) for name in CODECS},
        **{f"rules of {name}": partial(rule_target, name) for name in CODECS},
    }

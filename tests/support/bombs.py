"""Packs that are small and well formed, and would cost much: what a stranger could send."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petlpack import coding, container
from petlpack.codecs.registry import codec
from petlpack.codecs.units import Unit
from petlpack.records.base_table import parse_base_table
from petlpack.records.canonical import canonical_json
from petlpack.records.slot import with_kinds
from petlpack.records.sources import parse_sources
from petlpack.records.template import parse_template
from petlpack.sections.parts import part_name
from petlpack.sections.shared import write_shared
from petlpack.store import PACK_JSON, SUFFIX
from petlpack.tensors.dtypes import DTYPES

Shapes = Mapping[str, tuple[str, Sequence[int]]]
Row = tuple[str, Sequence[int], int]

NOTHING = "0" * 64
NO_SUM = "0" * 16
"""A digest that nothing has: what is refused for its size is refused before it is compared."""


def header(shapes: Shapes) -> str:
    """Return the header of a safetensors file with these tensors, one behind another."""
    table, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        stop = at + math.prod(shape) * DTYPES[dtype].itemsize
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    return json.dumps(table, separators=(",", ":"))


class BombPack:
    """A pack that is written by hand, from what its files shall say."""

    def __init__(self, path: Path) -> None:
        """Make an empty pack."""
        self.path = path
        for folder in ("tasks", "shared"):
            (path / folder).mkdir(parents=True)
        (path / "pack.json").write_bytes(PACK_JSON)

    def keep(self, content: bytes) -> str:
        """Put a shared part of bytes there, and return its name."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.path / "shared" / f"{sha256}{SUFFIX}").write_bytes(write_shared(content))
        return sha256

    def part(self, rows: Sequence[Row], *, codec_id: str = "plain", named: str | None = None) -> str:
        """Put a shared part of tensors of zeros there, each told by dtype, shape and kind; return its name."""
        from petlpack.sections.parts import _slot

        slots = [_slot(i, DTYPES[dtype], tuple(shape), kind) for i, (dtype, shape, kind) in enumerate(rows)]
        zeros = {slot.nbytes: hashlib.sha256(bytes(slot.nbytes)).hexdigest() for slot in slots}
        sha256 = named or part_name([(slot.dtype, slot.shape, zeros[slot.nbytes]) for slot in slots])
        params = {"tensors": [[dtype, list(shape), kind] for dtype, shape, kind in rows]}
        units = codec(codec_id).units([slot for slot in slots if slot.size])
        self._write(self.path / "shared" / f"{sha256}{SUFFIX}", units, codec_id, "shared", [], sha256, params, {})
        return sha256

    def task(
        self,
        shapes: Shapes | None = None,
        *,
        name: str = "bomb",
        codec_id: str = "plain",
        params: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        shared: Sequence[str] = (),
        sections: Sequence[container.EncodedSection] | None = None,
        **fields: Any,
    ) -> None:
        """Put a task of zeros there, whose template has these fields.

        `shared` are the parts of tensors that its manifest names, and `sections` are taken as they are.
        """
        said = {"unchanged": [], "aliases": [], "name": None, **(params or {})}
        rows = [["model.safetensors", header({"a": ("F32", [1])} if shapes is None else shapes), ""]]
        empty: dict[str, Any] = {"adapts": None, "base": None, "base_name": None, "files": {}, "head": [], "named": []}
        table = {**empty, "origin": None, "parts": [], "rule": None, "weights": rows, **fields}
        text = canonical_json(table)
        digest = self.keep(text)
        units: list[Unit] = []
        if sections is None:
            template = parse_template(text, "a bomb", said["name"], self._table)
            stored = parse_sources(said, template.slots).stored
            units = codec(codec_id).units(with_kinds(stored, codec(codec_id).kinds(template.rule)))
        target = self.path / "tasks" / f"{name}{SUFFIX}"
        self._write(target, units, codec_id, "task", [digest, *shared], NOTHING, said, facts or {}, sections)

    def _table(self, sha256: str) -> Any:
        from petlpack.sections.shared import read_shared_file

        path = self.path / "shared" / f"{sha256}{SUFFIX}"
        return parse_base_table(read_shared_file(path, sha256), "a bomb")

    def _write(
        self,
        path: Path,
        units: Sequence[Unit],
        codec_id: str,
        kind: str,
        shared: Sequence[str],
        decoded: str,
        params: Mapping[str, Any],
        facts: Mapping[str, Any],
        sections: Sequence[container.EncodedSection] | None = None,
    ) -> None:
        made = [zeros(unit) for unit in units] if sections is None else sections
        checksum = NO_SUM if kind == "task" else ""
        with path.open("w+b") as file:
            container.write(
                file,
                [section.name for section in made],
                1 << 40,
                iter(made),
                lambda rows: container.Manifest(kind, codec_id, rows, tuple(shared), decoded, checksum, params, facts),
            )


def zeros(unit: Unit) -> container.EncodedSection:
    """Return the section of a unit of zeros, as small as a coder makes it."""
    bits = np.zeros(unit.size, unit.dtype.bits)
    array = coding.Array(unit.dtype, unit.size, unit.row)
    coders = ("bitmap", "masks", "planes") if unit.dtype.name == "BOOL" else ("numbers", "planes")
    coder, data = coding.encode(bits, array, coders, "small")
    return container.EncodedSection(unit.name, coder, unit.dtype.name, unit.size, data)
